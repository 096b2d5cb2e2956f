//! Audits: what is kept of them, what they say of locations and nodes, who still owes an answer. And what is purged.

use std::time::Duration;

use cyxcloud_core::node::NodeStatus::{Draining, Online};
use cyxcloud_core::{ByteCount, ChunkId, NodeId, ShardIndex, Timestamp};
use uuid::Uuid;

use super::nodes::node;
use super::stripes::{LONG, at, coded, condemn, state, stored, tick, until};
use super::{Place, new_node, online_nodes, place};
use crate::model::{
    BadLocation, CommitPart, Content, Fault, NewSegment, NodeStep, Part, RegisterNode, SegmentBody,
};
use crate::upkeep::model::{
    AuditEvent, AuditOutcome, AuditRecord, Contained, LocationStatus, NodeCursor, NodeLocation, NodeUpkeep,
    ScanClass, ScanReason,
};
use crate::{Error, MetadataStore};

/// Where the segment's stripe has a shard: on the node of the same number.
pub(super) fn cursor(segment: &NewSegment, stripe: u32, shard: usize) -> NodeCursor {
    let SegmentBody::Stripes(stripes) = &segment.body else { panic!("made of stripes") };
    let shard = &stripes[stripe as usize].shards[shard];
    NodeCursor { chunk: shard.chunk, stripe: at(segment, stripe), shard: shard.index }
}

pub(super) fn event(node: NodeId, at: NodeCursor, outcome: AuditOutcome) -> AuditEvent {
    AuditEvent {
        round: Uuid::from_u128(7),
        node,
        at,
        slice: 16..64,
        outcome,
        again: false,
        when: Timestamp::default(),
    }
}

fn again(node: NodeId, at: NodeCursor, outcome: AuditOutcome) -> AuditEvent {
    AuditEvent { again: true, ..event(node, at, outcome) }
}

/// Of a judge who leaves all as it is.
async fn record(store: &dyn MetadataStore, events: &[AuditEvent], again_after: Duration) {
    store.record_audits(events, again_after, &|record, _| (*record, None)).await.expect("record audits");
}

async fn events(store: &dyn MetadataStore, node: Option<NodeId>) -> Vec<AuditEvent> {
    let mut events = store.audit_events(node, 100).await.expect("read audits");
    assert!(events.is_sorted_by(|newer, older| newer.when >= older.when));
    for event in &mut events {
        assert!(event.when > Timestamp::default());
        event.when = Timestamp::default();
    }
    events
}

async fn upkeep(store: &dyn MetadataStore, node: NodeId) -> NodeUpkeep {
    let nodes = store.nodes_upkeep().await.expect("read the nodes");
    nodes.into_iter().find(|upkeep| upkeep.node == node).expect("known")
}

/// A proof says when; what is lost or wrong is not read again and waits for its repair.
pub async fn an_audit_is_kept_and_marks_its_location(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    let outcomes = [AuditOutcome::Proven, AuditOutcome::Lost, AuditOutcome::Wrong];
    let before = store.now().await.expect("now");
    let mut want = Vec::new();
    for (shard, outcome) in outcomes.into_iter().enumerate() {
        want.insert(0, event(nodes[shard], cursor(&segment, 1, shard), outcome));
        record(store, &want[..1], LONG).await;
        tick(store).await;
    }
    assert_eq!(events(store, None).await, want);
    assert_eq!(events(store, Some(nodes[1])).await, want[1..2]);
    assert!(events(store, Some(nodes[3])).await.is_empty());
    assert_eq!(store.audit_events(None, 2).await.expect("read").len(), 2);
    let locations = state(store, at(&segment, 1)).await.expect("live").locations;
    let statuses: Vec<LocationStatus> = locations.iter().map(|at| at.status).collect();
    use LocationStatus::{Corrupt, Missing, Stored};
    assert_eq!(statuses, [Stored, Missing, Corrupt, Stored, Stored]);
    assert!(locations[0].proven_at.is_some_and(|proven| proven >= before));
    let queue = store.repair_queue().await.expect("look");
    assert_eq!((queue.due, queue.pending.into_iter().collect::<Vec<_>>()), (1, vec![(0, 1)]));
    let job = until("its repair can be claimed", async || {
        store.claim_repairs(i32::MAX, 1, LONG).await.expect("claim").pop()
    })
    .await;
    assert_eq!(job.stripe, at(&segment, 1));
}

