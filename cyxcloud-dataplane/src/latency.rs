//! How long things took lately, so that "late" means late here and now; and how much may be done about it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const KEPT: usize = 128;
/// With fewer than this nothing is known yet.
const ENOUGH: usize = 8;

/// The last durations of one kind of operation.
#[derive(Debug, Default)]
pub(crate) struct Latency(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    micros: Vec<u32>,
    next: usize,
    since_sorted: usize,
    high: Option<u32>,
}

impl Latency {
    /// Takes note of an operation that succeeded.
    pub(crate) fn record(&self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.micros.len() < KEPT {
            recent.micros.push(micros);
        } else {
            let next = recent.next;
            recent.micros[next] = micros;
        }
        recent.next = (recent.next + 1) % KEPT;
        recent.since_sorted += 1;
        if recent.since_sorted >= 16 || (recent.high.is_none() && recent.micros.len() >= ENOUGH) {
            recent.since_sorted = 0;
            let mut sorted = recent.micros.clone();
            sorted.sort_unstable();
            recent.high = sorted.get(sorted.len() * 95 / 100).copied();
        }
    }

    /// When an operation that is still under way is late: `factor` times the 95th percentile, within bounds; a quarter of
    /// the upper bound while little is known.
    pub(crate) fn late(&self, factor: u32, least: Duration, most: Duration) -> Duration {
        let high = self.0.lock().unwrap_or_else(PoisonError::into_inner).high;
        let late = high.map_or(most / 4, |micros| Duration::from_micros(micros.into()) * factor);
        late.max(least).min(most.max(least))
    }
}

/// Durations by size of what is moved: small, about half a megabyte, more.
#[derive(Debug, Default)]
pub(crate) struct LatencyBySize([Latency; 3]);

impl LatencyBySize {
    pub(crate) fn of(&self, bytes: usize) -> &Latency {
        match bytes {
            0..=0xffff => &self.0[0],
            0x1_0000..=0xf_ffff => &self.0[1],
            _ => &self.0[2],
        }
    }
}

/// Calls that earn one more.
const EARNED_BY: u32 = 20;
/// Most that are saved up: a node that hangs holds up many reads at once.
const SAVED_MAX: u32 = 32;

/// How many calls may be repeated elsewhere because they are late: one in twenty.
///
/// Where all calls are late because there is too much to do, doing it twice makes it worse.
#[derive(Debug)]
pub(crate) struct Repeats(AtomicU32);

impl Default for Repeats {
    fn default() -> Self {
        Self(AtomicU32::new(SAVED_MAX * EARNED_BY))
    }
}

impl Repeats {
    /// A call was made that was not a repeated one.
    pub(crate) fn earn(&self) {
        let more = |saved| (saved < SAVED_MAX * EARNED_BY).then_some(saved + 1);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Whether one may be repeated now.
    pub(crate) fn spend(&self) -> bool {
        let less = |saved: u32| saved.checked_sub(EARNED_BY);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_in_twenty_may_be_repeated() {
        let repeats = Repeats::default();
        assert_eq!((0..1000).filter(|_| repeats.spend()).count(), 32, "what was saved up");
        let repeated = (0..1000).filter(|_| {
            repeats.earn();
            repeats.spend()
        });
        assert_eq!(repeated.count(), 50);
        (0..10_000).for_each(|_| repeats.earn());
        assert_eq!((0..1000).filter(|_| repeats.spend()).count(), 32);
    }

    #[test]
    fn late_follows_what_was_seen() {
        let latency = Latency::default();
        let late = || latency.late(2, Duration::from_millis(10), Duration::from_secs(2));
        assert_eq!(late(), Duration::from_millis(500));
        for _ in 0..100 {
            latency.record(Duration::from_millis(1));
        }
        assert_eq!(late(), Duration::from_millis(10));
        for _ in 0..200 {
            latency.record(Duration::from_millis(100));
        }
        assert_eq!(late(), Duration::from_millis(200));
        for _ in 0..200 {
            latency.record(Duration::from_secs(100));
        }
        assert_eq!(late(), Duration::from_secs(2));
    }
}
