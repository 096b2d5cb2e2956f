//! What of a node's disk may hold chunks.

use crate::ByteCount;

/// What every node keeps back for metadata, parity and rebalancing unless told otherwise: 2 GiB.
pub const SYSTEM_RESERVED: ByteCount = ByteCount::gib(2);

/// A node's space. Every difference stops at zero: a node that shrank below what it holds has nothing available.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageAccount {
    /// Offered, reservation included.
    pub total: ByteCount,
    /// Kept back for the system.
    pub reserved: ByteCount,
    /// Held by chunks.
    pub used: ByteCount,
}

impl StorageAccount {
    /// What may hold chunks in all: `total - reserved`.
    pub const fn allocatable(&self) -> ByteCount {
        self.total.saturating_sub(self.reserved)
    }

    /// What is free for new chunks: `total - reserved - used`.
    pub const fn available(&self) -> ByteCount {
        self.allocatable().saturating_sub(self.used)
    }

    /// Whether this much more fits.
    pub fn fits(&self, more: ByteCount) -> bool {
        more <= self.available()
    }

    /// Used of allocatable, 0 to 100 (more where the node has shrunk), and 0 where nothing is allocatable: as the
    /// view `node_storage_summary` has it.
    pub fn utilization_percent(&self) -> f64 {
        let allocatable = self.allocatable().get();
        if allocatable == 0 {
            return 0.0;
        }
        self.used.get() as f64 / allocatable as f64 * 100.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_specification_s_example() {
        let account = StorageAccount {
            total: ByteCount::gib(100),
            reserved: SYSTEM_RESERVED,
            used: ByteCount::gib(49),
        };
        assert_eq!(account.allocatable(), ByteCount::gib(98));
        assert_eq!(account.available(), ByteCount::gib(49));
        assert!((account.utilization_percent() - 50.0).abs() < 1e-9);
        assert!(account.fits(ByteCount::gib(49)));
        assert!(!account.fits(ByteCount::bytes((49 << 30) + 1)));
    }

    #[test]
    fn a_node_smaller_than_its_reservation_offers_nothing() {
        let account =
            StorageAccount { total: ByteCount::gib(1), reserved: SYSTEM_RESERVED, used: ByteCount::ZERO };
        assert_eq!(account.available(), ByteCount::ZERO);
        assert!(account.utilization_percent().abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn what_fits_never_exceeds_the_offer(total: u64, reserved: u64, used: u64, more: u64) {
            let [total, reserved, used, more] = [total, reserved, used, more].map(ByteCount::bytes);
            let account = StorageAccount { total, reserved, used };
            prop_assert!(account.available() <= account.allocatable());
            prop_assert!(account.allocatable() <= total);
            if account.fits(more) && more > ByteCount::ZERO {
                let sum = u128::from(reserved.get()) + u128::from(used.get()) + u128::from(more.get());
                prop_assert!(sum <= u128::from(total.get()));
            }
        }
    }
}
