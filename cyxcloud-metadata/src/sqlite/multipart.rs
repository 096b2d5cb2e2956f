//! Multipart uploads, from creation to one of their two ends.
//!
//! What the parts make is computed by the caller between two looks at them: [`prepare`] reads, [`finish`] begins again
//! if anything has changed since. Complete is O(parts) and moves rows of `part_segments`, never of chunks.

use std::time::Duration;

use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, UploadId};
use rusqlite::{Connection, Row, params};

use super::commit;
use super::content::{self, Body};
use super::engine::Done;
use super::row::{self, all, exists, int, one, run};
use super::{buckets, identity, uploads};
use crate::error::Error;
use crate::listing::Walk;
use crate::model::{
    Assembled, CommitPart, CompleteMultipart, ListMultiparts, Multipart, MultipartPage, Object, Part,
    SegmentRange,
};
use crate::rows::{self, Completed, FileShape, SegmentShape, to_json};
use crate::versions::NewVersion;

const UPLOAD: &str = "id, bucket_id, key, owner_id, content_type, headers, metadata, checksum_algorithm,
    checksum_type, initiated_at";
const PART: &str = "number, size_bytes, etag, content_hash, checksums, created_at";

fn upload(row: &Row<'_>) -> Done<Multipart> {
    Ok(Multipart {
        id: row::id(row, 0)?,
        bucket: row::id(row, 1)?,
        key: rows::object_key(row.get(2)?)?,
        owner: row::id(row, 3)?,
        attributes: row::attributes(row, 4, None)?,
        checksum_algorithm: row.get(7)?,
        checksum_type: row.get(8)?,
        initiated_at: row::time(row, 9)?,
    })
}

fn part(row: &Row<'_>) -> Done<Part> {
    Ok(Part {
        number: row::count(row, 0)?,
        size: row::bytes(row, 1)?,
        etag: row.get(2)?,
        content_hash: row::hash(row, 3)?,
        checksums: rows::checksums_from_json(&row.get::<_, String>(4)?)?,
        modified_at: row::time(row, 5)?,
    })
}

pub(super) fn create(db: &Connection, upload: &Multipart, most: u32) -> Done<Multipart> {
    const OPEN: &str = "SELECT count(*) FROM multipart_uploads WHERE owner_id = ?1 AND status = 'open'";
    const INSERT: &str =
        "INSERT INTO multipart_uploads (id, bucket_id, key, owner_id, content_type, headers, metadata,
        checksum_algorithm, checksum_type, initiated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    if row::number(db, OPEN, [upload.owner.as_uuid()])? >= i64::from(most) {
        return Err(Error::TooManyUploads { max: most }.into());
    }
    buckets::require(db, upload.bucket)?;
    let initiated_at = row::now();
    run(
        db,
        INSERT,
        params![
            upload.id.as_uuid(),
            upload.bucket.as_uuid(),
            upload.key.as_bytes(),
            upload.owner.as_uuid(),
            upload.attributes.content_type,
            to_json(&upload.attributes.headers),
            to_json(&upload.attributes.metadata),
            upload.checksum_algorithm,
            upload.checksum_type,
            initiated_at.unix_millis(),
        ],
    )?;
    Ok(Multipart { initiated_at, ..upload.clone() })
}

pub(super) fn get(db: &Connection, id: UploadId) -> Done<Option<Multipart>> {
    let select = format!("SELECT {UPLOAD} FROM multipart_uploads WHERE id = ?1 AND status = 'open'");
    one(db, &select, [id.as_uuid()], upload)
}

fn require_open(db: &Connection, id: UploadId) -> Done<()> {
    const OPEN: &str = "SELECT 1 FROM multipart_uploads WHERE id = ?1 AND status = 'open'";
    if exists(db, OPEN, [id.as_uuid()])? { Ok(()) } else { Err(Error::NoSuchUpload.into()) }
}

pub(super) fn commit_part(db: &Connection, new: &CommitPart) -> Done<Part> {
    let upload = get(db, new.multipart)?.ok_or(Error::NoSuchUpload)?;
    let reserved = new.intent.map_or(Ok(ByteCount::ZERO), |intent| uploads::reserved(db, intent))?;
    if let Some(intent) = new.intent
        && !uploads::end(db, intent)?
    {
        // Gone because this very part was recorded, or because it took too long.
        return recorded(db, new)?.ok_or_else(|| Error::UploadGone.into());
    }
    let Body { ranges, .. } = content::record(db, &new.content, new.size)?;
    drop_parts(db, new.multipart, "number = ?2", new.number, "part replaced")?;
    let part = insert_part(db, new, &ranges)?;
    // It is among the parts by now, and its intent is not. What was reserved has its room.
    if new.size > reserved {
        identity::check_room(db, upload.owner, ByteCount::ZERO)?;
    }
    Ok(part)
}

