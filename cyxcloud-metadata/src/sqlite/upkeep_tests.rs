//! Upkeep as SQLite does it: what is left in its tables, what waits for what, and the plans of its queries.

use cyxcloud_core::node::NodeStatus::{Draining, Online};
use cyxcloud_core::{Generation, Geometry, ShardIndex};
use rusqlite::Connection;
use uuid::Uuid;

use super::engine::Done;
use super::*;
use crate::conformance::{Place, fresh, online_nodes, place};
use crate::model::{Content, NewLocation, NewSegment, SegmentBody};
use crate::upkeep::Upkeep;
use crate::upkeep::model::*;

const LONG: Duration = Duration::from_secs(3600);
const NOW: Duration = Duration::ZERO;
const FREE: GcBrake = GcBrake { max_fraction: 1.0, floor: u64::MAX };

/// A store of a place with five nodes.
async fn opened() -> (SqliteStore, Place, Vec<NodeId>) {
    let store = SqliteStore::open(&SqliteConfig::Memory).expect("open");
    let place = place(&store).await;
    let nodes = online_nodes(&store, 5).await;
    (store, place, nodes)
}

fn coded() -> Geometry {
    Geometry::coded(3, 2).expect("valid")
}

fn shard(index: usize) -> ShardIndex {
    coded().shard(index).expect("exists")
}

fn generation(counter: u64) -> Generation {
    Generation { incarnation: Uuid::from_u128(9), counter }
}

async fn put(store: &SqliteStore, place: Place, key: &str, segment: &NewSegment) {
    store.commit_object(&place.commit(key, Content::New(segment.clone()))).await.expect("commit");
}

async fn delete(store: &SqliteStore, place: Place, keys: &[&str]) {
    let keys: Vec<ObjectKey> = keys.iter().map(|key| ObjectKey::new(*key).expect("a key")).collect();
    store.delete_objects(place.bucket, &keys, &Precondition::None).await.expect("delete");
}

async fn count(store: &SqliteStore, sql: &'static str) -> i64 {
    store.engine.read("count", move |db| Ok(row::number(db, sql, [])?)).await.expect("count")
}

async fn by_hand(store: &SqliteStore, sql: &'static str) {
    store.engine.write("by hand", move |db| Ok(db.execute(sql, [])?)).await.expect("run");
}

async fn condemn(store: &SqliteStore) -> GcStep {
    store.condemn_segments(100, FREE).await.expect("condemn").expect("go on")
}

async fn collect(store: &SqliteStore) -> GcStep {
    store.collect_segments(NOW, 100, u64::MAX).await.expect("collect").expect("go on")
}

async fn tick() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

fn cursor(segment: &NewSegment, stripe: u32, index: usize) -> NodeCursor {
    let SegmentBody::Stripes(stripes) = &segment.body else { panic!("made of stripes") };
    let chunk = stripes[stripe as usize].shards[index].chunk;
    NodeCursor { chunk, stripe: StripeRef { segment: segment.id, index: stripe }, shard: shard(index) }
}

