//! How many bytes requests may hold, all together and each.
//!
//! A request takes all that a stripe needs in one step, before it has the stripe's bytes, and what it holds needs no more to
//! be finished: so nobody waits while holding what another waits for. The one exception is a stripe that needs more than
//! half of the budget: it takes what its shards need when it is full, and there is one such stripe at a time.
//! Writes and reads have a budget each, because a reader that does not read must not keep others from writing.
//! Not here: the buffers themselves (`buffer`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cyxcloud_core::{ByteCount, OwnerId};
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
    /// Requests that wait for bytes now.
    waiting: Arc<AtomicUsize>,
    /// What each owner may hold of what others are likely to need, while a request of theirs is there.
    owners: Arc<Mutex<HashMap<OwnerId, Weak<Semaphore>>>>,
    /// Whose turn it is to fill a stripe that needs more than half of the budget.
    large: Arc<Semaphore>,
}

impl ByteBudget {
    pub(crate) fn new(total: ByteCount, in_use: IntGauge) -> Self {
        let total = units(total.as_usize()).max(1);
        Self {
            free: Arc::new(Semaphore::new(total as usize)),
            total,
            in_use,
            waiting: Arc::default(),
            owners: Arc::default(),
            large: Arc::new(Semaphore::new(1)),
        }
    }

    /// Whether somebody waits for bytes that others hold.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// A request's share: at most `most` bytes, but always enough for one `stripe` of bytes.
    pub(crate) fn share(&self, most: ByteCount, stripe: usize) -> Share {
        let own_total = units(most.as_usize()).max(units(stripe)).clamp(1, self.total);
        let own = Arc::new(Semaphore::new(own_total as usize));
        Share { budget: self.clone(), own, own_total, owner: None }
    }

    /// The same, for a request of `owner`: when half of the budget is in use, all requests of an owner together take no more
    /// than a quarter beyond that (or one stripe), so that others find room however many requests there are of one.
    pub(crate) fn share_of(&self, owner: OwnerId, most: ByteCount, stripe: usize) -> Share {
        Share { owner: Some(self.owner(owner)), ..self.share(most, stripe) }
    }

    fn owner(&self, owner: OwnerId) -> Arc<Semaphore> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = owners.get(&owner).and_then(Weak::upgrade) {
            return known;
        }
        owners.retain(|_, semaphore| semaphore.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.owner_total() as usize));
        owners.insert(owner, Arc::downgrade(&new));
        new
    }

    fn owner_total(&self) -> u32 {
        (self.total / 4).max(1)
    }

    /// Half of it must stay free.
    fn try_spare(&self, wanted: u32) -> Option<OwnedSemaphorePermit> {
        if self.free.available_permits() < wanted as usize + self.total as usize / 2 {
            return None;
        }
        self.free.clone().try_acquire_many_owned(wanted).ok()
    }
}

/// Counted among those that wait.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, wanted: u32) -> OwnedSemaphorePermit {
    semaphore.clone().acquire_many_owned(wanted).await.expect("the budget's semaphores are never closed")
}

/// What one request may hold.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    budget: ByteBudget,
    own: Arc<Semaphore>,
    own_total: u32,
    owner: Option<Arc<Semaphore>>,
}

impl Share {
    /// Waits for so many bytes, first come first served. More than the whole share counts as the whole share.
    pub(crate) async fn take(&self, bytes: usize) -> Permit {
        let wanted = units(bytes).min(self.own_total);
        let own = acquire(&self.own, wanted).await;
        let _waiter = Waiter::new(&self.budget.waiting);
        let (owner, all) = match &self.owner {
            None => (None, acquire(&self.budget.free, wanted).await),
            Some(owner) => match self.budget.try_spare(wanted) {
                Some(all) => (None, all),
                None => {
                    let owner = acquire(owner, wanted.min(self.budget.owner_total())).await;
                    (Some(owner), acquire(&self.budget.free, wanted).await)
                }
            },
        };
        Permit::new(own, owner, all, &self.budget.in_use)
    }

    /// Whether so many bytes are more than may be held by somebody whose stripe is still coming.
    pub(crate) fn is_large(&self, bytes: usize) -> bool {
        units(bytes) > self.budget.total / 2
    }

