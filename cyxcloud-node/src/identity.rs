//! The node's Ed25519 identity: made at the first start, kept in the data directory, readable by its owner only.
//!
//! Receipts, registration and the libp2p peer id come from it. A damaged file is an error: a new identity in its place
//! would be a new node, and its chunks lost to everybody.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::{fs, fs::DirBuilder};

use cyxcloud_core::receipt::NodeKey;
use libp2p::identity::Keypair;
use tracing::{info, warn};
use uuid::Uuid;

use crate::store::write_file;

const FILE: &str = "identity.key";

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk.
    #[error("could not {doing} {FILE}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{FILE} does not hold 64 hexadecimal digits; restore it, or remove it to become a new node")]
    Damaged,
}

/// Who a node is.
#[derive(Clone, Debug)]
pub struct Identity {
    key: NodeKey,
    peer_id: String,
}

impl Identity {
    /// Reads the identity of a data directory, or makes one there.
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        let io = |doing| move |source| IdentityError::Io { doing, source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make the directory of"))?;
        let path = dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                tighten(&path).map_err(io("protect"))?;
                let mut seed = [0; 32];
                hex::decode_to_slice(text.trim(), &mut seed).map_err(|_| IdentityError::Damaged)?;
                Ok(Self::from_seed(seed))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let seed: [u8; 32] = rand::random();
                write_file(dir, FILE, format!("{}\n", hex::encode(seed)).as_bytes()).map_err(io("write"))?;
                let identity = Self::from_seed(seed);
                info!(peer_id = %identity.peer_id, "made an identity for this node");
                Ok(identity)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(IdentityError::Damaged),
            Err(source) => Err(IdentityError::Io { doing: "read", source }),
        }
    }

    /// The identity with this seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let key = NodeKey::from_seed(seed);
        Self { peer_id: keypair(&key).public().to_peer_id().to_string(), key }
    }

    /// What signs receipts and registrations.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The libp2p peer id, in base58.
    pub fn peer_id(&self) -> &str {
        &self.peer_id
    }

    /// The same key for libp2p.
    pub(crate) fn keypair(&self) -> Keypair {
        keypair(&self.key)
    }

    /// A label for who chose none: always the same for the same key.
    pub fn default_label(&self) -> Uuid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::hash(&self.key.public()).as_bytes()[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

fn keypair(key: &NodeKey) -> Keypair {
    Keypair::ed25519_from_bytes(key.seed()).expect("any 32 bytes are a seed")
}

fn tighten(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        warn!(mode = format!("{mode:o}"), "identity.key was readable by others; now it is not");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").mode() & 0o777
    }

    #[test]
    fn an_identity_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = dir.path().join("data");
        let first = Identity::open(&data).expect("made");
        assert_eq!((mode(&data), mode(&data.join(FILE))), (0o700, 0o600));
        let second = Identity::open(&data).expect("read");
        assert_eq!(first.key().public(), second.key().public());
        assert_eq!(first.default_label(), second.default_label());
        assert!(first.peer_id().starts_with("12D3KooW"), "{}", first.peer_id());
    }

    #[test]
    fn a_file_that_others_can_read_is_tightened_and_a_damaged_one_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        Identity::open(dir.path()).expect("made");
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        Identity::open(dir.path()).expect("read");
        assert_eq!(mode(&path), 0o600);
        fs::write(&path, "not a key").expect("written");
        assert!(matches!(Identity::open(dir.path()), Err(IdentityError::Damaged)));
        assert_eq!(fs::read_to_string(&path).expect("readable"), "not a key", "nothing is overwritten");
    }
}
