//! Storage nodes: known, heard, led through their life cycle, forgotten; and what they were found to hold wrongly.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ChunkId, NodeId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::read;
use super::repairs::queue_lost;
use super::scans;
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::model::{BadLocation, Fault, Heard, Node, NodeHeartbeat, NodeStep, RegisterNode};
use crate::rows::{self, Registered, endpoint};
use crate::upkeep::model::{LostBecause, ScanReason};

fn node(row: &PgRow) -> Result<Node, Failure> {
    Ok(Node {
        id: read::id(row, "id")?,
        public_key: read::hash(row, "public_key")?,
        peer_id: row.try_get("peer_id")?,
        label: row.try_get("label")?,
        name: row.try_get("name")?,
        grpc_address: row.try_get("grpc_address")?,
        metrics_address: row.try_get("metrics_address")?,
        incarnation: row.try_get("incarnation")?,
        storage_total: read::bytes(row, "storage_total")?,
        storage_reserved: read::bytes(row, "storage_reserved")?,
        storage_used: read::bytes(row, "storage_used")?,
        storage_available: read::bytes(row, "storage_available")?,
        status: status(row)?,
        status_changed_at: read::time(row, "status_changed_at")?,
        last_heartbeat: read::time(row, "last_heartbeat")?,
        first_offline_at: row.try_get::<Option<DateTime<Utc>>, _>("first_offline_at")?.map(read::timestamp),
        failure_count: read::count(row, "failure_count")?,
        region: row.try_get("region")?,
        operator: row.try_get("operator")?,
        subnet: row.try_get("subnet")?,
        version: row.try_get("version")?,
        wire_version: read::count(row, "wire_version")?,
        maintenance: row.try_get("maintenance")?,
        read_only: row.try_get("read_only")?,
        quarantined: row.try_get("quarantined")?,
        vetted: row.try_get::<Option<DateTime<Utc>>, _>("vetted_at")?.is_some(),
        cpu_usage: rows::percent(row.try_get("cpu_usage")?),
        active_connections: read::total(row, "active_connections")?,
    })
}

fn heard(row: &PgRow) -> Result<Heard, Failure> {
    Ok(Heard { status: status(row)?, incarnation: row.try_get("incarnation")?, now: read::time(row, "now")? })
}

fn status(row: &PgRow) -> Result<NodeStatus, Failure> {
    let status = row.try_get::<&str, _>("status")?.parse();
    Ok(status.map_err(|error| rows::corrupt("node status", error))?)
}

impl PostgresStore {
    /// Two registrations of a new node at once collide on what is unique beside its key; the second time one of them
    /// finds the other.
    pub(super) async fn register(&self, new: &RegisterNode) -> Result<Node> {
        match self.upsert(new).await {
            Err(Error::NodeConflict) => self.upsert(new).await,
            answer => answer,
        }
    }

    async fn upsert(&self, new: &RegisterNode) -> Result<Node> {
        const REGISTER: &str = concat!(
            include_str!("sql/register_node.sql"),
            include_str!("sql/scan_conflict.sql"),
            ") SELECT * FROM node"
        );
        let free = new.storage_total.saturating_sub(new.storage_reserved).saturating_sub(new.storage_used);
        transact::run_idempotent(&self.pool, "register the node", BEGIN, |conn, _| {
            Box::pin(async move {
                let in_other_hands = admit(&mut *conn, new).await?;
                let row = sqlx::query(REGISTER)
                    .bind(new.id.as_uuid())
                    .bind(new.public_key.as_slice())
                    .bind(rows::shown(&new.peer_id))
                    .bind(rows::shown(&new.label))
                    .bind(rows::shown(&new.name))
                    .bind(rows::shown(&new.grpc_address))
                    .bind(rows::shown(&new.metrics_address))
                    .bind(new.incarnation)
                    .bind(new.storage_total.as_i64())
                    .bind(new.storage_used.as_i64())
                    .bind(new.storage_reserved.as_i64())
                    .bind(free.as_i64())
                    .bind(rows::shown(&new.region))
                    .bind(rows::shown(&new.operator))
                    .bind(rows::shown(&new.subnet))
                    .bind(rows::shown(&new.version))
                    .bind(i32::try_from(new.wire_version).unwrap_or(i32::MAX))
                    .bind(in_other_hands)
                    .fetch_one(conn)
                    .await?;
                node(&row)
            })
        })
        .await
    }

