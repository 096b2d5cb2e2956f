//! Which of several keys signs tokens, which ones nodes are to believe, and when a rotation comes to pass.
//!
//! A new key is told to nodes for the overlap before anything is signed with it, and an old one for as long after its
//! last signature as a token lives. All servers follow one schedule by the database's clock, so that they go over to a
//! new key together without a word to each other. Not here: the keys themselves, keeping them, telling nodes.

use std::time::Duration;

use crate::Timestamp;
use crate::token::{CHUNK_LIFETIME, SESSION_LIFETIME, SKEW};

/// How long a new key is told to nodes before it signs, unless said otherwise: no node that counts as online was silent
/// for longer.
pub const OVERLAP: Duration = Duration::from_secs(600);
/// The longest overlap.
pub const OVERLAP_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Until when tokens of a key may be shown, after its last signature.
pub const LAST_TOKEN: Duration = {
    let longest =
        if SESSION_LIFETIME.as_secs() > CHUNK_LIFETIME.as_secs() { SESSION_LIFETIME } else { CHUNK_LIFETIME };
    longest.saturating_add(SKEW)
};
/// Keys that nodes believe at the same time, at most; they refuse to remember more than eight.
const TOGETHER_MAX: usize = 6;

/// When a key is good for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTimes {
    /// Later keys have higher ones.
    pub number: i64,
    /// From then on tokens are signed with it, unless a later key has begun to.
    pub signs_from: Timestamp,
    /// Until then nodes believe it; `None`: nothing replaces it yet.
    pub accepted_until: Option<Timestamp>,
}

/// What a key is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Nodes are told of it; nothing is signed with it yet.
    Announced,
    /// Tokens are signed with it.
    Signing,
    /// A later one signs; tokens of this one are still about.
    Retiring,
    /// Nobody believes it.
    Ended,
}

impl KeyState {
    /// As operators see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Signing => "signing",
            Self::Retiring => "retiring",
            Self::Ended => "ended",
        }
    }
}

impl KeyTimes {
    /// Whether nodes are to believe it.
    pub fn is_accepted(&self, now: Timestamp) -> bool {
        self.accepted_until.is_none_or(|until| now < until)
    }
}

/// The number of the key that signs now.
pub fn signer(keys: &[KeyTimes], now: Timestamp) -> Option<i64> {
    let begun = keys.iter().filter(|key| key.signs_from <= now && key.is_accepted(now));
    begun.map(|key| key.number).max()
}

/// What one of the keys is for now.
pub fn state(keys: &[KeyTimes], key: &KeyTimes, now: Timestamp) -> KeyState {
    match signer(keys, now) {
        _ if !key.is_accepted(now) => KeyState::Ended,
        Some(signer) if signer == key.number => KeyState::Signing,
        Some(signer) if signer > key.number => KeyState::Retiring,
        _ => KeyState::Announced,
    }
}

/// What is asked of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How long nodes are told before the new key signs. Shorter than their heartbeats, and calls fail until they know.
    pub overlap: Duration,
    /// Whether the keys there are cease to count when the new one begins to sign, and not with their last token: for a key
    /// that somebody else has.
    pub revoke: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { overlap: OVERLAP, revoke: false }
    }
}

/// When a new key signs, and when those before it end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The newest key of before.
    pub after: Option<i64>,
    /// When the new key begins to sign.
    pub signs_from: Timestamp,
    /// When nobody believes those of before any more, at the latest.
    pub previous_until: Timestamp,
}

/// Why there is no rotation now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationRefused {
    /// The last one goes on.
    #[error("the rotation before this one is not over; wait for its end, or revoke all keys there are")]
    UnderWay,
    /// Nodes would have to remember too many keys.
    #[error("there are {TOGETHER_MAX} keys that nodes believe; wait until the oldest has ended")]
    TooMany,
    /// Nobody waits so long.
    #[error("the overlap is longer than {} s", OVERLAP_MAX.as_secs())]
    TooLong,
}

