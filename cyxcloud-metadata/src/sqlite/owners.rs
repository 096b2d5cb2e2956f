//! Constants, owners, access keys.

use cyxcloud_core::{ByteCount, OwnerId};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::engine::Done;
use super::row::{self, OWNER, one, run};
use crate::error::Error;
use crate::model::{AccessKey, Owner, Usage};

pub(super) fn keep_constant(db: &Connection, name: &str, value: &[u8]) -> Done<Vec<u8>> {
    run(
        db,
        "INSERT INTO constants (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![name, value],
    )?;
    let kept = one(db, "SELECT value FROM constants WHERE name = ?1", [name], |row| Ok(row.get(0)?))?;
    Ok(kept.expect("it was there or was just made"))
}

pub(super) fn ensure(db: &Connection, owner: &Owner) -> Done<Owner> {
    const INSERT: &str = "INSERT INTO users
        (id, username, email, wallet_address, role, storage_quota, sealing_secret, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (id) DO NOTHING";
    run(
        db,
        INSERT,
        params![
            owner.id.as_uuid(),
            owner.username,
            owner.email,
            owner.wallet_address,
            if owner.admin { "admin" } else { "user" },
            owner.storage_quota.map(ByteCount::as_i64),
            owner.wrapped_secret,
            row::now().unix_millis(),
        ],
    )?;
    Ok(get(db, owner.id)?.expect("it was there or was just made"))
}

pub(super) fn get(db: &Connection, id: OwnerId) -> Done<Option<Owner>> {
    one(db, &format!("SELECT {OWNER} FROM users WHERE id = ?1"), [id.as_uuid()], row::owner)
}

pub(super) fn usage(db: &Connection, id: OwnerId) -> Done<Usage> {
    const SELECT: &str = "SELECT storage_used, object_count FROM users WHERE id = ?1";
    Ok(one(db, SELECT, [id.as_uuid()], row::usage)?.unwrap_or_default())
}

pub(super) fn put_access_key(db: &Connection, key: &AccessKey) -> Done<()> {
    // The guard leaves another owner's key alone: it touches no row.
    const PUT: &str = "INSERT INTO access_keys (id, owner_id, secret, expires_at, revoked_at, created_at)
        VALUES (?1, ?2, ?3, ?4, CASE WHEN ?5 THEN ?6 END, ?6)
        ON CONFLICT (id) DO UPDATE SET secret = excluded.secret, expires_at = excluded.expires_at,
            revoked_at = CASE WHEN ?5 THEN coalesce(revoked_at, ?6) END
        WHERE owner_id = excluded.owner_id";
    let put = run(
        db,
        PUT,
        params![
            key.id,
            key.owner.as_uuid(),
            key.wrapped_secret,
            key.expires_at.map(|at| at.unix_millis()),
            key.revoked,
            row::now().unix_millis(),
        ],
    )?;
    if put == 0 { Err(Error::Stale { what: "access key" }.into()) } else { Ok(()) }
}

pub(super) fn access_key(db: &Connection, id: &str) -> Done<Option<AccessKey>> {
    const SELECT: &str =
        "SELECT id, owner_id, secret, expires_at, revoked_at IS NOT NULL FROM access_keys WHERE id = ?1";
    one(db, SELECT, [id], |row| {
        Ok(AccessKey {
            id: row.get(0)?,
            owner: OwnerId::from(row.get::<_, Uuid>(1)?),
            wrapped_secret: row.get(2)?,
            expires_at: row.get::<_, Option<i64>>(3)?.map(cyxcloud_core::Timestamp::from_unix_millis),
            revoked: row.get(4)?,
        })
    })
}
