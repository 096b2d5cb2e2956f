//! How many bytes requests may hold, all together and each.
//!
//! A request takes all that a stripe needs in one step, before it has the stripe's bytes, and what it holds needs no more to
//! be finished: so nobody waits while holding what another waits for. Writes and reads have a budget each, because a
//! reader that does not read must not keep others from writing.
//! Not here: the buffers themselves (`buffer`).

use std::sync::Arc;

use cyxcloud_core::ByteCount;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in units of this many bytes, so that they fit a semaphore's numbers.
const UNIT: usize = 1024;

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// The bytes that all requests of one kind may hold.
#[derive(Clone, Debug)]
pub(crate) struct ByteBudget {
    free: Arc<Semaphore>,
    total: u32,
    in_use: IntGauge,
}

impl ByteBudget {
    pub(crate) fn new(total: ByteCount, in_use: IntGauge) -> Self {
        let total = units(total.as_usize()).max(1);
        Self { free: Arc::new(Semaphore::new(total as usize)), total, in_use }
    }

    /// A request's share: at most `most` bytes, but always enough for one `stripe` of bytes.
    pub(crate) fn share(&self, most: ByteCount, stripe: usize) -> Share {
        let own_total = units(most.as_usize()).max(units(stripe)).clamp(1, self.total);
        Share { budget: self.clone(), own: Arc::new(Semaphore::new(own_total as usize)), own_total }
    }
}

/// What one request may hold.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    budget: ByteBudget,
    own: Arc<Semaphore>,
    own_total: u32,
}

impl Share {
    /// Waits for so many bytes, first come first served. More than the whole share counts as the whole share.
    pub(crate) async fn take(&self, bytes: usize) -> Permit {
        let wanted = units(bytes).min(self.own_total);
        let own = self.own.clone().acquire_many_owned(wanted).await;
        let all = self.budget.free.clone().acquire_many_owned(wanted).await;
        match (own, all) {
            (Ok(own), Ok(all)) => Permit::new(own, all, &self.budget.in_use),
            _ => unreachable!("the budget's semaphores are never closed"),
        }
    }

    /// Takes so many bytes if nobody else is likely to need them soon: half of the budget must stay free.
    pub(crate) fn try_take_spare(&self, bytes: usize) -> Option<Permit> {
        let wanted = units(bytes);
        if self.budget.free.available_permits() < wanted as usize + self.budget.total as usize / 2 {
            return None;
        }
        let own = self.own.clone().try_acquire_many_owned(wanted).ok()?;
        let all = self.budget.free.clone().try_acquire_many_owned(wanted).ok()?;
        Some(Permit::new(own, all, &self.budget.in_use))
    }
}

/// Bytes that may be held until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
    in_use: IntGauge,
}

impl Permit {
    fn new(own: OwnedSemaphorePermit, all: OwnedSemaphorePermit, in_use: &IntGauge) -> Self {
        in_use.add((all.num_permits() * UNIT) as i64);
        Self { own, all, in_use: in_use.clone() }
    }

    /// Parts with so many bytes (or all there are) as a permit of its own.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let count = (units(bytes) as usize).min(self.all.num_permits());
        let (Some(own), Some(all)) = (self.own.split(count), self.all.split(count)) else {
            unreachable!("a permit has as many of its own as of all, and is not split beyond them")
        };
        Self { own, all, in_use: self.in_use.clone() }
    }

    /// Gives back what is beyond so many bytes.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let spare = self.all.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.split(spare * UNIT));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_use.sub((self.all.num_permits() * UNIT) as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(total: ByteCount) -> ByteBudget {
        ByteBudget::new(total, IntGauge::new("in_use", "bytes").expect("valid name"))
    }

    #[tokio::test]
    async fn what_is_taken_is_returned_in_parts() {
        let budget = budget(ByteCount::mib(8));
        let share = budget.share(ByteCount::mib(4), 0);
        let mut permit = share.take(3 << 20).await;
        assert_eq!(budget.in_use.get(), 3 << 20);
        let part = permit.split(1 << 20);
        drop(permit);
        assert_eq!(budget.in_use.get(), 1 << 20);
        drop(part);
        assert_eq!(budget.in_use.get(), 0);
        assert_eq!(budget.free.available_permits(), 8 << 10);
    }

    #[tokio::test]
    async fn a_request_may_always_hold_one_stripe() {
        let budget = budget(ByteCount::mib(8));
        let share = budget.share(ByteCount::mib(1), 6 << 20);
        drop(share.take(6 << 20).await);
        // More than there is at all is what there is.
        drop(share.take(60 << 20).await);
        assert_eq!(budget.free.available_permits(), 8 << 10);
    }

    #[tokio::test]
    async fn reading_ahead_leaves_room() {
        let budget = budget(ByteCount::mib(8));
        let share = budget.share(ByteCount::mib(8), 0);
        let first = share.try_take_spare(4 << 20);
        assert!(first.is_some());
        assert!(share.try_take_spare(1 << 20).is_none());
        drop(first);
        let mut permit = share.take(4 << 20).await;
        permit.shrink(1 << 20);
        assert_eq!(budget.in_use.get(), 1 << 20);
    }
}
