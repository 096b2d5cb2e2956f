//! Multipart uploads: opened, filled part by part, made an object or dropped.
//!
//! Whoever changes parts holds the upload's row shared, whoever ends it holds it alone; the key's row comes before
//! both. Completing costs per part, never per chunk.

use cyxcloud_core::crash_point;
use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, OwnerId, Timestamp, UploadId};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use super::PostgresStore;
use super::commit::{Ask, Before, begin_with_keys, insert_files};
use super::content::{Body, Nodes, insert_stripes};
use super::identity::room;
use super::people::lock_owner;
use super::read;
use super::transact::{self, BEGIN, Ended, Failure};
use crate::error::{Error, Result};
use crate::model::{
    Assemble, Assembled, Attributes, CommitPart, CompleteMultipart, Content, Multipart, Object, Part,
    SegmentRange,
};
use crate::rows::Completed;
use crate::versions::NewVersion;

const PART: &str = "commit the part";

/// The columns of [`multipart`], of a table `multipart_uploads` called `m`.
macro_rules! multipart_columns {
    () => {
        "m.id, m.bucket_id, m.key, m.owner_id, m.content_type, m.headers, m.metadata, m.checksum_algorithm, \
         m.checksum_type, m.initiated_at"
    };
}
pub(super) use multipart_columns;

pub(super) fn multipart(row: &PgRow) -> Result<Multipart, Failure> {
    Ok(Multipart {
        id: read::id(row, "id")?,
        bucket: read::id(row, "bucket_id")?,
        key: read::key(row, "key")?,
        owner: read::id(row, "owner_id")?,
        attributes: read::attributes(row)?,
        checksum_algorithm: row.try_get("checksum_algorithm")?,
        checksum_type: row.try_get("checksum_type")?,
        initiated_at: read::time(row, "initiated_at")?,
    })
}

fn part(row: &PgRow) -> Result<Part, Failure> {
    Ok(Part {
        number: read::count(row, "number")?,
        size: read::bytes(row, "size_bytes")?,
        etag: row.try_get("etag")?,
        content_hash: read::hash(row, "content_hash")?,
        checksums: read::checksums(row)?,
        modified_at: read::time(row, "created_at")?,
    })
}

