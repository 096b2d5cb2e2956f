//! Messages and services that cross the wire, generated from `proto/`, and their conversion to and from
//! the types of `cyxcloud-core`.
//!
//! Both packages have a `DataService`: the gateway's streams data sets, the node's replicates and verifies chunks.

pub mod convert;
pub mod signed;

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

/// The compiled .proto files, an encoded `FileDescriptorSet`. No server answers with it.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Every method of every service, as the path it is called at: what tests hold against what was decided about each.
pub fn methods() -> Result<Vec<String>, prost::DecodeError> {
    let files = <prost_types::FileDescriptorSet as prost::Message>::decode(DESCRIPTORS)?.file;
    let services =
        files.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    let methods = services.flat_map(|(package, service)| {
        service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
    });
    Ok(methods.collect())
}

/// Version of the wire protocol that this build speaks.
pub const WIRE_VERSION: u32 = 1;
/// Metadata of a refused registration whose signature was too old: the gateway's time, in milliseconds since the Unix epoch.
pub const GATEWAY_TIME: &str = "cyx-now-ms";

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
