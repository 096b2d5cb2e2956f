//! Prepares a request for `s3s`: refuses what we do not have, keeps headers that we read ourselves, and takes XML
//! bodies in, limited and checked. The body of an object or part streams on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use quick_xml::events::Event;
use s3s::{Body, HttpRequest, S3Error, S3Result, s3_error};

use super::error::{from_body, s3_error_of};
use super::headers::{OURS, Original, claims, text};
use crate::auth::Principal;
use crate::body::{BodyError, S3Body};
use crate::documents::{self, Documents, Sender, Terms};
use crate::objects::checksums::{Algorithm, Hasher};

/// Longest XML body of most operations.
const XML_MAX: usize = 1 << 20;
/// Elements within elements, at most; no document of S3 comes near.
const DEPTH_MAX: usize = 32;
/// Longest XML body where S3 allows that much: 10,000 parts with checksums, or 1,000 escaped keys.
pub(super) const LONG_XML_MAX: usize = 8 << 20;
/// An XML body has come to its end by then.
const XML_TIME_MAX: Duration = Duration::from_secs(60);

/// Query names that select something else than the object or bucket itself.
pub(super) const SUBRESOURCES: [&str; 42] = [
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "annotation",
    "append",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "location",
    "logging",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "tagging",
    "torrent",
    "uploads",
    "versioning",
    "versions",
    "website",
    "events",
    "rename",
];
/// Those of an object that `s3s` routes by method. Any other would be taken for the object itself.
const OBJECT_GET: &[&str] = &["attributes", "acl", "legal-hold", "retention", "tagging", "torrent"];
const OBJECT_PUT: &[&str] = &["acl", "legal-hold", "retention", "tagging"];
const OBJECT_POST: &[&str] = &["select", "uploads", "restore"];
const OBJECT_DELETE: &[&str] = &["tagging"];
/// Those of a bucket that `s3s` does not route, or not for every method.
const BUCKET_NEVER: &[&str] = &[
    "abac",
    "annotation",
    "append",
    "attributes",
    "events",
    "legal-hold",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "rename",
    "renameObject",
    "restore",
    "retention",
    "select",
    "session",
    "torrent",
];
const BUCKET_PUT_NEVER: &[&str] =
    &["delete", "location", "metadataTable", "policyStatus", "uploads", "versions"];
const BUCKET_DELETE_NEVER: &[&str] = &[
    "accelerate",
    "acl",
    "delete",
    "location",
    "logging",
    "notification",
    "object-lock",
    "policyStatus",
    "requestPayment",
    "uploads",
    "versioning",
    "versions",
];

/// Headers that change what would be stored in ways that we do not have.
const UNSUPPORTED_PREFIXES: [&str; 6] = [
    "x-amz-server-side-encryption-customer-",
    "x-amz-copy-source-server-side-encryption-customer-",
    "x-amz-server-side-encryption-aws-kms-",
    "x-amz-object-lock-",
    "x-amz-grant-",
    "x-amz-write-offset-",
];

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Root,
    Bucket,
    Object,
}

pub(super) fn level(path: &str) -> Level {
    let path = path.strip_prefix('/').unwrap_or(path);
    match path.split_once('/') {
        None if path.is_empty() => Level::Root,
        None => Level::Bucket,
        Some((_, "")) => Level::Bucket,
        Some(_) => Level::Object,
    }
}

/// Turns a verified request into one for `s3s`.
pub(super) async fn prepare(request: Request<S3Body>, documents: &Documents) -> S3Result<HttpRequest> {
    let (mut parts, body) = request.into_parts();
    let principal = parts.extensions.get::<Principal>();
    let principal = principal.ok_or_else(|| s3_error!(AccessDenied, "Access Denied"))?;
    let owner = principal.owner.to_string();
    let query = query_names(parts.uri.query().unwrap_or_default());
    let level = level(parts.uri.path());
    check_query(&parts.method, level, &query)?;
    check_headers(&parts.method, &parts.headers, &owner)?;
    join_metadata(&mut parts.headers)?;

    let headers = Arc::new(parts.headers.clone());
    // The host names no bucket any more; s3s would guess that it does.
    for name in OURS.iter().chain([&http::header::HOST]) {
        parts.headers.remove(name);
    }
    let subresource = query.iter().any(|(name, _)| SUBRESOURCES.contains(&name.as_str()));
    let body = if parts.method == Method::PUT && level == Level::Object && !subresource {
        Body::http_body_unsync(body)
    } else if parts.method == Method::POST || parts.method == Method::PUT {
        let long = query.iter().any(|(name, _)| name == "delete" || name == "uploadId");
        let terms = Terms { bytes_max: if long { LONG_XML_MAX } else { XML_MAX }, time_max: XML_TIME_MAX };
        let bytes = documents.take_in(Sender::of(&parts.extensions), body, terms).await;
        let bytes = bytes.map_err(|error| refused(error, terms))?;
        check_shape(&bytes)?;
        let completes = query.iter().any(|(name, _)| name == "uploadId");
        check_document(&bytes, completes, &headers, &parts.extensions)?;
        Body::from(bytes)
    } else {
        Body::empty()
    };
    parts.extensions.insert(Original(headers));
    Ok(Request::from_parts(parts, body))
}

