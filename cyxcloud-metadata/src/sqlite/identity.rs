//! People, sessions, API keys, room under quotas, and the audit log.

use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::SqliteStore;
use super::engine::Done;
use super::row::{self, OWNER, after, all, before, exists, id, int, now, number, one, run, some_time, time};
use crate::error::Error;
use crate::identity::Identity;
use crate::identity::model::*;
use crate::model::Owner;
use crate::rows::corrupt;
use crate::{Result, check_quota};

#[async_trait]
impl Identity for SqliteStore {
    async fn ensure_wallet(&self, owner: &Owner) -> Result<(Owner, bool)> {
        let owner = owner.clone();
        self.engine.write("make the wallet's owner", move |db| ensure_wallet(db, &owner)).await
    }

    async fn wallet_owner(&self, wallet: &str) -> Result<Option<Owner>> {
        let wallet = wallet.to_owned();
        self.engine.read("read the wallet's owner", move |db| wallet_owner(db, Some(&wallet))).await
    }

    async fn person(&self, id: OwnerId) -> Result<Option<Person>> {
        self.engine.read("read a user", move |db| get(db, id)).await
    }

    async fn people(&self, after: Option<OwnerId>, limit: usize) -> Result<Vec<Person>> {
        self.engine.read("list users", move |db| list(db, after, limit)).await
    }

    async fn change_person(&self, id: OwnerId, change: &PersonChange) -> Result<Option<Person>> {
        let change = change.clone();
        self.engine.write("change a user", move |db| alter(db, id, &change)).await
    }

    async fn begin_session(&self, session: &NewSession) -> Result<bool> {
        let session = session.clone();
        self.engine.write("begin a session", move |db| begin(db, &session)).await
    }

    async fn rotate_session(&self, rotation: &Rotation, grace: Duration) -> Result<Rotated> {
        let rotation = rotation.clone();
        self.engine.write("exchange a refresh token", move |db| rotate(db, &rotation, grace)).await
    }

    async fn end_session(&self, id: Uuid) -> Result<()> {
        self.engine.write("end a session", move |db| end(db, id)).await
    }

    async fn revoke_token(&self, jti: &str, owner: OwnerId, expires_at: Timestamp) -> Result<()> {
        const REVOKE: &str = "INSERT INTO revoked_tokens (jti, owner_id, expires_at, revoked_at)
            VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
        let jti = jti.to_owned();
        let revoke = move |db: &Connection| {
            let expires = expires_at.unix_millis();
            run(db, REVOKE, params![jti, owner.as_uuid(), expires, now().unix_millis()])?;
            Ok(())
        };
        self.engine.write("revoke a token", revoke).await
    }

    async fn token_is_revoked(&self, jti: &str, session: Option<Uuid>) -> Result<bool> {
        let jti = jti.to_owned();
        self.engine.read("look for a revocation", move |db| is_revoked(db, &jti, session)).await
    }

    async fn create_api_key(&self, key: &ApiKey, most: u32) -> Result<ApiKey> {
        let key = key.clone();
        self.engine.write("make an API key", move |db| create_key(db, &key, most)).await
    }

    async fn api_key(&self, id: &str) -> Result<Option<ApiKey>> {
        let id = id.to_owned();
        self.engine.read("read an API key", move |db| key(db, &id)).await
    }

    async fn api_keys(&self, owner: OwnerId, limit: usize) -> Result<Vec<ApiKey>> {
        let list = move |db: &Connection| {
            let sql = format!(
                "SELECT {KEY} FROM access_keys WHERE owner_id = ?1
                ORDER BY revoked_at IS NOT NULL OR coalesce(expires_at <= ?3, 0), created_at DESC, id LIMIT ?2"
            );
            all(db, &sql, params![owner.as_uuid(), int(limit as u64), now().unix_millis()], read_key)
        };
        self.engine.read("list API keys", list).await
    }

