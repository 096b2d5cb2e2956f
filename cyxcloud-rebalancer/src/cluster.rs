//! The nodes as background work sees them, looked up anew when what is known is old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cyxcloud_core::placement::Candidate;
use cyxcloud_core::repair::{self, Plan, Presence, RepairPolicy, Stripe, Urgency};
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
    /// More nodes vanished together than is believable.
    pub(crate) braked: bool,
    /// How busy the nodes are that are here, on average.
    pub(crate) load: Load,
    /// By the database's clock.
    pub(crate) now: Timestamp,
    /// Of what is kept as copies.
    min_copies: u8,
}

impl Cluster {
    fn new(nodes: Vec<Node>, candidates: Vec<Candidate>, now: Timestamp, limits: Limits) -> Self {
        let away: Vec<Timestamp> =
            nodes.iter().filter(|node| node.facts().presence() == Presence::Away).map(away_since).collect();
        let braked = repair::brake(nodes.len(), &away, limits.window);
        let load = Load::mean(nodes.iter().filter(|node| node.facts().presence() == Presence::Here));
        let nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
        Self { nodes, candidates, braked, load, now, min_copies: limits.min_copies }
    }

    /// How much a node's copies count.
    pub(crate) fn presence(&self, node: NodeId) -> Presence {
        self.nodes.get(&node).map_or(Presence::Lost, |node| node.facts().presence())
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
        let surplus = !plan.removals.is_empty();
        let urgency = repair::urgency(&plan.health, plan.goal, surplus, away_for, &policy);
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
        &self,
        state: &StripeState,
        locations: &'a [(cyxcloud_core::ShardIndex, NodeId, repair::Belief)],
    ) -> Stripe<'a> {
        let recorded = Stripe {
            geometry: state.geometry,
            target_tolerance: state.target_tolerance,
            chunk_len: state.chunk_len(),
            locations,
        };
        recorded.with_copies(self.min_copies)
    }
}

/// What operators decide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Within what time nodes that vanish vanish together.
    pub(crate) window: Duration,
    /// Copies at least of what is kept as copies.
    pub(crate) min_copies: u8,
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
