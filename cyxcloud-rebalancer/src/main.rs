//! `cyxcloud-rebalancer`: reads its configuration, connects, and runs until it is told to stop.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use cyxcloud_core::ByteCount;
use cyxcloud_core::seal::{MASTER_KEY_CHECK, MasterKey};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::postgres::{PostgresConfig, PostgresStore};
use cyxcloud_rebalancer::{Command, Config, Rebuild, Report, Services, check_redis, rebuild_locations, run};
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections to PostgreSQL beside one for every repair under way.
const DATABASE_CONNECTIONS: u32 = 6;
/// Shards of all repairs under way.
const MEMORY: ByteCount = ByteCount::mib(256);

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match start(config).await {
        Ok(code) => code,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the one line that says why the program ends")]
            {
                eprintln!("cyxcloud-rebalancer: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn start(config: Config) -> anyhow::Result<ExitCode> {
    config.tuning.check()?;
    let Some(master) = &config.master_key else {
        bail!("CYXCLOUD_MASTER_KEY is not set; give it the key that the gateway has");
    };
    let master: MasterKey = master.expose_secret().parse().context("read CYXCLOUD_MASTER_KEY")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let metadata = PostgresStore::connect(&PostgresConfig {
        url: config.database_url.expose_secret().to_owned(),
        max_connections: DATABASE_CONNECTIONS + config.tuning.repair_parallelism,
        accept_data_loss: config.i_accept_data_loss,
    })
    .await
    .context("connect to DATABASE_URL")?;
    if let Some(url) = &config.redis_url {
        check_redis(url.expose_secret()).await.context("connect to REDIS_URL")?;
    }
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let check = master.check_value();
    if metadata.keep_constant(MASTER_KEY_CHECK, &check).await.context("look at the database")? != check {
        bail!("CYXCLOUD_MASTER_KEY is not the one that this database was written with");
    }
    let metadata: Arc<dyn MetadataStore> = Arc::new(metadata);
    let registry = prometheus::Registry::new();
    let plane_config = cyxcloud_dataplane::Config { memory: MEMORY, ..cyxcloud_dataplane::Config::default() };
    let policy = config.address_policy(own_addresses(&config).await);
    let plane = DataPlane::new(plane_config, metadata.clone(), policy, master.clone(), &registry);
    if let Some(Command::RebuildLocations { dry_run, nodes }) = config.command {
        let rebuild = Rebuild { dry_run, nodes, alone: false };
        return tokio::select! {
            report = rebuild_locations(&metadata, &plane, &master, &rebuild) => tell(&report?),
            () = shutdown => bail!("stopped half-way; what was recorded stays, run it again"),
        };
    }
    let listener = tokio::net::TcpListener::bind(config.http_addr)
        .await
        .with_context(|| format!("bind {}", config.http_addr))?;
    let services = Services { metadata, plane, master, registry };
    run(services, config.tuning, Some(listener), shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout, reason = "the report is what the command is for")]
fn tell(report: &Report) -> anyhow::Result<ExitCode> {
    println!("{report}");
    if !report.is_complete() {
        bail!("not all is known again: start the nodes that were not read, and run this once more");
    }
    if !report.dry_run {
        println!("garbage collection is frozen; thaw it when all is well: POST /api/v1/admin/gc/thaw");
    }
    Ok(ExitCode::SUCCESS)
}

/// Our own servers, which no node may claim as its address.
async fn own_addresses(config: &Config) -> Vec<SocketAddr> {
    let mut own = Vec::new();
    for (url, port) in [(Some(&config.database_url), 5432), (config.redis_url.as_ref(), 6379)] {
        let Some(uri) = url.and_then(|url| url.expose_secret().parse::<axum::http::Uri>().ok()) else {
            continue;
        };
        let Some(host) = uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()) else { continue };
        if let Ok(addresses) = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(port))).await {
            own.extend(addresses);
        }
    }
    own
}
