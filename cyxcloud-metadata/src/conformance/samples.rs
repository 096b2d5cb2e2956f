//! What tests need that are about something else.

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ByteCount, ChunkId, Geometry, NodeId, OwnerId, SegmentId, Timestamp};
use uuid::Uuid;

use crate::model::Node;
use crate::upkeep::model::{StripeRef, StripeState};

/// Number `seed`, in this state, with a GiB of free space; last heard at the beginning of time.
pub fn node(seed: u8, status: NodeStatus) -> Node {
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

/// A stripe with chunks of this length, each unlike the others, that is to survive what it can, and no locations.
pub fn stripe(geometry: Geometry, chunk_len: ByteCount) -> StripeState {
    StripeState {
        stripe: StripeRef { segment: SegmentId::from_random([1; 16]), index: 0 },
        owner: OwnerId::from_random([1; 16]),
        geometry,
        format: 1,
        stripe_size: ByteCount::mib(4),
        plain_hash: [0; 32],
        plain_len: ByteCount::bytes(chunk_len.get() * geometry.data() as u64),
        target_tolerance: (geometry.locations() - geometry.data()) as u8,
        shards: geometry.indices().map(|index| (ChunkId::of(&[index.get() as u8]), chunk_len)).collect(),
        locations: Vec::new(),
    }
}
