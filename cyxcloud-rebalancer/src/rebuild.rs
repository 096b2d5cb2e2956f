//! Rebuilds lost locations from what nodes hold: for the day on which `chunk_locations` is gone, or an old backup of it is all
//! there is.
//!
//! Every chunk carries sealed descriptors that say where it belongs. Each node lists what it holds, with them and with
//! receipts signed anew; what belongs to a row of `chunks` becomes a location of that row. Nothing is deleted, and what is
//! recorded already stays: it may be run again at any time, after a crash or for nodes that were away.
//! If asked to, it then looks for what stripes still lack in the nodes' trash: what was collected since an old backup of the
//! metadata was made, say.
//! Collection is frozen first and stays so: what has no location yet must not be taken for an orphan. Needs segments, stripes and
//! chunk rows; what belongs to none of them is counted and left on its node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use cyxcloud_core::seal::{Descriptor, MasterKey};
use cyxcloud_core::{ChunkId, NodeId, ShardIndex};
use cyxcloud_dataplane::{DataPlane, ListedChunk, NodeError};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{NewLocation, Node};
use cyxcloud_metadata::upkeep::model::{
    HeldChunk, KnownPlace, LocationStatus, NodeCursor, StripeRef, StripeState,
};
use futures::StreamExt;
use tracing::{info, warn};

/// Chunks looked up in one statement.
const PAGE: usize = 500;
/// Chunks looked for among all chunk rows at once.
const SEARCHED: usize = 20_000;
/// How often progress is told, in chunks.
const TOLD_EVERY: u64 = 100_000;
/// Chunks of a node that may belong nowhere, beside as many as belong somewhere: a list may have no end.
const NOWHERE_MAX: u64 = 1_000_000;
/// Stripes judged in one statement.
const STRIPES: usize = 500;
/// Nodes asked at the same time for what is in their trash.
const ASKED_AT_ONCE: usize = 64;

/// What is to be rebuilt, and how carefully.
#[derive(Clone, Debug, Default)]
pub struct Rebuild {
    /// Only say what would be recorded; change nothing, freeze nothing.
    pub dry_run: bool,
    /// Only these nodes; none: all there are.
    pub nodes: Vec<NodeId>,
    /// Take out of the nodes' trash what stripes lack otherwise. Of no effect in a dry run.
    pub from_trash: bool,
    /// Nobody else can work on this database, so that what is in hand is left over from before.
    pub alone: bool,
}

/// Why nothing was rebuilt, or not all.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The database failed.
    #[error(transparent)]
    Metadata(#[from] cyxcloud_metadata::Error),
    /// Somebody repairs at the same time, by locations that are not all there.
    #[error(
        "a rebalancer works on this database ({repairs} repairs, {scans} scans in hand): stop all rebalancers and run this \
         again; what a killed one had in hand is free after a minute"
    )]
    Busy {
        /// repairs in hand
        repairs: u64,
        /// scans in hand
        scans: u64,
    },
    /// A node was asked for that is not there.
    #[error("there is no node {0}; GET /api/v1/admin/nodes lists those there are")]
    NoSuchNode(NodeId),
}

/// What a node's inventory came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Chunks that nodes hold.
    pub chunks: u64,
    /// Of these, held back as corrupt: they are nobody's location.
    pub quarantined: u64,
    /// Of these, found by their ids among all chunk rows: their descriptors are too many, or do not open.
    pub searched: u64,
    /// Places that were recorded already.
    pub known: u64,
    /// Places that became locations (or would, in a dry run).
    pub recorded: u64,
    /// Of these, without a receipt: the node is too old to sign again.
    pub unsigned: u64,
    /// Places in which the database has no such chunk: deleted since, or never committed.
    pub nowhere: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.chunks += more.chunks;
        self.quarantined += more.quarantined;
        self.searched += more.searched;
        self.known += more.known;
        self.recorded += more.recorded;
        self.unsigned += more.unsigned;
        self.nowhere += more.nowhere;
    }
}

impl Tally {
    fn is_endless(self) -> bool {
        self.nowhere + self.quarantined > NOWHERE_MAX + self.known + self.recorded
    }
}

