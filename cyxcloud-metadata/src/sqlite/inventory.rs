//! What a node is recorded to hold, and what it says that it holds, compared.
//!
//! Walked in the order of `chunk_locations_inventory`, a page at a time. What a page says may be old when it is
//! recorded: rows that went or took a newer generation meanwhile are left alone. Not here: asking the node.

use std::time::Duration;

use cyxcloud_core::{ChunkId, Generation, NodeId, SegmentId};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::content::small;
use super::deletes::{self, Entry};
use super::engine::Done;
use super::garbage;
use super::repairs;
use super::row::{self, all, exists, int, number, one, run};
use crate::upkeep::model::{
    GcBrake, GcHalt, LostBecause, NodeCursor, NodeLocation, Orphan, OrphanStep, Reconciled,
};

/// What [`location`] reads of a location `l` and its chunk `c`.
const LOCATION: &str = "l.chunk_id, l.segment_id, l.stripe_index, l.shard_index, c.size_bytes, l.incarnation,
    l.generation, l.status";
/// A location's chunk. Crosswise: the planner must begin with the locations.
const ITS_CHUNK: &str =
    "CROSS JOIN chunks c ON c.segment_id = l.segment_id AND c.stripe_index = l.stripe_index
    AND c.shard_index = l.shard_index";
const IN_ORDER: &str = "ORDER BY l.chunk_id, l.segment_id, l.stripe_index, l.shard_index";

fn location(row: &Row<'_>) -> Done<NodeLocation> {
    Ok(NodeLocation {
        at: row::cursor(row, 0)?,
        size: row::bytes(row, 4)?,
        generation: row::generation(row, 5)?,
        status: row::location_status(row, 7)?,
    })
}

/// What [`locations`] runs.
pub(super) fn page() -> String {
    format!(
        "SELECT {LOCATION} FROM chunk_locations l INDEXED BY chunk_locations_inventory {ITS_CHUNK}
         WHERE l.node_id = ?1 AND (l.chunk_id, l.segment_id, l.stripe_index, l.shard_index) > (?2, ?3, ?4, ?5)
         {IN_ORDER} LIMIT ?6"
    )
}

/// What [`sample`] runs.
pub(super) fn pick() -> String {
    format!(
        "SELECT {LOCATION} FROM chunk_locations l INDEXED BY chunk_locations_inventory
         CROSS JOIN segments g ON g.id = l.segment_id AND g.state = 'live' {ITS_CHUNK}
         WHERE l.node_id = ?1 AND l.chunk_id >= ?2 AND l.status = 'stored' {IN_ORDER} LIMIT 1"
    )
}

pub(super) fn locations(
    db: &Connection,
    node: NodeId,
    after: Option<NodeCursor>,
    limit: usize,
) -> Done<Vec<NodeLocation>> {
    let (chunk, segment, stripe, shard) = match &after {
        Some(at) => (
            at.chunk.as_bytes().as_slice(),
            at.stripe.segment.as_uuid(),
            i64::from(at.stripe.index),
            small(at.shard.get()),
        ),
        None => ([].as_slice(), Uuid::nil(), -1, -1), // before every other
    };
    all(db, &page(), params![node.as_uuid(), chunk, segment, stripe, shard, int(limit as u64)], location)
}

pub(super) fn samples(db: &Connection, node: NodeId, from: &[ChunkId]) -> Done<Vec<NodeLocation>> {
    let found: Done<Vec<_>> = from.iter().map(|chunk| sample(db, node, chunk)).collect();
    Ok(found?.into_iter().flatten().collect())
}

pub(super) fn at_risk(
    db: &Connection,
    from: SegmentId,
    losses: i32,
    unproven_for: Duration,
    limit: usize,
) -> Done<Vec<(NodeId, NodeLocation)>> {
    let since = row::before(row::now(), unproven_for);
    all(db, &unproven(), params![from.as_uuid(), losses, since, int(limit as u64)], |row| {
        Ok((row::id(row, 8)?, location(row)?))
    })
}

/// What [`at_risk`] runs.
pub(super) fn unproven() -> String {
    format!(
        "SELECT {LOCATION}, l.node_id FROM (
            SELECT segment_id, stripe_index FROM repair_jobs INDEXED BY repair_jobs_open
            WHERE segment_id >= ?1 AND status IN ('pending', 'in_progress') AND status = 'pending' AND priority <= ?2
            ORDER BY segment_id, stripe_index LIMIT ?4) j
         CROSS JOIN segments g ON g.id = j.segment_id AND g.state = 'live'
         CROSS JOIN chunk_locations l ON l.segment_id = j.segment_id AND l.stripe_index = j.stripe_index
            AND l.status = 'stored' AND (l.last_verified IS NULL OR l.last_verified <= ?3)
         {ITS_CHUNK}
         WHERE NOT EXISTS (SELECT 1 FROM contained_audits a WHERE a.node_id = l.node_id
            AND a.segment_id = l.segment_id AND a.stripe_index = l.stripe_index AND a.shard_index = l.shard_index)
         LIMIT ?4"
    )
}

