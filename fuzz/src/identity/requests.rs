//! Requests to the whole service but its database. Every refusal is a problem that its client understands; and nobody gets as far as the
//! database without a token of the right kind, but to register and to log in.

use std::net::SocketAddr;
use std::sync::LazyLock;

use bytes::Bytes;
use cyxcloud_core::claims::TokenKind;
use cyxwiz_api::fuzzing::Service;
use cyxwiz_client::Error;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::super::input::{Draft, Input};
use super::super::runtime::block_on;
use super::answers;
use super::tokens::{KINDS, SECRET, audience, sign};

static SERVICE: LazyLock<Service> = LazyLock::new(|| block_on(Service::open(SECRET)));

const OWNER: &str = "6b1ee5b8-5d7c-4f6c-9d4c-6f0e4c1e0a01";
const METHODS: [Method; 6] =
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS];

pub fn run(mut input: Input<'_>) {
    let method = METHODS[usize::from(input.u8()) % METHODS.len()].clone();
    let shown = input.u8();
    let (address, text) = (input.text(300), input.some(300));
    let mut request = Request::builder().method(&method).uri(&address);
    // A token of each kind, anything, or nothing.
    let kind = KINDS.get(usize::from(shown & 7)).copied();
    let authorization = match kind {
        Some(kind) => HeaderValue::from_str(&format!("Bearer {}", token(kind))).ok(),
        None if shown & 7 == 7 => HeaderValue::from_bytes(text).ok(),
        None => None,
    };
    if let Some(value) = authorization {
        request = request.header(AUTHORIZATION, value);
    }
    if shown & 8 != 0 {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if shown & 16 != 0 {
        request = request.header("x-forwarded-for", text);
    }
    let Ok(request) = request.body(Bytes::copy_from_slice(input.rest())) else { return };
    let path = request.uri().path().to_owned();
    // Opened outside: it runs on the same runtime.
    let service = &*SERVICE;
    let response = block_on(service.answer(request, SocketAddr::from(([10, 0, 0, 7], 4711))));
    let (status, text) = (response.status(), String::from_utf8_lossy(response.body()));
    assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{text}");
    if status == StatusCode::SERVICE_UNAVAILABLE {
        assert!(is_open(&path) || kind == Some(wanted(&path)), "{method} {path} asked the database: {text}");
    }
    if (status.is_client_error() || status.is_server_error()) && path != "/ready" && method != Method::HEAD {
        understood(&response);
    }
}

/// A token that never ends.
fn token(kind: TokenKind) -> String {
    sign(&json!({
        "sub": OWNER, "typ": kind, "iat": 1_700_000_000_u64, "exp": 9_000_000_000_u64, "jti": OWNER,
        "iss": cyxwiz_api::fuzzing::NAME, "aud": audience(kind),
    }))
}

/// Whether the database is asked for anybody.
fn is_open(path: &str) -> bool {
    ["/ready", "/api/auth/register", "/api/auth/login"].contains(&path)
}

/// The kind of token that opens what is at this address.
fn wanted(path: &str) -> TokenKind {
    match path {
        "/api/auth/refresh" | "/api/auth/logout" => TokenKind::Refresh,
        "/api/users/me" => TokenKind::Access,
        path if path.starts_with("/api/users/") => TokenKind::Service,
        _ => TokenKind::Access,
    }
}

fn understood(response: &Response<Bytes>) {
    let text = String::from_utf8_lossy(response.body());
    let kind = response.headers().get(CONTENT_TYPE);
    assert_eq!(kind, Some(&HeaderValue::from_static("application/problem+json")), "{text}");
    let problem: Value = serde_json::from_slice(response.body()).expect("is JSON");
    let status = response.status();
    assert_eq!(problem["status"], status.as_u16(), "{text}");
    let read = cyxwiz_client::fuzzing::tokens(status, response.headers(), response.body());
    let error = read.expect_err("it is a refusal");
    answers::judge(status, &error);
    match error {
        Error::Refused { kind, detail, .. } => {
            assert_eq!(problem["type"], format!("urn:cyxwiz:problem:{kind}"));
            assert_eq!(problem["detail"], detail);
        }
        Error::Busy { detail, after } => {
            assert_eq!(problem["detail"], detail);
            assert!(after.is_some(), "{text}");
        }
        other => panic!("{other}: {text}"),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let one = |method: u8, shown: u8, address: &str, text: &str, body: &str| {
        Draft::default().u8(method).u8(shown).some(address).some(text).rest(body)
    };
    vec![
        one(0, 6, "/health", "", ""),
        one(1, 14, "/api/auth/register", "", "{\"email\":\"a@b.de\",\"password\":\"correct horse\"}"),
        one(1, 30, "/api/auth/login", "1.2.3.4, 10.0.0.1", "{\"email\":\"a@b.de\",\"password\":\"x\"}"),
        one(1, 1, "/api/auth/refresh", "", ""),
        one(0, 0, "/api/users/me", "", ""),
        one(0, 2, "/api/users/6b1ee5b8-5d7c-4f6c-9d4c-6f0e4c1e0a01/quota", "", ""),
        one(0, 2, "/api/users/%ff/quota", "", ""),
        one(3, 0, "/api/machines/6b1ee5b8-5d7c-4f6c-9d4c-6f0e4c1e0a01", "", ""),
        one(1, 8, "/api/machines/register", "", "{\"name\":\"n\",\"peer_id\":\"p\"}"),
        one(1, 6, "/api/auth/login", "", "{}"),
        one(2, 7, "/api/users/me", "Bearer eyJhbGciOiJub25lIn0.e30.", "{}"),
        one(3, 6, "/api/wallets/me?x=%zz", "", ""),
    ]
}
