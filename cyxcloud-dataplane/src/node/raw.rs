//! Unary gRPC calls that move chunks without copying them.
//!
//! tonic's codec copies each message into one fresh buffer on its way out and another on its way in. Here a chunk
//! leaves as the slice it is, behind a head of a few bytes, and arrives as the pieces that the connection read.
//! Everything else (connection, flow control, status) is tonic's. What is found wrong with an answer here, its length or its
//! form, is the node's lie as other bytes are: `Corrupt`, and not a status, which would be a node's own word.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use cyxcloud_core::ChunkId;
use http_body::{Body as _, Frame, SizeHint};
use prost::Message;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::error::NodeError;

/// Compression flag and length in front of a gRPC message.
const HEAD: usize = 5;

/// Bytes in the pieces they arrived in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces(Vec<Bytes>);

impl Pieces {
    /// Bytes as if they had arrived so many at a time.
    pub(crate) fn of(bytes: &[u8], at_a_time: usize) -> Self {
        Self(bytes.chunks(at_a_time).map(Bytes::copy_from_slice).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Bytes::as_ref)
    }

    /// Whether these are the bytes of this chunk.
    pub(crate) fn is_chunk(&self, chunk: &ChunkId) -> bool {
        let mut hasher = blake3::Hasher::new();
        self.iter().for_each(|piece| {
            hasher.update(piece);
        });
        hasher.finalize().as_bytes() == chunk.as_bytes()
    }

    /// One slice; without a copy where it is one already.
    pub(crate) fn into_bytes(mut self) -> Bytes {
        if self.0.len() > 1 {
            return self.0.concat().into();
        }
        self.0.pop().unwrap_or_default()
    }
}

impl From<Pieces> for Vec<Bytes> {
    fn from(pieces: Pieces) -> Self {
        pieces.0
    }
}

/// Calls `path` with `message`, to which `payload` is added as field number `field` of type `bytes`. Answers with the bytes of
/// the response message. An answer of more than `limit` bytes is refused before it is held. The node is told of `timeout`; that
/// the answer must begin within `first_byte`, it is not told.
pub(crate) async fn unary(
    channel: &Channel,
    path: &'static str,
    message: &impl Message,
    payload: Option<(u32, Bytes)>,
    limit: usize,
    timeout: Duration,
    first_byte: Duration,
) -> Result<Pieces, NodeError> {
    let mut request = http::Request::new(Body::new(Frames::new(message, payload)));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(path);
    let headers = request.headers_mut();
    headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    if let Ok(value) = http::HeaderValue::try_from(format!("{}m", timeout.as_millis().min(99_999_999))) {
        headers.insert("grpc-timeout", value);
    }
    let call = async {
        let mut channel = channel.clone();
        let unavailable = |error: tonic::transport::Error| said(&Status::from_error(Box::new(error)));
        let begins = async { channel.ready().await?.call(request).await };
        let response = tokio::time::timeout(first_byte, begins).await.map_err(late)?.map_err(unavailable)?;
        receive(response, limit).await
    };
    tokio::time::timeout(timeout, call).await.map_err(late)?
}

fn late(_: tokio::time::error::Elapsed) -> NodeError {
    NodeError::TimedOut
}

/// What the node answered, or became of the connection.
fn said(status: &Status) -> NodeError {
    NodeError::from_status(status)
}

/// Reads the one message of a response, and its status.
async fn receive(response: http::Response<Body>, limit: usize) -> Result<Pieces, NodeError> {
    let (parts, mut body) = response.into_parts();
    if parts.status != http::StatusCode::OK {
        return Err(said(&Status::unavailable(format!("HTTP status {}", parts.status.as_u16()))));
    }
    // An error without a message comes in the headers alone.
    if let Some(status) = Status::from_header_map(&parts.headers).filter(|status| status.code() != Code::Ok) {
        return Err(said(&status));
    }
    let mut pieces = Vec::new();
    let mut len = 0;
    let mut ended_well = false;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map_err(|status| said(&status))?.into_data() {
            Ok(data) => {
                len += data.len();
                if len > limit + HEAD {
                    return Err(NodeError::Corrupt);
                }
                if !data.is_empty() {
                    pieces.push(data);
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                match Status::from_header_map(&trailers) {
                    Some(status) if status.code() != Code::Ok => return Err(said(&status)),
                    status => ended_well = status.is_some(),
                }
            }
        }
    }
    if !ended_well {
        return Err(said(&Status::unavailable("the answer broke off")));
    }
    message_of(Pieces(pieces))
}

/// The one message in a body: behind a flag, which must say that it is not compressed, and its length.
pub(crate) fn message_of(body: Pieces) -> Result<Pieces, NodeError> {
    let mut cursor = Cursor::new(body);
    let uncompressed = cursor.byte().ok_or(NodeError::Corrupt)? == 0;
    let length = cursor.take(4).ok_or(NodeError::Corrupt)?;
    let stated = length.iter().flatten().fold(0, |n, &b| n << 8 | usize::from(b));
    if !uncompressed || stated != cursor.left {
        return Err(NodeError::Corrupt);
    }
    cursor.take(stated).ok_or(NodeError::Corrupt)
}

/// The last `bytes` field of this number in a message; empty if there is none. Other fields are skipped.
pub(crate) fn bytes_field(message: Pieces, number: u32) -> Result<Pieces, NodeError> {
    let mut cursor = Cursor::new(message);
    let mut found = Pieces::default();
    while cursor.left > 0 {
        let key = cursor.varint().ok_or(NodeError::Corrupt)?;
        let skip = match key & 7 {
            0 => {
                cursor.varint().ok_or(NodeError::Corrupt)?;
                continue;
            }
            1 => 8,
            2 => {
                usize::try_from(cursor.varint().ok_or(NodeError::Corrupt)?).map_err(|_| NodeError::Corrupt)?
            }
            5 => 4,
            _ => return Err(NodeError::Corrupt),
        };
        let value = cursor.take(skip).ok_or(NodeError::Corrupt)?;
        if key == u64::from(number) << 3 | 2 {
            found = value;
        }
    }
    Ok(found)
}

