//! Stripes as upkeep sees them: one by one, in a sweep, and of an object.
//!
//! Only of live segments; with every location, whatever is believed of it. Not here: stripes as readers fetch them
//! (`objects`), what is to be done about them (`cyxcloud_core`).

use cyxcloud_core::{BucketId, ByteCount, ChunkId, FileId, SegmentId};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::engine::Done;
use super::row::{self, all, int, one};
use crate::rows;
use crate::upkeep::model::{LocationState, ObjectStripes, StripeRef, StripeState};

pub(super) fn states(db: &Connection, mut stripes: Vec<StripeRef>) -> Done<Vec<StripeState>> {
    stripes.sort_unstable();
    stripes.dedup();
    found(db, &stripes)
}

/// Those that there are, in the order asked for.
fn found(db: &Connection, stripes: &[StripeRef]) -> Done<Vec<StripeState>> {
    let mut states = Vec::with_capacity(stripes.len());
    for stripe in stripes {
        states.extend(state(db, *stripe)?);
    }
    Ok(states)
}

fn state(db: &Connection, stripe: StripeRef) -> Done<Option<StripeState>> {
    const STRIPE: &str =
        "SELECT g.owner_id, g.data_shards, g.parity_shards, g.copies, g.format, t.plain_hash,
            t.plain_len, g.target_tolerance, g.stripe_size
        FROM stripes t JOIN segments g ON g.id = t.segment_id
        WHERE t.segment_id = ?1 AND t.stripe_index = ?2 AND g.state = 'live'";
    let found = one(db, STRIPE, params![stripe.segment.as_uuid(), stripe.index], |row| {
        Ok(StripeState {
            stripe,
            owner: row::id(row, 0)?,
            geometry: rows::geometry(row.get(1)?, row.get(2)?, row.get(3)?)?,
            format: row::count(row, 4)?,
            stripe_size: row::bytes(row, 8)?,
            plain_hash: row::hash(row, 5)?,
            plain_len: row::bytes(row, 6)?,
            target_tolerance: row::count(row, 7)?,
            shards: Vec::new(),
            locations: Vec::new(),
        })
    })?;
    let Some(mut state) = found else { return Ok(None) };
    state.shards = shards(db, stripe)?;
    rows::check_shards(stripe, state.geometry, state.shards.len())?;
    state.locations = locations(db, stripe)?;
    Ok(Some(state))
}

fn shards(db: &Connection, stripe: StripeRef) -> Done<Vec<(ChunkId, ByteCount)>> {
    const SHARDS: &str = "SELECT chunk_id, size_bytes FROM chunks
        WHERE segment_id = ?1 AND stripe_index = ?2 ORDER BY shard_index";
    all(db, SHARDS, params![stripe.segment.as_uuid(), stripe.index], |row| {
        Ok((row::chunk(row, 0)?, row::bytes(row, 1)?))
    })
}

fn locations(db: &Connection, stripe: StripeRef) -> Done<Vec<LocationState>> {
    const LOCATIONS: &str = "SELECT shard_index, node_id, incarnation, generation, status, last_verified
        FROM chunk_locations WHERE segment_id = ?1 AND stripe_index = ?2 ORDER BY shard_index, node_id";
    all(db, LOCATIONS, params![stripe.segment.as_uuid(), stripe.index], |row| {
        Ok(LocationState {
            shard: row::shard(row, 0)?,
            node: row::id(row, 1)?,
            generation: row::generation(row, 2)?,
            status: row::location_status(row, 4)?,
            proven_at: row::some_time(row, 5)?,
        })
    })
}

/// What a page of the sweep reads. Joined crosswise, so that the planner walks the stripes in order and stops.
pub(super) const NEXT: &str = "SELECT t.segment_id, t.stripe_index
    FROM stripes t CROSS JOIN segments g ON g.id = t.segment_id
    WHERE (t.segment_id, t.stripe_index) > (?1, ?2) AND g.state = 'live'
    ORDER BY t.segment_id, t.stripe_index LIMIT ?3";

pub(super) fn sweep(db: &Connection, after: Option<StripeRef>, limit: usize) -> Done<Vec<StripeState>> {
    found(db, &list(db, after, limit)?)
}

/// Which stripes a page of the sweep looks into.
pub(super) fn list(db: &Connection, after: Option<StripeRef>, limit: usize) -> Done<Vec<StripeRef>> {
    let (segment, index) = match after {
        Some(stripe) => (stripe.segment.as_uuid(), i64::from(stripe.index)),
        None => (Uuid::nil(), -1),
    };
    all(db, NEXT, params![segment, index, int(limit as u64)], |row| row::stripe(row, 0))
}

/// A segment of an object.
struct Part {
    segment: SegmentId,
    inline: bool,
    length: ByteCount,
    stripes: u64,
}

pub(super) fn of_object(db: &Connection, file: FileId, limit: usize) -> Done<Option<ObjectStripes>> {
    const FILE: &str = "SELECT bucket_id FROM files WHERE id = ?1 AND is_latest AND NOT is_delete_marker";
    const INDICES: &str = "SELECT segment_id, stripe_index FROM stripes WHERE segment_id = ?1
        ORDER BY stripe_index LIMIT ?2";
    let bucket: Option<BucketId> = one(db, FILE, [file.as_uuid()], |row| Ok(row::id(row, 0)?))?;
    let Some(bucket) = bucket else { return Ok(None) };
    let parts = parts(db, file)?;
    let mut stripes = Vec::new();
    for part in &parts {
        let room = int(limit.saturating_sub(stripes.len()) as u64);
        stripes.extend(all(db, INDICES, params![part.segment.as_uuid(), room], |row| row::stripe(row, 0))?);
    }
    Ok(Some(ObjectStripes {
        file,
        bucket,
        stripes: found(db, &stripes)?,
        inline_bytes: parts.iter().filter(|part| part.inline).map(|part| part.length).sum(),
        total: parts.iter().map(|part| part.stripes).sum(),
    }))
}

/// What an object consists of, each segment once, in order of where it first occurs.
fn parts(db: &Connection, file: FileId) -> Done<Vec<Part>> {
    const PARTS: &str = "SELECT f.segment_id, g.inline_hash IS NOT NULL, g.length,
            (SELECT count(*) FROM stripes t WHERE t.segment_id = f.segment_id)
        FROM (SELECT segment_id, min(position) AS first FROM file_segments WHERE file_id = ?1 GROUP BY segment_id) f
        JOIN segments g ON g.id = f.segment_id ORDER BY f.first";
    all(db, PARTS, [file.as_uuid()], |row| {
        Ok(Part {
            segment: row::id(row, 0)?,
            inline: row.get(1)?,
            length: row::bytes(row, 2)?,
            stripes: row::count(row, 3)?,
        })
    })
}
