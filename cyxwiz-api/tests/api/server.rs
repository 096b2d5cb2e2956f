//! The service on a port of its own, and what speaks to it.

use std::net::SocketAddr;

use clap::Parser;
use cyxcloud_core::claims::{Claims, TokenKind, key_id};
use cyxwiz_api::{App, Config, run};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::database::Database;

pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const PASSWORD: &str = "correct horse battery";

/// The service, until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    url: String,
    stop: CancellationToken,
    http: reqwest::Client,
    pub(crate) database: Database,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

/// Somebody who is logged in.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) email: String,
    pub(crate) access: String,
    pub(crate) refresh: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("JSON: {self:?}"))
    }

    /// The body, if this is the status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        if self.text.is_empty() { Value::Null } else { self.json() }
    }

    /// A problem of this kind, in the form of RFC 9457.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, kind: &str) {
        let body = self.expect(status);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(body["type"], format!("urn:cyxwiz:problem:{kind}"));
        assert_eq!(body["status"], status);
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
    }

    pub(crate) fn session(&self) -> Session {
        let body = self.json();
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{body}")).to_owned();
        Session {
            id: text(&body["user"]["id"]),
            email: text(&body["user"]["email"]),
            access: text(&body["access_token"]),
            refresh: text(&body["refresh_token"]),
        }
    }
}

impl Server {
    /// With what it needs and these arguments more; nothing (said aloud) without PostgreSQL.
    pub(crate) async fn start(args: &[&str]) -> Option<Self> {
        Some(Self::start_on(Database::make().await?, args).await)
    }

    pub(crate) async fn start_on(database: Database, args: &[&str]) -> Self {
        let url = database.url();
        let mut all = vec!["cyxwiz-api", "--jwt-secret", SECRET, "--database-url", &url];
        if !args.contains(&"--registrations-per-hour") {
            all.extend(["--registrations-per-hour", "1000"]);
        }
        let config = Config::try_parse_from(all.iter().chain(args)).expect("arguments");
        let app = App::open(config).await.expect("opens");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let stop = CancellationToken::new();
        tokio::spawn(run(app, listener, stop.clone().cancelled_owned()));
        let http = reqwest::Client::builder().tls_certs_only([]).build().expect("a client");
        Self { url, stop, http, database }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A connection from this address of the machine.
    pub(crate) async fn connect_from(&self, address: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(address.parse().expect("an address"), 0)).expect("binds");
        let at = self.url.trim_start_matches("http://").parse().expect("where it listens");
        socket.connect(at).await.expect("connects")
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("answers");
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, text: response.text().await.expect("a body") }
    }

    /// A request with a token (if not empty) and a JSON body (if not null).
    pub(crate) async fn call(&self, method: Method, path: &str, token: &str, body: Value) -> Answer {
        let mut request = self.request(method, path);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        self.send(request).await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Answer {
        self.call(Method::GET, path, token, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call(Method::POST, path, token, body).await
    }

    pub(crate) async fn login(&self, email: &str, password: &str) -> Answer {
        self.post("/api/auth/login", "", json!({"email": email, "password": password})).await
    }

    pub(crate) async fn refresh(&self, token: &str) -> Answer {
        self.post("/api/auth/refresh", token, Value::Null).await
    }

    /// Somebody new.
    pub(crate) async fn register(&self, name: &str) -> Session {
        let body = json!({"email": format!("{name}@example.org"), "password": PASSWORD, "username": name});
        let answer = self.post("/api/auth/register", "", body).await;
        answer.expect(201);
        answer.session()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Claims that would be right for a token of this kind.
pub(crate) fn claims(sub: &str, kind: TokenKind) -> Claims {
    let now = u64::try_from(chrono::Utc::now().timestamp()).expect("after 1970");
    let aud = if kind == TokenKind::Access { "cyxcloud" } else { "cyxwiz-api" };
    Claims {
        sub: sub.to_owned(),
        wallet: None,
        typ: kind,
        iat: now,
        exp: now + kind.lifetime().as_secs(),
        jti: Uuid::new_v4().to_string(),
        iss: "cyxcloud".to_owned(),
        aud: aud.to_owned(),
        nbf: None,
        sid: None,
        key: None,
        ver: None,
    }
}

/// Signs claims as somebody would who knows the secret.
pub(crate) fn sign(claims: &impl serde::Serialize) -> String {
    let header = Header { kid: Some(key_id(SECRET.as_bytes())), ..Header::new(Algorithm::HS256) };
    encode(&header, claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("signs")
}
