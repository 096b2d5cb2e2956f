//! Storage nodes: who they are, how they come and go, and what is known to be wrong on them.

use cyxcloud_core::node::NodeStatus::{self, Draining, Offline, Online, Recovering};
use cyxcloud_core::{ByteCount, Geometry, NodeId, OwnerId};
use uuid::Uuid;

use super::segments::{expected, stripes};
use super::stripes::{LONG, at, state};
use super::{fresh, key, new_node, online_nodes, place};
use crate::model::{
    BadLocation, Content, Fault, NewSegment, Node, NodeHeartbeat, NodeStep, RegisterNode, SegmentBody,
};
use crate::{Error, MetadataStore};

pub(super) async fn node(store: &dyn MetadataStore, id: NodeId) -> Option<Node> {
    store.nodes().await.expect("list nodes").into_iter().find(|node| node.id == id)
}

async fn step(store: &dyn MetadataStore, node: NodeId, from: NodeStatus, to: NodeStatus) {
    store.step_node(&NodeStep { node, from, to }).await.expect("step");
}

/// Registered again with another id, name or address, it is the same node.
pub async fn a_node_is_known_by_its_public_key(store: &dyn MetadataStore) {
    let new = new_node();
    let made = store.register_node(&new).await.expect("register");
    assert_eq!((made.id, made.status, made.failure_count, made.first_offline_at), (new.id, Online, 0, None));
    assert_eq!((made.public_key, &made.peer_id), (new.public_key, &new.peer_id));
    assert_eq!((&made.label, &made.name), (&new.label, &new.name));
    assert_eq!((&made.grpc_address, &made.metrics_address), (&new.grpc_address, &new.metrics_address));
    assert_eq!((&made.region, &made.operator, &made.subnet), (&new.region, &new.operator, &new.subnet));
    assert_eq!((made.incarnation, &made.version, made.wire_version), (new.incarnation, &new.version, 1));
    assert_eq!((made.storage_total, made.storage_reserved), (new.storage_total, new.storage_reserved));
    assert_eq!((made.maintenance, made.read_only, made.quarantined), (false, false, false));
    assert_eq!(node(store, made.id).await, Some(made.clone()));
    let moved = RegisterNode {
        id: fresh(),
        name: "Another name".to_owned(),
        grpc_address: "http://198.51.100.9:50051".to_owned(),
        incarnation: Uuid::new_v4(),
        storage_total: ByteCount::gib(200),
        wire_version: 2,
        ..new.clone()
    };
    let again = store.register_node(&moved).await.expect("register again");
    assert_eq!((again.id, again.status), (made.id, Online));
    assert_eq!((&again.name, &again.grpc_address), (&moved.name, &moved.grpc_address));
    assert_eq!((again.incarnation, again.storage_total), (moved.incarnation, ByteCount::gib(200)));
    assert_eq!(node(store, moved.id).await, None);
    let ids: Vec<NodeId> = store.nodes().await.expect("list nodes").iter().map(|node| node.id).collect();
    assert!(ids.is_sorted_by(|a, b| a.as_uuid() < b.as_uuid()));
}

/// Nobody registers over somebody else's id or peer id.
pub async fn a_taken_identity_is_a_conflict(store: &dyn MetadataStore) {
    let first = new_node();
    let made = store.register_node(&first).await.expect("register");
    let thefts = [
        RegisterNode { id: first.id, ..new_node() },
        RegisterNode { peer_id: first.peer_id.clone(), ..new_node() },
    ];
    for theft in thefts {
        let refused = store.register_node(&theft).await;
        assert!(matches!(refused, Err(Error::NodeConflict)), "{refused:?}");
    }
    assert_eq!(node(store, first.id).await, Some(made));
}