#[tokio::test]
async fn garbage_goes_in_two_phases_and_leaves_nothing() {
    const LEFT: &str = "SELECT (SELECT count(*) FROM segments) + (SELECT count(*) FROM stripes)
        + (SELECT count(*) FROM chunks) + (SELECT count(*) FROM chunk_locations) + (SELECT count(*) FROM repair_jobs)";
    let (store, place, nodes) = opened().await;
    let segment = place.striped(coded(), 3, &nodes);
    put(&store, place, "k", &segment).await;
    store.report_corrupt_chunks(nodes[1], &[cursor(&segment, 0, 1).chunk]).await.expect("report");
    put(&store, place, "inline", &place.inline(b"body")).await;
    assert_eq!(condemn(&store).await, GcStep::default());
    delete(&store, place, &["k", "inline"]).await;
    assert_eq!(condemn(&store).await, GcStep { looked_at: 2, taken: 2, chunks: 0 });
    let state = store.gc_state().await.expect("look");
    assert_eq!((state.candidates, state.condemned, state.deletes), (0, 2, 0));
    store.report_corrupt_chunks(nodes[2], &[cursor(&segment, 1, 2).chunk]).await.expect("report");
    assert_eq!(count(&store, "SELECT count(*) FROM repair_jobs").await, 1, "not of what nobody needs");
    let early = store.collect_segments(LONG, 100, u64::MAX).await.expect("collect").expect("go on");
    assert_eq!(early, GcStep::default());
    assert_eq!(collect(&store).await, GcStep { looked_at: 2, taken: 2, chunks: 15 });
    assert_eq!(count(&store, LEFT).await, 0);
    tick().await;
    let deletes = store.claim_deletes(9, LONG, LONG).await.expect("claim");
    let rest = store.claim_deletes(9, LONG, LONG).await.expect("claim");
    assert_eq!((deletes.len(), rest.len()), (9, 6));
    let state = store.gc_state().await.expect("look");
    assert_eq!((state.deletes, state.deletes_due), (15, 0));
    let later = (rest[0].id, DeleteOutcome::Later(NOW));
    let settled = deletes.iter().chain(&rest[1..]).map(|delete| (delete.id, DeleteOutcome::Settled));
    let outcomes: Vec<_> = settled.chain([later]).collect();
    store.finish_deletes(&outcomes).await.expect("finish");
    let again = store.claim_deletes(9, LONG, LONG).await.expect("claim");
    assert_eq!(again, [ChunkDelete { attempts: 1, ..rest[0].clone() }]);
}

#[tokio::test]
async fn no_more_garbage_is_counted_than_is_asked_for() {
    let (store, place, nodes) = opened().await;
    for key in ["a", "b", "c", "d"] {
        put(&store, place, key, &place.striped(coded(), 1, &nodes)).await;
    }
    let counted = async |most| {
        let state = store.engine.read("look", move |db| super::garbage::state(db, most)).await.expect("look");
        [state.candidates, state.condemned, state.deletes, state.deletes_due, state.orphans]
    };
    delete(&store, place, &["a"]).await;
    condemn(&store).await;
    collect(&store).await;
    delete(&store, place, &["b"]).await;
    condemn(&store).await;
    delete(&store, place, &["c", "d"]).await;
    store.record_inventory(&missing_nothing(nodes[0])).await.expect("record");
    assert_eq!(counted(100).await, [2, 1, 5, 5, 1]);
    assert_eq!(counted(3).await, [2, 1, 3, 3, 1]);
    assert_eq!(counted(1).await, [1; 5]);
}

#[tokio::test]
async fn a_segment_that_is_referred_to_stays() {
    let (store, place, nodes) = opened().await;
    let segment = place.striped(coded(), 1, &nodes);
    put(&store, place, "k", &segment).await;
    let all = crate::model::SegmentRange { segment: segment.id, offset: 0, length: segment.length.get() };
    store.commit_object(&place.commit("copy", Content::References(vec![all]))).await.expect("copy");
    delete(&store, place, &["k"]).await;
    assert_eq!(condemn(&store).await, GcStep { looked_at: 1, taken: 0, chunks: 0 });
    // No program should do this; what it refers to must live all the same.
    by_hand(&store, "UPDATE segments SET state = 'condemned', condemned_at = 1").await;
    assert_eq!(collect(&store).await, GcStep { looked_at: 1, taken: 0, chunks: 0 });
    let live = "SELECT count(*) FROM segments WHERE state = 'live' AND condemned_at IS NULL";
    assert_eq!(count(&store, live).await, 1);
}

