//! Finds the credentials in a request, in whichever scheme, and refuses what has none or too many.
//!
//! Default deny: a request that is none of the schemes we know has no credentials, whatever it looks like.
//! Not here: whether the credentials are right ([`super::signature`], [`super::jwt`]).

use chrono::NaiveDateTime;
use cyxcloud_core::Timestamp;
use cyxcloud_core::sigv4::{ALGORITHM, Scope};
use http::request::Parts;
use http::{HeaderMap, Method, header};

use super::AuthError;
use super::query::Query;

/// Longest lifetime of a presigned URL, in seconds: a week.
const EXPIRES_MAX: u32 = 604_800;
/// Longest access key looked at.
const ACCESS_KEY_MAX: usize = 128;

/// What a request presents.
pub(crate) enum Presented {
    /// Nothing.
    Nothing,
    /// `Authorization: Bearer`.
    Bearer(String),
    /// A signature, in the header or in the query.
    Signature(Claim),
}

/// A signature and what it claims to be.
pub(crate) struct Claim {
    pub(crate) access_key: String,
    pub(crate) scope: Scope,
    pub(crate) signed_headers: Vec<String>,
    /// 64 lower-case hexadecimal digits.
    pub(crate) signature: String,
    pub(crate) amz_date: String,
    pub(crate) at: Timestamp,
    /// Of a presigned URL: how many seconds it is good for.
    pub(crate) expires_secs: Option<u32>,
}

/// Where a part of a claim was wrong, for the code of the error.
#[derive(Clone, Copy)]
enum Place {
    Header,
    Query,
}

impl Place {
    fn error(self, message: impl Into<String>) -> AuthError {
        match self {
            Self::Header => AuthError::malformed_header(message),
            Self::Query => AuthError::malformed_query(message),
        }
    }
}

/// Finds what a request presents. `forms` says whether a browser's upload form can be meant here.
pub(crate) fn find(parts: &Parts, query: &Query, forms: bool) -> Result<Presented, AuthError> {
    let mut authorizations = parts.headers.get_all(header::AUTHORIZATION).iter();
    let authorization = authorizations.next();
    let has = |name: &str| query.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    let v2_query = has("AWSAccessKeyId") || (has("Signature") && has("Expires"));
    let v4_query = ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"].iter().any(|name| has(name));
    let header_count = usize::from(authorization.is_some()) + usize::from(authorizations.next().is_some());
    if header_count + usize::from(v4_query) + usize::from(v2_query) > 1 {
        return Err(AuthError::invalid(
            "InvalidArgument",
            "only one auth mechanism is allowed; sign in the Authorization header or in the query, not twice",
        ));
    }
    if v2_query {
        return Err(signature_v2());
    }
    if forms && is_form(parts) {
        // A form carries its policy inside the body, and s3s would read it without our checks.
        return Err(AuthError::new(
            "NotImplemented",
            http::StatusCode::NOT_IMPLEMENTED,
            "uploads by browser form are not supported; use a presigned PUT",
        ));
    }
    if v4_query {
        return presigned(query).map(Presented::Signature);
    }
    let Some(authorization) = authorization else { return Ok(Presented::Nothing) };
    let text = authorization
        .to_str()
        .map_err(|_| AuthError::malformed_header("the Authorization header is not text"))?;
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    match scheme {
        ALGORITHM => signed(rest, &parts.headers).map(Presented::Signature),
        "AWS" => Err(signature_v2()),
        _ if scheme.eq_ignore_ascii_case("bearer") => Ok(Presented::Bearer(rest.trim().to_owned())),
        _ => Err(AuthError::denied(
            "this authorization mechanism is not supported; use AWS4-HMAC-SHA256 or Bearer",
        )),
    }
}

fn signature_v2() -> AuthError {
    AuthError::denied("signature version 2 is not supported; use AWS4-HMAC-SHA256")
}

fn is_form(parts: &Parts) -> bool {
    let is_form = |value: &header::HeaderValue| {
        value.as_bytes().trim_ascii_start().to_ascii_lowercase().starts_with(b"multipart/form-data")
    };
    parts.method == Method::POST && parts.headers.get_all(header::CONTENT_TYPE).iter().any(is_form)
}

/// The value of a header that may be there once.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthError::invalid(
            "InvalidArgument",
            format!("{name} is there more than once; send it once"),
        ));
    }
    let value =
        value.to_str().map_err(|_| AuthError::invalid("InvalidArgument", format!("{name} is not text")))?;
    Ok(Some(value.trim()))
}

