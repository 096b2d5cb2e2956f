//! Dials with TLS: nodes by their pinned key, gateways by their name and an authority.

use std::io;
use std::path::Path;
use std::sync::Arc;

use cyxcloud_core::receipt::NodeKey;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::warn;

use crate::accept::NetStream;
use crate::files::{TlsError, authorities};
use crate::identity;

/// How a server is dialled whose certificate an authority has signed: one of those in the file, or else of those that the system
/// trusts. Our own key is shown if it asks for one.
pub fn trusting(authority: Option<&Path>, own: &NodeKey) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    match authority {
        Some(path) => {
            for certificate in authorities(path)? {
                roots.add(certificate)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                warn!("this system has no certificates of authorities; TLS_CA names a file that has them");
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(crate::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_cert_resolver(identity::client_identity(own));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Shakes hands over a connection to `host`, a name or an address.
pub async fn secure(config: Arc<ClientConfig>, host: &str, stream: TcpStream) -> io::Result<NetStream> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    Ok(NetStream::Tls(Box::new(stream.into())))
}
