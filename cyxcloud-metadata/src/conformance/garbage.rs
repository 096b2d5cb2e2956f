//! Garbage: what goes, what stays because somebody may still need it, and what stops it all.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use cyxcloud_core::node::NodeStatus::{Draining, Offline, Online, Recovering};
use cyxcloud_core::{ChunkId, Generation, NodeId, UploadId};

use super::multipart::{new_part, open};
use super::repairs::claimed;
use super::segments::{expected, stripes};
use super::stripes::{FREE, LONG, at, condemn, state, stored, tick, until};
use super::{FIRST_LIFE, Place, fresh, key, online_nodes, place};
use crate::model::{Content, NewSegment, NewUpload, NodeStep, SegmentBody};
use crate::upkeep::model::{
    ChunkDelete, DeleteOutcome, GcBrake, GcHalt, GcState, GcStep, GcThawed, LocationStatus, NewRepair,
    NodeCursor, OrphanStep, Reconciled, RepairDone,
};
use crate::{Error, MetadataStore};

async fn look(store: &dyn MetadataStore) -> GcState {
    store.gc_state().await.expect("look at the garbage")
}

/// Collects all that is condemned; answers how many chunks went to deletion.
async fn collect(store: &dyn MetadataStore) -> u64 {
    let step = until("a segment can be collected", async || {
        let step =
            store.collect_segments(Duration::ZERO, 1000, u64::MAX).await.expect("collect").expect("go on");
        (step.taken > 0).then_some(step)
    })
    .await;
    step.chunks
}

async fn thaw(store: &dyn MetadataStore) -> GcThawed {
    store.thaw_gc().await.expect("thaw")
}

async fn claim(store: &dyn MetadataStore) -> Vec<ChunkDelete> {
    store.claim_deletes(1000, LONG, LONG).await.expect("claim deletes")
}

/// The next deletes, as soon as there are any.
async fn deletes(store: &dyn MetadataStore) -> Vec<ChunkDelete> {
    until("a delete can be claimed", async || Some(claim(store).await).filter(|found| !found.is_empty()))
        .await
}

async fn begin(store: &dyn MetadataStore, place: Place) -> UploadId {
    let upload = NewUpload {
        id: fresh(),
        owner: place.owner,
        bucket: place.bucket,
        key: key("u"),
        lease: LONG,
        reserve: cyxcloud_core::ByteCount::default(),
    };
    store.begin_upload(&upload).await.expect("begin an upload");
    upload.id
}

/// `(node, chunk, generation)` of all that a segment has, in order.
fn held(segment: &NewSegment) -> Vec<(NodeId, ChunkId, u64)> {
    let SegmentBody::Stripes(stripes) = &segment.body else { panic!("made of stripes") };
    let mut held = Vec::new();
    for shard in stripes.iter().flat_map(|stripe| &stripe.shards) {
        held.extend(shard.locations.iter().map(|at| (at.node, shard.chunk, at.generation.counter)));
    }
    held.sort();
    held
}

fn named(deletes: &[ChunkDelete]) -> Vec<(NodeId, ChunkId, u64)> {
    let mut named: Vec<_> = deletes.iter().map(|at| (at.node, at.chunk, at.generation.counter)).collect();
    named.sort();
    named
}

fn held_again(counter: u64) -> Generation {
    Generation { incarnation: FIRST_LIFE, counter }
}

fn found_nothing(node: NodeId) -> Reconciled {
    Reconciled {
        node,
        missing: Vec::new(),
        found: Vec::new(),
        renewed: Vec::new(),
        orphans: Vec::new(),
        orphans_max: usize::MAX,
    }
}

