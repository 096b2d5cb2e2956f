//! Multipart uploads through the S3 surface.

mod objects_support;

use cyxcloud_gateway::objects::checksums::{Algorithm, Hasher, encode};
use objects_support::{Gateway, Reply};

const MIB5: usize = 5 << 20;

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

async fn begin(gateway: &Gateway, key: &str, headers: &[(&str, &str)]) -> String {
    let reply =
        gateway.send(http::Method::POST, &format!("/bucket/{key}?uploads"), headers, b"").await.expect(200);
    assert_eq!(reply.element("Key").as_deref(), Some(key));
    reply.element("UploadId").expect("has an id")
}

async fn part(gateway: &Gateway, key: &str, id: &str, number: u32, body: &[u8]) -> Reply {
    gateway.put(&format!("/bucket/{key}?partNumber={number}&uploadId={id}"), body).await.expect(200)
}

fn complete(parts: &[(u32, &Reply)]) -> String {
    let part = |(number, reply): &(u32, &Reply)| {
        let etag =
            reply.header("etag").map(str::to_owned).or_else(|| reply.element("ETag")).expect("has an etag");
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", etag.replace('"', "&quot;"))
    };
    let parts: String = parts.iter().map(part).collect();
    format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
}

fn md5s_etag(parts: &[&[u8]]) -> String {
    let md5 = |bytes: &[u8]| {
        let mut hasher = Hasher::new([]);
        hasher.update(bytes);
        hasher.finish().md5
    };
    let sums: Vec<u8> = parts.iter().flat_map(|part| md5(part)).collect();
    format!("\"{}-{}\"", hex::encode(md5(&sums)), parts.len())
}

#[tokio::test]
async fn parts_make_an_object() {
    let gateway = Gateway::roomy().await.with_bucket().await;
    let id = begin(&gateway, "key", &[("content-type", "text/x"), ("x-amz-meta-a", "1")]).await;
    let (one, two) = (bytes(1, MIB5), bytes(2, 1000));
    let second = part(&gateway, "key", &id, 7, &two).await;
    let first = part(&gateway, "key", &id, 2, &bytes(9, 10)).await;
    assert_ne!(first.header("etag"), second.header("etag"));
    let first = part(&gateway, "key", &id, 2, &one).await;
    gateway.get("/bucket/key").await.error(404, "NoSuchKey");
    gateway.delete("/bucket").await.error(409, "BucketNotEmpty");

    let listed = gateway.get(&format!("/bucket/key?uploadId={id}")).await.expect(200);
    assert_eq!(listed.elements("PartNumber"), ["2", "7"]);
    assert_eq!(listed.elements("Size"), [MIB5.to_string(), "1000".to_owned()]);
    let page = gateway.get(&format!("/bucket/key?uploadId={id}&max-parts=1")).await.expect(200);
    assert_eq!(page.element("IsTruncated").as_deref(), Some("true"));
    assert_eq!(page.element("NextPartNumberMarker").as_deref(), Some("2"));
    let uploads = gateway.get("/bucket?uploads").await.expect(200);
    assert_eq!(uploads.elements("UploadId"), [id.as_str()]);

    let uri = format!("/bucket/key?uploadId={id}");
    let document = complete(&[(2, &first), (7, &second)]);
    let done = gateway.post(&uri, &document).await.expect(200);
    let etag = md5s_etag(&[&one, &two]);
    assert_eq!(done.element("ETag"), Some(etag.clone()));
    let again = gateway.post(&uri, &document).await.expect(200);
    assert_eq!(again.element("ETag"), Some(etag.clone()));

    let got = gateway.get("/bucket/key").await.expect(200);
    assert!(got.body == [one.clone(), two.clone()].concat());
    assert_eq!(got.header("etag"), Some(etag.as_str()));
    assert_eq!((got.header("content-type"), got.header("x-amz-meta-a")), (Some("text/x"), Some("1")));
    let last = gateway.get("/bucket/key?partNumber=2").await.expect(206);
    assert!(last.body == two);
    assert_eq!(last.header("x-amz-mp-parts-count"), Some("2"));
    let across = gateway.get_with("/bucket/key", &[("range", "bytes=5242870-5242889")]).await.expect(206);
    assert!(across.body == [&one[MIB5 - 10..], &two[..10]].concat());
    gateway.get("/bucket/key?partNumber=3").await.error(416, "InvalidPartNumber");
    let attributes = [("x-amz-object-attributes", "ObjectParts")];
    let parts = gateway.get_with("/bucket/key?attributes", &attributes).await.expect(200);
    assert_eq!(parts.element("PartsCount").as_deref(), Some("2"));
    assert!(gateway.get("/bucket?uploads").await.expect(200).elements("UploadId").is_empty());

    let copy = [("x-amz-copy-source", "/bucket/key")];
    gateway.put_with("/bucket/copy", &copy, b"").await.expect(200);
    assert!(gateway.get("/bucket/copy").await.expect(200).body == got.body);
}