/// The part as it was recorded by an earlier call that brought the same content.
fn recorded(db: &Connection, new: &CommitPart) -> Done<Option<Part>> {
    const FIRST: &str =
        "SELECT 1 FROM part_segments WHERE multipart_id = ?1 AND number = ?2 AND segment_id = ?3";
    let select = format!("SELECT {PART} FROM multipart_parts WHERE multipart_id = ?1 AND number = ?2");
    let found = one(db, &select, params![new.multipart.as_uuid(), new.number], part)?;
    let Some(found) = found.filter(|part| part.etag == new.etag && part.content_hash == new.content_hash)
    else {
        return Ok(None);
    };
    let same = match rows::ranges(&new.content).first() {
        Some(first) => {
            exists(db, FIRST, params![new.multipart.as_uuid(), new.number, first.segment.as_uuid()])?
        }
        None => true,
    };
    Ok(same.then_some(found))
}

fn insert_part(db: &Connection, new: &CommitPart, ranges: &[SegmentRange]) -> Done<Part> {
    const INSERT: &str =
        "INSERT INTO multipart_parts (multipart_id, number, size_bytes, etag, content_hash, checksums,
        created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    const RANGE: &str =
        "INSERT INTO part_segments (multipart_id, number, position, segment_id, segment_offset, length)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let (id, modified_at) = (new.multipart.as_uuid(), row::now());
    run(
        db,
        INSERT,
        params![
            id,
            new.number,
            new.size.as_i64(),
            new.etag,
            new.content_hash.as_slice(),
            to_json(&new.checksums),
            modified_at.unix_millis(),
        ],
    )?;
    for (range, position) in ranges.iter().zip(0i64..) {
        let segment = range.segment.as_uuid();
        run(db, RANGE, params![id, new.number, position, segment, int(range.offset), int(range.length)])?;
    }
    Ok(Part {
        number: new.number,
        size: new.size,
        etag: new.etag.clone(),
        content_hash: new.content_hash,
        checksums: new.checksums.clone(),
        modified_at,
    })
}

/// Removes the parts that `condition` on `number` picks (by `?2`); the collector is to look at their segments.
fn drop_parts(
    db: &Connection,
    id: UploadId,
    condition: &str,
    argument: impl rusqlite::ToSql,
    reason: &str,
) -> Done<()> {
    let garbage = format!(
        "INSERT INTO gc_candidates (segment_id, reason, created_at)
         SELECT DISTINCT segment_id, ?3, ?4 FROM part_segments WHERE multipart_id = ?1 AND {condition}
         ON CONFLICT (segment_id) DO UPDATE SET reason = excluded.reason, created_at = excluded.created_at"
    );
    run(db, &garbage, params![id.as_uuid(), argument, reason, row::now().unix_millis()])?;
    let delete = format!("DELETE FROM multipart_parts WHERE multipart_id = ?1 AND {condition}");
    run(db, &delete, params![id.as_uuid(), argument])?;
    Ok(())
}

pub(super) fn list_parts(db: &Connection, id: UploadId, after: u32, limit: usize) -> Done<Vec<Part>> {
    require_open(db, id)?;
    let select = format!(
        "SELECT {PART} FROM multipart_parts WHERE multipart_id = ?1 AND number > ?2 ORDER BY number LIMIT ?3"
    );
    all(db, &select, params![id.as_uuid(), after, int(limit as u64)], part)
}

/// What there is to be assembled, or the answer that was given before.
pub(super) enum Prepared {
    Ready(Multipart, Vec<Part>),
    Answered(Object),
}