/// Stripes of live segments, by what their locations are worth afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// All of them.
    pub stripes: u64,
    /// Readable, and short of a shard or copy: repair makes it again.
    pub short: u64,
    /// Fewer distinct shards than reading takes.
    pub unreadable: u64,
}

/// What a rebuild came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Over all nodes that answered.
    pub total: Tally,
    /// Nodes that were read to the end.
    pub read: usize,
    /// Nodes that were not, and why.
    pub failed: Vec<(String, String)>,
    /// Chunks that nodes had in their trash and hold again.
    pub restored: u64,
    /// As recorded afterwards.
    pub census: Census,
}

impl Report {
    /// Whether all nodes were read and, if anything was to come of it, every stripe can be.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && (self.dry_run || self.census.unreadable == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { chunks, quarantined, searched, known, recorded, unsigned, nowhere } = self.total;
        let would = if self.dry_run { "to record" } else { "recorded" };
        writeln!(f, "nodes read:      {} of {}", self.read, self.read + self.failed.len())?;
        for (node, why) in &self.failed {
            writeln!(f, "  not read:      {node}: {why}")?;
        }
        writeln!(f, "chunks held:     {chunks} ({quarantined} corrupt, {searched} found by id alone)")?;
        writeln!(
            f,
            "locations:       {recorded} {would} ({unsigned} without a receipt), {known} known before"
        )?;
        writeln!(f, "belong nowhere:  {nowhere}")?;
        if self.restored > 0 {
            writeln!(f, "from the trash:  {}", self.restored)?;
        }
        let Census { stripes, short, unreadable } = self.census;
        let now = if self.dry_run { "as things are" } else { "now" };
        write!(f, "stripes {now}: {stripes}, of which {short} short and {unreadable} unreadable")
    }
}

/// Asks the nodes what they hold and records it.
pub async fn rebuild_locations(
    metadata: &Arc<dyn MetadataStore>,
    plane: &DataPlane,
    master: &MasterKey,
    options: &Rebuild,
) -> Result<Report, RebuildError> {
    if !options.dry_run {
        let in_hand = metadata.work_in_hand().await?;
        if !options.alone && (in_hand.repairs > 0 || in_hand.scans > 0) {
            return Err(RebuildError::Busy { repairs: in_hand.repairs, scans: in_hand.scans });
        }
        metadata.freeze_gc("locations are rebuilt; look at what came of it before you thaw").await?;
    }
    plane.refresh_nodes().await?;
    let nodes = wanted(metadata.nodes().await?, &options.nodes)?;
    let mut report = Report { dry_run: options.dry_run, ..Report::default() };
    let reading = |node: NodeId| Reading { metadata, plane, master, node, dry_run: options.dry_run };
    let mut reached = Vec::new();
    for node in &nodes {
        let mut tally = Tally::default();
        let ended = reading(node.id).run(&mut tally).await;
        report.total += tally;
        match ended {
            Ok(()) => {
                info!(node = %node.id, label = node.label, chunks = tally.chunks, recorded = tally.recorded, "node read");
                report.read += 1;
                reached.push(node.id);
            }
            Err(failure) => report.fail(node, failure)?,
        }
    }
    if options.from_trash && !options.dry_run {
        let given_back = restore(metadata, plane, &reached).await?;
        report.restored = given_back.values().sum();
        // What is held again is listed, with all that it takes to record it.
        for node in nodes.iter().filter(|node| given_back.contains_key(&node.id)) {
            let mut tally = Tally::default();
            match reading(node.id).run(&mut tally).await {
                Ok(()) => report.total.recorded += tally.recorded,
                Err(failure) => report.fail(node, failure)?,
            }
        }
    }
    report.census = census(metadata).await?;
    Ok(report)
}

impl Report {
    /// Notes that a node was not read to its end, and goes on, unless it was the database that failed.
    fn fail(&mut self, node: &Node, failure: Failure) -> Result<(), RebuildError> {
        let why = match failure {
            Failure::Metadata(error) => return Err(error.into()),
            Failure::Node(error) => error.to_string(),
            Failure::Endless => {
                "it lists far more than was given to it; what was read until then is recorded".to_owned()
            }
        };
        warn!(node = %node.id, label = node.label, why, "node not read to the end");
        self.failed.push((format!("{} ({})", node.id, node.label), why));
        Ok(())
    }
}

