//! Intents of uploads under way, and what is folded and collected in the background.

use std::collections::HashSet;
use std::time::Duration;

use cyxcloud_core::{BucketId, ByteCount, UploadId};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::gather::Gather;
use super::identity::{room, taken};
use super::pool::Connections;
use super::read::{self, limit as rows, millis};
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::model::NewUpload;
use crate::room_for;

const BEGINNING: &str = "begin the upload";

/// Intents of uploads, gathered.
pub(super) type Intents = Gather<NewUpload, Result<()>>;

/// Gathers intents to this database.
pub(super) fn gather(pool: &Connections) -> Intents {
    let pool = pool.clone();
    Gather::new(
        |_, _| true,
        move |batch: Vec<NewUpload>| {
            let pool = pool.clone();
            async move { intend_all(&pool, &batch).await }
        },
    )
}

/// Records intents: those that no quota stands in the way of in one statement, and others by themselves.
///
/// Does not wait until they are on disk: a server that crashes before forgets them, and then the commits that need
/// them are refused, as if their leases had run out. Nothing is ever collected because an intent was never there.
async fn intend_all(pool: &Connections, uploads: &[NewUpload]) -> Vec<Result<()>> {
    const NO_QUOTA: &str = "NOT EXISTS (SELECT FROM users u
        WHERE u.id = a.owner_id AND u.storage_quota IS NOT NULL AND a.reserved > 0 OFFSET 0)";
    let without_quota =
        transact::single(pool, BEGINNING, |conn, _| Box::pin(intend(conn, uploads, NO_QUOTA)));
    let begun = match without_quota.await {
        Ok(begun) => begun,
        Err(error) if uploads.len() == 1 => return vec![Err(error)],
        Err(error) => {
            tracing::debug!(%error, count = uploads.len(), "intents go one by one");
            HashSet::new()
        }
    };
    let rest = uploads.iter().map(async |upload| match begun.contains(&upload.id.as_uuid()) {
        true => Ok(()),
        false => intend_alone(pool, upload).await,
    });
    futures::future::join_all(rest).await
}

/// Where there may be a quota, or no bucket.
async fn intend_alone(pool: &Connections, upload: &NewUpload) -> Result<()> {
    transact::run_idempotent(pool, BEGINNING, BEGIN, |conn, _| {
        Box::pin(async move {
            PostgresStore::require_bucket(conn, upload.bucket).await?;
            let freed = freed(conn, upload.bucket, upload.key.as_bytes()).await?;
            room(conn, upload.owner, upload.reserve.saturating_sub(freed)).await?;
            intend(conn, std::slice::from_ref(upload), "TRUE").await?;
            Ok(())
        })
    })
    .await
}

/// Records those whose bucket is there and that `admit` (of the alias `a`) lets in, and answers which these are.
async fn intend(
    conn: &mut PgConnection,
    uploads: &[NewUpload],
    admit: &'static str,
) -> Result<HashSet<Uuid>, Failure> {
    let sql = format!(
        "WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
        asked AS MATERIALIZED (
            SELECT a.* FROM unnest((SELECT $1::uuid[]), $2::uuid[], $3::uuid[], $4::bytea[], $5::bigint[], $6::bigint[])
                a (id, owner_id, bucket_id, key, lease, reserved)
            CROSS JOIN LATERAL (SELECT FROM buckets WHERE id = a.bucket_id OFFSET 0) b
            WHERE {admit}),
        made AS (
            INSERT INTO upload_intents (id, owner_id, bucket_id, key, lease_until, reserved)
            SELECT id, owner_id, bucket_id, key, now() + lease * interval '1 millisecond', reserved
            FROM relaxed, asked
            ON CONFLICT (id) DO NOTHING)
        SELECT id FROM asked"
    );
    let begun: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(uploads.iter().map(|upload| upload.id.as_uuid()).collect::<Vec<_>>())
        .bind(uploads.iter().map(|upload| upload.owner.as_uuid()).collect::<Vec<_>>())
        .bind(uploads.iter().map(|upload| upload.bucket.as_uuid()).collect::<Vec<_>>())
        .bind(uploads.iter().map(|upload| upload.key.as_bytes()).collect::<Vec<_>>())
        .bind(uploads.iter().map(|upload| millis(upload.lease)).collect::<Vec<_>>())
        .bind(uploads.iter().map(|upload| upload.reserve.as_i64()).collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    Ok(begun.into_iter().collect())
}

/// What replacing the current object gives back.
async fn freed(conn: &mut PgConnection, bucket: BucketId, key: &[u8]) -> Result<ByteCount, Failure> {
    const SIZE: &str = "SELECT size_bytes FROM files
        WHERE bucket_id = $1 AND key = $2 AND is_latest AND NOT is_delete_marker";
    let size: Option<i64> =
        sqlx::query_scalar(SIZE).bind(bucket.as_uuid()).bind(key).fetch_optional(conn).await?;
    Ok(size.map(ByteCount::from_i64).unwrap_or_default())
}

impl PostgresStore {
    pub(super) async fn intend(&self, upload: &NewUpload) -> Result<()> {
        self.intents.answer(BEGINNING, upload.clone()).await
    }

    /// Run again after a lost answer it may reserve more than it was asked for, until the upload ends.
    pub(super) async fn reserve(&self, id: UploadId, more: ByteCount) -> Result<Option<ByteCount>> {
        const FIND: &str = "SELECT owner_id, bucket_id, key FROM upload_intents WHERE id = $1";
        const RESERVE: &str =
            "UPDATE upload_intents SET reserved = reserved + $2 WHERE id = $1 RETURNING reserved";
        transact::run_idempotent(&self.pool, "reserve room for the upload", BEGIN, |conn, _| {
            Box::pin(async move {
                let found = sqlx::query(FIND).bind(id.as_uuid()).fetch_optional(&mut *conn).await?;
                let found = found.ok_or(Error::UploadGone)?;
                let Some((quota, used)) = taken(conn, read::id(&found, "owner_id")?).await? else {
                    return Ok(None);
                };
                let freed = freed(conn, read::id(&found, "bucket_id")?, found.try_get("key")?).await?;
                let granted = room_for(quota, used.saturating_sub(freed), more)?;
                let reserved: Option<i64> = sqlx::query_scalar(RESERVE)
                    .bind(id.as_uuid())
                    .bind(granted.as_i64())
                    .fetch_optional(conn)
                    .await?;
                Ok(Some(ByteCount::from_i64(reserved.ok_or(Error::UploadGone)?)))
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
