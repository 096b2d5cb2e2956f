//! Challenges for wallets, and the wallets that answered them.

use chrono::{DateTime, Utc};
use cyxcloud_core::OwnerId;
use sqlx::Row;

use super::users::{Taken, User, written};
use super::{Result, Store, failed};

/// What a wallet is to sign.
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    pub(crate) nonce: String,
    pub(crate) wallet_address: String,
    pub(crate) text: String,
    pub(crate) expires_at: DateTime<Utc>,
}

impl Store {
    /// Keeps a challenge, the only one of its account.
    pub(crate) async fn keep_challenge(&self, user: OwnerId, challenge: &Challenge) -> Result<()> {
        const KEEP: &str = "INSERT INTO wallet_challenges (user_id, nonce, wallet_address, text, expires_at)
            VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (user_id) DO UPDATE SET nonce = excluded.nonce, wallet_address = excluded.wallet_address,
                text = excluded.text, expires_at = excluded.expires_at";
        let query = sqlx::query(KEEP)
            .bind(user.as_uuid())
            .bind(&challenge.nonce)
            .bind(&challenge.wallet_address)
            .bind(&challenge.text)
            .bind(challenge.expires_at);
        query.execute(&self.pool).await.map(|_| ()).map_err(failed("keep a challenge"))
    }

    /// Takes the challenge of this nonce away from the account: nobody gets it twice.
    pub(crate) async fn take_challenge(&self, user: OwnerId, nonce: &str) -> Result<Option<Challenge>> {
        const DOING: &str = "take a challenge";
        const TAKE: &str = "DELETE FROM wallet_challenges WHERE user_id = $1 AND nonce = $2 RETURNING *";
        let query = sqlx::query(TAKE).bind(user.as_uuid()).bind(nonce);
        let Some(row) = query.fetch_optional(&self.pool).await.map_err(failed(DOING))? else {
            return Ok(None);
        };
        let read = || {
            Ok(Challenge {
                nonce: row.try_get("nonce")?,
                wallet_address: row.try_get("wallet_address")?,
                text: row.try_get("text")?,
                expires_at: row.try_get("expires_at")?,
            })
        };
        read().map(Some).map_err(failed(DOING))
    }

    /// Notes a proven wallet, in place of the one before.
    pub(crate) async fn set_wallet(
        &self,
        user: OwnerId,
        address: &str,
        now: DateTime<Utc>,
    ) -> Result<std::result::Result<User, Taken>> {
        const SET: &str = "UPDATE users SET wallet_address = $2, wallet_verified_at = $3, updated_at = now()
            WHERE id = $1 RETURNING *";
        let query = sqlx::query(SET).bind(user.as_uuid()).bind(address).bind(now);
        written(query.fetch_one(&self.pool).await, "note a wallet")
    }
}
