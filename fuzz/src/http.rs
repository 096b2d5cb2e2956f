//! Bytes on a connection to the HTTP port, as a stranger or a user sends them: S3, REST and what is open to everybody, behind the real
//! door. No answer is a failure of ours, and a stranger changes nothing.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::OwnerId;
use cyxcloud_core::claims::key_id;
use cyxcloud_gateway::fuzzing::{self, protocol};
use cyxcloud_gateway::serve::App;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::gateway::{JWT_SECRET, check, served, wipe};
use super::objects_support::Reply;
use super::runtime::block_on;

pub fn run(data: &[u8]) {
    block_on(async {
        let served = served().await;
        converse(served.app.clone(), data).await;
        wipe(&served.gateway).await;
    });
}

/// Sends all the bytes and the end, and takes what comes.
async fn converse(app: Arc<App>, sent: &[u8]) {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let serve = async {
        let service = hyper::service::service_fn(|request| answer(app.clone(), request));
        let mut builder = protocol();
        // A real client waits for its answers before it closes.
        builder.http1().half_close(true);
        // Nonsense on a connection ends it, and that is an answer.
        let _ = builder.serve_connection_with_upgrades(TokioIo::new(server), service).await;
    };
    let talk = async {
        // Whoever answers before the end need not read it.
        let _ = client.write_all(sent).await;
        let _ = client.shutdown().await;
        let mut answers = Vec::new();
        let _ = client.read_to_end(&mut answers).await;
    };
    tokio::join!(serve, talk);
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let method = request.method().clone();
    let path = fuzzing::decode(request.uri().path()).unwrap_or_default();
    let open = ["/health", "/ready", "/version"].contains(&path.as_str()) || path.starts_with("/api/v1/");
    let stranger = request.uri().query().is_none() && !request.headers().contains_key("authorization");
    let response = app.handle(request, IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let reply = Reply { status: parts.status, headers: parts.headers.clone(), body: body.clone() };
    check(&method, &reply);
    let refused = !parts.status.is_success() || method == http::Method::OPTIONS;
    assert!(open || !stranger || refused, "a stranger was answered: {parts:?}");
    Ok(Response::from_parts(parts, Full::new(body)))
}

/// A token of the gateway's first owner that never ends.
fn token() -> String {
    let claims = json!({
        "sub": OwnerId::from_random([1; 16]).to_string(), "typ": "access", "iat": 1_700_000_000_u64,
        "exp": 9_000_000_000_u64, "jti": "fuzz", "iss": "cyxwiz", "aud": "cyxcloud",
    });
    let secret = JWT_SECRET.as_bytes();
    let header = Header { kid: Some(key_id(secret)), ..Header::new(Algorithm::HS256) };
    encode(&header, &claims, &EncodingKey::from_secret(secret)).expect("encodes")
}

pub fn seeds() -> Vec<Vec<u8>> {
    let token = token();
    let one = |line: &str, headers: &str, body: &str| {
        let length =
            if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}{length}\r\n{body}")
    };
    let user = |line: &str, headers: &str, body: &str| {
        one(line, &format!("authorization: Bearer {token}\r\n{headers}"), body)
    };
    let chunked = "content-encoding: aws-chunked\r\nx-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\n\
                   x-amz-decoded-content-length: 5\r\nx-amz-trailer: x-amz-checksum-crc32\r\n";
    let all = [
        one("GET /health", "", "") + &one("HEAD /version", "", "") + &one("GET /ready", "", ""),
        one("GET /bucket/key", "", "") + &one("PUT /bucket", "", "x"),
        user("PUT /s3/bucket", "", "")
            + &user(
                "PUT /s3/bucket/key",
                chunked,
                "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n",
            )
            + &user("GET /s3/bucket/key", "range: bytes=1-\r\n", ""),
        user("PUT /bucket", "", "")
            + &user("PUT /bucket/key", "transfer-encoding: chunked\r\n", "")
            + "5\r\nhello\r\n0\r\n\r\n",
        user("POST /bucket?delete", "", "<Delete><Object><Key>a</Key></Object></Delete>"),
        user("GET /api/v1/account", "", "") + &user("GET /api/v1/openapi.json", "", ""),
        user(
            "POST /api/v1/api-keys",
            "content-type: application/json\r\n",
            "{\"name\":\"k\",\"read_only\":true}",
        ),
        one("POST /api/v1/auth/challenge", "content-type: application/json\r\n", "{\"wallet\":\"5xK4gM\"}"),
        one("POST /api/v1/auth/refresh", "content-type: application/json\r\n", "{\"refresh_token\":\"x\"}"),
        one("OPTIONS /bucket/key", "origin: http://x\r\naccess-control-request-method: PUT\r\n", ""),
        one("GET /", "host: photos.s3.localhost\r\nx-forwarded-for: 1.2.3.4, 10.0.0.1\r\n", ""),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(),
        user(
            "GET /ws?topics=file",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "",
        ) + &one("GET /ws?ticket=00", "origin: http://x\r\n", ""),
    ];
    all.map(String::into_bytes).to_vec()
}
