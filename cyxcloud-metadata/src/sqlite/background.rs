//! Background work: carries the calls of [`Upkeep`] to the writer and the readers.
//!
//! Each is one piece of work; the one writer makes it alone with what it reads and changes. Not here: what the methods
//! promise (`Upkeep`, `conformance`), and how they keep it (`stripes`, `repairs`, `scans`, `inventory`, `garbage`,
//! `deletes`, `audits`, `held`).

use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::{ByteCount, ChunkId, FileId, NodeId, SegmentId, Timestamp};
use rusqlite::Connection;
use uuid::Uuid;

use super::SqliteStore;
use super::{audits, deletes, garbage, held, inventory, multipart, nodes, repairs, scans, stripes};
use crate::Result;
use crate::model::NewLocation;
use crate::upkeep::model::*;
use crate::upkeep::{Judge, Upkeep};

#[async_trait]
impl Upkeep for SqliteStore {
    async fn stripe_states(&self, stripes: &[StripeRef]) -> Result<Vec<StripeState>> {
        let stripes = stripes.to_vec();
        self.engine.read("read the state of stripes", move |db| stripes::states(db, stripes)).await
    }

    async fn sweep_stripes(&self, after: Option<StripeRef>, limit: usize) -> Result<Vec<StripeState>> {
        self.engine.read("sweep stripes", move |db| stripes::sweep(db, after, limit)).await
    }

    async fn list_stripes(&self, after: Option<StripeRef>, limit: usize) -> Result<Vec<StripeRef>> {
        self.engine.read("list stripes", move |db| stripes::list(db, after, limit)).await
    }

    async fn object_stripes(&self, file: FileId, limit: usize) -> Result<Option<ObjectStripes>> {
        self.engine.read("read the stripes of an object", move |db| stripes::of_object(db, file, limit)).await
    }

    async fn queue_repairs(&self, repairs: &[NewRepair]) -> Result<usize> {
        let repairs = repairs.to_vec();
        self.engine.write("queue repairs", move |db| repairs::queue_all(db, &repairs)).await
    }

    async fn claim_repairs(&self, up_to: i32, limit: usize, lease: Duration) -> Result<Vec<RepairJob>> {
        self.engine.write("claim repairs", move |db| repairs::claim(db, up_to, limit, lease)).await
    }

    async fn renew_repair(&self, id: Uuid, fence: i64, lease: Duration) -> Result<()> {
        self.engine.write("renew the claim of a repair", move |db| repairs::renew(db, id, fence, lease)).await
    }

    async fn finish_repair(&self, id: Uuid, fence: i64, done: &RepairDone) -> Result<()> {
        let done = done.clone();
        self.engine.write("record a repair", move |db| repairs::finish(db, id, fence, &done)).await
    }

    async fn fail_repair(&self, id: Uuid, fence: i64, error: &str, delay: Option<Duration>) -> Result<()> {
        let error = error.to_owned();
        self.engine
            .write("record a failed repair", move |db| repairs::fail(db, id, fence, &error, delay))
            .await
    }

    async fn hurry_repairs(&self, limit: usize) -> Result<usize> {
        self.engine.write("hurry repairs", move |db| repairs::hurry(db, limit)).await
    }

    async fn repair_queue(&self) -> Result<RepairQueue> {
        self.engine.read("count repairs", repairs::counts).await
    }

    async fn purge_repairs(&self, older: Duration, limit: usize) -> Result<usize> {
        self.engine.write("drop ended repairs", move |db| repairs::purge(db, older, limit)).await
    }

    async fn nodes_upkeep(&self) -> Result<Vec<NodeUpkeep>> {
        self.engine.read("read nodes for their upkeep", nodes::upkeep).await
    }

    async fn queue_scan(&self, node: NodeId, reason: ScanReason) -> Result<()> {
        self.engine.write("ask for a scan", move |db| scans::queue(db, node, reason)).await
    }

