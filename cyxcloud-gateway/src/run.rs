//! Puts a gateway together from its configuration and runs it until it is told to stop.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::OwnerId;
use cyxcloud_core::seal::{MASTER_KEY_CHECK, MasterKey};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_dataplane::own::{OwnServer, OwnServers};
use cyxcloud_metadata::model::Owner;
use cyxcloud_metadata::postgres::{self, PostgresConfig, PostgresStore};
use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};
use cyxcloud_metadata::{Error as MetadataError, MetadataStore};
use cyxcloud_proto::gateway::data_service_server::DataServiceServer;
use cyxcloud_proto::gateway::node_service_server::NodeServiceServer;
use cyxcloud_tls::grpc::{Guests, incoming};
use cyxcloud_tls::{Acceptor, Protocols, ServerCertificate, ServerKeyError, TlsError};
use prometheus::{IntCounter, Registry};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::api::{self, Api};
use crate::auth::{Authenticator, JwtConfig, RootCredentials};
use crate::config::{Config, ConfigError};
use crate::data_service::DataApi;
use crate::documents::Documents;
use crate::ephemeral::{Ephemeral, InProcess, Redis};
use crate::events::Events;
use crate::identity::challenge::Binding;
use crate::identity::{self, Identity};
use crate::journal::{Denials, journal};
use crate::nodes::callback::Caller;
use crate::nodes::{Heartbeats, Monitor, NodeApi, Operators, Suspensions};
use crate::objects::{self, ObjectService, OwnerSecrets};
use crate::readiness::Lookout;
use crate::serve::{App, Metrics, serve, serve_metrics};
use crate::websocket::Sockets;

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
fn make_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

async fn open_ephemeral(url: Option<&SecretString>) -> Result<Arc<dyn Ephemeral>, Error> {
    match url {
        Some(url) => Ok(Arc::new(Redis::connect(url.expose_secret()).await?)),
        None => Ok(Arc::new(InProcess::default())),
    }
}

/// Refuses a master key other than the one the database began with: its seals could not be opened.
async fn open_master(config: &Config, metadata: &dyn MetadataStore) -> Result<MasterKey, Error> {
    let master = config.master_key()?.unwrap_or_else(|| MasterKey::from_bytes(rand::random()));
    let check = master.check_value();
    if metadata.keep_constant(MASTER_KEY_CHECK, &check).await? != check {
        return Err(Error::WrongMasterKey);
    }
    Ok(master)
}

async fn ensure_root(
    config: &Config,
    metadata: &dyn MetadataStore,
    master: &MasterKey,
) -> Result<Option<RootCredentials>, Error> {
    let (Some(access_key), Some(secret)) = (&config.root_access_key, &config.root_secret_key) else {
        warn!("no CYXCLOUD_ROOT_ACCESS_KEY: only access keys in the database and tokens work");
        return Ok(None);
    };
    let wrapped_secret = OwnerSecrets::wrap_new(master, ROOT_OWNER);
    let root = Owner {
        id: ROOT_OWNER,
        username: Some("root".to_owned()),
        email: None,
        wallet_address: None,
        admin: true,
        storage_quota: None,
        wrapped_secret,
        created_at: cyxcloud_core::Timestamp::default(),
    };
    metadata.ensure_owner(&root).await?;
    Ok(Some(RootCredentials { access_key: access_key.clone(), secret: secret.clone(), owner: ROOT_OWNER }))
}

/// Our own servers, which no node may claim to be.
fn own_servers(config: &Config) -> Result<Vec<OwnServer>, Error> {
    let mut own = Vec::new();
    if let Some(url) = &config.database_url
        && let Some((host, port)) = postgres::endpoint(url.expose_secret())?
    {
        own.push(OwnServer { variable: "DATABASE_URL", host, port });
    }
    if let Some(url) = &config.redis_url
        && let Some((host, port)) = Redis::endpoint(url.expose_secret())?
    {
        own.push(OwnServer { variable: "REDIS_URL", host, port });
    }
    Ok(own)
}

