//! What background work reads and records, as plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::repair::{Belief, SPREAD_PRIORITY};
use cyxcloud_core::{
    BucketId, ByteCount, ChunkId, FileId, Generation, Geometry, NodeId, OwnerId, SegmentId, ShardIndex,
    Timestamp,
};
use uuid::Uuid;

use crate::model::NewLocation;

/// A stripe: place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StripeRef {
    /// The segment.
    pub segment: SegmentId,
    /// Index in it.
    pub index: u32,
}

/// What is believed of one location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocationStatus {
    /// Held.
    Stored,
    /// The node says it does not hold it.
    Missing,
    /// What the node sent was wrong.
    Corrupt,
    /// Surplus: to be removed.
    Leaving,
}

impl LocationStatus {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stored, Self::Missing, Self::Corrupt, Self::Leaving];

    /// As the column `status` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Missing => "missing",
            Self::Corrupt => "corrupt",
            Self::Leaving => "leaving",
        }
    }

    /// What planners call it.
    pub const fn belief(self) -> Belief {
        match self {
            Self::Stored => Belief::Stored,
            Self::Missing => Belief::Missing,
            Self::Corrupt => Belief::Corrupt,
            Self::Leaving => Belief::Leaving,
        }
    }
}

/// One location as upkeep sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationState {
    /// Which shard.
    pub shard: ShardIndex,
    /// Where.
    pub node: NodeId,
    /// The generation of its receipt.
    pub generation: Generation,
    /// What is believed of it.
    pub status: LocationStatus,
    /// When its node last proved to hold it: an audit, or its own store.
    pub proven_at: Option<Timestamp>,
}

/// A stripe of a live segment with all its locations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeState {
    /// Which.
    pub stripe: StripeRef,
    /// Whose secret sealed it.
    pub owner: OwnerId,
    /// How it is coded.
    pub geometry: Geometry,
    /// Version of the sealed format.
    pub format: u8,
    /// Plain bytes of every stripe of its segment but the last.
    pub stripe_size: ByteCount,
    /// Blake3 of the plain bytes.
    pub plain_hash: [u8; 32],
    /// Number of plain bytes.
    pub plain_len: ByteCount,
    /// Node losses that its profile wants it to survive.
    pub target_tolerance: u8,
    /// `(chunk id, length)` of every shard, in order.
    pub shards: Vec<(ChunkId, ByteCount)>,
    /// Every recorded location, whatever its status, in order of shard and node.
    pub locations: Vec<LocationState>,
}

impl StripeState {
    /// Length of its longest chunk; zero if it has none.
    pub fn chunk_len(&self) -> ByteCount {
        self.shards.iter().map(|(_, size)| *size).max().unwrap_or(ByteCount::ZERO)
    }
}

/// A stripe to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRepair {
    /// Which.
    pub stripe: StripeRef,
    /// Node losses still tolerated; smaller is more urgent; -1: unreadable now; [`SPREAD_PRIORITY`]: nothing is short.
    pub priority: i32,
    /// How long to wait from now, in database time.
    pub delay: Duration,
    /// Why, for operators: what a scan, the sweep or a reader met. Commits and what marks locations lost ([`LostBecause`]) queue
    /// by themselves.
    pub reason: String,
}

/// Why a location is not counted on any more: the reason of the repair that is queued with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LostBecause {
    /// A reader was told that it is not there, or was sent other bytes.
    Reported,
    /// The node itself found that it rotted.
    Corrupt,
    /// It was not proven.
    Audited,
    /// The node's inventory lacks it.
    NotListed,
    /// The node was removed.
    NodeRemoved,
}

impl LostBecause {
    /// As the column `reason` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "bad location",
            Self::Corrupt => "corrupt chunk",
            Self::Audited => "audit failed",
            Self::NotListed => "missing on its node",
            Self::NodeRemoved => "node removed",
        }
    }
}

/// A stripe claimed for repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairJob {
    /// Primary key.
    pub id: Uuid,
    /// Which stripe.
    pub stripe: StripeRef,
    /// As queued.
    pub priority: i32,
    /// As queued.
    pub reason: String,
    /// What commits of this claim must carry.
    pub fence: i64,
    /// How often it was tried in vain since it last added anything.
    pub retry_count: u32,
}