/// A copy, a part of an open upload, an object: each keeps its segment. What goes is not referred to any more.
pub async fn only_what_nothing_refers_to_is_condemned(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let kept = stored(store, place, "source", 1, &nodes).await;
    let gone = stored(store, place, "gone", 2, &nodes).await;
    let copy = place.references(store, "source").await;
    store.commit_object(&place.commit("copy", copy)).await.expect("copy");
    let reference = place.references(store, "gone").await;
    let upload = open(store, place, "parts").await;
    let part = place.striped(super::stripes::coded(), 1, &nodes);
    let first = new_part(place, upload.id, 1, b"first");
    let second = crate::model::CommitPart {
        size: part.length,
        content: Content::New(part.clone()),
        ..new_part(place, upload.id, 1, b"")
    };
    store.commit_part(&first).await.expect("commit a part");
    store.commit_part(&second).await.expect("commit its successor");
    place.delete(store, &["source", "gone"]).await;
    assert_eq!((look(store).await.candidates, look(store).await.condemned), (3, 0));
    let step = store.condemn_segments(1000, FREE).await.expect("condemn").expect("go on");
    assert_eq!(step, GcStep { looked_at: 3, taken: 2, chunks: 0 });
    assert_eq!((look(store).await.candidates, look(store).await.condemned), (0, 2));
    assert!(state(store, at(&kept, 0)).await.is_some() && state(store, at(&part, 0)).await.is_some());
    assert_eq!(state(store, at(&gone, 0)).await, None);
    let refused = store.commit_object(&place.commit("late", reference)).await;
    assert!(matches!(refused, Err(Error::SourceGone)), "{refused:?}");
    // In its grace it can still be read.
    let waits = store.collect_segments(LONG, 1000, u64::MAX).await.expect("collect").expect("go on");
    assert_eq!(waits.taken, 0);
    assert_eq!(stripes(store, &gone, 0..2).await, expected(&gone));
    place.delete(store, &["copy"]).await;
    store.abort_multipart(place.bucket, &key("parts"), upload.id).await.expect("abort");
    let step = store.condemn_segments(1000, FREE).await.expect("condemn").expect("go on");
    assert_eq!((step.taken, look(store).await.condemned), (2, 4));
}

/// So much at once is rather a mistake; what was condemned before counts too.
pub async fn a_brake_changes_nothing(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let mut segments = Vec::new();
    for name in ["a", "b", "c", "d"] {
        segments.push(stored(store, place, name, 1, &nodes).await);
    }
    place.delete(store, &["a", "b", "c"]).await;
    let before = look(store).await;
    let tight = GcBrake { max_fraction: 0.5, floor: 2 };
    let halted = store.condemn_segments(1000, tight).await.expect("condemn");
    assert_eq!(halted, Err(GcHalt::Brake { candidates: 3, segments: 4 }));
    assert_eq!(look(store).await, before);
    for segment in &segments {
        assert!(state(store, at(segment, 0)).await.is_some());
    }
    let step = store.condemn_segments(2, tight).await.expect("condemn").expect("within the brake");
    assert_eq!(step.taken, 2);
    let halted = store.condemn_segments(2, tight).await.expect("condemn");
    assert!(matches!(halted, Err(GcHalt::Brake { .. })), "{halted:?}");
    let floor = GcBrake { max_fraction: 0.0, floor: 3 };
    let step = store.condemn_segments(2, floor).await.expect("condemn").expect("always allowed");
    assert_eq!((step.taken, look(store).await.candidates), (1, 0));
}

