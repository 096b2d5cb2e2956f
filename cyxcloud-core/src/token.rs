//! Tokens that nodes want to see: what one of our servers, or somebody it names, may do on one node, and until when.
//!
//! Two kinds. A *session* token is for our own servers: some operations on one node, for minutes, as often as they like;
//! verified once and then known. A *chunk* token is for anybody else: one operation on one chunk of one node, once, and only
//! together with a signature of the key that it names. Both are signed with Ed25519 by a key that the node was told of when it
//! registered. All fields have fixed places and lengths, integers are big-endian:
//!
//! ```text
//! session  1 | kid 8 | id 16 | node 32 | operations 2 | holder 32 (zeros: whoever has it) | issued 8 | expires 8 | signature 64
//! chunk    2 | kid 8 | id 16 | node 32 | operation 2  | holder 32 | issued 8 | expires 8 | chunk 32 | signature 64 | holder's 64
//! ```
//!
//! Times are milliseconds of the database's clock. The signature is over a domain name and all bytes before it; the holder's
//! over another and all bytes before that. Not here: keeping keys, knowing the time, remembering what was used.

use std::fmt;
use std::time::Duration;

use crate::receipt::{NodeKey, verify_signature};
use crate::{ChunkId, Timestamp};

/// How long a session token holds.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(600);
/// How long a chunk token holds.
pub const CHUNK_LIFETIME: Duration = Duration::from_secs(600);
/// The longest that any token may hold, whoever signed it.
pub const LIFETIME_MAX: Duration = Duration::from_secs(3_600);
/// How far clocks may be apart.
pub const SKEW: Duration = Duration::from_secs(60);

const SESSION: u8 = 1;
const CHUNK: u8 = 2;
const SIGNATURE: usize = 64;
/// Bytes of either kind before what only one has.
const COMMON: usize = 1 + 8 + 16 + 32 + 2 + 32 + 8 + 8;
const SESSION_LEN: usize = COMMON + SIGNATURE;
const CHUNK_SIGNED: usize = COMMON + 32;
const CHUNK_LEN: usize = CHUNK_SIGNED + 2 * SIGNATURE;
const SESSION_DOMAIN: &[u8] = b"cyx/session/v1";
const CHUNK_DOMAIN: &[u8] = b"cyx/chunk/v1";
const HOLDER_DOMAIN: &[u8] = b"cyx/holder/v1";

/// What can be done on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Operation {
    /// `StoreChunk`.
    Store = 1,
    /// `GetChunk`: whole, or slices with their proof.
    Get = 1 << 1,
    /// `HasChunk`.
    Has = 1 << 2,
    /// `DeleteChunk`.
    Delete = 1 << 3,
    /// `RestoreChunk`.
    Restore = 1 << 4,
    /// `ListChunks`.
    List = 1 << 5,
    /// `ReplicateChunk`, at the node that sends.
    Replicate = 1 << 6,
    /// `VerifyChunk`.
    Verify = 1 << 7,
}

impl Operation {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Store,
        Self::Get,
        Self::Has,
        Self::Delete,
        Self::Restore,
        Self::List,
        Self::Replicate,
        Self::Verify,
    ];

    /// Whether it changes what the node holds: what was used once is then not taken again.
    pub const fn changes(self) -> bool {
        matches!(self, Self::Store | Self::Delete | Self::Restore)
    }
}

/// A set of operations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Operations(u16);

impl Operations {
    /// These.
    pub fn of(operations: &[Operation]) -> Self {
        Self(operations.iter().fold(0, |bits, operation| bits | *operation as u16))
    }

    /// Whether it is one of them.
    pub const fn allow(self, operation: Operation) -> bool {
        self.0 & operation as u16 != 0
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Operation::ALL.into_iter().filter(|operation| self.allow(*operation))).finish()
    }
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Neither kind.
    #[error("there is no token, or it is malformed")]
    Malformed,
    /// By nobody who may sign, or changed since.
    #[error("the token was signed by a key that this node was not told of, or was changed")]
    BadSignature,
    /// Not presented by whom it was made for.
    #[error("the token was made for another key")]
    OtherHolder,
    /// For another node.
    #[error("the token was made for another node")]
    OtherNode,
    /// For something else.
    #[error("the token is not for this operation")]
    OtherOperation,
    /// For another chunk.
    #[error("the token is not for this chunk")]
    OtherChunk,
    /// Too old, too young, or made to hold too long.
    #[error("the token does not hold now; look at the clocks")]
    NotNow,
}

/// What both kinds say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its own id, random.
    pub id: [u8; 16],
    /// Public key of the node on which it is good.
    pub node: [u8; 32],
    /// What it is good for.
    pub operations: Operations,
    /// Public key of whom it was made for; `None`: of whoever has it.
    pub holder: Option<[u8; 32]>,
    /// When it begins to hold.
    pub issued: Timestamp,
    /// When it ceases to.
    pub expires: Timestamp,
    /// The one chunk that it is about; `None` in a session token.
    pub chunk: Option<ChunkId>,
}

