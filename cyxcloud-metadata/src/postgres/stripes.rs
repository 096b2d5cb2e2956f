//! Stripes as upkeep sees them: each with what it is coded by, its chunks, and every location whatever its status.
//!
//! One row per stripe, its shards and locations as arrays; each is found by the primary keys, stripe by stripe.
//! Only of live segments. Not here: what readers see of stripes (`objects`).

use chrono::{DateTime, Utc};
use cyxcloud_core::{ByteCount, ChunkId, FileId, Generation, NodeId};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::PostgresStore;
use super::read;
use super::transact::{self, Failure};
use crate::error::Result;
use crate::rows;
use crate::upkeep::model::{LocationState, ObjectStripes, StripeRef, StripeState};

/// The states of the stripes that `$which` selects (`place`, `segment_id`, `stripe_index`), in order of place.
///
/// Stripe by stripe: what is LATERAL and aggregated, or fenced by `OFFSET 0`, is looked up by the whole key. Joined,
/// the planner would walk all stripes of a segment for each of them, which it thinks cheap where most are small.
macro_rules! states {
    ($which:literal) => {
        concat!(
            "SELECT w.place, s.id AS segment_id, w.stripe_index::integer AS stripe_index, s.owner_id, s.data_shards,
                s.parity_shards, s.copies, s.format, s.stripe_size, s.target_tolerance, st.plain_hash, st.plain_len, c.*, l.*
            FROM (",
            $which,
            ") w
            CROSS JOIN LATERAL (
                SELECT id, owner_id, data_shards, parity_shards, copies, format, stripe_size, target_tolerance
                FROM segments WHERE id = w.segment_id AND state = 'live' OFFSET 0
            ) s
            CROSS JOIN LATERAL (
                SELECT plain_hash, plain_len FROM stripes
                WHERE segment_id = w.segment_id AND stripe_index = w.stripe_index OFFSET 0
            ) st
            CROSS JOIN LATERAL (
                SELECT array_agg(chunk_id ORDER BY shard_index) AS chunks,
                    array_agg(size_bytes ORDER BY shard_index) AS sizes
                FROM chunks WHERE segment_id = w.segment_id AND stripe_index = w.stripe_index
            ) c
            CROSS JOIN LATERAL (
                SELECT array_agg(shard_index ORDER BY shard_index, node_id) AS shard_at,
                    array_agg(node_id ORDER BY shard_index, node_id) AS node_at,
                    array_agg(incarnation ORDER BY shard_index, node_id) AS incarnations,
                    array_agg(generation ORDER BY shard_index, node_id) AS generations,
                    array_agg(status ORDER BY shard_index, node_id) AS statuses,
                    array_agg(last_verified ORDER BY shard_index, node_id) AS proofs
                FROM chunk_locations WHERE segment_id = w.segment_id AND stripe_index = w.stripe_index
            ) l
            ORDER BY w.place, w.segment_id, w.stripe_index"
        )
    };
}

impl PostgresStore {
    pub(super) async fn states(&self, stripes: &[StripeRef]) -> Result<Vec<StripeState>> {
        const STATES: &str = states!(
            "SELECT DISTINCT 0 AS place, a.segment_id, a.stripe_index
             FROM unnest($1::uuid[], $2::bigint[]) a (segment_id, stripe_index)"
        );
        if stripes.is_empty() {
            return Ok(Vec::new());
        }
        let segments: &Vec<Uuid> = &stripes.iter().map(|stripe| stripe.segment.as_uuid()).collect();
        let indices: &Vec<i64> = &stripes.iter().map(|stripe| read::int(stripe.index.into())).collect();
        transact::single(&self.pool, "read the state of stripes", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(STATES).bind(segments).bind(indices).fetch_all(conn).await?;
                rows.iter().map(state).collect()
            })
        })
        .await
    }

    pub(super) async fn sweep(&self, after: Option<StripeRef>, limit: usize) -> Result<Vec<StripeState>> {
        // The fence keeps the walk on the key's index.
        const SWEEP: &str = states!(
            "SELECT 0 AS place, t.segment_id, t.stripe_index
             FROM stripes t
             CROSS JOIN LATERAL (SELECT FROM segments WHERE id = t.segment_id AND state = 'live' OFFSET 0) g
             WHERE (t.segment_id, t.stripe_index) > ($1, $2)
             ORDER BY t.segment_id, t.stripe_index LIMIT $3"
        );
        let (segment, index) = place_after(after);
        transact::single(&self.pool, "sweep stripes", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(SWEEP)
                    .bind(segment)
                    .bind(index)
                    .bind(read::limit(limit))
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(state).collect()
            })
        })
        .await
    }

    /// What [`Self::sweep`] looks into.
    pub(super) async fn stripes_after(
        &self,
        after: Option<StripeRef>,
        limit: usize,
    ) -> Result<Vec<StripeRef>> {
        const AFTER: &str = "SELECT t.segment_id, t.stripe_index
            FROM stripes t
            CROSS JOIN LATERAL (SELECT FROM segments WHERE id = t.segment_id AND state = 'live' OFFSET 0) g
            WHERE (t.segment_id, t.stripe_index) > ($1, $2)
            ORDER BY t.segment_id, t.stripe_index LIMIT $3";
        let (segment, index) = place_after(after);
        transact::single(&self.pool, "list stripes", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(AFTER)
                    .bind(segment)
                    .bind(index)
                    .bind(read::limit(limit))
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(read::stripe).collect()
            })
        })
        .await
    }

    /// One statement, so that the object's row and its stripes are of the same moment.
    pub(super) async fn stripes_of(&self, file: FileId, limit: usize) -> Result<Option<ObjectStripes>> {
        const STRIPES_OF: &str = concat!(
            "WITH segment AS MATERIALIZED (
                SELECT segment_id, min(position) AS place FROM file_segments WHERE file_id = $1 GROUP BY segment_id
            )
            SELECT f.bucket_id,
                (SELECT coalesce(sum(i.length), 0)::bigint FROM segment e JOIN segments i ON i.id = e.segment_id
                 WHERE i.inline_hash IS NOT NULL) AS inline_bytes,
                (SELECT count(*) FROM segment e JOIN stripes t ON t.segment_id = e.segment_id) AS total,
                x.*
            FROM files f LEFT JOIN (",
            states!(
                "SELECT e.place, t.segment_id, t.stripe_index
                 FROM segment e JOIN stripes t ON t.segment_id = e.segment_id
                 ORDER BY e.place, t.stripe_index LIMIT $2"
            ),
            ") x ON TRUE
            WHERE f.id = $1 AND f.is_latest AND NOT f.is_delete_marker
            ORDER BY x.place, x.stripe_index"
        );
        transact::single(&self.pool, "read the stripes of an object", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(STRIPES_OF)
                    .bind(file.as_uuid())
                    .bind(read::limit(limit))
                    .fetch_all(conn)
                    .await?;
                let Some(first) = rows.first() else { return Ok(None) };
                let mut stripes = Vec::with_capacity(rows.len());
                for row in &rows {
                    if row.try_get::<Option<Uuid>, _>("segment_id")?.is_some() {
                        stripes.push(state(row)?);
                    }
                }
                Ok(Some(ObjectStripes {
                    file,
                    bucket: read::id(first, "bucket_id")?,
                    stripes,
                    inline_bytes: read::bytes(first, "inline_bytes")?,
                    total: read::total(first, "total")?,
                }))
            })
        })
        .await
    }
}

