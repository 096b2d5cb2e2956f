//! Reads rows into the model's types, and refuses rows that no version of this program wrote.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{ByteCount, ChunkId, Generation, Geometry, ShardIndex, Timestamp};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::transact::Failure;
use crate::model::{Attributes, Object, StoredChecksum};
use crate::rows;
use crate::upkeep::model::{NodeCursor, NodeLocation, StripeRef};

/// The columns of [`object`], of a table `files` called `f`.
macro_rules! object_columns {
    () => {
        "f.id, f.bucket_id, f.key, f.owner_id, f.version_id, f.size_bytes, f.etag, f.content_hash, f.content_type, \
         f.headers, f.metadata, f.checksums, f.part_sizes, f.created_at"
    };
}
pub(super) use object_columns;

pub(super) fn object(row: &PgRow) -> Result<Object, Failure> {
    Ok(Object {
        file: id(row, "id")?,
        bucket: id(row, "bucket_id")?,
        key: key(row, "key")?,
        owner: id(row, "owner_id")?,
        version_id: row.try_get("version_id")?,
        size: bytes(row, "size_bytes")?,
        etag: row.try_get("etag")?,
        content_hash: hash(row, "content_hash")?,
        attributes: Attributes { checksums: checksums(row)?, ..attributes(row)? },
        part_sizes: row
            .try_get::<Vec<i64>, _>("part_sizes")?
            .into_iter()
            .map(|size| size.max(0) as u64)
            .collect(),
        modified_at: time(row, "created_at")?,
    })
}

/// Content type, headers and metadata; no checksums.
pub(super) fn attributes(row: &PgRow) -> Result<Attributes, Failure> {
    let Json(headers) = row.try_get::<Json<BTreeMap<String, String>>, _>("headers")?;
    let Json(metadata) = row.try_get::<Json<BTreeMap<String, String>>, _>("metadata")?;
    Ok(Attributes { content_type: row.try_get("content_type")?, headers, metadata, checksums: Vec::new() })
}

pub(super) fn checksums(row: &PgRow) -> Result<Vec<StoredChecksum>, Failure> {
    let Json(checksums) = row.try_get::<Json<Vec<StoredChecksum>>, _>("checksums")?;
    Ok(checksums)
}

pub(super) fn id<T: From<Uuid>>(row: &PgRow, column: &str) -> Result<T, Failure> {
    Ok(row.try_get::<Uuid, _>(column)?.into())
}

pub(super) fn key(row: &PgRow, column: &str) -> Result<ObjectKey, Failure> {
    Ok(rows::object_key(row.try_get(column)?)?)
}

pub(super) fn bytes(row: &PgRow, column: &str) -> Result<ByteCount, Failure> {
    Ok(ByteCount::from_i64(row.try_get(column)?))
}

/// 32 bytes.
pub(super) fn hash(row: &PgRow, column: &str) -> Result<[u8; 32], Failure> {
    Ok(rows::hash("hash", row.try_get(column)?)?)
}

pub(super) fn time(row: &PgRow, column: &str) -> Result<Timestamp, Failure> {
    Ok(timestamp(row.try_get(column)?))
}

pub(super) fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp::from_unix_millis(time.timestamp_millis())
}

/// For a column; times beyond the calendar become the nearest end of the era that fits.
pub(super) fn datetime(time: Timestamp) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(time.unix_millis()).unwrap_or(DateTime::UNIX_EPOCH)
}

/// From `data_shards`, `parity_shards` and `copies`.
pub(super) fn geometry(row: &PgRow) -> Result<Geometry, Failure> {
    let part = |column| row.try_get::<i16, _>(column).map(i64::from);
    Ok(rows::geometry(part("data_shards")?, part("parity_shards")?, part("copies")?)?)
}

/// A number of 0 to 255.
pub(super) fn small(row: &PgRow, column: &str) -> Result<u8, Failure> {
    row.try_get::<i16, _>(column)?.try_into().map_err(|error| rows::corrupt("small number", error).into())
}

