//! Audits: which location is asked for, how it ended, what that makes of the location and of the node's record.
//!
//! Locks: nodes in order of id, their scans, locations, contained audits, then jobs, so that two who record at once don't deadlock.
//! Not here: the judgement of a node (`cyxcloud_core`), given as a function.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cyxcloud_core::{ChunkId, NodeId, SegmentId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::read::{self, Places};
use super::repairs::queue_lost;
use super::scans::{ask, record};
use super::transact::{self, BEGIN, Failure};
use crate::error::Result;
use crate::rows;
use crate::upkeep::Judge;
use crate::upkeep::model::{
    AuditEvent, AuditOutcome, AuditRecord, Contained, LostBecause, NodeLocation, ScanReason,
};

fn slice(row: &PgRow) -> Result<std::ops::Range<u64>, Failure> {
    Ok(read::offset(row, "slice_start")?..read::offset(row, "slice_end")?)
}

fn event(row: &PgRow) -> Result<AuditEvent, Failure> {
    Ok(AuditEvent {
        round: row.try_get("round")?,
        node: read::id(row, "node_id")?,
        at: read::place(row)?,
        slice: slice(row)?,
        outcome: rows::audit_outcome(row.try_get("outcome")?)?,
        again: row.try_get("again")?,
        when: read::time(row, "created_at")?,
    })
}

fn contained(row: &PgRow) -> Result<Contained, Failure> {
    Ok(Contained {
        node: read::id(row, "node_id")?,
        at: read::place(row)?,
        size: read::bytes(row, "size_bytes")?,
        slice: slice(row)?,
        attempts: read::count(row, "attempts")?,
    })
}

/// Events as columns.
#[derive(Default)]
struct Columns {
    round: Vec<Uuid>,
    node: Vec<Uuid>,
    at: Places,
    slice_start: Vec<i64>,
    slice_end: Vec<i64>,
    outcome: Vec<&'static str>,
    again: Vec<bool>,
}

impl Columns {
    fn of<'a>(events: impl Iterator<Item = &'a AuditEvent>) -> Self {
        let mut columns = Self::default();
        for event in events {
            columns.round.push(event.round);
            columns.node.push(event.node.as_uuid());
            columns.at.push(&event.at);
            columns.slice_start.push(read::int(event.slice.start));
            columns.slice_end.push(read::int(event.slice.end));
            columns.outcome.push(event.outcome.as_str());
            columns.again.push(event.again);
        }
        columns
    }
}

impl PostgresStore {
    pub(super) async fn sample(&self, node: NodeId, from: &[ChunkId]) -> Result<Vec<NodeLocation>> {
        let from: Vec<&[u8]> = from.iter().map(|chunk| chunk.as_bytes().as_slice()).collect();
        transact::single(&self.pool, "choose locations to audit", |conn, _| {
            let from = from.clone();
            Box::pin(async move {
                let rows = sqlx::query(include_str!("sql/sample_locations.sql"))
                    .bind(node.as_uuid())
                    .bind(from)
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(read::node_location).collect()
            })
        })
        .await
    }

