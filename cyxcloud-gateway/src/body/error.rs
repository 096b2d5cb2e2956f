//! Why a body could not be read to its end.

use http::StatusCode;

/// Why a body could not be read to its end. Whatever was read before must be thrown away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// Fewer bytes than declared.
    #[error("the body ended after {got} of {want} bytes; send it again")]
    Incomplete {
        /// bytes that came
        got: u64,
        /// bytes that were declared
        want: u64,
    },
    /// More bytes than declared.
    #[error("the body is longer than the {want} bytes declared; correct the length header and send it again")]
    TooLong {
        /// bytes that were declared
        want: u64,
    },
    /// The body is not the one that `x-amz-content-sha256` names.
    #[error("the body does not match x-amz-content-sha256; it changed on the way, send it again")]
    Sha256Mismatch,
    /// A chunk is not the one that was signed, or not in its place.
    #[error("a chunk's signature does not match its bytes; check the secret key, or send the body again")]
    ChunkSignature,
    /// The trailers are not those that were signed.
    #[error(
        "x-amz-trailer-signature does not match the trailers; check the secret key, or send the body again"
    )]
    TrailerSignature,
    /// A chunk has a size that is not allowed.
    #[error("{0}")]
    ChunkSize(&'static str),
    /// The aws-chunked framing is broken.
    #[error("the aws-chunked body is malformed: {0}")]
    Framing(&'static str),
    /// The trailers are broken, or not those that were announced.
    #[error("the trailers are malformed: {0}")]
    Trailer(&'static str),
    /// The connection failed.
    #[error("the body could not be read from the connection; send it again")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BodyError {
    /// S3's code for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Incomplete { .. } | Self::TooLong { .. } | Self::Read(_) => "IncompleteBody",
            Self::Sha256Mismatch => "XAmzContentSHA256Mismatch",
            Self::ChunkSignature | Self::TrailerSignature => "SignatureDoesNotMatch",
            Self::ChunkSize(_) => "InvalidChunkSizeError",
            Self::Framing(_) => "InvalidRequest",
            Self::Trailer(_) => "MalformedTrailerError",
        }
    }

    /// The HTTP status that goes with the code.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ChunkSignature | Self::TrailerSignature => StatusCode::FORBIDDEN,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
