//! Reads objects and where their bytes are, and deletes objects.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use cyxcloud_core::crash_point;
use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, ChunkId, FileId, NodeId, SegmentId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::gather::Gather;
use super::pool::Connections;
use super::read::{self, object_columns};
use super::transact::{self, BEGIN, Failure};
use crate::error::Result;
use crate::model::{Extent, Object, ObjectLayout, Precondition, SegmentInfo, ShardLayout, StripeLayout};
use crate::rows::{self, STRIPES_ALONG};

/// The columns of [`extent`], of tables `e` (`file_segments`) and `s` (`segments`).
macro_rules! extent_columns {
    () => {
        "e.object_offset, e.segment_offset, e.length AS extent_length, s.id AS segment_id, \
         s.owner_id AS segment_owner, s.length AS segment_length, s.stripe_size, s.data_shards, s.parity_shards, \
         s.copies, s.format, s.content_hash AS segment_hash, s.acked_tolerance, s.target_tolerance, s.inline_hash, \
         s.inline_data"
    };
}

/// The stripes of a segment with all places of their shards, as one row of arrays, one element for each shard and node.
///
/// Stripe by stripe and shard by shard: the fences (`OFFSET 0`) keep the planner from walking all shards of a segment for
/// each of them, which it thinks cheap where most segments are small. For a large one that took a second.
macro_rules! places {
    ($which:literal) => {
        concat!(
            "SELECT array_agg(a.stripe_index) AS stripe_at, array_agg(a.plain_hash) AS stripe_hash,
                array_agg(a.plain_len) AS stripe_len, array_agg(a.shard_index) AS shard_at,
                array_agg(a.chunk_id) AS shard_chunk, array_agg(a.size_bytes) AS shard_size,
                array_agg(a.node_id) AS shard_node
            FROM (
                SELECT st.stripe_index, st.plain_hash, st.plain_len, p.*
                FROM stripes st
                CROSS JOIN LATERAL (
                    SELECT c.shard_index, c.chunk_id, c.size_bytes, l.node_id
                    FROM chunks c
                    LEFT JOIN LATERAL (
                        SELECT node_id FROM chunk_locations
                        WHERE segment_id = c.segment_id AND stripe_index = c.stripe_index
                            AND shard_index = c.shard_index AND status = 'stored'
                        OFFSET 0
                    ) l ON TRUE
                    WHERE c.segment_id = st.segment_id AND c.stripe_index = st.stripe_index
                    OFFSET 0
                ) p
                WHERE st.segment_id = s.id AND ",
            $which,
            " ORDER BY st.stripe_index, p.shard_index, p.node_id
            ) a"
        )
    };
}

/// Bytes of an object that a read touches, as SQL compares them; without a range also extents of no bytes.
#[derive(Clone, Copy)]
struct Window {
    start: i64,
    end: i64,
}

impl Window {
    fn of(range: Option<Range<u64>>) -> Self {
        match range {
            None => Self { start: -1, end: i64::MAX },
            Some(range) if range.is_empty() => Self { start: i64::MAX, end: -1 },
            Some(range) => Self { start: read::int(range.start), end: read::int(range.end) },
        }
    }
}

/// Gathers look-ups of layouts: most reads of small objects are nothing else to the database.
pub(super) type Layouts = Gather<Lookup, Result<Option<First>>>;

/// Whose layout is asked for.
pub(super) struct Lookup {
    bucket: BucketId,
    key: ObjectKey,
    window: Window,
}

/// What one statement finds of a layout: all extents if `count` is 1, otherwise none.
pub(super) struct First {
    object: Object,
    extents: Vec<Extent>,
    count: i64,
}

/// Gathers look-ups in this database.
pub(super) fn gather(pool: &Connections) -> Layouts {
    let pool = pool.clone();
    Gather::new(
        |_, _| true,
        move |batch: Vec<Lookup>| {
            let pool = pool.clone();
            async move { look_up_all(&pool, &batch).await }
        },
    )
}

