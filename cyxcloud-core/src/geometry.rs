//! How a stripe is cut, and which shard is which.
//!
//! A geometry is recorded per segment and read from there everywhere: no code knows how many shards there are.

use std::fmt;

/// Why a geometry is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Reed–Solomon over GF(2^8) has 256 points.
    #[error(
        "a geometry has 1 to 255 shards and at least one of data and of copies, not {data}+{parity} x{copies}"
    )]
    OutOfRange {
        /// data shards asked for
        data: u8,
        /// parity shards asked for
        parity: u8,
        /// copies asked for
        copies: u8,
    },
    /// Copies of coded shards would only waste space.
    #[error("copies go with a single uncoded shard (1+0), not with {data}+{parity}")]
    CodedCopies {
        /// data shards asked for
        data: u8,
        /// parity shards asked for
        parity: u8,
    },
}

/// `(data, parity, copies)`: any `data` distinct shards of `data + parity` rebuild the stripe, and each
/// shard is wanted on `copies` nodes. Either coded (`k+m`, one copy each) or copied (`1+0`, n copies).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    data: u8,
    parity: u8,
    copies: u8,
}

impl Geometry {
    /// The profile `standard` for stripes.
    pub const STANDARD: Self = Self { data: 10, parity: 4, copies: 1 };
    /// The profile `standard` for small objects.
    pub const STANDARD_SMALL: Self = Self { data: 1, parity: 0, copies: 3 };
    /// The profile `open` for stripes: nodes in people's homes.
    pub const OPEN: Self = Self { data: 10, parity: 10, copies: 1 };
    /// The profile `open` for small objects.
    pub const OPEN_SMALL: Self = Self { data: 1, parity: 0, copies: 6 };

    /// `k + m` coded shards, one copy of each.
    pub fn coded(data: u8, parity: u8) -> Result<Self, GeometryError> {
        Self::new(data, parity, 1)
    }

    /// One shard on `copies` nodes.
    pub fn copied(copies: u8) -> Result<Self, GeometryError> {
        Self::new(1, 0, copies)
    }

    /// Any geometry, as it was recorded.
    pub fn new(data: u8, parity: u8, copies: u8) -> Result<Self, GeometryError> {
        if data == 0 || copies == 0 || data.checked_add(parity).is_none() {
            return Err(GeometryError::OutOfRange { data, parity, copies });
        }
        if copies > 1 && (data, parity) != (1, 0) {
            return Err(GeometryError::CodedCopies { data, parity });
        }
        Ok(Self { data, parity, copies })
    }

    /// Shards that hold the stripe's own bytes; also how many distinct shards rebuild it.
    pub const fn data(self) -> usize {
        self.data as usize
    }

    /// Coded shards beyond the data.
    pub const fn parity(self) -> usize {
        self.parity as usize
    }

    /// Nodes that each shard is wanted on.
    pub const fn copies(self) -> usize {
        self.copies as usize
    }

    /// Distinct shards.
    pub const fn shards(self) -> usize {
        self.data as usize + self.parity as usize
    }

    /// Locations wanted where there are enough nodes.
    pub const fn locations(self) -> usize {
        self.shards() * self.copies as usize
    }

    /// The shard at this place, if there is one.
    pub fn shard(self, index: usize) -> Option<ShardIndex> {
        (index < self.shards()).then_some(ShardIndex(index as u8))
    }

    /// All shards, data first.
    pub fn indices(self) -> impl DoubleEndedIterator<Item = ShardIndex> + ExactSizeIterator + Clone {
        (0..self.data + self.parity).map(ShardIndex)
    }

    /// Whether this shard is parity.
    pub const fn is_parity(self, shard: ShardIndex) -> bool {
        shard.0 >= self.data
    }
}

/// As operators write it: `10+4`, or `3 copies`.
impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.data, self.parity, self.copies) {
            (1, 0, 1) => write!(f, "1 copy"),
            (1, 0, copies) => write!(f, "{copies} copies"),
            (data, parity, _) => write!(f, "{data}+{parity}"),
        }
    }
}

impl fmt::Debug for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Geometry({self})")
    }
}

/// Place in the stripe: the first `data` hold data, the rest parity. Only `Geometry` makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex(u8);

impl ShardIndex {
    /// The place, from 0.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        assert!(Geometry::coded(0, 4).is_err());
        assert!(Geometry::coded(200, 56).is_err());
        assert!(Geometry::copied(0).is_err());
        assert!(Geometry::new(10, 4, 2).is_err());
        assert!(Geometry::coded(200, 55).is_ok());
    }

    #[test]
    fn only_places_inside_exist() {
        let geometry = Geometry::coded(3, 2).expect("valid");
        assert_eq!(geometry.indices().count(), 5);
        assert!(geometry.shard(5).is_none());
        assert!(geometry.is_parity(geometry.shard(3).expect("exists")));
        assert!(!geometry.is_parity(geometry.shard(2).expect("exists")));
    }
}
