//! Which bytes of an object a reader asks for.
//!
//! Pure. A `Range` header that cannot be understood, or that names several ranges, is ignored as S3 does; one that
//! is understood and lies outside the object is refused.

use std::ops::Range;

/// One range of a `Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// From a byte to a byte, both included; the last may lie beyond the end.
    FromTo(u64, u64),
    /// From a byte to the end.
    From(u64),
    /// The last bytes, at most so many.
    Last(u64),
}

/// The range lies outside an object of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range lies outside the object, which has {0} bytes")]
pub struct Unsatisfiable(pub u64);

impl ByteRange {
    /// Reads a `Range` header; `None` means that it is to be ignored.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, range) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") || range.contains(',') {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        match (number(first.trim()), number(last.trim())) {
            (Some(first), Some(last)) => (first <= last).then_some(Self::FromTo(first, last)),
            (Some(first), None) if last.trim().is_empty() => Some(Self::From(first)),
            (None, Some(length)) if first.trim().is_empty() => Some(Self::Last(length)),
            _ => None,
        }
    }

    /// The bytes it means of an object of this size.
    pub fn resolve(self, size: u64) -> Result<Range<u64>, Unsatisfiable> {
        let range = match self {
            Self::FromTo(first, last) => first..last.saturating_add(1).min(size),
            Self::From(first) => first..size,
            Self::Last(length) => size.saturating_sub(length)..size,
        };
        if range.start < range.end { Ok(range) } else { Err(Unsatisfiable(size)) }
    }
}

/// A number of decimal digits; one too large for us is as good as the largest.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_s3_reads_them() {
        for (header, want) in [
            ("bytes=0-0", Some(ByteRange::FromTo(0, 0))),
            ("bytes=0-499", Some(ByteRange::FromTo(0, 499))),
            ("Bytes= 5 - 9 ", Some(ByteRange::FromTo(5, 9))),
            ("bytes=9500-", Some(ByteRange::From(9500))),
            ("bytes=-500", Some(ByteRange::Last(500))),
            ("bytes=-0", Some(ByteRange::Last(0))),
            ("bytes=0-99999999999999999999999", Some(ByteRange::FromTo(0, u64::MAX))),
            ("bytes=0-1,5-9", None),
            ("bytes=9-5", None),
            ("bytes=-", None),
            ("bytes=", None),
            ("bytes", None),
            ("bytes=a-b", None),
            ("bytes=--5", None),
            ("bytes=+1-2", None),
            ("items=0-5", None),
            ("", None),
        ] {
            assert_eq!(ByteRange::parse(header), want, "{header:?}");
        }
    }

    #[test]
    fn ranges_are_cut_to_the_object_or_refused() {
        for (size, range, want) in [
            (10, ByteRange::FromTo(0, 0), Some(0..1)),
            (10, ByteRange::FromTo(9, 9), Some(9..10)),
            (10, ByteRange::FromTo(2, 100), Some(2..10)),
            (10, ByteRange::FromTo(0, u64::MAX), Some(0..10)),
            (10, ByteRange::FromTo(10, 10), None),
            (10, ByteRange::From(3), Some(3..10)),
            (10, ByteRange::From(10), None),
            (10, ByteRange::Last(3), Some(7..10)),
            (10, ByteRange::Last(11), Some(0..10)),
            (10, ByteRange::Last(0), None),
            (0, ByteRange::FromTo(0, 0), None),
            (0, ByteRange::From(0), None),
            (0, ByteRange::Last(1), None),
        ] {
            assert_eq!(range.resolve(size).ok(), want, "{range:?} of {size}");
        }
    }
}
