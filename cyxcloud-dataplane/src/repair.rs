//! Makes shards of a stripe anew on given nodes, and asks nodes to prove what they hold.
//!
//! A shard goes from a node that holds it straight to where it is wanted, if the two reach each other; otherwise it is copied by
//! way of us, or rebuilt from any `data` others. Nobody waits for a holder that did not answer last while the others suffice: one
//! that is to be emptied because it failed would be waited for at every stripe. Either way a shard hashes to its recorded id before
//! it is stored, and what is stored is acknowledged by a verified receipt. A node or shard that fails is left out and
//! named. Not here: what is to be made, where, and when (`cyxcloud_core::repair`, the rebalancer).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::erasure::Codec;
use cyxcloud_core::receipt::Receipt;
use cyxcloud_core::seal::{Descriptor, OwnerSecret};
use cyxcloud_core::{ByteCount, ChunkId, NodeId, ShardIndex, crash_point};
use cyxcloud_metadata::model::{NewLocation, SegmentInfo, ShardLayout, StripeLayout};
use cyxcloud_metadata::upkeep::model::{LocationStatus, StripeState};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tracing::debug;

use crate::error::NodeError;
use crate::node::pool::Check;
use crate::read::fetch;
use crate::{DataPlane, Plane};

/// What a repair made of a stripe.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Stored and acknowledged.
    pub added: Vec<(ShardIndex, NewLocation)>,
    /// Not stored, and why.
    pub failed: Vec<(ShardIndex, NodeId, NodeError)>,
    /// Shards that went from a node that holds them straight to another.
    pub pushed: usize,
    /// Shards that were copied from a node that holds them.
    pub copied: usize,
    /// Shards that were rebuilt from others.
    pub rebuilt: usize,
    /// Who gave a chunk for it, once for each.
    pub sources: Vec<NodeId>,
    /// Chunks that went from here to nodes, or were to.
    pub sent: usize,
}

impl Repaired {
    /// Bytes that went from nodes, to others or to here, and from here to nodes.
    pub fn moved(&self, stripe: &StripeState) -> ByteCount {
        chunks(stripe, self.sources.len() + self.sent)
    }
}

/// Why nothing could be made.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Too few shards can be had now.
    #[error("{have} of the {need} shards needed can be had now")]
    Unreadable {
        /// distinct good shards
        have: usize,
        /// distinct shards needed
        need: usize,
    },
    /// The shards there are do not belong together: what was rebuilt is not what was recorded.
    #[error("shard {0} was rebuilt and is not what its id says")]
    Inconsistent(usize),
    /// The nodes could not be looked up.
    #[error("the nodes could not be looked up")]
    Metadata(#[from] cyxcloud_metadata::Error),
}

impl RepairError {
    /// Bytes that were moved in vain, as far as is known.
    pub fn moved(&self, stripe: &StripeState) -> ByteCount {
        chunks(
            stripe,
            match self {
                Self::Unreadable { have, .. } => *have,
                Self::Inconsistent(_) => stripe.geometry.data(),
                Self::Metadata(_) => 0,
            },
        )
    }
}

/// What a node made of an audit.
#[derive(Debug)]
pub enum Audited {
    /// The slice and its path lead to the chunk's id.
    Proven,
    /// It said that it does not hold the chunk.
    Lost,
    /// What it sent does not lead to the id, or it said that what it holds is corrupt.
    Wrong,
    /// It answered too late, or refused.
    Late,
    /// No connection, or it says that it cannot serve now.
    Unreachable,
}

/// Memory that a repair of this stripe needs at most: what is fetched, and what goes to the nodes.
fn memory_of(stripe: &StripeState, additions: &[(ShardIndex, NodeId)]) -> ByteCount {
    let distinct: BTreeSet<ShardIndex> = additions.iter().map(|(shard, _)| *shard).collect();
    let fetched = distinct.len().max(if distinct.is_empty() { 0 } else { stripe.geometry.data() });
    chunks(stripe, fetched + additions.len())
}

