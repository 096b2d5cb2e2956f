//! Columns to values: ids are 16 bytes, times milliseconds, JSON text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cyxcloud_core::{ByteCount, ChunkId, Generation, Geometry, ShardIndex, Timestamp};
use rusqlite::{Connection, OptionalExtension, Params, Row};
use uuid::Uuid;

use super::engine::Done;
use crate::error::Result;
use crate::model::{Attributes, Bucket, Object, Owner, Usage};
use crate::rows::{self, corrupt};
use crate::upkeep::model::{AuditRecord, LocationStatus, NodeCursor, StripeRef};

/// The database's clock: SQLite has none but this process's.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::default().plus(since)
}

/// So long after a time, as columns hold it.
pub(super) fn after(time: Timestamp, delay: Duration) -> i64 {
    time.plus(delay).unix_millis()
}

/// So long before a time, as columns hold it.
pub(super) fn before(time: Timestamp, age: Duration) -> i64 {
    time.unix_millis().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// A column that holds an id.
pub(super) fn id<T: From<Uuid>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    row.get::<_, Uuid>(column).map(T::from)
}

/// A column that holds a number of bytes.
pub(super) fn bytes(row: &Row<'_>, column: usize) -> rusqlite::Result<ByteCount> {
    row.get(column).map(ByteCount::from_i64)
}

/// A column that holds a time.
pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    row.get(column).map(Timestamp::from_unix_millis)
}

/// A column that holds a time, or none.
pub(super) fn some_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_unix_millis))
}

/// A column that holds a Blake3 hash.
pub(super) fn hash(row: &Row<'_>, column: usize) -> Done<[u8; 32]> {
    let bytes = row.get_ref(column)?.as_blob().map_err(|e| corrupt("hash", e))?;
    Ok(rows::hash("hash", bytes)?)
}

/// A column that holds a count that never was negative.
pub(super) fn count<T: TryFrom<i64>>(row: &Row<'_>, column: usize) -> Done<T> {
    let n: i64 = row.get(column)?;
    T::try_from(n).map_err(|_| corrupt("number", n).into())
}

/// A number as SQLite keeps it.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The row that the query finds, if it finds one.
pub(super) fn one<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> Done<T>,
) -> Done<Option<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    rows.next()?.map(read).transpose()
}

/// All rows that the query finds.
pub(super) fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    mut read: impl FnMut(&Row<'_>) -> Done<T>,
) -> Done<Vec<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// Runs a statement that answers nothing; says how many rows it touched.
pub(super) fn run(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(params)
}

/// Whether the query finds anything.
pub(super) fn exists(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.exists(params)
}

/// A sum or another single number; zero if there is none.
pub(super) fn number(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<i64> {
    let found =
        connection.prepare_cached(sql)?.query_row(params, |row| row.get::<_, Option<i64>>(0)).optional()?;
    Ok(found.flatten().unwrap_or(0))
}

/// A column that holds the id of a chunk.
pub(super) fn chunk(row: &Row<'_>, column: usize) -> Done<ChunkId> {
    Ok(ChunkId::from_bytes(hash(row, column)?))
}

/// A column that holds the place of a shard, where its geometry is not at hand: its segment may be gone.
pub(super) fn shard(row: &Row<'_>, column: usize) -> Done<ShardIndex> {
    let place: usize = count(row, column)?;
    let widest = Geometry::coded(u8::MAX, 0).map_err(|e| corrupt("geometry", e))?;
    Ok(widest.shard(place).ok_or_else(|| corrupt("shard", place))?)
}

/// Columns `incarnation, generation`.
pub(super) fn generation(row: &Row<'_>, first: usize) -> Done<Generation> {
    Ok(Generation { incarnation: row.get(first)?, counter: count(row, first + 1)? })
}

/// Columns `segment_id, stripe_index`.
pub(super) fn stripe(row: &Row<'_>, first: usize) -> Done<StripeRef> {
    Ok(StripeRef { segment: id(row, first)?, index: count(row, first + 1)? })
}

/// Columns `chunk_id, segment_id, stripe_index, shard_index`.
pub(super) fn cursor(row: &Row<'_>, first: usize) -> Done<NodeCursor> {
    Ok(NodeCursor {
        chunk: chunk(row, first)?,
        stripe: stripe(row, first + 1)?,
        shard: shard(row, first + 3)?,
    })
}

/// The column `status` of `chunk_locations`.
pub(super) fn location_status(row: &Row<'_>, column: usize) -> Done<LocationStatus> {
    let text = row.get_ref(column)?.as_str().map_err(|e| corrupt("location status", e))?;
    Ok(rows::location_status(text)?)
}

/// What [`audit_record`] reads.
pub(super) const AUDIT_RECORD: &str =
    "audit_alpha, audit_beta, audits_proven, audits_failed, last_audit, coalesce(vetting_since, created_at),
    vetting_proofs, vetted_at";

/// A node's record in audits; without weights before the first one.
pub(super) fn audit_record(row: &Row<'_>, first: usize) -> Done<AuditRecord> {
    let weight = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<f64>>(column)?.unwrap_or(0.0));
    Ok(AuditRecord {
        alpha: weight(first)?,
        beta: weight(first + 1)?,
        proven: count(row, first + 2)?,
        failed: count(row, first + 3)?,
        last_audit: some_time(row, first + 4)?,
        vetting_since: time(row, first + 5)?,
        proven_before: count(row, first + 6)?,
        vetted: some_time(row, first + 7)?.is_some(),
    })
}

