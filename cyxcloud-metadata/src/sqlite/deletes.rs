//! Chunks to be deleted from nodes.
//!
//! One may go when no location names it on that node, and no upload and no repair that began at or before its entry is
//! still under way: what begins later stores a newer generation, which the node keeps. Not here: what makes a chunk
//! garbage (`garbage`, `repairs`, `inventory`), and asking the node.

use std::time::Duration;

use cyxcloud_core::{ChunkId, Generation, NodeId, SegmentId, Timestamp};
use rusqlite::{Connection, params};

use super::engine::Done;
use super::garbage;
use super::row::{self, int, one, run};
use crate::upkeep::model::{ChunkDelete, DeleteOutcome};

/// Entries that a claim drops, per entry that it may answer with: so that one claim has an end.
const DROPPED_MAX: usize = 16;

/// A chunk that a node is to delete.
pub(super) struct Entry {
    pub(super) node: NodeId,
    pub(super) chunk: ChunkId,
    pub(super) generation: Generation,
    /// For operators.
    pub(super) reason: &'static str,
}

/// Hands a chunk to deletion; nothing if the node is not known any more.
pub(super) fn put(db: &Connection, entry: &Entry, since: i64, not_before: i64) -> Done<()> {
    // One row per node, chunk and incarnation. It takes a new id: whoever has the older one in hand named an older
    // generation, and does not end this one.
    const PUT: &str = "INSERT OR REPLACE INTO chunk_deletes
            (node_id, chunk_id, incarnation, generation, reason, since, not_before)
        SELECT n.id, ?2, ?3, max(?4, coalesce(d.generation, ?4)), ?5, max(?6, coalesce(d.since, ?6)),
            max(?7, coalesce(d.not_before, ?7))
        FROM nodes n LEFT JOIN chunk_deletes d ON d.node_id = n.id AND d.chunk_id = ?2 AND d.incarnation = ?3
        WHERE n.id = ?1";
    let (incarnation, counter) = (entry.generation.incarnation, int(entry.generation.counter));
    let chunk = entry.chunk.as_bytes().as_slice();
    run(
        db,
        PUT,
        params![entry.node.as_uuid(), chunk, incarnation, counter, entry.reason, since, not_before],
    )?;
    Ok(())
}

/// Hands every chunk of a segment to deletion, wherever it is, whatever is believed of it; answers how many.
pub(super) fn put_all(db: &Connection, segment: SegmentId) -> Done<usize> {
    // As `put`; of several locations of one chunk on one node the newest counts.
    const PUT: &str = "INSERT OR REPLACE INTO chunk_deletes
            (node_id, chunk_id, incarnation, generation, reason, since, not_before)
        SELECT l.node_id, l.chunk_id, l.incarnation, max(l.generation, coalesce(d.generation, 0)),
            'segment collected', max(?2, coalesce(d.since, ?2)), max(?2, coalesce(d.not_before, ?2))
        FROM (SELECT node_id, chunk_id, incarnation, max(generation) AS generation FROM chunk_locations
            WHERE segment_id = ?1 GROUP BY node_id, chunk_id, incarnation) l
        LEFT JOIN chunk_deletes d
            ON d.node_id = l.node_id AND d.chunk_id = l.chunk_id AND d.incarnation = l.incarnation";
    Ok(run(db, PUT, params![segment.as_uuid(), row::now().unix_millis()])?)
}

/// Since when the oldest upload or repair is under way: what was put down before that, nobody can still commit.
pub(super) fn horizon(db: &Connection) -> Done<i64> {
    const BEGAN: &str = "SELECT min(began) FROM (
        SELECT min(created_at) AS began FROM upload_intents
        UNION ALL SELECT min(claimed_at) FROM repair_jobs WHERE status = 'in_progress')";
    let began = one(db, BEGAN, [], |row| Ok(row.get::<_, Option<i64>>(0)?))?;
    Ok(began.flatten().unwrap_or(i64::MAX))
}

pub(super) fn oldest_intent(db: &Connection) -> Done<Option<Timestamp>> {
    Ok(one(db, "SELECT min(created_at) FROM upload_intents", [], |row| Ok(row::some_time(row, 0)?))?
        .flatten())
}

pub(super) fn claim(
    db: &Connection,
    limit: usize,
    lease: Duration,
    silence: Duration,
) -> Done<Vec<ChunkDelete>> {
    const CLAIM: &str = "UPDATE chunk_deletes SET not_before = ?2 WHERE id = ?1";
    if garbage::frozen(db)?.is_some() {
        return Ok(Vec::new());
    }
    let now = row::now();
    let (claimed, named) = due(db, limit, silence, now)?;
    for id in named {
        run(db, "DELETE FROM chunk_deletes WHERE id = ?1", [id])?;
    }
    for delete in &claimed {
        run(db, CLAIM, params![delete.id, row::after(now, lease)])?;
    }
    Ok(claimed)
}

/// Entries that may go now, nodes that are not there left out, and those met on the way that must not, because a location names them again.
fn due(
    db: &Connection,
    limit: usize,
    silence: Duration,
    now: Timestamp,
) -> Done<(Vec<ChunkDelete>, Vec<i64>)> {
    const DUE: &str = "SELECT d.id, d.node_id, d.chunk_id, d.incarnation, d.generation, d.attempts, EXISTS (
            SELECT 1 FROM chunk_locations l WHERE l.node_id = d.node_id AND l.chunk_id = d.chunk_id)
        FROM chunk_deletes d WHERE d.not_before <= ?1 AND d.since < ?2 AND d.node_id NOT IN (SELECT id FROM nodes
            WHERE status = 'offline'
                OR (status = 'draining' AND (first_offline_at IS NOT NULL OR last_heartbeat <= ?3)))
        ORDER BY d.not_before";
    let (mut claimed, mut named) = (Vec::new(), Vec::new());
    let mut statement = db.prepare_cached(DUE)?;
    let mut rows = statement.query(params![now.unix_millis(), horizon(db)?, row::before(now, silence)])?;
    while claimed.len() < limit
        && named.len() < limit.saturating_mul(DROPPED_MAX)
        && let Some(row) = rows.next()?
    {
        if row.get(6)? {
            named.push(row.get(0)?);
        } else {
            claimed.push(ChunkDelete {
                id: row.get(0)?,
                node: row::id(row, 1)?,
                chunk: row::chunk(row, 2)?,
                generation: row::generation(row, 3)?,
                attempts: row::count(row, 5)?,
            });
        }
    }
    Ok((claimed, named))
}

pub(super) fn finish(db: &Connection, outcomes: &[(i64, DeleteOutcome)]) -> Done<()> {
    const LATER: &str = "UPDATE chunk_deletes SET attempts = attempts + 1, not_before = ?2 WHERE id = ?1";
    for (id, outcome) in outcomes {
        match outcome {
            DeleteOutcome::Settled => run(db, "DELETE FROM chunk_deletes WHERE id = ?1", [id])?,
            DeleteOutcome::Later(delay) => run(db, LATER, params![id, row::after(row::now(), *delay)])?,
        };
    }
    Ok(())
}