/// A number that is never negative.
pub(super) fn count(row: &PgRow, column: &str) -> Result<u32, Failure> {
    row.try_get::<i32, _>(column)?.try_into().map_err(|error| rows::corrupt("count", error).into())
}

/// A place in a file.
pub(super) fn offset(row: &PgRow, column: &str) -> Result<u64, Failure> {
    row.try_get::<i64, _>(column)?.try_into().map_err(|error| rows::corrupt("offset", error).into())
}

/// As `BIGINT`; what is larger than any disk saturates.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Longest span that SQL is asked to compute with: beyond it dates overflow, and nobody waits so long.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// As milliseconds in a column or a parameter.
pub(super) fn millis(duration: Duration) -> i64 {
    int(duration.min(FOREVER).as_millis() as u64)
}

/// As SQL limits rows.
pub(super) fn limit(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Rows that a statement touched.
pub(super) fn touched(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}

/// `count(*)`.
pub(super) fn total(row: &PgRow, column: &str) -> Result<u64, Failure> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

pub(super) fn optional_time(row: &PgRow, column: &str) -> Result<Option<Timestamp>, Failure> {
    Ok(row.try_get::<Option<DateTime<Utc>>, _>(column)?.map(timestamp))
}

pub(super) fn chunk(row: &PgRow, column: &str) -> Result<ChunkId, Failure> {
    Ok(ChunkId::from_bytes(hash(row, column)?))
}

/// From `incarnation` and `generation`.
pub(super) fn generation(row: &PgRow) -> Result<Generation, Failure> {
    Ok(Generation { incarnation: row.try_get("incarnation")?, counter: offset(row, "generation")? })
}

/// From `segment_id` and `stripe_index`.
pub(super) fn stripe(row: &PgRow) -> Result<StripeRef, Failure> {
    Ok(StripeRef { segment: id(row, "segment_id")?, index: count(row, "stripe_index")? })
}

/// A place in a stripe of any geometry: rows that outlive their segment don't tell which.
pub(super) fn shard(index: i16) -> Result<ShardIndex, Failure> {
    let widest = Geometry::new(u8::MAX, 0, 1).map_err(|error| rows::corrupt("geometry", error))?;
    let shard = usize::try_from(index).ok().and_then(|index| widest.shard(index));
    shard.ok_or_else(|| rows::corrupt("shard index", index).into())
}

/// From `chunk_id`, `segment_id`, `stripe_index` and `shard_index`.
pub(super) fn place(row: &PgRow) -> Result<NodeCursor, Failure> {
    Ok(NodeCursor {
        chunk: chunk(row, "chunk_id")?,
        stripe: stripe(row)?,
        shard: shard(row.try_get("shard_index")?)?,
    })
}

/// From the columns of [`place`], `size_bytes`, `status`, and those of [`generation`].
pub(super) fn node_location(row: &PgRow) -> Result<NodeLocation, Failure> {
    Ok(NodeLocation {
        at: place(row)?,
        size: bytes(row, "size_bytes")?,
        generation: generation(row)?,
        status: rows::location_status(row.try_get("status")?)?,
    })
}

/// Places as columns of arrays: chunks, segments, stripes, shards.
#[derive(Default)]
pub(super) struct Places {
    pub(super) chunk: Vec<Vec<u8>>,
    pub(super) segment: Vec<Uuid>,
    pub(super) stripe: Vec<i64>,
    pub(super) shard: Vec<i16>,
}

impl Places {
    pub(super) fn push(&mut self, at: &NodeCursor) {
        self.chunk.push(at.chunk.as_bytes().to_vec());
        self.segment.push(at.stripe.segment.as_uuid());
        self.stripe.push(int(at.stripe.index.into()));
        self.shard.push(at.shard.get() as i16);
    }
}
