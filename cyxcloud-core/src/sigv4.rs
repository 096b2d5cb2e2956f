//! AWS Signature Version 4, as S3 uses it: what is signed, and with which key.
//!
//! Pure and shared: the gateway verifies with what the command line signs with. Nothing here judges a date or knows a
//! secret by itself. Not here: finding these parts in a request (the gateway's authentication).

use std::fmt;

use aws_lc_rs::{digest, hmac};
use zeroize::ZeroizeOnDrop;

/// The algorithm's name, first line of what is signed.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Payload hash of a body that is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// SHA-256 of nothing.
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Where and when a signature counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Day in UTC, `YYYYMMDD`.
    pub date: String,
    /// Region.
    pub region: String,
    /// Service; `s3`.
    pub service: String,
}

/// As in a credential, without the access key.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// The key of one scope, derived from a secret.
#[derive(Clone, ZeroizeOnDrop)]
pub struct SigningKey([u8; 32]);

impl SigningKey {
    /// The key with which `secret` signs in this scope.
    pub fn derive(secret: &str, scope: &Scope) -> Self {
        let start = zeroize::Zeroizing::new(format!("AWS4{secret}"));
        let date = hmac_sha256(start.as_bytes(), scope.date.as_bytes());
        let region = hmac_sha256(&date, scope.region.as_bytes());
        let service = hmac_sha256(&region, scope.service.as_bytes());
        Self(hmac_sha256(&service, b"aws4_request"))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
    let mut out = [0; 32];
    out.copy_from_slice(tag.as_ref());
    out
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(data: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, data))
}

/// Percent-encoding as signatures want it: all but letters, digits and `-._~`; a slash only where `encode_slash`.
pub fn uri_encode(text: impl AsRef<[u8]>, encode_slash: bool) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let bytes = text.as_ref();
    let mut out = String::with_capacity(bytes.len() + bytes.len() / 4);
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if !encode_slash => out.push('/'),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

