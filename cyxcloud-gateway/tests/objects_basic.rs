//! Objects and buckets through the S3 surface: what is put is what is got, and who asks wrongly is told so.

mod objects_support;

use base64::Engine as _;
use cyxcloud_core::stripe::INLINE_MAX;
use cyxcloud_gateway::objects::checksums::{Algorithm, encode};
use http::Method;
use objects_support::Gateway;

async fn gateway() -> Gateway {
    Gateway::start(INLINE_MAX).await.with_bucket().await
}

fn md5_base64(etag: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(hex::decode(etag.trim_matches('"')).expect("hex"))
}

#[tokio::test]
async fn buckets_are_made_listed_and_deleted() {
    let gateway = gateway().await;
    gateway.put("/bucket", b"").await.expect(200);
    gateway.as_somebody_else().put("/bucket", b"").await.error(409, "BucketAlreadyExists");
    gateway.put("/Bad_Name", b"").await.error(400, "InvalidBucketName");
    gateway.put("/api", b"").await.error(400, "InvalidBucketName");
    gateway.put("/second", b"").await.expect(200);
    let list = gateway.get("/").await.expect(200);
    assert_eq!(list.elements("Name"), ["bucket", "second"]);
    let first = gateway.get("/?max-buckets=1").await.expect(200);
    assert_eq!(first.elements("Name"), ["bucket"]);
    let token = first.element("ContinuationToken").expect("there is more");
    let rest = gateway.get(&format!("/?continuation-token={token}")).await.expect(200);
    assert_eq!(rest.elements("Name"), ["second"]);
    gateway.head("/second", &[]).await.expect(200);
    assert!(gateway.get("/second?location").await.expect(200).text().contains("LocationConstraint"));
    gateway.put("/second/key", b"x").await.expect(200);
    gateway.delete("/second").await.error(409, "BucketNotEmpty");
    gateway.delete("/second/key").await.expect(204);
    gateway.delete("/second").await.expect(204);
    gateway.head("/second", &[]).await.expect(404);
    gateway.get("/second").await.error(404, "NoSuchBucket");
    gateway.delete("/second").await.error(404, "NoSuchBucket");
}

#[tokio::test]
async fn buckets_have_profiles() {
    let gateway = gateway().await;
    gateway.put_with("/open-bucket", &[("x-cyxcloud-profile", "open")], b"").await.expect(200);
    gateway
        .put_with("/odd-bucket", &[("x-cyxcloud-profile", "odd")], b"")
        .await
        .error(400, "InvalidArgument");
}

#[tokio::test]
async fn what_is_put_is_what_is_got() {
    let gateway = gateway().await;
    let long_key = format!("/bucket/{}", "k".repeat(1024));
    for (uri, body) in [
        ("/bucket/key", b"hello".as_slice()),
        ("/bucket/empty", b""),
        ("/bucket/%C3%BC%20%2B%25+//x", b"unicode"),
        ("/bucket//leading", b"slash"),
        ("/bucket/dir/", b"marker"),
        (long_key.as_str(), b"long"),
    ] {
        let put = gateway.put(uri, body).await.expect(200);
        let got = gateway.get(uri).await.expect(200);
        assert_eq!(got.body, body, "{uri}");
        assert_eq!(got.header("etag"), put.header("etag"));
        assert_eq!(got.header("content-length"), Some(body.len().to_string().as_str()));
        assert_eq!(got.header("accept-ranges"), Some("bytes"));
        assert_eq!(got.header("content-type"), Some("binary/octet-stream"));
        assert_eq!(got.header("x-amz-server-side-encryption"), Some("AES256"));
        assert!(got.header("last-modified").is_some_and(|date| date.ends_with("GMT")));
        let head = gateway.head(uri, &[]).await.expect(200);
        assert_eq!(head.header("content-length"), Some(body.len().to_string().as_str()));
    }
    assert_eq!(
        gateway.head("/bucket/key", &[]).await.header("etag"),
        Some("\"5d41402abc4b2a76b9719d911017c592\"")
    );
    let too_long = format!("/bucket/{}", "k".repeat(1025));
    gateway.put(&too_long, b"x").await.error(400, "KeyTooLongError");
}

