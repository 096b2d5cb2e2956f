//! `cyxcloud-gateway`: reads its configuration, binds its ports, and runs until it is told to stop.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cyxcloud_gateway::{Config, Listeners, Options, run};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// See docs/decisions/0014-jemalloc.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::parse();
    cyxcloud_telemetry::init("info");
    match start(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the one line that says why the program ends")]
            {
                eprintln!("cyxcloud-gateway: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn start(config: Config) -> anyhow::Result<()> {
    let config = config.check()?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let bind = async |address| TcpListener::bind(address).await.with_context(|| format!("bind {address}"));
    let metrics = match config.metrics_addr {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let listeners =
        Listeners { http: bind(config.http_addr).await?, grpc: bind(config.grpc_addr).await?, metrics };
    tracing::info!(
        http = %listeners.http.local_addr()?,
        grpc = %listeners.grpc.local_addr()?,
        "listening"
    );
    let options = Options::open(config).await?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(options, listeners, shutdown).await?;
    Ok(())
}