/// Puts the next key into the schedule. `keys`: all there are. One rotation at a time, unless it revokes.
pub fn plan(keys: &[KeyTimes], wanted: Wanted, now: Timestamp) -> Result<Rotation, RotationRefused> {
    let accepted = keys.iter().filter(|key| key.is_accepted(now)).count();
    if wanted.overlap > OVERLAP_MAX {
        return Err(RotationRefused::TooLong);
    }
    if accepted > 1 && !wanted.revoke {
        return Err(RotationRefused::UnderWay);
    }
    if accepted >= TOGETHER_MAX {
        return Err(RotationRefused::TooMany);
    }
    let signs_from = now.plus(wanted.overlap);
    let previous_until = if wanted.revoke { signs_from } else { signs_from.plus(LAST_TOKEN) };
    Ok(Rotation { after: keys.iter().map(|key| key.number).max(), signs_from, previous_until })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::default().plus(Duration::from_secs(secs))
    }

    /// A key as it was made at a time.
    #[derive(Clone, Copy, Debug)]
    struct Made {
        at: u64,
        times: KeyTimes,
    }

    fn first() -> Made {
        Made { at: 0, times: KeyTimes { number: 1, signs_from: at(0), accepted_until: None } }
    }

    /// As the store records it.
    fn record(keys: &mut Vec<Made>, rotation: Rotation, now: u64) {
        for key in keys.iter_mut() {
            let until = key.times.accepted_until.unwrap_or(rotation.previous_until);
            key.times.accepted_until = Some(until.min(rotation.previous_until));
        }
        let number = rotation.after.unwrap_or_default() + 1;
        let times = KeyTimes { number, signs_from: rotation.signs_from, accepted_until: None };
        keys.push(Made { at: now, times });
    }

    fn rotate(keys: &mut Vec<Made>, wanted: Wanted, now: u64) -> Result<Rotation, RotationRefused> {
        let rotation = plan(&times(keys), wanted, at(now))?;
        record(keys, rotation, now);
        Ok(rotation)
    }

    fn times(keys: &[Made]) -> Vec<KeyTimes> {
        keys.iter().map(|key| key.times).collect()
    }

    #[test]
    fn a_rotation_goes_through_its_states() {
        let mut keys = vec![first()];
        let wanted = Wanted { overlap: Duration::from_secs(100), revoke: false };
        rotate(&mut keys, wanted, 1_000).expect("nothing is under way");
        let states = |now: u64| {
            let all = times(&keys);
            let state = |number: usize| state(&all, &all[number], at(now));
            (state(0), state(1))
        };
        assert_eq!(states(1_099), (KeyState::Signing, KeyState::Announced));
        assert_eq!(states(1_100), (KeyState::Retiring, KeyState::Signing));
        assert_eq!(states(1_759), (KeyState::Retiring, KeyState::Signing));
        assert_eq!(states(1_760), (KeyState::Ended, KeyState::Signing));
        for now in [1_000, 1_100, 1_759] {
            assert_eq!(plan(&times(&keys), wanted, at(now)), Err(RotationRefused::UnderWay));
        }
        assert!(plan(&times(&keys), wanted, at(1_760)).is_ok());
    }

    #[test]
    fn a_leaked_key_ends_when_the_next_one_signs_also_during_a_rotation() {
        let mut keys = vec![first()];
        let revoke = |secs| Wanted { overlap: Duration::from_secs(secs), revoke: true };
        rotate(&mut keys, Wanted::default(), 1_000).expect("planned");
        rotate(&mut keys, revoke(60), 1_010).expect("planned");
        let all = times(&keys);
        assert_eq!(signer(&all, at(1_069)), Some(1));
        assert_eq!(signer(&all, at(1_070)), Some(3));
        let accepted = |now| all.iter().filter(|key| key.is_accepted(at(now))).count();
        assert_eq!((accepted(1_069), accepted(1_070)), (3, 1));
        rotate(&mut keys, revoke(0), 2_000).expect("planned");
        assert_eq!(signer(&times(&keys), at(2_000)), Some(4));
        assert_eq!(state(&times(&keys), &keys[2].times, at(2_000)), KeyState::Ended);
    }

    #[test]
    fn nodes_are_never_told_more_keys_than_they_remember() {
        let mut keys = vec![first()];
        let wanted = Wanted { overlap: Duration::from_secs(600), revoke: true };
        let mut refused = None;
        for now in 0..20 {
            refused = rotate(&mut keys, wanted, now).err();
        }
        assert_eq!((keys.len(), refused), (TOGETHER_MAX, Some(RotationRefused::TooMany)));
        let long = Wanted { overlap: OVERLAP_MAX + Duration::from_secs(1), revoke: false };
        assert_eq!(plan(&[first().times], long, at(0)), Err(RotationRefused::TooLong));
    }

    proptest! {
        /// Whatever rotations are asked for and when: a token that a server signs by what it knew up to the overlap ago
        /// is believed by a node whose last word from a gateway is as old, for as long as the token lives.
        #[test]
        fn no_token_is_refused_by_a_node_that_is_heard_within_the_overlap(
            asked in proptest::collection::vec(0u64..8_000, 0..12),
            overlap in 60u64..700,
            signed in 700u64..8_000,
            known_ago in 0u64..60,
            shown_after in 0u64..600,
            told_ago in 0u64..60,
        ) {
            let mut asked = asked;
            asked.sort_unstable();
            let mut keys = vec![first()];
            let wanted = Wanted { overlap: Duration::from_secs(overlap), revoke: false };
            for now in asked {
                // Refused while another is under way.
                let _ = rotate(&mut keys, wanted, now);
            }
            // What was there at a time; that older keys were ended since is no loss to whoever does not know of it.
            let there = |then: u64| -> Vec<KeyTimes> {
                keys.iter().filter(|key| key.at <= then).map(|key| key.times).collect()
            };
            let by = signer(&there(signed - known_ago), at(signed)).expect("one signs");
            let shown = signed + shown_after;
            let told = there(shown - told_ago);
            prop_assert!(told.iter().any(|key| key.number == by && key.is_accepted(at(shown - told_ago))));
            // And one signs at any time.
            prop_assert!(signer(&there(shown), at(shown)).is_some());
        }
    }
}