    async fn queue_inventory(&self, node: NodeId) -> Result<()> {
        self.engine.write("ask for an inventory", move |db| scans::queue_inventory(db, node)).await
    }

    async fn claim_scans(&self, up_to: ScanClass, limit: usize, lease: Duration) -> Result<Vec<NodeScan>> {
        self.engine.write("claim scans", move |db| scans::claim(db, up_to, limit, lease)).await
    }

    async fn renew_scan(&self, scan: &NodeScan, lease: Duration) -> Result<()> {
        let scan = scan.clone();
        self.engine.write("renew the claim of a scan", move |db| scans::renew(db, &scan, lease)).await
    }

    async fn advance_scan(&self, scan: &NodeScan, after: NodeCursor, lease: Duration) -> Result<()> {
        let scan = scan.clone();
        self.engine.write("advance a scan", move |db| scans::advance(db, &scan, after, lease)).await
    }

    async fn pause_scan(&self, scan: &NodeScan, pause: Duration) -> Result<()> {
        let scan = scan.clone();
        self.engine.write("put a scan down", move |db| scans::pause(db, &scan, pause)).await
    }

    async fn finish_scan(&self, scan: &NodeScan, again_after: Option<Duration>) -> Result<()> {
        let scan = scan.clone();
        self.engine.write("finish a scan", move |db| scans::finish(db, &scan, again_after)).await
    }

    async fn node_locations(
        &self,
        node: NodeId,
        after: Option<NodeCursor>,
        limit: usize,
    ) -> Result<Vec<NodeLocation>> {
        self.engine
            .read("read what a node holds", move |db| inventory::locations(db, node, after, limit))
            .await
    }

    async fn record_inventory(&self, compared: &Reconciled) -> Result<()> {
        let compared = compared.clone();
        self.engine.write("record an inventory", move |db| inventory::record(db, &compared)).await
    }

    async fn finish_inventory(&self, node: NodeId, locations: Option<u64>) -> Result<()> {
        self.engine.write("finish an inventory", move |db| inventory::finish(db, node, locations)).await
    }

    async fn condemn_orphans(&self, grace: Duration, limit: usize, brake: GcBrake) -> Result<OrphanStep> {
        let condemn = move |db: &Connection| inventory::condemn_orphans(db, grace, limit, brake);
        self.engine.write("condemn orphans", condemn).await
    }

    async fn oldest_intent(&self) -> Result<Option<Timestamp>> {
        self.engine.read("find the oldest upload", deletes::oldest_intent).await
    }

    async fn condemn_segments(
        &self,
        limit: usize,
        brake: GcBrake,
    ) -> Result<std::result::Result<GcStep, GcHalt>> {
        self.engine.write("condemn segments", move |db| garbage::condemn(db, limit, brake)).await
    }

    async fn collect_segments(
        &self,
        grace: Duration,
        limit: usize,
        chunks: u64,
    ) -> Result<std::result::Result<GcStep, GcHalt>> {
        self.engine.write("collect segments", move |db| garbage::collect(db, grace, limit, chunks)).await
    }

    async fn claim_deletes(
        &self,
        limit: usize,
        lease: Duration,
        silence: Duration,
    ) -> Result<Vec<ChunkDelete>> {
        self.engine.write("claim deletes", move |db| deletes::claim(db, limit, lease, silence)).await
    }

    async fn finish_deletes(&self, outcomes: &[(i64, DeleteOutcome)]) -> Result<()> {
        let outcomes = outcomes.to_vec();
        self.engine.write("record deletes", move |db| deletes::finish(db, &outcomes)).await
    }

    async fn gc_state(&self) -> Result<GcState> {
        let state = |db: &Connection| garbage::state(db, GcState::COUNTED_MAX);
        self.engine.read("read the state of garbage collection", state).await
    }

