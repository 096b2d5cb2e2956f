//! Numbers with a unit: a count of bytes cannot be taken for a count of shards.

use std::fmt;

/// A number of bytes. (`bytes::Bytes` is the buffer.)
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct ByteCount(u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a size; write a number of bytes, or one with KiB, MiB, GiB, KB, MB or GB, such as 4MiB"
)]
pub struct ParseByteCountError(String);

impl ByteCount {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// `n` bytes.
    pub const fn bytes(n: u64) -> Self {
        Self(n)
    }

    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// As an index into memory; what does not fit becomes `usize::MAX` (only on 32-bit machines).
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// As SQL's `BIGINT`; saturates.
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// From SQL's `BIGINT`; a negative number becomes zero.
    pub fn from_i64(n: i64) -> Self {
        Self(u64::try_from(n).unwrap_or(0))
    }

    /// The difference, or zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or the largest count.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// A whole number of gibibytes, the unit of `STORAGE_CAPACITY_GB`; fractions are allowed (`0.5`).
    pub fn parse_gb(text: &str) -> Result<Self, ParseByteCountError> {
        text.trim()
            .parse::<f64>()
            .ok()
            .filter(|gb| gb.is_finite() && *gb > 0.0 && *gb < 1e9)
            .map(|gb| Self((gb * (1u64 << 30) as f64) as u64))
            .ok_or_else(|| ParseByteCountError(text.to_owned()))
    }
}

impl std::str::FromStr for ByteCount {
    type Err = ParseByteCountError;

    fn from_str(text: &str) -> Result<Self, ParseByteCountError> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(ParseByteCountError(text.to_owned())),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(factor))
            .map(Self)
            .ok_or_else(|| ParseByteCountError(text.to_owned()))
    }
}

/// Human size in binary units with one decimal, such as `1.5 MiB`.
impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

impl std::ops::Add for ByteCount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl std::iter::Sum for ByteCount {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::ZERO, |a, b| a + b)
    }
}

/// Milliseconds since the Unix epoch. Core never reads a clock; whoever calls it says what time it is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// `millis` after (or, negative, before) the Unix epoch.
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This long after.
    pub fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_kinds_of_unit() {
        assert_eq!("4MiB".parse(), Ok(ByteCount::mib(4)));
        assert_eq!("4 mb".parse(), Ok(ByteCount::bytes(4_000_000)));
        assert_eq!("17".parse(), Ok(ByteCount::bytes(17)));
        assert!("".parse::<ByteCount>().is_err());
        assert!("-1".parse::<ByteCount>().is_err());
        assert!("4 parsecs".parse::<ByteCount>().is_err());
        assert!("99999999999 TiB".parse::<ByteCount>().is_err());
    }

    #[test]
    fn capacity_takes_fractions() {
        assert_eq!(ByteCount::parse_gb("0.5"), Ok(ByteCount::mib(512)));
        assert!(ByteCount::parse_gb("nan").is_err());
        assert!(ByteCount::parse_gb("0").is_err());
    }

    #[test]
    fn sizes_print_for_people() {
        assert_eq!(ByteCount::bytes(1023).to_string(), "1023 B");
        assert_eq!(ByteCount::bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteCount::gib(3).to_string(), "3.0 GiB");
    }
}
