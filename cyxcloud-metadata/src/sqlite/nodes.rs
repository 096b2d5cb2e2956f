//! Storage nodes, and locations found wrong.
//!
//! Whatever changes what a node's locations are worth asks in the same transaction for it to be looked through
//! (`scans`) or for their stripes to be repaired (`repairs`).

use std::collections::BTreeSet;
use std::time::Duration;

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ChunkId, NodeId, Timestamp};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::content::small;
use super::engine::Done;
use super::row::{self, AUDIT_RECORD, all, exists, int, number, one, run};
use super::{garbage, repairs, scans};
use crate::error::Error;
use crate::model::{BadLocation, Fault, Heard, Node, NodeHeartbeat, NodeStep, RegisterNode};
use crate::rows::{Registered, corrupt, endpoint, percent};
use crate::upkeep::model::{LostBecause, NodeUpkeep, ScanReason, StripeRef};

const NODE: &str = "id, public_key, peer_id, label, name, grpc_address, metrics_address, incarnation, storage_total,
    storage_reserved, storage_used, storage_available, status, status_changed_at, last_heartbeat, first_offline_at,
    failure_count, region, operator, subnet, version, wire_version, maintenance, read_only, quarantined, cpu_usage,
    vetted_at, active_connections";

fn node(row: &Row<'_>) -> Done<Node> {
    Ok(Node {
        id: row::id(row, 0)?,
        public_key: row::hash(row, 1)?,
        peer_id: row.get(2)?,
        label: row.get(3)?,
        name: row.get(4)?,
        grpc_address: row.get(5)?,
        metrics_address: row.get(6)?,
        incarnation: row.get(7)?,
        storage_total: row::bytes(row, 8)?,
        storage_reserved: row::bytes(row, 9)?,
        storage_used: row::bytes(row, 10)?,
        storage_available: row::bytes(row, 11)?,
        status: status_of(row, 12)?,
        status_changed_at: row::time(row, 13)?,
        last_heartbeat: row::time(row, 14)?,
        first_offline_at: row::some_time(row, 15)?,
        failure_count: row::count(row, 16)?,
        region: row.get(17)?,
        operator: row.get(18)?,
        subnet: row.get(19)?,
        version: row.get(20)?,
        wire_version: row::count(row, 21)?,
        maintenance: row.get(22)?,
        read_only: row.get(23)?,
        quarantined: row.get(24)?,
        cpu_usage: percent(row.get(25)?),
        vetted: row::some_time(row, 26)?.is_some(),
        active_connections: row::count(row, 27)?,
    })
}

fn status_of(row: &Row<'_>, column: usize) -> Done<NodeStatus> {
    let status = row.get_ref(column)?.as_str().map_err(|e| corrupt("node status", e))?;
    Ok(status.parse().map_err(|e| corrupt("node status", e))?)
}

pub(super) fn list(db: &Connection) -> Done<Vec<Node>> {
    all(db, &format!("SELECT {NODE} FROM nodes ORDER BY id"), [], node)
}

pub(super) fn upkeep(db: &Connection) -> Done<Vec<NodeUpkeep>> {
    let select = format!(
        "SELECT id, status, status_changed_at, quarantined, reconciled_at, location_count, last_heartbeat, {AUDIT_RECORD}
         FROM nodes ORDER BY id"
    );
    all(db, &select, [], |row| {
        Ok(NodeUpkeep {
            node: row::id(row, 0)?,
            status: status_of(row, 1)?,
            status_changed_at: row::time(row, 2)?,
            quarantined: row.get(3)?,
            reconciled_at: row::some_time(row, 4)?,
            locations: row::count(row, 5)?,
            last_heartbeat: row::time(row, 6)?,
            audits: row::audit_record(row, 7)?,
        })
    })
}

