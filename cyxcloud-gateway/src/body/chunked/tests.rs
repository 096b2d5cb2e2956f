use cyxcloud_core::sigv4::sha256_hex;
use proptest::prelude::*;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const AMZ_DATE: &str = "20130524T000000Z";
const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";

fn scope() -> Scope {
    Scope { date: "20130524".into(), region: "us-east-1".into(), service: "s3".into() }
}

fn signer(seed: &str) -> ChunkSigner {
    ChunkSigner::new(Arc::new(SigningKey::derive(SECRET, &scope())), AMZ_DATE.into(), scope(), seed.into())
}

/// Which of the four kinds of stream.
#[derive(Clone, Copy, Debug)]
struct Kind {
    signed: bool,
    trailers: bool,
}

const SIGNED: Kind = Kind { signed: true, trailers: false };
const SIGNED_TRAILERS: Kind = Kind { signed: true, trailers: true };
const TRAILERS: Kind = Kind { signed: false, trailers: true };

/// What a client would send, written without the decoder.
fn encode(data: &[u8], chunk_size: usize, kind: Kind) -> Vec<u8> {
    let key = SigningKey::derive(SECRET, &scope());
    let mut previous = SEED.to_owned();
    let mut out = Vec::new();
    for chunk in data.chunks(chunk_size).chain([&[][..]]) {
        out.extend_from_slice(format!("{:x}", chunk.len()).as_bytes());
        if kind.signed {
            let text = sigv4::chunk_string_to_sign(AMZ_DATE, &scope(), &previous, &sha256_hex(chunk));
            previous = sigv4::signature_hex(&key, &text);
            out.extend_from_slice(format!(";chunk-signature={previous}").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(chunk);
        if !chunk.is_empty() {
            out.extend_from_slice(b"\r\n");
        }
    }
    if kind.trailers {
        out.extend_from_slice(b"x-amz-checksum-crc32c:sOO8/Q==\r\n");
        if kind.signed {
            let text = sigv4::trailer_string_to_sign(
                AMZ_DATE,
                &scope(),
                &previous,
                "x-amz-checksum-crc32c:sOO8/Q==\n",
            );
            let signature = sigv4::signature_hex(&key, &text);
            out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn trailers(kind: Kind) -> Option<TrailerChecksums> {
    kind.trailers.then(|| TrailerChecksums::expecting(vec!["x-amz-checksum-crc32c".into()]))
}

fn decoder(decoded_len: usize, kind: Kind) -> ChunkedDecoder {
    ChunkedDecoder::new(Chunked {
        decoded_len: decoded_len as u64,
        signer: kind.signed.then(|| signer(SEED)),
        trailers: trailers(kind),
    })
}

fn run<'a>(
    mut decoder: ChunkedDecoder,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, BodyError> {
    let mut out = Vec::new();
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        while let Some(data) = decoder.next(&mut input)? {
            out.extend_from_slice(&data);
        }
        assert!(input.is_empty(), "all input is used up");
        assert!(decoder.line.len() <= LINE_MAX);
    }
    decoder.finish()?;
    Ok(out)
}

fn run_whole(stream: &[u8], decoded_len: usize, kind: Kind) -> Result<Vec<u8>, BodyError> {
    run(decoder(decoded_len, kind), [stream])
}

fn code(result: Result<Vec<u8>, BodyError>) -> &'static str {
    result.expect_err("refused").code()
}

/// Amazon S3 API reference, "Signature calculations: transferring payload in multiple chunks".
#[test]
fn amazons_chunks_are_verified() {
    let a = vec![b'a'; 66_560];
    let mut stream = Vec::new();
    for (data, signature) in [
        (&a[..65_536], "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        (&a[65_536..], "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        (&[], "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    ] {
        stream.extend_from_slice(format!("{:x};chunk-signature={signature}\r\n", data.len()).as_bytes());
        stream.extend_from_slice(data);
        stream.extend_from_slice(b"\r\n");
    }
    assert_eq!(stream.len(), 66_824);
    assert_eq!(run_whole(&stream, 66_560, SIGNED).expect("Amazon's own"), a);
    assert_eq!(stream, encode(&a, 65_536, SIGNED));
}

/// The same with trailers, from "Including trailing headers".
#[test]
fn amazons_trailers_are_verified() {
    let a = vec![b'a'; 66_560];
    let mut stream = Vec::new();
    for (data, signature) in [
        (&a[..65_536], "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
        (&a[65_536..], "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
    ] {
        stream.extend_from_slice(format!("{:x};chunk-signature={signature}\r\n", data.len()).as_bytes());
        stream.extend_from_slice(data);
        stream.extend_from_slice(b"\r\n");
    }
    stream.extend_from_slice(
        b"0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n\
          x-amz-checksum-crc32c:sOO8/Q==\r\n\
          x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n",
    );
    let handle = trailers(SIGNED_TRAILERS).expect("has some");
    let decoder = ChunkedDecoder::new(Chunked {
        decoded_len: 66_560,
        signer: Some(signer("106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e")),
        trailers: Some(handle.clone()),
    });
    assert_eq!(handle.get(), None);
    assert_eq!(run(decoder, [&stream[..]]).expect("Amazon's own"), a);
    assert_eq!(handle.get(), Some(&[("x-amz-checksum-crc32c".to_owned(), "sOO8/Q==".to_owned())][..]));
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(SIGNED), Just(SIGNED_TRAILERS), Just(TRAILERS)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn splits_do_not_matter(
        data in proptest::collection::vec(any::<u8>(), 0..40_000),
        chunk_size in 8_192_usize..20_000,
        kind in kinds(),
        splits in proptest::collection::vec(1_usize..5_000, 1..50),
    ) {
        let stream = encode(&data, chunk_size, kind);
        let mut pieces = Vec::new();
        let mut rest = &stream[..];
        for split in splits.iter().cycle() {
            let (piece, more) = rest.split_at((*split).min(rest.len()));
            pieces.push(piece);
            rest = more;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(run(decoder(data.len(), kind), pieces).expect("right"), data);
    }

    #[test]
    fn junk_is_refused_and_never_panics(junk in proptest::collection::vec(any::<u8>(), 0..500), kind in kinds()) {
        prop_assert!(run_whole(&junk, 100, kind).is_err());
    }

    #[test]
    fn junk_between_right_bytes_is_refused(
        at in 0_usize..9_000,
        junk in proptest::collection::vec(any::<u8>(), 1..20),
        kind in prop_oneof![Just(SIGNED), Just(SIGNED_TRAILERS)],
    ) {
        let data = vec![7; 8_300];
        let mut stream = encode(&data, 8_192, kind);
        let at = at.min(stream.len());
        stream.splice(at..at, junk);
        // Inserting what is there already (a 7 among sevens) changes sizes, so it is refused, too; leading zeros of a
        // chunk's size change nothing.
        if let Ok(read) = run_whole(&stream, data.len(), kind) {
            prop_assert_eq!(read, data);
        }
    }
}

#[test]
fn bytes_one_by_one_are_read() {
    let data = vec![3; 8_200];
    let stream = encode(&data, 8_192, SIGNED_TRAILERS);
    assert_eq!(run(decoder(data.len(), SIGNED_TRAILERS), stream.chunks(1)).expect("right"), data);
}

#[test]
fn every_truncation_is_refused() {
    let data: Vec<u8> = (0..8_250_u32).map(|i| i as u8).collect();
    for kind in [SIGNED, SIGNED_TRAILERS, TRAILERS] {
        let stream = encode(&data, 8_192, kind);
        for end in 0..stream.len() {
            assert!(run_whole(&stream[..end], data.len(), kind).is_err(), "{kind:?} cut at {end}");
        }
        assert!(run_whole(&stream, data.len(), kind).is_ok());
    }
}

#[test]
fn every_flip_in_a_signed_stream_is_refused() {
    let data: Vec<u8> = (0..8_250_u32).map(|i| (i * 7) as u8).collect();
    for kind in [SIGNED, SIGNED_TRAILERS] {
        let stream = encode(&data, 8_192, kind);
        for at in 0..stream.len() {
            // The lowest bit, letter case, the highest bit, and CR to a space-like byte.
            for mask in [0x01, 0x20, 0x80, 0x2d] {
                let mut wrong = stream.clone();
                wrong[at] ^= mask;
                assert_ne!(wrong, stream);
                // Only the sizes of chunks may be written in either case: they read the same.
                let same = stream[at].is_ascii_alphabetic() && wrong[at].eq_ignore_ascii_case(&stream[at]);
                let size = !stream[..at].ends_with(b"=")
                    && stream[at..].iter().position(|b| *b == b';').is_some_and(|end| end < 4);
                match run_whole(&wrong, data.len(), kind) {
                    Ok(read) => assert!(same && size && read == data, "{kind:?} byte {at} mask {mask:#x}"),
                    Err(_) => assert!(!(same && size)),
                }
            }
        }
    }
}

#[test]
fn chunks_cannot_be_moved() {
    let data: Vec<u8> = [vec![1; 8_192], vec![2; 8_192]].concat();
    let stream = encode(&data, 8_192, SIGNED);
    let length = (stream.len() - encode(&[], 1, SIGNED).len()) / 2;
    let (first, rest) = stream.split_at(length);
    let (second, last) = rest.split_at(length);
    assert_eq!(code(run_whole(&[second, first, last].concat(), data.len(), SIGNED)), "SignatureDoesNotMatch");
    assert_eq!(code(run_whole(&[first, first, last].concat(), data.len(), SIGNED)), "SignatureDoesNotMatch");
    assert_eq!(code(run_whole(&[first, last].concat(), data.len(), SIGNED)), "SignatureDoesNotMatch");
}

#[test]
fn adv_31_declared_lengths_are_kept() {
    let data = [9; 100];
    for kind in [SIGNED, SIGNED_TRAILERS, TRAILERS] {
        let stream = encode(&data, 8_192, kind);
        assert_eq!(code(run_whole(&stream, 99, kind)), "IncompleteBody");
        assert_eq!(code(run_whole(&stream, 101, kind)), "IncompleteBody");
        assert_eq!(code(run_whole(&[&stream[..], b"x"].concat(), 100, kind)), "InvalidRequest");
    }
}

#[test]
fn adv_31_sizes_of_chunks_have_bounds() {
    let short_first = [encode(&[1; 100], 50, SIGNED)].concat();
    assert_eq!(code(run_whole(&short_first, 100, SIGNED)), "InvalidChunkSizeError");
    let signature = "0".repeat(64);
    let large = format!("1000001;chunk-signature={signature}\r\n");
    assert_eq!(code(run_whole(large.as_bytes(), 1 << 30, SIGNED)), "InvalidChunkSizeError");
    for (size, wanted) in [
        ("ffffffffffffffff", "IncompleteBody"),
        ("10000000000000000", "InvalidRequest"),
        ("+5", "InvalidRequest"),
        ("-5", "InvalidRequest"),
        (" 5", "InvalidRequest"),
        ("5 ", "InvalidRequest"),
        ("0x5", "InvalidRequest"),
        ("", "InvalidRequest"),
        ("5;ext=1", "InvalidRequest"),
    ] {
        assert_eq!(
            code(run_whole(format!("{size}\r\nhello\r\n").as_bytes(), 5, TRAILERS)),
            wanted,
            "{size:?}"
        );
    }
    // Unsigned ones may be of any size, the whole body in one too.
    let data = vec![1; 100_000];
    assert!(run_whole(&encode(&data, 100_000, TRAILERS), data.len(), TRAILERS).is_ok());
    assert!(run_whole(&encode(&data, 7, TRAILERS), data.len(), TRAILERS).is_ok());
    // Capitals in sizes are what some SDKs write.
    assert!(
        run_whole(b"A\r\n0123456789\r\n0\r\nx-amz-checksum-crc32c:sOO8/Q==\r\n\r\n", 10, TRAILERS).is_ok()
    );
}

#[test]
fn adv_31_lines_and_trailers_have_bounds() {
    let endless = vec![b'0'; 100_000];
    assert_eq!(code(run(decoder(5, TRAILERS), endless.chunks(1_000))), "InvalidRequest");
    let names: Vec<String> = (0..101).map(|i| format!("x-amz-checksum-{i}")).collect();
    let many = |count: usize, value: &str| {
        let lines: String = names.iter().take(count).map(|name| format!("{name}:{value}\r\n")).collect();
        let expected = names.iter().take(count).cloned().collect();
        let trailers = Some(TrailerChecksums::expecting(expected));
        let decoder = ChunkedDecoder::new(Chunked { decoded_len: 0, signer: None, trailers });
        run(decoder, [format!("0\r\n{lines}\r\n").as_bytes()])
    };
    assert!(many(100, "x").is_ok());
    assert_eq!(code(many(101, "x")), "MalformedTrailerError");
    assert_eq!(code(many(3, &"x".repeat(6_000))), "MalformedTrailerError");
    assert_eq!(code(many(1, &"x".repeat(9_000))), "MalformedTrailerError");
}

#[test]
fn trailers_are_those_announced() {
    let good = "x-amz-checksum-crc32c:sOO8/Q==\r\n";
    let unsigned = |lines: &str| run_whole(format!("0\r\n{lines}\r\n").as_bytes(), 0, TRAILERS);
    assert!(unsigned(good).is_ok());
    assert!(unsigned("X-Amz-Checksum-Crc32c: sOO8/Q== \r\n").is_ok());
    for bad in [
        "",
        "x-amz-checksum-crc32:sOO8/Q==\r\n",
        "x-amz-checksum-crc32c\r\n",
        "x-amz-checksum-crc32c:a\nb\r\n",
        "x-amz-checksum-crc32c:\x01\r\n",
        &format!("{good}{good}"),
        &format!("{good}x-amz-meta-a:b\r\n"),
        &format!("{good}x-amz-trailer-signature:{}\r\n", "0".repeat(64)),
    ] {
        assert_eq!(
            code(unsigned(bad).map_err(|error| match error {
                BodyError::Framing(_) => BodyError::Trailer(""),
                error => error,
            })),
            "MalformedTrailerError",
            "{bad:?}"
        );
    }
    // Announced by nobody.
    let mut stream = encode(b"", 1, SIGNED);
    stream.truncate(stream.len() - 2);
    stream.extend_from_slice(format!("{good}\r\n").as_bytes());
    assert_eq!(code(run_whole(&stream, 0, SIGNED)), "MalformedTrailerError");
    // Signed ones without their signature.
    stream.splice(0.., encode(b"", 1, SIGNED));
    stream.truncate(stream.len() - 2);
    stream.extend_from_slice(format!("{good}\r\n").as_bytes());
    assert_eq!(code(run_whole(&stream, 0, SIGNED_TRAILERS)), "MalformedTrailerError");
}

#[test]
fn nothing_printed_holds_a_key() {
    let text = format!("{:?}", decoder(1, SIGNED_TRAILERS));
    assert!(!text.contains(SEED) && !text.contains("wJalr"), "{text}");
}
