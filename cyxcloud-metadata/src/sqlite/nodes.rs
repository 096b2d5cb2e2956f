//! Storage nodes, and locations found wrong.

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ChunkId, NodeId, SegmentId, Timestamp};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::content::{queue_repair, small};
use super::engine::Done;
use super::row::{self, all, exists, int, number, one, run};
use crate::error::Error;
use crate::model::{BadLocation, Fault, Heard, Node, NodeHeartbeat, NodeStep, RegisterNode};
use crate::rows::corrupt;

const NODE: &str = "id, public_key, peer_id, label, name, grpc_address, metrics_address, incarnation, storage_total,
    storage_reserved, storage_used, storage_available, status, status_changed_at, last_heartbeat, first_offline_at,
    failure_count, region, operator, subnet, version, wire_version, maintenance, read_only, quarantined";

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
        first_offline_at: row.get::<_, Option<i64>>(15)?.map(cyxcloud_core::Timestamp::from_unix_millis),
        failure_count: row::count(row, 16)?,
        region: row.get(17)?,
        operator: row.get(18)?,
        subnet: row.get(19)?,
        version: row.get(20)?,
        wire_version: row::count(row, 21)?,
        maintenance: row.get(22)?,
        read_only: row.get(23)?,
        quarantined: row.get(24)?,
    })
}

fn status_of(row: &Row<'_>, column: usize) -> Done<NodeStatus> {
    let status = row.get_ref(column)?.as_str().map_err(|e| corrupt("node status", e))?;
    Ok(status.parse().map_err(|e| corrupt("node status", e))?)
}

pub(super) fn list(db: &Connection) -> Done<Vec<Node>> {
    all(db, &format!("SELECT {NODE} FROM nodes ORDER BY id"), [], node)
}

pub(super) fn register(db: &Connection, new: &RegisterNode) -> Done<Node> {
    const KNOWN: &str = "SELECT id FROM nodes WHERE public_key = ?1";
    const TAKEN: &str = "SELECT 1 FROM nodes WHERE (id = ?1 OR peer_id = ?2) AND public_key <> ?3";
    const PUT: &str = "INSERT INTO nodes (id, public_key, peer_id, label, name, grpc_address, metrics_address,
            incarnation, storage_total, storage_reserved, storage_used, storage_available, region, operator, subnet,
            version, wire_version, status, status_changed_at, last_heartbeat, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, 'online', ?18, ?18, ?18)
        ON CONFLICT (public_key) DO UPDATE SET peer_id = ?3, label = ?4, name = ?5, grpc_address = ?6,
            metrics_address = ?7, incarnation = ?8, storage_total = ?9, storage_reserved = ?10, storage_used = ?11,
            storage_available = ?12, region = ?13, operator = ?14, subnet = ?15, version = ?16, wire_version = ?17,
            status = CASE WHEN status IN ('offline', 'draining') THEN 'recovering' ELSE status END,
            status_changed_at = CASE WHEN status IN ('offline', 'draining') THEN ?18 ELSE status_changed_at END,
            last_heartbeat = ?18";
    let key = new.public_key.as_slice();
    let id = one(db, KNOWN, [key], |row| Ok(row::id(row, 0)?))?.unwrap_or(new.id);
    if exists(db, TAKEN, params![id.as_uuid(), new.peer_id, key])? {
        return Err(Error::NodeConflict.into());
    }
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
        ],
    )?;
    let registered = one(db, &format!("SELECT {NODE} FROM nodes WHERE id = ?1"), [id.as_uuid()], node)?;
    Ok(registered.expect("it was just put there"))
}

pub(super) fn heartbeats(db: &Connection, beats: &[NodeHeartbeat]) -> Done<Vec<Option<Heard>>> {
    const BEAT: &str =
        "UPDATE nodes SET last_heartbeat = ?2, storage_used = ?3, storage_available = ?4, cpu_usage = ?5,
        memory_usage = ?6, active_connections = ?7, maintenance = ?8, read_only = ?9 WHERE id = ?1
        RETURNING status, incarnation";
    let now = row::now().unix_millis();
    let finite = |percent: f64| if percent.is_finite() { percent } else { 0.0 }; // SQLite keeps NaN as NULL
    let beat = |beat: &NodeHeartbeat| {
        one(
            db,
            BEAT,
            params![
                beat.node.as_uuid(),
                now,
                beat.storage_used.as_i64(),
                beat.storage_available.as_i64(),
                finite(beat.cpu_usage),
                finite(beat.memory_usage),
                int(beat.active_connections),
                beat.maintenance,
                beat.read_only,
            ],
            |row| {
                let now = Timestamp::from_unix_millis(now);
                Ok(Heard { status: status_of(row, 0)?, incarnation: row.get(1)?, now })
            },
        )
    };
    beats.iter().map(beat).collect()
}

