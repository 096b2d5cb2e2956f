//! Why a metadata call failed.

use cyxcloud_core::OwnerId;

/// A variant exists because some caller acts on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such bucket (any more).
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// The name is taken, by the owner named.
    #[error("the bucket exists already")]
    BucketExists {
        /// who has it
        owner: OwnerId,
    },
    /// Objects or open multipart uploads are left.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// Its owner may have no more.
    #[error("the owner has as many buckets as one may have, which is {max}")]
    TooManyBuckets {
        /// so many
        max: u32,
    },
    /// Its owner may have no more open ones.
    #[error("the owner has as many open multipart uploads as one may have, which is {max}")]
    TooManyUploads {
        /// so many
        max: u32,
    },
    /// Its owner may have no more in use, or the key that it comes of.
    #[error("there are as many keys in use as there may be, which is {max}")]
    TooManyKeys {
        /// so many
        max: u32,
    },
    /// There is no current object under the key.
    #[error("there is no such key")]
    NoSuchKey,
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("a precondition of the request does not hold")]
    PreconditionFailed,
    /// Unknown, aborted, or completed with other parts.
    #[error("there is no such multipart upload; it may have been aborted or completed")]
    NoSuchUpload,
    /// A part named in Complete is missing, was lost since, or has another ETag.
    #[error("part {number} was not uploaded, was lost since, or its ETag differs")]
    InvalidPart {
        /// its number
        number: u32,
    },
    /// What the caller's `assemble` closure refused.
    #[error("the parts cannot be assembled: {reason}")]
    PartsRefused {
        /// why
        reason: PartsRefusal,
    },
    /// The owner's quota does not allow that many bytes.
    #[error("the storage quota of {quota} bytes is used up")]
    QuotaExceeded {
        /// in bytes
        quota: u64,
    },
    /// The intent has gone: its lease ran out and it was collected, or it was cancelled. Nothing was made visible.
    #[error("the upload took longer than its lease and was given up")]
    UploadGone,
    /// A segment to be referenced is being collected; read the source again.
    #[error("the source changed while it was being copied")]
    SourceGone,
    /// Someone else moved first: look again, do not just retry.
    #[error("the {what} changed in the meantime")]
    Stale {
        /// what changed
        what: &'static str,
    },
    /// Unknown or removed; register again.
    #[error("there is no such node")]
    NoSuchNode,
    /// A node's key is known under another id, or the reverse.
    #[error("the node's identity does not match what is recorded")]
    NodeConflict,
    /// A node that is heard is registered where this one says it is reached.
    #[error("another node, which is heard, is registered at this address")]
    AddressTaken,
    /// Its operator may have no more.
    #[error("the operator has as many nodes as one may have, which is {max}")]
    TooManyNodes {
        /// so many
        max: u32,
    },
    /// It stays its operator's until that is lifted.
    #[error(
        "the operator that this node is registered under is suspended, or an administrator has the node emptied"
    )]
    NodeSuspended,
    /// The database cannot be reached, is full, or is shutting down; nothing was changed.
    #[error("could not {doing}: the database is not available")]
    Unavailable {
        /// completes "could not ..."
        doing: &'static str,
        /// the cause
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// All that nobody branches on; `doing` completes "could not ...".
    #[error("could not {doing}")]
    Database {
        /// completes "could not ..."
        doing: &'static str,
        /// the cause
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row holds what no version of this program wrote.
    #[error("the database holds a {what} that cannot be read: {detail}")]
    Corrupt {
        /// of what kind
        what: &'static str,
        /// what is wrong with it
        detail: String,
    },
    /// The server is configured so that an acknowledged commit can be lost.
    #[error(
        "the database would lose acknowledged data: {setting} is off; turn it on, or start with --i-accept-data-loss"
    )]
    UnsafeDatabase {
        /// the setting of the database server
        setting: String,
    },
}

/// Why the parts of a multipart upload do not make an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsRefusal {
    /// A part other than the last is below S3's minimum.
    #[error("part {number} is smaller than the minimum")]
    TooSmall {
        /// its number
        number: u32,
    },
    /// The sum is above the largest object.
    #[error("the object would be too large")]
    TooLarge,
    /// The checksum given for the whole object differs from the parts'.
    #[error("the checksum of the object does not match its parts")]
    ChecksumMismatch,
    /// The declared object size differs from the parts'.
    #[error("the size of the object does not match its parts")]
    SizeMismatch,
}

/// The result of a metadata call.
pub type Result<T, E = Error> = std::result::Result<T, E>;
