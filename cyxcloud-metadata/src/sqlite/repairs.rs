//! Repairs: the queue, who has a stripe in hand, and what became of it.
//!
//! A stripe has at most one open job. Only the claim that a job has now (its id and fence) can end it; a lease that ran
//! out is good as long as nobody else took the job. Not here: what a stripe needs, and carrying it out.

use std::time::Duration;

use cyxcloud_core::{ChunkId, NodeId, ShardIndex};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::content::small;
use super::deletes::{self, Entry};
use super::engine::Done;
use super::row::{self, all, exists, int, number, one, run};
use crate::error::Error;
use crate::model::NewLocation;
use crate::rows::shown;
use crate::upkeep::model::{LostBecause, NewRepair, RepairDone, RepairJob, RepairQueue, StripeRef};

/// Characters of an error that a job's row keeps.
const ERROR_MAX: usize = 500;

/// Queues the repair of a stripe of a live segment; answers whether it is new. One that waits keeps the more urgent
/// priority and the earlier time; one that is in hand is looked at again when that ends.
pub(super) fn queue(
    db: &Connection,
    stripe: StripeRef,
    priority: i32,
    delay: Duration,
    reason: &str,
) -> Done<bool> {
    // `not_before` of a job in hand is of no use any more, until it is queued again.
    const QUEUE: &str = "INSERT INTO repair_jobs
            (id, segment_id, stripe_index, priority, reason, not_before, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
        ON CONFLICT (segment_id, stripe_index) WHERE status IN ('pending', 'in_progress') DO UPDATE SET
            priority = min(priority, excluded.priority),
            not_before = CASE WHEN status = 'pending' OR again THEN min(not_before, excluded.not_before)
                ELSE excluded.not_before END,
            reason = CASE WHEN excluded.priority < priority THEN excluded.reason ELSE reason END,
            again = status = 'in_progress'
        RETURNING id = ?1";
    let (now, segment) = (row::now(), stripe.segment.as_uuid());
    let (due, now) = (row::after(now, delay), now.unix_millis());
    let new = one(
        db,
        QUEUE,
        params![Uuid::new_v4(), segment, stripe.index, priority, shown(reason), due, now],
        |row| Ok(row.get(0)?),
    )?;
    Ok(new.unwrap_or(false))
}

/// Queues the repair of a stripe that lost a location, at once, by what it can still lose. Not if nobody needs it.
pub(super) fn queue_lost(db: &Connection, stripe: StripeRef, because: LostBecause) -> Done<()> {
    // Coded: distinct shards beyond those needed. Copied: copies beyond one.
    const LEFT: &str = "SELECT CASE WHEN s.parity_shards = 0 AND s.data_shards = 1 THEN count(l.node_id)
            ELSE count(DISTINCT l.shard_index) END - s.data_shards
        FROM segments s LEFT JOIN chunk_locations l
            ON l.segment_id = s.id AND l.stripe_index = ?2 AND l.status = 'stored'
        WHERE s.id = ?1 AND s.state = 'live' GROUP BY s.id";
    let left =
        one(db, LEFT, params![stripe.segment.as_uuid(), stripe.index], |row| Ok(row.get::<_, i64>(0)?))?;
    if let Some(left) = left {
        let priority = i32::try_from(left.max(0)).unwrap_or(i32::MAX);
        queue(db, stripe, priority, Duration::ZERO, because.as_str())?;
    }
    Ok(())
}

pub(super) fn queue_all(db: &Connection, repairs: &[NewRepair]) -> Done<usize> {
    const LIVE: &str = "SELECT 1 FROM stripes t JOIN segments g ON g.id = t.segment_id
        WHERE t.segment_id = ?1 AND t.stripe_index = ?2 AND g.state = 'live'";
    let mut new = 0;
    for repair in repairs {
        let stripe = repair.stripe;
        if exists(db, LIVE, params![stripe.segment.as_uuid(), stripe.index])?
            && queue(db, stripe, repair.priority, repair.delay, &repair.reason)?
        {
            new += 1;
        }
    }
    Ok(new)
}

pub(super) fn claim(db: &Connection, up_to: i32, limit: usize, lease: Duration) -> Done<Vec<RepairJob>> {
    const CLAIM: &str = "UPDATE repair_jobs
        SET status = 'in_progress', fence = fence + 1, lease_until = ?2, claimed_at = ?3 WHERE id = ?1
        RETURNING id, segment_id, stripe_index, priority, reason, fence, retry_count";
    let now = row::now();
    let (until, now) = (row::after(now, lease), now.unix_millis());
    let mut jobs = Vec::new();
    for id in due(db, up_to, limit, now)? {
        jobs.extend(one(db, CLAIM, params![id, until, now], job)?);
    }
    Ok(jobs)
}

fn job(row: &Row<'_>) -> Done<RepairJob> {
    Ok(RepairJob {
        id: row.get(0)?,
        stripe: row::stripe(row, 1)?,
        priority: row.get(3)?,
        reason: row.get(4)?,
        fence: row.get(5)?,
        retry_count: row::count(row, 6)?,
    })
}

/// What can be claimed of no later priority than `up_to`, in order.
fn due(db: &Connection, up_to: i32, limit: usize, now: i64) -> Done<Vec<Uuid>> {
    const ABANDONED: &str = "SELECT priority, not_before, id FROM repair_jobs
        WHERE status = 'in_progress' AND priority <= ?3 AND lease_until <= ?1 ORDER BY priority, not_before LIMIT ?2";
    const PRIORITY: &str =
        "SELECT min(priority) FROM repair_jobs WHERE status = 'pending' AND priority > ?1 AND priority <= ?2";
    const WAITING: &str = "SELECT priority, not_before, id FROM repair_jobs
        WHERE status = 'pending' AND priority = ?3 AND not_before <= ?1 ORDER BY not_before LIMIT ?2";
    let place = |row: &Row<'_>| -> Done<(i64, i64, Uuid)> { Ok((row.get(0)?, row.get(1)?, row.get(2)?)) };
    let mut due = all(db, ABANDONED, params![now, int(limit as u64), up_to], place)?;
    // Priority by priority: so the index leads past those of each that still wait for their time.
    let (mut waiting, mut above) = (0, i64::MIN);
    while waiting < limit
        && let Some(priority) =
            one(db, PRIORITY, params![above, up_to], |row| Ok(row.get::<_, Option<i64>>(0)?))?.flatten()
    {
        let more = all(db, WAITING, params![now, int((limit - waiting) as u64), priority], place)?;
        waiting += more.len();
        due.extend(more);
        above = priority;
    }
    due.sort_unstable();
    due.truncate(limit);
    Ok(due.into_iter().map(|(_, _, id)| id).collect())
}

fn stale() -> Error {
    Error::Stale { what: "claim of the repair" }
}

pub(super) fn renew(db: &Connection, id: Uuid, fence: i64, lease: Duration) -> Done<()> {
    const RENEW: &str =
        "UPDATE repair_jobs SET lease_until = ?3 WHERE id = ?1 AND fence = ?2 AND status = 'in_progress'";
    match run(db, RENEW, params![id, fence, row::after(row::now(), lease)])? {
        0 => Err(stale().into()),
        _ => Ok(()),
    }
}

/// A job in the hand of who asks.
struct Held {
    id: Uuid,
    stripe: StripeRef,
    retries: i64,
    /// Queued once more meanwhile: due then.
    again: Option<i64>,
}

fn held(db: &Connection, id: Uuid, fence: i64) -> Done<Held> {
    const HELD: &str = "SELECT segment_id, stripe_index, retry_count, CASE WHEN again THEN not_before END
        FROM repair_jobs WHERE id = ?1 AND fence = ?2 AND status = 'in_progress'";
    let held = one(db, HELD, params![id, fence], |row| {
        Ok(Held { id, stripe: row::stripe(row, 0)?, retries: row.get(2)?, again: row.get(3)? })
    })?;
    held.ok_or_else(|| stale().into())
}

/// How a claim ends.
struct Ending<'a> {
    /// If it is not looked at again.
    status: &'static str,
    /// Asked for: look again then.
    again: Option<i64>,
    retries: i64,
    error: Option<&'a str>,
    tolerance: Option<u8>,
    /// Of what is left, if nobody asked for it meanwhile.
    priority: Option<i32>,
}

