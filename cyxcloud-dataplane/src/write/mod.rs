//! The write path: body → stripes → sealed, coded and hashed → stored on nodes → a segment to be committed.
//!
//! Several stripes are under way at once; their results come in order. Nothing is spawned but work for the processor, so
//! dropping the future stops everything.

mod code;
mod cut;
mod pace;
mod pipeline;
mod store;
mod tap;

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::profile::Profile;
use cyxcloud_core::seal::{self, FORMAT, OwnerSecret, StripeKey};
use cyxcloud_core::stripe::StripeSize;
use cyxcloud_core::{ByteCount, ChunkId, Geometry, OwnerId, SegmentId};
use cyxcloud_metadata::model::{NewSegment, NewStripe, SegmentBody};
use futures::Stream;

use crate::Plane;
use crate::buffer::{Buffer, Plain};
use crate::error::WriteError;
use code::{Sealing, stripe_cost};
use cut::Cutter;
use pace::Pace;
use tap::TapState;

/// Sees all plain bytes of a body, in order.
pub type Tap = Box<dyn FnMut(&[u8]) + Send>;

/// What to write, beside the body.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// Whose it is.
    pub owner: OwnerId,
    /// What seals it.
    pub secret: Arc<OwnerSecret>,
    /// How the bucket wants it placed.
    pub profile: &'static Profile,
    /// Plain bytes of every stripe but the last, 1 to 64 MiB.
    pub stripe_size: ByteCount,
    /// Length of the body in bytes, where it is known; a body of another length is an error.
    pub length: Option<u64>,
}

/// Stores a body.
pub(crate) async fn write_segment<S, E>(
    plane: &Plane,
    request: WriteRequest,
    body: S,
    tap: Tap,
) -> Result<NewSegment, WriteError<E>>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Send,
{
    let stripe_size = StripeSize::new(request.stripe_size)?;
    let small_max = plane.config.small_max.as_usize();
    let body = pin!(body);
    let mut cutter = Cutter::new(body, request.length);
    if request.length.is_none_or(|length| length <= small_max as u64) {
        // Held until it has ended or is no longer small.
        let hold = request.length.map_or(small_max + 1, |length| length as usize);
        let cost = hold + stripe_cost(request.profile.small, hold);
        let share = plane.write_budget.share_of(request.owner, plane.config.per_request, cost);
        let mut permit = share.take(cost).await;
        let mut held = plane.buffers.take(hold);
        let mut pace = Pace::new(&plane.write_budget, plane.config.sender_grace, hold);
        let len = cutter.fill(&mut held, &mut pace).await?;
        held.truncate(len);
        if len <= small_max && !pace.keep(len, cutter.more()).await? {
            permit.shrink(hold + stripe_cost(request.profile.small, len));
            let for_shards = permit.split(stripe_cost(request.profile.small, len));
            return small(plane, &request, Plain { bytes: held, permit }, for_shards, tap).await;
        }
        // Nobody may wait for a stripe's worth while holding what others wait for.
        drop(permit);
        cutter.unread(held.into_bytes(()));
    }
    pipeline::write(plane, &request, stripe_size, cutter, tap).await
}

/// Stores a body that is held whole: in the row, or as copies.
async fn small<E: Send>(
    plane: &Plane,
    request: &WriteRequest,
    plain: Plain,
    permit: crate::budget::Permit,
    tap: Tap,
) -> Result<NewSegment, WriteError<E>> {
    let geometry = request.profile.small;
    let segment = new_segment_id();
    let len = plain.bytes.len();
    if len <= plane.config.inline_max.as_usize() {
        let content_hash = *ChunkId::of(&plain.bytes).as_bytes();
        let body = inline(request, &plain.bytes, content_hash);
        TapState::new(tap, false).feed(&plain.bytes);
        // The row survives the loss of any node.
        let survives = Survives { asked: 0, kept: request.profile.target_tolerance_of(geometry) };
        return Ok(new_segment(request, segment, len as u64, geometry, content_hash, body, survives));
    }
    let view = plane.fresh_view().await?;
    let consent = plane.config.consent_to_no_redundancy;
    let ack = request.profile.small_ack_tolerance(view.eligible(), consent)?;
    let sealing = Sealing::new(plane, request, segment, geometry);
    let plain = Arc::new(plain);
    let tapped = {
        let plain = plain.clone();
        let mut tap = TapState::new(tap, false);
        async {
            plane.cpu.run(len, move || tap.feed(&plain.bytes)).await;
            Ok(())
        }
    };
    let stored = async {
        let coded = plane.cpu.run(len, move || sealing.code(0, &plain.bytes, permit)).await;
        store::store(plane, 0, geometry, coded, ack).await
    };
    let (stripe, ()) = futures::future::try_join(stored, tapped).await?;
    plane.metrics.bytes.with_label_values(&["written"]).inc_by(len as u64);
    let (content_hash, survives) = (stripe.plain_hash, Survives { asked: ack, kept: stripe.tolerance });
    let body = SegmentBody::Stripes(vec![stripe]);
    Ok(new_segment(request, segment, len as u64, geometry, content_hash, body, survives))
}

/// The body in its row. An empty one has no bytes to seal.
fn inline(request: &WriteRequest, plain: &Buffer, plain_hash: [u8; 32]) -> SegmentBody {
    if plain.is_empty() {
        return SegmentBody::Stripes(Vec::new());
    }
    let mut sealed = vec![0; seal::sealed_len(plain.len())];
    seal::seal(&StripeKey::derive(&request.secret, &plain_hash, FORMAT), plain, &mut sealed);
    SegmentBody::Inline { plain_hash, sealed: sealed.into() }
}

fn new_segment_id() -> SegmentId {
    SegmentId::from_random(rand::random())
}

/// Node losses that all of a body survives.
#[derive(Clone, Copy, Debug)]
struct Survives {
    /// At least, or it is not acknowledged.
    asked: u8,
    kept: u8,
}

fn new_segment(
    request: &WriteRequest,
    id: SegmentId,
    length: u64,
    geometry: Geometry,
    content_hash: [u8; 32],
    body: SegmentBody,
    survives: Survives,
) -> NewSegment {
    NewSegment {
        id,
        owner: request.owner,
        length: ByteCount::bytes(length),
        stripe_size: request.stripe_size,
        geometry,
        format: FORMAT,
        content_hash,
        body,
        ack_tolerance: survives.asked,
        acked_tolerance: survives.kept,
        target_tolerance: request.profile.target_tolerance_of(geometry),
    }
}

/// The promise that all stripes keep.
fn least_tolerance(stripes: &[NewStripe]) -> u8 {
    stripes.iter().map(|stripe| stripe.tolerance).min().unwrap_or(0)
}
