//! Health and metrics over HTTP: `GET /health` answers `OK` (503 and why, once the disk refuses writes), `GET /metrics`
//! what Prometheus asks.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use cyxcloud_telemetry::port::{self, EXPOSITION};
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::store::{ChunkStore, Condition};

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
    port::serve(listener, app, refused).await;
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
    ([(header::CONTENT_TYPE, EXPOSITION)], text)
}
