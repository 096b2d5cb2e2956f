//! Background work: [`Upkeep`], handed on to the files of what it is about: `stripes`, `repairs`, `scans`, `deletes`,
//! `garbage`, `audits`, `held`.

use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::{ByteCount, ChunkId, FileId, NodeId, SegmentId, Timestamp};
use uuid::Uuid;

use super::PostgresStore;
use crate::Result;
use crate::model::NewLocation;
use crate::upkeep::model::*;
use crate::upkeep::{Judge, Upkeep};

#[async_trait]
impl Upkeep for PostgresStore {
    async fn stripe_states(&self, stripes: &[StripeRef]) -> Result<Vec<StripeState>> {
        self.states(stripes).await
    }

    async fn sweep_stripes(&self, after: Option<StripeRef>, limit: usize) -> Result<Vec<StripeState>> {
        self.sweep(after, limit).await
    }

    async fn list_stripes(&self, after: Option<StripeRef>, limit: usize) -> Result<Vec<StripeRef>> {
        self.stripes_after(after, limit).await
    }

    async fn object_stripes(&self, file: FileId, limit: usize) -> Result<Option<ObjectStripes>> {
        self.stripes_of(file, limit).await
    }

    async fn queue_repairs(&self, repairs: &[NewRepair]) -> Result<usize> {
        self.queue(repairs).await
    }

    async fn claim_repairs(&self, up_to: i32, limit: usize, lease: Duration) -> Result<Vec<RepairJob>> {
        self.claim_jobs(up_to, limit, lease).await
    }

    async fn renew_repair(&self, id: Uuid, fence: i64, lease: Duration) -> Result<()> {
        self.renew_job(id, fence, lease).await
    }

    async fn finish_repair(&self, id: Uuid, fence: i64, done: &RepairDone) -> Result<()> {
        self.finish_job(id, fence, done).await
    }

    async fn fail_repair(&self, id: Uuid, fence: i64, error: &str, delay: Option<Duration>) -> Result<()> {
        self.fail_job(id, fence, error, delay).await
    }

    async fn hurry_repairs(&self, limit: usize) -> Result<usize> {
        self.hurry_jobs(limit).await
    }

    async fn repair_queue(&self) -> Result<RepairQueue> {
        self.jobs().await
    }

    async fn purge_repairs(&self, older: Duration, limit: usize) -> Result<usize> {
        self.purge_jobs(older, limit).await
    }

    async fn nodes_upkeep(&self) -> Result<Vec<NodeUpkeep>> {
        self.node_states().await
    }

    async fn queue_scan(&self, node: NodeId, reason: ScanReason) -> Result<()> {
        self.ask_for_scan(node, reason).await
    }

    async fn queue_inventory(&self, node: NodeId) -> Result<()> {
        self.ask_for_inventory(node).await
    }

    async fn claim_scans(&self, up_to: ScanClass, limit: usize, lease: Duration) -> Result<Vec<NodeScan>> {
        self.take_scans(up_to, limit, lease).await
    }

    async fn renew_scan(&self, scan: &NodeScan, lease: Duration) -> Result<()> {
        self.keep_scan(scan, lease).await
    }

    async fn advance_scan(&self, scan: &NodeScan, after: NodeCursor, lease: Duration) -> Result<()> {
        self.move_scan(scan, after, lease).await
    }

    async fn pause_scan(&self, scan: &NodeScan, pause: Duration) -> Result<()> {
        self.put_scan_down(scan, pause).await
    }

    async fn finish_scan(&self, scan: &NodeScan, again_after: Option<Duration>) -> Result<()> {
        self.end_scan(scan, again_after).await
    }

    async fn node_locations(
        &self,
        node: NodeId,
        after: Option<NodeCursor>,
        limit: usize,
    ) -> Result<Vec<NodeLocation>> {
        self.locations_of(node, after, limit).await
    }

