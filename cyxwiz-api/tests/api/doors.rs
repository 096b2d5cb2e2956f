//! Which token opens which door, and what comes of requests that make no sense.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cyxcloud_core::claims::{Claims, TokenKind, key_id};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::server::{SECRET, Server, claims, sign};

/// Every route that needs a token, and the kind that it needs.
fn doors(id: &str) -> Vec<(Method, String, TokenKind)> {
    let door = |method, path: &str, kind| (method, path.to_owned(), kind);
    vec![
        door(Method::POST, "/api/auth/refresh", TokenKind::Refresh),
        door(Method::POST, "/api/auth/logout", TokenKind::Refresh),
        door(Method::GET, "/api/users/me", TokenKind::Access),
        door(Method::PUT, "/api/users/me", TokenKind::Access),
        door(Method::GET, &format!("/api/users/{id}/quota"), TokenKind::Service),
        door(Method::POST, "/api/machines/register", TokenKind::Access),
        door(Method::GET, "/api/machines", TokenKind::Access),
        door(Method::DELETE, &format!("/api/machines/{}", Uuid::nil()), TokenKind::Access),
        door(Method::GET, "/api/wallets/me", TokenKind::Access),
        door(Method::POST, "/api/wallets/challenge", TokenKind::Access),
        door(Method::POST, "/api/wallets/verify", TokenKind::Access),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_21_every_door_takes_its_own_kind_and_nothing_else() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let kinds =
        [TokenKind::Access, TokenKind::Refresh, TokenKind::Node, TokenKind::ApiKey, TokenKind::Service];
    for (method, path, wanted) in doors(&ann.id) {
        let call = async |token: &str| server.call(method.clone(), &path, token, Value::Null).await;
        call("").await.refused(401, "not-authorized");
        for kind in kinds.into_iter().filter(|kind| *kind != wanted) {
            // Also with the audience that this door wants.
            for aud in ["cyxcloud", "cyxwiz-api"] {
                let token = sign(&Claims { aud: aud.to_owned(), ..claims(&ann.id, kind) });
                let answer = call(&token).await;
                assert_eq!(answer.status, 401, "{method} {path} {kind:?} {aud}: {answer:?}");
            }
        }
        let other_audience = Claims { aud: "other".to_owned(), ..claims(&ann.id, wanted) };
        call(&sign(&other_audience)).await.refused(401, "not-authorized");
        let other_issuer = Claims { iss: "other".to_owned(), ..claims(&ann.id, wanted) };
        call(&sign(&other_issuer)).await.refused(401, "not-authorized");
        let over = Claims { iat: 1, exp: 2, ..claims(&ann.id, wanted) };
        call(&sign(&over)).await.refused(401, "not-authorized");
        if wanted == TokenKind::Access {
            let nobody = claims(&Uuid::new_v4().to_string(), wanted);
            call(&sign(&nobody)).await.refused(401, "not-authorized");
            call(&sign(&claims("root", wanted))).await.refused(401, "not-authorized");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_21_the_algorithm_is_ours() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    server.get("/api/users/me", &ann.access).await.expect(200);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = part(&serde_json::to_value(claims(&ann.id, TokenKind::Access)).expect("claims"));
    let kid = key_id(SECRET.as_bytes());
    for alg in ["none", "None", "HS384", "RS256", "EdDSA", ""] {
        let head = part(&json!({"alg": alg, "typ": "JWT", "kid": kid}));
        for token in [format!("{head}.{body}."), format!("{head}.{body}.AAAA"), format!("{head}.{body}")] {
            server.get("/api/users/me", &token).await.refused(401, "not-authorized");
        }
    }
    for (claim, value) in
        [("exp", json!("9999999999")), ("exp", Value::Null), ("nbf", json!("x")), ("jti", json!(""))]
    {
        let mut changed = serde_json::to_value(claims(&ann.id, TokenKind::Access)).expect("claims");
        changed[claim] = value;
        server.get("/api/users/me", &sign(&changed)).await.refused(401, "not-authorized");
    }
    let request = server.request(Method::GET, "/api/users/me");
    let twice = request.bearer_auth(&ann.access).header("authorization", format!("Bearer {}", ann.access));
    server.send(twice).await.refused(401, "not-authorized");
    let basic = server.request(Method::GET, "/api/users/me").basic_auth("ann", Some(&ann.access));
    server.send(basic).await.refused(401, "not-authorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_looks_up_one_quota_with_one_token() {
    let Some(server) = Server::start(&["--default-storage-quota", "3GiB"]).await else { return };
    let (ann, bob) = (server.register("ann").await, server.register("bob").await);
    let token = sign(&claims(&ann.id, TokenKind::Service));
    let path = |id: &str| format!("/api/users/{id}/quota");
    let body = server.get(&path(&ann.id), &token).await.expect(200);
    assert_eq!(
        body,
        json!({"id": ann.id, "storage_quota": 3_u64 << 30, "status": "active", "tokens_after": null})
    );
    server.get(&path(&bob.id), &token).await.refused(401, "not-authorized");
    server.get(&path(&ann.id), &ann.access).await.refused(401, "not-authorized");
    let nobody = Uuid::new_v4().to_string();
    let stranger = sign(&claims(&nobody, TokenKind::Service));
    server.get(&path(&nobody), &stranger).await.refused(404, "not-found");
    server.database.run("UPDATE cyxwiz.users SET storage_quota = NULL, status = 'suspended'").await;
    let body = server.get(&path(&ann.id), &token).await.expect(200);
    assert_eq!(
        body,
        json!({"id": ann.id, "storage_quota": null, "status": "suspended", "tokens_after": null})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_for_everybody_and_tells_little() {
    let Some(server) = Server::start(&[]).await else { return };
    assert_eq!(server.get("/health", "").await.text, "OK");
    assert_eq!(server.get("/ready", "").await.expect(200), json!({"ready": true, "reason": null}));
    assert_eq!(server.get("/version", "").await.text.trim(), env!("CARGO_PKG_VERSION"));
    server.get("/metrics", "").await.refused(404, "not-found");
    server.get("/api/users", "").await.refused(404, "not-found");
    server.post("/health", "", Value::Null).await.refused(405, "method-not-allowed");
    let answer = server.get("/health", "").await;
    assert_eq!(
        (&answer.headers["cache-control"], &answer.headers["x-content-type-options"]),
        (&"no-store".parse().expect("a value"), &"nosniff".parse().expect("a value"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_30_an_address_has_so_many_connections() {
    let Some(server) = Server::start(&["--connections-per-address", "3"]).await else { return };
    let here = ["127.0.0.21", "127.0.0.22"];
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(server.connect_from(here[0]).await);
        assert!(answers(held.last_mut().expect("pushed")).await);
    }
    let mut refused = server.connect_from(here[0]).await;
    assert!(!answers(&mut refused).await, "it has as many as it may have");
    assert!(answers(&mut server.connect_from(here[1]).await).await, "another address has its own");
    held.clear();
    // Its end is seen a moment later.
    for _ in 0..100 {
        if answers(&mut server.connect_from(here[0]).await).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("a place is not given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_30_who_brings_many_people_has_no_limit() {
    let args = ["--connections-per-address", "1", "--trusted-proxies", "127.0.0.23/32"];
    let Some(server) = Server::start(&args).await else { return };
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(server.connect_from("127.0.0.23").await);
        assert!(answers(held.last_mut().expect("pushed")).await);
    }
}

/// Whether a connection is served, and stays.
async fn answers(stream: &mut TcpStream) -> bool {
    let asked = stream.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut begin = [0; 12];
    asked.is_ok() && stream.read_exact(&mut begin).await.is_ok() && &begin == b"HTTP/1.1 200"
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_28_requests_that_make_no_sense_are_refused() {
    let Some(server) = Server::start(&[]).await else { return };
    let login = || server.request(Method::POST, "/api/auth/login");
    let json = |body: Vec<u8>| login().header("content-type", "application/json").body(body);
    server.send(login().body("{}")).await.refused(415, "not-json");
    server.send(json(vec![])).await.refused(400, "invalid-request");
    server.send(json(b"{".to_vec())).await.refused(400, "invalid-request");
    server.send(json(vec![0xff; 100])).await.refused(400, "invalid-request");
    server.send(json("[".repeat(10_000).into_bytes())).await.refused(400, "invalid-request");
    server.send(json(vec![b' '; 1 << 20])).await.refused(413, "too-large");
    let secret = json(br#"{"email": "x@y.z", "password": ["hush"]}"#.to_vec());
    let answer = server.send(secret).await;
    answer.refused(400, "invalid-request");
    assert!(!answer.text.contains("hush"));
    // U+0000 is no text to PostgreSQL.
    server.login("a\0@example.org", "x").await.refused(401, "wrong-credentials");
    let long = server.request(Method::GET, "/health").header("x-long", "x".repeat(64 << 10));
    assert_eq!(server.send(long).await.status, 431);
    assert_eq!(server.get("/health", "").await.text, "OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_closed() {
    let Some(server) = Server::start(&[]).await else { return };
    let address = server.url().trim_start_matches("http://");
    let mut slow = tokio::net::TcpStream::connect(address).await.expect("connects");
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").await.expect("begins");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(std::time::Duration::from_secs(60), slow.read_to_end(&mut rest)).await;
    closed.expect("closed before long").expect("read");
}