#[tokio::test]
async fn headers_and_metadata_are_kept() {
    let gateway = gateway().await;
    let headers = [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "max-age=5"),
        ("content-disposition", "attachment; filename=\"a b.txt\""),
        ("content-encoding", "aws-chunked,gzip"),
        ("content-language", "de"),
        ("expires", "not even a date"),
        ("x-amz-meta-colour", "blue"),
        ("x-amz-meta-name", "J\u{fc}rgen"),
        ("x-amz-website-redirect-location", "/other"),
        ("x-amz-storage-class", "STANDARD_IA"),
    ];
    gateway.put_with("/bucket/key", &headers, b"x").await.expect(200);
    for reply in [gateway.get("/bucket/key").await, gateway.head("/bucket/key", &[]).await] {
        let reply = reply.expect(200);
        for (name, value) in &headers[..3] {
            assert_eq!(reply.header(name), Some(*value));
        }
        assert_eq!(reply.header("content-encoding"), Some("gzip"));
        assert_eq!(reply.header("content-language"), Some("de"));
        assert_eq!(reply.header("expires"), Some("not even a date"));
        assert_eq!(reply.header("x-amz-meta-colour"), Some("blue"));
        assert!(reply.headers.contains_key("x-amz-meta-name"));
        assert_eq!(reply.header("x-amz-website-redirect-location"), Some("/other"));
        assert_eq!(reply.header("x-amz-storage-class"), Some("STANDARD_IA"));
    }
    let uri = "/bucket/key?response-content-type=a%2Fb&response-expires=Thu%2C%2001%20Dec%201994%2016%3A00%3A00%20GMT";
    for reply in [gateway.get(uri).await, gateway.head(uri, &[]).await] {
        assert_eq!(reply.header("content-type"), Some("a/b"));
        assert_eq!(reply.header("expires"), Some("Thu, 01 Dec 1994 16:00:00 GMT"));
    }
    let large = "x".repeat(2048);
    gateway.put_with("/bucket/k", &[("x-amz-meta-a", &large)], b"").await.error(400, "MetadataTooLarge");
    gateway
        .put_with("/bucket/k", &[("x-amz-storage-class", "ODD")], b"")
        .await
        .error(400, "InvalidStorageClass");
}

#[tokio::test]
async fn ranges_are_those_of_s3() {
    let gateway = gateway().await;
    gateway.put("/bucket/key", b"0123456789").await.expect(200);
    for (range, want, content_range) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=2-5", "2345", "bytes 2-5/10"),
        ("bytes=8-100", "89", "bytes 8-9/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-30", "0123456789", "bytes 0-9/10"),
    ] {
        let got = gateway.get_with("/bucket/key", &[("range", range)]).await.expect(206);
        assert_eq!(got.text(), want, "{range}");
        assert_eq!(got.header("content-range"), Some(content_range));
        let head = gateway.head("/bucket/key", &[("range", range)]).await.expect(206);
        assert_eq!(head.header("content-length"), Some(want.len().to_string().as_str()));
    }
    for range in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
        let refused = gateway.get_with("/bucket/key", &[("range", range)]).await.error(416, "InvalidRange");
        assert_eq!(refused.header("content-range"), Some("bytes */10"));
    }
    for range in ["bytes=0-1,4-5", "bytes=5-2", "items=1-2"] {
        assert_eq!(
            gateway.get_with("/bucket/key", &[("range", range)]).await.expect(200).text(),
            "0123456789"
        );
    }
    gateway.put("/bucket/empty", b"").await.expect(200);
    gateway.get_with("/bucket/empty", &[("range", "bytes=0-")]).await.error(416, "InvalidRange");
    gateway.get("/bucket/key?partNumber=1").await.expect(206);
    gateway.get("/bucket/key?partNumber=2").await.error(416, "InvalidPartNumber");
    gateway.get("/bucket/key?partNumber=0").await.error(400, "InvalidArgument");
}

#[tokio::test]
async fn conditional_reads() {
    let gateway = gateway().await;
    let etag = gateway.put("/bucket/key", b"x").await.header("etag").expect("has one").to_owned();
    let future = "Fri, 01 Jan 2100 00:00:00 GMT";
    let past = "Sat, 01 Jan 2000 00:00:00 GMT";
    for (headers, status) in [
        (vec![("if-match", etag.as_str())], 200),
        (vec![("if-match", "*")], 200),
        (vec![("if-match", "\"other\"")], 412),
        (vec![("if-match", etag.as_str()), ("if-unmodified-since", past)], 200),
        (vec![("if-unmodified-since", past)], 412),
        (vec![("if-none-match", etag.as_str())], 304),
        (vec![("if-none-match", "*")], 304),
        (vec![("if-none-match", "\"other\""), ("if-modified-since", future)], 200),
        (vec![("if-none-match", "\"a\", W/\"b\"")], 200),
        (vec![("if-modified-since", future)], 304),
        (vec![("if-modified-since", past)], 200),
        (vec![("if-modified-since", "nonsense")], 200),
    ] {
        let got = gateway.get_with("/bucket/key", &headers).await.expect(status);
        gateway.head("/bucket/key", &headers).await.expect(status);
        if status == 304 {
            assert!(got.body.is_empty());
            assert_eq!(got.header("etag"), Some(etag.as_str()));
        }
    }
    gateway.get_with("/bucket/none", &[("if-match", "*")]).await.error(404, "NoSuchKey");
}