/// What a repair changed. Recorded only while the claim's fence holds and the segment is live.
#[derive(Clone, Debug, Default)]
pub struct RepairDone {
    /// New locations.
    pub added: Vec<(ShardIndex, NewLocation)>,
    /// Locations that go: rows deleted, chunks handed to deletion on their nodes after the grace. Only if what remains
    /// keeps the promise; the planner's business. None goes if the stripe was queued once more since it was claimed, or if one
    /// of `added` is on a node that is not known any more, or has begun another life: what the planner saw is old then, and the
    /// stripe is looked at again.
    pub removed: Vec<(ShardIndex, NodeId)>,
    /// How long the chunks of `removed` stay on their nodes: a restored backup or a reader may still look for them there.
    pub grace: Duration,
    /// Work that this job could not do yet: it stays `pending` and is looked at again after this long.
    pub again_after: Option<Duration>,
    /// How urgent that work is, where it is known better than when it was asked for. Not if the stripe was queued once more since.
    pub priority: Option<i32>,
    /// Tolerance of the stripe's trustworthy locations now, for metrics and the job's row.
    pub tolerance: Option<u8>,
}

/// What there is to repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairQueue {
    /// Open jobs by priority (-1, 0, 1...), those due and those waiting for their delay; where nothing is short they are not here.
    pub pending: BTreeMap<i32, u64>,
    /// Of these, those whose time has come.
    pub due: u64,
    /// Open jobs of stripes that are whole and only to be spread: nobody need worry how many wait, or for how long.
    pub to_spread: u64,
    /// Claimed and leased, of either kind.
    pub in_progress: u64,
    /// Ended well lately: within [`Self::ENDED_WITHIN`], and no more than [`Self::ENDED_MAX`].
    pub completed: u64,
    /// Given up after too many tries, likewise; an operator should look.
    pub failed: u64,
    /// Age of the oldest due job.
    pub oldest_due: Option<Duration>,
}

impl RepairQueue {
    /// For so long a job that ended is counted. Rows are kept for longer.
    pub const ENDED_WITHIN: Duration = Duration::from_secs(24 * 3600);
    /// So many are counted, or whoever looks would read ever more where much is repaired.
    pub const ENDED_MAX: usize = 100_000;

    /// Counts open jobs of one priority, of which some are due, the oldest for so long.
    pub(crate) fn count(&mut self, priority: i32, jobs: u64, due: u64, oldest_due: Option<Duration>) {
        if priority >= SPREAD_PRIORITY {
            self.to_spread += jobs;
            return;
        }
        self.pending.insert(priority, jobs);
        self.due += due;
        self.oldest_due = self.oldest_due.max(oldest_due);
    }
}

/// Why a node's locations are looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScanReason {
    /// It stopped answering.
    Offline,
    /// Its chunks are to be moved away: it drains, or is held back.
    Draining,
    /// Its operator paused it.
    Maintenance,
    /// It came back: its inventory is compared with ours, both ways.
    Returned,
    /// Its data directory took a new incarnation: likewise, at once.
    NewIncarnation,
    /// Its turn: likewise.
    Periodic,
}

impl ScanReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Offline,
        Self::Draining,
        Self::Maintenance,
        Self::Returned,
        Self::NewIncarnation,
        Self::Periodic,
    ];

    /// As the column `reason` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
            Self::Returned => "returned",
            Self::NewIncarnation => "new_incarnation",
            Self::Periodic => "periodic",
        }
    }

    /// What a node is looked through for when it takes a status.
    pub const fn after(status: NodeStatus) -> Self {
        match status {
            NodeStatus::Offline => Self::Offline,
            NodeStatus::Draining => Self::Draining,
            NodeStatus::Recovering | NodeStatus::Online => Self::Returned,
        }
    }

    /// Which turn it has, and what it depends on.
    pub const fn class(self) -> ScanClass {
        match self {
            Self::Offline | Self::Draining | Self::Maintenance => ScanClass::Recorded,
            Self::Returned | Self::NewIncarnation => ScanClass::Changed,
            Self::Periodic => ScanClass::Periodic,
        }
    }

    /// Whether the node itself is asked for what it holds.
    pub const fn compares_inventory(self) -> bool {
        match self.class() {
            ScanClass::Changed | ScanClass::Periodic => true,
            ScanClass::Recorded => false,
        }
    }
}

/// Scans in the order in which they are claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScanClass {
    /// What is recorded tells all: no node can make it last.
    Recorded,
    /// A node changed, and is asked for what it holds.
    Changed,
    /// A node is asked for what it holds because it is its turn.
    Periodic,
}

impl ScanClass {
    /// As engines compare it.
    pub(crate) const fn rank(self) -> i32 {
        match self {
            Self::Recorded => 0,
            Self::Changed => 1,
            Self::Periodic => 2,
        }
    }
}

/// A node claimed for looking through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeScan {
    /// Which node.
    pub node: NodeId,
    /// Why.
    pub reason: ScanReason,
    /// When it was asked for.
    pub since: Timestamp,
    /// What later calls of this claim must carry.
    pub fence: i64,
    /// Go on after this; `None` begins.
    pub after: Option<NodeCursor>,
}

