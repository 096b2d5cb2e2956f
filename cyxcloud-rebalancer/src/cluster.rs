//! The nodes as background work sees them, looked up anew when what is known is old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cyxcloud_core::placement::Candidate;
use cyxcloud_core::repair::{self, NodeFacts, Plan, Presence, RepairPolicy, Stripe, Urgency};
use cyxcloud_core::{NodeId, Timestamp};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::Node;
use cyxcloud_metadata::upkeep::model::StripeState;

/// A look older than this is renewed before it is used.
const AGE_MAX: Duration = Duration::from_secs(1);

/// All nodes at one moment.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: HashMap<NodeId, Node>,
    pub(crate) candidates: Vec<Candidate>,
    /// More nodes vanished together than is believable.
    pub(crate) braked: bool,
    /// Mean processor use of the nodes that are here, in percent.
    pub(crate) cpu_usage: u8,
    /// By the database's clock.
    pub(crate) now: Timestamp,
}

impl Cluster {
    fn new(nodes: Vec<Node>, candidates: Vec<Candidate>, now: Timestamp, window: Duration) -> Self {
        let away: Vec<Timestamp> =
            nodes.iter().filter(|node| facts(node).presence() == Presence::Away).map(away_since).collect();
        let braked = repair::brake(nodes.len(), &away, window);
        let cpu_usage = mean_cpu_usage(nodes.iter().filter(|node| facts(node).presence() == Presence::Here));
        let nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
        Self { nodes, candidates, braked, cpu_usage, now }
    }

    /// How much a node's copies count.
    pub(crate) fn presence(&self, node: NodeId) -> Presence {
        self.nodes.get(&node).map_or(Presence::Lost, |node| facts(node).presence())
    }

    /// What a stripe needs, and when.
    pub(crate) fn judge(&self, state: &StripeState, delay: Duration) -> (Plan, Urgency) {
        let locations: Vec<_> =
            state.locations.iter().map(|at| (at.shard, at.node, at.status.belief())).collect();
        let stripe = stripe(state, &locations);
        let plan = repair::plan(&stripe, |node| self.presence(node), &self.candidates, &mut rand::rng());
        let absences = plan.health.away.iter().filter_map(|(_, node)| self.nodes.get(node));
        let away_for = absences.map(|node| self.now.since(away_since(node))).max().unwrap_or_default();
        let policy = RepairPolicy { delay, braked: self.braked };
        let surplus = !plan.removals.is_empty();
        let urgency = repair::urgency(&plan.health, plan.goal, surplus, away_for, &policy);
        (plan, urgency)
    }
}

/// As planners see a stripe.
pub(crate) fn stripe<'a>(
    state: &StripeState,
    locations: &'a [(cyxcloud_core::ShardIndex, NodeId, repair::Belief)],
) -> Stripe<'a> {
    Stripe {
        geometry: state.geometry,
        target_tolerance: state.target_tolerance,
        chunk_len: state.chunk_len(),
        locations,
    }
}

fn facts(node: &Node) -> NodeFacts {
    NodeFacts {
        status: node.status,
        first_offline_at: node.first_offline_at,
        maintenance: node.maintenance,
        quarantined: node.quarantined,
    }
}

/// In percent; 0 of none.
fn mean_cpu_usage<'a>(nodes: impl Iterator<Item = &'a Node>) -> u8 {
    let (sum, count) =
        nodes.fold((0u64, 0u64), |(sum, count), node| (sum + u64::from(node.cpu_usage), count + 1));
    u8::try_from(sum / count.max(1)).unwrap_or(100)
}

fn away_since(node: &Node) -> Timestamp {
    node.first_offline_at.unwrap_or(node.status_changed_at)
}

/// Looks at the nodes when asked, at most once a second.
#[derive(Debug)]
pub(crate) struct Watch {
    metadata: Arc<dyn MetadataStore>,
    plane: DataPlane,
    window: Duration,
    seen: Mutex<Option<(Instant, Arc<Cluster>)>>,
}

impl Watch {
    pub(crate) fn new(metadata: Arc<dyn MetadataStore>, plane: DataPlane, window: Duration) -> Self {
        Self { metadata, plane, window, seen: Mutex::default() }
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
        let cluster = Arc::new(Cluster::new(nodes, self.plane.candidates().await?, now, self.window));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), cluster.clone()));
        Ok(cluster)
    }
}