/// So many of its chunks.
fn chunks(stripe: &StripeState, count: usize) -> ByteCount {
    ByteCount::bytes(stripe.chunk_len().get().saturating_mul(count as u64))
}

impl DataPlane {
    /// Makes these shards on these nodes. What one node refuses does not keep the others from theirs.
    pub async fn repair(
        &self,
        stripe: &StripeState,
        secret: &OwnerSecret,
        additions: &[(ShardIndex, NodeId)],
    ) -> Result<Repaired, RepairError> {
        let plane = &self.0;
        plane.fresh_view().await?;
        let cost = memory_of(stripe, additions).as_usize();
        let _memory = plane.read_budget.share(plane.config.per_request, cost).take(cost).await;
        let mut made = Repaired::default();
        let layout = layout(stripe);
        let mut pushes: FuturesUnordered<_> = additions
            .iter()
            .map(|&(shard, node)| push(plane, stripe, &layout, secret, shard, node))
            .collect();
        while let Some(pushed) = pushes.next().await {
            if let Some((from, stored)) = pushed {
                made.sources.push(from);
                made.added.push(stored);
            }
        }
        drop(pushes);
        made.pushed = made.added.len();
        let done = |shard, node| made.added.iter().any(|(at, pushed)| *at == shard && pushed.node == node);
        let additions: Vec<_> =
            additions.iter().copied().filter(|&(shard, node)| !done(shard, node)).collect();
        let wanted: BTreeSet<ShardIndex> = additions.iter().map(|(shard, _)| *shard).collect();
        let shards = match gather(plane, stripe, &layout, &wanted, &mut made).await {
            Ok(shards) => shards,
            // What was pushed is to be recorded all the same.
            Err(error) if !made.added.is_empty() => {
                debug!(%error, "only what nodes pushed was made");
                let lacking = additions.iter().map(|&(shard, node)| (shard, node, NodeError::Missing));
                made.failed.extend(lacking);
                return Ok(made);
            }
            Err(error) => return Err(error),
        };
        crash_point!("mover.copied");
        let mut stores: FuturesUnordered<_> = additions
            .iter()
            .filter_map(|&(shard, node)| Some((shard, node, shards.get(&shard)?.clone())))
            .map(|(shard, node, bytes)| store(plane, stripe, secret, shard, node, bytes))
            .collect();
        made.sent = stores.len();
        while let Some((shard, node, stored)) = stores.next().await {
            match stored {
                Ok(location) => made.added.push((shard, location)),
                Err(error) => made.failed.push((shard, node, error)),
            }
        }
        Ok(made)
    }

    /// Asks a node for a slice of a chunk and checks it against the chunk's id, by the call that ranged reads use; a slice that is the
    /// whole chunk first by the call that readers of a whole chunk use, so that who fails either kind of readers fails here. Each
    /// answer must begin within `first_byte`, and all be there at the `deadline`.
    pub async fn audit(
        &self,
        node: NodeId,
        chunk: ChunkId,
        size: ByteCount,
        slice: Range<u64>,
        first_byte: Duration,
        deadline: Duration,
    ) -> Audited {
        let pool = &self.0.pool;
        let call = async {
            if slice == (0..size.get()) {
                pool.fetch_from(node, chunk, size.as_usize(), Check::Now, first_byte).await?;
            }
            pool.get_slices_from(node, chunk, size, std::slice::from_ref(&slice), first_byte).await.map(drop)
        };
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(())) => Audited::Proven,
            Ok(Err(NodeError::Missing)) => Audited::Lost,
            Ok(Err(NodeError::Corrupt | NodeError::Rotten)) => Audited::Wrong,
            Ok(Err(NodeError::Unknown(_) | NodeError::BadAddress { .. })) => Audited::Unreachable,
            Ok(Err(NodeError::Status { code: tonic::Code::Unavailable, .. })) => Audited::Unreachable,
            Ok(Err(
                NodeError::TimedOut | NodeError::Full | NodeError::BadReceipt(_) | NodeError::Status { .. },
            ))
            | Err(_) => Audited::Late,
        }
    }

    /// The nodes that take new chunks now, as placement sees them.
    pub async fn candidates(&self) -> cyxcloud_metadata::Result<Vec<cyxcloud_core::placement::Candidate>> {
        Ok(self.0.fresh_view().await?.candidates(|_| true))
    }
}

