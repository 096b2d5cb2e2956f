//! The rebalancer: background work that no request waits for. Any number of instances may run.
//!
//! Repairs what is short, looks through nodes that changed, asks nodes to prove what they hold, collects garbage, and
//! does the small duties. What is decided is `cyxcloud_core`'s, what is true is the metadata store's: work is claimed there
//! with a lease and a fence, so that instances never meet on it and one that slept commits nothing.

mod audit;
mod cluster;
pub mod config;
mod gc;
mod metrics;
mod rebuild;
mod repair;
mod scan;
mod sweep;
mod throttle;
mod upkeep;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use cyxcloud_core::NodeId;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_telemetry::port;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::info;

pub use config::{Command, Config, Secrets, Tuning, TuningError};
pub use rebuild::{Rebuild, RebuildError, Report, rebuild_locations};

use cluster::{Limits, Watch};
use metrics::Metrics;
use throttle::{Throttle, Throttles};

/// Longest pause between two looks at what waits for its time.
const TICK_MAX: Duration = Duration::from_secs(10);
/// Time after which Redis counts as not answering.
const REDIS_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a rebalancer stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metric could not be registered.
    #[error("could not set up metrics")]
    Metrics(#[from] prometheus::Error),
    /// Thresholds contradict each other.
    #[error(transparent)]
    Tuning(#[from] TuningError),
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

/// Host and port of Redis; none where that is a socket of this machine.
pub fn redis_endpoint(url: &str) -> Result<Option<(String, u16)>, redis::RedisError> {
    use redis::ConnectionAddr::{Tcp, TcpTls};
    let client = redis::Client::open(url)?;
    Ok(match client.get_connection_info().addr() {
        Tcp(host, port) | TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
    })
}

/// What a rebalancer works on.
pub struct Services {
    /// The truth.
    pub metadata: Arc<dyn MetadataStore>,
    /// The way to the nodes.
    pub plane: DataPlane,
    /// Unwraps owners' secrets, which chunks' descriptors are sealed with.
    pub master: MasterKey,
    /// Where metrics are registered.
    pub registry: Registry,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

/// What all kinds of work share.
struct Context {
    metadata: Arc<dyn MetadataStore>,
    plane: DataPlane,
    master: MasterKey,
    watch: Watch,
    tuning: Tuning,
    repair_budget: Throttle,
    node_budgets: Throttles<NodeId>,
    claimed: audit::Claimed,
    metrics: Metrics,
}

/// Beats at least so far apart, also after one that was late.
fn ticks(every: Duration) -> Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Renews a claim in good time, until somebody else has it. What else goes wrong is tried again: the claim may outlast it.
async fn keep_claim<F>(lease: Duration, renew: impl Fn() -> F) -> cyxcloud_metadata::Error
where
    F: Future<Output = cyxcloud_metadata::Result<()>>,
{
    loop {
        tokio::time::sleep(lease / 3).await;
        if let Err(error @ cyxcloud_metadata::Error::Stale { .. }) = renew().await {
            return error;
        }
    }
}

impl Context {
    fn repair_delay(&self) -> Duration {
        Duration::from_secs(self.tuning.repair_delay_secs)
    }

    /// Beats for whoever looks at what waits for its time.
    fn ticks(&self) -> Interval {
        ticks(self.tuning.scan_interval().min(TICK_MAX))
    }
}

/// Runs until `shutdown` completes. Serves `/health` and `/metrics` on the listener, if there is one.
pub async fn run(
    services: Services,
    tuning: Tuning,
    listener: Option<TcpListener>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    tuning.check()?;
    let Services { metadata, plane, master, registry } = services;
    let metrics = Metrics::new(&registry)?;
    let limits = Limits {
        window: Duration::from_secs(tuning.brake_window_secs),
        min_copies: tuning.min_replicas,
        offline: tuning.offline(),
    };
    let (claimed, to_ask) = mpsc::unbounded_channel();
    let ctx = Arc::new(Context {
        watch: Watch::new(metadata.clone(), plane.clone(), limits),
        repair_budget: Throttle::new(tuning.repair_bytes_per_sec.get()),
        node_budgets: Throttles::new(tuning.repair_node_bytes().get()),
        claimed,
        metrics: metrics.clone(),
        metadata,
        plane,
        master,
        tuning,
    });
    let endpoint = async {
        match listener {
            Some(listener) => {
                let refused = metrics.connections_refused.clone();
                port::serve(listener, router(registry, metrics), refused).await;
            }
            None => std::future::pending().await,
        }
    };
    // Each runs beside the others and none ends; a panic in one ends all.
    let work = async {
        tokio::join!(
            upkeep::run(ctx.clone()),
            repair::run(ctx.clone()),
            scan::run(ctx.clone()),
            sweep::run(ctx.clone()),
            audit::run(ctx.clone(), to_ask),
            gc::run(ctx.clone()),
        )
    };
    info!("rebalancer runs");
    tokio::select! {
        () = endpoint => Ok(()),
        _ = work => Ok(()),
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
    let text = |State((registry, _)): State<(Registry, Metrics)>| async move { port::exposition(&registry) };
    Router::new().route("/health", get(health)).route("/metrics", get(text)).with_state((registry, metrics))
}
