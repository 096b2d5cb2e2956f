//! What keeps stored data stored: the part of the metadata store that background work needs.
//!
//! Work is claimed with a lease and a fence: a worker that slept past its lease commits nothing (`Stale`). All times and
//! delays are the database's. Decisions (what a stripe needs, whether a brake holds) are `cyxcloud_core`'s.

pub mod model;

use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::{ByteCount, ChunkId, FileId, NodeId, SegmentId, Timestamp};
use uuid::Uuid;

use crate::Result;
use crate::model::NewLocation;
use model::*;

/// Background work on the metadata. Every method is one transaction, as in [`crate::MetadataStore`].
#[async_trait]
pub trait Upkeep: Send + Sync {
    // Stripes.

    /// These stripes, those that exist and whose segments are live, in any order.
    async fn stripe_states(&self, stripes: &[StripeRef]) -> Result<Vec<StripeState>>;
    /// Stripes of live segments after `after`, in order of segment and index, at most `limit`: the full sweep.
    async fn sweep_stripes(&self, after: Option<StripeRef>, limit: usize) -> Result<Vec<StripeState>>;
    /// Which those are, without reading what may be unreadable about them.
    async fn list_stripes(&self, after: Option<StripeRef>, limit: usize) -> Result<Vec<StripeRef>>;
    /// The stripes of an object's current version, at most `limit` of them; `None` if there is no object.
    async fn object_stripes(&self, file: FileId, limit: usize) -> Result<Option<ObjectStripes>>;

    // Repairs.

    /// Queues stripes. One that waits already keeps the more urgent priority and the earlier time. Answers how many
    /// are new.
    async fn queue_repairs(&self, repairs: &[NewRepair]) -> Result<usize>;
    /// Claims at most `limit` due jobs of no later priority than `up_to`, most urgent first, and those whose lease ran out; each
    /// with a new fence.
    async fn claim_repairs(&self, up_to: i32, limit: usize, lease: Duration) -> Result<Vec<RepairJob>>;
    /// Extends the lease from now. `Stale` if somebody else has it.
    async fn renew_repair(&self, id: Uuid, fence: i64, lease: Duration) -> Result<()>;
    /// Records what a repair did and ends the job (or puts it back, see `again_after`). `Stale` if the fence moved on;
    /// then nothing is recorded. A segment that is no longer live ends the job and hands `added` to deletion.
    async fn finish_repair(&self, id: Uuid, fence: i64, done: &RepairDone) -> Result<()>;
    /// Puts a job back for another try after `delay`, or gives it up (`None`).
    async fn fail_repair(&self, id: Uuid, fence: i64, error: &str, delay: Option<Duration>) -> Result<()>;
    /// Makes at most `limit` of the jobs due that were tried in vain and are to be tried again later; answers how many.
    async fn hurry_repairs(&self, limit: usize) -> Result<usize>;
    /// What there is to repair, and what was lately. Reads no job that ended earlier: it is asked for often.
    async fn repair_queue(&self) -> Result<RepairQueue>;
    /// Drops ended jobs older than this.
    async fn purge_repairs(&self, older: Duration, limit: usize) -> Result<usize>;

    // Nodes.

