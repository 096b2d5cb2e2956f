//! What is kept, in PostgreSQL, in a schema of its own. One file for each kind of thing.

mod addresses;
mod limits;
mod machines;
mod sessions;
mod users;
mod wallets;

use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};

pub(crate) use limits::Taken;
pub(crate) use machines::{Machine, NewMachine};
pub(crate) use sessions::{NextIds, Refreshed};
pub(crate) use users::{Change, NewUser, Status, Taken as NameTaken, Unchanged, User};
pub(crate) use wallets::Challenge;

/// Where all tables are, so that the database may be shared with others.
const SCHEMA: &str = "cyxwiz";
/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the database did not do what it was asked. `doing` completes "could not ...".
#[derive(Debug, thiserror::Error)]
#[error("could not {doing}")]
pub struct StoreError {
    doing: &'static str,
    #[source]
    source: sqlx::Error,
}

/// For `map_err`.
fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError { doing, source }
}

type Result<T> = std::result::Result<T, StoreError>;

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// Connects and brings the schema up to date. Instances that start together wait for each other.
    pub async fn connect(url: &SecretString, connections_max: u32) -> Result<Self> {
        let options = PgConnectOptions::from_str(url.expose_secret())
            .map_err(failed("read DATABASE_URL"))?
            .application_name("cyxwiz-api")
            .options([("search_path", SCHEMA)])
            .disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(connections_max).acquire_timeout(ACQUIRE_TIMEOUT);
        let pool = pool.connect_with(options).await.map_err(failed("connect"))?;
        let mut migrations = sqlx::migrate!("./migrations");
        migrations.create_schema(SCHEMA);
        let migrated = migrations.run(&pool).await;
        migrated
            .map_err(|source| StoreError { doing: "bring the schema up to date", source: source.into() })?;
        Ok(Self { pool })
    }

    /// One that answers nothing, at once.
    pub(crate) async fn closed() -> Self {
        let pool = PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new_without_pgpass());
        pool.close().await;
        Self { pool }
    }

    /// Whether it answers.
    pub(crate) async fn ping(&self) -> Result<()> {
        let pinged = sqlx::query("SELECT 1").execute(&self.pool).await;
        pinged.map(|_| ()).map_err(failed("reach PostgreSQL"))
    }

    /// Forgets what has expired and can decide nothing any more.
    pub(crate) async fn clear_expired(&self) -> Result<()> {
        const EXPIRED: [&str; 5] = [
            "DELETE FROM limits WHERE full_at < now()",
            "DELETE FROM wallet_challenges WHERE expires_at < now()",
            "DELETE FROM known_addresses WHERE seen_at < now() - interval '90 days'",
            // A day later, so that clocks that differ do not matter.
            "DELETE FROM refresh_tokens WHERE expires_at < now() - interval '1 day'",
            "DELETE FROM sessions s WHERE created_at < now() - interval '1 day'
                AND NOT EXISTS (SELECT 1 FROM refresh_tokens t WHERE t.session_id = s.id)",
        ];
        for sql in EXPIRED {
            sqlx::query(sql).execute(&self.pool).await.map_err(failed("clear what has expired"))?;
        }
        Ok(())
    }
}

/// The name of the constraint that a row would have violated, if that is what went wrong.
fn violated(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error().filter(|error| error.is_unique_violation()).and_then(|error| error.constraint())
}
