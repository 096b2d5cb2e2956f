//! Dials nodes. The address is a stranger's word: it is resolved once, checked, and what was checked is dialled.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::address::AddressPolicy;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::error::{DialError, NodeError};

/// Largest HTTP/2 frame: a chunk is one or two of them and not thirty.
const FRAME_BYTES: u32 = 1 << 20;
/// Bytes under way per call and per connection before the receiver says "go on".
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A channel to `address` that connects when it is first used, and again whenever the connection was lost.
pub(crate) fn channel(
    address: &str,
    policy: Arc<AddressPolicy>,
    connect_timeout: Duration,
) -> Result<Channel, NodeError> {
    let bad = || NodeError::BadAddress { address: address.chars().take(200).collect() };
    let uri: Uri = address.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.port_u16().is_none() {
        return Err(bad());
    }
    let endpoint = Endpoint::from(uri)
        .connect_timeout(connect_timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    let connector = tower::service_fn(move |uri: Uri| {
        let policy = policy.clone();
        async move { dial(&uri, &policy).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
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

    #[test]
    fn addresses_that_are_no_urls_are_refused() {
        let policy = Arc::new(AddressPolicy::default());
        for address in ["", "localhost", "https://a:1", "http://a", "ftp://a:1", "http://a:99999"] {
            assert!(channel(address, policy.clone(), Duration::from_secs(1)).is_err(), "{address}");
        }
    }
}
