//! Makes objects visible, and invisible again.
//!
//! The writer is alone, so that reading a key's versions is holding its lock; there are no rows of `keys`, and the
//! totals of usage are exact at every commit.

use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, OwnerId, UploadId};
use rusqlite::{Connection, params};

use super::content::{self, Body};
use super::engine::Done;
use super::row::{self, OBJECT, int, one, run};
use super::{buckets, uploads};
use crate::error::Error;
use crate::model::{CommitObject, Object, Precondition};
use crate::rows::{shown, to_json};
use crate::versions::{self, Current, NewVersion};

/// Where an object goes, and who pays for it.
struct Place {
    bucket_name: String,
    quota: Option<ByteCount>,
    used: ByteCount,
}

pub(super) fn object(db: &Connection, commit: &CommitObject) -> Done<Object> {
    let pending = commit.has_intent && uploads::end(db, commit.upload)?;
    if !pending {
        if let Some(object) = by_upload(db, commit.upload)? {
            return Ok(object); // asked again
        }
        buckets::require(db, commit.bucket)?;
        if commit.has_intent {
            return Err(Error::UploadGone.into());
        }
    }
    insert(db, NewVersion::of(commit), |db| content::record(db, &commit.content, commit.size))
}

/// The object that this upload made, while it is current.
fn by_upload(db: &Connection, upload: UploadId) -> Done<Option<Object>> {
    one(db, &format!("SELECT {OBJECT} FROM files WHERE upload_id = ?1"), [upload.as_uuid()], row::object)
}

/// Makes a version current: judges, replaces, accounts. `body` is called once nothing but its content can refuse it.
pub(super) fn insert(
    db: &Connection,
    version: NewVersion<'_>,
    body: impl FnOnce(&Connection) -> Done<Body>,
) -> Done<Object> {
    let place = place(db, version.bucket, version.owner)?;
    let current = current(db, version.bucket, version.key)?;
    versions::admit(current.as_ref(), place.quota, place.used, &version)?;
    let Body { ranges, shape } = body(db)?;
    if let Some(current) = &current {
        drop_version(db, version.bucket, current, "overwritten")?;
    }
    let modified_at = row::now();
    let sequence = current.map_or(0, |current| current.version_seq) + 1;
    insert_file(db, &version, &place.bucket_name, sequence, shape, modified_at.unix_millis())?;
    let mut offset = 0;
    for (range, position) in ranges.iter().zip(0i64..) {
        const INSERT: &str = "INSERT INTO file_segments
            (file_id, position, segment_id, object_offset, segment_offset, length) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let (at, segment) = (int(offset), range.segment.as_uuid());
        run(
            db,
            INSERT,
            params![version.file.as_uuid(), position, segment, at, int(range.offset), int(range.length)],
        )?;
        offset += range.length;
    }
    account(db, version.owner, version.bucket, version.size.as_i64(), 1)?;
    Ok(version.into_object(modified_at))
}

fn place(db: &Connection, bucket: BucketId, owner: OwnerId) -> Done<Place> {
    const SELECT: &str = "SELECT b.name, u.storage_quota, u.storage_used
        FROM buckets b LEFT JOIN users u ON u.id = ?2 WHERE b.id = ?1";
    let found = one(db, SELECT, [bucket.as_uuid(), owner.as_uuid()], |row| {
        let quota = row.get::<_, Option<i64>>(1)?.map(ByteCount::from_i64);
        let used = ByteCount::from_i64(row.get::<_, Option<i64>>(2)?.unwrap_or(0));
        Ok(Place { bucket_name: row.get(0)?, quota, used })
    })?;
    found.ok_or_else(|| Error::NoSuchBucket.into())
}

