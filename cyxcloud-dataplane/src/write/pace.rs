//! How fast a body must come while others wait for the memory that is kept for it.
//!
//! Alone, a sender may take the time that the server's port gives everybody. Only time in which we wait for it counts.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::ByteBudget;
use crate::error::WriteError;

/// A buffer is to be full so long after its first byte, beside the grace that everybody has.
const FILLED_WITHIN_SECS: usize = 60;
/// However large the buffer is, so many bytes per second are enough.
const RATE_MAX: usize = 256 << 10;
/// How often is looked whether anybody waits, once a sender is late.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Watches one buffer being filled.
pub(super) struct Pace<'a> {
    budget: &'a ByteBudget,
    grace: Duration,
    /// Bytes per second.
    rate: usize,
    waited: Duration,
}

impl<'a> Pace<'a> {
    /// For a buffer of so many bytes.
    pub(super) fn new(budget: &'a ByteBudget, grace: Duration, bytes: usize) -> Self {
        Self { budget, grace, rate: rate_of(bytes), waited: Duration::ZERO }
    }

    /// Waits for what the sender has to do, who has sent `got` bytes so far.
    pub(super) async fn keep<T, E>(
        &mut self,
        got: usize,
        sent: impl Future<Output = Result<T, WriteError<E>>>,
    ) -> Result<T, WriteError<E>> {
        let mut sent = pin!(sent);
        if let Poll::Ready(done) = futures::poll!(&mut sent) {
            return done;
        }
        let began = Instant::now();
        let mut look = began + earned(self.grace, got, self.rate).saturating_sub(self.waited);
        loop {
            tokio::select! {
                biased;
                done = &mut sent => {
                    self.waited += began.elapsed();
                    return done;
                }
                () = tokio::time::sleep_until(look) => {
                    if self.budget.is_wanted() {
                        return Err(WriteError::Slow { rate: self.rate });
                    }
                    look = Instant::now() + LOOK_AGAIN;
                }
            }
        }
    }
}

fn rate_of(bytes: usize) -> usize {
    (bytes / FILLED_WITHIN_SECS).clamp(1, RATE_MAX)
}

/// How long a sender may let us wait in all, who sent so much.
fn earned(grace: Duration, got: usize, rate: usize) -> Duration {
    grace + Duration::from_millis((got as u64).saturating_mul(1000) / rate as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_megabyte_per_second_is_always_enough() {
        for bytes in [1 << 10, 1 << 20, 4 << 20, 64 << 20] {
            assert!(rate_of(bytes) < 1_000_000);
        }
        assert_eq!(rate_of(6 << 20), (6 << 20) / 60);
        assert_eq!(earned(Duration::from_secs(10), 6 << 20, rate_of(6 << 20)), Duration::from_secs(70));
        assert_eq!(earned(Duration::from_secs(10), 0, rate_of(1)), Duration::from_secs(10));
    }
}
