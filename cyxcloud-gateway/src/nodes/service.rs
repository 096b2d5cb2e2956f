//! NodeService: nodes register and send heartbeats; programs ask which nodes there are.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::address::{AddressPolicy, subnet_of};
use cyxcloud_core::faults;
use cyxcloud_core::receipt::{registration_message, verify_signature};
use cyxcloud_core::reservation::{SYSTEM_RESERVED, StorageAccount};
use cyxcloud_core::{ByteCount, ChunkId, NodeId, Timestamp};
use cyxcloud_metadata::model::{Node, NodeHeartbeat, RegisterNode};
use cyxcloud_metadata::{Error as MetadataError, MetadataStore};
use cyxcloud_proto::gateway as wire;
use cyxcloud_proto::gateway::node_command::Kind;
use cyxcloud_proto::gateway::node_service_server::NodeService;
use cyxcloud_proto::{FORMAT_OLDEST, WIRE_VERSION, format_newest};
use tonic::{Request, Response, Status};
use tracing::{info, warn};
use uuid::Uuid;

use super::callback;
use super::heartbeats::{Heartbeats, Outcome};
use crate::ephemeral::{Ephemeral, Topic};

/// Skew between a node's clock and ours at which its signature still counts.
const SIGNATURE_AGE_MAX: Duration = Duration::from_secs(3_600);
/// Longest text that a node may register.
const TEXT_MAX: usize = 255;
/// Corrupt chunks that one heartbeat may report.
const CORRUPT_MAX: usize = 1_000;
/// Largest page of nodes, and the one given unasked.
const PAGE_MAX: usize = 1_000;

/// NodeService over the metadata store.
#[derive(Debug)]
pub struct NodeApi {
    metadata: Arc<dyn MetadataStore>,
    ephemeral: Arc<dyn Ephemeral>,
    policy: AddressPolicy,
    heartbeats: Heartbeats,
    heartbeat_interval: Duration,
    /// Newest format that nodes may go over to.
    node_format: u32,
}

impl NodeApi {
    /// Answers nodes; `policy` says where they may be.
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        ephemeral: Arc<dyn Ephemeral>,
        policy: AddressPolicy,
        heartbeat_interval: Duration,
        node_format: u32,
    ) -> Self {
        let heartbeats = Heartbeats::start(metadata.clone());
        let node_format = node_format.min(format_newest());
        Self { metadata, ephemeral, policy, heartbeats, heartbeat_interval, node_format }
    }

    async fn node(&self, id: NodeId) -> Result<Option<Node>, Status> {
        let nodes = self.metadata.nodes().await.map_err(unavailable)?;
        Ok(nodes.into_iter().find(|node| node.id == id))
    }
}

