//! The rebalancer: upkeep that no request waits for. Any number of instances may run.
//!
//! Today it ends uploads whose lease ran out and folds usage deltas into totals; the queue of repairs is filled by
//! commits, readers and nodes, and only counted here.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use cyxcloud_metadata::MetadataStore;
use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tracing::{debug, info, warn};

/// Rows handled in one transaction.
const BATCH: usize = 1_000;
/// Pause between two rounds of upkeep, unless the scan interval is shorter.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Time after which Redis counts as not answering.
const REDIS_TIMEOUT: Duration = Duration::from_secs(3);

/// All that a rebalancer can be told.
#[derive(Debug, clap::Parser)]
#[command(
    name = "cyxcloud-rebalancer",
    version,
    about = "Background service of CyxCloud",
    max_term_width = 110
)]
pub struct Config {
    /// PostgreSQL connection URL
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Redis connection URL
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<SecretString>,
    /// How often everything is looked through
    #[arg(long, env = "SCAN_INTERVAL_SECS", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub scan_interval_secs: u64,
    /// Repairs at the same time (this version repairs nothing yet)
    #[arg(long, env = "REPAIR_PARALLELISM", value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub repair_parallelism: u32,
    /// Copies of a small object (not used yet: profiles have their own)
    #[arg(long, env = "MIN_REPLICAS", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    pub min_replicas: u8,
    /// Health and metrics listen address
    #[arg(long, env = "HTTP_ADDR", value_name = "ADDR", default_value = "0.0.0.0:9093")]
    pub http_addr: std::net::SocketAddr,
    /// Start although PostgreSQL is set up so that acknowledged data can be lost
    #[arg(long)]
    pub i_accept_data_loss: bool,
}

impl Config {
    /// Pause between two rounds of upkeep.
    pub fn upkeep_interval(&self) -> Duration {
        UPKEEP_INTERVAL.min(Duration::from_secs(self.scan_interval_secs))
    }
}

/// Why a rebalancer stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metric could not be registered.
    #[error("could not set up metrics")]
    Metrics(#[from] prometheus::Error),
    /// The health endpoint failed.
    #[error("could not serve health and metrics")]
    Serve(#[source] std::io::Error),
}

/// Asks Redis whether it is there.
pub async fn check_redis(url: &str) -> Result<(), redis::RedisError> {
    let client = redis::Client::open(url)?;
    let config = redis::aio::ConnectionManagerConfig::new()
        .set_connection_timeout(Some(REDIS_TIMEOUT))
        .set_response_timeout(Some(REDIS_TIMEOUT))
        .set_number_of_retries(1);
    let mut connection = client.get_connection_manager_with_config(config).await?;
    redis::cmd("PING").query_async::<String>(&mut connection).await.map(|_| ())
}

#[derive(Clone, Debug)]
struct Metrics {
    expired: IntCounter,
    folded: IntCounter,
    failures: IntCounter,
    healthy: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let healthy =
            IntGauge::new("cyxcloud_rebalancer_healthy", "1 if the last round of upkeep succeeded")?;
        registry.register(Box::new(healthy.clone()))?;
        healthy.set(1);
        Ok(Self {
            expired: counter(
                "cyxcloud_rebalancer_uploads_expired_total",
                "Uploads ended because their lease ran out",
            )?,
            folded: counter(
                "cyxcloud_rebalancer_usage_deltas_folded_total",
                "Usage deltas folded into totals",
            )?,
            failures: counter("cyxcloud_rebalancer_upkeep_failures_total", "Rounds of upkeep that failed")?,
            healthy,
        })
    }
}

/// Runs until `shutdown` completes. Serves `/health` and `/metrics` on the listener, if there is one.
pub async fn run(
    metadata: Arc<dyn MetadataStore>,
    upkeep_interval: Duration,
    listener: Option<TcpListener>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry)?;
    let endpoint = async {
        match listener {
            Some(listener) => {
                axum::serve(listener, router(registry, metrics.clone())).await.map_err(Error::Serve)
            }
            None => std::future::pending().await,
        }
    };
    info!("rebalancer runs");
    tokio::select! {
        result = endpoint => result,
        () = keep_up(&*metadata, upkeep_interval, &metrics) => Ok(()),
        () = shutdown => Ok(()),
    }
}

fn router(registry: Registry, metrics: Metrics) -> Router {
    let health = |State((_, metrics)): State<(Registry, Metrics)>| async move {
        match metrics.healthy.get() {
            1 => (StatusCode::OK, "OK"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "the metadata store does not answer"),
        }
    };
    let text = |State((registry, _)): State<(Registry, Metrics)>| async move {
        TextEncoder::new()
            .encode_to_string(&registry.gather())
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    };
    Router::new().route("/health", get(health)).route("/metrics", get(text)).with_state((registry, metrics))
}

async fn keep_up(metadata: &dyn MetadataStore, interval: Duration, metrics: &Metrics) {
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match round(metadata, metrics).await {
            Ok(()) => metrics.healthy.set(1),
            Err(error) => {
                metrics.failures.inc();
                metrics.healthy.set(0);
                warn!(error = &error as &dyn std::error::Error, "upkeep failed; next round tries again");
            }
        }
    }
}

/// One round: goes on while there are full batches.
async fn round(metadata: &dyn MetadataStore, metrics: &Metrics) -> cyxcloud_metadata::Result<()> {
    loop {
        let expired = metadata.expire_uploads(BATCH).await?;
        metrics.expired.inc_by(expired as u64);
        if expired > 0 {
            info!(count = expired, "uploads whose lease ran out were ended");
        }
        let folded = metadata.fold_usage(BATCH).await?;
        metrics.folded.inc_by(folded as u64);
        debug!(count = folded, "usage folded");
        if expired < BATCH && folded < BATCH {
            return Ok(());
        }
    }
}