/// The first 8 bytes of a signing key's Blake3: which of several keys signed.
pub fn key_id(public: &[u8; 32]) -> [u8; 8] {
    let mut id = [0; 8];
    id.copy_from_slice(&blake3::hash(public).as_bytes()[..8]);
    id
}

impl Token {
    /// Signs it. A chunk token still wants its holder's signature: [`countersign`].
    pub fn sign(&self, key: &NodeKey) -> Vec<u8> {
        let (kind, domain) = match self.chunk {
            None => (SESSION, SESSION_DOMAIN),
            Some(_) => (CHUNK, CHUNK_DOMAIN),
        };
        let mut bytes = Vec::with_capacity(CHUNK_LEN);
        bytes.push(kind);
        bytes.extend_from_slice(&key_id(&key.public()));
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.node);
        bytes.extend_from_slice(&self.operations.0.to_be_bytes());
        bytes.extend_from_slice(&self.holder.unwrap_or_default());
        bytes.extend_from_slice(&self.issued.unix_millis().to_be_bytes());
        bytes.extend_from_slice(&self.expires.unix_millis().to_be_bytes());
        if let Some(chunk) = &self.chunk {
            bytes.extend_from_slice(chunk.as_bytes());
        }
        let signature = key.sign(&[domain, &bytes].concat());
        bytes.extend_from_slice(&signature);
        bytes
    }

    /// Reads a token and checks who signed it, and in a chunk token that whom it names presents it. `keys`: public keys that
    /// may sign. Nothing else is judged yet.
    pub fn open(bytes: &[u8], keys: &[[u8; 32]]) -> Result<Self, TokenError> {
        let (domain, signed) = match (bytes.first(), bytes.len()) {
            (Some(&SESSION), SESSION_LEN) => (SESSION_DOMAIN, COMMON),
            (Some(&CHUNK), CHUNK_LEN) => (CHUNK_DOMAIN, CHUNK_SIGNED),
            _ => return Err(TokenError::Malformed),
        };
        let mut fields = Fields(bytes.get(1..).ok_or(TokenError::Malformed)?);
        let kid: [u8; 8] = fields.take()?;
        let id = fields.take()?;
        let node = fields.take()?;
        let operations = Operations(u16::from_be_bytes(fields.take()?));
        let holder: [u8; 32] = fields.take()?;
        let issued = Timestamp::from_unix_millis(i64::from_be_bytes(fields.take()?));
        let expires = Timestamp::from_unix_millis(i64::from_be_bytes(fields.take()?));
        let chunk = if signed == CHUNK_SIGNED { Some(ChunkId::from_bytes(fields.take()?)) } else { None };
        let signature: [u8; SIGNATURE] = fields.take()?;
        let message = [domain, bytes.get(..signed).ok_or(TokenError::Malformed)?].concat();
        let signer = keys.iter().find(|key| key_id(key) == kid).ok_or(TokenError::BadSignature)?;
        verify_signature(signer, &message, &signature).map_err(|_| TokenError::BadSignature)?;
        if chunk.is_some() {
            let presented = fields.take()?;
            let message = holder_message(bytes.get(..signed + SIGNATURE).ok_or(TokenError::Malformed)?);
            verify_signature(&holder, &message, &presented).map_err(|_| TokenError::OtherHolder)?;
        }
        let holder = (holder != [0; 32]).then_some(holder);
        Ok(Self { id, node, operations, holder, issued, expires, chunk })
    }

    /// Whether it allows this, here and now. `peer`: the key that the caller has proven to have, if any; the holder of a chunk
    /// token has proven it by signing.
    pub fn check(
        &self,
        node: &[u8; 32],
        operation: Operation,
        chunk: Option<&ChunkId>,
        peer: Option<&[u8; 32]>,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if self.node != *node {
            return Err(TokenError::OtherNode);
        }
        if !self.operations.allow(operation) {
            return Err(TokenError::OtherOperation);
        }
        if self.chunk.as_ref().is_some_and(|named| Some(named) != chunk) {
            return Err(TokenError::OtherChunk);
        }
        if self.chunk.is_none() && self.holder.as_ref().is_some_and(|holder| Some(holder) != peer) {
            return Err(TokenError::OtherHolder);
        }
        let lifetime = self.expires.since(self.issued);
        let begun = self.issued <= now.plus(SKEW);
        let over = now >= self.expires.plus(SKEW);
        if !begun || over || lifetime == Duration::ZERO || lifetime > LIFETIME_MAX {
            return Err(TokenError::NotNow);
        }
        Ok(())
    }
}

/// A chunk token as its holder presents it.
pub fn countersign(token: &[u8], holder: &NodeKey) -> Vec<u8> {
    [token, &holder.sign(&holder_message(token))].concat()
}

fn holder_message(token: &[u8]) -> Vec<u8> {
    [HOLDER_DOMAIN, token].concat()
}