/// Runs until `shutdown` completes or a port fails.
pub async fn run(
    options: Options,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let Options { config, metadata } = options;
    if listeners.http.local_addr().is_ok_and(|address| config.signs_as_another(address.ip())) {
        warn!(
            auth_domain = %config.auth_domain,
            "wallets that log in here sign for a name of every machine; set CYXCLOUD_AUTH_DOMAIN to the one that people use"
        );
    }
    let registry = Registry::new();
    // First, because it is what an operator gets wrong.
    let secure = Secure::load(&config, &registry)?;
    let master = open_master(&config, &*metadata).await?;
    let ephemeral = open_ephemeral(config.redis_url.as_ref()).await?;
    let root = ensure_root(&config, &*metadata, &master).await?;
    let own = OwnServers::find(own_servers(&config)?).await;
    let policy = config.address_policy(own.addresses());
    let key = config.server_key.open(config.data_dir.as_deref().filter(|_| !config.memory_only))?;
    let plane_config = cyxcloud_dataplane::Config {
        memory: config.memory,
        inline_max: config.inline_max,
        small_max: config.small_max,
        consent_to_no_redundancy: config.allow_no_redundancy,
        offline: config.timers.lifecycle().offline,
        key: key.clone(),
        ..cyxcloud_dataplane::Config::default()
    };
    let plane = DataPlane::new(plane_config, metadata.clone(), policy.clone(), master.clone(), &registry);
    let jwt = config.jwt_secret.as_ref().map(|secret| JwtConfig {
        secret: secret.clone(),
        previous: config.jwt_secret_previous.clone(),
        issuer: config.jwt_issuer.clone(),
        audience: config.jwt_audience.clone(),
    });
    let mut auth =
        Authenticator::new(metadata.clone(), master.clone(), jwt.clone(), config.region.clone(), root)
            .with_domains(config.domains.clone())
            .with_newcomer_quota(config.user_quota);
    if let (Some(client), Some(jwt)) = (config.identity_service()?, jwt) {
        auth = auth.with_identity_service(client, jwt, Duration::from_secs(config.cyxwiz_cache_secs));
    }
    let auth = Arc::new(auth);
    let objects_config = objects::Config {
        inline_max: config.inline_max,
        buckets_max: config.buckets_per_owner_max,
        uploads_max: config.uploads_per_owner_max,
        offline: config.timers.lifecycle().offline,
        ..objects::Config::default()
    };
    let identity = Arc::new(Identity::new(
        metadata.clone(),
        ephemeral.clone(),
        auth.clone(),
        master.clone(),
        identity::Config {
            binding: Binding { domain: config.auth_domain.clone(), chain: config.auth_chain.clone() },
            quota: Some(config.user_quota),
            signups_per_hour: config.signups_per_hour,
        },
    ));
    let secrets = OwnerSecrets::new(metadata.clone(), master);
    let (events, relay) = match config.redis_url {
        Some(_) => {
            let (events, relay) = Events::among_gateways(&registry, ephemeral.clone())?;
            (events, Some(relay))
        }
        None => (Events::new(&registry)?, None),
    };
    let objects = ObjectService::new(metadata.clone(), plane.clone(), secrets, objects_config);
    let objects = Arc::new(objects.with_events(events.clone()));
    let monitor = Monitor::new(
        metadata.clone(),
        plane.clone(),
        ephemeral.clone(),
        config.timers.lifecycle(),
        &registry,
    )?
    .with_events(events.clone());
    let other_identities = IntCounter::new(
        "cyxcloud_gateway_node_identity_mismatches_total",
        "Nodes refused because who answered at their address was somebody else",
    )?;
    registry.register(Box::new(other_identities.clone()))?;
    let nodes = NodeApi::new(
        metadata.clone(),
        ephemeral.clone(),
        Caller { policy, key, other_identities },
        Heartbeats::start(metadata.clone(), monitor.listening()),
        config.timers.heartbeat_interval(),
        config.node_format,
        plane.clone(),
        config.requires_node_auth().then(|| auth.clone()),
        config
            .wants_operators()
            .then(|| Operators { accounts: auth.clone(), nodes_max: config.nodes_per_operator_max }),
    );
    let suspensions =
        config.wants_operators().then(|| Suspensions::new(metadata.clone(), ephemeral.clone(), auth.clone()));
    let denials = Denials::default();
    let (journal, scribe) = journal(&registry, denials.clone())?;
    let data = DataApi::new(objects.clone(), auth.clone(), journal.clone());
    let sockets = Arc::new(Sockets::new(auth.clone(), events, ephemeral.clone(), config.sockets()));
    let documents = Documents::new(&registry)?;
    let app = Arc::new(App {
        auth: auth.clone(),
        s3: crate::s3::service(
            objects.clone(),
            documents.clone(),
            crate::s3::Options {
                region: config.region.clone(),
                cors_permissive: config.cors_permissive,
                journal: Some(journal),
            },
        ),
        objects: objects.clone(),
        rest: api::router(Api {
            objects,
            metadata: metadata.clone(),
            identity: identity.clone(),
            sockets,
            documents,
            denials,
            ephemeral: ephemeral.clone(),
            registry: registry.clone(),
        }),
        identity: identity.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        crowd: config.crowd(),
        lookout: Lookout::new(metadata.clone(), ephemeral, if config.allow_no_redundancy { 1 } else { 2 }),
        domains: config.domains.clone(),
        tls: secure.acceptor(Protocols::Http)?,
        metrics: Metrics::new(&registry)?,
    });
    let grpc_refused = IntCounter::new(
        "cyxcloud_gateway_grpc_connections_refused_total",
        "Connections closed at once because their address had as many as it may have",
    )?;
    registry.register(Box::new(grpc_refused.clone()))?;
    let metrics_refused = IntCounter::new(
        "cyxcloud_gateway_metrics_connections_refused_total",
        "Connections for metrics closed at once because their address had as many as it may have",
    )?;
    registry.register(Box::new(metrics_refused.clone()))?;
    let grpc_tls = if config.grpc_plaintext { None } else { secure.acceptor(Protocols::Grpc)? };

    let stop = CancellationToken::new();
    let written = CancellationToken::new();
    let mut writing = tokio::spawn(scribe.write(metadata.clone(), written.clone()));
    let audit_kept = Duration::from_secs(u64::from(config.audit_days) * 24 * 3600);
    // None of them decides whether the gateway may go on: each is late at worst.
    let chores = tokio::spawn(async move {
        tokio::join!(
            auth.record_use(),
            identity.listen(),
            own.keep_looking(),
            purge(&*metadata, audit_kept),
            secure.keep_fresh(),
            async {
                if let Some(suspensions) = suspensions {
                    suspensions.run().await;
                }
            },
            async {
                if let Some(relay) = relay {
                    relay.run().await;
                }
            }
        );
    });
    let mut monitoring = tokio::spawn(monitor.run());
    let guests = Guests { crowd: config.crowd(), refused: grpc_refused };
    let mut http = tokio::spawn(serve(app, listeners.http, stop.clone()));
    let mut grpc = tokio::spawn(serve_grpc(nodes, data, listeners.grpc, guests, grpc_tls, stop.clone()));
    let metrics = listeners
        .metrics
        .map(|listener| tokio::spawn(serve_metrics(registry, listener, metrics_refused, stop.clone())));
    info!("gateway runs");
    // Half a gateway is worse than none: whatever ends by itself ends all.
    let failed = |name, error: Box<dyn std::error::Error + Send + Sync>| Err(Error::Serve(name, error));
    let result = tokio::select! {
        () = shutdown => Ok(()),
        ended = &mut monitoring => failed("the node monitor", ended_by_itself(ended.err())),
        ended = &mut http => failed("HTTP", ended_by_itself(ended.err())),
        ended = &mut grpc => ended.unwrap_or_else(|error| failed("gRPC", Box::new(error))),
    };
    info!("gateway stops: requests under way may finish");
    stop.cancel();
    let finish = async {
        // One that ended was awaited above already.
        if !http.is_finished() {
            let _ = http.await;
        }
        if !grpc.is_finished() {
            let _ = grpc.await;
        }
        if let Some(metrics) = metrics {
            let _ = metrics.await;
        }
    };
    if tokio::time::timeout(SHUTDOWN_GRACE, finish).await.is_err() {
        warn!(grace_secs = SHUTDOWN_GRACE.as_secs(), "requests were still under way and are cut off");
    }
    // After the requests: the last of them may have noted something.
    written.cancel();
    if tokio::time::timeout(JOURNAL_GRACE, &mut writing).await.is_err() {
        warn!(grace_secs = JOURNAL_GRACE.as_secs(), "the last lines of the audit log may be lost");
        writing.abort();
    }
    monitoring.abort();
    chores.abort();
    result
}

