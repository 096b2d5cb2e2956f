//! A small S3 client: one attempt per request, every request with a time limit, connections kept.
//!
//! It tells apart what scenarios must tell apart: a refusal after which nothing happened, and an answer (or silence) after
//! which the request may have taken effect.

use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::sigv4::{EMPTY_SHA256, RequestToSign, Signer, sha256_hex, uri_encode};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use crate::error::{Doing, Result};

/// No request of a scenario may take longer: "nothing hangs".
pub const LIMIT: Duration = Duration::from_secs(60);

/// Why a request was not answered with what was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{code} {message}", .status.map(|status| format!("{status} ")).unwrap_or_default())]
pub struct Refused {
    /// HTTP status; none where no whole answer came.
    pub status: Option<u16>,
    /// S3's code, or what kind of silence it was.
    pub code: String,
    /// Whatever else was said.
    pub message: String,
}

impl Refused {
    /// Whether the request may have taken effect, now or later.
    pub fn may_have_happened(&self) -> bool {
        self.status.is_none_or(|status| status >= 500)
    }

    /// Whether the object (or bucket, or upload) is not there.
    pub fn is_absence(&self) -> bool {
        self.status == Some(404)
    }

    /// Whether the gateway said that it cannot do this now: neither its mistake nor the client's.
    pub fn is_unavailable(&self) -> bool {
        self.status == Some(503)
    }

    fn silence(error: &reqwest::Error) -> Self {
        let code = if error.is_timeout() { "TimedOut" } else { "Broken" };
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(next) = cause {
            message = format!("{message}: {next}");
            cause = next.source();
        }
        Self { status: None, code: code.to_owned(), message }
    }
}

/// What a request answered.
pub type Answer<T> = std::result::Result<T, Refused>;

/// A whole good answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Of the answer.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

impl Reply {
    /// A header as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Who signs, as the cluster's root user.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Public part.
    pub access_key: String,
    /// Secret part.
    pub secret_key: String,
}

/// One request, to be filled in.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Bytes,
    limit: Duration,
}

impl Request {
    /// For an object, or for a bucket where the key is empty.
    pub fn new(method: Method, bucket: &str, key: &str) -> Self {
        let mut path = format!("/{}", uri_encode(bucket, true));
        if !key.is_empty() {
            path = format!("{path}/{}", uri_encode(key, false));
        }
        let (query, headers) = (Vec::new(), Vec::new());
        Self { method, path, query, headers, body: Bytes::new(), limit: LIMIT }
    }

    /// For another address of the gateway, which needs no encoding.
    pub fn to(method: Method, path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::new(method, "", "") }
    }

    /// Adds to the query; plain text.
    pub fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a header, which is signed; lower-case name.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// What is sent.
    pub fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    /// Another limit than [`LIMIT`].
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// One key of a listing.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    /// The key; scenarios use plain ones.
    pub key: String,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    contents: Vec<Listed>,
    next_continuation_token: Option<String>,
}

/// Path and query.
fn target(request: &Request) -> String {
    let query = cyxcloud_core::sigv4::canonical_query(&request.query);
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{}{mark}{query}", request.path)
}

/// A client of one gateway. Clones share connections.
#[derive(Clone, Debug)]
pub struct S3 {
    http: reqwest::Client,
    url: String,
    signer: Signer,
}

impl S3 {
    /// Of the gateway at `url` (`http://host:port`).
    pub fn new(url: &str, credentials: &Credentials) -> Result<Self> {
        let http = reqwest::Client::builder()
            // Gateways cut connections on which nothing is asked for 10 s; one that is just then used again is no answer.
            .pool_idle_timeout(Duration::from_secs(5))
            .tls_certs_only([])
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .doing("set up an S3 client")?;
        let signer = Signer {
            access_key: credentials.access_key.clone(),
            secret_key: credentials.secret_key.clone(),
            region: "us-east-1".to_owned(),
            service: "s3".to_owned(),
        };
        Ok(Self { http, url: url.to_owned(), signer })
    }

