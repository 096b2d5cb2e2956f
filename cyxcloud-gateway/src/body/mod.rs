//! Request bodies: takes the transfer framing off and checks what was promised about the bytes.
//!
//! [`S3Body`] streams: it buffers one line of framing at most and hands data on as slices of what came in, except
//! that the last slice leaves only after everything has been checked. So whoever has all bytes has the right bytes,
//! even if it stops asking once it counted them.
//! Not here: which framing a request has ([`crate::auth`]), checksums of the content (`objects`).

mod chunked;
mod error;
mod trailers;

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest::{self, SHA256};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;

pub(crate) use chunked::{ChunkSigner, Chunked, ChunkedDecoder};
pub use error::BodyError;
pub use trailers::TrailerChecksums;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the head of a request promised about its body.
#[derive(Debug)]
pub(crate) enum Framing {
    /// The bytes as they are.
    Plain {
        /// `Content-Length`, if given.
        length: Option<u64>,
        /// SHA-256 of the whole, if given.
        sha256: Option<[u8; 32]>,
    },
    /// `aws-chunked`.
    Chunked(Chunked),
}

/// The body of a verified request: its plain bytes, or an error before its end.
pub struct S3Body {
    inner: UnsyncBoxBody<Bytes, BoxError>,
    input: Bytes,
    decoder: Decoder,
    held: Option<Bytes>,
    state: State,
    length: Option<u64>,
    sent: u64,
}

enum State {
    Reading,
    /// Known to be wrong before the first poll.
    Wrong(BodyError),
    Ended,
}

impl fmt::Debug for S3Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Body")
            .field("length", &self.length)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl S3Body {
    pub(crate) fn new<B>(inner: B, framing: Framing) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (length, decoder) = match framing {
            Framing::Plain { length, sha256 } => (length, Decoder::Plain(Plain::new(length, sha256))),
            Framing::Chunked(chunked) => {
                (Some(chunked.decoded_len), Decoder::Chunked(Box::new(ChunkedDecoder::new(chunked))))
            }
        };
        // Tells callers that look before they poll: an empty body is one that has ended.
        let state = match inner.is_end_stream().then(|| decoder.finish()) {
            None => State::Reading,
            Some(Ok(())) => State::Ended,
            Some(Err(error)) => State::Wrong(error),
        };
        let inner = inner.map_err(Into::into).boxed_unsync();
        Self { inner, input: Bytes::new(), decoder, held: None, state, length, sent: 0 }
    }

    /// A body of no bytes.
    pub fn empty() -> Self {
        Self::from_bytes(Bytes::new())
    }

    /// A body in memory.
    pub fn from_bytes(bytes: Bytes) -> Self {
        let length = Some(bytes.len() as u64);
        Self::new(http_body_util::Full::new(bytes), Framing::Plain { length, sha256: None })
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.state = State::Ended;
        self.held = None;
        self.input = Bytes::new();
        Poll::Ready(Some(Err(error)))
    }

    fn send(&mut self, data: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.sent += data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

impl Body for S3Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match std::mem::replace(&mut this.state, State::Ended) {
            State::Reading => this.state = State::Reading,
            State::Wrong(error) => return Poll::Ready(Some(Err(error))),
            State::Ended => return Poll::Ready(None),
        }
        loop {
            match this.decoder.next(&mut this.input) {
                Ok(Some(data)) => match this.held.replace(data) {
                    Some(data) => return this.send(data),
                    None => continue,
                },
                Ok(None) => {}
                Err(error) => return this.fail(error),
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                // Trailers of HTTP itself are nobody's: S3 has its own.
                Some(Ok(frame)) => this.input = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return this.fail(BodyError::Read(error)),
                None => {
                    if let Err(error) = this.decoder.finish() {
                        return this.fail(error);
                    }
                    this.state = State::Ended;
                    return match this.held.take() {
                        Some(data) => this.send(data),
                        None => Poll::Ready(None),
                    };
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.state, self.length) {
            (State::Ended, _) => SizeHint::with_exact(0),
            (_, Some(length)) => SizeHint::with_exact(length.saturating_sub(self.sent)),
            (_, None) => SizeHint::default(),
        }
    }
}

enum Decoder {
    Plain(Plain),
    Chunked(Box<ChunkedDecoder>),
}

impl Decoder {
    /// The next slice of data in `input`; `None` once all of it is used up.
    fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, BodyError> {
        match self {
            Self::Plain(plain) => plain.next(input),
            Self::Chunked(chunked) => chunked.next(input),
        }
    }

    fn finish(&self) -> Result<(), BodyError> {
        match self {
            Self::Plain(plain) => plain.finish(),
            Self::Chunked(chunked) => chunked.finish(),
        }
    }
}

/// Counts, and hashes where a hash was promised.
struct Plain {
    length: Option<u64>,
    got: u64,
    hash: Option<(digest::Context, [u8; 32])>,
}

impl Plain {
    fn new(length: Option<u64>, sha256: Option<[u8; 32]>) -> Self {
        Self { length, got: 0, hash: sha256.map(|want| (digest::Context::new(&SHA256), want)) }
    }

    fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, BodyError> {
        if input.is_empty() {
            return Ok(None);
        }
        let data = std::mem::take(input);
        self.got += data.len() as u64;
        if let Some(want) = self.length.filter(|want| self.got > *want) {
            return Err(BodyError::TooLong { want });
        }
        if let Some((hash, _)) = &mut self.hash {
            hash.update(&data);
        }
        Ok(Some(data))
    }

    fn finish(&self) -> Result<(), BodyError> {
        if let Some(want) = self.length.filter(|want| self.got < *want) {
            return Err(BodyError::Incomplete { got: self.got, want });
        }
        match &self.hash {
            Some((hash, want)) if hash.clone().finish().as_ref() != want => Err(BodyError::Sha256Mismatch),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