pub(super) fn prepare(db: &Connection, request: &CompleteMultipart) -> Done<Prepared> {
    let select = format!("SELECT {UPLOAD}, status, result FROM multipart_uploads WHERE id = ?1");
    let found = one(db, &select, [request.multipart.as_uuid()], |row| {
        Ok((upload(row)?, row.get::<_, String>(10)?, row.get::<_, Option<String>>(11)?))
    })?;
    let (upload, status, result) = found.ok_or(Error::NoSuchUpload)?;
    if (upload.bucket, &upload.key) != (request.bucket, &request.key) {
        return Err(Error::NoSuchUpload.into());
    }
    match (status.as_str(), result) {
        ("open", _) => Ok(Prepared::Ready(upload, named_parts(db, request)?)),
        ("completed", Some(result)) => {
            Ok(Prepared::Answered(Completed::from_json(&result)?.answer(&upload, &request.parts)?))
        }
        _ => Err(Error::NoSuchUpload.into()),
    }
}

/// The parts that the request names, in order.
fn named_parts(db: &Connection, request: &CompleteMultipart) -> Done<Vec<Part>> {
    let select = format!("SELECT {PART} FROM multipart_parts WHERE multipart_id = ?1 ORDER BY number");
    let mut stored = all(db, &select, [request.multipart.as_uuid()], part)?.into_iter().peekable();
    let mut named = Vec::with_capacity(request.parts.len());
    for (number, etag) in &request.parts {
        while stored.next_if(|part| part.number < *number).is_some() {}
        match stored.next_if(|part| part.number == *number && part.etag == *etag) {
            Some(part) => named.push(part),
            None => return Err(Error::InvalidPart { number: *number }.into()),
        }
    }
    Ok(named)
}

/// Makes the object, if all is as `prepare` saw it; `None` if it must be looked at again.
pub(super) fn finish(
    db: &Connection,
    request: &CompleteMultipart,
    seen: &[Part],
    assembled: &Assembled,
) -> Done<Option<Object>> {
    let (upload, parts) = match prepare(db, request)? {
        Prepared::Answered(object) => return Ok(Some(object)),
        Prepared::Ready(upload, parts) => (upload, parts),
    };
    if parts != seen {
        return Ok(None);
    }
    let attributes =
        crate::model::Attributes { checksums: assembled.checksums.clone(), ..upload.attributes.clone() };
    let version = NewVersion {
        file: request.file,
        upload: request.multipart,
        bucket: request.bucket,
        key: &request.key,
        owner: upload.owner,
        precondition: &request.precondition,
        size: parts.iter().map(|part| part.size).sum(),
        etag: &assembled.etag,
        content_hash: &assembled.content_hash,
        attributes: &attributes,
        part_sizes: parts.iter().map(|part| part.size.get()).collect(),
    };
    let size: ByteCount = version.size;
    let numbers = to_json(&parts.iter().map(|part| part.number).collect::<Vec<_>>());
    if let Some(number) = lost_part(db, request.multipart, &numbers)? {
        return Err(Error::InvalidPart { number }.into());
    }
    let object = commit::insert(db, version, |db| body(db, request.multipart, &numbers, size))?;
    // Those that became the object keep their segments; the others leave them to the collector.
    let unnamed = "number NOT IN (SELECT value FROM json_each(?2))";
    drop_parts(db, request.multipart, unnamed, &numbers, "part not named")?;
    end(db, request.multipart, "completed", Some(to_json(&Completed::new(&object, &request.parts))))?;
    Ok(Some(object))
}

/// The first part of which a stripe is lost: too few shards are left, whoever returns that is not given up. Whatever may be lost is
/// queued, so nothing is read of others.
fn lost_part(db: &Connection, id: UploadId, numbers: &str) -> Done<Option<u32>> {
    const LOST: &str = "SELECT p.number
        FROM part_segments p CROSS JOIN segments s CROSS JOIN repair_jobs j
        WHERE p.multipart_id = ?1 AND p.number IN (SELECT value FROM json_each(?2)) AND s.id = p.segment_id
            AND j.segment_id = p.segment_id AND j.status IN ('pending', 'in_progress') AND j.priority <= 0
            AND j.stripe_index BETWEEN p.segment_offset / s.stripe_size
                AND (p.segment_offset + p.length - 1) / s.stripe_size
            AND s.data_shards > (
                SELECT count(DISTINCT l.shard_index) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id
                WHERE l.segment_id = j.segment_id AND l.stripe_index = j.stripe_index
                    AND l.status IN ('stored', 'leaving')
                    AND NOT (n.status = 'draining' AND n.first_offline_at IS NOT NULL))
        ORDER BY p.number LIMIT 1";
    one(db, LOST, params![id.as_uuid(), numbers], |row| row::count(row, 0))
}

