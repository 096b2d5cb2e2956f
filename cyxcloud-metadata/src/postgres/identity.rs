//! People, sessions, API keys, room under quotas, and the audit log.

use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::people::{lock_owner, owner, with_owner};
use super::read::{self, limit as rows, millis, optional_time, touched};
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::identity::model::*;
use crate::model::Owner;

fn person(row: &PgRow) -> Result<Person, Failure> {
    Ok(Person {
        owner: owner(row)?,
        suspended: row.try_get::<&str, _>("status")? == "suspended",
        token_version: row.try_get("token_version")?,
    })
}

fn api_key(row: &PgRow) -> Result<ApiKey, Failure> {
    Ok(ApiKey {
        id: row.try_get("id")?,
        owner: read::id(row, "owner_id")?,
        name: row.try_get("name")?,
        wrapped_secret: row.try_get("secret")?,
        buckets: row.try_get("buckets")?,
        prefixes: row.try_get("prefixes")?,
        read_only: row.try_get("read_only")?,
        expires_at: optional_time(row, "expires_at")?,
        made_by: row.try_get("made_by")?,
        created_at: read::time(row, "created_at")?,
        last_used_at: optional_time(row, "last_used_at")?,
        revoked_at: optional_time(row, "revoked_at")?,
    })
}

fn audit_entry(row: &PgRow) -> Result<AuditEntry, Failure> {
    Ok(AuditEntry {
        at: read::time(row, "at")?,
        entry: NewAuditEntry {
            id: row.try_get("id")?,
            owner: row.try_get::<Option<Uuid>, _>("owner_id")?.map(OwnerId::from_uuid),
            actor: row.try_get("actor")?,
            action: row.try_get("action")?,
            target: row.try_get("target")?,
            address: row.try_get("address")?,
            outcome: row.try_get("outcome")?,
        },
    })
}

/// How many keys are in use that count beside a new one.
async fn keys_in_use(conn: &mut PgConnection, new: &ApiKey) -> Result<i64, Failure> {
    const OWN: &str = "SELECT count(*) FROM access_keys WHERE owner_id = $1 AND made_by IS NULL
        AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())";
    let count = match &new.made_by {
        None => sqlx::query_scalar(OWN).bind(new.owner.as_uuid()),
        Some(maker) => sqlx::query_scalar(include_str!("sql/keys_of_key.sql")).bind(maker),
    };
    Ok(count.fetch_one(conn).await?)
}

async fn end(conn: &mut PgConnection, id: Uuid) -> Result<(), Failure> {
    const END: &str =
        "UPDATE sessions SET revoked_at = coalesce(revoked_at, now()), answer = NULL WHERE id = $1";
    sqlx::query(END).bind(id).execute(conn).await?;
    Ok(())
}

/// The owner's quota and what is taken of it, by uploads under way too; `None` where there is no quota. Under the lock of the
/// owner's row, so that two uploads do not take the same room.
pub(super) async fn taken(
    conn: &mut PgConnection,
    owner: OwnerId,
) -> Result<Option<(ByteCount, ByteCount)>, Failure> {
    const QUOTA: &str =
        "SELECT storage_quota FROM users WHERE id = $1 AND storage_quota IS NOT NULL FOR NO KEY UPDATE";
    const USED: &str = "SELECT (
            (SELECT storage_used FROM users WHERE id = $1)
            + (SELECT coalesce(sum(bytes), 0) FROM usage_deltas WHERE owner_id = $1)
            + (SELECT coalesce(sum(p.size_bytes), 0) FROM multipart_uploads m
                JOIN multipart_parts p ON p.multipart_id = m.id WHERE m.owner_id = $1 AND m.status = 'open')
            + (SELECT coalesce(sum(reserved), 0) FROM upload_intents WHERE owner_id = $1 AND reserved > 0)
        )::bigint";
    let quota: Option<i64> =
        sqlx::query_scalar(QUOTA).bind(owner.as_uuid()).fetch_optional(&mut *conn).await?;
    let Some(quota) = quota else { return Ok(None) };
    let used: i64 = sqlx::query_scalar(USED).bind(owner.as_uuid()).fetch_one(conn).await?;
    Ok(Some((ByteCount::from_i64(quota), ByteCount::from_i64(used))))
}

/// Refuses if there is no room for so much more.
pub(super) async fn room(conn: &mut PgConnection, owner: OwnerId, more: ByteCount) -> Result<(), Failure> {
    match taken(conn, owner).await? {
        Some((quota, used)) => Ok(crate::check_quota(Some(quota), used, more)?),
        None => Ok(()),
    }
}

