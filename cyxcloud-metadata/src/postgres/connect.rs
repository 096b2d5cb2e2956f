//! Connects: says at once what is wrong, refuses a server that would lose acknowledged data, brings the schema up
//! to date.
//!
//! Gateways that start together migrate together: the whole of it is one transaction, and whoever meets another
//! looks again.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::PostgresConfig;
use super::pool::Connections;
use super::transact::{self, Pauses};
use crate::error::{Error, Result};

/// How long to wait for the first connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTING: &str = "connect to PostgreSQL";
const MIGRATING: &str = "bring the schema of the database up to date";

/// Settings without which an acknowledged commit can be lost.
const DURABILITY: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

pub(super) async fn open(config: &PostgresConfig) -> Result<Connections> {
    let options = config
        .url
        .parse::<PgConnectOptions>()
        .map_err(|source| transact::database("read the database URL", source))?
        .application_name("cyxcloud")
        .disable_statement_logging();
    let mut first = first_connection(&options).await?;
    if !config.accept_data_loss {
        check_durability(&mut first).await?;
    }
    migrate(&mut first).await?;
    // It has done its work; that it can't say good-bye changes nothing.
    let _ = first.close().await;
    Ok(Connections::new(options, config.max_connections))
}

/// Says what is wrong at once, where later ones are tried again.
async fn first_connection(options: &PgConnectOptions) -> Result<PgConnection> {
    match tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(source)) => Err(transact::from_sql(CONNECTING, source)),
        Err(late) => Err(Error::Unavailable {
            doing: CONNECTING,
            source: Box::new(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!(
                    "no answer from {}:{} within 5 seconds ({late})",
                    options.get_host(),
                    options.get_port()
                ),
            )),
        }),
    }
}

async fn check_durability(conn: &mut PgConnection) -> Result<()> {
    let row = sqlx::query(
        "SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
                current_setting('synchronous_commit') AS synchronous_commit",
    )
    .fetch_one(conn)
    .await
    .map_err(|source| transact::from_sql("read the settings of the database", source))?;
    for setting in DURABILITY {
        let value: String = row
            .try_get(setting)
            .map_err(|source| transact::database("read the settings of the database", source))?;
        if value == "off" {
            return Err(Error::UnsafeDatabase { setting: setting.to_owned() });
        }
    }
    Ok(())
}

async fn migrate(conn: &mut PgConnection) -> Result<()> {
    let mut migrations = sqlx::migrate!("../migrations/postgres");
    migrations.set_locking(false);
    let mut pauses = Pauses::default();
    loop {
        let Err(source) = migrate_once(conn, &migrations).await else { return Ok(()) };
        if !met_another(&source) || !pauses.next().await {
            return Err(Error::Database { doing: MIGRATING, source: Box::new(source) });
        }
    }
}

async fn migrate_once(conn: &mut PgConnection, migrations: &Migrator) -> Result<(), MigrateError> {
    let mut tx = conn.begin().await?;
    migrations.run(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

/// Somebody else makes the same things: unique violation (also in the catalogue), duplicate table or object, and the
/// usual two.
fn met_another(error: &MigrateError) -> bool {
    let (MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) = error else {
        return false;
    };
    let code = source.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("23505" | "42P07" | "42710" | "40001" | "40P01" | "XX000"))
}
