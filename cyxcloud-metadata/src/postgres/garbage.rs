//! Garbage: segments that nothing refers to, condemned, and collected after a grace; and uploads that were left open.
//!
//! Whoever makes a reference holds the segment's row and needs it live, so what is looked at under the row's own lock
//! is decided. Neither phase waits for such a row: what is locked elsewhere is in use, and is looked at next time.
//! Parts go when their upload ends, so a row of `part_segments` is a reference from an open upload.
//! Not here: what becomes of the chunks (`deletes`).

use std::time::Duration;

use cyxcloud_core::UploadId;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::multipart;
use super::read;
use super::transact::{self, BEGIN, Failure};
use crate::error::Result;
use crate::rows;
use crate::upkeep::model::{GcBrake, GcHalt, GcState, GcStep, GcThawed};

/// The answer of a step: done, or why not.
type Halted<T> = std::result::Result<T, GcHalt>;

/// Of the cluster's constants: why nothing is collected since somebody asked for that, and why a brake holds.
const FROZEN: &str = "gc_frozen";
const HALTED: &str = "gc_halted";
/// When an operator last let go what waited then, past every brake; and since when condemned segments count for the brake.
const RELEASED: &str = "gc_released";
const COUNTED_FROM: &str = "gc_counted_from";

impl PostgresStore {
    pub(super) async fn condemn(&self, limit: usize, brake: GcBrake) -> Result<Halted<GcStep>> {
        transact::run_idempotent(&self.pool, "condemn segments", BEGIN, |conn, _| {
            Box::pin(condemn_in(conn, limit, brake))
        })
        .await
    }

    pub(super) async fn collect(&self, grace: Duration, limit: usize, chunks: u64) -> Result<Halted<GcStep>> {
        transact::run_idempotent(&self.pool, "collect segments", BEGIN, |conn, _| {
            Box::pin(collect_in(conn, grace, limit, chunks))
        })
        .await
    }

    pub(super) async fn garbage(&self) -> Result<GcState> {
        const STATE: &str = "SELECT
            (SELECT count(*) FROM (SELECT FROM gc_candidates LIMIT $3) c) AS candidates,
            (SELECT count(*) FROM (SELECT FROM segments WHERE state = 'condemned' LIMIT $3) s) AS condemned,
            (SELECT count(*) FROM (SELECT FROM chunk_deletes LIMIT $3) d) AS deletes,
            (SELECT count(*) FROM (SELECT FROM chunk_deletes WHERE not_before <= now() LIMIT $3) e) AS deletes_due,
            (SELECT count(*) FROM (SELECT FROM orphans LIMIT $3) o) AS orphans,
            (SELECT value FROM constants WHERE name = $1) AS frozen,
            (SELECT value FROM constants WHERE name = $2) AS halted";
        transact::single(&self.pool, "look at the garbage", |conn, _| {
            Box::pin(async move {
                let most = read::limit(GcState::COUNTED_MAX);
                let row = &sqlx::query(STATE).bind(FROZEN).bind(HALTED).bind(most).fetch_one(conn).await?;
                Ok(GcState {
                    candidates: read::total(row, "candidates")?,
                    condemned: read::total(row, "condemned")?,
                    deletes: read::total(row, "deletes")?,
                    deletes_due: read::total(row, "deletes_due")?,
                    orphans: read::total(row, "orphans")?,
                    frozen: row.try_get::<Option<&[u8]>, _>("frozen")?.map(text),
                    halted: row.try_get::<Option<&[u8]>, _>("halted")?.map(text),
                })
            })
        })
        .await
    }

    /// What is being condemned or collected at this moment may still end so; nothing begins any more.
    pub(super) async fn freeze(&self, reason: &str) -> Result<()> {
        transact::single(&self.pool, "freeze garbage collection", |conn, _| {
            Box::pin(put_note(conn, FROZEN, reason))
        })
        .await
    }

    pub(super) async fn note_halt(&self, why: Option<&str>) -> Result<()> {
        transact::single(&self.pool, "note why a brake holds", |conn, _| {
            Box::pin(async move {
                match why {
                    Some(why) => put_note(conn, HALTED, why).await,
                    None => drop_note(conn, HALTED).await.map(drop),
                }
            })
        })
        .await
    }

    pub(super) async fn thaw(&self) -> Result<GcThawed> {
        transact::run_once(&self.pool, "thaw garbage collection", BEGIN, |conn, _| {
            Box::pin(async move {
                put_now(conn, &[RELEASED, COUNTED_FROM]).await?;
                Ok(GcThawed {
                    frozen: drop_note(conn, FROZEN).await?,
                    braked: drop_note(conn, HALTED).await?,
                })
            })
        })
        .await
    }