/// Not before its time, by one who asks, with the number of times that it was late; until it is answered.
pub async fn a_late_answer_is_asked_for_again(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    let (node, at) = (nodes[3], cursor(&segment, 1, 3));
    let claim = async |lease| store.claim_contained(10, lease).await.expect("claim");
    let claimed = async |lease| until("it can be claimed", async || claim(lease).await.pop()).await;
    record(store, &[event(node, at, AuditOutcome::Late)], LONG).await;
    tick(store).await;
    assert!(claim(LONG).await.is_empty());
    record(store, &[again(node, at, AuditOutcome::Late)], Duration::ZERO).await;
    let want = Contained { node, at, size: ByteCount::bytes(65), slice: 16..64, attempts: 2 };
    assert_eq!(claimed(Duration::ZERO).await, want);
    assert_eq!(claimed(LONG).await, want, "the lease ran out");
    assert!(claim(LONG).await.is_empty());
    assert_eq!(state(store, at.stripe).await.expect("live").locations[3].status, LocationStatus::Stored);
    record(store, &[again(node, at, AuditOutcome::Late)], Duration::ZERO).await;
    let third = claimed(Duration::ZERO).await;
    assert_eq!(third.attempts, 3);
    // Another slice of the same chunk that is late puts nothing off.
    let other = AuditEvent { slice: 0..16, ..event(node, at, AuditOutcome::Late) };
    record(store, &[other], LONG).await;
    assert_eq!(claimed(Duration::ZERO).await, third);
    // Neither says that the answer came.
    record(store, &[again(node, at, AuditOutcome::Unreachable)], LONG).await;
    record(store, &[event(node, at, AuditOutcome::Proven)], LONG).await;
    assert_eq!(claimed(Duration::ZERO).await, third);
    record(store, &[again(node, at, AuditOutcome::Proven)], LONG).await;
    tick(store).await;
    assert!(claim(LONG).await.is_empty());
    record(store, &[event(node, at, AuditOutcome::Late)], Duration::ZERO).await;
    assert_eq!(claimed(Duration::ZERO).await.attempts, 1);
    record(store, &[again(node, at, AuditOutcome::Wrong)], Duration::ZERO).await;
    tick(store).await;
    assert!(claim(LONG).await.is_empty());
    assert_eq!(state(store, at.stripe).await.expect("live").locations[3].status, LocationStatus::Corrupt);
}

/// For the whole chunk, once for each location that was not known to be bad; and not who says that it rotted. What was asked for
/// already is asked for now.
pub async fn who_sent_other_bytes_is_asked_at_once(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    let bad = |shard: usize, fault| BadLocation {
        segment: segment.id,
        stripe: 1,
        shard: coded().shard(shard).expect("exists"),
        node: nodes[shard],
        fault,
    };
    let (node, at) = (nodes[4], cursor(&segment, 1, 4));
    record(store, &[event(node, at, AuditOutcome::Late)], LONG).await;
    let reported =
        [bad(0, Fault::Missing), bad(1, Fault::Corrupt), bad(2, Fault::Rotten), bad(4, Fault::Corrupt)];
    store.report_bad_locations(&reported).await.expect("report");
    let locations = state(store, at.stripe).await.expect("live").locations;
    use LocationStatus::{Corrupt, Missing, Stored};
    let statuses: Vec<LocationStatus> = locations.iter().map(|at| at.status).collect();
    assert_eq!(statuses, [Missing, Corrupt, Corrupt, Stored, Corrupt]);
    tick(store).await;
    let mut claimed = store.claim_contained(10, LONG).await.expect("claim");
    claimed.sort_by_key(|contained| contained.at.shard);
    let whole = |shard: usize| Contained {
        node: nodes[shard],
        at: cursor(&segment, 1, shard),
        size: ByteCount::bytes(65),
        slice: 0..65,
        attempts: 1,
    };
    assert_eq!(claimed, [whole(0), whole(1), whole(4)]);
    let answers =
        [again(nodes[1], cursor(&segment, 1, 1), AuditOutcome::Wrong), again(node, at, AuditOutcome::Proven)];
    store.record_audits(&answers, LONG, &judge).await.expect("record audits");
    let after = upkeep(store, nodes[1]).await;
    assert_eq!((after.quarantined, after.audits.failed), (true, 1));
    assert_eq!(
        (upkeep(store, node).await.audits.proven, state(store, at.stripe).await.expect("live").locations),
        (1, locations)
    );
    store.report_bad_locations(&reported).await.expect("report again");
    tick(store).await;
    assert_eq!(store.claim_contained(10, LONG).await.expect("claim"), []);
}