/// Asks the nodes for what stripes lack, out of their trash. Answers how many chunks each gave back.
async fn restore(
    metadata: &Arc<dyn MetadataStore>,
    plane: &DataPlane,
    nodes: &[NodeId],
) -> cyxcloud_metadata::Result<BTreeMap<NodeId, u64>> {
    let (mut given_back, mut after) = (BTreeMap::new(), None);
    loop {
        let states = metadata.sweep_stripes(after, STRIPES).await?;
        let Some(last) = states.last() else { return Ok(given_back) };
        after = Some(last.stripe);
        let asked = states.iter().flat_map(|state| lacking(state, nodes));
        let mut answers = futures::stream::iter(asked)
            .map(async |(node, chunk)| (node, chunk, plane.nodes().restore_chunk(node, chunk).await))
            .buffer_unordered(ASKED_AT_ONCE);
        while let Some((node, chunk, answer)) = answers.next().await {
            match answer {
                Ok(true) => *given_back.entry(node).or_default() += 1,
                Ok(false) => {}
                Err(error) => warn!(%node, %chunk, %error, "not taken out of the trash"),
            }
        }
    }
}

/// Whom to ask for which chunk: for each shard that nobody holds, whoever is recorded to have had it; where nobody is, all.
fn lacking(state: &StripeState, nodes: &[NodeId]) -> Vec<(NodeId, ChunkId)> {
    let held = held_shards(state);
    let mut asked = Vec::new();
    for (shard, (chunk, _)) in state.geometry.indices().zip(&state.shards) {
        if held.contains(&shard) {
            continue;
        }
        let had = || state.locations.iter().filter(|at| at.shard == shard).map(|at| at.node);
        let ask = |node: &&NodeId| had().count() == 0 || had().any(|had| had == **node);
        asked.extend(nodes.iter().filter(ask).map(|node| (*node, *chunk)));
    }
    asked
}

/// The shards that are recorded to be held somewhere.
fn held_shards(state: &StripeState) -> BTreeSet<ShardIndex> {
    here(state).collect()
}

/// The shard of every location that counts.
fn here(state: &StripeState) -> impl Iterator<Item = ShardIndex> {
    let held = |status| matches!(status, LocationStatus::Stored | LocationStatus::Leaving);
    state.locations.iter().filter(move |at| held(at.status)).map(|at| at.shard)
}

fn wanted(all: Vec<Node>, only: &[NodeId]) -> Result<Vec<Node>, RebuildError> {
    if let Some(unknown) = only.iter().find(|id| all.iter().all(|node| node.id != **id)) {
        return Err(RebuildError::NoSuchNode(*unknown));
    }
    Ok(all.into_iter().filter(|node| only.is_empty() || only.contains(&node.id)).collect())
}

enum Failure {
    Metadata(cyxcloud_metadata::Error),
    Node(NodeError),
    /// Its list may have no end.
    Endless,
}

impl From<cyxcloud_metadata::Error> for Failure {
    fn from(error: cyxcloud_metadata::Error) -> Self {
        Self::Metadata(error)
    }
}

/// One node's inventory on its way into the database.
struct Reading<'a> {
    metadata: &'a Arc<dyn MetadataStore>,
    plane: &'a DataPlane,
    master: &'a MasterKey,
    node: NodeId,
    dry_run: bool,
}

