//! Looks through nodes whose status changed, and compares inventories with what is recorded.
//!
//! What a node's absence, draining or return means for a stripe is judged stripe by stripe; only the node's own locations
//! are read, never all there are. An inventory is compared both ways: what is recorded and not held is marked missing,
//! what is held and not recorded is remembered as an orphan. What was missing or corrupt counts again only when the node has
//! proven it: a list is a stranger's word. Not here: the repairs (`repair`), deletion (`gc`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ByteCount, ChunkId, NodeId, audit};
use cyxcloud_dataplane::{ListedChunk, NodeError};
use cyxcloud_metadata::Error as MetadataError;
use cyxcloud_metadata::upkeep::model::{
    LocationStatus, NewRepair, NodeCursor, NodeLocation, NodeScan, Reconciled, StripeRef,
};
use futures::StreamExt;
use futures::future::join_all;
use tracing::{debug, info, warn};

use crate::Context;

/// Locations in one transaction.
const PAGE: usize = 1_000;
/// Stripes judged in one statement.
const STRIPES: usize = 200;
/// How long a claimed scan may go without a page being done.
const LEASE: Duration = Duration::from_secs(60);
/// Pause before a node is asked again that could not be reached.
const RETRY: Duration = Duration::from_secs(30);
/// Questions to a node at the same time.
const AT_ONCE: usize = 16;
/// Nodes looked through at the same time: one that is slow, or means to be, does not hold up the others.
const SCANS_AT_ONCE: usize = 4;
/// How long the questions about one page may take together: an answer may come just in time, again and again.
const ASKING: Duration = Duration::from_secs(30);
/// Orphans that one comparison records, beside as many as there are locations. The next one records more.
const ORPHANS_MAX: u64 = 100_000;

/// Why a scan stopped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Scans until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    let asking = async {
        let mut tick = ctx.ticks();
        loop {
            tick.tick().await;
            if let Err(error) = ask_periodically(&ctx).await {
                ctx.metrics.failed("ask for inventories", &error);
            }
        }
    };
    tokio::join!(asking, join_all((0..SCANS_AT_ONCE).map(|_| one_after_the_other(&ctx))));
}

async fn one_after_the_other(ctx: &Context) {
    let mut tick = ctx.ticks();
    loop {
        tick.tick().await;
        loop {
            match ctx.metadata.claim_scans(1, LEASE).await {
                Ok(mut scans) => match scans.pop() {
                    Some(scan) => one(ctx, &scan).await,
                    None => break,
                },
                Err(error) => {
                    ctx.metrics.failed("claim scans", &error);
                    break;
                }
            }
        }
    }
}

/// Asks for the inventories of nodes whose turn it is.
async fn ask_periodically(ctx: &Context) -> Result<(), MetadataError> {
    let interval = Duration::from_secs(ctx.tuning.reconcile_interval_secs);
    let now = ctx.metadata.now().await?;
    for node in ctx.metadata.nodes_upkeep().await? {
        let due = node.reconciled_at.is_none_or(|at| now.since(at) >= interval);
        if due && node.status.serves_reads() {
            ctx.metadata.queue_inventory(node.node).await?;
        }
    }
    Ok(())
}

async fn one(ctx: &Context, scan: &NodeScan) {
    ctx.watch.forget();
    let looked = if scan.reason.compares_inventory() {
        compare(ctx, scan).await
    } else {
        look_through(ctx, scan).await
    };
    let ended = match looked {
        Ok(()) => again_after(ctx, scan).await,
        Err(Failure::Metadata(error)) => Err(error),
        Err(Failure::Node(error)) => {
            debug!(node = %scan.node, %error, "the inventory cannot be had now");
            ctx.metrics.inventory.with_label_values(&["unreadable"]).inc();
            // A node that is gone is asked again when it returns.
            let cluster = ctx.watch.cluster().await;
            let reachable = cluster.map(|cluster| {
                cluster.nodes.get(&scan.node).is_some_and(|node| node.status != NodeStatus::Offline)
            });
            reachable.map(|reachable| reachable.then_some(RETRY))
        }
    };
    let ended = match ended {
        Ok(again_after) => ctx.metadata.finish_scan(scan, again_after).await,
        Err(error) => Err(error),
    };
    match ended {
        Ok(()) => info!(node = %scan.node, reason = scan.reason.as_str(), "node looked through"),
        Err(MetadataError::Stale { .. }) => debug!(node = %scan.node, "scan was overtaken"),
        Err(error) => ctx.metrics.failed("look through a node", &error),
    }
}

