//! Buckets and what they hold.

use cyxcloud_core::{BucketId, OwnerId};
use rusqlite::{Connection, params};

use super::engine::Done;
use super::row::{self, BUCKET, all, exists, one, run};
use crate::error::Error;
use crate::model::{Bucket, Usage};

pub(super) fn create(db: &Connection, bucket: &Bucket, most: u32) -> Done<Bucket> {
    const COUNT: &str = "SELECT count(*) FROM buckets WHERE owner_id = ?1";
    const INSERT: &str =
        "INSERT INTO buckets (id, name, owner_id, profile, created_at) VALUES (?1, ?2, ?3, ?4, ?5)";
    if let Some(taken) = get(db, bucket.name.as_str())? {
        return Err(Error::BucketExists { owner: taken.owner }.into());
    }
    if row::number(db, COUNT, [bucket.owner.as_uuid()])? >= i64::from(most) {
        return Err(Error::TooManyBuckets { max: most }.into());
    }
    let created_at = row::now();
    run(
        db,
        INSERT,
        params![
            bucket.id.as_uuid(),
            bucket.name.as_str(),
            bucket.owner.as_uuid(),
            bucket.profile,
            created_at.unix_millis()
        ],
    )?;
    Ok(Bucket { created_at, ..bucket.clone() })
}

pub(super) fn get(db: &Connection, name: &str) -> Done<Option<Bucket>> {
    one(db, &format!("SELECT {BUCKET} FROM buckets WHERE name = ?1"), [name], row::bucket)
}

pub(super) fn list(db: &Connection, owner: OwnerId) -> Done<Vec<Bucket>> {
    let select = format!("SELECT {BUCKET} FROM buckets WHERE owner_id = ?1 ORDER BY name");
    all(db, &select, [owner.as_uuid()], row::bucket)
}

pub(super) fn list_with_usage(db: &Connection, owner: OwnerId) -> Done<Vec<(Bucket, Usage)>> {
    let select =
        format!("SELECT storage_used, object_count, {BUCKET} FROM buckets WHERE owner_id = ?1 ORDER BY name");
    all(db, &select, [owner.as_uuid()], |row| Ok((row::bucket_at(row, 2)?, row::usage(row)?)))
}

/// `NoSuchBucket` unless it is there.
pub(super) fn require(db: &Connection, id: BucketId) -> Done<()> {
    let there = exists(db, "SELECT 1 FROM buckets WHERE id = ?1", [id.as_uuid()])?;
    if there { Ok(()) } else { Err(Error::NoSuchBucket.into()) }
}

pub(super) fn delete(db: &Connection, id: BucketId) -> Done<()> {
    const IN_USE: &str = "SELECT EXISTS (SELECT 1 FROM files WHERE bucket_id = ?1)
        OR EXISTS (SELECT 1 FROM multipart_uploads WHERE bucket_id = ?1 AND status = 'open')";
    let bucket = id.as_uuid();
    require(db, id)?;
    if row::number(db, IN_USE, [bucket])? != 0 {
        return Err(Error::BucketNotEmpty.into());
    }
    // Those that ended only remember what Complete answered.
    run(db, "DELETE FROM multipart_uploads WHERE bucket_id = ?1", [bucket])?;
    run(db, "DELETE FROM buckets WHERE id = ?1", [bucket])?;
    Ok(())
}

pub(super) fn usage(db: &Connection, id: BucketId) -> Done<Usage> {
    const SELECT: &str = "SELECT storage_used, object_count FROM buckets WHERE id = ?1";
    Ok(one(db, SELECT, [id.as_uuid()], row::usage)?.unwrap_or_default())
}
