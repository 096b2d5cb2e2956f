//! Answers `GetChunk` without copying the chunk.
//!
//! tonic's encoder copies each message into a fresh buffer; for chunks of half a megabyte that was a seventh of what
//! a read costs. Here the bytes leave as they came from the store, behind a head of a few bytes. All other methods go
//! to the generated server; on the wire nothing differs.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cyxcloud_proto::node::{GetChunkRequest, GetChunkResponse};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::Service;

const GET_CHUNK: &str = "/cyxcloud.node.v1.ChunkService/GetChunk";
/// Compression flag and length in front of a gRPC message.
const HEAD: usize = 5;
/// Longest request: a thousand slices and a token.
const REQUEST_MAX: usize = 128 << 10;
/// Numbers of the fields of `GetChunkResponse`.
const DATA: u32 = 1;
const PROOF: u32 = 2;

/// The generated server with a door of its own for `GetChunk`.
#[derive(Clone, Debug)]
pub(crate) struct Whole<S> {
    inner: S,
    service: Service,
}

impl<S> Whole<S> {
    pub(crate) fn new(inner: S, service: Service) -> Self {
        Self { inner, service }
    }
}

impl<S: NamedService> NamedService for Whole<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tonic::codegen::Service<Request<Body>> for Whole<S>
where
    S: tonic::codegen::Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() != GET_CHUNK {
            return Box::pin(self.inner.call(request));
        }
        let service = self.service.clone();
        let peer = request.extensions().get().copied();
        Box::pin(async move {
            let answer = async { service.get_measured((decode(request.into_body()).await?, peer)).await };
            Ok(match answer.await {
                Ok(found) => respond(found),
                Err(status) => status.into_http(),
            })
        })
    }
}

/// The one message of a request.
async fn decode(body: Body) -> Result<GetChunkRequest, Status> {
    let received = Limited::new(body, REQUEST_MAX).collect().await;
    let mut bytes = received
        .map_err(|error| match error.downcast::<Status>() {
            Ok(status) => *status,
            Err(error) => Status::invalid_argument(format!("the request could not be read: {error}")),
        })?
        .to_bytes();
    if bytes.len() < HEAD {
        return Err(Status::invalid_argument("the request holds no message"));
    }
    if bytes.get_u8() != 0 {
        return Err(Status::unimplemented("requests are not compressed here"));
    }
    if bytes.get_u32() as usize != bytes.len() {
        return Err(Status::invalid_argument("the request is not exactly one message"));
    }
    GetChunkRequest::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn respond(found: GetChunkResponse) -> Response<Body> {
    let (field, payload) = if found.proof.is_empty() { (DATA, found.data) } else { (PROOF, found.proof) };
    let mut head = BytesMut::with_capacity(HEAD + 16);
    head.put_bytes(0, HEAD);
    if !payload.is_empty() {
        encode_key(field, WireType::LengthDelimited, &mut head);
        encode_varint(payload.len() as u64, &mut head);
    }
    let length = head.len() - HEAD + payload.len();
    let length = u32::try_from(length).expect("a chunk has at most 66 MiB");
    #[cfg(feature = "faults")]
    let length = length + super::lie::Lie::garbles();
    head[1..HEAD].copy_from_slice(&length.to_be_bytes());
    let pieces = [head.freeze(), payload].into_iter().filter(|piece| !piece.is_empty()).collect();
    let mut response = Response::new(Body::new(Frames { pieces, ended: false }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Pieces of one message, and the good end.
#[derive(Debug)]
struct Frames {
    pieces: VecDeque<Bytes>,
    ended: bool,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(found: GetChunkResponse) -> (Vec<u8>, Option<String>) {
        let body = respond(found).into_body().collect().await.expect("in memory");
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        (body.to_bytes().to_vec(), status.and_then(|status| status.to_str().map(str::to_owned).ok()))
    }

    #[tokio::test]
    async fn answers_decode_as_the_generated_messages() {
        for (data, proof) in [(vec![7; 300_000], vec![]), (vec![], vec![9; 17_000]), (vec![], vec![])] {
            let found = GetChunkResponse { data: data.into(), proof: proof.into() };
            let (bytes, status) = sent(found.clone()).await;
            assert_eq!(status.as_deref(), Some("0"));
            assert_eq!(bytes[0], 0);
            assert_eq!(
                u32::from_be_bytes(bytes[1..5].try_into().expect("four")) as usize,
                bytes.len() - HEAD
            );
            assert_eq!(GetChunkResponse::decode(&bytes[HEAD..]).expect("decodes"), found);
        }
    }

    #[tokio::test]
    async fn requests_that_are_not_one_message_are_refused() {
        let whole = |bytes: &[u8]| Body::new(http_body_util::Full::new(Bytes::copy_from_slice(bytes)));
        let good = GetChunkRequest { chunk_id: vec![1; 32].into(), ..GetChunkRequest::default() };
        let mut framed = vec![0, 0, 0, 0, good.encoded_len() as u8];
        framed.extend(good.encode_to_vec());
        assert_eq!(decode(whole(&framed)).await.expect("one message"), good);
        let mut compressed = framed.clone();
        compressed[0] = 1;
        for bad in [&b""[..], &framed[..3], &framed[..20], &compressed, &[0, 0, 0, 0, 2, 0xff, 0xff]] {
            assert!(decode(whole(bad)).await.is_err(), "{bad:?}");
        }
        assert!(decode(whole(&vec![0; REQUEST_MAX + 1])).await.is_err());
    }
}
