//! Looks through nodes whose status changed, and compares inventories with what is recorded.
//!
//! What a node's absence, draining or return means for a stripe is judged stripe by stripe; only the node's own locations
//! are read, never all there are. An inventory is compared both ways: what is recorded and not held is marked missing,
//! what is held and not recorded is remembered as an orphan. What was missing or corrupt counts again only when the node has
//! proven it: a list is a stranger's word. It may come slowly, and then has its turns like others'. Not here: the repairs
//! (`repair`), deletion (`gc`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{ByteCount, ChunkId, NodeId, audit};
use cyxcloud_dataplane::{ListedChunk, NodeError};
use cyxcloud_metadata::Error as MetadataError;
use cyxcloud_metadata::upkeep::model::{
    LocationStatus, NewRepair, NodeCursor, NodeLocation, NodeScan, Reconciled, ScanClass, StripeRef,
};
use futures::future::join_all;
use futures::{Stream, StreamExt};
use tracing::{debug, info, warn};

use crate::{Context, keep_claim};

/// Locations in one transaction.
const PAGE: usize = 1_000;
/// Stripes judged in one statement.
const STRIPES: usize = 200;
/// How long a claimed scan may go without a sign of life of its worker.
const LEASE: Duration = Duration::from_secs(60);
/// Pause before a node is asked again that could not be reached; longer where it took longer to find out.
const RETRY: Duration = Duration::from_secs(30);
/// Questions to a node at the same time.
const AT_ONCE: usize = 16;
/// Nodes looked through at the same time, by the latest class that each worker takes. However many nodes are slow, or mean to be,
/// two workers are left for what needs no node's answer, and one for nodes that come back.
const WORKERS: [ScanClass; 5] =
    [ScanClass::Recorded, ScanClass::Recorded, ScanClass::Changed, ScanClass::Periodic, ScanClass::Periodic];
/// How long the questions about one page may take together: an answer may come just in time, again and again.
const ASKING: Duration = Duration::from_secs(30);
/// Orphans that are remembered of a node, with what it is told to delete.
const ORPHANS_MAX: usize = 100_000;
/// How much of a stranger's list is taken in one go.
const BOUNDS: Bounds = Bounds { orphans: ORPHANS_MAX, turn: Duration::from_secs(600) };

/// What a turn of a comparison may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Orphans that it records, beside as many as there are locations. Others are passed by: what is missing behind them is found all
    /// the same, and a later comparison records more.
    orphans: usize,
    /// How long an inventory is compared before others have their turn.
    turn: Duration,
}

/// Why a scan stopped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// How a turn ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing is left to be looked at.
    Done,
    /// Its time is over: the rest has another.
    Over,
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
    tokio::join!(asking, join_all(WORKERS.map(|up_to| one_after_the_other(&ctx, up_to))));
}

