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
use axum::response::IntoResponse as _;
use cyxcloud_core::name::BucketName;
use cyxcloud_telemetry::port;
use cyxcloud_tls::{Acceptor, NetStream, SECURE_FOR_A_YEAR, client};
use http::{Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use ipnet::IpNet;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use crate::api;
use crate::auth::query::decode;
use crate::auth::{AuthError, Authenticator, ClientAddress, Mount};
use crate::identity::Identity;
use crate::incoming::{self, Patience, Watched};
use crate::objects::ObjectService;
use crate::outgoing::{Answers, STALL_TIMEOUT};
use crate::problem::{Kind, Problem};
use crate::readiness::Lookout;
use crate::s3::S3Service;
use crate::websocket;
use cyxcloud_tls::crowd::{Crowd, Place};

/// A client has this long for the head of a request, also on a connection kept alive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request: an S3 key of 1,024 bytes, each percent-encoded, as target and as source of a copy, 2 KiB of
/// metadata and a token.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What HTTP/1 reads at once, body or head. A head that is longer than it may be is refused with an answer up to here.
const READ_BYTES_MAX: usize = 256 << 10;
/// Requests on one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;
/// Requests on one HTTP/2 connection that their sender took back before we looked at them.
const RESETS_MAX: usize = 20;
/// Pause after a failed accept, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the HTTP port knows.
#[derive(Debug)]
pub struct App {
    /// Verifies every request that is not public.
    pub auth: Arc<Authenticator>,
    /// S3 behind it.
    pub s3: S3Service,
    /// Tickets, which open a socket.
    pub identity: Arc<Identity>,
    /// `/api/v1/...` and `/ws` behind it.
    pub rest: axum::Router,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Who is connected.
    pub crowd: Crowd,
    /// Knows whether readers wait for memory.
    pub objects: Arc<ObjectService>,
    /// Answers `/ready`.
    pub lookout: Lookout,
    /// Domains under which `bucket.DOMAIN` is a bucket.
    pub domains: Vec<String>,
    /// Makes connections secure, where there is a certificate.
    pub tls: Option<Acceptor>,
    /// Counts.
    pub metrics: Metrics,
}

/// Counts of the HTTP port.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    connections: IntGauge,
    connections_refused: IntCounter,
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
        let connections_refused = IntCounter::new(
            "cyxcloud_gateway_http_connections_refused_total",
            "Connections closed at once because their address had as many as it may have",
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(connections_refused.clone()))?;
        Ok(Self { requests, seconds, connections, connections_refused })
    }
}

/// An open connection: counted, and in its address's place, for as long as anybody holds it. In the extensions of every
/// request, for whoever takes the connection over.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// The server stops: say goodbye.
    pub(crate) stop: CancellationToken,
    _open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    connections: IntGauge,
    _place: Place,
    _awaited: TaskTrackerToken,
}

impl Held {
    fn new(app: &App, place: Place, tracker: &TaskTracker, stop: CancellationToken) -> Self {
        let connections = app.metrics.connections.clone();
        connections.inc();
        Self { stop, _open: Arc::new(Open { connections, _place: place, _awaited: tracker.token() }) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.dec();
    }
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Health,
    Ready,
    Version,
    Rest,
    Socket,
    S3Prefix,
    S3Root,
    Nowhere,
}

impl Door {
    /// Of a decoded path. `host` decides first: under a bucket's own host every path is a key.
    fn of(path: &str, virtual_host: bool) -> Self {
        if virtual_host {
            return Self::S3Root;
        }
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match (path, first) {
            ("/health", _) => Self::Health,
            ("/ready", _) => Self::Ready,
            ("/version", _) => Self::Version,
            (websocket::PATH, _) => Self::Socket,
            (_, "s3") if path.starts_with("/s3") => Self::S3Prefix,
            (api::METRICS, _) => Self::Rest,
            (_, "api") if path.starts_with("/api/v1/") => Self::Rest,
            (_, first) if BucketName::RESERVED.contains(&first) => Self::Nowhere,
            _ => Self::S3Root,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Health | Self::Ready | Self::Version => "status",
            Self::Rest => "rest",
            Self::Socket => "ws",
            Self::S3Prefix | Self::S3Root => "s3",
            Self::Nowhere => "none",
        }
    }
}

impl App {
    /// Answers one request.
    pub async fn handle(&self, mut request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let from = client::of_request(request.headers(), peer, &self.trusted_proxies);
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
        let sent = request.uri().path();
        // The door is that of the path as it will be read; one that cannot be read is refused behind it.
        let decoded = decode(sent).unwrap_or_else(|_| sent.to_owned());
        let door = Door::of(&decoded, self.is_virtual_host(&request));
        let mut response = match door {
            _ if head_bytes(&request) > HEAD_BYTES_MAX => too_long(door),
            Door::Rest | Door::Socket => self.rest(request).await,
            Door::S3Prefix => self.s3(request, Mount::Prefix("/s3")).await,
            Door::S3Root => self.s3(request, Mount::Root).await,
            Door::Health | Door::Ready | Door::Version | Door::Nowhere => match api::path::plain(sent) {
                Ok(_) => self.public(door, request.method()).await,
                Err(problem) => problem.into_response(),
            },
        };
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
        if self.tls.is_some() {
            let value = header::HeaderValue::from_static(SECURE_FOR_A_YEAR);
            headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
        }
        // What S3 answers is kept as long as who stored it says.
        if !matches!(door, Door::S3Prefix | Door::S3Root) {
            headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        }
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

    /// What anybody may ask for.
    async fn public(&self, door: Door, method: &Method) -> Response<Body> {
        match door {
            Door::Nowhere | Door::Rest | Door::Socket | Door::S3Prefix | Door::S3Root => {
                Problem::new(Kind::NotFound, "there is nothing at this address").into_response()
            }
            Door::Health | Door::Ready | Door::Version if !matches!(*method, Method::GET | Method::HEAD) => {
                let detail = "this address answers GET and HEAD only";
                let mut refusal = Problem::new(Kind::MethodNotAllowed, detail).into_response();
                refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
                refusal
            }
            Door::Health => plain(StatusCode::OK, "OK"),
            Door::Ready => self.ready().await,
            Door::Version => plain(StatusCode::OK, concat!(env!("CARGO_PKG_VERSION"), "\n")),
        }
    }

    fn is_virtual_host(&self, request: &Request<Watched<Incoming>>) -> bool {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host =
            host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str)).unwrap_or_default();
        crate::auth::virtual_host_bucket(host, &self.domains).is_some()
    }