/// Until it is thawed, whatever waits.
pub async fn a_freeze_stops_everything(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    stored(store, place, "first", 1, &nodes).await;
    stored(store, place, "second", 1, &nodes).await;
    stored(store, place, "third", 1, &nodes).await;
    place.delete(store, &["first"]).await;
    condemn(store).await;
    assert_eq!(collect(store).await, 5);
    place.delete(store, &["second"]).await;
    condemn(store).await;
    place.delete(store, &["third"]).await;
    let orphan = Reconciled { orphans: vec![(ChunkId::of(b"o"), held_again(3))], ..found_nothing(nodes[0]) };
    store.record_inventory(&orphan).await.expect("record");
    store.freeze_gc("for now").await.expect("freeze");
    store.freeze_gc("restored from a backup").await.expect("freeze");
    tick(store).await;
    let before = look(store).await;
    let why = Some("restored from a backup".to_owned());
    let waiting = GcState {
        candidates: 1,
        condemned: 1,
        deletes: 5,
        deletes_due: 5,
        orphans: 1,
        frozen: why,
        halted: None,
    };
    assert_eq!(before, waiting);
    let halt = || GcHalt::Frozen("restored from a backup".to_owned());
    assert_eq!(store.condemn_segments(1000, FREE).await.expect("condemn"), Err(halt()));
    assert_eq!(store.collect_segments(Duration::ZERO, 1000, u64::MAX).await.expect("collect"), Err(halt()));
    assert_eq!(store.condemn_orphans(Duration::ZERO, 1000, FREE).await.expect("condemn").taken, 0);
    assert_eq!(claim(store).await, []);
    assert_eq!(look(store).await, before);
    assert_eq!(thaw(store).await, GcThawed { frozen: true, braked: false });
    assert_eq!(thaw(store).await, GcThawed::default());
    assert_eq!(store.condemn_orphans(Duration::ZERO, 1000, FREE).await.expect("condemn").taken, 1);
    assert_eq!(collect(store).await, 5);
    condemn(store).await;
    assert_eq!(deletes(store).await.len(), 11);
    assert_eq!(look(store).await.frozen, None);
}

/// After its grace nothing is left of it but chunks to be deleted, wherever they were, whatever was believed of them.
pub async fn a_collected_segment_leaves_deletes(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    let SegmentBody::Stripes(made) = &segment.body else { panic!("made of stripes") };
    store.report_corrupt_chunks(nodes[0], &[made[0].shards[0].chunk]).await.expect("report");
    place.put(store, "inline", b"in its row").await;
    place.delete(store, &["k", "inline"]).await;
    condemn(store).await;
    assert_eq!(collect(store).await, 10);
    let left = look(store).await;
    assert_eq!((left.candidates, left.condemned, left.deletes), (0, 0, 10));
    assert!(stripes(store, &segment, 0..2).await.is_empty());
    for node in &nodes {
        assert!(store.node_locations(*node, None, 10).await.expect("look").is_empty());
    }
    assert!(store.repair_queue().await.expect("look").pending.is_empty());
    let found = deletes(store).await;
    assert_eq!(named(&found), held(&segment));
    assert!(found.iter().all(|at| at.attempts == 0 && at.generation.incarnation == FIRST_LIFE));
    assert_eq!(claim(store).await, [], "claimed");
    assert_eq!(look(store).await.deletes_due, 0);
    let mut outcomes: Vec<_> = found.iter().map(|at| (at.id, DeleteOutcome::Settled)).collect();
    outcomes[0].1 = DeleteOutcome::Later(Duration::ZERO);
    outcomes[1].1 = DeleteOutcome::Later(LONG);
    store.finish_deletes(&outcomes).await.expect("finish");
    assert_eq!(look(store).await.deletes, 2);
    let again = deletes(store).await;
    assert_eq!(again, [ChunkDelete { attempts: 1, ..found[0].clone() }]);
    store.finish_deletes(&[(again[0].id, DeleteOutcome::Settled)]).await.expect("finish");
    tick(store).await;
    assert_eq!(claim(store).await, []);
    assert_eq!(look(store).await.deletes, 1);
}

/// However large segments are: of what goes at once there is a limit, for others wait for it.
pub async fn large_segments_are_collected_one_by_one(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    for name in ["a", "b", "c", "d"] {
        stored(store, place, name, 2, &nodes).await;
    }
    place.delete(store, &["a", "b", "c", "d"]).await;
    condemn(store).await;
    tick(store).await;
    let collect = async |chunks| {
        store.collect_segments(Duration::ZERO, 1000, chunks).await.expect("collect").expect("go on")
    };
    let step = |segments| GcStep { looked_at: segments, taken: segments, chunks: 10 * segments };
    assert_eq!(collect(9).await, step(1), "one at least");
    assert_eq!(collect(29).await, step(2));
    assert_eq!(collect(29).await, step(1));
    assert_eq!(collect(29).await, GcStep::default());
}

