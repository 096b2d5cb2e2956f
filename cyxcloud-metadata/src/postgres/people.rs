//! Owners, their buckets, what they use, and the cluster's constants.

use cyxcloud_core::name::BucketName;
use cyxcloud_core::{BucketId, ByteCount, OwnerId, Timestamp};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{PgConnection, Postgres, Row};

use super::PostgresStore;
use super::read;
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::model::{Bucket, Owner, Usage};
use crate::rows;

pub(super) fn owner(row: &PgRow) -> Result<Owner, Failure> {
    Ok(Owner {
        id: read::id(row, "id")?,
        username: row.try_get("username")?,
        email: row.try_get("email")?,
        wallet_address: row.try_get("wallet_address")?,
        admin: row.try_get::<&str, _>("role")? == "admin",
        storage_quota: row.try_get::<Option<i64>, _>("storage_quota")?.map(ByteCount::from_i64),
        wrapped_secret: row.try_get("sealing_secret")?,
        created_at: read::time(row, "created_at")?,
    })
}

/// A statement with a new owner as its $1 to $7: id, names, wallet, role, quota, secret.
pub(super) fn with_owner<'q>(
    sql: &'static str,
    new: &'q Owner,
) -> sqlx::query::Query<'q, Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(new.id.as_uuid())
        .bind(new.username.as_deref())
        .bind(new.email.as_deref())
        .bind(new.wallet_address.as_deref())
        .bind(if new.admin { "admin" } else { "user" })
        .bind(new.storage_quota.map(|quota| quota.as_i64()))
        .bind(&new.wrapped_secret)
}

fn bucket(row: &PgRow) -> Result<Bucket, Failure> {
    Ok(Bucket {
        id: read::id(row, "id")?,
        name: row.try_get::<&str, _>("name")?.parse().map_err(|error| rows::corrupt("bucket name", error))?,
        owner: read::id(row, "owner_id")?,
        profile: row.try_get("profile")?,
        created_at: read::time(row, "created_at")?,
    })
}

fn usage(row: &PgRow) -> Result<Usage, Failure> {
    let objects = row.try_get::<i64, _>("objects")?;
    Ok(Usage { bytes: read::bytes(row, "bytes")?, objects: u64::try_from(objects).unwrap_or(0) })
}

fn usage_or_none(row: Option<PgRow>) -> Result<Usage, Failure> {
    row.as_ref().map_or(Ok(Usage::default()), usage)
}

/// One at a time makes what is counted of an owner's, so that the count holds.
pub(super) async fn lock_owner(conn: &mut PgConnection, owner: OwnerId) -> Result<(), Failure> {
    const LOCK: &str = "SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE";
    sqlx::query(LOCK).bind(owner.as_uuid()).execute(conn).await?;
    Ok(())
}

impl PostgresStore {
    pub(super) async fn database_time(&self) -> Result<Timestamp> {
        transact::single(&self.pool, "read the database's clock", |conn, _| {
            Box::pin(async move {
                Ok(read::timestamp(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(conn).await?))
            })
        })
        .await
    }

    pub(super) async fn constant(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        const KEEP: &str = "WITH kept AS (
                INSERT INTO constants (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING value
            )
            SELECT value FROM kept UNION ALL SELECT value FROM constants WHERE name = $1 LIMIT 1";
        transact::single(&self.pool, "keep a constant", |conn, _| {
            Box::pin(async move {
                loop {
                    // Nothing comes back if another was kept after our statement began; then it is there now.
                    let kept =
                        sqlx::query_scalar(KEEP).bind(name).bind(value).fetch_optional(&mut *conn).await?;
                    if let Some(kept) = kept {
                        return Ok(kept);
                    }
                }
            })
        })
        .await
    }

