//! Looking through nodes: what asks for it, who does it, what a node should hold, and what it was found to hold.
//!
//! A row of `node_scans` stays when its scan is done, so that its fence only grows.
//! Not here: what follows from a location (`repairs`), what becomes of orphans (`deletes`).

use std::time::Duration;

use cyxcloud_core::{ChunkId, Generation, NodeId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::read::{self, Places};
use super::repairs::queue_lost;
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::rows;
use crate::upkeep::model::{
    AuditRecord, LostBecause, NodeCursor, NodeLocation, NodeScan, NodeUpkeep, Reconciled, ScanClass,
    ScanReason, StripeRef,
};

fn scan(row: &PgRow) -> Result<NodeScan, Failure> {
    let after = match row.try_get::<Option<Vec<u8>>, _>("cursor_chunk")? {
        None => None,
        Some(chunk) => Some(NodeCursor {
            chunk: ChunkId::from_bytes(rows::hash("chunk id", &chunk)?),
            stripe: StripeRef {
                segment: read::id(row, "cursor_segment")?,
                index: read::count(row, "cursor_stripe")?,
            },
            shard: read::shard(row.try_get("cursor_shard")?)?,
        }),
    };
    Ok(NodeScan {
        node: read::id(row, "node_id")?,
        reason: rows::scan_reason(row.try_get("reason")?)?,
        since: read::time(row, "since")?,
        fence: row.try_get("fence")?,
        after,
    })
}

/// A node's record in audits; before the first there is nothing in it.
pub(super) fn record(row: &PgRow) -> Result<AuditRecord, Failure> {
    Ok(AuditRecord {
        alpha: row.try_get::<Option<f64>, _>("audit_alpha")?.unwrap_or(0.0),
        beta: row.try_get::<Option<f64>, _>("audit_beta")?.unwrap_or(0.0),
        proven: read::total(row, "audits_proven")?,
        failed: read::total(row, "audits_failed")?,
        last_audit: read::optional_time(row, "last_audit")?,
        vetting_since: read::time(row, "vetting_since")?,
        proven_before: read::total(row, "vetting_proofs")?,
        vetted: read::optional_time(row, "vetted_at")?.is_some(),
    })
}

fn node(row: &PgRow) -> Result<NodeUpkeep, Failure> {
    let status = row.try_get::<&str, _>("status")?.parse();
    Ok(NodeUpkeep {
        node: read::id(row, "id")?,
        status: status.map_err(|error| rows::corrupt("node status", error))?,
        status_changed_at: read::time(row, "status_changed_at")?,
        last_heartbeat: read::time(row, "last_heartbeat")?,
        quarantined: row.try_get("quarantined")?,
        audits: record(row)?,
        reconciled_at: read::optional_time(row, "reconciled_at")?,
        locations: read::total(row, "location_count")?,
    })
}

/// Asks for a scan, in the transaction of what makes it necessary. One that waits or is in hand begins `anew`, or else goes on as
/// it is. Answers whether anything was asked for: there may be no such node.
pub(super) async fn ask(
    conn: &mut PgConnection,
    node: NodeId,
    reason: ScanReason,
    anew: bool,
) -> Result<bool, Failure> {
    const ASK: &str = concat!(
        "INSERT INTO node_scans AS s (node_id, reason) SELECT id, $2 FROM nodes WHERE id = $1 FOR KEY SHARE ",
        include_str!("sql/scan_conflict.sql"),
        "WHERE $3 OR s.done"
    );
    let ask = sqlx::query(ASK).bind(node.as_uuid()).bind(reason.as_str()).bind(anew);
    Ok(ask.execute(conn).await?.rows_affected() > 0)
}

impl PostgresStore {
    pub(super) async fn node_states(&self) -> Result<Vec<NodeUpkeep>> {
        const NODES: &str =
            "SELECT id, status, status_changed_at, last_heartbeat, quarantined, reconciled_at, location_count,
                audit_alpha, audit_beta, audits_proven, audits_failed, last_audit,
                coalesce(vetting_since, created_at) AS vetting_since, vetting_proofs, vetted_at
            FROM nodes ORDER BY id";
        transact::single(&self.pool, "read the nodes", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(NODES).fetch_all(conn).await?;
                rows.iter().map(node).collect()
            })
        })
        .await
    }

    pub(super) async fn ask_for_scan(&self, node: NodeId, reason: ScanReason) -> Result<()> {
        transact::single(&self.pool, "ask for a scan", |conn, _| {
            Box::pin(async move {
                match ask(conn, node, reason, true).await? {
                    true => Ok(()),
                    false => Err(Error::NoSuchNode.into()),
                }
            })
        })
        .await
    }

    pub(super) async fn ask_for_inventory(&self, node: NodeId) -> Result<()> {
        transact::single(&self.pool, "ask for an inventory", |conn, _| {
            Box::pin(async move { ask(conn, node, ScanReason::Periodic, false).await.map(drop) })
        })
        .await
    }

    pub(super) async fn take_scans(
        &self,
        up_to: ScanClass,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<NodeScan>> {
        transact::single(&self.pool, "claim scans", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(include_str!("sql/claim_scans.sql"))
                    .bind(read::limit(limit))
                    .bind(read::millis(lease))
                    .bind(up_to.rank())
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(scan).collect()
            })
        })
        .await
    }

    pub(super) async fn keep_scan(&self, scan: &NodeScan, lease: Duration) -> Result<()> {
        const KEEP: &str = "UPDATE node_scans SET lease_until = now() + $4 * interval '1 millisecond'
            WHERE node_id = $1 AND reason = $2 AND fence = $3 AND NOT done";
        transact::single(&self.pool, "renew the claim of the scan", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(KEEP)
                    .bind(scan.node.as_uuid())
                    .bind(scan.reason.as_str())
                    .bind(scan.fence)
                    .bind(read::millis(lease))
                    .execute(conn)
                    .await?;
                still_ours(done.rows_affected())
            })
        })
        .await
    }

    pub(super) async fn move_scan(&self, scan: &NodeScan, after: NodeCursor, lease: Duration) -> Result<()> {
        const MOVE: &str = "UPDATE node_scans SET
                cursor_chunk = $4, cursor_segment = $5, cursor_stripe = $6, cursor_shard = $7,
                lease_until = now() + $8 * interval '1 millisecond'
            WHERE node_id = $1 AND reason = $2 AND fence = $3 AND NOT done";
        transact::single(&self.pool, "record how far the scan got", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(MOVE)
                    .bind(scan.node.as_uuid())
                    .bind(scan.reason.as_str())
                    .bind(scan.fence)
                    .bind(after.chunk.as_bytes().as_slice())
                    .bind(after.stripe.segment.as_uuid())
                    .bind(i32::try_from(after.stripe.index).unwrap_or(i32::MAX))
                    .bind(after.shard.get() as i16)
                    .bind(read::millis(lease))
                    .execute(conn)
                    .await?;
                still_ours(done.rows_affected())
            })
        })
        .await
    }

    /// Whoever put it down cannot go on with it.
    pub(super) async fn put_scan_down(&self, scan: &NodeScan, pause: Duration) -> Result<()> {
        const PUT_DOWN: &str = "UPDATE node_scans SET
                not_before = now() + $4 * interval '1 millisecond', fence = fence + 1, lease_until = NULL
            WHERE node_id = $1 AND reason = $2 AND fence = $3 AND NOT done";
        transact::run_once(&self.pool, "put the scan down", BEGIN, |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(PUT_DOWN)
                    .bind(scan.node.as_uuid())
                    .bind(scan.reason.as_str())
                    .bind(scan.fence)
                    .bind(read::millis(pause))
                    .execute(conn)
                    .await?;
                still_ours(done.rows_affected())
            })
        })
        .await
    }

    /// Another pass takes a new fence: whoever ended this one cannot go on with that.
    pub(super) async fn end_scan(&self, scan: &NodeScan, again_after: Option<Duration>) -> Result<()> {
        const END: &str = "UPDATE node_scans SET
                done = $4::bigint IS NULL, fence = fence + CASE WHEN $4::bigint IS NULL THEN 0 ELSE 1 END,
                not_before = coalesce(now() + $4::bigint * interval '1 millisecond', not_before), lease_until = NULL,
                cursor_chunk = NULL, cursor_segment = NULL, cursor_stripe = NULL, cursor_shard = NULL
            WHERE node_id = $1 AND reason = $2 AND fence = $3 AND NOT done";
        transact::run_once(&self.pool, "end the scan", BEGIN, |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(END)
                    .bind(scan.node.as_uuid())
                    .bind(scan.reason.as_str())
                    .bind(scan.fence)
                    .bind(again_after.map(read::millis))
                    .execute(conn)
                    .await?;
                still_ours(done.rows_affected())
            })
        })
        .await
    }

    /// The index has a node's locations in this order; only those of the page are looked up in `chunks`.
    pub(super) async fn locations_of(
        &self,
        node: NodeId,
        after: Option<NodeCursor>,
        limit: usize,
    ) -> Result<Vec<NodeLocation>> {
        const LOCATIONS: &str = "SELECT l.*, c.size_bytes
            FROM (
                SELECT chunk_id, segment_id, stripe_index, shard_index, incarnation, generation, status
                FROM chunk_locations
                WHERE node_id = $1 AND (chunk_id, segment_id, stripe_index, shard_index) > ($2, $3, $4, $5)
                ORDER BY chunk_id, segment_id, stripe_index, shard_index LIMIT $6
            ) l
            CROSS JOIN LATERAL (
                SELECT size_bytes FROM chunks WHERE segment_id = l.segment_id AND stripe_index = l.stripe_index
                    AND shard_index = l.shard_index OFFSET 0
            ) c
            ORDER BY l.chunk_id, l.segment_id, l.stripe_index, l.shard_index";
        // No bytes at all come before every chunk id.
        let chunk = after.map_or(Vec::new(), |after| after.chunk.as_bytes().to_vec());
        let segment = after.map_or(Uuid::nil(), |after| after.stripe.segment.as_uuid());
        let stripe = after.map_or(0, |after| i32::try_from(after.stripe.index).unwrap_or(i32::MAX));
        let shard = after.map_or(0, |after| after.shard.get() as i16);
        let chunk = chunk.as_slice();
        transact::single(&self.pool, "read the locations of a node", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(LOCATIONS)
                    .bind(node.as_uuid())
                    .bind(chunk)
                    .bind(segment)
                    .bind(stripe)
                    .bind(shard)
                    .bind(read::limit(limit))
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(read::node_location).collect()
            })
        })
        .await
    }

    pub(super) async fn keep_inventory(&self, compared: &Reconciled) -> Result<()> {
        transact::run_idempotent(&self.pool, "record the inventory of a node", BEGIN, |conn, _| {
            Box::pin(async move {
                let missing = mark(conn, compared).await?;
                remember_orphans(conn, compared).await?;
                queue_lost(conn, missing, LostBecause::NotListed).await
            })
        })
        .await
    }

    pub(super) async fn end_inventory(&self, node: NodeId, locations: Option<u64>) -> Result<()> {
        const END: &str =
            "UPDATE nodes SET reconciled_at = now(), location_count = coalesce($2, location_count)
            WHERE id = $1";
        transact::single(&self.pool, "end the inventory of a node", |conn, _| {
            Box::pin(async move {
                sqlx::query(END).bind(node.as_uuid()).bind(locations.map(read::int)).execute(conn).await?;
                Ok(())
            })
        })
        .await
    }
}

