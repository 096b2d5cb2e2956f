//! Amazon's published examples, through the whole door: "Examples: Signature Calculations in AWS Signature Version 4"
//! of the Amazon S3 API reference, with the request as printed there.

mod auth_support;

use auth_support::{AMAZON_DATE, Door, EMPTY, ROOT_KEY, Sent, amazon_time, root};

use bytes::Bytes;
use cyxcloud_gateway::auth::{Mount, Principal, Scheme};
use cyxcloud_gateway::body::TrailerChecksums;
use http::Request;
use http_body_util::{BodyExt as _, Full};

fn request(
    method: &str,
    uri: &str,
    signed: &str,
    signature: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Sent {
    let mut builder = Request::builder().method(method).uri(uri).header("x-amz-date", AMAZON_DATE).header(
        "Authorization",
        format!(
            "AWS4-HMAC-SHA256 Credential={ROOT_KEY}/20130524/us-east-1/s3/aws4_request,SignedHeaders={signed},Signature={signature}"
        ),
    );
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(Bytes::from(body))).expect("a request")
}

const HOST: (&str, &str) = ("Host", "examplebucket.s3.amazonaws.com");
const NO_BODY: (&str, &str) = ("x-amz-content-sha256", EMPTY);

#[tokio::test]
async fn get_object() {
    let door = Door::open().await;
    let sent = request(
        "GET",
        "/test.txt",
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        &[HOST, NO_BODY, ("Range", "bytes=0-9")],
        Vec::new(),
    );
    let let_in = door.knock(sent, Mount::Root).await.expect("Amazon's own");
    assert_eq!(let_in.uri(), "/examplebucket/test.txt");
    assert_eq!(let_in.headers()["range"], "bytes=0-9");
    for gone in ["authorization", "x-amz-date", "x-amz-content-sha256"] {
        assert!(!let_in.headers().contains_key(gone), "{gone}");
    }
    let principal = let_in.extensions().get::<Principal>().expect("someone");
    assert_eq!(
        *principal,
        Principal {
            owner: root(),
            admin: true,
            access_key: Some(ROOT_KEY.to_owned()),
            scheme: Scheme::Header,
            limits: None,
            token: None,
        }
    );
}

#[tokio::test]
async fn put_object() {
    let door = Door::open().await;
    let sent = |body: &str| {
        request(
            "PUT",
            "/test$file.text",
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            &[
                HOST,
                ("Date", "Fri, 24 May 2013 00:00:00 GMT"),
                ("x-amz-content-sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"),
                ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ],
            body.into(),
        )
    };
    let let_in = door.knock(sent("Welcome to Amazon S3."), Mount::Root).await.expect("Amazon's own");
    assert_eq!(let_in.uri(), "/examplebucket/test%24file.text");
    assert_eq!(let_in.headers()["content-length"], "21");
    let body = let_in.into_body().collect().await.expect("right").to_bytes();
    assert_eq!(body, "Welcome to Amazon S3.");
    assert_eq!(door.verdict(sent("Welcome to Amazon S4."), Mount::Root).await, "XAmzContentSHA256Mismatch");
}

#[tokio::test]
async fn bucket_lifecycle_and_listing() {
    let door = Door::open().await;
    for (uri, signature) in [
        ("/?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ] {
        let signed = "host;x-amz-content-sha256;x-amz-date";
        let sent = request("GET", uri, signed, signature, &[HOST, NO_BODY], Vec::new());
        let let_in = door.knock(sent, Mount::Root).await.expect("Amazon's own");
        assert_eq!(let_in.uri().to_string(), format!("/examplebucket{uri}"));
    }
}

#[tokio::test]
async fn presigned_get() {
    let door = Door::open().await;
    let uri = format!(
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={ROOT_KEY}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    );
    let sent = || {
        Request::get(uri.as_str()).header(HOST.0, HOST.1).body(Full::new(Bytes::new())).expect("a request")
    };
    let let_in = door.knock(sent(), Mount::Root).await.expect("Amazon's own");
    assert_eq!(let_in.uri(), "/examplebucket/test.txt");
    assert_eq!(let_in.extensions().get::<Principal>().expect("someone").scheme, Scheme::Presigned);
    let day = std::time::Duration::from_secs(86_400);
    let last = door.auth.authenticate_at(sent(), Mount::Root, amazon_time().plus(day)).await;
    assert!(last.is_ok());
    let late = amazon_time().plus(day + std::time::Duration::from_millis(1));
    let late = door.auth.authenticate_at(sent(), Mount::Root, late).await.expect_err("expired");
    assert_eq!((late.code(), late.message()), ("AccessDenied", "Request has expired"));
}

fn chunked(signatures: &[(&'static [u8], &str)], end: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (data, signature) in signatures {
        body.extend_from_slice(format!("{:x};chunk-signature={signature}\r\n", data.len()).as_bytes());
        body.extend_from_slice(data);
        if !data.is_empty() {
            body.extend_from_slice(b"\r\n");
        }
    }
    body.extend_from_slice(end.as_bytes());
    body
}

const FIRST: &[u8] = &[b'a'; 65_536];
const SECOND: &[u8] = &[b'a'; 1_024];

#[tokio::test]
async fn put_object_in_signed_chunks() {
    let door = Door::open().await;
    let body = chunked(
        &[
            (FIRST, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
            (SECOND, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
            (b"", "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
        ],
        "\r\n",
    );
    let sent = request(
        "PUT",
        "/examplebucket/chunkObject.txt",
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        &[
            ("Host", "s3.amazonaws.com"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("Content-Encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("Content-Length", "66824"),
        ],
        body,
    );
    let let_in = door.knock(sent, Mount::Root).await.expect("Amazon's own");
    assert_eq!(let_in.uri(), "/examplebucket/chunkObject.txt");
    assert_eq!(let_in.headers()["content-length"], "66560");
    for gone in ["content-encoding", "x-amz-decoded-content-length", "x-amz-content-sha256"] {
        assert!(!let_in.headers().contains_key(gone), "{gone}");
    }
    let body = let_in.into_body().collect().await.expect("right").to_bytes();
    assert_eq!(body, vec![b'a'; 66_560]);
}

#[tokio::test]
async fn put_object_in_signed_chunks_with_trailers() {
    let door = Door::open().await;
    let body = chunked(
        &[
            (FIRST, "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
            (SECOND, "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
            (b"", "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992"),
        ],
        "x-amz-checksum-crc32c:sOO8/Q==\r\n\
         x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n",
    );
    let sent = request(
        "PUT",
        "/examplebucket/chunkObject.txt",
        "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer",
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        &[
            ("Host", "s3.amazonaws.com"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
            ("Content-Encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("x-amz-trailer", "x-amz-checksum-crc32c"),
        ],
        body,
    );
    let let_in = door.knock(sent, Mount::Root).await.expect("Amazon's own");
    let trailers = let_in.extensions().get::<TrailerChecksums>().expect("announced").clone();
    assert_eq!((trailers.expected(), trailers.get()), (&["x-amz-checksum-crc32c".to_owned()][..], None));
    let body = let_in.into_body().collect().await.expect("right").to_bytes();
    assert_eq!(body.len(), 66_560);
    assert_eq!(trailers.get(), Some(&[("x-amz-checksum-crc32c".to_owned(), "sOO8/Q==".to_owned())][..]));
}
