//! Requests to the gateway: addressed, signed, sent, and sent again where that is right.
//!
//! Bodies are held in memory, so every request can be repeated; callers keep them small (parts, ranges).

mod error;
mod s3;
mod xml;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cyxcloud_core::sigv4::{self, RequestToSign, Signer, UNSIGNED_PAYLOAD};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;

pub(crate) use self::error::Error;
pub(crate) use self::s3::{Object, Part, PutOptions, crc_join, crc_of};
use crate::config::{Config, Credentials, Saved};
use crate::progress::{Meter, Output};
use crate::session::Session;

/// Attempts at a request that may be repeated, the first included: together they last about a quarter of a minute.
const ATTEMPTS: u32 = 7;
/// Attempts while the gateway has not been reached even once: it is probably not there.
const ATTEMPTS_TO_REACH: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MOST: Duration = Duration::from_secs(8);
/// Silence in the middle of an answer.
const STALL: Duration = Duration::from_secs(60);
/// An upload slower than this is taken for dead.
const SLOWEST_BYTES_PER_SEC: u64 = 32 << 10;
/// Pieces in which a watched body is sent.
const PIECE: usize = 128 << 10;
/// Longest answer: a range, or a page of a listing.
const ANSWER_MAX: usize = 64 << 20;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    method: Method,
    /// Below the gateway's own path; percent-encoded.
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    /// Whether it may be sent twice.
    repeatable: bool,
    meter: Meter,
}

impl Call {
    fn new(method: Method, path: String) -> Self {
        let repeatable = method != Method::POST;
        let (query, headers, meter) = (Vec::new(), Vec::new(), Meter::none());
        Self { method, path, query, headers, body: Bytes::new(), repeatable, meter }
    }

    fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    fn meter(mut self, meter: &Meter) -> Self {
        self.meter = meter.clone();
        self
    }
}

/// A good answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.body).map_err(|_| Error::Garbled("it is not text".to_owned()))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Whom we speak to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Gateway,
    /// The CyxWiz API.
    Identity,
}

/// What a request carries to say who sends it.
#[derive(Clone, Debug)]
enum Proof {
    /// Nothing, or what the call itself brings.
    Nothing,
    Key(Signer),
    Session(Arc<Session>),
}

/// A server, seen from here. Clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Server,
    base: reqwest::Url,
    proof: Proof,
    output: Output,
    reached: Arc<AtomicBool>,
}

impl Client {
    /// The gateway, asked as who we are.
    pub(crate) fn new(config: &Config, output: Output) -> anyhow::Result<Self> {
        match config.credentials(chrono::Utc::now())?.clone() {
            Credentials::Key(signer) => {
                let client = Self::stranger(config, Server::Gateway, &config.gateway, output)?;
                Ok(Self { proof: Proof::Key(signer), ..client })
            }
            Credentials::Session(saved) => Self::of_session(config, saved, output),
        }
    }

    /// The gateway, asked as whoever logged in.
    pub(crate) fn of_session(config: &Config, saved: Saved, output: Output) -> anyhow::Result<Self> {
        let client = Self::stranger(config, Server::Gateway, &config.gateway, output.clone())?;
        let issuer = match &saved.api_url {
            Some(url) => Self::stranger(config, Server::Identity, url, output)?,
            None => client.clone(),
        };
        let session = Arc::new(Session::new(issuer, config.path.clone(), saved));
        Ok(Self { proof: Proof::Session(session), ..client })
    }

    /// A server, asked as nobody.
    pub(crate) fn stranger(
        config: &Config,
        server: Server,
        base: &reqwest::Url,
        output: Output,
    ) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("cyxcloud-cli/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            // A redirected request would carry the wrong signature, or a password elsewhere.
            .redirect(reqwest::redirect::Policy::none());
        if base.scheme() == "http" {
            // Reading the system's certificates takes time, and fails where there are none.
            builder = builder.tls_certs_only([]);
        } else if let Some(path) = &config.tls_ca {
            builder = builder.tls_certs_only(authorities(path)?);
        }
        let http =
            builder.build().map_err(|error| anyhow::anyhow!("could not set up TLS: {}", deepest(&error)))?;
        let (base, proof) = (base.clone(), Proof::Nothing);
        Ok(Self { http, server, base, proof, output, reached: Arc::new(AtomicBool::new(false)) })
    }

    /// The same client, speaking below another output (over a progress bar).
    pub(crate) fn speaking(&self, output: &Output) -> Self {
        Self { output: output.clone(), ..self.clone() }
    }

    /// A GET of the gateway's own interface; `path` is percent-encoded and begins with a slash.
    pub(crate) async fn get_json(&self, path: &str) -> Result<serde_json::Value, Error> {
        let reply = self.send(Call::new(Method::GET, path.to_owned())).await?;
        serde_json::from_slice(&reply.body).map_err(|error| Error::Garbled(error.to_string()))
    }

