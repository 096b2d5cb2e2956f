//! Accounts.

use chrono::{DateTime, Utc};
use cyxcloud_core::{ByteCount, OwnerId};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{Result, Store, StoreError, failed, violated};

/// Whether an account may do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Active,
    Suspended,
}

/// An account.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: OwnerId,
    pub(crate) email: String,
    pub(crate) username: Option<String>,
    /// A PHC string.
    pub(crate) password_hash: String,
    pub(crate) wallet_address: Option<String>,
    pub(crate) wallet_verified_at: Option<DateTime<Utc>>,
    pub(crate) storage_quota: Option<ByteCount>,
    pub(crate) status: Status,
    pub(crate) created_at: DateTime<Utc>,
    /// Access tokens issued before hold no more.
    pub(crate) tokens_after: Option<DateTime<Utc>>,
}

impl User {
    /// Whether an access token that was issued then, in seconds since 1970, holds no more.
    pub(crate) fn has_ended(&self, issued_at: u64) -> bool {
        let ends =
            |after: DateTime<Utc>| u64::try_from(after.timestamp()).is_ok_and(|after| issued_at < after);
        self.tokens_after.is_some_and(ends)
    }
}

/// An account to be made.
#[derive(Debug)]
pub(crate) struct NewUser<'a> {
    pub(crate) id: OwnerId,
    pub(crate) email: &'a str,
    pub(crate) username: Option<&'a str>,
    pub(crate) password_hash: &'a str,
    pub(crate) storage_quota: Option<ByteCount>,
}

/// What changes in an account; what is absent stays.
#[derive(Debug, Default)]
pub(crate) struct Change<'a> {
    pub(crate) email: Option<&'a str>,
    pub(crate) username: Option<&'a str>,
    pub(crate) password_hash: Option<&'a str>,
    /// What the password given for it was checked against, where one was needed: must be the account's still.
    pub(crate) checked: Option<&'a str>,
}

/// Why an account was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unchanged {
    /// Somebody else has that.
    Taken(Taken),
    /// It has another password by now.
    OtherPassword,
}

/// What somebody else has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Email,
    Username,
    Wallet,
}

impl Taken {
    /// Which of them an error is about, if any.
    pub(super) fn of(error: &sqlx::Error) -> Option<Self> {
        match violated(error)? {
            "users_email_key" => Some(Self::Email),
            "users_username_key" => Some(Self::Username),
            "users_wallet_address_key" => Some(Self::Wallet),
            _ => None,
        }
    }
}

fn user(row: &PgRow) -> std::result::Result<User, sqlx::Error> {
    Ok(User {
        id: OwnerId::from_uuid(row.try_get("id")?),
        email: row.try_get("email")?,
        username: row.try_get("username")?,
        password_hash: row.try_get("password_hash")?,
        wallet_address: row.try_get("wallet_address")?,
        wallet_verified_at: row.try_get("wallet_verified_at")?,
        storage_quota: row.try_get::<Option<i64>, _>("storage_quota")?.map(ByteCount::from_i64),
        // Whatever an operator may have written there: only one word lets in.
        status: if row.try_get::<&str, _>("status")? == "active" {
            Status::Active
        } else {
            Status::Suspended
        },
        created_at: row.try_get("created_at")?,
        tokens_after: row.try_get("tokens_after")?,
    })
}

/// Tokens say the second of their issue: those of this one are before.
fn next_second(now: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(now.timestamp() + 1, 0).unwrap_or(now)
}

fn found(row: Option<PgRow>) -> Result<Option<User>> {
    row.as_ref().map(user).transpose().map_err(failed("read an account"))
}

/// What was written, or what stood in its way.
pub(super) fn written(
    outcome: std::result::Result<PgRow, sqlx::Error>,
    doing: &'static str,
) -> Result<std::result::Result<User, Taken>> {
    match outcome {
        Ok(row) => user(&row).map(Ok).map_err(failed(doing)),
        Err(source) => match Taken::of(&source) {
            Some(taken) => Ok(Err(taken)),
            None => Err(StoreError { doing, source }),
        },
    }
}

impl Store {
    pub(crate) async fn user(&self, id: OwnerId) -> Result<Option<User>> {
        let query = sqlx::query("SELECT * FROM users WHERE id = $1").bind(id.as_uuid());
        found(query.fetch_optional(&self.pool).await.map_err(failed("look for an account"))?)
    }

    pub(crate) async fn user_by_email(&self, email: &str) -> Result<Option<User>> {
        let query = sqlx::query("SELECT * FROM users WHERE email = $1").bind(email);
        found(query.fetch_optional(&self.pool).await.map_err(failed("look for an account"))?)
    }

    pub(crate) async fn make_user(&self, new: &NewUser<'_>) -> Result<std::result::Result<User, Taken>> {
        const MAKE: &str = "INSERT INTO users (id, email, username, password_hash, storage_quota)
            VALUES ($1, $2, $3, $4, $5) RETURNING *";
        let query = sqlx::query(MAKE)
            .bind(new.id.as_uuid())
            .bind(new.email)
            .bind(new.username)
            .bind(new.password_hash)
            .bind(new.storage_quota.map(|quota| quota.as_i64()));
        written(query.fetch_one(&self.pool).await, "make an account")
    }

    /// Changes an account. A new password ends all its sessions and access tokens, in the same transaction.
    pub(crate) async fn change_user(
        &self,
        id: OwnerId,
        change: &Change<'_>,
    ) -> Result<std::result::Result<User, Unchanged>> {
        const DOING: &str = "change an account";
        const CHANGE: &str =
            "UPDATE users SET email = coalesce($2, email), username = coalesce($3, username),
                password_hash = coalesce($4, password_hash), updated_at = now()
            WHERE id = $1 AND ($5::text IS NULL OR password_hash = $5) RETURNING *";
        const END: &str = "UPDATE sessions SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL";
        const END_TOKENS: &str = "UPDATE users SET tokens_after = greatest(tokens_after, $2) WHERE id = $1";
        let mut tx = self.pool.begin().await.map_err(failed(DOING))?;
        let query = sqlx::query(CHANGE)
            .bind(id.as_uuid())
            .bind(change.email)
            .bind(change.username)
            .bind(change.password_hash)
            .bind(change.checked);
        let user = match query.fetch_optional(&mut *tx).await.transpose() {
            None => return Ok(Err(Unchanged::OtherPassword)),
            Some(outcome) => match written(outcome, DOING)? {
                Ok(user) => user,
                Err(taken) => return Ok(Err(Unchanged::Taken(taken))),
            },
        };
        if change.password_hash.is_some() {
            sqlx::query(END).bind(id.as_uuid()).execute(&mut *tx).await.map_err(failed(DOING))?;
            // By the clock that tokens are issued by, and only now: whoever was faster than this has let go of the account's row.
            let end = sqlx::query(END_TOKENS).bind(id.as_uuid()).bind(next_second(Utc::now()));
            end.execute(&mut *tx).await.map_err(failed(DOING))?;
        }
        tx.commit().await.map_err(failed(DOING))?;
        Ok(Ok(user))
    }
}
