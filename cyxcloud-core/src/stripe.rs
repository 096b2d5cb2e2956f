//! How a segment is cut into stripes.

use std::ops::Range;

use crate::ByteCount;

/// Plain bytes of a stripe unless the upload says otherwise.
pub const STRIPE_DEFAULT: ByteCount = ByteCount::mib(4);
/// Bodies up to this are one shard in several copies.
pub const SMALL_MAX: ByteCount = ByteCount::kib(128);
/// Bodies up to this may live sealed in the segment's row.
pub const INLINE_MAX: ByteCount = ByteCount::kib(4);

/// Plain bytes of every stripe of a segment but the last: 1 to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripeSize(ByteCount);

/// A stripe size out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stripe has {min} to {max}, not {0}", min = StripeSize::MIN.0, max = StripeSize::MAX.0)]
pub struct StripeSizeError(ByteCount);

impl StripeSize {
    /// The smallest.
    pub const MIN: Self = Self(ByteCount::mib(1));
    /// The largest.
    pub const MAX: Self = Self(ByteCount::mib(64));

    /// Takes a size within the bounds.
    pub fn new(size: ByteCount) -> Result<Self, StripeSizeError> {
        if size < Self::MIN.0 || size > Self::MAX.0 {
            return Err(StripeSizeError(size));
        }
        Ok(Self(size))
    }

    /// The number of bytes.
    pub const fn get(self) -> ByteCount {
        self.0
    }
}

impl Default for StripeSize {
    fn default() -> Self {
        Self(STRIPE_DEFAULT)
    }
}

impl std::str::FromStr for StripeSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = text.parse::<ByteCount>().map_err(|error| error.to_string())?;
        Self::new(size).map_err(|error| error.to_string())
    }
}

/// A run of bytes within one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeSpan {
    /// Place of the stripe in the segment.
    pub index: u32,
    /// Plain bytes within the stripe.
    pub range: Range<usize>,
}

/// How many stripes a segment of this length has. None for an empty one.
///
/// Panics where `stripe_size` is zero.
pub fn stripes_of(len: ByteCount, stripe_size: ByteCount) -> u64 {
    len.get().div_ceil(stripe_size.get())
}

/// Plain bytes of one stripe of a segment: the last one is short, and beyond it there is nothing.
pub fn stripe_len(len: ByteCount, stripe_size: ByteCount, index: u32) -> usize {
    let start = u64::from(index).saturating_mul(stripe_size.get());
    ByteCount::bytes(len.get().saturating_sub(start).min(stripe_size.get())).as_usize()
}

/// Which stripes, and what of each, a range of a segment's plain bytes lies in; in order.
///
/// The range must lie within the segment; what lies beyond is not known here.
pub fn locate(range: Range<u64>, stripe_size: ByteCount) -> impl Iterator<Item = StripeSpan> {
    let size = stripe_size.get();
    let stripes = if range.is_empty() { 0..0 } else { range.start / size..(range.end - 1) / size + 1 };
    stripes.map(move |index| {
        let start = index * size;
        let from = range.start.max(start) - start;
        let to = range.end.min(start.saturating_add(size)) - start;
        StripeSpan {
            index: u32::try_from(index).expect("a segment has fewer than 2^32 stripes"),
            range: from as usize..to as usize,
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert!(StripeSize::new(ByteCount::kib(1023)).is_err());
        assert!(StripeSize::new(ByteCount::mib(1)).is_ok());
        assert!("64MiB".parse::<StripeSize>().is_ok());
        assert!("65MiB".parse::<StripeSize>().is_err());
    }

    #[test]
    fn lengths_around_a_stripe() {
        let size = ByteCount::mib(4);
        for (len, count, last) in [
            (0, 0, 0),
            (1, 1, 1),
            ((4 << 20) - 1, 1, (4 << 20) - 1),
            (4 << 20, 1, 4 << 20),
            ((4 << 20) + 1, 2, 1),
            (8 << 20, 2, 4 << 20),
        ] {
            let len = ByteCount::bytes(len);
            assert_eq!(stripes_of(len, size), count);
            assert_eq!(stripe_len(len, size, count.saturating_sub(1) as u32), last);
            assert_eq!(stripe_len(len, size, count as u32), 0);
        }
    }

    proptest! {
        #[test]
        fn located_spans_are_the_range(start in 0u64..1 << 40, len in 0u64..100 << 20, size in 1u64..64) {
            let size = ByteCount::mib(size);
            let range = start..start + len;
            let mut at = range.start;
            for span in locate(range.clone(), size) {
                prop_assert_eq!(u64::from(span.index) * size.get() + span.range.start as u64, at);
                prop_assert!(!span.range.is_empty() && span.range.end as u64 <= size.get());
                at += span.range.len() as u64;
            }
            prop_assert_eq!(at, range.end);
        }

        #[test]
        fn stripes_sum_to_the_segment(len in 0u64..1 << 28) {
            let (len, size) = (ByteCount::bytes(len), ByteCount::mib(1));
            let sum: usize = (0..stripes_of(len, size) as u32).map(|i| stripe_len(len, size, i)).sum();
            prop_assert_eq!(sum as u64, len.get());
        }
    }
}