/// Ends a claim. Whatever is asked for, a stripe queued meanwhile is looked at once more.
fn end(db: &Connection, held: &Held, ending: &Ending<'_>) -> Done<()> {
    const END: &str =
        "UPDATE repair_jobs SET status = ?2, not_before = coalesce(?3, not_before), retry_count = ?4,
            last_error = coalesce(?5, last_error), tolerance = CASE WHEN ?5 IS NULL THEN ?6 ELSE tolerance END, done_at = ?7, priority = coalesce(?8, priority),
            again = 0, lease_until = NULL, claimed_at = NULL
        WHERE id = ?1";
    let back = match (held.again, ending.again) {
        (Some(queued), Some(asked)) => Some(queued.min(asked)),
        (queued, asked) => queued.or(asked),
    };
    let status = if back.is_some() { "pending" } else { ending.status };
    let done_at = back.is_none().then(|| row::now().unix_millis());
    let Ending { retries, error, tolerance, priority, .. } = ending;
    run(db, END, params![held.id, status, back, retries, error, tolerance, done_at, priority])?;
    Ok(())
}

pub(super) fn fail(db: &Connection, id: Uuid, fence: i64, error: &str, delay: Option<Duration>) -> Done<()> {
    let held = held(db, id, fence)?;
    let error: String = shown(error).chars().take(ERROR_MAX).collect();
    let again = delay.map(|delay| row::after(row::now(), delay));
    let retries = match (delay, held.again) {
        (Some(_), _) => held.retries + 1,
        (None, Some(_)) => 0, // given up, and queued anew
        (None, None) => held.retries,
    };
    let ending =
        Ending { status: "failed", again, retries, error: Some(&error), tolerance: None, priority: None };
    end(db, &held, &ending)
}

