//! Intents of uploads under way, and what is folded and collected in the background.

use std::time::Duration;

use cyxcloud_core::{ByteCount, UploadId};
use sqlx::{AssertSqlSafe, PgConnection};

use super::PostgresStore;
use super::identity::room;
use super::read::{limit as rows, millis};
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::model::NewUpload;

const DOING: &str = "begin the upload";
const INTEND: &str = "WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
    INSERT INTO upload_intents (id, owner_id, bucket_id, key, lease_until, reserved)
    SELECT $1, $2, b.id, $4, now() + $5 * interval '1 millisecond', $6 FROM buckets b, relaxed WHERE b.id = $3";

async fn intend(conn: &mut PgConnection, upload: &NewUpload, sql: &str) -> Result<u64, Failure> {
    let sql = format!("{sql} ON CONFLICT (id) DO NOTHING");
    let done = sqlx::query(AssertSqlSafe(sql))
        .bind(upload.id.as_uuid())
        .bind(upload.owner.as_uuid())
        .bind(upload.bucket.as_uuid())
        .bind(upload.key.as_bytes())
        .bind(millis(upload.lease))
        .bind(upload.reserve.as_i64())
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// What replacing the current object gives back.
async fn freed(conn: &mut PgConnection, upload: &NewUpload) -> Result<ByteCount, Failure> {
    const SIZE: &str = "SELECT size_bytes FROM files
        WHERE bucket_id = $1 AND key = $2 AND is_latest AND NOT is_delete_marker";
    let size: Option<i64> = sqlx::query_scalar(SIZE)
        .bind(upload.bucket.as_uuid())
        .bind(upload.key.as_bytes())
        .fetch_optional(conn)
        .await?;
    Ok(size.map(ByteCount::from_i64).unwrap_or_default())
}

impl PostgresStore {
    /// Does not wait until the intent is on disk: a server that crashes before forgets it, and then the commit that needs
    /// it is refused, as if its lease had run out. Nothing is ever collected because an intent was never there.
    pub(super) async fn intend(&self, upload: &NewUpload) -> Result<()> {
        const NO_QUOTA: &str = "SELECT NOT EXISTS
            (SELECT 1 FROM users WHERE id = $2 AND storage_quota IS NOT NULL AND $6 > 0)";
        let sql = format!("{INTEND} AND ({NO_QUOTA})");
        let sql = sql.as_str();
        let done = transact::single(&self.pool, DOING, |conn, _| Box::pin(intend(conn, upload, sql))).await?;
        if done > 0 {
            return Ok(());
        }
        // There is a quota, or no bucket, or it was begun before.
        transact::run_idempotent(&self.pool, DOING, BEGIN, |conn, _| {
            Box::pin(async move {
                Self::require_bucket(conn, upload.bucket).await?;
                let freed = freed(conn, upload).await?;
                room(conn, upload.owner, upload.reserve.saturating_sub(freed)).await?;
                intend(conn, upload, INTEND).await?;
                Ok(())
            })
        })
        .await
    }

    pub(super) async fn renew(&self, id: UploadId, lease: Duration) -> Result<()> {
        const RENEW: &str =
            "UPDATE upload_intents SET lease_until = now() + $2 * interval '1 millisecond' WHERE id = $1";
        transact::single(&self.pool, "renew the upload", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(RENEW).bind(id.as_uuid()).bind(millis(lease)).execute(conn).await?;
                if done.rows_affected() == 0 {
                    return Err(Error::UploadGone.into());
                }
                Ok(())
            })
        })
        .await
    }

    pub(super) async fn cancel(&self, id: UploadId) -> Result<()> {
        transact::single(&self.pool, "cancel the upload", |conn, _| {
            Box::pin(async move {
                sqlx::query("DELETE FROM upload_intents WHERE id = $1")
                    .bind(id.as_uuid())
                    .execute(conn)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// What another folds at the same time is left to it.
    pub(super) async fn fold(&self, limit: usize) -> Result<usize> {
        transact::run_idempotent(&self.pool, "fold usage", BEGIN, |conn, _| {
            Box::pin(async move {
                let folded: i64 = sqlx::query_scalar(include_str!("sql/fold_usage.sql"))
                    .bind(rows(limit))
                    .fetch_one(conn)
                    .await?;
                Ok(usize::try_from(folded).unwrap_or(0))
            })
        })
        .await
    }

    /// An intent that a commit holds is not collected.
    pub(super) async fn expire(&self, limit: usize) -> Result<usize> {
        const EXPIRE: &str = "DELETE FROM upload_intents WHERE id IN (
                SELECT id FROM upload_intents WHERE lease_until <= now()
                ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED
            )";
        transact::single(&self.pool, "collect uploads that were given up", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(EXPIRE).bind(rows(limit)).execute(conn).await?;
                Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
            })
        })
        .await
    }
}
