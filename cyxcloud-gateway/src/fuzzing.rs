//! What the fuzz targets in `fuzz/` reach of this crate's inside: the decoders that see a stranger's bytes first.
//!
//! No interface: nothing else may use it, and it may change at any time.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::claims::TokenKind;
use cyxcloud_core::name::BucketName;
use cyxcloud_core::sigv4::{Scope, SigningKey};
use cyxcloud_core::{ChunkId, NodeId, Timestamp};
use cyxcloud_proto::gateway::{HeartbeatRequest, RegisterNodeRequest};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Uri};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use secrecy::ExposeSecret as _;
use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

use crate::auth::jwt::Tokens;
use crate::auth::{AuthError, JwtConfig, Mount, Token, query, rewrite};
use crate::body::{BodyError, ChunkSigner, Chunked, ChunkedDecoder, TrailerChecksums};
use crate::events::{Event, Topic};
use crate::limits::Caller;
use crate::websocket::{self, conversation, credentials, view};
use crate::{nodes, serve};

/// How the chunks of an `aws-chunked` body are signed.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Of the scope below.
    pub key: Arc<SigningKey>,
    /// `x-amz-date`.
    pub amz_date: String,
    /// In which the key holds.
    pub scope: Scope,
    /// Signature of the request's head.
    pub seed: String,
}

/// What an `aws-chunked` body held: its data, and the trailers if it could have some.
pub type Unframed = (Vec<u8>, Option<Vec<(String, String)>>);

/// Takes the framing off a body that comes in these pieces.
pub fn unframe(
    pieces: impl IntoIterator<Item = Bytes>,
    decoded_len: u64,
    seal: Option<Seal>,
    trailers: Option<Vec<String>>,
) -> Result<Unframed, BodyError> {
    let signer = seal.map(|Seal { key, amz_date, scope, seed }| ChunkSigner::new(key, amz_date, scope, seed));
    let trailers = trailers.map(TrailerChecksums::expecting);
    let mut decoder = ChunkedDecoder::new(Chunked { decoded_len, signer, trailers: trailers.clone() });
    let mut data = Vec::new();
    for mut piece in pieces {
        while let Some(part) = decoder.next(&mut piece)? {
            data.extend_from_slice(&part);
        }
    }
    decoder.finish()?;
    Ok((data, trailers.and_then(|trailers| trailers.get().map(<[_]>::to_vec))))
}

/// Decodes percent-encoded text.
pub fn decode(text: &str) -> Option<String> {
    query::decode(text).ok()
}

/// A query as names and values.
pub fn query_pairs(text: &str) -> Option<Vec<(String, String)>> {
    query::parse(Some(text)).ok()
}

/// The query that reads as these names and values.
pub fn query_text(pairs: &[(String, String)]) -> String {
    query::render(pairs.iter())
}

/// The path that is handed on for one that was sent.
pub fn plain_path(raw: &str, mount: Mount, bucket: Option<&BucketName>) -> Result<String, AuthError> {
    rewrite::plain_path(raw, mount, bucket)
}

/// What a token says, if it is one of ours.
pub fn verify_token(
    config: &JwtConfig,
    token: &str,
    now: Timestamp,
    kinds: &[TokenKind],
) -> Result<Token, AuthError> {
    Tokens::new(config.clone()).verify(token, now, kinds)
}

/// The key of a node that registers, if it proves to have it.
pub fn registered_key(request: &RegisterNodeRequest, now: Timestamp) -> Result<[u8; 32], tonic::Status> {
    nodes::service::check_registration(request, now).map(|(key, _)| key)
}

/// libp2p's id of a key.
pub fn peer_id(public_key: &[u8; 32]) -> String {
    nodes::service::peer_id(public_key)
}

/// How HTTP is spoken on a connection.
pub fn protocol() -> auto::Builder<TokioExecutor> {
    serve::protocol()
}

/// What a heartbeat says: of which node it is, its loads in percent, and the chunks that it reports.
pub fn heartbeat(beat: &HeartbeatRequest) -> Result<(NodeId, [f64; 2], Vec<ChunkId>), tonic::Status> {
    let id = nodes::service::node_id(&beat.node_id)?;
    let loads = [beat.cpu_usage, beat.memory_usage].map(nodes::service::percent);
    Ok((id, loads, nodes::service::corrupt_chunks(&beat.corrupt_chunks)?))
}

/// What a socket's address becomes: the address without credentials, the ticket, and the `Authorization` header.
pub type Taken = (Uri, Option<String>, Option<HeaderValue>);

/// Takes credentials out of the address of a socket.
pub fn take_credentials(uri: &Uri, authorization: Option<&HeaderValue>) -> Result<Taken, AuthError> {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.uri = uri.clone();
    parts.headers.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
    let ticket = credentials::take(&mut parts)?;
    let ticket = ticket.map(|ticket| ticket.expose_secret().to_owned());
    Ok((parts.uri, ticket, parts.headers.remove(AUTHORIZATION)))
}

/// The topics that the address of a socket asks for.
pub fn topics(list: Option<&str>) -> Option<Vec<Topic>> {
    view::topics(list).ok().map(|topics| topics.into_iter().collect())
}

/// Whether somebody is told of an event of their own.
pub fn may_know(event: &Event, caller: &Caller) -> bool {
    view::may_know(event, caller)
}

/// Whether a message over a socket asks for an answer.
pub fn asks(text: &str) -> bool {
    conversation::asks(text)
}

/// The messages in what came over a socket, so many bytes at a time; and the code that its peer is told at the end, if any.
pub fn messages(sent: &[u8], at_a_time: usize) -> (Vec<Message>, Option<u16>) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(websocket::MESSAGE_MAX))
        .max_frame_size(Some(websocket::MESSAGE_MAX))
        .read_buffer_size(websocket::READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(websocket::WRITE_BUFFER_MAX);
    let mut socket = WebSocket::from_raw_socket(Peer { sent, at_a_time }, Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(message),
            Err(error) => return (messages, conversation::code_of(error)),
        }
    }
}

/// The other end of a socket: it has sent this, and takes everything.
struct Peer<'a> {
    sent: &'a [u8],
    at_a_time: usize,
}

impl Read for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.at_a_time);
        self.sent.read(&mut buffer[..len])
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
