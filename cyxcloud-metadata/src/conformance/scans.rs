//! Looking through nodes: what asks for it, how it goes on after a crash, and what it meets.

use std::time::Duration;

use cyxcloud_core::node::NodeStatus::{Draining, Offline, Online, Recovering};
use cyxcloud_core::{ByteCount, NodeId};
use uuid::Uuid;

use super::stripes::{LONG, condemn, stored, tick, until};
use super::{FIRST_LIFE, fresh, new_node, online_nodes, place};
use crate::model::{Content, NewSegment, NodeHeartbeat, NodeStep, RegisterNode, SegmentBody};
use crate::upkeep::model::{
    LocationStatus, NodeCursor, NodeLocation, NodeScan, ScanClass, ScanReason, StripeRef,
};
use crate::{Error, MetadataStore};

/// Of whatever class.
async fn claim(store: &dyn MetadataStore, limit: usize, lease: Duration) -> Vec<NodeScan> {
    store.claim_scans(ScanClass::Periodic, limit, lease).await.expect("claim scans")
}

fn is_stale(answer: Result<(), Error>) {
    assert!(matches!(answer, Err(Error::Stale { .. })), "{answer:?}");
}

/// All scans that wait, ended.
async fn asked(store: &dyn MetadataStore) -> Vec<(NodeId, ScanReason)> {
    let scans = claim(store, 100, LONG).await;
    for scan in &scans {
        assert_eq!(scan.after, None);
        store.finish_scan(scan, None).await.expect("finish");
    }
    assert!(claim(store, 100, LONG).await.is_empty(), "finished ones are not offered");
    scans.iter().map(|scan| (scan.node, scan.reason)).collect()
}

async fn one(store: &dyn MetadataStore, lease: Duration) -> NodeScan {
    until("a scan can be claimed", async || claim(store, 1, lease).await.pop()).await
}

/// A new node holds nothing that could be looked for.
pub async fn a_change_of_a_node_asks_for_a_scan(store: &dyn MetadataStore) {
    let new = new_node();
    let node = store.register_node(&new).await.expect("register").id;
    store.register_node(&new).await.expect("register again");
    assert_eq!(asked(store).await, []);
    let step = async |from, to| store.step_node(&NodeStep { node, from, to }).await.expect("step");
    step(Online, Offline).await;
    assert_eq!(asked(store).await, [(node, ScanReason::Offline)]);
    step(Offline, Recovering).await;
    assert_eq!(asked(store).await, [(node, ScanReason::Returned)]);
    step(Recovering, Online).await;
    asked(store).await;
    step(Online, Draining).await;
    assert_eq!(asked(store).await, [(node, ScanReason::Draining)]);
    store.register_node(&new).await.expect("register");
    assert_eq!(asked(store).await, [(node, ScanReason::Returned)]);
    assert!(store.drain_node(node, false).await.expect("no longer"));
    assert_eq!(asked(store).await, [(node, ScanReason::Returned)]);
    step(Recovering, Online).await;
    asked(store).await;
    let refused = store.step_node(&NodeStep { node, from: Offline, to: Draining }).await;
    assert!(matches!(refused, Err(Error::Stale { .. })), "{refused:?}");
    assert_eq!(asked(store).await, []);
    let anew = RegisterNode { incarnation: Uuid::new_v4(), ..new };
    store.register_node(&anew).await.expect("register");
    assert_eq!(asked(store).await, [(node, ScanReason::NewIncarnation)]);
    store.register_node(&anew).await.expect("register");
    assert_eq!(asked(store).await, []);
}

/// When it begins, and not with every heartbeat that says so.
pub async fn maintenance_asks_for_a_scan_once(store: &dyn MetadataStore) {
    let node = online_nodes(store, 1).await[0];
    let beat = async |maintenance| {
        let beat = NodeHeartbeat {
            node,
            storage_used: ByteCount::bytes(1),
            storage_available: ByteCount::bytes(1000),
            cpu_usage: 1.0,
            memory_usage: 1.0,
            active_connections: 0,
            maintenance,
            read_only: false,
        };
        assert!(store.record_heartbeats(&[beat]).await.expect("record")[0].is_some());
    };
    beat(false).await;
    assert_eq!(asked(store).await, []);
    beat(true).await;
    assert_eq!(asked(store).await, [(node, ScanReason::Maintenance)]);
    beat(true).await;
    assert_eq!(asked(store).await, []);
    beat(false).await;
    asked(store).await;
    beat(true).await;
    assert_eq!(asked(store).await, [(node, ScanReason::Maintenance)]);
}

