//! Makes objects visible.
//!
//! Every mutation of a key locks its row in `keys` first; what it then reads is a new snapshot, and so under the lock.
//! The bucket is held by the foreign keys of the rows that are made: nobody deletes it meanwhile.
//!
//! Messages to the server and back, per commit: 4 for bytes that live in the row (begin and lock; look; write;
//! commit), 5 with stripes or references (their rows; their locks), and one more that nobody waits for when the
//! connection goes back to the pool.

use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, FileId, OwnerId, Timestamp, UploadId};
use sqlx::types::Json;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::content::{Body, Nodes};
use super::read::{self, object_columns};
use super::transact::{self, Ended, Failure};
use crate::check_quota;
use crate::error::{Error, Result};
use crate::model::{Attributes, CommitObject, Object, Precondition};
use crate::rows;

const COMMITTING: &str = "commit the object";

/// Begins a transaction that holds the key's row, made if need be. One message: a UUID and hexadecimal digits are
/// safe in it.
pub(super) fn begin_with_key(bucket: BucketId, key: &ObjectKey) -> String {
    use std::fmt::Write;
    let mut hex = String::with_capacity(2 * key.as_bytes().len());
    for byte in key.as_bytes() {
        write!(hex, "{byte:02x}").expect("a string takes whatever is written to it");
    }
    // Updating nothing still locks.
    format!(
        "{begin};
         INSERT INTO keys (bucket_id, key) VALUES ('{bucket}', '\\x{hex}')
         ON CONFLICT (bucket_id, key) DO UPDATE SET key = EXCLUDED.key WHERE FALSE",
        begin = transact::BEGIN,
    )
}

/// What a commit finds under the key's lock.
pub(super) struct Before {
    current: Option<Current>,
    quota: Option<ByteCount>,
    used: ByteCount,
    /// Whether this upload is recorded already.
    pub(super) recorded: bool,
    nodes: Nodes,
}

struct Current {
    file: Uuid,
    version_seq: i64,
    owner: OwnerId,
    size: ByteCount,
    etag: String,
    is_delete_marker: bool,
}

impl Before {
    pub(super) async fn read(
        conn: &mut PgConnection,
        bucket: BucketId,
        key: &ObjectKey,
        owner: OwnerId,
        upload: UploadId,
        nodes: Vec<Uuid>,
    ) -> Result<Self, Failure> {
        let row = sqlx::query(include_str!("sql/before.sql"))
            .bind(bucket.as_uuid())
            .bind(key.as_bytes())
            .bind(owner.as_uuid())
            .bind(upload.as_uuid())
            .bind(nodes)
            .fetch_optional(conn)
            .await?
            .ok_or(Error::NoSuchBucket)?;
        let current = match row.try_get::<Option<Uuid>, _>("id")? {
            None => None,
            Some(file) => Some(Current {
                file,
                version_seq: row.try_get("version_seq")?,
                owner: read::id(&row, "owner_id")?,
                size: read::bytes(&row, "size_bytes")?,
                etag: row.try_get("etag")?,
                is_delete_marker: row.try_get("is_delete_marker")?,
            }),
        };
        Ok(Self {
            current,
            quota: row.try_get::<Option<i64>, _>("storage_quota")?.map(ByteCount::from_i64),
            used: read::bytes(&row, "storage_used")?,
            recorded: row.try_get("recorded")?,
            nodes: Nodes::read(&row)?,
        })
    }

    /// Whether an object of this size may take the key. Commits at the same time see each other's bytes only once
    /// they are committed: a quota may be overshot by what is under way.
    pub(super) fn admit(&self, precondition: &Precondition, owner: OwnerId, size: ByteCount) -> Result<()> {
        let visible = self.visible();
        precondition.judge(visible.map(|current| current.etag.as_str()))?;
        let freed =
            visible.filter(|current| current.owner == owner).map_or(ByteCount::ZERO, |current| current.size);
        if size <= freed {
            return Ok(());
        }
        check_quota(self.quota, self.used.saturating_sub(freed), size)
    }

    fn visible(&self) -> Option<&Current> {
        self.current.as_ref().filter(|current| !current.is_delete_marker)
    }

    /// How usage changes: owners, bytes, objects.
    fn deltas(&self, owner: OwnerId, size: ByteCount) -> (Vec<Uuid>, Vec<i64>, Vec<i64>) {
        let (mut owners, mut bytes, mut objects) = (vec![owner.as_uuid()], vec![size.as_i64()], vec![1]);
        match self.visible() {
            Some(current) if current.owner == owner => {
                bytes[0] -= current.size.as_i64();
                objects[0] = 0;
            }
            Some(current) => {
                owners.push(current.owner.as_uuid());
                bytes.push(-current.size.as_i64());
                objects.push(-1);
            }
            None => {}
        }
        (owners, bytes, objects)
    }
}

/// A version to be made current.
pub(super) struct NewFile<'a> {
    pub(super) id: FileId,
    pub(super) upload: UploadId,
    pub(super) bucket: BucketId,
    pub(super) key: &'a ObjectKey,
    pub(super) owner: OwnerId,
    pub(super) size: ByteCount,
    pub(super) etag: &'a str,
    pub(super) content_hash: &'a [u8; 32],
    pub(super) attributes: &'a Attributes,
    pub(super) part_sizes: Vec<u64>,
}

