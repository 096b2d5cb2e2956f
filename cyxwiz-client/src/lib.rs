//! What nodes and gateways ask the CyxWiz API: log-ins and machines, quotas (`docs/cyxwiz-api.md`).
//!
//! The address is the operator's own configuration, so it is not judged; redirects are not followed, because a password
//! would go elsewhere. Every call ends in time and every answer is small. Not here: when to ask again, and what follows.

#[doc(hidden)]
pub mod fuzzing;

use std::time::Duration;

use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A password is hashed on the other side, and other log-ins may be before it.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Somebody's first request waits for this one.
const QUOTA_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer that is read.
const ANSWER_MAX: usize = 64 << 10;
/// What problems' types begin with.
const PROBLEM: &str = "urn:cyxwiz:problem:";

/// Why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no address.
    #[error("{url:?} is not the URL of a CyxWiz API ({why}); write it like http://cyxwiz-api:3002")]
    Url {
        /// As it was given, without a password.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("could not set up TLS")]
    Tls(#[source] reqwest::Error),
    /// It says no, and will say so again.
    #[error("{detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The word of the problem's type, such as `wrong-credentials`; empty where there is none.
        kind: String,
        /// In its words.
        detail: String,
    },
    /// It may say something else in a moment.
    #[error("it is busy: {detail}")]
    Busy {
        /// In its words.
        detail: String,
        /// How long it asks to be left alone.
        after: Option<Duration>,
    },
    /// It does not answer.
    #[error("it does not answer")]
    Unreachable(#[source] reqwest::Error),
    /// It answers, but nothing that makes sense.
    #[error("its answer is not understood: {0}")]
    Garbled(String),
}

impl Error {
    /// Whether somebody must change something before it can be otherwise.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Url { .. })
    }
}

/// What a log-in or a renewal answers.
#[derive(Clone, Debug, Deserialize)]
pub struct Tokens {
    /// Opens gateways and the API itself.
    pub access_token: SecretString,
    /// Is exchanged for the next two.
    pub refresh_token: SecretString,
    /// Seconds that the access token holds.
    pub expires_in: u64,
}

/// A storage node, as its operator's account lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// For people.
    pub name: String,
    /// libp2p peer id: the machine's identity.
    pub peer_id: String,
    /// Space that it offers.
    pub storage_bytes: u64,
    /// Region or site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Software version.
    pub version: String,
}

/// What an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Bytes that it may store; `None` is no limit.
    pub storage_quota: Option<ByteCount>,
    /// Whether it may do nothing now.
    pub suspended: bool,
    /// Access tokens issued before hold no more; `None` ends none.
    pub tokens_after: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Registered {
    id: String,
}

#[derive(Deserialize)]
struct Quota {
    /// Present even where it is `null`: an answer without it is not one.
    #[serde(deserialize_with = "Option::deserialize")]
    storage_quota: Option<u64>,
    status: String,
    /// Seconds since 1970. Services of before say nothing of it.
    #[serde(default)]
    tokens_after: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    r#type: String,
    detail: String,
}

