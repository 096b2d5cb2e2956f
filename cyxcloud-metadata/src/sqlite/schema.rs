//! Opens the database file: one process at a time, durable settings, migrations.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::engine::{Done, Engine, Fail};
use crate::error::{Error, Result};

/// Where the database lives.
#[derive(Clone, Debug)]
pub enum SqliteConfig {
    /// In this file; its directory must exist.
    File(PathBuf),
    /// In this process, gone with it.
    Memory,
}

/// In order; the database's `user_version` says how many it has seen.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/sqlite/0001_initial.sql"),
    include_str!("../../../migrations/sqlite/0002_upkeep.sql"),
    include_str!("../../../migrations/sqlite/0004_people.sql"),
    include_str!("../../../migrations/sqlite/0005_vetting.sql"),
    include_str!("../../../migrations/sqlite/0006_token_keys.sql"),
    include_str!("../../../migrations/sqlite/0007_minted_keys.sql"),
    include_str!("../../../migrations/sqlite/0008_repair_outcomes.sql"),
    include_str!("../../../migrations/sqlite/0009_vetting_anew.sql"),
    include_str!("../../../migrations/sqlite/0010_repairs_in_vain.sql"),
];

const READERS: usize = 4;
/// Prepared statements that a connection keeps: more than there are in this module.
const STATEMENTS: usize = 256;
/// How long to wait for somebody's shell that looks into the file.
const BUSY_WAIT: Duration = Duration::from_secs(5);
const OPENING: &str = "open the metadata database";

/// Opens, checks and migrates.
pub(super) fn open(config: &SqliteConfig) -> Result<Engine> {
    match config {
        SqliteConfig::Memory => {
            let mut writer = Connection::open_in_memory().map_err(failed)?;
            prepare(&mut writer).map_err(|fail| fail.while_doing(OPENING))?;
            Engine::start(writer, Vec::new(), None)
        }
        SqliteConfig::File(path) => {
            let lock = lock(path)?;
            // Before SQLite does: it gives what it keeps beside the database (-wal, -shm) the same mode.
            private(path)?;
            let mut writer = Connection::open_with_flags(path, flags(true)).map_err(failed)?;
            prepare(&mut writer).map_err(|fail| fail.while_doing(OPENING))?;
            let readers: Result<Vec<_>> = (0..READERS).map(|_| reader(path)).collect();
            Engine::start(writer, readers?, Some(lock))
        }
    }
}

fn failed(error: rusqlite::Error) -> Error {
    Fail::Sql(error).while_doing(OPENING)
}

fn flags(writable: bool) -> OpenFlags {
    let access = if writable {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    } else {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    };
    access | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn unavailable(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Unavailable { doing: OPENING, source }
}

/// A file that only its owner can read, if it is made here. One that exists is left as it is.
fn private(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| unavailable(format!("{}: {e}", path.display()).into()))
}

/// Holds a file beside the database, so that no second process writes to it. The kernel lets go when we die.
fn lock(path: &Path) -> Result<File> {
    let beside = PathBuf::from([path.as_os_str(), ".lock".as_ref()].join("".as_ref()));
    let file = private(&beside)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(unavailable(format!("{} is in use by another process", path.display()).into()))
        }
        Err(TryLockError::Error(e)) => Err(unavailable(format!("{}: {e}", beside.display()).into())),
    }
}

fn prepare(connection: &mut Connection) -> Done<()> {
    connection.busy_timeout(BUSY_WAIT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -32 * 1024)?; // KiB
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 4000, |_| Ok(()))?; // pages
    connection.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))?; // bytes
    migrate(connection)
}

fn reader(path: &Path) -> Result<Connection> {
    let open = || {
        let connection = Connection::open_with_flags(path, flags(false))?;
        connection.busy_timeout(BUSY_WAIT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "cache_size", -8 * 1024)?; // KiB
        Ok(connection)
    };
    open().map_err(failed)
}

/// Brings the schema up to date; refuses one from the future.
fn migrate(connection: &mut Connection) -> Done<()> {
    let seen: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).expect("a handful");
    if seen > known || seen < 0 {
        let detail = format!("its version is {seen}, this program knows {known}; run the newer program");
        return Err(Error::Corrupt { what: "schema", detail }.into());
    }
    for (migration, number) in MIGRATIONS.iter().zip(1i64..).skip(usize::try_from(seen).unwrap_or(0)) {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}
