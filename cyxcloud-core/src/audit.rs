//! What an auditor asks, of whom, and when it should doubt itself.
//!
//! An audit is a ranged read with its proof (`proof`): a node cannot tell it from a reader, and the verifier needs
//! only the chunk's id and length from our own records.
//! Not here: which chunk is asked for, what an outcome does to a node's reputation (`reputation`).

use std::ops::Range;
use std::time::Duration;

use rand::{Rng, RngExt};

use crate::{ByteCount, Timestamp};

/// What one audit asks for: a leaf of the tree that proofs are made from, so the proof is as short as it can be.
pub const SLICE: ByteCount = ByteCount::kib(16);
/// Nodes that may fail in one round, however small it is, before the auditor suspects itself.
const FAILED_NODES: usize = 1;
/// The same as a share of the nodes asked: one in so many.
const FAILED_SHARE: usize = 10;

/// One slice of a chunk this long, each as likely as the others; the last one may be shorter. Empty for an empty chunk, of which
/// nothing can be proven.
pub fn pick_slice(len: ByteCount, rng: &mut impl Rng) -> Range<u64> {
    if len == ByteCount::ZERO {
        return 0..0;
    }
    let start = rng.random_range(0..len.get().div_ceil(SLICE.get())) * SLICE.get();
    start..start.saturating_add(SLICE.get()).min(len.get())
}

/// Whether a node that holds so many locations should be audited. Who holds nothing owes nothing.
pub fn due(last_audit: Option<Timestamp>, locations: u64, interval: Duration, now: Timestamp) -> bool {
    locations > 0 && last_audit.is_none_or(|last| now.since(last) >= interval)
}

/// Whether a round says more of the auditor than of the nodes: our own canary failed, or more than max(1, 10 %) of the nodes asked.
pub fn discard_round(asked: usize, failed_nodes: usize, canary_failed: bool) -> bool {
    canary_failed || (failed_nodes > FAILED_NODES && failed_nodes * FAILED_SHARE > asked)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::ChunkId;
    use crate::proof::{prove, verify};

    #[test]
    fn slices_are_whole_groups_and_reach_every_byte() {
        let mut rng = StdRng::seed_from_u64(1);
        for len in [1, 1000, 16 << 10, (16 << 10) + 1, 410 << 10, 419_450] {
            let mut reached = vec![false; usize::try_from(len).expect("small")];
            for _ in 0..2000 {
                let slice = pick_slice(ByteCount::bytes(len), &mut rng);
                assert_eq!(slice.start % SLICE.get(), 0);
                assert!(!slice.is_empty() && slice.end <= len);
                assert!(slice.end == len || slice.end - slice.start == SLICE.get());
                reached[slice.start as usize..slice.end as usize].fill(true);
            }
            assert!(reached.into_iter().all(|reached| reached), "{len}");
        }
        assert!(pick_slice(ByteCount::ZERO, &mut rng).is_empty());
    }

    #[test]
    fn a_proof_is_little_more_than_its_slice() {
        let chunk: Vec<u8> = (0..410u32 << 10).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (id, len) = (ChunkId::of(&chunk), chunk.len() as u64);
        let mut rng = StdRng::seed_from_u64(2);
        for _ in 0..50 {
            let slice = pick_slice(ByteCount::bytes(len), &mut rng);
            let asked = std::slice::from_ref(&slice);
            let proof = prove(&chunk, asked).expect("lies within");
            assert!(proof.len() < 20_000, "{} bytes for {slice:?}", proof.len());
            let bytes = verify(&id, len, asked, &proof).expect("is right");
            assert_eq!(bytes[0], chunk[slice.start as usize..slice.end as usize]);
        }
    }

    #[test]
    fn a_node_is_due_once_an_interval_and_never_when_empty() {
        let (hour, now) = (Duration::from_secs(3600), Timestamp::from_unix_millis(10_000_000));
        let ago = |secs: i64| Some(Timestamp::from_unix_millis(now.unix_millis() - secs * 1000));
        assert!(due(None, 1, hour, now));
        assert!(!due(None, 0, hour, now));
        assert!(due(ago(3600), 1, hour, now));
        assert!(!due(ago(3599), 1, hour, now));
        assert!(!due(ago(7200), 0, hour, now));
        // The last audit lies ahead: clocks differ, nothing is due.
        assert!(!due(ago(-5), 1, hour, now));
    }

    #[test]
    fn a_round_in_which_too_many_fail_is_the_auditors_own() {
        assert!(discard_round(100, 0, true));
        assert!(!discard_round(100, 10, false));
        assert!(discard_round(100, 11, false));
        assert!(!discard_round(3, 1, false));
        assert!(discard_round(3, 2, false));
        assert!(!discard_round(0, 0, false));
    }
}
