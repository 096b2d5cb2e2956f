//! Opens what a gateway runs on, and runs it until it is told to stop. Not here: what it is made of ([`crate::assemble`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::OwnerId;
use cyxcloud_metadata::postgres::{PostgresConfig, PostgresStore};
use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};
use cyxcloud_metadata::{Error as MetadataError, MetadataStore};
use cyxcloud_proto::gateway::data_service_server::DataServiceServer;
use cyxcloud_proto::gateway::node_service_server::NodeServiceServer;
use cyxcloud_tls::grpc::incoming;
use cyxcloud_tls::{ServerKeyError, TlsError};
use prometheus::Registry;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::assemble::{Gateway, Grpc};
use crate::config::{Config, ConfigError};
use crate::data_service::DataApi;
use crate::nodes::NodeApi;
use crate::serve::{serve, serve_metrics};

/// Longest message that is asked by gRPC: a heartbeat with a thousand corrupt chunks has 40 KiB. Whoever sends one is not known
/// before all of it is there.
const GRPC_MESSAGE_MAX: usize = 64 << 10;
/// Requests on one gRPC connection at a time.
const GRPC_STREAMS_MAX: u32 = 64;
/// Until then a request has come whole, and its answer begins: a registration calls the node back, which takes the longest.
const GRPC_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests under way at shutdown have this long to finish.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
/// What was noted for the audit log has this long to be written then.
const JOURNAL_GRACE: Duration = Duration::from_secs(5);
/// The root user; everything that root's access key makes belongs to it.
pub const ROOT_OWNER: OwnerId =
    OwnerId::from_uuid(uuid::Uuid::from_u128(0x6379_7863_6c6f_4000_8000_0000_0000_0001));

