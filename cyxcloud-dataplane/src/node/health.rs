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
        let now = self.now();
        // Calls that were under way together fail together; they count as one failure.
        if self.failing_until.load(Ordering::Relaxed) > now {
            return;
        }
        let streak = self.streak.fetch_add(1, Ordering::Relaxed).min(16);
        let penalty = penalty.0.saturating_mul(1 << streak).min(penalty.1);
        let until = now.saturating_add(u64::try_from(penalty.as_millis()).unwrap_or(u64::MAX));
        self.failing_until.store(until, Ordering::Relaxed);
        self.tried_until.store(0, Ordering::Relaxed);
    }

    /// It has no space: reads are not affected.
    pub(crate) fn full(&self) {
        self.full_until.store(self.now() + FULL_FOR.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether reads should ask it last.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing_until.load(Ordering::Relaxed) > self.now()
    }

    /// Whether it did not fail since it last answered as it should.
    pub(crate) fn is_well(&self) -> bool {
        self.streak.load(Ordering::Relaxed) == 0
    }

    /// Whether whoever could ask others may ask it: it is well, or it was avoided for long enough and nobody else is trying. Then
    /// the turn is the caller's, who is given so long.
    pub(crate) fn may_be_tried(&self, patience: Duration) -> bool {
        if self.is_well() {
            return true;
        }
        let (now, tried_until) = (self.now(), self.tried_until.load(Ordering::Relaxed));
        if self.is_failing() || tried_until > now {
            return false;
        }
        let until = now.saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        let turn =
            self.tried_until.compare_exchange(tried_until, until, Ordering::Relaxed, Ordering::Relaxed);
        turn.is_ok()
    }

    /// Whether new chunks should go elsewhere.
    pub(crate) fn avoid_for_writes(&self) -> bool {
        self.is_failing() || self.full_until.load(Ordering::Relaxed) > self.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_remembered_for_a_while() {
        let health = Health::new();
        let penalty = (Duration::from_millis(30), Duration::from_millis(40));
        assert!(!health.is_failing());
        health.failed(penalty);
        assert!(health.is_failing() && health.avoid_for_writes());
        std::thread::sleep(Duration::from_millis(45));
        assert!(!health.is_failing());
        health.failed(penalty);
        health.succeeded();
        assert!(!health.is_failing());
        health.full();
        assert!(!health.is_failing() && health.avoid_for_writes());
    }

    #[test]
    fn who_failed_is_tried_again_by_one_at_a_time() {
        let health = Health::new();
        let penalty = (Duration::from_millis(30), Duration::from_millis(30));
        let tried = || health.may_be_tried(Duration::from_secs(60));
        assert!(health.is_well() && tried() && tried(), "nothing is known against it");
        health.failed(penalty);
        assert!(!health.is_well() && !tried());
        std::thread::sleep(Duration::from_millis(40));
        assert!(!health.is_failing() && !health.is_well());
        assert!(tried() && !tried(), "one is at it");
        health.failed(penalty);
        assert!(!tried());
        std::thread::sleep(Duration::from_millis(40));
        assert!(health.may_be_tried(Duration::from_millis(1)));
        std::thread::sleep(Duration::from_millis(10));
        assert!(tried() && !tried(), "whoever was at it did not come back");
        health.succeeded();
        assert!(health.is_well() && tried() && tried());
    }
}