fn sample(db: &Connection, node: NodeId, chunk: &ChunkId) -> Done<Option<NodeLocation>> {
    let from = |chunk: &[u8]| one(db, &pick(), params![node.as_uuid(), chunk], location);
    match from(chunk.as_bytes())? {
        Some(found) => Ok(Some(found)),
        None => from(&[]),
    }
}

pub(super) fn record(db: &Connection, compared: &Reconciled) -> Done<()> {
    let node = compared.node;
    for at in &compared.missing {
        missing(db, node, at)?;
    }
    for (at, generation) in &compared.found {
        const FOUND: &str = "status = 'stored',";
        held(db, node, at, *generation, FOUND)?;
    }
    for (at, generation) in &compared.renewed {
        held(db, node, at, *generation, "")?;
    }
    if compared.orphans.is_empty() {
        return Ok(());
    }
    let had = number(db, "SELECT location_count FROM nodes WHERE id = ?1", [node.as_uuid()])?;
    let most = compared.orphans_max.saturating_add(usize::try_from(had).unwrap_or(usize::MAX));
    let mut room = most.saturating_sub(waiting(db, node, most)?);
    for (chunk, generation) in &compared.orphans {
        let orphan = Orphan { node, chunk: *chunk, generation: *generation };
        room -= usize::from(remember(db, &orphan, room > 0)?);
    }
    Ok(())
}

/// Chunks that wait for the node to delete them; no more than `most` are counted.
fn waiting(db: &Connection, node: NodeId, most: usize) -> Done<usize> {
    const WAITING: &str = "SELECT count(*) FROM (SELECT 1 FROM orphans WHERE node_id = ?1
        UNION ALL SELECT 1 FROM chunk_deletes WHERE node_id = ?1 LIMIT ?2)";
    let waiting = number(db, WAITING, params![node.as_uuid(), int(most as u64)])?;
    Ok(usize::try_from(waiting).unwrap_or(usize::MAX))
}

/// Which location is meant.
const PLACE: &str =
    "node_id = ?1 AND chunk_id = ?2 AND segment_id = ?3 AND stripe_index = ?4 AND shard_index = ?5";

fn missing(db: &Connection, node: NodeId, at: &NodeCursor) -> Done<()> {
    let missing = format!(
        "UPDATE chunk_locations SET status = 'missing' WHERE {PLACE} AND status IN ('stored', 'leaving')"
    );
    let (chunk, segment) = (at.chunk.as_bytes().as_slice(), at.stripe.segment.as_uuid());
    let place = params![node.as_uuid(), chunk, segment, at.stripe.index, small(at.shard.get())];
    if run(db, &missing, place)? > 0 {
        repairs::queue_lost(db, at.stripe, LostBecause::NotListed)?;
    }
    Ok(())
}

/// The node holds it, in this generation: `also` is what else follows.
fn held(db: &Connection, node: NodeId, at: &NodeCursor, generation: Generation, also: &str) -> Done<()> {
    // A row of a newer generation was recorded since the node was asked.
    let held = format!(
        "UPDATE chunk_locations SET {also} incarnation = ?6, generation = ?7
         WHERE {PLACE} AND (incarnation <> ?6 OR generation <= ?7)"
    );
    run(
        db,
        &held,
        params![
            node.as_uuid(),
            at.chunk.as_bytes().as_slice(),
            at.stripe.segment.as_uuid(),
            at.stripe.index,
            small(at.shard.get()),
            generation.incarnation,
            int(generation.counter),
        ],
    )?;
    Ok(())
}

/// Whether any row says that the node holds the chunk.
const NAMED: &str = "SELECT 1 FROM chunk_locations WHERE node_id = ?1 AND chunk_id = ?2";

/// Remembers an orphan, one that was not known only where there is `room`. Whether it is new.
fn remember(db: &Connection, orphan: &Orphan, room: bool) -> Done<bool> {
    // It goes without being seen again.
    const TOLD: &str = "SELECT 1 FROM chunk_deletes
        WHERE node_id = ?1 AND chunk_id = ?2 AND incarnation = ?3 AND generation >= ?4";
    const KNOWN: &str = "SELECT 1 FROM orphans WHERE node_id = ?1 AND chunk_id = ?2";
    // First seen with this generation: another one has been stored since, perhaps for an upload under way.
    const SEEN: &str = "INSERT INTO orphans (node_id, chunk_id, incarnation, generation, first_seen)
        SELECT id, ?2, ?3, ?4, ?5 FROM nodes WHERE id = ?1
        ON CONFLICT (node_id, chunk_id) DO UPDATE SET incarnation = excluded.incarnation,
            generation = excluded.generation, first_seen = excluded.first_seen
        WHERE incarnation <> excluded.incarnation OR generation <> excluded.generation";
    let (node, chunk) = (orphan.node.as_uuid(), orphan.chunk.as_bytes().as_slice());
    let Generation { incarnation, counter } = orphan.generation;
    let counter = int(counter);
    if exists(db, NAMED, params![node, chunk])?
        || exists(db, TOLD, params![node, chunk, incarnation, counter])?
    {
        return Ok(false);
    }
    let known = exists(db, KNOWN, params![node, chunk])?;
    if !known && !room {
        return Ok(false);
    }
    let seen = run(db, SEEN, params![node, chunk, incarnation, counter, row::now().unix_millis()])?;
    Ok(!known && seen > 0)
}

