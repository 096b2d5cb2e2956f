//! The identity service of a private deployment: the CyxWiz endpoints (accounts, machines, wallets) on PostgreSQL.
//!
//! Gateways trust its access tokens because they share a secret with it, and ask it for nothing else than what an account may
//! store, whether it is suspended and which of its tokens have ended; nodes and the command line talk to it only over HTTP, as
//! `docs/cyxwiz-api.md` says.
//! Not here: what an account stores (the gateway's), possession of a node's key (proven to the gateway).

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

use cyxcloud_tls::crowd::Crowd;
use cyxcloud_tls::{Acceptor, Metrics, Protocols, ServerCertificate, TlsError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::Config;
#[doc(hidden)]
pub use routes::fuzzing;
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
    /// A secret cannot be used.
    #[error(transparent)]
    Secret(#[from] cyxcloud_core::secret::SecretError),
    /// PostgreSQL cannot be used.
    #[error("PostgreSQL")]
    Store(#[from] StoreError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
    certificate: Option<Arc<ServerCertificate>>,
    tls: Option<Acceptor>,
    config: Config,
}

impl App {
    /// Connects, brings the schema up to date, and gets ready to answer.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let secrets = config.secrets()?;
        let unseen = Metrics::unregistered();
        let certificate = config.tls.load(&unseen)?;
        let acceptor = |certificate: &Arc<ServerCertificate>| {
            Acceptor::new(certificate.clone(), Protocols::Http, unseen)
        };
        let tls = certificate.as_ref().map(acceptor).transpose()?;
        let store = Store::connect(&secrets.database_url, config.database_connections).await?;
        let tokens = Tokens::new(
            &secrets.jwt_secret,
            secrets.jwt_secret_previous.as_ref(),
            &config.jwt_issuer,
            &config.jwt_audience,
            config.access_token_secs,
        );
        let passwords = Passwords::new().map_err(Error::Password)?;
        let config = Config { registration_token: secrets.registration_token, ..config };
        Ok(Self { store, passwords, tokens, certificate, tls, config })
    }
}

/// Answers requests until `shutdown` completes, then finishes those under way.
pub async fn run(app: App, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
    let app = Arc::new(app);
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(upkeep(app.clone()));
    let fresh = app.certificate.clone().map(|certificate| tokio::spawn(certificate.keep_fresh()));
    let tls = app.tls.clone();
    let crowd =
        Crowd::with_exempt(app.config.connections_per_address as usize, app.config.trusted_proxies.clone());
    let mut serving = tokio::spawn(serve::serve(router(app), listener, crowd, tls, stop.clone()));
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
    if let Some(fresh) = fresh {
        fresh.abort();
    }
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