#[tokio::test]
async fn full_object_and_composite_checksums() {
    let gateway = Gateway::roomy().await.with_bucket().await;
    let (one, two) = (bytes(1, MIB5), bytes(2, 1000));
    let whole = [one.clone(), two.clone()].concat();
    let enabled = [("x-amz-checksum-mode", "ENABLED")];
    for (algorithm, kind) in [
        (Algorithm::Crc64Nvme, "FULL_OBJECT"),
        (Algorithm::Crc32, "FULL_OBJECT"),
        (Algorithm::Crc32c, "COMPOSITE"),
        (Algorithm::Sha256, "COMPOSITE"),
    ] {
        let name = format!("x-amz-checksum-{}", algorithm.name().to_lowercase());
        let headers = [("x-amz-checksum-algorithm", algorithm.name()), ("x-amz-checksum-type", kind)];
        let id = begin(&gateway, "sum", &headers).await;
        let first = part(&gateway, "sum", &id, 1, &one).await;
        assert_eq!(first.header(&name), Some(encode(&algorithm.of(&one)).as_str()));
        let second = part(&gateway, "sum", &id, 2, &two).await;
        let want = match kind {
            "FULL_OBJECT" => encode(&algorithm.of(&whole)),
            _ => format!("{}-2", encode(&algorithm.of(&[algorithm.of(&one), algorithm.of(&two)].concat()))),
        };
        let uri = format!("/bucket/sum?uploadId={id}");
        let document = complete(&[(1, &first), (2, &second)]);
        let wrong = [(name.as_str(), encode(&algorithm.of(b"other")))];
        let wrong = [(wrong[0].0, wrong[0].1.as_str())];
        let refused = gateway.send(http::Method::POST, &uri, &wrong, document.as_bytes()).await;
        refused.error(400, "BadDigest");
        let right = [(name.as_str(), want.as_str()), ("x-amz-checksum-type", kind)];
        gateway.send(http::Method::POST, &uri, &right, document.as_bytes()).await.expect(200);
        let got = gateway.head("/bucket/sum", &enabled).await.expect(200);
        assert_eq!(got.header(&name), Some(want.as_str()));
        assert_eq!(got.header("x-amz-checksum-type"), Some(kind));
    }
    let headers = [("x-amz-checksum-algorithm", "SHA256"), ("x-amz-checksum-type", "FULL_OBJECT")];
    gateway.send(http::Method::POST, "/bucket/sum?uploads", &headers, b"").await.error(400, "InvalidRequest");
    let id = begin(&gateway, "sum", &[("x-amz-checksum-algorithm", "SHA256")]).await;
    let other = [("x-amz-checksum-crc32", encode(&Algorithm::Crc32.of(b"x")))];
    let uri = format!("/bucket/sum?partNumber=1&uploadId={id}");
    gateway.put_with(&uri, &[(other[0].0, &other[0].1)], b"x").await.error(400, "InvalidRequest");
}