    /// A POST of a JSON body, or of none, with a token of the caller's if it brings one.
    pub(crate) async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        token: Option<&str>,
        body: Option<&serde_json::Value>,
    ) -> Result<T, Error> {
        let mut call = Call::new(Method::POST, path.to_owned());
        if let Some(token) = token {
            call = call.header("authorization", format!("Bearer {token}"));
        }
        if let Some(body) = body {
            call = call.header("content-type", "application/json").body(body.to_string().into());
        }
        let reply = self.send(call).await?;
        // An empty answer is as good as `null`.
        let text: &[u8] = if reply.body.is_empty() { b"null" } else { &reply.body };
        serde_json::from_slice(text).map_err(|error| Error::Garbled(error.to_string()))
    }

    /// A DELETE of the gateway's own interface.
    pub(crate) async fn delete_json(&self, path: &str) -> Result<(), Error> {
        self.send(Call::new(Method::DELETE, path.to_owned())).await.map(|_| ())
    }

    /// Sends a request, again and again where that is right, until it succeeds.
    async fn send(&self, call: Call) -> Result<Reply, Error> {
        let mut attempt = 1;
        let mut token = match &self.proof {
            // In a box: renewing a session sends a request in its turn.
            Proof::Session(session) => Some(Box::pin(session.token()).await?),
            Proof::Key(_) | Proof::Nothing => None,
        };
        let mut renewed = false;
        loop {
            let error = match self.attempt(&call, token.as_deref()).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if let (Proof::Session(session), Some(old), Error::Refused { status: 401, .. }, false) =
                (&self.proof, &token, &error, renewed)
            {
                self.output.detail(|| format!("{error}; renewing the session"));
                token = Some(Box::pin(session.instead_of(old)).await?);
                renewed = true;
                continue;
            }
            let most = if self.reached.load(Ordering::Relaxed) { ATTEMPTS } else { ATTEMPTS_TO_REACH };
            let may = error.passes() && (call.repeatable || error.never_arrived());
            if attempt >= most || !may {
                return Err(error);
            }
            let asked = match &error {
                Error::Refused { retry_after, .. } => *retry_after,
                _ => None,
            };
            let wait = backoff(attempt).max(asked.unwrap_or_default().min(BACKOFF_MOST));
            self.output.detail(|| format!("{error}; trying again in {} ms", wait.as_millis()));
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, call: &Call, token: Option<&str>) -> Result<Reply, Error> {
        let start = Instant::now();
        let counted = Arc::new(AtomicU64::new(0));
        let result = self.exchange(call, token, &counted).await;
        self.output.detail(|| {
            let outcome = match &result {
                Ok(reply) => reply.status.as_u16().to_string(),
                Err(Error::Refused { status, code, .. }) => format!("{status} {code}"),
                Err(error) => error.to_string(),
            };
            let query = sigv4::canonical_query(&call.query);
            let mark = if query.is_empty() { "" } else { "?" };
            format!(
                "{} {}{mark}{query} -> {outcome} ({} ms)",
                call.method,
                call.path,
                start.elapsed().as_millis()
            )
        });
        if result.is_err() {
            call.meter.take_back(counted.load(Ordering::Relaxed));
        }
        result
    }

    async fn exchange(
        &self,
        call: &Call,
        token: Option<&str>,
        counted: &Arc<AtomicU64>,
    ) -> Result<Reply, Error> {
        let request = self.request(call, token, counted)?;
        let patience = STALL + Duration::from_secs(call.body.len() as u64 / SLOWEST_BYTES_PER_SEC);
        let sent = tokio::time::timeout(patience, self.http.execute(request)).await;
        let mut response =
            sent.map_err(|_| Error::Silent(patience))?.map_err(|error| self.failure(&error))?;
        self.reached.store(true, Ordering::Relaxed);
        let (status, headers) = (response.status(), response.headers().clone());
        let good = status.is_success();
        let expected = response.content_length().unwrap_or(0).min(ANSWER_MAX as u64);
        let mut body =
            BytesMut::with_capacity(if call.method == Method::HEAD { 0 } else { expected as usize });
        loop {
            let piece =
                tokio::time::timeout(STALL, response.chunk()).await.map_err(|_| Error::Silent(STALL))?;
            let Some(piece) = piece.map_err(|error| self.failure(&error))? else { break };
            if body.len() + piece.len() > ANSWER_MAX {
                return Err(Error::Garbled("it is too long".to_owned()));
            }
            if good && call.method == Method::GET {
                counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
                call.meter.add(piece.len() as u64);
            }
            body.extend_from_slice(&piece);
        }
        let reply = Reply { status, headers, body: body.freeze() };
        if good { Ok(reply) } else { Err(refused(&reply)) }
    }

    fn request(
        &self,
        call: &Call,
        token: Option<&str>,
        counted: &Arc<AtomicU64>,
    ) -> Result<reqwest::Request, Error> {
        let raw_path = format!("{}{}", self.base.path().trim_end_matches('/'), call.path);
        let query = sigv4::canonical_query(&call.query);
        let mut url = self.base.clone();
        url.set_path(&raw_path);
        url.set_query((!query.is_empty()).then_some(&query));
        // What is sent must be what is signed: nothing may have been tidied up.
        if url.path() != raw_path {
            return Err(Error::Address(call.path.clone()));
        }
        let headers = self.headers(call, token, &url, &raw_path)?;
        let mut request = reqwest::Request::new(call.method.clone(), url);
        *request.headers_mut() = headers;
        if !call.body.is_empty() || matches!(call.method, Method::PUT | Method::POST) {
            request.headers_mut().insert(reqwest::header::CONTENT_LENGTH, HeaderValue::from(call.body.len()));
            *request.body_mut() = Some(watched(call, counted));
        }
        Ok(request)
    }

    fn headers(
        &self,
        call: &Call,
        token: Option<&str>,
        url: &reqwest::Url,
        raw_path: &str,
    ) -> Result<HeaderMap, Error> {
        let mut headers: Vec<(String, String)> =
            call.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        match &self.proof {
            Proof::Nothing => {}
            Proof::Session(_) => {
                let token = token.unwrap_or_default();
                headers.push(("authorization".to_owned(), format!("Bearer {token}")));
            }
            Proof::Key(signer) => {
                let host = url.host_str().unwrap_or_default();
                let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
                headers.push(("host".to_owned(), host));
                let request = RequestToSign {
                    method: call.method.as_str(),
                    raw_path,
                    query: &call.query,
                    headers: &headers,
                };
                let date = chrono::Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
                // TLS protects the body; without it the signature must.
                let payload = match url.scheme() {
                    "https" => UNSIGNED_PAYLOAD.to_owned(),
                    _ => sigv4::sha256_hex(&call.body),
                };
                let added = signer.sign(&request, &date, &payload);
                headers.extend(added);
            }
        }
        headers
            .into_iter()
            .map(|(name, value)| {
                let name =
                    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Error::Address(name.clone()))?;
                let mut header =
                    HeaderValue::from_str(&value).map_err(|_| Error::Address(name.to_string()))?;
                header.set_sensitive(name == reqwest::header::AUTHORIZATION);
                Ok((name, header))
            })
            .collect()
    }

    fn failure(&self, error: &reqwest::Error) -> Error {
        let reason = deepest(error);
        if error.is_connect() {
            let url = self.base.as_str().trim_end_matches('/').to_owned();
            return Error::Unreachable { server: self.server, url, reason };
        }
        Error::Broken(reason)
    }
}

