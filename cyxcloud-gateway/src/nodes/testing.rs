//! A node for tests that are not about nodes.

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ByteCount, NodeId, Timestamp};
use cyxcloud_metadata::model::Node;
use uuid::Uuid;

/// Number `seed`, in this state, with a GiB of free space.
pub(crate) fn node(seed: u8, status: NodeStatus) -> Node {
    Node {
        id: NodeId::from_random([seed; 16]),
        public_key: [seed; 32],
        peer_id: String::new(),
        label: String::new(),
        name: String::new(),
        grpc_address: format!("http://10.0.0.{seed}:50051"),
        metrics_address: String::new(),
        incarnation: Uuid::nil(),
        storage_total: ByteCount::gib(1),
        storage_reserved: ByteCount::ZERO,
        storage_used: ByteCount::ZERO,
        storage_available: ByteCount::gib(1),
        status,
        status_changed_at: Timestamp::default(),
        last_heartbeat: Timestamp::default(),
        first_offline_at: None,
        failure_count: 0,
        region: String::new(),
        operator: String::new(),
        subnet: String::new(),
        version: String::new(),
        wire_version: 1,
        maintenance: false,
        read_only: false,
        quarantined: false,
        vetted: true,
        cpu_usage: 0,
        active_connections: 0,
    }
}
