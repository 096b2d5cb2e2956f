//! Nodes to talk to, and a stand-in for the gateway that writes down what they say.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId};
use cyxcloud_node::{Config, Listeners};
use cyxcloud_proto::MESSAGE_BYTES_MAX;
use cyxcloud_proto::gateway::node_service_server::{NodeService, NodeServiceServer};
use cyxcloud_proto::gateway::{
    GetNodeInfoRequest, HeartbeatRequest, HeartbeatResponse, ListNodesRequest, ListNodesResponse,
    NodeCommand, NodeInfo, RegisterNodeRequest, RegisterNodeResponse,
};
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::data_service_client::DataServiceClient;
use cyxcloud_proto::node::{
    DeleteChunkRequest, Generation, GetChunkRequest, RestoreChunkRequest, RestoreChunkResponse,
    StoreChunkRequest, StoreChunkResponse, delete_chunk_response,
};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

/// What the stand-in heard, and what it is to answer.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) registrations: Vec<RegisterNodeRequest>,
    pub(crate) heartbeats: Vec<HeartbeatRequest>,
    /// Refuse this many registrations first.
    pub(crate) refuse: u32,
    /// Answer the next heartbeat with NOT_FOUND.
    pub(crate) forget: bool,
    /// Where it listens.
    pub(crate) address: String,
    /// Wants tokens signed by this key; otherwise none.
    pub(crate) token_key: Option<[u8; 32]>,
    /// Refuse registrations signed by a clock that is more than an hour away from this.
    pub(crate) now_ms: Option<i64>,
    /// Send these with the next heartbeat's answer.
    pub(crate) commands: Vec<NodeCommand>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Gateway(pub(crate) Arc<Mutex<Heard>>);

impl Gateway {
    pub(crate) async fn start() -> (Self, String) {
        let gateway = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        gateway.with(|heard| heard.address = address.to_string());
        let service = NodeServiceServer::new(gateway.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        (gateway, address.to_string())
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.0.lock().expect("not poisoned"))
    }

    pub(crate) async fn eventually(&self, what: &str, met: impl Fn(&Heard) -> bool) {
        let waiting = async {
            while !self.with(|heard| met(heard)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(waited.is_ok(), "never: {what}; heard {:?}", self.0);
    }
}

#[tonic::async_trait]
impl NodeService for Gateway {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let request = request.into_inner();
        self.with(|heard| {
            if heard.refuse > 0 {
                heard.refuse -= 1;
                return Err(Status::failed_precondition("the call-back failed"));
            }
            if let Some(now_ms) = heard.now_ms.filter(|now| now.abs_diff(request.signed_at_ms) > 3_600_000) {
                let mut status = Status::permission_denied("clocks differ");
                status.metadata_mut().insert("cyx-now-ms", now_ms.into());
                return Err(status);
            }
            let allocatable = request.storage_total - request.storage_reserved;
            let reserved = request.storage_reserved;
            heard.registrations.push(request);
            Ok(Response::new(RegisterNodeResponse {
                node_id: Bytes::from_static(&[7; 16]),
                storage_reserved: reserved,
                storage_allocatable: allocatable,
                heartbeat_interval_ms: 100,
                status: "online".to_owned(),
                token: String::new(),
                wire_version: 1,
                // As a gateway answers that knows one format only.
                format_version: 0,
                now_ms: wall_clock_ms(),
                token_keys: heard.token_key.iter().map(|key| key.to_vec().into()).collect(),
                require_tokens: heard.token_key.is_some(),
            }))
        })
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        self.with(|heard| {
            if std::mem::take(&mut heard.forget) {
                return Err(Status::not_found("register first"));
            }
            heard.heartbeats.push(request.into_inner());
            let commands = std::mem::take(&mut heard.commands);
            Ok(Response::new(HeartbeatResponse {
                status: "online".to_owned(),
                commands,
                now_ms: 0,
                format_version: 0,
                token_keys: heard.token_key.iter().map(|key| key.to_vec().into()).collect(),
                require_tokens: heard.token_key.is_some(),
                token: String::new(),
            }))
        })
    }

    async fn get_node_info(&self, _: Request<GetNodeInfoRequest>) -> Result<Response<NodeInfo>, Status> {
        Err(Status::unimplemented("a stand-in"))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        Err(Status::unimplemented("a stand-in"))
    }
}

fn wall_clock_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("not so late")
}

/// A running node.
pub(crate) struct Node {
    pub(crate) grpc: String,
    pub(crate) metrics: String,
    pub(crate) dir: PathBuf,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), cyxcloud_node::Error>>,
}

/// A node's configuration on loopback, over the given directory. A new one is as a gateway left it that wants no tokens.
pub(crate) fn config(dir: &Path, gateway: &str) -> Config {
    let trust = dir.join("trust");
    if !trust.exists() {
        std::fs::write(trust, "open\n").expect("written");
    }
    Config {
        central_server_addr: gateway.to_owned(),
        storage_path: dir.to_owned(),
        grpc_host: [127, 0, 0, 1].into(),
        metrics_host: [127, 0, 0, 1].into(),
        grpc_port: 0,
        metrics_port: 0,
        storage_capacity_gb: ByteCount::mib(65),
        storage_reserved_bytes: Some(ByteCount::mib(1)),
        node_loopback: true,
        ..Config::default()
    }
}