/// As long as that one is heard, whatever it speaks there. Who comes with another key afterwards may be the same machine,
/// which lost its own.
pub async fn an_address_is_one_node_s(store: &dyn MetadataStore) {
    let first = new_node();
    let id = store.register_node(&first).await.expect("register").id;
    let at_its = |node: RegisterNode| {
        let grpc_address = first.grpc_address.replace("http://", "https://");
        RegisterNode { grpc_address, ..node }
    };
    let elsewhere = new_node();
    let made = store.register_node(&elsewhere).await.expect("register");
    let refused = async |node: RegisterNode| {
        let refused = store.register_node(&node).await;
        assert!(matches!(refused, Err(Error::AddressTaken)), "{refused:?}");
    };
    refused(at_its(new_node())).await;
    refused(at_its(elsewhere.clone())).await;
    assert_eq!(node(store, elsewhere.id).await, Some(made), "it is where it was");
    store.register_node(&at_its(first.clone())).await.expect("it is there itself");
    let beside = first.grpc_address.replace(":50051", ":50052");
    store.register_node(&RegisterNode { grpc_address: beside, ..new_node() }).await.expect("another port");
    step(store, id, Online, Offline).await;
    step(store, id, Offline, Recovering).await;
    refused(at_its(new_node())).await;
    step(store, id, Recovering, Offline).await;
    let heir = at_its(new_node());
    let heir_id = store.register_node(&heir).await.expect("nobody is heard there").id;
    assert_eq!(store.register_node(&first).await.expect("it was there before").status, Recovering);
    refused(at_its(new_node())).await;
    for draining in [id, heir_id] {
        assert!(store.drain_node(draining, true).await.expect("drain"));
    }
    store.register_node(&at_its(new_node())).await.expect("those who are there leave");
}

/// Whoever comes first.
pub async fn of_many_at_one_address_one_is_known(store: &dyn MetadataStore) {
    let many: Vec<RegisterNode> = (0..8)
        .map(|_| RegisterNode { grpc_address: "http://203.0.113.7:50051".to_owned(), ..new_node() })
        .collect();
    let answers = futures::future::join_all(many.iter().map(|node| store.register_node(node))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(Error::AddressTaken))), "{answers:?}");
    assert_eq!(store.nodes().await.expect("list nodes").len(), 1);
}

/// Those that are forgotten are none; those that are known stay so, and other operators have their own.
pub async fn an_operator_has_so_many_nodes(store: &dyn MetadataStore) {
    let of =
        |operator: &str| RegisterNode { operator: operator.to_owned(), nodes_max: Some(2), ..new_node() };
    let refused = async |node: &RegisterNode| {
        let refused = store.register_node(node).await;
        assert!(matches!(refused, Err(Error::TooManyNodes { max: 2 })), "{refused:?}");
    };
    let (first, second, third) = (of("one"), of("one"), of("one"));
    for node in [&first, &second] {
        store.register_node(node).await.expect("register");
    }
    refused(&third).await;
    assert_eq!(node(store, third.id).await, None);
    let theirs = of("another");
    store.register_node(&theirs).await.expect("another operator");
    refused(&RegisterNode { operator: "one".to_owned(), ..theirs.clone() }).await;
    assert_eq!(node(store, theirs.id).await.map(|node| node.operator), Some("another".to_owned()));
    // As before the limit was lowered.
    let more = RegisterNode { nodes_max: None, ..of("one") };
    store.register_node(&more).await.expect("without a limit");
    for node in [&first, &RegisterNode { nodes_max: Some(2), ..more.clone() }] {
        store.register_node(node).await.expect("it was there");
    }
    // Silent ones count until they are forgotten.
    for gone in [more.id, first.id] {
        step(store, gone, Online, Offline).await;
        step(store, gone, Offline, Draining).await;
        refused(&third).await;
        store.remove_node(gone).await.expect("remove");
    }
    store.register_node(&third).await.expect("there is room");
}

/// However many come together.
pub async fn of_many_nodes_at_once_so_many_are_an_operator_s(store: &dyn MetadataStore) {
    let many: Vec<RegisterNode> = (0..8).map(|_| RegisterNode { nodes_max: Some(3), ..new_node() }).collect();
    let answers = futures::future::join_all(many.iter().map(|node| store.register_node(node))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 3);
    let fits = |answer: &Result<Node, Error>| matches!(answer, Ok(_) | Err(Error::TooManyNodes { max: 3 }));
    assert!(answers.iter().all(fits), "{answers:?}");
    assert_eq!(store.nodes().await.expect("list nodes").len(), 3);
}

/// From offline as from draining; one that is online or recovering stays so.
pub async fn a_node_that_comes_back_is_recovering(store: &dyn MetadataStore) {
    let new = new_node();
    let id = store.register_node(&new).await.expect("register").id;
    step(store, id, Online, Offline).await;
    assert_eq!(store.register_node(&new).await.expect("register").status, Recovering);
    assert_eq!(store.register_node(&new).await.expect("register").status, Recovering);
    step(store, id, Recovering, Online).await;
    assert_eq!(store.register_node(&new).await.expect("register").status, Online);
    step(store, id, Online, Offline).await;
    step(store, id, Offline, Draining).await;
    let back = store.register_node(&new).await.expect("register");
    assert_eq!((back.id, back.status), (id, Recovering));
}

