//! Requests as they come in from outside: signed, deframed, checked against their trailers; and the account's REST.

mod objects_support;

use axum::body::Body;
use bytes::Bytes;
use cyxcloud_core::sigv4::{RequestToSign, Signer};
use cyxcloud_core::stripe::INLINE_MAX;
use cyxcloud_gateway::auth::{Authenticator, Mount, RootCredentials};
use cyxcloud_gateway::objects::checksums::{Algorithm, encode};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use objects_support::{Gateway, Reply};
use tower::ServiceExt as _;

const ACCESS_KEY: &str = "AKIAEXAMPLE";
const SECRET_KEY: &str = "a-secret-of-some-length";

fn authenticator(gateway: &Gateway) -> Authenticator {
    let master = cyxcloud_core::seal::MasterKey::from_bytes([9; 32]);
    let root = RootCredentials {
        access_key: ACCESS_KEY.to_owned(),
        secret: SECRET_KEY.into(),
        owner: gateway.caller,
    };
    Authenticator::new(gateway.metadata.clone(), master, None, "us-east-1".to_owned(), Some(root))
}

/// Sends a body in the framing that current SDKs use: chunks without signatures, and a checksum behind.
async fn put_with_trailer(gateway: &Gateway, trailer: &str, value: &str, body: &str) -> Reply {
    let framed = format!("{:x}\r\n{body}\r\n0\r\n{trailer}:{value}\r\n\r\n", body.len());
    let headers: Vec<(String, String)> = [
        ("host", "localhost:8080"),
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", &body.len().to_string()),
        ("x-amz-trailer", trailer),
        ("x-amz-sdk-checksum-algorithm", "CRC32"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let to_sign = RequestToSign { method: "PUT", raw_path: "/s3/bucket/key", query: &[], headers: &headers };
    let signer = Signer {
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.to_owned(),
        region: "us-east-1".to_owned(),
        service: "s3".to_owned(),
    };
    let now = chrono::Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
    let signed = signer.sign(&to_sign, &now, "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
    let mut request =
        Request::builder().method("PUT").uri("/s3/bucket/key").header("content-length", framed.len());
    for (name, value) in headers.iter().chain(&signed) {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(framed))).expect("is a request");
    let auth = authenticator(gateway);
    read(gateway.service.call_unverified(request, Mount::Prefix("/s3"), &auth).await).await
}

async fn read<B>(response: http::Response<B>) -> Reply
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("the body comes to its end").to_bytes();
    Reply { status: parts.status, headers: parts.headers, body }
}

#[tokio::test]
async fn trailers_are_checked_and_kept() {
    let gateway = Gateway::start(INLINE_MAX).await.with_bucket().await;
    for algorithm in Algorithm::ALL {
        let name = format!("x-amz-checksum-{}", algorithm.name().to_lowercase());
        let (good, bad) = (encode(&algorithm.of(b"hello")), encode(&algorithm.of(b"other")));
        put_with_trailer(&gateway, &name, &bad, "hello").await.error(400, "BadDigest");
        put_with_trailer(&gateway, &name, "AAA", "hello").await.error(400, "InvalidRequest");
        gateway.get("/bucket/key").await.error(404, "NoSuchKey");
        let put = put_with_trailer(&gateway, &name, &good, "hello").await.expect(200);
        assert_eq!(put.header(&name), Some(good.as_str()));
        let got = gateway.get_with("/bucket/key", &[("x-amz-checksum-mode", "ENABLED")]).await.expect(200);
        assert_eq!((got.text(), got.header(&name)), ("hello", Some(good.as_str())));
        assert_eq!(got.header("content-encoding"), None);
        gateway.delete("/bucket/key").await.expect(204);
    }
}

#[tokio::test]
async fn who_proves_nothing_is_told_so_in_xml() {
    let gateway = Gateway::start(INLINE_MAX).await.with_bucket().await;
    let auth = authenticator(&gateway);
    for method in ["GET", "HEAD"] {
        let request = Request::builder().method(method).uri("/bucket/key").header("host", "localhost:8080");
        let request = request.body(Full::new(Bytes::new())).expect("is a request");
        let reply = read(gateway.service.call_unverified(request, Mount::Root, &auth).await).await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN);
        if method == "HEAD" {
            assert!(reply.body.is_empty());
        } else {
            reply.error(403, "AccessDenied");
        }
    }
}

