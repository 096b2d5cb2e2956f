//! Transactions: begun, run, run again where they met another, and ended.
//!
//! A transaction is a closure, because PostgreSQL may ask for it to be run again. Nothing waits on anything but the
//! database inside one, and no connection is held outside one. A connection that is given up half-way (its request
//! was cancelled) is closed, never handed on.
//! Not here: what a lost answer to COMMIT means for an upload (`commit`, `multipart`).

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use uuid::Uuid;

use super::pool::{Connections, Lease};
use crate::error::{Error, Result};

/// How often a transaction is run before we say that the database is too busy.
const ATTEMPTS_MAX: u32 = 10;
/// Mean of the first pause; each later one is twice as long, up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(4);
/// Longest mean pause.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Opens a transaction that locks nothing yet.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// What a piece of work returns.
pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'c>>;

/// Tells the compiler that whatever work borrows (`'s`) outlives the loan of the connection (`'c`).
pub(super) type Scope<'c, 's> = PhantomData<&'c &'s ()>;

/// Why a piece of work did not come through.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database refused or was lost.
    Sql(sqlx::Error),
    /// We refuse; running it again would not help.
    Refused(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Failure {
    /// As the caller of the store sees it; `doing` completes "could not ...".
    pub(super) fn into_error(self, doing: &'static str) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Sql(source) => from_sql(doing, source),
        }
    }
}

/// How a transaction ended.
pub(super) enum Ended<T> {
    /// It is committed.
    Committed(T),
    /// COMMIT was sent and no answer came: it may be committed or not, now or in a moment.
    InDoubt(sqlx::Error),
}

/// Why one attempt ended.
enum Stop {
    /// Nothing happened; run it again.
    Again(sqlx::Error),
    /// Nothing happened; don't.
    Failed(Failure),
}

/// Runs `work` in a transaction that `opening` begins (one message to the server, which may also lock what the work
/// needs first), again where it met another transaction.
pub(super) async fn run<'s, T, F>(
    pool: &Connections,
    doing: &'static str,
    opening: &str,
    work: F,
) -> Result<Ended<T>>
where
    F: for<'c> Fn(&'c mut PgConnection, Scope<'c, 's>) -> Work<'c, T> + Send + Sync,
{
    let mut pauses = Pauses::default();
    loop {
        match attempt(pool, opening, &work).await {
            Ok(ended) => return Ok(ended),
            Err(Stop::Failed(failure)) => return Err(failure.into_error(doing)),
            Err(Stop::Again(source)) if !pauses.next().await => return Err(unavailable(doing, source)),
            Err(Stop::Again(source)) => {
                tracing::debug!(%source, doing, "transaction is run again");
            }
        }
    }
}

/// Like [`run`], for work that may be run again after it was committed: where the answer to COMMIT is lost, it is.
pub(super) async fn run_idempotent<'s, T, F>(
    pool: &Connections,
    doing: &'static str,
    opening: &str,
    work: F,
) -> Result<T>
where
    F: for<'c> Fn(&'c mut PgConnection, Scope<'c, 's>) -> Work<'c, T> + Send + Sync,
{
    let mut pauses = Pauses::default();
    loop {
        match run(pool, doing, opening, &work).await? {
            Ended::Committed(value) => return Ok(value),
            Ended::InDoubt(source) if !pauses.next().await => return Err(database(doing, source)),
            Ended::InDoubt(source) => tracing::warn!(%source, doing, "answer to commit was lost; run again"),
        }
    }
}

/// Like [`run`], for work whose second run would answer differently: a lost answer to COMMIT is reported as such.
pub(super) async fn run_once<'s, T, F>(
    pool: &Connections,
    doing: &'static str,
    opening: &str,
    work: F,
) -> Result<T>
where
    F: for<'c> Fn(&'c mut PgConnection, Scope<'c, 's>) -> Work<'c, T> + Send + Sync,
{
    match run(pool, doing, opening, work).await? {
        Ended::Committed(value) => Ok(value),
        Ended::InDoubt(source) => Err(database(doing, source)),
    }
}

/// Runs work that is a single statement and may be run twice, without BEGIN and COMMIT around it.
pub(super) async fn single<'s, T, F>(pool: &Connections, doing: &'static str, work: F) -> Result<T>
where
    F: for<'c> Fn(&'c mut PgConnection, Scope<'c, 's>) -> Work<'c, T> + Send + Sync,
{
    let mut pauses = Pauses::default();
    loop {
        let mut conn = pool.acquire().await.map_err(|source| from_sql(doing, source))?;
        let failure = match work(&mut conn, PhantomData).await {
            Ok(value) => {
                conn.is_at_rest();
                return Ok(value);
            }
            Err(failure) => failure,
        };
        match failure {
            Failure::Sql(source) if is_lost(&source) => {
                drop(conn);
                pool.forget_resting();
                if !pauses.next().await {
                    return Err(unavailable(doing, source));
                }
            }
            Failure::Sql(source) if met_another(&source) => {
                conn.is_at_rest();
                drop(conn);
                if !pauses.next().await {
                    return Err(unavailable(doing, source));
                }
            }
            failure => {
                conn.is_at_rest();
                return Err(failure.into_error(doing));
            }
        }
    }
}