async fn one_after_the_other(ctx: &Context, up_to: ScanClass) {
    let mut tick = ctx.ticks();
    loop {
        tick.tick().await;
        loop {
            match ctx.metadata.claim_scans(up_to, 1, LEASE).await {
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

/// One scan, with its claim kept for as long as it takes.
async fn one(ctx: &Context, scan: &NodeScan) {
    ctx.watch.forget();
    let began = Instant::now();
    let looked = tokio::select! {
        looked = look(ctx, scan) => looked,
        overtaken = keep_claim(LEASE, || ctx.metadata.renew_scan(scan, LEASE)) => Err(overtaken.into()),
    };
    // As long as it took belongs to others: who breaks off again and again gets no more than who does not.
    let pause = RETRY.max(began.elapsed());
    let ended = match looked {
        Ok(Turn::Done) => finish(ctx, scan).await,
        Ok(Turn::Over) => put_down(ctx, scan, pause).await,
        Err(Failure::Metadata(error)) => Err(error),
        Err(Failure::Node(error)) => {
            debug!(node = %scan.node, %error, "the inventory cannot be had now");
            ctx.metrics.inventory.with_label_values(&["unreadable"]).inc();
            ask_again(ctx, scan, pause).await
        }
    };
    match ended {
        Ok(()) => {}
        Err(MetadataError::Stale { .. }) => debug!(node = %scan.node, "scan was overtaken"),
        Err(error) => ctx.metrics.failed("look through a node", &error),
    }
}

async fn look(ctx: &Context, scan: &NodeScan) -> Result<Turn, Failure> {
    if !scan.reason.compares_inventory() {
        return look_through(ctx, scan).await.map(|()| Turn::Done);
    }
    // The comparison looks at the clock with each entry. Whatever else a node thinks of to make it wait ends here.
    let compared = tokio::time::timeout(BOUNDS.turn * 2, compare(ctx, scan)).await;
    compared.unwrap_or_else(|_| Err(NodeError::TimedOut.into()))
}

async fn finish(ctx: &Context, scan: &NodeScan) -> Result<(), MetadataError> {
    let again_after = again_after(ctx, scan).await?;
    ctx.metadata.finish_scan(scan, again_after).await?;
    info!(node = %scan.node, reason = scan.reason.as_str(), "node looked through");
    Ok(())
}

async fn put_down(ctx: &Context, scan: &NodeScan, pause: Duration) -> Result<(), MetadataError> {
    ctx.metadata.pause_scan(scan, pause).await?;
    info!(node = %scan.node, reason = scan.reason.as_str(), "node looked through in part");
    Ok(())
}

/// Has a node asked for the rest of its inventory later. One that is gone is asked again when it returns.
async fn ask_again(ctx: &Context, scan: &NodeScan, pause: Duration) -> Result<(), MetadataError> {
    let cluster = ctx.watch.cluster().await?;
    match cluster.nodes.get(&scan.node) {
        Some(node) if node.status != NodeStatus::Offline => ctx.metadata.pause_scan(scan, pause).await,
        Some(_) | None => ctx.metadata.finish_scan(scan, None).await,
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
async fn judge(ctx: &Context, stripes: BTreeSet<StripeRef>, reason: &str) -> Result<(), MetadataError> {
    let stripes: Vec<StripeRef> = stripes.into_iter().collect();
    for stripes in stripes.chunks(STRIPES) {
        match judge_together(ctx, stripes, reason).await {
            Err(error) if lasts(&error) => judge_each(ctx, stripes, reason).await?,
            judged => judged?,
        }
    }
    Ok(())
}

async fn judge_together(ctx: &Context, stripes: &[StripeRef], reason: &str) -> Result<(), MetadataError> {
    let states = ctx.metadata.stripe_states(stripes).await?;
    let cluster = ctx.watch.cluster().await?;
    let repairs: Vec<NewRepair> =
        states.iter().filter_map(|state| cluster.repair_of(state, ctx.repair_delay(), reason)).collect();
    ctx.metadata.queue_repairs(&repairs).await?;
    Ok(())
}

/// Queues those of the stripes that need something, and passes by those that cannot be read: for their sake the others would not
/// be looked at either.
pub(crate) async fn judge_each(
    ctx: &Context,
    stripes: &[StripeRef],
    reason: &str,
) -> Result<(), MetadataError> {
    for stripe in stripes {
        match judge_together(ctx, std::slice::from_ref(stripe), reason).await {
            Err(error) if lasts(&error) => ctx.metrics.unreadable(*stripe, &error),
            judged => judged?,
        }
    }
    Ok(())
}

/// Whether it is of no use to wait for the database.
fn lasts(error: &MetadataError) -> bool {
    matches!(error, MetadataError::Corrupt { .. } | MetadataError::Database { .. })
}

/// Compares what the node holds with what is recorded of it, both in order of chunk id.
async fn compare(ctx: &Context, scan: &NodeScan) -> Result<Turn, Failure> {
    let from = scan.after.map(|at| at.chunk);
    let held = ctx.plane.nodes().list_chunks(scan.node, from, 0, false).await?;
    compare_with(ctx, scan, held, BOUNDS).await
}

async fn compare_with(
    ctx: &Context,
    scan: &NodeScan,
    held: impl Stream<Item = Result<ListedChunk, NodeError>>,
    bounds: Bounds,
) -> Result<Turn, Failure> {
    let (node, began) = (scan.node, Instant::now());
    let is_over = || began.elapsed() >= bounds.turn;
    let passed_by = ctx.metrics.inventory.with_label_values(&["passed_by"]);
    let mut held = std::pin::pin!(held.peekable());
    let mut after = scan.after;
    let (mut recorded, mut orphans) = (0, 0);
    let mut believable = true;
    loop {
        let page = ctx.metadata.node_locations(node, after, PAGE).await?;
        let end = page.last().map(|last| last.at);
        recorded += page.len();
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
                let room = orphans < bounds.orphans.saturating_add(recorded);
                if !room && chunk.is_none() {
                    // Nothing that is recorded is left to be met.
                    break;
                }
                if room {
                    orphans += usize::from(compared.orphan(&next, after));
                } else {
                    passed_by.inc();
                }
                if compared.orphans.len() >= PAGE {
                    record(ctx, node, std::mem::take(&mut compared), &mut believable).await?;
                }
                if is_over() {
                    record(ctx, node, compared, &mut believable).await?;
                    let here = same.map(|same| same[0].at).or(after);
                    let here = here.map(|at| NodeCursor { chunk: next.chunk, ..at });
                    return break_off(ctx, scan, &page, here.filter(|at| came_on(scan.after, after, *at)))
                        .await;
                }
            }
            compared.meet(same.unwrap_or_default(), entry.as_ref());
        }
        record(ctx, node, compared, &mut believable).await?;
        let Some(last) = end else { break };
        after = Some(last);
        judge_met(ctx, &page).await?;
        ctx.metadata.advance_scan(scan, last, LEASE).await?;
        if is_over() {
            return Ok(Turn::Over);
        }
    }
    // Of a comparison that went on where another stopped, only the rest was counted.
    ctx.metadata.finish_inventory(node, scan.after.is_none().then_some(recorded as u64)).await?;
    Ok(Turn::Done)
}

async fn judge_met(ctx: &Context, met: &[NodeLocation]) -> Result<(), MetadataError> {
    let stripes: BTreeSet<StripeRef> = met.iter().map(|location| location.at.stripe).collect();
    judge(ctx, stripes, "inventory compared").await
}

/// Whether a turn that began after `from`, met all up to `after` and got to `here` leaves less to be done. It does where it met a page of
/// locations, and between two of them where it came through a part of all the ids there could be: so a list that has no end has
/// an end of turns, 256 beside those of the locations.
fn came_on(from: Option<NodeCursor>, after: Option<NodeCursor>, here: NodeCursor) -> bool {
    let part = |at: NodeCursor| at.chunk.as_bytes()[0];
    after != from || part(here) > from.map_or(0, part)
}

/// Ends a turn between the locations of a page, to go on from `here`; or the comparison, where there is nothing to be gained.
async fn break_off(
    ctx: &Context,
    scan: &NodeScan,
    page: &[NodeLocation],
    here: Option<NodeCursor>,
) -> Result<Turn, Failure> {
    let Some(here) = here else { return flooded(ctx, scan.node).await };
    let met = page.partition_point(|location| location.at.chunk < here.chunk);
    judge_met(ctx, &page[..met]).await?;
    ctx.metadata.advance_scan(scan, here, LEASE).await?;
    Ok(Turn::Over)
}

/// Ends the comparison with a node whose list seems to have no end: the next one begins anew when it is due.
async fn flooded(ctx: &Context, node: NodeId) -> Result<Turn, Failure> {
    warn!(%node, "a node lists far more than it was given; the rest is looked at another time");
    ctx.metrics.inventory.with_label_values(&["flooded"]).inc();
    ctx.metadata.finish_inventory(node, None).await?;
    Ok(Turn::Done)
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
        let orphans_max = ORPHANS_MAX;
        let reconciled = Reconciled { node, missing, found: proven, renewed, orphans, orphans_max };
        ctx.metadata.record_inventory(&reconciled).await?;
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::address::AddressPolicy;
    use cyxcloud_core::seal::MasterKey;
    use cyxcloud_core::{ByteCount, Generation, Geometry, SegmentId};
    use cyxcloud_dataplane::DataPlane;
    use cyxcloud_metadata::MetadataStore;
    use cyxcloud_metadata::conformance::{online_nodes, place};
    use cyxcloud_metadata::model::Content;
    use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};

    use super::*;
    use crate::cluster::{Limits, Watch};
    use crate::metrics::Metrics;
    use crate::throttle::{Throttle, Throttles};
    use crate::{Tuning, audit};

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

    /// A rebalancer without nodes.
    fn context() -> Context {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("open"));
        let (master, registry) = (MasterKey::from_bytes([1; 32]), prometheus::Registry::new());
        let config = cyxcloud_dataplane::Config::default();
        let plane =
            DataPlane::new(config, metadata.clone(), AddressPolicy::default(), master.clone(), &registry);
        let limits =
            Limits { window: Duration::from_secs(600), min_copies: 3, offline: Duration::from_secs(300) };
        let (claimed, _): (audit::Claimed, _) = tokio::sync::mpsc::unbounded_channel();
        Context {
            watch: Watch::new(metadata.clone(), plane.clone(), limits),
            repair_budget: Throttle::new(0),
            node_budgets: Throttles::new(0),
            claimed,
            metrics: Metrics::new(&registry).expect("registered once"),
            metadata,
            plane,
            master,
            tuning: Tuning::default(),
        }
    }

    /// A node with locations, which are its list too, and its inventory in hand.
    struct Compared {
        ctx: Context,
        recorded: Vec<NodeLocation>,
        scan: NodeScan,
    }

    impl Compared {
        async fn make() -> Self {
            let ctx = context();
            let store = ctx.metadata.clone();
            let place = place(&*store).await;
            let nodes = online_nodes(&*store, 1).await;
            let segment = place.striped(Geometry::STANDARD, 2, &nodes);
            store.commit_object(&place.commit("k", Content::New(segment))).await.expect("commit");
            let recorded = store.node_locations(nodes[0], None, PAGE).await.expect("look");
            store.queue_inventory(nodes[0]).await.expect("queue");
            let scan = Self::claim(&store).await.expect("is due");
            Self { ctx, recorded, scan }
        }

        async fn claim(store: &Arc<dyn MetadataStore>) -> Option<NodeScan> {
            store.claim_scans(ScanClass::Periodic, 1, LEASE).await.expect("claim").pop()
        }

        /// Compares with a list of all that is recorded, the last of it in quarantine, and of chunks that are not.
        async fn with(&self, orphans: &[ChunkId], bounds: Bounds) -> Turn {
            let recorded = self.recorded.iter().map(|at| (at.at.chunk, at.generation));
            let others = orphans.iter().map(|chunk| (*chunk, generation(1)));
            let last = self.last().at.chunk;
            let mut list: Vec<ListedChunk> = recorded
                .chain(others)
                .map(|(chunk, generation)| ListedChunk {
                    chunk,
                    generation,
                    quarantined: chunk == last,
                    ..entry(0, 1, false)
                })
                .collect();
            list.sort_by_key(|listed| listed.chunk);
            let list = futures::stream::iter(list.into_iter().map(Ok));
            compare_with(&self.ctx, &self.scan, list, bounds).await.expect("compared")
        }

        fn last(&self) -> &NodeLocation {
            self.recorded.last().expect("there are some")
        }

        async fn last_is(&self) -> LocationStatus {
            let now = self.ctx.metadata.node_locations(self.scan.node, None, PAGE).await.expect("look");
            now.last().expect("there are some").status
        }
    }

    fn low(number: u8) -> ChunkId {
        let mut id = [0; 32];
        id[31] = number;
        ChunkId::from_bytes(id)
    }

    /// However many orphans lie before it; no more of them are recorded than are allowed.
    #[tokio::test]
    async fn what_is_missing_behind_many_orphans_is_found() {
        let compared = Compared::make().await;
        let recorded = compared.recorded.len();
        let orphans: Vec<ChunkId> = (0..200).map(low).collect();
        let turn = compared.with(&orphans, Bounds { orphans: 3, ..BOUNDS }).await;
        assert_eq!((turn, compared.last_is().await), (Turn::Done, LocationStatus::Missing));
        let store = &compared.ctx.metadata;
        assert_eq!(store.gc_state().await.expect("look").orphans, 3 + recorded as u64);
        let seen = store.nodes_upkeep().await.expect("look").pop().expect("is known");
        assert_eq!((seen.reconciled_at.is_some(), seen.locations), (true, recorded as u64));
    }

    /// Between two locations too, where it came on; a list that has no end is left.
    #[tokio::test]
    async fn a_turn_that_is_over_goes_on_where_it_was() {
        let over = Bounds { turn: Duration::ZERO, ..BOUNDS };
        let compared = Compared::make().await;
        assert_eq!(compared.with(&[low(1)], over).await, Turn::Done, "it got nowhere");
        assert_eq!(compared.last_is().await, LocationStatus::Stored);
        // Before the last location, and behind all others.
        let mut middle = *compared.last().at.chunk.as_bytes();
        middle[16..].fill(0);
        let middle = ChunkId::from_bytes(middle);
        assert_eq!(compared.with(&[middle], over).await, Turn::Over);
        let store = &compared.ctx.metadata;
        store.pause_scan(&compared.scan, Duration::ZERO).await.expect("put down");
        let again = Compared::claim(store).await.expect("is due");
        assert_eq!(again.after.map(|at| at.chunk), Some(middle));
        assert_eq!(store.gc_state().await.expect("look").orphans, 2);
    }
}
