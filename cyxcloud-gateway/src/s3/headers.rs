//! Reads from a request's headers what `s3s` does not read, or reads more strictly than S3.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use chrono::{DateTime, NaiveDateTime, Utc};
use cyxcloud_core::Timestamp;
use cyxcloud_core::stripe::StripeSize;
use cyxcloud_metadata::model::{Attributes, Precondition};
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE,
    EXPIRES, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, RANGE,
};
use http::{Extensions, HeaderMap, HeaderName, StatusCode};
use s3s::dto::Metadata;
use s3s::{S3Error, S3Result, s3_error};

use super::error::s3_error_of;
use crate::body::TrailerChecksums;
use crate::objects::checksums::Algorithm;
use crate::objects::conditions::{ETags, ReadConditions};
use crate::objects::range::ByteRange;
use crate::objects::{Claims, Error, Select};

/// Largest user metadata of an object, names and values together.
const METADATA_MAX: usize = 2048;
/// Storage classes that S3 has for objects that can be read at once. All are stored alike.
const STORAGE_CLASSES: [&str; 7] = [
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "EXPRESS_ONEZONE",
];
pub(super) const STORAGE_CLASS: HeaderName = HeaderName::from_static("x-amz-storage-class");
pub(super) const REDIRECT: HeaderName = HeaderName::from_static("x-amz-website-redirect-location");
const CHECKSUM_PREFIX: &str = "x-amz-checksum-";
/// Asks for another stripe size for one upload.
const STRIPE_SIZE: HeaderName = HeaderName::from_static("x-cyxcloud-stripe-size");

/// The headers as they came, beside a request from which some were taken.
#[derive(Clone, Debug)]
pub(super) struct Original(pub(super) Arc<HeaderMap>);

/// Headers that are read here and nowhere else.
pub(super) const OURS: [HeaderName; 10] = [
    RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    EXPIRES,
    HeaderName::from_static("x-amz-copy-source-if-match"),
    HeaderName::from_static("x-amz-copy-source-if-none-match"),
    HeaderName::from_static("x-amz-copy-source-if-modified-since"),
    HeaderName::from_static("x-amz-copy-source-if-unmodified-since"),
];

/// The original headers of a request.
pub(super) fn original(extensions: &Extensions) -> S3Result<Arc<HeaderMap>> {
    extensions
        .get::<Original>()
        .map(|original| Arc::clone(&original.0))
        .ok_or_else(|| s3_error!(InternalError))
}

/// A header's text; several of one name are joined as HTTP allows.
pub(super) fn text(headers: &HeaderMap, name: &HeaderName) -> S3Result<Option<String>> {
    let mut joined: Option<String> = None;
    for value in headers.get_all(name) {
        let value = std::str::from_utf8(value.as_bytes())
            .map_err(|_| s3_error!(InvalidArgument, "The header {name} is not UTF-8"))?;
        joined = Some(match joined {
            None => value.trim().to_owned(),
            Some(before) => format!("{before}, {}", value.trim()),
        });
    }
    Ok(joined.filter(|text| !text.is_empty()))
}

/// Which bytes a read asks for.
pub(super) fn select(headers: &HeaderMap, part_number: Option<i32>) -> S3Result<Select> {
    let range = text(headers, &RANGE)?;
    match (part_number, range) {
        (Some(_), Some(_)) => {
            Err(s3_error!(InvalidRequest, "Cannot specify both Range header and partNumber query parameter"))
        }
        (Some(number), None) => Ok(Select::Part(super::multipart::part_number(number)?)),
        (None, range) => {
            Ok(range.and_then(|range| ByteRange::parse(&range)).map_or(Select::Whole, Select::Range))
        }
    }
}

/// Conditions of a read.
pub(super) fn read_conditions(headers: &HeaderMap) -> S3Result<ReadConditions> {
    conditions(headers, [&IF_MATCH, &IF_NONE_MATCH, &IF_MODIFIED_SINCE, &IF_UNMODIFIED_SINCE])
}

/// Conditions of the source of a copy.
pub(super) fn source_conditions(headers: &HeaderMap) -> S3Result<ReadConditions> {
    conditions(headers, [&OURS[6], &OURS[7], &OURS[8], &OURS[9]])
}

