//! Health and metrics over HTTP: `GET /health` answers `OK` (503, once the disk refuses writes) whoever asks, since gateways
//! do; `GET /metrics` what Prometheus asks, and only in networks that the operator knows.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use cyxcloud_core::address::is_private;
use cyxcloud_telemetry::port::{self, EXPOSITION, Peer};
use cyxcloud_tls::client::is_in;
use ipnet::IpNet;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::store::{ChunkStore, Condition};

#[derive(Clone)]
struct App {
    store: Arc<dyn ChunkStore>,
    metrics: Arc<Metrics>,
    readers: Arc<[IpNet]>,
}

/// Serves until it is dropped; metrics to this machine and to `readers`, or to private networks where none is named.
pub(crate) async fn serve(
    listener: TcpListener,
    store: Arc<dyn ChunkStore>,
    metrics: Arc<Metrics>,
    readers: Vec<IpNet>,
) {
    let refused = metrics.connections_refused.clone();
    let app = Router::new().route("/health", get(health)).route("/metrics", get(render)).with_state(App {
        store,
        metrics,
        readers: readers.into(),
    });
    port::serve(listener, app, refused).await;
}

/// Whether somebody there is told more than that all is well.
fn may_read(readers: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    match readers {
        [] => is_private(ip) && !is_shared(ip),
        readers => ip.is_loopback() || is_in(ip, readers),
    }
}

/// Whether it is in 100.64.0.0/10, where a provider's customers, who are strangers to each other, may meet (RFC 6598).
fn is_shared(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if matches!(ip.octets(), [100, 64..=127, ..]))
}

async fn health(State(app): State<App>, Extension(Peer(peer)): Extension<Peer>) -> (StatusCode, String) {
    told(app.store.condition(), may_read(&app.readers, peer))
}

/// The reason may name disks and directories.
fn told(condition: Condition, to_reader: bool) -> (StatusCode, String) {
    match condition {
        Condition::Writable | Condition::Full => (StatusCode::OK, "OK".to_owned()),
        Condition::ReadOnly(reason) if to_reader => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("storage failed: {reason}\n"))
        }
        Condition::ReadOnly(_) => (StatusCode::SERVICE_UNAVAILABLE, "storage failed\n".to_owned()),
    }
}

async fn render(State(app): State<App>, Extension(Peer(peer)): Extension<Peer>) -> Response {
    if !may_read(&app.readers, peer) {
        let why = "metrics are served to private networks, or to those in METRICS_NETWORKS\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    ([(header::CONTENT_TYPE, EXPOSITION)], app.metrics.render(&*app.store)).into_response()
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::ByteCount;
    use uuid::Uuid;

    use super::*;
    use crate::store::memory::MemoryStore;

    /// What `/health` and `/metrics` are answered with.
    async fn asked(readers: &[&str], peer: &str) -> (StatusCode, StatusCode) {
        let app = App {
            store: Arc::new(MemoryStore::new(ByteCount::mib(1), Uuid::nil())),
            metrics: Metrics::new(),
            readers: readers.iter().map(|network| network.parse().expect("a network")).collect(),
        };
        let peer = Extension(Peer(peer.parse().expect("an address")));
        (health(State(app.clone()), peer).await.0, render(State(app), peer).await.status())
    }

    #[tokio::test]
    async fn metrics_are_for_those_whom_the_operator_knows() {
        let (yes, no) = ((StatusCode::OK, StatusCode::OK), (StatusCode::OK, StatusCode::FORBIDDEN));
        for peer in ["127.0.0.1", "::1", "10.0.0.7", "::ffff:192.168.1.1", "fd12::1"] {
            assert_eq!(asked(&[], peer).await, yes, "{peer}");
        }
        for peer in ["100.63.1.1", "100.64.0.1", "100.127.1.1", "::ffff:100.64.0.1", "100.128.1.1"] {
            assert_eq!(asked(&[], peer).await, no, "{peer}");
        }
        assert_eq!(asked(&["100.64.0.0/10"], "::ffff:100.64.0.1").await, yes, "whoever means it names it");
        for peer in ["1.1.1.1", "::ffff:1.1.1.1", "2606:4700::1", "169.254.1.1"] {
            assert_eq!(asked(&[], peer).await, no, "{peer}");
        }
        let named = ["10.0.0.0/8", "198.51.100.7/32"];
        for peer in ["127.0.0.1", "::1", "10.1.1.1", "::ffff:10.1.1.1", "198.51.100.7"] {
            assert_eq!(asked(&named, peer).await, yes, "{peer}");
        }
        for peer in ["192.168.1.1", "198.51.100.8", "fd12::1"] {
            assert_eq!(asked(&named, peer).await, no, "{peer}");
        }
    }

    #[test]
    fn why_a_disk_fails_is_not_everybody_s() {
        let failed = Condition::ReadOnly("/srv/disk-7: input/output error".to_owned());
        let (status, text) = told(failed.clone(), false);
        assert_eq!((status, text.contains("disk-7")), (StatusCode::SERVICE_UNAVAILABLE, false));
        assert!(told(failed, true).1.contains("disk-7"));
        assert_eq!(told(Condition::Full, false), (StatusCode::OK, "OK".to_owned()));
    }
}
