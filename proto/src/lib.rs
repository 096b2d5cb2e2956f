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

/// Oldest format of a node's data directory that this build reads and writes.
///
/// 1: records of chunks and their sums. 2: a record also says when its chunk was stored, so that a receipt can be signed again as
/// it was. A directory begins in the oldest format and goes over to the newest that both its node and the gateway know.
pub const FORMAT_OLDEST: u32 = 1;
/// Newest one.
pub const FORMAT_NEWEST: u32 = 2;

/// Newest format that this process knows: [`FORMAT_NEWEST`], unless a test asks a build with the feature `faults` to be an older one.
pub fn format_newest() -> u32 {
    let older = cyxcloud_core::faults::value("FORMAT_VERSION").and_then(|version| version.parse().ok());
    older.unwrap_or(FORMAT_NEWEST).clamp(FORMAT_OLDEST, FORMAT_NEWEST)
}

/// Largest message either side accepts: the largest shard and room for its envelope.
pub const MESSAGE_BYTES_MAX: usize = 66 << 20;
