//! Databases for tests: each test has its own, made on the server that `CYXCLOUD_TEST_POSTGRES` names, dropped when
//! the test ends, also if it fails.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use uuid::Uuid;

const VARIABLE: &str = "CYXCLOUD_TEST_POSTGRES";

/// A database of a test.
#[derive(Debug)]
pub(crate) struct Database {
    server: String,
    name: String,
    /// Who made it drops it.
    made: bool,
}

impl Database {
    /// The same one, for another instance.
    pub(crate) fn at(other: &Self) -> Self {
        Self { server: other.server.clone(), name: other.name.clone(), made: false }
    }

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
        let database = Self { server, name: format!("cyxwiz_test_{}", Uuid::new_v4().simple()), made: true };
        let create = format!("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", database.name);
        let mut admin = connect(&database.server).await;
        admin.execute(AssertSqlSafe(create)).await.expect("create a database");
        admin.close().await.expect("close");
        Some(database)
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        self.options().to_url_lossy().to_string()
    }

    /// A connection beside the service's.
    pub(crate) async fn beside(&self) -> PgConnection {
        self.options().connect().await.expect("connect")
    }

    /// Runs a statement beside the service.
    pub(crate) async fn run(&self, sql: &'static str) {
        let mut beside = self.beside().await;
        beside.execute(sql).await.expect("run");
        beside.close().await.expect("close");
    }

    /// The number that a query answers.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        let mut beside = self.beside().await;
        let count = sqlx::query_scalar(sql).fetch_one(&mut beside).await.expect("count");
        beside.close().await.expect("close");
        count
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.server).expect("a postgres:// URL").database(&self.name)
    }
}

impl Drop for Database {
    /// On a thread of its own: the test's runtime may be busy with a panic.
    fn drop(&mut self) {
        if !self.made {
            return;
        }
        let (server, name) = (self.server.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let drop = format!("DROP DATABASE {name} WITH (FORCE)");
                connect(&server).await.execute(AssertSqlSafe(drop)).await.expect("drop");
            });
        });
        if dropped.join().is_err() {
            eprintln!("database {} is left behind", self.name);
        }
    }
}

async fn connect(url: &str) -> PgConnection {
    let options = PgConnectOptions::from_str(url).expect("a postgres:// URL");
    options.connect().await.expect("connect to the server that CYXCLOUD_TEST_POSTGRES names")
}
