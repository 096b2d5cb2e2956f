//! What was done to buckets and objects, for the audit log: noted without waiting for it, written in batches beside.
//!
//! Notes wait in memory, at most [`WAITING_MAX`] of them; what finds no room is lost and counted, as is what could not be
//! written by the time the gateway has to end. Of one owner [`OWNER_WAITING_MAX`] wait, so that nobody takes the room of others;
//! of what is more than that a line tells how much it was. So a line is in the log within about a second of what it tells, and a
//! request never waits for it. Rare deeds are written at once ([`write`]). Not here: what deserves a note and how it is called
//! (`s3`), the lines of log-ins and keys (`identity`), which are written before the answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
/// Of one owner.
const OWNER_WAITING_MAX: usize = 5_000;
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

/// Refusals to one owner that are told one by one in a minute; of more, every time that they have doubled.
const DENIALS_TOLD: u64 = 30;
/// For so long.
const DENIALS_WINDOW: Duration = Duration::from_secs(60);
/// Owners whose refusals are counted at a time, at most.
const DENIED_MAX: usize = 10_000;

/// Counts what somebody is refused, so that whoever asks in vain on and on does not fill the log. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Denials(Arc<Mutex<HashMap<OwnerId, (Instant, u64)>>>);

impl Denials {
    /// The target to be told of one more refusal to this owner; `None` where it is one of many.
    pub fn tell(&self, owner: OwnerId, target: &str) -> Option<String> {
        self.tell_at(owner, target, Instant::now())
    }

    fn tell_at(&self, owner: OwnerId, target: &str, now: Instant) -> Option<String> {
        let mut denied = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |began: Instant| now.duration_since(began) >= DENIALS_WINDOW;
        if denied.len() >= DENIED_MAX && !denied.contains_key(&owner) {
            denied.retain(|_, (began, _)| !is_over(*began));
            if denied.len() >= DENIED_MAX {
                denied.clear();
            }
        }
        let (began, count) = denied.entry(owner).or_insert((now, 0));
        if is_over(*began) {
            (*began, *count) = (now, 0);
        }
        *count += 1;
        match *count {
            count if count <= DENIALS_TOLD => Some(target.to_owned()),
            count if count.is_power_of_two() => {
                Some(format!("{count} within a minute, this the last: {target}"))
            }
            _ => None,
        }
    }
}

/// What of one owner's notes is not written yet.
#[derive(Debug, Default)]
struct Backlog {
    waiting: usize,
    /// Of those that found no room: how many, and the last.
    left_out: Option<(u64, NewAuditEntry)>,
}

/// By owner; those of whom nothing waits are not in it.
type Backlogs = Arc<Mutex<HashMap<Option<OwnerId>, Backlog>>>;

/// Takes notes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    notes: mpsc::Sender<NewAuditEntry>,
    backlogs: Backlogs,
    lost: IntCounter,
    denials: Denials,
}

/// Writes what was noted.
#[derive(Debug)]
pub struct Scribe {
    notes: mpsc::Receiver<NewAuditEntry>,
    backlogs: Backlogs,
    lost: IntCounter,
}

/// A journal and who writes it. Who else tells of refusals tells them to the same `denials`.
pub fn journal(registry: &Registry, denials: Denials) -> Result<(Journal, Scribe), prometheus::Error> {
    let lost = IntCounter::new(
        "cyxcloud_gateway_audit_lines_lost_total",
        "Lines about buckets and objects that are not in the audit log: too many waited, or the store failed to the end",
    )?;
    registry.register(Box::new(lost.clone()))?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let backlogs = Backlogs::default();
    let journal = Journal { notes: sender, backlogs: backlogs.clone(), lost: lost.clone(), denials };
    Ok((journal, Scribe { notes: receiver, backlogs, lost }))
}

/// A line of the log.
fn entry(
    owner: Option<OwnerId>,
    actor: &str,
    action: &str,
    target: String,
    from: Option<IpAddr>,
    outcome: &str,
) -> NewAuditEntry {
    NewAuditEntry {
        // In the order of what happened, also where the store's clock says the same of several.
        id: Uuid::now_v7(),
        owner,
        actor: actor.to_owned(),
        action: action.to_owned(),
        target,
        address: from.map(|from| from.to_canonical().to_string()).unwrap_or_default(),
        outcome: outcome.to_owned(),
    }
}

fn shortened(target: &str, most: usize) -> String {
    target.chars().take(most).collect()
}

impl Journal {
    /// Notes what somebody may not do. Not each time, where it is many times.
    pub fn note_denied(
        &self,
        who: &Principal,
        action: &'static str,
        target: &str,
        from: IpAddr,
        outcome: &str,
    ) {
        if let Some(target) = self.denials.tell(who.owner, target) {
            self.note(who, action, &target, from, outcome);
        }
    }

    /// Notes what somebody did, or tried.
    pub fn note(&self, who: &Principal, action: &'static str, target: &str, from: IpAddr, outcome: &str) {
        let target = shortened(target, TARGET_MAX);
        let entry = entry(Some(who.owner), &actor(who), action, target, Some(from), outcome);
        let mut backlogs = self.backlogs.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = backlogs.get(&entry.owner).map_or(0, |backlog| backlog.waiting);
        if waiting >= OWNER_WAITING_MAX {
            self.lost.inc();
            let backlog = backlogs.entry(entry.owner).or_default();
            let before = backlog.left_out.take().map_or(0, |(count, _)| count);
            backlog.left_out = Some((before + 1, entry));
            return;
        }
        let owner = entry.owner;
        match self.notes.try_send(entry) {
            Ok(()) => backlogs.entry(owner).or_default().waiting += 1,
            Err(_) => self.lost.inc(),
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
    let entry = entry(owner, actor, action, shortened(target, LINE_TARGET_MAX), from, outcome);
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
            if !self.append(&*metadata, &batch, &stop).await {
                return;
            }
            let more = self.written(&batch);
            if !more.is_empty() && !self.append(&*metadata, &more, &stop).await {
                return;
            }
            batch.clear();
        }
    }