/// For the whole of it, and for no other while that answer is owed soon or it is held back: one that lost a disk is not to fail a
/// hundred audits at once. For none while collection is frozen, nor of what it stored in a former life.
pub async fn who_denies_chunks_is_asked_for_one(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 6, &nodes).await;
    let denied = async |stripes: std::ops::Range<u32>, shard: usize, fault| {
        let bad = |stripe| BadLocation {
            segment: segment.id,
            stripe,
            shard: coded().shard(shard).expect("exists"),
            node: nodes[shard],
            fault,
        };
        store.report_bad_locations(&stripes.map(bad).collect::<Vec<_>>()).await.expect("report");
        tick(store).await;
        store.claim_contained(10, Duration::from_secs(240)).await.expect("claim")
    };
    let owed = denied(0..3, 0, Fault::Missing).await;
    let asked: Vec<_> = owed.iter().map(|owed| (owed.node, owed.slice.clone(), owed.attempts)).collect();
    assert_eq!(asked, [(nodes[0], 0..owed[0].size.get(), 1)]);
    assert_eq!(denied(3..4, 0, Fault::Missing).await, [], "an answer is owed");
    assert_eq!(denied(4..5, 0, Fault::Corrupt).await.len(), 1, "a lie is another matter");
    // What it owes in hours excuses nobody now.
    record(store, &[event(nodes[1], cursor(&segment, 0, 1), AuditOutcome::Late)], LONG).await;
    assert_eq!(denied(1..3, 1, Fault::Missing).await.len(), 1);
    store.freeze_gc("restored from a backup").await.expect("freeze");
    assert_eq!(denied(0..3, 2, Fault::Missing).await, [], "it may rightly be gone");
    store.thaw_gc().await.expect("thaw");
    let owed = denied(3..4, 2, Fault::Missing).await;
    assert_eq!(owed.len(), 1);
    let failed = [again(nodes[2], owed[0].at, AuditOutcome::Lost)];
    store.record_audits(&failed, LONG, &judge).await.expect("record audits");
    assert!(upkeep(store, nodes[2]).await.quarantined);
    assert_eq!(denied(4..6, 2, Fault::Missing).await, [], "it is held back");
    let known = node(store, nodes[3]).await.expect("is there");
    let (id, public_key, peer_id, incarnation) = (known.id, known.public_key, known.peer_id, Uuid::new_v4());
    let anew = RegisterNode { id, public_key, peer_id, incarnation, ..new_node() };
    store.register_node(&anew).await.expect("register again");
    assert_eq!(denied(0..3, 3, Fault::Missing).await, [], "its former life stored that");
}

/// Such that the order of events shows.
fn judge(before: &AuditRecord, event: &AuditEvent) -> (AuditRecord, Option<bool>) {
    match event.outcome {
        AuditOutcome::Proven => {
            let (alpha, proven) = (before.alpha * 2.0 + 1.0, before.proven + 1);
            (AuditRecord { alpha, proven, ..*before }, Some(false))
        }
        AuditOutcome::Lost | AuditOutcome::Wrong => {
            let (beta, failed) = (before.beta + 0.25, before.failed + 1);
            (AuditRecord { beta, failed, ..*before }, Some(true))
        }
        AuditOutcome::Late => (*before, None),
        AuditOutcome::Unreachable => panic!("it says nothing"),
    }
}

