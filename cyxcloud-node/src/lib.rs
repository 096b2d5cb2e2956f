//! A storage node of CyxCloud: it lends a disk, keeps chunks there, and proves what it holds.
//!
//! [`run`] is a whole node over listeners that the caller bound, so that standalone and tests run several in a process.
//! What is acknowledged is on disk and synced; what is read was hashed on the way out. A node trusts nobody's address
//! and is trusted by nobody: gateways check every byte and every receipt.

mod account;
pub mod allocator;
pub mod config;
mod corrupt;
mod discovery;
mod gate;
mod gateway;
mod http;
pub mod identity;
mod limit;
mod metrics;
mod scrub;
mod service;
pub mod store;
mod trash;
mod vitals;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use cyxcloud_proto::MESSAGE_BYTES_MAX;
use cyxcloud_proto::node::chunk_service_server::ChunkServiceServer;
use cyxcloud_proto::node::data_service_server::DataServiceServer;
use cyxcloud_tls::crowd::Crowd;
use cyxcloud_tls::grpc::{Guests, incoming};
use cyxcloud_tls::{Acceptor, TlsError};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::account::Account;
pub use crate::account::log_out;
pub use crate::config::Config;
use crate::corrupt::CorruptChunks;
use crate::gate::Gate;
use crate::gateway::Membership;
use crate::identity::Identity;
use crate::limit::{Callers, Limited};
use crate::metrics::Metrics;
use crate::scrub::Scrubber;
use crate::service::{Service, Whole};
use crate::store::ChunkStore;
use crate::store::rocks::{RocksConfig, RocksStore};

/// HTTP/2 for half-megabyte messages: large frames and windows on both ends halve what moving them costs.
pub(crate) const FRAME_BYTES: u32 = 1 << 20;
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;

const STREAMS_MAX: u32 = 256;
const HEADER_LIST_MAX: u32 = 16 << 10;
/// The slowest line still sends the largest chunk in this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest question about health, which anybody may ask: the name of a service.
const HEALTH_BYTES_MAX: usize = 1 << 10;

/// Why a node did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was told nonsense.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// Its identity cannot be read or made.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// Its data directory cannot be used.
    #[error("could not open the data directory {path}")]
    Store {
        /// Which one.
        path: String,
        /// Why not.
        #[source]
        source: store::Error,
    },
    /// A port is taken, or an address not ours.
    #[error("could not listen on {address} for {what}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// What was to be served there.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A listener has no address.
    #[error("could not ask a listener for its address")]
    Listener(#[source] std::io::Error),
    /// The gateway's address is none.
    #[error("CENTRAL_SERVER_ADDR {url:?} is not a URL such as http://gateway:50052 or https://gateway:50052")]
    GatewayAddress {
        /// As it was given.
        url: String,
    },
    /// What an https gateway is to be trusted by cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The chunk service stopped by itself.
    #[error("the chunk service failed")]
    Serve(#[source] tonic::transport::Error),
    /// A part of the node panicked: our mistake, and a node that only half lives would be another.
    #[error("a part of the node panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Bound sockets of a node.
#[derive(Debug)]
pub struct Listeners {
    /// For the chunk service.
    pub grpc: TcpListener,
    /// For health and metrics.
    pub metrics: TcpListener,
}

impl Listeners {
    /// Binds what the configuration says; port 0 lets the system choose.
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let bind = async |address: SocketAddr, what| {
            TcpListener::bind(address).await.map_err(|source| Error::Bind { address, what, source })
        };
        Ok(Self {
            grpc: bind((config.grpc_host, config.grpc_port).into(), "the chunk service").await?,
            metrics: bind((config.metrics_host, config.metrics_port).into(), "health and metrics").await?,
        })
    }
}

/// Runs a node until `shutdown`, then ends what is in progress (for as long as the configuration grants) and flushes.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let config = config.check()?;
    let (grpc_port, metrics_port) = (port(&listeners.grpc)?, port(&listeners.metrics)?);
    let (host, advertised_port) = config.advertised()?;
    // The store first: it locks the directory, so that two nodes never make two identities there.
    let store = open(&config).await?;
    let identity = Identity::open(&config.storage_path)?;
    let (account, access) = Account::open(&config, identity.peer_id())?.unzip();
    let gateway = gateway::channel(&config, &identity)?;

    let metrics = Metrics::new();
    metrics.offer(&config.account());
    let corrupt = Arc::new(CorruptChunks::new(store.quarantined()));
    let gate =
        Arc::new(Gate::open(identity.key().public(), &config.storage_path, metrics.tokens_refused.clone()));
    let callers = Arc::new(Callers::new(gate.clone(), metrics.strangers_refused.clone()));
    let service = Service::new(
        store.clone(),
        identity.key().clone(),
        callers.clone(),
        config.policy(),
        !config.trash_period().is_zero(),
        corrupt.clone(),
        metrics.clone(),
    );
    let (stop, stopped) = oneshot::channel();
    let tls = config.tls.then(|| Acceptor::of_identity(identity.key(), metrics.tls.clone()));
    let guests = Guests {
        crowd: Crowd::new(config.connections_per_address as usize),
        refused: metrics.connections_refused.clone(),
    };
    let mut serving = serve(listeners.grpc, guests, tls, service, callers, stopped).await;
    info!(grpc_port, metrics_port, tls = config.tls, peer_id = identity.peer_id(), "node serves chunks");

    // All of these end by being dropped.
    let mut tasks = JoinSet::new();
    let readers = config.metrics_networks.clone();
    tasks.spawn(http::serve(listeners.metrics, store.clone(), metrics.clone(), readers));
    let scrub = Arc::new(Notify::new());
    let scrubber = Scrubber {
        store: store.clone(),
        corrupt: corrupt.clone(),
        metrics: metrics.clone(),
        dir: config.storage_path.clone(),
        interval: config.scrub_interval(),
        bytes_per_sec: config.scrub_bytes_per_sec,
    };
    tasks.spawn(scrubber.run(scrub.clone()));
    tasks.spawn(trash::empty(store.clone(), config.trash_period()));
    if config.wants_discovery() {
        tasks.spawn(discover(config.clone(), identity.clone(), metrics.clone()));
    }
    let grace = Duration::from_secs(config.shutdown_grace_secs);
    let grpc_port = advertised_port.unwrap_or(grpc_port);
    let membership = Membership {
        config,
        identity,
        gate,
        skew_ms: AtomicI64::new(0),
        access,
        store: store.clone(),
        corrupt,
        metrics,
        scrub,
        host,
        grpc_port,
        metrics_port,
    };
    tasks.spawn(membership.keep(gateway));
    if let Some(account) = account {
        tasks.spawn(account.keep());
    }

    let ended = tokio::select! {
        () = shutdown => Ok(()),
        panicked = first_panic(&mut tasks) => Err(Error::Panicked(panicked)),
        ended = &mut serving => outcome(ended),
    };
    info!("node stops");
    // The server may have stopped by itself at this instant.
    let _ = stop.send(());
    let result = match ended {
        Ok(()) if !serving.is_finished() => finish(serving, grace).await,
        ended => ended,
    };
    tasks.shutdown().await;
    // Blocking, and worth waiting for: it makes the next start short.
    let _ = tokio::task::spawn_blocking(move || store.close()).await;
    result
}

