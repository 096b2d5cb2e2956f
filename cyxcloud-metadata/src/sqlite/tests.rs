//! The conformance suite on a file and in memory, and what only SQLite has.

use std::path::Path;
use std::sync::Arc;

use cyxcloud_core::Geometry;
use cyxcloud_core::node::NodeStatus::{Offline, Online};
use rusqlite::Connection;

use super::engine::Done;
use super::*;
use crate::conformance::{Opened, Place, brought_up_to_date, fresh, online_nodes, place};
use crate::model::{Content, ListEntry, SegmentBody};

async fn on_file() -> Opened {
    let dir = tempfile::tempdir().expect("make a directory");
    let store = SqliteStore::open(&SqliteConfig::File(dir.path().join("metadata.db"))).expect("open");
    Opened::with(store, dir)
}

async fn in_memory() -> Opened {
    Opened::new(SqliteStore::open(&SqliteConfig::Memory).expect("open"))
}

mod file {
    crate::conformance_suite!(super::on_file);
}

mod memory {
    crate::conformance_suite!(super::in_memory);
}

fn open(path: &Path) -> Result<SqliteStore> {
    SqliteStore::open(&SqliteConfig::File(path.to_owned()))
}

/// The same commit of other bytes under another key.
fn another(place: Place, key: &str) -> CommitObject {
    place.commit(key, Content::New(place.inline(&[7; 4096])))
}

async fn count(store: &SqliteStore, sql: &'static str) -> i64 {
    store.engine.read("count", move |db| Ok(row::number(db, sql, [])?)).await.expect("count")
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("metadata.db");
    let store = open(&path).expect("open");
    let commit = another(place(&store).await, "k");
    let made = store.commit_object(&commit).await.expect("commit");
    drop(store);
    let store = open(&path).expect("open again");
    assert_eq!(store.object(commit.bucket, &commit.key).await.expect("read"), Some(made));
}

/// It holds the names of all objects, and secrets, though wrapped.
#[test]
fn only_its_owner_can_read_a_database() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("make a directory");
    let _store = open(&dir.path().join("metadata.db")).expect("open");
    for name in ["metadata.db", "metadata.db-wal", "metadata.db-shm", "metadata.db.lock"] {
        let mode = std::fs::metadata(dir.path().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_database_of_before_is_brought_up_to_date() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("metadata.db");
    let old = Connection::open(&path).expect("open");
    for migration in &schema::MIGRATIONS[..3] {
        old.execute_batch(migration).expect("an older schema");
    }
    old.execute_batch(
        "PRAGMA user_version = 3;
         INSERT INTO constants (name, value) VALUES ('token_key', x'0102');
         INSERT INTO users (id, sealing_secret, created_at) VALUES (randomblob(16), x'00', 1);
         INSERT INTO access_keys (id, owner_id, secret, created_at) SELECT 'OLD', id, x'00', 1 FROM users;
         INSERT INTO nodes (id, public_key, peer_id, label, name, grpc_address, metrics_address, incarnation, storage_total, status)
             VALUES (randomblob(16), randomblob(32), 'peer', 'old', 'old', 'http://n', 'http://m', randomblob(16), 1, 'online')",
    )
    .expect("rows of that time");
    drop(old);
    for _ in 0..2 {
        let store = open(&path).expect("brought up to date, and opened again");
        brought_up_to_date(&store).await;
    }
    let newer = Connection::open(&path).expect("open");
    newer.pragma_update(None, "user_version", 1000).expect("of a program to come");
    drop(newer);
    let refused = open(&path).expect_err("is from the future");
    assert!(matches!(refused, Error::Corrupt { what: "schema", .. }), "{refused:?}");
}

#[tokio::test]
async fn what_was_answered_is_in_the_files_without_goodbye() {
    let (dir, elsewhere) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let store = open(&dir.path().join("metadata.db")).expect("open");
    let place = place(&store).await;
    for n in 0..20 {
        store.commit_object(&another(place, &format!("{n}"))).await.expect("commit");
    }
    for name in ["metadata.db", "metadata.db-wal"] {
        std::fs::copy(dir.path().join(name), elsewhere.path().join(name)).expect("copy");
    }
    let copy = open(&elsewhere.path().join("metadata.db")).expect("open what a crash would leave");
    assert_eq!(copy.bucket_usage(place.bucket).await.expect("usage").objects, 20);
    let settings = |db: &Connection| {
        let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let mode: String = db.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        Ok((mode, number("synchronous")?, number("foreign_keys")?))
    };
    let settings = store.engine.write("look", settings).await.expect("look");
    assert_eq!(settings, ("wal".to_owned(), 2, 1)); // 2 is FULL
}

#[tokio::test]
async fn a_second_process_is_refused_clearly() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("metadata.db");
    let first = open(&path).expect("open");
    let error = open(&path).expect_err("it is in use");
    let source = std::error::Error::source(&error).expect("has a cause").to_string();
    assert!(
        matches!(error, Error::Unavailable { .. }) && source.contains("in use by another process"),
        "{source}"
    );
    drop(first);
    open(&path).expect("free again");
}