#[async_trait]
impl Identity for PostgresStore {
    async fn ensure_wallet(&self, new: &Owner) -> Result<(Owner, bool)> {
        const MAKE: &str = "WITH made AS (
                INSERT INTO users (id, username, email, wallet_address, role, storage_quota, sealing_secret)
                VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (wallet_address) DO NOTHING RETURNING *
            )
            SELECT *, TRUE AS made FROM made
            UNION ALL SELECT *, FALSE FROM users WHERE wallet_address = $4 LIMIT 1";
        transact::single(&self.pool, "make the wallet's owner", |conn, _| {
            Box::pin(async move {
                loop {
                    let row = with_owner(MAKE, new).fetch_optional(&mut *conn).await?;
                    if let Some(row) = row {
                        return Ok((owner(&row)?, row.try_get("made")?));
                    }
                }
            })
        })
        .await
    }

    async fn wallet_owner(&self, wallet: &str) -> Result<Option<Owner>> {
        transact::single(&self.pool, "read the wallet's owner", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query("SELECT * FROM users WHERE wallet_address = $1")
                    .bind(wallet)
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map(owner).transpose()
            })
        })
        .await
    }

    async fn person(&self, id: OwnerId) -> Result<Option<Person>> {
        transact::single(&self.pool, "read a user", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query("SELECT * FROM users WHERE id = $1")
                    .bind(id.as_uuid())
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map(person).transpose()
            })
        })
        .await
    }

    async fn people(&self, after: Option<OwnerId>, limit: usize) -> Result<Vec<Person>> {
        const LIST: &str = "SELECT * FROM users WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2";
        transact::single(&self.pool, "list users", |conn, _| {
            Box::pin(async move {
                let after = after.map(|id| id.as_uuid());
                let found = sqlx::query(LIST).bind(after).bind(rows(limit)).fetch_all(conn).await?;
                found.iter().map(person).collect()
            })
        })
        .await
    }

    async fn change_person(&self, id: OwnerId, change: &PersonChange) -> Result<Option<Person>> {
        const CHANGE: &str = "UPDATE users SET
                storage_quota = CASE WHEN $2 THEN $3 ELSE storage_quota END,
                role = coalesce($4, role), status = coalesce($5, status), token_version = token_version + $6
            WHERE id = $1 RETURNING *";
        transact::single(&self.pool, "change a user", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query(CHANGE)
                    .bind(id.as_uuid())
                    .bind(change.quota.is_some())
                    .bind(change.quota.flatten().map(|quota| quota.as_i64()))
                    .bind(change.admin.map(|admin| if admin { "admin" } else { "user" }))
                    .bind(change.suspended.map(|suspended| if suspended { "suspended" } else { "active" }))
                    .bind(i64::from(change.ends_tokens()))
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map(person).transpose()
            })
        })
        .await
    }

    async fn begin_session(&self, session: &NewSession) -> Result<bool> {
        // A retry touches its own row, anybody else none.
        const BEGIN_SESSION: &str = "INSERT INTO sessions (id, owner_id, current, expires_at)
            VALUES ($1, $2, $3, $4)
            ON CONFLICT (id) DO UPDATE SET current = excluded.current WHERE sessions.current = excluded.current";
        transact::single(&self.pool, "begin a session", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(BEGIN_SESSION)
                    .bind(session.id)
                    .bind(session.owner.as_uuid())
                    .bind(&session.refresh)
                    .bind(read::datetime(session.expires_at))
                    .execute(conn)
                    .await?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }

    async fn rotate_session(&self, rotation: &Rotation, grace: Duration) -> Result<Rotated> {
        const FIND: &str = "SELECT current, previous, answer,
                revoked_at IS NOT NULL OR expires_at <= clock_timestamp() AS over,
                clock_timestamp() < rotated_at + $2 * interval '1 millisecond' AS lately
            FROM sessions WHERE id = $1 FOR UPDATE";
        const ROTATE: &str = "UPDATE sessions SET current = $2, previous = current, answer = $3,
                rotated_at = clock_timestamp(), expires_at = $4
            WHERE id = $1";
        // Run again after it was committed, it finds the token exchanged a moment ago and gives the same answer.
        transact::run_idempotent(&self.pool, "exchange a refresh token", BEGIN, |conn, _| {
            Box::pin(async move {
                let row = sqlx::query(FIND)
                    .bind(rotation.session)
                    .bind(millis(grace))
                    .fetch_optional(&mut *conn)
                    .await?;
                let Some(row) = row else { return Ok(Rotated::Ended) };
                if row.try_get("over")? {
                    return Ok(Rotated::Ended);
                }
                if row.try_get::<&str, _>("current")? == rotation.presented {
                    sqlx::query(ROTATE)
                        .bind(rotation.session)
                        .bind(&rotation.next)
                        .bind(&rotation.answer)
                        .bind(read::datetime(rotation.expires_at))
                        .execute(conn)
                        .await?;
                    return Ok(Rotated::Fresh);
                }
                let previous: Option<String> = row.try_get("previous")?;
                let again = previous.as_ref() == Some(&rotation.presented) && row.try_get("lately")?;
                match row.try_get::<Option<Vec<u8>>, _>("answer")? {
                    Some(answer) if again => Ok(Rotated::Again(answer)),
                    _ => {
                        end(conn, rotation.session).await?;
                        Ok(Rotated::Reused)
                    }
                }
            })
        })
        .await
    }

    async fn end_session(&self, id: Uuid) -> Result<()> {
        transact::single(&self.pool, "end a session", |conn, _| Box::pin(end(conn, id))).await
    }

    async fn revoke_token(&self, jti: &str, owner: OwnerId, expires_at: Timestamp) -> Result<()> {
        const REVOKE: &str = "INSERT INTO revoked_tokens (jti, owner_id, expires_at) VALUES ($1, $2, $3)
            ON CONFLICT (jti) DO NOTHING";
        transact::single(&self.pool, "revoke a token", |conn, _| {
            Box::pin(async move {
                sqlx::query(REVOKE)
                    .bind(jti)
                    .bind(owner.as_uuid())
                    .bind(read::datetime(expires_at))
                    .execute(conn)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    async fn token_is_revoked(&self, jti: &str, session: Option<Uuid>) -> Result<bool> {
        const REVOKED: &str = "SELECT EXISTS (SELECT 1 FROM revoked_tokens WHERE jti = $1)
            OR ($2::uuid IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM sessions WHERE id = $2 AND revoked_at IS NULL))";
        if jti.contains('\0') {
            return Ok(true);
        }
        transact::single(&self.pool, "look for a revocation", |conn, _| {
            Box::pin(
                async move { Ok(sqlx::query_scalar(REVOKED).bind(jti).bind(session).fetch_one(conn).await?) },
            )
        })
        .await
    }

    async fn create_api_key(&self, key: &ApiKey, most: u32) -> Result<ApiKey> {
        const MAKE: &str = "INSERT INTO access_keys
                (id, owner_id, name, secret, buckets, prefixes, read_only, expires_at, made_by)
            SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
            WHERE $9 IS NULL
                OR EXISTS (SELECT 1 FROM access_keys WHERE id = $9 AND owner_id = $2 AND revoked_at IS NULL)
            ON CONFLICT (id) DO NOTHING RETURNING *";
        transact::run_once(&self.pool, "make an API key", BEGIN, |conn, _| {
            Box::pin(async move {
                lock_owner(conn, key.owner).await?;
                if keys_in_use(conn, key).await? >= i64::from(most) {
                    return Err(Error::TooManyKeys { max: most }.into());
                }
                let row = sqlx::query(MAKE)
                    .bind(&key.id)
                    .bind(key.owner.as_uuid())
                    .bind(&key.name)
                    .bind(&key.wrapped_secret)
                    .bind(key.buckets.as_deref())
                    .bind(key.prefixes.as_deref())
                    .bind(key.read_only)
                    .bind(key.expires_at.map(read::datetime))
                    .bind(key.made_by.as_deref())
                    .fetch_optional(conn)
                    .await?;
                match row {
                    Some(row) => api_key(&row),
                    None => Err(Error::Stale { what: "access key" }.into()),
                }
            })
        })
        .await
    }

    async fn api_key(&self, id: &str) -> Result<Option<ApiKey>> {
        // No key has U+0000 in it, and PostgreSQL would not be asked.
        if id.contains('\0') {
            return Ok(None);
        }
        transact::single(&self.pool, "read an API key", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query("SELECT * FROM access_keys WHERE id = $1")
                    .bind(id)
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map(api_key).transpose()
            })
        })
        .await
    }

    async fn api_keys(&self, owner: OwnerId, limit: usize) -> Result<Vec<ApiKey>> {
        const LIST: &str = "SELECT * FROM access_keys WHERE owner_id = $1
            ORDER BY revoked_at IS NOT NULL OR coalesce(expires_at <= now(), FALSE), created_at DESC, id LIMIT $2";
        transact::single(&self.pool, "list API keys", |conn, _| {
            Box::pin(async move {
                let found = sqlx::query(LIST).bind(owner.as_uuid()).bind(rows(limit)).fetch_all(conn).await?;
                found.iter().map(api_key).collect()
            })
        })
        .await
    }

    async fn revoke_api_key(&self, owner: OwnerId, id: &str) -> Result<bool> {
        const REVOKE: &str = "WITH RECURSIVE ended AS (
                SELECT id FROM access_keys WHERE id = $1 AND owner_id = $2
                UNION SELECT made.id FROM access_keys made JOIN ended ON made.made_by = ended.id
            )
            UPDATE access_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id IN (SELECT id FROM ended)";
        if id.contains('\0') {
            return Ok(false);
        }
        transact::run_idempotent(&self.pool, "revoke an API key", BEGIN, |conn, _| {
            Box::pin(async move {
                // No key is made by one that is being revoked.
                lock_owner(conn, owner).await?;
                let done = sqlx::query(REVOKE).bind(id).bind(owner.as_uuid()).execute(conn).await?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }

    async fn touch_api_keys(&self, ids: &[String]) -> Result<()> {
        transact::single(&self.pool, "record that keys were used", |conn, _| {
            Box::pin(async move {
                sqlx::query("UPDATE access_keys SET last_used_at = now() WHERE id = ANY($1)")
                    .bind(ids)
                    .execute(conn)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    async fn check_room(&self, owner: OwnerId, more: ByteCount) -> Result<()> {
        transact::run_idempotent(&self.pool, "look for room under the quota", BEGIN, |conn, _| {
            Box::pin(room(conn, owner, more))
        })
        .await
    }

    async fn append_audit(&self, entries: &[NewAuditEntry]) -> Result<()> {
        const APPEND: &str = "INSERT INTO audit_log (id, owner_id, actor, action, target, address, outcome)
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
            ON CONFLICT (id) DO NOTHING";
        // PostgreSQL's text has no NUL.
        let column = |field: fn(&NewAuditEntry) -> &str| {
            entries.iter().map(|entry| field(entry).replace('\0', "\u{fffd}")).collect::<Vec<_>>()
        };
        let ids: Vec<Uuid> = entries.iter().map(|entry| entry.id).collect();
        let owners: Vec<Option<Uuid>> =
            entries.iter().map(|entry| entry.owner.map(|owner| owner.as_uuid())).collect();
        let texts = [
            column(|entry| &entry.actor),
            column(|entry| &entry.action),
            column(|entry| &entry.target),
            column(|entry| &entry.address),
            column(|entry| &entry.outcome),
        ];
        let (ids, owners, texts) = (&ids, &owners, &texts);
        transact::single(&self.pool, "write the audit log", |conn, _| {
            Box::pin(async move {
                let append = sqlx::query(APPEND).bind(ids).bind(owners);
                texts.iter().fold(append, |append, text| append.bind(text)).execute(conn).await?;
                Ok(())
            })
        })
        .await
    }

    async fn audit_log(
        &self,
        owner: Option<OwnerId>,
        before: Option<AuditCursor>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>> {
        const ONE: &str = "SELECT * FROM audit_log
            WHERE owner_id = $1 AND ($2::timestamptz IS NULL OR (at, id) < ($2, $3))
            ORDER BY at DESC, id DESC LIMIT $4";
        const ALL: &str = "SELECT * FROM audit_log
            WHERE $1::uuid IS NULL AND ($2::timestamptz IS NULL OR (at, id) < ($2, $3))
            ORDER BY at DESC, id DESC LIMIT $4";
        transact::single(&self.pool, "read the audit log", |conn, _| {
            Box::pin(async move {
                let found = sqlx::query(if owner.is_some() { ONE } else { ALL })
                    .bind(owner.map(|owner| owner.as_uuid()))
                    .bind(before.map(|before| read::datetime(before.at)))
                    .bind(before.map(|before| before.id))
                    .bind(rows(limit))
                    .fetch_all(conn)
                    .await?;
                found.iter().map(audit_entry).collect()
            })
        })
        .await
    }

    async fn purge_identity(&self, audit_older: Duration, limit: usize) -> Result<usize> {
        // A token is believed for a minute more than it says.
        const SESSIONS: &str = "DELETE FROM sessions WHERE id IN
            (SELECT id FROM sessions WHERE expires_at < now() - interval '1 hour' LIMIT $1)";
        const TOKENS: &str = "DELETE FROM revoked_tokens WHERE jti IN
            (SELECT jti FROM revoked_tokens WHERE expires_at < now() - interval '1 hour' LIMIT $1)";
        const RETENTION: &str = "SELECT set_config('cyxcloud.audit_retention', 'on', TRUE)";
        const AUDIT: &str = "DELETE FROM audit_log WHERE id IN
            (SELECT id FROM audit_log WHERE at < now() - $2 * interval '1 millisecond' ORDER BY at LIMIT $1)";
        transact::run_idempotent(&self.pool, "drop what has expired", BEGIN, |conn, _| {
            Box::pin(async move {
                let mut gone = 0;
                for sql in [SESSIONS, TOKENS] {
                    gone += sqlx::query(sql).bind(rows(limit)).execute(&mut *conn).await?.rows_affected();
                }
                sqlx::query(RETENTION).execute(&mut *conn).await?;
                let audit = sqlx::query(AUDIT).bind(rows(limit)).bind(millis(audit_older));
                gone += audit.execute(conn).await?.rows_affected();
                Ok(touched(gone))
            })
        })
        .await
    }
}
