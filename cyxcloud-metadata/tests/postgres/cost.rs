//! What it costs to see that one of many nodes went away: that node's chunks, and nothing that grows with all the others. And what
//! it costs to look at the queue of repairs, which many do all the time.
//!
//! The rows are filled in by SQL, everything else is the store's own code; PostgreSQL tells the plan of each statement as it
//! runs (`auto_explain`), with the rows that it really read. `CYXCLOUD_COST=NODES,CHUNKS` asks for another size;
//! `script/detection-cost` does, and shows what is printed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cyxcloud_core::NodeId;
use cyxcloud_core::node::NodeStatus::{Draining, Online};
use cyxcloud_metadata::model::NodeStep;
use cyxcloud_metadata::upkeep::model::{NewRepair, NodeScan, ScanClass, ScanReason, StripeRef};
use cyxcloud_metadata::{MetadataStore, Upkeep};
use sqlx::{AssertSqlSafe, Executor};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber, field};

use crate::database::Database;
use crate::fixture::{nodes, place};

/// Tables that grow with what is stored.
const LARGE: [&str; 4] = ["chunk_locations", "chunks", "stripes", "segments"];
/// Rows of them that may be read for each location of the node: its stripe's chunks and locations, and a little more.
const ROWS_PER_LOCATION: f64 = 40.0;
/// As the rebalancer takes them.
const PAGE: usize = 1_000;
const STRIPES: usize = 200;
const LEASE: Duration = Duration::from_secs(60);

/// Notices of PostgreSQL, as sqlx hands them on.
#[derive(Clone, Default)]
struct Notices(Arc<Mutex<Vec<String>>>);

impl Notices {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Message(String);

impl field::Visit for Message {
    fn record_str(&mut self, field: &field::Field, value: &str) {
        if field.name() == "message" {
            self.0.push_str(value);
        }
    }

    fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

impl Subscriber for Notices {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::postgres::notice"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What one kind of statement cost.
#[derive(Default)]
struct Cost {
    runs: u64,
    /// Rows of large tables read, over all runs.
    rows: f64,
    /// How each table was read, e.g. `chunk_locations by chunk_locations_inventory`.
    scans: BTreeSet<String>,
    /// Reads of whole tables or indexes: there must be none.
    whole: BTreeSet<String>,
}

impl Cost {
    fn add(&mut self, plan: &serde_json::Value, large: &[&str]) {
        let text = |name: &str| plan.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        let number = |name: &str| plan.get(name).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        let (kind, table) = (text("Node Type"), text("Relation Name"));
        if large.contains(&table) && kind != "ModifyTable" {
            let rows = number("Actual Rows") + number("Rows Removed by Filter");
            self.rows += rows * number("Actual Loops");
            let how = match text("Index Name") {
                "" => format!("{table}: {kind}"),
                index => format!("{table}: {kind} by {index}"),
            };
            let unbounded = plan.get("Index Cond").is_none() && kind.starts_with("Index");
            if kind == "Seq Scan" || unbounded {
                self.whole.insert(how.clone());
            }
            self.scans.insert(how);
        }
        let parts = plan.get("Plans").and_then(serde_json::Value::as_array);
        parts.into_iter().flatten().for_each(|part| self.add(part, large));
    }
}

/// Costs by the first words of the statement, as far as these tables are read.
fn costs(notices: &[String], large: &[&str]) -> BTreeMap<String, Cost> {
    let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
    for notice in notices {
        let Some((_, json)) = notice.split_once("plan:") else { continue };
        let explained: serde_json::Value = serde_json::from_str(json).expect("auto_explain speaks JSON");
        let statement = explained["Query Text"].as_str().unwrap_or_default();
        let lines = statement.lines().filter(|line| !line.trim_start().starts_with("--"));
        let text = lines.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        let cost = costs.entry(text.chars().take(100).collect()).or_default();
        cost.runs += 1;
        cost.add(&explained["Plan"], large);
    }
    costs
}

/// Segments of ten stripes of 10+4, spread over the nodes: each holds the same number of chunks.
async fn fill(database: &Database, chunks: u64) {
    let mut conn = database.connection().await;
    let segments = chunks.div_ceil(140);
    let fill = [
        "SET synchronous_commit = off".to_owned(),
        // Rows that refer to each other are made here; checking a million references takes longer than all the rest.
        "SET session_replication_role = replica".to_owned(),
        format!(
            "INSERT INTO segments (id, owner_id, length, stripe_size, data_shards, parity_shards, copies, format, content_hash,
                acked_tolerance, target_tolerance, chunk_count)
             SELECT gen_random_uuid(), (SELECT id FROM users LIMIT 1), 41943040, 4194304, 10, 4, 1, 1, sha256('x'), 2, 4, 140
             FROM generate_series(1, {segments})"
        ),
        "INSERT INTO stripes SELECT s.id, n, sha256((s.id::text || n)::bytea), 4194304
         FROM segments s, generate_series(0, 9) n"
            .to_owned(),
        "INSERT INTO chunks (segment_id, stripe_index, shard_index, chunk_id, is_parity, size_bytes, replication_factor)
         SELECT t.segment_id, t.stripe_index, n, sha256((t.segment_id::text || t.stripe_index || ':' || n)::bytea), n > 9, 419584, 1
         FROM stripes t, generate_series(0, 13) n"
            .to_owned(),
        "CREATE TEMP TABLE numbered AS SELECT id, incarnation, row_number() OVER (ORDER BY id) - 1 AS n FROM nodes".to_owned(),
        "INSERT INTO chunk_locations (segment_id, stripe_index, shard_index, node_id, chunk_id, incarnation, generation, receipt,
             receipt_at)
         SELECT c.segment_id, c.stripe_index, c.shard_index, d.id, c.chunk_id, d.incarnation, 1, sha256('receipt'), now()
         FROM (SELECT *, row_number() OVER (ORDER BY segment_id, stripe_index, shard_index) AS n FROM chunks) c
         JOIN numbered d ON d.n = c.n % (SELECT count(*) FROM nodes)"
            .to_owned(),
        "VACUUM ANALYZE".to_owned(),
    ];
    for sql in fill {
        conn.execute(AssertSqlSafe(sql)).await.expect("fill");
    }
    tell_plans(database).await;
}

/// On new connections.
async fn tell_plans(database: &Database) {
    let (mut conn, name) = (database.connection().await, database.name());
    let load = format!("ALTER DATABASE {name} SET session_preload_libraries = 'auto_explain'");
    conn.execute(AssertSqlSafe(load)).await.expect("tell plans");
    let told = [
        ("log_min_duration", "0"),
        ("log_analyze", "on"),
        ("log_timing", "off"),
        ("log_format", "json"),
        ("log_level", "notice"),
    ];
    for (setting, value) in told {
        let sql = format!("ALTER DATABASE {name} SET auto_explain.{setting} = '{value}'");
        conn.execute(AssertSqlSafe(sql)).await.expect("tell plans");
    }
}

/// What the rebalancer does when a node's status changes; answers with the number of locations it met.
async fn look_through(store: &dyn MetadataStore, scan: &NodeScan) -> (u64, BTreeSet<StripeRef>) {
    let (mut after, mut met, mut stripes) = (scan.after, 0, BTreeSet::new());
    loop {
        let page = store.node_locations(scan.node, after, PAGE).await.expect("look");
        let Some(last) = page.last() else { return (met, stripes) };
        after = Some(last.at);
        met += page.len() as u64;
        let here: BTreeSet<StripeRef> = page.iter().map(|location| location.at.stripe).collect();
        for some in here.iter().copied().collect::<Vec<_>>().chunks(STRIPES) {
            let states = store.stripe_states(some).await.expect("look");
            assert!(states.len() == some.len() && states.iter().all(|state| state.locations.len() == 14));
        }
        stripes.extend(here);
        store.advance_scan(scan, last.at, LEASE).await.expect("advance");
    }
}

fn size() -> (u32, u64) {
    let text = std::env::var("CYXCLOUD_COST").unwrap_or_else(|_| "100,50000".to_owned());
    let size =
        text.split_once(',').and_then(|(nodes, chunks)| Some((nodes.parse().ok()?, chunks.parse().ok()?)));
    size.unwrap_or_else(|| panic!("CYXCLOUD_COST is {text:?}; say NODES,CHUNKS"))
}

#[tokio::test]
async fn to_see_that_a_node_went_away_costs_what_it_held() {
    let Some(database) = Database::make().await else { return };
    let (node_count, chunks) = size();
    let store = database.store().await;
    place(&store).await;
    let node: NodeId = nodes(&store, node_count).await[0].id;
    let began = Instant::now();
    fill(&database, chunks).await;
    eprintln!("{chunks} chunks on {node_count} nodes, filled in {:.1} s", began.elapsed().as_secs_f64());
    // New connections take up what the database was told.
    drop(store);
    let store = database.store().await;
    store.step_node(&NodeStep { node, from: Online, to: Draining }).await.expect("drain");

    let notices = Notices::default();
    let listening = tracing::subscriber::set_default(notices.clone());
    let began = Instant::now();
    let scan =
        store.claim_scans(ScanClass::Periodic, 1, LEASE).await.expect("claim").pop().expect("is asked for");
    assert_eq!((scan.node, scan.reason), (node, ScanReason::Draining));
    let (met, stripes) = look_through(&store, &scan).await;
    let seen = began.elapsed();
    let repair = |stripe: &StripeRef| NewRepair {
        stripe: *stripe,
        priority: 3,
        delay: Duration::ZERO,
        reason: "node draining".to_owned(),
    };
    let repairs: Vec<NewRepair> = stripes.iter().map(repair).collect();
    for some in repairs.chunks(STRIPES) {
        store.queue_repairs(some).await.expect("queue");
    }
    let queued = began.elapsed() - seen;
    store.finish_scan(&scan, None).await.expect("finish");
    drop(listening);

    eprintln!(
        "{met} locations of one node: seen in {:.0} ms, {} repairs queued in {:.0} ms (with every plan told)",
        seen.as_secs_f64() * 1e3,
        repairs.len(),
        queued.as_secs_f64() * 1e3
    );
    let costs = costs(&notices.take(), &LARGE);
    assert!(costs.len() >= 4, "PostgreSQL told too few plans: {:?}", costs.keys());
    let mut rows = 0.0;
    for (statement, cost) in &costs {
        eprintln!("\n{} x {statement}\n    {:.0} rows of large tables", cost.runs, cost.rows);
        cost.scans.iter().for_each(|scan| eprintln!("    {scan}"));
        rows += cost.rows;
    }
    assert!(
        met > 0 && met.abs_diff(chunks / u64::from(node_count)) <= 1 + chunks / u64::from(node_count) / 10,
        "{met}"
    );
    for (statement, cost) in &costs {
        assert!(cost.whole.is_empty(), "a whole table is read by {statement}: {:?}", cost.whole);
    }
    assert!(rows <= ROWS_PER_LOCATION * met as f64, "{rows} rows read for {met} locations");
}

/// Those that ended are kept for a month, and most of them ended long ago.
#[tokio::test]
async fn to_look_at_repairs_costs_those_that_are_open_and_the_latest() {
    let Some(database) = Database::make().await else { return };
    drop(database.store().await);
    let mut conn = database.connection().await;
    let fill = [
        "INSERT INTO repair_jobs (segment_id, stripe_index, status, done_at)
         SELECT gen_random_uuid(), n, 'completed', now() - (30 * n - 15) * interval '1 minute' FROM generate_series(1, 40000) n",
        "INSERT INTO repair_jobs (segment_id, stripe_index, status, done_at)
         SELECT gen_random_uuid(), n, 'failed', now() - (60 * n - 30) * interval '1 minute' FROM generate_series(1, 700) n",
        "INSERT INTO repair_jobs (segment_id, stripe_index, status, priority)
         SELECT gen_random_uuid(), n, 'pending', n % 3 FROM generate_series(1, 90) n",
        "INSERT INTO repair_jobs (segment_id, stripe_index, status, lease_until)
         SELECT gen_random_uuid(), n, 'in_progress', now() + interval '1 hour' FROM generate_series(1, 10) n",
        "VACUUM ANALYZE repair_jobs",
    ];
    for sql in fill {
        conn.execute(sql).await.expect("fill");
    }
    tell_plans(&database).await;
    let store = database.store().await;
    let notices = Notices::default();
    let listening = tracing::subscriber::set_default(notices.clone());
    let queue = store.repair_queue().await.expect("look");
    drop(listening);

    assert_eq!((queue.completed, queue.failed, queue.in_progress), (48, 24, 10));
    assert_eq!(queue.pending.into_iter().collect::<Vec<_>>(), [(0, 30), (1, 30), (2, 30)]);
    let costs = costs(&notices.take(), &["repair_jobs"]);
    assert!(!costs.is_empty(), "PostgreSQL told no plan");
    for (statement, cost) in &costs {
        eprintln!("{} x {statement}\n    {:.0} rows of repairs", cost.runs, cost.rows);
        cost.scans.iter().for_each(|scan| eprintln!("    {scan}"));
        assert!(
            cost.scans.iter().all(|scan| !scan.contains("Seq Scan")),
            "all repairs are read by {statement}"
        );
        assert!(cost.rows <= 400.0, "{} rows read by {statement}", cost.rows);
    }
}
