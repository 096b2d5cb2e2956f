use std::convert::Infallible;

use futures::executor::block_on;
use http_body_util::{BodyExt as _, StreamBody};

use super::*;

fn plain(pieces: &[&'static [u8]], length: Option<u64>, sha256: Option<[u8; 32]>) -> S3Body {
    let frames: Vec<Result<_, Infallible>> =
        pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect();
    S3Body::new(StreamBody::new(futures::stream::iter(frames)), Framing::Plain { length, sha256 })
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&SHA256, bytes).as_ref().try_into().expect("32 bytes")
}

fn read(body: S3Body) -> Result<Bytes, &'static str> {
    block_on(body.collect()).map(|body| body.to_bytes()).map_err(|error| error.code())
}

#[test]
fn plain_bodies_are_counted_and_hashed() {
    let hello = sha256(b"hello");
    assert_eq!(read(plain(&[b"he", b"llo"], Some(5), Some(hello))), Ok(Bytes::from_static(b"hello")));
    assert_eq!(read(plain(&[b"he", b"llo"], None, None)), Ok(Bytes::from_static(b"hello")));
    assert_eq!(read(plain(&[b"he", b"llp"], Some(5), Some(hello))), Err("XAmzContentSHA256Mismatch"));
    assert_eq!(read(plain(&[b"he"], Some(5), None)), Err("IncompleteBody"));
    assert_eq!(read(plain(&[b"hello", b"!"], Some(5), None)), Err("IncompleteBody"));
    assert_eq!(read(plain(&[], Some(0), Some(hello))), Err("XAmzContentSHA256Mismatch"));
    assert_eq!(read(plain(&[], Some(0), Some(sha256(b"")))), Ok(Bytes::new()));
}

#[test]
fn who_counts_all_bytes_has_seen_them_verified() {
    let mut body = plain(&[b"he", b"llp"], Some(5), Some(sha256(b"hello")));
    let mut got = 0;
    while let Some(frame) = block_on(body.frame()) {
        match frame {
            Ok(frame) => got += frame.into_data().expect("data").len(),
            Err(error) => {
                assert_eq!(error.code(), "XAmzContentSHA256Mismatch");
                break;
            }
        }
    }
    assert!(got < 5, "the last slice must not leave before the hash was compared");
    assert!(block_on(body.frame()).is_none(), "after an error there is nothing");
}

#[test]
fn lengths_are_told() {
    let mut body = plain(&[b"he", b"llo"], Some(5), None);
    assert_eq!(body.size_hint().exact(), Some(5));
    block_on(body.frame()).expect("a frame").expect("right");
    assert_eq!(body.size_hint().exact(), Some(3));
    assert!(S3Body::empty().is_end_stream());
    assert_eq!(S3Body::from_bytes(Bytes::from_static(b"abc")).size_hint().exact(), Some(3));
    assert_eq!(read(S3Body::from_bytes(Bytes::from_static(b"abc"))), Ok(Bytes::from_static(b"abc")));
}

#[test]
fn a_broken_connection_is_an_incomplete_body() {
    let frames = vec![Ok(Frame::data(Bytes::from_static(b"he"))), Err(std::io::Error::other("reset"))];
    let stream = StreamBody::new(futures::stream::iter(frames));
    let body = S3Body::new(stream, Framing::Plain { length: Some(5), sha256: None });
    assert_eq!(read(body), Err("IncompleteBody"));
}
