//! Addresses, signatures and answers, without a network.

use super::*;

fn client(gateway: &str, proof: Proof) -> Client {
    Client {
        http: reqwest::Client::builder().tls_certs_only([]).build().expect("a client"),
        server: Server::Gateway,
        base: gateway.parse().expect("a URL"),
        proof,
        output: Output::new(false),
        reached: Arc::default(),
    }
}

fn key() -> Proof {
    let text = |text: &str| text.to_owned();
    Proof::Key(Signer {
        access_key: text("A"),
        secret_key: text("S"),
        region: text("us-east-1"),
        service: text("s3"),
    })
}

fn request(client: &Client, call: &Call) -> Result<reqwest::Request, Error> {
    client.request(call, None, &Arc::default())
}

fn object(key: &str) -> Call {
    Call::new(Method::GET, format!("/s3/bucket/{}", sigv4::uri_encode(key, false)))
}

#[test]
fn any_key_is_addressed_as_it_is() {
    let client = client("http://h:8080/", key());
    for (name, path) in [
        ("a b+%/ü", "/s3/bucket/a%20b%2B%25/%C3%BC"),
        ("//", "/s3/bucket///"),
        ("a//b/", "/s3/bucket/a//b/"),
        ("back\\slash?#&=", "/s3/bucket/back%5Cslash%3F%23%26%3D"),
        ("tab\t\n", "/s3/bucket/tab%09%0A"),
        (
            "(!*'):;@,$|{}[]^`\"<>~",
            "/s3/bucket/%28%21%2A%27%29%3A%3B%40%2C%24%7C%7B%7D%5B%5D%5E%60%22%3C%3E~",
        ),
    ] {
        let request = request(&client, &object(name)).expect("an address");
        assert_eq!(request.url().path(), path);
    }
    // Whatever would be tidied up on the way is refused.
    for name in ["..", "a/../b", "./a"] {
        assert!(matches!(request(&client, &object(name)), Err(Error::Address(_))), "{name}");
    }
}

#[test]
fn requests_are_signed_over_what_is_sent() {
    let client = client("http://h:8080/base", key());
    let call = object("k").query("b", "2 +").query("a", "").header("x-amz-checksum-mode", "ENABLED");
    let request = request(&client, &call).expect("an address");
    assert_eq!(request.url().as_str(), "http://h:8080/base/s3/bucket/k?a=&b=2%20%2B");
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    assert_eq!(header("host"), "h:8080");
    let signed = "SignedHeaders=host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date";
    assert!(header("authorization").contains(signed), "{}", header("authorization"));
    assert_eq!(header("x-amz-content-sha256"), sigv4::EMPTY_SHA256);
}

#[test]
fn bodies_are_signed_where_nothing_else_protects_them() {
    let call = Call::new(Method::PUT, "/s3/b/k".to_owned()).body(Bytes::from_static(b"body"));
    for (gateway, hash) in
        [("http://h", sigv4::sha256_hex(b"body")), ("https://h", UNSIGNED_PAYLOAD.to_owned())]
    {
        let request = request(&client(gateway, key()), &call).expect("an address");
        assert_eq!(request.headers()["x-amz-content-sha256"], hash.as_str());
        assert_eq!(request.headers()["content-length"], "4");
        assert_eq!(request.headers()["host"], "h");
    }
}

#[test]
fn tokens_are_sent_as_they_are() {
    let issuer = client("http://h", Proof::Nothing);
    let session = Session::new(issuer, "c.toml".into(), Saved::default());
    let client = client("http://h", Proof::Session(Arc::new(session)));
    let request = client.request(&object("k"), Some("t"), &Arc::default()).expect("an address");
    assert_eq!(request.headers()["authorization"], "Bearer t");
    assert!(request.headers()["authorization"].is_sensitive());
    assert!(!request.headers().contains_key("x-amz-date"));
}

#[test]
fn answers_of_all_kinds_are_explained() {
    let refusal = |status: u16, body: &'static str| {
        let status = StatusCode::from_u16(status).expect("a status");
        refused(&Reply { status, headers: HeaderMap::new(), body: Bytes::from_static(body.as_bytes()) })
    };
    let error = refusal(404, "<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>");
    assert!(error.is("NoSuchBucket"));
    let error =
        refusal(404, r#"{"type":"about:blank","title":"Not Found","detail":"no such thing","status":404}"#);
    assert_eq!(error.to_string(), "no such thing");
    assert_eq!(refusal(404, "").to_string(), "not found");
    assert!(refusal(412, "").is("PreconditionFailed"));
    assert!(refusal(502, "<html>").passes());
}

#[test]
fn waits_grow_and_stay_bounded() {
    for attempt in 1..40 {
        let wait = backoff(attempt);
        assert!(wait >= BACKOFF_FIRST / 2 && wait <= BACKOFF_MOST);
    }
    assert!(backoff(6) > backoff(1));
}
