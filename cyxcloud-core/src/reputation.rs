//! What a node's audits say of it: a beta reputation that forgets.
//!
//! Each audit multiplies both sums by [`FORGETTING`] and adds one to the side of its outcome, so about the last 200 audits
//! count. A node begins with the full sum of successes: it is trusted until it fails, and honest nodes with a rare bad sector stay so.
//! Not here: which outcomes are failures (`audit` asks only; its caller judges), what follows from a standing.

/// How much of the past remains at each audit.
pub const FORGETTING: f64 = 0.995;
/// Successes that a node begins with: the sum that endless success would give.
pub const BEGINNING: f64 = 200.0;
/// Below this score a node is given nothing new.
pub const SUSPENDED_BELOW: f64 = 0.97;
/// Below this score a node does not earn its trust back.
pub const DISQUALIFIED_BELOW: f64 = 0.95;

/// The two sums. Both zero before the first audit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Record {
    /// Successes, the older the less.
    pub alpha: f64,
    /// Failures, the older the less.
    pub beta: f64,
}

/// What a score is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// May be given new chunks.
    Trusted,
    /// Is given nothing new until it has proven itself.
    Suspended,
    /// Is given nothing new until an administrator begins its record anew.
    Disqualified,
}

/// The record after one more audit. Of who is disqualified no proof changes it: all that it failed to keep would be forgotten
/// within hours, asked as often as it is.
pub fn update(record: Record, success: bool) -> Record {
    let begun = record.begun();
    if success && begun.standing() == Standing::Disqualified {
        return begun;
    }
    let Record { alpha, beta } = begun;
    let (succeeded, failed) = if success { (1.0, 0.0) } else { (0.0, 1.0) };
    Record { alpha: alpha * FORGETTING + succeeded, beta: beta * FORGETTING + failed }
}

impl Record {
    /// The share of successes, from 0 to 1.
    pub fn score(&self) -> f64 {
        let Self { alpha, beta } = self.begun();
        alpha / (alpha + beta)
    }

    /// What follows from the score.
    pub fn standing(&self) -> Standing {
        let score = self.score();
        if score < DISQUALIFIED_BELOW {
            Standing::Disqualified
        } else if score < SUSPENDED_BELOW {
            Standing::Suspended
        } else {
            Standing::Trusted
        }
    }

    fn begun(self) -> Self {
        if self.alpha + self.beta > 0.0 { self } else { Self { alpha: BEGINNING, beta: 0.0 } }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Audits of a node that fails so often until its standing is this, or `None` after `audits_max`.
    fn audits_until(standing: Standing, failing: f64, audits_max: usize, seed: u64) -> Option<usize> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut record = Record::default();
        (1..=audits_max).find(|_| {
            record = update(record, !rng.random_bool(failing));
            record.standing() >= standing
        })
    }

    fn median(mut counts: Vec<usize>) -> usize {
        counts.sort_unstable();
        counts[counts.len() / 2]
    }

    #[test]
    fn a_node_begins_trusted() {
        assert_eq!(Record::default().score(), 1.0);
        assert_eq!(Record::default().standing(), Standing::Trusted);
        assert_eq!(update(Record::default(), true), Record { alpha: 200.0, beta: 0.0 });
    }

    #[test]
    fn who_lost_everything_is_out_after_eleven_audits() {
        assert_eq!(audits_until(Standing::Suspended, 1.0, 100, 0), Some(7));
        assert_eq!(audits_until(Standing::Disqualified, 1.0, 100, 0), Some(11));
    }

    #[test]
    fn who_lost_a_part_is_found_by_how_much() {
        for (failing, expected) in [(0.2, 45..=70), (0.1, 100..=160), (0.05, 200..=520)] {
            let counts = (0..201)
                .map(|seed| {
                    audits_until(Standing::Disqualified, failing, 100_000, seed).expect("is found in the end")
                })
                .collect();
            let median = median(counts);
            assert!(expected.contains(&median), "{failing}: {median}");
        }
    }

    /// By when the table of RELIABILITY has it disqualified.
    #[test]
    fn who_lost_a_twentieth_is_suspended_in_time() {
        let suspended =
            (0..100).filter(|&seed| audits_until(Standing::Suspended, 0.05, 369, seed).is_some()).count();
        assert!(suspended >= 95, "{suspended} of 100");
    }

    #[test]
    fn one_lost_shard_in_a_hundred_is_forgiven() {
        const A_YEAR: usize = 96 * 365;
        for seed in 0..100 {
            assert_eq!(audits_until(Standing::Disqualified, 0.01, A_YEAR, seed), None, "seed {seed}");
        }
    }

    #[test]
    fn who_is_disqualified_does_not_earn_it_back() {
        let mut record = Record::default();
        while record.standing() != Standing::Disqualified {
            record = update(record, false);
        }
        let proven = (0..100_000).fold(record, |record, _| update(record, true));
        assert_eq!(proven, record);
        assert!(update(record, false).score() < record.score());
        assert_eq!(update(Record::default(), true).standing(), Standing::Trusted, "begun anew");
    }

    #[test]
    fn a_suspended_node_earns_its_trust_back() {
        let mut record = Record::default();
        for _ in 0..8 {
            record = update(record, false);
        }
        assert_eq!(record.standing(), Standing::Suspended);
        let back = (1..1000).find(|_| {
            record = update(record, true);
            record.standing() == Standing::Trusted
        });
        assert_eq!(back, Some(54));
        assert!(record.alpha + record.beta < BEGINNING + 1.0);
    }
}