#[tokio::test]
async fn conditional_writes() {
    let gateway = gateway().await;
    let absent = [("if-none-match", "*")];
    gateway.put_with("/bucket/key", &[("if-match", "*")], b"x").await.error(404, "NoSuchKey");
    let etag = gateway.put_with("/bucket/key", &absent, b"one").await.expect(200);
    let etag = etag.header("etag").expect("has one").to_owned();
    gateway.put_with("/bucket/key", &absent, b"two").await.error(412, "PreconditionFailed");
    gateway
        .put_with("/bucket/key", &[("if-match", "\"other\"")], b"two")
        .await
        .error(412, "PreconditionFailed");
    assert_eq!(gateway.get("/bucket/key").await.text(), "one");
    gateway.put_with("/bucket/key", &[("if-match", &etag)], b"two").await.expect(200);
    assert_eq!(gateway.get("/bucket/key").await.text(), "two");
    let stale = [("if-match", etag.as_str())];
    gateway.send(Method::DELETE, "/bucket/key", &stale, b"").await.error(412, "PreconditionFailed");
    gateway.put_with("/bucket/key", &[("if-none-match", "\"x\"")], b"").await.error(501, "NotImplemented");
    gateway.delete("/bucket/key").await.expect(204);
    gateway.put_with("/bucket/key", &absent, b"three").await.expect(200);
}

#[tokio::test]
async fn bodies_that_are_not_what_was_said_leave_nothing() {
    let gateway = gateway().await;
    for algorithm in Algorithm::ALL {
        let name = format!("x-amz-checksum-{}", algorithm.name().to_lowercase());
        let (good, bad) = (encode(&algorithm.of(b"hello")), encode(&algorithm.of(b"other")));
        gateway.put_with("/bucket/bad", &[(&name, &bad)], b"hello").await.error(400, "BadDigest");
        gateway.put_with("/bucket/bad", &[(&name, "AAA")], b"hello").await.error(400, "InvalidRequest");
        let put = gateway.put_with("/bucket/good", &[(&name, &good)], b"hello").await.expect(200);
        assert_eq!(put.header(&name), Some(good.as_str()));
        let silent = gateway.get("/bucket/good").await.expect(200);
        assert_eq!(silent.header(&name), None);
        let asked = gateway.get_with("/bucket/good", &[("x-amz-checksum-mode", "ENABLED")]).await.expect(200);
        assert_eq!(asked.header(&name), Some(good.as_str()));
        assert_eq!(asked.header("x-amz-checksum-type"), Some("FULL_OBJECT"));
        let ranged = [("x-amz-checksum-mode", "ENABLED"), ("range", "bytes=0-1")];
        assert_eq!(gateway.get_with("/bucket/good", &ranged).await.expect(206).header(&name), None);
    }
    let etag = gateway.head("/bucket/good", &[]).await.header("etag").expect("has one").to_owned();
    let md5 = md5_base64(&etag);
    gateway.put_with("/bucket/good", &[("content-md5", &md5)], b"hello").await.expect(200);
    gateway.put_with("/bucket/bad", &[("content-md5", &md5)], b"hellO").await.error(400, "BadDigest");
    gateway.put_with("/bucket/bad", &[("content-md5", "nonsense")], b"x").await.error(400, "InvalidDigest");
    gateway.put_with("/bucket/bad", &[("content-length", "9")], b"short").await.error(400, "IncompleteBody");
    gateway.put_with("/bucket/bad", &[("content-length", "2")], b"long").await.error(400, "IncompleteBody");
    gateway
        .put_with("/bucket/bad", &[("content-length", "5368709121")], b"x")
        .await
        .error(400, "EntityTooLarge");
    gateway.get("/bucket/bad").await.error(404, "NoSuchKey");
}

#[tokio::test]
async fn too_few_nodes_say_how_many_are_needed() {
    let gateway = gateway().await;
    let refused = gateway.put("/bucket/large", &[7; 5000]).await.error(503, "ServiceUnavailable");
    assert!(
        refused.element("Message").is_some_and(|message| message.contains("at least 2")),
        "{}",
        refused.text()
    );
    gateway.get("/bucket/large").await.error(404, "NoSuchKey");
}