    /// Signs a request and sends it once.
    pub async fn send(&self, request: Request) -> Answer<Reply> {
        let built = self.build(&request);
        let response = built.send().await.map_err(|error| Refused::silence(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(|error| Refused::silence(&error))?;
        if status.is_success() {
            return Ok(Reply { headers, body });
        }
        let text = String::from_utf8_lossy(&body);
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            rest.split_once('<').map(|(value, _)| value.to_owned())
        };
        let code = element("Code").unwrap_or_default();
        Err(Refused { status: Some(status.as_u16()), code, message: element("Message").unwrap_or_default() })
    }

    /// Signs a request, sends it, and waits for the head of the answer only, whose body is the caller's to read.
    pub async fn begin(&self, request: Request) -> Answer<reqwest::Response> {
        self.build(&request).send().await.map_err(|error| Refused::silence(&error))
    }

    /// The head of a signed request without a body, as HTTP/1.1 says it: for who sends it in a way of its own.
    pub fn head_of(&self, request: &Request) -> String {
        let mut head =
            format!("{} {} HTTP/1.1\r\nhost: {}\r\n", request.method, target(request), self.host());
        for (name, value) in request.headers.iter().chain(&self.signed(request)) {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\n"
    }

    fn host(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// The headers that say who sends a request.
    fn signed(&self, request: &Request) -> Vec<(String, String)> {
        let host = self.host();
        let mut headers = vec![("host".to_owned(), host.to_owned())];
        headers.extend(request.headers.iter().cloned());
        let hash = if request.body.is_empty() { EMPTY_SHA256.to_owned() } else { sha256_hex(&request.body) };
        let date = chrono::Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
        let to_sign = RequestToSign {
            method: request.method.as_str(),
            raw_path: &request.path,
            query: &request.query,
            headers: &headers,
        };
        self.signer.sign(&to_sign, &date, &hash)
    }

    fn build(&self, request: &Request) -> reqwest::RequestBuilder {
        let mut built = self
            .http
            .request(request.method.clone(), format!("{}{}", self.url, target(request)))
            .timeout(request.limit);
        for (name, value) in request.headers.iter().chain(&self.signed(request)) {
            built = built.header(name, value);
        }
        if request.method == Method::PUT || request.method == Method::POST {
            built = built.body(request.body.clone());
        }
        built
    }

    /// Makes a bucket.
    pub async fn make_bucket(&self, bucket: &str) -> Answer<()> {
        self.send(Request::new(Method::PUT, bucket, "")).await.map(drop)
    }

    /// Stores a body.
    pub async fn put(&self, bucket: &str, key: &str, body: Bytes) -> Answer<Reply> {
        self.send(Request::new(Method::PUT, bucket, key).body(body)).await
    }

    /// Reads all of an object.
    pub async fn get(&self, bucket: &str, key: &str) -> Answer<Reply> {
        self.send(Request::new(Method::GET, bucket, key)).await
    }

    /// Asks about an object.
    pub async fn head(&self, bucket: &str, key: &str) -> Answer<Reply> {
        self.send(Request::new(Method::HEAD, bucket, key)).await
    }

    /// Removes an object.
    pub async fn delete(&self, bucket: &str, key: &str) -> Answer<()> {
        self.send(Request::new(Method::DELETE, bucket, key)).await.map(drop)
    }

    /// One page of a listing, and where the next one begins.
    pub async fn page(
        &self,
        bucket: &str,
        prefix: &str,
        keys_max: u32,
        after: Option<String>,
    ) -> Answer<(Vec<Listed>, Option<String>)> {
        let mut request = Request::new(Method::GET, bucket, "")
            .query("list-type", "2")
            .query("max-keys", keys_max.to_string())
            .query("prefix", prefix);
        if let Some(token) = after {
            request = request.query("continuation-token", token);
        }
        let reply = self.send(request).await?;
        let text = String::from_utf8_lossy(&reply.body);
        let page: Page = quick_xml::de::from_str(&text).map_err(|error| Refused {
            status: Some(200),
            code: "Garbled".to_owned(),
            message: error.to_string(),
        })?;
        Ok((page.contents, page.next_continuation_token))
    }
}
