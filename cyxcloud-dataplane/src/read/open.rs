//! What the processor does with a stripe's shards: decode if need be, open, check.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::erasure::Codec;
use cyxcloud_core::seal::{self, FRAME, FrameSpan, OwnerSecret, SealError, StripeKey, TAG};
use cyxcloud_core::{Geometry, ShardIndex};

use super::{Hold, Opened};
use crate::budget::Permit;
use crate::buffer::{Buffer, BufferPool};
use crate::node::raw::Pieces;

/// A stripe to be opened.
pub(super) struct Sealed {
    pub(super) geometry: Geometry,
    pub(super) format: u8,
    pub(super) plain_hash: [u8; 32],
    pub(super) plain_len: usize,
    pub(super) secret: Arc<OwnerSecret>,
}

impl Sealed {
    fn key(&self) -> StripeKey {
        StripeKey::derive(&self.secret, &self.plain_hash, self.format)
    }

    /// Puts a stripe together from `data` distinct verified shards and opens it in place.
    pub(super) fn whole(
        &self,
        buffers: &BufferPool,
        shards: Vec<(ShardIndex, Pieces)>,
    ) -> Result<Buffer, SealError> {
        let sealed_len = seal::sealed_len(self.plain_len);
        let shard_len = Codec::shard_len(self.geometry, sealed_len);
        let mut buffer = buffers.take(shard_len * self.geometry.data());
        let place = |shard: ShardIndex| shard.get() * shard_len..(shard.get() + 1) * shard_len;
        let mut parity = Vec::new();
        let mut missing: Vec<ShardIndex> = self.geometry.indices().take(self.geometry.data()).collect();
        for (shard, pieces) in shards {
            missing.retain(|missing| *missing != shard);
            if self.geometry.is_parity(shard) {
                parity.push((shard, pieces.into_bytes()));
            } else {
                pieces.copy_to(&mut buffer[place(shard)]);
            }
        }
        if !missing.is_empty() {
            let data =
                self.geometry.indices().take(self.geometry.data()).filter(|shard| !missing.contains(shard));
            let present: Vec<(ShardIndex, &[u8])> = data
                .map(|shard| (shard, &buffer[place(shard)]))
                .chain(parity.iter().map(|(shard, bytes)| (*shard, &bytes[..])))
                .collect();
            let rebuilt = Codec::new(self.geometry)
                .reconstruct(&present, &missing)
                .expect("as many distinct shards of one length were fetched as are needed");
            for (shard, bytes) in missing.into_iter().zip(rebuilt) {
                buffer[place(shard)].copy_from_slice(&bytes);
            }
        }
        buffer.truncate(sealed_len);
        seal::open_in_place(&self.key(), &mut buffer, self.plain_len)?;
        let mut hasher = blake3::Hasher::new();
        for frame in seal::plain_frames(self.plain_len) {
            hasher.update(&buffer[frame]);
        }
        if hasher.finalize().as_bytes() != &self.plain_hash {
            return Err(SealError::DoesNotOpen);
        }
        Ok(buffer)
    }

    /// Opens some frames of a stripe in place; `buffer` holds them as they were sealed.
    pub(super) fn frames(&self, frames: &FrameSpan, buffer: &mut Buffer) -> Result<(), SealError> {
        let key = self.key();
        for (index, last, place) in frames.frames(self.plain_len) {
            seal::open_frame(&key, index, last, &mut buffer[place])?;
        }
        Ok(())
    }
}

/// The plain bytes of `span` out of a buffer in which the frames from number `first` on were opened. The buffer and the
/// permit return with the last of them.
pub(super) fn slices(buffer: Buffer, first: usize, span: Range<usize>, mut permit: Permit) -> Opened {
    permit.shrink(buffer.len());
    let hold = Hold::new(Some(permit).into());
    let handle = Arc::downgrade(&hold);
    let bytes: Bytes = buffer.into_bytes(hold);
    let slices: VecDeque<Bytes> = (span.start / FRAME..span.end.div_ceil(FRAME))
        .map(|frame| {
            let from = span.start.max(frame * FRAME) - frame * FRAME;
            let to = span.end.min((frame + 1) * FRAME) - frame * FRAME;
            let start = (frame - first) * (FRAME + TAG);
            bytes.slice(start + from..start + to)
        })
        .collect();
    Opened { slices, hold: handle }
}
