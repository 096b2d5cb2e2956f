//! What the fuzz targets in `fuzz/` reach of this crate's inside: the decoders that see a stranger's bytes first.
//!
//! No interface: nothing else may use it, and it may change at any time.

use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::Timestamp;
use cyxcloud_core::name::BucketName;
use cyxcloud_core::sigv4::{Scope, SigningKey};
use cyxcloud_proto::gateway::RegisterNodeRequest;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;

use crate::auth::jwt::Tokens;
use crate::auth::{AuthError, JwtConfig, Kind, Mount, Token, query, rewrite};
use crate::body::{BodyError, ChunkSigner, Chunked, ChunkedDecoder, TrailerChecksums};
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
    kinds: &[Kind],
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