impl Node {
    /// A node whose gateway is away: it serves all the same.
    pub(crate) async fn alone(dir: &Path) -> Self {
        Self::start(config(dir, "http://127.0.0.1:9")).await
    }

    pub(crate) async fn start(config: Config) -> Self {
        let listeners = Listeners::bind(&config).await.expect("free ports");
        let grpc = format!("http://{}", listeners.grpc.local_addr().expect("bound"));
        let metrics = listeners.metrics.local_addr().expect("bound").to_string();
        let (stop, stopped) = oneshot::channel();
        let dir = config.storage_path.clone();
        let running = tokio::spawn(cyxcloud_node::run(config, listeners, async move {
            let _ = stopped.await;
        }));
        Self { grpc, metrics, dir, stop, running }
    }

    /// Stops as a signal would, and tells how it went.
    pub(crate) async fn stop(self) -> Result<(), cyxcloud_node::Error> {
        let _ = self.stop.send(());
        self.running.await.expect("no panic")
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(self.grpc.clone()).expect("a URL").connect().await.expect("the node listens")
    }

    pub(crate) async fn chunks(&self) -> ChunkServiceClient<Channel> {
        ChunkServiceClient::new(self.channel().await)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) async fn data(&self) -> DataServiceClient<Channel> {
        DataServiceClient::new(self.channel().await)
    }

    pub(crate) async fn health(&self) -> tonic_health::pb::health_client::HealthClient<Channel> {
        tonic_health::pb::health_client::HealthClient::new(self.channel().await)
    }

    /// One HTTP request to the metrics port: status line and headers, and body.
    pub(crate) async fn http(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.metrics).await.expect("the node listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    /// A connection to the port of health and metrics, from this address of the machine.
    pub(crate) async fn connect_from(&self, address: &str) -> tokio::net::TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{address}:0").parse().expect("an address")).expect("binds");
        socket.connect(self.metrics.parse().expect("an address")).await.expect("the node listens")
    }

    pub(crate) async fn store(&self, bytes: &Bytes) -> Result<StoreChunkResponse, Status> {
        let request = StoreChunkRequest {
            chunk_id: id(bytes),
            data: bytes.clone(),
            descriptor: Bytes::from_static(b"descriptor"),
            token: Bytes::new(),
        };
        Ok(self.chunks().await.store_chunk(request).await?.into_inner())
    }

    /// Deletes this chunk, as whoever holds its receipt would.
    pub(crate) async fn delete(&self, stored: &StoreChunkResponse) -> delete_chunk_response::Outcome {
        let receipt = stored.receipt.clone().expect("always there");
        let request = DeleteChunkRequest {
            chunk_id: receipt.chunk_id,
            generation: receipt.generation,
            token: Bytes::new(),
        };
        self.chunks().await.delete_chunk(request).await.expect("answered").into_inner().outcome()
    }

    pub(crate) async fn restore(
        &self,
        chunk_id: Bytes,
        generation: Option<Generation>,
    ) -> Result<RestoreChunkResponse, Status> {
        let request = RestoreChunkRequest { chunk_id, generation, token: Bytes::new() };
        Ok(self.chunks().await.restore_chunk(request).await?.into_inner())
    }

    /// Waits until the metrics hold this line.
    pub(crate) async fn eventually(&self, line: &str) {
        let waiting = async {
            while !self.http("/metrics").await.contains(&format!("\n{line}\n")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(waited.is_ok(), "never: {line}; but {}", self.http("/metrics").await);
    }

    /// Waits until a request is being worked on.
    pub(crate) async fn serves_something(&self) {
        let idle = "\ncyxcloud_node_requests_in_flight 0\n";
        let waiting = async { while self.http("/metrics").await.contains(idle) {} };
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(waited.is_ok(), "never: a request in flight");
    }

    pub(crate) async fn get(&self, chunk_id: Bytes) -> Result<Bytes, Status> {
        let request = GetChunkRequest { chunk_id, ..GetChunkRequest::default() };
        Ok(self.chunks().await.get_chunk(request).await?.into_inner().data)
    }
}

pub(crate) fn id(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(ChunkId::of(bytes).as_bytes())
}

/// Bytes that look like nothing else's.
pub(crate) fn noise(seed: u8, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// What a failing disk does while nobody looks: opens the database of a stopped node and changes a chunk's bytes.
pub(crate) fn rot(dir: &Path, chunk_id: &[u8]) {
    let options = rocksdb::Options::default();
    let db = rocksdb::DB::open_cf(&options, dir.join("db"), ["default", "chunks", "bytes"])
        .expect("the node stopped");
    let bytes = db.cf_handle("bytes").expect("a column family");
    let mut held = db.get_cf(&bytes, chunk_id).expect("readable").expect("held");
    held[0] ^= 1;
    db.put_cf(&bytes, chunk_id, held).expect("written");
}