/// What [`owner`] reads.
pub(super) const OWNER: &str =
    "id, username, email, wallet_address, role, storage_quota, sealing_secret, created_at";

/// A row of `users`.
pub(super) fn owner(row: &Row<'_>) -> Done<Owner> {
    Ok(Owner {
        id: id(row, 0)?,
        username: row.get(1)?,
        email: row.get(2)?,
        wallet_address: row.get(3)?,
        admin: row.get_ref(4)?.as_str().is_ok_and(|role| role == "admin"),
        storage_quota: row.get::<_, Option<i64>>(5)?.map(ByteCount::from_i64),
        wrapped_secret: row.get(6)?,
        created_at: time(row, 7)?,
    })
}

/// What [`bucket`] reads.
pub(super) const BUCKET: &str = "id, name, owner_id, profile, created_at";

/// A row of `buckets`.
pub(super) fn bucket(row: &Row<'_>) -> Done<Bucket> {
    bucket_at(row, 0)
}

/// The same, from this column on.
pub(super) fn bucket_at(row: &Row<'_>, first: usize) -> Done<Bucket> {
    let name = row.get_ref(first + 1)?.as_str().map_err(|e| corrupt("bucket name", e))?;
    Ok(Bucket {
        id: id(row, first)?,
        name: name.parse().map_err(|e| corrupt("bucket name", e))?,
        owner: id(row, first + 2)?,
        profile: row.get(first + 3)?,
        created_at: time(row, first + 4)?,
    })
}

/// Columns `storage_used, object_count`.
pub(super) fn usage(row: &Row<'_>) -> Done<Usage> {
    Ok(Usage { bytes: bytes(row, 0)?, objects: count(row, 1)? })
}

/// What [`object`] reads.
pub(super) const OBJECT: &str = "id, bucket_id, key, owner_id, version_id, size_bytes, etag, content_hash,
    content_type, headers, metadata, checksums, part_sizes, created_at";

/// A row of `files`.
pub(super) fn object(row: &Row<'_>) -> Done<Object> {
    Ok(Object {
        file: id(row, 0)?,
        bucket: id(row, 1)?,
        key: rows::object_key(row.get(2)?)?,
        owner: id(row, 3)?,
        version_id: row.get(4)?,
        size: bytes(row, 5)?,
        etag: row.get(6)?,
        content_hash: hash(row, 7)?,
        attributes: attributes(row, 8, Some(11))?,
        part_sizes: part_sizes(row.get_ref(12)?.as_str().map_err(|e| corrupt("list of sizes", e))?)?,
        modified_at: time(row, 13)?,
    })
}

/// Columns `content_type, headers, metadata` from `first` on, and `checksums` where there are any.
pub(super) fn attributes(row: &Row<'_>, first: usize, checksums: Option<usize>) -> Done<Attributes> {
    let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
    Ok(Attributes {
        content_type: row.get(first)?,
        headers: rows::texts_from_json("header", text(first + 1)?)?,
        metadata: rows::texts_from_json("metadata", text(first + 2)?)?,
        checksums: match checksums {
            Some(column) => rows::checksums_from_json(text(column)?)?,
            None => Vec::new(),
        },
    })
}

fn part_sizes(json: &str) -> Result<Vec<u64>> {
    if json == "[]" {
        return Ok(Vec::new());
    }
    serde_json::from_str(json).map_err(|e| corrupt("list of sizes", e))
}