/// Why a gateway did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The metadata store cannot be used.
    #[error("metadata store")]
    Metadata(#[from] MetadataError),
    /// Redis was named and does not answer.
    #[error("REDIS_URL")]
    Ephemeral(#[from] crate::ephemeral::Error),
    /// The database was written under another master key.
    #[error("CYXCLOUD_MASTER_KEY is not the one that this database was written with")]
    WrongMasterKey,
    /// The root owner's secret does not unwrap.
    #[error("a stored secret cannot be unwrapped under CYXCLOUD_MASTER_KEY")]
    Seal(#[from] cyxcloud_core::seal::SealError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no key to show to nodes.
    #[error(transparent)]
    Key(#[from] ServerKeyError),
    /// A metric could not be registered.
    #[error("could not set up metrics")]
    Prometheus(#[from] prometheus::Error),
    /// A port failed.
    #[error("could not serve {0}")]
    Serve(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Bound sockets.
#[derive(Debug)]
pub struct Listeners {
    /// S3, REST, health.
    pub http: TcpListener,
    /// NodeService, DataService.
    pub grpc: TcpListener,
    /// Prometheus, if wanted.
    pub metrics: Option<TcpListener>,
}

/// What a gateway runs on, opened from the configuration or handed in by a process that shares it.
#[derive(Debug)]
pub struct Options {
    /// The configuration, checked.
    pub config: Config,
    /// The metadata store.
    pub metadata: Arc<dyn MetadataStore>,
}

impl Options {
    /// Opens the metadata store that the configuration names.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let metadata = open_metadata(&config).await?;
        Ok(Self { config, metadata })
    }
}

async fn open_metadata(config: &Config) -> Result<Arc<dyn MetadataStore>, Error> {
    if config.memory_only {
        warn!("metadata is kept in memory: everything is lost at exit");
        return Ok(Arc::new(SqliteStore::open(&SqliteConfig::Memory)?));
    }
    if let Some(url) = &config.database_url {
        let postgres = PostgresConfig {
            url: url.expose_secret().to_owned(),
            max_connections: config.database_connections,
            accept_data_loss: config.i_accept_data_loss,
        };
        return Ok(Arc::new(PostgresStore::connect(&postgres).await?));
    }
    let directory = config.data_dir.clone().unwrap_or_default();
    make_private(&directory).map_err(|source| MetadataError::Unavailable {
        doing: "create the data directory",
        source: Box::new(source),
    })?;
    Ok(Arc::new(SqliteStore::open(&SqliteConfig::File(directory.join("metadata.sqlite")))?))
}

/// Makes a directory that only its owner can look into. One that exists is left as it is.
pub fn make_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Runs until `shutdown` completes or a port fails.
pub async fn run(
    options: Options,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    if listeners.http.local_addr().is_ok_and(|address| options.config.signs_as_another(address.ip())) {
        warn!(
            auth_domain = %options.config.auth_domain,
            "wallets that log in here sign for a name of every machine; set CYXCLOUD_AUTH_DOMAIN to the one that people use"
        );
    }
    let registry = Registry::new();
    let gateway = Gateway::assemble(options, &registry).await?;
    let mut running = Running::start(gateway, listeners, registry);
    info!("gateway runs");
    let result = running.until(shutdown).await;
    info!("gateway stops: requests under way may finish");
    running.stop().await;
    result
}

/// What runs beside what.
struct Running {
    /// Ends the ports.
    stop: CancellationToken,
    /// Ends the audit log's writer once it has written all.
    written: CancellationToken,
    http: JoinHandle<()>,
    grpc: JoinHandle<Result<(), Error>>,
    metrics: Option<JoinHandle<()>>,
    monitoring: JoinHandle<()>,
    writing: JoinHandle<()>,
    chores: JoinHandle<()>,
}

impl Running {
    fn start(gateway: Gateway, listeners: Listeners, registry: Registry) -> Self {
        let (stop, written) = (CancellationToken::new(), CancellationToken::new());
        let metrics_refused = gateway.metrics_refused;
        Self {
            writing: tokio::spawn(gateway.scribe.write(gateway.metadata, written.clone())),
            chores: tokio::spawn(gateway.chores.run()),
            monitoring: tokio::spawn(gateway.monitor.run()),
            http: tokio::spawn(serve(gateway.app, listeners.http, stop.clone())),
            grpc: tokio::spawn(serve_grpc(gateway.grpc, listeners.grpc, stop.clone())),
            metrics: listeners.metrics.map(|listener| {
                tokio::spawn(serve_metrics(registry, listener, metrics_refused, stop.clone()))
            }),
            stop,
            written,
        }
    }

    /// Until `shutdown` completes. Half a gateway is worse than none: whatever ends by itself ends all.
    async fn until(&mut self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let failed = |name, error: Box<dyn std::error::Error + Send + Sync>| Err(Error::Serve(name, error));
        tokio::select! {
            () = shutdown => Ok(()),
            ended = &mut self.monitoring => failed("the node monitor", ended_by_itself(ended.err())),
            ended = &mut self.http => failed("HTTP", ended_by_itself(ended.err())),
            ended = &mut self.grpc => ended.unwrap_or_else(|error| failed("gRPC", Box::new(error))),
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let finish = async {
            // One that ended was awaited above already.
            if !self.http.is_finished() {
                let _ = self.http.await;
            }
            if !self.grpc.is_finished() {
                let _ = self.grpc.await;
            }
            if let Some(metrics) = self.metrics {
                let _ = metrics.await;
            }
        };
        if tokio::time::timeout(SHUTDOWN_GRACE, finish).await.is_err() {
            warn!(grace_secs = SHUTDOWN_GRACE.as_secs(), "requests were still under way and are cut off");
        }
        // After the requests: the last of them may have noted something.
        self.written.cancel();
        if tokio::time::timeout(JOURNAL_GRACE, &mut self.writing).await.is_err() {
            warn!(grace_secs = JOURNAL_GRACE.as_secs(), "the last lines of the audit log may be lost");
            self.writing.abort();
        }
        self.monitoring.abort();
        self.chores.abort();
    }
}

fn ended_by_itself(panic: Option<tokio::task::JoinError>) -> Box<dyn std::error::Error + Send + Sync> {
    panic.map_or_else(|| "it ended by itself".into(), |panic| panic.to_string().into())
}

async fn serve_grpc(grpc: Grpc, listener: TcpListener, stop: CancellationToken) -> Result<(), Error> {
    let Grpc { nodes, data, guests, tls } = grpc;
    let failed = |error: tonic::transport::Error| Error::Serve("gRPC", Box::new(error));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NodeServiceServer<NodeApi>>().await;
    health.set_serving::<DataServiceServer<DataApi>>().await;
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(Some(GRPC_STREAMS_MAX))
        .timeout(GRPC_TIMEOUT)
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_max_header_list_size(Some(16 << 10))
        .tcp_nodelay(true)
        .add_service(health_service)
        .add_service(NodeServiceServer::new(nodes).max_decoding_message_size(GRPC_MESSAGE_MAX))
        .add_service(DataServiceServer::new(data).max_decoding_message_size(GRPC_MESSAGE_MAX))
        .serve_with_incoming_shutdown(
            incoming(TcpIncoming::from(listener).with_nodelay(Some(true)), guests, tls),
            stop.cancelled_owned(),
        )
        .await
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_can_look_into_a_data_directory() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/data");
        let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        make_private(&path).expect("made");
        assert_eq!((mode(&path), mode(&directory.path().join("deep"))), (0o700, 0o700));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).expect("opened up");
        make_private(&path).expect("is there");
        assert_eq!(mode(&path), 0o750, "as its operator wants it");
    }
}