/// Whether the stripe can be rebuilt from holders of whom an answer can be expected: then no other need be waited for.
fn is_spared(plane: &Plane, layout: &StripeLayout, data: usize) -> bool {
    let view = plane.pool.view();
    let can_be_had = |shard: &&ShardLayout| shard.nodes.iter().any(|node| view.is_well(*node));
    layout.shards.iter().filter(can_be_had).count() >= data
}

/// The nodes that hold a shard, the best first; among those who are as ready to answer, whoever is to stay.
fn holders(plane: &Plane, shard: &ShardLayout) -> Vec<NodeId> {
    let view = plane.pool.view();
    let mut nodes = fetch::nodes_of(plane, shard);
    nodes.sort_by_cached_key(|node| (view.read_rank(*node), view.presence(*node)));
    nodes
}

/// The wanted shards: copied where somebody holds them who answers, the others rebuilt.
async fn gather(
    plane: &Plane,
    stripe: &StripeState,
    layout: &StripeLayout,
    wanted: &BTreeSet<ShardIndex>,
    made: &mut Repaired,
) -> Result<BTreeMap<ShardIndex, Bytes>, RepairError> {
    let segment = segment(stripe);
    let need = stripe.geometry.data();
    let mut copies: FuturesUnordered<_> =
        wanted.iter().map(|&shard| copy(plane, &segment, layout, shard, need)).collect();
    let mut shards = BTreeMap::new();
    while let Some(copied) = copies.next().await {
        if let Some((from, shard, bytes)) = copied {
            made.sources.push(from);
            shards.insert(shard, bytes);
        }
    }
    made.copied = shards.len();
    let missing: Vec<ShardIndex> =
        wanted.iter().copied().filter(|shard| !shards.contains_key(shard)).collect();
    if missing.is_empty() {
        return Ok(shards);
    }
    let fetched = fetch::fetch(plane, &segment, layout, Check::Now)
        .await
        .map_err(|have| RepairError::Unreadable { have, need })?;
    made.sources.extend(fetched.iter().map(|fetched| fetched.node));
    let present: Vec<(ShardIndex, Bytes)> =
        fetched.into_iter().map(|fetched| (fetched.shard, fetched.bytes.into_bytes())).collect();
    let (geometry, len) = (stripe.geometry, present.iter().map(|(_, bytes)| bytes.len()).sum());
    let targets = missing.clone();
    let rebuilt = plane
        .cpu
        .run(len, move || {
            let present: Vec<(ShardIndex, &[u8])> =
                present.iter().map(|(shard, bytes)| (*shard, &bytes[..])).collect();
            Codec::new(geometry).reconstruct(&present, &targets)
        })
        .await
        .map_err(|_| RepairError::Unreadable { have: 0, need })?;
    for (shard, bytes) in missing.into_iter().zip(rebuilt) {
        let recorded = stripe.shards.get(shard.get()).map(|(chunk, _)| *chunk);
        if recorded != Some(ChunkId::of(&bytes)) {
            return Err(RepairError::Inconsistent(shard.get()));
        }
        shards.insert(shard, bytes.into());
        made.rebuilt += 1;
    }
    Ok(shards)
}

/// A shard from one of the nodes that hold it, the best first, and which; `None` if none has it, or none is to be waited for.
async fn copy(
    plane: &Plane,
    segment: &SegmentInfo,
    layout: &StripeLayout,
    shard: ShardIndex,
    need: usize,
) -> Option<(NodeId, ShardIndex, Bytes)> {
    let known = layout.shards.iter().find(|known| known.index == shard)?;
    let patience = plane.config.read_timeout;
    for node in holders(plane, known) {
        // Of who failed one stripe finds out whether it is well again; the others do not wait for it.
        if is_spared(plane, layout, need) && !plane.pool.view().may_be_tried(node, patience) {
            continue;
        }
        match plane.pool.fetch(node, known.chunk, known.size.as_usize(), Check::Now).await {
            Ok(pieces) => return Some((node, shard, pieces.into_bytes())),
            Err(error) => {
                debug!(%node, %error, "a shard could not be copied from there");
                fetch::failed(plane, segment, layout.index, shard, node, &error);
            }
        }
    }
    None
}