fn somewhere(n: u8) -> NodeCursor {
    NodeCursor {
        chunk: cyxcloud_core::ChunkId::of(&[n]),
        stripe: StripeRef { segment: fresh(), index: u32::from(n) },
        shard: super::stripes::coded().shard(1).expect("exists"),
    }
}

/// From where it got to, by another worker; the first one is refused.
pub async fn a_scan_goes_on_where_it_stopped(store: &dyn MetadataStore) {
    let node = online_nodes(store, 1).await[0];
    store.queue_scan(node, ScanReason::Periodic).await.expect("queue");
    let first = one(store, LONG).await;
    assert_eq!((first.node, first.reason, first.after), (node, ScanReason::Periodic, None));
    assert!(claim(store, 10, LONG).await.is_empty());
    let (here, there) = (somewhere(1), somewhere(2));
    store.advance_scan(&first, here, Duration::ZERO).await.expect("advance");
    let second = one(store, LONG).await;
    assert_eq!((second.node, second.reason, second.since), (node, ScanReason::Periodic, first.since));
    assert_eq!(second.after, Some(here));
    assert!(second.fence > first.fence);
    let stale = [
        store.advance_scan(&first, there, LONG).await,
        store.finish_scan(&first, None).await,
        store.finish_scan(&first, Some(Duration::ZERO)).await,
    ];
    assert!(stale.iter().all(|answer| matches!(answer, Err(Error::Stale { .. }))), "{stale:?}");
    store.advance_scan(&second, there, LONG).await.expect("advance");
    store.advance_scan(&second, there, Duration::ZERO).await.expect("advance");
    let third = one(store, LONG).await;
    assert_eq!(third.after, Some(there));
    store.finish_scan(&third, None).await.expect("finish");
    assert!(claim(store, 10, LONG).await.is_empty());
}

/// The lease counts from the renewal, and whoever lost the scan renews nothing.
pub async fn a_renewed_scan_stays(store: &dyn MetadataStore) {
    let node = online_nodes(store, 1).await[0];
    store.queue_scan(node, ScanReason::Periodic).await.expect("queue");
    let first = one(store, Duration::from_millis(800)).await;
    store.renew_scan(&first, LONG).await.expect("renew");
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(claim(store, 10, LONG).await.is_empty());
    store.renew_scan(&first, Duration::ZERO).await.expect("renew");
    let second = one(store, LONG).await;
    is_stale(store.renew_scan(&first, LONG).await);
    store.renew_scan(&second, LONG).await.expect("renew");
    store.finish_scan(&second, None).await.expect("finish");
    is_stale(store.renew_scan(&second, LONG).await);
    assert!(claim(store, 10, LONG).await.is_empty(), "it is done");
}

/// After its pause, by whoever takes it then.
pub async fn a_paused_scan_goes_on_where_it_stopped(store: &dyn MetadataStore) {
    let node = online_nodes(store, 1).await[0];
    store.queue_inventory(node).await.expect("queue");
    let first = one(store, LONG).await;
    let here = somewhere(1);
    store.advance_scan(&first, here, LONG).await.expect("advance");
    store.pause_scan(&first, Duration::ZERO).await.expect("pause");
    is_stale(store.renew_scan(&first, LONG).await);
    is_stale(store.advance_scan(&first, somewhere(2), LONG).await);
    is_stale(store.pause_scan(&first, LONG).await);
    is_stale(store.finish_scan(&first, None).await);
    let second = one(store, LONG).await;
    assert_eq!((second.node, second.reason, second.since), (node, ScanReason::Periodic, first.since));
    assert_eq!(second.after, Some(here));
    store.pause_scan(&second, LONG).await.expect("pause");
    store.queue_inventory(node).await.expect("queue");
    assert!(claim(store, 10, LONG).await.is_empty(), "it was put down");
    assert_eq!(store.work_in_hand().await.expect("look").scans, 0);
}