    /// Waits for the turn to fill a stripe that is large.
    pub(crate) async fn large_turn(&self) -> OwnedSemaphorePermit {
        let _waiter = Waiter::new(&self.budget.waiting);
        acquire(&self.budget.large, 1).await
    }

    /// Waits for the plain bytes of a stripe that is large. The other half stays for the others.
    pub(crate) async fn take_half(&self, bytes: usize) -> Permit {
        self.take(bytes.min(self.budget.total as usize / 2 * UNIT)).await
    }

    /// Waits for more beside what is held; as much as there is at all, if that is less. To be called by whoever has the
    /// turn, and by nobody else.
    pub(crate) async fn take_beside(&self, held: &Permit, bytes: usize) -> Permit {
        let rest = self.own_total as usize - held.all.num_permits();
        let wanted = units(bytes).min(rest as u32);
        let own = acquire(&self.own, wanted).await;
        let _waiter = Waiter::new(&self.budget.waiting);
        Permit::new(own, None, acquire(&self.budget.free, wanted).await, &self.budget.in_use)
    }

    /// Takes so many bytes if nobody else is likely to need them soon: half of the budget must stay free.
    pub(crate) fn try_take_spare(&self, bytes: usize) -> Option<Permit> {
        let wanted = units(bytes);
        let own = self.own.clone().try_acquire_many_owned(wanted).ok()?;
        let all = self.budget.try_spare(wanted)?;
        Some(Permit::new(own, None, all, &self.budget.in_use))
    }
}

/// Bytes that may be held until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    own: OwnedSemaphorePermit,
    /// At most as many as the others: an owner has fewer than one stripe may need.
    owner: Option<OwnedSemaphorePermit>,
    all: OwnedSemaphorePermit,
    in_use: IntGauge,
}

impl Permit {
    fn new(
        own: OwnedSemaphorePermit,
        owner: Option<OwnedSemaphorePermit>,
        all: OwnedSemaphorePermit,
        in_use: &IntGauge,
    ) -> Self {
        in_use.add((all.num_permits() * UNIT) as i64);
        Self { own, owner, all, in_use: in_use.clone() }
    }

    /// Parts with so many bytes (or all there are) as a permit of its own.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let count = (units(bytes) as usize).min(self.all.num_permits());
        let (Some(own), Some(all)) = (self.own.split(count), self.all.split(count)) else {
            unreachable!("a permit has as many of its own as of all, and is not split beyond them")
        };
        let owner = self.owner.as_mut().and_then(|owner| owner.split(count.min(owner.num_permits())));
        Self { own, owner, all, in_use: self.in_use.clone() }
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
    async fn one_owner_leaves_room_for_others() {
        let budget = budget(ByteCount::mib(8));
        let share = |owner| budget.share_of(OwnerId::from_random([owner; 16]), ByteCount::mib(2), 0);
        let soon = std::time::Duration::from_millis(20);
        let mut held = Vec::new();
        while let Ok(permit) = tokio::time::timeout(soon, share(1).take(1 << 20)).await {
            held.push(permit);
        }
        assert_eq!(held.len(), 6, "half, and a quarter");
        assert!(!budget.is_wanted());
        let other = tokio::time::timeout(soon, share(2).take(2 << 20)).await.expect("there is room");
        assert_eq!(budget.free.available_permits(), 0);
        let mine = share(1);
        let mut waiting = Box::pin(mine.take(1 << 20));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(budget.is_wanted());
        drop((held.pop(), other));
        drop(waiting.await);
        assert!(!budget.is_wanted());
        drop(held);
        assert_eq!(budget.free.available_permits(), 8 << 10);
        drop(mine);
        drop(share(3));
        assert_eq!(budget.owners.lock().expect("not poisoned").len(), 1, "who is gone is forgotten");
    }

    #[tokio::test]
    async fn a_large_stripe_leaves_half_until_it_is_full() {
        let budget = budget(ByteCount::mib(8));
        let share = budget.share_of(OwnerId::from_random([1; 16]), ByteCount::mib(1), 60 << 20);
        assert!(share.is_large(5 << 20) && !share.is_large(4 << 20));
        let turn = share.large_turn().await;
        let plain = share.take_half(20 << 20).await;
        assert_eq!(budget.free.available_permits(), 4 << 10);
        let shards = share.take_beside(&plain, 40 << 20).await;
        assert_eq!(budget.free.available_permits(), 0);
        drop((turn, plain, shards));
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