/// Has a node that holds the shard, the best of these, send it to where it is wanted; `None` if that did not work, for whatever
/// reason: nodes may not reach each other, and then it goes by way of us. So it does from one that failed last, if at all.
async fn push(
    plane: &Plane,
    stripe: &StripeState,
    layout: &StripeLayout,
    secret: &OwnerSecret,
    shard: ShardIndex,
    node: NodeId,
) -> Option<(NodeId, (ShardIndex, NewLocation))> {
    let known = layout.shards.iter().find(|known| known.index == shard)?;
    let from = *holders(plane, known).first()?;
    if !plane.pool.view().is_well(from) && is_spared(plane, layout, stripe.geometry.data()) {
        return None;
    }
    let descriptor = descriptor(plane, stripe, secret, shard);
    let length = known.size.as_usize();
    match plane.pool.replicate_chunk((from, node), known.chunk, length, descriptor).await {
        Ok(receipt) => Some((from, (shard, location(node, &receipt)))),
        Err(error) => {
            debug!(%from, to = %node, %error, "a shard did not go from node to node");
            None
        }
    }
}

async fn store(
    plane: &Plane,
    stripe: &StripeState,
    secret: &OwnerSecret,
    shard: ShardIndex,
    node: NodeId,
    bytes: Bytes,
) -> (ShardIndex, NodeId, Result<NewLocation, NodeError>) {
    let chunk = stripe.shards[shard.get()].0;
    let sealed = descriptor(plane, stripe, secret, shard);
    let stored = plane.pool.store_chunk(node, chunk, bytes, sealed).await;
    (shard, node, stored.map(|receipt| location(node, &receipt)))
}

/// Where the shard belongs, sealed.
fn descriptor(plane: &Plane, stripe: &StripeState, secret: &OwnerSecret, shard: ShardIndex) -> Bytes {
    let descriptor = Descriptor {
        owner: stripe.owner,
        segment: stripe.stripe.segment,
        stripe: stripe.stripe.index,
        shard,
        geometry: stripe.geometry,
        format: stripe.format,
        plain_len: u32::try_from(stripe.plain_len.get()).unwrap_or(u32::MAX),
        stripe_size: u32::try_from(stripe.stripe_size.get()).unwrap_or(u32::MAX),
        plain_hash: stripe.plain_hash,
    };
    descriptor.seal(&plane.master, secret, rand::random()).into()
}

fn location(node: NodeId, receipt: &Receipt) -> NewLocation {
    NewLocation {
        node,
        generation: receipt.generation,
        receipt_signature: receipt.signature.to_vec(),
        stored_at: receipt.stored_at,
    }
}

/// As the read path knows a stripe; whoever is believed to hold a shard may be asked for it.
fn layout(stripe: &StripeState) -> StripeLayout {
    let shards = stripe.geometry.indices().zip(&stripe.shards).map(|(index, &(chunk, size))| {
        let holds = |status| matches!(status, LocationStatus::Stored | LocationStatus::Leaving);
        let here = stripe.locations.iter().filter(|at| at.shard == index && holds(at.status));
        ShardLayout { index, chunk, size, nodes: here.map(|at| at.node).collect() }
    });
    StripeLayout {
        index: stripe.stripe.index,
        plain_hash: stripe.plain_hash,
        plain_len: stripe.plain_len,
        shards: shards.collect(),
    }
}

fn segment(stripe: &StripeState) -> SegmentInfo {
    SegmentInfo {
        id: stripe.stripe.segment,
        owner: stripe.owner,
        length: stripe.plain_len,
        stripe_size: stripe.stripe_size,
        geometry: stripe.geometry,
        format: stripe.format,
        content_hash: [0; 32],
        acked_tolerance: 0,
        target_tolerance: stripe.target_tolerance,
        inline: None,
    }
}