    /// Nodes are locked in order of id, so that gateways that hear the same nodes don't deadlock. Of several
    /// heartbeats of one node the last counts.
    pub(super) async fn hear(&self, beats: &[NodeHeartbeat]) -> Result<Vec<Option<Heard>>> {
        const HEAR: &str = concat!(
            include_str!("sql/heartbeats.sql"),
            include_str!("sql/scan_conflict.sql"),
            ") SELECT id, status, incarnation, now() AS now FROM heard"
        );
        let last: std::collections::BTreeMap<Uuid, &NodeHeartbeat> =
            beats.iter().map(|beat| (beat.node.as_uuid(), beat)).collect();
        let column = |of: fn(&NodeHeartbeat) -> i64| last.values().map(|beat| of(beat)).collect::<Vec<_>>();
        let ids: Vec<Uuid> = last.keys().copied().collect();
        let used = column(|beat| beat.storage_used.as_i64());
        let available = column(|beat| beat.storage_available.as_i64());
        let connections = column(|beat| read::int(beat.active_connections));
        let cpu: Vec<f64> = last.values().map(|beat| beat.cpu_usage).collect();
        let memory: Vec<f64> = last.values().map(|beat| beat.memory_usage).collect();
        let maintenance: Vec<bool> = last.values().map(|beat| beat.maintenance).collect();
        let read_only: Vec<bool> = last.values().map(|beat| beat.read_only).collect();
        let columns = &(ids, used, available, connections, cpu, memory, maintenance, read_only);
        let known: HashMap<Uuid, Heard> = transact::single(&self.pool, "record heartbeats", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(HEAR)
                    .bind(&columns.0)
                    .bind(&columns.1)
                    .bind(&columns.2)
                    .bind(&columns.3)
                    .bind(&columns.4)
                    .bind(&columns.5)
                    .bind(&columns.6)
                    .bind(&columns.7)
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(|row| Ok((row.try_get("id")?, heard(row)?))).collect()
            })
        })
        .await?;
        Ok(beats.iter().map(|beat| known.get(&beat.node.as_uuid()).copied()).collect())
    }

    pub(super) async fn all_nodes(&self) -> Result<Vec<Node>> {
        transact::single(&self.pool, "read the nodes", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query("SELECT * FROM nodes ORDER BY id").fetch_all(conn).await?;
                rows.iter().map(node).collect()
            })
        })
        .await
    }

    pub(super) async fn step(&self, step: &NodeStep) -> Result<()> {
        const STEP: &str = "UPDATE nodes SET
                status = $3,
                status_changed_at = now(),
                failure_count = failure_count + CASE WHEN $3 = 'offline' AND NOT maintenance THEN 1 ELSE 0 END,
                first_offline_at = CASE $3 WHEN 'offline' THEN coalesce(first_offline_at, now())
                                           WHEN 'online' THEN NULL ELSE first_offline_at END
            WHERE id = $1 AND status = $2";
        transact::run_once(&self.pool, "record the node's step", BEGIN, |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(STEP)
                    .bind(step.node.as_uuid())
                    .bind(step.from.as_str())
                    .bind(step.to.as_str())
                    .execute(&mut *conn)
                    .await?;
                if done.rows_affected() == 0 {
                    return Err(why_not(conn, step.node).await);
                }
                scans::ask(conn, step.node, ScanReason::after(step.to), true).await?;
                Ok(())
            })
        })
        .await
    }

    pub(super) async fn drain(&self, node: NodeId, wanted: bool) -> Result<bool> {
        const DRAIN: &str = "UPDATE nodes SET status = 'draining', first_offline_at = NULL,
                status_changed_at = CASE WHEN status = 'draining' THEN status_changed_at ELSE now() END
            WHERE id = $1 AND (status <> 'draining' OR first_offline_at IS NOT NULL)";
        const END: &str = "UPDATE nodes SET status = 'recovering', status_changed_at = now()
            WHERE id = $1 AND status = 'draining' AND first_offline_at IS NULL AND suspended_at IS NULL";
        const KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM nodes WHERE id = $1)";
        let (change, status) =
            if wanted { (DRAIN, NodeStatus::Draining) } else { (END, NodeStatus::Recovering) };
        transact::run_idempotent(&self.pool, "drain the node", BEGIN, |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(change).bind(node.as_uuid()).execute(&mut *conn).await?;
                if done.rows_affected() > 0 {
                    return scans::ask(conn, node, ScanReason::after(status), true).await;
                }
                match sqlx::query_scalar(KNOWN).bind(node.as_uuid()).fetch_one(conn).await? {
                    true => Ok(false),
                    false => Err(Error::NoSuchNode.into()),
                }
            })
        })
        .await
    }

    /// A node that drains for its absence, too, is suspended: it would come back when it is heard.
    pub(super) async fn suspend(&self, operators: &[String], suspended: bool) -> Result<Vec<NodeId>> {
        const SUSPEND: &str = "UPDATE nodes SET status = 'draining', first_offline_at = NULL,
                status_changed_at = CASE WHEN status = 'draining' THEN status_changed_at ELSE now() END,
                suspended_at = coalesce(suspended_at, now())
            WHERE id IN (SELECT id FROM nodes
                WHERE operator = ANY ($1) AND (status <> 'draining' OR first_offline_at IS NOT NULL)
                ORDER BY id FOR UPDATE)
            RETURNING id, status";
        const LIFT: &str = "UPDATE nodes SET suspended_at = NULL,
                status = CASE WHEN status = 'draining' THEN 'recovering' ELSE status END,
                status_changed_at = CASE WHEN status = 'draining' THEN now() ELSE status_changed_at END
            WHERE id IN (SELECT id FROM nodes WHERE operator = ANY ($1) AND suspended_at IS NOT NULL
                ORDER BY id FOR UPDATE)
            RETURNING id, status";
        if operators.is_empty() {
            return Ok(Vec::new());
        }
        transact::run_idempotent(&self.pool, "suspend nodes", BEGIN, |conn, _| {
            Box::pin(async move {
                let change = if suspended { SUSPEND } else { LIFT };
                let rows = sqlx::query(change).bind(operators).fetch_all(&mut *conn).await?;
                let mut changed = Vec::with_capacity(rows.len());
                for row in &rows {
                    let node = read::id(row, "id")?;
                    scans::ask(conn, node, ScanReason::after(status(row)?), true).await?;
                    changed.push(node);
                }
                Ok(changed)
            })
        })
        .await
    }

    pub(super) async fn holds(&self, id: NodeId) -> Result<bool> {
        const HOLDS: &str =
            "SELECT EXISTS (SELECT 1 FROM chunk_locations WHERE node_id = $1 AND status = 'stored')";
        transact::single(&self.pool, "look for what the node holds", |conn, _| {
            Box::pin(async move { Ok(sqlx::query_scalar(HOLDS).bind(id.as_uuid()).fetch_one(conn).await?) })
        })
        .await
    }

    /// What it held is looked at once more: draining should have left nothing that only it has.
    pub(super) async fn forget(&self, id: NodeId) -> Result<()> {
        const LOCK: &str = "SELECT id FROM nodes WHERE id = $1 AND status = 'draining' FOR UPDATE";
        const FREE: &str = "WITH freed AS (
                DELETE FROM chunk_locations WHERE node_id = $1 RETURNING segment_id, stripe_index, status
            )
            SELECT segment_id, stripe_index FROM freed WHERE status = 'stored'";
        transact::run_once(&self.pool, "remove the node", BEGIN, |conn, _| {
            Box::pin(async move {
                if sqlx::query(LOCK).bind(id.as_uuid()).fetch_optional(&mut *conn).await?.is_none() {
                    return Err(why_not(conn, id).await);
                }
                let freed: Vec<(Uuid, i32)> =
                    sqlx::query_as(FREE).bind(id.as_uuid()).fetch_all(&mut *conn).await?;
                queue_lost(conn, freed, LostBecause::NodeRemoved).await?;
                sqlx::query("DELETE FROM nodes WHERE id = $1").bind(id.as_uuid()).execute(conn).await?;
                Ok(())
            })
        })
        .await
    }

    pub(super) async fn mark_bad(&self, bad: &[BadLocation]) -> Result<()> {
        if bad.is_empty() {
            return Ok(());
        }
        transact::run_idempotent(&self.pool, "record bad locations", BEGIN, |conn, _| {
            Box::pin(async move {
                let marked: Vec<(Uuid, i32)> = sqlx::query_as(include_str!("sql/bad_locations.sql"))
                    .bind(bad.iter().map(|bad| bad.segment.as_uuid()).collect::<Vec<_>>())
                    .bind(bad.iter().map(|bad| read::int(bad.stripe.into())).collect::<Vec<_>>())
                    .bind(bad.iter().map(|bad| bad.shard.get() as i16).collect::<Vec<_>>())
                    .bind(bad.iter().map(|bad| bad.node.as_uuid()).collect::<Vec<_>>())
                    .bind(bad.iter().map(|bad| fault(bad.fault)).collect::<Vec<_>>())
                    .fetch_all(&mut *conn)
                    .await?;
                queue_lost(conn, marked, LostBecause::Reported).await
            })
        })
        .await
    }

    pub(super) async fn mark_corrupt(&self, node: NodeId, chunks: &[ChunkId]) -> Result<usize> {
        const MARK: &str = "WITH held AS MATERIALIZED (
                SELECT segment_id, stripe_index, shard_index FROM chunk_locations
                WHERE node_id = $1 AND chunk_id = ANY($2) AND status IN ('stored', 'leaving')
                ORDER BY segment_id, stripe_index, shard_index FOR UPDATE
            )
            UPDATE chunk_locations l SET status = 'corrupt',
                verification_failures = verification_failures + 1
            FROM held h
            WHERE l.segment_id = h.segment_id AND l.stripe_index = h.stripe_index
                AND l.shard_index = h.shard_index AND l.node_id = $1
            RETURNING l.segment_id, l.stripe_index";
        if chunks.is_empty() {
            return Ok(0);
        }
        transact::run_idempotent(&self.pool, "record corrupt chunks", BEGIN, |conn, _| {
            Box::pin(async move {
                let marked: Vec<(Uuid, i32)> = sqlx::query_as(MARK)
                    .bind(node.as_uuid())
                    .bind(chunks.iter().map(|chunk| chunk.as_bytes().as_slice()).collect::<Vec<_>>())
                    .fetch_all(&mut *conn)
                    .await?;
                let count = marked.len();
                queue_lost(conn, marked, LostBecause::Corrupt).await?;
                Ok(count)
            })
        })
        .await
    }
}

