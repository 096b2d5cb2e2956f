//! Audits: what is asked for, how it ended, and what that makes of nodes.
//!
//! A node's record is judged by the caller between two looks at it: [`records`] reads, [`record`] begins again if it
//! has changed since. Events outlive their nodes. Not here: which chunk to ask for, and how a record is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use cyxcloud_core::NodeId;
use rusqlite::{Connection, Row, params};

use super::content::small;
use super::engine::Done;
use super::row::{self, AUDIT_RECORD, all, exists, int, one, run};
use super::{repairs, scans};
use crate::rows::{self, corrupt};
use crate::upkeep::Judge;
use crate::upkeep::model::{AuditEvent, AuditOutcome, AuditRecord, Contained, LostBecause, ScanReason};

fn outcome(row: &Row<'_>, column: usize) -> Done<AuditOutcome> {
    let text = row.get_ref(column)?.as_str().map_err(|e| corrupt("outcome of an audit", e))?;
    Ok(rows::audit_outcome(text)?)
}

/// Records of nodes that are known.
pub(super) type Records = BTreeMap<NodeId, AuditRecord>;

/// The records that these events bear on.
pub(super) fn records(db: &Connection, events: &[AuditEvent]) -> Done<Records> {
    let mut records = Records::new();
    for node in events.iter().filter(|event| counts(event)).map(|event| event.node) {
        if !records.contains_key(&node) {
            let select = format!("SELECT {AUDIT_RECORD} FROM nodes WHERE id = ?1");
            let found = one(db, &select, [node.as_uuid()], |row| row::audit_record(row, 0))?;
            records.extend(found.map(|record| (node, record)));
        }
    }
    Ok(records)
}

/// Whether it says something about the node.
fn counts(event: &AuditEvent) -> bool {
    event.outcome != AuditOutcome::Unreachable
}

/// What a node's record becomes, and whether it is held back from new data: `None` leaves that.
pub(super) struct Verdict {
    node: NodeId,
    record: AuditRecord,
    quarantined: Option<bool>,
}

/// Judges every node by its events, one after the other.
pub(super) fn judge(before: &Records, events: &[AuditEvent], judge: &Judge<'_>) -> Vec<Verdict> {
    let verdict = |(node, record): (&NodeId, &AuditRecord)| {
        let mut verdict = Verdict { node: *node, record: *record, quarantined: None };
        for event in events.iter().filter(|event| event.node == *node && counts(event)) {
            let (record, quarantined) = judge(&verdict.record, event);
            verdict.record = AuditRecord { last_audit: Some(row::now()), ..record };
            verdict.quarantined = quarantined.or(verdict.quarantined);
        }
        verdict
    };
    before.iter().map(verdict).collect()
}

/// Records events and verdicts, if the records are as they were `seen`; false if they must be judged again.
pub(super) fn record(
    db: &Connection,
    events: &[AuditEvent],
    again_after: Duration,
    seen: &Records,
    verdicts: &[Verdict],
) -> Done<bool> {
    const NODE: &str =
        "UPDATE nodes SET audit_alpha = ?2, audit_beta = ?3, audits_proven = ?4, audits_failed = ?5,
        last_audit = ?6, quarantined = coalesce(?7, quarantined),
        vetted_at = coalesce(vetted_at, CASE WHEN ?8 THEN ?6 END) WHERE id = ?1";
    const TRUSTED: &str = "SELECT 1 FROM nodes WHERE id = ?1 AND NOT quarantined";
    if records(db, events)? != *seen {
        return Ok(false);
    }
    let now = row::now().unix_millis();
    for event in events {
        keep(db, event, now)?;
        mark(db, event, again_after)?;
    }
    for Verdict { node, record, quarantined } in verdicts {
        let (proven, failed) = (int(record.proven), int(record.failed));
        let AuditRecord { alpha, beta, vetted, .. } = *record;
        // All that it has is made elsewhere from now on.
        if *quarantined == Some(true) && exists(db, TRUSTED, [node.as_uuid()])? {
            scans::queue(db, *node, ScanReason::Draining)?;
        }
        run(db, NODE, params![node.as_uuid(), alpha, beta, proven, failed, now, quarantined, vetted])?;
    }
    Ok(true)
}

