use std::collections::HashSet;
use std::time::Duration;

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ByteCount, Generation, Geometry, NodeId, Timestamp};
use cyxcloud_metadata::conformance::samples;
use cyxcloud_metadata::model::Node;
use cyxcloud_metadata::upkeep::model::{LocationState, LocationStatus, StripeState};
use uuid::Uuid;

use super::{Condition, judge, summarize, there};

fn node_id(n: u8) -> NodeId {
    NodeId::from_random([n; 16])
}

/// Fourteen nodes, last heard at the beginning of time.
fn all(status: impl Fn(u8) -> NodeStatus) -> Vec<Node> {
    (0..14).map(|n| samples::node(n, status(n))).collect()
}

const OFFLINE: Duration = Duration::from_secs(300);

fn nodes(offline: &[u8]) -> HashSet<NodeId> {
    let status = |n| if offline.contains(&n) { NodeStatus::Offline } else { NodeStatus::Online };
    there(&all(status), Timestamp::default(), OFFLINE)
}

/// Nodes that have long been away, such as are to be emptied, and such as are to be emptied and do not answer.
#[test]
fn who_drains_and_is_silent_is_not_there() {
    let health = |absent: bool, silence: Duration| {
        let mut nodes = all(|_| NodeStatus::Online);
        for node in &mut nodes[..5] {
            node.status = NodeStatus::Draining;
            node.first_offline_at = absent.then(|| Timestamp::from_unix_millis(0));
        }
        judge(&stripe(|_| None), &there(&nodes, Timestamp::default().plus(silence), OFFLINE))
    };
    let second = Duration::from_secs(1);
    for gone in [health(true, second), health(false, OFFLINE)] {
        assert_eq!((gone.present, gone.tolerates), (9, None), "{gone:?}");
    }
    for leaving in [health(false, second), health(false, OFFLINE - second)] {
        assert_eq!((leaving.present, leaving.tolerates), (14, Some(4)), "{leaving:?}");
    }
}

/// Shard `i` of 10+4 on node `i`, proven at `proven[i]` minutes.
fn stripe(proven: impl Fn(u8) -> Option<i64>) -> StripeState {
    let geometry = Geometry::coded(10, 4).expect("a geometry");
    StripeState {
        locations: geometry
            .indices()
            .zip(0u8..)
            .map(|(shard, n)| LocationState {
                shard,
                node: node_id(n),
                generation: Generation { incarnation: Uuid::nil(), counter: 1 },
                status: LocationStatus::Stored,
                proven_at: proven(n).map(|minutes| Timestamp::from_unix_millis(minutes * 60_000)),
            })
            .collect(),
        ..samples::stripe(geometry, ByteCount::kib(420))
    }
}

#[test]
fn all_shards_on_nodes_that_answer_are_healthy() {
    let health = judge(&stripe(|_| None), &nodes(&[]));
    assert_eq!((health.present, health.wanted, health.tolerates), (14, 14, Some(4)));
    assert_eq!(health.condition, Condition::Healthy);
    assert_eq!(health.proven_at, None);
}

#[test]
fn each_absent_node_takes_one_loss_away() {
    for (gone, tolerates, condition) in [
        (1u8, Some(3), Condition::Degraded),
        (3, Some(1), Condition::Degraded),
        (4, Some(0), Condition::AtRisk),
        (5, None, Condition::Unreadable),
    ] {
        let health = judge(&stripe(|_| None), &nodes(&(0..gone).collect::<Vec<_>>()));
        assert_eq!((health.tolerates, health.condition), (tolerates, condition), "{gone} gone");
        assert_eq!(health.present, 14 - usize::from(gone));
    }
}

#[test]
fn what_is_lost_or_corrupt_or_on_a_forgotten_node_is_not_present() {
    let mut stripe = stripe(|_| None);
    stripe.locations[0].status = LocationStatus::Missing;
    stripe.locations[1].status = LocationStatus::Corrupt;
    let mut nodes = nodes(&[]);
    nodes.remove(&node_id(2));
    assert_eq!(judge(&stripe, &nodes).present, 11);
}

/// Ten proofs make it readable; the tenth newest says since when that is known.
#[test]
fn readability_is_proven_by_as_many_shards_as_reading_takes() {
    let proven = |known: u8| judge(&stripe(|n| (n < known).then_some(i64::from(n))), &nodes(&[])).proven_at;
    assert_eq!(proven(9), None);
    assert_eq!(proven(10), Some(Timestamp::from_unix_millis(0)));
    assert_eq!(proven(12), Some(Timestamp::from_unix_millis(2 * 60_000)));
}

#[test]
fn an_object_is_as_healthy_as_its_worst_stripe() {
    let good = stripe(|_| Some(5));
    let mut bad = stripe(|_| Some(3));
    bad.locations.truncate(11);
    let health = summarize(&[good.clone(), bad, good], 3, &nodes(&[]));
    assert_eq!(health.condition, Condition::Degraded);
    assert_eq!(health.worst.map(|worst| (worst.present, worst.tolerates)), Some((11, Some(1))));
    assert_eq!((health.short, health.looked_at, health.stripes), (1, 3, 3));
    assert_eq!(health.proven_at, Some(Timestamp::from_unix_millis(3 * 60_000)));
    let inline = summarize(&[], 0, &nodes(&[]));
    assert_eq!((inline.condition, inline.worst), (Condition::Healthy, None));
}
