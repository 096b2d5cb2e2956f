//! Sends a chunk to another node, whose address a stranger may have chosen: resolved once, judged, and connected to
//! exactly as judged. No redirects exist in gRPC, and no proxy is used. Behind https it must hold the key that the caller named.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::receipt::NodeKey;
use cyxcloud_proto::MESSAGE_BYTES_MAX;
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::{StoreChunkRequest, StoreChunkResponse};
use cyxcloud_tls::identity::{self, ClientConfig};
use cyxcloud_tls::{NetStream, connect};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Status};

use crate::{CONNECTION_WINDOW, FRAME_BYTES, STREAM_WINDOW};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a chunk goes, judged.
#[derive(Debug)]
pub(super) struct Target {
    address: SocketAddr,
    /// How it must be spoken to, unless in plain text.
    tls: Option<Arc<ClientConfig>>,
}

/// The first allowed address behind `http://host:port` or `https://host:port`.
pub(super) async fn resolve(
    url: &str,
    target_key: &[u8],
    own: &NodeKey,
    policy: &AddressPolicy,
) -> Result<Target, Status> {
    let wrong = || Status::invalid_argument("target_address must be a URL such as http://192.0.2.7:50051");
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong());
    }
    let tls = match uri.scheme_str() {
        Some("http") => None,
        Some("https") => {
            let key = target_key.try_into().map_err(|_| {
                Status::invalid_argument(
                    "target_key must be the 32 bytes of the key behind an https:// address",
                )
            })?;
            Some(identity::client_config(own, key))
        }
        _ => return Err(wrong()),
    };
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    let port = uri.port_u16().ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| Status::unavailable("the target's name was not resolved in time"))?
        .map_err(|error| Status::unavailable(format!("could not resolve the target's name: {error}")))?;
    let mut refused = None;
    for address in found {
        match policy.check(address) {
            Ok(()) => return Ok(Target { address, tls }),
            Err(why) => refused = Some(why),
        }
    }
    Err(match refused {
        Some(why) => Status::permission_denied(why.to_string()),
        None => Status::unavailable("the target's name has no address"),
    })
}

/// Stores one chunk at a judged address.
pub(super) async fn store(target: Target, request: StoreChunkRequest) -> Result<StoreChunkResponse, Status> {
    let Target { address, tls } = target;
    let connector = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = match tls {
                None => NetStream::Plain(stream),
                Some(tls) => connect::secure(tls, &address.ip().to_string(), stream).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::internal(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(STORE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .connect_with_connector(connector)
        .await
        .map_err(|error| Status::unavailable(format!("could not connect to the target: {error}")))?;
    let mut client = ChunkServiceClient::new(channel)
        .max_decoding_message_size(1 << 20)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    // tonic has no code of its own for a connection that broke, such as one to a port that speaks TLS.
    let broken = |status: Status| match status.code() {
        Code::Unknown => Status::unavailable(format!("the target hung up: {}", status.message())),
        _ => status,
    };
    Ok(client.store_chunk(request).await.map_err(broken)?.into_inner())
}