/// The API, seen from here. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// At this address; `agent` says who asks.
    pub fn new(url: &str, agent: &str) -> Result<Self, Error> {
        let base = parse_url(url)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(agent)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if base.scheme() == "http" {
            // Reading the system's certificates takes time, and fails where there are none.
            builder = builder.tls_certs_only([]);
        }
        Ok(Self { http: builder.build().map_err(Error::Tls)?, base })
    }

    /// The address, as it is kept and compared.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Logs in with a password.
    pub async fn log_in(&self, email: &str, password: &SecretString) -> Result<Tokens, Error> {
        let body = serde_json::json!({ "email": email, "password": password.expose_secret() });
        read(self.request(Method::POST, "/api/auth/login", None)?.json(&body)).await
    }

    /// Exchanges a refresh token for new tokens.
    pub async fn renew(&self, refresh_token: &SecretString) -> Result<Tokens, Error> {
        read(self.request(Method::POST, "/api/auth/refresh", Some(refresh_token))?).await
    }

    /// Ends the session that a refresh token belongs to.
    pub async fn log_out(&self, refresh_token: &SecretString) -> Result<(), Error> {
        send(self.request(Method::POST, "/api/auth/logout", Some(refresh_token))?).await.map(|_| ())
    }

    /// Lists a machine under the account of the access token, or brings its entry up to date; its id there.
    pub async fn register_machine(
        &self,
        access_token: &SecretString,
        machine: &Machine,
    ) -> Result<String, Error> {
        let request = self.request(Method::POST, "/api/machines/register", Some(access_token))?;
        read::<Registered>(request.json(machine)).await.map(|registered| registered.id)
    }

    /// What an account may do, asked with a service token for it; `None` if it has no such account.
    pub async fn account(&self, id: OwnerId, service_token: &SecretString) -> Result<Option<Account>, Error> {
        let path = format!("/api/users/{id}/quota");
        let request = self.request(Method::GET, &path, Some(service_token))?.timeout(QUOTA_TIMEOUT);
        account_of(read(request).await)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&SecretString>,
    ) -> Result<RequestBuilder, Error> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        let request = self.http.request(method, url);
        let Some(token) = token else { return Ok(request) };
        let bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
        let mut bearer = bearer.map_err(|_| Error::Garbled("a token cannot stand in a header".to_owned()))?;
        // Debug output leaves it out, and HTTP/2 keeps it out of its tables.
        bearer.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, bearer))
    }
}

/// The URL, if it is one of a server and nothing more.
fn parse_url(text: &str) -> Result<Url, Error> {
    // A password that somebody put there is not repeated.
    let shown = text.rsplit('@').next().unwrap_or(text).to_owned();
    let wrong = |why: &str| Error::Url { url: shown.clone(), why: why.to_owned() };
    let url = Url::parse(text.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("neither http nor https"));
    }
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if plain { Ok(url) } else { Err(wrong("it has more than a host, a port and a path")) }
}

async fn read<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, Error> {
    parse(&send(request).await?)
}

async fn send(request: RequestBuilder) -> Result<Vec<u8>, Error> {
    let response = request.send().await.map_err(unreachable)?;
    let (status, after) = (response.status(), retry_after(response.headers()));
    good(status, after, body(response).await?)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    // Its words about what is wrong may quote what is there, and there are tokens.
    serde_json::from_slice(body)
        .map_err(|error| Error::Garbled(format!("JSON, line {} column {}", error.line(), error.column())))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.parse().ok().map(Duration::from_secs)
}

/// The body of an answer that says yes.
fn good(status: StatusCode, after: Option<Duration>, body: Vec<u8>) -> Result<Vec<u8>, Error> {
    if status.is_success() {
        return Ok(body);
    }
    Err(refusal(status, serde_json::from_slice(&body).unwrap_or_default(), after))
}

fn account_of(quota: Result<Quota, Error>) -> Result<Option<Account>, Error> {
    match quota {
        Ok(quota) => Ok(Some(Account {
            storage_quota: quota.storage_quota.map(ByteCount::bytes),
            // Only one word lets in.
            suspended: quota.status != "active",
            tokens_after: quota.tokens_after.map(|secs| {
                let millis = i64::try_from(secs.saturating_mul(1000)).unwrap_or(i64::MAX);
                Timestamp::from_unix_millis(millis)
            }),
        })),
        Err(Error::Refused { status: 404, kind, .. }) if kind == "not-found" => Ok(None),
        Err(error) => Err(error),
    }
}

fn refusal(status: StatusCode, problem: Problem, after: Option<Duration>) -> Error {
    let detail = match problem.detail.is_empty() {
        true => format!("it answers {status}"),
        // A stranger's words may end up in a terminal.
        false => problem.detail.chars().filter(|c| !c.is_control()).take(300).collect(),
    };
    let passes = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    if passes {
        return Error::Busy { detail, after };
    }
    let kind = problem.r#type.strip_prefix(PROBLEM).unwrap_or_default().to_owned();
    Error::Refused { status: status.as_u16(), kind, detail }
}