#[tonic::async_trait]
impl NodeService for NodeApi {
    async fn register_node(
        &self,
        request: Request<wire::RegisterNodeRequest>,
    ) -> Result<Response<wire::RegisterNodeResponse>, Status> {
        let peer = request.remote_addr().map(|address| address.ip());
        let wanted = request.into_inner();
        let (public_key, incarnation) = check_registration(&wanted)?;
        let (host, ports) = (advertised_host(&wanted, peer)?, ports(&wanted)?);
        let ip = callback::resolve(&self.policy, &host, ports.grpc).await.map_err(refused)?;
        let health = SocketAddr::new(ip, ports.metrics);
        callback::check_health(&self.policy, health).await.map_err(refused)?;

        let reserved = match wanted.has_reserved {
            true => ByteCount::bytes(wanted.storage_reserved),
            false => SYSTEM_RESERVED,
        };
        let account = StorageAccount {
            total: ByteCount::bytes(wanted.storage_total),
            reserved,
            used: ByteCount::bytes(wanted.storage_used),
        };
        if account.allocatable() == ByteCount::ZERO {
            return Err(Status::invalid_argument(format!(
                "the node offers {}, of which {reserved} are reserved: nothing is left for chunks; raise STORAGE_CAPACITY_GB",
                account.total
            )));
        }
        let node = RegisterNode {
            id: NodeId::from_random(rand::random()),
            public_key,
            peer_id: wanted.peer_id,
            label: wanted.label,
            name: wanted.name,
            grpc_address: format!("http://{}", SocketAddr::new(ip, ports.grpc)),
            metrics_address: format!("http://{health}"),
            incarnation,
            storage_total: account.total,
            storage_reserved: reserved,
            storage_used: account.used,
            region: wanted.region,
            operator: wanted.operator,
            subnet: subnet_of(ip),
            version: wanted.version,
            wire_version: wanted.wire_version,
        };
        let node = self.metadata.register_node(&node).await.map_err(|error| match error {
            MetadataError::NodeConflict => Status::permission_denied(error.to_string()),
            other => unavailable(other),
        })?;
        info!(node = %node.id, address = %node.grpc_address, status = node.status.as_str(), "node registered");
        if let Err(error) = self.ephemeral.publish(Topic::Nodes, "registered").await {
            warn!(%error, "other gateways will see the node at their next tick");
        }
        Ok(Response::new(wire::RegisterNodeResponse {
            node_id: node.id.as_bytes().to_vec().into(),
            storage_reserved: reserved.get(),
            storage_allocatable: account.allocatable().get(),
            heartbeat_interval_ms: u64::try_from(self.heartbeat_interval.as_millis()).unwrap_or(u64::MAX),
            status: node.status.as_str().to_owned(),
            token: String::new(),
            wire_version: WIRE_VERSION,
            format_version: self.node_format,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let beat = request.into_inner();
        let id = node_id(&beat.node_id)?;
        let outcome = self
            .heartbeats
            .record(NodeHeartbeat {
                node: id,
                storage_used: ByteCount::bytes(beat.storage_used),
                storage_available: ByteCount::bytes(beat.storage_available),
                cpu_usage: percent(beat.cpu_usage),
                memory_usage: percent(beat.memory_usage),
                active_connections: beat.active_connections,
                maintenance: beat.maintenance,
                read_only: beat.read_only,
            })
            .await;
        let heard = match outcome {
            Outcome::Recorded(heard) => heard,
            Outcome::Unknown => return Err(unknown_node()),
            Outcome::Unavailable => {
                return Err(Status::unavailable("the metadata store does not answer; try again"));
            }
        };
        if !beat.corrupt_chunks.is_empty() {
            let chunks = corrupt_chunks(&beat.corrupt_chunks)?;
            let marked = self.metadata.report_corrupt_chunks(id, &chunks).await.map_err(unavailable)?;
            warn!(node = %id, chunks = chunks.len(), locations = marked, "node reports corrupt chunks");
        }
        let moved = beat.incarnation.as_ref() != heard.incarnation.as_bytes().as_slice();
        let commands =
            if moved { vec![wire::NodeCommand { kind: i32::from(Kind::Register) }] } else { Vec::new() };
        Ok(Response::new(wire::HeartbeatResponse {
            status: heard.status.as_str().to_owned(),
            commands,
            now_ms: heard.now.unix_millis(),
            format_version: self.node_format,
        }))
    }

    async fn get_node_info(
        &self,
        request: Request<wire::GetNodeInfoRequest>,
    ) -> Result<Response<wire::NodeInfo>, Status> {
        let id = node_id(&request.into_inner().node_id)?;
        self.node(id).await?.map(|node| Response::new(info_of(node))).ok_or_else(unknown_node)
    }

    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        let query = request.into_inner();
        let after = match query.after.is_empty() {
            true => None,
            false => Some(node_id(&query.after)?),
        };
        let page = match query.page_size as usize {
            0 => PAGE_MAX,
            asked => asked.min(PAGE_MAX),
        };
        let mut nodes = self.metadata.nodes().await.map_err(unavailable)?;
        nodes.retain(|node| after.is_none_or(|after| node.id > after));
        nodes.retain(|node| query.status.is_empty() || node.status.as_str() == query.status);
        let more = nodes.len() > page;
        nodes.truncate(page);
        let next = match nodes.last() {
            Some(last) if more => last.id.as_bytes().to_vec().into(),
            _ => bytes::Bytes::new(),
        };
        Ok(Response::new(wire::ListNodesResponse { nodes: nodes.into_iter().map(info_of).collect(), next }))
    }
}

struct Ports {
    grpc: u16,
    metrics: u16,
}

/// What a registration must be before anything is dialled: of our version, signed by the key it names, and short.
fn check_registration(wanted: &wire::RegisterNodeRequest) -> Result<([u8; 32], Uuid), Status> {
    if wanted.wire_version != WIRE_VERSION {
        return Err(Status::failed_precondition(format!(
            "the node speaks version {} of the protocol and this gateway version {WIRE_VERSION}; update the older one",
            wanted.wire_version
        )));
    }
    let newest = format_newest();
    if !(FORMAT_OLDEST..=newest).contains(&wanted.format_version) {
        return Err(Status::failed_precondition(format!(
            "the node keeps chunks in format {} and this gateway knows formats {FORMAT_OLDEST} to {newest}; update the older one",
            wanted.format_version
        )));
    }
    for (name, text) in [
        ("peer_id", &wanted.peer_id),
        ("label", &wanted.label),
        ("name", &wanted.name),
        ("advertise_host", &wanted.advertise_host),
        ("region", &wanted.region),
        ("operator", &wanted.operator),
        ("version", &wanted.version),
    ] {
        if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
            return Err(Status::invalid_argument(format!(
                "{name} is longer than {TEXT_MAX} bytes or has control characters"
            )));
        }
    }
    let public_key: [u8; 32] = wanted
        .public_key
        .as_ref()
        .try_into()
        .map_err(|_| Status::invalid_argument("public_key is not 32 bytes"))?;
    if wanted.peer_id != peer_id(&public_key) {
        return Err(Status::permission_denied("peer_id is not that of public_key"));
    }
    let incarnation = Uuid::from_slice(&wanted.incarnation)
        .map_err(|_| Status::invalid_argument("incarnation is not 16 bytes"))?;
    let ports = ports(wanted)?;
    let message = registration_message(
        &public_key,
        &incarnation,
        Timestamp::from_unix_millis(wanted.signed_at_ms),
        &wanted.advertise_host,
        ports.grpc,
        ports.metrics,
    );
    let signature: &[u8; 64] = wanted
        .signature
        .as_ref()
        .try_into()
        .map_err(|_| Status::invalid_argument("signature is not 64 bytes"))?;
    verify_signature(&public_key, &message, signature)
        .map_err(|_| Status::permission_denied("the signature does not prove possession of public_key"))?;
    let now_ms = faults::wall_clock(chrono::Utc::now().timestamp_millis());
    if now_ms.abs_diff(wanted.signed_at_ms) > SIGNATURE_AGE_MAX.as_millis() as u64 {
        return Err(Status::permission_denied("the signature is older than an hour; set the node's clock"));
    }
    Ok((public_key, incarnation))
}

/// libp2p's id of an Ed25519 key: base58 of the identity multihash of the key's protobuf
/// (libp2p specification, "Peer Ids and Keys").
fn peer_id(public_key: &[u8; 32]) -> String {
    const IDENTITY_36_ED25519_32: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    let mut multihash = Vec::with_capacity(IDENTITY_36_ED25519_32.len() + public_key.len());
    multihash.extend_from_slice(&IDENTITY_36_ED25519_32);
    multihash.extend_from_slice(public_key);
    bs58::encode(multihash).into_string()
}

fn ports(wanted: &wire::RegisterNodeRequest) -> Result<Ports, Status> {
    let port = |name: &str, port: u32| {
        u16::try_from(port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| Status::invalid_argument(format!("{name} is not a port")))
    };
    Ok(Ports {
        grpc: port("grpc_port", wanted.grpc_port)?,
        metrics: port("metrics_port", wanted.metrics_port)?,
    })
}

fn advertised_host(wanted: &wire::RegisterNodeRequest, peer: Option<IpAddr>) -> Result<String, Status> {
    if !wanted.advertise_host.is_empty() {
        return Ok(wanted.advertise_host.clone());
    }
    peer.map(|ip| ip.to_string()).ok_or_else(|| {
        Status::invalid_argument("advertise_host is empty and the caller's address is not known")
    })
}

fn corrupt_chunks(raw: &[bytes::Bytes]) -> Result<Vec<ChunkId>, Status> {
    if raw.len() > CORRUPT_MAX {
        return Err(Status::invalid_argument(format!(
            "at most {CORRUPT_MAX} corrupt chunks in one heartbeat"
        )));
    }
    raw.iter()
        .map(|id| ChunkId::try_from(id.as_ref()).map_err(|error| Status::invalid_argument(error.to_string())))
        .collect()
}

fn percent(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, 100.0) } else { 0.0 }
}