#[tokio::test]
async fn a_brake_and_a_freeze_stop_it_all() {
    let (store, place, nodes) = opened().await;
    for n in 0..10 {
        put(&store, place, &n.to_string(), &place.striped(coded(), 1, &nodes)).await;
    }
    delete(&store, place, &["0", "1"]).await;
    let brake = |max_fraction, floor| GcBrake { max_fraction, floor };
    let halted = store.condemn_segments(100, brake(0.1, 1)).await.expect("judge");
    assert_eq!(halted, Err(GcHalt::Brake { candidates: 2, segments: 10 }));
    assert_eq!(store.gc_state().await.expect("look").candidates, 2);
    let one = store.condemn_segments(1, brake(0.1, 0)).await.expect("judge").expect("go on");
    assert_eq!(one.taken, 1);
    let more = store.condemn_segments(1, brake(0.1, 0)).await.expect("judge");
    assert_eq!(more, Err(GcHalt::Brake { candidates: 2, segments: 10 }));
    store.freeze_gc("an old").await.expect("freeze");
    store.freeze_gc("restored").await.expect("freeze");
    let frozen = GcHalt::Frozen("restored".to_owned());
    assert_eq!(store.condemn_segments(100, FREE).await.expect("judge"), Err(frozen.clone()));
    assert_eq!(store.collect_segments(NOW, 100, u64::MAX).await.expect("judge"), Err(frozen));
    assert_eq!(store.gc_state().await.expect("look").frozen.as_deref(), Some("restored"));
    assert!(store.thaw_gc().await.expect("thaw").frozen);
    assert!(!store.thaw_gc().await.expect("thaw").frozen);
    assert_eq!(collect(&store).await.taken, 1);
    tick().await;
    store.freeze_gc("again").await.expect("freeze");
    assert!(store.claim_deletes(10, LONG, LONG).await.expect("claim").is_empty());
    assert_eq!(store.condemn_orphans(NOW, 10, FREE).await.expect("condemn").taken, 0);
    store.thaw_gc().await.expect("thaw");
    assert_eq!(store.claim_deletes(10, LONG, LONG).await.expect("claim").len(), 5);
}

async fn begin(store: &SqliteStore, place: Place) -> UploadId {
    let key = ObjectKey::new("under way").expect("a key");
    let upload = NewUpload {
        id: fresh(),
        owner: place.owner,
        bucket: place.bucket,
        key,
        lease: LONG,
        reserve: cyxcloud_core::ByteCount::default(),
    };
    store.begin_upload(&upload).await.expect("begin");
    upload.id
}

/// Deletes every key and collects; the chunks are entries from now.
async fn discard(store: &SqliteStore, place: Place, key: &str) {
    delete(store, place, &[key]).await;
    condemn(store).await;
    collect(store).await;
    tick().await;
}

#[tokio::test]
async fn a_chunk_waits_for_what_began_before_and_for_who_names_it() {
    let (store, place, nodes) = opened().await;
    let first = place.striped(coded(), 1, &nodes);
    let second = NewSegment { id: fresh(), ..first.clone() };
    let third = place.striped(coded(), 1, &nodes);
    for (key, segment) in [("a", &first), ("b", &second), ("c", &third)] {
        put(&store, place, key, segment).await;
    }
    let claim = async || store.claim_deletes(100, NOW, LONG).await.expect("claim").len();
    let upload = begin(&store, place).await;
    assert_eq!(store.oldest_intent().await.expect("look").map(|at| at <= row::now()), Some(true));
    discard(&store, place, "a").await;
    assert_eq!(store.gc_state().await.expect("look").deletes_due, 5);
    assert_eq!(claim().await, 0);
    store.cancel_upload(upload).await.expect("cancel");
    assert_eq!(store.oldest_intent().await.expect("look"), None);
    assert_eq!(claim().await, 0, "the second names them all");
    assert_eq!(store.gc_state().await.expect("look").deletes, 0);
    let repair = |stripe| NewRepair { stripe, priority: 0, delay: NOW, reason: "test".to_owned() };
    let stripe = cursor(&third, 0, 0).stripe;
    store.queue_repairs(&[repair(stripe)]).await.expect("queue");
    let job = store.claim_repairs(i32::MAX, 1, LONG).await.expect("claim").pop().expect("due");
    discard(&store, place, "b").await;
    let later = begin(&store, place).await;
    assert_eq!((store.gc_state().await.expect("look").deletes_due, claim().await), (5, 0));
    store.finish_repair(job.id, job.fence, &RepairDone::default()).await.expect("finish");
    assert_eq!(claim().await, 5, "what began later stores a newer generation");
    store.cancel_upload(later).await.expect("cancel");
}