/// Two segments may have one and the same chunk on one node: it stays as long as one of them does.
pub async fn a_chunk_that_is_still_named_stays(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let first = stored(store, place, "first", 1, &nodes).await;
    let mut second = place.striped(super::stripes::coded(), 1, &nodes);
    let SegmentBody::Stripes(stripes) = &first.body else { panic!("made of stripes") };
    let SegmentBody::Stripes(twins) = &mut second.body else { panic!("made of stripes") };
    for shard in [0, 3] {
        twins[0].shards[shard].chunk = stripes[0].shards[shard].chunk;
        twins[0].shards[shard].locations[0].generation.counter = 8;
    }
    let shared: Vec<ChunkId> = [0, 3].map(|shard: usize| stripes[0].shards[shard].chunk).to_vec();
    store.commit_object(&place.commit("second", Content::New(second.clone()))).await.expect("commit");
    place.delete(store, &["first"]).await;
    condemn(store).await;
    assert_eq!(collect(store).await, 5);
    let found = deletes(store).await;
    let mut want = held(&first);
    want.retain(|(_, chunk, _)| !shared.contains(chunk));
    assert_eq!((named(&found), want.len()), (want, 3));
    let settled: Vec<_> = found.iter().map(|at| (at.id, DeleteOutcome::Settled)).collect();
    store.finish_deletes(&settled).await.expect("finish");
    assert_eq!(claim(store).await, []);
    // In its grace too.
    place.delete(store, &["second"]).await;
    condemn(store).await;
    assert_eq!(claim(store).await, []);
    collect(store).await;
    assert_eq!(named(&deletes(store).await), held(&second));
}

/// It may have stored the chunk before the entry was made, and commit it after; a later one stores it anew.
pub async fn a_delete_waits_for_older_uploads(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    place.delete(store, &["k"]).await;
    condemn(store).await;
    assert_eq!(store.oldest_intent().await.expect("look"), None);
    let older = begin(store, place).await;
    let since = store.oldest_intent().await.expect("look").expect("there is one");
    tick(store).await;
    collect(store).await;
    tick(store).await;
    let newer = begin(store, place).await;
    assert_eq!(store.oldest_intent().await.expect("look"), Some(since));
    assert_eq!(claim(store).await, []);
    store.cancel_upload(older).await.expect("cancel");
    assert!(store.oldest_intent().await.expect("look").expect("the newer one") > since);
    assert_eq!(named(&deletes(store).await), held(&segment));
    store.cancel_upload(newer).await.expect("cancel");
}

/// Likewise.
pub async fn a_delete_waits_for_older_repairs(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    let other = stored(store, place, "other", 2, &nodes).await;
    let repair = |index| NewRepair {
        stripe: at(&other, index),
        priority: 1,
        delay: Duration::ZERO,
        reason: "test".to_owned(),
    };
    place.delete(store, &["k"]).await;
    condemn(store).await;
    store.queue_repairs(&[repair(0)]).await.expect("queue");
    let older = claimed(store, at(&other, 0), LONG).await;
    tick(store).await;
    collect(store).await;
    tick(store).await;
    store.queue_repairs(&[repair(1)]).await.expect("queue");
    claimed(store, at(&other, 1), LONG).await;
    assert_eq!(claim(store).await, []);
    store.finish_repair(older.id, older.fence, &RepairDone::default()).await.expect("finish");
    assert_eq!(named(&deletes(store).await), held(&segment));
}