/// Until that is taken back, whatever the node does meanwhile.
pub async fn a_drain_that_was_asked_for_goes_on(store: &dyn MetadataStore) {
    let new = new_node();
    let id = store.register_node(&new).await.expect("register").id;
    // From every status, also from the drain of who was away.
    let paths: [&[(NodeStatus, NodeStatus)]; 4] = [
        &[],
        &[(Online, Offline)],
        &[(Online, Offline), (Offline, Draining)],
        &[(Online, Offline), (Offline, Recovering)],
    ];
    for path in paths {
        for (from, to) in path {
            step(store, id, *from, *to).await;
        }
        assert!(store.drain_node(id, true).await.expect("drain"), "{path:?}");
        assert!(!store.drain_node(id, true).await.expect("it does already"));
        for _ in 0..2 {
            let now = store.register_node(&new).await.expect("register");
            assert_eq!((now.status, now.first_offline_at), (Draining, None), "{path:?}");
        }
        assert!(store.drain_node(id, false).await.expect("no longer"));
        assert!(!store.drain_node(id, false).await.expect("it does not"));
        assert_eq!(node(store, id).await.map(|node| node.status), Some(Recovering));
        step(store, id, Recovering, Online).await;
    }
    step(store, id, Online, Offline).await;
    step(store, id, Offline, Draining).await;
    assert!(!store.drain_node(id, false).await.expect("it drains for its absence"));
    for wanted in [true, false] {
        let unknown = store.drain_node(fresh(), wanted).await;
        assert!(matches!(unknown, Err(Error::NoSuchNode)), "{unknown:?}");
    }
}

/// And what they report is kept, by the database's clock; they change no status.
pub async fn heartbeats_tell_who_is_known(store: &dyn MetadataStore) {
    let ids = online_nodes(store, 2).await;
    step(store, ids[1], Online, Offline).await;
    let beat = |node: NodeId, used: u64| NodeHeartbeat {
        node,
        storage_used: ByteCount::bytes(used),
        storage_available: ByteCount::bytes(1000 - used),
        cpu_usage: 12.5,
        memory_usage: f64::NAN,
        active_connections: 7,
        maintenance: used == 1,
        read_only: used == 2,
    };
    let before = node(store, ids[0]).await.expect("known");
    let beats = [beat(ids[0], 1), beat(fresh(), 5), beat(ids[1], 2)];
    let heard = store.record_heartbeats(&beats).await.expect("record");
    let (first, second) = (heard[0].expect("known"), heard[2].expect("known"));
    assert_eq!((heard.len(), heard[1]), (3, None));
    assert_eq!((first.status, first.incarnation, second.status), (Online, before.incarnation, Offline));
    assert!(first.now >= before.last_heartbeat);
    assert!(store.record_heartbeats(&[]).await.expect("record none").is_empty());
    let first = node(store, ids[0]).await.expect("known");
    assert_eq!((first.storage_used, first.storage_available), (ByteCount::bytes(1), ByteCount::bytes(999)));
    assert_eq!((first.maintenance, first.read_only, first.status), (true, false, Online));
    assert_eq!((first.cpu_usage, first.active_connections), (13, 7));
    assert!(first.last_heartbeat >= before.last_heartbeat);
    assert_eq!(first.status_changed_at, before.status_changed_at);
    let second = node(store, ids[1]).await.expect("known");
    assert_eq!((second.maintenance, second.read_only, second.status), (false, true, Offline));
}

/// Of many who see the same and act, one does.
pub async fn a_step_from_elsewhere_is_stale(store: &dyn MetadataStore) {
    let id = online_nodes(store, 1).await[0];
    let away = NodeStep { node: id, from: Online, to: Offline };
    let answers = futures::future::join_all((0..8).map(|_| store.step_node(&away))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(()) | Err(Error::Stale { .. }))), "{answers:?}");
    assert_eq!(node(store, id).await.expect("known").failure_count, 1);
}