    /// All nodes as upkeep sees them.
    async fn nodes_upkeep(&self) -> Result<Vec<NodeUpkeep>>;
    /// Asks for a node to be looked through. One that waits already for the same reason begins anew.
    /// Status changes, new incarnations and verdicts ask in their own transaction; this is for the rest.
    async fn queue_scan(&self, node: NodeId, reason: ScanReason) -> Result<()>;
    /// Asks for a node's inventory: a comparison that waits or is in hand goes on as it is.
    async fn queue_inventory(&self, node: NodeId) -> Result<()>;
    /// Claims at most `limit` scans, each with a new fence: of no later class than `up_to`, in the order of their classes and then
    /// of when they could be claimed. One of a node that changed counts as periodic once it was put off, or nodes that make theirs
    /// last would leave the others no turn. A finished scan is not offered again.
    async fn claim_scans(&self, up_to: ScanClass, limit: usize, lease: Duration) -> Result<Vec<NodeScan>>;
    /// Extends a scan's lease from now. `Stale` if the fence moved on.
    async fn renew_scan(&self, scan: &NodeScan, lease: Duration) -> Result<()>;
    /// Remembers how far a scan got, and extends its lease. `Stale` if the fence moved on.
    async fn advance_scan(&self, scan: &NodeScan, after: NodeCursor, lease: Duration) -> Result<()>;
    /// Puts a scan down for a while, to go on where it got to. `Stale` if the fence moved on.
    async fn pause_scan(&self, scan: &NodeScan, pause: Duration) -> Result<()>;
    /// Ends a scan; `again_after` leaves it for another pass (uploads begun before the change may still commit).
    async fn finish_scan(&self, scan: &NodeScan, again_after: Option<Duration>) -> Result<()>;
    /// A node's locations of live and condemned segments after a place, at most `limit`.
    async fn node_locations(
        &self,
        node: NodeId,
        after: Option<NodeCursor>,
        limit: usize,
    ) -> Result<Vec<NodeLocation>>;
    /// Records a compared part of a node's inventory. What the node is told to delete already is no orphan, and of those that were not
    /// seen before no more are remembered than may wait. Idempotent.
    async fn record_inventory(&self, compared: &Reconciled) -> Result<()>;
    /// Notes that the node's whole inventory has been compared, with the number of locations where all were counted.
    async fn finish_inventory(&self, node: NodeId, locations: Option<u64>) -> Result<()>;
    /// Orphans on a node that were first seen at least `grace` ago with this same generation, that no location names and
    /// that no upload begun before they were seen can still commit: handed to deletion. None from a node of which the brake,
    /// over what it is recorded to hold and its due orphans, says that they are too many; none at all where there are stripes
    /// and no locations, or while frozen.
    async fn condemn_orphans(&self, grace: Duration, limit: usize, brake: GcBrake) -> Result<OrphanStep>;
    /// Since when the oldest live upload intent exists.
    async fn oldest_intent(&self) -> Result<Option<Timestamp>>;

    // Garbage.

    /// First phase: candidates that nothing refers to become `condemned`, under their locks; others are dropped from
    /// the candidates. Nothing if halted.
    async fn condemn_segments(
        &self,
        limit: usize,
        brake: GcBrake,
    ) -> Result<std::result::Result<GcStep, GcHalt>>;
    /// Second phase: condemned for at least `grace`, looked at once more under the lock: rows go, chunks are handed to
    /// deletion on their nodes. Of at most `limit` segments, and of no more than have `chunks` chunks on nodes, but of one at least:
    /// others wait for it.
    async fn collect_segments(
        &self,
        grace: Duration,
        limit: usize,
        chunks: u64,
    ) -> Result<std::result::Result<GcStep, GcHalt>>;
    /// Claims deletes whose time has come: no location names (node, chunk), and no upload and no repair that began at or
    /// before the entry is under way. An entry that a location names again is dropped. Nothing while frozen, and nothing on
    /// nodes that are offline, or drain and were not heard for `silence`.
    async fn claim_deletes(
        &self,
        limit: usize,
        lease: Duration,
        silence: Duration,
    ) -> Result<Vec<ChunkDelete>>;
    /// Records what became of claimed deletes.
    async fn finish_deletes(&self, outcomes: &[(i64, DeleteOutcome)]) -> Result<()>;
    /// How much there is, up to [`GcState::COUNTED_MAX`] of each kind: it is asked for often.
    async fn gc_state(&self) -> Result<GcState>;
    /// Stops garbage collection until `thaw_gc`, with a reason for operators.
    async fn freeze_gc(&self, reason: &str) -> Result<()>;
    /// Notes why a brake holds, for operators; `None`: none does.
    async fn note_gc_halt(&self, why: Option<&str>) -> Result<()>;
    /// Lets it go on: what waits at this moment, candidates and orphans, goes after its grace whatever the brakes say, and
    /// counts for none of them. Not where no location at all is known. Answers what had kept it.
    async fn thaw_gc(&self) -> Result<GcThawed>;
    /// Purges ended multipart uploads older than `older`; aborts open ones older than `open_for`, if given.
    async fn purge_multiparts(
        &self,
        older: Duration,
        open_for: Option<Duration>,
        limit: usize,
    ) -> Result<usize>;