impl Reading<'_> {
    async fn run(&self, tally: &mut Tally) -> Result<(), Failure> {
        let list = self.plane.nodes().list_chunks(self.node, None, 0, true).await.map_err(Failure::Node)?;
        let mut list = std::pin::pin!(list);
        let (mut described, mut nameless) = (Vec::new(), Vec::new());
        while let Some(entry) = list.next().await {
            let entry = entry.map_err(Failure::Node)?;
            tally.chunks += 1;
            if tally.chunks.is_multiple_of(TOLD_EVERY) {
                info!(node = %self.node, chunks = tally.chunks, recorded = tally.recorded, "reading on");
            }
            if entry.quarantined {
                tally.quarantined += 1;
                continue;
            }
            match places(self.master, &entry) {
                Some(places) => described.push((entry, places)),
                None => nameless.push(entry),
            }
            if described.len() >= PAGE {
                self.record(std::mem::take(&mut described), tally).await?;
            }
            if nameless.len() >= SEARCHED {
                self.search(std::mem::take(&mut nameless), tally).await?;
            }
            if tally.is_endless() {
                return Err(Failure::Endless);
            }
        }
        self.record(described, tally).await?;
        self.search(nameless, tally).await
    }

    /// Looks for chunks among all rows there are, by their ids.
    async fn search(&self, entries: Vec<ListedChunk>, tally: &mut Tally) -> Result<(), Failure> {
        if entries.is_empty() {
            return Ok(());
        }
        tally.searched += entries.len() as u64;
        let ids: Vec<_> = entries.iter().map(|entry| entry.chunk).collect();
        let mut found: std::collections::HashMap<_, Vec<(StripeRef, ShardIndex)>> =
            std::collections::HashMap::new();
        for (at, _) in self.metadata.places_of_chunks(&ids).await? {
            found.entry(at.chunk).or_default().push((at.stripe, at.shard));
        }
        let mut placed = Vec::new();
        for entry in entries {
            match found.remove(&entry.chunk) {
                Some(places) => placed.push((entry, places)),
                None => tally.nowhere += 1,
            }
            if placed.len() >= PAGE {
                self.record(std::mem::take(&mut placed), tally).await?;
            }
        }
        self.record(placed, tally).await
    }

    /// Records what is not known yet of chunks in these places.
    async fn record(
        &self,
        placed: Vec<(ListedChunk, Vec<(StripeRef, ShardIndex)>)>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let held: Vec<(HeldChunk, &ListedChunk)> = placed
            .iter()
            .flat_map(|(entry, places)| places.iter().map(move |place| (held(entry, *place), entry)))
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let asked: Vec<HeldChunk> = held.iter().map(|(held, _)| *held).collect();
        let known = self.metadata.known_places(self.node, &asked).await?;
        let mut claims = Vec::new();
        for ((held, entry), known) in held.into_iter().zip(known) {
            match known {
                KnownPlace::Nowhere => tally.nowhere += 1,
                KnownPlace::Recorded => tally.known += 1,
                KnownPlace::Unrecorded => {
                    tally.unsigned += u64::from(entry.receipt.is_none());
                    claims.push((held.at, self.location(entry)));
                }
            }
        }
        tally.recorded += match self.dry_run || claims.is_empty() {
            true => claims.len() as u64,
            false => self.metadata.record_held(&claims).await? as u64,
        };
        Ok(())
    }

    /// A node that does not sign again is believed all the same: audits will tell, and nothing else could.
    fn location(&self, entry: &ListedChunk) -> NewLocation {
        let receipt = entry.receipt.as_ref();
        NewLocation {
            node: self.node,
            generation: entry.generation,
            receipt_signature: receipt.map(|receipt| receipt.signature.to_vec()).unwrap_or_default(),
            stored_at: receipt.map(|receipt| receipt.stored_at).unwrap_or_default(),
        }
    }
}

fn held(entry: &ListedChunk, (stripe, shard): (StripeRef, ShardIndex)) -> HeldChunk {
    let at = NodeCursor { chunk: entry.chunk, stripe, shard };
    HeldChunk { at, size: entry.length, generation: entry.generation }
}

/// Where a chunk's descriptors say that it belongs, each place once; `None` where they may not say all.
fn places(master: &MasterKey, entry: &ListedChunk) -> Option<Vec<(StripeRef, ShardIndex)>> {
    if entry.descriptors.is_empty() || entry.descriptors.len() >= Descriptor::KEPT_MAX {
        return None;
    }
    let mut places = BTreeSet::new();
    for sealed in &entry.descriptors {
        let (descriptor, _) = Descriptor::open(master, sealed).ok()?;
        let stripe = StripeRef { segment: descriptor.segment, index: descriptor.stripe };
        places.insert((stripe, descriptor.shard));
    }
    Some(places.into_iter().collect())
}

/// Counts what all stripes have, by what is recorded.
async fn census(metadata: &Arc<dyn MetadataStore>) -> cyxcloud_metadata::Result<Census> {
    let (mut census, mut after) = (Census::default(), None);
    loop {
        let states = metadata.sweep_stripes(after, STRIPES).await?;
        let Some(last) = states.last() else { return Ok(census) };
        after = Some(last.stripe);
        states.iter().for_each(|state| census.count(state));
    }
}

