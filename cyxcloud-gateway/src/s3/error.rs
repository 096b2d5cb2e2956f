//! The one place that knows which S3 code and status an error has.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use s3s::{S3Error, S3ErrorCode};

use super::headers::http_date;
use crate::body::BodyError;
use crate::objects::{BoxError, Error};

/// An error with a code that `s3s` may not know.
pub(super) fn s3_error_of(code: &'static str, status: StatusCode, message: impl Into<String>) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut error = S3Error::with_message(code, message.into());
    error.set_status_code(status);
    error
}

impl From<Error> for S3Error {
    fn from(error: Error) -> Self {
        if let Error::Body(source) = error {
            return from_body(&source);
        }
        let (code, status) = code_of(&error);
        if status.is_server_error() {
            tracing::error!(error = chain(&error), code, "an s3 request failed");
        }
        // What went wrong inside is for the log, not for strangers.
        let message = match code {
            "InternalError" => "We encountered an internal error. Please try again.".to_owned(),
            _ => sentence(&error),
        };
        let mut answer = s3_error_of(code, status, message);
        let mut headers = HeaderMap::new();
        match &error {
            Error::NotModified { etag, modified_at } => {
                insert(&mut headers, header::ETAG, &format!("\"{etag}\""));
                insert(&mut headers, header::LAST_MODIFIED, &http_date(*modified_at));
            }
            Error::InvalidRange { size } => {
                insert(&mut headers, header::CONTENT_RANGE, &format!("bytes */{size}"))
            }
            _ => return answer,
        }
        answer.set_headers(headers);
        answer
    }
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn code_of(error: &Error) -> (&'static str, StatusCode) {
    use StatusCode as S;
    match error {
        Error::NoSuchBucket => ("NoSuchBucket", S::NOT_FOUND),
        Error::AccessDenied | Error::NotAllowed => ("AccessDenied", S::FORBIDDEN),
        Error::InvalidBucketName(_) => ("InvalidBucketName", S::BAD_REQUEST),
        Error::BucketTaken => ("BucketAlreadyExists", S::CONFLICT),
        Error::BucketOwned => ("BucketAlreadyOwnedByYou", S::CONFLICT),
        Error::BucketNotEmpty => ("BucketNotEmpty", S::CONFLICT),
        Error::TooManyBuckets { .. } => ("TooManyBuckets", S::BAD_REQUEST),
        Error::TooManyUploads { .. } => ("TooManyMultipartUploads", S::BAD_REQUEST),
        Error::NoSuchProfile(_) | Error::InvalidSourceRange { .. } => ("InvalidArgument", S::BAD_REQUEST),
        Error::NoSuchKey => ("NoSuchKey", S::NOT_FOUND),
        Error::PreconditionFailed(_) => ("PreconditionFailed", S::PRECONDITION_FAILED),
        Error::NotModified { .. } => ("NotModified", S::NOT_MODIFIED),
        Error::InvalidRange { .. } => ("InvalidRange", S::RANGE_NOT_SATISFIABLE),
        Error::NoSuchObjectPart { .. } => ("InvalidPartNumber", S::RANGE_NOT_SATISFIABLE),
        Error::BadDigest { .. } => ("BadDigest", S::BAD_REQUEST),
        Error::InvalidChecksum { what: "Content-MD5" } => ("InvalidDigest", S::BAD_REQUEST),
        Error::CopyOntoItself
        | Error::InvalidChecksum { .. }
        | Error::SizeMismatch
        | Error::OtherAlgorithm { .. }
        | Error::ImpossibleChecksum { .. } => ("InvalidRequest", S::BAD_REQUEST),
        Error::IncompleteBody { .. } | Error::Body(_) => ("IncompleteBody", S::BAD_REQUEST),
        Error::TooLarge { .. } | Error::ObjectTooLarge => ("EntityTooLarge", S::BAD_REQUEST),
        Error::NoSuchUpload => ("NoSuchUpload", S::NOT_FOUND),
        Error::InvalidPart { .. } => ("InvalidPart", S::BAD_REQUEST),
        Error::InvalidPartOrder => ("InvalidPartOrder", S::BAD_REQUEST),
        Error::PartTooSmall { .. } => ("EntityTooSmall", S::BAD_REQUEST),
        Error::QuotaExceeded { .. } => ("QuotaExceeded", S::FORBIDDEN),
        Error::UploadGone | Error::Slow { .. } => ("RequestTimeout", S::BAD_REQUEST),
        Error::Busy => ("SlowDown", S::SERVICE_UNAVAILABLE),
        Error::TooFewNodes(_)
        | Error::NoRoom(_)
        | Error::NotStored(_)
        | Error::Unreadable(_)
        | Error::Unavailable(_) => ("ServiceUnavailable", S::SERVICE_UNAVAILABLE),
        Error::OwnerKey { .. } | Error::Metadata(_) => ("InternalError", S::INTERNAL_SERVER_ERROR),
    }
}

/// The body layer knows S3's codes itself.
pub(super) fn from_body(source: &BoxError) -> S3Error {
    match source.downcast_ref::<BodyError>() {
        Some(error) => s3_error_of(error.code(), error.status(), sentence(error)),
        None => s3_error_of("IncompleteBody", StatusCode::BAD_REQUEST, "The body could not be received."),
    }
}

/// Our messages are clauses; S3's are sentences.
fn sentence(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    format!("{}{}.", first.map(String::from).unwrap_or_default(), chars.as_str())
}

/// The error and what caused it, for logs.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::Timestamp;
    use cyxcloud_core::profile::TooFewNodes;

    use super::*;

    #[test]
    fn too_few_nodes_say_how_many_are_needed() {
        let error = S3Error::from(Error::from(TooFewNodes { have: 1, need: 2 }));
        assert_eq!(error.code().as_str(), "ServiceUnavailable");
        assert_eq!(error.status_code(), Some(StatusCode::SERVICE_UNAVAILABLE));
        assert!(error.message().is_some_and(|message| message.contains("at least 2")), "{error}");
    }

    #[test]
    fn not_modified_says_what_it_is() {
        let modified_at = Timestamp::from_unix_millis(1_445_412_480_000);
        let error = S3Error::from(Error::NotModified { etag: "abc".to_owned(), modified_at });
        let headers = error.headers().expect("has headers");
        assert_eq!(headers[header::ETAG], "\"abc\"");
        assert_eq!(headers[header::LAST_MODIFIED], "Wed, 21 Oct 2015 07:28:00 GMT");
    }

    #[test]
    fn who_has_enough_is_told_so_and_not_to_try_again() {
        for (error, code) in [
            (Error::TooManyBuckets { max: 7 }, "TooManyBuckets"),
            (Error::TooManyUploads { max: 7 }, "TooManyMultipartUploads"),
        ] {
            let error = S3Error::from(error);
            assert_eq!((error.code().as_str(), error.status_code()), (code, Some(StatusCode::BAD_REQUEST)));
            assert!(error.message().is_some_and(|message| message.contains("which is 7")), "{error}");
        }
    }

    #[test]
    fn errors_of_the_body_keep_their_code() {
        let source: BoxError = Box::new(BodyError::Sha256Mismatch);
        assert_eq!(S3Error::from(Error::Body(source)).code().as_str(), "XAmzContentSHA256Mismatch");
    }
}