#[tokio::test]
async fn an_entry_that_comes_again_is_newer_and_later() {
    let (store, place, nodes) = opened().await;
    let chunk = cursor(&place.striped(coded(), 1, &nodes), 0, 0).chunk;
    let node = nodes[0];
    let put = async |counter, since, not_before| {
        let work = move |db: &Connection| {
            let entry = deletes::Entry { node, chunk, generation: generation(counter), reason: "test" };
            deletes::put(db, &entry, since, not_before)
        };
        store.engine.write("put", work).await.expect("put");
    };
    put(7, 100, 50).await;
    put(3, 200, 40).await;
    assert_eq!(count(&store, "SELECT generation FROM chunk_deletes").await, 7);
    assert_eq!(count(&store, "SELECT since * 1000 + not_before FROM chunk_deletes").await, 200_050);
    let old = count(&store, "SELECT id FROM chunk_deletes").await;
    put(9, 150, 60).await;
    store.finish_deletes(&[(old, DeleteOutcome::Settled)]).await.expect("finish");
    assert_eq!(
        count(&store, "SELECT generation FROM chunk_deletes").await,
        9,
        "the new one is in nobody's hand"
    );
    assert_eq!(count(&store, "SELECT since * 1000 + not_before FROM chunk_deletes").await, 200_060);
}

#[tokio::test]
async fn an_inventory_is_recorded_both_ways() {
    let (store, place, nodes) = opened().await;
    let segment = place.striped(coded(), 5, &nodes);
    put(&store, place, "k", &segment).await;
    let node = nodes[0];
    let empty = || Reconciled { orphans: Vec::new(), ..missing_nothing(node) };
    let place_of = |stripe| cursor(&segment, stripe, 0);
    let nowhere = NodeCursor { stripe: StripeRef { segment: fresh(), index: 0 }, ..place_of(0) };
    let record = async |compared: Reconciled| {
        store.record_inventory(&compared).await.expect("record");
        let mut held = store.node_locations(node, None, 100).await.expect("look");
        held.sort_by_key(|place| place.at.stripe.index);
        held.into_iter().map(|place| (place.status, place.generation.counter)).collect::<Vec<_>>()
    };
    use LocationStatus::{Missing, Stored};
    let missing = Reconciled { missing: vec![place_of(0), place_of(1), nowhere], ..empty() };
    let want = [(Missing, 1), (Missing, 2), (Stored, 3), (Stored, 4), (Stored, 5)];
    assert_eq!(record(missing.clone()).await, want);
    assert_eq!(record(missing).await, want);
    assert_eq!(
        count(&store, "SELECT count(*) FROM repair_jobs WHERE reason = 'missing on its node'").await,
        2
    );
    let both = Reconciled {
        found: vec![(place_of(0), generation(11)), (nowhere, generation(1))],
        renewed: vec![(place_of(2), generation(13)), (place_of(3), generation(2))],
        ..empty()
    };
    let want = [(Stored, 11), (Missing, 2), (Stored, 13), (Stored, 4), (Stored, 5)];
    assert_eq!(record(both).await, want);
    let other = NodeCursor { chunk: ChunkId::of(b"another"), ..place_of(4) };
    let nothing = Reconciled {
        missing: vec![other],
        found: vec![(other, generation(20)), (place_of(1), generation(1))],
        ..empty()
    };
    assert_eq!(record(nothing).await, want);
    store.finish_inventory(node, Some(4)).await.expect("finish");
    let seen = store.nodes_upkeep().await.expect("look").into_iter().find(|seen| seen.node == node);
    let seen = seen.expect("known");
    assert!(seen.reconciled_at.is_some() && seen.locations == 4 && !seen.quarantined);
    store.record_inventory(&Reconciled { node: fresh(), ..missing_nothing(node) }).await.expect("ignored");
}

