//! Intents of uploads under way, and what is folded and collected in the background.

use std::time::Duration;

use cyxcloud_core::UploadId;

use super::PostgresStore;
use super::read::{limit as rows, millis};
use super::transact::{self, BEGIN};
use crate::error::{Error, Result};
use crate::model::NewUpload;

impl PostgresStore {
    /// Does not wait until the intent is on disk: a server that crashes before forgets it, and then the commit that needs
    /// it is refused, as if its lease had run out. Nothing is ever collected because an intent was never there.
    pub(super) async fn intend(&self, upload: &NewUpload) -> Result<()> {
        const BEGIN_UPLOAD: &str = "WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
            INSERT INTO upload_intents (id, owner_id, bucket_id, key, lease_until)
            SELECT $1, $2, b.id, $4, now() + $5 * interval '1 millisecond' FROM buckets b, relaxed WHERE b.id = $3
            ON CONFLICT (id) DO NOTHING";
        transact::single(&self.pool, "begin the upload", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(BEGIN_UPLOAD)
                    .bind(upload.id.as_uuid())
                    .bind(upload.owner.as_uuid())
                    .bind(upload.bucket.as_uuid())
                    .bind(upload.key.as_bytes())
                    .bind(millis(upload.lease))
                    .execute(&mut *conn)
                    .await?;
                match done.rows_affected() {
                    0 => Self::require_bucket(conn, upload.bucket).await,
                    _ => Ok(()),
                }
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