/// In one statement. A row that nobody can read is one look-up's; a database that does not answer is everybody's.
async fn look_up_all(pool: &Connections, lookups: &[Lookup]) -> Vec<Result<Option<First>>> {
    let found = transact::single(pool, LOOKING_UP, |conn, _| Box::pin(first_extents(conn, lookups)));
    match found.await {
        Ok(found) => {
            let told = |first: Result<Option<First>, Failure>| {
                first.map_err(|failure| failure.into_error(LOOKING_UP))
            };
            found.into_iter().map(told).collect()
        }
        Err(error) => {
            let others = lookups.iter().skip(1).map(|_| Err(transact::alike(LOOKING_UP, &error)));
            let mut answers: Vec<_> = others.collect();
            answers.push(Err(error));
            answers
        }
    }
}

const LOOKING_UP: &str = "read the object's layout";

impl PostgresStore {
    pub(super) async fn current(&self, bucket: BucketId, key: &ObjectKey) -> Result<Option<Object>> {
        const CURRENT: &str = concat!(
            "SELECT ",
            object_columns!(),
            " FROM files f WHERE f.bucket_id = $1 AND f.key = $2 AND f.is_latest AND NOT f.is_delete_marker"
        );
        transact::single(&self.pool, "read the object", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query(CURRENT)
                    .bind(bucket.as_uuid())
                    .bind(key.as_bytes())
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map(read::object).transpose()
            })
        })
        .await
    }

    /// One statement, its first stripes included, where there is one extent, shared with those who ask at that moment.
    /// Otherwise a second one reads all extents of that version, which never change; if they went with the version in
    /// between, the key is looked up again.
    pub(super) async fn layout(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectLayout>> {
        let window = Window::of(range);
        loop {
            let lookup = Lookup { bucket, key: key.clone(), window };
            let found = self.layouts.answer(LOOKING_UP, lookup).await?;
            let Some(First { object, mut extents, count }) = found else { return Ok(None) };
            if count > 1 {
                extents = self.all_extents(object.file, &window).await?;
                if extents.is_empty() {
                    continue;
                }
            }
            return Ok(Some(ObjectLayout { object, extents }));
        }
    }

    async fn all_extents(&self, file: FileId, window: &Window) -> Result<Vec<Extent>> {
        const ALL: &str = concat!(
            "SELECT ",
            extent_columns!(),
            " FROM file_segments e JOIN segments s ON s.id = e.segment_id
            WHERE e.file_id = $1 AND e.object_offset < $3 AND e.object_offset + e.length > $2
            ORDER BY e.position"
        );
        transact::single(&self.pool, LOOKING_UP, |conn, _| {
            Box::pin(async move {
                let extents = sqlx::query(ALL).bind(file.as_uuid()).bind(window.start).bind(window.end);
                extents.fetch_all(conn).await?.iter().map(extent).collect()
            })
        })
        .await
    }

    pub(super) async fn read_stripes(
        &self,
        segment: SegmentId,
        range: Range<u32>,
    ) -> Result<Vec<StripeLayout>> {
        const STRIPES: &str = concat!(
            "SELECT s.data_shards, s.parity_shards, s.copies, p.* FROM segments s CROSS JOIN LATERAL (",
            places!("st.stripe_index >= $2 AND st.stripe_index < $3"),
            ") p WHERE s.id = $1"
        );
        let (from, to) = (read::int(range.start.into()), read::int(range.end.into()));
        transact::single(&self.pool, "read stripes", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query(STRIPES)
                    .bind(segment.as_uuid())
                    .bind(from)
                    .bind(to)
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map_or(Ok(Vec::new()), stripes)
            })
        })
        .await
    }

    pub(super) async fn delete(
        &self,
        bucket: BucketId,
        keys: &[ObjectKey],
        precondition: &Precondition,
    ) -> Result<Vec<Option<Object>>> {
        const DELETING: &str = "delete objects";
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        match precondition {
            // What is gone already may be deleted again.
            Precondition::None => {
                transact::run_idempotent(&self.pool, DELETING, BEGIN, |conn, _| {
                    Box::pin(delete_in(conn, bucket, keys, precondition))
                })
                .await
            }
            _ => {
                transact::run_once(&self.pool, DELETING, BEGIN, |conn, _| {
                    Box::pin(delete_in(conn, bucket, keys, precondition))
                })
                .await
            }
        }
    }
}