/// Uploads that began before the change may still commit what the scan has passed by; and while too many nodes are away at once
/// nothing is repaired, which will not be asked for by anybody else.
async fn again_after(ctx: &Context, scan: &NodeScan) -> Result<Option<Duration>, MetadataError> {
    if scan.reason.compares_inventory() {
        return Ok(None);
    }
    let oldest = ctx.metadata.oldest_intent().await?;
    if oldest.is_some_and(|oldest| oldest <= scan.since) {
        return Ok(Some(ctx.tuning.scan_interval().min(RETRY)));
    }
    // What the brake held back was not queued.
    let braked = ctx.watch.cluster().await?.braked;
    Ok(braked.then(|| ctx.tuning.scan_interval()))
}

/// Judges the stripes of all that the node holds.
async fn look_through(ctx: &Context, scan: &NodeScan) -> Result<(), Failure> {
    let mut after = scan.after;
    loop {
        let page = ctx.metadata.node_locations(scan.node, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.at);
        ctx.metrics.scanned.with_label_values(&[scan.reason.as_str()]).inc_by(page.len() as u64);
        let stripes: BTreeSet<StripeRef> = page.iter().map(|location| location.at.stripe).collect();
        judge(ctx, stripes, &format!("node {}", scan.reason.as_str())).await?;
        ctx.metadata.advance_scan(scan, last.at, LEASE).await?;
    }
}

/// Queues those of the stripes that need something, now or later.
pub(crate) async fn judge(
    ctx: &Context,
    stripes: BTreeSet<StripeRef>,
    reason: &str,
) -> Result<usize, MetadataError> {
    let stripes: Vec<StripeRef> = stripes.into_iter().collect();
    let mut queued = 0;
    for stripes in stripes.chunks(STRIPES) {
        let states = ctx.metadata.stripe_states(stripes).await?;
        let cluster = ctx.watch.cluster().await?;
        let repairs: Vec<NewRepair> =
            states.iter().filter_map(|state| cluster.repair_of(state, ctx.repair_delay(), reason)).collect();
        queued += ctx.metadata.queue_repairs(&repairs).await?;
    }
    Ok(queued)
}

/// Compares what the node holds with what is recorded of it, both in order of chunk id.
async fn compare(ctx: &Context, scan: &NodeScan) -> Result<(), Failure> {
    let node = scan.node;
    let from = scan.after.map(|at| at.chunk);
    let held = ctx.plane.nodes().list_chunks(node, from, 0, false).await?;
    let mut held = std::pin::pin!(held.peekable());
    let mut after = scan.after;
    let (mut recorded, mut orphans) = (0, 0);
    let mut believable = true;
    loop {
        let page = ctx.metadata.node_locations(node, after, PAGE).await?;
        let end = page.last().map(|last| last.at);
        recorded += page.len() as u64;
        ctx.metrics.scanned.with_label_values(&[scan.reason.as_str()]).inc_by(page.len() as u64);
        let mut compared = Comparison::default();
        // What is listed after the last location is met by none.
        let recorded_chunks = page.chunk_by(|a, b| a.at.chunk == b.at.chunk).map(Some);
        for same in recorded_chunks.chain(end.is_none().then_some(None)) {
            let chunk = same.map(|same| same[0].at.chunk);
            let is_here = |next: &ListedChunk| chunk.is_none_or(|chunk| next.chunk <= chunk);
            let mut entry = None;
            while let Some(next) = held.as_mut().next_if(|next| next.as_ref().map_or(true, is_here)).await {
                let next = next?;
                if Some(next.chunk) == chunk {
                    entry = Some(next);
                    continue;
                }
                orphans += u64::from(compared.orphan(&next, after));
                if compared.orphans.len() >= PAGE {
                    record(ctx, node, std::mem::take(&mut compared), &mut believable).await?;
                }
                if orphans >= ORPHANS_MAX + recorded {
                    return flooded(ctx, node, recorded).await;
                }
            }
            compared.meet(same.unwrap_or_default(), entry.as_ref());
        }
        record(ctx, node, compared, &mut believable).await?;
        let Some(last) = end else { break };
        after = Some(last);
        let stripes: BTreeSet<StripeRef> = page.iter().map(|location| location.at.stripe).collect();
        judge(ctx, stripes, "inventory compared").await?;
        ctx.metadata.advance_scan(scan, last, LEASE).await?;
    }
    ctx.metadata.finish_inventory(node, recorded).await?;
    Ok(())
}

