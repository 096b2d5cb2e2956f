//! The HTTP port: accepts connections, finds the door a request belongs to, and answers at the public ones itself.
//!
//! `/health`, `/ready` and `/version` are public; everything else passes [`crate::auth`] first. What is not one of
//! ours is S3 at the root, path style or virtual-host style; under `/s3` it is S3 whatever follows.
//! Built on hyper-util with a timer, because without one header time-outs do not exist.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use cyxcloud_core::name::BucketName;
use cyxcloud_core::node::NodeStatus;
use cyxcloud_metadata::MetadataStore;
use http::{Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use ipnet::IpNet;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::auth::{Authenticator, Mount};
use crate::ephemeral::Ephemeral;
use crate::identity::routes::ClientAddress;
use crate::incoming::{self, Patience, Watched};
use crate::s3::S3Service;

/// A client has this long for the head of a request, also on a connection kept alive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A client may take nothing of an answer for this long.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest head of a request: S3 keys of 1,024 bytes, each percent-encoded, and generous metadata.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Requests on one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;
/// Pause after a failed accept, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// `/ready` answers by then.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// What the HTTP port knows.
#[derive(Debug)]
pub struct App {
    /// Verifies every request that is not public.
    pub auth: Arc<Authenticator>,
    /// S3 behind it.
    pub s3: S3Service,
    /// `/api/v1/...` behind it.
    pub rest: axum::Router,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// For `/ready`.
    pub metadata: Arc<dyn MetadataStore>,
    /// For `/ready`.
    pub ephemeral: Arc<dyn Ephemeral>,
    /// Domains under which `bucket.DOMAIN` is a bucket.
    pub domains: Vec<String>,
    /// Nodes that must be online for writes: 2, or 1 if the operator consents to no redundancy.
    pub nodes_min: usize,
    /// Counts.
    pub metrics: Metrics,
}

/// Counts of the HTTP port.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    connections: IntGauge,
}

impl Metrics {
    /// Registers the counts.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new(
                "cyxcloud_gateway_http_requests_total",
                "Requests answered, by door, method and status code",
            ),
            &["door", "method", "code"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "cyxcloud_gateway_http_request_duration_seconds",
                "Time until the head of the answer",
            )
            .buckets(prometheus::exponential_buckets(0.000_5, 2.5, 12)?),
            &["door", "method"],
        )?;
        let connections = IntGauge::new("cyxcloud_gateway_http_connections", "Open connections")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        Ok(Self { requests, seconds, connections })
    }
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Health,
    Ready,
    Version,
    Rest,
    S3Prefix,
    S3Root,
    Nowhere,
}

impl Door {
    /// `host` decides first: under a bucket's own host every path is a key.
    fn of(path: &str, virtual_host: bool) -> Self {
        if virtual_host {
            return Self::S3Root;
        }
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match (path, first) {
            ("/health", _) => Self::Health,
            ("/ready", _) => Self::Ready,
            ("/version", _) => Self::Version,
            (_, "s3") if path.starts_with("/s3") => Self::S3Prefix,
            (_, "api") if path.starts_with("/api/v1/") => Self::Rest,
            (_, first) if BucketName::RESERVED.contains(&first) => Self::Nowhere,
            _ => Self::S3Root,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Health | Self::Ready | Self::Version => "status",
            Self::Rest => "rest",
            Self::S3Prefix | Self::S3Root => "s3",
            Self::Nowhere => "none",
        }
    }
}

impl App {
    /// Answers one request.
    pub async fn handle(&self, mut request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let from = client_address(request.headers(), peer, &self.trusted_proxies);
        request.extensions_mut().insert(ClientAddress(from));
        let expects_continue = request.headers().contains_key(header::EXPECT);
        let keeps_order = request.version() <= Version::HTTP_11;
        let (head, body) = request.into_parts();
        let (body, watched) = incoming::watch(body, Patience::default());
        let mut response = self.answer(Request::from_parts(head, body)).await;
        if keeps_order && !watched.is_over(expects_continue).await {
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        }
        response
    }

