//! The pure domain of CyxCloud: ids and units, striping, sealing, erasure coding, proofs, placement,
//! and the life of a node.
//!
//! Nothing here reads a clock, draws randomness of its own, or does I/O: callers pass plain data, a `now` and
//! an `rng`. So every decision can be tested by property and simulated at any scale.

pub mod address;
pub mod audit;
pub mod claims;
pub mod erasure;
pub mod faults;
pub mod geometry;
pub mod id;
pub mod name;
pub mod node;
pub mod placement;
pub mod profile;
pub mod proof;
pub mod receipt;
pub mod repair;
pub mod reputation;
pub mod reservation;
pub mod seal;
pub mod secret;
pub mod sigv4;
pub mod stripe;
pub mod token;
pub mod token_keys;
pub mod units;

pub use geometry::{Geometry, ShardIndex};
pub use id::{BucketId, ChunkId, FileId, Generation, NodeId, OwnerId, SegmentId, UploadId};
pub use units::{ByteCount, Timestamp};