    async fn record_inventory(&self, compared: &Reconciled) -> Result<()> {
        self.keep_inventory(compared).await
    }

    async fn finish_inventory(&self, node: NodeId, locations: Option<u64>) -> Result<()> {
        self.end_inventory(node, locations).await
    }

    async fn condemn_orphans(&self, grace: Duration, limit: usize, brake: GcBrake) -> Result<OrphanStep> {
        self.hand_over_orphans(grace, limit, brake).await
    }

    async fn oldest_intent(&self) -> Result<Option<Timestamp>> {
        self.first_intent().await
    }

    async fn condemn_segments(
        &self,
        limit: usize,
        brake: GcBrake,
    ) -> Result<std::result::Result<GcStep, GcHalt>> {
        self.condemn(limit, brake).await
    }

    async fn collect_segments(
        &self,
        grace: Duration,
        limit: usize,
        chunks: u64,
    ) -> Result<std::result::Result<GcStep, GcHalt>> {
        self.collect(grace, limit, chunks).await
    }

    async fn claim_deletes(
        &self,
        limit: usize,
        lease: Duration,
        silence: Duration,
    ) -> Result<Vec<ChunkDelete>> {
        self.take_deletes(limit, lease, silence).await
    }

    async fn finish_deletes(&self, outcomes: &[(i64, DeleteOutcome)]) -> Result<()> {
        self.settle_deletes(outcomes).await
    }

    async fn gc_state(&self) -> Result<GcState> {
        self.garbage().await
    }

    async fn freeze_gc(&self, reason: &str) -> Result<()> {
        self.freeze(reason).await
    }

    async fn note_gc_halt(&self, why: Option<&str>) -> Result<()> {
        self.note_halt(why).await
    }

    async fn thaw_gc(&self) -> Result<GcThawed> {
        self.thaw().await
    }

    async fn purge_multiparts(
        &self,
        older: Duration,
        open_for: Option<Duration>,
        limit: usize,
    ) -> Result<usize> {
        self.purge_uploads(older, open_for, limit).await
    }

    async fn sample_locations(&self, node: NodeId, from: &[ChunkId]) -> Result<Vec<NodeLocation>> {
        self.sample(node, from).await
    }

    async fn at_risk(
        &self,
        from: SegmentId,
        losses: i32,
        unproven_for: Duration,
        limit: usize,
    ) -> Result<Vec<(NodeId, NodeLocation)>> {
        self.unproven_at_risk(from, losses, unproven_for, limit).await
    }

    async fn forgive_empty(&self, node: NodeId, quiet: Duration) -> Result<bool> {
        self.pardon_empty(node, quiet).await
    }

    async fn forgive(&self, node: NodeId) -> Result<bool> {
        self.pardon(node).await
    }

    async fn record_audits(
        &self,
        events: &[AuditEvent],
        again_after: Duration,
        judge: &Judge<'_>,
    ) -> Result<()> {
        self.keep_audits(events, again_after, judge).await
    }

    async fn claim_contained(&self, limit: usize, lease: Duration) -> Result<Vec<Contained>> {
        self.take_contained(limit, lease).await
    }

    async fn audit_events(&self, node: Option<NodeId>, limit: usize) -> Result<Vec<AuditEvent>> {
        self.latest_audits(node, limit).await
    }

    async fn purge_audits(&self, older: Duration, limit: usize) -> Result<usize> {
        self.drop_audits(older, limit).await
    }

    async fn work_in_hand(&self) -> Result<WorkInHand> {
        self.in_hand().await
    }

    async fn known_places(&self, node: NodeId, held: &[HeldChunk]) -> Result<Vec<KnownPlace>> {
        self.known(node, held).await
    }

    async fn places_of_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<(NodeCursor, ByteCount)>> {
        self.places(chunks).await
    }

    async fn record_held(&self, held: &[(NodeCursor, NewLocation)]) -> Result<usize> {
        self.keep_held(held).await
    }
}
