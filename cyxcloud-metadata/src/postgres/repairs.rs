//! Repairs: stripes queued, claimed with lease and fence, and what became of them.
//!
//! A worker whose fence moved on changes nothing: the job's row, written last, decides whether the rest of the
//! transaction stands. Locks: segment (shared, so that condemning waits), nodes, locations, then jobs, as in whatever
//! else marks locations and queues. What marks a location bad queues its stripe with it, so that a job asked for once
//! more says that its plan may be wrong: then it takes nothing away.
//! Not here: what a stripe needs (`cyxcloud_core`), chunks to be deleted (`deletes`).

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use cyxcloud_core::{NodeId, ShardIndex, faults};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::read;
use super::transact::{self, BEGIN, Failure};
use crate::error::{Error, Result};
use crate::model::NewLocation;
use crate::rows;
use crate::upkeep::model::{LostBecause, NewRepair, RepairDone, RepairJob, RepairQueue, StripeRef};

/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 500;

fn stale() -> Failure {
    Error::Stale { what: "claim of the repair" }.into()
}

fn job(row: &PgRow) -> Result<RepairJob, Failure> {
    Ok(RepairJob {
        id: row.try_get("id")?,
        stripe: read::stripe(row)?,
        priority: row.try_get("priority")?,
        reason: row.try_get("reason")?,
        fence: row.try_get("fence")?,
        retry_count: read::count(row, "retry_count")?,
    })
}

impl PostgresStore {
    pub(super) async fn queue(&self, repairs: &[NewRepair]) -> Result<usize> {
        const QUEUE: &str = concat!(
            include_str!("sql/queue_asked.sql"),
            include_str!("sql/queue_conflict.sql"),
            " RETURNING j.id) SELECT count(*) FROM queued JOIN asked USING (id)"
        );
        if repairs.is_empty() {
            return Ok(0);
        }
        transact::single(&self.pool, "queue repairs", |conn, _| {
            Box::pin(async move {
                let each = || repairs.iter();
                let new: i64 = sqlx::query_scalar(QUEUE)
                    .bind(each().map(|new| new.stripe.segment.as_uuid()).collect::<Vec<_>>())
                    .bind(each().map(|new| read::int(new.stripe.index.into())).collect::<Vec<_>>())
                    .bind(each().map(|new| new.priority).collect::<Vec<_>>())
                    .bind(each().map(|new| read::millis(new.delay)).collect::<Vec<_>>())
                    .bind(each().map(|new| rows::shown(&new.reason)).collect::<Vec<_>>())
                    .fetch_one(conn)
                    .await?;
                Ok(usize::try_from(new).unwrap_or(0))
            })
        })
        .await
    }