    // Audits.

    /// For each of the places `from` in the order of chunk ids: the node's first location of status `stored` in a live segment
    /// there or after it, wrapping around. The same one may come more than once.
    async fn sample_locations(&self, node: NodeId, from: &[ChunkId]) -> Result<Vec<NodeLocation>>;
    /// Locations of status `stored` that were not proven for so long and that no answer is owed for, of live stripes that wait for
    /// repair and tolerate no more than `losses` further losses; in order of segments from `from` on. Looks at no more than `limit`
    /// stripes and answers no more than `limit` locations.
    async fn at_risk(
        &self,
        from: SegmentId,
        losses: i32,
        unproven_for: Duration,
        limit: usize,
    ) -> Result<Vec<(NodeId, NodeLocation)>>;
    /// Keeps events, marks locations proven (`last_verified`), lost or corrupt (repair queued at once), contains the late
    /// ones until `again_after` (what is contained already, only after an `again` event), and ends what an `again` event
    /// answers. Judges each node's new record by `judge`
    /// (pure; the transaction may run again) and stores it together with its verdict on quarantine. A node that is held back from
    /// now on is to be looked through (`Draining`).
    async fn record_audits(
        &self,
        events: &[AuditEvent],
        again_after: Duration,
        judge: &Judge<'_>,
    ) -> Result<()>;
    /// Lets a node that is held back take new chunks again if nothing of what it holds is believed in and it was not audited for
    /// `quiet`: it has nothing left to prove itself by. Its record stays, and its vetting begins anew. Whether it did.
    async fn forgive_empty(&self, node: NodeId, quiet: Duration) -> Result<bool>;
    /// Lets a node that is held back take new chunks again because an administrator says so. Its record begins anew, and so does its
    /// vetting; what failed and was proven goes on being counted. Whether it was held back.
    async fn forgive(&self, node: NodeId) -> Result<bool>;
    /// Contained audits whose time has come, claimed for `lease`: what was late, and what a reader was sent wrong.
    async fn claim_contained(&self, limit: usize, lease: Duration) -> Result<Vec<Contained>>;
    /// The latest events, newest first; of one node if given.
    async fn audit_events(&self, node: Option<NodeId>, limit: usize) -> Result<Vec<AuditEvent>>;
    /// Drops events older than this; records stay.
    async fn purge_audits(&self, older: Duration, limit: usize) -> Result<usize>;

    // Lost locations, rebuilt from what nodes hold.

    /// What workers have in hand now.
    async fn work_in_hand(&self) -> Result<WorkInHand>;
    /// What is known of chunks that a node says it holds; one answer for each, in order.
    async fn known_places(&self, node: NodeId, held: &[HeldChunk]) -> Result<Vec<KnownPlace>>;
    /// Every place of these chunks, with its length, in any order. May read all chunk rows there are: not for requests.
    async fn places_of_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<(NodeCursor, ByteCount)>>;
    /// Records that nodes hold chunks in these places: those that are [`KnownPlace::Unrecorded`] get a location of
    /// status `stored`; others, and unknown nodes, are left alone. Idempotent. Answers how many locations changed.
    async fn record_held(&self, held: &[(NodeCursor, NewLocation)]) -> Result<usize>;
}

/// Judges a node anew: `(record before, this event) -> (record after, whether it is quarantined now: None leaves it)`.
pub type Judge<'a> = dyn Fn(&AuditRecord, &AuditEvent) -> (AuditRecord, Option<bool>) + Send + Sync + 'a;