    async fn answer(&self, request: Request<Watched<Incoming>>) -> Response<Body> {
        let started = Instant::now();
        let method = method_label(request.method());
        let door = Door::of(request.uri().path(), self.is_virtual_host(&request));
        let looks = matches!(*request.method(), Method::GET | Method::HEAD);
        let response = match door {
            Door::Health | Door::Ready | Door::Version if !looks => {
                let mut refusal = problem(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method-not-allowed",
                    "this address answers GET and HEAD only",
                );
                refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
                refusal
            }
            Door::Health => plain(StatusCode::OK, "OK"),
            Door::Ready => self.ready().await,
            Door::Version => plain(StatusCode::OK, concat!(env!("CARGO_PKG_VERSION"), "\n")),
            Door::Nowhere => problem(StatusCode::NOT_FOUND, "not-found", "there is nothing at this address"),
            Door::Rest => self.rest(request).await,
            Door::S3Prefix => self.s3(request, Mount::Prefix("/s3")).await,
            Door::S3Root => self.s3(request, Mount::Root).await,
        };
        let mut response = response;
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
        if !headers.contains_key("x-amz-request-id")
            && let Ok(id) = header::HeaderValue::from_str(&uuid::Uuid::new_v4().simple().to_string())
        {
            headers.insert("x-request-id", id);
        }
        let code = response.status();
        self.metrics.requests.with_label_values(&[door.name(), method, code.as_str()]).inc();
        self.metrics
            .seconds
            .with_label_values(&[door.name(), method])
            .observe(started.elapsed().as_secs_f64());
        response
    }

    fn is_virtual_host(&self, request: &Request<Watched<Incoming>>) -> bool {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host =
            host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str)).unwrap_or_default();
        crate::auth::virtual_host_bucket(host, &self.domains).is_some()
    }

    async fn s3(&self, request: Request<Watched<Incoming>>, mount: Mount) -> Response<Body> {
        self.s3.call_unverified(request, mount, &self.auth).await.map(Body::new)
    }

    async fn rest(&self, request: Request<Watched<Incoming>>) -> Response<Body> {
        crate::api::answer(&self.auth, &self.rest, request).await
    }

    /// 200 when the metadata store answers and there are nodes enough to write to; 503 with the reason otherwise.
    async fn ready(&self) -> Response<Body> {
        let nodes = tokio::time::timeout(READY_TIMEOUT, self.metadata.nodes()).await;
        let ephemeral = tokio::time::timeout(READY_TIMEOUT, self.ephemeral.ping()).await;
        let online = match nodes {
            Ok(Ok(nodes)) => Some(nodes.iter().filter(|node| node.status == NodeStatus::Online).count()),
            Ok(Err(_)) | Err(_) => None,
        };
        let reason = match online {
            None => Some("the metadata store does not answer".to_owned()),
            Some(online) if online < self.nodes_min => {
                Some(format!("{online} nodes are online and writes need {}", self.nodes_min))
            }
            Some(_) => None,
        };
        let body = serde_json::json!({
            "ready": reason.is_none(),
            "reason": reason,
            "metadata": { "engine": self.metadata.engine(), "answers": online.is_some() },
            // May be lost: does not decide readiness.
            "ephemeral": { "engine": self.ephemeral.engine(), "answers": matches!(ephemeral, Ok(Ok(()))) },
            "nodes_online": online,
        });
        let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        with_type(status, "application/json", format!("{body}\n"))
    }
}

/// Where a request came from: the peer, or, where the peer is a proxy that we trust, the last address in
/// `X-Forwarded-For` that is not one of ours.
fn client_address(headers: &http::HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address.to_canonical()));
    if !is_trusted(peer) {
        return peer;
    }
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
    let mut from = peer;
    for hop in hops.into_iter().rev() {
        // What is no address hides whatever is before it.
        let Ok(address) = hop.parse::<IpAddr>() else { break };
        from = address;
        if !is_trusted(address) {
            break;
        }
    }
    from
}

