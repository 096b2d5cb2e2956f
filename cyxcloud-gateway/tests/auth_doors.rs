//! Every route with every scheme: what is let in, and with which code the rest is refused.
//! Names with numbers are the classes of bugs that other object stores had.

mod auth_support;

use std::time::Duration;

use auth_support::{
    AMAZON_DATE, Door, Draft, EXPIRED_KEY, ORPHAN_KEY, REVOKED_KEY, ROOT_KEY, ROOT_SECRET, Sent, USER_KEY,
    USER_SECRET, amazon_time, draft, signer, user,
};
use cyxcloud_core::sigv4::{self, Scope, sha256_hex};
use cyxcloud_gateway::auth::{ClientAddress, Mount, Principal, Scheme};
use futures::FutureExt as _;
use http::header::AUTHORIZATION;
use http_body_util::BodyExt as _;

const S3: Mount = Mount::Prefix("/s3");

const ROUTES: [(Mount, &str, &str); 22] = [
    (Mount::Root, "GET", "/"),
    (Mount::Root, "HEAD", "/bucket"),
    (Mount::Root, "PUT", "/bucket"),
    (Mount::Root, "GET", "/bucket?list-type=2&prefix=a%20b%2B&delimiter=%2F"),
    (Mount::Root, "GET", "/bucket/a%20key%2B%C3%A4//x"),
    (Mount::Root, "HEAD", "/bucket/key"),
    (Mount::Root, "PUT", "/bucket/key"),
    (Mount::Root, "DELETE", "/bucket/key"),
    (Mount::Root, "DELETE", "/bucket"),
    (Mount::Root, "POST", "/bucket"),
    (Mount::Root, "POST", "/bucket?delete"),
    (Mount::Root, "POST", "/bucket/key?uploads"),
    (Mount::Root, "PUT", "/bucket/key?partNumber=1&uploadId=u"),
    (Mount::Root, "POST", "/bucket/key?uploadId=u"),
    (Mount::Root, "OPTIONS", "/bucket/key"),
    (S3, "GET", "/s3"),
    (S3, "GET", "/s3/bucket/key"),
    (S3, "PUT", "/s3/bucket/key"),
    (S3, "POST", "/s3/bucket?delete"),
    (Mount::Plain, "GET", "/api/v1/account"),
    (Mount::Plain, "GET", "/api/v1/buckets/bucket/objects/key"),
    (Mount::Plain, "POST", "/api/v1/anything"),
];

fn user_signer() -> cyxcloud_core::sigv4::Signer {
    signer(USER_KEY, USER_SECRET)
}

fn with_header(mut request: Sent, name: &'static str, value: &str) -> Sent {
    request.headers_mut().insert(name, value.parse().expect("a header"));
    request
}

fn with_query(mut request: Sent, change: impl Fn(&str) -> String) -> Sent {
    let text = request.uri().to_string();
    *request.uri_mut() = change(&text).parse().expect("an address");
    request
}

/// Adds a parameter to the query.
fn with_param(request: Sent, param: &str) -> Sent {
    with_query(request, |uri| format!("{uri}{}{param}", if uri.contains('?') { '&' } else { '?' }))
}

fn streaming(draft: &Draft, payload: &str) -> Draft {
    draft
        .clone()
        .payload(payload)
        .header("content-encoding", "aws-chunked")
        .header("x-amz-decoded-content-length", "5")
        .body(&b"5\r\nhello\r\n0\r\n\r\n"[..])
}

const STREAMING: [&str; 3] = [
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
];

fn fake_authorization(signed: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={USER_KEY}/20130524/us-east-1/s3/aws4_request, SignedHeaders={signed}, Signature={}",
        "0".repeat(64)
    )
}