/// Refuses whoever leaves a suspended operator, takes an address that a node which is heard has, or is one more of an
/// operator's than that may have; says whether it changes hands.
fn admit(db: &Connection, new: &RegisterNode) -> Done<bool> {
    const KNOWN: &str = "SELECT operator, grpc_address, suspended_at IS NOT NULL,
            status = 'draining' AND first_offline_at IS NULL FROM nodes WHERE public_key = ?1";
    const HEARD_AT: &str = "SELECT 1 FROM nodes
        WHERE substr(grpc_address, instr(grpc_address, '://') + 3) = ?1 AND public_key <> ?2
            AND status IN ('online', 'recovering')";
    const OTHERS: &str = "SELECT count(*) FROM nodes WHERE operator = ?1 AND public_key <> ?2";
    let (key, at) = (new.public_key.as_slice(), endpoint(&new.grpc_address));
    let known = one(db, KNOWN, [key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let known = known.map(Registered::read);
    let is_there = known.as_ref().is_some_and(|known| known.is_at(at));
    let is_theirs = known.as_ref().is_some_and(|known| known.is_of(&new.operator));
    if known.as_ref().is_some_and(|known| known.is_kept(new.nodes_max.is_some(), &new.operator)) {
        return Err(Error::NodeSuspended.into());
    }
    if !is_there && exists(db, HEARD_AT, params![at, key])? {
        return Err(Error::AddressTaken.into());
    }
    match new.nodes_max {
        Some(max) if !is_theirs && number(db, OTHERS, params![new.operator, key])? >= i64::from(max) => {
            Err(Error::TooManyNodes { max }.into())
        }
        Some(_) | None => Ok(known.is_some_and(|known| known.changes_hands(&new.operator))),
    }
}

pub(super) fn register(db: &Connection, new: &RegisterNode) -> Done<Node> {
    const KNOWN: &str = "SELECT id, status, incarnation FROM nodes WHERE public_key = ?1";
    const TAKEN: &str = "SELECT 1 FROM nodes WHERE (id = ?1 OR peer_id = ?2) AND public_key <> ?3";
    const PUT: &str = "INSERT INTO nodes (id, public_key, peer_id, label, name, grpc_address, metrics_address,
            incarnation, storage_total, storage_reserved, storage_used, storage_available, region, operator, subnet,
            version, wire_version, status, status_changed_at, last_heartbeat, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, 'online', ?18, ?18, ?18)
        ON CONFLICT (public_key) DO UPDATE SET peer_id = ?3, label = ?4, name = ?5, grpc_address = ?6,
            metrics_address = ?7, incarnation = ?8, storage_total = ?9, storage_reserved = ?10, storage_used = ?11,
            storage_available = ?12, region = ?13, operator = ?14, subnet = ?15, version = ?16, wire_version = ?17,
            status_changed_at = CASE WHEN status = 'offline' OR status = 'draining' AND first_offline_at IS NOT NULL
                THEN ?18 ELSE status_changed_at END,
            status = CASE WHEN status = 'offline' OR status = 'draining' AND first_offline_at IS NOT NULL
                THEN 'recovering' ELSE status END,
            last_heartbeat = ?18,
            vetted_at = CASE WHEN ?19 THEN NULL ELSE vetted_at END,
            vetting_since = CASE WHEN ?19 THEN ?18 ELSE vetting_since END,
            vetting_proofs = CASE WHEN ?19 THEN audits_proven ELSE vetting_proofs END";
    let key = new.public_key.as_slice();
    let known: Option<(NodeId, NodeStatus, Uuid)> =
        one(db, KNOWN, [key], |row| Ok((row::id(row, 0)?, status_of(row, 1)?, row.get(2)?)))?;
    let id = known.map_or(new.id, |(id, ..)| id);
    if exists(db, TAKEN, params![id.as_uuid(), new.peer_id, key])? {
        return Err(Error::NodeConflict.into());
    }
    let in_other_hands = admit(db, new)?;
    let available = new.storage_total.saturating_sub(new.storage_reserved).saturating_sub(new.storage_used);
    run(
        db,
        PUT,
        params![
            id.as_uuid(),
            key,
            new.peer_id,
            new.label,
            new.name,
            new.grpc_address,
            new.metrics_address,
            new.incarnation,
            new.storage_total.as_i64(),
            new.storage_reserved.as_i64(),
            new.storage_used.as_i64(),
            available.as_i64(),
            new.region,
            new.operator,
            new.subnet,
            new.version,
            new.wire_version,
            row::now().unix_millis(),
            in_other_hands,
        ],
    )?;
    // A new node holds nothing yet that could be looked for.
    if let Some((id, before, incarnation)) = known {
        if incarnation != new.incarnation {
            scans::queue(db, id, ScanReason::NewIncarnation)?;
        } else if matches!(before, NodeStatus::Offline | NodeStatus::Draining) {
            scans::queue(db, id, ScanReason::Returned)?;
        }
    }
    let registered = one(db, &format!("SELECT {NODE} FROM nodes WHERE id = ?1"), [id.as_uuid()], node)?;
    Ok(registered.expect("it was just put there"))
}

pub(super) fn heartbeats(db: &Connection, beats: &[NodeHeartbeat]) -> Done<Vec<Option<Heard>>> {
    let now = row::now();
    beats.iter().map(|beat| heartbeat(db, beat, now)).collect()
}

fn heartbeat(db: &Connection, beat: &NodeHeartbeat, now: Timestamp) -> Done<Option<Heard>> {
    const PAUSED: &str = "SELECT maintenance FROM nodes WHERE id = ?1";
    const BEAT: &str =
        "UPDATE nodes SET last_heartbeat = ?2, storage_used = ?3, storage_available = ?4, cpu_usage = ?5,
        memory_usage = ?6, active_connections = ?7, maintenance = ?8, read_only = ?9 WHERE id = ?1
        RETURNING status, incarnation";
    let paused: Option<bool> = one(db, PAUSED, [beat.node.as_uuid()], |row| Ok(row.get(0)?))?;
    let Some(paused) = paused else { return Ok(None) };
    let finite = |percent: f64| if percent.is_finite() { percent } else { 0.0 }; // SQLite keeps NaN as NULL
    let heard = one(
        db,
        BEAT,
        params![
            beat.node.as_uuid(),
            now.unix_millis(),
            beat.storage_used.as_i64(),
            beat.storage_available.as_i64(),
            finite(beat.cpu_usage),
            finite(beat.memory_usage),
            int(beat.active_connections),
            beat.maintenance,
            beat.read_only,
        ],
        |row| Ok(Heard { status: status_of(row, 0)?, incarnation: row.get(1)?, now }),
    )?;
    match (paused, beat.maintenance) {
        (false, true) => scans::queue(db, beat.node, ScanReason::Maintenance)?,
        (true, false) => scans::queue(db, beat.node, ScanReason::Returned)?,
        (true, true) | (false, false) => {}
    }
    Ok(heard)
}

/// Why a guarded change of a node touched no row.
fn refused(db: &Connection, id: NodeId) -> Done<()> {
    let known = exists(db, "SELECT 1 FROM nodes WHERE id = ?1", [id.as_uuid()])?;
    Err(if known { Error::Stale { what: "status of the node" } } else { Error::NoSuchNode }.into())
}

pub(super) fn step(db: &Connection, step: &NodeStep) -> Done<()> {
    const STEP: &str = "UPDATE nodes SET status = ?3, status_changed_at = ?4,
            failure_count = failure_count + (?3 = 'offline' AND NOT maintenance),
            first_offline_at = CASE ?3 WHEN 'offline' THEN coalesce(first_offline_at, ?4) WHEN 'online' THEN NULL
                ELSE first_offline_at END
        WHERE id = ?1 AND status = ?2";
    let now = row::now().unix_millis();
    match run(db, STEP, params![step.node.as_uuid(), step.from.as_str(), step.to.as_str(), now])? {
        0 => refused(db, step.node),
        _ => scans::queue(db, step.node, ScanReason::after(step.to)),
    }
}

/// By request, or no longer.
pub(super) fn drain(db: &Connection, node: NodeId, wanted: bool) -> Done<bool> {
    const KNOWN: &str = "SELECT 1 FROM nodes WHERE id = ?1";
    const DRAIN: &str = "UPDATE nodes SET
            status_changed_at = CASE WHEN status = 'draining' THEN status_changed_at ELSE ?2 END,
            status = 'draining', first_offline_at = NULL
        WHERE id = ?1 AND (status <> 'draining' OR first_offline_at IS NOT NULL)";
    const END: &str = "UPDATE nodes SET status = 'recovering', status_changed_at = ?2
        WHERE id = ?1 AND status = 'draining' AND first_offline_at IS NULL AND suspended_at IS NULL";
    let (change, status) = if wanted { (DRAIN, NodeStatus::Draining) } else { (END, NodeStatus::Recovering) };
    if run(db, change, params![node.as_uuid(), row::now().unix_millis()])? > 0 {
        scans::queue(db, node, ScanReason::after(status))?;
        return Ok(true);
    }
    match exists(db, KNOWN, [node.as_uuid()])? {
        true => Ok(false),
        false => Err(Error::NoSuchNode.into()),
    }
}

/// A node that drains for its absence, too, is suspended: it would come back when it is heard.
pub(super) fn suspend(db: &Connection, operators: &[String], suspended: bool) -> Done<Vec<NodeId>> {
    const SUSPEND: &str = "UPDATE nodes SET
            status_changed_at = CASE WHEN status = 'draining' THEN status_changed_at ELSE ?2 END,
            status = 'draining', first_offline_at = NULL, suspended_at = coalesce(suspended_at, ?2)
        WHERE operator = ?1 AND (status <> 'draining' OR first_offline_at IS NOT NULL) RETURNING id, status";
    const LIFT: &str = "UPDATE nodes SET suspended_at = NULL,
            status_changed_at = CASE WHEN status = 'draining' THEN ?2 ELSE status_changed_at END,
            status = CASE WHEN status = 'draining' THEN 'recovering' ELSE status END
        WHERE operator = ?1 AND suspended_at IS NOT NULL RETURNING id, status";
    let mut changed = Vec::new();
    for operator in operators {
        let change = if suspended { SUSPEND } else { LIFT };
        let rows = all(db, change, params![operator, row::now().unix_millis()], |row| {
            Ok((row::id::<NodeId>(row, 0)?, row.get::<_, String>(1)?))
        })?;
        for (node, status) in rows {
            let status = status.parse().map_err(|error| corrupt("node status", error))?;
            scans::queue(db, node, ScanReason::after(status))?;
            changed.push(node);
        }
    }
    Ok(changed)
}

pub(super) fn holds_chunks(db: &Connection, id: NodeId) -> Done<bool> {
    const HOLDS: &str = "SELECT 1 FROM chunk_locations WHERE node_id = ?1 AND status = 'stored' LIMIT 1";
    Ok(exists(db, HOLDS, [id.as_uuid()])?)
}

pub(super) fn remove(db: &Connection, id: NodeId) -> Done<()> {
    const DRAINING: &str = "SELECT 1 FROM nodes WHERE id = ?1 AND status = ?2";
    const STRIPES: &str =
        "DELETE FROM chunk_locations WHERE node_id = ?1 RETURNING segment_id, stripe_index, status";
    if !exists(db, DRAINING, params![id.as_uuid(), NodeStatus::Draining.as_str()])? {
        return refused(db, id);
    }
    let left = all(db, STRIPES, [id.as_uuid()], |row| {
        let usable = row.get_ref(2)?.as_str().is_ok_and(|status| status == "stored");
        Ok(usable.then_some(row::stripe(row, 0)?))
    })?;
    let left: BTreeSet<StripeRef> = left.into_iter().flatten().collect();
    for stripe in left {
        repairs::queue_lost(db, stripe, LostBecause::NodeRemoved)?;
    }
    run(db, "DELETE FROM nodes WHERE id = ?1", [id.as_uuid()])?;
    Ok(())
}

fn status(fault: Fault) -> &'static str {
    match fault {
        Fault::Missing => "missing",
        Fault::Corrupt | Fault::Rotten => "corrupt",
    }
}