/// Ends the turn of a node whose list might have no end: its next turn goes on with what is recorded by then.
async fn flooded(ctx: &Context, node: NodeId, recorded: u64) -> Result<(), Failure> {
    warn!(%node, recorded, "a node lists far more than it was given; the rest is looked at another time");
    ctx.metrics.inventory.with_label_values(&["flooded"]).inc();
    ctx.metadata.finish_inventory(node, recorded).await?;
    Ok(())
}

/// What part of an inventory was found to be, before the node is asked once more.
#[derive(Default)]
struct Comparison {
    absent: Vec<NodeCursor>,
    quarantined: Vec<NodeCursor>,
    found: Vec<Found>,
    renewed: Vec<(NodeCursor, cyxcloud_core::Generation)>,
    orphans: Vec<(ChunkId, cyxcloud_core::Generation)>,
}

/// What a node lists that was not there, or not as it should be.
#[derive(Clone, Debug)]
struct Found {
    at: NodeCursor,
    generation: cyxcloud_core::Generation,
    size: ByteCount,
    /// All of it must be shown: some of it was wrong.
    whole: bool,
}

impl Comparison {
    /// Locations of one chunk, and what the node says of it.
    fn meet(&mut self, locations: &[NodeLocation], entry: Option<&ListedChunk>) {
        for NodeLocation { at, generation, status, size } in locations {
            let corrupt = *status == LocationStatus::Corrupt;
            let believed = matches!(status, LocationStatus::Stored | LocationStatus::Leaving);
            match entry {
                None if believed => self.absent.push(*at),
                Some(entry) if entry.quarantined && believed => self.quarantined.push(*at),
                // The bytes of that store were seen to be wrong, whatever the node says of them.
                Some(entry) if corrupt && entry.generation == *generation => {}
                Some(entry) if !entry.quarantined && !believed => {
                    let (at, size, generation) = (*at, *size, entry.generation);
                    self.found.push(Found { at, generation, size, whole: corrupt });
                }
                Some(entry) if !entry.quarantined && entry.generation != *generation => {
                    self.renewed.push((*at, entry.generation));
                }
                None | Some(_) => {}
            }
        }
    }

    /// Held, and met by no location, which is answered. What the scan passed by before it went on was met then.
    fn orphan(&mut self, entry: &ListedChunk, after: Option<NodeCursor>) -> bool {
        let orphan = after.is_none_or(|after| entry.chunk != after.chunk);
        if orphan {
            self.orphans.push((entry.chunk, entry.generation));
        }
        orphan
    }
}

/// Whether the node has what it says to have again.
async fn is_proven(ctx: &Context, node: NodeId, found: &Found) -> bool {
    let (nodes, chunk) = (ctx.plane.nodes(), found.at.chunk);
    if found.whole {
        return nodes.get_chunk(node, chunk, found.size).await.is_ok();
    }
    let slice = audit::pick_slice(found.size, &mut rand::rng());
    nodes.get_slices(node, chunk, found.size, std::slice::from_ref(&slice)).await.is_ok()
}