impl PostgresStore {
    pub(super) async fn open_multipart(&self, upload: &Multipart, most: u32) -> Result<Multipart> {
        // Without itself, which a second run may find.
        const OTHERS: &str =
            "SELECT count(*) FROM multipart_uploads WHERE owner_id = $1 AND status = 'open' AND id <> $2";
        // The second answer is for a second run after a lost first answer.
        const OPEN: &str = "WITH made AS (
                INSERT INTO multipart_uploads (id, bucket_id, key, owner_id, content_type, headers, metadata,
                                               checksum_algorithm, checksum_type)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING RETURNING initiated_at
            )
            SELECT initiated_at FROM made UNION ALL SELECT initiated_at FROM multipart_uploads WHERE id = $1";
        let initiated_at =
            transact::run_idempotent(&self.pool, "open the multipart upload", BEGIN, |conn, _| {
                Box::pin(async move {
                    lock_owner(conn, upload.owner).await?;
                    let others: i64 = sqlx::query_scalar(OTHERS)
                        .bind(upload.owner.as_uuid())
                        .bind(upload.id.as_uuid())
                        .fetch_one(&mut *conn)
                        .await?;
                    if others >= i64::from(most) {
                        return Err(Error::TooManyUploads { max: most }.into());
                    }
                    let row = sqlx::query(OPEN)
                        .bind(upload.id.as_uuid())
                        .bind(upload.bucket.as_uuid())
                        .bind(upload.key.as_bytes())
                        .bind(upload.owner.as_uuid())
                        .bind(upload.attributes.content_type.as_deref())
                        .bind(Json(&upload.attributes.headers))
                        .bind(Json(&upload.attributes.metadata))
                        .bind(upload.checksum_algorithm.as_deref())
                        .bind(upload.checksum_type.as_deref())
                        .fetch_one(conn)
                        .await?;
                    read::time(&row, "initiated_at")
                })
            });
        Ok(Multipart { initiated_at: initiated_at.await?, ..upload.clone() })
    }

    pub(super) async fn open_upload(&self, id: UploadId) -> Result<Option<Multipart>> {
        const ONE: &str = concat!(
            "SELECT ",
            multipart_columns!(),
            " FROM multipart_uploads m WHERE m.id = $1 AND m.status = 'open'"
        );
        transact::single(&self.pool, "read the multipart upload", |conn, _| {
            Box::pin(async move {
                let row = sqlx::query(ONE).bind(id.as_uuid()).fetch_optional(conn).await?;
                row.as_ref().map(multipart).transpose()
            })
        })
        .await
    }

    pub(super) async fn record_part(&self, part: &CommitPart) -> Result<Part> {
        let ended =
            transact::run(&self.pool, PART, BEGIN, |conn, _| Box::pin(record_part_in(conn, part))).await?;
        match ended {
            Ended::Committed(part) => Ok(part),
            Ended::InDoubt(source) => self.settle_part(part, source).await,
        }
    }

    /// Finds out what became of a part whose answer was lost: holding the upload alone waits for it to end. Its new
    /// segment is referred to if and only if it was committed; a part of references is just recorded again.
    async fn settle_part(&self, part: &CommitPart, lost: sqlx::Error) -> Result<Part> {
        const SETTLING: &str = "learn whether the part was committed";
        tracing::warn!(source = %lost, multipart = %part.multipart, "answer to commit was lost; looked up");
        let segment = match &part.content {
            Content::New(segment) if segment.length > ByteCount::ZERO => segment,
            _ => {
                return transact::run_idempotent(&self.pool, PART, BEGIN, |conn, _| {
                    Box::pin(record_part_in(conn, part))
                })
                .await;
            }
        };
        let found = transact::run_idempotent(&self.pool, SETTLING, BEGIN, |conn, _| {
            Box::pin(async move {
                sqlx::query("SELECT 1 FROM multipart_uploads WHERE id = $1 FOR UPDATE")
                    .bind(part.multipart.as_uuid())
                    .execute(&mut *conn)
                    .await?;
                // Gone from the parts, it may be in the object that was made of them.
                let at: Option<Timestamp> =
                    sqlx::query_scalar("SELECT created_at FROM segments WHERE id = $1")
                        .bind(segment.id.as_uuid())
                        .fetch_optional(&mut *conn)
                        .await?
                        .map(read::timestamp);
                if at.is_none() {
                    sqlx::query("DELETE FROM upload_intents WHERE id = $1")
                        .bind(part.intent.map(|intent| intent.as_uuid()))
                        .execute(conn)
                        .await?;
                }
                Ok(at)
            })
        });
        match found.await {
            Ok(Some(modified_at)) => Ok(as_recorded(part, modified_at)),
            Ok(None) => Err(transact::unavailable(PART, lost)),
            Err(Error::Unavailable { source, .. }) => Err(Error::Database { doing: SETTLING, source }),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn parts(&self, id: UploadId, after: u32, limit: usize) -> Result<Vec<Part>> {
        const PARTS: &str = "SELECT p.* FROM multipart_uploads m
            LEFT JOIN LATERAL (
                SELECT * FROM multipart_parts WHERE multipart_id = m.id AND number > $2 ORDER BY number LIMIT $3
            ) p ON TRUE
            WHERE m.id = $1 AND m.status = 'open' ORDER BY p.number";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        transact::single(&self.pool, "list parts", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(PARTS)
                    .bind(id.as_uuid())
                    .bind(i64::from(after))
                    .bind(limit)
                    .fetch_all(conn)
                    .await?;
                if rows.is_empty() {
                    return Err(Error::NoSuchUpload.into());
                }
                let mut parts = Vec::with_capacity(rows.len());
                for row in &rows {
                    if row.try_get::<Option<i32>, _>("number")?.is_some() {
                        parts.push(part(row)?);
                    }
                }
                Ok(parts)
            })
        })
        .await
    }

    /// Run again after a lost answer, it finds its own result.
    pub(super) async fn complete(
        &self,
        complete: &CompleteMultipart,
        assemble: &Assemble<'_>,
    ) -> Result<Object> {
        let opening = begin_with_keys([(complete.bucket, &complete.key)]);
        transact::run_idempotent(&self.pool, "complete the multipart upload", &opening, |conn, _| {
            Box::pin(complete_in(conn, complete, assemble))
        })
        .await
    }

    pub(super) async fn abort(&self, bucket: BucketId, key: &ObjectKey, id: UploadId) -> Result<()> {
        const LOCK: &str = "SELECT id FROM multipart_uploads
            WHERE id = $1 AND bucket_id = $2 AND key = $3 AND status = 'open' FOR UPDATE";
        transact::run_once(&self.pool, "abort the multipart upload", BEGIN, |conn, _| {
            Box::pin(async move {
                let found = sqlx::query(LOCK)
                    .bind(id.as_uuid())
                    .bind(bucket.as_uuid())
                    .bind(key.as_bytes())
                    .fetch_optional(&mut *conn)
                    .await?;
                if found.is_none() {
                    return Err(Error::NoSuchUpload.into());
                }
                end(conn, id, "aborted", None, &[]).await?;
                crash_point!("abort.before_commit");
                Ok(())
            })
        })
        .await
    }
}

