//! A small range of a stripe: only the frames that it lies in are fetched, as verified slices of the shards that hold them.
//!
//! Any failure ends it; the caller then reads the whole stripe, which can do without some shards.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::erasure::Codec;
use cyxcloud_core::seal::{self, OwnerSecret};
use cyxcloud_metadata::model::{SegmentInfo, ShardLayout, StripeLayout};

use super::open::Sealed;
use super::{Opened, fetch, open};
use crate::Plane;
use crate::budget::Permit;

/// Reads `span`; gives the permit back if that fails.
pub(super) async fn read(
    plane: &Plane,
    secret: &Arc<OwnerSecret>,
    segment: &SegmentInfo,
    layout: &StripeLayout,
    span: Range<usize>,
    permit: Permit,
) -> Result<Opened, Permit> {
    let plain_len = layout.plain_len.as_usize();
    let frames = seal::frames_of(span.clone(), plain_len);
    let shard_len = Codec::shard_len(segment.geometry, seal::sealed_len(plain_len));
    let shards = frames.sealed.start / shard_len..frames.sealed.end.div_ceil(shard_len);
    let slices = futures::future::try_join_all(shards.map(|index| {
        let start = index * shard_len;
        let slice = frames.sealed.start.max(start) - start..frames.sealed.end.min(start + shard_len) - start;
        slice_of(plane, segment, layout, index, slice.start as u64..slice.end as u64)
    }));
    let Ok(slices) = slices.await else { return Err(permit) };
    let mut buffer = plane.buffers.take(frames.sealed.len());
    let mut at = 0;
    for slice in slices {
        buffer[at..at + slice.len()].copy_from_slice(&slice);
        at += slice.len();
    }
    let sealed = Sealed {
        geometry: segment.geometry,
        format: segment.format,
        plain_hash: layout.plain_hash,
        plain_len,
        secret: secret.clone(),
    };
    let first = frames.first as usize;
    let opened =
        plane.cpu.run(buffer.len(), move || sealed.frames(&frames, &mut buffer).map(|()| buffer)).await;
    match opened {
        Ok(buffer) => Ok(open::slices(buffer, first, span, permit)),
        Err(_) => Err(permit),
    }
}

/// The slice is not to be had soon.
struct NotHad;

/// A verified slice of one shard, from the first of its nodes that has it in time.
async fn slice_of(
    plane: &Plane,
    segment: &SegmentInfo,
    layout: &StripeLayout,
    index: usize,
    slice: Range<u64>,
) -> Result<Bytes, NotHad> {
    let shard: &ShardLayout = layout.shards.iter().find(|shard| shard.index.get() == index).ok_or(NotHad)?;
    let late_after = fetch::late_after(plane, (slice.end - slice.start) as usize);
    for node in fetch::nodes_of(plane, shard) {
        let wanted = std::slice::from_ref(&slice);
        let call = plane.pool.get_slices(node, shard.chunk, shard.size, wanted);
        match tokio::time::timeout(late_after, call).await {
            Ok(Ok(slices)) => return slices.into_iter().next().ok_or(NotHad),
            Ok(Err(error)) => fetch::failed(plane, segment, layout.index, shard.index, node, &error),
            Err(_) => {
                plane.metrics.hedges.with_label_values(&["slice"]).inc();
                plane.pool.note_late(node);
            }
        }
    }
    Err(NotHad)
}