fn node_id(raw: &[u8]) -> Result<NodeId, Status> {
    NodeId::try_from(raw).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn unknown_node() -> Status {
    Status::not_found("there is no such node; register first")
}

fn refused(error: callback::Error) -> Status {
    warn!(%error, "a node was refused");
    match &error {
        callback::Error::Refused(_) => Status::permission_denied(format!(
            "{error}; an operator can allow private networks with --node-networks"
        )),
        callback::Error::Unresolvable { .. } => Status::invalid_argument(error.to_string()),
        callback::Error::Silent { .. } | callback::Error::Unhealthy { .. } => {
            Status::failed_precondition(format!("{error}; is ADVERTISE_ADDR right and the port open?"))
        }
    }
}

fn unavailable(error: MetadataError) -> Status {
    warn!(error = &error as &dyn std::error::Error, "the metadata store failed");
    Status::unavailable("the metadata store does not answer; try again")
}

fn info_of(node: Node) -> wire::NodeInfo {
    wire::NodeInfo {
        node_id: node.id.as_bytes().to_vec().into(),
        peer_id: node.peer_id,
        label: node.label,
        name: node.name,
        grpc_address: node.grpc_address,
        status: node.status.as_str().to_owned(),
        storage_total: node.storage_total.get(),
        storage_reserved: node.storage_reserved.get(),
        storage_used: node.storage_used.get(),
        region: node.region,
        version: node.version,
        last_heartbeat_ms: node.last_heartbeat.unix_millis(),
        maintenance: node.maintenance,
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::receipt::NodeKey;

    use super::*;

    fn registration() -> (NodeKey, wire::RegisterNodeRequest) {
        let key = NodeKey::from_seed([7; 32]);
        let (incarnation, signed_at) = (Uuid::from_u128(9), chrono::Utc::now().timestamp_millis());
        let at = Timestamp::from_unix_millis(signed_at);
        let signature =
            key.sign(&registration_message(&key.public(), &incarnation, at, "192.0.2.7", 50051, 9090));
        let request = wire::RegisterNodeRequest {
            public_key: key.public().to_vec().into(),
            peer_id: peer_id(&key.public()),
            advertise_host: "192.0.2.7".to_owned(),
            grpc_port: 50051,
            metrics_port: 9090,
            wire_version: WIRE_VERSION,
            format_version: FORMAT_OLDEST,
            incarnation: incarnation.as_bytes().to_vec().into(),
            signed_at_ms: signed_at,
            signature: signature.to_vec().into(),
            ..wire::RegisterNodeRequest::default()
        };
        (key, request)
    }

    #[test]
    fn a_registration_proves_possession_of_its_key() {
        let (key, request) = registration();
        let (public, _) = check_registration(&request).expect("proven");
        assert_eq!(public, key.public());
        type Change = fn(&mut wire::RegisterNodeRequest);
        let changes: [(&str, Change); 10] = [
            ("another host", |r| r.advertise_host = "192.0.2.8".to_owned()),
            ("another port", |r| r.grpc_port = 50052),
            ("another life", |r| r.incarnation = vec![1; 16].into()),
            ("another key", |r| r.public_key = NodeKey::from_seed([8; 32]).public().to_vec().into()),
            ("another peer id", |r| r.peer_id = peer_id(&NodeKey::from_seed([8; 32]).public())),
            ("another time", |r| r.signed_at_ms += 1),
            ("no signature", |r| r.signature = Vec::new().into()),
            ("another protocol", |r| r.wire_version += 1),
            ("a format from before there was one", |r| r.format_version = 0),
            ("a format to come", |r| r.format_version = cyxcloud_proto::FORMAT_NEWEST + 1),
        ];
        for (name, change) in changes {
            let mut changed = request.clone();
            change(&mut changed);
            assert!(check_registration(&changed).is_err(), "{name}");
        }
    }

    #[test]
    fn every_format_that_is_known_is_welcome() {
        let (_, request) = registration();
        for format_version in FORMAT_OLDEST..=cyxcloud_proto::FORMAT_NEWEST {
            assert!(
                check_registration(&wire::RegisterNodeRequest { format_version, ..request.clone() }).is_ok()
            );
        }
        let future = wire::RegisterNodeRequest { format_version: 9, ..request };
        let refused = check_registration(&future).expect_err("not known");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().contains("in format 9 and this gateway knows formats 1 to 2"), "{refused}");
    }

    #[test]
    fn texts_are_short_and_plain() {
        let (_, request) = registration();
        for text in ["x".repeat(TEXT_MAX + 1), "a\nb".to_owned()] {
            assert!(
                check_registration(&wire::RegisterNodeRequest { region: text, ..request.clone() }).is_err()
            );
        }
    }
}