/// A place in the sequence of a node's locations, which is sorted by chunk id, segment, stripe and shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeCursor {
    /// Chunk id.
    pub chunk: ChunkId,
    /// Stripe.
    pub stripe: StripeRef,
    /// Shard.
    pub shard: ShardIndex,
}

/// A location as a node's inventory is compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLocation {
    /// Chunk, stripe and shard.
    pub at: NodeCursor,
    /// Length of the chunk.
    pub size: ByteCount,
    /// The generation of its receipt.
    pub generation: Generation,
    /// What is believed of it.
    pub status: LocationStatus,
}

/// A chunk that a node holds and no row knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The node.
    pub node: NodeId,
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation held.
    pub generation: Generation,
}

/// A chunk to be deleted from a node, claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkDelete {
    /// Primary key.
    pub id: i64,
    /// From where.
    pub node: NodeId,
    /// What.
    pub chunk: ChunkId,
    /// Which generation: the node keeps a newer one and refuses another incarnation.
    pub generation: Generation,
    /// Failed tries so far.
    pub attempts: u32,
}

/// What became of one delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// Gone from the node, was not there, or the node keeps something newer: nothing left to do.
    Settled,
    /// The node did not answer: again after this long.
    Later(Duration),
}

/// Limits of one GC run; beyond them nothing is condemned and an operator must look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GcBrake {
    /// Part of all segments that may be condemned at once, 0 to 1.
    pub max_fraction: f64,
    /// Always allowed.
    pub floor: u64,
}

impl GcBrake {
    /// Whether so many of all there are is rather a mistake than garbage.
    pub fn holds(self, part: u64, all: u64) -> bool {
        part > self.floor && part as f64 > self.max_fraction * all as f64
    }
}

/// What kept garbage collection from all or some of what there was, until an operator let it go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcThawed {
    /// It was frozen.
    pub frozen: bool,
    /// A brake held.
    pub braked: bool,
}

/// What a GC step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcStep {
    /// Candidates looked at.
    pub looked_at: u64,
    /// Of these, those that went on: condemned, or collected.
    pub taken: u64,
    /// Chunks handed to deletion on their nodes.
    pub chunks: u64,
}

/// Why GC does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GcHalt {
    /// The metadata was restored from a backup, or an operator said so; with the reason. Ended by `thaw_gc`.
    Frozen(String),
    /// A run would have condemned this many of all segments, with those that were condemned since the last `thaw_gc`.
    Brake {
        /// would be condemned
        candidates: u64,
        /// segments there are
        segments: u64,
    },
    /// So many of the chunks that a node holds would go as orphans; other nodes' do go, and so do those that were seen before
    /// the last `thaw_gc`. It may have been away until it was forgotten, or locations were lost.
    Orphans {
        /// whose
        node: NodeId,
        /// would go
        orphans: u64,
        /// recorded on it
        locations: u64,
    },
    /// There are stripes, and not one location: every chunk would go as an orphan.
    NoLocations,
}

impl fmt::Display for GcHalt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frozen(reason) => write!(f, "frozen: {reason}"),
            Self::Brake { candidates, segments } => {
                write!(f, "{candidates} of {segments} segments would be condemned")
            }
            Self::Orphans { node, orphans, locations } => write!(
                f,
                "{orphans} chunks on node {node} would go as orphans, where {locations} locations are recorded"
            ),
            Self::NoLocations => write!(f, "there are stripes and no location of any chunk"),
        }
    }
}

/// What became of orphans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrphanStep {
    /// Handed to deletion.
    pub taken: u64,
    /// Why none went, or none from that node.
    pub halt: Option<GcHalt>,
}

/// State of garbage collection, for operators. No more than [`Self::COUNTED_MAX`] of each kind are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcState {
    /// Segments that lost a reference and were not looked at.
    pub candidates: u64,
    /// Segments in their grace.
    pub condemned: u64,
    /// Chunks to be deleted from nodes.
    pub deletes: u64,
    /// Of these, those whose time has come.
    pub deletes_due: u64,
    /// Orphans seen once and waiting for their grace.
    pub orphans: u64,
    /// Why it is frozen.
    pub frozen: Option<String>,
    /// Why a brake holds, as whoever collects last said.
    pub halted: Option<String>,
}

impl GcState {
    /// So many are counted: after a large delete there are millions, and whoever collects looks every round.
    pub const COUNTED_MAX: usize = 100_000;
}

/// How an audit of one location ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuditOutcome {
    /// The slice and its path verify.
    Proven,
    /// The node says it does not hold it.
    Lost,
    /// What it sent does not verify.
    Wrong,
    /// It was heard, and answered too late, not at all or broke off: contained, asked again later.
    Late,
    /// Neither was it heard nor did it answer: says nothing about what it holds.
    Unreachable,
}

