//! What the processor does with one stripe: hash, seal, code, and name the shards.

use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::erasure::Codec;
use cyxcloud_core::seal::{self, Descriptor, FORMAT, MasterKey, OwnerSecret, StripeKey};
use cyxcloud_core::{ChunkId, Geometry, OwnerId, SegmentId, ShardIndex};

use super::WriteRequest;
use crate::Plane;
use crate::budget::Permit;
use crate::buffer::BufferPool;

/// What sealing needs to know; the same for all stripes of a segment.
#[derive(Clone)]
pub(super) struct Sealing {
    buffers: BufferPool,
    master: Arc<MasterKey>,
    secret: Arc<OwnerSecret>,
    owner: OwnerId,
    segment: SegmentId,
    geometry: Geometry,
    stripe_size: u32,
}

/// A shard ready to be stored.
pub(super) struct CodedShard {
    pub(super) index: ShardIndex,
    pub(super) chunk: ChunkId,
    pub(super) data: Bytes,
    pub(super) descriptor: Bytes,
}

/// A stripe ready to be stored.
pub(super) struct Coded {
    pub(super) plain_hash: [u8; 32],
    pub(super) plain_len: usize,
    pub(super) shard_len: usize,
    pub(super) shards: Vec<CodedShard>,
}

/// Bytes of all shards of a stripe with so many plain bytes.
pub(super) fn stripe_cost(geometry: Geometry, plain_len: usize) -> usize {
    Codec::stripe_len(geometry, seal::sealed_len(plain_len))
}

impl Sealing {
    pub(super) fn new(plane: &Plane, request: &WriteRequest, segment: SegmentId, geometry: Geometry) -> Self {
        Self {
            buffers: plane.buffers.clone(),
            master: plane.master.clone(),
            secret: request.secret.clone(),
            owner: request.owner,
            segment,
            geometry,
            stripe_size: u32::try_from(request.stripe_size.get()).expect("a stripe has at most 64 MiB"),
        }
    }

    /// Seals and codes a stripe. The shards are slices of one buffer, which `permit` pays for.
    pub(super) fn code(&self, stripe: u32, plain: &[u8], permit: Permit) -> Coded {
        let plain_hash = *ChunkId::of(plain).as_bytes();
        let sealed_len = seal::sealed_len(plain.len());
        let shard_len = Codec::shard_len(self.geometry, sealed_len);
        let mut buffer = self.buffers.take(shard_len * self.geometry.shards());
        let (sealed, rest) = buffer.split_at_mut(sealed_len);
        seal::seal(&StripeKey::derive(&self.secret, &plain_hash, FORMAT), plain, sealed);
        // The buffer was used before; what pads the last shard must not be what somebody else stored.
        rest[..shard_len * self.geometry.data() - sealed_len].fill(0);
        Codec::new(self.geometry).encode(&mut buffer);
        let chunks: Vec<ChunkId> = buffer.chunks_exact(shard_len).map(ChunkId::of).collect();
        let bytes = buffer.into_bytes(permit);
        let shards = self
            .geometry
            .indices()
            .zip(chunks)
            .map(|(index, chunk)| CodedShard {
                index,
                chunk,
                data: bytes.slice(index.get() * shard_len..(index.get() + 1) * shard_len),
                descriptor: self.descriptor(stripe, index, plain.len(), plain_hash),
            })
            .collect();
        Coded { plain_hash, plain_len: plain.len(), shard_len, shards }
    }

    fn descriptor(&self, stripe: u32, shard: ShardIndex, plain_len: usize, plain_hash: [u8; 32]) -> Bytes {
        let descriptor = Descriptor {
            owner: self.owner,
            segment: self.segment,
            stripe,
            shard,
            geometry: self.geometry,
            format: FORMAT,
            plain_len: u32::try_from(plain_len).expect("a stripe has at most 64 MiB"),
            stripe_size: self.stripe_size,
            plain_hash,
        };
        descriptor.seal(&self.master, &self.secret, rand::random()).into()
    }
}
