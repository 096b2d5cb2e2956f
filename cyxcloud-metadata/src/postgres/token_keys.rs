//! The keys that tokens for nodes are signed with.

use cyxcloud_core::token_keys::{KeyTimes, Rotation};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use super::read::{self, optional_time};
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::model::TokenKey;

fn token_key(row: &PgRow) -> Result<TokenKey, Failure> {
    Ok(TokenKey {
        times: KeyTimes {
            number: row.try_get("number")?,
            signs_from: read::time(row, "signs_from")?,
            accepted_until: optional_time(row, "accepted_until")?,
        },
        wrapped_seed: row.try_get("seed")?,
        created_at: read::time(row, "created_at")?,
    })
}

impl PostgresStore {
    pub(super) async fn believed_token_keys(&self, first: &[u8]) -> Result<Vec<TokenKey>> {
        const BELIEVED: &str = "SELECT * FROM token_keys
            WHERE accepted_until IS NULL OR accepted_until > clock_timestamp() ORDER BY number";
        const FIRST: &str = "INSERT INTO token_keys (number, seed, signs_from) VALUES (1, $1, 'epoch')
            ON CONFLICT (number) DO NOTHING";
        transact::single(&self.pool, "read the keys for tokens", |conn, _| {
            Box::pin(async move {
                loop {
                    let rows = sqlx::query(BELIEVED).fetch_all(&mut *conn).await?;
                    if !rows.is_empty() {
                        return rows.iter().map(token_key).collect();
                    }
                    sqlx::query(FIRST).bind(first).execute(&mut *conn).await?;
                }
            })
        })
        .await
    }

    pub(super) async fn next_token_key(&self, rotation: &Rotation, wrapped_seed: &[u8]) -> Result<TokenKey> {
        // The number is taken once; whoever planned after another key than the newest finds it, or a higher one, taken.
        const ADD: &str = "INSERT INTO token_keys (number, seed, signs_from)
            SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT 1 FROM token_keys WHERE number >= $1)
            ON CONFLICT (number) DO NOTHING RETURNING *";
        const END: &str =
            "UPDATE token_keys SET accepted_until = least(accepted_until, $2) WHERE number < $1";
        const FORGET: &str = "DELETE FROM token_keys WHERE accepted_until <= clock_timestamp()";
        // Where keys were kept before there were several.
        const FORMER: &str = "DELETE FROM constants WHERE name = 'token_key'";
        let number = rotation.after.unwrap_or_default() + 1;
        transact::run_once(&self.pool, "rotate the key for tokens", BEGIN, |conn, _| {
            Box::pin(async move {
                let added = sqlx::query(ADD)
                    .bind(number)
                    .bind(wrapped_seed)
                    .bind(read::datetime(rotation.signs_from))
                    .fetch_optional(&mut *conn)
                    .await?;
                let Some(added) = added else { return Err(Error::Stale { what: "keys for tokens" }.into()) };
                sqlx::query(END)
                    .bind(number)
                    .bind(read::datetime(rotation.previous_until))
                    .execute(&mut *conn)
                    .await?;
                for forget in [FORGET, FORMER] {
                    sqlx::query(forget).execute(&mut *conn).await?;
                }
                token_key(&added)
            })
        })
        .await
    }
}