/// The silence begins with the first step and ends when the node is online.
pub async fn going_offline_is_counted(store: &dyn MetadataStore) {
    let id = online_nodes(store, 1).await[0];
    let registered = node(store, id).await.expect("known");
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    step(store, id, Online, Offline).await;
    let offline = node(store, id).await.expect("known");
    assert_eq!((offline.status, offline.failure_count), (Offline, 1));
    assert!(offline.status_changed_at > registered.status_changed_at);
    let since = offline.first_offline_at.expect("silent");
    assert!(since > registered.status_changed_at);
    step(store, id, Offline, Draining).await;
    assert_eq!(node(store, id).await.expect("known").first_offline_at, Some(since));
    step(store, id, Draining, Recovering).await;
    step(store, id, Recovering, Online).await;
    let back = node(store, id).await.expect("known");
    assert_eq!((back.status, back.failure_count, back.first_offline_at), (Online, 1, None));
    step(store, id, Online, Offline).await;
    let again = node(store, id).await.expect("known");
    assert_eq!((again.failure_count, again.first_offline_at.is_some()), (2, true));
}

/// The pause may end with the absence, or go on for long: it is lived through as any absence is, and held against nobody.
pub async fn a_planned_pause_is_no_failure(store: &dyn MetadataStore) {
    let id = online_nodes(store, 1).await[0];
    let beat = async |maintenance| {
        let beat = NodeHeartbeat {
            node: id,
            storage_used: ByteCount::ZERO,
            storage_available: ByteCount::gib(1),
            cpu_usage: 1.0,
            memory_usage: 1.0,
            active_connections: 0,
            maintenance,
            read_only: false,
        };
        assert!(store.record_heartbeats(&[beat]).await.expect("record")[0].is_some());
    };
    beat(true).await;
    step(store, id, Online, Offline).await;
    let away = node(store, id).await.expect("known");
    assert_eq!((away.status, away.failure_count, away.maintenance), (Offline, 0, true));
    assert!(away.first_offline_at.is_some());
    step(store, id, Offline, Draining).await;
    step(store, id, Draining, Recovering).await;
    step(store, id, Recovering, Offline).await;
    assert_eq!(node(store, id).await.expect("known").failure_count, 0);
    step(store, id, Offline, Recovering).await;
    beat(false).await;
    step(store, id, Recovering, Offline).await;
    assert_eq!(node(store, id).await.expect("known").failure_count, 1, "the pause was over");
}

/// A node whose data directory began anew after it signed a receipt may not hold it any more, and nobody may look a second time:
/// a commit counts such a receipt as it counts one of a node that was removed. It promises what the others survive, with those
/// that are silent and may come back, and is refused where that is less than is asked for.
pub async fn what_a_former_life_stored_keeps_no_promise(store: &dyn MetadataStore) {
    let place = place(store).await;
    let mut nodes = Vec::new();
    for _ in 0..5 {
        nodes.push(new_node());
        store.register_node(nodes.last().expect("there")).await.expect("register");
    }
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let begin_anew = async |node: &RegisterNode| {
        let anew = RegisterNode { incarnation: Uuid::new_v4(), ..node.clone() };
        store.register_node(&anew).await.expect("register");
    };
    // Answers with what was promised, who is recorded to hold a shard, and what there is to repair by urgency.
    let commit = async |name: &str, ack_tolerance: u8| {
        let whole = place.striped(Geometry::coded(3, 2).expect("valid"), 1, &ids);
        let mut segment = NewSegment { ack_tolerance, acked_tolerance: 2, target_tolerance: 2, ..whole };
        let SegmentBody::Stripes(stripes) = &mut segment.body else { panic!("made of stripes") };
        stripes[0].tolerance = 2;
        store.commit_object(&place.commit(name, Content::New(segment.clone()))).await?;
        let layout = store.object_layout(place.bucket, &key(name), None).await?.expect("is there");
        let held = state(store, at(&segment, 0)).await.expect("live").locations;
        let held: Vec<NodeId> = held.iter().map(|at| at.node).collect();
        let jobs = store.claim_repairs(i32::MAX, 10, LONG).await?;
        let owed: Vec<i32> = jobs.iter().map(|job| job.priority).collect();
        Ok::<_, Error>((layout.extents[0].segment.acked_tolerance, held, owed))
    };
    let is_refused = async |name: &str, ack_tolerance: u8| {
        let refused = commit(name, ack_tolerance).await;
        assert!(matches!(refused, Err(Error::Stale { .. })), "{refused:?}");
        assert_eq!(place.get(store, name).await, None);
    };
    assert_eq!(commit("all", 2).await.expect("all are there"), (2, ids.clone(), vec![]));
    step(store, ids[4], Online, Offline).await;
    assert_eq!(commit("silent", 2).await.expect("one is silent"), (2, ids.clone(), vec![1]));
    step(store, ids[4], Offline, Recovering).await;
    step(store, ids[4], Recovering, Online).await;
    begin_anew(&nodes[0]).await;
    is_refused("safe", 2).await;
    assert_eq!(commit("less", 1).await.expect("four are left"), (1, ids[1..].to_vec(), vec![1]));
    begin_anew(&nodes[1]).await;
    is_refused("less safe", 1).await;
    assert_eq!(commit("least", 0).await.expect("three are left"), (0, ids[2..].to_vec(), vec![0]));
    begin_anew(&nodes[2]).await;
    is_refused("gone", 0).await;
}

