//! A budget of bytes or things per second.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

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

    /// When it is the turn of who asks for so many now.
    fn turn(&self, part: f64, count: u64, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = free_at.map_or(now, |at| at.max(now));
        *free_at = Some(turn + Duration::from_secs_f64(count as f64 / (self.per_sec as f64 * part)));
        turn
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

    #[test]
    fn each_has_a_budget_of_its_own() {
        let throttles = Throttles::new(100);
        let now = Instant::now();
        let turn = |whose: u8| (throttles.of(whose).turn(1.0, 100, now) - now).as_secs();
        assert_eq!([1, 1, 2, 1, 2].map(turn), [0, 1, 0, 2, 1]);
    }
}
