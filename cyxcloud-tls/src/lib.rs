//! TLS for every port: certificates from files for people, nodes' own keys for nodes.
//!
//! What people and their clients reach (HTTP, the gateway's gRPC) shows a certificate that an operator brought ([`files`]), reloaded
//! when it changes. Nodes have no names and need no authority: a node's certificate is made from its Ed25519 identity, and whoever
//! dials it knows which key to expect ([`identity`]).
//! Who is behind a connection, as far as limits are concerned, is said here too ([`client`]), and how many an address may have
//! ([`crowd`]), for every port.
//! Not here: what a key may do, and the sockets (each server accepts by itself and hands a connection to [`accept`]).

pub mod accept;
pub mod client;
pub mod connect;
pub mod crowd;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod identity;
mod metrics;
pub mod server_key;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use accept::{Acceptor, NetStream, Protocols, SECURE_FOR_A_YEAR};
pub use files::{ServerCertificate, TlsArgs, TlsError};
pub use identity::PeerKey;
pub use metrics::Metrics;
pub use server_key::{ServerKey, ServerKeyArgs, ServerKeyError};

/// The one implementation of cryptography; passed wherever rustls asks, so that no process-wide default decides.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