fn conditions(headers: &HeaderMap, names: [&HeaderName; 4]) -> S3Result<ReadConditions> {
    let [matches, none_match, modified, unmodified] = names;
    let etags = |name| Ok::<_, S3Error>(text(headers, name)?.map(|value| ETags::parse(&value)));
    // A date that cannot be read is as good as none, says RFC 9110.
    let date = |name| Ok::<_, S3Error>(text(headers, name)?.and_then(|value| parse_date(&value)));
    Ok(ReadConditions {
        matches: etags(matches)?,
        none_match: etags(none_match)?,
        modified_since: date(modified)?,
        unmodified_since: date(unmodified)?,
    })
}

/// The condition of a write or delete.
pub(super) fn precondition(headers: &HeaderMap) -> S3Result<Precondition> {
    let unheard_of = |what: &str| s3_error_of("NotImplemented", StatusCode::NOT_IMPLEMENTED, what);
    match (text(headers, &IF_MATCH)?, text(headers, &IF_NONE_MATCH)?) {
        (None, None) => Ok(Precondition::None),
        (Some(_), Some(_)) => Err(unheard_of("Use If-Match or If-None-Match, not both.")),
        (None, Some(etags)) => match ETags::parse(&etags) {
            ETags::Any => Ok(Precondition::Absent),
            ETags::List(_) => Err(unheard_of("If-None-Match of a write can be * only.")),
        },
        (Some(etags), None) => match ETags::parse(&etags) {
            ETags::Any => Ok(Precondition::Exists),
            ETags::List(list) => match list.as_slice() {
                [one] if !one.weak => Ok(Precondition::EtagIs(one.value.clone())),
                _ => Err(unheard_of("If-Match of a write can be one ETag or * only.")),
            },
        },
    }
}

/// What the headers, and later the trailers, say of the body.
pub(super) fn claims(headers: &HeaderMap, extensions: &Extensions) -> S3Result<Claims> {
    let length = text(headers, &CONTENT_LENGTH)?.map(|length| length.parse());
    let length =
        length.transpose().map_err(|_| s3_error!(InvalidArgument, "Content-Length is not a number"))?;
    let md5 = text(headers, &HeaderName::from_static("content-md5"))?.map(|value| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(value).ok();
        decoded
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
            .ok_or_else(|| s3_error!(InvalidDigest, "The Content-MD5 you specified is not valid."))
    });
    let checksums = checksum_headers(headers)?
        .into_iter()
        .map(|(algorithm, value)| Ok((algorithm, parse_checksum(algorithm, &value)?)))
        .collect::<S3Result<Vec<_>>>()?;
    let mut claims = Claims { length, md5: md5.transpose()?, checksums, ..Claims::default() };
    if let Some(trailers) = extensions.get::<TrailerChecksums>() {
        claims.compute = trailers.expected().iter().filter_map(|name| algorithm_of(name)).collect();
        let trailers = trailers.clone();
        claims.late = Some(Box::new(move || late_checksums(&trailers)));
    }
    Ok(claims)
}

fn late_checksums(trailers: &TrailerChecksums) -> Result<Vec<(Algorithm, Vec<u8>)>, Error> {
    let values = trailers.get().ok_or(Error::InvalidChecksum { what: "trailer" })?;
    let known = values.iter().filter_map(|(name, value)| Some((algorithm_of(name)?, value)));
    known
        .map(|(algorithm, value)| {
            let value =
                algorithm.parse(value).map_err(|_| Error::InvalidChecksum { what: algorithm.name() })?;
            Ok((algorithm, value))
        })
        .collect()
}

fn parse_checksum(algorithm: Algorithm, value: &str) -> S3Result<Vec<u8>> {
    algorithm.parse(value).map_err(|_| {
        let name = algorithm.name().to_ascii_lowercase();
        s3_error!(InvalidRequest, "Value for {CHECKSUM_PREFIX}{name} header is invalid.")
    })
}

fn algorithm_of(header: &str) -> Option<Algorithm> {
    Algorithm::by_name(header.strip_prefix(CHECKSUM_PREFIX)?)
}

