//! Makes objects visible.
//!
//! Every mutation of a key locks its row in `keys` first; what it then reads is a new snapshot, and so under the lock.
//! The bucket is held by the foreign keys of the rows that are made: nobody deletes it meanwhile.
//! Small commits that arrive together are one transaction ([`Gather`]). Where one of them is refused, or what it needs is
//! locked by somebody else, each is committed by itself.
//!
//! Messages to the server and back, per transaction: 4 for bytes that live in the row (begin and lock; look; write;
//! commit), 5 with stripes or references (their rows; their locks).

mod columns;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, OwnerId, Timestamp, UploadId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use self::columns::{ExtentColumns, FileColumns, SegmentColumns, UsageColumns};
use super::PostgresStore;
use super::content::{self, Body, Nodes};
use super::gather::Gather;
use super::pool::Connections;
use super::read::{self, object_columns};
use super::transact::{self, Ended, Failure};
use crate::error::{Error, Result};
use crate::model::{CommitObject, Content, NewSegment, Object, Precondition, SegmentBody};
use crate::versions::{self, Current, NewVersion};

const COMMITTING: &str = "commit the object";
/// Stripes of a segment that may be committed together with others.
const STRIPES_TOGETHER: usize = 2;
/// How long a transaction of many waits for a key before each waits for its own.
const WAIT_TOGETHER: &str = "500ms";

/// Small commits, gathered.
pub(super) type Commits = Gather<Arc<CommitObject>, Result<Object>>;

/// Gathers small commits to this database.
pub(super) fn gather(pool: &Connections) -> Commits {
    let pool = pool.clone();
    Gather::new(
        |batch: &[Arc<CommitObject>], commit| !batch.iter().any(|other| same_key(other, commit)),
        move |batch: Vec<Arc<CommitObject>>| {
            let pool = pool.clone();
            async move { commit_all(&pool, &batch).await }
        },
    )
}

fn same_key(one: &CommitObject, other: &CommitObject) -> bool {
    one.bucket == other.bucket && one.key == other.key
}

/// Begins a transaction that holds the rows of these keys, made if need be, locked in order. One message: UUIDs and
/// hexadecimal digits are safe in it.
pub(super) fn begin_with_keys<'k>(keys: impl IntoIterator<Item = (BucketId, &'k ObjectKey)>) -> String {
    let keys: BTreeSet<(BucketId, &[u8])> =
        keys.into_iter().map(|(bucket, key)| (bucket, key.as_bytes())).collect();
    let mut sql = format!("{}; ", transact::BEGIN);
    if keys.len() > 1 {
        write!(sql, "SET LOCAL lock_timeout = '{WAIT_TOGETHER}'; ").expect(WRITES);
    }
    sql.push_str("INSERT INTO keys (bucket_id, key) VALUES ");
    for (number, (bucket, key)) in keys.into_iter().enumerate() {
        let comma = if number == 0 { "" } else { ", " };
        write!(sql, "{comma}('{bucket}', '\\x{key}')", key = hex::encode(key)).expect(WRITES);
    }
    // Updating nothing still locks.
    sql.push_str(" ON CONFLICT (bucket_id, key) DO UPDATE SET key = EXCLUDED.key WHERE FALSE");
    sql
}

const WRITES: &str = "a string takes whatever is written to it";

/// Who is about to commit what.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) bucket: BucketId,
    pub(super) key: &'a ObjectKey,
    pub(super) owner: OwnerId,
    pub(super) upload: UploadId,
}

impl<'a> Ask<'a> {
    fn of(commit: &'a CommitObject) -> Self {
        Self { bucket: commit.bucket, key: &commit.key, owner: commit.owner, upload: commit.upload }
    }
}

/// What a commit finds under the key's lock.
pub(super) struct Before {
    current: Option<Current>,
    quota: Option<ByteCount>,
    used: ByteCount,
    /// Whether this upload is recorded already.
    recorded: bool,
}