    async fn s3(&self, request: Request<Watched<Incoming>>, mount: Mount) -> Response<Body> {
        let mut response = self.s3.call_unverified(request, mount, &self.auth).await.map(Body::new);
        // What somebody stored is shown, if it is a page, without scripts and as of nobody's origin.
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, header::HeaderValue::from_static("sandbox"));
        response
    }

    async fn rest(&self, request: Request<Watched<Incoming>>) -> Response<Body> {
        api::answer(&self.auth, &self.identity, &self.rest, request).await
    }

    /// 200 when requests can be answered; 503 with the reason otherwise.
    async fn ready(&self) -> Response<Body> {
        let seen = self.lookout.readiness().await;
        let status = if seen.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, axum::Json(&*seen)).into_response()
    }
}

/// Accepts connections until `stop`, then lets those open finish what they are answering, and sockets say goodbye.
pub async fn serve(app: Arc<App>, listener: TcpListener, stop: CancellationToken) {
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = app.crowd.enter(peer.ip()) else {
                    app.metrics.connections_refused.inc();
                    debug!(%peer, "its address has as many connections as it may have");
                    continue;
                };
                let held = Held::new(&app, place, &tracker, stop.clone());
                let app = app.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(&app, stream, peer.ip(), held).await {
                        debug!(%peer, %error, "connection ended");
                    }
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

/// How HTTP is spoken on a connection.
pub(crate) fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(READ_BYTES_MAX)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

async fn connection(
    app: &Arc<App>,
    stream: TcpStream,
    peer: IpAddr,
    held: Held,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::select! {
        opened = NetStream::open(app.tls.as_ref(), stream) => opened?,
        () = held.stop.cancelled() => return Ok(()),
    };
    let builder = protocol();
    // Which version is spoken is waited for without a time-out: whoever has not asked by then is not waited for either.
    let asked = AtomicBool::new(false);
    let answers = Answers::default();
    let service = hyper::service::service_fn(|mut request: Request<Incoming>| {
        let (app, answers) = (app.clone(), answers.clone());
        request.extensions_mut().insert(held.clone());
        asked.store(true, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(app.handle(request, peer).await.map(|body| answers.watch(body))) }
    });
    // A client that takes nothing for so long gives back what its answer holds.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL_TIMEOUT));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(Box::pin(stream)), service);
    let mut serving = std::pin::pin!(serving);
    let unasked = async {
        tokio::time::sleep(HEADER_TIMEOUT).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    };
    let mut stalled = std::pin::pin!(answers.stalled(|| app.objects.readers_wait()));
    tokio::select! {
        result = serving.as_mut() => return result,
        () = unasked => return Err("no request came in time".into()),
        () = stalled.as_mut() => return Err("an answer was not taken".into()),
        () = held.stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = serving => result,
        () = stalled => Err("an answer was not taken".into()),
    }
}

/// Serves metrics in Prometheus's text format at `/metrics` until `stop`.
pub async fn serve_metrics(
    registry: Registry,
    listener: TcpListener,
    refused: IntCounter,
    stop: CancellationToken,
) {
    let text = async move || port::exposition(&registry);
    let router = axum::Router::new().route("/metrics", axum::routing::get(text));
    tokio::select! {
        () = port::serve(listener, router, refused) => {}
        () = stop.cancelled() => {}
    }
}

/// Bytes of a request's line and headers, as HTTP/1 writes them.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    target + headers.sum::<usize>()
}

/// Refuses a head that is longer than it may be.
fn too_long(door: Door) -> Response<Body> {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let detail = format!("address and headers may have {HEAD_BYTES_MAX} bytes together");
    match door {
        Door::S3Prefix | Door::S3Root => {
            let id = uuid::Uuid::new_v4().simple().to_string();
            AuthError::new("RequestHeaderSectionTooLarge", status, detail)
                .to_xml_response(&id)
                .map(Body::from)
        }
        Door::Health | Door::Ready | Door::Version | Door::Rest | Door::Socket | Door::Nowhere => {
            Problem::new(Kind::HeadTooLong, detail).into_response()
        }
    }
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
            ("/ws", Door::Socket),
            ("/ws/", Door::Nowhere),
            ("/wss/key", Door::S3Root),
            ("/metrics", Door::Rest),
            ("/metrics/x", Door::Nowhere),
            ("/console/index.html", Door::Nowhere),
            ("/", Door::S3Root),
            ("/bucket/api/v1/x", Door::S3Root),
        ] {
            assert_eq!(Door::of(path, false), door, "{path}");
        }
        assert_eq!(Door::of("/health", true), Door::S3Root);
    }
}
