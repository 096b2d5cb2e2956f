//! Health and metrics over HTTP: `GET /health` answers `OK` (503 and why, once the disk refuses writes), `GET /metrics`
//! what Prometheus asks.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use cyxcloud_tls::crowd::Crowd;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::metrics::Metrics;
use crate::store::{ChunkStore, Condition};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// And of one address: a scraper and the health checks of some gateways behind it, no more.
const CONNECTIONS_PER_ADDRESS: usize = 32;
/// A scraper or a health check is done long before, and may come again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct App {
    store: Arc<dyn ChunkStore>,
    metrics: Arc<Metrics>,
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, store: Arc<dyn ChunkStore>, metrics: Arc<Metrics>) {
    let refused = metrics.connections_refused.clone();
    let app = Router::new()
        .route("/health", get(health))
        .route("/metrics", get(render))
        .with_state(App { store, metrics });
    let crowd = Crowd::new(CONNECTIONS_PER_ADDRESS);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let permit = permits.clone().acquire_owned().await.expect("never closed");
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: it passes, but not at once.
                warn!(%error, "could not accept a health or metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = crowd.enter(peer.ip()) else {
            refused.inc();
            debug!(%peer, "its address has as many connections as it may have");
            continue;
        };
        let service = TowerToHyperService::new(app.clone());
        connections.spawn(async move {
            let _held = (permit, place);
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => debug!(%error, "health or metrics connection ended"),
            }
        });
    }
}

async fn health(State(app): State<App>) -> impl IntoResponse {
    match app.store.condition() {
        Condition::Writable | Condition::Full => (StatusCode::OK, "OK".to_owned()),
        Condition::ReadOnly(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("storage failed: {reason}\n"))
        }
    }
}

async fn render(State(app): State<App>) -> impl IntoResponse {
    let text = app.metrics.render(&*app.store);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
