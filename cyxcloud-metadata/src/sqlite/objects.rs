//! Reads objects: one, where its bytes are, and pages of many.

use std::ops::Range;

use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ChunkId, Geometry, NodeId, SegmentId};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::engine::Done;
use super::row::{self, OBJECT, all, int, one};
use crate::listing::Walk;
use crate::model::{
    Extent, ListObjects, ListPage, ListedObject, Object, ObjectLayout, SegmentInfo, ShardLayout, StripeLayout,
};
use crate::rows::{self, corrupt};

pub(super) fn get(db: &Connection, bucket: BucketId, key: &ObjectKey) -> Done<Option<Object>> {
    let select = format!(
        "SELECT {OBJECT} FROM files WHERE bucket_id = ?1 AND key = ?2 AND is_latest AND NOT is_delete_marker"
    );
    one(db, &select, params![bucket.as_uuid(), key.as_bytes()], row::object)
}

pub(super) fn layout(
    db: &Connection,
    bucket: BucketId,
    key: &ObjectKey,
    range: Option<Range<u64>>,
) -> Done<Option<ObjectLayout>> {
    const EXTENTS: &str = "SELECT f.object_offset, f.segment_offset, f.length, s.id, s.owner_id, s.length,
            s.stripe_size, s.data_shards, s.parity_shards, s.copies, s.format, s.content_hash, s.acked_tolerance,
            s.target_tolerance, s.inline_hash, s.inline_data
        FROM file_segments f JOIN segments s ON s.id = f.segment_id
        WHERE f.file_id = ?1 AND f.object_offset < ?3 AND f.object_offset + f.length > ?2
        ORDER BY f.position";
    let Some(object) = get(db, bucket, key)? else { return Ok(None) };
    let range = range.unwrap_or(0..u64::MAX);
    let mut extents = if range.is_empty() {
        Vec::new()
    } else {
        all(db, EXTENTS, params![object.file.as_uuid(), int(range.start), int(range.end)], extent)?
    };
    if let [only] = extents.as_mut_slice()
        && only.segment.inline.is_none()
    {
        only.stripes = stripes(db, only.segment.id, rows::stripes_along(only, &range))?;
    }
    Ok(Some(ObjectLayout { object, extents }))
}

fn extent(row: &Row<'_>) -> Done<Extent> {
    let inline = match row.get::<_, Option<Vec<u8>>>(15)? {
        Some(sealed) => Some((row::hash(row, 14)?, sealed.into())),
        None => None,
    };
    Ok(Extent {
        object_offset: row::count(row, 0)?,
        segment_offset: row::count(row, 1)?,
        length: row::count(row, 2)?,
        segment: SegmentInfo {
            id: row::id(row, 3)?,
            owner: row::id(row, 4)?,
            length: row::bytes(row, 5)?,
            stripe_size: row::bytes(row, 6)?,
            geometry: rows::geometry(row.get(7)?, row.get(8)?, row.get(9)?)?,
            format: row::count(row, 10)?,
            content_hash: row::hash(row, 11)?,
            acked_tolerance: row::count(row, 12)?,
            target_tolerance: row::count(row, 13)?,
            inline,
        },
        stripes: Vec::new(),
    })
}

pub(super) fn stripes(db: &Connection, segment: SegmentId, range: Range<u32>) -> Done<Vec<StripeLayout>> {
    const GEOMETRY: &str = "SELECT data_shards, parity_shards, copies FROM segments WHERE id = ?1";
    const STRIPES: &str = "SELECT stripe_index, plain_hash, plain_len FROM stripes
        WHERE segment_id = ?1 AND stripe_index >= ?2 AND stripe_index < ?3 ORDER BY stripe_index";
    const SHARDS: &str =
        "SELECT c.stripe_index, c.shard_index, c.chunk_id, c.size_bytes, l.node_id FROM chunks c
        LEFT JOIN chunk_locations l ON l.segment_id = c.segment_id AND l.stripe_index = c.stripe_index
            AND l.shard_index = c.shard_index AND l.status = 'stored'
        WHERE c.segment_id = ?1 AND c.stripe_index >= ?2 AND c.stripe_index < ?3
        ORDER BY c.stripe_index, c.shard_index, l.node_id";
    let id = segment.as_uuid();
    let geometry = one(db, GEOMETRY, [id], |row| Ok(rows::geometry(row.get(0)?, row.get(1)?, row.get(2)?)?))?;
    let Some(geometry) = geometry else { return Ok(Vec::new()) };
    let mut stripes = all(db, STRIPES, params![id, range.start, range.end], |row| {
        Ok(StripeLayout {
            index: row::count(row, 0)?,
            plain_hash: row::hash(row, 1)?,
            plain_len: row::bytes(row, 2)?,
            shards: Vec::with_capacity(geometry.shards()),
        })
    })?;
    let shards = all(db, SHARDS, params![id, range.start, range.end], |row| {
        Ok((row.get::<_, u32>(0)?, shard(row, geometry)?))
    })?;
    let mut at = stripes.iter_mut().peekable();
    for (stripe, mut shard) in shards {
        while at.next_if(|layout| layout.index < stripe).is_some() {}
        let Some(layout) = at.peek_mut().filter(|layout| layout.index == stripe) else { continue };
        match layout.shards.last_mut() {
            Some(last) if last.index == shard.index => last.nodes.append(&mut shard.nodes),
            _ => layout.shards.push(shard),
        }
    }
    Ok(stripes)
}

/// One shard and one of its nodes.
fn shard(row: &Row<'_>, geometry: Geometry) -> Done<ShardLayout> {
    let place: usize = row::count(row, 1)?;
    Ok(ShardLayout {
        index: geometry.shard(place).ok_or_else(|| corrupt("shard", format!("{place} of {geometry}")))?,
        chunk: ChunkId::from_bytes(row::hash(row, 2)?),
        size: row::bytes(row, 3)?,
        nodes: row.get::<_, Option<Uuid>>(4)?.map(NodeId::from).into_iter().collect(),
    })
}

/// What a page of a listing reads; the planner must not take another way than the index.
pub(super) const PAGE: &str = "SELECT key, size_bytes, etag, created_at, checksums FROM files INDEXED BY files_visible
    WHERE bucket_id = ?1 AND key >= ?2 AND key < ?3 AND is_latest AND NOT is_delete_marker ORDER BY key LIMIT ?4";

pub(super) fn list(db: &Connection, query: &ListObjects) -> Done<ListPage> {
    let mut walk = Walk::of_objects(query);
    while let Some(ask) = walk.ask() {
        let limit = int(ask.limit as u64);
        walk.eat(all(db, PAGE, params![query.bucket.as_uuid(), ask.from, ask.until, limit], listed)?);
    }
    Ok(walk.into_page())
}

fn listed(row: &Row<'_>) -> Done<ListedObject> {
    let checksums = rows::checksums_from_json(row.get_ref(4)?.as_str().map_err(|e| corrupt("checksum", e))?)?;
    Ok(ListedObject {
        key: String::from_utf8(row.get(0)?).map_err(|e| corrupt("key", e))?,
        size: row::bytes(row, 1)?,
        etag: row.get(2)?,
        modified_at: row::time(row, 3)?,
        checksum_algorithms: checksums.into_iter().map(|checksum| checksum.algorithm).collect(),
    })
}
