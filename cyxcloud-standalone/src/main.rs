//! `cyxcloud-standalone`: gateway, nodes and rebalancer in one process over an embedded database.
//!
//! The same servers as in a cluster, talking over loopback; only started together. What is acknowledged survives
//! a restart and a kill, as it does there.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints where it is and how to use it")]

mod banner;
mod secrets;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use cyxcloud_core::ByteCount;
use cyxcloud_core::address::{AddressPolicy, OwnAddresses};
use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::secret::{self, SecretError, Strength};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_gateway::config::{SecretFiles, TimerConfig};
use cyxcloud_gateway::run::make_private;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_rebalancer::{Rebuild, Services, Tuning, rebuild_locations};
use cyxcloud_tls::{ServerKeyArgs, TlsArgs};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::secrets::Secrets;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long all nodes may take to register.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks at who has registered.
const START_POLL: Duration = Duration::from_millis(50);
/// Nodes beat this often; they are in the same process.
const HEARTBEAT_SECS: u64 = 5;
/// Shards of all repairs under way.
const REBALANCER_MEMORY: ByteCount = ByteCount::mib(128);

/// CyxCloud in one process: gateway, storage nodes and rebalancer, with everything under one directory.
#[derive(Debug, Parser)]
#[command(
    name = "cyxcloud-standalone",
    version,
    about,
    max_term_width = 110,
    after_help = "The root user's secret key is in CYXCLOUD_ROOT_SECRET_KEY (32 characters or more), or in the file that \
        CYXCLOUD_ROOT_SECRET_KEY_FILE names. Other secrets are made once and kept in the data directory."
)]
struct Config {
    /// Where everything is kept; made if it is missing
    #[arg(long, env = "CYXCLOUD_DATA_DIR", value_name = "DIR", default_value = "cyxcloud-data")]
    data_dir: PathBuf,
    /// HTTP listen address: S3, REST, health
    #[arg(long, env = "HTTP_ADDR", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http_addr: SocketAddr,
    /// gRPC listen address; must be on this machine
    #[arg(long, env = "GRPC_ADDR", value_name = "ADDR", default_value = "127.0.0.1:0")]
    grpc_addr: SocketAddr,
    /// Listen address of Prometheus metrics for whoever reaches it; without it administrators' credentials are needed, at
    /// /metrics of the HTTP port
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDR")]
    metrics_addr: Option<SocketAddr>,
    /// Storage nodes; with one, an object has no second place to live
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: u16,
    /// Space that each node offers, in GB
    #[arg(long, env = "STORAGE_CAPACITY_GB", value_name = "GB", default_value = "100", value_parser = ByteCount::parse_gb)]
    node_capacity_gb: ByteCount,
    /// Allow browsers from all origins (CORS)
    #[arg(long)]
    cors_permissive: bool,
    /// Region that S3 clients sign for
    #[arg(long, env = "CYXCLOUD_REGION", value_name = "NAME", default_value = "us-east-1")]
    region: String,
    /// Access key of the root user; made once and kept in the data directory if it is not given
    #[arg(long, env = "CYXCLOUD_ROOT_ACCESS_KEY", value_name = "KEY")]
    root_access_key: Option<String>,
    /// Secret key of the root user; at least 32 characters
    #[arg(env = "CYXCLOUD_ROOT_SECRET_KEY", long = "root-secret-key", hide = true, hide_env_values = true)]
    root_secret_key: Option<SecretString>,
    #[arg(long, env = "CYXCLOUD_ROOT_SECRET_KEY_FILE", value_name = "PATH", hide = true)]
    root_secret_key_file: Option<PathBuf>,
    /// Where script/bootstrap keeps clients, for the examples
    #[arg(long, env = "CYXCLOUD_VENV", hide = true)]
    venv: Option<PathBuf>,
    /// Where programs are looked for, for the examples
    #[arg(long, env = "PATH", hide = true, hide_env_values = true)]
    search_path: Option<OsString>,
    /// Memory for object bytes in flight, over all requests
    #[arg(long, env = "CYXCLOUD_MEMORY", value_name = "SIZE", default_value = "256MiB")]
    memory: ByteCount,
    /// Rebuild lost locations of chunks from what the nodes hold, before background work begins
    #[arg(long)]
    rebuild_locations: bool,
    /// Then take out of the nodes' trash what stripes still lack: what was collected since the metadata's backup was made
    #[arg(long, requires = "rebuild_locations")]
    from_trash: bool,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    tuning: Tuning,
}

