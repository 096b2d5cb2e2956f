//! An owner's places for sockets: so many at all gateways together, as far as these can tell each other.
//!
//! Each gateway counts its own. What is held elsewhere is in the ephemeral state, where a place is held while its gateway says
//! so; where that does not answer, the gateway's own count is all there is.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cyxcloud_core::OwnerId;
use cyxcloud_tls::crowd::{Crowd, Place};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::ephemeral::Ephemeral;

/// A gateway that goes without a word holds a place for so long.
pub(super) const HELD: Duration = Duration::from_secs(30);
/// How often it says that a place is held.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long the ephemeral state is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The places of all owners.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    here: Crowd,
    ephemeral: Arc<dyn Ephemeral>,
    outage: Arc<Outage>,
}

/// Whether the ephemeral state is known not to answer: that is said once, and not for every socket.
#[derive(Debug, Default)]
struct Outage(AtomicBool);

impl Outage {
    /// Whether that is news.
    fn began(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether there was one until now.
    fn ended(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    _here: Place,
    _left: DropGuard,
}

impl Seats {
    /// At most so many of each owner.
    pub(super) fn new(most: usize, ephemeral: Arc<dyn Ephemeral>) -> Self {
        Self { most, here: Crowd::new(most), ephemeral, outage: Arc::default() }
    }

    /// A place; `None` if the owner has as many as there may be.
    pub(super) async fn take(&self, owner: OwnerId) -> Option<Seat> {
        let place = self.here.enter_as(owner.to_string())?;
        let claim = Claim {
            name: format!("sockets:{owner}"),
            holder: Uuid::new_v4().to_string(),
            most: self.most,
            ephemeral: self.ephemeral.clone(),
            outage: self.outage.clone(),
        };
        // First, so that it is given back too when whoever asks goes away meanwhile.
        let left = CancellationToken::new();
        let seat = Seat { _here: place, _left: left.clone().drop_guard() };
        let claim = Arc::new(claim);
        tokio::spawn(claim.clone().keep(left));
        claim.hold().await.then_some(seat)
    }
}

/// A place as all gateways know of it.
struct Claim {
    name: String,
    holder: String,
    most: usize,
    ephemeral: Arc<dyn Ephemeral>,
    outage: Arc<Outage>,
}

impl Claim {
    /// Whether there is a place for it, as far as that is known.
    async fn hold(&self) -> bool {
        let held = self.ephemeral.hold(&self.name, &self.holder, self.most, HELD);
        let failure: Box<dyn Error + Send + Sync> = match timeout(ANSWER_TIMEOUT, held).await {
            Ok(Ok(free)) => {
                if self.outage.ended() {
                    info!("sockets at other gateways are counted again");
                }
                return free;
            }
            Ok(Err(error)) => error.into(),
            Err(late) => late.into(),
        };
        if self.outage.began() {
            warn!(error = &*failure as &dyn Error, "sockets at other gateways are not counted");
        }
        true
    }

    async fn keep(self: Arc<Self>, left: CancellationToken) {
        loop {
            tokio::select! {
                () = left.cancelled() => break,
                () = sleep(SAY_EVERY) => {}
            }
            // Who has a place keeps it, also where others took them all while nobody could be told of it.
            self.hold().await;
        }
        if let Err(error) = self.ephemeral.release(&self.name, &self.holder).await {
            debug!(%error, "a place is held until it is over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ephemeral::InProcess;

    #[test]
    fn an_outage_is_said_once() {
        let outage = Outage::default();
        assert!(!outage.ended() && outage.began() && !outage.began());
        assert!(outage.ended() && !outage.ended() && outage.began());
    }

    #[tokio::test]
    async fn adv_30_an_owner_has_so_many_places_at_all_gateways_together() {
        let shared: Arc<dyn Ephemeral> = Arc::new(InProcess::default());
        let [here, there] = [0, 1].map(|_| Seats::new(2, shared.clone()));
        let [one, other] = [1, 2].map(|seed| OwnerId::from_random([seed; 16]));
        let (first, second) = (here.take(one).await, there.take(one).await);
        assert!(first.is_some() && second.is_some());
        assert!(here.take(one).await.is_none() && there.take(one).await.is_none());
        assert!(here.take(other).await.is_some(), "another owner has others");
        drop(first);
        let free = async {
            loop {
                match there.take(one).await {
                    Some(seat) => return seat,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let third = timeout(Duration::from_secs(60), free).await.expect("it was given back");
        assert!(here.take(one).await.is_none());
        drop((second, third));
    }
}