    pub(super) async fn purge_uploads(
        &self,
        older: Duration,
        open_for: Option<Duration>,
        limit: usize,
    ) -> Result<usize> {
        transact::run_idempotent(&self.pool, "purge multipart uploads", BEGIN, |conn, _| {
            Box::pin(purge_in(conn, older, open_for, limit))
        })
        .await
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn put_note(conn: &mut PgConnection, name: &str, text: &str) -> Result<(), Failure> {
    const PUT: &str = "INSERT INTO constants (name, value) VALUES ($1, $2)
        ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value";
    sqlx::query(PUT).bind(name).bind(text.as_bytes()).execute(conn).await?;
    Ok(())
}

/// Sets constants to this transaction's time.
async fn put_now(conn: &mut PgConnection, names: &[&str]) -> Result<(), Failure> {
    const PUT: &str = "INSERT INTO constants (name, value)
        SELECT name, convert_to(now()::text, 'UTF8') FROM unnest($1::text[]) name ORDER BY name
        ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value";
    sqlx::query(PUT).bind(names).execute(conn).await?;
    Ok(())
}

/// The time that a constant was set to, as the database writes it; long ago, where it was not. One that is to come, since the
/// clock was set back, lets nothing pass either.
async fn moment(conn: &mut PgConnection, name: &str) -> Result<String, Failure> {
    const MOMENT: &str = "SELECT convert_from(value, 'UTF8') FROM constants
        WHERE name = $1 AND convert_from(value, 'UTF8')::timestamptz <= now()";
    let set: Option<String> = sqlx::query_scalar(MOMENT).bind(name).fetch_optional(conn).await?;
    Ok(set.unwrap_or_else(|| "-infinity".to_owned()))
}

/// Until when brakes hold nothing of what was seen.
pub(super) async fn released(conn: &mut PgConnection) -> Result<String, Failure> {
    moment(conn, RELEASED).await
}

async fn drop_note(conn: &mut PgConnection, name: &str) -> Result<bool, Failure> {
    let done = sqlx::query("DELETE FROM constants WHERE name = $1").bind(name).execute(conn).await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn frozen(conn: &mut PgConnection) -> Result<Option<GcHalt>, Failure> {
    let reason: Option<Vec<u8>> = sqlx::query_scalar("SELECT value FROM constants WHERE name = $1")
        .bind(FROZEN)
        .fetch_optional(conn)
        .await?;
    Ok(reason.map(|reason| GcHalt::Frozen(text(&reason))))
}

/// Segments, locked, by what is to happen to them.
#[derive(Default)]
struct Looked {
    /// Nothing refers to them, and they are live.
    loose: Vec<Uuid>,
    /// Nothing refers to them, and they are condemned.
    condemned: Vec<Uuid>,
    /// Something does.
    referred: Vec<Uuid>,
}

impl Looked {
    async fn at(conn: &mut PgConnection, segments: &[Uuid]) -> Result<Self, Failure> {
        let mut looked = Self::default();
        for row in sqlx::query(include_str!("sql/gc_look.sql")).bind(segments).fetch_all(conn).await? {
            let of = match (row.try_get("referred")?, row.try_get("live")?) {
                (true, _) => &mut looked.referred,
                (false, true) => &mut looked.loose,
                (false, false) => &mut looked.condemned,
            };
            of.push(row.try_get("id")?);
        }
        Ok(looked)
    }
}

async fn condemn_in(
    conn: &mut PgConnection,
    limit: usize,
    brake: GcBrake,
) -> Result<Halted<GcStep>, Failure> {
    // A delete that drops one of these once more waits for us, and then makes it a candidate anew.
    const CANDIDATES: &str = "SELECT segment_id, created_at <= $2::timestamptz AS released
        FROM gc_candidates ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED";
    const LOCK: &str = "SELECT id FROM segments WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED";
    const CONDEMN: &str = "UPDATE segments SET state = 'condemned', condemned_at = now() WHERE id = ANY($1)";
    const DROP: &str = "DELETE FROM gc_candidates c WHERE c.segment_id = ANY($1)
        AND (c.segment_id = ANY($2) OR NOT EXISTS (SELECT 1 FROM segments s WHERE s.id = c.segment_id))";
    if let Some(halt) = frozen(conn).await? {
        return Ok(Err(halt));
    }
    let until = released(conn).await?;
    let found: Vec<(Uuid, bool)> =
        sqlx::query_as(CANDIDATES).bind(read::limit(limit)).bind(until).fetch_all(&mut *conn).await?;
    let Some(&(_, released)) = found.first() else { return Ok(Ok(GcStep::default())) };
    // The oldest come first: what was released goes by itself, and the others are judged next time.
    let candidates: Vec<Uuid> =
        found.iter().filter(|(_, one)| *one == released).map(|(segment, _)| *segment).collect();
    let locked: Vec<Uuid> = sqlx::query_scalar(LOCK).bind(&candidates).fetch_all(&mut *conn).await?;
    let looked = Looked::at(conn, &locked).await?;
    if released {
        put_now(conn, &[COUNTED_FROM]).await?;
    } else if let Some(halt) = judge(conn, looked.loose.len() as u64, brake).await? {
        return Ok(Err(halt));
    }
    if !looked.loose.is_empty() {
        sqlx::query(CONDEMN).bind(&looked.loose).execute(&mut *conn).await?;
    }
    let dropped = sqlx::query(DROP).bind(&candidates).bind(&locked).execute(conn).await?.rows_affected();
    Ok(Ok(GcStep { looked_at: dropped, taken: looked.loose.len() as u64, chunks: 0 }))
}

/// Whether so much garbage at once is rather a mistake. All segments are counted only where the floor is passed.
async fn judge(conn: &mut PgConnection, loose: u64, brake: GcBrake) -> Result<Option<GcHalt>, Failure> {
    const CONDEMNED: &str = "SELECT count(*) AS n FROM segments
        WHERE state = 'condemned' AND condemned_at > $1::timestamptz";
    const ALL: &str = "SELECT count(*) AS n FROM segments";
    if loose == 0 {
        return Ok(None);
    }
    let since = moment(conn, COUNTED_FROM).await?;
    let condemned = read::total(&sqlx::query(CONDEMNED).bind(since).fetch_one(&mut *conn).await?, "n")?;
    let candidates = loose + condemned;
    if candidates <= brake.floor {
        return Ok(None);
    }
    let segments = read::total(&sqlx::query(ALL).fetch_one(conn).await?, "n")?;
    Ok(brake.holds(candidates, segments).then_some(GcHalt::Brake { candidates, segments }))
}

async fn collect_in(
    conn: &mut PgConnection,
    grace: Duration,
    limit: usize,
    chunks: u64,
) -> Result<Halted<GcStep>, Failure> {
    const LOCK: &str = "SELECT id, chunk_count::bigint * copies FROM segments
        WHERE state = 'condemned' AND condemned_at <= now() - $1 * interval '1 millisecond'
        ORDER BY condemned_at LIMIT $2 FOR UPDATE SKIP LOCKED";
    const PARDON: &str = "UPDATE segments SET state = 'live', condemned_at = NULL WHERE id = ANY($1)";
    const HAND_OVER: &str =
        concat!(include_str!("sql/collect_deletes.sql"), include_str!("sql/delete_conflict.sql"));
    // From below: nothing is left for the cascades to find, which go row by row.
    const ROWS: [&str; 6] = [
        "DELETE FROM chunk_locations WHERE segment_id = ANY($1)",
        "DELETE FROM repair_jobs WHERE segment_id = ANY($1) AND status IN ('pending', 'in_progress')",
        "DELETE FROM chunks WHERE segment_id = ANY($1)",
        "DELETE FROM stripes WHERE segment_id = ANY($1)",
        "DELETE FROM gc_candidates WHERE segment_id = ANY($1)",
        "DELETE FROM segments WHERE id = ANY($1)",
    ];
    if let Some(halt) = frozen(conn).await? {
        return Ok(Err(halt));
    }
    let due: Vec<(Uuid, i64)> =
        sqlx::query_as(LOCK).bind(read::millis(grace)).bind(read::limit(limit)).fetch_all(&mut *conn).await?;
    let taken = rows::up_to(chunks, due.iter().map(|(_, held)| u64::try_from(*held).unwrap_or(0)));
    let locked: Vec<Uuid> = due[..taken].iter().map(|(segment, _)| *segment).collect();
    let mut step = GcStep { looked_at: locked.len() as u64, ..GcStep::default() };
    if locked.is_empty() {
        return Ok(Ok(step));
    }
    let looked = Looked::at(conn, &locked).await?;
    if !looked.referred.is_empty() {
        tracing::error!(segments = ?looked.referred, "condemned segments are referred to and live again");
        sqlx::query(PARDON).bind(&looked.referred).execute(&mut *conn).await?;
    }
    if !looked.condemned.is_empty() {
        step.taken = looked.condemned.len() as u64;
        step.chunks =
            sqlx::query(HAND_OVER).bind(&looked.condemned).execute(&mut *conn).await?.rows_affected();
        for rows in ROWS {
            sqlx::query(rows).bind(&looked.condemned).execute(&mut *conn).await?;
        }
    }
    Ok(Ok(step))
}

async fn purge_in(
    conn: &mut PgConnection,
    older: Duration,
    open_for: Option<Duration>,
    limit: usize,
) -> Result<usize, Failure> {
    const PURGE: &str = "DELETE FROM multipart_uploads WHERE id IN (
            SELECT id FROM multipart_uploads
            WHERE status <> 'open' AND ended_at <= now() - $1 * interval '1 millisecond'
            ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )";
    // One that takes a part or is completed at this moment is left alone.
    const OPEN: &str = "SELECT id FROM multipart_uploads
        WHERE status = 'open' AND initiated_at <= now() - $1 * interval '1 millisecond'
        ORDER BY initiated_at LIMIT $2 FOR UPDATE SKIP LOCKED";
    let purged =
        sqlx::query(PURGE).bind(read::millis(older)).bind(read::limit(limit)).execute(&mut *conn).await?;
    let purged = read::touched(purged.rows_affected());
    let Some(open_for) = open_for else { return Ok(purged) };
    let open: Vec<Uuid> = sqlx::query_scalar(OPEN)
        .bind(read::millis(open_for))
        .bind(read::limit(limit.saturating_sub(purged)))
        .fetch_all(&mut *conn)
        .await?;
    for id in &open {
        multipart::end(conn, UploadId::from_uuid(*id), "aborted", None, &[]).await?;
    }
    Ok(purged + open.len())
}