async fn attempt<'s, T, F>(pool: &Connections, opening: &str, work: &F) -> Result<Ended<T>, Stop>
where
    F: for<'c> Fn(&'c mut PgConnection, Scope<'c, 's>) -> Work<'c, T> + Send + Sync,
{
    let conn = pool.acquire().await.map_err(|source| Stop::Failed(Failure::Sql(source)))?;
    let mut session = Session { conn };
    if let Err(source) = session.send(opening).await {
        // An idle connection may have died long ago; nothing was begun, so another may do.
        if is_lost(&source) {
            pool.forget_resting();
            return Err(Stop::Again(source));
        }
        session.roll_back().await;
        return Err(judge(Failure::Sql(source)));
    }
    let value = match work(&mut session.conn, PhantomData).await {
        Ok(value) => value,
        Err(failure) => {
            session.roll_back().await;
            return Err(judge(failure));
        }
    };
    match session.send("COMMIT").await {
        Ok(()) => {
            session.conn.is_at_rest();
            Ok(Ended::Committed(value))
        }
        // The server says itself that it did not.
        Err(source) if is_plain_refusal(&source) => {
            session.roll_back().await;
            Err(judge(Failure::Sql(source)))
        }
        Err(source) => Ok(Ended::InDoubt(source)),
    }
}

fn judge(failure: Failure) -> Stop {
    match failure {
        Failure::Sql(source) if met_another(&source) => Stop::Again(source),
        failure => Stop::Failed(failure),
    }
}

/// A connection inside a transaction. Dropped before the end, it is closed, and the server rolls back.
struct Session {
    conn: Lease,
}

impl Session {
    /// One message of the simple protocol; only our own constants, UUIDs and hexadecimal digits are in it.
    async fn send(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        (&mut *self.conn).execute(AssertSqlSafe(sql)).await.map(|_| ())
    }

    async fn roll_back(&mut self) {
        if self.send("ROLLBACK").await.is_ok() {
            self.conn.is_at_rest();
        }
    }
}

/// Pauses between attempts, growing, each of random length so that those who met don't meet again.
#[derive(Default)]
pub(super) struct Pauses {
    taken: u32,
}

impl Pauses {
    /// Waits; `false` (at once) when it has been tried often enough.
    pub(super) async fn next(&mut self) -> bool {
        self.taken += 1;
        if self.taken >= ATTEMPTS_MAX {
            return false;
        }
        let mean = PAUSE_FIRST.saturating_mul(1 << (self.taken - 1)).min(PAUSE_MAX);
        let [random, ..] = Uuid::new_v4().into_bytes();
        tokio::time::sleep(mean.mul_f64(2.0 * f64::from(random) / 255.0)).await;
        true
    }
}

/// Turns what sqlx reports into what callers act on.
pub(super) fn from_sql(doing: &'static str, source: sqlx::Error) -> Error {
    match constraint(&source) {
        Some("keys_bucket_id_fkey" | "files_bucket_id_fkey" | "multipart_uploads_bucket_id_fkey") => {
            Error::NoSuchBucket
        }
        Some("nodes_pkey" | "nodes_public_key_key" | "nodes_peer_id_key") => Error::NodeConflict,
        _ if is_lost(&source) || is_out_of_service(&source) => unavailable(doing, source),
        _ => database(doing, source),
    }
}

/// Nothing was changed, and it may work later.
pub(super) fn unavailable(doing: &'static str, source: sqlx::Error) -> Error {
    Error::Unavailable { doing, source: Box::new(source) }
}

pub(super) fn database(doing: &'static str, source: sqlx::Error) -> Error {
    Error::Database { doing, source: Box::new(source) }
}

/// What happened to one statement, for others that it was also for.
pub(super) fn retold(source: &impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(source.to_string()))
}

/// What became of a statement, for others that it was also for: available later, or not.
pub(super) fn alike(doing: &'static str, error: &Error) -> Error {
    match error {
        Error::Unavailable { source, .. } => unavailable(doing, retold(source)),
        other => database(doing, retold(other)),
    }
}

/// The name of the constraint that was violated.
fn constraint(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().and_then(|error| error.constraint())
}

fn code(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code)
}

/// Met another transaction: serialization failure, deadlock; or a node was removed between our look at it and the
/// end of the statement that records what it holds.
fn met_another(error: &sqlx::Error) -> bool {
    matches!(code(error), Some("40001" | "40P01"))
        || constraint(error) == Some("chunk_locations_node_id_fkey")
}

/// The connection is gone, or there is none.
fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        error => error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
            .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)),
    }
}

/// The server answered that it cannot serve now: connection failures (08), no resources such as disk or connections
/// (53), shutting down or starting (57P0x), a lock not had in time (55P03), a standby (25006), an I/O error (58030).
fn is_out_of_service(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| {
        code.starts_with("08")
            || code.starts_with("53")
            || code.starts_with("57P0")
            || matches!(code, "55P03" | "25006" | "25P03" | "58030")
    })
}

/// The server refused a statement and lives on. What comes with a severity above that may have come after the fact.
fn is_plain_refusal(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| error.severity() == PgSeverity::Error)
}