#[tokio::test]
async fn a_newer_schema_is_refused_clearly() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("metadata.db");
    drop(open(&path).expect("open"));
    let raw = Connection::open(&path).expect("open by hand");
    raw.pragma_update(None, "user_version", 99).expect("raise the version");
    drop(raw);
    let error = open(&path).expect_err("it is too new").to_string();
    assert!(error.contains("version is 99"), "{error}");
}

#[tokio::test]
async fn what_is_no_database_or_no_place_is_refused() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("metadata.db");
    std::fs::write(&path, "not a database, but long enough to have a header to look at ...".repeat(20))
        .expect("write");
    assert!(matches!(open(&path), Err(Error::Database { .. })));
    assert!(matches!(open(&dir.path().join("none/metadata.db")), Err(Error::Unavailable { .. })));
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_passes() {
    let dir = tempfile::tempdir().expect("make a directory");
    let store = open(&dir.path().join("metadata.db")).expect("open");
    let place = place(&store).await;
    let limit = |pages: &'static str| {
        store.engine.write("limit the size", move |db| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            Ok(db.query_row(&sql, [], |_| Ok(()))?)
        })
    };
    limit("1").await.expect("limit"); // SQLite takes the present size where that is more
    let mut refused = 0;
    for n in 0..64 {
        match store.commit_object(&another(place, &format!("{n}"))).await {
            Ok(_) => {}
            Err(Error::Unavailable { .. }) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(refused > 0);
    let kept = 64 - refused;
    assert_eq!(store.bucket_usage(place.bucket).await.expect("reads go on").objects, kept);
    limit("1000000").await.expect("limit");
    store.commit_object(&another(place, "k")).await.expect("there is room again");
    assert_eq!(count(&store, "SELECT count(*) FROM segments").await, i64::try_from(kept).expect("small") + 1);
}

#[tokio::test]
async fn a_panic_takes_back_its_own_work_only() {
    let store = SqliteStore::open(&SqliteConfig::Memory).expect("open");
    let write = |fail: bool| {
        store.engine.write("try", move |db: &Connection| -> Done<()> {
            row::run(db, "INSERT INTO constants VALUES (hex(randomblob(8)), x'00')", [])?;
            assert!(!fail, "on purpose");
            Ok(())
        })
    };
    let (good, bad, other) = futures::join!(write(false), write(true), write(false));
    assert!(good.is_ok() && other.is_ok());
    assert!(matches!(bad, Err(Error::Database { .. })));
    assert_eq!(count(&store, "SELECT count(*) FROM constants").await, 2);
    store.ping().await.expect("alive");
}

#[tokio::test]
async fn work_that_waits_shares_a_commit() {
    let dir = tempfile::tempdir().expect("make a directory");
    let store = open(&dir.path().join("metadata.db")).expect("open");
    let gate = Arc::new(std::sync::Barrier::new(2));
    let held = Arc::clone(&gate);
    let hold = store.engine.write("hold the writer", move |_| {
        held.wait();
        held.wait();
        Ok(())
    });
    let work = (0..10).map(|n| {
        store.engine.write("work", move |db| {
            if n == 3 {
                return Err(Error::NoSuchKey.into());
            }
            row::run(db, "INSERT INTO constants VALUES (?1, x'00')", [n.to_string()])?;
            Ok(row::number(db, "SELECT count(*) FROM constants", [])?)
        })
    });
    // While the writer is held, the rest lines up behind it.
    let release = async {
        tokio::task::spawn_blocking({
            let gate = Arc::clone(&gate);
            move || gate.wait()
        })
        .await
        .expect("wait");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        tokio::task::spawn_blocking(move || gate.wait()).await.expect("wait");
    };
    let (held, answers, ()) = futures::join!(hold, futures::future::join_all(work), release);
    held.expect("held");
    let counts: Vec<i64> = answers.into_iter().flatten().collect();
    assert_eq!(counts, (1..10).collect::<Vec<_>>());
    assert_eq!(count(&store, "SELECT count(*) FROM constants").await, 9);
}

#[tokio::test]
async fn garbage_is_noted_and_condemned_segments_cannot_be_copied() {
    let store = SqliteStore::open(&SqliteConfig::Memory).expect("open");
    let place = place(&store).await;
    let first = another(place, "k");
    store.commit_object(&first).await.expect("commit");
    assert_eq!(count(&store, "SELECT count(*) FROM gc_candidates").await, 0);
    store.commit_object(&another(place, "k")).await.expect("overwrite");
    assert_eq!(count(&store, "SELECT count(*) FROM gc_candidates WHERE reason = 'overwritten'").await, 1);
    let Content::New(old) = &first.content else { panic!("made so") };
    let id = old.id;
    let mut copy = another(place, "copy");
    copy.content =
        Content::References(vec![crate::model::SegmentRange { segment: id, offset: 0, length: 4096 }]);
    store.commit_object(&copy).await.expect("not collected yet");
    let condemn = move |db: &Connection| {
        Ok(db.execute("UPDATE segments SET state = 'condemned' WHERE id = ?1", [id.as_uuid()])?)
    };
    store.engine.write("condemn", condemn).await.expect("condemn");
    let late = CommitObject { upload: fresh(), file: fresh(), ..copy };
    assert!(matches!(store.commit_object(&late).await, Err(Error::SourceGone)));
    store
        .delete_objects(first.bucket, std::slice::from_ref(&first.key), &Precondition::None)
        .await
        .expect("delete");
    assert_eq!(count(&store, "SELECT count(*) FROM gc_candidates WHERE reason = 'deleted'").await, 1);
}

#[tokio::test]
async fn stripes_that_fall_short_are_queued_for_repair_once() {
    const WAITING: &str = "SELECT count(*) FROM repair_jobs WHERE status = 'pending'";
    let store = SqliteStore::open(&SqliteConfig::Memory).expect("open");
    let place = place(&store).await;
    let nodes = online_nodes(&store, 3).await;
    let mut segment = place.striped(Geometry::copied(3).expect("valid"), 3, &nodes);
    segment.target_tolerance = 2;
    let SegmentBody::Stripes(stripes) = &mut segment.body else { panic!("made of stripes") };
    (stripes[0].tolerance, stripes[1].tolerance, stripes[2].tolerance) = (2, 1, 2);
    stripes[1].shards[0].locations.pop();
    store.commit_object(&place.commit("k", Content::New(segment.clone()))).await.expect("commit");
    assert_eq!(count(&store, WAITING).await, 1);
    assert_eq!(count(&store, "SELECT stripe_index * 10 + priority FROM repair_jobs").await, 11);
    let bad = |stripe| BadLocation {
        segment: segment.id,
        stripe,
        shard: segment.geometry.shard(0).expect("exists"),
        node: nodes[0],
        fault: crate::model::Fault::Missing,
    };
    for _ in 0..2 {
        store.report_bad_locations(&[bad(1), bad(2)]).await.expect("report");
    }
    assert_eq!(count(&store, WAITING).await, 2);
    assert_eq!(count(&store, "SELECT sum(stripe_index * 10 + priority) FROM repair_jobs").await, 10 + 21);
    store.step_node(&NodeStep { node: nodes[2], from: Online, to: Offline }).await.expect("step");
    let late = place.striped(Geometry::copied(3).expect("valid"), 1, &nodes);
    store.commit_object(&place.commit("late", Content::New(late))).await.expect("commit");
    assert_eq!(count(&store, WAITING).await, 3);
}

#[tokio::test]
async fn a_folder_of_20_000_keys_is_skipped_by_the_index() {
    const FILL: &str = "INSERT INTO files (id, bucket_id, bucket, key, path, name, owner_id, version_seq, is_latest,
            upload_id, content_hash, etag, size_bytes, chunk_count, data_shards, parity_shards, chunk_size)
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
        SELECT randomblob(16), ?1, 'b', CAST(printf('dir/%05d', n) AS BLOB), 'p', 'n', ?2, 1, 1, randomblob(16),
            zeroblob(32), 'e', 0, 0, 0, 0, 0 FROM n";
    let store = SqliteStore::open(&SqliteConfig::Memory).expect("open");
    let Place { bucket, owner } = place(&store).await;
    let fill = move |db: &Connection| Ok(db.execute(FILL, [bucket.as_uuid(), owner.as_uuid()])?);
    assert_eq!(store.engine.write("fill", fill).await.expect("fill"), 20_000);
    let query = |delimiter: Option<&str>| ListObjects {
        bucket,
        prefix: String::new(),
        delimiter: delimiter.map(str::to_owned),
        after: None,
        limit: 1000,
    };
    let page = store.list_objects(&query(Some("/"))).await.expect("list");
    assert_eq!((page.entries, page.next), (vec![ListEntry::Prefix("dir/".to_owned())], None));
    assert_eq!(store.list_objects(&query(None)).await.expect("list").entries.len(), 1000);
    // How many rows were read is `listing`'s to test; that a range of the index gives them is ours.
    let plan = move |db: &Connection| {
        let explain = format!("EXPLAIN QUERY PLAN {}", objects::PAGE);
        row::all(db, &explain, rusqlite::params![bucket.as_uuid(), b"a", b"b", 9], |row| {
            Ok(row.get::<_, String>(3)?)
        })
    };
    let plan = store.engine.read("explain", plan).await.expect("explain").join("; ");
    assert!(
        plan.starts_with("SEARCH files USING INDEX files_visible (bucket_id=? AND key>? AND key<?)"),
        "{plan}"
    );
    assert!(!plan.contains("TEMP B-TREE"), "{plan}");
}

