//! Fetches as many shards of a stripe as rebuild it, from the nodes most likely to answer.
//!
//! Data shards first, nodes that failed lately last. A shard that is late is joined by another, while that happens seldom, and
//! in any case when it is very late; one that is wrong or not there is reported and replaced.
//! Every shard that is returned hashes to its id, unless the caller wants to find out by opening the stripe.

use std::collections::BTreeMap;
use std::time::Duration;

use cyxcloud_core::{NodeId, ShardIndex};
use cyxcloud_metadata::model::{BadLocation, Fault, SegmentInfo, ShardLayout, StripeLayout};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::RngExt;
use tokio::time::Instant;

use crate::Plane;
use crate::error::NodeError;
use crate::node::pool::Check;
use crate::node::raw::Pieces;

/// One place where a shard may be had.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    shard: &'a ShardLayout,
    node: NodeId,
}

/// The shards of a stripe that are there, and those that were asked for.
struct Race<'a> {
    plane: &'a Plane,
    segment: &'a SegmentInfo,
    layout: &'a StripeLayout,
    /// Not yet asked, the most promising last.
    sources: Vec<Source<'a>>,
    asked: Vec<(ShardIndex, NodeId, Instant)>,
    have: BTreeMap<ShardIndex, (NodeId, Pieces)>,
    check: Check,
}

/// A shard as its node sent it.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) shard: ShardIndex,
    pub(crate) node: NodeId,
    pub(crate) bytes: Pieces,
}

/// Fetches `data` distinct shards; otherwise answers how many there are.
pub(crate) async fn fetch(
    plane: &Plane,
    segment: &SegmentInfo,
    layout: &StripeLayout,
    check: Check,
) -> Result<Vec<Fetched>, usize> {
    let sources = sources(plane, layout);
    Race { plane, segment, layout, sources, asked: Vec::new(), have: BTreeMap::new(), check }.run().await
}

/// Reports those of the shards, fetched unchecked, that do not hash to their id, and leaves them out of `layout`: they are
/// not asked for again. Takes its time: it happens only where a stripe did not open.
pub(super) fn report_wrong(
    plane: &Plane,
    segment: &SegmentInfo,
    layout: &mut StripeLayout,
    fetched: &[Fetched],
) {
    for Fetched { shard, node, bytes } in fetched {
        let Some(known) = layout.shards.iter_mut().find(|known| known.index == *shard) else { continue };
        if !bytes.is_chunk(&known.chunk) {
            known.nodes.retain(|holder| holder != node);
            plane.pool.note_corrupt(*node);
            failed(plane, segment, layout.index, *shard, *node, &NodeError::Corrupt);
        }
    }
}

/// All places of a stripe's shards, the most promising last.
fn sources<'a>(plane: &Plane, layout: &'a StripeLayout) -> Vec<Source<'a>> {
    let mut ranked: Vec<_> = layout.shards.iter().flat_map(|shard| of_shard(plane, shard)).collect();
    ranked.sort_by_key(|(rank, source)| std::cmp::Reverse((*rank, source.shard.index)));
    ranked.into_iter().map(|(_, source)| source).collect()
}