    async fn revoke_api_key(&self, owner: OwnerId, id: &str) -> Result<bool> {
        const REVOKE: &str = "WITH RECURSIVE ended AS (
                SELECT id FROM access_keys WHERE id = ?1 AND owner_id = ?2
                UNION SELECT made.id FROM access_keys made JOIN ended ON made.made_by = ended.id
            )
            UPDATE access_keys SET revoked_at = coalesce(revoked_at, ?3) WHERE id IN (SELECT id FROM ended)";
        let id = id.to_owned();
        let revoke = move |db: &Connection| {
            Ok(run(db, REVOKE, params![id, owner.as_uuid(), now().unix_millis()])? > 0)
        };
        self.engine.write("revoke an API key", revoke).await
    }

    async fn touch_api_keys(&self, ids: &[String]) -> Result<()> {
        let ids = ids.to_vec();
        let touch = move |db: &Connection| {
            for id in &ids {
                run(
                    db,
                    "UPDATE access_keys SET last_used_at = ?2 WHERE id = ?1",
                    params![id, now().unix_millis()],
                )?;
            }
            Ok(())
        };
        self.engine.write("record that keys were used", touch).await
    }

    async fn check_room(&self, owner: OwnerId, more: ByteCount) -> Result<()> {
        self.engine.read("look for room under the quota", move |db| check_room(db, owner, more)).await
    }

    async fn append_audit(&self, entries: &[NewAuditEntry]) -> Result<()> {
        let entries = entries.to_vec();
        let append = move |db: &Connection| entries.iter().try_for_each(|entry| append(db, entry));
        self.engine.write("write the audit log", append).await
    }

    async fn audit_log(
        &self,
        owner: Option<OwnerId>,
        before: Option<AuditCursor>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>> {
        self.engine.read("read the audit log", move |db| log(db, owner, before, limit)).await
    }

    async fn purge_identity(&self, audit_older: Duration, limit: usize) -> Result<usize> {
        self.engine.write("drop what has expired", move |db| purge(db, audit_older, limit)).await
    }
}

fn person(row: &Row<'_>) -> Done<Person> {
    Ok(Person {
        owner: row::owner(row)?,
        suspended: row.get_ref(8)?.as_str().is_ok_and(|status| status == "suspended"),
        token_version: row.get(9)?,
    })
}

fn wallet_owner(db: &Connection, wallet: Option<&str>) -> Done<Option<Owner>> {
    one(db, &format!("SELECT {OWNER} FROM users WHERE wallet_address = ?1"), [wallet], row::owner)
}

fn ensure_wallet(db: &Connection, owner: &Owner) -> Done<(Owner, bool)> {
    match wallet_owner(db, owner.wallet_address.as_deref())? {
        Some(found) => Ok((found, false)),
        None => Ok((super::owners::ensure(db, owner)?, true)),
    }
}

fn get(db: &Connection, id: OwnerId) -> Done<Option<Person>> {
    let sql = format!("SELECT {OWNER}, status, token_version FROM users WHERE id = ?1");
    one(db, &sql, [id.as_uuid()], person)
}

fn list(db: &Connection, after: Option<OwnerId>, limit: usize) -> Done<Vec<Person>> {
    let sql = format!(
        "SELECT {OWNER}, status, token_version FROM users WHERE ?1 IS NULL OR id > ?1 ORDER BY id LIMIT ?2"
    );
    all(db, &sql, params![after.map(|id| id.as_uuid()), int(limit as u64)], person)
}

fn alter(db: &Connection, id: OwnerId, change: &PersonChange) -> Done<Option<Person>> {
    const CHANGE: &str = "UPDATE users SET
            storage_quota = CASE WHEN ?2 THEN ?3 ELSE storage_quota END,
            role = coalesce(?4, role), status = coalesce(?5, status), token_version = token_version + ?6
        WHERE id = ?1";
    run(
        db,
        CHANGE,
        params![
            id.as_uuid(),
            change.quota.is_some(),
            change.quota.flatten().map(ByteCount::as_i64),
            change.admin.map(|admin| if admin { "admin" } else { "user" }),
            change.suspended.map(|suspended| if suspended { "suspended" } else { "active" }),
            i64::from(change.ends_tokens()),
        ],
    )?;
    get(db, id)
}

fn begin(db: &Connection, session: &NewSession) -> Done<bool> {
    const BEGIN: &str = "INSERT INTO sessions (id, owner_id, current, rotated_at, expires_at, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?4)
        ON CONFLICT (id) DO UPDATE SET current = excluded.current WHERE sessions.current = excluded.current";
    let expires = session.expires_at.unix_millis();
    let row = params![session.id, session.owner.as_uuid(), session.refresh, now().unix_millis(), expires];
    Ok(run(db, BEGIN, row)? > 0)
}

struct Session {
    current: String,
    previous: Option<String>,
    answer: Option<Vec<u8>>,
    rotated_at: Timestamp,
    over: bool,
}

