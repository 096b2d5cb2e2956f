//! A budget of bytes or things per second.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Beyond this what went through already is not waited for.
const DEBT_MAX: Duration = Duration::from_secs(30);

/// Lets so many pass per second; who asks for more waits its turn. 0 is no limit.
#[derive(Debug)]
pub(crate) struct Throttle {
    per_sec: u64,
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(crate) fn new(per_sec: u64) -> Self {
        Self { per_sec, free_at: Mutex::new(None) }
    }

    /// Waits until what was let through before is paid for, then takes so many.
    pub(crate) async fn take(&self, count: u64) {
        self.take_of(1.0, count).await;
    }

    /// The same while only a part of the rate, more than 0 and at most 1, is to be used.
    pub(crate) async fn take_of(&self, part: f64, count: u64) {
        if self.per_sec > 0 {
            tokio::time::sleep_until(self.turn(part, count, Instant::now())).await;
        }
    }

    /// How long it takes until what was let through before is paid for.
    pub(crate) fn due_in(&self) -> Duration {
        self.due_after(Instant::now())
    }

    fn due_after(&self, now: Instant) -> Duration {
        let free_at = *self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Takes note of so many that went through already, while only a part of the rate was to be used: those who come later wait for
    /// them, but not for all that many may have brought together.
    pub(crate) fn owe(&self, part: f64, count: u64) {
        if self.per_sec > 0 {
            self.owe_at(part, count, Instant::now());
        }
    }

    fn owe_at(&self, part: f64, count: u64, now: Instant) {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = free_at.map_or(now, |at| at.max(now));
        let paid = turn.min(now + DEBT_MAX) + self.time(part, count);
        *free_at = Some(turn.max(paid));
    }

    /// So many went through, while only a part of the rate was to be used, where so many were taken for them: what is more is
    /// owed, what is less is given back.
    pub(crate) fn settle(&self, part: f64, taken: u64, went: u64) {
        match went.checked_sub(taken) {
            Some(more) => self.owe(part, more),
            None if self.per_sec > 0 => {
                let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
                *free_at = free_at.and_then(|at| at.checked_sub(self.time(part, taken - went)));
            }
            None => {}
        }
    }

    /// When it is the turn of who asks for so many now.
    fn turn(&self, part: f64, count: u64, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = free_at.map_or(now, |at| at.max(now));
        *free_at = Some(turn + self.time(part, count));
        turn
    }

    /// How long so many take.
    fn time(&self, part: f64, count: u64) -> Duration {
        Duration::from_secs_f64(count as f64 / (self.per_sec as f64 * part))
    }
}

/// The same budget for each of many.
#[derive(Debug)]
pub(crate) struct Throttles<K> {
    per_sec: u64,
    each: Mutex<HashMap<K, Arc<Throttle>>>,
}

impl<K: Copy + Eq + Hash> Throttles<K> {
    pub(crate) fn new(per_sec: u64) -> Self {
        Self { per_sec, each: Mutex::default() }
    }

    pub(crate) fn of(&self, whose: K) -> Arc<Throttle> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        each.entry(whose).or_insert_with(|| Arc::new(Throttle::new(self.per_sec))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_keeps_to_the_rate() {
        let throttle = Throttle::new(100);
        let now = Instant::now();
        // The first goes at once, the others wait for those before; what was not used is not saved up.
        let turns: Vec<u128> = (0..4).map(|_| (throttle.turn(1.0, 50, now) - now).as_millis()).collect();
        assert_eq!(turns, [0, 500, 1000, 1500]);
        let later = now + Duration::from_secs(60);
        assert_eq!(throttle.turn(1.0, 50, later), later);
        assert_eq!(throttle.turn(1.0, 50, later), later + Duration::from_millis(500));
    }

    #[test]
    fn a_part_of_the_rate_lets_a_part_through() {
        let throttle = Throttle::new(100);
        let now = Instant::now();
        let turns: Vec<u128> = (0..3).map(|_| (throttle.turn(0.1, 50, now) - now).as_millis()).collect();
        assert_eq!(turns, [0, 5000, 10_000]);
    }

    #[tokio::test]
    async fn what_went_through_already_is_waited_for() {
        let throttle = Throttle::new(100);
        let began = Instant::now();
        throttle.owe(0.5, 5);
        tokio::time::sleep(throttle.due_in()).await;
        assert!(began.elapsed() >= Duration::from_millis(100));
        // Nothing is owed any more, nor was anything taken by waiting.
        let now = Instant::now();
        assert_eq!(throttle.due_after(now), Duration::ZERO);
        assert_eq!(throttle.turn(1.0, 1, now), now);
        let unlimited = Throttle::new(0);
        unlimited.owe(1.0, u64::MAX);
        assert_eq!(unlimited.due_in(), Duration::ZERO);
        assert_eq!(*unlimited.free_at.lock().expect("nobody panicked"), None);
    }

    #[test]
    fn what_could_not_wait_holds_others_up_for_a_while_only() {
        let (throttle, now) = (Throttle::new(100), Instant::now());
        let due = || throttle.due_after(now).as_secs_f64().round() as u64;
        // An hour's worth, in ten thousand pieces.
        for _ in 0..10_000 {
            throttle.owe_at(0.1, 4, now);
        }
        assert_eq!(due(), 30);
        // The last one is waited for whatever it costs; a small one after it forgives nothing.
        throttle.owe_at(0.1, 1_000, now);
        assert_eq!(due(), 130);
        throttle.owe_at(1.0, 1, now);
        assert_eq!(due(), 130);
        // Who takes its turn pays in full.
        throttle.turn(1.0, 1_000, now);
        assert_eq!(due(), 140);
    }

    #[test]
    fn what_was_taken_in_vain_is_given_back() {
        let throttle = Throttle::new(100);
        let now = Instant::now();
        let next = || (throttle.turn(1.0, 0, now) - now).as_millis();
        throttle.turn(1.0, 1100, now);
        throttle.settle(1.0, 1100, 100);
        assert_eq!(next(), 1000);
        throttle.settle(0.5, 100, 150);
        assert_eq!(next(), 2000);
        throttle.settle(1.0, 50, 50);
        assert_eq!(next(), 2000);
        // There is nothing to be saved up.
        throttle.settle(1.0, 1_000_000, 0);
        assert_eq!(next(), 0);
        let unlimited = Throttle::new(0);
        unlimited.settle(1.0, 1, 0);
        unlimited.settle(1.0, 0, 1);
        assert_eq!(*unlimited.free_at.lock().expect("nobody panicked"), None);
    }

    #[test]
    fn each_has_a_budget_of_its_own() {
        let throttles = Throttles::new(100);
        let now = Instant::now();
        let turn = |whose: u8| (throttles.of(whose).turn(1.0, 100, now) - now).as_secs();
        assert_eq!([1, 1, 2, 1, 2].map(turn), [0, 1, 0, 2, 1]);
    }
}
