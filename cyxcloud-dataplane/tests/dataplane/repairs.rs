//! What a repair promises, whatever those do that it takes shards from.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cyxcloud_core::{ChunkId, NodeId, ShardIndex};
use cyxcloud_dataplane::{Config, Repaired};
use cyxcloud_metadata::upkeep::model::{StripeRef, StripeState};
use futures::future::join_all;

use crate::cluster::{Cluster, STRIPE, quick, random};
use crate::fake::{FakeNode, Fault};

/// After so long a call that is not answered is given up.
const TIMEOUT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(600);

/// Nobody is late before it is given up, so that nobody is asked in another's place.
fn unhurried() -> Config {
    Config { read_timeout: TIMEOUT, late_fetch: (LONG, LONG), penalty: (LONG, LONG), ..quick() }
}

/// A stripe, one of its shards, who holds it, and nodes that hold nothing of the stripe.
struct Scene {
    cluster: Cluster,
    state: StripeState,
    shard: ShardIndex,
    holder: usize,
    idle: Vec<NodeId>,
}

impl Scene {
    /// Sixteen nodes, of which one that holds a parity shard is looked at: readers ask for others first.
    async fn parity(config: Config) -> Self {
        Self::of(Cluster::with(16, config).await, STRIPE, |shard| shard >= 10).await
    }

    async fn of(cluster: Cluster, len: usize, pass: impl Fn(usize) -> bool) -> Self {
        let extents = cluster.put(&random(len, 1)).await;
        let stripe = StripeRef { segment: extents[0].segment.id, index: 0 };
        let states = cluster.metadata.stripe_states(&[stripe]).await.expect("look up");
        let state = states.into_iter().next().expect("it was committed");
        let at = state.locations.iter().find(|at| pass(at.shard.get())).expect("was stored");
        let (shard, node) = (at.shard, at.node);
        let holder = cluster.nodes.iter().position(|at| at.id == node).expect("one of ours");
        let holds = |id: &NodeId| state.locations.iter().any(|at| at.node == *id);
        let idle = cluster.nodes.iter().map(|node| node.id).filter(|id| !holds(id)).collect();
        Self { cluster, state, shard, holder, idle }
    }

    fn holder(&self) -> &FakeNode {
        &self.cluster.nodes[self.holder]
    }

    /// Calls that its holder was sent.
    fn calls(&self) -> u64 {
        self.holder().counts().calls.load(Ordering::SeqCst)
    }

    /// Makes the shard on a node that holds nothing, once more if it was made there before.
    async fn repair(&self) -> Repaired {
        let wanted = [(self.shard, self.idle[0])];
        let made = self.cluster.plane.repair(&self.state, &self.cluster.secret, &wanted).await;
        let made = made.expect("made");
        assert_eq!((made.added.len(), made.failed.len()), (1, 0), "{made:?}");
        made
    }

    /// Has it be known that these nodes refuse what they are asked for.
    async fn refusing(&self, nodes: impl IntoIterator<Item = NodeId>) {
        for id in nodes {
            let node = self.cluster.nodes.iter().find(|node| node.id == id).expect("one of ours");
            node.fault(Fault::Refuse);
            let asked = self.cluster.plane.nodes().has_chunk(id, ChunkId::of(b"anything")).await;
            asked.expect_err("it refuses");
        }
    }
}

fn how(made: &Repaired) -> (usize, usize, usize) {
    (made.pushed, made.copied, made.rebuilt)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_goes_from_who_holds_it_to_where_it_is_wanted() {
    let scene = Scene::parity(unhurried()).await;
    let made = scene.repair().await;
    assert_eq!((how(&made), made.sources), ((1, 0, 0), vec![scene.holder().id]));
    // Who answers and does not send it on may not reach the other: it is asked to hand it over.
    scene.holder().fault(Fault::Refuse);
    let before = scene.calls();
    assert_eq!((how(&scene.repair().await), scene.calls() - before), ((0, 0, 1), 2));
    assert_eq!((how(&scene.repair().await), scene.calls() - before), ((0, 0, 1), 2));
}

/// As of a node that sends heartbeats and answers nothing, when it is emptied: the first stripe waits for it, no other does.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_waited_for_once() {
    let scene = Scene::parity(unhurried()).await;
    scene.holder().fault(Fault::Hang);
    let (before, began) = (scene.calls(), Instant::now());
    assert_eq!(how(&scene.repair().await), (0, 0, 1));
    assert!(began.elapsed() >= TIMEOUT);
    assert_eq!(scene.calls(), before + 1, "it was not asked to hand over what it did not send on");
    for _ in 0..8 {
        assert_eq!(how(&scene.repair().await), (0, 0, 1));
    }
    assert_eq!(scene.calls(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stripe_at_a_time_finds_out_whether_a_node_is_well_again() {
    let soon = Duration::from_millis(500);
    let scene = Scene::parity(Config { penalty: (soon, soon), ..unhurried() }).await;
    scene.holder().fault(Fault::Hang);
    scene.repair().await;
    let before = scene.calls();
    tokio::time::sleep(soon * 2).await;
    for made in join_all((0..4).map(|_| scene.repair())).await {
        assert_eq!(how(&made), (0, 0, 1));
    }
    assert_eq!(scene.calls(), before + 1, "by one of four");
    scene.holder().fault(Fault::None);
    tokio::time::sleep(soon * 2).await;
    assert_eq!(how(&scene.repair().await), (0, 1, 0), "it hands over what it holds");
    assert_eq!(how(&scene.repair().await), (1, 0, 0), "and sends it on from then on");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_failed_is_asked_where_the_others_do_not_suffice() {
    let scene = Scene::parity(unhurried()).await;
    scene.refusing([scene.holder().id]).await;
    scene.holder().fault(Fault::None);
    assert_eq!(how(&scene.repair().await), (0, 0, 1), "the others do");
    // Eight are left.
    let others = scene.state.locations.iter().map(|at| at.node).filter(|id| *id != scene.holder().id);
    scene.refusing(others.take(5)).await;
    assert_eq!(how(&scene.repair().await), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_comes_from_who_is_well() {
    let scene = Scene::of(Cluster::with(6, unhurried()).await, 70_000, |_| true).await;
    scene.refusing([scene.holder().id]).await;
    let before = scene.calls();
    for _ in 0..8 {
        let made = scene.repair().await;
        assert_eq!((how(&made), made.sources.contains(&scene.holder().id)), ((1, 0, 0), false));
    }
    assert_eq!(scene.calls(), before);
}

/// An operator drains it because it is dead. (None of these nodes sends a heartbeat; only of one that drains does that say anything.)
#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_be_emptied_and_silent_is_not_asked() {
    for (offline, made) in [(LONG, (1, 0, 0)), (Duration::from_millis(100), (0, 0, 1))] {
        let config = Config { offline, ..unhurried() };
        let scene = Scene::of(Cluster::with(16, config).await, STRIPE, |shard| shard == 0).await;
        scene.cluster.metadata.drain_node(scene.holder().id, true).await.expect("drain");
        tokio::time::sleep(Duration::from_millis(200)).await;
        scene.cluster.plane.refresh_nodes().await.expect("look up the nodes");
        let before = scene.calls();
        assert_eq!(how(&scene.repair().await), made);
        assert_eq!(scene.calls() > before, made.0 > 0);
    }
}
