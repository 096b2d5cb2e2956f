//! Locations that were lost, found again in what nodes say they hold.
//!
//! Only places whose chunk row exists are recorded; a row that says as much or more already is left alone.
//! Not here: asking the nodes, and reading descriptors.

use cyxcloud_core::{ByteCount, ChunkId, NodeId};
use sqlx::Row;

use super::PostgresStore;
use super::read::{self, Places};
use super::transact::{self, BEGIN};
use crate::error::Result;
use crate::model::NewLocation;
use crate::rows;
use crate::upkeep::model::{HeldChunk, KnownPlace, NodeCursor, WorkInHand};

impl PostgresStore {
    pub(super) async fn in_hand(&self) -> Result<WorkInHand> {
        const IN_HAND: &str = "SELECT
            (SELECT count(*) FROM repair_jobs WHERE status = 'in_progress' AND lease_until > now()) AS repairs,
            (SELECT count(*) FROM node_scans WHERE NOT done AND lease_until > now()) AS scans";
        transact::single(&self.pool, "look at the work in hand", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query(IN_HAND).fetch_one(conn).await?;
                Ok(WorkInHand { repairs: read::total(&row, "repairs")?, scans: read::total(&row, "scans")? })
            })
        })
        .await
    }

    pub(super) async fn known(&self, node: NodeId, held: &[HeldChunk]) -> Result<Vec<KnownPlace>> {
        transact::single(&self.pool, "look up places of chunks", |conn, _| {
            Box::pin(async move {
                let mut places = Places::default();
                held.iter().for_each(|held| places.push(&held.at));
                let rows = sqlx::query(include_str!("sql/known_places.sql"))
                    .bind(node.as_uuid())
                    .bind(places.chunk)
                    .bind(places.segment)
                    .bind(places.stripe)
                    .bind(places.shard)
                    .bind(held.iter().map(|held| read::int(held.size.get())).collect::<Vec<_>>())
                    .bind(held.iter().map(|held| held.generation.incarnation).collect::<Vec<_>>())
                    .bind(held.iter().map(|held| read::int(held.generation.counter)).collect::<Vec<_>>())
                    .fetch_all(conn)
                    .await?;
                let known = |row: &sqlx::postgres::PgRow| match row.try_get::<i32, _>("known")? {
                    0 => Ok(KnownPlace::Nowhere),
                    1 => Ok(KnownPlace::Recorded),
                    2 => Ok(KnownPlace::Unrecorded),
                    other => Err(rows::corrupt("answer", other).into()),
                };
                rows.iter().map(known).collect()
            })
        })
        .await
    }

    /// Chunk ids have no index of their own: all rows are read once.
    pub(super) async fn places(&self, chunks: &[ChunkId]) -> Result<Vec<(NodeCursor, ByteCount)>> {
        const PLACES: &str = "SELECT chunk_id, segment_id, stripe_index, shard_index, size_bytes FROM chunks
            WHERE chunk_id = ANY($1)";
        transact::single(&self.pool, "look for places of chunks", |conn, _| {
            Box::pin(async move {
                let wanted: Vec<_> = chunks.iter().map(|chunk| chunk.as_bytes().as_slice()).collect();
                let rows = sqlx::query(PLACES).bind(wanted).fetch_all(conn).await?;
                rows.iter().map(|row| Ok((read::place(row)?, read::bytes(row, "size_bytes")?))).collect()
            })
        })
        .await
    }

    pub(super) async fn keep_held(&self, held: &[(NodeCursor, NewLocation)]) -> Result<usize> {
        transact::run_idempotent(&self.pool, "record what nodes hold", BEGIN, |conn, _| {
            Box::pin(async move {
                let mut places = Places::default();
                held.iter().for_each(|(at, _)| places.push(at));
                let locations = || held.iter().map(|(_, location)| location);
                let done = sqlx::query(include_str!("sql/record_held.sql"))
                    .bind(places.chunk)
                    .bind(places.segment)
                    .bind(places.stripe)
                    .bind(places.shard)
                    .bind(locations().map(|at| at.node.as_uuid()).collect::<Vec<_>>())
                    .bind(locations().map(|at| at.generation.incarnation).collect::<Vec<_>>())
                    .bind(locations().map(|at| read::int(at.generation.counter)).collect::<Vec<_>>())
                    .bind(locations().map(|at| at.receipt_signature.as_slice()).collect::<Vec<_>>())
                    .bind(locations().map(|at| read::datetime(at.stored_at)).collect::<Vec<_>>())
                    .execute(conn)
                    .await?;
                Ok(read::touched(done.rows_affected()))
            })
        })
        .await
    }
}