    pub(super) async fn unproven_at_risk(
        &self,
        from: SegmentId,
        losses: i32,
        unproven_for: Duration,
        limit: usize,
    ) -> Result<Vec<(NodeId, NodeLocation)>> {
        transact::single(&self.pool, "look for locations at risk", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(include_str!("sql/at_risk.sql"))
                    .bind(from.as_uuid())
                    .bind(losses)
                    .bind(read::millis(unproven_for))
                    .bind(read::limit(limit))
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(|row| Ok((read::id(row, "node_id")?, read::node_location(row)?))).collect()
            })
        })
        .await
    }

    /// Where the answer to COMMIT is lost, that is reported: recorded twice, an audit would count twice.
    pub(super) async fn keep_audits(
        &self,
        events: &[AuditEvent],
        again_after: Duration,
        judge: &Judge<'_>,
    ) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        transact::run_once(&self.pool, "record audits", BEGIN, |conn, _| {
            Box::pin(keep_in(conn, events, again_after, judge))
        })
        .await
    }

    pub(super) async fn take_contained(&self, limit: usize, lease: Duration) -> Result<Vec<Contained>> {
        const TAKE: &str = "WITH due AS MATERIALIZED (
                SELECT node_id, segment_id, stripe_index, shard_index FROM contained_audits
                WHERE not_before <= now() ORDER BY not_before LIMIT $1 FOR UPDATE SKIP LOCKED
            )
            UPDATE contained_audits c SET not_before = now() + $2 * interval '1 millisecond' FROM due d
            WHERE c.node_id = d.node_id AND c.segment_id = d.segment_id AND c.stripe_index = d.stripe_index
                AND c.shard_index = d.shard_index
            RETURNING c.*";
        transact::single(&self.pool, "claim contained audits", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(TAKE)
                    .bind(read::limit(limit))
                    .bind(read::millis(lease))
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(contained).collect()
            })
        })
        .await
    }

    pub(super) async fn latest_audits(&self, node: Option<NodeId>, limit: usize) -> Result<Vec<AuditEvent>> {
        const OF_ALL: &str = "SELECT * FROM audit_events ORDER BY id DESC LIMIT $1";
        const OF_ONE: &str = "SELECT * FROM audit_events WHERE node_id = $2 ORDER BY id DESC LIMIT $1";
        transact::single(&self.pool, "read audits", |conn, _| {
            Box::pin(async move {
                let query = match node {
                    None => sqlx::query(OF_ALL).bind(read::limit(limit)),
                    Some(node) => sqlx::query(OF_ONE).bind(read::limit(limit)).bind(node.as_uuid()),
                };
                query.fetch_all(conn).await?.iter().map(event).collect()
            })
        })
        .await
    }

    pub(super) async fn drop_audits(&self, older: Duration, limit: usize) -> Result<usize> {
        const DROP: &str = "DELETE FROM audit_events WHERE id IN (
                SELECT id FROM audit_events WHERE created_at <= now() - $1 * interval '1 millisecond'
                ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
            )";
        transact::single(&self.pool, "drop old audits", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(DROP)
                    .bind(read::millis(older))
                    .bind(read::limit(limit))
                    .execute(conn)
                    .await?;
                Ok(read::touched(done.rows_affected()))
            })
        })
        .await
    }
}

async fn keep_in(
    conn: &mut PgConnection,
    events: &[AuditEvent],
    again_after: Duration,
    judge: &Judge<'_>,
) -> Result<(), Failure> {
    let all = Columns::of(events.iter());
    sqlx::query(include_str!("sql/audit_events.sql"))
        .bind(all.round)
        .bind(all.node)
        .bind(all.at.chunk)
        .bind(all.at.segment)
        .bind(all.at.stripe)
        .bind(all.at.shard)
        .bind(all.slice_start)
        .bind(all.slice_end)
        .bind(all.outcome)
        .bind(all.again)
        .execute(&mut *conn)
        .await?;
    let telling: Vec<&AuditEvent> =
        events.iter().filter(|event| event.outcome != AuditOutcome::Unreachable).collect();
    if telling.is_empty() {
        return Ok(());
    }
    judge_nodes(conn, &telling, judge).await?;
    let lost = mark(conn, &telling).await?;
    contain(conn, &telling, again_after).await?;
    queue_lost(conn, lost, LostBecause::Audited).await
}