#[tokio::test]
async fn completions_that_make_no_object() {
    let gateway = Gateway::roomy().await.with_bucket().await;
    let id = begin(&gateway, "key", &[]).await;
    let first = part(&gateway, "key", &id, 1, b"small").await;
    let second = part(&gateway, "key", &id, 2, b"tail").await;
    let uri = format!("/bucket/key?uploadId={id}");
    gateway.post(&uri, &complete(&[(1, &first), (2, &second)])).await.error(400, "EntityTooSmall");
    gateway.post(&uri, &complete(&[(2, &second), (1, &first)])).await.error(400, "InvalidPartOrder");
    gateway.post(&uri, &complete(&[(1, &first), (1, &first)])).await.error(400, "InvalidPartOrder");
    gateway.post(&uri, &complete(&[(3, &second)])).await.error(400, "InvalidPart");
    gateway.post(&uri, &complete(&[(1, &second)])).await.error(400, "InvalidPart");
    gateway.post(&uri, &complete(&[(10_001, &second)])).await.error(400, "InvalidArgument");
    gateway.post(&uri, "<CompleteMultipartUpload/>").await.error(400, "MalformedXML");
    gateway.post(&uri, "").await.error(400, "MalformedXML");
    let size = [("x-amz-mp-object-size", "9")];
    let one = complete(&[(2, &second)]);
    gateway.send(http::Method::POST, &uri, &size, one.as_bytes()).await.error(400, "InvalidRequest");
    gateway.put("/bucket/key", b"there").await.expect(200);
    let absent = [("if-none-match", "*")];
    gateway.send(http::Method::POST, &uri, &absent, one.as_bytes()).await.error(412, "PreconditionFailed");
    for number in ["0", "10001", "x"] {
        let uri = format!("/bucket/key?partNumber={number}&uploadId={id}");
        gateway.put(&uri, b"x").await.error(400, "InvalidArgument");
    }
    gateway.delete(&uri).await.expect(204);
    gateway.delete(&uri).await.error(404, "NoSuchUpload");
    gateway.post(&uri, &one).await.error(404, "NoSuchUpload");
    gateway.put(&format!("/bucket/key?partNumber=1&uploadId={id}"), b"x").await.error(404, "NoSuchUpload");
    gateway.get("/bucket/key?uploadId=nonsense").await.error(404, "NoSuchUpload");
    assert_eq!(gateway.get("/bucket/key").await.expect(200).text(), "there");
}

#[tokio::test]
async fn parts_are_copied_whole_and_in_ranges() {
    let gateway = Gateway::roomy().await.with_bucket().await;
    let source = bytes(3, MIB5 + 100);
    gateway.put("/bucket/source", &source).await.expect(200);
    let id = begin(&gateway, "key", &[("x-amz-checksum-algorithm", "CRC64NVME")]).await;
    let uri = |number: u32| format!("/bucket/key?partNumber={number}&uploadId={id}");
    let from = ("x-amz-copy-source", "bucket/source");
    let whole = gateway.put_with(&uri(1), &[from], b"").await.expect(200);
    let ranged = [from, ("x-amz-copy-source-range", "bytes=10-19")];
    let range = gateway.put_with(&uri(2), &ranged, b"").await.expect(200);
    for bad in ["bytes=0-5242980", "bytes=10-", "0-5", "bytes=5-1"] {
        let headers = [from, ("x-amz-copy-source-range", bad)];
        gateway.put_with(&uri(3), &headers, b"").await.error(400, "InvalidArgument");
    }
    let done =
        gateway.post(&format!("/bucket/key?uploadId={id}"), &complete(&[(1, &whole), (2, &range)])).await;
    let done = done.expect(200);
    assert_eq!(done.element("ETag"), Some(md5s_etag(&[&source, &source[10..20]])));
    let want = [source.as_slice(), &source[10..20]].concat();
    assert_eq!(done.element("ChecksumCRC64NVME"), Some(encode(&Algorithm::Crc64Nvme.of(&want))));
    assert!(gateway.get("/bucket/key").await.expect(200).body == want);
}
