//! The port: accepts connections, bounds what each may cost, and answers requests by the router.
//!
//! Built on hyper-util with a timer, because without one header time-outs do not exist.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::IntoResponse;
use cyxcloud_tls::crowd::Crowd;
use cyxcloud_tls::{Acceptor, NetStream, SECURE_FOR_A_YEAR};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::error::Problem;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1_024;
/// A client has this long for the head of a request, also on a connection kept alive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// And this long for the whole of it; an answer takes moments.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A client may take nothing of an answer for this long.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head of a request: a token, and little else.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Requests on one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 32;
/// Pause after a failed accept, so that a full descriptor table does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until `stop`, then lets those open finish what they are answering.
pub(crate) async fn serve(
    router: Router,
    listener: TcpListener,
    crowd: Crowd,
    tls: Option<Acceptor>,
    stop: CancellationToken,
) {
    let tracker = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accept = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = crowd.enter(peer.ip()) else {
                    debug!(%peer, "its address has as many connections as it may have");
                    continue;
                };
                let (router, tls, stop) = (router.clone(), tls.clone(), stop.clone());
                tracker.spawn(async move {
                    let _held = (permit, place);
                    if let Err(error) = connection(router, tls, stream, peer, stop).await {
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

async fn connection(
    router: Router,
    tls: Option<Acceptor>,
    stream: TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::select! {
        opened = NetStream::open(tls.as_ref(), stream) => opened?,
        () = stop.cancelled() => return Ok(()),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
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
    let secure = tls.is_some();
    let service = hyper::service::service_fn(|mut request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request, secure).await) }
    });
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

async fn answer(router: Router, request: Request<Incoming>, secure: bool) -> Response<Body> {
    let answering = router.oneshot(request.map(Body::new));
    let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, answering).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            let detail = "the request took too long; send it at once, or try again later";
            Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", detail).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if secure {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(SECURE_FOR_A_YEAR));
    }
    response
}