#[tokio::test]
async fn preflights_need_no_credentials() {
    let gateway = Gateway::start(INLINE_MAX).await;
    let auth = authenticator(&gateway);
    let request =
        Request::builder().method("OPTIONS").uri("/bucket/key").header("origin", "https://app.example");
    let request = request.body(Full::new(Bytes::new())).expect("is a request");
    let reply = read(gateway.service.call_unverified(request, Mount::Root, &auth).await).await;
    assert_eq!(reply.expect(200).header("access-control-allow-origin"), Some("*"));
}

async fn rest_get(gateway: &Gateway, uri: &str, known: bool) -> (StatusCode, serde_json::Value) {
    let mut request = Request::builder().uri(uri).body(Body::empty()).expect("is a request");
    if known {
        request.extensions_mut().insert(gateway.principal());
    }
    let response = match gateway.rest().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let reply = read(response).await;
    let is_problem = reply.header("content-type") == Some("application/problem+json");
    assert_eq!(is_problem, !reply.status.is_success());
    (reply.status, serde_json::from_slice(&reply.body).expect("is json"))
}

#[tokio::test]
async fn accounts_say_what_they_hold() {
    let gateway = Gateway::start(INLINE_MAX).await.with_bucket().await;
    gateway.put_with("/bucket/a%20dir/key", &[("content-type", "text/plain")], b"hello").await.expect(200);
    let (status, account) = rest_get(&gateway, "/api/v1/account", true).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(account["username"], "user-1");
    assert_eq!(account["storage_used_bytes"], 5);
    assert_eq!(account["object_count"], 1);
    assert!(account["storage_quota_bytes"].is_null());
    assert_eq!(account["buckets"][0]["name"], "bucket");
    assert_eq!(account["buckets"][0]["object_count"], 1);

    let (_, bucket) = rest_get(&gateway, "/api/v1/buckets/bucket", true).await;
    assert_eq!((&bucket["profile"], &bucket["storage_used_bytes"]), (&"standard".into(), &5.into()));

    let (_, object) = rest_get(&gateway, "/api/v1/buckets/bucket/objects/a%20dir/key", true).await;
    assert_eq!(object["key"], "a dir/key");
    assert_eq!(object["size_bytes"], 5);
    assert_eq!(object["etag"], "5d41402abc4b2a76b9719d911017c592");
    assert_eq!(object["content_hash"], blake3::hash(b"hello").to_hex().as_str());
    assert_eq!(object["geometry"], "inline");
    assert_eq!((&object["segments"], &object["chunk_count"]), (&1.into(), &0.into()));
    assert_eq!(object["content_type"], "text/plain");
}

#[tokio::test]
async fn rest_errors_are_problems_with_a_stable_type() {
    let gateway = Gateway::start(INLINE_MAX).await.with_bucket().await;
    let other = gateway.as_somebody_else();
    for (who, uri, known, status, kind) in [
        (&gateway, "/api/v1/account", false, 401, "unauthenticated"),
        (&gateway, "/api/v1/buckets/never", true, 404, "no-such-bucket"),
        (&gateway, "/api/v1/buckets/bucket/objects/never", true, 404, "no-such-key"),
        (&other, "/api/v1/buckets/bucket", true, 403, "access-denied"),
    ] {
        let (have, problem) = rest_get(who, uri, known).await;
        assert_eq!(have.as_u16(), status, "{uri}");
        assert_eq!(problem["type"], format!("urn:cyxcloud:problem:{kind}"));
        assert_eq!(problem["status"], status);
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
    }
}
