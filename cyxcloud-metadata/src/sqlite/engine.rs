//! One writer thread that groups commits, and a few read-only connections beside it.
//!
//! The writer drains what waits, runs each piece of work in a savepoint of its own inside one transaction, commits
//! once (one fsync for all of them), and only then answers anyone. Work that fails takes only its savepoint back.
//! What lives in memory has no second connection: there, reads wait in the same line.

use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::{Error, Result};

/// Work that shares one commit, at most.
const GROUP_MAX: usize = 64;
/// Work that may wait for the writer; more waits for room.
const QUEUE_MAX: usize = 1024;

/// Why a piece of work failed: for a reason that callers know, or in SQLite.
#[derive(Debug)]
pub(super) enum Fail {
    Known(Error),
    Sql(rusqlite::Error),
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Known(error)
    }
}

impl From<rusqlite::Error> for Fail {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl Fail {
    /// As callers see it; `doing` completes "could not ...".
    pub(super) fn while_doing(self, doing: &'static str) -> Error {
        match self {
            Self::Known(error) => error,
            Self::Sql(error) => database(doing, error),
        }
    }
}

/// The result of a piece of work.
pub(super) type Done<T> = std::result::Result<T, Fail>;

/// Whether trying again later can help decides between the two kinds.
fn database(doing: &'static str, error: rusqlite::Error) -> Error {
    use ErrorCode as Code;
    let passing = matches!(
        error.sqlite_error_code(),
        Some(
            Code::DiskFull
                | Code::SystemIoFailure
                | Code::CannotOpen
                | Code::DatabaseBusy
                | Code::DatabaseLocked
                | Code::ReadOnly
                | Code::PermissionDenied
                | Code::OutOfMemory
                | Code::FileLockingProtocolFailed
        )
    );
    if passing {
        Error::Unavailable { doing, source: error.into() }
    } else {
        Error::Database { doing, source: error.into() }
    }
}

fn stopped(doing: &'static str) -> Error {
    Error::Unavailable { doing, source: "the metadata store has stopped".into() }
}

/// Something for the writer to do.
trait Work: Send {
    /// Whether somebody still waits for it.
    fn wanted(&self) -> bool;
    /// Runs it; false if its changes must be taken back.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Tells how it ended, given why the transaction failed, if it did.
    fn answer(self: Box<Self>, failed: Option<&Arc<rusqlite::Error>>);
}

struct Task<F, T> {
    doing: &'static str,
    work: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<F, T> Work for Task<F, T>
where
    F: FnOnce(&Connection) -> Done<T> + Send,
    T: Send,
{
    fn wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    fn run(&mut self, connection: &Connection) -> bool {
        let Some(work) = self.work.take() else { return false };
        let doing = self.doing;
        // The savepoint takes back whatever a panic left half done, so nothing broken is seen later.
        let result = catch_unwind(AssertUnwindSafe(|| work(connection)))
            .unwrap_or_else(|_| Err(Error::Database { doing, source: "the work panicked".into() }.into()))
            .map_err(|fail| fail.while_doing(doing));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn answer(self: Box<Self>, failed: Option<&Arc<rusqlite::Error>>) {
        let doing = self.doing;
        let result = match (self.result, failed) {
            (Some(Err(error @ Error::Unavailable { .. })), _) => Err(error),
            // Other refusals may rest on what a neighbour in the group did, which has not happened.
            (_, Some(cause)) => Err(Error::Unavailable { doing, source: Arc::clone(cause).into() }),
            (Some(result), None) => result,
            (None, None) => Err(stopped(doing)),
        };
        // Whoever asked may be gone by now.
        let _ = self.reply.send(result);
    }
}

/// The connections of one open database. Dropping it finishes what was begun, closes the file and frees it for others.
pub(super) struct Engine {
    queue: Option<mpsc::Sender<Box<dyn Work>>>,
    writer: Option<JoinHandle<()>>,
    readers: Option<Arc<Readers>>,
}

struct Readers {
    idle: Mutex<Vec<Connection>>,
    free: Arc<Semaphore>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("readers", &self.readers.is_some()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the writer. Without readers, reads go through it. It holds `lock` until the connection is closed.
    pub(super) fn start(writer: Connection, readers: Vec<Connection>, lock: Option<File>) -> Result<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("metadata-writer".to_owned())
            .spawn(move || {
                write_loop(&writer, waiting);
                drop(writer);
                drop(lock);
            })
            .map_err(|source| Error::Unavailable {
                doing: "start the metadata writer",
                source: source.into(),
            })?;
        let readers = (!readers.is_empty()).then(|| {
            let free = Arc::new(Semaphore::new(readers.len()));
            Arc::new(Readers { idle: Mutex::new(readers), free })
        });
        Ok(Self { queue: Some(queue), writer: Some(thread), readers })
    }

    /// Whether the writer still takes work.
    pub(super) fn is_running(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.is_closed())
    }

    /// Runs work that may change something; it is durable when this returns `Ok`.
    pub(super) async fn write<T, F>(&self, doing: &'static str, work: F) -> Result<T>
    where
        F: FnOnce(&Connection) -> Done<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task = Box::new(Task { doing, work: Some(work), result: None, reply });
        let queue = self.queue.as_ref().ok_or_else(|| stopped(doing))?;
        queue.send(task).await.map_err(|_| stopped(doing))?;
        answer.await.map_err(|_| stopped(doing))?
    }

    /// Runs work that changes nothing, on one snapshot of what is committed.
    pub(super) async fn read<T, F>(&self, doing: &'static str, work: F) -> Result<T>
    where
        F: FnOnce(&Connection) -> Done<T> + Send + 'static,
        T: Send + 'static,
    {
        let Some(readers) = &self.readers else { return self.write(doing, work).await };
        let permit = Arc::clone(&readers.free).acquire_owned().await.map_err(|_| stopped(doing))?;
        let readers = Arc::clone(readers);
        let task = tokio::task::spawn_blocking(move || {
            let connection = readers.idle().pop().ok_or_else(|| stopped(doing))?;
            let result = catch_unwind(AssertUnwindSafe(|| {
                let snapshot = connection.unchecked_transaction()?;
                let value = work(&connection)?;
                snapshot.commit()?;
                Ok(value)
            }))
            .unwrap_or_else(|_| Err(Error::Database { doing, source: "the work panicked".into() }.into()));
            readers.idle().push(connection);
            drop(permit);
            result.map_err(|fail: Fail| fail.while_doing(doing))
        });
        task.await.map_err(|source| Error::Unavailable { doing, source: source.into() })?
    }
}

impl Readers {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Readers first: the last connection to close tidies the log away, and only the writer may.
        drop(self.readers.take());
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the metadata writer panicked");
        }
    }
}

fn write_loop(connection: &Connection, mut waiting: mpsc::Receiver<Box<dyn Work>>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while let Some(first) = waiting.blocking_recv() {
        group.push(first);
        while group.len() < GROUP_MAX
            && let Ok(more) = waiting.try_recv()
        {
            group.push(more);
        }
        group.retain(|work| work.wanted());
        let failed = commit_together(connection, &mut group).err().map(Arc::new);
        if let Some(cause) = &failed {
            tracing::warn!(%cause, work = group.len(), "a group of metadata commits failed");
        }
        for work in group.drain(..) {
            work.answer(failed.as_ref());
        }
    }
}

/// Runs the group in one transaction. On an error nothing of it has happened.
fn commit_together(connection: &Connection, group: &mut [Box<dyn Work>]) -> rusqlite::Result<()> {
    let outcome = run_group(connection, group);
    if outcome.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK")?;
    }
    outcome
}

fn run_group(connection: &Connection, group: &mut [Box<dyn Work>]) -> rusqlite::Result<()> {
    let run = |sql: &str| connection.prepare_cached(sql)?.execute([]).map(|_| ());
    run("BEGIN IMMEDIATE")?;
    for work in group {
        run("SAVEPOINT work")?;
        if !work.run(connection) {
            if connection.is_autocommit() {
                // A full disk or a failed read made SQLite give up the transaction, and what others did in it.
                return Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
                    Some("the transaction was given up".to_owned()),
                ));
            }
            run("ROLLBACK TO work")?;
        }
        run("RELEASE work")?;
    }
    run("COMMIT")
}
