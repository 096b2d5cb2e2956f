//! Connections: lent for one transaction or statement at a time, kept open between.
//!
//! Only what came back at rest is lent again; a connection whose borrower was cancelled or lost it is closed. Nothing is
//! asked of the server between two uses that follow each other closely: sqlx's own pool does that after each use, which
//! costs as much as a small read itself.
//! Not here: what runs on a connection (`transact`), how the first one is made (`connect`).

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long to wait for a connection: for others to give one back, and for the handshake of a new one on a busy machine.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// For so long it is tried again to connect to a server that refuses.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect, each twice as long as the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A connection that rested longer is tried before it is lent.
const TRIED_WITHIN: Duration = Duration::from_secs(1);
/// Connections kept open though idle: a burst after a quiet time must not wait for handshakes.
const KEPT_IDLE: usize = 4;
/// The others are closed after resting for so long.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// No connection is used for longer, so that what the server keeps for it (plans, caches) is let go of.
const LIFETIME_MAX: Duration = Duration::from_secs(30 * 60);

/// What every connection is told once. Transactions count on a new snapshot per statement. A gateway that hangs must
/// not keep keys locked, and who waits for a lock gives up later than that. No statement is long enough to be worth compiling.
const SESSION: &str = "SET default_transaction_isolation = 'read committed';
    SET idle_in_transaction_session_timeout = '20s';
    SET lock_timeout = '30s';
    SET jit = off";

/// The connections of one store. A clone is the same.
#[derive(Clone)]
pub(super) struct Connections(Arc<Shared>);

struct Shared {
    options: PgConnectOptions,
    /// As many as connections may be open: who holds one of them may lend what rests, or open another.
    turns: Arc<Semaphore>,
    most: u32,
    rest: Mutex<Vec<Resting>>,
}

struct Resting {
    conn: PgConnection,
    opened: Instant,
    since: Instant,
}

/// A connection on loan. Unless it is said to be [at rest](Self::is_at_rest), it is closed in the end.
pub(super) struct Lease {
    conn: Option<PgConnection>,
    opened: Instant,
    at_rest: bool,
    home: Connections,
    _turn: OwnedSemaphorePermit,
}

impl Connections {
    /// At most `most` connections, none of them open yet.
    pub(super) fn new(options: PgConnectOptions, most: u32) -> Self {
        let most = most.max(1);
        let turns = Arc::new(Semaphore::new(most as usize));
        Self(Arc::new(Shared { options, turns, most, rest: Mutex::default() }))
    }

    /// How many are open and idle.
    pub(super) fn idle(&self) -> usize {
        self.resting().len()
    }

    /// Lends the connection that came back last, or a new one.
    pub(super) async fn acquire(&self) -> Result<Lease, sqlx::Error> {
        let (deadline, refused_until) = (Instant::now() + ACQUIRE_TIMEOUT, Instant::now() + REFUSED_FOR);
        let acquired = tokio::time::timeout_at(deadline.into(), async {
            let turns = Arc::clone(&self.0.turns);
            let turn = turns.acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let (conn, opened) = match self.take().await {
                Some(taken) => taken,
                None => (self.open(refused_until).await?, Instant::now()),
            };
            Ok(Lease { conn: Some(conn), opened, at_rest: false, home: self.clone(), _turn: turn })
        });
        acquired.await.unwrap_or_else(|_| {
            self.forget_resting();
            Err(sqlx::Error::PoolTimedOut)
        })
    }

    async fn take(&self) -> Option<(PgConnection, Instant)> {
        let Resting { mut conn, opened, since } = self.resting().pop()?;
        if since.elapsed() > TRIED_WITHIN && conn.ping().await.is_err() {
            self.forget_resting();
            return None;
        }
        Some((conn, opened))
    }

    /// Tries again, as long as there is time, where nobody answers or the server is starting.
    async fn open(&self, deadline: Instant) -> Result<PgConnection, sqlx::Error> {
        let mut pause = PAUSE_FIRST;
        loop {
            let refused = match self.0.options.connect().await {
                Ok(mut conn) => {
                    conn.execute(SESSION).await?;
                    return Ok(conn);
                }
                Err(error) => error,
            };
            if !may_pass(&refused) || Instant::now() + pause > deadline {
                return Err(refused);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// A connection was lost: those that rest were likely lost with it.
    pub(super) fn forget_resting(&self) {
        let resting = std::mem::take(&mut *self.resting());
        drop(resting);
    }

    /// Waits for what is lent and closes everything.
    pub(super) async fn close(&self) {
        if let Ok(all) = self.0.turns.acquire_many(self.0.most).await {
            all.forget();
        }
        self.0.turns.close();
        let resting = std::mem::take(&mut *self.resting());
        for resting in resting {
            // That it can't say good-bye changes nothing.
            let _ = resting.conn.close().await;
        }
    }

    fn give_back(&self, conn: PgConnection, opened: Instant) {
        if self.0.turns.is_closed() || opened.elapsed() > LIFETIME_MAX {
            return;
        }
        let mut resting = self.resting();
        resting.push(Resting { conn, opened, since: Instant::now() });
        // The last one is lent first, so the first one has rested longest.
        let old = resting.len() > KEPT_IDLE && resting[0].since.elapsed() > IDLE_MAX;
        let idle = old.then(|| resting.remove(0));
        drop(resting);
        drop(idle);
    }

    fn resting(&self) -> MutexGuard<'_, Vec<Resting>> {
        self.0.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server may accept a connection in a moment: it cannot be reached, starts up (57P03), or has none
/// left (53300).
fn may_pass(error: &sqlx::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    match error {
        sqlx::Error::Io(error) => {
            matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
        }
        error => error
            .as_database_error()
            .is_some_and(|error| matches!(error.code().as_deref(), Some("57P03" | "53300"))),
    }
}

impl Lease {
    /// No transaction is open on it, and no statement under way: it may be lent again.
    pub(super) fn is_at_rest(&mut self) {
        self.at_rest = true;
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn.as_ref().expect("it is there until the lease ends")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.conn.as_mut().expect("it is there until the lease ends")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        if self.at_rest {
            self.home.give_back(conn, self.opened);
        }
    }
}
