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
    let options = read(&config.url)?.application_name("cyxcloud").disable_statement_logging();
    let mut first = first_connection(&options).await?;
    if !config.accept_data_loss {
        check_durability(&mut first).await?;
    }
    migrate(&mut first).await?;
    // It has done its work; that it can't say good-bye changes nothing.
    let _ = first.close().await;
    Ok(Connections::new(options, config.max_connections))
}

fn read(url: &str) -> Result<PgConnectOptions> {
    url.parse().map_err(|source| transact::database("read the database URL", source))
}

/// Host and port that connections go to; none where that is a socket of this machine. As whoever connects reads the URL, with
/// its parameters and the environment, so that no other place is meant.
pub fn endpoint(url: &str) -> Result<Option<(String, u16)>> {
    let options = read(url)?;
    let is_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    Ok((!is_socket).then(|| (options.get_host().to_owned(), options.get_port())))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_the_database_is_in_many_ways() {
        for (url, host) in [
            ("postgres://u@db.internal:6000/x", "db.internal"),
            ("postgresql://10.0.0.5:6000", "10.0.0.5"),
            ("postgres:///x?host=db.internal&port=6000", "db.internal"),
            ("postgres://elsewhere:1/x?hostaddr=10.0.0.5&port=6000", "10.0.0.5"),
            ("postgres://[::1]:6000/x", "[::1]"),
            // What no http::Uri takes.
            ("postgres://u:p|a^s{s}\"@db.internal:6000/x", "db.internal"),
        ] {
            assert_eq!(endpoint(url).expect(url), Some((host.to_owned(), 6000)), "{url}");
        }
        for url in ["postgres://%2Frun%2Fpostgresql/x", "postgres:///x?host=/run/postgresql&port=6000"] {
            assert_eq!(endpoint(url).expect(url), None, "{url}");
        }
        let wrong = endpoint("postgres://u:secret@db:port/x").expect_err("not a port");
        assert!(!format!("{wrong:?}").contains("secret"));
    }
}