fn missing_nothing(node: NodeId) -> Reconciled {
    let orphans = vec![(ChunkId::of(b"nobody's"), generation(1))];
    Reconciled {
        node,
        missing: Vec::new(),
        found: Vec::new(),
        renewed: Vec::new(),
        orphans,
        orphans_max: usize::MAX,
    }
}

#[tokio::test]
async fn orphans_wait_from_when_they_were_first_seen() {
    const SEEN: &str = "SELECT min(first_seen) FROM orphans";
    let (store, place, nodes) = opened().await;
    let segment = place.striped(coded(), 1, &nodes);
    put(&store, place, "k", &segment).await;
    let node = nodes[0];
    let seen = async |chunk, counter| {
        let orphans = vec![(chunk, generation(counter))];
        store.record_inventory(&Reconciled { orphans, ..missing_nothing(node) }).await.expect("record");
        tick().await;
    };
    let orphan = ChunkId::of(b"nobody's");
    seen(cursor(&segment, 0, 0).chunk, 1).await;
    assert_eq!(store.gc_state().await.expect("look").orphans, 0, "a location names it");
    seen(orphan, 5).await;
    let first = count(&store, SEEN).await;
    seen(orphan, 5).await;
    assert_eq!(count(&store, SEEN).await, first);
    let upload = begin(&store, place).await;
    tick().await;
    seen(orphan, 6).await;
    assert!(count(&store, SEEN).await > first);
    assert_eq!(store.condemn_orphans(LONG, 10, FREE).await.expect("condemn").taken, 0);
    assert_eq!(
        store.condemn_orphans(NOW, 10, FREE).await.expect("condemn").taken,
        0,
        "the upload may commit it"
    );
    store.cancel_upload(upload).await.expect("cancel");
    assert_eq!(store.condemn_orphans(NOW, 10, FREE).await.expect("condemn").taken, 1);
    let deletes = store.claim_deletes(10, LONG, LONG).await.expect("claim");
    assert_eq!((deletes.len(), deletes[0].chunk, deletes[0].generation), (1, orphan, generation(6)));
    // Committed after it was seen.
    seen(orphan, 7).await;
    let mut named = place.striped(coded(), 1, &nodes);
    let SegmentBody::Stripes(stripes) = &mut named.body else { panic!("made of stripes") };
    stripes[0].shards[0].chunk = orphan;
    put(&store, place, "named", &named).await;
    assert_eq!(store.condemn_orphans(NOW, 10, FREE).await.expect("condemn").taken, 0);
    assert_eq!(store.gc_state().await.expect("look").orphans, 0);
}

#[tokio::test]
async fn a_repair_that_counted_on_a_removed_node_is_looked_at_again() {
    const HANGING: &str = "SELECT (SELECT count(*) FROM node_scans) + (SELECT count(*) FROM chunk_deletes)
        + (SELECT count(*) FROM orphans)";
    let (store, place, nodes) = opened().await;
    let extra = online_nodes(&store, 1).await[0];
    let segment = place.striped(coded(), 1, &nodes);
    put(&store, place, "k", &segment).await;
    let stripe = cursor(&segment, 0, 0).stripe;
    let repair = NewRepair { stripe, priority: 1, delay: NOW, reason: "test".to_owned() };
    store.queue_repairs(std::slice::from_ref(&repair)).await.expect("queue");
    let job = store.claim_repairs(i32::MAX, 1, LONG).await.expect("claim").pop().expect("due");
    store.record_inventory(&missing_nothing(extra)).await.expect("record");
    store.step_node(&NodeStep { node: extra, from: Online, to: Draining }).await.expect("step");
    assert_eq!(
        store.condemn_orphans(NOW, 10, FREE).await.expect("condemn").taken,
        0,
        "the repair may record it"
    );
    assert_eq!(count(&store, HANGING).await, 2);
    store.remove_node(extra).await.expect("remove");
    assert_eq!(count(&store, HANGING).await, 0);
    let at = NewLocation {
        node: extra,
        generation: generation(7),
        receipt_signature: vec![0; 64],
        stored_at: Timestamp::default(),
    };
    let done = RepairDone { added: vec![(shard(0), at)], ..RepairDone::default() };
    store.finish_repair(job.id, job.fence, &done).await.expect("finish");
    let again = store.claim_repairs(i32::MAX, 1, LONG).await.expect("claim").pop().expect("due again");
    assert_eq!((again.id, again.stripe), (job.id, stripe));
    let unknown = [
        NewRepair { stripe: StripeRef { segment: fresh(), index: 0 }, ..repair.clone() },
        NewRepair { stripe: StripeRef { index: 1, ..stripe }, ..repair },
    ];
    assert_eq!(store.queue_repairs(&unknown).await.expect("queue"), 0);
}

