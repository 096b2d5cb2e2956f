//! Checks a signature over the request exactly as the client sent it, and that it covers what it must.

use std::time::Duration;

use cyxcloud_core::Timestamp;
use cyxcloud_core::sigv4::{self, SigningKey, uri_encode};
use http::HeaderMap;
use http::header::HOST;
use http::request::Parts;

use super::AuthError;
use super::credentials::{Claim, only};
use super::query::{Query, decode};

/// How far a client's clock may be off, either way.
const SKEW: Duration = Duration::from_secs(15 * 60);

/// Headers that repeat what a presigned URL's query says; they are dropped, so they need no signature.
pub(crate) const PROTOCOL: [&str; 7] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signedheaders",
    "x-amz-signature",
    "x-amz-content-sha256",
];

/// Whether the claim's date is one to look at now.
pub(crate) fn check_time(claim: &Claim, now: Timestamp) -> Result<(), AuthError> {
    let Some(expires_secs) = claim.expires_secs else {
        if now.since(claim.at) > SKEW || claim.at.since(now) > SKEW {
            return Err(AuthError::new(
                "RequestTimeTooSkewed",
                http::StatusCode::FORBIDDEN,
                "the difference between the request time and the server's time is more than 15 minutes; set the clock",
            ));
        }
        return Ok(());
    };
    if claim.at.since(now) > SKEW {
        return Err(AuthError::denied("Request is not yet valid"));
    }
    if now > claim.at.plus(Duration::from_secs(u64::from(expires_secs))) {
        return Err(AuthError::denied("Request has expired"));
    }
    Ok(())
}

/// Whether the claim is for our region.
pub(crate) fn check_region(claim: &Claim, region: &str) -> Result<(), AuthError> {
    if claim.scope.region == region {
        return Ok(());
    }
    let error = match claim.expires_secs {
        None => AuthError::malformed_header,
        Some(_) => AuthError::malformed_query,
    };
    Err(error(format!("the region '{}' is wrong; expecting '{region}'", claim.scope.region))
        .with("Region", region))
}

/// Whether all is signed that must be, and all is there that was signed.
pub(crate) fn check_coverage(claim: &Claim, parts: &Parts) -> Result<(), AuthError> {
    let signed = |name: &str| claim.signed_headers.iter().any(|known| known == name);
    if !signed("host") {
        return Err(AuthError::denied("the host header must be signed; sign it"));
    }
    for name in &claim.signed_headers {
        let there =
            parts.headers.contains_key(name.as_str()) || (name == "host" && parts.uri.authority().is_some());
        if !there {
            return Err(AuthError::bad_signature().with("HeadersMissing", name));
        }
    }
    for name in parts.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-amz-")) {
        // Its value is in the canonical request in any case.
        let exempt =
            name == "x-amz-content-sha256" || (claim.expires_secs.is_some() && PROTOCOL.contains(&name));
        if !signed(name) && !exempt {
            return Err(AuthError::denied(format!(
                "the header {name} is there and not signed; sign it or leave it out"
            ))
            .with("HeadersNotSigned", name));
        }
    }
    Ok(())
}

/// Refuses repetitions: a signature covers both values, and a reader behind us might take either.
pub(crate) fn check_single(headers: &HeaderMap) -> Result<(), AuthError> {
    for name in headers.keys().map(http::HeaderName::as_str) {
        let list = name.starts_with("x-amz-meta-") || name.ends_with("-attributes");
        if name == "host" || name == "content-md5" || (name.starts_with("x-amz-") && !list) {
            only_bytes(headers, name)?;
        }
    }
    Ok(())
}

fn only_bytes(headers: &HeaderMap, name: &str) -> Result<(), AuthError> {
    if headers.get_all(name).iter().count() > 1 {
        return Err(AuthError::invalid(
            "InvalidArgument",
            format!("{name} is there more than once; send it once"),
        ));
    }
    Ok(())
}

/// The host that the client addressed. HTTP/2 has it in the address, and one that has it twice must not differ.
pub(crate) fn host(parts: &Parts) -> Result<Option<&str>, AuthError> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    match (only(&parts.headers, HOST.as_str())?, authority) {
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
            Err(AuthError::invalid("InvalidRequest", "the host header and the address name different hosts"))
        }
        (host, authority) => Ok(host.or(authority)),
    }
}

/// Whether the signature is right.
pub(crate) fn check(
    claim: &Claim,
    key: &SigningKey,
    parts: &Parts,
    query: &Query,
    payload_hash: &str,
) -> Result<(), AuthError> {
    let mut headers = Vec::with_capacity(parts.headers.len() + 1);
    for (name, value) in &parts.headers {
        if claim.signed_headers.iter().any(|signed| signed == name.as_str()) {
            let value = std::str::from_utf8(value.as_bytes()).map_err(|_| {
                AuthError::invalid("InvalidArgument", format!("the header {name} is signed and not UTF-8"))
            })?;
            headers.push((name.as_str(), value));
        }
    }
    if !parts.headers.contains_key(HOST) {
        headers.extend(host(parts)?.map(|host| ("host", host)));
    }
    let query: Vec<(&str, &str)> = query
        .iter()
        .filter(|(name, _)| claim.expires_secs.is_none() || name != "X-Amz-Signature")
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let signed: Vec<&str> = claim.signed_headers.iter().map(String::as_str).collect();
    let matches = |path: &str| {
        let canonical =
            sigv4::canonical_request(parts.method.as_str(), path, &query, &headers, &signed, payload_hash);
        let text = sigv4::string_to_sign(&claim.amz_date, &claim.scope, &canonical);
        sigv4::signatures_match(&sigv4::signature(key, &text), &claim.signature)
    };
    // As it was sent; or, because S3 itself reads it so, with the encoding that S3 documents. Both decode to the
    // same key, which is the one that is served.
    let raw = parts.uri.path();
    if matches(raw) {
        return Ok(());
    }
    let tidy = uri_encode(decode(raw)?, false);
    if tidy != raw && matches(&tidy) {
        return Ok(());
    }
    Err(AuthError::bad_signature())
}
