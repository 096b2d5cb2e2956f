//! Makes a verified request plain: root path, path style, no credentials, no framing.

use cyxcloud_core::name::BucketName;
use cyxcloud_core::sigv4::uri_encode;
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};

use super::query::{Query, decode, render};
use super::signature::PROTOCOL;
use super::{AuthError, Mount};

/// The bucket that a host names under one of the base domains, and the longest one if several match. A host that is a
/// base domain itself, an address, or names no possible bucket names none.
pub fn virtual_host_bucket(host: &str, domains: &[String]) -> Option<BucketName> {
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if domains.iter().any(|domain| domain.eq_ignore_ascii_case(&host)) {
        return None;
    }
    let under = |domain: &String| {
        host.strip_suffix(&domain.to_ascii_lowercase())?.strip_suffix('.').map(str::to_owned)
    };
    let shortest = domains.iter().filter_map(under).min_by_key(String::len)?;
    shortest.parse().ok()
}

/// The path behind us for the path that was sent: decoded once, below the mount, with the bucket in front, in one
/// encoding only.
pub(crate) fn plain_path(raw: &str, mount: Mount, bucket: Option<&BucketName>) -> Result<String, AuthError> {
    let path = decode(raw)?;
    let below = match mount {
        Mount::Plain => return Ok(uri_encode(path, false)),
        Mount::Root => path.as_str(),
        Mount::Prefix(prefix) => match path.strip_prefix(prefix) {
            Some("") => "/",
            Some(below) if below.starts_with('/') => below,
            _ => return Err(AuthError::invalid_uri("the path is not below the one that S3 is served at")),
        },
    };
    let key = uri_encode(below, false);
    let key = if key.starts_with('/') { key } else { format!("/{key}") };
    Ok(match bucket {
        Some(bucket) => format!("/{bucket}{key}"),
        None => key,
    })
}

/// The address of this path, which is plain already, and query.
pub(crate) fn address(path: &str, query: &str) -> Result<Uri, AuthError> {
    path_and_query(path, query).map(Uri::from)
}

/// The same without a host.
pub(crate) fn path_and_query(path: &str, query: &str) -> Result<PathAndQuery, AuthError> {
    let address = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    PathAndQuery::try_from(address)
        .map_err(|_| AuthError::invalid_uri("the address has characters that must be percent-encoded"))
}

/// Whether a query parameter belongs to the signature of a presigned URL rather than to the operation.
fn is_protocol(name: &str) -> bool {
    PROTOCOL.iter().any(|known| known.eq_ignore_ascii_case(name))
        || name.eq_ignore_ascii_case("x-amz-security-token")
}

/// Makes the head plain. `presigned`: the signature was in the query. `chunked`: the framing of the body is taken off.
/// `length`: the body's length without framing, if known.
pub(crate) fn head(
    parts: &mut Parts,
    path: &str,
    query: &Query,
    presigned: bool,
    chunked: bool,
    length: Option<u64>,
) -> Result<(), AuthError> {
    let mut kept: Vec<&(String, String)> = query.iter().collect();
    if presigned {
        kept.retain(|(name, _)| !is_protocol(name));
        // Those who presign move headers into the query, where the signature covers them; S3 reads them as headers.
        for (name, value) in &kept {
            let lower = name.to_ascii_lowercase();
            if lower.starts_with("x-amz-") && !parts.headers.contains_key(&lower) {
                insert(&mut parts.headers, &lower, value)?;
            }
        }
        kept.retain(|(name, _)| !name.to_ascii_lowercase().starts_with("x-amz-"));
    }
    let address = address(path, &render(kept.into_iter()))?;
    if let Some(authority) = parts.uri.authority()
        && !parts.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, host);
    }
    parts.uri = address;
    let headers = &mut parts.headers;
    for name in [AUTHORIZATION, TRANSFER_ENCODING, EXPECT] {
        headers.remove(name);
    }
    for name in
        PROTOCOL.iter().chain(&["x-amz-security-token", "x-amz-decoded-content-length", "x-amz-trailer"])
    {
        headers.remove(*name);
    }
    strip_internal(headers);
    if chunked {
        strip_chunked_encoding(headers);
    }
    match length {
        Some(length) => headers.insert(CONTENT_LENGTH, HeaderValue::from(length)),
        None => headers.remove(CONTENT_LENGTH),
    };
    Ok(())
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), AuthError> {
    let refused =
        || AuthError::malformed_query("a parameter of the query that stands for a header cannot be one");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
    // Refuses control characters: nothing can be smuggled into another header.
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| refused())?;
    headers.insert(name, value);
    Ok(())
}

/// Headers by which servers of one cluster talk to each other are nothing that a client may say.
fn strip_internal(headers: &mut HeaderMap) {
    let internal: Vec<HeaderName> = headers
        .keys()
        .filter(|name| ["x-cyx-internal-", "x-minio-"].iter().any(|prefix| name.as_str().starts_with(prefix)))
        .cloned()
        .collect();
    for name in internal {
        headers.remove(name);
    }
}

/// `aws-chunked` is gone from the body, so it must not be stored as the object's encoding.
fn strip_chunked_encoding(headers: &mut HeaderMap) {
    let encodings: Vec<String> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|encoding| encoding.trim().to_owned())
        .filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    headers.remove(CONTENT_ENCODING);
    if let Ok(left) = HeaderValue::from_str(&encodings.join(","))
        && !encodings.is_empty()
    {
        headers.insert(CONTENT_ENCODING, left);
    }
}