/// Five nodes that are each to delete a chunk.
async fn five_to_delete(store: &dyn MetadataStore) -> Vec<NodeId> {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    stored(store, place, "k", 1, &nodes).await;
    place.delete(store, &["k"]).await;
    condemn(store).await;
    assert_eq!(collect(store).await, 5);
    nodes
}

/// Until it is heard again. One that drains by request can be asked.
pub async fn a_node_that_is_not_there_is_not_asked_to_delete(store: &dyn MetadataStore) {
    let nodes = five_to_delete(store).await;
    let step = async |node: usize, from, to| {
        store.step_node(&NodeStep { node: nodes[node], from, to }).await.expect("step");
    };
    step(0, Online, Offline).await;
    step(1, Online, Offline).await;
    step(1, Offline, Draining).await;
    step(2, Online, Draining).await;
    let asked = async || {
        let claimed = deletes(store).await;
        claimed.into_iter().map(|at| at.node).collect::<BTreeSet<_>>()
    };
    assert_eq!(asked().await, nodes[2..].iter().copied().collect());
    tick(store).await;
    assert_eq!(claim(store).await, []);
    step(0, Offline, Recovering).await;
    step(1, Draining, Recovering).await;
    assert_eq!(asked().await, nodes[..2].iter().copied().collect());
}

/// Whoever is to be emptied and has not been heard for so long may be dead; an administrator drains such nodes too.
pub async fn who_drains_and_is_silent_is_not_asked_to_delete(store: &dyn MetadataStore) {
    let nodes = five_to_delete(store).await;
    assert!(store.drain_node(nodes[0], true).await.expect("drain"));
    tick(store).await;
    let asked = async |silence| {
        let claimed = store.claim_deletes(1000, LONG, silence).await.expect("claim deletes");
        claimed.into_iter().map(|at| at.node).collect::<BTreeSet<_>>()
    };
    assert_eq!(asked(Duration::ZERO).await, nodes[1..].iter().copied().collect());
    assert_eq!(asked(LONG).await, BTreeSet::from([nodes[0]]));
}

/// Its grace, from when it was first seen as it is now, and for uploads begun before that. One that a location names by
/// then is none.
pub async fn an_orphan_waits(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = place.striped(super::stripes::coded(), 1, &nodes);
    let (node, chunk, _) = held(&segment)[0];
    let lone = ChunkId::of(b"lone");
    let see = async |chunk, counter| {
        let seen = Reconciled { orphans: vec![(chunk, held_again(counter))], ..found_nothing(node) };
        store.record_inventory(&seen).await.expect("record");
    };
    let condemn_orphans =
        async |grace| store.condemn_orphans(grace, 1000, FREE).await.expect("condemn").taken;
    see(lone, 3).await;
    see(chunk, 1).await;
    assert_eq!((look(store).await.orphans, condemn_orphans(LONG).await), (2, 0));
    store.commit_object(&place.commit("k", Content::New(segment))).await.expect("commit");
    see(chunk, 1).await;
    tick(store).await;
    let upload = begin(store, place).await;
    tick(store).await;
    // Another generation: stored since, perhaps by that upload.
    see(lone, 4).await;
    tick(store).await;
    assert_eq!(condemn_orphans(Duration::ZERO).await, 0);
    assert_eq!(look(store).await.orphans, 1, "the other is named");
    store.cancel_upload(upload).await.expect("cancel");
    tick(store).await;
    begin(store, place).await;
    see(lone, 4).await;
    assert_eq!((condemn_orphans(LONG).await, condemn_orphans(Duration::ZERO).await), (0, 1));
    assert_eq!(look(store).await.orphans, 0);
    let found = deletes(store).await;
    assert_eq!(named(&found), [(node, lone, 4)]);
}

async fn sees(store: &dyn MetadataStore, node: NodeId, orphans: u8) {
    lists(store, node, 0..orphans, 3, usize::MAX).await;
}