#[tokio::test]
async fn what_is_read_often_is_ranges_of_indices() {
    let (store, ..) = opened().await;
    let plan = async |sql: String| {
        let explain = move |db: &Connection| -> Done<String> {
            let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let (mut rows, mut steps) = (statement.raw_query(), Vec::new());
            while let Some(row) = rows.next()? {
                steps.push(row.get::<_, String>(3)?);
            }
            Ok(steps.join("; "))
        };
        store.engine.read("explain", explain).await.expect("explain")
    };
    for (sql, want) in [
        (inventory::page(), "SEARCH l USING INDEX chunk_locations_inventory (node_id=? AND (chunk_id,"),
        (inventory::pick(), "SEARCH l USING INDEX chunk_locations_inventory (node_id=? AND chunk_id>?)"),
        (stripes::NEXT.to_owned(), "SEARCH t USING PRIMARY KEY ((segment_id,stripe_index)>(?,?))"),
    ] {
        let plan = plan(sql).await;
        assert!(plan.starts_with(want) && !plan.contains("TEMP B-TREE"), "{plan}");
    }
    for (sql, want) in [
        (repairs::WAITING, "INDEX repair_jobs_queue"),
        (repairs::IN_HAND, "INDEX repair_jobs_leases"),
        (
            repairs::ENDED,
            "SEARCH repair_jobs USING COVERING INDEX repair_jobs_outcomes (status=? AND done_at>?)",
        ),
    ] {
        let plan = plan(sql.to_owned()).await;
        assert!(plan.contains(want) && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}

#[tokio::test]
async fn repairs_that_ended_long_ago_are_kept_and_not_counted() {
    let (store, place, nodes) = opened().await;
    let segment = place.striped(coded(), 2, &nodes);
    put(&store, place, "k", &segment).await;
    let repair = |index| {
        let stripe = cursor(&segment, index, 0).stripe;
        NewRepair { stripe, priority: 0, delay: NOW, reason: "test".to_owned() }
    };
    store.queue_repairs(&[repair(0), repair(1)]).await.expect("queue");
    let jobs = store.claim_repairs(i32::MAX, 2, LONG).await.expect("claim");
    store.finish_repair(jobs[0].id, jobs[0].fence, &RepairDone::default()).await.expect("finish");
    store.fail_repair(jobs[1].id, jobs[1].fence, "in vain", None).await.expect("give up");
    let counted = async || {
        let queue = store.repair_queue().await.expect("look");
        (queue.completed, queue.failed)
    };
    assert_eq!(counted().await, (1, 1));
    by_hand(&store, "UPDATE repair_jobs SET done_at = done_at - 23 * 3600000").await;
    assert_eq!(counted().await, (1, 1));
    by_hand(&store, "UPDATE repair_jobs SET done_at = done_at - 2 * 3600000").await;
    assert_eq!(counted().await, (0, 0));
    assert_eq!(store.purge_repairs(Duration::from_secs(26 * 3600), 10).await.expect("purge"), 0);
    assert_eq!(store.purge_repairs(Duration::from_secs(24 * 3600), 10).await.expect("purge"), 2);
}
