//! The nodes as background work sees them, looked up anew when what is known is old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cyxcloud_core::placement::Candidate;
use cyxcloud_core::repair::{self, Operators, Plan, Presence, RepairPolicy, Stripe, Urgency};
use cyxcloud_core::{NodeId, Timestamp};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::Node;
use cyxcloud_metadata::upkeep::model::{NewRepair, StripeState};

/// A look older than this is renewed before it is used.
const AGE_MAX: Duration = Duration::from_secs(1);

/// All nodes at one moment.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: HashMap<NodeId, Node>,
    pub(crate) candidates: Vec<Candidate>,
    operators: Operators,
    /// More nodes vanished together than is believable.
    pub(crate) braked: bool,
    /// How busy the nodes are that are here, on average.
    pub(crate) load: Load,
    /// By the database's clock.
    pub(crate) now: Timestamp,
    limits: Limits,
}

impl Cluster {
    fn new(nodes: Vec<Node>, candidates: Vec<Candidate>, now: Timestamp, limits: Limits) -> Self {
        let presence = |node: &Node| node.facts(now, limits.offline).presence();
        let away: Vec<Timestamp> =
            nodes.iter().filter(|node| presence(node) == Presence::Away).map(away_since).collect();
        let braked = repair::brake(nodes.len(), &away, limits.window);
        let load = Load::mean(nodes.iter().filter(|node| presence(node) == Presence::Here));
        let operators = nodes.iter().map(|node| (node.id, node.operator.as_str())).collect();
        let nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
        Self { nodes, candidates, operators, braked, load, now, limits }
    }

    /// How much a node's copies count.
    pub(crate) fn presence(&self, node: NodeId) -> Presence {
        let facts = |node: &Node| node.facts(self.now, self.limits.offline);
        self.nodes.get(&node).map_or(Presence::Lost, |node| facts(node).presence())
    }

    /// What a stripe needs, and when.
    pub(crate) fn judge(&self, state: &StripeState, delay: Duration) -> (Plan, Urgency) {
        let locations: Vec<_> =
            state.locations.iter().map(|at| (at.shard, at.node, at.status.belief())).collect();
        let stripe = self.stripe(state, &locations);
        let plan = repair::plan(&stripe, |node| self.presence(node), &self.candidates, &mut rand::rng());
        let absences = plan.health.away.iter().filter_map(|(_, node)| self.nodes.get(node));
        let away_for = absences.map(|node| self.now.since(away_since(node))).max().unwrap_or_default();
        let policy = RepairPolicy { delay, braked: self.braked };
        let urgency = plan.urgency(away_for, &policy);
        (plan, urgency)
    }

    /// The repair to queue for a stripe, if it needs one, now or later.
    pub(crate) fn repair_of(&self, state: &StripeState, delay: Duration, reason: &str) -> Option<NewRepair> {
        let (priority, delay) = match self.judge(state, delay).1 {
            Urgency::Now { priority } => (priority, Duration::ZERO),
            Urgency::After { priority, delay } => (priority, delay),
            Urgency::Whole | Urgency::Waits => return None,
        };
        Some(NewRepair { stripe: state.stripe, priority, delay, reason: reason.to_owned() })
    }

    /// As planners see a stripe.
    pub(crate) fn stripe<'a>(
        &'a self,
        state: &StripeState,
        locations: &'a [(cyxcloud_core::ShardIndex, NodeId, repair::Belief)],
    ) -> Stripe<'a> {
        let recorded = Stripe {
            geometry: state.geometry,
            target_tolerance: state.target_tolerance,
            chunk_len: state.chunk_len(),
            locations,
            operators: &self.operators,
        };
        recorded.with_copies(self.limits.min_copies)
    }
}

/// What operators decide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Within what time nodes that vanish vanish together.
    pub(crate) window: Duration,
    /// Copies at least of what is kept as copies.
    pub(crate) min_copies: u8,
    /// Silence after which a node is offline: one that is to be emptied is not waited for from then on.
    pub(crate) offline: Duration,
}

/// How busy a node is, or many are on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Processor use in percent.
    cpu_usage: u8,
    /// Requests being served.
    requests: u64,
}

impl Load {
    pub(crate) fn of(node: &Node) -> Self {
        Self { cpu_usage: node.cpu_usage, requests: node.active_connections }
    }

    /// Nothing of none.
    fn mean<'a>(nodes: impl Iterator<Item = &'a Node>) -> Self {
        let (mut cpu, mut requests, mut count) = (0u64, 0u64, 0u64);
        for node in nodes {
            cpu += u64::from(node.cpu_usage);
            requests = requests.saturating_add(node.active_connections);
            count += 1;
        }
        Self { cpu_usage: u8::try_from(cpu / count.max(1)).unwrap_or(100), requests: requests / count.max(1) }
    }

    /// What it leaves of a budget for repairs.
    pub(crate) fn leaves(self) -> f64 {
        repair::part_of_budget(self.cpu_usage, self.requests)
    }
}