/// With it go its locations, and only its.
pub async fn only_a_draining_node_can_be_removed(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 3).await;
    let segment = place.striped(Geometry::copied(3).expect("valid"), 2, &nodes);
    store.commit_object(&place.commit("k", Content::New(segment.clone()))).await.expect("commit");
    for from in [Online, Offline] {
        let refused = store.remove_node(nodes[0]).await;
        assert!(matches!(refused, Err(Error::Stale { .. })), "{refused:?}");
        step(store, nodes[0], from, if from == Online { Offline } else { Draining }).await;
    }
    assert_eq!(stripes(store, &segment, 0..2).await, expected(&segment));
    assert!(store.holds_chunks(nodes[0]).await.expect("look"));
    store.remove_node(nodes[0]).await.expect("remove");
    assert!(!store.holds_chunks(nodes[0]).await.expect("look"));
    assert_eq!(node(store, nodes[0]).await, None);
    let mut left = expected(&segment);
    for shard in left.iter_mut().flat_map(|stripe| &mut stripe.shards) {
        shard.nodes.retain(|node| *node != nodes[0]);
        assert_eq!(shard.nodes.len(), 2);
    }
    assert_eq!(stripes(store, &segment, 0..2).await, left);
}

/// Reported once or often, missing or corrupt, it is listed no more; others are.
pub async fn a_bad_location_is_not_read_again(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = place.striped(Geometry::coded(3, 2).expect("valid"), 2, &nodes);
    store.commit_object(&place.commit("k", Content::New(segment.clone()))).await.expect("commit");
    let mut left = expected(&segment);
    let bad = |stripe: u32, shard: usize, fault| BadLocation {
        segment: segment.id,
        stripe,
        shard: segment.geometry.shard(shard).expect("exists"),
        node: nodes[shard],
        fault,
    };
    let bad = [bad(0, 1, Fault::Missing), bad(1, 4, Fault::Corrupt)];
    let nowhere = [
        BadLocation { node: nodes[0], ..bad[0].clone() },
        BadLocation { segment: fresh(), ..bad[0].clone() },
    ];
    for _ in 0..3 {
        store.report_bad_locations(&bad).await.expect("report");
        store.report_bad_locations(&nowhere).await.expect("report what is not there");
    }
    left[0].shards[1].nodes.clear();
    left[1].shards[4].nodes.clear();
    assert_eq!(stripes(store, &segment, 0..2).await, left);
}

/// In every segment that names them on that node, and on no other node.
pub async fn corrupt_chunks_are_marked_wherever_they_are(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 2).await;
    let first = place.striped(Geometry::copied(2).expect("valid"), 1, &nodes);
    let mut second = first.clone();
    second.id = fresh();
    for (name, segment) in [("a", &first), ("b", &second)] {
        store.commit_object(&place.commit(name, Content::New(segment.clone()))).await.expect("commit");
    }
    let SegmentBody::Stripes(made) = &first.body else { panic!("made of stripes") };
    let chunks = [made[0].shards[0].chunk, cyxcloud_core::ChunkId::of(b"unknown")];
    assert_eq!(store.report_corrupt_chunks(nodes[0], &chunks).await.expect("report"), 2);
    assert_eq!(store.report_corrupt_chunks(nodes[0], &chunks).await.expect("report again"), 0);
    for segment in [&first, &second] {
        assert_eq!(stripes(store, segment, 0..1).await[0].shards[0].nodes, [nodes[1]]);
    }
}