impl Before {
    /// What each finds, in order, and how the nodes stand. `NoSuchBucket` if one of the buckets is gone.
    async fn read(
        conn: &mut PgConnection,
        asks: &[Ask<'_>],
        nodes: Vec<Uuid>,
    ) -> Result<(Vec<Self>, Nodes), Failure> {
        let rows = sqlx::query(include_str!("sql/before.sql"))
            .bind(asks.iter().map(|ask| ask.bucket.as_uuid()).collect::<Vec<_>>())
            .bind(asks.iter().map(|ask| ask.key.as_bytes()).collect::<Vec<_>>())
            .bind(asks.iter().map(|ask| ask.owner.as_uuid()).collect::<Vec<_>>())
            .bind(asks.iter().map(|ask| ask.upload.as_uuid()).collect::<Vec<_>>())
            .bind(nodes)
            .fetch_all(conn)
            .await?;
        let mut found = BTreeMap::new();
        for row in &rows {
            found.insert(row.try_get::<i64, _>("at")?, Self::of_row(row)?);
        }
        let nodes = rows.first().map(Nodes::read).transpose()?.unwrap_or_default();
        if found.len() != asks.len() {
            return Err(Error::NoSuchBucket.into());
        }
        Ok((found.into_values().collect(), nodes))
    }

    /// What one finds that names no nodes.
    pub(super) async fn read_one(conn: &mut PgConnection, ask: Ask<'_>) -> Result<Self, Failure> {
        let (mut found, _) = Self::read(conn, &[ask], Vec::new()).await?;
        found.pop().ok_or_else(|| Error::NoSuchBucket.into())
    }

    fn of_row(row: &PgRow) -> Result<Self, Failure> {
        let current = match row.try_get::<Option<Uuid>, _>("id")? {
            None => None,
            Some(file) => Some(Current {
                file,
                version_seq: row.try_get("version_seq")?,
                owner: read::id(row, "owner_id")?,
                size: read::bytes(row, "size_bytes")?,
                etag: row.try_get("etag")?,
                is_delete_marker: row.try_get("is_delete_marker")?,
            }),
        };
        Ok(Self {
            current,
            quota: row.try_get::<Option<i64>, _>("storage_quota")?.map(ByteCount::from_i64),
            used: read::bytes(row, "storage_used")?,
            recorded: row.try_get("recorded")?,
        })
    }

    /// Whether this version may take the key. Commits at the same time see each other's bytes only once they are
    /// committed: a quota may be overshot by those of them that reserved nothing.
    pub(super) fn admit(&self, version: &NewVersion<'_>) -> Result<()> {
        versions::admit(self.current.as_ref(), self.quota, self.used, version)
    }

    /// How usage changes when an object of this owner and size takes the key: owners, bytes, objects.
    fn deltas(&self, owner: OwnerId, size: ByteCount) -> impl Iterator<Item = (OwnerId, i64, i64)> {
        let gone = versions::visible(self.current.as_ref())
            .map(|current| (current.owner, -current.size.as_i64(), -1));
        std::iter::once((owner, size.as_i64(), 1)).chain(gone)
    }
}

/// What became of a file.
pub(super) struct Inserted {
    pub(super) created_at: Timestamp,
    /// Whether there was an intent.
    intent_ended: bool,
}

/// Writes files, of different keys and with at most one new segment each, frees what they replace, ends their intents.
/// Stripes are not written.
pub(super) async fn insert_files(
    conn: &mut PgConnection,
    files: &[(&NewVersion<'_>, &Before, &Body<'_>)],
) -> Result<Vec<Inserted>, Failure> {
    let replaced = files.iter().filter_map(|(_, before, _)| before.current.as_ref());
    let segments = SegmentColumns::of(files.iter().filter_map(|(_, _, body)| body.segment));
    let columns = FileColumns::of(files);
    let extents = ExtentColumns::of(files);
    let usage = UsageColumns::of(files);
    let rows = sqlx::query(include_str!("sql/commit_files.sql"))
        .bind(replaced.map(|current| current.file).collect::<Vec<_>>())
        .bind(&columns.upload)
        .bind(segments.id)
        .bind(segments.owner)
        .bind(segments.length)
        .bind(segments.stripe_size)
        .bind(segments.data)
        .bind(segments.parity)
        .bind(segments.copies)
        .bind(segments.format)
        .bind(segments.content_hash)
        .bind(segments.acked_tolerance)
        .bind(segments.target_tolerance)
        .bind(segments.chunk_count)
        .bind(segments.inline_hash)
        .bind(segments.inline_data)
        .bind(columns.id)
        .bind(columns.bucket)
        .bind(columns.key)
        .bind(columns.path)
        .bind(columns.name)
        .bind(columns.owner)
        .bind(columns.version_seq)
        .bind(&columns.upload)
        .bind(columns.content_hash)
        .bind(columns.etag)
        .bind(columns.size)
        .bind(columns.chunk_count)
        .bind(columns.data)
        .bind(columns.parity)
        .bind(columns.chunk_size)
        .bind(columns.content_type)
        .bind(columns.headers)
        .bind(columns.metadata)
        .bind(columns.checksums)
        .bind(columns.part_sizes)
        .bind(extents.file)
        .bind(extents.position)
        .bind(extents.segment)
        .bind(extents.object_offset)
        .bind(extents.segment_offset)
        .bind(extents.length)
        .bind(usage.owner)
        .bind(usage.bucket)
        .bind(usage.bytes)
        .bind(usage.objects)
        .fetch_all(conn)
        .await?;
    let mut inserted = BTreeMap::new();
    for row in &rows {
        let created_at = read::time(row, "created_at")?;
        inserted.insert(
            row.try_get::<Uuid, _>("id")?,
            Inserted { created_at, intent_ended: row.try_get("intent_ended")? },
        );
    }
    let of_file = |(version, _, _): &(&NewVersion<'_>, _, _)| {
        inserted.remove(&version.file.as_uuid()).ok_or_else(|| Error::NoSuchBucket.into())
    };
    files.iter().map(of_file).collect()
}

impl PostgresStore {
    pub(super) async fn commit(&self, commit: &CommitObject) -> Result<Object> {
        if !goes_together(commit) {
            return commit_alone(&self.pool, commit).await;
        }
        self.commits.answer(COMMITTING, Arc::new(commit.clone())).await
    }
}

/// Whether a commit is small, and not likely to be refused.
fn goes_together(commit: &CommitObject) -> bool {
    let is_small = match &commit.content {
        Content::New(NewSegment { body: SegmentBody::Inline { .. }, .. }) => true,
        Content::New(NewSegment { body: SegmentBody::Stripes(stripes), .. }) => {
            stripes.len() <= STRIPES_TOGETHER
        }
        Content::References(_) => false,
    };
    is_small && commit.precondition == Precondition::None
}

/// Commits of different keys: in one transaction, or else each in its own.
async fn commit_all(pool: &Connections, commits: &[Arc<CommitObject>]) -> Vec<Result<Object>> {
    if let [commit] = commits {
        return vec![commit_alone(pool, commit).await];
    }
    let opening = begin_with_keys(commits.iter().map(|commit| (commit.bucket, &commit.key)));
    let ended = transact::run(pool, COMMITTING, &opening, |conn, _| Box::pin(commit_in(conn, commits))).await;
    match ended {
        Ok(Ended::Committed(objects)) => objects.into_iter().map(Ok).collect(),
        Ok(Ended::InDoubt(source)) => {
            let settled = commits.iter().map(|commit| settle(pool, commit, transact::retold(&source)));
            futures::future::join_all(settled).await
        }
        Err(error) => {
            tracing::debug!(%error, count = commits.len(), "commits go one by one");
            futures::future::join_all(commits.iter().map(|commit| commit_alone(pool, commit))).await
        }
    }
}

async fn commit_alone(pool: &Connections, commit: &CommitObject) -> Result<Object> {
    let opening = begin_with_keys([(commit.bucket, &commit.key)]);
    let commits = &[commit];
    match transact::run(pool, COMMITTING, &opening, |conn, _| Box::pin(commit_in(conn, commits))).await? {
        Ended::Committed(mut objects) => Ok(objects.remove(0)),
        Ended::InDoubt(source) => settle(pool, commit, source).await,
    }
}

/// Finds out what became of a commit whose answer was lost. The key's lock waits for it to end. A file of this
/// upload means committed. Otherwise nothing is visible: the intent, if it is still there, goes with the same
/// transaction, so that nothing can become visible later, and the commit is reported failed.
async fn settle(pool: &Connections, commit: &CommitObject, lost: sqlx::Error) -> Result<Object> {
    const SETTLING: &str = "learn whether the object was committed";
    tracing::warn!(source = %lost, upload = %commit.upload, "answer to commit was lost; looked up");
    let opening = begin_with_keys([(commit.bucket, &commit.key)]);
    let found = transact::run_idempotent(pool, SETTLING, &opening, |conn, _| {
        Box::pin(async move {
            let found = recorded(conn, commit.upload).await?;
            if found.is_none() {
                give_up(conn, commit).await?;
            }
            Ok(found)
        })
    });
    match found.await {
        Ok(Some(object)) => Ok(object),
        Ok(None) | Err(Error::NoSuchBucket) => Err(transact::unavailable(COMMITTING, lost)),
        // "Unavailable" would promise that nothing was changed.
        Err(Error::Unavailable { source, .. }) => Err(Error::Database { doing: SETTLING, source }),
        Err(error) => Err(error),
    }
}

/// Commits of different keys, all or none.
async fn commit_in<C: Borrow<CommitObject> + Sync>(
    conn: &mut PgConnection,
    commits: &[C],
) -> Result<Vec<Object>, Failure> {
    let commits: Vec<&CommitObject> = commits.iter().map(Borrow::borrow).collect();
    let asks: Vec<Ask<'_>> = commits.iter().map(|commit| Ask::of(commit)).collect();
    let nodes = Nodes::named(commits.iter().map(|commit| &commit.content));
    let (befores, nodes) = Before::read(conn, &asks, nodes).await?;
    let mut objects = Vec::with_capacity(commits.len());
    let mut new = Vec::with_capacity(commits.len());
    for (commit, before) in commits.iter().zip(&befores) {
        if before.recorded
            && let Some(object) = recorded(conn, commit.upload).await?
        {
            objects.push(Some(object));
            continue;
        }
        let version = NewVersion::of(commit);
        before.admit(&version)?;
        let body = Body::prepare(conn, &commit.content, commit.size).await?;
        new.push((version, before, body));
        objects.push(None);
    }
    let files: Vec<_> = new.iter().map(|(file, before, body)| (file, *before, body)).collect();
    let inserted = insert_files(conn, &files).await?;
    content::insert_stripes(conn, new.iter().filter_map(|(_, _, body)| body.segment), &nodes).await?;
    let mut made = new.into_iter().zip(inserted);
    for (object, commit) in objects.iter_mut().zip(&commits).filter(|(object, _)| object.is_none()) {
        let Some(((file, _, _), inserted)) = made.next() else { continue };
        if commit.has_intent && !inserted.intent_ended {
            return Err(Error::UploadGone.into());
        }
        *object = Some(file.into_object(inserted.created_at));
    }
    Ok(objects.into_iter().flatten().collect())
}

/// The object that an upload made, if it is there.
pub(super) async fn recorded(conn: &mut PgConnection, upload: UploadId) -> Result<Option<Object>, Failure> {
    const RECORDED: &str = concat!("SELECT ", object_columns!(), " FROM files f WHERE f.upload_id = $1");
    let row = sqlx::query(RECORDED).bind(upload.as_uuid()).fetch_optional(conn).await?;
    row.as_ref().map(read::object).transpose()
}

/// Ends the intent of a commit that failed, and removes the row of `keys` if nothing is under the key.
async fn give_up(conn: &mut PgConnection, commit: &CommitObject) -> Result<(), Failure> {
    const GIVE_UP: &str = "WITH intent AS (DELETE FROM upload_intents WHERE id = $1)
        DELETE FROM keys k WHERE k.bucket_id = $2 AND k.key = $3
            AND NOT EXISTS (SELECT 1 FROM files f WHERE f.bucket_id = k.bucket_id AND f.key = k.key)";
    sqlx::query(GIVE_UP)
        .bind(commit.upload.as_uuid())
        .bind(commit.bucket.as_uuid())
        .bind(commit.key.as_bytes())
        .execute(conn)
        .await?;
    Ok(())
}