#[tokio::test]
async fn the_queries_that_operators_print_work() {
    let store = SqliteStore::open(&SqliteConfig::Memory).expect("open");
    for sql in [
        "SELECT count(*) FROM (SELECT * FROM nodes)",
        "SELECT count(*) FROM (SELECT * FROM files ORDER BY created_at DESC LIMIT 10)",
        "SELECT count(*) FROM (SELECT * FROM chunk_replication_status WHERE health_status != 'healthy')",
        "SELECT count(*) FROM (SELECT * FROM node_storage_summary)",
    ] {
        assert_eq!(count(&store, sql).await, 0, "{sql}");
    }
}

/// Not timed; prints what it measures: `cargo test --release -- --ignored --nocapture commits_per_second`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn commits_per_second() {
    const TOTAL: usize = 20_000;
    let dir = tempfile::tempdir().expect("make a directory");
    let store = Arc::new(open(&dir.path().join("metadata.db")).expect("open"));
    let place = place(&*store).await;
    let begun = std::time::Instant::now();
    let workers = (0..32).map(|worker| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..TOTAL / 32 {
                store.commit_object(&another(place, &format!("{worker}/{n}"))).await.expect("commit");
            }
        })
    });
    for worker in futures::future::join_all(workers).await {
        worker.expect("finish");
    }
    let rate = TOTAL as f64 / begun.elapsed().as_secs_f64();
    #[allow(clippy::print_stderr, reason = "what the measurement is for")]
    {
        eprintln!("{rate:.0} inline commits per second at concurrency 32");
    }
}

#[tokio::test]
async fn the_audit_log_refuses_changes_and_deletes() {
    use crate::identity::Identity;
    use crate::identity::model::NewAuditEntry;
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("metadata.db");
    let text = || "x".to_owned();
    let entry = NewAuditEntry {
        id: uuid::Uuid::new_v4(),
        owner: None,
        actor: text(),
        action: text(),
        target: text(),
        address: text(),
        outcome: text(),
    };
    let store = open(&path).expect("open");
    store.append_audit(&[entry]).await.expect("append");
    // Only retention takes lines away, and only for as long as it runs.
    store.purge_identity(std::time::Duration::from_secs(9), 9).await.expect("purge");
    drop(store);
    let raw = rusqlite::Connection::open(&path).expect("open");
    for sql in ["UPDATE audit_log SET outcome = 'y'", "DELETE FROM audit_log"] {
        let error = raw.execute(sql, []).expect_err("refused").to_string();
        assert!(error.contains("append-only"), "{error}");
    }
}