/// Query parameters, decoded. Those of presigned requests that stand for headers are headers by now.
pub(super) fn query_names(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn not_implemented(message: impl Into<String>) -> S3Error {
    s3_error_of("NotImplemented", StatusCode::NOT_IMPLEMENTED, message)
}

/// Refuses operations that `s3s` would take for another one.
fn check_query(method: &Method, level: Level, query: &[(String, String)]) -> S3Result<()> {
    let has = |name: &str| query.iter().any(|(other, _)| other == name);
    let routed = |name: &str| match (level, method) {
        (Level::Root, _) => true,
        (Level::Object, &Method::GET | &Method::HEAD) => OBJECT_GET.contains(&name),
        (Level::Object, &Method::PUT) => OBJECT_PUT.contains(&name),
        (Level::Object, &Method::POST) => OBJECT_POST.contains(&name),
        (Level::Object, &Method::DELETE) => OBJECT_DELETE.contains(&name),
        (Level::Object, _) => true,
        (Level::Bucket, _) if BUCKET_NEVER.contains(&name) => false,
        (Level::Bucket, &Method::PUT) => !BUCKET_PUT_NEVER.contains(&name),
        (Level::Bucket, &Method::DELETE) => !BUCKET_DELETE_NEVER.contains(&name),
        (Level::Bucket, &Method::GET) => name != "delete",
        (Level::Bucket, _) => true,
    };
    if let Some(other) = SUBRESOURCES.iter().find(|name| has(name) && !routed(name)) {
        return Err(not_implemented(format!("{method} of ?{other} is not implemented.")));
    }
    let part_upload = (has("partNumber"), has("uploadId"));
    if level == Level::Object && method == Method::PUT && matches!(part_upload, (true, false) | (false, true))
    {
        return Err(s3_error!(InvalidArgument, "This operation needs both partNumber and uploadId."));
    }
    Ok(())
}

/// Refuses what would be ignored otherwise.
fn check_headers(method: &Method, headers: &HeaderMap, owner: &str) -> S3Result<()> {
    for name in ["x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"] {
        if text(headers, &HeaderName::from_static(name))?.is_some_and(|expected| expected != owner) {
            return Err(s3_error!(AccessDenied, "The bucket is not owned by the account in {name}."));
        }
    }
    let unsupported = |name: &&HeaderName| {
        UNSUPPORTED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
            || *name == "x-amz-tagging"
            || *name == "x-amz-mfa"
    };
    if let Some(name) = headers.keys().find(unsupported) {
        return Err(not_implemented(format!("The header {name} is not implemented.")));
    }
    match text(headers, &HeaderName::from_static("x-amz-server-side-encryption"))?.as_deref() {
        None | Some("AES256") => {}
        Some(other) => {
            return Err(not_implemented(format!(
                "Everything is encrypted with AES256; {other} is not implemented."
            )));
        }
    }
    match text(headers, &HeaderName::from_static("x-amz-acl"))?.as_deref() {
        None | Some("private" | "bucket-owner-read" | "bucket-owner-full-control") => {}
        Some(_) => {
            return Err(s3_error!(
                AccessControlListNotSupported,
                "Buckets and objects are private; ACLs that share them are not supported."
            ));
        }
    }
    let form = text(headers, &http::header::CONTENT_TYPE)?
        .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/form-data"));
    if form && method == Method::POST {
        return Err(not_implemented("Uploads by HTML forms are not implemented; use PUT."));
    }
    Ok(())
}

/// Headers of one name count as one, their values joined, as in S3.
fn join_metadata(headers: &mut HeaderMap) -> S3Result<()> {
    let repeated: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-amz-meta-") && headers.get_all(*name).iter().count() > 1)
        .cloned()
        .collect();
    for name in repeated {
        let values: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
        let joined = HeaderValue::from_bytes(&values.join(&b","[..]));
        let joined = joined.map_err(|_| s3_error!(InvalidArgument, "The header {name} is not valid."))?;
        headers.insert(name, joined);
    }
    Ok(())
}

/// Why a document was not taken in.
fn refused(error: documents::Error<BodyError>, terms: Terms) -> S3Error {
    let Terms { bytes_max, time_max } = terms;
    match error {
        documents::Error::TooLong => {
            s3_error!(
                MalformedXML,
                "The document is longer than the {bytes_max} bytes that are possible here."
            )
        }
        documents::Error::Late => {
            s3_error!(
                RequestTimeout,
                "The document did not come within {} s; send it again.",
                time_max.as_secs()
            )
        }
        documents::Error::NoRoom => {
            s3_error!(SlowDown, "There are too many documents to be read just now; please try again.")
        }
        documents::Error::Body(error) => from_body(&error.into()),
    }
}

/// Refuses what no document of S3 has and parsers stumbled over: type definitions (with them entities), and depth. What
/// is no XML at all is left to whoever reads it.
fn check_shape(bytes: &[u8]) -> S3Result<()> {
    let mut reader = quick_xml::Reader::from_reader(bytes);
    reader.config_mut().check_end_names = false;
    let mut depth = 0usize;
    loop {
        match reader.read_event() {
            Ok(Event::DocType(_)) => {
                return Err(s3_error!(MalformedXML, "The document must not have a type definition."));
            }
            Ok(Event::Start(_)) => depth += 1,
            Ok(Event::End(_)) => depth = depth.saturating_sub(1),
            Ok(Event::Eof) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
        if depth > DEPTH_MAX {
            return Err(s3_error!(MalformedXML, "The document has elements more than {DEPTH_MAX} deep."));
        }
    }
}

/// Whether a document is what its sender said. The checksum of a completion is that of the object to be.
fn check_document(
    bytes: &Bytes,
    completes: bool,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> S3Result<()> {
    let mut of_document = headers.clone();
    if completes {
        for algorithm in Algorithm::ALL {
            of_document.remove(format!("x-amz-checksum-{}", algorithm.name().to_ascii_lowercase()));
        }
    }
    let mut claims = claims(&of_document, extensions)?;
    claims.length = None;
    let mut hasher = Hasher::new(claims.algorithms());
    hasher.update(bytes);
    Ok(claims.check(&hasher.finish())?)
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::OwnerId;
    use prometheus::Registry;

    use super::*;
    use crate::auth::Scheme;

    async fn prepare(request: Request<S3Body>) -> S3Result<HttpRequest> {
        super::prepare(request, &Documents::new(&Registry::new()).expect("registers")).await
    }

    fn request(method: Method, uri: &str, headers: &[(&'static str, &str)]) -> Request<S3Body> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let owner = OwnerId::from_random([1; 16]);
        let principal = Principal {
            owner,
            admin: false,
            access_key: None,
            scheme: Scheme::Header,
            limits: None,
            token: None,
        };
        request.extension(principal).body(S3Body::empty()).expect("valid")
    }

    async fn code(method: Method, uri: &str, headers: &[(&'static str, &str)]) -> Option<String> {
        prepare(request(method, uri, headers)).await.err().map(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn paths_have_levels() {
        for (path, want) in [
            ("/", Level::Root),
            ("", Level::Root),
            ("/bucket", Level::Bucket),
            ("/bucket/", Level::Bucket),
            ("/bucket/key", Level::Object),
            ("/bucket//", Level::Object),
        ] {
            assert_eq!(level(path), want, "{path:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_taken_for_something_else() {
        for (method, uri) in [
            (Method::PUT, "/bucket/key?renameObject"),
            (Method::PUT, "/bucket/key?torrent"),
            (Method::DELETE, "/bucket/key?acl"),
            (Method::DELETE, "/bucket?versioning"),
            (Method::PUT, "/bucket?session"),
            (Method::GET, "/bucket?metadataConfiguration"),
        ] {
            assert_eq!(
                code(method.clone(), uri, &[]).await.as_deref(),
                Some("NotImplemented"),
                "{method} {uri}"
            );
        }
        let part = code(Method::PUT, "/bucket/key?partNumber=1", &[]).await;
        assert_eq!(part.as_deref(), Some("InvalidArgument"));
        for (method, uri) in [
            (Method::PUT, "/bucket/key?x-id=PutObject"),
            (Method::PUT, "/bucket/key?partNumber=1&uploadId=2"),
            (Method::GET, "/bucket/key?tagging"),
            (Method::DELETE, "/bucket/key?versionId=null"),
            (Method::GET, "/bucket?uploads"),
            (Method::HEAD, "/bucket"),
        ] {
            assert_eq!(code(method.clone(), uri, &[]).await, None, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn what_we_do_not_have_is_refused_and_not_ignored() {
        for (name, value, want) in [
            ("x-amz-server-side-encryption-customer-algorithm", "AES256", "NotImplemented"),
            ("x-amz-server-side-encryption", "aws:kms", "NotImplemented"),
            ("x-amz-tagging", "a=b", "NotImplemented"),
            ("x-amz-object-lock-mode", "GOVERNANCE", "NotImplemented"),
            ("x-amz-acl", "public-read", "AccessControlListNotSupported"),
            ("x-amz-expected-bucket-owner", "somebody", "AccessDenied"),
        ] {
            let code = code(Method::PUT, "/bucket/key", &[(name, value)]).await;
            assert_eq!(code.as_deref(), Some(want), "{name}");
        }
        assert_eq!(
            code(Method::PUT, "/bucket/key", &[("x-amz-server-side-encryption", "AES256")]).await,
            None
        );
        assert_eq!(code(Method::PUT, "/bucket/key", &[("x-amz-acl", "private")]).await, None);
    }

    #[tokio::test]
    async fn documents_are_limited_and_checked() {
        let send = |uri: &str, len: usize, headers: &[(&'static str, &str)]| {
            let (parts, _) = request(Method::POST, uri, headers).into_parts();
            Request::from_parts(parts, S3Body::from_bytes(vec![b'x'; len].into()))
        };
        let code = |result: S3Result<HttpRequest>| result.err().map(|error| error.code().as_str().to_owned());
        assert_eq!(code(prepare(send("/bucket/key?restore", XML_MAX, &[])).await), None);
        let long = prepare(send("/bucket/key?restore", XML_MAX + 1, &[])).await;
        assert_eq!(code(long).as_deref(), Some("MalformedXML"));
        assert_eq!(code(prepare(send("/bucket?delete", XML_MAX + 1, &[])).await), None);
        let md5 = [("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")];
        assert_eq!(code(prepare(send("/bucket?delete", 1, &md5)).await).as_deref(), Some("BadDigest"));
        let crc = [("x-amz-checksum-crc32", "AAAAAA==")];
        assert_eq!(code(prepare(send("/bucket?delete", 1, &crc)).await).as_deref(), Some("BadDigest"));
        assert_eq!(code(prepare(send("/bucket/key?uploadId=1", 1, &crc)).await), None);
    }

    #[test]
    fn adv_31_clients_know_which_refusals_to_try_again() {
        let terms = Terms { bytes_max: XML_MAX, time_max: XML_TIME_MAX };
        for (error, code, status) in [
            (documents::Error::TooLong, "MalformedXML", StatusCode::BAD_REQUEST),
            (documents::Error::Late, "RequestTimeout", StatusCode::BAD_REQUEST),
            (documents::Error::NoRoom, "SlowDown", StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let error = refused(error, terms);
            assert_eq!((error.code().as_str(), error.status_code()), (code, Some(status)));
        }
    }

    #[test]
    fn adv_32_documents_have_no_definitions_and_little_depth() {
        let deep = |depth: usize| "<a>".repeat(depth) + &"</a>".repeat(depth);
        for good in
            ["", "no xml", "<a b='c'><!-- d --><e/></a>", "<a><e></a>", "{\"a\": 1}", &deep(DEPTH_MAX)]
        {
            assert!(check_shape(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "<!DOCTYPE a><a/>",
            "<!doctype a><a/>",
            "<a><!DOCTYPE a [<!ENTITY b 'c'>]></a>",
            &deep(DEPTH_MAX + 1),
        ] {
            assert!(check_shape(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn without_a_principal_nothing_is_let_in() {
        let mut request = request(Method::GET, "/", &[]);
        request.extensions_mut().clear();
        let error = prepare(request).await.expect_err("refused");
        assert_eq!(error.code().as_str(), "AccessDenied");
    }
}