async fn lists(
    store: &dyn MetadataStore,
    node: NodeId,
    orphans: Range<u8>,
    counter: u64,
    orphans_max: usize,
) {
    let orphans = orphans.map(|n| (ChunkId::of(&[n]), held_again(counter))).collect();
    let seen = Reconciled { orphans, orphans_max, ..found_nothing(node) };
    store.record_inventory(&seen).await.expect("record");
}

/// A node that lists ever more is remembered so much of, with what it is told to delete; what was seen before is not forgotten.
pub async fn orphans_of_a_node_have_a_limit(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    stored(store, place, "k", 1, &nodes).await;
    let orphans = async || look(store).await.orphans;
    lists(store, nodes[0], 0..3, 3, 4).await;
    assert_eq!(orphans().await, 3);
    lists(store, nodes[0], 1..20, 3, 4).await;
    assert_eq!(orphans().await, 4, "one is new");
    for from in [20, 30, 40] {
        lists(store, nodes[0], from..from + 10, 3, 4).await;
        assert_eq!(orphans().await, 4);
    }
    lists(store, nodes[1], 0..9, 3, 4).await;
    assert_eq!(orphans().await, 8, "each has its own");
    store.finish_inventory(nodes[2], Some(2)).await.expect("finish");
    lists(store, nodes[2], 0..9, 3, 4).await;
    assert_eq!(orphans().await, 14, "and as many as it had locations");
    lists(store, nodes[0], 0..3, 5, 4).await;
    tick(store).await;
    assert_eq!(store.condemn_orphans(Duration::ZERO, 1000, FREE).await.expect("condemn").taken, 14);
    let told = deletes(store).await;
    let renewed = told.iter().filter(|at| at.node == nodes[0] && at.generation.counter == 5);
    assert_eq!((told.len(), renewed.count()), (14, 3));
    lists(store, nodes[0], 50..60, 3, 4).await;
    assert_eq!(orphans().await, 0, "as many wait to be deleted");
    let settled: Vec<_> = told.iter().map(|at| (at.id, DeleteOutcome::Settled)).collect();
    store.finish_deletes(&settled).await.expect("finish");
    lists(store, nodes[0], 50..60, 3, 4).await;
    assert_eq!(orphans().await, 4);
}

/// It goes without being seen again: a node that returns is told to delete what was made elsewhere, and no brake looks at that. What
/// was stored since is another matter.
pub async fn what_is_to_be_deleted_is_no_orphan(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    place.delete(store, &["k"]).await;
    condemn(store).await;
    assert_eq!(collect(store).await, 5);
    let (node, chunk, counter) = held(&segment)[0];
    for (counter, orphans) in [(counter, 0), (counter + 1, 1)] {
        let orphan = Reconciled { orphans: vec![(chunk, held_again(counter))], ..found_nothing(node) };
        store.record_inventory(&orphan).await.expect("record");
        assert_eq!(look(store).await.orphans, orphans);
    }
}

/// More than the brake lets go at once are rather kept by mistake of ours; what other nodes have goes.
pub async fn too_many_orphans_of_a_node_stay(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    stored(store, place, "k", 1, &nodes).await;
    sees(store, nodes[0], 3).await;
    sees(store, nodes[1], 2).await;
    tick(store).await;
    let condemn = async |grace, max_fraction, floor| {
        store.condemn_orphans(grace, 1000, GcBrake { max_fraction, floor }).await.expect("condemn")
    };
    assert_eq!(condemn(LONG, 0.5, 2).await, OrphanStep::default(), "in their grace");
    let halt = Some(GcHalt::Orphans { node: nodes[0], orphans: 3, locations: 1 });
    assert_eq!(condemn(Duration::ZERO, 0.5, 2).await, OrphanStep { taken: 2, halt: halt.clone() });
    assert_eq!(condemn(Duration::ZERO, 0.5, 2).await, OrphanStep { taken: 0, halt });
    assert_eq!(look(store).await.orphans, 3);
    assert_eq!(condemn(Duration::ZERO, 0.75, 2).await, OrphanStep { taken: 3, halt: None }, "not too many");
    assert!(deletes(store).await.iter().all(|at| [nodes[0], nodes[1]].contains(&at.node)));
}

