//! Constants and owners.

use cyxcloud_core::{ByteCount, OwnerId};
use rusqlite::{Connection, params};

use super::engine::Done;
use super::row::{self, OWNER, one, run};
use crate::model::{Owner, Usage};

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