pub(super) fn report_bad(db: &Connection, bad: &[BadLocation]) -> Done<()> {
    // The guard makes a repeated report harmless: it touches no row, and no repair is queued again.
    const MARK: &str =
        "UPDATE chunk_locations SET status = ?5, verification_failures = verification_failures + 1
        WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3 AND node_id = ?4
            AND status IN ('stored', 'leaving')";
    // For the whole chunk: which part of it is wrong, or whether it is all that is denied, nobody said.
    const AUDIT: &str = "INSERT INTO contained_audits (node_id, segment_id, stripe_index, shard_index, chunk_id,
            size_bytes, slice_start, slice_end, not_before)
        SELECT ?4, segment_id, stripe_index, shard_index, chunk_id, size_bytes, 0, size_bytes, ?5 FROM chunks
        WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3
        ON CONFLICT (node_id, segment_id, stripe_index, shard_index) DO UPDATE SET
            slice_start = excluded.slice_start, slice_end = excluded.slice_end, not_before = excluded.not_before";
    let ask = |at: &BadLocation| {
        let (segment, shard, node) = (at.segment.as_uuid(), small(at.shard.get()), at.node.as_uuid());
        run(db, AUDIT, params![segment, at.stripe, shard, node, row::now().unix_millis()]).map(drop)
    };
    let mut denied = Vec::new();
    for at in bad {
        let (segment, shard, node) = (at.segment.as_uuid(), small(at.shard.get()), at.node.as_uuid());
        if run(db, MARK, params![segment, at.stripe, shard, node, status(at.fault)])? > 0 {
            match at.fault {
                Fault::Corrupt => ask(at)?,
                Fault::Missing => denied.push(at),
                Fault::Rotten => {}
            }
            let stripe = StripeRef { segment: at.segment, index: at.stripe };
            repairs::queue_lost(db, stripe, LostBecause::Reported)?;
        }
    }
    for at in denied {
        if may_be_asked(db, at)? {
            ask(at)?;
        }
    }
    Ok(())
}

