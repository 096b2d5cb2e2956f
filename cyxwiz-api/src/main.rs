//! `cyxwiz-api`: reads its configuration, binds its port, and runs until it is told to stop.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cyxwiz_api::{App, Config, run};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

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
                eprintln!("cyxwiz-api: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn start(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let address = config.http_addr;
    let app = App::open(config).await?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("bind {address}"))?;
    tracing::info!(http = %listener.local_addr()?, "listening");
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(app, listener, shutdown).await;
    Ok(())
}