async fn record_part_in(conn: &mut PgConnection, new: &CommitPart) -> Result<Part, Failure> {
    let segment = match &new.content {
        Content::New(segment) if segment.length > ByteCount::ZERO => Some(segment.id.as_uuid()),
        _ => None,
    };
    let row = sqlx::query(include_str!("sql/open_part.sql"))
        .bind(new.multipart.as_uuid())
        .bind(i32::try_from(new.number).unwrap_or(i32::MAX))
        .bind(new.size.as_i64())
        .bind(&new.etag)
        .bind(new.content_hash.as_slice())
        .bind(Json(&new.checksums))
        .bind(Nodes::named([&new.content]))
        .bind(segment)
        .fetch_optional(&mut *conn)
        .await?
        .ok_or(Error::NoSuchUpload)?;
    let recorded = as_recorded(new, read::time(&row, "created_at")?);
    let again: bool = row.try_get("again")?;
    if again && segment.is_some() {
        return Ok(recorded);
    }
    let nodes = Nodes::read(&row)?;
    let body = Body::prepare(conn, &new.content, new.size).await?;
    let inserted = insert_content(conn, new, &body).await?;
    if new.intent.is_some() && !inserted.intent_ended && !again {
        return Err(Error::UploadGone.into());
    }
    insert_stripes(conn, body.segment, &nodes).await?;
    // It is among the parts by now, and its intent is not. What was reserved has its room.
    if new.size > inserted.reserved {
        room(conn, inserted.owner, ByteCount::ZERO).await?;
    }
    Ok(recorded)
}

/// What is known when a part's content is recorded.
struct Inserted {
    /// Whether there was an intent, and what it had reserved.
    intent_ended: bool,
    reserved: ByteCount,
    owner: OwnerId,
}

async fn insert_content(
    conn: &mut PgConnection,
    new: &CommitPart,
    body: &Body<'_>,
) -> Result<Inserted, Failure> {
    let (segments, _, offsets, lengths) = body.columns();
    let segment = body.segment;
    let row = sqlx::query(include_str!("sql/commit_part.sql"))
        .bind(new.multipart.as_uuid())
        .bind(i32::try_from(new.number).unwrap_or(i32::MAX))
        .bind(segment.is_some())
        .bind(new.intent.map(|intent| intent.as_uuid()))
        .bind(segment.map(|segment| segment.id.as_uuid()))
        .bind(segment.map(|segment| segment.owner.as_uuid()))
        .bind(segment.map(|segment| segment.length.as_i64()))
        .bind(segment.map(|segment| segment.stripe_size.as_i64()))
        .bind(segment.map(|segment| segment.geometry.data() as i16))
        .bind(segment.map(|segment| segment.geometry.parity() as i16))
        .bind(segment.map(|segment| segment.geometry.copies() as i16))
        .bind(segment.map(|segment| i16::from(segment.format)))
        .bind(segment.map(|segment| segment.content_hash.as_slice()))
        .bind(segment.map(|segment| i16::from(segment.acked_tolerance)))
        .bind(segment.map(|segment| i16::from(segment.target_tolerance)))
        .bind(body.shape.chunk_count)
        .bind(body.inline().map(|(plain_hash, _)| plain_hash.as_slice()))
        .bind(body.inline().map(|(_, sealed)| sealed.as_ref()))
        .bind(segments)
        .bind(offsets)
        .bind(lengths)
        .fetch_one(conn)
        .await?;
    Ok(Inserted {
        intent_ended: row.try_get("intent_ended")?,
        reserved: read::bytes(&row, "reserved")?,
        owner: read::id(&row, "owner_id")?,
    })
}

fn as_recorded(new: &CommitPart, modified_at: Timestamp) -> Part {
    Part {
        number: new.number,
        size: new.size,
        etag: new.etag.clone(),
        content_hash: new.content_hash,
        checksums: new.checksums.clone(),
        modified_at,
    }
}

async fn complete_in(
    conn: &mut PgConnection,
    complete: &CompleteMultipart,
    assemble: &Assemble<'_>,
) -> Result<Object, Failure> {
    let upload = match lock_upload(conn, complete).await? {
        Locked::Open(upload) => upload,
        Locked::Completed(object) => return Ok(*object),
    };
    let parts = named_parts(conn, complete).await?;
    let Assembled { etag, content_hash, checksums } =
        assemble(&upload, &parts).map_err(|reason| Error::PartsRefused { reason })?;
    if let Some(number) = lost_part(conn, complete).await? {
        return Err(Error::InvalidPart { number }.into());
    }
    let size: ByteCount = parts.iter().map(|part| part.size).sum();
    let ask =
        Ask { bucket: complete.bucket, key: &complete.key, owner: upload.owner, upload: complete.multipart };
    let before = Before::read_one(conn, ask).await?;
    let attributes = Attributes { checksums, ..upload.attributes.clone() };
    let version = NewVersion {
        file: complete.file,
        upload: complete.multipart,
        bucket: complete.bucket,
        key: &complete.key,
        owner: upload.owner,
        precondition: &complete.precondition,
        size,
        etag: &etag,
        content_hash: &content_hash,
        attributes: &attributes,
        part_sizes: parts.iter().map(|part| part.size.get()).collect(),
    };
    before.admit(&version)?;
    let ranges = part_ranges(conn, complete).await?;
    let body = Body::of_references(conn, ranges, size).await?;
    let inserted = insert_files(conn, &[(&version, &before, &body)]).await?;
    let object = version.into_object(inserted[0].created_at);
    let result = Completed::new(&object, &complete.parts);
    end(conn, complete.multipart, "completed", Some(&result), &numbers(complete)).await?;
    crash_point!("complete.before_commit");
    Ok(object)
}