/// Whether a node that denied a chunk is to be audited for it now: unless it is held back, where it is asked often, or is to answer
/// soon anyway. Not for what a former life of it stored, nor while collection is frozen: what a restored database names may rightly be
/// gone.
fn may_be_asked(db: &Connection, at: &BadLocation) -> Done<bool> {
    const SOON: Duration = Duration::from_secs(5 * 60);
    const MAY: &str = "SELECT 1 FROM nodes n JOIN chunk_locations l ON l.node_id = n.id AND l.incarnation = n.incarnation
        WHERE n.id = ?1 AND NOT n.quarantined AND l.segment_id = ?3 AND l.stripe_index = ?4 AND l.shard_index = ?5
            AND NOT EXISTS (SELECT 1 FROM contained_audits WHERE node_id = ?1 AND not_before <= ?2)";
    if garbage::frozen(db)?.is_some() {
        return Ok(false);
    }
    let soon = row::after(row::now(), SOON);
    let place = params![at.node.as_uuid(), soon, at.segment.as_uuid(), at.stripe, small(at.shard.get())];
    Ok(exists(db, MAY, place)?)
}

pub(super) fn report_corrupt(db: &Connection, node: NodeId, chunks: &[ChunkId]) -> Done<usize> {
    const MARK: &str = "UPDATE chunk_locations SET status = 'corrupt', verification_failures = verification_failures + 1
        WHERE node_id = ?1 AND chunk_id = ?2 AND status IN ('stored', 'leaving') RETURNING segment_id, stripe_index";
    let mut marked = 0;
    for chunk in chunks {
        let found =
            all(db, MARK, params![node.as_uuid(), chunk.as_bytes().as_slice()], |row| row::stripe(row, 0))?;
        for stripe in &found {
            repairs::queue_lost(db, *stripe, LostBecause::Corrupt)?;
        }
        marked += found.len();
    }
    Ok(marked)
}