/// What the parts consist of, in order.
fn body(db: &Connection, id: UploadId, numbers: &str, size: ByteCount) -> Done<Body> {
    const SELECT: &str = "SELECT p.segment_id, p.segment_offset, p.length, s.data_shards, s.parity_shards, s.copies,
            s.stripe_size, s.chunk_count, s.inline_hash IS NOT NULL
        FROM part_segments p JOIN segments s ON s.id = p.segment_id
        WHERE p.multipart_id = ?1 AND p.number IN (SELECT value FROM json_each(?2)) ORDER BY p.number, p.position";
    let found = all(db, SELECT, params![id.as_uuid(), numbers], |row| {
        let range = SegmentRange {
            segment: row::id(row, 0)?,
            offset: row::count(row, 1)?,
            length: row::count(row, 2)?,
        };
        let shape = SegmentShape {
            geometry: rows::geometry(row.get(3)?, row.get(4)?, row.get(5)?)?,
            stripe_size: row::bytes(row, 6)?,
            chunk_count: row::count(row, 7)?,
            inline: row.get(8)?,
        };
        Ok((range, shape))
    })?;
    let (ranges, shapes): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    rows::check_size(&ranges, size)?;
    Ok(Body { ranges, shape: FileShape::of(shapes) })
}

/// Ends an upload and forgets its parts.
fn end(db: &Connection, id: UploadId, status: &str, result: Option<String>) -> Done<()> {
    const END: &str = "UPDATE multipart_uploads SET status = ?2, result = ?3, ended_at = ?4 WHERE id = ?1";
    run(db, END, params![id.as_uuid(), status, result, row::now().unix_millis()])?;
    run(db, "DELETE FROM multipart_parts WHERE multipart_id = ?1", [id.as_uuid()])?;
    Ok(())
}

pub(super) fn abort(db: &Connection, bucket: BucketId, key: &ObjectKey, id: UploadId) -> Done<()> {
    let upload = get(db, id)?.filter(|upload| upload.bucket == bucket && upload.key == *key);
    if upload.is_none() {
        return Err(Error::NoSuchUpload.into());
    }
    give_up(db, id)
}

/// Aborts an open upload.
fn give_up(db: &Connection, id: UploadId) -> Done<()> {
    drop_parts(db, id, "number >= ?2", 0, "multipart aborted")?;
    end(db, id, "aborted", None)
}

/// Forgets ended uploads, and aborts open ones that were opened too long ago; answers how many in all.
pub(super) fn purge(
    db: &Connection,
    older: Duration,
    open_for: Option<Duration>,
    limit: usize,
) -> Done<usize> {
    const ENDED: &str = "DELETE FROM multipart_uploads WHERE rowid IN (SELECT rowid FROM multipart_uploads
        WHERE status <> 'open' AND ended_at <= ?1 ORDER BY ended_at LIMIT ?2)";
    const OVERDUE: &str = "SELECT id FROM multipart_uploads
        WHERE status = 'open' AND initiated_at <= ?1 ORDER BY initiated_at LIMIT ?2";
    let now = row::now();
    let ended = run(db, ENDED, params![row::before(now, older), int(limit as u64)])?;
    let Some(open_for) = open_for else { return Ok(ended) };
    let range = params![row::before(now, open_for), int(limit.saturating_sub(ended) as u64)];
    let overdue: Vec<UploadId> = all(db, OVERDUE, range, |row| Ok(row::id(row, 0)?))?;
    for id in &overdue {
        give_up(db, *id)?;
    }
    Ok(ended + overdue.len())
}

pub(super) fn list(db: &Connection, query: &ListMultiparts) -> Done<MultipartPage> {
    let select = format!(
        "SELECT {UPLOAD} FROM multipart_uploads
         WHERE bucket_id = ?1 AND status = 'open' AND key >= ?2 AND key < ?3 AND (key > ?2 OR ?4 IS NULL
            OR (initiated_at, id) > (SELECT initiated_at, id FROM multipart_uploads WHERE id = ?4))
         ORDER BY key, initiated_at, id LIMIT ?5"
    );
    let mut walk = Walk::of_multiparts(query);
    while let Some(ask) = walk.ask() {
        let (skip, limit) = (ask.skip.map(|id| id.as_uuid()), int(ask.limit as u64));
        walk.eat(all(
            db,
            &select,
            params![query.bucket.as_uuid(), ask.from, ask.until, skip, limit],
            upload,
        )?);
    }
    Ok(walk.into_page())
}
