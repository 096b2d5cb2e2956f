//! Chunks that go from nodes: orphans that were seen long enough, deletes claimed and settled.
//!
//! One goes only when no location names (node, chunk) and when no upload and no repair is under way that began at or
//! before the entry: what begins later stores a newer generation, which the node keeps although it is told to delete.
//! Nothing goes while frozen, and nothing is asked of a node that is not there.
//! Not here: what makes entries besides orphans (`garbage`, `repairs`).

use std::time::Duration;

use cyxcloud_core::{NodeId, Timestamp, faults};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::garbage;
use super::read;
use super::transact::{self, Failure};
use crate::error::Result;
use crate::upkeep::model::{ChunkDelete, DeleteOutcome, GcBrake, GcHalt, OrphanStep};

/// The statement that claims.
fn claim() -> &'static str {
    // What tests must notice: nobody looks at what is named or under way.
    const LOCK_FREE: &str = "UPDATE chunk_deletes d SET not_before = now() + $2 * interval '1 millisecond'
        WHERE d.id IN (SELECT id FROM chunk_deletes WHERE not_before <= now() AND $3::bigint IS NOT NULL
            ORDER BY not_before LIMIT $1 FOR UPDATE SKIP LOCKED)
        RETURNING 0::bigint AS dropped, d.*";
    if faults::switch("LOCK_FREE_GC") { LOCK_FREE } else { include_str!("sql/claim_deletes.sql") }
}

fn delete(row: &PgRow) -> Result<ChunkDelete, Failure> {
    Ok(ChunkDelete {
        id: row.try_get("id")?,
        node: read::id(row, "node_id")?,
        chunk: read::chunk(row, "chunk_id")?,
        generation: read::generation(row)?,
        attempts: read::count(row, "attempts")?,
    })
}

/// Why no orphan at all may go.
async fn nothing_may_go(conn: &mut PgConnection) -> Result<Option<GcHalt>, Failure> {
    const LOST: &str = "SELECT EXISTS (SELECT 1 FROM orphans) AND EXISTS (SELECT 1 FROM stripes)
        AND NOT EXISTS (SELECT 1 FROM chunk_locations)";
    if let Some(frozen) = garbage::frozen(conn).await? {
        return Ok(Some(frozen));
    }
    let lost: bool = sqlx::query_scalar(LOST).fetch_one(conn).await?;
    Ok(lost.then_some(GcHalt::NoLocations))
}

/// Nodes of which no orphan may go that was seen after `released`, and why for the first of them.
async fn braked(
    conn: &mut PgConnection,
    grace: Duration,
    brake: GcBrake,
    released: &str,
) -> Result<(Vec<Uuid>, Option<GcHalt>), Failure> {
    let (mut nodes, mut halt) = (Vec::new(), None);
    let many = sqlx::query(include_str!("sql/many_orphans.sql"))
        .bind(read::millis(grace))
        .bind(read::int(brake.floor))
        .bind(released)
        .fetch_all(conn)
        .await?;
    for row in &many {
        let (orphans, locations) = (read::total(row, "orphans")?, read::total(row, "locations")?);
        if brake.holds(orphans, orphans + locations) {
            let node: NodeId = read::id(row, "node_id")?;
            nodes.push(node.as_uuid());
            halt.get_or_insert(GcHalt::Orphans { node, orphans, locations });
        }
    }
    Ok((nodes, halt))
}

impl PostgresStore {
    /// Judged before, not in one with what goes: a brake is for what is wrong by far.
    pub(super) async fn hand_over_orphans(
        &self,
        grace: Duration,
        limit: usize,
        brake: GcBrake,
    ) -> Result<OrphanStep> {
        const CONDEMN: &str =
            concat!(include_str!("sql/condemn_orphans.sql"), include_str!("sql/delete_conflict.sql"));
        transact::single(&self.pool, "condemn orphans", |conn, _| {
            Box::pin(async move {
                if let Some(halt) = nothing_may_go(conn).await? {
                    return Ok(OrphanStep { taken: 0, halt: Some(halt) });
                }
                let released = garbage::released(conn).await?;
                let (braked, halt) = braked(conn, grace, brake, &released).await?;
                let done = sqlx::query(CONDEMN)
                    .bind(read::millis(grace))
                    .bind(read::limit(limit))
                    .bind(braked)
                    .bind(released)
                    .execute(conn)
                    .await?;
                Ok(OrphanStep { taken: done.rows_affected(), halt })
            })
        })
        .await
    }

    pub(super) async fn first_intent(&self) -> Result<Option<Timestamp>> {
        transact::single(&self.pool, "look for the oldest upload", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query("SELECT min(created_at) AS first FROM upload_intents")
                    .fetch_one(conn)
                    .await?;
                read::optional_time(&row, "first")
            })
        })
        .await
    }

    /// Where all that was looked at is named again, it looks on: an answer of none says that there are none.
    pub(super) async fn take_deletes(
        &self,
        limit: usize,
        lease: Duration,
        silence: Duration,
    ) -> Result<Vec<ChunkDelete>> {
        transact::single(&self.pool, "claim deletes of chunks", |conn, _| {
            Box::pin(async move {
                loop {
                    let rows = sqlx::query(claim())
                        .bind(read::limit(limit))
                        .bind(read::millis(lease))
                        .bind(read::millis(silence))
                        .fetch_all(&mut *conn)
                        .await?;
                    let mut claimed = Vec::with_capacity(rows.len());
                    let mut dropped = 0;
                    for row in &rows {
                        dropped = row.try_get::<i64, _>("dropped")?;
                        if row.try_get::<Option<i64>, _>("id")?.is_some() {
                            claimed.push(delete(row)?);
                        }
                    }
                    if dropped == 0 || !claimed.is_empty() {
                        return Ok(claimed);
                    }
                }
            })
        })
        .await
    }

    pub(super) async fn settle_deletes(&self, outcomes: &[(i64, DeleteOutcome)]) -> Result<()> {
        const SETTLE: &str = "WITH outcome AS MATERIALIZED (
                SELECT DISTINCT ON (id) id, delay FROM unnest($1::bigint[], $2::bigint[]) o (id, delay)
            ), settled AS (
                DELETE FROM chunk_deletes d USING outcome o WHERE d.id = o.id AND o.delay IS NULL
            )
            UPDATE chunk_deletes d SET
                attempts = d.attempts + 1, not_before = now() + o.delay * interval '1 millisecond'
            FROM outcome o WHERE d.id = o.id AND o.delay IS NOT NULL";
        if outcomes.is_empty() {
            return Ok(());
        }
        let ids: &Vec<i64> = &outcomes.iter().map(|(id, _)| *id).collect();
        let delays: &Vec<Option<i64>> = &outcomes
            .iter()
            .map(|(_, outcome)| match outcome {
                DeleteOutcome::Settled => None,
                DeleteOutcome::Later(delay) => Some(read::millis(*delay)),
            })
            .collect();
        transact::single(&self.pool, "record deletes of chunks", |conn, _| {
            Box::pin(async move {
                sqlx::query(SETTLE).bind(ids).bind(delays).execute(conn).await?;
                Ok(())
            })
        })
        .await
    }
}