/// One event after the other; whether the node is held back from new data follows the verdict.
pub async fn a_node_is_judged_by_its_audits(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 4, &nodes).await;
    let at = |node: usize, stripe: u32, outcome| event(nodes[node], cursor(&segment, stripe, node), outcome);
    let rounds = async |events: &[AuditEvent]| {
        store.record_audits(events, LONG, &judge).await.expect("record audits");
    };
    let known = async |node: usize| {
        let upkeep = upkeep(store, nodes[node]).await;
        let listed = store.nodes().await.expect("list nodes");
        assert!(listed.iter().any(|at| at.id == upkeep.node && at.quarantined == upkeep.quarantined));
        let AuditRecord { alpha, beta, proven, failed, last_audit, .. } = upkeep.audits;
        (alpha, beta, proven, failed, upkeep.quarantined, last_audit.is_some())
    };
    assert_eq!(known(0).await, (0.0, 0.0, 0, 0, false, false));
    let heard = store.nodes().await.expect("list nodes").into_iter().find(|node| node.id == nodes[0]);
    assert_eq!(heard.map(|node| node.last_heartbeat), Some(upkeep(store, nodes[0]).await.last_heartbeat));
    let before = store.now().await.expect("now");
    rounds(&[
        at(0, 0, AuditOutcome::Proven),
        at(1, 0, AuditOutcome::Lost),
        at(0, 1, AuditOutcome::Proven),
        at(0, 2, AuditOutcome::Unreachable),
        at(2, 0, AuditOutcome::Unreachable),
        at(1, 1, AuditOutcome::Late),
    ])
    .await;
    assert_eq!(known(0).await, (3.0, 0.0, 2, 0, false, true));
    assert_eq!(known(1).await, (0.0, 0.25, 0, 1, true, true));
    assert_eq!(known(2).await, (0.0, 0.0, 0, 0, false, false));
    assert!(upkeep(store, nodes[0]).await.audits.last_audit.is_some_and(|last| last >= before));
    rounds(&[at(1, 2, AuditOutcome::Wrong), at(1, 3, AuditOutcome::Proven)]).await;
    assert_eq!(known(1).await, (1.0, 0.5, 1, 2, false, true));
    rounds(&[at(1, 3, AuditOutcome::Proven), at(1, 3, AuditOutcome::Lost)]).await;
    rounds(&[at(1, 3, AuditOutcome::Late)]).await;
    assert_eq!(known(1).await, (3.0, 0.75, 2, 3, true, true));
    // Of many who judge at once, each counts.
    let many = [at(4, 0, AuditOutcome::Proven)];
    futures::future::join_all((0..6).map(|_| rounds(&many))).await;
    assert_eq!(known(4).await, (63.0, 0.0, 6, 0, false, true));
    rounds(&[]).await;
}

/// A proof, after which the node is vetted.
async fn vet(store: &dyn MetadataStore, node: NodeId, at: NodeCursor) {
    let vetted = |before: &AuditRecord, event: &AuditEvent| {
        let (record, quarantined) = judge(before, event);
        (AuditRecord { vetted: true, ..record }, quarantined)
    };
    let proven = event(node, at, AuditOutcome::Proven);
    store.record_audits(&[proven], LONG, &vetted).await.expect("record audits");
    assert!(upkeep(store, node).await.audits.vetted);
}

/// Whether a node that was let back counts as new. Nothing else changed in its record, which was as `before`, but its weights.
async fn is_new_again(store: &dyn MetadataStore, node: NodeId, before: &AuditRecord) -> bool {
    let AuditRecord { alpha, beta, proven_before, vetting_since, vetted, .. } =
        upkeep(store, node).await.audits;
    let after = AuditRecord { alpha, beta, proven_before, vetting_since, vetted, ..*before };
    assert_eq!(upkeep(store, node).await.audits, after);
    let listed = store.nodes().await.expect("list nodes");
    assert!(listed.iter().any(|at| at.id == node && at.vetted == vetted));
    !vetted && vetting_since > before.vetting_since && proven_before == before.proven
}