/// Whether the node was held back, and is no more.
pub(super) fn forgive_empty(db: &Connection, node: NodeId, quiet: Duration) -> Done<bool> {
    const FORGIVE: &str = "UPDATE nodes SET quarantined = 0,
            vetted_at = NULL, vetting_since = ?3, vetting_proofs = audits_proven
        WHERE id = ?1 AND quarantined AND last_audit <= ?2
            AND NOT EXISTS (SELECT 1 FROM chunk_locations WHERE node_id = ?1 AND status = 'stored')";
    let now = row::now();
    Ok(run(db, FORGIVE, params![node.as_uuid(), row::before(now, quiet), now.unix_millis()])? > 0)
}

/// The same, whatever it holds: it counts again.
pub(super) fn forgive(db: &Connection, node: NodeId) -> Done<bool> {
    const FORGIVE: &str = "UPDATE nodes SET quarantined = 0, audit_alpha = NULL, audit_beta = NULL,
            vetted_at = NULL, vetting_since = ?2, vetting_proofs = audits_proven
        WHERE id = ?1 AND quarantined";
    let was_held_back = run(db, FORGIVE, params![node.as_uuid(), row::now().unix_millis()])? > 0;
    if was_held_back {
        scans::queue(db, node, ScanReason::Returned)?;
    }
    Ok(was_held_back)
}

fn keep(db: &Connection, event: &AuditEvent, now: i64) -> Done<()> {
    const KEEP: &str =
        "INSERT INTO audit_events (round, node_id, chunk_id, segment_id, stripe_index, shard_index,
            slice_start, slice_end, outcome, again, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    run(
        db,
        KEEP,
        params![
            event.round,
            event.node.as_uuid(),
            event.at.chunk.as_bytes().as_slice(),
            event.at.stripe.segment.as_uuid(),
            event.at.stripe.index,
            small(event.at.shard.get()),
            int(event.slice.start),
            int(event.slice.end),
            event.outcome.as_str(),
            event.again,
            now,
        ],
    )?;
    Ok(())
}

/// What the event says of the location, and whether an answer is still owed.
fn mark(db: &Connection, event: &AuditEvent, again_after: Duration) -> Done<()> {
    const ANSWERED: &str = "DELETE FROM contained_audits
        WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3 AND node_id = ?4";
    match event.outcome {
        AuditOutcome::Proven => proven(db, event)?,
        AuditOutcome::Lost => bad(db, event, "missing")?,
        AuditOutcome::Wrong => bad(db, event, "corrupt")?,
        AuditOutcome::Late => return contain(db, event, again_after),
        AuditOutcome::Unreachable => return Ok(()),
    }
    if event.again {
        let (stripe, shard) = (event.at.stripe, small(event.at.shard.get()));
        run(db, ANSWERED, params![stripe.segment.as_uuid(), stripe.index, shard, event.node.as_uuid()])?;
    }
    Ok(())
}

/// Which location is meant.
const PLACE: &str =
    "node_id = ?1 AND chunk_id = ?2 AND segment_id = ?3 AND stripe_index = ?4 AND shard_index = ?5";

fn proven(db: &Connection, event: &AuditEvent) -> Done<()> {
    // One found bad meanwhile stays bad: a slice says nothing of the rest.
    let proven = format!("UPDATE chunk_locations SET last_verified = ?6 WHERE {PLACE} AND status = 'stored'");
    let (node, at) = (event.node.as_uuid(), &event.at);
    let (chunk, segment) = (at.chunk.as_bytes().as_slice(), at.stripe.segment.as_uuid());
    let now = row::now().unix_millis();
    run(db, &proven, params![node, chunk, segment, at.stripe.index, small(at.shard.get()), now])?;
    Ok(())
}

fn bad(db: &Connection, event: &AuditEvent, status: &str) -> Done<()> {
    let bad = format!(
        "UPDATE chunk_locations SET status = ?6, verification_failures = verification_failures + 1
         WHERE {PLACE} AND status IN ('stored', 'leaving')"
    );
    let (node, at) = (event.node.as_uuid(), &event.at);
    let (chunk, segment) = (at.chunk.as_bytes().as_slice(), at.stripe.segment.as_uuid());
    let place = params![node, chunk, segment, at.stripe.index, small(at.shard.get()), status];
    if run(db, &bad, place)? > 0 {
        repairs::queue_lost(db, at.stripe, LostBecause::Audited)?;
    }
    Ok(())
}