/// All of them would go.
pub async fn no_orphan_goes_where_no_location_is_known(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    stored(store, place, "lost", 1, &[]).await;
    sees(store, nodes[0], 1).await;
    tick(store).await;
    let condemn = async || store.condemn_orphans(Duration::ZERO, 1000, FREE).await.expect("condemn");
    assert_eq!(condemn().await, OrphanStep { taken: 0, halt: Some(GcHalt::NoLocations) });
    stored(store, place, "known", 1, &nodes).await;
    assert_eq!(condemn().await, OrphanStep { taken: 1, halt: None });
}

/// What waits when an operator lets collection go on counts for no brake, neither itself nor condemned; what comes later does.
pub async fn what_an_operator_lets_go_passes_brakes(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        stored(store, place, name, 1, &nodes).await;
    }
    let brake = GcBrake { max_fraction: 0.15, floor: 1 };
    let segments = async || store.condemn_segments(1000, brake).await.expect("condemn");
    let orphans = async || store.condemn_orphans(Duration::ZERO, 1000, brake).await.expect("condemn");
    let too_many = |orphans| Some(GcHalt::Orphans { node: nodes[0], orphans, locations: 8 });
    place.delete(store, &["a", "b", "c"]).await;
    sees(store, nodes[0], 3).await;
    tick(store).await;
    assert_eq!(segments().await, Err(GcHalt::Brake { candidates: 3, segments: 8 }));
    assert_eq!(orphans().await, OrphanStep { taken: 0, halt: too_many(3) });
    store.note_gc_halt(Some("too much")).await.expect("note");
    assert_eq!(thaw(store).await, GcThawed { frozen: false, braked: true });
    tick(store).await;
    place.delete(store, &["d", "e"]).await;
    sees(store, nodes[0], 5).await;
    tick(store).await;
    assert_eq!(segments().await, Ok(GcStep { looked_at: 3, taken: 3, chunks: 0 }));
    assert_eq!(segments().await, Err(GcHalt::Brake { candidates: 2, segments: 8 }));
    assert_eq!(orphans().await, OrphanStep { taken: 3, halt: too_many(2) });
    assert_eq!(orphans().await, OrphanStep { taken: 0, halt: too_many(2) });
    assert_eq!((look(store).await.candidates, look(store).await.orphans), (2, 2));
    thaw(store).await;
    assert_eq!(segments().await.map(|step| step.taken), Ok(2));
    assert_eq!(orphans().await, OrphanStep { taken: 2, halt: None });
}

/// For operators, until it is noted that none does, or one of them lets collection go on.
pub async fn why_a_brake_holds_is_kept(store: &dyn MetadataStore) {
    let note = async |why| {
        store.note_gc_halt(why).await.expect("note");
        look(store).await.halted
    };
    assert_eq!(look(store).await.halted, None);
    assert_eq!(note(Some("too much")).await.as_deref(), Some("too much"));
    assert_eq!(note(Some("far too much")).await.as_deref(), Some("far too much"));
    store.freeze_gc("for now").await.expect("freeze");
    assert_eq!(look(store).await.halted.as_deref(), Some("far too much"));
    assert_eq!(note(None).await, None);
    assert_eq!(note(None).await, None);
    assert_eq!(note(Some("again")).await.as_deref(), Some("again"));
    assert_eq!(thaw(store).await, GcThawed { frozen: true, braked: true });
    assert_eq!(look(store).await.halted, None);
}