/// Not at once, and not while it holds what it can be asked for; and like one that is new, for that is what it has to show.
pub async fn who_has_nothing_left_to_prove_is_let_back(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 6).await;
    let segment = stored(store, place, "k", 1, &nodes[..5]).await;
    let failed = |node: usize| event(nodes[node], cursor(&segment, 0, 1), AuditOutcome::Lost);
    let forgive = async |node: usize, quiet| store.forgive_empty(nodes[node], quiet).await.expect("asked");
    let held_back = async |node: usize| upkeep(store, nodes[node]).await.quarantined;
    vet(store, nodes[5], cursor(&segment, 0, 1)).await;
    tick(store).await;
    assert!(!forgive(5, Duration::ZERO).await, "was never held back");
    store.record_audits(&[failed(5), failed(2)], LONG, &judge).await.expect("record audits");
    assert!(held_back(5).await && held_back(2).await);
    assert!(!forgive(5, LONG).await, "too early");
    assert!(!forgive(2, Duration::ZERO).await, "has what to prove itself by");
    assert!(held_back(5).await && held_back(2).await);
    let before = upkeep(store, nodes[5]).await.audits;
    assert!(before.vetted && (before.proven, before.proven_before) == (1, 0));
    assert!(forgive(5, Duration::ZERO).await);
    assert!(!held_back(5).await && held_back(2).await);
    assert!(!forgive(5, Duration::ZERO).await, "is back already");
    assert!(is_new_again(store, nodes[5], &before).await);
    let after = upkeep(store, nodes[5]).await.audits;
    assert_eq!((after.alpha, after.beta), (before.alpha, before.beta), "what it failed is not forgotten");
}

/// With a record that begins anew, whatever it holds, which counts again.
pub async fn who_is_held_back_is_taken_back_by_an_administrator(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    let (node, at) = (nodes[2], cursor(&segment, 0, 2));
    vet(store, node, at).await;
    tick(store).await;
    let forgive = async |node| store.forgive(node).await.expect("asked");
    assert!(!forgive(node).await && !forgive(super::fresh()).await, "was never held back");
    let failed = event(node, cursor(&segment, 1, 2), AuditOutcome::Lost);
    store.record_audits(std::slice::from_ref(&failed), LONG, &judge).await.expect("record audits");
    assert!(upkeep(store, node).await.quarantined);
    let before = upkeep(store, node).await.audits;
    assert!(forgive(node).await);
    assert!(!forgive(node).await, "is back already");
    assert!(!upkeep(store, node).await.quarantined);
    assert!(is_new_again(store, node, &before).await);
    let after = upkeep(store, node).await.audits;
    assert_eq!((after.alpha, after.beta, after.proven, after.failed), (0.0, 0.0, 1, 1));
    let asked = async || store.claim_scans(ScanClass::Periodic, 1, LONG).await.expect("claim");
    for reason in [ScanReason::Draining, ScanReason::Returned] {
        let scan = until("what it holds is looked through", async || asked().await.pop()).await;
        assert_eq!((scan.node, scan.reason), (node, reason));
    }
    store.record_audits(&[failed], LONG, &judge).await.expect("record audits");
    assert!(upkeep(store, node).await.quarantined, "it may fail again");
}

/// Without being asked for it, as it may not answer; once, for a look is begun anew by the next.
pub async fn who_is_held_back_is_looked_through(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 4, &nodes).await;
    let at = |node: usize, stripe: u32, outcome| event(nodes[node], cursor(&segment, stripe, node), outcome);
    let look = async |events: &[AuditEvent]| {
        store.record_audits(events, LONG, &judge).await.expect("record audits");
        tick(store).await;
        let scans = store.claim_scans(ScanClass::Periodic, 10, LONG).await.expect("claim");
        for scan in &scans {
            store.finish_scan(scan, None).await.expect("finish");
        }
        scans.iter().map(|scan| (scan.node, scan.reason)).collect::<Vec<_>>()
    };
    use AuditOutcome::{Late, Lost, Proven, Wrong};
    assert_eq!(look(&[at(0, 0, Proven), at(1, 0, Late)]).await, []);
    assert_eq!(look(&[at(0, 0, Proven), at(2, 0, Lost)]).await, [(nodes[2], ScanReason::Draining)]);
    assert_eq!(look(&[at(2, 1, Wrong)]).await, [], "it is held back already");
    assert_eq!(look(&[at(3, 0, Lost), at(3, 1, Proven)]).await, [], "it is not held back in the end");
    assert_eq!(look(&[at(2, 2, Proven)]).await, []);
    assert_eq!(look(&[at(2, 3, Lost)]).await, [(nodes[2], ScanReason::Draining)], "held back once more");
}

