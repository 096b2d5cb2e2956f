//! What an auditor asks, of whom, and when it should doubt itself.
//!
//! An audit is a ranged read with its proof (`proof`): a node cannot tell it from a reader, and the verifier needs
//! only the chunk's id and length from our own records.
//! Not here: which chunk is asked for, what an outcome does to a node's reputation (`reputation`).

use std::ops::Range;
use std::time::Duration;

use rand::{Rng, RngExt};

use crate::node::NodeStatus;
use crate::{ByteCount, Timestamp};

/// What one audit asks for: a leaf of the tree that proofs are made from, so the proof is as short as it can be.
pub const SLICE: ByteCount = ByteCount::kib(16);
/// After a failure a node is asked so many times as often, until it is trusted again: 100 times in an hour.
pub const BURST: u32 = 25;
/// While it is new, a node is asked so many times as often: 384 times a day.
pub const VETTING_PACE: u32 = 4;
/// Proofs without which no node ceases to be new, however long it is known.
pub const VETTING_PROOFS: u64 = 100;
/// Times that what was answered too late is asked again, before it counts as lost.
pub const RETRIES: u32 = 3;
/// Chunks drawn for one question, of which [`pick_by_bytes`] takes one.
pub const DRAWN: usize = 8;
/// A node whose last heartbeat is no older is there: four of those that are sent every half minute.
pub const HEARD_WITHIN: Duration = Duration::from_secs(120);
/// Others who are asked where nobody proved anything, or more were silent than answered: if they do no better, it is the auditor.
pub const WITNESSES: usize = 2;
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

/// Whether a node should be audited again, `wait` after its last audit.
pub fn due(last_audit: Option<Timestamp>, wait: Duration, now: Timestamp) -> bool {
    last_audit.is_none_or(|last| now.since(last) >= wait)
}

/// Whether a node is there, so that an answer can be expected of it. Of one that is silent towards everybody its absence says
/// all there is to say (`node`).
pub fn is_heard(status: NodeStatus, last_heartbeat: Timestamp, now: Timestamp) -> bool {
    status.serves_reads() && now.since(last_heartbeat) <= HEARD_WITHIN
}

/// How often it is looked who is to be asked, if each node is asked so often.
pub fn tick(interval: Duration) -> Duration {
    (interval / BURST).max(Duration::from_secs(1))
}

/// Between which audits of a node the time is chosen that it is left alone, by a `draw` from 0 to 1 that nobody outside can
/// foresee: half to one and a half times the interval, on the average the interval.
pub fn jittered(interval: Duration, draw: f64) -> Duration {
    interval.mul_f64(0.5 + draw.clamp(0.0, 1.0))
}

/// How often a node is asked, as parts of the ordinary interval.
pub fn pace(vetted: bool, quarantined: bool) -> u32 {
    match (vetted, quarantined) {
        (_, true) => BURST,
        (false, false) => VETTING_PACE,
        (true, false) => 1,
    }
}

/// Whether a node has been known and has proven itself for long enough to be given its share of what is written: `proven` times
/// `since` it registered, or was let back after it had failed.
pub fn is_vetted(since: Timestamp, proven: u64, vetting: Duration, now: Timestamp) -> bool {
    proven >= VETTING_PROOFS && now.since(since) >= vetting
}

/// Of chunks that a node holds, drawn without regard to their lengths, the one to ask for: the longer, the likelier. So
/// every byte is asked for about as often as any other, and not every chunk. `None` of none.
pub fn pick_by_bytes<T>(drawn: Vec<T>, len: impl Fn(&T) -> ByteCount, rng: &mut impl Rng) -> Option<T> {
    let total: u64 = drawn.iter().map(|chunk| len(chunk).get()).sum();
    let mut at = if total == 0 { 0 } else { rng.random_range(0..total) };
    let last = drawn.len().checked_sub(1)?;
    drawn.into_iter().enumerate().find_map(|(place, chunk)| {
        let bytes = len(&chunk).get();
        if at < bytes || place == last {
            return Some(chunk);
        }
        at -= bytes;
        None
    })
}

/// Whether a late answer counts as a failure, after so many late answers to the same question: it was asked once and
/// [`RETRIES`] times again.
pub fn is_too_late(late_before: u32) -> bool {
    late_before >= RETRIES
}

/// Whether failures say more of the auditor and its records than of the nodes: our own canary failed, or more than max(1, 10 %) of
/// the nodes asked. Who was silent did not fail: see [`is_cut_off`].
pub fn discard_round(asked: usize, failed_nodes: usize, canary_failed: bool) -> bool {
    canary_failed || (failed_nodes > FAILED_NODES && failed_nodes * FAILED_SHARE > asked)
}