fn rotate(db: &Connection, rotation: &Rotation, grace: Duration) -> Done<Rotated> {
    const FIND: &str =
        "SELECT current, previous, answer, rotated_at, revoked_at IS NOT NULL OR expires_at <= ?2
        FROM sessions WHERE id = ?1";
    const ROTATE: &str = "UPDATE sessions
        SET current = ?2, previous = current, answer = ?3, rotated_at = ?4, expires_at = ?5 WHERE id = ?1";
    let now = now();
    let session = one(db, FIND, params![rotation.session, now.unix_millis()], |row| {
        Ok(Session {
            current: row.get(0)?,
            previous: row.get(1)?,
            answer: row.get(2)?,
            rotated_at: time(row, 3)?,
            over: row.get(4)?,
        })
    })?;
    let Some(session) = session.filter(|session| !session.over) else { return Ok(Rotated::Ended) };
    if session.current == rotation.presented {
        let expires = rotation.expires_at.unix_millis();
        run(
            db,
            ROTATE,
            params![rotation.session, rotation.next, rotation.answer, now.unix_millis(), expires],
        )?;
        return Ok(Rotated::Fresh);
    }
    let again = session.previous.as_ref() == Some(&rotation.presented)
        && now.unix_millis() < after(session.rotated_at, grace);
    match session.answer {
        Some(answer) if again => Ok(Rotated::Again(answer)),
        _ => {
            end(db, rotation.session)?;
            Ok(Rotated::Reused)
        }
    }
}

fn end(db: &Connection, id: Uuid) -> Done<()> {
    const END: &str =
        "UPDATE sessions SET revoked_at = coalesce(revoked_at, ?2), answer = NULL WHERE id = ?1";
    run(db, END, params![id, now().unix_millis()])?;
    Ok(())
}

fn is_revoked(db: &Connection, jti: &str, session: Option<Uuid>) -> Done<bool> {
    if exists(db, "SELECT 1 FROM revoked_tokens WHERE jti = ?1", [jti])? {
        return Ok(true);
    }
    let Some(session) = session else { return Ok(false) };
    Ok(!exists(db, "SELECT 1 FROM sessions WHERE id = ?1 AND revoked_at IS NULL", [session])?)
}

const KEY: &str = "id, owner_id, name, secret, buckets, prefixes, read_only, expires_at, created_at, last_used_at, \
                   revoked_at, made_by";

fn names(row: &Row<'_>, column: usize) -> Done<Option<Vec<String>>> {
    let text: Option<String> = row.get(column)?;
    let names =
        text.map(|text| serde_json::from_str(&text).map_err(|error| corrupt("limit of a key", error)));
    Ok(names.transpose()?)
}

fn text(names: Option<&Vec<String>>) -> Option<String> {
    names.map(|names| serde_json::json!(names).to_string())
}

fn read_key(row: &Row<'_>) -> Done<ApiKey> {
    Ok(ApiKey {
        id: row.get(0)?,
        owner: id(row, 1)?,
        name: row.get(2)?,
        wrapped_secret: row.get(3)?,
        buckets: names(row, 4)?,
        prefixes: names(row, 5)?,
        read_only: row.get(6)?,
        expires_at: some_time(row, 7)?,
        created_at: time(row, 8)?,
        last_used_at: some_time(row, 9)?,
        revoked_at: some_time(row, 10)?,
        made_by: row.get(11)?,
    })
}

fn key(db: &Connection, id: &str) -> Done<Option<ApiKey>> {
    one(db, &format!("SELECT {KEY} FROM access_keys WHERE id = ?1"), [id], read_key)
}

/// How many keys are in use that count beside a new one.
fn keys_in_use(db: &Connection, new: &ApiKey) -> Done<i64> {
    const OWN: &str = "SELECT count(*) FROM access_keys WHERE owner_id = ?1 AND made_by IS NULL
        AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)";
    // None outlives the one that made it, so those in use lead to all that come of the same one; that one is not counted.
    const OF_KEY: &str = "WITH RECURSIVE up (id, made_by) AS (
            SELECT id, made_by FROM access_keys WHERE id = ?1
            UNION SELECT k.id, k.made_by FROM access_keys k JOIN up ON k.id = up.made_by
        ), down (id) AS (
            SELECT id FROM up WHERE made_by IS NULL
            UNION SELECT k.id FROM access_keys k JOIN down ON k.made_by = down.id
            WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > ?2)
        )
        SELECT count(*) - 1 FROM down";
    let now = now().unix_millis();
    Ok(match &new.made_by {
        None => number(db, OWN, params![new.owner.as_uuid(), now])?,
        Some(maker) => number(db, OF_KEY, params![maker, now])?,
    })
}

fn create_key(db: &Connection, new: &ApiKey, most: u32) -> Done<ApiKey> {
    const INSERT: &str = "INSERT INTO access_keys
        (id, owner_id, name, secret, buckets, prefixes, read_only, expires_at, created_at, made_by)
        SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10
        WHERE ?10 IS NULL
            OR EXISTS (SELECT 1 FROM access_keys WHERE id = ?10 AND owner_id = ?2 AND revoked_at IS NULL)
        ON CONFLICT DO NOTHING";
    if keys_in_use(db, new)? >= i64::from(most) {
        return Err(Error::TooManyKeys { max: most }.into());
    }
    let made = run(
        db,
        INSERT,
        params![
            new.id,
            new.owner.as_uuid(),
            new.name,
            new.wrapped_secret,
            text(new.buckets.as_ref()),
            text(new.prefixes.as_ref()),
            new.read_only,
            new.expires_at.map(Timestamp::unix_millis),
            now().unix_millis(),
            new.made_by,
        ],
    )?;
    match key(db, &new.id)? {
        Some(key) if made > 0 => Ok(key),
        _ => Err(Error::Stale { what: "access key" }.into()),
    }
}

