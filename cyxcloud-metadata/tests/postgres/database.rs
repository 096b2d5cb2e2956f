//! Databases for tests: each test has its own, made on the server that `CYXCLOUD_TEST_POSTGRES` names, dropped when
//! the test ends, also if it fails.

use std::str::FromStr;

use cyxcloud_metadata::postgres::{PostgresConfig, PostgresStore};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use uuid::Uuid;

const VARIABLE: &str = "CYXCLOUD_TEST_POSTGRES";

/// A database of a test.
#[derive(Debug)]
pub(crate) struct Database {
    server: String,
    name: String,
}

impl Database {
    /// A fresh, empty database; `None` (said aloud) if PostgreSQL is to be left out.
    pub(crate) async fn make() -> Option<Self> {
        let server = std::env::var(VARIABLE).unwrap_or_else(|_| {
            panic!(
                "{VARIABLE} is not set: name a PostgreSQL server and a user who may create databases, such as \
                 postgres://postgres@127.0.0.1:5432/postgres, or leave these tests out with {VARIABLE}=omit"
            )
        });
        if server == "omit" {
            eprintln!("left out: {VARIABLE}=omit");
            return None;
        }
        let database = Self { server, name: format!("cyxcloud_test_{}", Uuid::new_v4().simple()) };
        let mut admin = connect(&database.server).await;
        admin
            .execute(AssertSqlSafe(format!(
                "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'",
                database.name
            )))
            .await
            .expect("create a database");
        admin.close().await.expect("close");
        Some(database)
    }

    /// Where it is, as seen through `host:port` if given.
    pub(crate) fn url(&self, through: Option<std::net::SocketAddr>) -> String {
        let mut options = self.options().ssl_mode(sqlx::postgres::PgSslMode::Disable);
        if let Some(through) = through {
            options = options.host(&through.ip().to_string()).port(through.port());
        }
        options.to_url_lossy().to_string()
    }

    /// What it is called on its server.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The server's own address.
    pub(crate) fn address(&self) -> (String, u16) {
        let options = self.options();
        (options.get_host().to_owned(), options.get_port())
    }

    /// A store on it.
    pub(crate) async fn store(&self) -> PostgresStore {
        self.store_through(None).await
    }

    /// A store on it that reaches it through another address.
    pub(crate) async fn store_through(&self, through: Option<std::net::SocketAddr>) -> PostgresStore {
        PostgresStore::connect(&self.config(self.url(through))).await.expect("connect")
    }

    /// As tests connect.
    pub(crate) fn config(&self, url: String) -> PostgresConfig {
        PostgresConfig { url, max_connections: 32, accept_data_loss: false }
    }

    /// A connection beside the store's.
    pub(crate) async fn connection(&self) -> PgConnection {
        self.options().connect().await.expect("connect")
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.server).expect("a postgres:// URL").database(&self.name)
    }
}

impl Drop for Database {
    /// On a thread of its own: the test's runtime may be busy with a panic.
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let mut admin = connect(&server).await;
                admin
                    .execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
                    .await
                    .expect("drop");
            });
        });
        if dropped.join().is_err() {
            eprintln!("database {} is left behind", self.name);
        }
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnectOptions::from_str(url)
        .expect("a postgres:// URL")
        .connect()
        .await
        .expect("connect to the server that CYXCLOUD_TEST_POSTGRES names")
}
