//! Locations that were lost, recorded again from what nodes say they hold.

use cyxcloud_core::node::NodeStatus::{Draining, Online};
use cyxcloud_core::{ByteCount, ChunkId, Generation, NodeId, Timestamp};

use super::stripes::{LONG, at, coded, committed, state, stored, until};
use super::{fresh, new_node, online_nodes, place};
use crate::MetadataStore;
use crate::model::{BadLocation, Content, Fault, NewLocation, NodeStep};
use crate::upkeep::model::{
    HeldChunk, KnownPlace, LocationStatus, NewRepair, NodeCursor, NodeLocation, ScanClass, ScanReason,
    StripeRef, WorkInHand,
};

/// Forgets a node with all that was known of what it holds, and meets it as a new one.
async fn lose(store: &dyn MetadataStore, node: NodeId) -> NodeId {
    store.step_node(&NodeStep { node, from: Online, to: Draining }).await.expect("drain");
    store.remove_node(node).await.expect("remove");
    store.register_node(&new_node()).await.expect("register").id
}

fn held(location: &NodeLocation) -> HeldChunk {
    HeldChunk { at: location.at, size: location.size, generation: location.generation }
}

fn claim(node: NodeId, held: &HeldChunk) -> (NodeCursor, NewLocation) {
    let location = NewLocation {
        node,
        generation: held.generation,
        receipt_signature: vec![5; 64],
        stored_at: Timestamp::from_unix_millis(1_700_000_000_456),
    };
    (held.at, location)
}

/// Once, wherever the chunk belongs and nowhere else; the stripe is as it was.
pub async fn lost_locations_are_recorded_again(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    let before = store.node_locations(nodes[0], None, 100).await.expect("look");
    assert_eq!(before.len(), 2);
    let node = lose(store, nodes[0]).await;
    assert_eq!(state(store, at(&segment, 0)).await.expect("is there").locations.len(), 4);

    let right: Vec<HeldChunk> = before.iter().map(held).collect();
    let wrong = [
        HeldChunk { size: ByteCount::bytes(1), ..right[0] },
        HeldChunk { at: NodeCursor { chunk: ChunkId::of(b"other"), ..right[0].at }, ..right[0] },
        HeldChunk {
            at: NodeCursor { stripe: StripeRef { segment: fresh(), index: 0 }, ..right[0].at },
            ..right[0]
        },
        HeldChunk { at: NodeCursor { shard: coded().shard(4).expect("exists"), ..right[0].at }, ..right[0] },
    ];
    let ask: Vec<HeldChunk> = [&wrong[..], &right[..]].concat();
    let known = store.known_places(node, &ask).await.expect("look");
    use KnownPlace::{Nowhere, Recorded, Unrecorded};
    assert_eq!(known, [Nowhere, Nowhere, Nowhere, Nowhere, Unrecorded, Unrecorded]);
    let mut found = store.places_of_chunks(&[right[0].at.chunk, ChunkId::of(b"other")]).await.expect("look");
    assert_eq!(found.pop(), Some((right[0].at, right[0].size)));
    assert_eq!(found, []);

    // Of a place that does not have the chunk nothing is recorded, whoever asks.
    let claims: Vec<_> = wrong[1..].iter().chain(&right).map(|held| claim(node, held)).collect();
    assert_eq!(store.record_held(&claims).await.expect("record"), 2);
    assert_eq!(store.record_held(&claims).await.expect("record"), 0, "once");
    assert_eq!(store.known_places(node, &right).await.expect("look"), [Recorded, Recorded]);
    for index in 0..2 {
        let mut want = committed(&segment, index);
        want.locations.iter_mut().filter(|at| at.node == nodes[0]).for_each(|at| at.node = node);
        want.locations.sort_by_key(|at| (at.shard, at.node.as_uuid()));
        let mut now = state(store, at(&segment, index)).await.expect("is there");
        now.locations.iter_mut().for_each(|at| at.proven_at = None);
        assert_eq!(now, want);
    }
    let nobody = claim(fresh(), &right[0]);
    assert_eq!(store.record_held(&[nobody]).await.expect("record"), 0, "nobody knows this node");
    assert_eq!(store.record_held(&[]).await.expect("record"), 0);
}

/// What a row says that is older or worse is put right; what is newer stays.
pub async fn a_newer_location_is_left_alone(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    let location = store.node_locations(nodes[0], None, 1).await.expect("look").remove(0);
    let of = |counter| {
        let generation = Generation { counter, ..location.generation };
        HeldChunk { generation, ..held(&location) }
    };
    let look = async || {
        let now = store.node_locations(nodes[0], None, 1).await.expect("look").remove(0);
        (now.status, now.generation.counter)
    };
    let known = async |held| store.known_places(nodes[0], &[held]).await.expect("look")[0];
    let record = async |held| store.record_held(&[claim(nodes[0], &held)]).await.expect("record");
    assert_eq!(known(of(9)).await, KnownPlace::Unrecorded);
    assert_eq!(record(of(9)).await, 1);
    assert_eq!(known(of(8)).await, KnownPlace::Recorded);
    assert_eq!(record(of(8)).await, 0);
    assert_eq!(look().await, (LocationStatus::Stored, 9));
    let bad = BadLocation {
        segment: segment.id,
        stripe: 0,
        shard: location.at.shard,
        node: nodes[0],
        fault: Fault::Missing,
    };
    store.report_bad_locations(&[bad]).await.expect("report");
    assert_eq!(look().await, (LocationStatus::Missing, 9));
    assert_eq!(known(of(9)).await, KnownPlace::Unrecorded);
    assert_eq!(record(of(9)).await, 1);
    assert_eq!(look().await, (LocationStatus::Stored, 9));
}

/// Claims that somebody holds; one that ran out, or ended, is in nobody's hand.
pub async fn work_in_hand_is_what_leases_hold(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = place.striped(coded(), 2, &nodes);
    let content = Content::New(segment.clone());
    store.commit_object(&place.commit("k", content)).await.expect("commit");
    let look = async || store.work_in_hand().await.expect("look");
    // What the commit itself queued for short stripes is not counted on here.
    let jobs = store.claim_repairs(i32::MAX, 10, LONG).await.expect("claim");
    for job in &jobs {
        store.finish_repair(job.id, job.fence, &Default::default()).await.expect("finish");
    }
    assert_eq!(look().await, WorkInHand::default());
    let repair = |index| NewRepair {
        stripe: at(&segment, index),
        priority: 0,
        delay: std::time::Duration::ZERO,
        reason: "test".to_owned(),
    };
    store.queue_repairs(&[repair(0), repair(1)]).await.expect("queue");
    store.queue_scan(nodes[0], ScanReason::Periodic).await.expect("queue");
    assert_eq!(look().await, WorkInHand::default());
    let job = until("a job can be claimed", async || {
        store.claim_repairs(i32::MAX, 1, LONG).await.expect("claim").pop()
    })
    .await;
    let scan = until("a scan can be claimed", async || {
        store.claim_scans(ScanClass::Periodic, 1, LONG).await.expect("claim").pop()
    })
    .await;
    assert_eq!(look().await, WorkInHand { repairs: 1, scans: 1 });
    store.finish_repair(job.id, job.fence, &Default::default()).await.expect("finish");
    store.finish_scan(&scan, None).await.expect("finish");
    assert_eq!(look().await, WorkInHand::default());
    let short = std::time::Duration::from_millis(1);
    until("a job can be claimed", async || {
        store.claim_repairs(i32::MAX, 1, short).await.expect("claim").pop()
    })
    .await;
    until("its lease runs out", async || (look().await == WorkInHand::default()).then_some(())).await;
}