/// As SQL compares places. Before all there are: nothing has an index below zero.
fn place_after(after: Option<StripeRef>) -> (Uuid, i32) {
    let segment = after.map_or(Uuid::nil(), |stripe| stripe.segment.as_uuid());
    (segment, after.map_or(-1, |stripe| i32::try_from(stripe.index).unwrap_or(i32::MAX)))
}

/// From the columns of [`states`].
fn state(row: &PgRow) -> Result<StripeState, Failure> {
    let chunks = array::<Vec<u8>>(row, "chunks")?;
    let sizes = array::<i64>(row, "sizes")?;
    let shards = chunks.iter().zip(sizes).map(|(chunk, size)| {
        Ok((ChunkId::from_bytes(rows::hash("chunk id", chunk)?), ByteCount::from_i64(size)))
    });
    let (stripe, geometry) = (read::stripe(row)?, read::geometry(row)?);
    rows::check_shards(stripe, geometry, chunks.len())?;
    Ok(StripeState {
        stripe,
        owner: read::id(row, "owner_id")?,
        geometry,
        format: read::small(row, "format")?,
        stripe_size: read::bytes(row, "stripe_size")?,
        plain_hash: read::hash(row, "plain_hash")?,
        plain_len: read::bytes(row, "plain_len")?,
        target_tolerance: read::small(row, "target_tolerance")?,
        shards: shards.collect::<Result<_>>()?,
        locations: locations(row)?,
    })
}

fn locations(row: &PgRow) -> Result<Vec<LocationState>, Failure> {
    let (shards, nodes) = (array::<i16>(row, "shard_at")?, array::<Uuid>(row, "node_at")?);
    let (lives, counters) = (array::<Uuid>(row, "incarnations")?, array::<i64>(row, "generations")?);
    let (statuses, proofs) =
        (array::<String>(row, "statuses")?, array::<Option<DateTime<Utc>>>(row, "proofs")?);
    let generations = lives.into_iter().zip(counters);
    let beliefs = statuses.into_iter().zip(proofs);
    let mut locations = Vec::with_capacity(shards.len());
    for (((shard, node), (incarnation, counter)), (status, proven_at)) in
        shards.into_iter().zip(nodes).zip(generations).zip(beliefs)
    {
        locations.push(LocationState {
            shard: read::shard(shard)?,
            node: NodeId::from_uuid(node),
            generation: Generation { incarnation, counter: u64::try_from(counter).unwrap_or(0) },
            status: rows::location_status(&status)?,
            proven_at: proven_at.map(read::timestamp),
        });
    }
    Ok(locations)
}

/// A column that `array_agg` made: NULL if there was nothing.
fn array<T>(row: &PgRow, column: &str) -> Result<Vec<T>, Failure>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    Vec<T>: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(row.try_get::<Option<Vec<T>>, _>(column)?.unwrap_or_default())
}
