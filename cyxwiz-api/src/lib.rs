//! The identity service of a private deployment: the CyxWiz endpoints (accounts, machines, wallets) on PostgreSQL.
//!
//! Gateways trust its access tokens because they share a secret with it, and ask it for nothing else than quotas;
//! nodes and the command line talk to it only over HTTP, as `docs/cyxwiz-api.md` says.
//! Not here: what an account stores (the gateway's), possession of a node's key (proven to the gateway), TLS (a proxy's).

mod address;
mod config;
mod error;
mod limit;
mod password;
mod routes;
mod serve;
mod store;
mod token;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::{Config, ConfigError};
pub use routes::router;
pub use store::{Store, StoreError};

use password::Passwords;
use token::Tokens;

/// Requests under way at shutdown have this long to finish.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Time between clearings of what has expired.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// PostgreSQL cannot be used.
    #[error("PostgreSQL")]
    Store(#[from] StoreError),
    /// Argon2 refuses its parameters, or there is no memory for one hash.
    #[error("could not hash a password")]
    Password(#[source] password::HashError),
}

/// What every request is answered from.
#[derive(Debug)]
pub struct App {
    store: Store,
    passwords: Passwords,
    tokens: Tokens,
    config: Config,
}

impl App {
    /// Connects, brings the schema up to date, and gets ready to answer.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let secrets = config.secrets()?;
        let store = Store::connect(&secrets.database_url, config.database_connections).await?;
        let tokens = Tokens::new(&secrets.jwt_secret, &config.jwt_issuer, &config.jwt_audience);
        let passwords = Passwords::new().map_err(Error::Password)?;
        let config = Config { registration_token: secrets.registration_token, ..config };
        Ok(Self { store, passwords, tokens, config })
    }
}

/// Answers requests until `shutdown` completes, then finishes those under way.
pub async fn run(app: App, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
    let app = Arc::new(app);
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(upkeep(app.clone()));
    let mut serving = tokio::spawn(serve::serve(router(app), listener, stop.clone()));
    info!("identity service runs");
    tokio::select! {
        () = shutdown => {}
        _ = &mut serving => warn!("the listener ended by itself"),
    }
    stop.cancel();
    if !serving.is_finished() && tokio::time::timeout(SHUTDOWN_GRACE, serving).await.is_err() {
        warn!(grace_secs = SHUTDOWN_GRACE.as_secs(), "requests were still under way and are cut off");
    }
    upkeep.abort();
}

/// Forgets what has expired, for as long as it is polled.
async fn upkeep(app: Arc<App>) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(error) = app.store.clear_expired().await {
            warn!(error = %error::chain(&error), "could not clear what has expired");
        }
    }
}
