//! Listings read an index in order, and little of it.

use std::time::Duration;

use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{ListEntry, ListObjects, ListPage};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::database::Database;
use crate::fixture::{Place, place};

/// How long a closed connection may take to report what it read.
const REPORTED: Duration = Duration::from_secs(1);
const SQL: &str = include_str!("../../src/postgres/sql/list_objects.sql");

/// 200,000 keys: 100,000 under `big/`, the others five to a folder.
async fn fill(conn: &mut PgConnection, place: Place) {
    const FILL: &str =
        "INSERT INTO files (id, bucket_id, bucket, key, path, name, owner_id, version_seq, is_latest,
            upload_id, content_hash, etag, size_bytes, chunk_count, data_shards, parity_shards, chunk_size)
        SELECT gen_random_uuid(), $1, 'b', convert_to(k, 'UTF8'), k, k, $2, 1, TRUE,
               gen_random_uuid(), '\\x00', 'e', n, 0, 1, 0, 1
        FROM (SELECT n, CASE WHEN n % 2 = 0 THEN 'big/' || n ELSE 'dir' || (n / 10) || '/' || n END AS k
              FROM generate_series(1, 200000) n) keys";
    sqlx::query(FILL)
        .bind(place.bucket.as_uuid())
        .bind(place.owner.as_uuid())
        .execute(&mut *conn)
        .await
        .expect("fill");
    sqlx::query("ANALYZE files").execute(conn).await.expect("analyze");
}

fn query(place: Place, delimiter: Option<&str>, after: Option<&str>) -> ListObjects {
    ListObjects {
        bucket: place.bucket,
        prefix: String::new(),
        delimiter: delimiter.map(str::to_owned),
        after: after.map(str::to_owned),
        limit: 1000,
    }
}

fn prefixes(page: &ListPage) -> Vec<&str> {
    fn prefix(entry: &ListEntry) -> &str {
        match entry {
            ListEntry::Prefix(prefix) => prefix,
            ListEntry::Object(object) => panic!("{object:?} is not folded"),
        }
    }
    page.entries.iter().map(prefix).collect()
}

/// Index rows read so far; what is counted by connections that are still open is not in it.
async fn rows_read(conn: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT sum(idx_tup_read)::bigint + (SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relname = 'files')
         FROM pg_stat_user_indexes WHERE relname = 'files'",
    )
    .fetch_one(conn)
    .await
    .expect("statistics")
}

#[tokio::test]
async fn listings_of_many_keys_walk_an_index() {
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let place = place(&store).await;
    fill(&mut database.connection().await, place).await;
    folds_without_reading(&database, place).await;
    plans_have_no_sort(&mut database.connection().await, place).await;
    all_are_listed_once(&store, place).await;
}

async fn folds_without_reading(database: &Database, place: Place) {
    let mut beside = database.connection().await;
    // What the filling read is reported when its connection is closed.
    tokio::time::sleep(REPORTED).await;
    let before = rows_read(&mut beside).await;
    let store = database.store().await;
    let page = store.list_objects(&query(place, Some("/"), None)).await.expect("list");
    let folders = prefixes(&page);
    assert_eq!((folders.len(), folders[0], folders[1]), (1000, "big/", "dir0/"));
    assert_eq!(page.next.as_deref(), folders.last().copied());
    store.close().await;
    tokio::time::sleep(REPORTED).await;
    let read = rows_read(&mut beside).await - before;
    assert!((1000..20_000).contains(&read), "{read} rows were read for 1,000 folders of 200,000 keys");
}

async fn plans_have_no_sort(beside: &mut PgConnection, place: Place) {
    let run = |sql: String| sqlx::raw_sql(AssertSqlSafe(sql));
    let prepare = format!("PREPARE listing (uuid, bytea, bytea, bigint) AS {SQL}");
    run(prepare).execute(&mut *beside).await.expect("prepare");
    for (from, limit) in [("", 1001), ("big/", 64), ("dir5", 8), ("zzz", 1)] {
        for cache in ["force_custom_plan", "force_generic_plan"] {
            run(format!("SET plan_cache_mode = {cache}")).execute(&mut *beside).await.expect("set");
            let explain =
                format!("EXPLAIN EXECUTE listing ('{}', '{from}'::bytea, '\\xff', {limit})", place.bucket);
            let rows = run(explain).fetch_all(&mut *beside).await.expect("explain");
            let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let plan = plan.join("\n");
            assert!(plan.contains("Index Scan using files_"), "{cache}: {plan}");
            assert!(!plan.contains("Sort") && !plan.contains("Seq Scan"), "{cache}: {plan}");
        }
    }
}

async fn all_are_listed_once(store: &dyn MetadataStore, place: Place) {
    let (mut after, mut keys): (Option<String>, Vec<String>) = (None, Vec::new());
    loop {
        let page = store.list_objects(&query(place, None, after.as_deref())).await.expect("list");
        keys.extend(page.entries.into_iter().map(|entry| match entry {
            ListEntry::Object(object) => object.key,
            ListEntry::Prefix(prefix) => panic!("{prefix} was not asked for"),
        }));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(keys.len(), 200_000);
    assert!(keys.is_sorted_by(|one, next| one < next));
}
