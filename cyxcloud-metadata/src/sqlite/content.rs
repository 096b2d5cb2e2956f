//! Records what objects and parts are made of: new segments with all their rows, and references to those there are.

use std::collections::HashMap;
use std::time::Duration;

use cyxcloud_core::{ByteCount, NodeId};
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::engine::Done;
use super::repairs;
use super::row::{self, int, one, run};
use crate::error::Error;
use crate::model::{Content, NewLocation, NewSegment, NewShard, NewStripe, SegmentBody, SegmentRange};
use crate::rows::{self, FileShape, SegmentShape, Standing};
use crate::upkeep::model::StripeRef;

/// What an object or part consists of, recorded or found live; and the shape that it gives a file.
pub(super) struct Body {
    pub(super) ranges: Vec<SegmentRange>,
    pub(super) shape: FileShape,
}

/// Records content. `SourceGone` if it refers to a segment that is not live.
pub(super) fn record(db: &Connection, content: &Content, size: ByteCount) -> Done<Body> {
    let ranges = rows::ranges(content);
    rows::check_size(&ranges, size)?;
    let shape = match content {
        Content::New(segment) if !ranges.is_empty() => {
            insert_segment(db, segment)?;
            FileShape::of([SegmentShape::from(segment)])
        }
        Content::New(_) => FileShape::default(),
        Content::References(_) => {
            let shapes: Done<Vec<_>> = ranges.iter().map(|range| live(db, range)).collect();
            FileShape::of(shapes?)
        }
    };
    Ok(Body { ranges, shape })
}

/// The shape of a segment that is to be referenced.
fn live(db: &Connection, range: &SegmentRange) -> Done<SegmentShape> {
    const SELECT: &str = "SELECT length, data_shards, parity_shards, copies, stripe_size, chunk_count,
        inline_hash IS NOT NULL FROM segments WHERE id = ?1 AND state = 'live'";
    let found = one(db, SELECT, [range.segment.as_uuid()], |row| {
        let shape = SegmentShape {
            geometry: rows::geometry(row.get(1)?, row.get(2)?, row.get(3)?)?,
            stripe_size: row::bytes(row, 4)?,
            chunk_count: row::count(row, 5)?,
            inline: row.get(6)?,
        };
        Ok((row::bytes(row, 0)?.get(), shape))
    })?;
    match found {
        Some((length, shape)) if range.offset.checked_add(range.length).is_some_and(|end| end <= length) => {
            Ok(shape)
        }
        Some((length, _)) => {
            let source = format!("{range:?} reaches beyond the segment's {length} bytes").into();
            Err(Error::Database { doing: "reference a segment", source }.into())
        }
        None => Err(Error::SourceGone.into()),
    }
}

fn insert_segment(db: &Connection, segment: &NewSegment) -> Done<()> {
    const INSERT: &str = "INSERT INTO segments (id, owner_id, length, stripe_size, data_shards, parity_shards, copies,
        format, content_hash, acked_tolerance, target_tolerance, chunk_count, inline_hash, inline_data, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
    let inline = match &segment.body {
        SegmentBody::Inline { plain_hash, sealed } => Some((plain_hash.as_slice(), sealed.as_ref())),
        SegmentBody::Stripes(_) => None,
    };
    run(
        db,
        INSERT,
        params![
            segment.id.as_uuid(),
            segment.owner.as_uuid(),
            segment.length.as_i64(),
            segment.stripe_size.as_i64(),
            small(segment.geometry.data()),
            small(segment.geometry.parity()),
            small(segment.geometry.copies()),
            segment.format,
            segment.content_hash.as_slice(),
            segment.acked_tolerance,
            segment.target_tolerance,
            rows::chunk_count(segment),
            inline.map(|(plain_hash, _)| plain_hash),
            inline.map(|(_, sealed)| sealed),
            row::now().unix_millis(),
        ],
    )?;
    if let SegmentBody::Stripes(stripes) = &segment.body {
        const PROMISE_LESS: &str = "UPDATE segments SET acked_tolerance = ?2 WHERE id = ?1";
        let standings = standings(db, stripes)?;
        let mut promised = segment.acked_tolerance;
        for (stripe, index) in stripes.iter().zip(0u32..) {
            promised = promised.min(insert_stripe(db, segment, index, stripe, &standings)?);
        }
        if promised < segment.acked_tolerance {
            run(db, PROMISE_LESS, params![segment.id.as_uuid(), promised])?;
        }
    }
    Ok(())
}

