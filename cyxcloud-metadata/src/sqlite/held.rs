//! Locations that were lost, found again in what nodes say they hold.
//!
//! Only places whose chunk row exists are recorded; a row that says as much or more already is left alone. Not here: asking the nodes, and
//! reading descriptors.

use std::collections::HashSet;

use cyxcloud_core::{ByteCount, ChunkId, NodeId};
use rusqlite::{Connection, params};

use super::content::small;
use super::engine::Done;
use super::row::{self, exists, int, number, run};
use crate::model::NewLocation;
use crate::upkeep::model::{HeldChunk, KnownPlace, NodeCursor, WorkInHand};

pub(super) fn in_hand(db: &Connection) -> Done<WorkInHand> {
    const REPAIRS: &str =
        "SELECT count(*) FROM repair_jobs WHERE status = 'in_progress' AND lease_until > ?1";
    const SCANS: &str = "SELECT count(*) FROM node_scans WHERE NOT done AND lease_until > ?1";
    let now = row::now().unix_millis();
    let count = |sql| Ok::<_, rusqlite::Error>(u64::try_from(number(db, sql, [now])?).unwrap_or(0));
    Ok(WorkInHand { repairs: count(REPAIRS)?, scans: count(SCANS)? })
}

pub(super) fn known(db: &Connection, node: NodeId, held: &[HeldChunk]) -> Done<Vec<KnownPlace>> {
    const BELONGS: &str =
        "SELECT 1 FROM chunks WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3
        AND chunk_id = ?4 AND size_bytes = ?5";
    const RECORDED: &str = "SELECT 1 FROM chunk_locations
        WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3 AND node_id = ?4
            AND status IN ('stored', 'leaving') AND incarnation = ?5 AND generation >= ?6";
    let mut known = Vec::with_capacity(held.len());
    for HeldChunk { at, size, generation } in held {
        let (segment, shard) = (at.stripe.segment.as_uuid(), small(at.shard.get()));
        let chunk = at.chunk.as_bytes().as_slice();
        let belongs = params![segment, at.stripe.index, shard, chunk, int(size.get())];
        let counter = int(generation.counter);
        let place = params![segment, at.stripe.index, shard, node.as_uuid(), generation.incarnation, counter];
        known.push(if !exists(db, BELONGS, belongs)? {
            KnownPlace::Nowhere
        } else if exists(db, RECORDED, place)? {
            KnownPlace::Recorded
        } else {
            KnownPlace::Unrecorded
        });
    }
    Ok(known)
}

/// Chunk ids have no index of their own: all rows are read once.
pub(super) fn places(db: &Connection, chunks: &[ChunkId]) -> Done<Vec<(NodeCursor, ByteCount)>> {
    const ALL: &str = "SELECT chunk_id, segment_id, stripe_index, shard_index, size_bytes FROM chunks";
    let wanted: HashSet<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes().as_slice()).collect();
    let mut statement = db.prepare_cached(ALL)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if row.get_ref(0)?.as_blob().is_ok_and(|chunk| wanted.contains(chunk)) {
            found.push((row::cursor(row, 0)?, row::bytes(row, 4)?));
        }
    }
    Ok(found)
}

pub(super) fn record(db: &Connection, held: &[(NodeCursor, NewLocation)]) -> Done<usize> {
    const RECORD: &str = "INSERT INTO chunk_locations AS l (segment_id, stripe_index, shard_index, node_id, chunk_id,
            incarnation, generation, receipt, receipt_at)
        SELECT c.segment_id, c.stripe_index, c.shard_index, n.id, c.chunk_id, ?6, ?7, ?8, ?9
        FROM chunks c CROSS JOIN nodes n
        WHERE c.segment_id = ?1 AND c.stripe_index = ?2 AND c.shard_index = ?3 AND c.chunk_id = ?4 AND n.id = ?5
        ON CONFLICT (segment_id, stripe_index, shard_index, node_id) DO UPDATE SET
            incarnation = excluded.incarnation, generation = excluded.generation, receipt = excluded.receipt,
            receipt_at = excluded.receipt_at, verification_failures = 0,
            status = CASE l.status WHEN 'leaving' THEN 'leaving' ELSE 'stored' END
        WHERE l.status NOT IN ('stored', 'leaving') OR l.incarnation <> excluded.incarnation
            OR l.generation < excluded.generation";
    let mut changed = 0;
    for (at, location) in held {
        changed += run(
            db,
            RECORD,
            params![
                at.stripe.segment.as_uuid(),
                at.stripe.index,
                small(at.shard.get()),
                at.chunk.as_bytes().as_slice(),
                location.node.as_uuid(),
                location.generation.incarnation,
                int(location.generation.counter),
                location.receipt_signature,
                location.stored_at.unix_millis(),
            ],
        )?;
    }
    Ok(changed)
}