/// The certificates in a PEM file; at least one.
fn authorities(path: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let shown = path.display();
    let pem =
        std::fs::read(path).map_err(|error| anyhow::anyhow!("could not read --tls-ca {shown}: {error}"))?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => anyhow::bail!("there is no BEGIN CERTIFICATE in --tls-ca {shown}"),
        Err(error) => anyhow::bail!("--tls-ca {shown} holds no certificates: {}", deepest(&error)),
    }
}

/// The body, counted as it leaves if somebody watches.
fn watched(call: &Call, counted: &Arc<AtomicU64>) -> reqwest::Body {
    if !call.meter.watched() || call.body.len() <= PIECE {
        call.meter.add(call.body.len() as u64);
        counted.fetch_add(call.body.len() as u64, Ordering::Relaxed);
        return reqwest::Body::from(call.body.clone());
    }
    let (mut rest, meter, counted) = (call.body.clone(), call.meter.clone(), Arc::clone(counted));
    let pieces = std::iter::from_fn(move || {
        let piece = rest.split_to(rest.len().min(PIECE));
        meter.add(piece.len() as u64);
        counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
        (!piece.is_empty()).then_some(Ok::<Bytes, std::convert::Infallible>(piece))
    });
    reqwest::Body::wrap_stream(futures::stream::iter(pieces))
}

/// How long to wait after this attempt; by chance, so that many clients do not come back together.
fn backoff(attempt: u32) -> Duration {
    let most = BACKOFF_FIRST.saturating_mul(1 << (attempt - 1).min(16)).min(BACKOFF_MOST);
    most.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// The cause that says most: the last one.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// What an answer that is no success says: S3's XML, problem JSON, or only its status.
fn refused(reply: &Reply) -> Error {
    let status = reply.status.as_u16();
    let retry_after = reply.header("retry-after").and_then(|secs| secs.parse().ok()).map(Duration::from_secs);
    let text = reply.text().unwrap_or_default();
    let json = || {
        let problem: serde_json::Value = serde_json::from_str(text).ok()?;
        let field = |name: &str| problem.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        let message = field("detail").or_else(|| field("title")).or_else(|| field("error"))?;
        Some((field("code").unwrap_or_default(), message))
    };
    let (code, message) = xml::error(text).or_else(json).unwrap_or_else(|| match status {
        404 => (String::new(), "not found".to_owned()),
        401 | 403 => (String::new(), "not allowed".to_owned()),
        412 => ("PreconditionFailed".to_owned(), "the object is another one now".to_owned()),
        _ => Default::default(),
    });
    Error::Refused { status, code, message, retry_after }
}

#[cfg(test)]
mod tests;
