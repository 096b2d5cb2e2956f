//! A budget of bytes or things per second.

use std::sync::{Mutex, PoisonError};
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
        if self.per_sec > 0 {
            tokio::time::sleep_until(self.turn(count, Instant::now())).await;
        }
    }

    /// When it is the turn of who asks for so many now.
    fn turn(&self, count: u64, now: Instant) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = free_at.map_or(now, |at| at.max(now));
        *free_at = Some(turn + Duration::from_secs_f64(count as f64 / self.per_sec as f64));
        turn
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
        let turns: Vec<u128> = (0..4).map(|_| (throttle.turn(50, now) - now).as_millis()).collect();
        assert_eq!(turns, [0, 500, 1000, 1500]);
        let later = now + Duration::from_secs(60);
        assert_eq!(throttle.turn(50, later), later);
        assert_eq!(throttle.turn(50, later), later + Duration::from_millis(500));
    }
}