/// Asks about what was not listed once more, for it may have been stored since, wants to see what is there again, and records
/// the rest. A node that did not show all of it in time is not `believable` for the rest of this comparison.
async fn record(
    ctx: &Context,
    node: NodeId,
    compared: Comparison,
    believable: &mut bool,
) -> Result<(), Failure> {
    let Comparison { absent, quarantined, found, renewed, orphans } = compared;
    let unlisted = absent.len();
    let asked: Vec<(NodeCursor, Result<bool, NodeError>)> = futures::stream::iter(absent)
        .map(async |at| (at, ctx.plane.nodes().has_chunk(node, at.chunk).await.map(|held| held.is_some())))
        .buffer_unordered(AT_ONCE)
        .take_until(tokio::time::sleep(ASKING))
        .collect()
        .await;
    // What was answered in time is recorded before the others' turn comes.
    let mut failed = (asked.len() < unlisted).then_some(NodeError::TimedOut);
    let mut missing = quarantined;
    for (at, held) in asked {
        match held {
            Ok(true) => {}
            Ok(false) => missing.push(at),
            Err(error) => failed = Some(error),
        }
    }
    let listed = found.len();
    let mut proven = Vec::new();
    if *believable {
        let asked: Vec<Option<(NodeCursor, cyxcloud_core::Generation)>> = futures::stream::iter(found)
            .map(async |found| is_proven(ctx, node, &found).await.then_some((found.at, found.generation)))
            .buffer_unordered(AT_ONCE)
            .take_until(tokio::time::sleep(ASKING))
            .collect()
            .await;
        *believable = asked.len() == listed;
        proven = asked.into_iter().flatten().collect();
    }
    let findings = [
        ("unproven", listed - proven.len()),
        ("missing", missing.len()),
        ("found", proven.len()),
        ("renewed", renewed.len()),
        ("orphans", orphans.len()),
    ];
    for (finding, count) in findings {
        ctx.metrics.inventory.with_label_values(&[finding]).inc_by(count as u64);
    }
    if findings.iter().any(|(_, count)| *count > 0) {
        let reconciled = Reconciled { node, missing, found: proven, renewed, orphans };
        ctx.metadata.record_inventory(&reconciled).await?;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::{ByteCount, Generation, Geometry, SegmentId};

    use super::*;

    fn generation(counter: u64) -> Generation {
        Generation { incarnation: uuid::Uuid::from_u128(1), counter }
    }

    fn at(chunk: u8, status: LocationStatus) -> NodeLocation {
        NodeLocation {
            at: NodeCursor {
                chunk: ChunkId::of(&[chunk]),
                stripe: StripeRef { segment: SegmentId::from_random([1; 16]), index: 0 },
                shard: Geometry::STANDARD.shard(0).expect("exists"),
            },
            size: ByteCount::kib(1),
            generation: generation(1),
            status,
        }
    }

    fn entry(chunk: u8, counter: u64, quarantined: bool) -> ListedChunk {
        ListedChunk {
            chunk: ChunkId::of(&[chunk]),
            length: ByteCount::kib(1),
            generation: generation(counter),
            quarantined,
            descriptors: Vec::new(),
            receipt: None,
        }
    }

    #[test]
    fn every_difference_has_its_name() {
        use LocationStatus::{Corrupt, Missing, Stored};
        let meet = |status, entry: Option<ListedChunk>| {
            let mut compared = Comparison::default();
            compared.meet(&[at(7, status)], entry.as_ref());
            let Comparison { absent, quarantined, found, renewed, .. } = compared;
            (absent.len(), quarantined.len(), found.len(), renewed.len())
        };
        assert_eq!(meet(Stored, None), (1, 0, 0, 0));
        assert_eq!(meet(Missing, None), (0, 0, 0, 0));
        assert_eq!(meet(Stored, Some(entry(7, 1, false))), (0, 0, 0, 0));
        assert_eq!(meet(Stored, Some(entry(7, 2, false))), (0, 0, 0, 1));
        assert_eq!(meet(Stored, Some(entry(7, 1, true))), (0, 1, 0, 0));
        assert_eq!(meet(Corrupt, Some(entry(7, 1, true))), (0, 0, 0, 0));
        assert_eq!(meet(Corrupt, Some(entry(7, 1, false))), (0, 0, 0, 0), "it was seen to be wrong");
        assert_eq!(meet(Corrupt, Some(entry(7, 2, false))), (0, 0, 1, 0));
        assert_eq!(meet(Missing, Some(entry(7, 1, false))), (0, 0, 1, 0));
        assert_eq!(meet(Missing, Some(entry(7, 3, false))), (0, 0, 1, 0));
        let mut compared = Comparison::default();
        compared.orphan(&entry(7, 1, false), None);
        compared.orphan(&entry(7, 1, false), Some(at(7, Stored).at));
        assert_eq!(compared.orphans, [(ChunkId::of(&[7]), generation(1))]);
    }
}