async fn body(mut response: Response) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if body.len() + piece.len() > ANSWER_MAX {
            return Err(Error::Garbled(format!("it is longer than {ANSWER_MAX} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn unreachable(error: reqwest::Error) -> Error {
    Error::Unreachable(error.without_url())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with these words, and says what was asked.
    async fn once(answer: &str) -> (Client, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let answer = answer.to_owned();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("answered");
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        (Client::new(&format!("http://{address}/base/"), "test").expect("an address"), asked)
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nretry-after: 7\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    async fn account(status: &str, body: &str) -> Result<Option<Account>, Error> {
        let (client, _asked) = once(&answer(status, body)).await;
        client.account(OwnerId::from_random([7; 16]), &SecretString::from("t")).await
    }

    #[tokio::test]
    async fn quotas_are_asked_for_and_read() {
        let (client, asked) = once(&answer("200 OK", r#"{"storage_quota":null,"status":"active"}"#)).await;
        let id = OwnerId::from_random([7; 16]);
        let found = client.account(id, &SecretString::from("t.o.k")).await.expect("answered");
        assert_eq!(found, Some(Account { storage_quota: None, suspended: false, tokens_after: None }));
        let asked = asked.await.expect("asked").to_ascii_lowercase();
        assert!(asked.starts_with(&format!("get /base/api/users/{id}/quota http/1.1")), "{asked}");
        assert!(asked.contains("authorization: bearer t.o.k"), "{asked}");
        let body = r#"{"storage_quota":5,"status":"suspended","tokens_after":1800000000}"#;
        let found = account("200 OK", body).await.expect("answered");
        let after = Some(Timestamp::from_unix_millis(1_800_000_000_000));
        let quota = Some(ByteCount::bytes(5));
        assert_eq!(found, Some(Account { storage_quota: quota, suspended: true, tokens_after: after }));
        let body = r#"{"storage_quota":5,"status":"suspended","tokens_after":null}"#;
        let found = account("200 OK", body).await.expect("answered");
        assert_eq!(found, Some(Account { storage_quota: quota, suspended: true, tokens_after: None }));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_apart() {
        let nobody = account("404 Not Found", r#"{"type":"urn:cyxwiz:problem:not-found"}"#).await;
        assert_eq!(nobody.expect("an answer"), None);
        // Whatever is there, it is not the API.
        assert!(account("404 Not Found", "<html>").await.is_err_and(|error| error.is_refusal()));
        assert!(account("301 Moved Permanently", "").await.is_err_and(|error| error.is_refusal()));
        assert!(matches!(
            account("503 Service Unavailable", "").await,
            Err(Error::Busy { after: Some(after), .. }) if after.as_secs() == 7
        ));
        assert!(matches!(account("200 OK", r#"{"status":"active"}"#).await, Err(Error::Garbled(_))));
        assert!(matches!(account("200 OK", "{").await, Err(Error::Garbled(_))));
        assert!(matches!(account("200 OK", &"x".repeat(ANSWER_MAX + 1)).await, Err(Error::Garbled(_))));
        let client = Client::new("http://127.0.0.1:1", "test").expect("an address");
        let gone = client.renew(&SecretString::from("t")).await;
        assert!(matches!(gone, Err(Error::Unreachable(_))));
    }

    #[tokio::test]
    async fn answers_that_make_no_sense_are_not_repeated() {
        let (client, _asked) =
            once(&answer("200 OK", r#"{"access_token":"hush","expires_in":"hush"}"#)).await;
        let error = client.renew(&SecretString::from("t")).await.expect_err("garbled");
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    }

    #[test]
    fn addresses_are_those_of_servers() {
        for bad in ["cyxwiz:3002", "ftp://h", "http://u:sesame@h", "http://h/?q", ""] {
            let error = Client::new(bad, "test").expect_err(bad).to_string();
            assert!(!error.contains("sesame"), "{error}");
        }
        assert_eq!(Client::new("http://h:3002/", "test").expect("fine").url(), "http://h:3002");
    }
}
