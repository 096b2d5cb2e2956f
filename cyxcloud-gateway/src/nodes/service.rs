//! NodeService: nodes register and send heartbeats; administrators' programs ask which nodes there are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::address::{AddressRefused, is_public, subnet_of};
use cyxcloud_core::receipt::verify_signature;
use cyxcloud_core::reservation::{SYSTEM_RESERVED, StorageAccount};
use cyxcloud_core::{ByteCount, ChunkId, NodeId, Timestamp};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::model::{Node, NodeHeartbeat, RegisterNode};
use cyxcloud_metadata::{Error as MetadataError, MetadataStore};
use cyxcloud_proto::convert::node_id_bytes;
use cyxcloud_proto::gateway as wire;
use cyxcloud_proto::gateway::node_command::Kind;
use cyxcloud_proto::gateway::node_service_server::NodeService;
use cyxcloud_proto::{FORMAT_OLDEST, GATEWAY_TIME, WIRE_VERSION, format_newest, signed};
use cyxcloud_tls::client::{address_group, is_in};
use cyxcloud_tls::grpc::PeerInfo;
use cyxcloud_tls::identity::PeerKey;
use secrecy::ExposeSecret;
use tonic::{Request, Response, Status};
use tracing::{info, warn};
use uuid::Uuid;

use super::callback::{self, Caller, Claim, Reached};
use super::heartbeats::{Heartbeats, Outcome};
use crate::auth::{self, AuthError, Authenticator};
use crate::ephemeral::{Ephemeral, Topic, over_limit};
use crate::journal;
use crate::problem::FOR_ADMINISTRATORS;

/// Skew between a node's clock and ours at which its signature still counts.
const SIGNATURE_AGE_MAX: Duration = Duration::from_secs(3_600);
/// How long a signature may count, made as far in the future as it may be.
const SIGNATURE_LIFE: Duration = Duration::from_secs(2 * SIGNATURE_AGE_MAX.as_secs());
/// Registrations that one address may ask for in a minute: something is dialled for each. Nodes behind one address return
/// together, and wait ever longer before they try again.
const TRIES_PER_MINUTE: u64 = 60;
/// Longest text that a node may register.
const TEXT_MAX: usize = 255;
/// Corrupt chunks that one heartbeat may report.
const CORRUPT_MAX: usize = 1_000;
/// Largest page of nodes, and the one given unasked.
const PAGE_MAX: usize = 1_000;

/// Under which name the wish is kept that a node checks all that it holds.
pub(crate) fn scrub_wanted(node: NodeId) -> String {
    format!("scrub/{node}")
}

/// Who may operate nodes, where that must be known.
#[derive(Debug)]
pub struct Operators {
    /// Knows their accounts.
    pub accounts: Arc<Authenticator>,
    /// Nodes that one of them may have.
    pub nodes_max: u32,
}

/// NodeService over the metadata store.
#[derive(Debug)]
pub struct NodeApi {
    metadata: Arc<dyn MetadataStore>,
    ephemeral: Arc<dyn Ephemeral>,
    caller: Caller,
    heartbeats: Heartbeats,
    heartbeat_interval: Duration,
    /// Newest format that nodes may go over to.
    node_format: u32,
    plane: DataPlane,
    /// What checks tokens, where nodes and whoever asks about them must show one.
    auth: Option<Arc<Authenticator>>,
    /// Nodes' operators, where those must have logged in.
    operators: Option<Operators>,
}

/// What nodes are told to check tokens by.
#[derive(Default)]
struct TokenRules {
    keys: Vec<bytes::Bytes>,
    required: bool,
}