impl PostgresStore {
    pub(super) async fn pardon_empty(&self, node: NodeId, quiet: Duration) -> Result<bool> {
        const PARDON: &str = "UPDATE nodes SET quarantined = FALSE,
                vetted_at = NULL, vetting_since = now(), vetting_proofs = audits_proven
            WHERE id = $1 AND quarantined AND last_audit <= now() - $2 * interval '1 millisecond'
                AND NOT EXISTS (SELECT FROM chunk_locations WHERE node_id = $1 AND status = 'stored' OFFSET 0)";
        transact::single(&self.pool, "let a node take new chunks again", |conn, _| {
            Box::pin(async move {
                let done =
                    sqlx::query(PARDON).bind(node.as_uuid()).bind(read::millis(quiet)).execute(conn).await?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }

    /// What it holds counts again.
    pub(super) async fn pardon(&self, node: NodeId) -> Result<bool> {
        const PARDON: &str = "UPDATE nodes SET quarantined = FALSE, audit_alpha = NULL, audit_beta = NULL,
                vetted_at = NULL, vetting_since = now(), vetting_proofs = audits_proven
            WHERE id = $1 AND quarantined";
        transact::run_idempotent(&self.pool, "take a node back", BEGIN, |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(PARDON).bind(node.as_uuid()).execute(&mut *conn).await?;
                if done.rows_affected() == 0 {
                    return Ok(false);
                }
                ask(conn, node, ScanReason::Returned, true).await
            })
        })
        .await
    }
}

/// Carries every event into its node's record, one after another. A node that was removed has none. Of one that is held back from
/// now on all it has is made elsewhere.
async fn judge_nodes(
    conn: &mut PgConnection,
    events: &[&AuditEvent],
    judge: &Judge<'_>,
) -> Result<(), Failure> {
    // Not FOR UPDATE: commits that name the node go on.
    const LOCK: &str =
        "SELECT id, quarantined, audit_alpha, audit_beta, audits_proven, audits_failed, last_audit,
            coalesce(vetting_since, created_at) AS vetting_since, vetting_proofs, vetted_at
        FROM nodes WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";
    const STORE: &str =
        "UPDATE nodes n SET audit_alpha = j.alpha, audit_beta = j.beta, audits_proven = j.proven,
            audits_failed = j.failed, last_audit = now(), quarantined = coalesce(j.quarantined, n.quarantined),
            vetted_at = coalesce(n.vetted_at, CASE WHEN j.vetted THEN now() END)
        FROM unnest($1::uuid[], $2::double precision[], $3::double precision[], $4::bigint[], $5::bigint[],
                    $6::boolean[], $7::boolean[]) j (id, alpha, beta, proven, failed, quarantined, vetted)
        WHERE n.id = j.id";
    let ids: Vec<Uuid> = events.iter().map(|event| event.node.as_uuid()).collect();
    let mut records: BTreeMap<Uuid, (AuditRecord, Option<bool>)> = BTreeMap::new();
    let mut held_back: BTreeSet<Uuid> = BTreeSet::new();
    for row in &sqlx::query(LOCK).bind(ids).fetch_all(&mut *conn).await? {
        let id = row.try_get("id")?;
        records.insert(id, (record(row)?, None));
        if row.try_get("quarantined")? {
            held_back.insert(id);
        }
    }
    for event in events {
        if let Some((record, quarantined)) = records.get_mut(&event.node.as_uuid()) {
            let (after, verdict) = judge(record, event);
            *record = after;
            *quarantined = verdict.or(*quarantined);
        }
    }
    let each = || records.values();
    sqlx::query(STORE)
        .bind(records.keys().copied().collect::<Vec<_>>())
        .bind(each().map(|(record, _)| record.alpha).collect::<Vec<_>>())
        .bind(each().map(|(record, _)| record.beta).collect::<Vec<_>>())
        .bind(each().map(|(record, _)| read::int(record.proven)).collect::<Vec<_>>())
        .bind(each().map(|(record, _)| read::int(record.failed)).collect::<Vec<_>>())
        .bind(each().map(|(_, quarantined)| *quarantined).collect::<Vec<_>>())
        .bind(each().map(|(record, _)| record.vetted).collect::<Vec<_>>())
        .execute(&mut *conn)
        .await?;
    let newly = records.iter().filter(|(id, (_, verdict))| *verdict == Some(true) && !held_back.contains(id));
    for (id, _) in newly {
        ask(&mut *conn, NodeId::from_uuid(*id), ScanReason::Draining, true).await?;
    }
    Ok(())
}

/// Answers with the stripes that lost something.
async fn mark(conn: &mut PgConnection, events: &[&AuditEvent]) -> Result<Vec<(Uuid, i32)>, Failure> {
    let columns = Columns::of(events.iter().copied());
    let marked: Vec<(Uuid, i32, bool)> = sqlx::query_as(include_str!("sql/audit_locations.sql"))
        .bind(columns.node)
        .bind(columns.at.chunk)
        .bind(columns.at.segment)
        .bind(columns.at.stripe)
        .bind(columns.at.shard)
        .bind(columns.outcome)
        .fetch_all(conn)
        .await?;
    let lost = marked.into_iter().filter(|(_, _, lost)| *lost);
    Ok(lost.map(|(segment, stripe, _)| (segment, stripe)).collect())
}

async fn contain(
    conn: &mut PgConnection,
    events: &[&AuditEvent],
    again_after: Duration,
) -> Result<(), Failure> {
    if !events.iter().any(|event| event.again || event.outcome == AuditOutcome::Late) {
        return Ok(());
    }
    let columns = Columns::of(events.iter().copied());
    sqlx::query(include_str!("sql/audit_contained.sql"))
        .bind(columns.node)
        .bind(columns.at.chunk)
        .bind(columns.at.segment)
        .bind(columns.at.stripe)
        .bind(columns.at.shard)
        .bind(columns.outcome)
        .bind(columns.again)
        .bind(columns.slice_start)
        .bind(columns.slice_end)
        .bind(read::millis(again_after))
        .execute(conn)
        .await?;
    Ok(())
}