fn main() -> ExitCode {
    cyxcloud_node::allocator::keep_freed_memory();
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    let config = Config::parse();
    // People who try it out want to read the banner; RUST_LOG=info shows the rest.
    cyxcloud_telemetry::init("warn");
    match start(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cyxcloud-standalone: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let root_secret = given_root_secret(&config)?;
    make_private(&config.data_dir).with_context(|| format!("make {}", config.data_dir.display()))?;
    let listener = bind(config.http_addr).await?;
    let mut secrets = Secrets::open(&config.data_dir)?;
    override_root(&mut secrets, config.root_access_key.as_deref(), root_secret.as_deref())?;

    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let (gateway, metadata) = start_gateway(&config, &secrets, listener, &stop).await?;
    servers.spawn(gateway.task);
    let (services, tuning) = rebalancer(&config, &secrets, metadata.clone())?;
    // Nodes stop after the gateway, so that requests under way can finish.
    let stop_nodes = CancellationToken::new();
    let mut nodes = JoinSet::new();
    for index in 1..=config.nodes {
        nodes.spawn(start_node(&config, index, gateway.grpc_addr).await?.run(stop_nodes.clone()));
    }

    tokio::select! {
        result = wait_for_nodes(&*metadata, config.nodes) => result?,
        Some(ended) = servers.join_next() => ended.context("run")??,
        Some(ended) = nodes.join_next() => ended.context("run")??,
    }
    // Background work judges by what nodes hold, so it begins when they are there.
    if config.rebuild_locations {
        rebuild(&services, config.from_trash).await?;
    }
    let clean = stop.child_token();
    servers.spawn(async move {
        cyxcloud_rebalancer::run(services, tuning, None, clean.cancelled_owned()).await.context("rebalancer")
    });
    banner::print(&banner::Facts {
        tls: config.tls.tls_cert.is_some(),
        http: gateway.http_addr,
        nodes: config.nodes,
        data_dir: &config.data_dir,
        region: &config.region,
        access_key: &secrets.root_access_key,
        secret_key: &secrets.root_secret_key,
        secret_is_ours: root_secret.is_none(),
        search_path: config.search_path.as_deref(),
        venv: config.venv.as_deref(),
    });
    let mut early = None;
    tokio::select! {
        () = shutdown => eprintln!("stopping; requests under way may finish"),
        Some(ended) = servers.join_next() => early = Some(ended.context("run")?),
        Some(ended) = nodes.join_next() => early = Some(ended.context("run")?),
    }
    stop.cancel();
    drain(servers).await;
    stop_nodes.cancel();
    drain(nodes).await;
    early.unwrap_or(Ok(()))
}

/// Waits for all; what they say on the way out is logged, because the first failure is what counts.
async fn drain(mut set: JoinSet<anyhow::Result<()>>) {
    while let Some(ended) = set.join_next().await {
        if let Ok(Err(error)) = ended {
            tracing::warn!(error = format!("{error:#}"), "a server ended with an error");
        }
    }
}

/// The root user's secret key, if it is given and not ours to make.
fn given_root_secret(config: &Config) -> Result<Option<String>, SecretError> {
    let value = config.root_secret_key.as_ref().map(|secret| secret.expose_secret());
    let file = config.root_secret_key_file.as_deref();
    secret::obtain("CYXCLOUD_ROOT_SECRET_KEY", value, file, Strength::Key, |path| {
        std::fs::read_to_string(path)
    })
}

fn override_root(
    secrets: &mut Secrets,
    access_key: Option<&str>,
    secret_key: Option<&str>,
) -> anyhow::Result<()> {
    match (access_key, secret_key) {
        (Some(id), Some(secret)) => {
            id.clone_into(&mut secrets.root_access_key);
            secret.clone_into(&mut secrets.root_secret_key);
        }
        (None, None) => {}
        _ => bail!("give both CYXCLOUD_ROOT_ACCESS_KEY and CYXCLOUD_ROOT_SECRET_KEY, or neither"),
    }
    Ok(())
}

struct Gateway {
    http_addr: SocketAddr,
    grpc_addr: SocketAddr,
    task: std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>,
}

async fn start_gateway(
    config: &Config,
    secrets: &Secrets,
    http: TcpListener,
    stop: &CancellationToken,
) -> anyhow::Result<(Gateway, Arc<dyn MetadataStore>)> {
    if !config.grpc_addr.ip().is_loopback() {
        bail!(
            "--grpc-addr {} is not on this machine; nodes elsewhere need the separate servers",
            config.grpc_addr
        );
    }
    let mut gateway = cyxcloud_gateway::Config::parse_from(["cyxcloud-gateway", "--memory-only"]);
    gateway.memory_only = false;
    // Its secrets are those of the data directory, whatever the environment says, and its nodes are its own: no identity
    // service shares the one or has operators for the other.
    gateway.files = SecretFiles::default();
    gateway.cyxwiz_api_url = None;
    gateway.database_url = None;
    gateway.redis_url = None;
    gateway.data_dir = Some(config.data_dir.clone());
    gateway.cors_permissive = config.cors_permissive;
    // Its nodes listen on this machine only.
    gateway.grpc_auth = Some(false);
    gateway.node_networks = vec!["127.0.0.0/8".parse().context("loopback network")?];
    gateway.master_key = Some(secrets.master_key.clone().into());
    gateway.jwt_secret = Some(secrets.jwt_secret.clone().into());
    gateway.root_access_key = Some(secrets.root_access_key.clone());
    gateway.root_secret_key = Some(secrets.root_secret_key.clone().into());
    gateway.region.clone_from(&config.region);
    gateway.tls = config.tls.clone();
    // Its clients are the nodes in this process, and it is on this machine only.
    gateway.grpc_plaintext = true;
    // The environment may hold another server's.
    gateway.server_key = ServerKeyArgs::default();
    gateway.memory = config.memory;
    // Whoever asks for one node knows.
    gateway.allow_no_redundancy = config.nodes == 1;
    // All live and die together: nobody is in quarantine after a restart.
    gateway.timers = TimerConfig {
        node_offline_threshold_mins: config.tuning.node_offline_threshold_mins,
        node_offline_threshold_secs: config.tuning.node_offline_threshold_secs,
        node_recovery_quarantine_secs: Some(0),
        node_heartbeat_interval_secs: HEARTBEAT_SECS,
        ..TimerConfig::default()
    };
    let options = cyxcloud_gateway::Options::open(gateway.check()?).await?;
    let metadata = options.metadata.clone();
    let grpc = bind(config.grpc_addr).await?;
    let metrics = match config.metrics_addr {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let (http_addr, grpc_addr) = (http.local_addr()?, grpc.local_addr()?);
    let listeners = cyxcloud_gateway::Listeners { http, grpc, metrics };
    let stopped = stop.clone().cancelled_owned();
    let task =
        Box::pin(async move { cyxcloud_gateway::run(options, listeners, stopped).await.context("gateway") });
    Ok((Gateway { http_addr, grpc_addr, task }, metadata))
}

/// What keeps stored data stored, with a data plane of its own: repairs must not take a reader's memory.
fn rebalancer(
    config: &Config,
    secrets: &Secrets,
    metadata: Arc<dyn MetadataStore>,
) -> anyhow::Result<(Services, Tuning)> {
    let master: MasterKey = secrets.master_key.parse().context("read the master key")?;
    let registry = prometheus::Registry::new();
    let plane_config = cyxcloud_dataplane::Config {
        memory: REBALANCER_MEMORY,
        consent_to_no_redundancy: config.nodes == 1,
        offline: config.tuning.offline(),
        key: ServerKeyArgs::default().open(Some(&config.data_dir))?,
        ..cyxcloud_dataplane::Config::default()
    };
    let networks = vec!["127.0.0.0/8".parse().context("loopback network")?];
    let policy = AddressPolicy { networks, loopback: true, forbidden: OwnAddresses::default() };
    let plane = DataPlane::new(plane_config, metadata.clone(), policy, master.clone(), &registry);
    Ok((Services { metadata, plane, master, registry }, config.tuning.clone()))
}

/// What nodes hold is recorded again where it was lost. Nobody else has the database.
async fn rebuild(services: &Services, from_trash: bool) -> anyhow::Result<()> {
    let options = Rebuild { alone: true, from_trash, ..Rebuild::default() };
    let Services { metadata, plane, master, .. } = services;
    let report = rebuild_locations(metadata, plane, master, &options).await.context("rebuild locations")?;
    println!("{report}");
    println!("garbage collection is frozen; thaw it when all is well: POST /api/v1/admin/gc/thaw");
    Ok(())
}

struct Node {
    index: u16,
    config: cyxcloud_node::Config,
    listeners: cyxcloud_node::Listeners,
}

impl Node {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        cyxcloud_node::run(self.config, self.listeners, stop.cancelled_owned())
            .await
            .with_context(|| format!("node {}", self.index))
    }
}

async fn start_node(config: &Config, index: u16, gateway: SocketAddr) -> anyhow::Result<Node> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let system_chosen = SocketAddr::new(loopback, 0);
    let listeners =
        cyxcloud_node::Listeners { grpc: bind(system_chosen).await?, metrics: bind(system_chosen).await? };
    let node = cyxcloud_node::Config {
        node_id: Some(format!("node-{index}")),
        node_name: format!("node-{index}"),
        grpc_host: loopback,
        metrics_host: loopback,
        grpc_port: listeners.grpc.local_addr()?.port(),
        metrics_port: listeners.metrics.local_addr()?.port(),
        advertise_addr: Some(loopback.to_string()),
        storage_path: config.data_dir.join(format!("node-{index}")),
        storage_capacity_gb: config.node_capacity_gb,
        central_server_addr: format!("http://{gateway}"),
        node_networks: vec!["127.0.0.0/8".parse().context("loopback network")?],
        node_loopback: true,
        quiet: true,
        ..cyxcloud_node::Config::default()
    };
    Ok(Node { index, config: node.check()?, listeners })
}

async fn wait_for_nodes(metadata: &dyn MetadataStore, wanted: u16) -> anyhow::Result<()> {
    let started = metadata.now().await?;
    let all = async {
        loop {
            let nodes = metadata.nodes().await?;
            let here = nodes
                .iter()
                .filter(|node| node.status == NodeStatus::Online && node.last_heartbeat >= started);
            if here.count() >= usize::from(wanted) {
                return Ok(());
            }
            tokio::time::sleep(START_POLL).await;
        }
    };
    tokio::time::timeout(START_TIMEOUT, all).await.with_context(|| {
        format!("the {wanted} nodes did not register within {} s", START_TIMEOUT.as_secs())
    })?
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("bind {address}"))
}
