//! Numbers in text: byte ranges, conditions, sizes, checksums. Within their bounds, and the same in every spelling.

use cyxcloud_core::stripe::StripeSize;
use cyxcloud_core::{ByteCount, Timestamp};
use cyxcloud_gateway::objects::checksums::{Algorithm, encode};
use cyxcloud_gateway::objects::conditions::{ETags, ReadConditions, Verdict};
use cyxcloud_gateway::objects::range::ByteRange;

use super::input::{Draft, Input};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (choice, size) = (input.u8(), input.u64());
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    match choice % 4 {
        0 => range(text, size),
        1 => conditions(text, size),
        2 => sizes(text, size),
        _ => checksums(text),
    }
}

fn range(text: &str, size: u64) {
    let Some(range) = ByteRange::parse(text) else { return };
    let (written, want) = match range {
        ByteRange::FromTo(first, last) => {
            assert!(first <= last);
            (format!("bytes={first}-{last}"), u128::from(first)..(u128::from(last) + 1).min(size.into()))
        }
        ByteRange::From(first) => (format!("bytes={first}-"), first.into()..size.into()),
        ByteRange::Last(length) => {
            (format!("bytes=-{length}"), u128::from(size.saturating_sub(length))..size.into())
        }
    };
    assert_eq!(ByteRange::parse(&written), Some(range));
    match range.resolve(size) {
        Ok(bytes) => {
            assert!(bytes.start < bytes.end && bytes.end <= size);
            assert_eq!(u128::from(bytes.start)..u128::from(bytes.end), want);
        }
        Err(_) => assert!(want.is_empty(), "{range:?} of {size}"),
    }
}

fn conditions(text: &str, size: u64) {
    let etags = ETags::parse(text);
    let at = Timestamp::from_unix_millis(size as i64);
    let with = |matches, none_match| ReadConditions { matches, none_match, ..ReadConditions::default() };
    let etag = match &etags {
        ETags::Any => "anything".to_owned(),
        ETags::List(list) => list.first().map_or_else(|| "nothing".to_owned(), |one| one.value.clone()),
    };
    // What must match weakly is at least what matches strongly; and one condition is the other's opposite.
    let strongly = with(Some(etags.clone()), None).judge(&etag, at) == Verdict::Proceed;
    let weakly = with(None, Some(etags.clone())).judge(&etag, at) == Verdict::NotModified;
    assert!(weakly || !strongly);
    assert_eq!(weakly, !matches!(&etags, ETags::List(list) if list.is_empty()));
    if let ETags::List(list) = &etags {
        assert!(list.iter().all(|one| !one.value.is_empty() && !one.value.contains(',')));
    }
}

fn sizes(text: &str, size: u64) {
    let shown = ByteCount::bytes(size);
    assert_eq!(size.to_string().parse(), Ok(shown));
    assert!(!shown.to_string().is_empty());
    if let Ok(count) = text.parse::<ByteCount>() {
        assert_eq!(format!(" {} b", count.get()).parse(), Ok(count));
        assert_eq!(text.to_uppercase().parse(), Ok(count));
    }
    if let Ok(count) = ByteCount::parse_gb(text) {
        assert!(count.get() <= 1_000_000_000 << 30);
    }
    match text.parse::<StripeSize>() {
        Ok(stripe) => assert!((StripeSize::MIN..=StripeSize::MAX).contains(&stripe)),
        Err(reason) => assert!(!reason.is_empty()),
    }
}

fn checksums(text: &str) {
    for algorithm in Algorithm::ALL {
        assert_eq!(Algorithm::by_name(&algorithm.name().to_lowercase()), Some(algorithm));
        if let Ok(value) = algorithm.parse(text) {
            assert_eq!(value.len(), algorithm.len());
            assert_eq!(encode(&value), text.trim(), "two spellings of one checksum");
        }
        let value = algorithm.of(text.as_bytes());
        assert_eq!(algorithm.parse(&encode(&value)), Ok(value));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let one = |choice: u8, size: u64, text: &str| Draft::default().u8(choice).u64(size).rest(text);
    vec![
        one(0, 10, "bytes=0-499"),
        one(0, 10, "Bytes= -5 "),
        one(0, u64::MAX, "bytes=7-99999999999999999999999"),
        one(1, 0, "*"),
        one(1, 0, "\"a\", W/\"b\",c"),
        one(2, 1 << 40, "4 MiB"),
        one(2, 0, "0.5"),
        one(2, u64::MAX, "64mib"),
        one(3, 0, "y/Q5Jg=="),
        one(3, 0, "rosUhgp5mIg="),
    ]
}
