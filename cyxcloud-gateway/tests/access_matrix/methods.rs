//! Every method that a gateway serves over gRPC, with every kind of credentials, and what each gets.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Parser as _;
use cyxcloud_core::claims::TokenKind;
use cyxcloud_core::receipt::NodeKey;
use cyxcloud_core::token::{
    CHUNK_LIFETIME, Operation, Operations, SESSION_LIFETIME, Token as NodeToken, countersign,
};
use cyxcloud_core::{ChunkId, NodeId, OwnerId};
use cyxcloud_gateway::identity::WantedKey;
use cyxcloud_gateway::{Listeners, Options, run};
use cyxcloud_metadata::identity::model::PersonChange;
use cyxcloud_proto::gateway::data_service_client::DataServiceClient;
use cyxcloud_proto::gateway::node_service_client::NodeServiceClient;
use cyxcloud_proto::gateway::{
    GetDatasetInfoRequest, GetNodeInfoRequest, HeartbeatRequest, ListNodesRequest, RegisterNodeRequest,
    StreamDataRequest,
};
use cyxcloud_proto::{FORMAT_NEWEST, WIRE_VERSION};
use ed25519_dalek::SigningKey;
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::{House, JWT_SECRET, MASTER_KEY, limited, now};

const CALLERS: [&str; 14] = [
    "nobody",
    "junk",
    "a refresh token",
    "a person",
    "a person's key",
    "a person's key that changes nothing",
    "a person's key for another bucket",
    "somebody else",
    "an administrator",
    "this node",
    "another node",
    "a session token of a server's",
    "a chunk token",
    "a token that is over",
];

/// Who is let in where a token of a person's or a program's is wanted, for what is the person's.
const fn owned(mine: Code, others: Code, beyond: Code) -> [Code; 14] {
    const U: Code = Code::Unauthenticated;
    [U, U, U, mine, mine, mine, beyond, others, others, U, U, U, U, U]
}

/// Who is let in where an administrator's token is wanted.
const fn administrators(theirs: Code) -> [Code; 14] {
    let mut codes = owned(Code::PermissionDenied, Code::PermissionDenied, Code::PermissionDenied);
    codes[8] = theirs;
    codes
}

/// What was decided about every method, for each of [`CALLERS`]. A new one must be added here.
const DECIDED: &[(&str, &str, [Code; 14])] = &[
    // No token opens it: only a signature of the key that registers, which here is another's.
    ("NodeService", "RegisterNode", [Code::PermissionDenied; 14]),
    // The node's own token, and no other; which nobody knows here.
    ("NodeService", "Heartbeat", {
        let mut codes = [Code::Unauthenticated; 14];
        codes[9] = Code::NotFound;
        codes
    }),
    // An administrator's token: it says where nodes are.
    ("NodeService", "GetNodeInfo", administrators(Code::NotFound)),
    ("NodeService", "ListNodes", administrators(Code::Ok)),
    // Whose the bucket is; there is no such object in it.
    ("DataService", "StreamData", owned(Code::NotFound, Code::PermissionDenied, Code::PermissionDenied)),
    ("DataService", "GetDatasetInfo", owned(Code::Ok, Code::PermissionDenied, Code::PermissionDenied)),
];

#[test]
fn every_method_was_decided_about() {
    let decided: BTreeSet<String> = DECIDED
        .iter()
        .map(|(service, method, _)| format!("/cyxcloud.gateway.v1.{service}/{method}"))
        .collect();
    let there = cyxcloud_proto::methods().expect("decodes");
    // Those of nodes are decided about in the nodes' tests; whatever else there may be, here.
    let there: BTreeSet<String> =
        there.into_iter().filter(|path| !path.starts_with("/cyxcloud.node.")).collect();
    assert_eq!(there, decided);
}

/// How a method answers who shows this token wherever one may be shown.
async fn call(channel: &Channel, method: &str, token: &str, node: NodeId) -> Code {
    let (mut nodes, mut data) =
        (NodeServiceClient::new(channel.clone()), DataServiceClient::new(channel.clone()));
    let token = token.to_owned();
    let failed = match method {
        "RegisterNode" => nodes.register_node(shown(registration(&token), &token)).await.err(),
        "Heartbeat" => {
            let node_id = node.as_bytes().to_vec().into();
            let beat = HeartbeatRequest { node_id, token: token.clone(), ..HeartbeatRequest::default() };
            nodes.heartbeat(shown(beat, &token)).await.err()
        }
        "GetNodeInfo" => {
            let ask = GetNodeInfoRequest { node_id: node.as_bytes().to_vec().into() };
            nodes.get_node_info(shown(ask, &token)).await.err()
        }
        "ListNodes" => nodes.list_nodes(shown(ListNodesRequest::default(), &token)).await.err(),
        "StreamData" => {
            let (bucket, key) = ("bucket".to_owned(), "none".to_owned());
            let ask = StreamDataRequest { bucket, key, ..StreamDataRequest::default() };
            data.stream_data(shown(ask, &token)).await.err()
        }
        "GetDatasetInfo" => {
            let ask =
                GetDatasetInfoRequest { bucket: "bucket".to_owned(), ..GetDatasetInfoRequest::default() };
            data.get_dataset_info(shown(ask, &token)).await.err()
        }
        other => panic!("nobody calls {other} here"),
    };
    failed.map_or(Code::Ok, |status| status.code())
}