/// Bytes from which fields are taken, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(TokenError::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_millis(1_800_000_000_000);

    fn key(seed: u8) -> NodeKey {
        NodeKey::from_seed([seed; 32])
    }

    fn session() -> Token {
        Token {
            id: [9; 16],
            node: key(2).public(),
            operations: Operations::of(&[Operation::Get, Operation::Has]),
            holder: None,
            issued: NOW,
            expires: NOW.plus(SESSION_LIFETIME),
            chunk: None,
        }
    }

    fn chunk() -> Token {
        Token {
            operations: Operations::of(&[Operation::Store]),
            holder: Some(key(3).public()),
            chunk: Some(ChunkId::of(b"x")),
            ..session()
        }
    }

    #[test]
    fn what_was_signed_is_read() {
        let keys = [key(8).public(), key(1).public()];
        let signed = session().sign(&key(1));
        assert_eq!(signed.len(), SESSION_LEN);
        assert_eq!(Token::open(&signed, &keys), Ok(session()));
        let signed = countersign(&chunk().sign(&key(1)), &key(3));
        assert_eq!(signed.len(), CHUNK_LEN);
        assert_eq!(Token::open(&signed, &keys), Ok(chunk()));
        assert_eq!(Token::open(&session().sign(&key(4)), &keys), Err(TokenError::BadSignature));
        assert_eq!(Token::open(&signed, &[]), Err(TokenError::BadSignature));
    }

    #[test]
    fn no_changed_bit_is_taken() {
        let keys = [key(1).public()];
        for signed in [session().sign(&key(1)), countersign(&chunk().sign(&key(1)), &key(3))] {
            for bit in 0..signed.len() * 8 {
                let mut changed = signed.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(Token::open(&changed, &keys).is_err(), "bit {bit}");
            }
            for len in 0..signed.len() {
                assert!(Token::open(&signed[..len], &keys).is_err(), "{len} bytes");
            }
            assert!(Token::open(&[&signed[..], &[0]].concat(), &keys).is_err());
        }
    }

    #[test]
    fn a_chunk_token_is_its_holder_s() {
        let keys = [key(1).public()];
        let token = chunk().sign(&key(1));
        assert_eq!(Token::open(&token, &keys), Err(TokenError::Malformed), "nobody presents it");
        assert_eq!(Token::open(&countersign(&token, &key(4)), &keys), Err(TokenError::OtherHolder));
        let unheld = Token { holder: None, ..chunk() }.sign(&key(1));
        assert_eq!(Token::open(&countersign(&unheld, &key(4)), &keys), Err(TokenError::OtherHolder));
    }

    #[test]
    fn a_token_is_good_for_one_node_what_it_names_and_minutes() {
        let here = key(2).public();
        let x = ChunkId::of(b"x");
        let can = |token: &Token, operation| token.check(&here, operation, Some(&x), None, NOW);
        assert_eq!(can(&session(), Operation::Get), Ok(()));
        assert_eq!(can(&session(), Operation::Has), Ok(()));
        for operation in Operation::ALL {
            let allowed = matches!(operation, Operation::Get | Operation::Has);
            assert_eq!(can(&session(), operation).is_ok(), allowed, "{operation:?}");
            assert_eq!(can(&chunk(), operation).is_ok(), operation == Operation::Store, "{operation:?}");
        }
        let there = key(5).public();
        assert_eq!(session().check(&there, Operation::Get, Some(&x), None, NOW), Err(TokenError::OtherNode));
        let y = ChunkId::of(b"y");
        for other in [Some(&y), None] {
            assert_eq!(chunk().check(&here, Operation::Store, other, None, NOW), Err(TokenError::OtherChunk));
        }
    }

    #[test]
    fn a_session_may_be_bound_to_its_caller_s_key() {
        let here = key(2).public();
        let bound = Token { holder: Some(key(6).public()), ..session() };
        let by = |peer: Option<[u8; 32]>| bound.check(&here, Operation::Get, None, peer.as_ref(), NOW);
        assert_eq!(by(Some(key(6).public())), Ok(()));
        assert_eq!(by(Some(key(7).public())), Err(TokenError::OtherHolder));
        assert_eq!(by(None), Err(TokenError::OtherHolder));
    }

    #[test]
    fn a_token_holds_for_its_time_and_a_minute_to_both_sides() {
        let here = key(2).public();
        let at = |token: &Token, millis: i64| {
            let now = Timestamp::from_unix_millis(NOW.unix_millis() + millis);
            token.check(&here, Operation::Get, None, None, now).is_ok()
        };
        assert!(at(&session(), -60_000) && !at(&session(), -60_001));
        assert!(at(&session(), 659_999) && !at(&session(), 660_000));
        let long = Token { expires: NOW.plus(LIFETIME_MAX).plus(Duration::from_millis(1)), ..session() };
        assert!(!at(&long, 0), "nobody may make one that holds for so long");
        let backwards = Token { expires: NOW, issued: NOW.plus(SKEW), ..session() };
        assert!(!at(&backwards, 0));
    }
}