fn signed(rest: &str, headers: &HeaderMap) -> Result<Claim, AuthError> {
    let malformed = AuthError::malformed_header;
    let [mut credential, mut signed_headers, mut signature] = [None; 3];
    for part in rest.split(',') {
        let (name, value) = part.trim().split_once('=').ok_or_else(|| malformed("a part has no ="))?;
        let slot = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed_headers,
            "Signature" => &mut signature,
            _ => {
                return Err(malformed(
                    "write Credential=..., SignedHeaders=..., Signature=... and nothing else",
                ));
            }
        };
        if slot.replace(value).is_some() {
            return Err(malformed("a part is there twice"));
        }
    }
    let credential = credential.ok_or_else(|| malformed("Credential= is missing"))?;
    let signed_headers = signed_headers.ok_or_else(|| malformed("SignedHeaders= is missing"))?;
    let signature = signature.ok_or_else(|| malformed("Signature= is missing"))?;
    let amz_date = only(headers, "x-amz-date")?.ok_or_else(|| {
        AuthError::denied("AWS authentication requires a valid x-amz-date header; send one")
    })?;
    claim(Place::Header, credential, signed_headers, signature, amz_date, None)
}

fn presigned(query: &Query) -> Result<Claim, AuthError> {
    let param = |name: &str| {
        let mut values = query.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        match (values.next(), values.next()) {
            (Some((known, value)), None) if known == name => Ok(value.as_str()),
            (None, _) => {
                Err(AuthError::malformed_query(format!("the query must have {name}; presign the URL again")))
            }
            _ => {
                Err(AuthError::malformed_query(format!("the query must have {name} once, written like this")))
            }
        }
    };
    if param("X-Amz-Algorithm")? != ALGORITHM {
        return Err(AuthError::malformed_query("X-Amz-Algorithm only supports AWS4-HMAC-SHA256"));
    }
    let expires = param("X-Amz-Expires")?;
    let expires: i64 =
        expires.parse().map_err(|_| AuthError::malformed_query("X-Amz-Expires should be a number"))?;
    let expires = match u32::try_from(expires) {
        Ok(1..=EXPIRES_MAX) => u32::try_from(expires).ok(),
        Ok(0) => return Err(AuthError::malformed_query("X-Amz-Expires must be at least 1 second")),
        Err(_) if expires < 0 => {
            return Err(AuthError::malformed_query("X-Amz-Expires must be non-negative"));
        }
        _ => {
            return Err(AuthError::malformed_query(
                "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be at most 604800",
            ));
        }
    };
    claim(
        Place::Query,
        param("X-Amz-Credential")?,
        param("X-Amz-SignedHeaders")?,
        param("X-Amz-Signature")?,
        param("X-Amz-Date")?,
        expires,
    )
}

fn claim(
    place: Place,
    credential: &str,
    signed_headers: &str,
    signature: &str,
    amz_date: &str,
    expires_secs: Option<u32>,
) -> Result<Claim, AuthError> {
    let (access_key, scope) = parse_credential(place, credential)?;
    let at = parse_date(amz_date).ok_or_else(|| {
        place.error("the date must be in the ISO 8601 long format \"yyyyMMdd'T'HHmmss'Z'\"")
    })?;
    if amz_date.get(..8) != Some(scope.date.as_str()) {
        return Err(
            place.error("the day in the credential is not the one of the date; sign with the same one")
        );
    }
    let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_owned).collect();
    let is_name = |name: &String| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase())
    };
    if !signed_headers.iter().all(is_name) || !signed_headers.is_sorted_by(|a, b| a < b) {
        return Err(place
            .error("the signed headers must be lower-case names in order, each once, between semicolons"));
    }
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if signature.len() != 64 || !signature.bytes().all(is_digit) {
        // Not malformed, as S3 has it: just not the right one.
        return Err(AuthError::bad_signature());
    }
    let (signature, amz_date) = (signature.to_owned(), amz_date.to_owned());
    Ok(Claim { access_key, scope, signed_headers, signature, amz_date, at, expires_secs })
}

fn parse_credential(place: Place, credential: &str) -> Result<(String, Scope), AuthError> {
    let mut parts = credential.rsplitn(5, '/');
    let mut part = || parts.next().unwrap_or_default();
    let (terminator, service, region, date, access_key) = (part(), part(), part(), part(), part());
    if access_key.is_empty()
        || access_key.len() > ACCESS_KEY_MAX
        || !access_key.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err(place.error(
            "the credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\"",
        ));
    }
    if terminator != "aws4_request" {
        return Err(place.error("the credential must end in \"aws4_request\""));
    }
    if service != "s3" {
        return Err(place.error("the service in the credential must be \"s3\""));
    }
    if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(place.error("the day in the credential must be written yyyyMMdd"));
    }
    let scope = Scope { date: date.to_owned(), region: region.to_owned(), service: service.to_owned() };
    Ok((access_key.to_owned(), scope))
}

fn parse_date(amz_date: &str) -> Option<Timestamp> {
    let shape = amz_date.len() == 16
        && amz_date.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    let date = shape.then(|| NaiveDateTime::parse_from_str(amz_date, "%Y%m%dT%H%M%SZ").ok()).flatten()?;
    Some(Timestamp::from_unix_millis(date.and_utc().timestamp_millis()))
}
