//! `aws-chunked` bodies: however they are cut on their way they read the same, as a second, simpler reader reads them; and no signed
//! body is another than the one that was signed.

use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::sigv4::{self, Scope, SigningKey, sha256_hex};
use cyxcloud_gateway::fuzzing::{Seal, Unframed, unframe};

use super::input::{Draft, Input, edited, pattern};

const TRAILER: &str = "x-amz-checksum-crc32c";
const AMZ_DATE: &str = "20130524T000000Z";
const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
/// As long as a line may be.
const LINE_MAX: usize = 8 << 10;

/// Which of the four kinds of body.
#[derive(Clone, Copy)]
struct Kind {
    signed: bool,
    trailers: bool,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let kind = Kind { signed: choice & 1 != 0, trailers: choice & 2 != 0 };
    let cuts = input.array::<4>();
    if choice & 4 == 0 {
        let decoded_len = u64::from(input.u16());
        let body = input.rest();
        let read = whole_and_in_pieces(body, decoded_len, kind, cuts);
        if !kind.signed {
            assert_eq!(read, reference(body, decoded_len, kind), "two readers disagree");
        } else {
            assert_eq!(read, None, "a signature was forged");
        }
        return;
    }
    let seed = input.u32();
    let data = pattern(seed, input.below(9_000));
    let body = written(&data, 8 << 10, kind);
    let right = (data, kind.trailers.then(|| vec![(TRAILER.to_owned(), "sOO8/Q==".to_owned())]));
    let len = right.0.len() as u64;
    assert_eq!(whole_and_in_pieces(&body, len, kind, cuts).as_ref(), Some(&right));
    let changed = edited(&body, &mut input);
    let read = whole_and_in_pieces(&changed, len, kind, cuts);
    if kind.signed {
        // Zeros in front of a size change nothing, and are not signed.
        assert!(read.is_none_or(|read| read == right), "a changed body was believed");
    } else {
        assert_eq!(read, reference(&changed, len, kind), "two readers disagree");
    }
}

fn scope() -> Scope {
    Scope { date: "20130524".into(), region: "us-east-1".into(), service: "s3".into() }
}

fn key() -> SigningKey {
    SigningKey::derive("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", &scope())
}

/// What a body holds, which must not depend on how it was cut.
fn whole_and_in_pieces(body: &[u8], decoded_len: u64, kind: Kind, cuts: [u8; 4]) -> Option<Unframed> {
    let read = |pieces: Vec<Bytes>| {
        let seal = kind.signed.then(|| Seal {
            key: Arc::new(key()),
            amz_date: AMZ_DATE.into(),
            scope: scope(),
            seed: SEED.into(),
        });
        unframe(pieces, decoded_len, seal, kind.trailers.then(|| vec![TRAILER.to_owned()]))
    };
    let whole = read(vec![Bytes::copy_from_slice(body)]);
    let (mut pieces, mut left) = (Vec::new(), body);
    for cut in cuts.iter().cycle() {
        let (piece, rest) = left.split_at((usize::from(*cut) + 1).min(left.len()));
        pieces.push(Bytes::copy_from_slice(piece));
        left = rest;
        if left.is_empty() {
            break;
        }
    }
    let pieces = read(pieces);
    let code = |read: &Result<Unframed, cyxcloud_gateway::body::BodyError>| {
        read.as_ref().map(|_| ()).map_err(cyxcloud_gateway::body::BodyError::code)
    };
    assert_eq!(code(&whole).is_ok(), code(&pieces).is_ok(), "{whole:?} and {pieces:?}");
    let whole = whole.ok();
    assert_eq!(whole, pieces.ok());
    if let Some((data, _)) = &whole {
        assert_eq!(data.len() as u64, decoded_len);
    }
    whole
}

/// Another reader of unsigned bodies: the whole body at once, line by line.
fn reference(body: &[u8], decoded_len: u64, kind: Kind) -> Option<Unframed> {
    fn line<'a>(left: &mut &'a [u8]) -> Option<&'a str> {
        let end = left.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = left.split_at(end + 1);
        *left = rest;
        let line = (line.len() <= LINE_MAX).then_some(line)?.strip_suffix(b"\r\n")?;
        std::str::from_utf8(line).ok()
    }
    let (mut left, mut data) = (body, Vec::new());
    loop {
        let size = line(&mut left)?;
        let digits = !size.is_empty() && size.len() <= 16 && size.chars().all(|c| c.is_ascii_hexdigit());
        let size = usize::from_str_radix(digits.then_some(size)?, 16).ok()?;
        if size == 0 {
            break;
        }
        data.extend_from_slice(left.get(..size)?);
        left = left[size..].strip_prefix(b"\r\n")?;
    }
    let mut trailers = Vec::new();
    loop {
        match line(&mut left)? {
            "" => break,
            trailer => {
                let (name, value) = trailer.split_once(':')?;
                let value = value.trim_matches([' ', '\t']);
                value.chars().all(|c| (' '..='~').contains(&c)).then_some(())?;
                trailers.push((name.to_ascii_lowercase(), value.to_owned()));
            }
        }
    }
    let announced = if kind.trailers { vec![TRAILER] } else { Vec::new() };
    let names: Vec<&str> = trailers.iter().map(|(name, _)| name.as_str()).collect();
    let right = left.is_empty() && data.len() as u64 == decoded_len && names == announced;
    right.then_some((data, kind.trailers.then_some(trailers)))
}

/// As a client writes it.
fn written(data: &[u8], chunk: usize, kind: Kind) -> Vec<u8> {
    let (key, mut previous, mut out) = (key(), SEED.to_owned(), Vec::new());
    for chunk in data.chunks(chunk).chain([&[][..]]) {
        out.extend_from_slice(format!("{:x}", chunk.len()).as_bytes());
        if kind.signed {
            let text = sigv4::chunk_string_to_sign(AMZ_DATE, &scope(), &previous, &sha256_hex(chunk));
            previous = sigv4::signature_hex(&key, &text);
            out.extend_from_slice(format!(";chunk-signature={previous}").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        if !chunk.is_empty() {
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
    }
    if kind.trailers {
        out.extend_from_slice(format!("{TRAILER}:sOO8/Q==\r\n").as_bytes());
        if kind.signed {
            let trailers = format!("{TRAILER}:sOO8/Q==\n");
            let text = sigv4::trailer_string_to_sign(AMZ_DATE, &scope(), &previous, &trailers);
            let signature = sigv4::signature_hex(&key, &text);
            out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

pub fn seeds() -> Vec<Vec<u8>> {
    let raw = |choice: u8, len: u16, body: &str| {
        Draft::default().u8(choice).u32(0x0005_1903).u8((len >> 8) as u8).u8(len as u8).rest(body)
    };
    let right = |choice: u8, len: u32, at: u32| {
        Draft::default().u8(choice | 4).u32(0x0703_4000).u32(1).u32(len).u32(0).u32(at).u8(2).rest([b'0'])
    };
    vec![
        raw(0, 5, "5\r\nhello\r\n0\r\n\r\n"),
        raw(2, 5, "2\r\nhe\r\n003\r\nllo\r\n0\r\nX-Amz-Checksum-Crc32c: sOO8/Q==\r\n\r\n"),
        raw(
            3,
            0,
            &format!(
                "0;chunk-signature={SEED}\r\n{TRAILER}:sOO8/Q==\r\nx-amz-trailer-signature:{SEED}\r\n\r\n"
            ),
        ),
        right(0, 100, 0),
        right(1, 8_200, 80),
        right(2, 9, 3),
        right(3, 8_900, 0),
    ]
}