/// For each look-up, in order.
async fn first_extents(
    conn: &mut PgConnection,
    lookups: &[Lookup],
) -> Result<Vec<Result<Option<First>, Failure>>, Failure> {
    const FIRST: &str = concat!(
        "SELECT q.place, r.* FROM unnest(
            (SELECT $1::uuid[]), $2::bytea[], $3::bigint[], $4::bigint[]
        ) WITH ORDINALITY q (bucket_id, key, first, beyond, place)
        CROSS JOIN LATERAL (
        SELECT ",
        object_columns!(),
        ", x.n, ",
        extent_columns!(),
        ", p.* FROM files f
        LEFT JOIN LATERAL (
            SELECT count(*) AS n, min(position) AS first FROM file_segments
            WHERE file_id = f.id AND object_offset < q.beyond AND object_offset + length > q.first
        ) x ON TRUE
        LEFT JOIN file_segments e ON e.file_id = f.id AND e.position = x.first
        LEFT JOIN segments s ON s.id = e.segment_id
        LEFT JOIN LATERAL (",
        places!(
            "x.n = 1 AND s.inline_hash IS NULL
             AND st.stripe_index >= (e.segment_offset + greatest(q.first - e.object_offset, 0)) / s.stripe_size
             AND st.stripe_index < (e.segment_offset + greatest(q.first - e.object_offset, 0)) / s.stripe_size + $5
             AND st.stripe_index * s.stripe_size < e.segment_offset + least(q.beyond - e.object_offset, e.length)"
        ),
        ") p ON TRUE
        WHERE f.bucket_id = q.bucket_id AND f.key = q.key AND f.is_latest AND NOT f.is_delete_marker
        OFFSET 0
        ) r"
    );
    let buckets: Vec<Uuid> = lookups.iter().map(|lookup| lookup.bucket.as_uuid()).collect();
    let keys: Vec<&[u8]> = lookups.iter().map(|lookup| lookup.key.as_bytes()).collect();
    let (starts, ends): (Vec<i64>, Vec<i64>) =
        lookups.iter().map(|lookup| (lookup.window.start, lookup.window.end)).unzip();
    let rows = sqlx::query(FIRST)
        .bind(buckets)
        .bind(keys)
        .bind(starts)
        .bind(ends)
        .bind(read::int(STRIPES_ALONG.into()))
        .fetch_all(conn)
        .await?;
    let mut found: Vec<_> = lookups.iter().map(|_| Ok(None)).collect();
    for row in &rows {
        let place = row.try_get::<i64, _>("place")?;
        let place = usize::try_from(place - 1).ok().and_then(|place| found.get_mut(place));
        *place.ok_or_else(|| rows::corrupt("place of a look-up", "not asked for"))? = first(row).map(Some);
    }
    Ok(found)
}

fn first(row: &PgRow) -> Result<First, Failure> {
    let count = row.try_get("n")?;
    let extents =
        if count == 1 { vec![Extent { stripes: stripes(row)?, ..extent(row)? }] } else { Vec::new() };
    Ok(First { object: read::object(row)?, extents, count })
}

fn extent(row: &PgRow) -> Result<Extent, Failure> {
    let inline = match row.try_get::<Option<Vec<u8>>, _>("inline_data")? {
        Some(sealed) => Some((read::hash(row, "inline_hash")?, Bytes::from(sealed))),
        None => None,
    };
    Ok(Extent {
        object_offset: read::offset(row, "object_offset")?,
        segment_offset: read::offset(row, "segment_offset")?,
        length: read::offset(row, "extent_length")?,
        segment: SegmentInfo {
            id: read::id(row, "segment_id")?,
            owner: read::id(row, "segment_owner")?,
            length: read::bytes(row, "segment_length")?,
            stripe_size: read::bytes(row, "stripe_size")?,
            geometry: read::geometry(row)?,
            format: read::small(row, "format")?,
            content_hash: read::hash(row, "segment_hash")?,
            acked_tolerance: read::small(row, "acked_tolerance")?,
            target_tolerance: read::small(row, "target_tolerance")?,
            inline,
        },
        stripes: Vec::new(),
    })
}