/// What needs no node's answer, then what nodes' changes ask for, then turns; of a class the one that waits longest. Whoever
/// takes none of the later classes finds none.
pub async fn scans_are_claimed_in_the_order_of_their_classes(store: &dyn MetadataStore) {
    use ScanReason::{Draining, Maintenance, NewIncarnation, Offline, Periodic, Returned};
    let nodes = online_nodes(store, 2).await;
    let (a, b) = (nodes[0], nodes[1]);
    let classes = [
        (ScanClass::Recorded, vec![(a, Maintenance), (b, Draining), (b, Offline)]),
        (ScanClass::Changed, vec![(a, NewIncarnation), (b, Returned)]),
        (ScanClass::Periodic, vec![(b, Periodic), (a, Periodic)]),
    ];
    let ask_for_all = async || {
        for (node, reason) in classes.iter().rev().flat_map(|(_, scans)| scans) {
            store.queue_scan(*node, *reason).await.expect("queue");
            tick(store).await;
        }
    };
    let next = async |up_to: ScanClass| {
        let claimed = store.claim_scans(up_to, 1, LONG).await.expect("claim").pop();
        claimed.map(|scan| (scan.node, scan.reason))
    };
    ask_for_all().await;
    for want in classes.iter().flat_map(|(_, scans)| scans) {
        assert_eq!(next(ScanClass::Periodic).await, Some(*want));
    }
    ask_for_all().await;
    for (class, scans) in &classes {
        for want in scans {
            assert_eq!(next(*class).await, Some(*want));
        }
        assert_eq!(next(*class).await, None);
    }
}

/// So that nodes that make their scans last leave the others their turn: a change goes before turns until it was put off, and
/// what killed its worker waits from then on.
pub async fn a_scan_that_was_put_off_is_behind_the_others(store: &dyn MetadataStore) {
    let nodes = online_nodes(store, 2).await;
    let next = async |lease: Duration| {
        let scan = one(store, lease).await;
        tick(store).await;
        scan
    };
    store.queue_scan(nodes[0], ScanReason::Periodic).await.expect("queue");
    tick(store).await;
    store.queue_scan(nodes[1], ScanReason::Returned).await.expect("queue");
    let changed = next(LONG).await;
    assert_eq!(changed.node, nodes[1]);
    store.pause_scan(&changed, Duration::ZERO).await.expect("pause");
    tick(store).await;
    let none = store.claim_scans(ScanClass::Changed, 10, LONG).await.expect("claim");
    assert!(none.is_empty(), "{none:?}");
    let periodic = next(Duration::ZERO).await;
    assert_eq!(periodic.node, nodes[0]);
    let changed = next(LONG).await;
    assert_eq!((changed.node, changed.reason), (nodes[1], ScanReason::Returned));
    let periodic = next(LONG).await;
    assert_eq!(periodic.node, nodes[0]);
    store.queue_scan(nodes[1], ScanReason::Returned).await.expect("queue");
    assert_eq!(
        store.claim_scans(ScanClass::Changed, 10, LONG).await.expect("claim").len(),
        1,
        "it returned again"
    );
}

/// Asked for while somebody is at it: nothing changes for whoever that is, and one that was put off stays so.
pub async fn an_inventory_in_hand_goes_on(store: &dyn MetadataStore) {
    let node = online_nodes(store, 1).await[0];
    store.queue_inventory(node).await.expect("queue");
    let first = one(store, LONG).await;
    assert_eq!((first.node, first.reason), (node, ScanReason::Periodic));
    for place in 1..4 {
        store.queue_inventory(node).await.expect("queue");
        assert!(claim(store, 10, LONG).await.is_empty(), "two would be at it");
        store.advance_scan(&first, somewhere(place), LONG).await.expect("it goes on");
    }
    store.finish_scan(&first, Some(LONG)).await.expect("put off");
    store.queue_inventory(node).await.expect("queue");
    assert!(claim(store, 10, LONG).await.is_empty(), "it was put off");
    store.queue_scan(node, ScanReason::Periodic).await.expect("queue");
    let second = one(store, LONG).await;
    store.finish_scan(&second, None).await.expect("finish");
    store.queue_inventory(node).await.expect("queue");
    let third = one(store, LONG).await;
    assert_eq!((third.reason, third.after), (ScanReason::Periodic, None));
    store.queue_inventory(fresh()).await.expect("a node that is gone meanwhile");
}

