//! Dials nodes. The address is a stranger's word: it is resolved once, checked, and what was checked is dialled.
//! Where the address says https, whoever answers must hold the key that the node registered with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cyxcloud_core::NodeId;
use cyxcloud_core::address::AddressPolicy;
use cyxcloud_tls::identity::{self, ClientConfig};
use cyxcloud_tls::{NetStream, ServerKey};
use http::Uri;
use hyper_util::rt::TokioIo;
use prometheus::IntCounter;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tracing::warn;

use crate::error::{DialError, NodeError};

/// Largest HTTP/2 frame: a chunk is one or two of them and not thirty.
const FRAME_BYTES: u32 = 1 << 20;
/// Bytes under way per call and per connection before the receiver says "go on".
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What every connection to a node is made with.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) policy: Arc<AddressPolicy>,
    /// Shown to nodes that speak TLS.
    pub(crate) key: ServerKey,
    pub(crate) connect_timeout: Duration,
    pub(crate) other_identities: IntCounter,
}

impl Dialer {
    /// A channel to a node that connects when it is first used, and again whenever the connection was lost. Behind an https
    /// address nobody will do but who holds `public_key`.
    pub(crate) fn channel(
        &self,
        address: &str,
        node: NodeId,
        public_key: [u8; 32],
    ) -> Result<Channel, NodeError> {
        let bad = || NodeError::BadAddress { address: address.chars().take(200).collect() };
        let uri: Uri = address.parse().map_err(|_| bad())?;
        if uri.host().is_none() || uri.port_u16().is_none() {
            return Err(bad());
        }
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(identity::client_config(self.key.identity(), public_key)),
            _ => return Err(bad()),
        };
        let endpoint = cyxcloud_tls::grpc::endpoint(uri)
            .connect_timeout(self.connect_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        let refusals = Refusals { node, count: self.other_identities.clone(), said: AtomicBool::new(false) };
        let (policy, refusals) = (self.policy.clone(), Arc::new(refusals));
        let connector = tower::service_fn(move |uri: Uri| {
            let (policy, tls, refusals) = (policy.clone(), tls.clone(), refusals.clone());
            async move {
                let connected = connect(&uri, &policy, tls).await;
                refusals.note(&connected);
                connected.map(TokioIo::new)
            }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

/// Says once, and counts each time, that somebody else answers at a node's address.
struct Refusals {
    node: NodeId,
    count: IntCounter,
    said: AtomicBool,
}

impl Refusals {
    fn note(&self, connected: &Result<NetStream, DialError>) {
        match connected {
            Ok(_) => self.said.store(false, Ordering::Relaxed),
            Err(DialError::Tls(error)) if identity::is_other_identity(error) => {
                self.count.inc();
                if !self.said.swap(true, Ordering::Relaxed) {
                    warn!(node = %self.node, %error, "somebody else answers at the address of a node; it counts as unreachable");
                }
            }
            Err(_) => {}
        }
    }
}

/// Connects, and shakes hands where there is TLS.
async fn connect(
    uri: &Uri,
    policy: &AddressPolicy,
    tls: Option<Arc<ClientConfig>>,
) -> Result<NetStream, DialError> {
    let stream = dial(uri, policy).await?;
    let Some(tls) = tls else { return Ok(NetStream::Plain(stream)) };
    let host = stream.peer_addr().map_err(DialError::Connect)?.ip().to_string();
    cyxcloud_tls::connect::secure(tls, &host, stream).await.map_err(DialError::Tls)
}

/// Connects to the first address of the host that the policy lets through and that answers.
async fn dial(uri: &Uri, policy: &AddressPolicy) -> Result<TcpStream, DialError> {
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { return Err(DialError::NoHost) };
    // IPv6 literals stand in brackets in a URI.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(DialError::Resolve)?;
    let mut failure = DialError::NoAddress;
    for address in addresses {
        if let Err(refused) = policy.check(address) {
            failure = refused.into();
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(DialError::Connect)?;
                return Ok(stream);
            }
            Err(error) => failure = DialError::Connect(error),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::receipt::NodeKey;
    use cyxcloud_tls::Acceptor;

    use super::*;

    #[tokio::test]
    async fn only_checked_addresses_are_dialled() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("bound").port();
        let uri: Uri = format!("http://127.0.0.1:{port}").parse().expect("valid");
        let refused = dial(&uri, &AddressPolicy::default()).await;
        assert!(matches!(refused, Err(DialError::Refused(_))), "{refused:?}");
        let policy = AddressPolicy { loopback: true, ..AddressPolicy::default() };
        dial(&uri, &policy).await.expect("allowed");
    }

    fn dialer() -> Dialer {
        Dialer {
            policy: Arc::new(AddressPolicy { loopback: true, ..AddressPolicy::default() }),
            key: ServerKey::for_this_run(),
            connect_timeout: Duration::from_secs(1),
            other_identities: IntCounter::new("other", "for a test").expect("valid"),
        }
    }

    #[tokio::test]
    async fn addresses_that_are_no_urls_are_refused() {
        let node = NodeId::from_random([1; 16]);
        for address in ["", "localhost", "https://a", "http://a", "ftp://a:1", "http://a:99999"] {
            assert!(dialer().channel(address, node, [0; 32]).is_err(), "{address}");
        }
        for address in ["https://127.0.0.1:1", "http://127.0.0.1:1"] {
            assert!(dialer().channel(address, node, [0; 32]).is_ok(), "{address}");
        }
    }

    #[tokio::test]
    async fn who_answers_with_another_key_is_refused_and_counted_each_time() {
        let [own, other] = [7, 8].map(|n| NodeKey::from_seed([n; 32]));
        let acceptor = Acceptor::of_identity(&own, cyxcloud_tls::Metrics::unregistered());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = format!("https://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = NetStream::open(Some(&acceptor), stream).await;
            }
        });
        let (dialer, uri) = (dialer(), address.parse::<Uri>().expect("valid"));
        let try_with = async |key: &NodeKey| {
            let tls = identity::client_config(dialer.key.identity(), key.public());
            connect(&uri, &dialer.policy, Some(tls)).await
        };
        try_with(&own).await.expect("the node itself");
        let refused = try_with(&other).await;
        assert!(
            matches!(&refused, Err(DialError::Tls(error)) if identity::is_other_identity(error)),
            "{refused:?}"
        );
        let refusals = Refusals {
            node: NodeId::from_random([1; 16]),
            count: dialer.other_identities.clone(),
            said: AtomicBool::new(false),
        };
        refusals.note(&refused);
        refusals.note(&refused);
        assert_eq!(dialer.other_identities.get(), 2);
    }
}