impl Census {
    fn count(&mut self, state: &StripeState) {
        let distinct = held_shards(state);
        let geometry = state.geometry;
        self.stripes += 1;
        if distinct.len() < geometry.data() {
            self.unreadable += 1;
        } else if distinct.len() < geometry.shards() || here(state).count() < geometry.locations() {
            self.short += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::seal::OwnerSecret;
    use cyxcloud_core::{ByteCount, Generation, Geometry, OwnerId, SegmentId};
    use cyxcloud_metadata::conformance::samples;
    use cyxcloud_metadata::upkeep::model::LocationState;

    use super::*;

    fn entry(descriptors: Vec<Vec<u8>>) -> ListedChunk {
        ListedChunk {
            chunk: ChunkId::of(b"x"),
            length: ByteCount::bytes(1),
            generation: Generation { incarnation: uuid::Uuid::nil(), counter: 1 },
            quarantined: false,
            descriptors: descriptors.into_iter().map(Into::into).collect(),
            receipt: None,
        }
    }

    #[test]
    fn a_list_may_be_long_where_most_of_it_belongs_somewhere() {
        let tally = |nowhere, quarantined, known| Tally { nowhere, quarantined, known, ..Tally::default() };
        assert!(!tally(NOWHERE_MAX, 0, 0).is_endless());
        assert!(tally(NOWHERE_MAX, 1, 0).is_endless());
        assert!(!tally(2 * NOWHERE_MAX, 0, NOWHERE_MAX).is_endless());
        assert!(tally(2 * NOWHERE_MAX, 1, NOWHERE_MAX).is_endless());
    }

    #[test]
    fn whoever_had_a_shard_is_asked_for_it_and_else_everybody() {
        let geometry = Geometry::coded(2, 1).expect("is a geometry");
        let shard = |index| geometry.shard(index).expect("exists");
        let node = |number: u8| NodeId::from_random([number; 16]);
        let at = |index, number, status| LocationState {
            shard: shard(index),
            node: node(number),
            generation: Generation { incarnation: uuid::Uuid::nil(), counter: 1 },
            status,
            proven_at: None,
        };
        let chunk = |index: u8| ChunkId::of(&[index]);
        let state = StripeState {
            locations: vec![
                at(0, 1, LocationStatus::Stored),
                at(0, 2, LocationStatus::Missing),
                at(1, 2, LocationStatus::Missing),
                at(1, 9, LocationStatus::Corrupt),
            ],
            ..samples::stripe(geometry, ByteCount::bytes(5))
        };
        let nodes = [node(1), node(2), node(3)];
        let asked = lacking(&state, &nodes);
        let all_for_the_last = nodes.map(|node| (node, chunk(2)));
        assert_eq!(asked, [&[(node(2), chunk(1))][..], &all_for_the_last].concat());
    }

    #[test]
    fn descriptors_say_all_or_nothing() {
        let (master, other) = (MasterKey::from_bytes([1; 32]), MasterKey::from_bytes([2; 32]));
        let secret = OwnerSecret::from_bytes([3; 32]);
        let seal = |master: &MasterKey, segment: u8, nonce: u8| {
            let descriptor = Descriptor {
                owner: OwnerId::from_random([1; 16]),
                segment: SegmentId::from_random([segment; 16]),
                stripe: 7,
                shard: Geometry::STANDARD.shard(3).expect("exists"),
                geometry: Geometry::STANDARD,
                format: 1,
                plain_len: 1,
                stripe_size: 1,
                plain_hash: [0; 32],
            };
            descriptor.seal(master, &secret, [nonce; 12])
        };
        let found =
            places(&master, &entry(vec![seal(&master, 1, 1), seal(&master, 2, 1), seal(&master, 1, 2)]));
        assert_eq!(found.expect("all open").len(), 2, "each place once");
        assert_eq!(places(&master, &entry(Vec::new())), None);
        assert_eq!(places(&master, &entry(vec![seal(&master, 1, 1), seal(&other, 1, 1)])), None);
        let full = (0..Descriptor::KEPT_MAX as u8).map(|n| seal(&master, n, 1)).collect();
        assert_eq!(places(&master, &entry(full)), None, "there may have been more");
    }
}