/// Every scheme's request for a route, with the code it must meet; `OK` is let in.
fn schemes(door: &Door, draft: &Draft, mount: Mount) -> Vec<(&'static str, Sent, &'static str)> {
    let user = user_signer();
    let form = draft.method == "POST" && mount != Mount::Plain;
    let presigned = |expires| draft.presign(&user, AMAZON_DATE, expires);
    let changed = |claim: &str, value: serde_json::Value| {
        let mut claims = door.claims();
        claims[claim] = value;
        door.token(&claims)
    };
    let bearer = |token: &str| with_header(draft.bare(), "authorization", &format!("Bearer {token}"));
    let v4_query = format!("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={}", "0".repeat(64));
    let mut cases = vec![
        ("none", draft.bare(), "AccessDenied"),
        ("v2 header", with_header(draft.bare(), "authorization", "AWS AKUSER:c2lnbmF0dXJl"), "AccessDenied"),
        (
            "v2 query",
            with_param(draft.bare(), "AWSAccessKeyId=AKUSER&Expires=9999999999&Signature=c2ln"),
            "AccessDenied",
        ),
        ("v4", draft.sign(&user), "OK"),
        ("v4 of root", draft.sign(&signer(ROOT_KEY, ROOT_SECRET)), "OK"),
        ("v4 wrong secret", draft.sign(&signer(USER_KEY, ROOT_SECRET)), "SignatureDoesNotMatch"),
        ("v4 unknown key", draft.sign(&signer("CYXNOBODYNOBODYNOBOD", USER_SECRET)), "InvalidAccessKeyId"),
        ("v4 revoked key", draft.sign(&signer(REVOKED_KEY, USER_SECRET)), "InvalidAccessKeyId"),
        ("v4 expired key", draft.sign(&signer(EXPIRED_KEY, USER_SECRET)), "InvalidAccessKeyId"),
        ("v4 key of nobody", draft.sign(&signer(ORPHAN_KEY, USER_SECRET)), "InvalidAccessKeyId"),
        ("v4 other query", with_param(draft.sign(&user), "acl"), "SignatureDoesNotMatch"),
        (
            "v4 other path",
            with_query(draft.sign(&user), |uri| {
                uri.replacen('?', "x?", 1) + if uri.contains('?') { "" } else { "x" }
            }),
            "SignatureDoesNotMatch",
        ),
        ("v4 other host", with_header(draft.sign(&user), "host", "elsewhere:8080"), "SignatureDoesNotMatch"),
        (
            "v4 other date",
            with_header(draft.sign(&user), "x-amz-date", "20130524T000001Z"),
            "SignatureDoesNotMatch",
        ),
        ("v4 early", draft.sign_at(&user, "20130524T001501Z"), "RequestTimeTooSkewed"),
        ("v4 late", draft.sign_at(&user, "20130523T234459Z"), "RequestTimeTooSkewed"),
        (
            "v4 not signed for us",
            with_header(draft.bare(), "authorization", &fake_authorization("host")),
            "AccessDenied",
        ),
        (
            "v4 junk",
            with_header(draft.bare(), "authorization", "AWS4-HMAC-SHA256 junk"),
            "AuthorizationHeaderMalformed",
        ),
        ("v4 and bearer", with_param(bearer(&door.token(&door.claims())), &v4_query), "InvalidArgument"),
        ("v4 twice", with_param(draft.sign(&user), &v4_query), "InvalidArgument"),
        ("presigned", presigned(60), "OK"),
        ("presigned for a week", presigned(604_800), "OK"),
        ("presigned too long", presigned(604_801), "AuthorizationQueryParametersError"),
        ("presigned for nothing", presigned(0), "AuthorizationQueryParametersError"),
        (
            "presigned negative",
            with_query(presigned(60), |uri| uri.replace("Expires=60", "Expires=-60")),
            "AuthorizationQueryParametersError",
        ),
        (
            "presigned longer",
            with_query(presigned(60), |uri| uri.replace("Expires=60", "Expires=61")),
            "SignatureDoesNotMatch",
        ),
        ("presigned expired", draft.presign(&user, "20130523T235859Z", 60), "AccessDenied"),
        ("presigned ahead", draft.presign(&user, "20130524T001501Z", 60), "AccessDenied"),
        (
            "presigned wrong key",
            draft.presign(&signer(USER_KEY, "wrong"), AMAZON_DATE, 60),
            "SignatureDoesNotMatch",
        ),
        ("presigned junk", with_param(draft.bare(), &v4_query), "AuthorizationQueryParametersError"),
        ("bearer", bearer(&door.token(&door.claims())), "OK"),
        ("bearer api key", bearer(&changed("typ", "api_key".into())), "OK"),
        ("bearer refresh", bearer(&changed("typ", "refresh".into())), "InvalidToken"),
        ("bearer junk", bearer("junk"), "InvalidToken"),
        ("bearer nothing", bearer(""), "InvalidToken"),
        ("basic", with_header(draft.bare(), "authorization", "Basic dXNlcjpwYXNz"), "AccessDenied"),
        ("junk", with_header(draft.bare(), "authorization", "junk"), "AccessDenied"),
        (
            "v4a",
            with_header(draft.bare(), "authorization", "AWS4-ECDSA-P256-SHA256 Credential=a"),
            "AccessDenied",
        ),
        (
            "form",
            with_header(draft.bare(), "content-type", "Multipart/Form-Data; boundary=x"),
            if form { "NotImplemented" } else { "AccessDenied" },
        ),
        (
            "form with a signature",
            with_header(draft.sign(&user), "content-type", "multipart/form-data; boundary=x"),
            if form { "NotImplemented" } else { "OK" },
        ),
    ];
    for payload in STREAMING {
        let signed = "host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length";
        let fake =
            with_header(streaming(draft, payload).bare(), "authorization", &fake_authorization(signed));
        let fake = with_header(fake, "x-amz-date", AMAZON_DATE);
        cases.push((
            "adv_07 fake header",
            with_header(fake, "x-amz-content-sha256", payload),
            "SignatureDoesNotMatch",
        ));
        let fake = streaming(draft, payload).presign(&signer(USER_KEY, "wrong"), AMAZON_DATE, 60);
        cases.push((
            "adv_07 fake query",
            with_header(fake, "x-amz-content-sha256", payload),
            "SignatureDoesNotMatch",
        ));
        let none = with_header(streaming(draft, payload).bare(), "x-amz-content-sha256", payload);
        cases.push(("adv_07 none", none, "AccessDenied"));
    }
    cases
}