#[tokio::test]
async fn other_peoples_buckets_are_closed() {
    let gateway = gateway().await;
    gateway.put("/bucket/key", b"secret").await.expect(200);
    let other = gateway.as_somebody_else();
    other.put("/theirs", b"").await.expect(200);
    let copy = [("x-amz-copy-source", "/bucket/key")];
    other.get("/bucket/key").await.error(403, "AccessDenied");
    other.head("/bucket/key", &[]).await.expect(403);
    other.head("/bucket", &[]).await.expect(403);
    other.put("/bucket/key", b"mine").await.error(403, "AccessDenied");
    other.delete("/bucket/key").await.error(403, "AccessDenied");
    other.delete("/bucket").await.error(403, "AccessDenied");
    other.get("/bucket").await.error(403, "AccessDenied");
    other.get("/bucket?list-type=2").await.error(403, "AccessDenied");
    other.get("/bucket?uploads").await.error(403, "AccessDenied");
    other.get("/bucket?acl").await.error(403, "AccessDenied");
    other.post("/bucket/key?uploads", "").await.error(403, "AccessDenied");
    other.put_with("/theirs/copy", &copy, b"").await.error(403, "AccessDenied");
    gateway.put_with("/theirs/copy", &copy, b"").await.error(403, "AccessDenied");
    let delete = "<Delete><Object><Key>key</Key></Object></Delete>";
    other.post("/bucket?delete", delete).await.error(403, "AccessDenied");
    assert_eq!(gateway.get("/bucket/key").await.expect(200).text(), "secret");
    assert_eq!(other.get("/").await.elements("Name"), ["theirs"]);
}

#[tokio::test]
async fn deletes_of_many_keys() {
    let gateway = gateway().await;
    for key in ["a", "b", "c d", "e"] {
        gateway.put(&format!("/bucket/{}", key.replace(' ', "%20")), b"x").await.expect(200);
    }
    let etag = gateway.head("/bucket/e", &[]).await.header("etag").expect("has one").to_owned();
    let long = "k".repeat(1025);
    let delete = format!(
        "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Object><Key>a</Key></Object>\
         <Object><Key>c d</Key></Object><Object><Key>never</Key></Object><Object><Key>a</Key></Object>\
         <Object><Key>b</Key><ETag>\"other\"</ETag></Object><Object><Key>e</Key><ETag>{etag}</ETag></Object>\
         <Object><Key>{long}</Key></Object></Delete>"
    );
    let reply = gateway.post("/bucket?delete", &delete).await.expect(200);
    assert_eq!(reply.elements("Deleted").len(), 5, "{}", reply.text());
    assert_eq!(reply.elements("Code"), ["PreconditionFailed", "KeyTooLongError"]);
    assert_eq!(gateway.get("/bucket").await.elements("Key"), ["b"]);
    let quiet = "<Delete><Quiet>true</Quiet><Object><Key>b</Key></Object></Delete>";
    assert!(gateway.post("/bucket?delete", quiet).await.expect(200).elements("Deleted").is_empty());
    gateway.post("/bucket?delete", "<Delete>").await.error(400, "MalformedXML");
    gateway.post("/bucket?delete", "nonsense").await.error(400, "MalformedXML");
    let many = format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(1001));
    gateway.post("/bucket?delete", &many).await.error(400, "MalformedXML");
    gateway.delete("/bucket/never").await.expect(204);
}