/// Whatever state they are in, and whether they are heard or not; then they come back. Who drains for another reason goes on
/// draining, and other operators' nodes are none the wiser.
pub async fn nodes_of_a_suspended_operator_drain_until_it_is_lifted(store: &dyn MetadataStore) {
    let mut ids = Vec::new();
    for operator in ["bad", "bad", "bad", "good"] {
        let new = RegisterNode { operator: operator.to_owned(), ..new_node() };
        ids.push(store.register_node(&new).await.expect("register").id);
    }
    let status = async |index: usize| node(store, ids[index]).await.expect("is there").status;
    // The second is away, and drains for it; the third was told to.
    step(store, ids[1], Online, Offline).await;
    step(store, ids[1], Offline, Draining).await;
    step(store, ids[2], Online, Draining).await;
    let suspend = async |operator: &str, suspended| {
        let mut nodes = store.suspend_nodes(&[operator.to_owned()], suspended).await.expect("asked");
        nodes.sort_by_key(|id| id.as_uuid());
        nodes
    };
    let sorted = |mut ids: Vec<NodeId>| {
        ids.sort_by_key(|id| id.as_uuid());
        ids
    };
    assert_eq!(suspend("bad", false).await, []);
    assert_eq!(suspend("bad", true).await, sorted(vec![ids[0], ids[1]]));
    for index in 0..3 {
        assert_eq!(status(index).await, Draining, "{index}");
    }
    let absent = node(store, ids[1]).await.expect("is there").first_offline_at;
    assert_eq!(absent, None, "being heard does not bring it back");
    assert_eq!(suspend("bad", true).await, [], "once is enough");
    assert_eq!(suspend("bad", false).await, sorted(vec![ids[0], ids[1]]));
    assert_eq!((status(0).await, status(1).await), (Recovering, Recovering));
    assert_eq!((status(2).await, status(3).await), (Draining, Online));
    assert_eq!(suspend("bad", false).await, []);
}

/// It stays that operator's, and drains, until that is lifted, whatever is thought of others.
pub async fn a_suspended_node_goes_to_no_other_operator(store: &dyn MetadataStore) {
    let new = RegisterNode { operator: "bad".to_owned(), nodes_max: Some(9), ..new_node() };
    let of = |operator: &str| RegisterNode { operator: operator.to_owned(), ..new.clone() };
    let id = store.register_node(&new).await.expect("register").id;
    let suspend = async |operator: &str, suspended| {
        store.suspend_nodes(&[operator.to_owned()], suspended).await.expect("asked")
    };
    assert_eq!(suspend("bad", true).await, [id]);
    let suspended = node(store, id).await.expect("is there");
    for operator in ["good", ""] {
        let refused = store.register_node(&of(operator)).await;
        assert!(matches!(refused, Err(Error::NodeSuspended)), "{refused:?}");
        assert_eq!(suspend(operator, false).await, []);
        assert_eq!(node(store, id).await.as_ref(), Some(&suspended));
    }
    assert_eq!(store.register_node(&new).await.expect("it is known").status, Draining);
    assert_eq!(suspend("bad", false).await, [id]);
    let moved = store.register_node(&of("good")).await.expect("it is free to go");
    assert_eq!((moved.id, moved.status, moved.operator.as_str()), (id, Recovering, "good"));
    // Where nobody is asked who runs it, nobody could lift it.
    assert_eq!(suspend("good", true).await, [id]);
    let unasked = RegisterNode { nodes_max: None, ..of("its own word") };
    assert_eq!(store.register_node(&unasked).await.expect("it may come").operator, "its own word");
}

/// A suspension leaves such a node as it is, so nothing would hold it back.
pub async fn a_node_that_is_drained_stays_with_its_account(store: &dyn MetadataStore) {
    let account = |n: u8| OwnerId::from_random([n; 16]).to_string();
    let new = RegisterNode { operator: account(1), nodes_max: Some(9), ..new_node() };
    let other = RegisterNode { operator: account(2), ..new.clone() };
    let id = store.register_node(&new).await.expect("register").id;
    assert!(store.drain_node(id, true).await.expect("drain"));
    let refused = store.register_node(&other).await;
    assert!(matches!(refused, Err(Error::NodeSuspended)), "{refused:?}");
    assert!(store.drain_node(id, false).await.expect("resume"));
    assert_eq!(store.register_node(&other).await.expect("it is free to go").operator, account(2));
}