    pub(super) async fn claim_jobs(
        &self,
        up_to: i32,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<RepairJob>> {
        transact::single(&self.pool, "claim repairs", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(include_str!("sql/claim_repairs.sql"))
                    .bind(read::limit(limit))
                    .bind(read::millis(lease))
                    .bind(up_to)
                    .fetch_all(conn)
                    .await?;
                rows.iter().map(job).collect()
            })
        })
        .await
    }

    /// A lease that ran out and that nobody took is still good.
    pub(super) async fn renew_job(&self, id: Uuid, fence: i64, lease: Duration) -> Result<()> {
        const RENEW: &str = "UPDATE repair_jobs SET lease_until = now() + $3 * interval '1 millisecond'
            WHERE id = $1 AND fence = $2 AND status = 'in_progress'";
        transact::single(&self.pool, "renew the repair", |conn, _| {
            Box::pin(async move {
                let done =
                    sqlx::query(RENEW).bind(id).bind(fence).bind(read::millis(lease)).execute(conn).await?;
                if done.rows_affected() == 0 && !faults::switch("UNFENCED") {
                    return Err(stale());
                }
                Ok(())
            })
        })
        .await
    }

    pub(super) async fn finish_job(&self, id: Uuid, fence: i64, done: &RepairDone) -> Result<()> {
        transact::run_once(&self.pool, "finish the repair", BEGIN, |conn, _| {
            Box::pin(finish_in(conn, id, fence, done))
        })
        .await
    }

    pub(super) async fn fail_job(
        &self,
        id: Uuid,
        fence: i64,
        error: &str,
        delay: Option<Duration>,
    ) -> Result<()> {
        let error: &String = &rows::shown(error).chars().take(ERROR_CHARS_MAX).collect();
        transact::run_once(&self.pool, "record the failed repair", BEGIN, |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(include_str!("sql/fail_repair.sql"))
                    .bind(id)
                    .bind(fence)
                    .bind(delay.map(read::millis))
                    .bind(error)
                    .execute(conn)
                    .await?;
                if done.rows_affected() == 0 {
                    return Err(stale());
                }
                Ok(())
            })
        })
        .await
    }

    pub(super) async fn hurry_jobs(&self, limit: usize) -> Result<usize> {
        const HURRY: &str = "UPDATE repair_jobs SET not_before = now() WHERE id IN (
                SELECT id FROM repair_jobs WHERE status = 'pending' AND retry_count > 0 AND not_before > now()
                LIMIT $1 FOR UPDATE SKIP LOCKED
            )";
        transact::single(&self.pool, "hurry repairs", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(HURRY).bind(read::limit(limit)).execute(conn).await?;
                Ok(read::touched(done.rows_affected()))
            })
        })
        .await
    }

    pub(super) async fn jobs(&self) -> Result<RepairQueue> {
        transact::single(&self.pool, "look at the repairs", |conn, _| {
            Box::pin(async move {
                let rows = sqlx::query(include_str!("sql/repair_queue.sql"))
                    .bind(read::millis(RepairQueue::ENDED_WITHIN))
                    .bind(read::limit(RepairQueue::ENDED_MAX))
                    .fetch_all(conn)
                    .await?;
                let mut queue = RepairQueue::default();
                for row in &rows {
                    let jobs = read::total(row, "jobs")?;
                    match row.try_get::<&str, _>("status")? {
                        "pending" => {
                            let due = read::total(row, "due")?;
                            let waited = u64::try_from(row.try_get::<i64, _>("waited")?).unwrap_or(0);
                            let waited = (due > 0).then_some(Duration::from_millis(waited));
                            queue.count(row.try_get("priority")?, jobs, due, waited);
                        }
                        "in_progress" => queue.in_progress += jobs,
                        "completed" => queue.completed += jobs,
                        _ => queue.failed += jobs,
                    }
                }
                Ok(queue)
            })
        })
        .await
    }

    pub(super) async fn purge_jobs(&self, older: Duration, limit: usize) -> Result<usize> {
        const PURGE: &str = "DELETE FROM repair_jobs WHERE id IN (
                SELECT id FROM repair_jobs
                WHERE status IN ('completed', 'failed') AND done_at <= now() - $1 * interval '1 millisecond'
                LIMIT $2 FOR UPDATE SKIP LOCKED
            )";
        transact::single(&self.pool, "drop ended repairs", |conn, _| {
            Box::pin(async move {
                let done = sqlx::query(PURGE)
                    .bind(read::millis(older))
                    .bind(read::limit(limit))
                    .execute(conn)
                    .await?;
                Ok(read::touched(done.rows_affected()))
            })
        })
        .await
    }
}

async fn finish_in(conn: &mut PgConnection, id: Uuid, fence: i64, done: &RepairDone) -> Result<(), Failure> {
    const LOOK: &str = "SELECT segment_id, stripe_index FROM repair_jobs
        WHERE id = $1 AND fence = $2 AND status = 'in_progress'";
    const LOCK: &str = "SELECT state = 'live' FROM segments WHERE id = $1 FOR SHARE";
    if faults::switch("UNFENCED") {
        // What tests must notice: the claim is taken back from whoever has it, or is done with it.
        const TAKE_BACK: &str = "UPDATE repair_jobs SET fence = $2, status = 'in_progress', done_at = NULL,
            claimed_at = now() WHERE id = $1";
        sqlx::query(TAKE_BACK).bind(id).bind(fence).execute(&mut *conn).await?;
    }
    // Most of those who come too late are told so here, before anything is locked.
    let row = sqlx::query(LOOK).bind(id).bind(fence).fetch_optional(&mut *conn).await?.ok_or_else(stale)?;
    let stripe = read::stripe(&row)?;
    let live: Option<bool> =
        sqlx::query_scalar(LOCK).bind(stripe.segment.as_uuid()).fetch_optional(&mut *conn).await?;
    let live = live.unwrap_or(false);
    let (mut again_after, mut some_added) = (done.again_after, false);
    if live {
        let all_there = add(conn, stripe, &done.added).await?;
        some_added = all_there && !done.added.is_empty();
        if all_there && (done.removed.is_empty() || still_as_planned(conn, id, stripe).await?) {
            remove(conn, stripe, &done.removed, done.grace).await?;
        } else {
            // Where the plan counted on a node that was removed or emptied meanwhile, nobody else has noticed.
            again_after = Some(Duration::ZERO);
        }
    } else {
        give_back(conn, stripe, &done.added).await?;
    }
    let ended = sqlx::query(include_str!("sql/finish_repair.sql"))
        .bind(id)
        .bind(fence)
        .bind(!live)
        .bind(again_after.map(read::millis))
        .bind(done.tolerance.map(i16::from))
        .bind(done.priority)
        .bind(some_added)
        .execute(conn)
        .await?;
    // Somebody has it by now: what was done above is rolled back.
    if ended.rows_affected() == 0 {
        return Err(stale());
    }
    Ok(())
}

/// Columns of what a repair stored.
#[derive(Default)]
struct Stored<'a> {
    shard: Vec<i16>,
    node: Vec<Uuid>,
    incarnation: Vec<Uuid>,
    generation: Vec<i64>,
    receipt: Vec<&'a [u8]>,
    receipt_at: Vec<DateTime<Utc>>,
}