impl NodeApi {
    /// Answers nodes; `caller` says where they may be, and calls them back. With `auth` heartbeats and questions must carry tokens, and so must all
    /// that nodes are asked; what signs those is the `plane`'s. With `operators` only nodes whose operator has logged in.
    #[allow(clippy::too_many_arguments, reason = "each is another server's part, given once at start")]
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        ephemeral: Arc<dyn Ephemeral>,
        caller: Caller,
        heartbeats: Heartbeats,
        heartbeat_interval: Duration,
        node_format: u32,
        plane: DataPlane,
        auth: Option<Arc<Authenticator>>,
        operators: Option<Operators>,
    ) -> Self {
        let node_format = node_format.min(format_newest());
        Self {
            metadata,
            ephemeral,
            caller,
            heartbeats,
            heartbeat_interval,
            node_format,
            plane,
            auth,
            operators,
        }
    }

    async fn token_rules(&self) -> Result<TokenRules, Status> {
        if self.auth.is_none() {
            return Ok(TokenRules::default());
        }
        let mut keys = self.plane.token_keys();
        if keys.is_empty() {
            self.plane.refresh_nodes().await.map_err(unavailable)?;
            keys = self.plane.token_keys();
        }
        let keys = keys.into_iter().map(|key| key.to_vec().into()).collect();
        Ok(TokenRules { keys, required: true })
    }

    /// Who operates a node that registers; what the node itself says where operators need not be known.
    async fn operator(&self, wanted: &wire::RegisterNodeRequest) -> Result<String, Status> {
        let Some(operators) = &self.operators else { return Ok(wanted.operator.clone()) };
        if wanted.access_token.is_empty() {
            warn!(peer_id = wanted.peer_id, "a node without an operator was refused");
            return Err(Status::unauthenticated(
                "this gateway takes only nodes whose operator has logged in; set CYXWIZ_API_URL, CYXWIZ_EMAIL and \
                 CYXWIZ_PASSWORD on the node",
            ));
        }
        match operators.accounts.operator(&wanted.access_token).await {
            Ok(operator) => Ok(operator.to_string()),
            Err(error) => {
                warn!(peer_id = wanted.peer_id, %error, "a node's operator was refused");
                Err(not_let_in(&error))
            }
        }
    }

    /// Whether an address is in a network of nodes, whose operator knows who is in it.
    fn is_inside(&self, address: IpAddr) -> bool {
        is_in(address, &self.caller.policy.networks)
    }

    /// Lets an address try so often, and no more. Networks of nodes have no limit.
    async fn limit(&self, from: IpAddr) -> Result<(), Status> {
        if self.is_inside(from) {
            return Ok(());
        }
        let over = over_limit(&*self.ephemeral, "register", &address_group(from), TRIES_PER_MINUTE).await;
        if let Some(after) = over.map_err(forgetful)? {
            let seconds = after.as_secs().max(1);
            return Err(Status::resource_exhausted(format!(
                "too many registrations from this address; wait {seconds} s and try again"
            )));
        }
        Ok(())
    }

    /// Takes a registration that nobody has sent before, whatever becomes of it: whoever saw it sends it in vain, and its
    /// node signs anew. Where nothing is remembered nothing is let in.
    async fn spend(&self, signature: &[u8]) -> Result<(), Status> {
        let name = format!("registration:{}", blake3::hash(signature).to_hex());
        let (times, _) = self.ephemeral.count(&name, SIGNATURE_LIFE).await.map_err(forgetful)?;
        if times > 1 {
            return Err(Status::permission_denied("this registration was sent before; sign it anew"));
        }
        Ok(())
    }

    /// Calls a node at the host that it claims. Who is in no network of nodes learns little of what came of it, and late.
    async fn call_back(&self, claim: &Claim, from: Option<IpAddr>) -> Result<Reached, Status> {
        let stranger = !from.is_some_and(|from| self.is_inside(from));
        let told_after = if stranger { callback::TOLD_AFTER } else { Duration::ZERO };
        let reached = self.caller.call_back(claim, told_after).await;
        reached.map_err(|error| refused(&error, claim, stranger))
    }

    /// For the audit log.
    async fn note_new(&self, node: &Node, from: Option<IpAddr>) {
        // What a node says of itself is nobody's account.
        let owner = self.operators.as_ref().and_then(|_| node.operator.parse().ok());
        let id = node.id.to_string();
        journal::write(&*self.metadata, owner, &node.operator, "node.register", &id, from, "ok").await;
    }

    /// By the database's clock, so that gateways whose clocks differ take each other's tokens.
    fn now(&self) -> Timestamp {
        self.plane.now().unwrap_or_else(auth::now)
    }

    fn node_token(&self, node: NodeId) -> Result<String, Status> {
        let Some(auth) = &self.auth else { return Ok(String::new()) };
        let token = auth.issue_node(node, self.now()).map_err(|error| not_let_in(&error))?;
        Ok(token.expose_secret().to_owned())
    }

    /// Whether the node's token is half through, if it must have one.
    fn check_heartbeat(&self, beat: &wire::HeartbeatRequest, node: NodeId) -> Result<bool, Status> {
        let Some(auth) = &self.auth else { return Ok(false) };
        auth.node_token(&beat.token, node, self.now()).map_err(|error| not_let_in(&error))
    }

    /// Lets administrators ask about nodes: where these are is nobody else's business, here as by REST and by WebSocket.
    async fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let Some(auth) = &self.auth else { return Ok(()) };
        let caller =
            auth.authenticate_metadata(request.metadata()).await.map_err(|error| not_let_in(&error))?;
        match caller.admin {
            true => Ok(()),
            false => Err(Status::permission_denied(FOR_ADMINISTRATORS)),
        }
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
        let peer = request.extensions().get::<PeerInfo>().and_then(|peer| peer.address);
        let from = peer.map(|peer| peer.ip());
        let wanted = request.into_inner();
        let (public_key, incarnation) = check_registration(&wanted, self.now())?;
        if let Some(from) = from {
            self.limit(from).await?;
        }
        // Before anything is remembered of a stranger, or dialled for one.
        let operator = self.operator(&wanted).await?;
        self.spend(&wanted.signature).await?;
        let Reached { chunks, health } = self.call_back(&claim(&wanted, public_key, from)?, from).await?;
        let scheme = if wanted.tls { "https" } else { "http" };

        let account = account_of(&wanted)?;
        let node = RegisterNode {
            id: NodeId::from_random(rand::random()),
            public_key,
            peer_id: wanted.peer_id,
            label: wanted.label,
            name: wanted.name,
            grpc_address: format!("{scheme}://{chunks}"),
            metrics_address: format!("http://{health}"),
            incarnation,
            storage_total: account.total,
            storage_reserved: account.reserved,
            storage_used: account.used,
            region: wanted.region,
            operator,
            subnet: subnet_of(chunks.ip()),
            version: wanted.version,
            wire_version: wanted.wire_version,
            nodes_max: self.operators.as_ref().map(|operators| operators.nodes_max),
        };
        let fresh = node.id;
        let node = self.metadata.register_node(&node).await.map_err(not_taken)?;
        if node.id == fresh {
            self.note_new(&node, from).await;
        }
        info!(
            node = %node.id,
            address = %node.grpc_address,
            operator = node.operator,
            status = node.status.as_str(),
            "node registered"
        );
        let rules = self.token_rules().await?;
        let now = self.metadata.now().await.map_err(unavailable)?;
        if is_public(chunks.ip()) && !wanted.tls {
            warn!(node = %node.id, "the node is reached over the public network in plain text; NODE_TLS=true turns TLS on");
        }
        if let Err(error) = self.ephemeral.publish(Topic::Nodes, "registered").await {
            warn!(%error, "other gateways will see the node at their next tick");
        }
        Ok(Response::new(wire::RegisterNodeResponse {
            node_id: node_id_bytes(&node.id),
            storage_reserved: account.reserved.get(),
            storage_allocatable: account.allocatable().get(),
            heartbeat_interval_ms: u64::try_from(self.heartbeat_interval.as_millis()).unwrap_or(u64::MAX),
            status: node.status.as_str().to_owned(),
            token: self.node_token(node.id)?,
            wire_version: WIRE_VERSION,
            format_version: self.node_format,
            now_ms: now.unix_millis(),
            token_keys: rules.keys,
            require_tokens: rules.required,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let shown = request.extensions().get::<PeerInfo>().and_then(|peer| peer.key);
        let beat = request.into_inner();
        let id = node_id(&beat.node_id)?;
        check_key(shown, self.plane.key_of(id))?;
        let renew = self.check_heartbeat(&beat, id)?;
        let turn = self.heartbeats.turn(id).ok_or_else(|| {
            Status::resource_exhausted(
                "heartbeats of this node are under way already; wait for their answers",
            )
        })?;
        let outcome = self
            .heartbeats
            .record(
                &turn,
                NodeHeartbeat {
                    node: id,
                    storage_used: ByteCount::bytes(beat.storage_used),
                    storage_available: ByteCount::bytes(beat.storage_available),
                    cpu_usage: percent(beat.cpu_usage),
                    memory_usage: percent(beat.memory_usage),
                    active_connections: beat.active_connections,
                    maintenance: beat.maintenance,
                    read_only: beat.read_only,
                },
            )
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
        let rules = self.token_rules().await?;
        let token = if renew { self.node_token(id)? } else { String::new() };
        // Last: what is taken and then not told is forgotten.
        let scrub = matches!(self.ephemeral.take(&scrub_wanted(id)).await, Ok(Some(_)));
        let commands = [(moved, Kind::Register), (scrub, Kind::Scrub)];
        let commands = commands.into_iter().filter(|(wanted, _)| *wanted);
        let commands = commands.map(|(_, kind)| wire::NodeCommand { kind: i32::from(kind) }).collect();
        Ok(Response::new(wire::HeartbeatResponse {
            status: heard.status.as_str().to_owned(),
            commands,
            now_ms: heard.now.unix_millis(),
            format_version: self.node_format,
            token_keys: rules.keys,
            require_tokens: rules.required,
            token,
        }))
    }

    async fn get_node_info(
        &self,
        request: Request<wire::GetNodeInfoRequest>,
    ) -> Result<Response<wire::NodeInfo>, Status> {
        self.admit(&request).await?;
        let id = node_id(&request.into_inner().node_id)?;
        self.node(id).await?.map(|node| Response::new(info_of(node))).ok_or_else(unknown_node)
    }

    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        self.admit(&request).await?;
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
            Some(last) if more => node_id_bytes(&last.id),
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
pub(crate) fn check_registration(
    wanted: &wire::RegisterNodeRequest,
    now: Timestamp,
) -> Result<([u8; 32], Uuid), Status> {
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
    ports(wanted)?;
    let signature: &[u8; 64] = wanted
        .signature
        .as_ref()
        .try_into()
        .map_err(|_| Status::invalid_argument("signature is not 64 bytes"))?;
    verify_signature(&public_key, &signed::registration(wanted), signature)
        .map_err(|_| Status::permission_denied("the signature does not prove possession of public_key"))?;
    let now_ms = now.unix_millis();
    if now_ms.abs_diff(wanted.signed_at_ms) > SIGNATURE_AGE_MAX.as_millis() as u64 {
        let mut status =
            Status::permission_denied("the signature is older than an hour, or not made yet: clocks differ");
        // A node whose clock is wrong may sign again by ours.
        status.metadata_mut().insert(GATEWAY_TIME, now_ms.into());
        return Err(status);
    }
    Ok((public_key, incarnation))
}

/// libp2p's id of an Ed25519 key: base58 of the identity multihash of the key's protobuf
/// (libp2p specification, "Peer Ids and Keys").
pub(crate) fn peer_id(public_key: &[u8; 32]) -> String {
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

/// Where the node says that it is; where it says nothing, it is whence it asks.
fn claim(
    wanted: &wire::RegisterNodeRequest,
    public_key: [u8; 32],
    from: Option<IpAddr>,
) -> Result<Claim, Status> {
    let Ports { grpc, metrics } = ports(wanted)?;
    let host = match (wanted.advertise_host.as_str(), from) {
        ("", Some(from)) => from.to_string(),
        ("", None) => {
            return Err(Status::invalid_argument(
                "advertise_host is empty and the caller's address is not known",
            ));
        }
        (host, _) => host.to_owned(),
    };
    Ok(Claim { host, grpc, metrics, key: wanted.tls.then_some(public_key) })
}

/// The space that it offers, of which something must be left for chunks.
fn account_of(wanted: &wire::RegisterNodeRequest) -> Result<StorageAccount, Status> {
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
    Ok(account)
}

pub(crate) fn corrupt_chunks(raw: &[bytes::Bytes]) -> Result<Vec<ChunkId>, Status> {
    if raw.len() > CORRUPT_MAX {
        return Err(Status::invalid_argument(format!(
            "at most {CORRUPT_MAX} corrupt chunks in one heartbeat"
        )));
    }
    raw.iter()
        .map(|id| ChunkId::try_from(id.as_ref()).map_err(|error| Status::invalid_argument(error.to_string())))
        .collect()
}

pub(crate) fn percent(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, 100.0) } else { 0.0 }
}

pub(crate) fn node_id(raw: &[u8]) -> Result<NodeId, Status> {
    NodeId::try_from(raw).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// A node's token is of no use to whoever showed another key than the node's in the handshake.
fn check_key(shown: Option<PeerKey>, known: Option<[u8; 32]>) -> Result<(), Status> {
    match (shown, known) {
        (Some(PeerKey(shown)), Some(known)) if shown != known => {
            warn!(shown = %PeerKey(shown), node = %PeerKey(known), "a heartbeat came from who has another key");
            Err(Status::unauthenticated("this connection's key is not the node's; register anew"))
        }
        _ => Ok(()),
    }
}

/// A token that opens nothing is asked for again; an account that may do nothing is not.
fn not_let_in(error: &AuthError) -> Status {
    match error.status() {
        http::StatusCode::UNAUTHORIZED => Status::unauthenticated(error.to_string()),
        http::StatusCode::FORBIDDEN => Status::permission_denied(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

fn unknown_node() -> Status {
    Status::not_found("there is no such node; register first")
}

/// What the callback saw is for the log: whoever asks may not be at the address that was dialled. A stranger is not even
/// told whether it spoke TLS, nor where our own servers are; nor what a name leads to here, if it leads anywhere.
fn refused(error: &callback::Error, claim: &Claim, stranger: bool) -> Status {
    warn!(%error, host = claim.host, "a node was refused");
    match error {
        callback::Error::Refused(AddressRefused::Own(_)) if stranger => not_as_it_should(),
        callback::Error::Refused(_) | callback::Error::Unresolvable { .. }
            if stranger && claim.literal().is_none() =>
        {
            Status::permission_denied(
                "no address that may be called back was found for this name; does it lead to a public address of this node? An \
                 operator can allow private networks with --node-networks. The gateway's log says more",
            )
        }
        callback::Error::Refused(_) => Status::permission_denied(format!(
            "{error}; an operator can allow private networks with --node-networks"
        )),
        callback::Error::Unresolvable { .. } => Status::invalid_argument(error.to_string()),
        callback::Error::Identity { .. } if !stranger => Status::failed_precondition(
            "who answers at this address does not prove the key of this node; is ADVERTISE_ADDR this node's own, and \
             does it run with NODE_TLS=true? The gateway's log says more",
        ),
        callback::Error::Silent { .. }
        | callback::Error::Unhealthy { .. }
        | callback::Error::Identity { .. } => not_as_it_should(),
    }
}

fn not_as_it_should() -> Status {
    Status::failed_precondition(
        "the node was called back and did not answer as it should; is ADVERTISE_ADDR right and this node's own, are its \
         ports open, and does /health say OK? The gateway's log says more",
    )
}

/// A node that is what it says it is, and is not taken all the same.
fn not_taken(error: MetadataError) -> Status {
    let status = match &error {
        MetadataError::NodeConflict => Status::permission_denied(error.to_string()),
        MetadataError::AddressTaken => Status::already_exists(format!(
            "{error}; is ADVERTISE_ADDR this node's own? If it is, and the other one is gone, this one is taken once that one \
             is offline"
        )),
        MetadataError::TooManyNodes { .. } => Status::resource_exhausted(format!(
            "{error}; those that are gone are forgotten in time (NODE_REMOVE_THRESHOLD_DAYS), and whoever runs the gateway \
             can raise NODES_PER_OPERATOR_MAX"
        )),
        MetadataError::NodeSuspended => Status::permission_denied(format!(
            "{error}: it stays with that account, and drains, until that is over; ask whoever runs the gateway, and \
             start it with that account"
        )),
        _ => return unavailable(error),
    };
    warn!(%error, "a node was refused");
    status
}

fn forgetful(error: crate::ephemeral::Error) -> Status {
    warn!(error = &error as &dyn std::error::Error, "ephemeral state failed a registration");
    Status::unavailable("registrations cannot be checked just now; try again")
}

fn unavailable(error: MetadataError) -> Status {
    warn!(error = &error as &dyn std::error::Error, "the metadata store failed");
    Status::unavailable("the metadata store does not answer; try again")
}

fn info_of(node: Node) -> wire::NodeInfo {
    wire::NodeInfo {
        node_id: node_id_bytes(&node.id),
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

    fn sign(key: &NodeKey, request: &mut wire::RegisterNodeRequest) {
        request.signature = key.sign(&signed::registration(request)).to_vec().into();
    }

    fn registration() -> (NodeKey, wire::RegisterNodeRequest) {
        let key = NodeKey::from_seed([7; 32]);
        let (incarnation, signed_at) = (Uuid::from_u128(9), chrono::Utc::now().timestamp_millis());
        let mut request = wire::RegisterNodeRequest {
            public_key: key.public().to_vec().into(),
            peer_id: peer_id(&key.public()),
            advertise_host: "192.0.2.7".to_owned(),
            grpc_port: 50051,
            metrics_port: 9090,
            wire_version: WIRE_VERSION,
            format_version: FORMAT_OLDEST,
            incarnation: incarnation.as_bytes().to_vec().into(),
            signed_at_ms: signed_at,
            ..wire::RegisterNodeRequest::default()
        };
        sign(&key, &mut request);
        (key, request)
    }

    #[test]
    fn a_registration_proves_possession_of_its_key() {
        let (key, request) = registration();
        let (public, _) = check_registration(&request, auth::now()).expect("proven");
        assert_eq!(public, key.public());
        type Change = fn(&mut wire::RegisterNodeRequest);
        let changes: [(&str, Change); 21] = [
            ("another operator", |r| r.access_token = "t".to_owned()),
            ("another host", |r| r.advertise_host = "192.0.2.8".to_owned()),
            ("another port", |r| r.grpc_port = 50052),
            ("another way to speak", |r| r.tls = true),
            ("another life", |r| r.incarnation = vec![1; 16].into()),
            ("another key", |r| r.public_key = NodeKey::from_seed([8; 32]).public().to_vec().into()),
            ("another peer id", |r| r.peer_id = peer_id(&NodeKey::from_seed([8; 32]).public())),
            ("another time", |r| r.signed_at_ms += 1),
            ("no signature", |r| r.signature = Vec::new().into()),
            ("more space", |r| r.storage_total += 1),
            ("less in use", |r| r.storage_used += 1),
            ("another reserve", |r| r.storage_reserved += 1),
            ("a reserve", |r| r.has_reserved = true),
            ("another region", |r| r.region = "r".to_owned()),
            ("another failure domain", |r| r.operator = "o".to_owned()),
            ("another label", |r| r.label = "l".to_owned()),
            ("another name", |r| r.name = "n".to_owned()),
            ("another version", |r| r.version = "9".to_owned()),
            ("another protocol", |r| r.wire_version += 1),
            ("a format from before there was one", |r| r.format_version = 0),
            ("a format to come", |r| r.format_version = cyxcloud_proto::FORMAT_NEWEST + 1),
        ];
        for (name, change) in changes {
            let mut changed = request.clone();
            change(&mut changed);
            assert!(check_registration(&changed, auth::now()).is_err(), "{name}");
        }
    }

    #[test]
    fn who_signs_by_a_wrong_clock_is_told_the_time() {
        let (_, request) = registration();
        for off in [-2, 2] {
            let now = Timestamp::from_unix_millis(request.signed_at_ms + off * 3_600_000);
            let refused = check_registration(&request, now).expect_err("too far off");
            let told = refused.metadata().get("cyx-now-ms").and_then(|value| value.to_str().ok());
            assert_eq!(told, Some(now.unix_millis().to_string().as_str()));
        }
    }

    #[test]
    fn every_format_that_is_known_is_welcome() {
        let (key, mut request) = registration();
        for format_version in FORMAT_OLDEST..=cyxcloud_proto::FORMAT_NEWEST {
            request.format_version = format_version;
            sign(&key, &mut request);
            check_registration(&request, auth::now()).expect("welcome");
        }
        let future = wire::RegisterNodeRequest { format_version: 9, ..request };
        let refused = check_registration(&future, auth::now()).expect_err("not known");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().contains("in format 9 and this gateway knows formats 1 to 2"), "{refused}");
    }

    #[test]
    fn what_a_name_leads_to_is_told_to_nobody_outside() {
        use callback::Error as E;
        let claim = |host: &str| Claim { host: host.to_owned(), grpc: 5432, metrics: 9090, key: None };
        let (name, literal) = (claim("db.internal"), claim("10.0.3.7"));
        let address = "10.0.3.7:5432".parse().expect("an address");
        let told = |error: &E, claim: &Claim, stranger| {
            let status = refused(error, claim, stranger);
            (status.code(), status.message().to_owned())
        };
        let private = E::Refused(AddressRefused::Private(address));
        let nowhere = told(&E::Unresolvable { host: name.host.clone() }, &name, true);
        assert_eq!(nowhere.0, tonic::Code::PermissionDenied);
        for error in [
            &private,
            &E::Refused(AddressRefused::Loopback(address)),
            &E::Refused(AddressRefused::Never(address, "link-local")),
        ] {
            assert_eq!(told(error, &name, true), nowhere, "{error}");
        }
        for (claim, stranger) in [(&literal, true), (&literal, false), (&name, false)] {
            assert!(told(&private, claim, stranger).1.contains("10.0.3.7"), "{claim:?}");
        }
        // One of ours is as one that does not answer.
        let silent = E::Silent { address, asked: "GET /health", reason: "refused".to_owned() };
        for claim in [&name, &literal] {
            let own = told(&E::Refused(AddressRefused::Own(address)), claim, true);
            assert_eq!(own, told(&silent, claim, true));
        }
    }

    #[test]
    fn texts_are_short_and_plain() {
        let (_, request) = registration();
        for text in ["x".repeat(TEXT_MAX + 1), "a\nb".to_owned()] {
            assert!(
                check_registration(
                    &wire::RegisterNodeRequest { region: text, ..request.clone() },
                    auth::now()
                )
                .is_err()
            );
        }
    }
}
