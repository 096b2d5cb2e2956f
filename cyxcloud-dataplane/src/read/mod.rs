//! The read path: layout → shards, verified → stripes, opened → the bytes asked for, in order.
//!
//! The stripe that is needed next waits for memory; those after it are fetched ahead only where memory is spare. So a
//! reader always gets on, and one that does not read holds little.

pub(crate) mod fetch;
mod open;
mod plan;
mod ranged;
mod stripe;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::seal::OwnerSecret;
use cyxcloud_metadata::model::Extent;
use futures::{Stream, stream};
use tokio_util::task::AbortOnDropHandle;

use crate::Plane;
use crate::budget::{Permit, Share};
use crate::error::ReadError;
use plan::{Next, Planner, Work};

/// After so long does a reader that waits for memory no longer count what it has handed out already: whoever still
/// keeps that keeps it on its own account.
const HANDED_GRACE: Duration = Duration::from_secs(1);

/// Memory paid for by a stripe's bytes until the last of them is dropped, or the reader lets go of it.
pub(crate) type Hold = Arc<Mutex<Option<Permit>>>;

/// The bytes asked for of one stripe, verified.
pub(crate) struct Opened {
    slices: VecDeque<Bytes>,
    hold: Weak<Mutex<Option<Permit>>>,
}

/// Reads `range` of an object.
pub(crate) fn read(
    plane: Arc<Plane>,
    secret: Arc<OwnerSecret>,
    extents: Vec<Extent>,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static {
    let reader = Box::new(Reader::new(plane, secret, extents, range));
    stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Where a read stands.
struct Reader {
    plane: Arc<Plane>,
    secret: Arc<OwnerSecret>,
    planner: Planner,
    share: Share,
    /// Planned, but there was no memory to spare for it.
    put_back: Option<Work>,
    /// Stripes being fetched, in order.
    coming: VecDeque<AbortOnDropHandle<Result<Opened, ReadError>>>,
    /// Bytes of the current stripe.
    ready: VecDeque<Bytes>,
    /// What was handed out and may still be in use.
    handed: VecDeque<Weak<Mutex<Option<Permit>>>>,
}

impl Reader {
    fn new(plane: Arc<Plane>, secret: Arc<OwnerSecret>, extents: Vec<Extent>, range: Range<u64>) -> Self {
        let largest = extents.iter().map(|extent| plan::stripe_cost_max(&extent.segment)).max().unwrap_or(0);
        Self {
            share: plane.read_budget.share(plane.config.per_request, largest),
            planner: Planner::new(plane.metadata.clone(), extents, range),
            plane,
            secret,
            put_back: None,
            coming: VecDeque::new(),
            ready: VecDeque::new(),
            handed: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.plane.metrics.bytes.with_label_values(&["read"]).inc_by(bytes.len() as u64);
                return Ok(Some(bytes));
            }
            self.fetch_ahead().await?;
            let Some(stripe) = self.coming.pop_front() else { return Ok(None) };
            let opened = match stripe.await {
                Ok(opened) => opened?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime shuts down, and this task with it.
                Err(_) => std::future::pending().await,
            };
            self.ready = opened.slices;
            self.handed.push_back(opened.hold);
            // The stripe before this one may still be on its way to the reader; the one before that is not.
            while self.handed.len() > 2 {
                self.let_go();
            }
        }
    }

    /// Starts fetching the stripe that is needed next, if it was not yet, and some of those after it.
    async fn fetch_ahead(&mut self) -> Result<(), ReadError> {
        while self.coming.len() <= self.plane.config.read_ahead {
            let needed = self.coming.is_empty();
            let work = match self.put_back.take() {
                Some(work) => work,
                None => match self.planner.next(needed).await? {
                    Next::Work(work) => work,
                    Next::NotYet | Next::End => return Ok(()),
                },
            };
            let permit = match (needed, self.share.try_take_spare(work.cost())) {
                (_, Some(permit)) => permit,
                (true, None) => self.wait_for_memory(work.cost()).await,
                (false, None) => {
                    self.put_back = Some(work);
                    return Ok(());
                }
            };
            let task = stripe::open(self.plane.clone(), self.secret.clone(), work, permit);
            self.coming.push_back(AbortOnDropHandle::new(tokio::spawn(task)));
        }
        Ok(())
    }

    async fn wait_for_memory(&mut self, bytes: usize) -> Permit {
        if let Ok(permit) = tokio::time::timeout(HANDED_GRACE, self.share.take(bytes)).await {
            return permit;
        }
        while !self.handed.is_empty() {
            self.let_go();
        }
        self.share.take(bytes).await
    }

    /// Stops counting the stripe that was handed out first.
    fn let_go(&mut self) {
        if let Some(hold) = self.handed.pop_front().and_then(|hold| hold.upgrade()) {
            hold.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}