/// Refuses whoever leaves a suspended operator, takes an address that a node which is heard has, or is one more of an
/// operator's than that may have; says whether it changes hands. Who does none of this is not held up; all others take turns,
/// so that of two at once one sees the other.
async fn admit(conn: &mut PgConnection, new: &RegisterNode) -> Result<bool, Failure> {
    // Locked: who is being suspended at this moment is, before it is anybody else's.
    const KNOWN: &str = "SELECT operator, grpc_address, suspended_at IS NOT NULL,
            status = 'draining' AND first_offline_at IS NULL FROM nodes
        WHERE public_key = $1 FOR NO KEY UPDATE";
    const TURN: &str = "INSERT INTO constants (name, value) VALUES ('node_admission', '')
        ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value";
    const HEARD_AT: &str = "SELECT EXISTS (SELECT 1 FROM nodes
        WHERE split_part(grpc_address, '://', 2) = $1 AND public_key <> $2 AND status IN ('online', 'recovering'))";
    const OTHERS: &str = "SELECT count(*) FROM nodes WHERE operator = $1 AND public_key <> $2";
    let (key, at, operator) =
        (new.public_key.as_slice(), endpoint(&new.grpc_address), rows::shown(&new.operator));
    let known = sqlx::query_as(KNOWN).bind(key).fetch_optional(&mut *conn).await?.map(Registered::read);
    let is_there = known.as_ref().is_some_and(|known| known.is_at(at));
    let is_theirs = known.as_ref().is_some_and(|known| known.is_of(&operator));
    if known.as_ref().is_some_and(|known| known.is_kept(new.nodes_max.is_some(), &operator)) {
        return Err(Error::NodeSuspended.into());
    }
    let in_other_hands = known.is_some_and(|known| known.changes_hands(&operator));
    let max = new.nodes_max.filter(|_| !is_theirs);
    if is_there && max.is_none() {
        return Ok(in_other_hands);
    }
    sqlx::query(TURN).execute(&mut *conn).await?;
    if !is_there {
        let taken: bool = sqlx::query_scalar(HEARD_AT).bind(at).bind(key).fetch_one(&mut *conn).await?;
        if taken {
            return Err(Error::AddressTaken.into());
        }
    }
    let Some(max) = max else { return Ok(in_other_hands) };
    let others: i64 = sqlx::query_scalar(OTHERS).bind(&operator).bind(key).fetch_one(conn).await?;
    if others >= i64::from(max) { Err(Error::TooManyNodes { max }.into()) } else { Ok(in_other_hands) }
}

/// Why a guarded change of a node touched no row.
async fn why_not(conn: &mut PgConnection, id: NodeId) -> Failure {
    let known =
        sqlx::query("SELECT 1 FROM nodes WHERE id = $1").bind(id.as_uuid()).fetch_optional(conn).await;
    match known {
        Ok(Some(_)) => Error::Stale { what: "status of the node" }.into(),
        Ok(None) => Error::NoSuchNode.into(),
        Err(error) => error.into(),
    }
}

fn fault(fault: Fault) -> &'static str {
    match fault {
        Fault::Missing => "missing",
        Fault::Corrupt => "corrupt",
        Fault::Rotten => "rotten",
    }
}
