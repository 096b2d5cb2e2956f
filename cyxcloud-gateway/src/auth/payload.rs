//! What a request says about its body: `x-amz-content-sha256` and the length headers.

use http::{HeaderMap, Method, header};

use super::AuthError;
use super::credentials::only;
use crate::body::{ChunkSigner, Chunked, Framing, TrailerChecksums};

/// `x-amz-content-sha256`, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// `UNSIGNED-PAYLOAD`, or nothing said where that is allowed.
    Unsigned,
    /// The SHA-256 of the body.
    Sha256([u8; 32]),
    /// `STREAMING-...`
    Streaming {
        /// Chunks carry signatures.
        signed: bool,
        /// Trailers follow.
        trailers: bool,
    },
}

impl Payload {
    pub(crate) fn parse(text: &str) -> Result<Self, AuthError> {
        let streaming = |signed, trailers| Ok(Self::Streaming { signed, trailers });
        match text {
            "UNSIGNED-PAYLOAD" => Ok(Self::Unsigned),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => streaming(true, false),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => streaming(true, true),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => streaming(false, true),
            _ => {
                let mut sha256 = [0; 32];
                hex::decode_to_slice(text, &mut sha256).map_err(|_| {
                    AuthError::invalid(
                        "InvalidArgument",
                        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, \
                         STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, STREAMING-UNSIGNED-PAYLOAD-TRAILER, or the \
                         SHA-256 of the body in hexadecimal",
                    )
                })?;
                Ok(Self::Sha256(sha256))
            }
        }
    }

    /// Whether the body is in `aws-chunked` framing.
    pub(crate) fn is_chunked(self) -> bool {
        matches!(self, Self::Streaming { .. })
    }
}

/// How the body must be read. `signer` is there where the request's head was signed; `lengthless` says that a plain
/// body may come without a length.
pub(crate) fn framing(
    payload: Payload,
    method: &Method,
    headers: &HeaderMap,
    signer: Option<ChunkSigner>,
    body: Announced,
) -> Result<Framing, AuthError> {
    let length = number(headers, header::CONTENT_LENGTH.as_str())?.or(body.exact);
    let Payload::Streaming { signed, trailers } = payload else {
        let writes = *method == Method::PUT || *method == Method::POST;
        if length.is_none() && writes && !body.lengthless {
            return Err(missing_length("Content-Length"));
        }
        let sha256 = if let Payload::Sha256(sha256) = payload { Some(sha256) } else { None };
        return Ok(Framing::Plain { length, sha256 });
    };
    let decoded_len = number(headers, "x-amz-decoded-content-length")?
        .ok_or_else(|| missing_length("x-amz-decoded-content-length"))?;
    let expected = expected_trailers(headers)?;
    let trailers = match (trailers, expected.is_empty()) {
        (true, _) => Some(TrailerChecksums::expecting(expected)),
        (false, true) => None,
        (false, false) => {
            return Err(AuthError::invalid(
                "InvalidRequest",
                "x-amz-trailer announces trailers and x-amz-content-sha256 none; use its -TRAILER form",
            ));
        }
    };
    let signer = match (signed, signer) {
        (true, Some(signer)) => Some(signer),
        (true, None) => {
            return Err(AuthError::invalid(
                "InvalidRequest",
                "chunks can be signed only where the request is; use UNSIGNED-PAYLOAD",
            ));
        }
        (false, _) => None,
    };
    Ok(Framing::Chunked(Chunked { decoded_len, signer, trailers }))
}

/// What is known of the body that comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announced {
    /// Its exact length, if the connection knows.
    pub(crate) exact: Option<u64>,
    /// It may be written without telling its length.
    pub(crate) lengthless: bool,
}

fn missing_length(name: &str) -> AuthError {
    AuthError::new(
        "MissingContentLength",
        http::StatusCode::LENGTH_REQUIRED,
        format!("say how long the body is in {name}, or use a multipart upload"),
    )
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, AuthError> {
    let Some(value) = only(headers, name)? else { return Ok(None) };
    // `parse` alone would take a sign.
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let value = digits.then(|| value.parse().ok()).flatten();
    value
        .map(Some)
        .ok_or_else(|| AuthError::invalid("InvalidArgument", format!("{name} must be a number of bytes")))
}

/// Names in `x-amz-trailer`, in lower case.
fn expected_trailers(headers: &HeaderMap) -> Result<Vec<String>, AuthError> {
    let Some(names) = only(headers, "x-amz-trailer")? else { return Ok(Vec::new()) };
    let mut names: Vec<String> = names.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
    names.retain(|name| !name.is_empty());
    let known = |name: &String| name.starts_with("x-amz-checksum-") && name.len() <= 64;
    names.sort();
    let count = names.len();
    names.dedup();
    if count > 100 || names.len() != count || !names.iter().all(known) {
        return Err(AuthError::invalid(
            "InvalidRequest",
            "the value specified in the x-amz-trailer header is not supported; name x-amz-checksum-* trailers, each once",
        ));
    }
    Ok(names)
}
