//! Why an object operation failed.

use cyxcloud_core::name::BucketNameError;
use cyxcloud_core::placement::PlacementError;
use cyxcloud_core::profile::TooFewNodes;
use cyxcloud_core::{OwnerId, Timestamp};
use cyxcloud_dataplane::{ReadError, WriteError};
use cyxcloud_metadata as metadata;
use cyxcloud_metadata::error::PartsRefusal;

/// Any error, where nobody branches on it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The result of an object operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an object operation failed. A variant exists because callers answer it differently.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such bucket.
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// The credentials are limited to other buckets or prefixes, or to reading.
    #[error("these credentials are limited to other buckets or keys, or to reading")]
    NotAllowed,
    /// The bucket belongs to somebody else.
    #[error("the bucket belongs to another account")]
    AccessDenied,
    /// The name cannot name a bucket.
    #[error(transparent)]
    InvalidBucketName(#[from] BucketNameError),
    /// Somebody else has a bucket of that name.
    #[error("the bucket name is taken; choose another one")]
    BucketTaken,
    /// The caller has that bucket already.
    #[error("you own a bucket of that name already")]
    BucketOwned,
    /// Objects or open multipart uploads are left.
    #[error("the bucket is not empty; delete its objects and abort its multipart uploads first")]
    BucketNotEmpty,
    /// The owner may have no more.
    #[error("you have as many buckets as one account may have, which is {max}; delete one first")]
    TooManyBuckets {
        /// so many
        max: u32,
    },
    /// The owner may have no more open ones.
    #[error(
        "you have as many open multipart uploads as one account may have, which is {max}; complete or abort one first"
    )]
    TooManyUploads {
        /// so many
        max: u32,
    },
    /// There is no such placement profile.
    #[error("there is no placement profile {0:?}")]
    NoSuchProfile(String),
    /// There is no current object under the key.
    #[error("there is no such key")]
    NoSuchKey,
    /// A condition of the request does not hold.
    #[error("the condition {0} of the request does not hold")]
    PreconditionFailed(&'static str),
    /// The reader has the object already.
    #[error("the object was not modified")]
    NotModified {
        /// its ETag without quotes
        etag: String,
        /// when it became visible
        modified_at: Timestamp,
    },
    /// The range lies outside the object.
    #[error("the range lies outside the object, which has {size} bytes")]
    InvalidRange {
        /// of the object in bytes
        size: u64,
    },
    /// The object has no such part.
    #[error("the object has {parts} parts and no part {number}")]
    NoSuchObjectPart {
        /// asked for
        number: u32,
        /// that there are
        parts: u32,
    },
    /// The range to copy lies outside the source.
    #[error("the range to copy lies outside the source, which has {size} bytes")]
    InvalidSourceRange {
        /// of the source in bytes
        size: u64,
    },
    /// A copy that would change nothing.
    #[error(
        "an object cannot be copied to itself without changing its metadata; \
         send x-amz-metadata-directive: REPLACE to change it"
    )]
    CopyOntoItself,
    /// The body does not hash to what was said.
    #[error("the {what} that was sent does not match the body")]
    BadDigest {
        /// `Content-MD5`, or the algorithm's name
        what: &'static str,
    },
    /// What was sent as a checksum is none, or was not announced.
    #[error("the {what} that was sent is not one")]
    InvalidChecksum {
        /// `Content-MD5`, or the algorithm's name
        what: &'static str,
    },
    /// The body is shorter or longer than was said.
    #[error("the body has {have} bytes where {want} were announced")]
    IncompleteBody {
        /// announced
        want: u64,
        /// received
        have: u64,
    },
    /// Larger than an object, or a part, can be.
    #[error("the upload is larger than the {max} bytes that are possible; use a multipart upload for more")]
    TooLarge {
        /// in bytes
        max: u64,
    },
    /// The object that the parts make is larger than an object can be.
    #[error("the object would be larger than objects can be")]
    ObjectTooLarge,
    /// The sender went away or sent something wrong.
    #[error("the body could not be received")]
    Body(#[source] BoxError),
    /// Unknown, aborted or completed.
    #[error("there is no such multipart upload; it may have been aborted or completed")]
    NoSuchUpload,
    /// A part named in Complete is missing, was lost since, or differs.
    #[error("part {number} was not uploaded, was lost since, or its ETag or checksum differs")]
    InvalidPart {
        /// its number
        number: u32,
    },
    /// The parts are not in ascending order.
    #[error("the parts are not in ascending order of their numbers")]
    InvalidPartOrder,
    /// A part other than the last is too small.
    #[error("part {number} has fewer than the {min} bytes that all parts but the last must have")]
    PartTooSmall {
        /// its number
        number: u32,
        /// in bytes
        min: u64,
    },
    /// The object's size is not what was said at completion.
    #[error("the size of the object is not what was announced")]
    SizeMismatch,
    /// A part came with another algorithm than the upload was created with.
    #[error("the upload was created for {want} checksums, and the part has {have}")]
    OtherAlgorithm {
        /// of the upload
        want: String,
        /// of the part
        have: &'static str,
    },
    /// Algorithm and type of a multipart checksum do not go together.
    #[error("a {algorithm} checksum of a multipart upload cannot be {kind}")]
    ImpossibleChecksum {
        /// the algorithm's name
        algorithm: &'static str,
        /// `COMPOSITE` or `FULL_OBJECT`
        kind: String,
    },
    /// The owner's quota does not allow that many bytes.
    #[error("the storage quota of {quota} bytes is used up; delete objects first")]
    QuotaExceeded {
        /// in bytes
        quota: u64,
    },
    /// The bucket's promise cannot be kept now.
    #[error(transparent)]
    TooFewNodes(#[from] TooFewNodes),
    /// There are enough nodes, and they have no room.
    #[error(transparent)]
    NoRoom(#[from] PlacementError),
    /// Nodes failed while bytes were written; trying again may help.
    #[error("the storage nodes did not take enough of the object")]
    NotStored(#[source] BoxError),
    /// The bytes cannot be read now.
    #[error("the object cannot be read at the moment; too many storage nodes do not answer")]
    Unreadable(#[source] ReadError),
    /// Too little of the body came while others waited for the memory kept for it; nothing was stored.
    #[error("less than {rate} bytes were received per second while others waited; send it again")]
    Slow {
        /// bytes per second that would do
        rate: usize,
    },
    /// Took longer than its lease; nothing was stored.
    #[error("the upload took too long and was given up; send it again")]
    UploadGone,
    /// Others changed the same things at the same time; trying again may help.
    #[error("the object changed in the meantime; try again")]
    Busy,
    /// The metadata store cannot be reached.
    #[error("the metadata store is not available")]
    Unavailable(#[source] metadata::Error),
    /// The owner, or what seals its objects, is not there or cannot be used.
    #[error("the key of owner {owner} cannot be used")]
    OwnerKey {
        /// whose
        owner: OwnerId,
        /// why
        #[source]
        source: Option<BoxError>,
    },
    /// All that nobody branches on.
    #[error("the metadata store failed")]
    Metadata(#[source] metadata::Error),
}

impl From<metadata::Error> for Error {
    fn from(error: metadata::Error) -> Self {
        use metadata::Error as E;
        match error {
            E::NoSuchBucket => Self::NoSuchBucket,
            E::BucketExists { .. } => Self::BucketTaken,
            E::BucketNotEmpty => Self::BucketNotEmpty,
            E::TooManyBuckets { max } => Self::TooManyBuckets { max },
            E::TooManyUploads { max } => Self::TooManyUploads { max },
            E::NoSuchKey => Self::NoSuchKey,
            E::PreconditionFailed => Self::PreconditionFailed("If-Match or If-None-Match"),
            E::NoSuchUpload => Self::NoSuchUpload,
            E::InvalidPart { number } => Self::InvalidPart { number },
            E::PartsRefused { reason: PartsRefusal::TooSmall { number } } => {
                Self::PartTooSmall { number, min: super::PART_MIN.get() }
            }
            E::PartsRefused { reason: PartsRefusal::TooLarge } => Self::ObjectTooLarge,
            E::PartsRefused { reason: PartsRefusal::ChecksumMismatch } => {
                Self::BadDigest { what: "checksum of the object" }
            }
            E::PartsRefused { reason: PartsRefusal::SizeMismatch } => Self::SizeMismatch,
            E::QuotaExceeded { quota } => Self::QuotaExceeded { quota },
            E::UploadGone => Self::UploadGone,
            E::SourceGone | E::Stale { .. } => Self::Busy,
            E::Unavailable { .. } => Self::Unavailable(error),
            _ => Self::Metadata(error),
        }
    }
}

/// What can go wrong with a body before the data plane sees it.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyFault {
    #[error("the body failed")]
    Sender(#[source] BoxError),
    #[error("the body is longer than {max} bytes")]
    TooLong { max: u64 },
    #[error("there is no room for more of the body")]
    NoRoom(#[source] metadata::Error),
    #[error("the body is longer than the {want} bytes announced")]
    Longer { want: u64, have: u64 },
}

impl From<BodyFault> for Error {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Sender(source) => Self::Body(source),
            BodyFault::TooLong { max } => Self::TooLarge { max },
            BodyFault::NoRoom(error) => error.into(),
            BodyFault::Longer { want, have } => Self::IncompleteBody { want, have },
        }
    }
}

impl From<WriteError<BodyFault>> for Error {
    fn from(error: WriteError<BodyFault>) -> Self {
        match error {
            WriteError::Body(fault) => fault.into(),
            WriteError::Length { declared, got } => Self::IncompleteBody { want: declared, have: got },
            WriteError::Slow { rate } => Self::Slow { rate },
            WriteError::TooFewNodes(few) => Self::TooFewNodes(few),
            WriteError::Placement(full) => Self::NoRoom(full),
            WriteError::Metadata(error) => error.into(),
            other => Self::NotStored(Box::new(other)),
        }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Metadata(error) => error.into(),
            other => Self::Unreadable(other),
        }
    }
}