/// Why a guarded change of a node touched no row.
fn refused(db: &Connection, id: NodeId) -> Done<()> {
    let known = exists(db, "SELECT 1 FROM nodes WHERE id = ?1", [id.as_uuid()])?;
    Err(if known { Error::Stale { what: "status of the node" } } else { Error::NoSuchNode }.into())
}

pub(super) fn step(db: &Connection, step: &NodeStep) -> Done<()> {
    const STEP: &str = "UPDATE nodes SET status = ?3, status_changed_at = ?4,
            failure_count = failure_count + (?3 = 'offline'),
            first_offline_at = CASE ?3 WHEN 'offline' THEN coalesce(first_offline_at, ?4) WHEN 'online' THEN NULL
                ELSE first_offline_at END
        WHERE id = ?1 AND status = ?2";
    let now = row::now().unix_millis();
    match run(db, STEP, params![step.node.as_uuid(), step.from.as_str(), step.to.as_str(), now])? {
        0 => refused(db, step.node),
        _ => Ok(()),
    }
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
    let mut left: Vec<(SegmentId, u32)> = all(db, STRIPES, [id.as_uuid()], |row| {
        let usable = row.get_ref(2)?.as_str().is_ok_and(|status| status == "stored");
        Ok(usable.then_some((row::id(row, 0)?, row::count(row, 1)?)))
    })?
    .into_iter()
    .flatten()
    .collect();
    left.sort_unstable();
    left.dedup();
    for (segment, stripe) in left {
        queue(db, segment, stripe, "node removed")?;
    }
    run(db, "DELETE FROM nodes WHERE id = ?1", [id.as_uuid()])?;
    Ok(())
}

fn status(fault: Fault) -> &'static str {
    match fault {
        Fault::Missing => "missing",
        Fault::Corrupt => "corrupt",
    }
}

pub(super) fn report_bad(db: &Connection, bad: &[BadLocation]) -> Done<()> {
    // The guard makes a repeated report harmless: it touches no row, and no repair is queued again.
    const MARK: &str =
        "UPDATE chunk_locations SET status = ?5, verification_failures = verification_failures + 1
        WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3 AND node_id = ?4
            AND status IN ('stored', 'leaving')";
    for at in bad {
        let (segment, shard, node) = (at.segment.as_uuid(), small(at.shard.get()), at.node.as_uuid());
        let status = status(at.fault);
        if run(db, MARK, params![segment, at.stripe, shard, node, status])? > 0 {
            queue(db, at.segment, at.stripe, status)?;
        }
    }
    Ok(())
}

pub(super) fn report_corrupt(db: &Connection, node: NodeId, chunks: &[ChunkId]) -> Done<usize> {
    const MARK: &str = "UPDATE chunk_locations SET status = 'corrupt', verification_failures = verification_failures + 1
        WHERE node_id = ?1 AND chunk_id = ?2 AND status IN ('stored', 'leaving') RETURNING segment_id, stripe_index";
    let mut marked = 0;
    for chunk in chunks {
        let found: Vec<(Uuid, u32)> =
            all(db, MARK, params![node.as_uuid(), chunk.as_bytes().as_slice()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        for (segment, stripe) in &found {
            queue(db, SegmentId::from(*segment), *stripe, "corrupt")?;
        }
        marked += found.len();
    }
    Ok(marked)
}

/// Queues the repair of a stripe that lost a location, by what it can still lose.
fn queue(db: &Connection, segment: SegmentId, stripe: u32, reason: &str) -> Done<()> {
    // Coded: distinct shards beyond those needed. Copied: copies beyond one.
    const LEFT: &str = "SELECT CASE WHEN s.parity_shards = 0 AND s.data_shards = 1 THEN count(l.node_id)
            ELSE count(DISTINCT l.shard_index) END - s.data_shards
        FROM segments s LEFT JOIN chunk_locations l
            ON l.segment_id = s.id AND l.stripe_index = ?2 AND l.status = 'stored'
        WHERE s.id = ?1";
    let left = number(db, LEFT, params![segment.as_uuid(), stripe])?;
    queue_repair(db, segment, stripe, i32::try_from(left.max(0)).unwrap_or(i32::MAX), reason)
}