/// The query in canonical form: each name and value encoded, in order of encoded name, then value.
pub fn canonical_query<N: AsRef<[u8]>, V: AsRef<[u8]>>(query: &[(N, V)]) -> String {
    let mut pairs: Vec<(String, String)> =
        query.iter().map(|(name, value)| (uri_encode(name, true), uri_encode(value, true))).collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// A raw query (what follows the `?`) as decoded pairs. A `+` is itself: signers write a space as `%20`.
pub fn query_pairs(raw: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decode = |text: &str| percent_encoding::percent_decode_str(text).collect();
    raw.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// The canonical request: method, path, query, the signed headers, payload hash.
///
/// `raw_path` is the path as it is sent, percent-encoded (S3 signs it as it is, not encoded again). `query` is decoded, without
/// `X-Amz-Signature`. `headers` are all the request's headers in any order and case, of which those named in `signed_headers`
/// (lower-case) are signed; repeated ones are joined by commas in their order.
pub fn canonical_request<N, V>(
    method: &str,
    raw_path: &str,
    query: &[(N, V)],
    headers: &[(&str, &str)],
    signed_headers: &[&str],
    payload_hash: &str,
) -> String
where
    N: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let mut signed: Vec<&str> = signed_headers.to_vec();
    signed.sort_unstable();
    let path = if raw_path.is_empty() { "/" } else { raw_path };
    let mut out = format!("{method}\n{path}\n{}\n", canonical_query(query));
    for name in &signed {
        let values: Vec<String> = headers
            .iter()
            .filter(|(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        out.push_str(name);
        out.push(':');
        out.push_str(&values.join(","));
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&signed.join(";"));
    out.push('\n');
    out.push_str(payload_hash);
    out
}

/// What is signed for a request. `amz_date` is `YYYYMMDDTHHMMSSZ`.
pub fn string_to_sign(amz_date: &str, scope: &Scope, canonical_request: &str) -> String {
    format!("{ALGORITHM}\n{amz_date}\n{scope}\n{}", sha256_hex(canonical_request.as_bytes()))
}

/// What is signed for one chunk of an `aws-chunked` body. The first one's previous signature is the request's.
pub fn chunk_string_to_sign(
    amz_date: &str,
    scope: &Scope,
    previous_signature: &str,
    chunk_sha256: &str,
) -> String {
    format!("{ALGORITHM}-PAYLOAD\n{amz_date}\n{scope}\n{previous_signature}\n{EMPTY_SHA256}\n{chunk_sha256}")
}

/// What is signed for the trailers of an `aws-chunked` body. `trailers` are lower-case `name:value\n` lines in
/// order of name; the previous signature is that of the last chunk, which is empty.
pub fn trailer_string_to_sign(
    amz_date: &str,
    scope: &Scope,
    previous_signature: &str,
    trailers: &str,
) -> String {
    format!(
        "{ALGORITHM}-TRAILER\n{amz_date}\n{scope}\n{previous_signature}\n{}",
        sha256_hex(trailers.as_bytes())
    )
}

/// The signature. Compare in constant time: [`signatures_match`].
pub fn signature(key: &SigningKey, string_to_sign: &str) -> [u8; 32] {
    hmac_sha256(&key.0, string_to_sign.as_bytes())
}

/// The signature in hexadecimal, as it is sent.
pub fn signature_hex(key: &SigningKey, string_to_sign: &str) -> String {
    hex::encode(signature(key, string_to_sign))
}

/// Whether a signature that was sent is the right one, in constant time.
pub fn signatures_match(right: &[u8; 32], sent_hex: &str) -> bool {
    let mut sent = [0; 32];
    hex::decode_to_slice(sent_hex, &mut sent).is_ok()
        && bool::from(subtle::ConstantTimeEq::ct_eq(&right[..], &sent[..]))
}

/// Who signs a request, and for where.
#[derive(Clone)]
pub struct Signer {
    /// Public part of the access key.
    pub access_key: String,
    /// Secret part.
    pub secret_key: String,
    /// Region.
    pub region: String,
    /// Service; `s3`.
    pub service: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// What of a request is signed.
#[derive(Clone, Copy, Debug)]
pub struct RequestToSign<'a> {
    /// Upper-case method.
    pub method: &'a str,
    /// Path as sent, percent-encoded.
    pub raw_path: &'a str,
    /// Query, decoded.
    pub query: &'a [(String, String)],
    /// Headers to be signed, `host` among them; lower-case names. `x-amz-date` and `x-amz-content-sha256` are added.
    pub headers: &'a [(String, String)],
}

impl Signer {
    /// The headers to add so that the request is signed: `x-amz-date`, `x-amz-content-sha256` and `authorization`.
    ///
    /// `amz_date` is `YYYYMMDDTHHMMSSZ`; `payload_hash` the body's SHA-256 in hexadecimal or [`UNSIGNED_PAYLOAD`].
    pub fn sign(
        &self,
        request: &RequestToSign<'_>,
        amz_date: &str,
        payload_hash: &str,
    ) -> Vec<(String, String)> {
        let mut headers: Vec<(&str, &str)> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        headers.push(("x-amz-content-sha256", payload_hash));
        headers.push(("x-amz-date", amz_date));
        let mut signed: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        signed.sort_unstable();
        signed.dedup();
        let canonical = canonical_request(
            request.method,
            request.raw_path,
            request.query,
            &headers,
            &signed,
            payload_hash,
        );
        let scope = self.scope(amz_date);
        let signature = self.signature(amz_date, &scope, &canonical);
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope},SignedHeaders={},Signature={signature}",
            self.access_key,
            signed.join(";"),
        );
        vec![
            ("x-amz-content-sha256".to_owned(), payload_hash.to_owned()),
            ("x-amz-date".to_owned(), amz_date.to_owned()),
            ("authorization".to_owned(), authorization),
        ]
    }

    /// The query of a URL that carries its own signature for `expires_secs`: append it, after a `?`, to the address.
    pub fn presign(&self, request: &RequestToSign<'_>, amz_date: &str, expires_secs: u32) -> String {
        let headers: Vec<(&str, &str)> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut signed: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        signed.sort_unstable();
        signed.dedup();
        let scope = self.scope(amz_date);
        let mut query = request.query.to_vec();
        for (name, value) in [
            ("X-Amz-Algorithm", ALGORITHM.to_owned()),
            ("X-Amz-Credential", format!("{}/{scope}", self.access_key)),
            ("X-Amz-Date", amz_date.to_owned()),
            ("X-Amz-Expires", expires_secs.to_string()),
            ("X-Amz-SignedHeaders", signed.join(";")),
        ] {
            query.push((name.to_owned(), value));
        }
        let canonical =
            canonical_request(request.method, request.raw_path, &query, &headers, &signed, UNSIGNED_PAYLOAD);
        let signature = self.signature(amz_date, &scope, &canonical);
        format!("{}&X-Amz-Signature={signature}", canonical_query(&query))
    }

    fn scope(&self, amz_date: &str) -> Scope {
        let date = amz_date.get(..8).unwrap_or(amz_date).to_owned();
        Scope { date, region: self.region.clone(), service: self.service.clone() }
    }

    fn signature(&self, amz_date: &str, scope: &Scope, canonical: &str) -> String {
        signature_hex(
            &SigningKey::derive(&self.secret_key, scope),
            &string_to_sign(amz_date, scope, canonical),
        )
    }
}

#[cfg(test)]
mod tests;
