//! `cyxcloud-rebalancer`: reads its configuration, connects, and runs until it is told to stop.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use cyxcloud_metadata::postgres::{PostgresConfig, PostgresStore};
use cyxcloud_rebalancer::{Config, check_redis, run};
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections to PostgreSQL: upkeep is one transaction at a time.
const DATABASE_CONNECTIONS: u32 = 4;

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
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the one line that says why the program ends")]
            {
                eprintln!("cyxcloud-rebalancer: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn start(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let metadata = PostgresStore::connect(&PostgresConfig {
        url: config.database_url.expose_secret().to_owned(),
        max_connections: DATABASE_CONNECTIONS,
        accept_data_loss: config.i_accept_data_loss,
    })
    .await
    .context("connect to DATABASE_URL")?;
    if let Some(url) = &config.redis_url {
        check_redis(url.expose_secret()).await.context("connect to REDIS_URL")?;
    }
    let listener = tokio::net::TcpListener::bind(config.http_addr)
        .await
        .with_context(|| format!("bind {}", config.http_addr))?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(Arc::new(metadata), config.upkeep_interval(), Some(listener), shutdown).await?;
    Ok(())
}