/// From the columns of [`places`] and a segment's geometry.
fn stripes(row: &PgRow) -> Result<Vec<StripeLayout>, Failure> {
    let Some(stripe_at) = row.try_get::<Option<Vec<i32>>, _>("stripe_at")? else { return Ok(Vec::new()) };
    let (hashes, lengths) =
        (row.try_get::<Vec<Vec<u8>>, _>("stripe_hash")?, row.try_get::<Vec<i64>, _>("stripe_len")?);
    let (shard_at, chunks) =
        (row.try_get::<Vec<i16>, _>("shard_at")?, row.try_get::<Vec<Vec<u8>>, _>("shard_chunk")?);
    let (sizes, nodes) =
        (row.try_get::<Vec<i64>, _>("shard_size")?, row.try_get::<Vec<Option<Uuid>>, _>("shard_node")?);
    let geometry = read::geometry(row)?;
    let mut found: Vec<StripeLayout> = Vec::new();
    let stripes = stripe_at.into_iter().zip(hashes).zip(lengths);
    let shards = shard_at.into_iter().zip(chunks).zip(sizes).zip(nodes);
    for (((stripe, plain_hash), plain_len), (((shard, chunk), size), node)) in stripes.zip(shards) {
        let index = u32::try_from(stripe).map_err(|error| rows::corrupt("stripe index", error))?;
        if found.last().is_none_or(|stripe| stripe.index != index) {
            found.push(StripeLayout {
                index,
                plain_hash: rows::hash("hash", &plain_hash)?,
                plain_len: ByteCount::from_i64(plain_len),
                shards: Vec::with_capacity(geometry.shards()),
            });
        }
        let Some(stripe) = found.last_mut() else { continue };
        let place = usize::try_from(shard).ok().and_then(|shard| geometry.shard(shard));
        let place = place.ok_or_else(|| rows::corrupt("shard index", format!("{shard} in {geometry}")))?;
        if stripe.shards.last().is_none_or(|shard| shard.index != place) {
            stripe.shards.push(ShardLayout {
                index: place,
                chunk: ChunkId::from_bytes(rows::hash("hash", &chunk)?),
                size: ByteCount::from_i64(size),
                nodes: Vec::new(),
            });
        }
        if let (Some(shard), Some(node)) = (stripe.shards.last_mut(), node) {
            shard.nodes.push(NodeId::from_uuid(node));
        }
    }
    Ok(found)
}

/// Locks in order of key. A key without a row has no object: whoever makes one comes after us.
async fn delete_in(
    conn: &mut PgConnection,
    bucket: BucketId,
    keys: &[ObjectKey],
    precondition: &Precondition,
) -> Result<Vec<Option<Object>>, Failure> {
    const LOCK: &str = "SELECT key FROM keys WHERE bucket_id = $1 AND key = ANY($2) ORDER BY key FOR UPDATE";
    let wanted: Vec<&[u8]> = keys.iter().map(ObjectKey::as_bytes).collect();
    let locked: Vec<Vec<u8>> =
        sqlx::query_scalar(LOCK).bind(bucket.as_uuid()).bind(&wanted).fetch_all(&mut *conn).await?;
    if *precondition != Precondition::None {
        judge(conn, bucket, keys, precondition).await?;
    }
    if locked.is_empty() {
        PostgresStore::require_bucket(conn, bucket).await?;
        return Ok(keys.iter().map(|_| None).collect());
    }
    let rows = sqlx::query(include_str!("sql/delete_files.sql"))
        .bind(bucket.as_uuid())
        .bind(&locked)
        .fetch_all(conn)
        .await?;
    crash_point!("delete.before_commit");
    let mut deleted = HashMap::new();
    for row in &rows {
        if !row.try_get::<bool, _>("is_delete_marker")? {
            let object = read::object(row)?;
            deleted.insert(object.key.clone(), object);
        }
    }
    Ok(keys.iter().map(|key| deleted.remove(key)).collect())
}

async fn judge(
    conn: &mut PgConnection,
    bucket: BucketId,
    keys: &[ObjectKey],
    precondition: &Precondition,
) -> Result<(), Failure> {
    const ETAGS: &str = "SELECT key, etag FROM files
        WHERE bucket_id = $1 AND key = ANY($2) AND is_latest AND NOT is_delete_marker";
    let wanted: Vec<&[u8]> = keys.iter().map(ObjectKey::as_bytes).collect();
    let etags: HashMap<Vec<u8>, String> = sqlx::query_as(ETAGS)
        .bind(bucket.as_uuid())
        .bind(&wanted)
        .fetch_all(conn)
        .await?
        .into_iter()
        .collect();
    for key in keys {
        precondition.judge(etags.get(key.as_bytes()).map(String::as_str))?;
    }
    Ok(())
}
