//! A connection that was accepted becomes a secure one, in the task of that connection and within a time limit.
//!
//! Without a certificate it stays what it was: one type for both, so that servers are written once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cyxcloud_core::receipt::NodeKey;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tracing::debug;

use crate::files::{ServerCertificate, TlsError};
use crate::identity::{self, PeerKey};
use crate::metrics::Metrics;

/// Who has come by TLS comes by TLS for a year: what HTTP says over it in `Strict-Transport-Security` (RFC 6797).
pub const SECURE_FOR_A_YEAR: &str = "max-age=31536000";
/// A client has this long for its side of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is spoken above TLS on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/2 and HTTP/1.1, for everybody.
    Http,
    /// HTTP/2 only; who has an Ed25519 identity may show it.
    Grpc,
}

/// Makes accepted connections secure.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    port: &'static str,
    metrics: Metrics,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Shows a certificate from files.
    pub fn new(
        certificate: Arc<ServerCertificate>,
        protocols: Protocols,
        metrics: Metrics,
    ) -> Result<Self, TlsError> {
        let config = config(certificate, protocols)?;
        let port = match protocols {
            Protocols::Http => "http",
            Protocols::Grpc => "grpc",
        };
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), port, metrics })
    }

    /// Shows a certificate made from an identity, on the port of a node.
    pub fn of_identity(own: &NodeKey, metrics: Metrics) -> Self {
        Self { tls: TlsAcceptor::from(identity::server_config(own)), port: "node", metrics }
    }

    /// Shakes hands. What fails is counted, and the connection is cut.
    async fn secure(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let (reason, error) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => return Ok(stream.into()),
            Ok(Err(error)) => (reason(&error), error),
            Err(_) => ("timeout", io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")),
        };
        self.metrics.failures.with_label_values(&[self.port, reason]).inc();
        debug!(port = self.port, reason, %error, "a TLS handshake failed");
        Err(error)
    }
}

fn config(certificate: Arc<ServerCertificate>, protocols: Protocols) -> Result<ServerConfig, TlsError> {
    let resolver: Arc<dyn ResolvesServerCert> = certificate;
    let builder =
        ServerConfig::builder_with_provider(crate::provider()).with_safe_default_protocol_versions()?;
    Ok(match protocols {
        Protocols::Http => {
            let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            config
        }
        Protocols::Grpc => {
            let mut config =
                builder.with_client_cert_verifier(identity::any_identity()).with_cert_resolver(resolver);
            config.alpn_protocols = vec![b"h2".to_vec()];
            config
        }
    })
}

/// A word for metrics: what a client did wrong, or that it left.
fn reason(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        // Plain HTTP looks like a record of an unknown type.
        Some(rustls::Error::InvalidMessage(_)) => "not_tls",
        Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
        Some(rustls::Error::AlertReceived(_)) => "refused_by_client",
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::Other(_)) => "client_certificate",
        Some(rustls::Error::NoApplicationProtocol) => "alpn",
        Some(_) => "protocol",
        None => "closed",
    }
}

/// A connection, secure or plain, accepted or dialled.
#[derive(Debug)]
pub enum NetStream {
    /// As it came.
    Plain(TcpStream),
    /// After a handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl NetStream {
    /// Shakes hands where there is a certificate.
    pub async fn open(acceptor: Option<&Acceptor>, stream: TcpStream) -> io::Result<Self> {
        match acceptor {
            None => Ok(Self::Plain(stream)),
            Some(acceptor) => acceptor.secure(stream).await.map(Box::new).map(Self::Tls),
        }
    }

    /// The identity that the other end has proven, if it showed one.
    pub fn peer_key(&self) -> Option<PeerKey> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => PeerKey::of_chain(stream.get_ref().1.peer_certificates()?),
        }
    }

    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for NetStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for NetStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