impl NewFile<'_> {
    /// Writes it, frees what it replaces, ends the intent. Answers with the time, and whether there was an intent.
    pub(super) async fn insert(
        &self,
        conn: &mut PgConnection,
        before: &Before,
        body: &Body<'_>,
    ) -> Result<(Timestamp, bool), Failure> {
        let (segments, object_offsets, segment_offsets, lengths) = body.columns();
        let (owners, bytes, objects) = before.deltas(self.owner, self.size);
        let segment = body.segment;
        let row = sqlx::query(include_str!("sql/commit_file.sql"))
            .bind(before.current.as_ref().map(|current| current.file))
            .bind(segment.is_some())
            .bind(self.id.as_uuid())
            .bind(self.bucket.as_uuid())
            .bind(self.key.as_bytes())
            .bind(rows::shown(self.key.as_str()))
            .bind(rows::shown(self.key.file_name()))
            .bind(self.owner.as_uuid())
            .bind(before.current.as_ref().map_or(0, |current| current.version_seq) + 1)
            .bind(self.upload.as_uuid())
            .bind(self.content_hash.as_slice())
            .bind(self.etag)
            .bind(body.shape.chunk_count)
            .bind(body.shape.data_shards)
            .bind(body.shape.parity_shards)
            .bind(body.shape.chunk_size)
            .bind(self.size.as_i64())
            .bind(self.attributes.content_type.as_deref())
            .bind(Json(&self.attributes.headers))
            .bind(Json(&self.attributes.metadata))
            .bind(Json(&self.attributes.checksums))
            .bind(self.part_sizes.iter().copied().map(read::int).collect::<Vec<_>>())
            .bind(segment.map(|segment| segment.id.as_uuid()))
            .bind(segment.map(|segment| segment.owner.as_uuid()))
            .bind(segment.map(|segment| segment.length.as_i64()))
            .bind(segment.map(|segment| segment.geometry.copies() as i16))
            .bind(segment.map(|segment| i16::from(segment.format)))
            .bind(segment.map(|segment| segment.content_hash.as_slice()))
            .bind(segment.map(|segment| i16::from(segment.acked_tolerance)))
            .bind(segment.map(|segment| i16::from(segment.target_tolerance)))
            .bind(body.inline().map(|(plain_hash, _)| plain_hash.as_slice()))
            .bind(body.inline().map(|(_, sealed)| sealed.as_ref()))
            .bind(segments)
            .bind(object_offsets)
            .bind(segment_offsets)
            .bind(lengths)
            .bind(owners)
            .bind(bytes)
            .bind(objects)
            .bind(segment.map(|segment| segment.geometry.data() as i16))
            .bind(segment.map(|segment| segment.geometry.parity() as i16))
            .fetch_optional(&mut *conn)
            .await?
            .ok_or(Error::NoSuchBucket)?;
        body.insert_stripes(conn, &before.nodes).await?;
        Ok((read::time(&row, "created_at")?, row.try_get("intent_ended")?))
    }

    /// As readers will see it.
    pub(super) fn into_object(self, modified_at: Timestamp) -> Object {
        Object {
            file: self.id,
            bucket: self.bucket,
            key: self.key.clone(),
            owner: self.owner,
            version_id: "null".to_owned(),
            size: self.size,
            etag: self.etag.to_owned(),
            content_hash: *self.content_hash,
            attributes: self.attributes.clone(),
            part_sizes: self.part_sizes,
            modified_at,
        }
    }
}

impl PostgresStore {
    pub(super) async fn commit(&self, commit: &CommitObject) -> Result<Object> {
        let opening = begin_with_key(commit.bucket, &commit.key);
        let ended =
            transact::run(&self.pool, COMMITTING, &opening, |conn, _| Box::pin(commit_in(conn, commit)))
                .await?;
        match ended {
            Ended::Committed(object) => Ok(object),
            Ended::InDoubt(source) => self.settle(commit, &opening, source).await,
        }
    }

    /// Finds out what became of a commit whose answer was lost. The key's lock waits for it to end. A file of this
    /// upload means committed. Otherwise nothing is visible: the intent, if it is still there, goes with the same
    /// transaction, so that nothing can become visible later, and the commit is reported failed.
    async fn settle(&self, commit: &CommitObject, opening: &str, lost: sqlx::Error) -> Result<Object> {
        const SETTLING: &str = "learn whether the object was committed";
        tracing::warn!(source = %lost, upload = %commit.upload, "answer to commit was lost; looked up");
        let found = transact::run_idempotent(&self.pool, SETTLING, opening, |conn, _| {
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
}

async fn commit_in(conn: &mut PgConnection, commit: &CommitObject) -> Result<Object, Failure> {
    let nodes = Nodes::named(&commit.content);
    let before = Before::read(conn, commit.bucket, &commit.key, commit.owner, commit.upload, nodes).await?;
    if before.recorded
        && let Some(object) = recorded(conn, commit.upload).await?
    {
        return Ok(object);
    }
    before.admit(&commit.precondition, commit.owner, commit.size)?;
    let body = Body::prepare(conn, &commit.content, commit.size).await?;
    let file = NewFile {
        id: commit.file,
        upload: commit.upload,
        bucket: commit.bucket,
        key: &commit.key,
        owner: commit.owner,
        size: commit.size,
        etag: &commit.etag,
        content_hash: &commit.content_hash,
        attributes: &commit.attributes,
        part_sizes: Vec::new(),
    };
    let (modified_at, intent_ended) = file.insert(conn, &before, &body).await?;
    if commit.has_intent && !intent_ended {
        return Err(Error::UploadGone.into());
    }
    Ok(file.into_object(modified_at))
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
