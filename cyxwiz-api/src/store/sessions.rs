//! Sessions: a log-in and the refresh tokens that follow from it, one after the other.
//!
//! A token is used once. For a minute it gets the same answer again, because two programs may share it or an answer may
//! be lost; after that somebody else has it, and the whole session ends.

use chrono::{DateTime, Utc};
use cyxcloud_core::OwnerId;
use cyxcloud_core::claims::{REFRESH_GRACE, TokenKind};
use sqlx::Row;
use uuid::Uuid;

use super::{Result, Store, User, failed};

/// The ids of the tokens that the next answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextIds {
    pub(crate) access: Uuid,
    pub(crate) refresh: Uuid,
}

/// What became of a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refreshed {
    /// This follows, issued then: the same for a token that was used a moment ago.
    Next { ids: NextIds, at: DateTime<Utc> },
    /// Used long ago: the session has ended now.
    Reused,
    /// Unknown, or its session ended before.
    Over,
}

/// Waits for a change of the password that is under way, and keeps the next one waiting: either this is not there to be ended,
/// or it is ended.
const BEGIN: &str = "INSERT INTO sessions (id, user_id, created_at)
    SELECT $1, id, $3 FROM users WHERE id = $2 AND password_hash = $4 AND status = 'active' FOR SHARE";
const ADD: &str = "INSERT INTO refresh_tokens (id, session_id, expires_at) VALUES ($1, $2, $3)";
const LOOK: &str = "SELECT t.session_id, t.used_at, t.next_access, t.next_refresh, s.revoked_at
    FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id
    WHERE t.id = $1 AND s.user_id = $2 FOR UPDATE";
const USE: &str = "UPDATE refresh_tokens SET used_at = $2, next_access = $3, next_refresh = $4 WHERE id = $1";
const END: &str = "UPDATE sessions SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL";

impl Store {
    /// Begins a session with its first refresh token. False if the account is no longer what the log-in was checked against: it has
    /// another password by now, or is suspended.
    pub(crate) async fn begin_session(&self, user: &User, refresh: Uuid, now: DateTime<Utc>) -> Result<bool> {
        const DOING: &str = "begin a session";
        let mut tx = self.pool.begin().await.map_err(failed(DOING))?;
        let session = Uuid::new_v4();
        let begin =
            sqlx::query(BEGIN).bind(session).bind(user.id.as_uuid()).bind(now).bind(&user.password_hash);
        if begin.execute(&mut *tx).await.map_err(failed(DOING))?.rows_affected() == 0 {
            return Ok(false);
        }
        let add = sqlx::query(ADD).bind(refresh).bind(session).bind(now + TokenKind::Refresh.lifetime());
        add.execute(&mut *tx).await.map_err(failed(DOING))?;
        tx.commit().await.map_err(failed(DOING))?;
        Ok(true)
    }

    /// Uses a refresh token of this user; `fresh` are the ids to take if it has not been used.
    pub(crate) async fn refresh(
        &self,
        token: Uuid,
        user: OwnerId,
        fresh: NextIds,
        now: DateTime<Utc>,
    ) -> Result<Refreshed> {
        const DOING: &str = "refresh a session";
        let mut tx = self.pool.begin().await.map_err(failed(DOING))?;
        let look = sqlx::query(LOOK).bind(token).bind(user.as_uuid());
        let Some(row) = look.fetch_optional(&mut *tx).await.map_err(failed(DOING))? else {
            return Ok(Refreshed::Over);
        };
        let session: Uuid = row.try_get("session_id").map_err(failed(DOING))?;
        if row.try_get::<Option<DateTime<Utc>>, _>("revoked_at").map_err(failed(DOING))?.is_some() {
            return Ok(Refreshed::Over);
        }
        if let Some(at) = row.try_get::<Option<DateTime<Utc>>, _>("used_at").map_err(failed(DOING))? {
            if now < at + REFRESH_GRACE {
                let access = row.try_get("next_access").map_err(failed(DOING))?;
                let refresh = row.try_get("next_refresh").map_err(failed(DOING))?;
                return Ok(Refreshed::Next { ids: NextIds { access, refresh }, at });
            }
            sqlx::query(END).bind(session).execute(&mut *tx).await.map_err(failed(DOING))?;
            tx.commit().await.map_err(failed(DOING))?;
            return Ok(Refreshed::Reused);
        }
        let use_up = sqlx::query(USE).bind(token).bind(now).bind(fresh.access).bind(fresh.refresh);
        use_up.execute(&mut *tx).await.map_err(failed(DOING))?;
        let expires_at = now + TokenKind::Refresh.lifetime();
        let add = sqlx::query(ADD).bind(fresh.refresh).bind(session).bind(expires_at);
        add.execute(&mut *tx).await.map_err(failed(DOING))?;
        tx.commit().await.map_err(failed(DOING))?;
        Ok(Refreshed::Next { ids: fresh, at: now })
    }

    /// Ends the session that a refresh token of this user belongs to, if there is one.
    pub(crate) async fn end_session(&self, token: Uuid, user: OwnerId) -> Result<()> {
        const SESSION: &str = "UPDATE sessions SET revoked_at = now()
            WHERE user_id = $2 AND revoked_at IS NULL AND id = (SELECT session_id FROM refresh_tokens WHERE id = $1)";
        let query = sqlx::query(SESSION).bind(token).bind(user.as_uuid());
        query.execute(&self.pool).await.map(|_| ()).map_err(failed("end a session"))
    }
}
