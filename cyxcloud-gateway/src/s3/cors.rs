//! Cross-origin requests, all allowed or none: for browsers of any origin, where the operator says so.
//!
//! Credentials of S3 requests are signatures, not cookies, so an origin gains nothing it could not ask for itself.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Response};
use s3s::Body;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE");
const EXPOSED: HeaderValue = HeaderValue::from_static("*");
/// Browsers do not take `*` for these where a response is fetched with credentials.
const EXPOSED_BY_NAME: HeaderValue = HeaderValue::from_static(
    "ETag, Content-Length, Content-Range, Accept-Ranges, Last-Modified, x-amz-request-id, x-amz-id-2, \
     x-amz-version-id, x-amz-mp-parts-count, x-amz-checksum-crc32, x-amz-checksum-crc32c, \
     x-amz-checksum-crc64nvme, x-amz-checksum-sha1, x-amz-checksum-sha256, x-amz-checksum-type",
);
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
const ANY: HeaderValue = HeaderValue::from_static("*");

/// Adds to an answer what lets a browser show it to the page that asked.
pub(super) fn allow(asked: &HeaderMap, answer: &mut HeaderMap) {
    if asked.contains_key(ORIGIN) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        answer.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_BY_NAME);
        answer.append(VARY, HeaderValue::from_static("Origin"));
    }
}

/// Answers `OPTIONS`.
pub(super) fn preflight(asked: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    allow(asked, headers);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    let wanted = asked.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    // `*` does not cover Authorization; echoing what is asked does.
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.unwrap_or(ANY));
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    response
}