impl AuditOutcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Proven, Self::Lost, Self::Wrong, Self::Late, Self::Unreachable];

    /// As the column `outcome` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Lost => "lost",
            Self::Wrong => "wrong",
            Self::Late => "late",
            Self::Unreachable => "unreachable",
        }
    }
}

/// One audit, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// The round it belongs to.
    pub round: Uuid,
    /// Who was asked.
    pub node: NodeId,
    /// For what.
    pub at: NodeCursor,
    /// The slice asked for, in bytes of the chunk.
    pub slice: Range<u64>,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// Whether it answered a contained audit of before.
    pub again: bool,
    /// When, by the database's clock. Ignored on recording.
    pub when: Timestamp,
}

/// An audit that is owed an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contained {
    /// Who.
    pub node: NodeId,
    /// For what.
    pub at: NodeCursor,
    /// Length of the chunk.
    pub size: ByteCount,
    /// The same slice is asked for again.
    pub slice: Range<u64>,
    /// Times it was late.
    pub attempts: u32,
}

/// A node's record in audits: a beta distribution, see `cyxcloud_core::reputation`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AuditRecord {
    /// Weight of proofs.
    pub alpha: f64,
    /// Weight of failures.
    pub beta: f64,
    /// Audits that succeeded.
    pub proven: u64,
    /// Audits that failed.
    pub failed: u64,
    /// When it was last audited.
    pub last_audit: Option<Timestamp>,
    /// Since when it has been vetted, or is being: when it registered, or was let back. A judge leaves it.
    pub vetting_since: Timestamp,
    /// What `proven` was then. A judge leaves it.
    pub proven_before: u64,
    /// Whether it is given its share of what is written. A judge may say so; that it is taken back is not kept.
    pub vetted: bool,
}

/// A node with all that upkeep decides by.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeUpkeep {
    /// Which.
    pub node: NodeId,
    /// Its status.
    pub status: NodeStatus,
    /// Since when.
    pub status_changed_at: Timestamp,
    /// Last sign of life.
    pub last_heartbeat: Timestamp,
    /// Held back from new data.
    pub quarantined: bool,
    /// Its record.
    pub audits: AuditRecord,
    /// When its inventory was last compared in full.
    pub reconciled_at: Option<Timestamp>,
    /// Locations of status `stored`, as of the last full comparison or scan; an estimate.
    pub locations: u64,
}

/// What became of a node's inventory, compared with ours.
#[derive(Clone, Debug)]
pub struct Reconciled {
    /// The node.
    pub node: NodeId,
    /// Recorded as stored and not held, or held in quarantine: marked, repair queued.
    pub missing: Vec<NodeCursor>,
    /// Recorded as missing and held again: `stored` again, with the generation held now.
    pub found: Vec<(NodeCursor, Generation)>,
    /// Held and recorded with an older generation (a store whose reply was lost): the row takes this one.
    pub renewed: Vec<(NodeCursor, Generation)>,
    /// Held and in no row: remembered with the time they were first seen, deleted after the grace.
    pub orphans: Vec<(ChunkId, Generation)>,
    /// Orphans are remembered anew while no more than so many chunks, beside as many as the node had locations when they were
    /// counted, wait for it to delete them, orphans or handed to deletion: its list is a stranger's word, and may have no end. What
    /// we ourselves no longer name is remembered to the last, so that the brake on orphans sees how much it is.
    pub orphans_max: usize,
}

/// Health of what an owner stores under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStripes {
    /// The object.
    pub file: FileId,
    /// Its bucket.
    pub bucket: BucketId,
    /// Stripes of its segments, each once, in order; at most as many as asked for.
    pub stripes: Vec<StripeState>,
    /// Bytes that live in the database itself.
    pub inline_bytes: ByteCount,
    /// Stripes there are in all.
    pub total: u64,
}

/// A chunk that a node says it holds, in a place that it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldChunk {
    /// Chunk and place.
    pub at: NodeCursor,
    /// Its length.
    pub size: ByteCount,
    /// The generation held.
    pub generation: Generation,
}

/// What is known of a [`HeldChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KnownPlace {
    /// No row of `chunks` has this chunk, in this length, in this place: what it belonged to is gone, or never was.
    Nowhere,
    /// A location says so, of this generation or a newer one of the same life.
    Recorded,
    /// The chunk belongs there, and no location says so.
    Unrecorded,
}

/// What background workers have claimed, and whose leases have not run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkInHand {
    /// Repairs.
    pub repairs: u64,
    /// Scans of nodes.
    pub scans: u64,
}
