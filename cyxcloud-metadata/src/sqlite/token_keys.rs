//! The keys that tokens for nodes are signed with.

use cyxcloud_core::token_keys::{KeyTimes, Rotation};
use rusqlite::{Connection, params};

use super::engine::Done;
use super::row::{all, now, run, some_time, time};
use crate::error::Error;
use crate::model::TokenKey;

pub(super) fn believed(db: &Connection) -> Done<Vec<TokenKey>> {
    const BELIEVED: &str = "SELECT number, signs_from, accepted_until, seed, created_at FROM token_keys
        WHERE accepted_until IS NULL OR accepted_until > ?1 ORDER BY number";
    all(db, BELIEVED, [now().unix_millis()], |row| {
        Ok(TokenKey {
            times: KeyTimes {
                number: row.get(0)?,
                signs_from: time(row, 1)?,
                accepted_until: some_time(row, 2)?,
            },
            wrapped_seed: row.get(3)?,
            created_at: time(row, 4)?,
        })
    })
}

pub(super) fn make_first(db: &Connection, seed: &[u8]) -> Done<Vec<TokenKey>> {
    const FIRST: &str = "INSERT INTO token_keys (number, seed, signs_from, created_at) VALUES (1, ?1, 0, ?2)
        ON CONFLICT (number) DO NOTHING";
    run(db, FIRST, params![seed, now().unix_millis()])?;
    believed(db)
}

pub(super) fn add(db: &Connection, rotation: &Rotation, seed: &[u8]) -> Done<TokenKey> {
    const ADD: &str = "INSERT INTO token_keys (number, seed, signs_from, created_at)
        SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM token_keys WHERE number >= ?1)";
    const END: &str = "UPDATE token_keys SET accepted_until = min(coalesce(accepted_until, ?2), ?2)
        WHERE number < ?1";
    let (number, now) = (rotation.after.unwrap_or_default() + 1, now());
    let signs_from = rotation.signs_from;
    if run(db, ADD, params![number, seed, signs_from.unix_millis(), now.unix_millis()])? == 0 {
        return Err(Error::Stale { what: "keys for tokens" }.into());
    }
    run(db, END, params![number, rotation.previous_until.unix_millis()])?;
    run(db, "DELETE FROM token_keys WHERE accepted_until <= ?1", [now.unix_millis()])?;
    // Where keys were kept before there were several.
    run(db, "DELETE FROM constants WHERE name = 'token_key'", [])?;
    let times = KeyTimes { number, signs_from, accepted_until: None };
    Ok(TokenKey { times, wrapped_seed: seed.to_vec(), created_at: now })
}
