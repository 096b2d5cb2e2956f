//! Between wire messages and the types of `cyxcloud-core`.
//!
//! Into the wire is `From` and cannot fail; out of it is `TryFrom`, and says which field was wrong: whoever sent
//! the message is a stranger. Ids travel as raw bytes; [`chunk_id`] and [`uuid`] read one field.

use bytes::Bytes;
use cyxcloud_core::receipt::Receipt;
use cyxcloud_core::{ByteCount, ChunkId, Generation, NodeId, Timestamp};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::node;

/// A field of a message that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field} must be {want}, not {got}")]
pub struct FieldError {
    /// Name of the field, as in the .proto file.
    pub field: &'static str,
    /// What belongs there.
    pub want: &'static str,
    /// What was sent, such as `63 bytes`.
    pub got: String,
}

/// Whoever sent such a message is to blame for it: `INVALID_ARGUMENT`.
impl From<FieldError> for Status {
    fn from(error: FieldError) -> Self {
        Self::new(Code::InvalidArgument, error.to_string())
    }
}

fn fixed<const N: usize>(
    field: &'static str,
    want: &'static str,
    bytes: &[u8],
) -> Result<[u8; N], FieldError> {
    bytes.try_into().map_err(|_| FieldError { field, want, got: format!("{} bytes", bytes.len()) })
}

/// Reads `field` as a chunk id of 32 bytes.
pub fn chunk_id(field: &'static str, bytes: &[u8]) -> Result<ChunkId, FieldError> {
    fixed(field, "a chunk id of 32 bytes", bytes).map(ChunkId::from_bytes)
}

/// Reads `field` as a UUID of 16 bytes.
pub fn uuid(field: &'static str, bytes: &[u8]) -> Result<Uuid, FieldError> {
    fixed(field, "a UUID of 16 bytes", bytes).map(Uuid::from_bytes)
}

/// Reads `field` as a node id of 16 bytes.
pub fn node_id(field: &'static str, bytes: &[u8]) -> Result<NodeId, FieldError> {
    uuid(field, bytes).map(NodeId::from_uuid)
}

/// Reads `field` as an Ed25519 public key of 32 bytes. Whether it is a point on the curve shows when it is used.
pub fn public_key(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], FieldError> {
    fixed(field, "an Ed25519 public key of 32 bytes", bytes)
}

/// Reads `field` as an Ed25519 signature of 64 bytes.
pub fn signature(field: &'static str, bytes: &[u8]) -> Result<[u8; 64], FieldError> {
    fixed(field, "an Ed25519 signature of 64 bytes", bytes)
}

/// Unpacks a message that a well-behaved peer always sets, such as the generation of a delete.
pub fn required<T>(field: &'static str, message: Option<T>) -> Result<T, FieldError> {
    message.ok_or(FieldError { field, want: "set", got: "missing".to_owned() })
}

/// The 32 raw bytes of a chunk id, as a field.
pub fn chunk_id_bytes(id: &ChunkId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

/// The 16 raw bytes of a node id, as a field.
pub fn node_id_bytes(id: &NodeId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

impl From<Generation> for node::Generation {
    fn from(generation: Generation) -> Self {
        Self {
            incarnation: Bytes::copy_from_slice(generation.incarnation.as_bytes()),
            counter: generation.counter,
        }
    }
}

impl TryFrom<node::Generation> for Generation {
    type Error = FieldError;

    fn try_from(message: node::Generation) -> Result<Self, FieldError> {
        if message.counter == 0 {
            return Err(FieldError { field: "generation.counter", want: "1 or more", got: "0".to_owned() });
        }
        let incarnation = uuid("generation.incarnation", &message.incarnation)?;
        Ok(Self { incarnation, counter: message.counter })
    }
}

impl From<Receipt> for node::Receipt {
    fn from(receipt: Receipt) -> Self {
        Self {
            node_key: Bytes::copy_from_slice(&receipt.node_key),
            chunk_id: chunk_id_bytes(&receipt.chunk),
            length: receipt.length.get(),
            generation: Some(receipt.generation.into()),
            stored_at_ms: receipt.stored_at.unix_millis(),
            signature: Bytes::copy_from_slice(&receipt.signature),
        }
    }
}

/// Only the form is checked here: call `Receipt::verify` before believing it.
impl TryFrom<node::Receipt> for Receipt {
    type Error = FieldError;

    fn try_from(message: node::Receipt) -> Result<Self, FieldError> {
        Ok(Self {
            node_key: public_key("receipt.node_key", &message.node_key)?,
            chunk: chunk_id("receipt.chunk_id", &message.chunk_id)?,
            length: ByteCount::bytes(message.length),
            generation: required("receipt.generation", message.generation)?.try_into()?,
            stored_at: Timestamp::from_unix_millis(message.stored_at_ms),
            signature: signature("receipt.signature", &message.signature)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation() -> Generation {
        Generation { incarnation: Uuid::from_bytes([3; 16]), counter: 7 }
    }

    fn receipt() -> Receipt {
        Receipt {
            node_key: [1; 32],
            chunk: ChunkId::of(b"abc"),
            length: ByteCount::bytes(3),
            generation: generation(),
            stored_at: Timestamp::from_unix_millis(-5),
            signature: [9; 64],
        }
    }

    #[test]
    fn a_receipt_survives_the_wire() {
        let back = Receipt::try_from(node::Receipt::from(receipt())).expect("well formed");
        assert_eq!(node::Receipt::from(back), node::Receipt::from(receipt()));
    }

    #[test]
    fn a_generation_survives_the_wire() {
        assert_eq!(Generation::try_from(node::Generation::from(generation())), Ok(generation()));
    }

    #[test]
    fn a_field_of_the_wrong_length_is_named() {
        let mut message = node::Receipt::from(receipt());
        message.signature = Bytes::from_static(&[0; 63]);
        let error = Receipt::try_from(message).map(|_| ()).expect_err("63 bytes are no signature");
        assert_eq!((error.field, error.got.as_str()), ("receipt.signature", "63 bytes"));
        assert_eq!(Status::from(error).code(), Code::InvalidArgument);
    }

    #[test]
    fn a_missing_generation_and_a_zero_counter_are_refused() {
        let mut message = node::Receipt::from(receipt());
        message.generation = None;
        assert!(Receipt::try_from(message).is_err());
        let zero = node::Generation { counter: 0, ..generation().into() };
        assert!(Generation::try_from(zero).is_err());
    }

    #[test]
    fn ids_are_read_from_exactly_their_length() {
        let id = ChunkId::of(b"x");
        assert_eq!(chunk_id("chunk_id", &chunk_id_bytes(&id)), Ok(id));
        assert!(chunk_id("chunk_id", &[]).is_err());
        let node = NodeId::from_random([5; 16]);
        assert_eq!(node_id("node_id", &node_id_bytes(&node)), Ok(node));
        assert!(node_id("node_id", &[0; 17]).is_err());
    }
}
