//! Takes the `aws-chunked` framing off, and checks its signatures.
//!
//! One pass, no copies: data leaves as slices of what came in. Only an unfinished line is buffered, at most
//! [`LINE_MAX`] bytes. The grammar is strict, so that a stream has one reading only:
//!
//! ```text
//! body    = *chunk last
//! chunk   = size [";chunk-signature=" 64-hex] CRLF bytes CRLF
//! last    = "0" [";chunk-signature=" 64-hex] CRLF [*trailer [signature]] CRLF
//! trailer = name ":" value CRLF
//! ```

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf, Bytes};
use cyxcloud_core::sigv4::{self, EMPTY_SHA256, Scope, SigningKey};

use super::{BodyError, TrailerChecksums};

/// Longest line of framing, chunk header or trailer.
const LINE_MAX: usize = 8 << 10;
/// Most trailers, and their bytes in all.
const TRAILERS_MAX: usize = 100;
const TRAILER_BYTES_MAX: usize = 16 << 10;
/// Longest signed chunk. (An unsigned one may be the whole body.)
const SIGNED_CHUNK_MAX: u64 = 16 << 20;
/// Shortest signed chunk but the last: every signature costs us a hash, so small ones would be cheap to send and
/// dear to check. S3 has the same rule.
const SIGNED_CHUNK_MIN: u64 = 8 << 10;

const SIGNATURE_TRAILER: &str = "x-amz-trailer-signature";

/// Checks the chain of signatures that begins with the request's own.
pub(crate) struct ChunkSigner {
    key: Arc<SigningKey>,
    amz_date: String,
    scope: Scope,
    previous: String,
}

impl fmt::Debug for ChunkSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkSigner").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl ChunkSigner {
    /// `seed` is the verified signature of the request's head, in lower-case hexadecimal.
    pub(crate) fn new(key: Arc<SigningKey>, amz_date: String, scope: Scope, seed: String) -> Self {
        Self { key, amz_date, scope, previous: seed }
    }

    fn chunk_matches(&mut self, sha256_hex: &str, given: &str) -> bool {
        let text = sigv4::chunk_string_to_sign(&self.amz_date, &self.scope, &self.previous, sha256_hex);
        self.matches(&text, given)
    }

    fn trailers_match(&mut self, trailers: &str, given: &str) -> bool {
        let text = sigv4::trailer_string_to_sign(&self.amz_date, &self.scope, &self.previous, trailers);
        self.matches(&text, given)
    }

    fn matches(&mut self, text: &str, given: &str) -> bool {
        let right = sigv4::signature(&self.key, text);
        self.previous = hex::encode(right);
        sigv4::signatures_match(&right, given)
    }
}

/// How a chunked body is framed.
#[derive(Debug)]
pub(crate) struct Chunked {
    /// `x-amz-decoded-content-length`.
    pub(crate) decoded_len: u64,
    /// For bodies whose chunks are signed.
    pub(crate) signer: Option<ChunkSigner>,
    /// For bodies that end in trailers.
    pub(crate) trailers: Option<TrailerChecksums>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the header line of a chunk.
    Header,
    /// In its bytes.
    Data { left: u64 },
    /// In the line end after them.
    DataEnd,
    /// After the header of the last chunk: trailers, if there may be some, and an empty line.
    Trailers,
    /// After the empty line.
    Done,
}

/// The decoder: feed it with [`ChunkedDecoder::next`], then ask [`ChunkedDecoder::finish`].
pub(crate) struct ChunkedDecoder {
    framing: Chunked,
    state: State,
    line: Vec<u8>,
    /// Bytes of data announced by chunk headers so far.
    announced: u64,
    /// Hash of the signed chunk being read.
    hash: Context,
    /// The signature it must have.
    signature: String,
    /// A chunk under the minimum was there: only the last one may be.
    short_chunk: bool,
    trailers: Vec<(String, String)>,
    trailer_bytes: usize,
    trailer_signature: Option<String>,
}

impl fmt::Debug for ChunkedDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkedDecoder")
            .field("framing", &self.framing)
            .field("state", &self.state)
            .field("announced", &self.announced)
            .finish_non_exhaustive()
    }
}