fn port(listener: &TcpListener) -> Result<u16, Error> {
    Ok(listener.local_addr().map_err(Error::Listener)?.port())
}

async fn open(config: &Config) -> Result<Arc<dyn ChunkStore>, Error> {
    let rocks = RocksConfig {
        dir: config.storage_path.clone(),
        allocatable: config.account().allocatable(),
        page_cache: config.storage_page_cache,
    };
    let path = config.storage_path.display().to_string();
    let opened = tokio::task::spawn_blocking(move || RocksStore::open(&rocks)).await;
    let opened = opened.unwrap_or(Err(store::Error::Closed));
    Ok(Arc::new(opened.map_err(|source| Error::Store { path, source })?))
}

type Serving = JoinHandle<Result<(), tonic::transport::Error>>;

/// Starts the gRPC server; it stops accepting, and ends what it has begun, once `stopped` is heard.
async fn serve(
    listener: TcpListener,
    guests: Guests,
    tls: Option<Acceptor>,
    service: Service,
    callers: Arc<Callers>,
    stopped: oneshot::Receiver<()>,
) -> Serving {
    let chunks = ChunkServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let data = DataServiceServer::new(service.clone())
        .max_decoding_message_size(1 << 20)
        .max_encoding_message_size(1 << 20);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ChunkServiceServer<Service>>().await;
    health.set_serving::<DataServiceServer<Service>>().await;
    let router = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_LIST_MAX)
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(Limited::new(Whole::new(chunks, service.clone()), callers.clone()))
        .add_service(Limited::new(data, callers))
        .add_service(health_service.max_decoding_message_size(HEALTH_BYTES_MAX));
    let listener =
        TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(Duration::from_secs(60)));
    let incoming = incoming(listener, guests, tls);
    let stop = async move {
        // Whoever held the other end and is gone wants the end too.
        let _ = stopped.await;
        health.set_not_serving::<ChunkServiceServer<Service>>().await;
        health.set_not_serving::<DataServiceServer<Service>>().await;
    };
    tokio::spawn(router.serve_with_incoming_shutdown(incoming, stop))
}

async fn finish(mut serving: Serving, grace: Duration) -> Result<(), Error> {
    match tokio::time::timeout(grace, &mut serving).await {
        Ok(ended) => outcome(ended),
        Err(_) => {
            warn!(grace_secs = grace.as_secs(), "requests did not end in time and are cut off");
            serving.abort();
            Ok(())
        }
    }
}

fn outcome(ended: Result<Result<(), tonic::transport::Error>, JoinError>) -> Result<(), Error> {
    ended.map_err(Error::Panicked)?.map_err(Error::Serve)
}

/// Waits until one of the tasks panics. Discovery may end as it likes.
async fn first_panic(tasks: &mut JoinSet<()>) -> JoinError {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) if error.is_panic() => return error,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

async fn discover(config: Config, identity: Identity, metrics: Arc<Metrics>) {
    let listen = (config.grpc_host, config.libp2p_port);
    let ran = discovery::run(&identity, listen, &config.bootstrap_peers, config.policy(), metrics).await;
    if let Err(error) = ran {
        warn!(%error, "discovery does not run; the node does");
    }
}