/// Whether silence says more of the auditor's line than of the nodes: more were silent than answered. Nobody is blamed for being
/// silent once, so a few of them in a small cluster need not make the auditor suspect itself.
pub fn is_cut_off(answered_nodes: usize, silent_nodes: usize) -> bool {
    silent_nodes > answered_nodes
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
        assert!(due(None, hour, now));
        assert!(due(ago(3600), hour, now));
        assert!(!due(ago(3599), hour, now));
        // The last audit lies ahead: clocks differ, nothing is due.
        assert!(!due(ago(-5), hour, now));
    }

    #[test]
    fn the_time_between_audits_is_not_foreseeable_and_right_on_the_average() {
        let (quarter, mut rng) = (Duration::from_secs(900), StdRng::seed_from_u64(3));
        let waits: Vec<Duration> = (0..10_000).map(|_| jittered(quarter, rng.random())).collect();
        assert!(waits.iter().all(|wait| (quarter / 2..=quarter * 3 / 2).contains(wait)));
        let mean = waits.iter().sum::<Duration>() / 10_000;
        assert!(mean.abs_diff(quarter) < Duration::from_secs(10), "{mean:?}");
        let early = waits.iter().filter(|wait| **wait < quarter * 3 / 4).count();
        assert!((2_000..3_000).contains(&early), "{early} of 10,000 in the first quarter");
    }

    #[test]
    fn only_of_who_is_there_an_answer_is_expected() {
        let now = Timestamp::from_unix_millis(10_000_000);
        let heard = |status, secs: i64| {
            is_heard(status, Timestamp::from_unix_millis(now.unix_millis() - secs * 1000), now)
        };
        for status in [NodeStatus::Online, NodeStatus::Recovering, NodeStatus::Draining] {
            assert!(heard(status, 0) && heard(status, 120) && !heard(status, 121), "{status}");
        }
        assert!(!heard(NodeStatus::Offline, 0));
        assert!(heard(NodeStatus::Online, -5), "a clock that went back");
    }

    #[test]
    fn the_new_and_those_held_back_are_asked_more_often() {
        let day = Duration::from_secs(86_400);
        let in_a_day = |vetted, quarantined| {
            day.as_secs() / (Duration::from_secs(900) / pace(vetted, quarantined)).as_secs()
        };
        assert_eq!((in_a_day(true, false), in_a_day(false, false)), (96, 384));
        assert_eq!((in_a_day(true, true), in_a_day(false, true)), (2_400, 2_400), "100 in an hour");
    }

    #[test]
    fn vetting_takes_time_and_proofs() {
        let (week, now) = (Duration::from_secs(7 * 86_400), Timestamp::from_unix_millis(900_000_000_000));
        let known_for = |secs: i64| Timestamp::from_unix_millis(now.unix_millis() - secs * 1000);
        assert!(is_vetted(known_for(604_800), 100, week, now));
        assert!(!is_vetted(known_for(604_799), 5_000, week, now));
        assert!(!is_vetted(known_for(6_048_000), 99, week, now));
        assert!(!is_vetted(known_for(-60), 5_000, week, now), "a clock that went back");
    }

    #[test]
    fn bytes_are_asked_for_alike_and_not_chunks() {
        let mut rng = StdRng::seed_from_u64(4);
        let lens = [1u64, 2, 7, 0].map(ByteCount::kib);
        let mut times = [0u32; 4];
        for _ in 0..10_000 {
            times[pick_by_bytes(vec![0, 1, 2, 3], |&at| lens[at], &mut rng).expect("one of four")] += 1;
        }
        let near = |times: u32, want: u32| times.abs_diff(want) < 200;
        assert!(near(times[0], 1_000) && near(times[1], 2_000) && near(times[2], 7_000), "{times:?}");
        assert_eq!(times[3], 0);
        assert!(pick_by_bytes(vec![0, 3], |_| ByteCount::ZERO, &mut rng).is_some());
        assert_eq!(pick_by_bytes(Vec::<usize>::new(), |_| ByteCount::ZERO, &mut rng), None);
    }

    #[test]
    fn the_third_time_asked_again_is_the_last() {
        assert_eq!((0..5).map(is_too_late).collect::<Vec<_>>(), [false, false, false, true, true]);
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

    #[test]
    fn who_hears_the_most_of_them_is_not_cut_off() {
        assert!(!is_cut_off(6, 2) && !is_cut_off(1, 1) && !is_cut_off(0, 0));
        assert!(is_cut_off(0, 1) && is_cut_off(1, 2) && is_cut_off(8, 9));
    }
}