/// Remembers that an answer is owed. The slice stays the one asked for first: the node may not choose another. So do its time and
/// its count where something else of the same chunk was late: a node that holds little would never have to answer.
fn contain(db: &Connection, event: &AuditEvent, again_after: Duration) -> Done<()> {
    const CONTAIN: &str = "INSERT INTO contained_audits (node_id, segment_id, stripe_index, shard_index, chunk_id,
            size_bytes, slice_start, slice_end, not_before)
        SELECT l.node_id, l.segment_id, l.stripe_index, l.shard_index, l.chunk_id, c.size_bytes, ?5, ?6, ?7
        FROM chunk_locations l JOIN chunks c ON c.segment_id = l.segment_id AND c.stripe_index = l.stripe_index
            AND c.shard_index = l.shard_index
        WHERE l.segment_id = ?1 AND l.stripe_index = ?2 AND l.shard_index = ?3 AND l.node_id = ?4
            AND l.chunk_id = ?8 AND (?9 OR NOT EXISTS (SELECT 1 FROM contained_audits a WHERE a.node_id = ?4
                AND a.segment_id = ?1 AND a.stripe_index = ?2 AND a.shard_index = ?3))
        ON CONFLICT (node_id, segment_id, stripe_index, shard_index) DO UPDATE SET
            attempts = attempts + 1, not_before = excluded.not_before";
    run(
        db,
        CONTAIN,
        params![
            event.at.stripe.segment.as_uuid(),
            event.at.stripe.index,
            small(event.at.shard.get()),
            event.node.as_uuid(),
            int(event.slice.start),
            int(event.slice.end),
            row::after(row::now(), again_after),
            event.at.chunk.as_bytes().as_slice(),
            event.again,
        ],
    )?;
    Ok(())
}

pub(super) fn claim_contained(db: &Connection, limit: usize, lease: Duration) -> Done<Vec<Contained>> {
    const DUE: &str =
        "SELECT rowid FROM contained_audits WHERE not_before <= ?1 ORDER BY not_before LIMIT ?2";
    const CLAIM: &str = "UPDATE contained_audits SET not_before = ?2 WHERE rowid = ?1
        RETURNING node_id, chunk_id, segment_id, stripe_index, shard_index, size_bytes, slice_start, slice_end,
            attempts";
    let now = row::now();
    let due: Vec<i64> = all(db, DUE, params![now.unix_millis(), int(limit as u64)], |row| Ok(row.get(0)?))?;
    let mut contained = Vec::with_capacity(due.len());
    for id in due {
        contained.extend(one(db, CLAIM, params![id, row::after(now, lease)], |row| {
            Ok(Contained {
                node: row::id(row, 0)?,
                at: row::cursor(row, 1)?,
                size: row::bytes(row, 5)?,
                slice: row::count(row, 6)?..row::count(row, 7)?,
                attempts: row::count(row, 8)?,
            })
        })?);
    }
    Ok(contained)
}

const EVENT: &str =
    "round, node_id, chunk_id, segment_id, stripe_index, shard_index, slice_start, slice_end, outcome,
    again, created_at";

fn event(row: &Row<'_>) -> Done<AuditEvent> {
    Ok(AuditEvent {
        round: row.get(0)?,
        node: row::id(row, 1)?,
        at: row::cursor(row, 2)?,
        slice: row::count(row, 6)?..row::count(row, 7)?,
        outcome: outcome(row, 8)?,
        again: row.get(9)?,
        when: row::time(row, 10)?,
    })
}

pub(super) fn events(db: &Connection, node: Option<NodeId>, limit: usize) -> Done<Vec<AuditEvent>> {
    let limit = int(limit as u64);
    match node {
        Some(node) => {
            let of_node =
                format!("SELECT {EVENT} FROM audit_events WHERE node_id = ?1 ORDER BY id DESC LIMIT ?2");
            all(db, &of_node, params![node.as_uuid(), limit], event)
        }
        None => {
            all(db, &format!("SELECT {EVENT} FROM audit_events ORDER BY id DESC LIMIT ?1"), [limit], event)
        }
    }
}

pub(super) fn purge(db: &Connection, older: Duration, limit: usize) -> Done<usize> {
    const PURGE: &str = "DELETE FROM audit_events WHERE id IN (
        SELECT id FROM audit_events WHERE created_at <= ?1 ORDER BY created_at LIMIT ?2)";
    Ok(run(db, PURGE, params![row::before(row::now(), older), int(limit as u64)])?)
}
