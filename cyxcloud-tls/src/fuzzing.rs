//! What the fuzz targets in `fuzz/` reach of this crate's inside: how a certificate becomes a key.
//!
//! No interface: nothing else may use it, and it may change at any time.

use cyxcloud_core::receipt::NodeKey;
use rustls::pki_types::CertificateDer;

use crate::identity::{self, PeerKey};

/// The key that who shows these certificates is known by.
pub fn key_of(chain: &[&[u8]]) -> Option<PeerKey> {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
    PeerKey::of_chain(&chain)
}

/// The certificate of an identity.
pub fn certificate_of(key: &NodeKey) -> Vec<u8> {
    identity::self_signed(key).expect("a certificate of fixed form").to_vec()
}
