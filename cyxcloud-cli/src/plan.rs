//! How a transfer is cut: parts of an upload, ranges of a download. Pure.

use std::ops::Range;

const MIB: u64 = 1 << 20;
/// Bodies up to this are one PUT.
pub(crate) const SINGLE_MAX: u64 = 16 * MIB;
/// S3's limit.
const PARTS_MAX: u64 = 10_000;
/// S3's limit.
const PART_MAX: u64 = 5 << 30;
/// Bytes of one GET.
const RANGE: u64 = 8 * MIB;
/// Uploads of unknown length double their parts after this many, so that no length runs out of parts.
const GROW_AFTER: u64 = 1000;

/// Parts of one multipart upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// All of this size but the last.
    Even(u64),
    /// Growing, for a length that nobody knows yet.
    Growing,
}

impl Parts {
    /// The parts of a body of this length. 8 MiB, 16 MiB above 512 MiB, and more only where there would be too many.
    pub(crate) fn of(length: Option<u64>) -> Self {
        let Some(length) = length else { return Self::Growing };
        let least = length.div_ceil(PARTS_MAX).next_multiple_of(MIB);
        let usual = match length {
            ..=SINGLE_MAX => SINGLE_MAX,
            n if n <= 512 * MIB => 8 * MIB,
            _ => 16 * MIB,
        };
        Self::Even(usual.max(least).min(PART_MAX))
    }

    /// Bytes of part `number`, counted from 1; the last one may turn out shorter.
    pub(crate) fn size(self, number: u32) -> u64 {
        match self {
            Self::Even(size) => size,
            Self::Growing => {
                let doublings = (u64::from(number).saturating_sub(1) / GROW_AFTER).min(9);
                (SINGLE_MAX << doublings).min(PART_MAX)
            }
        }
    }

    /// Whether S3 takes a part of this number.
    pub(crate) fn allows(number: u32) -> bool {
        u64::from(number) <= PARTS_MAX
    }
}

/// The ranges of a download, in order. None for an empty object.
pub(crate) fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> + Send {
    (0..size.div_ceil(RANGE)).map(move |index| index * RANGE..size.min((index + 1) * RANGE))
}

/// The `Range` header of a range that is not empty.
pub(crate) fn range_header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_any_length_within_the_limits() {
        for length in [
            SINGLE_MAX + 1,
            100 * MIB,
            512 * MIB,
            512 * MIB + 1,
            1 << 30,
            10_000 * 16 * MIB,
            10_000 * 16 * MIB + 1,
            5 << 40,
        ] {
            let size = Parts::of(Some(length)).size(1);
            assert!((5 * MIB..=PART_MAX).contains(&size), "{length}: {size}");
            assert!(length.div_ceil(size) <= PARTS_MAX, "{length}: {size}");
        }
        assert_eq!(Parts::of(Some(100 * MIB)), Parts::Even(8 * MIB));
        assert_eq!(Parts::of(Some(1 << 30)), Parts::Even(16 * MIB));
        assert_eq!(Parts::of(Some(0)), Parts::Even(SINGLE_MAX));
    }

    #[test]
    fn parts_of_unknown_length_reach_the_largest_object() {
        let all: u64 = (1..=PARTS_MAX as u32).map(|number| Parts::Growing.size(number)).sum();
        assert!(all >= 5 << 40, "{all}");
        assert_eq!(Parts::Growing.size(1), SINGLE_MAX);
        assert_eq!(Parts::Growing.size(1001), 2 * SINGLE_MAX);
        assert!(Parts::allows(10_000) && !Parts::allows(10_001));
    }

    #[test]
    fn ranges_cover_the_object_once() {
        for size in [0, 1, RANGE - 1, RANGE, RANGE + 1, 5 * RANGE + 17] {
            let mut at = 0;
            for range in ranges(size) {
                assert_eq!(range.start, at);
                assert!(range.end > range.start && range.end - range.start <= RANGE);
                at = range.end;
            }
            assert_eq!(at, size);
        }
        assert_eq!(range_header(&(0..10)), "bytes=0-9");
    }
}
