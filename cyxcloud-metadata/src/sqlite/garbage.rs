//! Garbage: segments that nothing refers to, in two phases with a grace between them.
//!
//! Whoever drops a reference leaves a candidate; both phases look again whether there is a reference. Copies and
//! Complete require a segment to be live, so nothing refers to a condemned one anew. Frozen, nothing happens.
//! Not here: deleting chunks from nodes (`deletes`), orphans on nodes (`inventory`).

use std::time::Duration;

use cyxcloud_core::SegmentId;
use rusqlite::{Connection, params};

use super::deletes;
use super::engine::Done;
use super::row::{self, all, int, number, one, run};
use crate::rows;
use crate::upkeep::model::{GcBrake, GcHalt, GcState, GcStep, GcThawed};

/// Name of the constant that says why garbage collection is frozen.
const FROZEN: &str = "gc_frozen";
/// Name of the constant that says why a brake holds.
const HALTED: &str = "gc_halted";
/// Names of the constants that say when an operator last let go what waited then, past every brake; and since when condemned
/// segments count for the brake.
const RELEASED: &str = "gc_released";
const COUNTED_FROM: &str = "gc_counted_from";

/// Why it is frozen, if it is.
pub(super) fn frozen(db: &Connection) -> Done<Option<String>> {
    note(db, FROZEN)
}

fn note(db: &Connection, name: &str) -> Done<Option<String>> {
    one(db, "SELECT value FROM constants WHERE name = ?1", [name], |row| {
        Ok(String::from_utf8_lossy(&row.get::<_, Vec<u8>>(0)?).into_owned())
    })
}

fn put_note(db: &Connection, name: &str, text: &str) -> Done<()> {
    const PUT: &str = "INSERT INTO constants (name, value) VALUES (?1, ?2)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    run(db, PUT, params![name, text.as_bytes()])?;
    Ok(())
}

fn drop_note(db: &Connection, name: &str) -> Done<bool> {
    Ok(run(db, "DELETE FROM constants WHERE name = ?1", [name])? > 0)
}

pub(super) fn freeze(db: &Connection, reason: &str) -> Done<()> {
    put_note(db, FROZEN, reason)
}

pub(super) fn note_halt(db: &Connection, why: Option<&str>) -> Done<()> {
    match why {
        Some(why) => put_note(db, HALTED, why),
        None => drop_note(db, HALTED).map(drop),
    }
}

pub(super) fn thaw(db: &Connection) -> Done<GcThawed> {
    put_now(db, RELEASED)?;
    put_now(db, COUNTED_FROM)?;
    Ok(GcThawed { frozen: drop_note(db, FROZEN)?, braked: drop_note(db, HALTED)? })
}

fn put_now(db: &Connection, name: &str) -> Done<()> {
    put_note(db, name, &row::now().unix_millis().to_string())
}

/// The time that a constant was set to; before all others, where it was not. One that is to come, since the clock was set
/// back, lets nothing pass either.
fn moment(db: &Connection, name: &str) -> Done<i64> {
    let set = note(db, name)?.and_then(|set| set.parse().ok());
    Ok(set.filter(|&set| set <= row::now().unix_millis()).unwrap_or(i64::MIN))
}

/// Until when brakes hold nothing of what was seen.
pub(super) fn released(db: &Connection) -> Done<i64> {
    moment(db, RELEASED)
}

pub(super) fn condemn(db: &Connection, limit: usize, brake: GcBrake) -> Done<Result<GcStep, GcHalt>> {
    const CANDIDATES: &str = "SELECT c.segment_id,
            EXISTS (SELECT 1 FROM segments g WHERE g.id = c.segment_id AND g.state = 'live')
            AND NOT EXISTS (SELECT 1 FROM file_segments f WHERE f.segment_id = c.segment_id)
            AND NOT EXISTS (SELECT 1 FROM part_segments p WHERE p.segment_id = c.segment_id),
            c.created_at <= ?2
        FROM gc_candidates c ORDER BY c.created_at LIMIT ?1";
    const CONDEMN: &str =
        "UPDATE segments SET state = 'condemned', condemned_at = ?2 WHERE id = ?1 AND state = 'live'";
    if let Some(reason) = frozen(db)? {
        return Ok(Err(GcHalt::Frozen(reason)));
    }
    let mut candidates: Vec<(SegmentId, bool, bool)> =
        all(db, CANDIDATES, params![int(limit as u64), released(db)?], |row| {
            Ok((row::id(row, 0)?, row.get(1)?, row.get(2)?))
        })?;
    // The oldest come first: what was released goes by itself, and the others are judged next time.
    let let_go = candidates.first().is_some_and(|&(.., released)| released);
    candidates.retain(|&(.., released)| released == let_go);
    let taken = candidates.iter().filter(|(_, garbage, _)| *garbage).count() as u64;
    let now = row::now().unix_millis();
    if let_go {
        put_note(db, COUNTED_FROM, &now.to_string())?;
    } else if let Some(halt) = halted(db, taken, brake)? {
        return Ok(Err(halt));
    }
    for (segment, garbage, _) in &candidates {
        if *garbage {
            run(db, CONDEMN, params![segment.as_uuid(), now])?;
        }
        run(db, "DELETE FROM gc_candidates WHERE segment_id = ?1", [segment.as_uuid()])?;
    }
    Ok(Ok(GcStep { looked_at: candidates.len() as u64, taken, chunks: 0 }))
}

