//! What clients ask about buckets and objects that we do not configure: S3's answers for "nothing is set".

use http::StatusCode;
use s3s::{S3Error, S3ErrorCode};

/// The error that S3 answers for a bucket without this configuration.
fn missing(code: &'static str, what: &str) -> S3Error {
    let mut error =
        S3Error::with_message(S3ErrorCode::Custom(code.into()), format!("The {what} does not exist."));
    error.set_status_code(StatusCode::NOT_FOUND);
    error
}

pub(super) fn policy() -> S3Error {
    missing("NoSuchBucketPolicy", "bucket policy")
}

pub(super) fn cors() -> S3Error {
    missing("NoSuchCORSConfiguration", "CORS configuration")
}

pub(super) fn lifecycle() -> S3Error {
    missing("NoSuchLifecycleConfiguration", "lifecycle configuration")
}

pub(super) fn website() -> S3Error {
    missing("NoSuchWebsiteConfiguration", "website configuration")
}

pub(super) fn bucket_tagging() -> S3Error {
    missing("NoSuchTagSet", "tag set")
}

pub(super) fn object_lock() -> S3Error {
    missing("ObjectLockConfigurationNotFoundError", "object lock configuration")
}

pub(super) fn public_access_block() -> S3Error {
    missing("NoSuchPublicAccessBlockConfiguration", "public access block configuration")
}

pub(super) fn replication() -> S3Error {
    missing("ReplicationConfigurationNotFoundError", "replication configuration")
}
