//! A body of stripes: one is being filled while others are sealed, tapped and stored.

use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::stripe::StripeSize;
use cyxcloud_core::{Geometry, OwnerId, SegmentId};
use cyxcloud_metadata::model::{NewSegment, NewStripe, SegmentBody};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::code::{Sealing, stripe_cost};
use super::cut::Cutter;
use super::pace::Pace;
use super::tap::TapState;
use super::{Survives, Tap, WriteRequest, least_tolerance, new_segment, new_segment_id, store};
use crate::Plane;
use crate::budget::Permit;
use crate::buffer::Plain;
use crate::error::WriteError;

/// A stripe whose plain bytes are there, with the permit for its shards.
struct Filled {
    index: u32,
    plain: Plain,
    permit: Permit,
}

/// What is the same for all stripes of the body.
struct Job<'a> {
    plane: &'a Plane,
    geometry: Geometry,
    segment: SegmentId,
    ack: u8,
    sealing: Sealing,
}

/// Stores a body of at least one stripe.
pub(super) async fn write<S, E>(
    plane: &Plane,
    request: &WriteRequest,
    stripe_size: StripeSize,
    cutter: Cutter<'_, S>,
    tap: Tap,
) -> Result<NewSegment, WriteError<E>>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Send,
{
    let geometry = request.profile.stripes;
    let view = plane.fresh_view().await?;
    let ack = request.profile.ack_tolerance(view.eligible(), plane.config.consent_to_no_redundancy)?;
    let segment = new_segment_id();
    let sealing = Sealing::new(plane, request, segment, geometry);
    let job = Job { plane, geometry, segment, ack, sealing };
    // A body of one stripe needs no second hash of the whole.
    let one_stripe = cutter.left().is_some_and(|left| left <= stripe_size.get().get());
    let (filled, to_store) = mpsc::channel(1);
    let ((), (stripes, tap)) = futures::future::try_join(
        fill(&job, request.owner, stripe_size, cutter, filled),
        drain(&job, to_store, TapState::new(tap, !one_stripe)),
    )
    .await?;
    let length = stripes.iter().map(|stripe| stripe.plain_len.get()).sum();
    let content_hash = match (tap.whole(), &stripes[..]) {
        (Some(whole), _) => whole,
        (None, [only]) => only.plain_hash,
        (None, _) => unreachable!("a body without a hash of its own has one stripe"),
    };
    plane.metrics.bytes.with_label_values(&["written"]).inc_by(length);
    let survives = Survives { asked: ack, kept: least_tolerance(&stripes) };
    let body = SegmentBody::Stripes(stripes);
    Ok(new_segment(request, job.segment, length, geometry, content_hash, body, survives))
}

/// Reads the body into buffers, one stripe each, as far as the budget allows.
async fn fill<S, E>(
    job: &Job<'_>,
    owner: OwnerId,
    stripe_size: StripeSize,
    mut cutter: Cutter<'_, S>,
    filled: mpsc::Sender<Filled>,
) -> Result<(), WriteError<E>>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Send,
{
    let Job { plane, geometry, .. } = *job;
    let full = stripe_size.get().as_usize();
    let first = cutter.left().map_or(full, |left| full.min(left as usize));
    let stripe = first + stripe_cost(geometry, first);
    let share = plane.write_budget.share_of(owner, plane.config.per_request, stripe);
    let mut index = 0;
    while cutter.more().await? {
        let room = cutter.left().map_or(full, |left| full.min(left as usize));
        let cost = room + stripe_cost(geometry, room);
        let turn = if share.is_large(cost) { Some(share.large_turn().await) } else { None };
        let mut permit = match &turn {
            Some(_) => share.take_half(room).await,
            None => share.take(cost).await,
        };
        let mut bytes = plane.buffers.take(room);
        let mut pace = Pace::new(&plane.write_budget, plane.config.sender_grace, room);
        let len = cutter.fill(&mut bytes, &mut pace).await?;
        bytes.truncate(len);
        let for_shards = match turn {
            Some(_turn) => {
                permit.shrink(room);
                share.take_beside(&permit, stripe_cost(geometry, len)).await
            }
            None => {
                permit.shrink(room + stripe_cost(geometry, len));
                permit.split(stripe_cost(geometry, len))
            }
        };
        let stripe = Filled { index, plain: Plain { bytes, permit }, permit: for_shards };
        if filled.send(stripe).await.is_err() {
            // The other side failed, and says why.
            return std::future::pending().await;
        }
        index += 1;
    }
    Ok(())
}

/// Stores stripes as they come, several at once; answers with all of them in order.
async fn drain<E: Send>(
    job: &Job<'_>,
    mut to_store: mpsc::Receiver<Filled>,
    tap: TapState,
) -> Result<(Vec<NewStripe>, TapState), WriteError<E>> {
    let mut running = FuturesUnordered::new();
    let mut done: Vec<Option<NewStripe>> = Vec::new();
    let (first_turn, mut turn) = oneshot::channel();
    drop(first_turn.send(tap));
    let mut more = true;
    while more || !running.is_empty() {
        tokio::select! {
            filled = to_store.recv(), if more && running.len() < job.plane.config.stripes_in_flight.max(1) => {
                let Some(filled) = filled else { more = false; continue };
                let (next, next_turn) = oneshot::channel();
                let my_turn = std::mem::replace(&mut turn, next_turn);
                done.push(None);
                running.push(job.stripe(filled, my_turn, next));
            }
            Some(stored) = running.next() => {
                let (index, stripe) = stored?;
                done[index as usize] = Some(stripe);
            }
        }
    }
    let tap = turn.await.expect("every stripe has passed the tap on");
    Ok((done.into_iter().map(|stripe| stripe.expect("every stripe was stored")).collect(), tap))
}

impl Job<'_> {
    /// Seals and stores a stripe while it passes the tap in its turn.
    async fn stripe<E: Send>(
        &self,
        filled: Filled,
        turn: oneshot::Receiver<TapState>,
        next: oneshot::Sender<TapState>,
    ) -> Result<(u32, NewStripe), WriteError<E>> {
        let Filled { index, plain, permit } = filled;
        let (len, plain) = (plain.bytes.len(), Arc::new(plain));
        let tapped = {
            let plain = plain.clone();
            async move {
                // If the stripe before failed, so does the write, which drops this future.
                let Ok(mut tap) = turn.await else { return std::future::pending().await };
                let tap = self.plane.cpu.run(len, move || {
                    tap.feed(&plain.bytes);
                    tap
                });
                drop(next.send(tap.await));
                Ok(())
            }
        };
        let stored = async {
            let sealing = self.sealing.clone();
            let coded = self.plane.cpu.run(len, move || sealing.code(index, &plain.bytes, permit)).await;
            store::store(self.plane, index, self.geometry, coded, self.ack).await
        };
        let (stripe, ()) = futures::future::try_join(stored, tapped).await?;
        Ok((index, stripe))
    }
}