/// Reads pieces from the front.
struct Cursor {
    pieces: VecDeque<Bytes>,
    left: usize,
}

impl Cursor {
    fn new(pieces: Pieces) -> Self {
        Self { left: pieces.len(), pieces: pieces.0.into() }
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.0.first()?.first().copied()
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, mut len: usize) -> Option<Pieces> {
        if len > self.left {
            return None;
        }
        self.left -= len;
        let mut taken = Vec::with_capacity(1);
        while len > 0 {
            let front = self.pieces.front_mut()?;
            let here = front.split_to(len.min(front.len()));
            len -= here.len();
            if front.is_empty() {
                self.pieces.pop_front();
            }
            if !here.is_empty() {
                taken.push(here);
            }
        }
        Some(Pieces(taken))
    }
}

/// A request body of one gRPC message: its head, then the payload as it is.
#[derive(Debug)]
struct Frames(VecDeque<Bytes>);

impl Frames {
    fn new(message: &impl Message, payload: Option<(u32, Bytes)>) -> Self {
        let encoded = message.encoded_len();
        let mut head = BytesMut::with_capacity(HEAD + encoded + 16);
        head.put_bytes(0, HEAD);
        message.encode_raw(&mut head);
        if let Some((field, payload)) = &payload {
            // Fields may come in any order, so the long one comes last.
            prost::encoding::encode_key(*field, prost::encoding::WireType::LengthDelimited, &mut head);
            prost::encoding::encode_varint(payload.len() as u64, &mut head);
        }
        let payload = payload.map(|(_, payload)| payload).filter(|payload| !payload.is_empty());
        let len = head.len() - HEAD + payload.as_ref().map_or(0, Bytes::len);
        let len = u32::try_from(len).expect("a message is at most 66 MiB");
        head[1..HEAD].copy_from_slice(&len.to_be_bytes());
        Self(std::iter::once(head.freeze()).chain(payload).collect())
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|bytes| bytes.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_proto::node::{GetChunkResponse, StoreChunkRequest};

    use super::*;

    #[test]
    fn a_request_is_what_prost_would_write() {
        let data = Bytes::from(vec![9; 1000]);
        let mut message = StoreChunkRequest {
            chunk_id: vec![1; 32].into(),
            data: Bytes::new(),
            descriptor: vec![2; 200].into(),
            token: Bytes::new(),
        };
        let frames = Frames::new(&message, Some((2, data.clone())));
        let sent = Pieces(frames.0.into()).into_bytes();
        assert_eq!(sent[..HEAD], [0, 0, 0, ((sent.len() - HEAD) >> 8) as u8, (sent.len() - HEAD) as u8]);
        message.data = data;
        assert_eq!(StoreChunkRequest::decode(sent.slice(HEAD..)), Ok(message));
    }

    #[test]
    fn fields_are_found_however_the_message_is_cut() {
        let data: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let message =
            GetChunkResponse { data: data.clone().into(), proof: vec![3; 70].into() }.encode_to_vec();
        for size in [1, 2, 3, 7, 64, 999, 5000] {
            let field = |number| bytes_field(Pieces::of(&message, size), number).expect("valid");
            assert_eq!(field(1).into_bytes(), data);
            assert_eq!(field(2).into_bytes(), vec![3; 70]);
            assert_eq!(field(3), Pieces::default());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in
            [&[0x0a][..], &[0x0a, 5, 1], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x0b, 0], &[0x80; 12]]
        {
            let refused = bytes_field(Pieces::of(nonsense, 2), 1);
            assert!(matches!(refused, Err(NodeError::Corrupt)), "{nonsense:?}: {refused:?}");
        }
        let mut odd = vec![0x18, 0x96, 0x01, 0x21];
        odd.extend([0; 8]);
        odd.extend([0x2d, 0, 0, 0, 0, 0x0a, 1, 77]);
        assert_eq!(bytes_field(Pieces::of(&odd, 3), 1).expect("valid").into_bytes(), vec![77]);
    }

    #[test]
    fn a_body_that_is_not_one_message_is_the_nodes_lie() {
        assert_eq!(message_of(Pieces::of(&[0, 0, 0, 0, 2, 8, 9], 3)).expect("one").into_bytes(), vec![8, 9]);
        for body in [&[][..], &[0, 0, 0], &[1, 0, 0, 0, 1, 7], &[0, 0, 0, 0, 2, 7], &[0, 0, 0, 0, 1, 7, 7]] {
            let refused = message_of(Pieces::of(body, 3));
            assert!(matches!(refused, Err(NodeError::Corrupt)), "{body:?}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_a_lie_and_what_breaks_off_is_not() {
        let answer = |len: usize| {
            let pieces = Frames(std::iter::repeat_n(Bytes::from_static(&[7; 10]), len / 10).collect());
            http::Response::new(Body::new(pieces))
        };
        // Nothing says that it ended well.
        let broken = receive(answer(100 + HEAD), 100).await;
        assert!(matches!(broken, Err(NodeError::Status { code: Code::Unavailable, .. })), "{broken:?}");
        for len in [110, 10_000] {
            let long = receive(answer(len), 100).await;
            assert!(matches!(long, Err(NodeError::Corrupt)), "{len}: {long:?}");
        }
    }
}
