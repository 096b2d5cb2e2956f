//! Percent-encoded text, read in one way only: what was signed is what is served.

use cyxcloud_core::sigv4::uri_encode;

use super::AuthError;

/// A query as decoded names and values, in the order they came.
pub(crate) type Query = Vec<(String, String)>;

/// Decodes a query. A `+` is itself, because those who sign write a space as `%20`.
pub(crate) fn parse(query: Option<&str>) -> Result<Query, AuthError> {
    query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| Ok((decode(name)?, decode(value)?)))
        .collect()
}

/// The query text that reads as these pairs to everybody, with `+` and spaces escaped.
pub(crate) fn render<'a>(pairs: impl Iterator<Item = &'a (String, String)>) -> String {
    let pairs: Vec<String> = pairs
        .map(|(name, value)| match value.as_str() {
            "" => uri_encode(name, true),
            value => format!("{}={}", uri_encode(name, true), uri_encode(value, true)),
        })
        .collect();
    pairs.join("&")
}

/// Decodes percent-encoded UTF-8. Stray percent signs and other bytes than UTF-8 are refused rather than guessed at.
pub(crate) fn decode(text: &str) -> Result<String, AuthError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
            return Err(AuthError::invalid_uri(
                "a percent sign in the address is not followed by two digits; write it as %25",
            ));
        };
        out.push((high << 4 | low) as u8);
    }
    String::from_utf8(out)
        .map_err(|_| AuthError::invalid_uri("the address is not UTF-8; encode keys as UTF-8"))
}
