//! What was done to buckets and objects, for the audit log: noted without waiting for it, written in batches beside.
//!
//! Notes wait in memory, at most [`WAITING_MAX`] of them; what finds no room is lost and counted, as is what could not be
//! written by the time the gateway has to end. So a line is in the log within about a second of what it tells, and a
//! request never waits for it. Rare deeds are written at once ([`write`]). Not here: what deserves a note and how it is called
//! (`s3`), the lines of log-ins and keys (`identity`), which are written before the answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::OwnerId;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::identity::model::NewAuditEntry;
use prometheus::{IntCounter, Registry};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::auth::Principal;
use crate::identity::actor;

/// Notes that wait for the store, at most.
const WAITING_MAX: usize = 20_000;
/// Lines written at once, at most.
const BATCH_MAX: usize = 500;
/// More notes are waited for this long, so that they share a transaction.
const GATHER: Duration = Duration::from_millis(500);
/// Pause before a batch that failed is written again.
const RETRY: Duration = Duration::from_secs(2);
/// Longest text of a target: a bucket and a key, twice.
const TARGET_MAX: usize = 2_200;
/// Longest text of any other target.
const LINE_TARGET_MAX: usize = 200;

/// Takes notes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    notes: mpsc::Sender<NewAuditEntry>,
    lost: IntCounter,
}

/// Writes what was noted.
#[derive(Debug)]
pub struct Scribe {
    notes: mpsc::Receiver<NewAuditEntry>,
    lost: IntCounter,
}

/// A journal and who writes it.
pub fn journal(registry: &Registry) -> Result<(Journal, Scribe), prometheus::Error> {
    let lost = IntCounter::new(
        "cyxcloud_gateway_audit_lines_lost_total",
        "Lines about buckets and objects that are not in the audit log: too many waited, or the store failed to the end",
    )?;
    registry.register(Box::new(lost.clone()))?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    Ok((Journal { notes: sender, lost: lost.clone() }, Scribe { notes: receiver, lost }))
}

impl Journal {
    /// Notes what somebody did, or was refused.
    pub fn note(&self, who: &Principal, action: &'static str, target: &str, from: IpAddr, outcome: &str) {
        let entry = NewAuditEntry {
            // In the order of what happened, also where the store's clock says the same of several.
            id: Uuid::now_v7(),
            owner: Some(who.owner),
            actor: actor(who),
            action: action.to_owned(),
            target: target.chars().take(TARGET_MAX).collect(),
            address: from.to_canonical().to_string(),
            outcome: outcome.to_owned(),
        };
        if self.notes.try_send(entry).is_err() {
            self.lost.inc();
        }
    }
}

/// Writes one line now, from nowhere where we do it by ourselves. What was done is done, whether it can be written or not.
pub(crate) async fn write(
    metadata: &dyn MetadataStore,
    owner: Option<OwnerId>,
    actor: &str,
    action: &str,
    target: &str,
    from: Option<IpAddr>,
    outcome: &str,
) {
    let entry = NewAuditEntry {
        id: Uuid::new_v4(),
        owner,
        actor: actor.to_owned(),
        action: action.to_owned(),
        target: target.chars().take(LINE_TARGET_MAX).collect(),
        address: from.map(|from| from.to_canonical().to_string()).unwrap_or_default(),
        outcome: outcome.to_owned(),
    };
    if let Err(error) = metadata.append_audit(std::slice::from_ref(&entry)).await {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            action,
            actor,
            "a line of the audit log is lost"
        );
    }
}

impl Scribe {
    /// Writes until `stop`, then what is left.
    pub async fn write(mut self, metadata: Arc<dyn MetadataStore>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            tokio::select! {
                // Told to stop, it takes what was noted by then and no more.
                () = stop.cancelled(), if !self.notes.is_closed() => {
                    self.notes.close();
                    continue;
                }
                got = self.notes.recv_many(&mut batch, BATCH_MAX) => if got == 0 { return },
            }
            self.gather(&mut batch, &stop).await;
            while let Err(error) = metadata.append_audit(&batch).await {
                warn!(error = &error as &dyn std::error::Error, lines = batch.len(), "the audit log waits");
                if stop.is_cancelled() {
                    let lines = batch.len() + self.notes.len();
                    self.lost.inc_by(lines as u64);
                    tracing::error!(lines, "lines of the audit log are lost");
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = stop.cancelled() => {}
                }
            }
            batch.clear();
        }
    }

    /// Fills the batch for a moment.
    async fn gather(&mut self, batch: &mut Vec<NewAuditEntry>, stop: &CancellationToken) {
        let over = tokio::time::sleep(GATHER);
        tokio::pin!(over);
        while batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            tokio::select! {
                () = &mut over => return,
                () = stop.cancelled() => return,
                got = self.notes.recv_many(batch, room) => if got == 0 { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::OwnerId;
    use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};

    use super::*;
    use crate::auth::Scheme;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn somebody() -> Principal {
        let owner = OwnerId::from_random([1; 16]);
        Principal { owner, admin: false, access_key: None, scheme: Scheme::Header, limits: None, token: None }
    }

    #[tokio::test]
    async fn what_was_noted_is_written_in_order_before_the_end() {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens"));
        let (journal, scribe) = journal(&Registry::new()).expect("registers");
        let stop = CancellationToken::new();
        let writing = tokio::spawn(scribe.write(metadata.clone(), stop.clone()));
        for number in 0..BATCH_MAX * 2 + 1 {
            journal.note(&somebody(), "object.put", &format!("bucket/{number}"), HOME, "ok");
        }
        stop.cancel();
        writing.await.expect("ends");
        let lines = metadata.audit_log(Some(somebody().owner), None, 2000).await.expect("reads");
        let targets: Vec<_> = lines.iter().rev().map(|line| line.entry.target.clone()).collect();
        let wanted: Vec<_> = (0..BATCH_MAX * 2 + 1).map(|number| format!("bucket/{number}")).collect();
        assert_eq!(targets, wanted);
        journal.note(&somebody(), "object.put", "too late", HOME, "ok");
        assert_eq!(journal.lost.get(), 1);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (journal, scribe) = journal(&Registry::new()).expect("registers");
        for _ in 0..WAITING_MAX + 3 {
            journal.note(&somebody(), "object.put", "bucket/key", HOME, "ok");
        }
        assert_eq!((scribe.notes.len(), scribe.lost.get()), (WAITING_MAX, 3));
    }
}