/// A multipart upload, held alone.
enum Locked {
    Open(Box<Multipart>),
    /// Completed before, with the same parts.
    Completed(Box<Object>),
}

async fn lock_upload(conn: &mut PgConnection, complete: &CompleteMultipart) -> Result<Locked, Failure> {
    const LOCK: &str = concat!(
        "SELECT ",
        multipart_columns!(),
        ", m.status, m.result::text AS result FROM multipart_uploads m
        WHERE m.id = $1 AND m.bucket_id = $2 AND m.key = $3 FOR UPDATE"
    );
    let row = sqlx::query(LOCK)
        .bind(complete.multipart.as_uuid())
        .bind(complete.bucket.as_uuid())
        .bind(complete.key.as_bytes())
        .fetch_optional(conn)
        .await?
        .ok_or(Error::NoSuchUpload)?;
    let upload = multipart(&row)?;
    match (row.try_get::<&str, _>("status")?, row.try_get::<Option<&str>, _>("result")?) {
        ("open", _) => Ok(Locked::Open(Box::new(upload))),
        ("completed", Some(result)) => {
            let object = Completed::from_json(result)?.answer(&upload, &complete.parts)?;
            Ok(Locked::Completed(Box::new(object)))
        }
        _ => Err(Error::NoSuchUpload.into()),
    }
}

fn numbers(complete: &CompleteMultipart) -> Vec<i32> {
    complete.parts.iter().map(|(number, _)| i32::try_from(*number).unwrap_or(i32::MAX)).collect()
}

/// The parts named, in order; `InvalidPart` for the first that is not there as named.
async fn named_parts(conn: &mut PgConnection, complete: &CompleteMultipart) -> Result<Vec<Part>, Failure> {
    const NAMED: &str =
        "SELECT * FROM multipart_parts WHERE multipart_id = $1 AND number = ANY($2) ORDER BY number";
    let rows =
        sqlx::query(NAMED).bind(complete.multipart.as_uuid()).bind(numbers(complete)).fetch_all(conn).await?;
    let mut found = rows.iter().map(part).peekable();
    let mut parts = Vec::with_capacity(complete.parts.len());
    for (number, etag) in &complete.parts {
        match found.next_if(|part| part.as_ref().map_or(true, |part| part.number == *number)).transpose()? {
            Some(part) if part.etag == *etag => parts.push(part),
            _ => return Err(Error::InvalidPart { number: *number }.into()),
        }
    }
    Ok(parts)
}

/// The first of the parts named that nobody could read.
async fn lost_part(conn: &mut PgConnection, complete: &CompleteMultipart) -> Result<Option<u32>, Failure> {
    let lost: Option<i32> = sqlx::query_scalar(include_str!("sql/lost_part.sql"))
        .bind(complete.multipart.as_uuid())
        .bind(numbers(complete))
        .fetch_optional(conn)
        .await?;
    Ok(lost.map(|number| u32::try_from(number).unwrap_or(0)))
}

/// What the parts named consist of, in order.
async fn part_ranges(
    conn: &mut PgConnection,
    complete: &CompleteMultipart,
) -> Result<Vec<SegmentRange>, Failure> {
    const RANGES: &str = "SELECT segment_id, segment_offset, length FROM part_segments
        WHERE multipart_id = $1 AND number = ANY($2) ORDER BY number, position";
    let rows = sqlx::query(RANGES)
        .bind(complete.multipart.as_uuid())
        .bind(numbers(complete))
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(SegmentRange {
                segment: read::id(row, "segment_id")?,
                offset: read::offset(row, "segment_offset")?,
                length: read::offset(row, "length")?,
            })
        })
        .collect()
}

pub(super) async fn end(
    conn: &mut PgConnection,
    id: UploadId,
    status: &str,
    result: Option<&Completed>,
    kept: &[i32],
) -> Result<(), Failure> {
    sqlx::query(include_str!("sql/end_multipart.sql"))
        .bind(id.as_uuid())
        .bind(status)
        .bind(result.map(Json))
        .bind(kept)
        .execute(conn)
        .await?;
    Ok(())
}