#[tokio::test]
async fn adv_08_every_route_refuses_every_scheme_but_the_good_ones() {
    let door = Door::open().await;
    for (mount, method, path) in ROUTES {
        for (scheme, request, wanted) in schemes(&door, &draft(method, path), mount) {
            let got = door.verdict(request, mount).await;
            assert_eq!(got, wanted, "{scheme}: {method} {path}");
        }
    }
}

#[tokio::test]
async fn adv_06_headers_of_amazon_must_be_signed() {
    let door = Door::open().await;
    for name in [
        "x-amz-copy-source",
        "x-amz-acl",
        "x-amz-meta-owner",
        "x-amz-tagging",
        "x-amz-decoded-content-length",
        "x-amz-security-token",
        "x-amz-server-side-encryption",
        "x-amz-trailer",
    ] {
        let put = draft("PUT", "/bucket/key").unsigned(name, "5");
        let wanted = if name.ends_with("token") { "InvalidToken" } else { "AccessDenied" };
        assert_eq!(
            door.verdict(put.presign(&user_signer(), AMAZON_DATE, 60), Mount::Root).await,
            wanted,
            "{name}"
        );
        assert_eq!(door.verdict(put.sign(&user_signer()), Mount::Root).await, wanted, "{name}");
    }
    // Signed, they pass; and in the query, where presigners put them, they become headers.
    let put =
        draft("PUT", "/bucket/key?X-Amz-Meta-Color=red&x-amz-acl=private").header("x-amz-tagging", "a=b");
    let let_in = door.knock(put.presign(&user_signer(), AMAZON_DATE, 60), Mount::Root).await.expect("signed");
    assert_eq!(let_in.uri(), "/bucket/key");
    assert_eq!(let_in.headers()["x-amz-meta-color"], "red");
    assert_eq!(let_in.headers()["x-amz-acl"], "private");
    assert_eq!(let_in.headers()["x-amz-tagging"], "a=b");
    // Repeated protocol parameters are harmless, and dropped.
    let repeated = draft("GET", "/bucket/key").unsigned("x-amz-date", AMAZON_DATE);
    let let_in =
        door.knock(repeated.presign(&user_signer(), AMAZON_DATE, 60), Mount::Root).await.expect("signed");
    assert!(!let_in.headers().contains_key("x-amz-date"));
}