#[tokio::test]
async fn copies_reference_and_replace() {
    let gateway = gateway().await;
    let headers =
        [("content-type", "text/plain"), ("x-amz-meta-a", "1"), ("x-amz-checksum-crc32", "NhCmhg==")];
    gateway.put_with("/bucket/a%20b", &headers, b"hello").await.expect(200);
    let source = ("x-amz-copy-source", "bucket/a%20b");
    let copied = gateway.put_with("/bucket/copy", &[source], b"").await.expect(200);
    assert_eq!(copied.element("ETag").as_deref(), Some("\"5d41402abc4b2a76b9719d911017c592\""));
    assert_eq!(copied.element("ChecksumCRC32").as_deref(), Some("NhCmhg=="));
    let got = gateway.get("/bucket/copy").await.expect(200);
    assert_eq!((got.text(), got.header("content-type")), ("hello", Some("text/plain")));
    assert_eq!(got.header("x-amz-meta-a"), Some("1"));

    let replace = [source, ("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-b", "2")];
    gateway.put_with("/bucket/a%20b", &[source], b"").await.error(400, "InvalidRequest");
    gateway.put_with("/bucket/a%20b", &replace, b"").await.expect(200);
    let got = gateway.get("/bucket/a%20b").await.expect(200);
    assert_eq!((got.text(), got.header("x-amz-meta-b")), ("hello", Some("2")));
    assert_eq!(got.header("x-amz-meta-a"), None);

    let sha = encode(&Algorithm::Sha256.of(b"hello"));
    let hashed =
        gateway.put_with("/bucket/sha", &[source, ("x-amz-checksum-algorithm", "SHA256")], b"").await;
    assert_eq!(hashed.expect(200).element("ChecksumSHA256"), Some(sha));

    let missing = [("x-amz-copy-source", "bucket/none")];
    gateway.put_with("/bucket/copy", &missing, b"").await.error(404, "NoSuchKey");
    let unless = [source, ("x-amz-copy-source-if-none-match", "5d41402abc4b2a76b9719d911017c592")];
    gateway.put_with("/bucket/copy", &unless, b"").await.error(412, "PreconditionFailed");
    let only_new = [source, ("if-none-match", "*")];
    gateway.put_with("/bucket/copy", &only_new, b"").await.error(412, "PreconditionFailed");
    gateway.delete("/bucket/a%20b").await.expect(204);
    assert_eq!(gateway.get("/bucket/copy").await.expect(200).text(), "hello");

    gateway.put("/bucket/empty", b"").await.expect(200);
    gateway.put_with("/bucket/empty-copy", &[("x-amz-copy-source", "/bucket/empty")], b"").await.expect(200);
    assert_eq!(gateway.get("/bucket/empty-copy").await.expect(200).body.len(), 0);
}

#[tokio::test]
async fn what_clients_ask_beside() {
    let gateway = gateway().await;
    gateway.put("/bucket/key", b"x").await.expect(200);
    assert!(gateway.get("/bucket?versioning").await.expect(200).element("Status").is_none());
    assert_eq!(
        gateway.get("/bucket?acl").await.expect(200).element("Permission").as_deref(),
        Some("FULL_CONTROL")
    );
    assert_eq!(
        gateway.get("/bucket/key?acl").await.expect(200).element("Permission").as_deref(),
        Some("FULL_CONTROL")
    );
    gateway.get("/bucket/key?tagging").await.expect(200);
    gateway.get("/bucket?policy").await.error(404, "NoSuchBucketPolicy");
    gateway.get("/bucket?lifecycle").await.error(404, "NoSuchLifecycleConfiguration");
    gateway.get("/bucket?cors").await.error(404, "NoSuchCORSConfiguration");
    gateway.get("/none1?policy").await.error(404, "NoSuchBucket");
    gateway.put("/bucket?policy", b"{}").await.error(501, "NotImplemented");
    gateway.put("/bucket/key?renameObject", b"").await.error(501, "NotImplemented");
    gateway.get("/bucket/key?versionId=abc").await.error(404, "NoSuchVersion");
    gateway.get("/bucket/key?versionId=null").await.expect(200);
    gateway.post("/bucket", "").await.error(501, "NotImplemented");
    let attributes = [("x-amz-object-attributes", "ETag,ObjectSize,StorageClass")];
    let reply = gateway.get_with("/bucket/key?attributes", &attributes).await.expect(200);
    assert_eq!(reply.element("ObjectSize").as_deref(), Some("1"));
    assert_eq!(gateway.get("/bucket/key").await.expect(200).text(), "x");
}

#[tokio::test]
async fn browsers_are_let_in_where_the_operator_says_so() {
    let gateway = gateway().await;
    gateway.put("/bucket/key", b"x").await.expect(200);
    let ask =
        [("origin", "https://app.example"), ("access-control-request-headers", "authorization,x-amz-date")];
    let preflight = gateway.send(Method::OPTIONS, "/bucket/key", &ask, b"").await.expect(200);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization,x-amz-date"));
    let got = gateway.get_with("/bucket/key", &ask[..1]).await.expect(200);
    assert_eq!(got.header("access-control-allow-origin"), Some("*"));
    let missing = gateway.get_with("/bucket/none", &ask[..1]).await.error(404, "NoSuchKey");
    assert_eq!(missing.header("access-control-allow-origin"), Some("*"));
    assert_eq!(gateway.get("/bucket/key").await.header("access-control-allow-origin"), None);
}