/// Nobody is judged by it, and nothing is marked; it is kept.
pub async fn who_cannot_be_reached_is_not_judged(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    let before = (upkeep(store, nodes[0]).await, state(store, at(&segment, 0)).await);
    let unreachable = event(nodes[0], cursor(&segment, 0, 0), AuditOutcome::Unreachable);
    store.record_audits(std::slice::from_ref(&unreachable), LONG, &judge).await.expect("record audits");
    assert_eq!((upkeep(store, nodes[0]).await, state(store, at(&segment, 0)).await), before);
    assert!(store.repair_queue().await.expect("look").pending.is_empty());
    assert!(store.claim_contained(10, LONG).await.expect("claim").is_empty());
    assert_eq!(events(store, Some(nodes[0])).await, [unreachable]);
}

/// The least id that is greater.
fn past(chunk: ChunkId) -> ChunkId {
    let mut bytes = *chunk.as_bytes();
    let last = bytes.iter().rposition(|byte| *byte < u8::MAX).expect("no hash is the last of all");
    bytes[last] += 1;
    bytes[last + 1..].fill(0);
    ChunkId::from_bytes(bytes)
}

/// Wherever it begins to look, and round the end.
pub async fn a_sample_is_stored_and_live(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 6).await;
    let segment = stored(store, place, "k", 5, &nodes[..5]).await;
    let gone = stored(store, place, "gone", 3, &nodes[..5]).await;
    let first: ShardIndex = coded().shard(0).expect("exists");
    let bad =
        |stripe, fault| BadLocation { segment: segment.id, stripe, shard: first, node: nodes[0], fault };
    store.report_bad_locations(&[bad(1, Fault::Missing), bad(3, Fault::Corrupt)]).await.expect("report");
    place.delete(store, &["gone"]).await;
    condemn(store).await;
    assert_eq!(state(store, at(&gone, 0)).await, None);
    let mut want: Vec<NodeLocation> = store.node_locations(nodes[0], None, 100).await.expect("look");
    want.retain(|place| place.at.stripe.segment == segment.id && place.status == LocationStatus::Stored);
    assert_eq!(want.len(), 3);
    let sample = async |chunk| {
        let mut found = store.sample_locations(nodes[0], &[chunk]).await.expect("look");
        assert!(found.len() < 2);
        found.pop()
    };
    assert_eq!(sample(ChunkId::from_bytes([0; 32])).await.as_ref(), want.first());
    for (index, place) in want.iter().enumerate() {
        assert_eq!(sample(place.at.chunk).await.as_ref(), Some(place));
        assert_eq!(sample(past(place.at.chunk)).await.as_ref(), Some(&want[(index + 1) % 3]));
    }
    let every: Vec<ChunkId> = want.iter().chain(&want).map(|place| place.at.chunk).collect();
    let found = store.sample_locations(nodes[0], &every).await.expect("look");
    let twice: Vec<&NodeLocation> = want.iter().chain(&want).collect();
    assert_eq!(found.iter().collect::<Vec<_>>(), twice, "one for each, and in order");
    assert_eq!(store.sample_locations(nodes[5], &every).await.expect("look"), []);
}

/// The time since it registered and its proofs are the judge's to weigh; what was said once stays said.
pub async fn a_node_that_is_vetted_stays_so(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    let before = upkeep(store, nodes[0]).await.audits;
    assert!(!before.vetted && before.vetting_since <= store.now().await.expect("now"));
    let proven = event(nodes[0], cursor(&segment, 0, 0), AuditOutcome::Proven);
    let vetted = async |by: bool| {
        let events = std::slice::from_ref(&proven);
        let judge = |record: &AuditRecord, _: &AuditEvent| (AuditRecord { vetted: by, ..*record }, None);
        store.record_audits(events, LONG, &judge).await.expect("record audits");
        let listed = store.nodes().await.expect("list nodes");
        let vetted: Vec<NodeId> = listed.iter().filter(|node| node.vetted).map(|node| node.id).collect();
        let after = upkeep(store, nodes[0]).await.audits;
        assert_eq!((after.vetting_since, after.vetted), (before.vetting_since, vetted == [nodes[0]]));
        after.vetted
    };
    assert!(!vetted(false).await);
    assert!(vetted(true).await);
    assert!(vetted(false).await);
}

