//! What people type: log in, upload, download, delete, list, info, keys.
//!
//! Speaks S3 under the gateway's `/s3`, and its REST interface for what S3 has no words for. Prints to standard output
//! what was asked for and to standard error everything else; a failure is one line and an exit code.

mod args;
mod challenge;
mod client;
mod commands;
mod config;
mod config_file;
mod keys;
mod password;
mod plan;
mod private;
mod progress;
mod session;
mod wallet;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Command};
use crate::client::Client;
use crate::config::Config;
use crate::progress::Output;

/// All that a command works with.
#[derive(Clone)]
pub(crate) struct Context {
    client: Client,
    config: Config,
    output: Output,
    /// Cancelled by Ctrl-C and SIGTERM: clean up and leave.
    interrupt: CancellationToken,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let output = Output::new(args.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&anyhow::Error::new(error).context("could not start"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(args, output.clone()));
    // Long enough for temporary files to go, and no longer: a read of standard input cannot be cancelled.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if progress::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            exit_code(&error)
        }
    }
}

async fn run(args: Args, output: Output) -> anyhow::Result<()> {
    let config = Config::load(&args, &output)?;
    let interrupt = CancellationToken::new();
    tokio::spawn(watch_signals(interrupt.clone()));
    // These two need nobody to be logged in.
    match args.command {
        Command::Login(args) => return commands::auth::login(&config, &output, &interrupt, args).await,
        Command::Logout => return commands::auth::logout(&config, &output, &interrupt).await,
        _ => {}
    }
    let client = Client::new(&config, output.clone())?;
    let context = Context { client, config, output, interrupt };
    match args.command {
        Command::Login(_) | Command::Logout => Ok(()),
        Command::Whoami(args) => commands::auth::whoami(&context, args).await,
        Command::Keys(args) => commands::api_keys::run(&context, args).await,
        Command::Upload(args) => commands::upload::run(&context, args).await,
        Command::Download(args) => commands::download::run(&context, args).await,
        Command::Delete(args) => commands::delete::run(&context, args).await,
        Command::List(args) => commands::list::run(&context, args).await,
        Command::Info(args) => commands::info::run(&context, args).await,
    }
}

/// The first signal asks for a clean end, the second ends at once.
async fn watch_signals(interrupt: CancellationToken) {
    signal().await;
    interrupt.cancel();
    signal().await;
    std::process::exit(130);
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(not(unix))]
async fn signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// 1: failed. 2: wrong arguments or configuration. 3: no such bucket or object. 4: not allowed. 5: gateway not
/// reached. 130: interrupted.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let for_people = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<config::Error>() || cause.is::<wallet::Error>() || cause.is::<challenge::Error>()
    };
    if error.chain().any(for_people) {
        return ExitCode::from(2);
    }
    let code =
        error.chain().find_map(|cause| cause.downcast_ref::<client::Error>()).map(client::Error::exit_code);
    ExitCode::from(code.unwrap_or(1))
}
