//! Is it there, does it work, which one is it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::App;

/// `/ready` answers by then.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn health() -> &'static str {
    "OK"
}

pub(super) async fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), "\n")
}

/// 503 while the database does not answer.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let ready = matches!(tokio::time::timeout(READY_TIMEOUT, app.store.ping()).await, Ok(Ok(())));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reason = (!ready).then_some("the database does not answer");
    (status, axum::Json(serde_json::json!({ "ready": ready, "reason": reason }))).into_response()
}
