//! Intents: uploads under way.

use std::time::Duration;

use cyxcloud_core::{ByteCount, UploadId};
use rusqlite::{Connection, params};

use super::engine::Done;
use super::row::{int, now, number, run};
use crate::error::Error;
use crate::model::NewUpload;

pub(super) fn begin(db: &Connection, upload: &NewUpload) -> Done<()> {
    const INSERT: &str =
        "INSERT INTO upload_intents (id, owner_id, bucket_id, key, lease_until, created_at, reserved)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    if upload.reserve > ByteCount::default() {
        const SIZE: &str = "SELECT size_bytes FROM files
            WHERE bucket_id = ?1 AND key = ?2 AND is_latest AND NOT is_delete_marker";
        // What replacing the current object gives back.
        let freed = number(db, SIZE, params![upload.bucket.as_uuid(), upload.key.as_bytes()])?;
        let more = upload.reserve.saturating_sub(ByteCount::from_i64(freed));
        super::identity::check_room(db, upload.owner, more)?;
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