/// Checksums in headers, in base64: at most one, and none that we could not check.
pub(super) fn checksum_headers(headers: &HeaderMap) -> S3Result<Vec<(Algorithm, String)>> {
    let mut found = Vec::new();
    for name in headers.keys() {
        let Some(kind) = name.as_str().strip_prefix(CHECKSUM_PREFIX) else { continue };
        if matches!(kind, "algorithm" | "type" | "mode") {
            continue;
        }
        let algorithm = Algorithm::by_name(kind).ok_or_else(|| {
            let message =
                format!("{name} is not implemented; send CRC32, CRC32C, CRC64NVME, SHA1 or SHA256.");
            s3_error_of("NotImplemented", StatusCode::NOT_IMPLEMENTED, message)
        })?;
        if let Some(value) = text(headers, name)? {
            found.push((algorithm, value));
        }
    }
    if found.len() > 1 {
        let message = "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.";
        return Err(s3_error!(InvalidRequest, "{message}"));
    }
    Ok(found)
}

/// Headers and metadata that are kept with an object. Checksums are filled in by the upload.
pub(super) fn attributes(headers: &HeaderMap, metadata: Option<Metadata>) -> S3Result<Attributes> {
    let metadata: BTreeMap<String, String> = metadata.into_iter().flatten().collect();
    if metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > METADATA_MAX {
        return Err(s3_error!(
            MetadataTooLarge,
            "Your metadata headers exceed the maximum allowed metadata size."
        ));
    }
    let mut kept = BTreeMap::new();
    for name in [CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LANGUAGE, EXPIRES, REDIRECT] {
        if let Some(value) = text(headers, &name)? {
            kept.insert(name.as_str().to_owned(), value);
        }
    }
    if let Some(value) = text(headers, &CONTENT_ENCODING)?.and_then(|value| without_aws_chunked(&value)) {
        kept.insert(CONTENT_ENCODING.as_str().to_owned(), value);
    }
    if let Some(class) = storage_class(headers)? {
        kept.insert(STORAGE_CLASS.as_str().to_owned(), class);
    }
    Ok(Attributes {
        content_type: text(headers, &CONTENT_TYPE)?,
        headers: kept,
        metadata,
        checksums: Vec::new(),
    })
}

/// The storage class asked for, unless it is the default.
pub(super) fn storage_class(headers: &HeaderMap) -> S3Result<Option<String>> {
    let Some(class) = text(headers, &STORAGE_CLASS)? else { return Ok(None) };
    if !STORAGE_CLASSES.contains(&class.as_str()) {
        return Err(s3_error!(InvalidStorageClass, "The storage class you specified is not valid."));
    }
    Ok((class != "STANDARD").then_some(class))
}