/// Of nodes that are known: whether it is online, and the life of its data directory.
type Standings = HashMap<NodeId, Option<(bool, Uuid)>>;

/// How the nodes that the stripes name stand now.
fn standings(db: &Connection, stripes: &[NewStripe]) -> Done<Standings> {
    const SELECT: &str = "SELECT status = 'online', incarnation FROM nodes WHERE id = ?1";
    let mut standings = HashMap::new();
    for location in stripes.iter().flat_map(|stripe| &stripe.shards).flat_map(|shard| &shard.locations) {
        if let std::collections::hash_map::Entry::Vacant(unknown) = standings.entry(location.node) {
            unknown.insert(one(db, SELECT, [location.node.as_uuid()], |row| Ok((row.get(0)?, row.get(1)?)))?);
        }
    }
    Ok(standings)
}

/// Answers with what can be promised of it, at most what was acknowledged of the segment. What was stored on nodes that are
/// removed by now, or in a former life of theirs, is left out.
fn insert_stripe(
    db: &Connection,
    segment: &NewSegment,
    index: u32,
    stripe: &NewStripe,
    standings: &Standings,
) -> Done<u8> {
    const STRIPE: &str =
        "INSERT INTO stripes (segment_id, stripe_index, plain_hash, plain_len) VALUES (?1, ?2, ?3, ?4)";
    let id = segment.id.as_uuid();
    run(db, STRIPE, params![id, index, stripe.plain_hash.as_slice(), stripe.plain_len.as_i64()])?;
    let standing = |at: &NewLocation| Standing::of(at, standings.get(&at.node).copied().flatten());
    for shard in &stripe.shards {
        insert_shard(db, segment, index, shard, &standing)?;
    }
    let Some(owed) = rows::owed(segment, stripe, standing)? else { return Ok(segment.acked_tolerance) };
    let stripe = StripeRef { segment: segment.id, index };
    repairs::queue(db, stripe, owed.priority, Duration::ZERO, owed.reason)?;
    Ok(owed.promised)
}

fn insert_shard(
    db: &Connection,
    segment: &NewSegment,
    stripe: u32,
    shard: &NewShard,
    standing: &impl Fn(&NewLocation) -> Standing,
) -> Done<()> {
    const CHUNK: &str = "INSERT INTO chunks
        (segment_id, stripe_index, shard_index, chunk_id, is_parity, size_bytes, replication_factor)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    const LOCATION: &str = "INSERT INTO chunk_locations
        (segment_id, stripe_index, shard_index, node_id, chunk_id, incarnation, generation, receipt, receipt_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let (id, place, chunk) =
        (segment.id.as_uuid(), small(shard.index.get()), shard.chunk.as_bytes().as_slice());
    let (parity, copies) = (segment.geometry.is_parity(shard.index), small(segment.geometry.copies()));
    run(db, CHUNK, params![id, stripe, place, chunk, parity, shard.size.as_i64(), copies])?;
    for at in shard.locations.iter().filter(|at| standing(at) != Standing::Gone) {
        run(
            db,
            LOCATION,
            params![
                id,
                stripe,
                place,
                at.node.as_uuid(),
                chunk,
                at.generation.incarnation,
                int(at.generation.counter),
                at.receipt_signature,
                at.stored_at.unix_millis(),
            ],
        )?;
    }
    Ok(())
}

/// A number of shards or copies as SQLite takes it.
pub(super) fn small(n: usize) -> i64 {
    int(n as u64)
}
