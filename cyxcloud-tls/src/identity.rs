//! Certificates of nodes and of our own servers: made from an Ed25519 key, and known by it alone.
//!
//! Names, dates and issuers in them mean nothing. Whoever dials a node knows its key from its registration, and the handshake
//! proves possession of it; a node lets anybody shake hands and remembers the key that was shown, for what is decided later.
//! TLS 1.3 only.

use std::fmt;
use std::sync::Arc;

use cyxcloud_core::receipt::{NodeKey, is_usable_key};
pub use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    ServerConfig, SignatureScheme,
};

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What stands before the 32 bytes of an Ed25519 seed in PKCS #8 (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The Ed25519 key that the other end of a connection has proven to hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerKey(pub [u8; 32]);

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerKey({self})")
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl PeerKey {
    /// The key that a certificate is made from, if it is an Ed25519 one.
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let key = spki.strip_prefix(&SPKI_PREFIX).and_then(|key| <[u8; 32]>::try_from(key).ok());
        // A weak key has signatures that anybody can make.
        key.filter(is_usable_key).map(Self).ok_or_else(|| refused(NoIdentity))
    }

    /// The key of the first certificate of a chain.
    pub(crate) fn of_chain(chain: &[CertificateDer<'_>]) -> Option<Self> {
        Self::of(chain.first()?).ok()
    }
}

/// The certificate is not one of an Ed25519 identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate shown is not made from an Ed25519 key")]
pub struct NoIdentity;

/// Somebody else answers at a node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("who answers is {found} and not {expected}, the node that is registered at this address")]
pub struct OtherIdentity {
    /// The key that was pinned.
    pub expected: PeerKey,
    /// The key that was shown.
    pub found: PeerKey,
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(OtherError(Arc::new(error)))
}

/// Whether a connection failed because somebody else answered: another key, or no identity at all.
pub fn is_other_identity(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(tls, Some(Error::Other(OtherError(why))) if why.is::<OtherIdentity>() || why.is::<NoIdentity>())
}

/// The certificate of an identity, with what signs for it.
fn certified(key: &NodeKey) -> CertifiedKey {
    let pkcs8 = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], &key.seed()].concat());
    let certificate = self_signed(key).expect("a certificate of fixed form");
    let provider = crate::provider();
    let signer = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(pkcs8));
    CertifiedKey::new(vec![certificate], signer.expect("any seed is a key"))
}

pub(crate) fn self_signed(key: &NodeKey) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = rcgen::CertificateParams::default();
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, format!("cyxcloud {}", hex::encode(&key.public()[..8])));
    params.distinguished_name = name;
    params.serial_number = Some(1u64.into());
    Ok(params.self_signed(&Signer { key, public: key.public() })?.der().clone())
}

/// The key as rcgen wants it.
struct Signer<'a> {
    key: &'a NodeKey,
    public: [u8; 32],
}

impl rcgen::PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_vec())
    }
}

/// How a node accepts: with its own key; anybody may come, with a key or without.
pub fn server_config(own: &NodeKey) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3 is built in")
        .with_client_cert_verifier(any_identity())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified(own))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// How a node is dialled: nobody but who holds `pinned` will do, and our own key is shown.
pub fn client_config(own: &NodeKey, pinned: [u8; 32]) -> Arc<ClientConfig> {
    let verifier = Arc::new(Pinned(PeerKey(pinned)));
    let mut config = ClientConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3 is built in")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(client_identity(own));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Connections last; each proves the key anew.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Shows an identity to servers that ask for one.
pub(crate) fn client_identity(own: &NodeKey) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(certified(own)))
}

/// Lets everybody in who shows no certificate, or one of an Ed25519 identity.
pub(crate) fn any_identity() -> Arc<dyn ClientCertVerifier> {
    Arc::new(AnyIdentity)
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(refused(NoIdentity));
    }
    let algorithms = crate::provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signature, &algorithms)
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
}

/// Believes one key.
#[derive(Debug)]
struct Pinned(PeerKey);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = PeerKey::of(end_entity)?;
        match found == self.0 {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(refused(OtherIdentity { expected: self.0, found })),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Believes any key, and that there may be none.
#[derive(Debug)]
struct AnyIdentity;

impl ClientCertVerifier for AnyIdentity {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        PeerKey::of(end_entity)
            .map(|_| ClientCertVerified::assertion())
            .map_err(|_| Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests;
