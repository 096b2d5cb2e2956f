//! `cyxcloud-rebalancer`: reads its configuration, connects, and runs until it is told to stop.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use cyxcloud_core::ByteCount;
use cyxcloud_core::seal::MASTER_KEY_CHECK;
use cyxcloud_dataplane::DataPlane;
use cyxcloud_dataplane::own::{OwnServer, OwnServers};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::postgres::{self, PostgresConfig, PostgresStore};
use cyxcloud_rebalancer::{
    Command, Config, Rebuild, Report, Secrets, Services, check_redis, rebuild_locations, redis_endpoint, run,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Connections to PostgreSQL beside one for every repair under way.
const DATABASE_CONNECTIONS: u32 = 6;
/// Shards of all repairs under way.
const MEMORY: ByteCount = ByteCount::mib(256);

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::parse();
    cyxcloud_telemetry::init("info");
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
    let Secrets { database_url, redis_url, master_key: master } = config.secrets()?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let metadata = PostgresStore::connect(&PostgresConfig {
        url: database_url.expose_secret().to_owned(),
        max_connections: DATABASE_CONNECTIONS + config.tuning.repair_parallelism,
        accept_data_loss: config.i_accept_data_loss,
    })
    .await
    .context("connect to DATABASE_URL")?;
    // Nothing here needs it. Whoever mistyped its address should hear of it all the same.
    if let Some(url) = &redis_url
        && let Err(error) = check_redis(url.expose_secret()).await
    {
        tracing::warn!(%error, "redis does not answer; the rebalancer goes on without it");
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
    let key = config.server_key.open(None)?;
    let plane_config = cyxcloud_dataplane::Config {
        memory: MEMORY,
        offline: config.tuning.offline(),
        key,
        ..cyxcloud_dataplane::Config::default()
    };
    let own = OwnServers::find(own_servers(&database_url, redis_url.as_ref())?).await;
    let policy = config.address_policy(own.addresses());
    tokio::spawn(own.keep_looking());
    let plane = DataPlane::new(plane_config, metadata.clone(), policy, master.clone(), &registry);
    if let Some(Command::RebuildLocations { dry_run, from_trash, nodes }) = config.command {
        let rebuild = Rebuild { dry_run, from_trash, nodes, alone: false };
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

/// Our own servers, which no node may claim to be.
fn own_servers(database: &SecretString, redis: Option<&SecretString>) -> anyhow::Result<Vec<OwnServer>> {
    let database = postgres::endpoint(database.expose_secret())?;
    // That it cannot be read was said when it was asked.
    let redis = redis.and_then(|url| redis_endpoint(url.expose_secret()).ok().flatten());
    let named = [("DATABASE_URL", database), ("REDIS_URL", redis)].into_iter();
    Ok(named.filter_map(|(variable, at)| at.map(|(host, port)| OwnServer { variable, host, port })).collect())
}