/// Both ways, and again without harm; rows that are not there (any more) are left out.
pub async fn a_compared_inventory_is_recorded(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 2).await;
    let segment = stored(store, place, "k", 3, &[nodes[0], nodes[1]]).await;
    let ours = store.node_locations(nodes[0], None, 100).await.expect("look");
    assert_eq!(ours.len(), 9);
    let elsewhere = NodeCursor { chunk: ChunkId::of(b"another"), ..ours[3].at };
    let gone = NodeCursor { stripe: at(&segment, 7), ..ours[4].at };
    let compared = Reconciled {
        missing: vec![ours[0].at, ours[1].at, elsewhere, gone],
        renewed: vec![(ours[2].at, held_again(50)), (gone, held_again(50))],
        orphans: vec![(ours[5].at.chunk, held_again(60)), (ChunkId::of(b"o"), held_again(60))],
        ..found_nothing(nodes[0])
    };
    for _ in 0..2 {
        store.record_inventory(&compared).await.expect("record");
        let now = store.node_locations(nodes[0], None, 100).await.expect("look");
        let mut want = ours.clone();
        want[0].status = LocationStatus::Missing;
        want[1].status = LocationStatus::Missing;
        want[2].generation.counter = 50;
        assert_eq!(now, want);
        assert_eq!(look(store).await.orphans, 1);
    }
    let missed: BTreeSet<u32> = ours[..2].iter().map(|at| at.at.stripe.index).collect();
    let jobs = until("repairs can be claimed", async || {
        let jobs = store.claim_repairs(i32::MAX, 10, LONG).await.expect("claim");
        (jobs.len() >= missed.len()).then_some(jobs)
    })
    .await;
    assert_eq!(jobs.iter().map(|job| job.stripe.index).collect::<BTreeSet<_>>(), missed);
    let back = Reconciled {
        found: vec![(ours[0].at, held_again(70)), (elsewhere, held_again(70))],
        ..found_nothing(nodes[0])
    };
    store.record_inventory(&back).await.expect("record");
    let now = store.node_locations(nodes[0], None, 1).await.expect("look");
    assert_eq!((now[0].status, now[0].generation), (LocationStatus::Stored, held_again(70)));
    let reconciled = async || {
        let nodes_now = store.nodes_upkeep().await.expect("look");
        let node = nodes_now.into_iter().find(|node| node.node == nodes[0]).expect("is known");
        (node.reconciled_at.is_some(), node.locations)
    };
    assert_eq!(reconciled().await, (false, 0));
    store.finish_inventory(nodes[0], Some(8)).await.expect("finish");
    assert_eq!(reconciled().await, (true, 8));
    store.finish_inventory(nodes[0], None).await.expect("finish");
    assert_eq!(reconciled().await, (true, 8), "not all were counted");
    let removed = Reconciled { orphans: vec![(ChunkId::of(b"o"), held_again(1))], ..found_nothing(fresh()) };
    store.record_inventory(&removed).await.expect("nobody knows this node");
}

/// Ended ones are forgotten, open ones are aborted as their owner would; each after its time.
pub async fn old_uploads_are_purged(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    store.commit_part(&new_part(place, upload.id, 1, b"part")).await.expect("commit a part");
    tick(store).await;
    let purge = async |older, open_for| {
        store.purge_multiparts(older, open_for, 10).await.expect("purge multipart uploads")
    };
    assert_eq!(purge(Duration::ZERO, None).await, 0);
    assert_eq!(purge(Duration::ZERO, Some(LONG)).await, 0);
    assert!(store.multipart(upload.id).await.expect("read").is_some());
    assert_eq!(purge(LONG, Some(Duration::ZERO)).await, 1);
    assert_eq!(store.multipart(upload.id).await.expect("read"), None);
    assert_eq!(look(store).await.candidates, 1);
    assert_eq!(purge(LONG, Some(Duration::ZERO)).await, 0);
    tick(store).await;
    assert_eq!(purge(Duration::ZERO, None).await, 1);
    assert_eq!(purge(Duration::ZERO, None).await, 0);
    condemn(store).await;
    assert_eq!(look(store).await.condemned, 1);
}
