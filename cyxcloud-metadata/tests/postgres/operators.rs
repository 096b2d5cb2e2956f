//! What operators type, as it is printed in the specification.

use cyxcloud_core::Geometry;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{BadLocation, Fault};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::database::Database;
use crate::fixture::{nodes, place};

/// As psql sends it.
async fn ask(conn: &mut PgConnection, sql: &'static str) -> Vec<PgRow> {
    sqlx::raw_sql(sql).fetch_all(conn).await.expect("the query is answered")
}

#[tokio::test]
async fn printed_queries_are_answered() {
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let place = place(&store).await;
    let nodes = nodes(&store, 3).await;
    let segment = place.striped(Geometry::STANDARD_SMALL, 2, &nodes);
    let id = segment.id;
    store.commit_object(&place.commit("photos/cat.jpg", segment)).await.expect("commit");
    store.commit_object(&place.commit("a\0b", place.inline(b"tiny"))).await.expect("commit");
    let psql = &mut database.connection().await;

    assert_eq!(ask(psql, "SELECT * FROM nodes;").await.len(), 3);
    assert_eq!(ask(psql, "SELECT * FROM files ORDER BY created_at DESC LIMIT 10;").await.len(), 2);
    let rows = ask(psql, "SELECT peer_id, status, storage_used FROM nodes;").await;
    assert!(rows.iter().all(|row| row.get::<&str, _>("status") == "online"));
    let rows =
        ask(psql, "SELECT name, size_bytes, chunk_count FROM files ORDER BY created_at DESC LIMIT 5;").await;
    let files: Vec<(&str, i64, i32)> =
        rows.iter().map(|row| (row.get("name"), row.get("size_bytes"), row.get("chunk_count"))).collect();
    assert_eq!(files, [("a\u{FFFD}b", 4, 0), ("cat.jpg", 2000, 2)]);

    const UNWELL: &str = "SELECT * FROM chunk_replication_status WHERE health_status != 'healthy';";
    assert!(ask(psql, UNWELL).await.is_empty());
    let bad = |stripe, node: usize| BadLocation {
        segment: id,
        stripe,
        shard: Geometry::STANDARD_SMALL.shard(0).expect("the first"),
        node: nodes[node].id,
        fault: Fault::Missing,
    };
    store.report_bad_locations(&[bad(0, 0), bad(1, 0), bad(1, 1), bad(1, 2)]).await.expect("report");
    let rows = ask(psql, UNWELL).await;
    let mut unwell: Vec<(i32, i64, i64, &str)> = rows
        .iter()
        .map(|row| {
            (
                row.get("stripe_index"),
                row.get("current_replicas"),
                row.get("replicas_needed"),
                row.get("health_status"),
            )
        })
        .collect();
    unwell.sort_unstable();
    assert_eq!(unwell, [(0, 2, 1, "under_replicated"), (1, 0, 3, "missing")]);
}

#[tokio::test]
async fn the_storage_summary_adds_up() {
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let place = place(&store).await;
    let nodes = nodes(&store, 3).await;
    store
        .commit_object(&place.commit("k", place.striped(Geometry::STANDARD_SMALL, 2, &nodes)))
        .await
        .expect("commit");
    let sql = "SELECT storage_available >> 30 AS available, storage_allocatable >> 30 AS allocatable,
               utilization_percent::float8 AS utilization, chunk_count FROM node_storage_summary";
    let rows =
        sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut database.connection().await).await.expect("view");
    assert_eq!(rows.len(), 3);
    for row in rows {
        let shown: (i64, i64, f64, i64) =
            (row.get("available"), row.get("allocatable"), row.get("utilization"), row.get("chunk_count"));
        assert_eq!(shown, (49, 98, 50.0, 2));
    }
}
