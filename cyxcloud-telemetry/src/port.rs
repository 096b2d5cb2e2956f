//! The port that scrapers and health checks ask: little is answered there, and whoever holds connections open holds up nobody.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use cyxcloud_tls::crowd::Crowd;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::{IntCounter, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// And of one address: a scraper and the health checks of some gateways behind it, no more.
const CONNECTIONS_PER_ADDRESS: usize = 32;
/// A scraper or a health check is done long before, and may come again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// What Prometheus's text format is called.
pub const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Who asks: an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Answers by `app` until it is dropped; counts whom it does not let in, whose address has as many connections as it may have.
pub async fn serve(listener: TcpListener, app: Router, refused: IntCounter) {
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
        let service = TowerToHyperService::new(app.clone().layer(Extension(Peer(peer.ip()))));
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

/// All that is counted, in Prometheus's text format.
pub fn exposition(registry: &Registry) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, EXPOSITION)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