    pub(super) async fn make_owner(&self, new: &Owner) -> Result<Owner> {
        const MAKE: &str = "WITH made AS (
                INSERT INTO users (id, username, email, wallet_address, role, storage_quota, sealing_secret)
                VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING RETURNING *
            )
            SELECT * FROM made UNION ALL SELECT * FROM users WHERE id = $1 LIMIT 1";
        transact::single(&self.pool, "make the owner", |conn, _| {
            Box::pin(async move {
                loop {
                    let row = with_owner(MAKE, new).fetch_optional(&mut *conn).await?;
                    if let Some(row) = row {
                        return owner(&row);
                    }
                }
            })
        })
        .await
    }

    pub(super) async fn one_owner(&self, id: OwnerId) -> Result<Option<Owner>> {
        transact::single(&self.pool, "read the owner", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query("SELECT * FROM users WHERE id = $1")
                    .bind(id.as_uuid())
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map(owner).transpose()
            })
        })
        .await
    }

    pub(super) async fn usage_of_owner(&self, id: OwnerId) -> Result<Usage> {
        const USAGE: &str = "SELECT u.storage_used + d.bytes AS bytes, u.object_count + d.objects AS objects
            FROM users u, (
                SELECT coalesce(sum(bytes), 0)::bigint AS bytes, coalesce(sum(objects), 0)::bigint AS objects
                FROM usage_deltas WHERE owner_id = $1
            ) d WHERE u.id = $1";
        transact::single(&self.pool, "read the owner's usage", |conn, _| {
            Box::pin(async move {
                usage_or_none(sqlx::query(USAGE).bind(id.as_uuid()).fetch_optional(conn).await?)
            })
        })
        .await
    }

    pub(super) async fn make_bucket(&self, new: &Bucket, most: u32) -> Result<Bucket> {
        const COUNT: &str = "SELECT count(*) FROM buckets WHERE owner_id = $1";
        const HOLDER: &str = "SELECT owner_id FROM buckets WHERE name = $1";
        const MAKE: &str = "WITH made AS (
                INSERT INTO buckets (id, name, owner_id, profile) VALUES ($1, $2, $3, $4)
                ON CONFLICT (name) DO NOTHING RETURNING *
            )
            SELECT *, TRUE AS made FROM made UNION ALL SELECT *, FALSE FROM buckets WHERE name = $2 LIMIT 1";
        // Run again after a lost answer it says that the owner has the bucket already.
        transact::run_idempotent(&self.pool, "make the bucket", BEGIN, |conn, _| {
            Box::pin(async move {
                lock_owner(conn, new.owner).await?;
                let count: i64 =
                    sqlx::query_scalar(COUNT).bind(new.owner.as_uuid()).fetch_one(&mut *conn).await?;
                if count >= i64::from(most) {
                    let holder =
                        sqlx::query(HOLDER).bind(new.name.as_str()).fetch_optional(&mut *conn).await?;
                    return Err(match holder {
                        Some(row) => Error::BucketExists { owner: read::id(&row, "owner_id")? },
                        None => Error::TooManyBuckets { max: most },
                    }
                    .into());
                }
                loop {
                    let row = sqlx::query(MAKE)
                        .bind(new.id.as_uuid())
                        .bind(new.name.as_str())
                        .bind(new.owner.as_uuid())
                        .bind(&new.profile)
                        .fetch_optional(&mut *conn)
                        .await?;
                    let Some(row) = row else { continue };
                    let found = bucket(&row)?;
                    return match row.try_get("made")? {
                        true => Ok(found),
                        false => Err(Error::BucketExists { owner: found.owner }.into()),
                    };
                }
            })
        })
        .await
    }

    pub(super) async fn one_bucket(&self, name: &BucketName) -> Result<Option<Bucket>> {
        transact::single(&self.pool, "read the bucket", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query("SELECT * FROM buckets WHERE name = $1")
                    .bind(name.as_str())
                    .fetch_optional(conn)
                    .await?;
                row.as_ref().map(bucket).transpose()
            })
        })
        .await
    }

    pub(super) async fn buckets_of(&self, owner: OwnerId) -> Result<Vec<Bucket>> {
        transact::single(&self.pool, "list buckets", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query("SELECT * FROM buckets WHERE owner_id = $1 ORDER BY name")
                    .bind(owner.as_uuid())
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(bucket).collect()
            })
        })
        .await
    }

    pub(super) async fn buckets_and_usage_of(&self, owner: OwnerId) -> Result<Vec<(Bucket, Usage)>> {
        const LIST: &str = "SELECT b.id, b.name, b.owner_id, b.profile, b.created_at,
                b.storage_used + d.bytes AS bytes, b.object_count + d.objects AS objects
            FROM buckets b CROSS JOIN LATERAL (
                SELECT coalesce(sum(bytes), 0)::bigint AS bytes, coalesce(sum(objects), 0)::bigint AS objects
                FROM usage_deltas WHERE bucket_id = b.id
            ) d WHERE b.owner_id = $1 ORDER BY b.name";
        transact::single(&self.pool, "list buckets and their usage", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(LIST).bind(owner.as_uuid()).fetch_all(conn).await?;
                rows.iter().map(|row| Ok((bucket(row)?, usage(row)?))).collect()
            })
        })
        .await
    }

    /// Holding the bucket alone waits for commits under way and keeps new ones out.
    pub(super) async fn drop_bucket(&self, id: BucketId) -> Result<()> {
        const LOCK: &str = "SELECT id FROM buckets WHERE id = $1 FOR UPDATE";
        const IN_USE: &str = "SELECT EXISTS (SELECT 1 FROM files WHERE bucket_id = $1)
            OR EXISTS (SELECT 1 FROM multipart_uploads WHERE bucket_id = $1 AND status = 'open')";
        transact::run_once(&self.pool, "delete the bucket", BEGIN, |conn, _| {
            Box::pin(async move {
                let found = sqlx::query(LOCK).bind(id.as_uuid()).fetch_optional(&mut *conn).await?;
                if found.is_none() {
                    return Err(Error::NoSuchBucket.into());
                }
                if sqlx::query_scalar(IN_USE).bind(id.as_uuid()).fetch_one(&mut *conn).await? {
                    return Err(Error::BucketNotEmpty.into());
                }
                sqlx::query("DELETE FROM multipart_uploads WHERE bucket_id = $1")
                    .bind(id.as_uuid())
                    .execute(&mut *conn)
                    .await?;
                sqlx::query("DELETE FROM buckets WHERE id = $1").bind(id.as_uuid()).execute(conn).await?;
                Ok(())
            })
        })
        .await
    }

    /// For calls that would otherwise say that there is nothing.
    pub(super) async fn require_bucket(conn: &mut PgConnection, id: BucketId) -> Result<(), Failure> {
        let found =
            sqlx::query("SELECT 1 FROM buckets WHERE id = $1").bind(id.as_uuid()).fetch_optional(conn);
        found.await?.map(|_| ()).ok_or_else(|| Error::NoSuchBucket.into())
    }

    pub(super) async fn usage_of_bucket(&self, id: BucketId) -> Result<Usage> {
        const USAGE: &str = "SELECT b.storage_used + d.bytes AS bytes, b.object_count + d.objects AS objects
            FROM buckets b, (
                SELECT coalesce(sum(bytes), 0)::bigint AS bytes, coalesce(sum(objects), 0)::bigint AS objects
                FROM usage_deltas WHERE bucket_id = $1
            ) d WHERE b.id = $1";
        transact::single(&self.pool, "read the bucket's usage", |conn, _| {
            Box::pin(async move {
                usage_or_none(sqlx::query(USAGE).bind(id.as_uuid()).fetch_optional(conn).await?)
            })
        })
        .await
    }
}
