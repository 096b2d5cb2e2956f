//! What a node did lately: who just failed is avoided for a while, longer with every failure in a row. Then whoever has others to
//! ask leaves it to one at a time to find out whether it is well again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Failures in a row and until when they count. All in milliseconds after `born`.
#[derive(Debug)]
pub(crate) struct Health {
    born: Instant,
    failing_until: AtomicU64,
    full_until: AtomicU64,
    /// Until when somebody is finding out whether it is well again.
    tried_until: AtomicU64,
    streak: AtomicU32,
}

/// How long a node that said it is full gets no new chunks.
const FULL_FOR: Duration = Duration::from_secs(20);

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            born: Instant::now(),
            failing_until: AtomicU64::new(0),
            full_until: AtomicU64::new(0),
            tried_until: AtomicU64::new(0),
            streak: AtomicU32::new(0),
        }
    }

    fn now(&self) -> u64 {
        // Never 0, which means "not penalised".
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// It answered as it should.
    pub(crate) fn succeeded(&self) {
        self.streak.store(0, Ordering::Relaxed);
        self.failing_until.store(0, Ordering::Relaxed);
    }

    /// It failed or kept us waiting: avoided for `penalty.0`, doubled with every failure in a row up to `penalty.1`.
    pub(crate) fn failed(&self, penalty: (Duration, Duration)) {
        self.failed_at(self.now(), penalty);
    }

    fn failed_at(&self, now: u64, penalty: (Duration, Duration)) {
        // Calls that were under way together fail together; they count as one failure.
        if self.is_failing_at(now) {
            return;
        }
        let streak = self.streak.fetch_add(1, Ordering::Relaxed).min(16);
        let penalty = penalty.0.saturating_mul(1 << streak).min(penalty.1);
        self.failing_until.store(after(now, penalty), Ordering::Relaxed);
        self.tried_until.store(0, Ordering::Relaxed);
    }

    /// It has no space: reads are not affected.
    pub(crate) fn full(&self) {
        self.full_at(self.now());
    }

    fn full_at(&self, now: u64) {
        self.full_until.store(after(now, FULL_FOR), Ordering::Relaxed);
    }

    /// Whether reads should ask it last.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing_at(self.now())
    }

    fn is_failing_at(&self, now: u64) -> bool {
        self.failing_until.load(Ordering::Relaxed) > now
    }

    /// Whether it did not fail since it last answered as it should.
    pub(crate) fn is_well(&self) -> bool {
        self.streak.load(Ordering::Relaxed) == 0
    }

    /// Whether whoever could ask others may ask it: it is well, or it was avoided for long enough and nobody else is trying. Then
    /// the turn is the caller's, who is given so long.
    pub(crate) fn may_be_tried(&self, patience: Duration) -> bool {
        self.may_be_tried_at(self.now(), patience)
    }

    fn may_be_tried_at(&self, now: u64, patience: Duration) -> bool {
        if self.is_well() {
            return true;
        }
        let tried_until = self.tried_until.load(Ordering::Relaxed);
        if self.is_failing_at(now) || tried_until > now {
            return false;
        }
        let until = after(now, patience);
        let turn =
            self.tried_until.compare_exchange(tried_until, until, Ordering::Relaxed, Ordering::Relaxed);
        turn.is_ok()
    }

    /// Whether new chunks should go elsewhere.
    pub(crate) fn avoid_for_writes(&self) -> bool {
        self.avoid_for_writes_at(self.now())
    }

    fn avoid_for_writes_at(&self, now: u64) -> bool {
        self.is_failing_at(now) || self.full_until.load(Ordering::Relaxed) > now
    }
}

/// So much later.
fn after(now: u64, time: Duration) -> u64 {
    now.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn failures_are_remembered_for_a_while() {
        let health = Health::new();
        let penalty = (ms(30), ms(50));
        assert!(!health.is_failing_at(1) && !health.is_failing());
        health.failed_at(1, penalty);
        // They were under way together.
        health.failed_at(30, penalty);
        assert!(health.is_failing_at(30) && health.avoid_for_writes_at(30));
        assert!(!health.is_failing_at(31) && !health.avoid_for_writes_at(31));
        // Twice as long the second time, if that is not too long.
        health.failed_at(100, penalty);
        assert!(health.is_failing_at(149) && !health.is_failing_at(150));
        health.failed_at(200, penalty);
        health.succeeded();
        assert!(!health.is_failing_at(200));
        health.failed_at(200, penalty);
        assert!(health.is_failing_at(229) && !health.is_failing_at(230), "begun anew");
        health.full_at(300);
        assert!(!health.is_failing_at(300));
        let full = u64::try_from(FULL_FOR.as_millis()).expect("short");
        assert!(health.avoid_for_writes_at(299 + full) && !health.avoid_for_writes_at(300 + full));
    }

    #[test]
    fn who_failed_is_tried_again_by_one_at_a_time() {
        let health = Health::new();
        let penalty = (ms(30), ms(30));
        let tried = |now| health.may_be_tried_at(now, ms(10));
        assert!(health.is_well() && tried(1) && tried(1), "nothing is known against it");
        health.failed_at(1, penalty);
        assert!(!health.is_well() && !tried(30));
        assert!(tried(31) && !tried(31) && !tried(40), "one is at it");
        assert!(!health.is_well());
        health.failed_at(40, penalty);
        assert!(!tried(69));
        assert!(tried(70) && !tried(79));
        assert!(tried(80) && !tried(80), "whoever was at it did not come back");
        health.succeeded();
        assert!(health.is_well() && tried(80) && tried(80));
    }

    /// What others ask for asks for the same, now.
    #[test]
    fn now_is_now() {
        let (health, hour) = (Health::new(), Duration::from_secs(3600));
        health.failed((hour, hour));
        assert!(health.is_failing() && health.avoid_for_writes() && !health.may_be_tried(hour));
        health.succeeded();
        assert!(!health.is_failing() && !health.avoid_for_writes() && health.may_be_tried(hour));
        health.full();
        assert!(!health.is_failing() && health.avoid_for_writes());
    }
}