fn shown<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        let bearer = format!("Bearer {token}").parse().expect("plain text");
        request.metadata_mut().insert("authorization", bearer);
    }
    request
}

/// Right but for its signature, which is another key's.
fn registration(token: &str) -> RegisterNodeRequest {
    let public = NodeKey::from_seed([41; 32]).public();
    // libp2p's name of an Ed25519 key.
    let peer_id = [&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20], public.as_slice()].concat();
    RegisterNodeRequest {
        public_key: public.to_vec().into(),
        peer_id: bs58::encode(peer_id).into_string(),
        label: "node".to_owned(),
        advertise_host: "127.0.0.1".to_owned(),
        grpc_port: 1,
        metrics_port: 1,
        storage_total: 1 << 40,
        wire_version: WIRE_VERSION,
        format_version: FORMAT_NEWEST,
        incarnation: vec![1; 16].into(),
        signed_at_ms: now().unix_millis(),
        signature: vec![7; 64].into(),
        access_token: token.to_owned(),
        ..RegisterNodeRequest::default()
    }
}

/// Tokens of [`CALLERS`].
async fn tokens(house: &House, node: NodeId) -> [String; 14] {
    let hour = Duration::from_secs(3600);
    let change = PersonChange { admin: Some(true), ..PersonChange::default() };
    let (user, other, admin) = (
        OwnerId::from_random([1; 16]),
        house.log_in(&SigningKey::from_bytes(&[8; 32])).await,
        OwnerId::from_random([2; 16]),
    );
    house.gateway.metadata.change_person(admin, &change).await.expect("changes").expect("is there");
    let node_token = |node| house.auth.issue_node(node, now()).expect("issues").expose_secret().to_owned();
    let (server, holder) = (NodeKey::from_seed([42; 32]), NodeKey::from_seed([43; 32]));
    let session = NodeToken {
        id: [1; 16],
        node: holder.public(),
        operations: Operations::of(&Operation::ALL),
        holder: None,
        issued: now(),
        expires: now().plus(SESSION_LIFETIME),
        chunk: None,
    };
    let chunk = NodeToken {
        holder: Some(holder.public()),
        chunk: Some(ChunkId::of(b"x")),
        expires: now().plus(CHUNK_LIFETIME),
        ..session.clone()
    };
    let elsewhere = WantedKey {
        name: "elsewhere".to_owned(),
        buckets: Some(vec!["another".to_owned()]),
        ..WantedKey::default()
    };
    [
        String::new(),
        "a.b.c".to_owned(),
        other.refresh_token,
        house.token(user, TokenKind::Access, 0, hour),
        house.key(user, WantedKey { name: "k".to_owned(), ..WantedKey::default() }).await,
        house.key(user, limited()).await,
        house.key(user, elsewhere).await,
        other.access_token,
        house.token(admin, TokenKind::Access, 1, hour),
        node_token(node),
        node_token(NodeId::from_random([9; 16])),
        hex::encode(session.sign(&server)),
        hex::encode(countersign(&chunk.sign(&server), &holder)),
        house.token(user, TokenKind::Access, 0, Duration::ZERO),
    ]
}

#[tokio::test]
async fn every_method_opens_to_what_was_decided_and_to_nothing_else() {
    let house = House::open().await;
    let args = [
        "cyxcloud-gateway",
        "--memory-only",
        "--grpc-auth",
        "--jwt-secret",
        JWT_SECRET,
        "--master-key",
        MASTER_KEY,
    ];
    let config = cyxcloud_gateway::Config::try_parse_from(args).expect("arguments");
    let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let listeners = Listeners { http: bind().await, grpc: bind().await, metrics: None };
    let url = format!("http://{}", listeners.grpc.local_addr().expect("bound"));
    let stop = CancellationToken::new();
    let options = Options { config, metadata: house.gateway.metadata.clone() };
    let mut running = tokio::spawn(run(options, listeners, stop.clone().cancelled_owned()));
    let endpoint = Channel::from_shared(url).expect("a URL");
    let channel = tokio::select! {
        connected = endpoint.connect() => connected.expect("the gateway listens"),
        ended = &mut running => panic!("the gateway did not start: {ended:?}"),
    };
    let node = NodeId::from_random([7; 16]);
    let tokens = tokens(&house, node).await;
    for (_, method, wanted) in DECIDED {
        for ((what, token), wanted) in CALLERS.iter().zip(&tokens).zip(wanted) {
            let code = call(&channel, method, token, node).await;
            assert_eq!(code, *wanted, "{method} with {what}");
        }
    }
    stop.cancel();
    running.await.expect("no panic").expect("a clean end");
}