/// Accepts connections until `stop`, then lets those open finish what they are answering.
pub async fn serve(app: Arc<App>, listener: TcpListener, stop: CancellationToken) {
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (app, stop) = (app.clone(), stop.clone());
                tracker.spawn(async move {
                    app.metrics.connections.inc();
                    if let Err(error) = connection(&app, stream, peer.ip(), stop).await {
                        debug!(%peer, %error, "connection ended");
                    }
                    app.metrics.connections.dec();
                });
            }
            Err(error) => {
                warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tracker.close();
    tracker.wait().await;
}

async fn connection(
    app: &Arc<App>,
    stream: TcpStream,
    peer: IpAddr,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX.max(256 << 10))
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10));
    // Which version is spoken is waited for without a time-out: whoever has not asked by then is not waited for either.
    let asked = AtomicBool::new(false);
    let service = hyper::service::service_fn(|request| {
        let app = app.clone();
        asked.store(true, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(app.handle(request, peer).await) }
    });
    // A client that takes nothing for so long gives back what its answer holds.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL_TIMEOUT));
    let serving = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut serving = std::pin::pin!(serving);
    let unasked = async {
        tokio::time::sleep(HEADER_TIMEOUT).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    };
    tokio::select! {
        result = serving.as_mut() => return result,
        () = unasked => return Err("no request came in time".into()),
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

/// Serves metrics in Prometheus's text format at `/metrics` until `stop`.
pub async fn serve_metrics(
    registry: Registry,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let text = move || {
        let registry = registry.clone();
        async move {
            match TextEncoder::new().encode_to_string(&registry.gather()) {
                Ok(text) => with_type(StatusCode::OK, "text/plain; version=0.0.4", text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
    };
    let router = axum::Router::new().route("/metrics", axum::routing::get(text));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// An RFC 9457 problem; `kind` is the stable last part of its type.
pub fn problem(status: StatusCode, kind: &str, detail: &str) -> Response<Body> {
    let body = serde_json::json!({
        "type": format!("urn:cyxcloud:problem:{kind}"),
        "title": status.canonical_reason().unwrap_or("error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    with_type(status, "application/problem+json", body.to_string())
}

fn plain(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// Methods that clients invent must not become label values.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adv_19_forwarded_addresses_are_believed_from_trusted_proxies_only() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
        let from = |peer: &str, forwarded: &[&str]| {
            let mut headers = http::HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().expect("a header"));
            }
            client_address(&headers, address(peer), &trusted)
        };
        assert_eq!(from("192.0.2.9", &["198.51.100.1"]), address("192.0.2.9"));
        assert_eq!(from("10.0.0.1", &["198.51.100.1"]), address("198.51.100.1"));
        assert_eq!(from("10.0.0.1", &["203.0.113.7, 198.51.100.1, 10.2.3.4"]), address("198.51.100.1"));
        assert_eq!(from("10.0.0.1", &["203.0.113.7", "198.51.100.1"]), address("198.51.100.1"));
        assert_eq!(from("10.0.0.1", &["203.0.113.7, junk, 10.2.3.4"]), address("10.2.3.4"));
        assert_eq!(from("10.0.0.1", &[]), address("10.0.0.1"));
        assert_eq!(from("::ffff:10.0.0.1", &["198.51.100.1"]), address("198.51.100.1"));
    }

    #[test]
    fn every_path_has_one_door() {
        for (path, door) in [
            ("/health", Door::Health),
            ("/healthy-bucket/key", Door::S3Root),
            ("/health/x", Door::Nowhere),
            ("/ready", Door::Ready),
            ("/version", Door::Version),
            ("/s3", Door::S3Prefix),
            ("/s3/", Door::S3Prefix),
            ("/s3/bucket/key", Door::S3Prefix),
            ("/s3bucket/key", Door::S3Root),
            ("/api/v1/account", Door::Rest),
            ("/api/v2/account", Door::Nowhere),
            ("/ws", Door::Nowhere),
            ("/metrics", Door::Nowhere),
            ("/console/index.html", Door::Nowhere),
            ("/", Door::S3Root),
            ("/bucket/api/v1/x", Door::S3Root),
        ] {
            assert_eq!(Door::of(path, false), door, "{path}");
        }
        assert_eq!(Door::of("/health", true), Door::S3Root);
    }
}