/// What it has proven stays its own; that it is trusted for it does not. Who is first named, or by an account where the node had
/// named itself, is nobody else.
pub async fn a_node_under_another_account_is_new_again(store: &dyn MetadataStore) {
    let [one, another] = [1, 2].map(|account| Uuid::from_u128(account).to_string());
    let place = place(store).await;
    let mut nodes = online_nodes(store, 4).await;
    let new = RegisterNode { operator: String::new(), ..new_node() };
    let node = store.register_node(&new).await.expect("register").id;
    nodes.push(node);
    let segment = stored(store, place, "k", 1, &nodes).await;
    vet(store, node, cursor(&segment, 0, 4)).await;
    let before = upkeep(store, node).await.audits;
    tick(store).await;
    let register = async |operator: &str| {
        let again = RegisterNode { operator: operator.to_owned(), ..new.clone() };
        assert_eq!(store.register_node(&again).await.expect("register").operator, operator);
    };
    for operator in ["", "itself", &one, &one] {
        register(operator).await;
        assert_eq!(upkeep(store, node).await.audits, before, "{operator:?}");
    }
    for operator in [&another, &one] {
        register(operator).await;
        assert!(is_new_again(store, node, &before).await, "{operator}");
        let after = upkeep(store, node).await.audits;
        assert_eq!((after.alpha, after.beta), (before.alpha, before.beta));
    }
}

/// What waits for its repair with few losses to spare, is live, believed in and was not proven lately.
pub async fn what_is_at_risk_is_found(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 3, &nodes).await;
    let (start, whole) = (cyxcloud_core::SegmentId::from_uuid(Uuid::nil()), Duration::ZERO);
    let found = async |from, losses, unproven_for, limit| {
        let found = store.at_risk(from, losses, unproven_for, limit).await.expect("look");
        for (node, place) in &found {
            let of_node = store.node_locations(*node, None, 100).await.expect("look");
            assert!(of_node.contains(place));
        }
        let mut places: Vec<(u32, usize)> =
            found.iter().map(|(_, place)| (place.at.stripe.index, place.at.shard.get())).collect();
        places.sort_unstable();
        places
    };
    assert_eq!(found(start, 9, whole, 100).await, [], "nothing waits");
    // Of five shards, three needed: one lost leaves one to lose, two lost none.
    let lost = |stripe, shard| event(nodes[shard], cursor(&segment, stripe, shard), AuditOutcome::Lost);
    record(store, &[lost(1, 0), lost(2, 0), lost(2, 1)], LONG).await;
    tick(store).await;
    assert_eq!(found(start, 0, whole, 100).await, [(2, 2), (2, 3), (2, 4)]);
    assert_eq!(found(start, 1, whole, 100).await.len(), 7);
    assert_eq!(found(segment.id, 1, whole, 100).await.len(), 7);
    assert_eq!(found(start, 1, whole, 2).await.len(), 2);
    let proven = event(nodes[3], cursor(&segment, 2, 3), AuditOutcome::Proven);
    record(store, &[proven], LONG).await;
    assert_eq!(found(start, 0, LONG, 100).await, [(2, 2), (2, 4)]);
    // Who was late is asked again when its time comes, and not before.
    let late = event(nodes[4], cursor(&segment, 2, 4), AuditOutcome::Late);
    record(store, std::slice::from_ref(&late), LONG).await;
    assert_eq!(found(start, 0, LONG, 100).await, [(2, 2)]);
    record(store, &[AuditEvent { outcome: AuditOutcome::Proven, again: true, ..late }], LONG).await;
    assert_eq!(found(start, 0, LONG, 100).await, [(2, 2)]);
    assert_eq!(found(start, 0, whole, 100).await, [(2, 2), (2, 3), (2, 4)]);
    place.delete(store, &["k"]).await;
    condemn(store).await;
    assert_eq!(found(start, 1, whole, 100).await, []);
}

