//! Identifiers, each its own type so that one cannot stand for another.
//!
//! A [`ChunkId`] is computed from bytes; all the others are random UUIDs that somebody with randomness hands in.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Why a text or a byte string is not the id it was taken for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: {want}")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
    want: &'static str,
}

/// Blake3 of a chunk's bytes: equal ids mean equal bytes, so storing twice is harmless.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; 32]);

impl ChunkId {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Takes 32 raw bytes as an id, from a place that recorded one.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for ChunkId {
    type Error = ParseIdError;

    fn try_from(bytes: &[u8]) -> Result<Self, ParseIdError> {
        bytes.try_into().map(Self).map_err(|_| ParseIdError {
            kind: "chunk id",
            text: format!("{} bytes", bytes.len()),
            want: "32 bytes",
        })
    }
}

impl FromStr for ChunkId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseIdError {
            kind: "chunk id",
            text: text.chars().take(80).collect(),
            want: "64 hexadecimal digits",
        })?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that was made or recorded elsewhere.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// A fresh random id from 16 random bytes.
            pub const fn from_random(bytes: [u8; 16]) -> Self {
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }

            /// The UUID itself, for databases and wires.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }

            /// The 16 raw bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ParseIdError;

            fn try_from(bytes: &[u8]) -> Result<Self, ParseIdError> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| ParseIdError {
                    kind: $kind,
                    text: format!("{} bytes", bytes.len()),
                    want: "16 bytes",
                })
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                Uuid::from_str(text).map(Self).map_err(|_| ParseIdError {
                    kind: $kind,
                    text: text.chars().take(80).collect(),
                    want: "a UUID",
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

uuid_id!(
    /// A storage node, as the metadata store knows it.
    NodeId,
    "node id"
);
uuid_id!(
    /// A person or program that owns buckets.
    OwnerId,
    "owner id"
);
uuid_id!(
    /// A bucket; stays the same for the bucket's life, unlike its name after a delete and a re-create.
    BucketId,
    "bucket id"
);
uuid_id!(
    /// An immutable stored byte sequence.
    SegmentId,
    "segment id"
);
uuid_id!(
    /// One row of `files`: one version of a key.
    FileId,
    "file id"
);
uuid_id!(
    /// One upload in progress, from its intent to its commit. Also the identity of a multipart upload.
    UploadId,
    "upload id"
);

/// What a node gives each store: which life of its data directory, and a counter never used twice in it.
///
/// Generations of different incarnations have no order: a recovery that lost the tail of its log takes a
/// new incarnation, and whoever named the old one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    /// Random identity of the data directory's life.
    pub incarnation: Uuid,
    /// Node-wide store counter within that life, starting at 1.
    pub counter: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_ids_survive_text_and_bytes() {
        let id = ChunkId::of(b"abc");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(ChunkId::try_from(id.as_bytes().as_slice()), Ok(id));
        assert!("abc".parse::<ChunkId>().is_err());
        assert!(ChunkId::try_from([0u8; 31].as_slice()).is_err());
    }

    #[test]
    fn uuid_ids_survive_text() {
        let id = NodeId::from_random([7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("node-1".parse::<NodeId>().is_err());
    }
}
