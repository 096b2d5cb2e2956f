//! Messages and services that cross the wire, generated from `proto/`, and their conversion to and from
//! the types of `cyxcloud-core`.
//!
//! Both packages have a `DataService`: the gateway's streams data sets, the node's replicates and verifies chunks.

pub mod convert;

/// Package `cyxcloud.node.v1`: what a storage node offers.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod node {
    tonic::include_proto!("cyxcloud.node.v1");
}

/// Package `cyxcloud.gateway.v1`: what a gateway offers.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod gateway {
    tonic::include_proto!("cyxcloud.gateway.v1");
}

/// Version of the wire protocol that this build speaks.
pub const WIRE_VERSION: u32 = 1;

/// Version of a node's format on disk that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Largest message either side accepts: the largest shard and room for its envelope.
pub const MESSAGE_BYTES_MAX: usize = 66 << 20;
