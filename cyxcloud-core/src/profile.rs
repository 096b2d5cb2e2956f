//! Placement profiles: what a bucket promises for the bytes in it.

use crate::Geometry;

/// The most node losses that an acknowledgement waits to be safe against.
pub const ACK_TOLERANCE_MAX: u8 = 2;

/// Named per bucket: how its stripes and its small objects are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// As buckets record it.
    pub name: &'static str,
    /// Geometry of stripes.
    pub stripes: Geometry,
    /// Geometry of objects up to the small-object threshold.
    pub small: Geometry,
    /// Node losses that stripes should survive once repair has caught up and there are enough nodes.
    pub target_tolerance: u8,
    /// Node losses that must be survived before a write is acknowledged; `None`: by the number of nodes.
    pub ack_tolerance: Option<u8>,
}

/// Too few nodes to keep a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{have} storage nodes can take new data and at least {need} are needed; start more nodes, or free space on them"
)]
pub struct TooFewNodes {
    /// Nodes that take new data.
    pub have: usize,
    /// Nodes needed.
    pub need: usize,
}

impl Profile {
    /// 10+4 and 3 copies: nodes that are up nearly always.
    pub const STANDARD: Self = Self {
        name: "standard",
        stripes: Geometry::STANDARD,
        small: Geometry::STANDARD_SMALL,
        target_tolerance: 4,
        ack_tolerance: None,
    };

    /// 10+10 and 6 copies: nodes in people's homes.
    pub const OPEN: Self = Self {
        name: "open",
        stripes: Geometry::OPEN,
        small: Geometry::OPEN_SMALL,
        target_tolerance: 10,
        ack_tolerance: None,
    };

    /// All profiles.
    pub const ALL: [&'static Self; 2] = [&Self::STANDARD, &Self::OPEN];

    /// The profile that a bucket names.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// Node losses that a stripe must survive before its write is acknowledged, with so many nodes that take new
    /// data: 2 where every shard has a node of its own, 1 from two nodes up, 0 only where the operator consents.
    pub fn ack_tolerance(&self, eligible_nodes: usize, consent_to_none: bool) -> Result<u8, TooFewNodes> {
        let own_node_each = eligible_nodes >= self.stripes.shards();
        match eligible_nodes {
            0 => Err(TooFewNodes { have: 0, need: if consent_to_none { 1 } else { 2 } }),
            1 if consent_to_none => Ok(0),
            1 => Err(TooFewNodes { have: 1, need: 2 }),
            _ => match self.ack_tolerance {
                Some(tolerance) => {
                    let need = nodes_for(self.stripes, tolerance);
                    let enough = eligible_nodes >= need;
                    enough.then_some(tolerance).ok_or(TooFewNodes { have: eligible_nodes, need })
                }
                None if own_node_each => Ok(ACK_TOLERANCE_MAX.min(self.stripes.parity().min(255) as u8)),
                None => Ok(1),
            },
        }
    }

    /// The same for an object that is kept in copies: at least half of the copies beyond the first, so 2 of 3.
    pub fn small_ack_tolerance(
        &self,
        eligible_nodes: usize,
        consent_to_none: bool,
    ) -> Result<u8, TooFewNodes> {
        let beyond_first = self.small.copies().saturating_sub(1).div_ceil(2) as u8;
        Ok(self.ack_tolerance(eligible_nodes, consent_to_none)?.min(beyond_first))
    }

    /// Node losses that a segment of this geometry should survive.
    pub fn target_tolerance_of(&self, geometry: Geometry) -> u8 {
        if geometry == self.stripes {
            self.target_tolerance
        } else {
            (geometry.locations() - 1).min(255) as u8
        }
    }
}

/// Fewest nodes over which an even spread survives the loss of any `tolerance` of them.
fn nodes_for(geometry: Geometry, tolerance: u8) -> usize {
    let lost = |nodes: usize| {
        let (each, more) = (geometry.shards() / nodes, geometry.shards() % nodes);
        usize::from(tolerance) * each + more.min(usize::from(tolerance))
    };
    let extra_copies_do = if tolerance <= 1 { 2 } else { usize::from(tolerance) + 1 };
    (extra_copies_do..=geometry.shards())
        .find(|nodes| tolerance <= 1 || lost(*nodes) <= geometry.parity())
        .unwrap_or_else(|| geometry.shards().max(extra_copies_do))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_acknowledgement_promises_depends_on_the_nodes() {
        let ack = |nodes, consent| Profile::STANDARD.ack_tolerance(nodes, consent);
        assert_eq!(ack(0, true), Err(TooFewNodes { have: 0, need: 1 }));
        assert_eq!(ack(1, false), Err(TooFewNodes { have: 1, need: 2 }));
        assert_eq!(ack(1, true), Ok(0));
        for nodes in 2..=13 {
            assert_eq!(ack(nodes, false), Ok(1), "{nodes}");
        }
        assert_eq!(ack(14, false), Ok(2));
        assert_eq!(ack(100_000, true), Ok(2));
    }

    #[test]
    fn copies_need_two_of_three() {
        let ack = |profile: &Profile, nodes| profile.small_ack_tolerance(nodes, false);
        assert_eq!(ack(&Profile::STANDARD, 2), Ok(1));
        assert_eq!(ack(&Profile::STANDARD, 40), Ok(1));
        assert_eq!(ack(&Profile::OPEN, 40), Ok(2));
        assert_eq!(Profile::STANDARD.small_ack_tolerance(1, true), Ok(0));
        assert!(ack(&Profile::STANDARD, 1).is_err());
    }

    #[test]
    fn a_fixed_promise_needs_enough_nodes() {
        let fixed = |tolerance| Profile { ack_tolerance: Some(tolerance), ..Profile::STANDARD };
        assert_eq!(fixed(1).ack_tolerance(2, false), Ok(1));
        assert_eq!(fixed(2).ack_tolerance(6, false), Err(TooFewNodes { have: 6, need: 7 }));
        assert_eq!(fixed(2).ack_tolerance(7, false), Ok(2));
        assert_eq!(fixed(3).ack_tolerance(12, false), Err(TooFewNodes { have: 12, need: 13 }));
        assert_eq!(fixed(4).ack_tolerance(14, false), Ok(4));
    }

    #[test]
    fn profiles_are_found_by_name() {
        assert_eq!(Profile::by_name("standard"), Some(&Profile::STANDARD));
        assert_eq!(Profile::by_name("open").map(|p| p.stripes), Some(Geometry::OPEN));
        assert_eq!(Profile::by_name("Standard"), None);
        assert_eq!(Profile::STANDARD.target_tolerance_of(Geometry::STANDARD), 4);
        assert_eq!(Profile::STANDARD.target_tolerance_of(Geometry::STANDARD_SMALL), 2);
    }
}