fn away_since(node: &Node) -> Timestamp {
    node.first_offline_at.unwrap_or(node.status_changed_at)
}

/// Looks at the nodes when asked, at most once a second.
#[derive(Debug)]
pub(crate) struct Watch {
    metadata: Arc<dyn MetadataStore>,
    plane: DataPlane,
    limits: Limits,
    seen: Mutex<Option<(Instant, Arc<Cluster>)>>,
}

impl Watch {
    pub(crate) fn new(metadata: Arc<dyn MetadataStore>, plane: DataPlane, limits: Limits) -> Self {
        Self { metadata, plane, limits, seen: Mutex::default() }
    }

    /// What is known is old: somebody changed it for a reason that whoever looks next must see.
    pub(crate) fn forget(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The nodes as they are now, give or take a second.
    pub(crate) async fn cluster(&self) -> cyxcloud_metadata::Result<Arc<Cluster>> {
        if let Some((at, cluster)) = &*self.seen.lock().unwrap_or_else(PoisonError::into_inner)
            && at.elapsed() < AGE_MAX
        {
            return Ok(cluster.clone());
        }
        self.plane.refresh_nodes().await?;
        let (nodes, now) = (self.metadata.nodes().await?, self.metadata.now().await?);
        let cluster = Arc::new(Cluster::new(nodes, self.plane.candidates().await?, now, self.limits));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), cluster.clone()));
        Ok(cluster)
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::node::NodeStatus;
    use cyxcloud_core::repair::SPREAD_PRIORITY;
    use cyxcloud_core::{ByteCount, Generation, Geometry};
    use cyxcloud_metadata::conformance::samples::{self, node};
    use cyxcloud_metadata::upkeep::model::{LocationState, LocationStatus};
    use uuid::Uuid;

    use super::*;

    fn id(number: u8) -> NodeId {
        NodeId::from_random([number; 16])
    }

    fn limits() -> Limits {
        Limits { window: Duration::from_secs(600), min_copies: 3, offline: Duration::from_secs(300) }
    }

    /// What only spreads a stripe is asked for like any repair, after all others.
    #[test]
    fn two_copies_of_one_operator_are_moved_apart_in_the_end() {
        let geometry = Geometry::copied(3).expect("is a geometry");
        let at = |number: u8| LocationState {
            shard: geometry.shard(0).expect("exists"),
            node: id(number),
            generation: Generation { incarnation: Uuid::nil(), counter: 1 },
            status: LocationStatus::Stored,
            proven_at: None,
        };
        let locations = (0..3).map(at).collect();
        let state = StripeState { locations, ..samples::stripe(geometry, ByteCount::bytes(9)) };
        let asked = |operators: [&str; 4]| {
            let run_by = |number: usize| Node {
                operator: operators[number].to_owned(),
                ..node(number as u8, NodeStatus::Online)
            };
            let nodes: Vec<Node> = (0..4).map(run_by).collect();
            let candidate = |node: &Node| Candidate {
                node: node.id,
                free: ByteCount::gib(1),
                operator: node.operator.clone(),
                subnet: String::new(),
                region: String::new(),
                weight_penalty: false,
                vetted: true,
            };
            let candidates = nodes.iter().map(candidate).collect();
            let cluster = Cluster::new(nodes, candidates, Timestamp::default(), limits());
            cluster.repair_of(&state, Duration::ZERO, "test").map(|repair| (repair.priority, repair.delay))
        };
        assert_eq!(asked(["ann", "ann", "bob", "eve"]), Some((SPREAD_PRIORITY, Duration::ZERO)));
        assert_eq!(asked(["ann", "ann", "bob", "bob"]), None);
        assert_eq!(asked(["ann", "", "bob", "eve"]), None);
    }

    /// And it stops no repairs: it was told to leave.
    #[test]
    fn who_is_to_be_emptied_is_not_waited_for_when_it_is_silent() {
        let seen = |status: fn(u8) -> NodeStatus, secs: u64| {
            let nodes = (0..4).map(|number| node(number, status(number))).collect();
            let now = Timestamp::default().plus(Duration::from_secs(secs));
            let cluster = Cluster::new(nodes, Vec::new(), now, limits());
            ([0, 1].map(|number| cluster.presence(id(number))), cluster.braked)
        };
        let drained = |number: u8| if number == 0 { NodeStatus::Online } else { NodeStatus::Draining };
        assert_eq!(seen(drained, 299), ([Presence::Here, Presence::Leaving], false));
        assert_eq!(seen(drained, 300), ([Presence::Here, Presence::Lost], false));
        let away = |number: u8| if number == 0 { NodeStatus::Online } else { NodeStatus::Offline };
        assert_eq!(seen(away, 300), ([Presence::Here, Presence::Away], true));
    }
}