/// Whether so many more would be too many at once.
fn halted(db: &Connection, more: u64, brake: GcBrake) -> Done<Option<GcHalt>> {
    const SINCE: &str = "SELECT count(*) FROM segments WHERE state = 'condemned' AND condemned_at > ?1";
    let condemned = u64::try_from(number(db, SINCE, [moment(db, COUNTED_FROM)?])?).unwrap_or(0);
    let candidates = more.saturating_add(condemned);
    if more == 0 || candidates <= brake.floor {
        return Ok(None);
    }
    // Counted only now: it takes time where there are many.
    let segments = count(db, "SELECT count(*) FROM segments")?;
    Ok(brake.holds(candidates, segments).then_some(GcHalt::Brake { candidates, segments }))
}

fn count(db: &Connection, sql: &str) -> Done<u64> {
    Ok(u64::try_from(number(db, sql, [])?).unwrap_or(0))
}

pub(super) fn collect(
    db: &Connection,
    grace: Duration,
    limit: usize,
    chunks: u64,
) -> Done<Result<GcStep, GcHalt>> {
    const DUE: &str = "SELECT g.id, EXISTS (SELECT 1 FROM file_segments f WHERE f.segment_id = g.id)
            OR EXISTS (SELECT 1 FROM part_segments p WHERE p.segment_id = g.id), g.chunk_count * g.copies
        FROM segments g WHERE g.state = 'condemned' AND g.condemned_at <= ?1 ORDER BY g.condemned_at LIMIT ?2";
    const PARDON: &str = "UPDATE segments SET state = 'live', condemned_at = NULL WHERE id = ?1";
    if let Some(reason) = frozen(db)? {
        return Ok(Err(GcHalt::Frozen(reason)));
    }
    let mut due: Vec<(SegmentId, bool, u64)> =
        all(db, DUE, params![row::before(row::now(), grace), int(limit as u64)], |row| {
            Ok((row::id(row, 0)?, row.get(1)?, row::count(row, 2)?))
        })?;
    due.truncate(rows::up_to(chunks, due.iter().map(|(.., held)| *held)));
    let mut step = GcStep { looked_at: due.len() as u64, ..GcStep::default() };
    for (segment, referenced, _) in due {
        if referenced {
            run(db, PARDON, [segment.as_uuid()])?;
        } else {
            step.taken += 1;
            step.chunks += erase(db, segment)?;
        }
    }
    Ok(Ok(step))
}

/// Removes a segment with all its rows, its chunks handed to deletion; answers how many.
fn erase(db: &Connection, segment: SegmentId) -> Done<u64> {
    // Children first: a cascade would look for the children of each row.
    const ERASE: [&str; 5] = [
        "DELETE FROM chunk_locations WHERE segment_id = ?1",
        "DELETE FROM chunks WHERE segment_id = ?1",
        "DELETE FROM stripes WHERE segment_id = ?1",
        "DELETE FROM repair_jobs WHERE segment_id = ?1 AND status IN ('pending', 'in_progress')",
        "DELETE FROM segments WHERE id = ?1",
    ];
    let chunks = deletes::put_all(db, segment)?;
    for sql in ERASE {
        run(db, sql, [segment.as_uuid()])?;
    }
    Ok(chunks as u64)
}

/// How much there is; no more than `most` of each kind are counted.
pub(super) fn state(db: &Connection, most: usize) -> Done<GcState> {
    const DUE: &str = "SELECT count(*) FROM (SELECT 1 FROM chunk_deletes WHERE not_before <= ?2 LIMIT ?1)";
    let most = int(most as u64);
    let count = |rows: &str| -> Done<u64> {
        let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT ?1)");
        Ok(u64::try_from(number(db, &sql, [most])?).unwrap_or(0))
    };
    let deletes_due = number(db, DUE, params![most, row::now().unix_millis()])?;
    Ok(GcState {
        candidates: count("gc_candidates")?,
        condemned: count("segments WHERE state = 'condemned'")?,
        deletes: count("chunk_deletes")?,
        deletes_due: u64::try_from(deletes_due).unwrap_or(0),
        orphans: count("orphans")?,
        frozen: frozen(db)?,
        halted: note(db, HALTED)?,
    })
}
