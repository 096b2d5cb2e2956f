//! Receipts: a node's signature over what it durably stored; and the identity that signs them.
//!
//! Signed bytes are fixed here and documented in the protocol's files. Verification is strict: one key, one message, one
//! signature.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::{ByteCount, ChunkId, Generation, Timestamp};

/// Why a signature is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The key is no point of the curve, or a weak one.
    #[error("the public key is not a usable Ed25519 key")]
    BadKey,
    /// Signed by somebody other than whom it should be from.
    #[error("the receipt was signed by another key")]
    OtherKey,
    /// The signature does not fit the bytes.
    #[error("the signature does not fit")]
    BadSignature,
}

/// A node's Ed25519 identity, made at its first start.
#[derive(Clone)]
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// The identity with this seed: 32 random bytes, kept by the node alone.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The seed, to be kept.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public key, which is the node's identity.
    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs a message. Messages of different kinds begin differently.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", hex::encode(self.public()))
    }
}

/// Whether this can be somebody's key: a point of the curve, and not one of those for which anybody can sign.
pub fn is_usable_key(public: &[u8; 32]) -> bool {
    usable_key(public).is_ok()
}

fn usable_key(public: &[u8; 32]) -> Result<VerifyingKey, ReceiptError> {
    let key = VerifyingKey::from_bytes(public).map_err(|_| ReceiptError::BadKey)?;
    if key.is_weak() { Err(ReceiptError::BadKey) } else { Ok(key) }
}

/// Checks a signature strictly.
pub fn verify_signature(public: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Result<(), ReceiptError> {
    let key = usable_key(public)?;
    key.verify_strict(message, &Signature::from_bytes(signature)).map_err(|_| ReceiptError::BadSignature)
}

/// A node's signature over what it durably stored: chunk, length, generation, time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Who signed.
    pub node_key: [u8; 32],
    /// What was stored.
    pub chunk: ChunkId,
    /// Length of the chunk.
    pub length: ByteCount,
    /// The generation of this store.
    pub generation: Generation,
    /// When, by the node's clock: evidence only, decides nothing.
    pub stored_at: Timestamp,
    /// Ed25519 over the fields above.
    pub signature: [u8; 64],
}

impl Receipt {
    /// Signs what was stored. Only after the write is synced.
    pub fn sign(
        key: &NodeKey,
        chunk: ChunkId,
        length: ByteCount,
        generation: Generation,
        stored_at: Timestamp,
    ) -> Self {
        let mut receipt =
            Self { node_key: key.public(), chunk, length, generation, stored_at, signature: [0; 64] };
        receipt.signature = key.sign(&receipt.message());
        receipt
    }

    /// Whether this key signed exactly these fields.
    pub fn verify(&self, node_key: &[u8; 32]) -> Result<(), ReceiptError> {
        if self.node_key != *node_key {
            return Err(ReceiptError::OtherKey);
        }
        verify_signature(node_key, &self.message(), &self.signature)
    }

    fn message(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(118);
        message.extend_from_slice(b"cyx/receipt/v1");
        message.extend_from_slice(&self.node_key);
        message.extend_from_slice(self.chunk.as_bytes());
        message.extend_from_slice(&self.length.get().to_be_bytes());
        message.extend_from_slice(self.generation.incarnation.as_bytes());
        message.extend_from_slice(&self.generation.counter.to_be_bytes());
        message.extend_from_slice(&self.stored_at.unix_millis().to_be_bytes());
        message
    }
}

/// What a node signs to register in somebody's name: the hash of the operator's access token follows, so that nobody who
/// saw a registration can send it again with a token of their own. Without a token nothing follows.
pub fn bound_to_operator(mut message: Vec<u8>, access_token: &str) -> Vec<u8> {
    if !access_token.is_empty() {
        message.extend_from_slice(blake3::hash(access_token.as_bytes()).as_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn receipt() -> (NodeKey, Receipt) {
        let key = NodeKey::from_seed([7; 32]);
        let generation = Generation { incarnation: Uuid::from_bytes([3; 16]), counter: 9 };
        let at = Timestamp::from_unix_millis(1_700_000_000_000);
        let receipt = Receipt::sign(&key, ChunkId::of(b"chunk"), ByteCount::bytes(5), generation, at);
        (key, receipt)
    }

    #[test]
    fn a_receipt_verifies_and_no_changed_one_does() {
        let (key, good) = receipt();
        assert_eq!(good.verify(&key.public()), Ok(()));
        type Change = fn(&mut Receipt);
        let changes: [Change; 7] = [
            |r| r.chunk = ChunkId::of(b"other"),
            |r| r.length = ByteCount::bytes(6),
            |r| r.generation.counter += 1,
            |r| r.generation.incarnation = Uuid::from_bytes([4; 16]),
            |r| r.stored_at = r.stored_at.plus(std::time::Duration::from_millis(1)),
            |r| r.signature[0] ^= 1,
            |r| r.signature[63] ^= 0x80,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            assert_eq!(bad.verify(&key.public()), Err(ReceiptError::BadSignature), "change {i}");
        }
        let other = NodeKey::from_seed([8; 32]).public();
        assert_eq!(good.verify(&other), Err(ReceiptError::OtherKey));
        assert!(Receipt { node_key: other, ..good }.verify(&other).is_err());
    }

    #[test]
    fn weak_keys_sign_nothing() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(verify_signature(&neutral, b"anything", &[0; 64]), Err(ReceiptError::BadKey));
    }

    #[test]
    fn an_identity_is_its_seed() {
        let key = NodeKey::from_seed([7; 32]);
        assert_eq!(NodeKey::from_seed(key.seed()).public(), key.public());
        assert!(verify_signature(&key.public(), b"m", &key.sign(b"m")).is_ok());
        assert!(verify_signature(&key.public(), b"n", &key.sign(b"m")).is_err());
    }

    #[test]
    fn a_registration_is_bound_to_its_operator() {
        assert_eq!(bound_to_operator(b"m".to_vec(), ""), b"m");
        let bound = bound_to_operator(b"m".to_vec(), "t");
        assert_eq!(bound, [b"m", blake3::hash(b"t").as_bytes().as_slice()].concat());
        assert_ne!(bound, bound_to_operator(b"m".to_vec(), "u"));
    }
}
