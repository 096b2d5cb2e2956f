//! The nodes as they were a moment ago: where they are, what they may be used for.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cyxcloud_core::placement::Candidate;
use cyxcloud_core::repair::Presence;
use cyxcloud_core::{ByteCount, NodeId, Timestamp};
use cyxcloud_metadata::model::Node;
use tonic::transport::Channel;
use uuid::Uuid;

use super::health::Health;
use crate::config::Config;

/// A node as long as its identity and address stay the same: its connection, and what it did lately.
#[derive(Debug)]
pub(crate) struct NodeClient {
    pub(crate) id: NodeId,
    pub(crate) public_key: [u8; 32],
    pub(crate) address: String,
    pub(crate) channel: OnceLock<Channel>,
    pub(crate) health: Health,
}

/// A node and what is known of it now.
#[derive(Clone, Debug)]
pub(crate) struct KnownNode {
    pub(crate) client: Arc<NodeClient>,
    /// Which life of its data directory it registered.
    life: Uuid,
    /// Whether it is heard, and whether it is to stay.
    pub(crate) presence: Presence,
    /// Whether reads may ask it before others.
    pub(crate) serves_reads: bool,
    /// As placement sees it, if it may take new chunks.
    candidate: Option<Candidate>,
}

/// A snapshot of the nodes.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) nodes: HashMap<NodeId, KnownNode>,
    /// When it was taken; `None` before the first.
    pub(crate) taken_at: Option<Instant>,
}

impl View {
    /// The next snapshot, at `now` by the database's clock; nodes that stayed what they were keep their connections.
    pub(crate) fn next(&self, nodes: &[Node], now: Timestamp, config: &Config) -> Self {
        let nodes = nodes.iter().map(|node| (node.id, self.known(node, now, config))).collect();
        Self { nodes, taken_at: Some(Instant::now()) }
    }

    fn known(&self, node: &Node, now: Timestamp, config: &Config) -> KnownNode {
        let same = |known: &&KnownNode| {
            known.client.address == node.grpc_address && known.client.public_key == node.public_key
        };
        let client = match self.nodes.get(&node.id).filter(same) {
            Some(known) => known.client.clone(),
            None => Arc::new(NodeClient {
                id: node.id,
                public_key: node.public_key,
                address: node.grpc_address.clone(),
                channel: OnceLock::new(),
                health: Health::new(),
            }),
        };
        let free = node.storage_available.saturating_sub(config.headroom);
        let eligible = node.status.takes_new_chunks()
            && !(node.maintenance || node.read_only || node.quarantined)
            && free > ByteCount::ZERO;
        let candidate = eligible.then(|| Candidate {
            node: node.id,
            free,
            operator: node.operator.clone(),
            subnet: node.subnet.clone(),
            region: node.region.clone(),
            weight_penalty: false,
            vetted: node.vetted,
        });
        let presence = node.facts(now, config.offline).presence();
        let serves_reads = presence.is_there() && !node.maintenance;
        KnownNode { client, life: node.incarnation, presence, serves_reads, candidate }
    }

    /// How many nodes take new chunks.
    pub(crate) fn eligible(&self) -> usize {
        self.nodes.values().filter(|node| node.candidate.is_some()).count()
    }

    /// The nodes that take new chunks and pass, with who failed lately marked.
    pub(crate) fn candidates(&self, pass: impl Fn(NodeId) -> bool) -> Vec<Candidate> {
        self.nodes
            .values()
            .filter(|node| pass(node.client.id))
            .filter_map(|node| {
                let candidate = node.candidate.as_ref()?;
                Some(Candidate { weight_penalty: node.client.health.avoid_for_writes(), ..candidate.clone() })
            })
            .collect()
    }

    /// How readily a node is asked for what it holds: smaller is sooner. `None`: not known at all.
    pub(crate) fn read_rank(&self, node: NodeId) -> Option<u8> {
        let node = self.nodes.get(&node)?;
        Some(u8::from(node.client.health.is_failing()) + 2 * u8::from(!node.serves_reads))
    }

    /// How much what the node holds is to be counted on: whoever is to stay comes before whoever is to be emptied.
    pub(crate) fn presence(&self, node: NodeId) -> Presence {
        self.nodes.get(&node).map_or(Presence::Lost, |node| node.presence)
    }

    /// Whether what the node stored in this life counts: no commit takes it as long as another one is registered.
    pub(crate) fn lives(&self, node: NodeId, life: Uuid) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.life == life)
    }

    /// Whether an answer can be expected of the node: it is there, and did not fail when it was asked last.
    pub(crate) fn is_well(&self, node: NodeId) -> bool {
        let known = self.nodes.get(&node).filter(|node| node.presence.is_there());
        known.is_some_and(|node| node.client.health.is_well())
    }

    /// Whether whoever could ask others may ask this one, for so long: see [`Health::may_be_tried`].
    pub(crate) fn may_be_tried(&self, node: NodeId, patience: Duration) -> bool {
        let known = self.nodes.get(&node).filter(|node| node.presence.is_there());
        known.is_some_and(|node| node.client.health.may_be_tried(patience))
    }
}