/// The nodes that hold a shard, best first, with (how reluctantly it is asked, how many are better).
fn of_shard<'a>(
    plane: &Plane,
    shard: &'a ShardLayout,
) -> impl Iterator<Item = ((u8, usize), Source<'a>)> + use<'a> {
    let view = plane.pool.view();
    let mut rng = rand::rng();
    let mut nodes: Vec<(u8, u32, NodeId)> =
        shard.nodes.iter().filter_map(|&node| Some((view.read_rank(node)?, rng.random(), node))).collect();
    nodes.sort_unstable();
    nodes
        .into_iter()
        .enumerate()
        .map(move |(better, (rank, _, node))| ((rank, better), Source { shard, node }))
}

/// The nodes that hold a shard, the best first.
pub(crate) fn nodes_of(plane: &Plane, shard: &ShardLayout) -> Vec<NodeId> {
    of_shard(plane, shard).map(|(_, source)| source.node).collect()
}

/// When a fetch of so many bytes is late.
pub(super) fn late_after(plane: &Plane, bytes: usize) -> Duration {
    let (least, most) = plane.config.late_fetch;
    plane.pool.fetch_times.of(bytes).late(2, least, most)
}

/// Takes note of a failed fetch: what is wrong or gone is reported.
pub(crate) fn failed(
    plane: &Plane,
    segment: &SegmentInfo,
    stripe: u32,
    shard: ShardIndex,
    node: NodeId,
    error: &NodeError,
) {
    let fault = match error {
        NodeError::Missing => {
            plane.metrics.missing_shards.inc();
            Fault::Missing
        }
        NodeError::Corrupt => {
            plane.metrics.corrupt_shards.inc();
            Fault::Corrupt
        }
        NodeError::Rotten => {
            plane.metrics.corrupt_shards.inc();
            Fault::Rotten
        }
        NodeError::Unknown(_)
        | NodeError::BadAddress { .. }
        | NodeError::TimedOut
        | NodeError::Full
        | NodeError::BadReceipt(_)
        | NodeError::Status { .. } => return,
    };
    plane.reporter.report(BadLocation { segment: segment.id, stripe, shard, node, fault });
}

impl<'a> Race<'a> {
    async fn run(mut self) -> Result<Vec<Fetched>, usize> {
        let need = self.segment.geometry.data();
        let shard_len = self.layout.shards.first().map_or(0, |shard| shard.size.as_usize());
        let late_after = late_after(self.plane, shard_len);
        let mut fetches = FuturesUnordered::new();
        for _ in 0..need {
            fetches.extend(self.ask_next());
            self.plane.pool.fetch_repeats.earn();
        }
        let mut next_look = Instant::now() + late_after;
        while self.have.len() < need {
            tokio::select! {
                fetched = fetches.next() => {
                    let Some((source, outcome)) = fetched else { return Err(self.have.len()) };
                    if !self.answered(source, outcome) {
                        fetches.extend(self.ask_next());
                    }
                }
                () = tokio::time::sleep_until(next_look), if !self.sources.is_empty() => {
                    next_look = Instant::now() + late_after;
                    let overdue = self.plane.config.late_fetch.1.max(late_after);
                    let waits: Vec<Duration> = self.asked.iter().map(|(.., at)| at.elapsed()).collect();
                    for waited in waits.into_iter().filter(|waited| *waited >= late_after) {
                        if waited < overdue && !self.plane.pool.fetch_repeats.spend() {
                            continue;
                        }
                        let another = self.ask_next();
                        if another.is_some() {
                            self.plane.metrics.hedges.with_label_values(&["get"]).inc();
                        }
                        fetches.extend(another);
                    }
                }
            }
        }
        // Who is still being waited for, and was joined by another, is asked last for a while.
        for (_, node, at) in &self.asked {
            if at.elapsed() >= late_after {
                self.plane.pool.note_late(*node);
            }
        }
        let fetched = |(shard, (node, bytes))| Fetched { shard, node, bytes };
        Ok(self.have.into_iter().map(fetched).collect())
    }

    /// Asks the most promising source of a shard that is neither there nor asked for, or else of one that is asked for.
    fn ask_next(
        &mut self,
    ) -> Option<impl Future<Output = (Source<'a>, Result<Pieces, NodeError>)> + use<'a>> {
        let wanted = |source: &Source<'_>| !self.have.contains_key(&source.shard.index);
        let asked = |source: &Source<'_>| self.asked.iter().any(|(shard, ..)| *shard == source.shard.index);
        let place = self
            .sources
            .iter()
            .rposition(|source| wanted(source) && !asked(source))
            .or_else(|| self.sources.iter().rposition(wanted))?;
        let source = self.sources.remove(place);
        self.asked.push((source.shard.index, source.node, Instant::now()));
        let (plane, check) = (self.plane, self.check);
        Some(async move {
            let shard = source.shard;
            (source, plane.pool.fetch(source.node, shard.chunk, shard.size.as_usize(), check).await)
        })
    }

    /// Takes note of an answer; whether it was a good one.
    fn answered(&mut self, source: Source<'_>, outcome: Result<Pieces, NodeError>) -> bool {
        let shard = source.shard.index;
        self.asked.retain(|(asked, node, _)| (*asked, *node) != (shard, source.node));
        match outcome {
            Ok(bytes) => {
                self.have.insert(shard, (source.node, bytes));
                true
            }
            Err(error) => {
                failed(self.plane, self.segment, self.layout.index, shard, source.node, &error);
                false
            }
        }
    }
}