fn current(db: &Connection, bucket: BucketId, key: &ObjectKey) -> Done<Option<Current>> {
    const SELECT: &str = "SELECT id, version_seq, size_bytes, etag, owner_id, is_delete_marker FROM files
        WHERE bucket_id = ?1 AND key = ?2 AND is_latest";
    one(db, SELECT, params![bucket.as_uuid(), key.as_bytes()], |row| {
        Ok(Current {
            file: row.get(0)?,
            version_seq: row.get(1)?,
            size: row::bytes(row, 2)?,
            etag: row.get(3)?,
            owner: row::id(row, 4)?,
            is_delete_marker: row.get(5)?,
        })
    })
}

/// Removes a version; its segments are to be looked at by the collector.
fn drop_version(db: &Connection, bucket: BucketId, version: &Current, reason: &str) -> Done<()> {
    const GARBAGE: &str = "INSERT INTO gc_candidates (segment_id, reason, created_at)
        SELECT DISTINCT segment_id, ?2, ?3 FROM file_segments WHERE file_id = ?1
        ON CONFLICT (segment_id) DO UPDATE SET reason = excluded.reason, created_at = excluded.created_at";
    run(db, GARBAGE, params![version.file, reason, row::now().unix_millis()])?;
    run(db, "DELETE FROM files WHERE id = ?1", [version.file])?;
    if !version.is_delete_marker {
        account(db, version.owner, bucket, -version.size.as_i64(), -1)?;
    }
    Ok(())
}

fn account(db: &Connection, owner: OwnerId, bucket: BucketId, bytes: i64, objects: i64) -> Done<()> {
    const USER: &str =
        "UPDATE users SET storage_used = storage_used + ?2, object_count = object_count + ?3 WHERE id = ?1";
    const BUCKET: &str =
        "UPDATE buckets SET storage_used = storage_used + ?2, object_count = object_count + ?3 WHERE id = ?1";
    run(db, USER, params![owner.as_uuid(), bytes, objects])?;
    run(db, BUCKET, params![bucket.as_uuid(), bytes, objects])?;
    Ok(())
}

fn insert_file(
    db: &Connection,
    version: &NewVersion<'_>,
    bucket_name: &str,
    sequence: i64,
    shape: crate::rows::FileShape,
    created_at: i64,
) -> Done<()> {
    const INSERT: &str = "INSERT INTO files (id, bucket_id, bucket, key, path, name, owner_id, version_seq, is_latest,
        upload_id, content_hash, etag, size_bytes, chunk_count, data_shards, parity_shards, chunk_size, content_type,
        headers, metadata, checksums, part_sizes, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)";
    run(
        db,
        INSERT,
        params![
            version.file.as_uuid(),
            version.bucket.as_uuid(),
            bucket_name,
            version.key.as_bytes(),
            shown(version.key.as_str()),
            shown(version.key.file_name()),
            version.owner.as_uuid(),
            sequence,
            version.upload.as_uuid(),
            version.content_hash.as_slice(),
            version.etag,
            version.size.as_i64(),
            shape.chunk_count,
            shape.data_shards,
            shape.parity_shards,
            shape.chunk_size,
            version.attributes.content_type,
            to_json(&version.attributes.headers),
            to_json(&version.attributes.metadata),
            to_json(&version.attributes.checksums),
            to_json(&version.part_sizes),
            created_at,
        ],
    )?;
    Ok(())
}

pub(super) fn delete(
    db: &Connection,
    bucket: BucketId,
    keys: &[ObjectKey],
    precondition: &Precondition,
) -> Done<Vec<Option<Object>>> {
    let mut deleted = Vec::with_capacity(keys.len());
    for key in keys {
        let current = current(db, bucket, key)?.filter(|current| !current.is_delete_marker);
        precondition.judge(current.as_ref().map(|current| current.etag.as_str()))?;
        let Some(current) = current else {
            deleted.push(None);
            continue;
        };
        let object =
            one(db, &format!("SELECT {OBJECT} FROM files WHERE id = ?1"), [current.file], row::object)?;
        drop_version(db, bucket, &current, "deleted")?;
        deleted.push(object);
    }
    Ok(deleted)
}