pub(super) fn hurry(db: &Connection, limit: usize) -> Done<usize> {
    const HURRY: &str = "UPDATE repair_jobs SET not_before = ?1 WHERE rowid IN (SELECT rowid FROM repair_jobs
        WHERE status = 'pending' AND retry_count > 0 AND not_before > ?1 LIMIT ?2)";
    Ok(run(db, HURRY, params![row::now().unix_millis(), int(limit as u64)])?)
}

pub(super) fn finish(db: &Connection, id: Uuid, fence: i64, done: &RepairDone) -> Done<()> {
    const LIVE: &str = "SELECT 1 FROM segments WHERE id = ?1 AND state = 'live'";
    let mut held = held(db, id, fence)?;
    let mut ending = Ending {
        status: "completed",
        again: None,
        retries: held.retries,
        error: None,
        tolerance: done.tolerance,
        priority: done.priority.filter(|_| held.again.is_none()),
    };
    if exists(db, LIVE, [held.stripe.segment.as_uuid()])? {
        let all_there = add(db, held.stripe, &done.added)?;
        if all_there && !done.added.is_empty() {
            ending.retries = 0;
        }
        // What marks a location bad queues its stripe with it: asked for once more, the plan may be wrong.
        let as_planned = all_there && (done.removed.is_empty() || held.again.is_none());
        if as_planned {
            remove(db, held.stripe, &done.removed, done.grace)?;
        }
        let now = row::now();
        ending.again = done.again_after.map(|delay| row::after(now, delay));
        if !as_planned {
            // Where the plan counted on a node that was removed or emptied meanwhile, nobody else has noticed.
            held.again = Some(held.again.map_or(now.unix_millis(), |again| again.min(now.unix_millis())));
        }
    } else {
        discard(db, held.stripe, &done.added)?;
        held.again = None;
        ending.tolerance = None;
    }
    end(db, &held, &ending)
}

/// Records new locations; false if one of the nodes is not known any more, or has begun another life.
fn add(db: &Connection, stripe: StripeRef, added: &[(ShardIndex, NewLocation)]) -> Done<bool> {
    const ADD: &str = "INSERT INTO chunk_locations (segment_id, stripe_index, shard_index, node_id, chunk_id,
            incarnation, generation, receipt, receipt_at, last_verified)
        SELECT c.segment_id, c.stripe_index, c.shard_index, n.id, c.chunk_id, ?5, ?6, ?7, ?8, ?9
        FROM chunks c CROSS JOIN nodes n
        WHERE c.segment_id = ?1 AND c.stripe_index = ?2 AND c.shard_index = ?3 AND n.id = ?4 AND n.incarnation = ?5
        ON CONFLICT (segment_id, stripe_index, shard_index, node_id) DO UPDATE SET
            incarnation = excluded.incarnation, generation = excluded.generation, receipt = excluded.receipt,
            receipt_at = excluded.receipt_at, status = 'stored', last_verified = excluded.last_verified,
            verification_failures = 0";
    let mut all_there = true;
    for (shard, at) in added {
        let added = run(
            db,
            ADD,
            params![
                stripe.segment.as_uuid(),
                stripe.index,
                small(shard.get()),
                at.node.as_uuid(),
                at.generation.incarnation,
                int(at.generation.counter),
                at.receipt_signature,
                at.stored_at.unix_millis(),
                row::now().unix_millis(),
            ],
        )?;
        all_there &= added > 0;
    }
    Ok(all_there)
}