    /// Writes these lines, however long it takes; `false` where it could not be done before `stop`.
    async fn append(
        &self,
        metadata: &dyn MetadataStore,
        lines: &[NewAuditEntry],
        stop: &CancellationToken,
    ) -> bool {
        while let Err(error) = metadata.append_audit(lines).await {
            warn!(error = &error as &dyn std::error::Error, lines = lines.len(), "the audit log waits");
            if stop.is_cancelled() {
                let lines = lines.len() + self.notes.len();
                self.lost.inc_by(lines as u64);
                tracing::error!(lines, "lines of the audit log are lost");
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => {}
            }
        }
        true
    }

    /// These notes wait no more; answers the lines that tell how many of their owners' found no room meanwhile.
    fn written(&self, batch: &[NewAuditEntry]) -> Vec<NewAuditEntry> {
        let mut backlogs = self.backlogs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut more = Vec::new();
        for entry in batch {
            let Some(backlog) = backlogs.get_mut(&entry.owner) else { continue };
            backlog.waiting -= 1;
            if let Some((count, last)) = backlog.left_out.take() {
                let target = format!("{count} more at once, this the last: {}", last.target);
                more.push(NewAuditEntry { target: shortened(&target, TARGET_MAX), ..last });
            }
            if backlog.waiting == 0 {
                backlogs.remove(&entry.owner);
            }
        }
        more
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
        person(1)
    }

    fn person(number: u8) -> Principal {
        let owner = OwnerId::from_random([number; 16]);
        Principal { owner, admin: false, access_key: None, scheme: Scheme::Header, limits: None, token: None }
    }

    #[tokio::test]
    async fn what_was_noted_is_written_in_order_before_the_end() {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens"));
        let (journal, scribe) = journal(&Registry::new(), Denials::default()).expect("registers");
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
    fn of_many_refusals_few_are_told() {
        let (denials, owner, now) = (Denials::default(), somebody().owner, Instant::now());
        let told = (0..1_000).filter_map(|_| denials.tell_at(owner, "b/k", now)).collect::<Vec<_>>();
        assert_eq!(told.len(), 30 + 5, "and 32, 64, 128, 256 and 512");
        assert_eq!(told[34], "512 within a minute, this the last: b/k");
        let other = OwnerId::from_random([2; 16]);
        assert_eq!(denials.tell_at(other, "b/k", now).as_deref(), Some("b/k"));
        assert_eq!(denials.tell_at(owner, "b/k", now), None);
        assert_eq!(denials.tell_at(owner, "b/k", now + DENIALS_WINDOW).as_deref(), Some("b/k"));
        for number in 0..2 * DENIED_MAX as u128 {
            denials.tell_at(OwnerId::from_random(number.to_be_bytes()), "b/k", now);
        }
        assert!(denials.0.lock().expect("not poisoned").len() <= DENIED_MAX);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (journal, scribe) = journal(&Registry::new(), Denials::default()).expect("registers");
        for number in 0..WAITING_MAX + 3 {
            let who = person((number / OWNER_WAITING_MAX) as u8);
            journal.note(&who, "object.put", "bucket/key", HOME, "ok");
        }
        assert_eq!((scribe.notes.len(), scribe.lost.get()), (WAITING_MAX, 3));
        assert_eq!(scribe.backlogs.lock().expect("not poisoned").len(), 4);
    }

    #[tokio::test]
    async fn adv_30_nobody_takes_the_room_of_others() {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens"));
        let (journal, scribe) = journal(&Registry::new(), Denials::default()).expect("registers");
        for number in 0..WAITING_MAX + 3 {
            journal.note(&person(1), "object.delete", &format!("bucket/{number}"), HOME, "ok");
        }
        journal.note(&person(2), "object.put", "bucket/key", HOME, "ok");
        assert_eq!(scribe.notes.len(), OWNER_WAITING_MAX + 1);
        let (stop, backlogs) = (CancellationToken::new(), scribe.backlogs.clone());
        stop.cancel();
        scribe.write(metadata.clone(), stop).await;
        let lines = async |number: u8, most: usize| {
            let lines = metadata.audit_log(Some(person(number).owner), None, most).await.expect("reads");
            lines.into_iter().map(|line| line.entry.target).collect::<Vec<_>>()
        };
        assert_eq!(lines(2, 10).await, ["bucket/key"]);
        let told = lines(1, OWNER_WAITING_MAX + 10).await;
        assert_eq!(told.len(), OWNER_WAITING_MAX + 1);
        let more =
            format!("{} more at once, this the last: bucket/20002", WAITING_MAX + 3 - OWNER_WAITING_MAX);
        assert_eq!(told.iter().filter(|target| **target == more).count(), 1);
        assert!(
            backlogs.lock().expect("not poisoned").is_empty(),
            "nothing is remembered of what was written"
        );
    }
}
