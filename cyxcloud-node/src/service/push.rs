//! Sends a chunk to another node, whose address a stranger may have chosen: resolved once, judged, and connected to
//! exactly as judged. No redirects exist in gRPC, and no proxy is used.

use std::net::SocketAddr;
use std::time::Duration;

use cyxcloud_core::address::AddressPolicy;
use cyxcloud_proto::MESSAGE_BYTES_MAX;
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::{StoreChunkRequest, StoreChunkResponse};
use tonic::Status;
use tonic::transport::{Endpoint, Uri};

use crate::{CONNECTION_WINDOW, FRAME_BYTES, STREAM_WINDOW};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// The first allowed address behind `http://host:port`.
pub(super) async fn resolve(url: &str, policy: &AddressPolicy) -> Result<SocketAddr, Status> {
    let wrong = || Status::invalid_argument("target_address must be a URL such as http://192.0.2.7:50051");
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong());
    }
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
            Ok(()) => return Ok(address),
            Err(why) => refused = Some(why),
        }
    }
    Err(match refused {
        Some(why) => Status::permission_denied(why.to_string()),
        None => Status::unavailable("the target's name has no address"),
    })
}

/// Stores one chunk at a judged address.
pub(super) async fn store(
    target: SocketAddr,
    request: StoreChunkRequest,
) -> Result<StoreChunkResponse, Status> {
    let channel = Endpoint::from_shared(format!("http://{target}"))
        .map_err(|error| Status::internal(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(STORE_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .connect()
        .await
        .map_err(|error| Status::unavailable(format!("could not connect to the target: {error}")))?;
    let mut client = ChunkServiceClient::new(channel)
        .max_decoding_message_size(1 << 20)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Ok(client.store_chunk(request).await?.into_inner())
}