impl<'a> Stored<'a> {
    fn new(added: &'a [(ShardIndex, NewLocation)]) -> Self {
        let mut columns = Self::default();
        for (shard, at) in added {
            columns.shard.push(shard.get() as i16);
            columns.node.push(at.node.as_uuid());
            columns.incarnation.push(at.generation.incarnation);
            columns.generation.push(read::int(at.generation.counter));
            columns.receipt.push(&at.receipt_signature);
            columns.receipt_at.push(read::datetime(at.stored_at));
        }
        columns
    }
}

fn index(stripe: StripeRef) -> i32 {
    i32::try_from(stripe.index).unwrap_or(i32::MAX)
}

/// Whether nobody asked for the stripe since it was claimed. Whoever is marking one of its locations has it locked and ends
/// first; whoever comes later waits for us.
async fn still_as_planned(conn: &mut PgConnection, id: Uuid, stripe: StripeRef) -> Result<bool, Failure> {
    const LOCATIONS: &str = "SELECT 1 FROM chunk_locations WHERE segment_id = $1 AND stripe_index = $2
        ORDER BY shard_index, node_id FOR UPDATE";
    const ASKED: &str = "SELECT again FROM repair_jobs WHERE id = $1 FOR UPDATE";
    sqlx::query(LOCATIONS).bind(stripe.segment.as_uuid()).bind(index(stripe)).execute(&mut *conn).await?;
    let asked: Option<bool> = sqlx::query_scalar(ASKED).bind(id).fetch_optional(conn).await?;
    Ok(asked == Some(false))
}

/// Records new locations; false if one of the nodes is not known any more, or has begun another life.
async fn add(
    conn: &mut PgConnection,
    stripe: StripeRef,
    added: &[(ShardIndex, NewLocation)],
) -> Result<bool, Failure> {
    if added.is_empty() {
        return Ok(true);
    }
    let places: BTreeSet<(ShardIndex, NodeId)> = added.iter().map(|(shard, at)| (*shard, at.node)).collect();
    let stored = Stored::new(added);
    let recorded = sqlx::query(include_str!("sql/repair_added.sql"))
        .bind(stripe.segment.as_uuid())
        .bind(index(stripe))
        .bind(stored.shard)
        .bind(stored.node)
        .bind(stored.incarnation)
        .bind(stored.generation)
        .bind(stored.receipt)
        .bind(stored.receipt_at)
        .execute(conn)
        .await?;
    Ok(read::touched(recorded.rows_affected()) == places.len())
}

/// What was stored for a segment that nobody needs any more.
async fn give_back(
    conn: &mut PgConnection,
    stripe: StripeRef,
    added: &[(ShardIndex, NewLocation)],
) -> Result<(), Failure> {
    const GIVE_BACK: &str =
        concat!(include_str!("sql/repair_in_vain.sql"), include_str!("sql/delete_conflict.sql"));
    if added.is_empty() {
        return Ok(());
    }
    let stored = Stored::new(added);
    sqlx::query(GIVE_BACK)
        .bind(stripe.segment.as_uuid())
        .bind(index(stripe))
        .bind(stored.shard)
        .bind(stored.node)
        .bind(stored.incarnation)
        .bind(stored.generation)
        .execute(conn)
        .await?;
    Ok(())
}

async fn remove(
    conn: &mut PgConnection,
    stripe: StripeRef,
    removed: &[(ShardIndex, NodeId)],
    grace: Duration,
) -> Result<(), Failure> {
    const REMOVE: &str =
        concat!(include_str!("sql/repair_removed.sql"), include_str!("sql/delete_conflict.sql"));
    if removed.is_empty() {
        return Ok(());
    }
    sqlx::query(REMOVE)
        .bind(stripe.segment.as_uuid())
        .bind(index(stripe))
        .bind(removed.iter().map(|(shard, _)| shard.get() as i16).collect::<Vec<_>>())
        .bind(removed.iter().map(|(_, node)| node.as_uuid()).collect::<Vec<_>>())
        .bind(read::millis(grace))
        .execute(conn)
        .await?;
    Ok(())
}

/// Queues the repair of stripes that lost locations. A new statement: it counts what is left.
pub(super) async fn queue_lost(
    conn: &mut PgConnection,
    stripes: Vec<(Uuid, i32)>,
    because: LostBecause,
) -> Result<(), Failure> {
    const QUEUE: &str =
        concat!(include_str!("sql/queue_repairs.sql"), include_str!("sql/queue_conflict.sql"));
    if stripes.is_empty() {
        return Ok(());
    }
    let (segments, indices): (Vec<Uuid>, Vec<i32>) = stripes.into_iter().unzip();
    sqlx::query(QUEUE).bind(segments).bind(indices).bind(because.as_str()).execute(conn).await?;
    Ok(())
}