/// What they made of a node stays; and they outlive it.
pub async fn old_audits_are_purged_and_records_stay(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 3, &nodes).await;
    for stripe in 0..3 {
        let event = event(nodes[0], cursor(&segment, stripe, 0), AuditOutcome::Proven);
        store.record_audits(&[event], LONG, &judge).await.expect("record audits");
    }
    let late = event(nodes[1], cursor(&segment, 0, 1), AuditOutcome::Late);
    record(store, std::slice::from_ref(&late), Duration::ZERO).await;
    let record = upkeep(store, nodes[0]).await.audits;
    assert_eq!(store.purge_audits(LONG, 10).await.expect("purge"), 0);
    until("old ones can be dropped", async || {
        (store.purge_audits(Duration::ZERO, 2).await.expect("purge") == 2).then_some(())
    })
    .await;
    assert_eq!(events(store, None).await.len(), 2);
    store.step_node(&NodeStep { node: nodes[1], from: Online, to: Draining }).await.expect("step");
    store.remove_node(nodes[1]).await.expect("remove");
    assert_eq!(events(store, Some(nodes[1])).await, [late]);
    assert!(store.claim_contained(10, LONG).await.expect("claim").is_empty());
    tick(store).await;
    assert_eq!(store.purge_audits(Duration::ZERO, 10).await.expect("purge"), 2);
    assert!(events(store, None).await.is_empty());
    assert_eq!(upkeep(store, nodes[0]).await.audits, record);
}

async fn part(store: &dyn MetadataStore, place: Place, upload: cyxcloud_core::UploadId) -> Part {
    let part = CommitPart {
        multipart: upload,
        number: 1,
        intent: None,
        size: ByteCount::bytes(4),
        etag: Uuid::new_v4().simple().to_string(),
        content_hash: *ChunkId::of(b"part").as_bytes(),
        checksums: Vec::new(),
        content: Content::New(place.inline(b"part")),
    };
    store.commit_part(&part).await.expect("commit a part")
}

/// Those that ended are forgotten; those that nobody ends are aborted, and what they hold becomes garbage.
pub async fn multipart_uploads_do_not_stay_for_ever(store: &dyn MetadataStore) {
    let place = place(store).await;
    let open = super::multipart::open(store, place, "open").await;
    let ended = super::multipart::open(store, place, "ended").await;
    let made = part(store, place, open.id).await;
    store.abort_multipart(place.bucket, &ended.key, ended.id).await.expect("abort");
    let purge = async |older, open_for| store.purge_multiparts(older, open_for, 10).await.expect("purge");
    let one = async |older, open_for| {
        until("one is purged", async || (purge(older, open_for).await == 1).then_some(())).await;
    };
    assert_eq!(purge(LONG, None).await, 0);
    assert_eq!(purge(LONG, Some(LONG)).await, 0);
    one(Duration::ZERO, None).await;
    assert_eq!(purge(Duration::ZERO, None).await, 0, "open ones stay");
    assert_eq!(store.multipart(open.id).await.expect("read"), Some(open.clone()));
    assert_eq!(store.list_parts(open.id, 0, 10).await.expect("list"), [made]);
    assert_eq!(store.gc_state().await.expect("look").candidates, 0);
    one(LONG, Some(Duration::ZERO)).await;
    assert_eq!(store.multipart(open.id).await.expect("read"), None);
    let parts = store.list_parts(open.id, 0, 10).await;
    assert!(matches!(parts, Err(Error::NoSuchUpload)), "{parts:?}");
    assert_eq!(store.gc_state().await.expect("look").candidates, 1);
    assert_eq!(purge(LONG, Some(Duration::ZERO)).await, 0);
    one(Duration::ZERO, None).await;
    let gone = store.abort_multipart(place.bucket, &open.key, open.id).await;
    assert!(matches!(gone, Err(Error::NoSuchUpload)), "{gone:?}");
}
