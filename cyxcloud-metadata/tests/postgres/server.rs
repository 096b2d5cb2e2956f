//! Servers that cannot be used, or come and go.

use std::time::{Duration, Instant};

use cyxcloud_metadata::conformance::brought_up_to_date;
use cyxcloud_metadata::postgres::{PostgresConfig, PostgresStore};
use cyxcloud_metadata::{Error, MetadataStore};
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::database::Database;
use crate::fixture::place;
use crate::proxy::Proxy;

#[tokio::test]
async fn a_server_that_would_lose_commits_is_refused() {
    let Some(database) = Database::make().await else { return };
    let config = database.config(database.url(None));
    let mut beside = database.connection().await;
    let name: String =
        sqlx::query_scalar("SELECT current_database()").fetch_one(&mut beside).await.expect("name");
    let unsafely = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    beside.execute(AssertSqlSafe(unsafely)).await.expect("set");
    beside.close().await.expect("close");
    match PostgresStore::connect(&config).await {
        Err(Error::UnsafeDatabase { setting }) => assert_eq!(setting, "synchronous_commit"),
        other => panic!("{other:?}"),
    }
    let told = PostgresConfig { accept_data_loss: true, ..config };
    PostgresStore::connect(&told).await.expect("accepted").ping().await.expect("ping");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_so() {
    let Some(database) = Database::make().await else { return };
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = unused.local_addr().expect("address");
    // Listens, and never answers.
    let began = Instant::now();
    let silent = PostgresStore::connect(&database.config(database.url(Some(address)))).await;
    assert!(matches!(silent, Err(Error::Unavailable { .. })), "{silent:?}");
    assert!(began.elapsed() < Duration::from_secs(8));
    drop(unused);
    let refused = PostgresStore::connect(&database.config(database.url(Some(address)))).await;
    let Err(error @ Error::Unavailable { .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(error.to_string(), "could not connect to PostgreSQL: the database is not available");
}

#[tokio::test]
async fn stores_that_start_together_migrate_once() {
    let Some(database) = Database::make().await else { return };
    let stores = futures::future::join_all((0..8).map(|_| database.store())).await;
    for store in stores {
        place(&store).await;
    }
}

#[tokio::test]
async fn a_database_of_before_is_brought_up_to_date() {
    let Some(database) = Database::make().await else { return };
    let mut old = database.connection().await;
    let migrations = sqlx::migrate!("../migrations/postgres");
    migrations.run_to(4, &mut old).await.expect("an older schema");
    old.execute(
        "INSERT INTO constants (name, value) VALUES ('token_key', '\\x0102');
         INSERT INTO users (id, sealing_secret) VALUES (gen_random_uuid(), '\\x00');
         INSERT INTO access_keys (id, owner_id, secret) SELECT 'OLD', id, '\\x00' FROM users;
         INSERT INTO nodes (id, public_key, peer_id, label, name, grpc_address, metrics_address, incarnation, storage_total, status)
             VALUES (gen_random_uuid(), sha256('key'), 'peer', 'old', 'old', 'http://n', 'http://m', gen_random_uuid(), 1, 'online')",
    )
    .await
    .expect("rows of that time");
    for _ in 0..2 {
        let store = database.store().await;
        brought_up_to_date(&store).await;
    }
}

#[tokio::test]
async fn connections_that_died_are_replaced() {
    const KILL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let place = place(&store).await;
    let mut beside = database.connection().await;
    for round in 0..3 {
        let name = format!("k{round}");
        store.commit_object(&place.commit(&name, place.inline(b"x"))).await.expect("commit");
        sqlx::query(KILL).execute(&mut beside).await.expect("terminate");
        store.object(place.bucket, &crate::fixture::key(&name)).await.expect("read").expect("is there");
        sqlx::query(KILL).execute(&mut beside).await.expect("terminate");
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_no_lock() {
    let Some(database) = Database::make().await else { return };
    let proxy = Proxy::start(database.address()).await;
    let store = database.store_through(Some(proxy.address)).await;
    let place = place(&store).await;
    for micros in (0..6000).step_by(150) {
        let commit = place.commit("k", place.inline(b"x"));
        let _ = tokio::time::timeout(Duration::from_micros(micros), store.commit_object(&commit)).await;
    }
    let commit = place.commit("k", place.inline(b"last"));
    tokio::time::timeout(Duration::from_secs(5), store.commit_object(&commit))
        .await
        .expect("in time")
        .expect("commit");
    let mut beside = database.connection().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let open: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
    )
    .fetch_one(&mut beside)
    .await
    .expect("count");
    assert_eq!(open, 0);
}