#[tokio::test]
async fn what_was_signed_must_be_there_once() {
    let door = Door::open().await;
    let put = draft("PUT", "/bucket/key").header("x-amz-meta-a", "1").header("content-type", "text/plain");
    for name in ["x-amz-meta-a", "content-type"] {
        let mut request = put.sign(&user_signer());
        request.headers_mut().remove(name);
        assert_eq!(door.verdict(request, Mount::Root).await, "SignatureDoesNotMatch", "{name}");
    }
    for name in ["x-amz-date", "x-amz-content-sha256", "host", "x-amz-acl"] {
        let mut request = draft("PUT", "/bucket/key").header("x-amz-acl", "private").sign(&user_signer());
        let value = request.headers()[name].clone();
        request.headers_mut().append(name, value);
        assert_eq!(door.verdict(request, Mount::Root).await, "InvalidArgument", "{name}");
    }
    let mut twice = put.sign(&user_signer());
    let value = twice.headers()[AUTHORIZATION].clone();
    twice.headers_mut().append(AUTHORIZATION, value);
    assert_eq!(door.verdict(twice, Mount::Root).await, "InvalidArgument");
    let mut without = draft("PUT", "/bucket/key").body("hello").sign(&user_signer());
    without.headers_mut().remove("x-amz-content-sha256");
    assert_eq!(door.verdict(without, Mount::Root).await, "MissingSecurityHeader");
    let mut without = draft("GET", "/bucket/key").sign(&user_signer());
    without.headers_mut().remove("x-amz-content-sha256");
    assert_eq!(door.verdict(without, Mount::Root).await, "SignatureDoesNotMatch");
    let mut no_host = draft("GET", "/bucket/key");
    no_host.headers.clear();
    let request = with_header(no_host.sign(&user_signer()), "host", "127.0.0.1:8080");
    assert_eq!(door.verdict(request, Mount::Root).await, "AccessDenied");
}

#[tokio::test]
async fn the_right_region_is_named() {
    let door = Door::open().await;
    let mut elsewhere = user_signer();
    elsewhere.region = "eu-west-1".to_owned();
    let error = door.knock(draft("GET", "/").sign(&elsewhere), Mount::Root).await.expect_err("elsewhere");
    assert_eq!((error.code(), error.status().as_u16()), ("AuthorizationHeaderMalformed", 400));
    let xml = String::from_utf8(error.to_xml_response("r").into_body().to_vec()).expect("text");
    assert!(xml.contains("<Region>us-east-1</Region>") && xml.contains("eu-west-1"), "{xml}");
    let error = door.knock(draft("GET", "/").presign(&elsewhere, AMAZON_DATE, 9), Mount::Root).await;
    assert_eq!(error.expect_err("elsewhere").code(), "AuthorizationQueryParametersError");
    for (name, service) in [("sts", "sts"), ("empty", "")] {
        let mut other = user_signer();
        other.service = service.to_owned();
        let verdict = door.verdict(draft("GET", "/").sign(&other), Mount::Root).await;
        assert_eq!(verdict, "AuthorizationHeaderMalformed", "{name}");
    }
}

