//! Against the examples that AWS publishes ("Authenticating Requests", Amazon S3 API Reference).

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const DATE: &str = "20130524T000000Z";
const HOST: (&str, &str) = ("Host", "examplebucket.s3.amazonaws.com");

fn scope() -> Scope {
    Scope { date: "20130524".into(), region: "us-east-1".into(), service: "s3".into() }
}

fn sign(canonical: &str) -> String {
    signature_hex(&SigningKey::derive(SECRET, &scope()), &string_to_sign(DATE, &scope(), canonical))
}

fn signed(method: &str, path: &str, query: &str, headers: &[(&str, &str)], payload: &str) -> String {
    let mut headers = headers.to_vec();
    headers.extend([("x-amz-content-sha256", payload), ("x-amz-date", DATE)]);
    let names: Vec<String> = headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    sign(&canonical_request(method, path, &query_pairs(query), &headers, &names, payload))
}

#[test]
fn get_object() {
    let signature = signed("GET", "/test.txt", "", &[HOST, ("Range", "bytes=0-9")], EMPTY_SHA256);
    assert_eq!(signature, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

#[test]
fn put_object() {
    let payload = sha256_hex(b"Welcome to Amazon S3.");
    assert_eq!(payload, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");
    let headers =
        [HOST, ("Date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
    let path = uri_encode("/test$file.text", false);
    let signature = signed("PUT", &path, "", &headers, &payload);
    assert_eq!(signature, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}

#[test]
fn get_bucket_lifecycle() {
    let signature = signed("GET", "/", "lifecycle", &[HOST], EMPTY_SHA256);
    assert_eq!(signature, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
}

#[test]
fn list_objects() {
    let signature = signed("GET", "/", "max-keys=2&prefix=J", &[HOST], EMPTY_SHA256);
    assert_eq!(signature, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

fn signer() -> Signer {
    Signer {
        access_key: "AKIAIOSFODNN7EXAMPLE".into(),
        secret_key: SECRET.into(),
        region: "us-east-1".into(),
        service: "s3".into(),
    }
}

#[test]
fn presigned_url() {
    let headers = [("host".to_owned(), HOST.1.to_owned())];
    let request = RequestToSign { method: "GET", raw_path: "/test.txt", query: &[], headers: &headers };
    let query = signer().presign(&request, DATE, 86_400);
    assert_eq!(
        query,
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    );
}

#[test]
fn our_signer_makes_the_published_header() {
    let headers = [("host".to_owned(), HOST.1.to_owned()), ("range".to_owned(), "bytes=0-9".to_owned())];
    let request = RequestToSign { method: "GET", raw_path: "/test.txt", query: &[], headers: &headers };
    let added = signer().sign(&request, DATE, EMPTY_SHA256);
    let (name, value) = &added[2];
    assert_eq!(name, "authorization");
    assert_eq!(
        value,
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
         Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
}

/// Header names and values of the chunked upload, without those that `signed` adds.
const CHUNKED: [(&str, &str); 4] = [
    ("Host", "s3.amazonaws.com"),
    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    ("Content-Encoding", "aws-chunked"),
    ("x-amz-decoded-content-length", "66560"),
];

fn chunk_signatures(seed: &str) -> Vec<String> {
    let key = SigningKey::derive(SECRET, &scope());
    let mut signatures = vec![seed.to_owned()];
    for chunk in [&vec![b'a'; 65_536][..], &vec![b'a'; 1024], &[]] {
        let previous = signatures.last().expect("starts with the seed");
        let text = chunk_string_to_sign(DATE, &scope(), previous, &sha256_hex(chunk));
        signatures.push(signature_hex(&key, &text));
    }
    signatures
}

#[test]
fn chunked_upload() {
    let mut headers = CHUNKED.to_vec();
    headers.push(("Content-Length", "66824"));
    let seed =
        signed("PUT", "/examplebucket/chunkObject.txt", "", &headers, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    assert_eq!(
        chunk_signatures(&seed),
        [
            "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ]
    );
}

#[test]
fn chunked_upload_with_a_trailer() {
    let mut headers = CHUNKED.to_vec();
    headers.push(("x-amz-trailer", "x-amz-checksum-crc32c"));
    let payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
    let signatures =
        chunk_signatures(&signed("PUT", "/examplebucket/chunkObject.txt", "", &headers, payload));
    assert_eq!(
        signatures,
        [
            "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        ]
    );
    let text = trailer_string_to_sign(DATE, &scope(), &signatures[3], "x-amz-checksum-crc32c:sOO8/Q==\n");
    let signature = signature_hex(&SigningKey::derive(SECRET, &scope()), &text);
    assert_eq!(signature, "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435");
}

#[test]
fn encoding_and_queries_are_canonical() {
    assert_eq!(uri_encode("a b+c/d%~ü", false), "a%20b%2Bc/d%25~%C3%BC");
    assert_eq!(uri_encode("a/b", true), "a%2Fb");
    assert_eq!(canonical_query(&query_pairs("b=2&a=%20+&a=1&c&&d=%2F")), "a=%20%2B&a=1&b=2&c=&d=%2F");
    assert_eq!(sha256_hex(b""), EMPTY_SHA256);
}

#[test]
fn header_values_are_trimmed_and_joined() {
    let headers = [("X-A", "  one   two "), ("host", "h"), ("x-a", "three")];
    let canonical = canonical_request::<&str, &str>("GET", "", &[], &headers, &["x-a", "host"], "p");
    assert_eq!(canonical, "GET\n/\n\nhost:h\nx-a:one two,three\n\nhost;x-a\np");
}

#[test]
fn only_the_right_signature_matches() {
    let right = signature(&SigningKey::derive(SECRET, &scope()), "text");
    let sent = hex::encode(right);
    assert!(signatures_match(&right, &sent));
    assert!(!signatures_match(&right, &sent[..62]));
    assert!(!signatures_match(&right, ""));
    let mut other = right;
    other[31] ^= 1;
    assert!(!signatures_match(&right, &hex::encode(other)));
}