/// From its beginning: after its time, or because it was asked for once more. Nobody who had it before can end it.
pub async fn a_scan_begins_anew(store: &dyn MetadataStore) {
    let node = online_nodes(store, 1).await[0];
    store.queue_scan(node, ScanReason::Offline).await.expect("queue");
    let first = one(store, LONG).await;
    store.advance_scan(&first, somewhere(1), LONG).await.expect("advance");
    store.finish_scan(&first, Some(Duration::ZERO)).await.expect("finish");
    let second = one(store, LONG).await;
    assert_eq!(second.after, None);
    store.finish_scan(&second, Some(LONG)).await.expect("finish");
    assert!(claim(store, 10, LONG).await.is_empty());
    store.queue_scan(node, ScanReason::Offline).await.expect("queue");
    let third = one(store, LONG).await;
    store.advance_scan(&third, somewhere(2), LONG).await.expect("advance");
    store.queue_scan(node, ScanReason::Offline).await.expect("queue while it is in hand");
    let answer = store.finish_scan(&third, None).await;
    assert!(matches!(answer, Ok(()) | Err(Error::Stale { .. })), "{answer:?}");
    let fourth = one(store, LONG).await;
    assert_eq!(fourth.after, None);
    store.finish_scan(&fourth, None).await.expect("finish");
    store.queue_scan(node, ScanReason::Offline).await.expect("queue");
    let fifth = one(store, LONG).await;
    for late in [&first, &second, &third, &fourth] {
        let stale = store.finish_scan(late, None).await;
        assert!(matches!(stale, Err(Error::Stale { .. })), "{stale:?}");
    }
    store.finish_scan(&fifth, None).await.expect("finish");
    let unknown = store.queue_scan(fresh(), ScanReason::Periodic).await;
    assert!(matches!(unknown, Ok(()) | Err(Error::NoSuchNode)), "{unknown:?}");
}

fn places(segment: &NewSegment, node: NodeId) -> Vec<NodeLocation> {
    let SegmentBody::Stripes(stripes) = &segment.body else { panic!("made of stripes") };
    let mut places = Vec::new();
    for (stripe, index) in stripes.iter().zip(0u32..) {
        for shard in &stripe.shards {
            for at in shard.locations.iter().filter(|at| at.node == node) {
                places.push(NodeLocation {
                    at: NodeCursor {
                        chunk: shard.chunk,
                        stripe: StripeRef { segment: segment.id, index },
                        shard: shard.index,
                    },
                    size: shard.size,
                    generation: at.generation,
                    status: LocationStatus::Stored,
                });
            }
        }
    }
    places
}

/// Each once, in order, whatever the page's size; also where many stripes have one chunk, and of condemned segments.
pub async fn a_node_shows_all_its_locations(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    // Two shards of each stripe are on the node; shard 2 of all is one and the same chunk.
    let ring = [nodes[0], nodes[1], nodes[0], nodes[2], nodes[3]];
    let mut segment = place.striped(super::stripes::coded(), 3, &ring);
    let SegmentBody::Stripes(stripes) = &mut segment.body else { panic!("made of stripes") };
    let same = stripes[0].shards[2].chunk;
    stripes.iter_mut().for_each(|stripe| stripe.shards[2].chunk = same);
    let twin = NewSegment { id: fresh(), ..segment.clone() };
    for (name, segment) in [("a", &segment), ("b", &twin)] {
        store.commit_object(&place.commit(name, Content::New(segment.clone()))).await.expect("commit");
    }
    let third = stored(store, place, "c", 2, &nodes).await;
    place.delete(store, &["b"]).await;
    condemn(store).await;
    let mut want = [places(&segment, nodes[0]), places(&twin, nodes[0]), places(&third, nodes[0])].concat();
    want.sort_by_key(|place| {
        (place.at.chunk, place.at.stripe.segment.as_uuid(), place.at.stripe.index, place.at.shard)
    });
    assert_eq!(want.len(), 14);
    for limit in [1, 2, 5, 100] {
        let (mut met, mut after) = (Vec::new(), None);
        loop {
            let page = store.node_locations(nodes[0], after, limit).await.expect("look");
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.at);
            met.extend(page);
        }
        assert_eq!(met, want, "{limit} at a time");
    }
    assert!(store.node_locations(nodes[4], None, 100).await.expect("look").len() == 2);
    assert_eq!(want[0].generation.incarnation, FIRST_LIFE);
}
