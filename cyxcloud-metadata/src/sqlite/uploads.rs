//! Intents: uploads under way.

use std::time::Duration;

use cyxcloud_core::{BucketId, ByteCount, UploadId};
use rusqlite::{Connection, params};

use super::engine::Done;
use super::identity;
use super::row::{self, int, now, number, one, run};
use crate::error::Error;
use crate::model::NewUpload;
use crate::room_for;

pub(super) fn begin(db: &Connection, upload: &NewUpload) -> Done<()> {
    const INSERT: &str =
        "INSERT INTO upload_intents (id, owner_id, bucket_id, key, lease_until, created_at, reserved)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    if upload.reserve > ByteCount::default() {
        let freed = freed(db, upload.bucket, upload.key.as_bytes())?;
        identity::check_room(db, upload.owner, upload.reserve.saturating_sub(freed))?;
    }
    let now = now();
    run(
        db,
        INSERT,
        params![
            upload.id.as_uuid(),
            upload.owner.as_uuid(),
            upload.bucket.as_uuid(),
            upload.key.as_bytes(),
            now.plus(upload.lease).unix_millis(),
            now.unix_millis(),
            upload.reserve.as_i64(),
        ],
    )?;
    Ok(())
}

/// What replacing the current object gives back.
fn freed(db: &Connection, bucket: BucketId, key: &[u8]) -> Done<ByteCount> {
    const SIZE: &str = "SELECT size_bytes FROM files
        WHERE bucket_id = ?1 AND key = ?2 AND is_latest AND NOT is_delete_marker";
    Ok(ByteCount::from_i64(number(db, SIZE, params![bucket.as_uuid(), key])?))
}

pub(super) fn reserve_more(db: &Connection, id: UploadId, more: ByteCount) -> Done<Option<ByteCount>> {
    const FIND: &str = "SELECT owner_id, bucket_id, key FROM upload_intents WHERE id = ?1";
    const RESERVE: &str = "UPDATE upload_intents SET reserved = reserved + ?2 WHERE id = ?1";
    let found = one(db, FIND, [id.as_uuid()], |row| {
        Ok((row::id(row, 0)?, row::id(row, 1)?, row.get::<_, Vec<u8>>(2)?))
    })?;
    let (owner, bucket, key) = found.ok_or(Error::UploadGone)?;
    let Some((quota, used)) = identity::taken(db, owner)? else { return Ok(None) };
    let granted = room_for(quota, used.saturating_sub(freed(db, bucket, &key)?), more)?;
    run(db, RESERVE, params![id.as_uuid(), granted.as_i64()])?;
    Ok(Some(reserved(db, id)?))
}

/// What an intent has reserved; nothing if there is none.
pub(super) fn reserved(db: &Connection, id: UploadId) -> Done<ByteCount> {
    const RESERVED: &str = "SELECT reserved FROM upload_intents WHERE id = ?1";
    Ok(ByteCount::from_i64(number(db, RESERVED, [id.as_uuid()])?))
}

pub(super) fn renew(db: &Connection, id: UploadId, lease: Duration) -> Done<()> {
    const RENEW: &str = "UPDATE upload_intents SET lease_until = ?2 WHERE id = ?1";
    match run(db, RENEW, params![id.as_uuid(), now().plus(lease).unix_millis()])? {
        0 => Err(Error::UploadGone.into()),
        _ => Ok(()),
    }
}

/// Ends an intent; false if it is gone already.
pub(super) fn end(db: &Connection, id: UploadId) -> Done<bool> {
    Ok(run(db, "DELETE FROM upload_intents WHERE id = ?1", [id.as_uuid()])? > 0)
}

pub(super) fn expire(db: &Connection, limit: usize) -> Done<usize> {
    const EXPIRE: &str = "DELETE FROM upload_intents WHERE id IN
        (SELECT id FROM upload_intents WHERE lease_until < ?1 ORDER BY lease_until LIMIT ?2)";
    Ok(run(db, EXPIRE, params![now().unix_millis(), int(limit as u64)])?)
}
