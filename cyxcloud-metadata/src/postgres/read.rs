//! Reads rows into the model's types, and refuses rows that no version of this program wrote.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{ByteCount, Geometry, Timestamp};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::transact::Failure;
use crate::model::{Attributes, Object, StoredChecksum};
use crate::rows;

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