impl ChunkedDecoder {
    pub(crate) fn new(framing: Chunked) -> Self {
        Self {
            framing,
            state: State::Header,
            line: Vec::new(),
            announced: 0,
            hash: Context::new(&SHA256),
            signature: String::new(),
            short_chunk: false,
            trailers: Vec::new(),
            trailer_bytes: 0,
            trailer_signature: None,
        }
    }

    /// The next slice of data in `input`; `None` once all of `input` is used up.
    ///
    /// Data of a signed chunk leaves before the chunk's signature is checked, at the chunk's end. That is safe
    /// because an object is only committed after its body ended without error, and [`super::S3Body`] keeps the last
    /// slice back until then; waiting here would mean to buffer whole chunks.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let State::Data { left } = self.state {
                if input.is_empty() {
                    return Ok(None);
                }
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                let data = input.split_to(take);
                self.data(&data, left - data.len() as u64)?;
                return Ok(Some(data));
            }
            if self.state == State::Done {
                if input.is_empty() {
                    return Ok(None);
                }
                return Err(BodyError::Framing("there are bytes after the end"));
            }
            let Some(line) = self.take_line(input)? else { return Ok(None) };
            match self.state {
                State::Header => self.header(&line)?,
                State::DataEnd if line.is_empty() => self.state = State::Header,
                State::DataEnd => return Err(BodyError::Framing("a chunk is longer than its header says")),
                State::Trailers => self.trailer(&line)?,
                State::Data { .. } | State::Done => {}
            }
        }
    }

    /// To be asked when there is no more input: was that all, and all right?
    pub(crate) fn finish(&self) -> Result<(), BodyError> {
        if self.state == State::Done {
            return Ok(());
        }
        let left = if let State::Data { left } = self.state { left } else { 0 };
        let got = self.announced - left;
        if got < self.framing.decoded_len {
            return Err(BodyError::Incomplete { got, want: self.framing.decoded_len });
        }
        match self.state {
            State::Trailers => Err(BodyError::Trailer("the body ended before the empty line that ends it")),
            _ => Err(BodyError::Framing("the body ended before its last chunk")),
        }
    }

    /// A whole line without its CRLF, or `None` if it has not ended yet.
    fn take_line(&mut self, input: &mut Bytes) -> Result<Option<Vec<u8>>, BodyError> {
        let end = input.iter().position(|byte| *byte == b'\n');
        let part = end.map_or(input.len(), |end| end + 1);
        if self.line.len() + part > LINE_MAX {
            return Err(match self.state {
                State::Trailers => BodyError::Trailer("a trailer is longer than 8 KiB"),
                State::DataEnd => BodyError::Framing("a chunk is longer than its header says"),
                _ => BodyError::Framing("a chunk header is longer than 8 KiB"),
            });
        }
        self.line.extend_from_slice(&input[..part]);
        input.advance(part);
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        line.pop();
        if line.pop() != Some(b'\r') {
            return Err(BodyError::Framing("a line does not end in CR LF"));
        }
        Ok(Some(line))
    }

    fn header(&mut self, line: &[u8]) -> Result<(), BodyError> {
        let (size, signature) = parse_header(line, self.framing.signer.is_some())?;
        signature.clone_into(&mut self.signature);
        if size == 0 {
            return self.last_header();
        }
        if self.framing.signer.is_some() {
            if size > SIGNED_CHUNK_MAX {
                return Err(BodyError::ChunkSize("a signed chunk has at most 16 MiB; send smaller ones"));
            }
            if self.short_chunk {
                return Err(BodyError::ChunkSize("only the last chunk may have fewer than 8192 bytes"));
            }
            self.short_chunk = size < SIGNED_CHUNK_MIN;
        }
        let want = self.framing.decoded_len;
        self.announced = self
            .announced
            .checked_add(size)
            .filter(|announced| *announced <= want)
            .ok_or(BodyError::TooLong { want })?;
        self.state = State::Data { left: size };
        Ok(())
    }

    fn last_header(&mut self) -> Result<(), BodyError> {
        if let Some(signer) = &mut self.framing.signer
            && !signer.chunk_matches(EMPTY_SHA256, &self.signature)
        {
            return Err(BodyError::ChunkSignature);
        }
        if self.announced < self.framing.decoded_len {
            return Err(BodyError::Incomplete { got: self.announced, want: self.framing.decoded_len });
        }
        self.state = State::Trailers;
        Ok(())
    }

    fn data(&mut self, data: &[u8], left: u64) -> Result<(), BodyError> {
        if let Some(signer) = &mut self.framing.signer {
            self.hash.update(data);
            if left == 0 {
                let hash = std::mem::replace(&mut self.hash, Context::new(&SHA256)).finish();
                if !signer.chunk_matches(&hex::encode(hash), &self.signature) {
                    return Err(BodyError::ChunkSignature);
                }
            }
        }
        self.state = if left == 0 { State::DataEnd } else { State::Data { left } };
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), BodyError> {
        let Some(announced) = self.framing.trailers.clone() else {
            if !line.is_empty() {
                return Err(BodyError::Trailer(
                    "there are trailers, and x-amz-content-sha256 announced none",
                ));
            }
            self.state = State::Done;
            return Ok(());
        };
        if line.is_empty() {
            self.end_trailers(&announced)?;
            self.state = State::Done;
            return Ok(());
        }
        self.trailer_bytes += line.len();
        if self.trailers.len() >= TRAILERS_MAX || self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(BodyError::Trailer("there are more than 100 trailers, or 16 KiB of them"));
        }
        if self.trailer_signature.is_some() {
            return Err(BodyError::Trailer("x-amz-trailer-signature is not the last one"));
        }
        let line = std::str::from_utf8(line).map_err(|_| BodyError::Trailer("one is not text"))?;
        let (name, value) = line.split_once(':').ok_or(BodyError::Trailer("one has no colon"))?;
        let value = value.trim_matches([' ', '\t']);
        if !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(BodyError::Trailer("a value has characters that are not printable"));
        }
        if self.framing.signer.is_some() && name == SIGNATURE_TRAILER {
            self.trailer_signature = Some(lower_hex(value).ok_or(BodyError::TrailerSignature)?.to_owned());
            return Ok(());
        }
        // What is signed is the lower-case name; one in capitals could stand in for it unnoticed.
        let lower = name.to_ascii_lowercase();
        if self.framing.signer.is_some() && lower != name {
            return Err(BodyError::Trailer("a name has capital letters"));
        }
        if !announced.expected().contains(&lower) {
            return Err(BodyError::Trailer("one is not announced in x-amz-trailer"));
        }
        if self.trailers.iter().any(|(known, _)| *known == lower) {
            return Err(BodyError::Trailer("one is there twice"));
        }
        self.trailers.push((lower, value.to_owned()));
        Ok(())
    }

    fn end_trailers(&mut self, announced: &TrailerChecksums) -> Result<(), BodyError> {
        if self.trailers.len() != announced.expected().len() {
            return Err(BodyError::Trailer("one that x-amz-trailer announces is missing"));
        }
        let mut trailers = std::mem::take(&mut self.trailers);
        trailers.sort();
        if let Some(signer) = &mut self.framing.signer {
            let given = self.trailer_signature.as_deref();
            let given = given.ok_or(BodyError::Trailer("x-amz-trailer-signature is missing"))?;
            let signed: String = trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            if !signer.trailers_match(&signed, given) {
                return Err(BodyError::TrailerSignature);
            }
        }
        announced.set(trailers);
        Ok(())
    }
}

/// Size and signature (empty where there is none) in the header of a chunk.
fn parse_header(line: &[u8], signed: bool) -> Result<(u64, &str), BodyError> {
    let line = std::str::from_utf8(line).map_err(|_| BodyError::Framing("a chunk header is not text"))?;
    let (size, signature) = if signed {
        let (size, signature) =
            line.split_once(";chunk-signature=").ok_or(BodyError::Framing("a chunk has no signature"))?;
        (size, lower_hex(signature).ok_or(BodyError::ChunkSignature)?)
    } else {
        (line, "")
    };
    // `from_str_radix` alone would take a sign.
    if !(1..=16).contains(&size.len()) || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(BodyError::Framing("the size of a chunk is not a hexadecimal number"));
    }
    let size =
        u64::from_str_radix(size, 16).map_err(|_| BodyError::Framing("the size of a chunk is too large"))?;
    Ok((size, signature))
}

/// The text, if it is 32 bytes in lower-case hexadecimal.
fn lower_hex(text: &str) -> Option<&str> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (text.len() == 64 && digits).then_some(text)
}

#[cfg(test)]
mod tests;