/// `aws-chunked` is how a body travels, not what it is.
fn without_aws_chunked(encoding: &str) -> Option<String> {
    let kept: Vec<&str> = encoding
        .split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty() && !token.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

/// The stripe size that an upload asks for.
pub(super) fn stripe_size(headers: &HeaderMap) -> S3Result<Option<StripeSize>> {
    let size = text(headers, &STRIPE_SIZE)?.map(|size| size.parse());
    size.transpose().map_err(|error: String| s3_error!(InvalidArgument, "{STRIPE_SIZE}: {error}"))
}

/// Reads a date in one of HTTP's three formats, or in RFC 3339.
fn parse_date(value: &str) -> Option<Timestamp> {
    let naive = |format| NaiveDateTime::parse_from_str(value, format).ok().map(|date| date.and_utc());
    let date: DateTime<Utc> = DateTime::parse_from_rfc2822(value)
        .or_else(|_| DateTime::parse_from_rfc3339(value))
        .map(|date| date.to_utc())
        .ok()
        .or_else(|| naive("%A, %d-%b-%y %H:%M:%S GMT"))
        .or_else(|| naive("%a %b %e %H:%M:%S %Y"))?;
    Some(Timestamp::from_unix_millis(date.timestamp_millis()))
}

/// A time as HTTP writes it.
pub(super) fn http_date(time: Timestamp) -> String {
    let date = DateTime::<Utc>::from_timestamp_millis(time.unix_millis()).unwrap_or_default();
    date.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// A time as `s3s` wants it: in whole seconds, so that listings and `Last-Modified` say the same.
pub(super) fn s3_time(time: Timestamp) -> s3s::dto::Timestamp {
    let seconds = u64::try_from(time.unix_millis().div_euclid(1000)).unwrap_or(0);
    (std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn dates_are_read_in_all_formats_of_http() {
        let want = Timestamp::from_unix_millis(784_111_777_000);
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(parse_date(date), Some(want), "{date}");
        }
        assert_eq!(parse_date("yesterday"), None);
        assert_eq!(http_date(want), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn a_range_and_a_part_exclude_each_other() {
        assert_eq!(select(&headers(&[]), None).expect("fine"), Select::Whole);
        assert_eq!(select(&headers(&[]), Some(3)).expect("fine"), Select::Part(3));
        let ranged = headers(&[("range", "bytes=1-2")]);
        assert_eq!(select(&ranged, None).expect("fine"), Select::Range(ByteRange::FromTo(1, 2)));
        assert!(select(&ranged, Some(1)).is_err());
        assert!(select(&headers(&[]), Some(0)).is_err());
        assert_eq!(select(&headers(&[("range", "bytes=1-2,4-5")]), None).expect("fine"), Select::Whole);
    }

    #[test]
    fn conditions_of_writes_are_those_that_s3_has() {
        let of = |pairs: &[(&'static str, &'static str)]| precondition(&headers(pairs));
        assert_eq!(of(&[]).expect("fine"), Precondition::None);
        assert_eq!(of(&[("if-none-match", "*")]).expect("fine"), Precondition::Absent);
        assert_eq!(of(&[("if-match", "*")]).expect("fine"), Precondition::Exists);
        assert_eq!(of(&[("if-match", "\"abc\"")]).expect("fine"), Precondition::EtagIs("abc".to_owned()));
        for refused in [
            vec![("if-none-match", "\"abc\"")],
            vec![("if-match", "\"a\", \"b\"")],
            vec![("if-match", "*"), ("if-none-match", "*")],
        ] {
            assert_eq!(of(&refused).expect_err("refused").code().as_str(), "NotImplemented");
        }
    }

    #[test]
    fn wrong_claims_have_their_own_codes() {
        let code = |pairs: &[(&'static str, &'static str)]| {
            let error = claims(&headers(pairs), &Extensions::new()).err();
            error.map(|error| error.code().as_str().to_owned())
        };
        assert_eq!(code(&[("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")]), None);
        assert_eq!(code(&[("content-md5", "nonsense")]).as_deref(), Some("InvalidDigest"));
        assert_eq!(code(&[("x-amz-checksum-crc32", "AAAA")]).as_deref(), Some("InvalidRequest"));
        assert_eq!(code(&[("x-amz-checksum-xxhash3", "AAAA")]).as_deref(), Some("NotImplemented"));
        let two = [("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-checksum-crc32c", "AAAAAA==")];
        assert_eq!(code(&two).as_deref(), Some("InvalidRequest"));
        assert_eq!(code(&[("x-amz-checksum-algorithm", "CRC32")]), None);
    }

    #[test]
    fn what_belongs_to_the_journey_is_not_stored() {
        assert_eq!(without_aws_chunked("aws-chunked"), None);
        assert_eq!(without_aws_chunked("aws-chunked, gzip").as_deref(), Some("gzip"));
        assert_eq!(without_aws_chunked("gzip,AWS-Chunked").as_deref(), Some("gzip"));
        assert_eq!(without_aws_chunked("gzip, br").as_deref(), Some("gzip,br"));
    }

    #[test]
    fn metadata_is_limited() {
        let with = |len: usize| Metadata::from([("a".to_owned(), "x".repeat(len))]);
        assert!(attributes(&HeaderMap::new(), Some(with(METADATA_MAX - 1))).is_ok());
        let error = attributes(&HeaderMap::new(), Some(with(METADATA_MAX))).expect_err("too large");
        assert_eq!(error.code().as_str(), "MetadataTooLarge");
    }
}