/// The owner's quota and what is taken of it, by uploads under way too; `None` where there is no quota.
pub(super) fn taken(db: &Connection, owner: OwnerId) -> Done<Option<(ByteCount, ByteCount)>> {
    const QUOTA: &str = "SELECT storage_quota, storage_used FROM users WHERE id = ?1";
    const PARTS: &str = "SELECT sum(p.size_bytes) FROM multipart_uploads m
        JOIN multipart_parts p ON p.multipart_id = m.id WHERE m.owner_id = ?1 AND m.status = 'open'";
    const RESERVED: &str = "SELECT sum(reserved) FROM upload_intents WHERE owner_id = ?1 AND reserved > 0";
    let found = one(db, QUOTA, [owner.as_uuid()], |row| {
        Ok((row.get::<_, Option<i64>>(0)?.map(ByteCount::from_i64), row::bytes(row, 1)?))
    })?;
    let Some((Some(quota), used)) = found else { return Ok(None) };
    let parts = ByteCount::from_i64(number(db, PARTS, [owner.as_uuid()])?);
    let reserved = ByteCount::from_i64(number(db, RESERVED, [owner.as_uuid()])?);
    Ok(Some((quota, used.saturating_add(parts).saturating_add(reserved))))
}

pub(super) fn check_room(db: &Connection, owner: OwnerId, more: ByteCount) -> Done<()> {
    match taken(db, owner)? {
        Some((quota, used)) => Ok(check_quota(Some(quota), used, more)?),
        None => Ok(()),
    }
}

fn append(db: &Connection, entry: &NewAuditEntry) -> Done<()> {
    const APPEND: &str = "INSERT INTO audit_log (id, at, owner_id, actor, action, target, address, outcome)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (id) DO NOTHING";
    run(
        db,
        APPEND,
        params![
            entry.id,
            now().unix_millis(),
            entry.owner.map(|owner| owner.as_uuid()),
            entry.actor,
            entry.action,
            entry.target,
            entry.address,
            entry.outcome,
        ],
    )?;
    Ok(())
}

fn log(
    db: &Connection,
    owner: Option<OwnerId>,
    before: Option<AuditCursor>,
    limit: usize,
) -> Done<Vec<AuditEntry>> {
    const COLUMNS: &str = "id, at, owner_id, actor, action, target, address, outcome";
    // Two texts, so that each is answered from its index.
    let whose = if owner.is_some() { "owner_id = ?1" } else { "?1 IS NULL" };
    let sql = format!(
        "SELECT {COLUMNS} FROM audit_log WHERE {whose} AND (at, id) < (?2, ?3) ORDER BY at DESC, id DESC LIMIT ?4"
    );
    let (at, id) = before.map_or((i64::MAX, Uuid::max()), |before| (before.at.unix_millis(), before.id));
    all(db, &sql, params![owner.map(|owner| owner.as_uuid()), at, id, int(limit as u64)], |row| {
        Ok(AuditEntry {
            at: time(row, 1)?,
            entry: NewAuditEntry {
                id: row.get(0)?,
                owner: row.get::<_, Option<Uuid>>(2)?.map(OwnerId::from),
                actor: row.get(3)?,
                action: row.get(4)?,
                target: row.get(5)?,
                address: row.get(6)?,
                outcome: row.get(7)?,
            },
        })
    })
}

fn purge(db: &Connection, audit_older: Duration, limit: usize) -> Done<usize> {
    let (now, limit) = (now(), int(limit as u64));
    let mut gone = 0;
    for sql in [
        "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires_at < ?1 LIMIT ?2)",
        "DELETE FROM revoked_tokens WHERE jti IN (SELECT jti FROM revoked_tokens WHERE expires_at < ?1 LIMIT ?2)",
    ] {
        // A token is believed for a minute more than it says.
        gone += run(db, sql, params![before(now, Duration::from_secs(3600)), limit])?;
    }
    run(
        db,
        "INSERT INTO constants (name, value) VALUES ('audit-retention', x'') ON CONFLICT DO NOTHING",
        [],
    )?;
    gone += run(
        db,
        "DELETE FROM audit_log WHERE id IN (SELECT id FROM audit_log WHERE at < ?1 ORDER BY at LIMIT ?2)",
        params![before(now, audit_older), limit],
    )?;
    run(db, "DELETE FROM constants WHERE name = 'audit-retention'", [])?;
    Ok(gone)
}
