//! What the processor does with a stripe's shards: decode if need be, open, check.

use std::collections::{BTreeMap, VecDeque};
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

    /// Opens a stripe out of `data` distinct shards of the right length. What is returned are its plain bytes; if one of the
    /// shards is wrong, it does not open.
    ///
    /// Each frame goes from where it was received to where it is wanted, and is hashed while it is in the cache.
    pub(super) fn whole(
        &self,
        buffers: &BufferPool,
        shards: Vec<(ShardIndex, Pieces)>,
    ) -> Result<Buffer, SealError> {
        let shards = self.data_shards(shards);
        let mut sealed = InOrder::new(&shards);
        let mut plain = buffers.take(self.plain_len);
        let mut scratch = buffers.take(FRAME + TAG);
        let key = self.key();
        let mut hasher = blake3::Hasher::new();
        let last = self.plain_len.div_ceil(FRAME).saturating_sub(1);
        for (index, out) in plain.chunks_mut(FRAME).enumerate() {
            let frame = sealed.take(out.len() + TAG, &mut scratch);
            seal::open_frame_into(&key, index as u32, index == last, frame, out)?;
            hasher.update(out);
        }
        if hasher.finalize().as_bytes() != &self.plain_hash {
            return Err(SealError::DoesNotOpen);
        }
        Ok(plain)
    }

    /// The data shards in order, rebuilt where they are missing.
    fn data_shards(&self, shards: Vec<(ShardIndex, Pieces)>) -> Vec<Bytes> {
        let wanted = || self.geometry.indices().take(self.geometry.data());
        let missing: Vec<ShardIndex> =
            wanted().filter(|wanted| shards.iter().all(|(shard, _)| shard != wanted)).collect();
        let mut found: BTreeMap<ShardIndex, Vec<Bytes>> = if missing.is_empty() {
            shards.into_iter().map(|(shard, pieces)| (shard, pieces.into())).collect()
        } else {
            let whole = |(shard, pieces): (ShardIndex, Pieces)| (shard, vec![pieces.into_bytes()]);
            shards.into_iter().map(whole).collect()
        };
        if !missing.is_empty() {
            let present: Vec<(ShardIndex, &[u8])> =
                found.iter().map(|(shard, pieces)| (*shard, &pieces[0][..])).collect();
            let rebuilt = Codec::new(self.geometry)
                .reconstruct(&present, &missing)
                .expect("as many distinct shards of one length were fetched as are needed");
            found.extend(missing.into_iter().zip(rebuilt.into_iter().map(|shard| vec![shard.into()])));
        }
        wanted().filter_map(|shard| found.remove(&shard)).flatten().collect()
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

/// Reads bytes that arrived in pieces from the front.
struct InOrder<'p> {
    front: &'p [u8],
    pieces: std::slice::Iter<'p, Bytes>,
}

impl<'p> InOrder<'p> {
    fn new(pieces: &'p [Bytes]) -> Self {
        Self { front: &[], pieces: pieces.iter() }
    }

    /// The next `len` bytes, or as many as there are: where they lie, or else gathered in `scratch`.
    fn take<'a>(&mut self, len: usize, scratch: &'a mut [u8]) -> &'a [u8]
    where
        'p: 'a,
    {
        let mut have = 0;
        while have < len {
            if self.front.is_empty() {
                let Some(next) = self.pieces.next() else { break };
                self.front = next;
            }
            let (here, rest) = self.front.split_at(self.front.len().min(len - have));
            self.front = rest;
            if here.len() == len {
                return here;
            }
            scratch[have..have + here.len()].copy_from_slice(here);
            have += here.len();
        }
        &scratch[..have]
    }
}

/// `span` of a stripe that was opened as a whole. The buffer and the permit return with the last of it.
pub(super) fn span(plain: Buffer, span: Range<usize>, mut permit: Permit) -> Opened {
    permit.shrink(plain.len());
    let hold = Hold::new(Some(permit).into());
    let handle = Arc::downgrade(&hold);
    Opened { slices: VecDeque::from([plain.into_bytes(hold).slice(span)]), hold: handle }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_the_bytes_arrived() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for piece in [1, 7, 64, 99, 100, 101, 1000] {
            let pieces: Vec<Bytes> = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
            let mut in_order = InOrder::new(&pieces);
            let mut scratch = [0; 100];
            for want in bytes.chunks(100) {
                assert_eq!(in_order.take(100, &mut scratch), want);
            }
            assert!(in_order.take(1, &mut scratch).is_empty());
        }
    }

    #[test]
    fn a_stripe_opens_out_of_any_of_its_shards() {
        let geometry = Geometry::coded(3, 2).expect("valid");
        let plain: Vec<u8> = (0..200_000u32).map(|n| (n * 7) as u8).collect();
        let mut stripe = Sealed {
            geometry,
            format: seal::FORMAT,
            plain_hash: *blake3::hash(&plain).as_bytes(),
            plain_len: plain.len(),
            secret: Arc::new(OwnerSecret::from_bytes([5; 32])),
        };
        let shard_len = Codec::shard_len(geometry, seal::sealed_len(plain.len()));
        let mut sealed = vec![0; 3 * shard_len];
        seal::seal(&stripe.key(), &plain, &mut sealed[..seal::sealed_len(plain.len())]);
        let data: Vec<(ShardIndex, &[u8])> = geometry.indices().zip(sealed.chunks(shard_len)).collect();
        let all: Vec<ShardIndex> = geometry.indices().collect();
        let shards = Codec::new(geometry).reconstruct(&data, &all).expect("all data is there");
        let buffers = BufferPool::new(cyxcloud_core::ByteCount::mib(8));
        let open = |stripe: &Sealed, places: [usize; 3]| {
            let pieces = |place: usize| (all[place], Pieces::of(&shards[place], 10_000));
            stripe.whole(&buffers, places.map(pieces).into())
        };
        for places in [[0, 1, 2], [2, 0, 1], [0, 4, 2], [3, 4, 1]] {
            assert!(open(&stripe, places).expect("opens")[..] == plain[..], "{places:?}");
        }
        stripe.plain_hash[0] ^= 1;
        assert_eq!(open(&stripe, [0, 1, 2]).map(|_| ()), Err(SealError::DoesNotOpen));
    }
}