/// The certificate of both ports, if there is one.
struct Secure {
    certificate: Option<Arc<ServerCertificate>>,
    metrics: cyxcloud_tls::Metrics,
}

impl Secure {
    fn load(config: &Config, registry: &Registry) -> Result<Self, Error> {
        let metrics = cyxcloud_tls::Metrics::new(registry)?;
        Ok(Self { certificate: config.tls.load(&metrics)?, metrics })
    }

    fn acceptor(&self, protocols: Protocols) -> Result<Option<Acceptor>, TlsError> {
        let acceptor = |certificate: &Arc<ServerCertificate>| {
            Acceptor::new(certificate.clone(), protocols, self.metrics.clone())
        };
        self.certificate.as_ref().map(acceptor).transpose()
    }

    async fn keep_fresh(self) {
        let Some(certificate) = self.certificate else { return };
        if let Err(error) = certificate.keep_fresh().await {
            warn!(
                error = &error as &dyn std::error::Error,
                "a new certificate will be seen at the next start only"
            );
        }
    }
}

/// Drops what has expired, now and then.
async fn purge(metadata: &dyn MetadataStore, audit_kept: Duration) {
    const EVERY: Duration = Duration::from_secs(600);
    const AT_ONCE: usize = 1000;
    loop {
        match metadata.purge_identity(audit_kept, AT_ONCE).await {
            // There may be more.
            Ok(gone) if gone >= AT_ONCE => {}
            Ok(_) => tokio::time::sleep(EVERY).await,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "what has expired could not be dropped");
                tokio::time::sleep(EVERY).await;
            }
        }
    }
}

fn ended_by_itself(panic: Option<tokio::task::JoinError>) -> Box<dyn std::error::Error + Send + Sync> {
    panic.map_or_else(|| "it ended by itself".into(), |panic| panic.to_string().into())
}

async fn serve_grpc(
    nodes: NodeApi,
    data: DataApi,
    listener: TcpListener,
    guests: Guests,
    tls: Option<Acceptor>,
    stop: CancellationToken,
) -> Result<(), Error> {
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
