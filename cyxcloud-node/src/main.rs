//! The node's process: configuration, log, signals. The node itself is [`cyxcloud_node::run`].

use std::process::ExitCode;

use anyhow::Context;
use cyxcloud_node::config::ConfigError;
use cyxcloud_node::{Config, Listeners};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cyxcloud_node::allocator::keep_freed_memory();
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    let config = match Config::load(std::env::args_os()) {
        Ok(config) => config,
        Err(ConfigError::Arguments(error)) => error.exit(),
        Err(error) => return fail(&error.into(), 2),
    };
    if config.logout {
        return forget(&config).await;
    }
    cyxcloud_telemetry::init("info");
    match serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Forgets the log-in at the CyxWiz API, and says what that was.
#[allow(clippy::print_stdout, reason = "it is what the operator asked for")]
async fn forget(config: &Config) -> ExitCode {
    match cyxcloud_node::log_out(&config.storage_path).await {
        Ok(forgotten) => {
            println!("cyxcloud-node: {forgotten}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(
            &anyhow::Error::new(error)
                .context(format!("forget the log-in in {}", config.storage_path.display())),
            1,
        ),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let stop = shutdown_signal()?;
    let listeners = Listeners::bind(&config).await?;
    cyxcloud_node::run(config, listeners, stop).await?;
    Ok(())
}

fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// One line with the whole chain of causes.
#[allow(clippy::print_stderr, reason = "this is what the operator reads when the node does not start")]
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("cyxcloud-node: {error:#}");
    ExitCode::from(code)
}
