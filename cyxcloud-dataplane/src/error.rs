//! Why a write, a read, or a call to one node failed.

use cyxcloud_core::address::AddressRefused;
use cyxcloud_core::placement::PlacementError;
use cyxcloud_core::profile::TooFewNodes;
use cyxcloud_core::seal::SealError;
use cyxcloud_core::stripe::StripeSizeError;
use cyxcloud_core::{NodeId, SegmentId};

/// Why a segment was not written. Nothing of it is visible; what nodes hold of it is collected as garbage.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E> {
    /// The body ended with an error of its own.
    #[error("the body could not be read")]
    Body(#[source] E),
    /// The body is shorter or longer than was said.
    #[error("the body has {got} bytes and not the {declared} that were declared")]
    Length {
        /// what the request said
        declared: u64,
        /// bytes that came, at least
        got: u64,
    },
    /// The body came too slowly while others waited for the memory that it had.
    #[error("less than {rate} bytes were received per second while others waited")]
    Slow {
        /// bytes per second that would do
        rate: usize,
    },
    /// Fewer nodes take new data than the profile's promise needs.
    #[error(transparent)]
    TooFewNodes(#[from] TooFewNodes),
    /// There are nodes, but not with room.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Nodes failed while the stripe was stored, and those that were left could not keep the promise.
    #[error(
        "stripe {stripe} was acknowledged on too few nodes: it must survive the loss of {need}, and {} of its shards are stored; try again",
        stored
    )]
    NotEnoughAcks {
        /// place in the segment
        stripe: u32,
        /// shards with at least one acknowledged location
        stored: usize,
        /// node losses to be survived
        need: u8,
        /// the last failure of a node
        #[source]
        last: Option<NodeError>,
    },
    /// The stripe size is out of bounds.
    #[error(transparent)]
    StripeSize(#[from] StripeSizeError),
    /// The nodes could not be looked up.
    #[error("the nodes could not be looked up")]
    Metadata(#[from] cyxcloud_metadata::Error),
}

/// Why bytes could not be read. What was read before is right all the same.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Too few shards of a stripe can be had now.
    #[error(
        "stripe {stripe} of segment {segment} cannot be read now: {have} of the {need} shards needed are there"
    )]
    Unreadable {
        /// the segment
        segment: SegmentId,
        /// place in the segment
        stripe: u32,
        /// distinct good shards
        have: usize,
        /// distinct shards needed
        need: usize,
    },
    /// All shards are what their ids say, and yet the stripe does not open: another owner's secret, or damaged metadata.
    #[error("stripe {stripe} of segment {segment} does not open")]
    Sealed {
        /// the segment
        segment: SegmentId,
        /// place in the segment
        stripe: u32,
        /// how
        #[source]
        source: SealError,
    },
    /// The metadata does not describe the bytes asked for.
    #[error("the layout of segment {segment} is wrong: {detail}")]
    Layout {
        /// the segment
        segment: SegmentId,
        /// in what way
        detail: &'static str,
    },
    /// The extents do not cover the range asked for.
    #[error("bytes from {at} on are not covered by any segment")]
    NotCovered {
        /// first byte of the object that is missing
        at: u64,
    },
    /// The layout could not be looked up.
    #[error("the layout could not be looked up")]
    Metadata(#[from] cyxcloud_metadata::Error),
}

/// Why a call to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Not among the nodes known now.
    #[error("node {0} is not known")]
    Unknown(NodeId),
    /// The address it registered is not a URL that can be dialled.
    #[error(
        "the address {address:?} of a node cannot be dialled: it must be http://HOST:PORT or https://HOST:PORT"
    )]
    BadAddress {
        /// as registered
        address: String,
    },
    /// It took too long.
    #[error("the node did not answer in time")]
    TimedOut,
    /// It has no space left.
    #[error("the node is full")]
    Full,
    /// It does not hold the chunk.
    #[error("the node does not hold the chunk")]
    Missing,
    /// The bytes or slices it sent are not those of the chunk: wrong, too few or too many, or no message at all.
    #[error("the node's bytes are not those of the chunk")]
    Corrupt,
    /// It says that what it holds is not the chunk any more.
    #[error("the node says that its chunk is corrupt")]
    Rotten,
    /// Its receipt is not signed by its key, or is for something else.
    #[error("the node's receipt is not valid: {0}")]
    BadReceipt(&'static str),
    /// Anything else: refused, unreachable, or an error of its own.
    #[error("the node answered {code:?}: {message}")]
    Status {
        /// gRPC code
        code: tonic::Code,
        /// what it says, from a stranger
        message: String,
    },
}

impl NodeError {
    /// A short word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            Self::BadAddress { .. } => "address",
            Self::TimedOut => "timeout",
            Self::Full => "full",
            Self::Missing => "missing",
            Self::Corrupt => "corrupt",
            Self::Rotten => "rotten",
            Self::BadReceipt(_) => "receipt",
            Self::Status { code: tonic::Code::Unavailable, .. } => "unavailable",
            Self::Status { .. } => "status",
        }
    }

    /// The same for logs and for another owner: sources are not kept.
    pub(crate) fn from_status(status: &tonic::Status) -> Self {
        match status.code() {
            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => Self::TimedOut,
            tonic::Code::ResourceExhausted => Self::Full,
            tonic::Code::NotFound => Self::Missing,
            tonic::Code::DataLoss => Self::Rotten,
            code => Self::Status { code, message: status.message().chars().take(200).collect() },
        }
    }
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("the address has no host or port")]
    NoHost,
    #[error("the name could not be resolved")]
    Resolve(#[source] std::io::Error),
    #[error("the name resolves to nothing")]
    NoAddress,
    #[error(transparent)]
    Refused(#[from] AddressRefused),
    #[error("could not connect")]
    Connect(#[source] std::io::Error),
    #[error("no TLS: {0}")]
    Tls(std::io::Error),
}