pub(super) fn finish(db: &Connection, node: NodeId, locations: Option<u64>) -> Done<()> {
    const FINISH: &str =
        "UPDATE nodes SET reconciled_at = ?2, location_count = coalesce(?3, location_count) WHERE id = ?1";
    run(db, FINISH, params![node.as_uuid(), row::now().unix_millis(), locations.map(int)])?;
    Ok(())
}

/// Why no orphan at all may go.
fn nothing_may_go(db: &Connection) -> Done<Option<GcHalt>> {
    const LOST: &str = "SELECT 1 WHERE EXISTS (SELECT 1 FROM orphans) AND EXISTS (SELECT 1 FROM stripes)
        AND NOT EXISTS (SELECT 1 FROM chunk_locations)";
    if let Some(reason) = garbage::frozen(db)? {
        return Ok(Some(GcHalt::Frozen(reason)));
    }
    Ok(exists(db, LOST, [])?.then_some(GcHalt::NoLocations))
}

/// Nodes of which no orphan may go that was seen after `released`, each with why.
fn braked(db: &Connection, seen: i64, brake: GcBrake, released: i64) -> Done<Vec<(NodeId, GcHalt)>> {
    const MANY: &str = "SELECT d.node_id, d.orphans,
            (SELECT count(*) FROM chunk_locations l WHERE l.node_id = d.node_id)
        FROM (SELECT node_id, count(*) AS orphans FROM orphans
            WHERE first_seen <= ?1 AND first_seen > ?3
            GROUP BY node_id HAVING count(*) > ?2) d ORDER BY d.node_id";
    let many: Vec<(NodeId, u64, u64)> = all(db, MANY, params![seen, int(brake.floor), released], |row| {
        Ok((row::id(row, 0)?, row::count(row, 1)?, row::count(row, 2)?))
    })?;
    let too_many = |&(_, orphans, locations): &_| brake.holds(orphans, orphans + locations);
    let why = |(node, orphans, locations)| (node, GcHalt::Orphans { node, orphans, locations });
    Ok(many.into_iter().filter(too_many).map(why).collect())
}

pub(super) fn condemn_orphans(
    db: &Connection,
    grace: Duration,
    limit: usize,
    brake: GcBrake,
) -> Done<OrphanStep> {
    // Those that an upload or repair under way may still commit wait, out of the way of others.
    const DUE: &str = "SELECT node_id, chunk_id, incarnation, generation, first_seen FROM orphans
        WHERE first_seen <= ?1 AND first_seen < ?2
            AND (first_seen <= ?5 OR node_id NOT IN (SELECT unhex(value) FROM json_each(?4))) ORDER BY first_seen LIMIT ?3";
    if let Some(halt) = nothing_may_go(db)? {
        return Ok(OrphanStep { taken: 0, halt: Some(halt) });
    }
    let (now, mut taken) = (row::now(), 0);
    let seen = row::before(now, grace);
    let released = garbage::released(db)?;
    let braked = braked(db, seen, brake, released)?;
    let nodes: Vec<String> =
        braked.iter().map(|(node, _)| format!("\"{}\"", node.as_uuid().simple())).collect();
    let nodes = format!("[{}]", nodes.join(","));
    let range = params![seen, deletes::horizon(db)?, int(limit as u64), nodes, released];
    let due = all(db, DUE, range, |row| {
        let (node, chunk) = (row::id(row, 0)?, row::chunk(row, 1)?);
        Ok((Orphan { node, chunk, generation: row::generation(row, 2)? }, row.get::<_, i64>(4)?))
    })?;
    for (Orphan { node, chunk, generation }, first_seen) in due {
        const DROP: &str = "DELETE FROM orphans WHERE node_id = ?1 AND chunk_id = ?2";
        run(db, DROP, params![node.as_uuid(), chunk.as_bytes().as_slice()])?;
        if !exists(db, NAMED, params![node.as_uuid(), chunk.as_bytes().as_slice()])? {
            let entry = Entry { node, chunk, generation, reason: "orphan" };
            deletes::put(db, &entry, first_seen, now.unix_millis())?;
            taken += 1;
        }
    }
    Ok(OrphanStep { taken, halt: braked.into_iter().next().map(|(_, halt)| halt) })
}