    async fn freeze_gc(&self, reason: &str) -> Result<()> {
        let reason = reason.to_owned();
        self.engine.write("freeze garbage collection", move |db| garbage::freeze(db, &reason)).await
    }

    async fn note_gc_halt(&self, why: Option<&str>) -> Result<()> {
        let why = why.map(str::to_owned);
        self.engine.write("note why a brake holds", move |db| garbage::note_halt(db, why.as_deref())).await
    }

    async fn thaw_gc(&self) -> Result<GcThawed> {
        self.engine.write("thaw garbage collection", garbage::thaw).await
    }

    async fn purge_multiparts(
        &self,
        older: Duration,
        open_for: Option<Duration>,
        limit: usize,
    ) -> Result<usize> {
        self.engine
            .write("purge multipart uploads", move |db| multipart::purge(db, older, open_for, limit))
            .await
    }

    async fn sample_locations(&self, node: NodeId, from: &[ChunkId]) -> Result<Vec<NodeLocation>> {
        let from = from.to_vec();
        self.engine.read("pick what to audit", move |db| inventory::samples(db, node, &from)).await
    }

    async fn at_risk(
        &self,
        from: SegmentId,
        losses: i32,
        unproven_for: Duration,
        limit: usize,
    ) -> Result<Vec<(NodeId, NodeLocation)>> {
        const DOING: &str = "look for locations at risk";
        self.engine.read(DOING, move |db| inventory::at_risk(db, from, losses, unproven_for, limit)).await
    }

    async fn forgive_empty(&self, node: NodeId, quiet: Duration) -> Result<bool> {
        const DOING: &str = "let a node take new chunks again";
        self.engine.write(DOING, move |db| audits::forgive_empty(db, node, quiet)).await
    }

    async fn forgive(&self, node: NodeId) -> Result<bool> {
        self.engine.write("take a node back", move |db| audits::forgive(db, node)).await
    }

    async fn record_audits(
        &self,
        events: &[AuditEvent],
        again_after: Duration,
        judge: &Judge<'_>,
    ) -> Result<()> {
        const DOING: &str = "record audits";
        loop {
            let about = events.to_vec();
            let seen = self.engine.read(DOING, move |db| audits::records(db, &about)).await?;
            let verdicts = audits::judge(&seen, events, judge);
            let events = events.to_vec();
            let record = move |db: &Connection| audits::record(db, &events, again_after, &seen, &verdicts);
            // Records that changed in between are judged again.
            if self.engine.write(DOING, record).await? {
                return Ok(());
            }
        }
    }

    async fn claim_contained(&self, limit: usize, lease: Duration) -> Result<Vec<Contained>> {
        self.engine.write("claim contained audits", move |db| audits::claim_contained(db, limit, lease)).await
    }

    async fn audit_events(&self, node: Option<NodeId>, limit: usize) -> Result<Vec<AuditEvent>> {
        self.engine.read("read audits", move |db| audits::events(db, node, limit)).await
    }

    async fn purge_audits(&self, older: Duration, limit: usize) -> Result<usize> {
        self.engine.write("drop old audits", move |db| audits::purge(db, older, limit)).await
    }

    async fn work_in_hand(&self) -> Result<WorkInHand> {
        self.engine.read("look at the work in hand", held::in_hand).await
    }

    async fn known_places(&self, node: NodeId, held: &[HeldChunk]) -> Result<Vec<KnownPlace>> {
        let held = held.to_vec();
        self.engine.read("look up places of chunks", move |db| held::known(db, node, &held)).await
    }

    async fn places_of_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<(NodeCursor, ByteCount)>> {
        let chunks = chunks.to_vec();
        self.engine.read("look for places of chunks", move |db| held::places(db, &chunks)).await
    }

    async fn record_held(&self, held: &[(NodeCursor, NewLocation)]) -> Result<usize> {
        let held = held.to_vec();
        self.engine.write("record what nodes hold", move |db| held::record(db, &held)).await
    }
}