#[tokio::test]
async fn authorization_headers_have_one_shape() {
    let door = Door::open().await;
    let good = draft("GET", "/").sign(&user_signer());
    let text = good.headers()[AUTHORIZATION].to_str().expect("text").to_owned();
    assert_eq!(door.verdict(good.clone(), Mount::Root).await, "OK");
    assert_eq!(
        door.verdict(with_header(good.clone(), "authorization", &text.replace(',', ", ")), Mount::Root).await,
        "OK"
    );
    for (from, to, wanted) in [
        ("Signature=", "Signature=0", "SignatureDoesNotMatch"),
        (",Signature=", ",Signature=a,Signature=", "AuthorizationHeaderMalformed"),
        (",Signature", ",Extra=1,Signature", "AuthorizationHeaderMalformed"),
        ("20130524/us", "20130523/us", "AuthorizationHeaderMalformed"),
        ("aws4_request", "aws5_request", "AuthorizationHeaderMalformed"),
        ("CYXUSERUSERUSERUSERU/", "", "AuthorizationHeaderMalformed"),
        ("CYXUSERUSERUSERUSERU/", "CYX/USER/", "InvalidAccessKeyId"),
        ("=host;", "=Host;", "AuthorizationHeaderMalformed"),
        ("=host;", "=host;host;", "AuthorizationHeaderMalformed"),
        ("=host;", "=x-amz-date;host;", "AuthorizationHeaderMalformed"),
        ("=host;", "=", "AccessDenied"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        let verdict = door.verdict(with_header(good.clone(), "authorization", &changed), Mount::Root).await;
        assert_eq!(verdict, wanted, "{from} -> {to}");
    }
    for date in
        ["", "20130524", "20130524T000000", "2013-05-24T00:00:00Z", "20130524T250000Z", "99999999T999999Z"]
    {
        let verdict = door.verdict(with_header(good.clone(), "x-amz-date", date), Mount::Root).await;
        assert_eq!(verdict, "AuthorizationHeaderMalformed", "{date}");
    }
}

#[tokio::test]
async fn bodies_are_what_was_promised() {
    let door = Door::open().await;
    let put = |payload: &str, body: &str| draft("PUT", "/s3/bucket/key").payload(payload).body(body);
    let verdict = async |request| door.verdict(request, S3).await;
    let user = user_signer();
    assert_eq!(verdict(put(&sha256_hex(b"hello"), "hello").sign(&user)).await, "OK");
    assert_eq!(verdict(put(&sha256_hex(b"hello"), "jello").sign(&user)).await, "XAmzContentSHA256Mismatch");
    assert_eq!(verdict(put("nonsense", "hello").sign(&user)).await, "InvalidArgument");
    let declared =
        |length: &str| put("UNSIGNED-PAYLOAD", "hello").header("content-length", length).sign(&user);
    for (length, wanted) in [
        ("5", "OK"),
        ("6", "IncompleteBody"),
        ("4", "IncompleteBody"),
        ("+5", "InvalidArgument"),
        ("", "InvalidArgument"),
    ] {
        assert_eq!(verdict(declared(length)).await, wanted, "{length:?}");
    }
    // Chunked and unsigned, with a trailer.
    let framed = |trailer: &str, body: &str| {
        put("STREAMING-UNSIGNED-PAYLOAD-TRAILER", body)
            .header("content-encoding", "aws-chunked,gzip")
            .header("x-amz-decoded-content-length", "5")
            .header("x-amz-trailer", trailer)
            .sign(&user)
    };
    let good = "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n";
    let let_in = door.knock(framed("x-amz-checksum-crc32", good), S3).await.expect("signed");
    assert_eq!(let_in.headers()["content-encoding"], "gzip");
    assert_eq!(let_in.headers()["content-length"], "5");
    assert_eq!(let_in.uri(), "/bucket/key");
    assert_eq!(let_in.into_body().collect().await.expect("right").to_bytes(), "hello");
    assert_eq!(verdict(framed("x-amz-checksum-crc32c", good)).await, "MalformedTrailerError");
    assert_eq!(verdict(framed("x-amz-meta-a", good)).await, "InvalidRequest");
    // A signed one with a wrong chunk signature; the request's own is right.
    let chunk = format!("5;chunk-signature={}\r\nhello\r\n", "0".repeat(64));
    let signed =
        put("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", &chunk).header("x-amz-decoded-content-length", "5");
    assert_eq!(verdict(signed.sign(&user)).await, "SignatureDoesNotMatch");
    // Without the length.
    let lengthless = put("STREAMING-UNSIGNED-PAYLOAD-TRAILER", good).sign(&user);
    let error = door.knock(lengthless, S3).await.expect_err("no length");
    assert_eq!((error.code(), error.status().as_u16()), ("MissingContentLength", 411));
    // Right in the query, but nothing we take there.
    for payload in STREAMING {
        assert_eq!(verdict(presigned_streaming(payload, good)).await, "NotImplemented", "{payload}");
    }
    // A token signs no chunks.
    let bearer = put("", &chunk).header("x-amz-decoded-content-length", "5");
    let bearer = with_header(bearer.bare(), "x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    let bearer = with_header(bearer, "authorization", &format!("Bearer {}", door.token(&door.claims())));
    assert_eq!(verdict(bearer).await, "InvalidRequest");
}

/// A presigned upload whose signature covers that its body is chunked.
fn presigned_streaming(payload: &str, body: &str) -> Sent {
    let scope =
        Scope { date: "20130524".to_owned(), region: "us-east-1".to_owned(), service: "s3".to_owned() };
    let query = [
        ("X-Amz-Algorithm", sigv4::ALGORITHM.to_owned()),
        ("X-Amz-Content-Sha256", payload.to_owned()),
        ("X-Amz-Credential", format!("{USER_KEY}/{scope}")),
        ("X-Amz-Date", AMAZON_DATE.to_owned()),
        ("X-Amz-Expires", "60".to_owned()),
        ("X-Amz-SignedHeaders", "host".to_owned()),
    ];
    let headers = [("host", "127.0.0.1:8080")];
    let canonical = sigv4::canonical_request("PUT", "/s3/bucket/key", &query, &headers, &["host"], payload);
    let text = sigv4::string_to_sign(AMAZON_DATE, &scope, &canonical);
    let signature = sigv4::signature_hex(&sigv4::SigningKey::derive(USER_SECRET, &scope), &text);
    let query = format!("{}&X-Amz-Signature={signature}", sigv4::canonical_query(&query));
    draft("PUT", &format!("/s3/bucket/key?{query}")).body(body).bare()
}

#[tokio::test]
async fn adv_18_headers_between_servers_are_stripped() {
    let door = Door::open().await;
    let get = draft("GET", "/bucket/key")
        .header("x-cyx-internal-owner", "1")
        .header("x-minio-source-mtime", "1")
        .unsigned("x-cyx-internal-admin", "1")
        .unsigned("x-minio-replication-ssec-crc", "1");
    let let_in = door.knock(get.sign(&user_signer()), Mount::Root).await.expect("signed");
    let left: Vec<_> = let_in.headers().keys().filter(|name| name.as_str().starts_with("x-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn adv_20_what_was_signed_is_what_is_served() {
    let door = Door::open().await;
    for (sent, served) in [
        ("/s3/bucket/a%2Fb", "/bucket/a/b"),
        ("/s3/bucket/../other/%2e%2e%2fk", "/bucket/../other/../k"),
        ("/s3/bucket/a+b%20c", "/bucket/a%2Bb%20c"),
        ("/s3//bucket//k", "//bucket//k"),
        ("/s3/bucket/%E6%97%A5", "/bucket/%E6%97%A5"),
        ("/s3", "/"),
    ] {
        let let_in = door.knock(draft("GET", sent).sign(&user_signer()), S3).await.expect("signed");
        assert_eq!(let_in.uri(), served, "{sent}");
    }
    assert_eq!(door.verdict(draft("GET", "/s3/bucket/%c0%af").sign(&user_signer()), S3).await, "InvalidURI");
    // The prefix is part of what is signed.
    let moved = with_query(draft("GET", "/bucket/key").sign(&user_signer()), |uri| format!("/s3{uri}"));
    assert_eq!(door.verdict(moved, S3).await, "SignatureDoesNotMatch");
    // So is the bucket in the host.
    let hosted = draft("GET", "/key%2B1?versions").host("photos.localhost:8080");
    let let_in = door.knock(hosted.sign(&user_signer()), Mount::Root).await.expect("signed");
    assert_eq!(let_in.uri(), "/photos/key%2B1?versions");
    let other = with_header(hosted.sign(&user_signer()), "host", "secrets.localhost:8080");
    assert_eq!(door.verdict(other, Mount::Root).await, "SignatureDoesNotMatch");
    let plain = door.knock(hosted.sign(&user_signer()), Mount::Plain).await.expect("signed");
    assert_eq!(plain.uri(), "/key%2B1?versions");
    // An address and a host that differ.
    let absolute =
        with_query(draft("GET", "/key").sign(&user_signer()), |uri| format!("http://other.localhost{uri}"));
    assert_eq!(door.verdict(absolute, Mount::Root).await, "InvalidRequest");
}

#[tokio::test]
async fn http2_has_its_host_in_the_address() {
    let door = Door::open().await;
    let mut request = with_query(draft("GET", "/key").host("photos.localhost").sign(&user_signer()), |uri| {
        format!("http://photos.localhost{uri}")
    });
    request.headers_mut().remove("host");
    let let_in = door.knock(request, Mount::Root).await.expect("signed");
    assert_eq!(let_in.uri(), "/photos/key");
    assert_eq!(let_in.headers()["host"], "photos.localhost");
}

#[tokio::test]
async fn adv_35_no_header_is_smuggled_in_by_the_query() {
    let door = Door::open().await;
    for query in ["x-amz-meta-a=b%0D%0Ax-cyx-internal-a%3A1", "x-amz-meta-a%0D%0Ab=1", "x-amz-meta-a=%00"] {
        let put = draft("PUT", &format!("/bucket/key?{query}"));
        let verdict = door.verdict(put.presign(&user_signer(), AMAZON_DATE, 60), Mount::Root).await;
        assert_eq!(verdict, "AuthorizationQueryParametersError", "{query}");
    }
}

#[tokio::test]
async fn principals_are_who_signed() {
    let door = Door::open().await;
    let principal = async |request| {
        let let_in = door.knock(request, Mount::Root).await.expect("signed");
        let_in.extensions().get::<Principal>().expect("someone").clone()
    };
    let get = draft("GET", "/");
    let key = Some(USER_KEY.to_owned());
    let user = |access_key, scheme| Principal {
        owner: user(),
        admin: false,
        access_key,
        scheme,
        limits: None,
        token: None,
    };
    assert_eq!(principal(get.sign(&user_signer())).await, user(key.clone(), Scheme::Header));
    assert_eq!(principal(get.presign(&user_signer(), AMAZON_DATE, 9)).await, user(key, Scheme::Presigned));
    let bearer = with_header(get.bare(), "authorization", &format!("bearer {}", door.token(&door.claims())));
    let bearer = principal(bearer).await;
    assert_eq!(bearer.token.as_ref().map(|token| token.id.as_str()), Some("a1"));
    assert_eq!(Principal { token: None, ..bearer }, user(None, Scheme::Bearer));
}

/// Whoever knows only a key's id does not learn what became of it, nor makes it look used.
#[tokio::test]
async fn what_became_of_a_key_is_not_for_those_who_only_know_its_id() {
    let door = Door::open().await;
    let suspended =
        cyxcloud_metadata::identity::model::PersonChange { suspended: Some(true), ..Default::default() };
    let refused = async |key: &str| {
        let request = draft("GET", "/").sign(&signer(key, "a guess"));
        let error = door.knock(request, Mount::Root).await.expect_err("guessed");
        (error.code(), error.message().to_owned())
    };
    let used = async || {
        door.auth.record_used().await;
        door.metadata.api_key(USER_KEY).await.expect("read").expect("is there").last_used_at.is_some()
    };
    assert_eq!(refused(USER_KEY).await.0, "SignatureDoesNotMatch");
    assert!(!used().await);
    let unknown = refused("CYXNOBODYNOBODYNOBOD").await;
    assert_eq!(unknown.0, "InvalidAccessKeyId");
    assert_eq!((refused(REVOKED_KEY).await, refused(EXPIRED_KEY).await), (unknown.clone(), unknown.clone()));
    assert_eq!(door.verdict(draft("GET", "/").sign(&user_signer()), Mount::Root).await, "OK");
    assert!(used().await);
    door.metadata.change_person(user(), &suspended).await.expect("changed");
    door.auth.forget_all();
    assert_eq!(refused(USER_KEY).await, unknown);
}

#[tokio::test]
async fn a_revoked_key_is_forgotten() {
    let door = Door::open().await;
    let get = draft("GET", "/").sign(&user_signer());
    assert_eq!(door.verdict(get.clone(), Mount::Root).await, "OK");
    door.revoke_key(USER_KEY).await;
    door.auth.forget_all();
    assert_eq!(door.verdict(get, Mount::Root).await, "InvalidAccessKeyId");
    // An expiry counts at once, whatever is remembered.
    let later = amazon_time().plus(Duration::from_secs(60));
    door.make_key("CYXBRIEFBRIEFBRIEFBR", Some(later)).await;
    let get = draft("GET", "/").sign(&signer("CYXBRIEFBRIEFBRIEFBR", USER_SECRET));
    assert_eq!(door.verdict(get.clone(), Mount::Root).await, "OK");
    let error = door.auth.authenticate_at(get, Mount::Root, later).await.expect_err("expired");
    assert_eq!(error.code(), "InvalidAccessKeyId");
}

#[tokio::test]
async fn nothing_printed_holds_a_secret() {
    let door = Door::open().await;
    let request = draft("PUT", "/b/k").payload(STREAMING[0]).header("x-amz-decoded-content-length", "5");
    let request = request.sign(&user_signer());
    let signature =
        request.headers()[AUTHORIZATION].to_str().expect("text").rsplit('=').next().map(str::to_owned);
    let let_in = door.knock(request, Mount::Root).await.expect("signed");
    let error =
        door.knock(draft("GET", "/").sign(&signer(USER_KEY, "wrong")), Mount::Root).await.expect_err("wrong");
    let xml = String::from_utf8(error.to_xml_response("r").into_body().to_vec()).expect("text");
    let printed = format!("{:?} {let_in:?} {error:?} {error} {xml} {:?}", door.auth, door.jwt);
    let signature = signature.expect("signed");
    for secret in [ROOT_SECRET, USER_SECRET, auth_support::JWT_SECRET, &signature] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

/// Whoever guesses ids of keys asks the store so often and no more, and nobody else is kept out by it.
#[tokio::test]
async fn adv_30_keys_that_are_none_are_looked_up_so_often() {
    let door = Door::open().await;
    let knock = async |key: &str, from: &str| {
        let mut request = draft("GET", "/").sign(&signer(key, USER_SECRET));
        request.extensions_mut().insert(ClientAddress(from.parse().expect("an address")));
        door.verdict(request, Mount::Root).await
    };
    let guess = |number: usize| {
        let digit =
            |place: u32| b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[number / 32_usize.pow(place) % 32] as char;
        format!("CYXAAAAAAAAAAAAAA{}{}{}", digit(2), digit(1), digit(0))
    };
    const NEW: &str = "CYXNEWNEWNEWNEWNEWNE";
    assert_eq!(knock(USER_KEY, "192.0.2.1").await, "OK");
    // What is no id of ours is not looked up, and not counted.
    for id in ["AKSHORT", "cyxuseruseruseruseru", "CYXUSERUSERUSERUSER1", "CYXUSERUSERUSERUSERUU"] {
        door.make_key(id, None).await;
        assert_eq!(knock(id, "192.0.2.1").await, "InvalidAccessKeyId", "{id}");
    }
    for number in 0..300 {
        assert_eq!(knock(&guess(number), "192.0.2.1").await, "InvalidAccessKeyId", "{number}");
    }
    door.make_key(NEW, None).await;
    assert_eq!(knock(&guess(300), "192.0.2.1").await, "SlowDown");
    assert_eq!(knock(NEW, "192.0.2.1").await, "SlowDown");
    assert_eq!(knock(&guess(301), "192.0.2.2").await, "InvalidAccessKeyId", "another address has its own");
    door.auth.forget_all();
    assert_eq!(knock(USER_KEY, "192.0.2.1").await, "OK", "it was found here before");
    assert_eq!(knock(NEW, "192.0.2.2").await, "OK");
    door.auth.forget_all();
    assert_eq!(knock(NEW, "192.0.2.1").await, "OK");
    // One that was revoked is no guess, however often it is named, and keeps nobody out.
    door.revoke_key(NEW).await;
    door.auth.forget_all();
    for _ in 0..3 {
        assert_eq!(knock(NEW, "192.0.2.1").await, "InvalidAccessKeyId");
    }
    for _ in 0..400 {
        assert_eq!(knock(REVOKED_KEY, "192.0.2.3").await, "InvalidAccessKeyId");
    }
    assert_eq!(knock(&guess(302), "192.0.2.3").await, "InvalidAccessKeyId");
    // Nor is one that nobody waits for.
    for number in 0..400 {
        let _ = knock(&guess(number), "192.0.2.4").now_or_never();
    }
    assert_eq!(knock(&guess(303), "192.0.2.4").await, "InvalidAccessKeyId");
}

/// Secrets and signatures are compared in constant time, which `==` is not.
#[test]
fn adv_12_no_secret_is_compared_with_equals() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut looked = 0;
    for directory in ["auth", "body"] {
        for entry in std::fs::read_dir(root.join(directory)).expect("sources") {
            let path = entry.expect("entry").path();
            if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("tests.rs") {
                continue;
            }
            looked += 1;
            for line in std::fs::read_to_string(&path).expect("text").lines() {
                let compares = line.contains("==") || line.contains("!=");
                let secret =
                    ["secret", "right", "mac", "tag", "sent_hex"].iter().any(|word| line.contains(word));
                assert!(!(compares && secret), "{}: {line}", path.display());
            }
        }
    }
    assert!(looked > 8);
}