fn still_ours(rows: u64) -> Result<(), Failure> {
    match rows {
        0 => Err(Error::Stale { what: "claim of the scan" }.into()),
        _ => Ok(()),
    }
}

/// Marks what the comparison found; answers with the stripes that miss something now.
async fn mark(conn: &mut PgConnection, compared: &Reconciled) -> Result<Vec<(Uuid, i32)>, Failure> {
    let mut places = Places::default();
    let (mut verdicts, mut lives, mut counters) = (Vec::new(), Vec::new(), Vec::new());
    let mut push = |at: &NodeCursor, verdict: &'static str, held: Option<&Generation>| {
        places.push(at);
        verdicts.push(verdict);
        lives.push(held.map(|held| held.incarnation));
        counters.push(held.map(|held| read::int(held.counter)));
    };
    compared.missing.iter().for_each(|at| push(at, "missing", None));
    compared.found.iter().for_each(|(at, held)| push(at, "found", Some(held)));
    compared.renewed.iter().for_each(|(at, held)| push(at, "renewed", Some(held)));
    if verdicts.is_empty() {
        return Ok(Vec::new());
    }
    let marked: Vec<(Uuid, i32, bool)> = sqlx::query_as(include_str!("sql/inventory.sql"))
        .bind(compared.node.as_uuid())
        .bind(places.chunk)
        .bind(places.segment)
        .bind(places.stripe)
        .bind(places.shard)
        .bind(verdicts)
        .bind(lives)
        .bind(counters)
        .fetch_all(conn)
        .await?;
    let missing = marked.into_iter().filter(|(_, _, missing)| *missing);
    Ok(missing.map(|(segment, stripe, _)| (segment, stripe)).collect())
}

async fn remember_orphans(conn: &mut PgConnection, compared: &Reconciled) -> Result<(), Failure> {
    let Reconciled { node, orphans, orphans_max, .. } = compared;
    if orphans.is_empty() {
        return Ok(());
    }
    sqlx::query(include_str!("sql/orphans.sql"))
        .bind(node.as_uuid())
        .bind(orphans.iter().map(|(chunk, _)| chunk.as_bytes().as_slice()).collect::<Vec<_>>())
        .bind(orphans.iter().map(|(_, held)| held.incarnation).collect::<Vec<_>>())
        .bind(orphans.iter().map(|(_, held)| read::int(held.counter)).collect::<Vec<_>>())
        .bind(read::limit(*orphans_max))
        .execute(conn)
        .await?;
    Ok(())
}