/// Forgets locations; their chunks go from the nodes after the grace.
fn remove(db: &Connection, stripe: StripeRef, removed: &[(ShardIndex, NodeId)], grace: Duration) -> Done<()> {
    const REMOVE: &str = "DELETE FROM chunk_locations
        WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3 AND node_id = ?4
        RETURNING chunk_id, incarnation, generation";
    for (shard, node) in removed {
        let place = params![stripe.segment.as_uuid(), stripe.index, small(shard.get()), node.as_uuid()];
        let gone = one(db, REMOVE, place, |row| Ok((row::chunk(row, 0)?, row::generation(row, 1)?)))?;
        if let Some((chunk, generation)) = gone {
            let now = row::now();
            let entry = Entry { node: *node, chunk, generation, reason: "repaired elsewhere" };
            deletes::put(db, &entry, now.unix_millis(), row::after(now, grace))?;
        }
    }
    Ok(())
}

/// What was made for a segment that nobody needs any more goes at once. Where the chunk's id is gone with the segment,
/// the inventory of the node will show it.
fn discard(db: &Connection, stripe: StripeRef, added: &[(ShardIndex, NewLocation)]) -> Done<()> {
    const CHUNK: &str = "SELECT chunk_id FROM chunks
        WHERE segment_id = ?1 AND stripe_index = ?2 AND shard_index = ?3";
    for (shard, at) in added {
        let place = params![stripe.segment.as_uuid(), stripe.index, small(shard.get())];
        let chunk: Option<ChunkId> = one(db, CHUNK, place, |row| row::chunk(row, 0))?;
        if let Some(chunk) = chunk {
            let entry =
                Entry { node: at.node, chunk, generation: at.generation, reason: "repaired after its end" };
            let now = row::now().unix_millis();
            deletes::put(db, &entry, now, now)?;
        }
    }
    Ok(())
}

/// What the look at the queue reads: of what ended, the latest.
pub(super) const WAITING: &str =
    "SELECT priority, count(*), count(*) FILTER (WHERE not_before <= ?1), min(not_before)
    FROM repair_jobs WHERE status = 'pending' GROUP BY priority";
pub(super) const IN_HAND: &str = "SELECT count(*) FROM repair_jobs WHERE status = 'in_progress'";
pub(super) const ENDED: &str =
    "SELECT count(*) FROM (SELECT 1 FROM repair_jobs WHERE status = ?1 AND done_at > ?2 LIMIT ?3)";

pub(super) fn counts(db: &Connection) -> Done<RepairQueue> {
    let now = row::now();
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    let (since, most) = (row::before(now, RepairQueue::ENDED_WITHIN), int(RepairQueue::ENDED_MAX as u64));
    let ended = |status: &str| number(db, ENDED, params![status, since, most]).map(count);
    let waiting = all(db, WAITING, [now.unix_millis()], |row| {
        let counts: (u64, u64) = (row::count(row, 1)?, row::count(row, 2)?);
        Ok((row.get::<_, i32>(0)?, counts, row::time(row, 3)?))
    })?;
    let mut queue = RepairQueue {
        in_progress: count(number(db, IN_HAND, [])?),
        completed: ended("completed")?,
        failed: ended("failed")?,
        ..RepairQueue::default()
    };
    for (priority, (jobs, due), oldest) in waiting {
        queue.count(priority, jobs, due, (oldest <= now).then(|| now.since(oldest)));
    }
    Ok(queue)
}

pub(super) fn purge(db: &Connection, older: Duration, limit: usize) -> Done<usize> {
    const PURGE: &str = "DELETE FROM repair_jobs WHERE rowid IN (SELECT rowid FROM repair_jobs
        WHERE status IN ('completed', 'failed') AND done_at <= ?1 LIMIT ?2)";
    Ok(run(db, PURGE, params![row::before(row::now(), older), int(limit as u64)])?)
}
