//! Repairs: who has a stripe in hand, what becomes of it, and what a worker that came too late may not do.

use std::time::Duration;

use cyxcloud_core::repair::{SPREAD_PRIORITY, URGENT_MAX};
use cyxcloud_core::{Generation, NodeId, SegmentId, ShardIndex, Timestamp};
use uuid::Uuid;

use super::audits::{cursor, event};
use super::stripes::{LONG, at, coded, committed, condemn, state, stored, tick, until};
use super::{FIRST_LIFE, fresh, new_node, online_nodes, place};
use crate::model::{BadLocation, Fault, NewLocation, NewSegment, RegisterNode, SegmentBody};
use crate::upkeep::model::{
    AuditOutcome, LocationStatus, LostBecause, NewRepair, Reconciled, RepairDone, RepairJob, StripeRef,
};
use crate::{Error, MetadataStore};

fn repair(stripe: StripeRef, priority: i32, delay: Duration) -> NewRepair {
    NewRepair { stripe, priority, delay, reason: "node offline".to_owned() }
}

async fn queue(store: &dyn MetadataStore, repairs: &[NewRepair]) -> usize {
    store.queue_repairs(repairs).await.expect("queue repairs")
}

async fn claim(store: &dyn MetadataStore, limit: usize, lease: Duration) -> Vec<RepairJob> {
    store.claim_repairs(i32::MAX, limit, lease).await.expect("claim repairs")
}

/// One job on a stripe, as soon as it can be claimed.
pub(super) async fn claimed(store: &dyn MetadataStore, stripe: StripeRef, lease: Duration) -> RepairJob {
    let job = until("a job can be claimed", async || claim(store, 1, lease).await.pop()).await;
    assert_eq!(job.stripe, stripe);
    job
}

/// A store acknowledged by a node.
pub(super) fn location(node: NodeId, counter: u64) -> NewLocation {
    NewLocation {
        node,
        generation: Generation { incarnation: FIRST_LIFE, counter },
        receipt_signature: vec![3; 64],
        stored_at: Timestamp::from_unix_millis(1_700_000_000_456),
    }
}

fn shard(index: usize) -> ShardIndex {
    coded().shard(index).expect("exists")
}

fn is_stale<T: std::fmt::Debug>(answer: Result<T, Error>) {
    assert!(matches!(answer, Err(Error::Stale { .. })), "{answer:?}");
}

/// By one worker, in order of urgency, not before its time.
pub async fn a_queued_stripe_is_claimed_once(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 5, &nodes).await;
    let jobs = [
        repair(at(&segment, 0), 2, Duration::ZERO),
        repair(at(&segment, 1), -1, Duration::ZERO),
        repair(at(&segment, 2), 0, Duration::ZERO),
        repair(at(&segment, 3), 0, LONG),
    ];
    assert_eq!(queue(store, &jobs).await, 4);
    assert_eq!(queue(store, &jobs).await, 0);
    let waiting = store.repair_queue().await.expect("look");
    assert_eq!(waiting.pending.into_iter().collect::<Vec<_>>(), [(-1, 1), (0, 2), (2, 1)]);
    assert_eq!((waiting.due, waiting.in_progress, waiting.completed, waiting.failed), (3, 0, 0, 0));
    assert!(waiting.oldest_due.is_some_and(|age| age < LONG));
    let first = claim(store, 2, LONG).await;
    let order: Vec<(u32, i32)> = first.iter().map(|job| (job.stripe.index, job.priority)).collect();
    assert_eq!(order, [(1, -1), (2, 0)]);
    assert_eq!((first[0].reason.as_str(), first[0].retry_count), ("node offline", 0));
    let second = claim(store, 10, LONG).await;
    assert_eq!(second.iter().map(|job| job.stripe.index).collect::<Vec<_>>(), [0]);
    assert!(claim(store, 10, LONG).await.is_empty());
    let working = store.repair_queue().await.expect("look");
    assert_eq!((working.due, working.in_progress), (0, 3));
    assert_eq!(working.pending.into_iter().collect::<Vec<_>>(), [(0, 1)]);
    // What waits takes the more urgent priority and the earlier time.
    queue(store, &[repair(at(&segment, 3), 3, Duration::ZERO)]).await;
    assert_eq!(claimed(store, at(&segment, 3), LONG).await.priority, 0);
    queue(store, &[repair(at(&segment, 4), 3, Duration::ZERO)]).await;
    queue(store, &[repair(at(&segment, 4), 1, LONG)]).await;
    assert_eq!(claimed(store, at(&segment, 4), LONG).await.priority, 1);
}

/// Whoever asks for what may not wait is given nothing else, neither what is due nor what others let go.
pub async fn what_can_wait_is_left_to_who_asks_for_it(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 4, &nodes).await;
    queue(store, &[repair(at(&segment, 0), 2, Duration::ZERO), repair(at(&segment, 1), -1, Duration::ZERO)])
        .await;
    assert_eq!(claim(store, 10, Duration::ZERO).await.len(), 2);
    queue(store, &[repair(at(&segment, 2), 1, Duration::ZERO), repair(at(&segment, 3), 0, Duration::ZERO)])
        .await;
    tick(store).await;
    let stripes = |jobs: Vec<RepairJob>| jobs.into_iter().map(|job| job.stripe.index).collect::<Vec<_>>();
    let urgent = async || store.claim_repairs(URGENT_MAX, 10, LONG).await.expect("claim repairs");
    assert_eq!(stripes(urgent().await), [1, 3]);
    assert_eq!(stripes(urgent().await), [0u32; 0]);
    assert_eq!(stripes(claim(store, 10, LONG).await), [2, 0]);
}

/// And not as it was when it was asked for, unless that was since.
pub async fn what_is_put_back_is_as_urgent_as_it_was_found(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    let stripe = at(&segment, 0);
    let found = |priority| RepairDone {
        again_after: Some(Duration::ZERO),
        priority: Some(priority),
        ..RepairDone::default()
    };
    queue(store, &[repair(stripe, 0, Duration::ZERO)]).await;
    let job = claimed(store, stripe, LONG).await;
    store.finish_repair(job.id, job.fence, &found(3)).await.expect("put back");
    let job = claimed(store, stripe, LONG).await;
    assert_eq!(job.priority, 3);
    queue(store, &[repair(stripe, 1, Duration::ZERO)]).await;
    store.finish_repair(job.id, job.fence, &found(2)).await.expect("put back");
    let job = claimed(store, stripe, LONG).await;
    assert_eq!(job.priority, 1);
    let again = RepairDone { again_after: Some(Duration::ZERO), ..RepairDone::default() };
    store.finish_repair(job.id, job.fence, &again).await.expect("put back");
    assert_eq!(claimed(store, stripe, LONG).await.priority, 1);
}

/// And nothing else that waits for its time. Once something came of a job, what was in vain before is forgotten.
pub async fn what_was_in_vain_can_be_hurried(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 6).await;
    let segment = stored(store, place, "k", 2, &nodes[..5]).await;
    let stripe = at(&segment, 0);
    queue(store, &[repair(stripe, 0, Duration::ZERO), repair(at(&segment, 1), 1, Duration::ZERO)]).await;
    let job = claimed(store, stripe, LONG).await;
    store.fail_repair(job.id, job.fence, "no node has room", Some(LONG)).await.expect("fail");
    let other = claimed(store, at(&segment, 1), LONG).await;
    let later = RepairDone { again_after: Some(LONG), ..RepairDone::default() };
    store.finish_repair(other.id, other.fence, &later).await.expect("put back");
    tick(store).await;
    assert!(claim(store, 10, LONG).await.is_empty());
    assert_eq!(store.hurry_repairs(10).await.expect("hurry"), 1);
    assert_eq!(store.hurry_repairs(10).await.expect("hurry"), 0, "it is due");
    let job = claimed(store, stripe, LONG).await;
    assert_eq!(job.retry_count, 1);
    assert!(claim(store, 10, LONG).await.is_empty());
    let again = RepairDone { again_after: Some(Duration::ZERO), ..RepairDone::default() };
    store.finish_repair(job.id, job.fence, &again).await.expect("put back");
    let job = claimed(store, stripe, LONG).await;
    assert_eq!(job.retry_count, 1, "nothing came of it");
    let added = RepairDone { added: vec![(shard(0), location(nodes[5], 7))], ..again };
    store.finish_repair(job.id, job.fence, &added).await.expect("put back");
    assert_eq!(claimed(store, stripe, LONG).await.retry_count, 0);
}

/// Nothing of it is short: it comes last, is counted apart, and is at no risk.
pub async fn what_is_only_to_be_spread_comes_last(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    queue(store, &[repair(at(&segment, 0), SPREAD_PRIORITY, Duration::ZERO)]).await;
    let waiting = store.repair_queue().await.expect("look");
    assert_eq!((waiting.to_spread, waiting.due, waiting.pending.len()), (1, 0, 0));
    assert_eq!(waiting.oldest_due, None);
    tick(store).await;
    let start = SegmentId::from_uuid(Uuid::nil());
    let at_risk = store.at_risk(start, u8::MAX.into(), Duration::ZERO, 100).await.expect("look");
    assert!(at_risk.is_empty(), "{at_risk:?}");
    queue(store, &[repair(at(&segment, 1), 4, Duration::ZERO)]).await;
    let waiting = store.repair_queue().await.expect("look");
    assert_eq!((waiting.to_spread, waiting.due), (1, 1));
    assert_eq!(waiting.pending.into_iter().collect::<Vec<_>>(), [(4, 1)]);
    tick(store).await;
    let claimed = claim(store, 10, LONG).await;
    let order: Vec<(u32, i32)> = claimed.iter().map(|job| (job.stripe.index, job.priority)).collect();
    assert_eq!(order, [(1, 4), (0, SPREAD_PRIORITY)]);
    let working = store.repair_queue().await.expect("look");
    assert_eq!((working.to_spread, working.in_progress), (0, 2));
}

/// However many ask at once.
pub async fn many_workers_never_share_a_job(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 24, &nodes).await;
    let jobs: Vec<NewRepair> = (0..24).map(|index| repair(at(&segment, index), 1, Duration::ZERO)).collect();
    assert_eq!(queue(store, &jobs).await, 24);
    let mut had = Vec::new();
    until("all are claimed", async || {
        let claims = futures::future::join_all((0..8).map(|_| claim(store, 2, LONG))).await;
        had.extend(claims.into_iter().flatten().map(|job| job.stripe.index));
        (had.len() >= 24).then_some(())
    })
    .await;
    had.sort_unstable();
    assert_eq!(had, (0..24).collect::<Vec<_>>());
}

/// Whoever slept past it commits nothing, and takes nothing from whoever has it now.
pub async fn a_job_whose_lease_ran_out_is_anothers(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 6).await;
    let segment = stored(store, place, "k", 1, &nodes[..5]).await;
    let stripe = at(&segment, 0);
    queue(store, &[repair(stripe, 0, Duration::ZERO)]).await;
    let late = claimed(store, stripe, Duration::ZERO).await;
    let now = claimed(store, stripe, LONG).await;
    assert_eq!(now.id, late.id);
    assert!(now.fence > late.fence);
    let before = state(store, stripe).await;
    let done = RepairDone {
        added: vec![(shard(0), location(nodes[5], 7))],
        removed: vec![(shard(0), nodes[0])],
        ..RepairDone::default()
    };
    is_stale(store.renew_repair(late.id, late.fence, LONG).await);
    is_stale(store.finish_repair(late.id, late.fence, &done).await);
    is_stale(store.fail_repair(late.id, late.fence, "late", None).await);
    assert_eq!(state(store, stripe).await, before);
    assert_eq!(store.gc_state().await.expect("look").deletes, 0);
    assert!(claim(store, 10, LONG).await.is_empty());
    store.renew_repair(now.id, now.fence, LONG).await.expect("renew");
    store.finish_repair(now.id, now.fence, &done).await.expect("finish");
    assert_ne!(state(store, stripe).await, before);
    is_stale(store.finish_repair(now.id, now.fence, &done).await);
    is_stale(store.renew_repair(now.id, now.fence, LONG).await);
    is_stale(store.renew_repair(fresh(), 1, LONG).await);
}

/// The lease counts from the renewal.
pub async fn a_renewed_job_stays(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    queue(store, &[repair(at(&segment, 0), 0, Duration::ZERO)]).await;
    let job = claimed(store, at(&segment, 0), Duration::from_millis(800)).await;
    store.renew_repair(job.id, job.fence, LONG).await.expect("renew");
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(claim(store, 10, LONG).await.is_empty());
    store.finish_repair(job.id, job.fence, &RepairDone::default()).await.expect("finish");
}

/// What happened while a worker looked elsewhere is looked at again, whoever noticed it.
pub async fn a_stripe_queued_during_its_repair_comes_back(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    let stripe = at(&segment, 0);
    queue(store, &[repair(stripe, 1, Duration::ZERO)]).await;
    let first = claimed(store, stripe, LONG).await;
    queue(store, &[repair(stripe, 0, Duration::ZERO)]).await;
    assert!(claim(store, 10, LONG).await.is_empty(), "still in hand");
    store.finish_repair(first.id, first.fence, &RepairDone::default()).await.expect("finish");
    let second = claimed(store, stripe, LONG).await;
    let bad = BadLocation {
        segment: segment.id,
        stripe: 0,
        shard: shard(1),
        node: nodes[1],
        fault: Fault::Corrupt,
    };
    store.report_bad_locations(&[bad]).await.expect("report");
    store.fail_repair(second.id, second.fence, "gave up", None).await.expect("give up");
    let third = claimed(store, stripe, LONG).await;
    let SegmentBody::Stripes(stripes) = &segment.body else { panic!("made of stripes") };
    store.report_corrupt_chunks(nodes[2], &[stripes[0].shards[2].chunk]).await.expect("report");
    store.finish_repair(third.id, third.fence, &RepairDone::default()).await.expect("finish");
    let last = claimed(store, stripe, LONG).await;
    store.finish_repair(last.id, last.fence, &RepairDone::default()).await.expect("finish");
    tick(store).await;
    assert!(claim(store, 10, LONG).await.is_empty(), "nothing new");
}

/// After its delay it is tried again; given up it is tried no more, until it is queued anew.
pub async fn a_failed_job_waits_or_is_given_up(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 2, &nodes).await;
    let stripe = at(&segment, 0);
    queue(store, &[repair(stripe, 0, Duration::ZERO), repair(at(&segment, 1), 1, Duration::ZERO)]).await;
    let job = claimed(store, stripe, LONG).await;
    store.fail_repair(job.id, job.fence, "no node\0 answers", Some(Duration::ZERO)).await.expect("fail");
    is_stale(store.fail_repair(job.id, job.fence, "again", None).await);
    let again = claimed(store, stripe, LONG).await;
    assert_eq!((again.id, again.retry_count), (job.id, 1));
    assert!(again.fence > job.fence);
    store.fail_repair(again.id, again.fence, "no node answers", None).await.expect("give up");
    let other = claimed(store, at(&segment, 1), LONG).await;
    store.fail_repair(other.id, other.fence, "later", Some(LONG)).await.expect("fail");
    tick(store).await;
    assert!(claim(store, 10, LONG).await.is_empty());
    let left = store.repair_queue().await.expect("look");
    assert_eq!((left.due, left.in_progress, left.failed, left.pending.values().sum()), (0, 0, 1, 1));
    assert_eq!(queue(store, &[repair(stripe, 2, Duration::ZERO)]).await, 1);
    assert_eq!(claimed(store, stripe, LONG).await.retry_count, 0);
}

/// In the same words whatever the engine: operators look for them.
pub async fn what_was_lost_is_queued_with_its_reason(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 5, &nodes).await;
    let (node, lost) = (nodes[0], |stripe| cursor(&segment, stripe, 0));
    let bad = BadLocation { segment: segment.id, stripe: 0, shard: shard(0), node, fault: Fault::Missing };
    store.report_bad_locations(&[bad]).await.expect("report");
    assert_eq!(store.report_corrupt_chunks(node, &[lost(1).chunk]).await.expect("report"), 1);
    let audit = event(node, lost(2), AuditOutcome::Lost);
    store.record_audits(&[audit], LONG, &|record, _| (*record, None)).await.expect("record audits");
    let compared = Reconciled {
        node,
        missing: vec![lost(3)],
        found: Vec::new(),
        renewed: Vec::new(),
        orphans: Vec::new(),
        orphans_max: 0,
    };
    store.record_inventory(&compared).await.expect("record");
    assert!(store.drain_node(node, true).await.expect("drain"));
    store.remove_node(node).await.expect("remove");
    tick(store).await;
    let mut jobs = claim(store, 10, LONG).await;
    jobs.sort_by_key(|job| job.stripe);
    let found: Vec<(u32, &str)> = jobs.iter().map(|job| (job.stripe.index, job.reason.as_str())).collect();
    use LostBecause::{Audited, Corrupt, NodeRemoved, NotListed, Reported};
    let want = [Reported, Corrupt, Audited, NotListed, NodeRemoved];
    assert_eq!(found, (0u32..).zip(want.map(LostBecause::as_str)).collect::<Vec<_>>());
}

async fn in_hand(store: &dyn MetadataStore, segment: &NewSegment) -> RepairJob {
    queue(store, &[repair(at(segment, 0), 0, Duration::ZERO)]).await;
    claimed(store, at(segment, 0), LONG).await
}

/// New locations count at once; removed ones are no locations, and their chunks go to deletion; what could not be done yet
/// is looked at again.
pub async fn a_finished_repair_is_recorded_whole(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 7).await;
    let segment = stored(store, place, "k", 1, &nodes[..5]).await;
    let stripe = at(&segment, 0);
    let bad = |index: usize| BadLocation {
        segment: segment.id,
        stripe: 0,
        shard: shard(index),
        node: nodes[index],
        fault: Fault::Missing,
    };
    store.report_bad_locations(&[bad(3)]).await.expect("report");
    let job = claimed(store, stripe, LONG).await;
    let done = RepairDone {
        // Shard 3 once elsewhere, and once more where it was missed.
        added: vec![
            (shard(0), location(nodes[5], 70)),
            (shard(3), location(nodes[6], 80)),
            (shard(3), location(nodes[3], 90)),
        ],
        removed: vec![(shard(0), nodes[0])],
        grace: Duration::ZERO,
        again_after: Some(Duration::ZERO),
        priority: None,
        tolerance: Some(2),
    };
    store.finish_repair(job.id, job.fence, &done).await.expect("finish");
    let mut want: Vec<_> = committed(&segment, 0)
        .locations
        .into_iter()
        .filter(|at| at.shard != shard(0) && at.shard != shard(3))
        .map(|at| (at.shard, at.node, at.generation.counter))
        .collect();
    want.extend([(shard(0), nodes[5], 70), (shard(3), nodes[6], 80), (shard(3), nodes[3], 90)]);
    want.sort_by_key(|(shard, node, _)| (*shard, node.as_uuid()));
    let found = state(store, stripe).await.expect("live").locations;
    assert!(found.iter().all(|at| at.status == LocationStatus::Stored));
    let found: Vec<_> = found.into_iter().map(|at| (at.shard, at.node, at.generation.counter)).collect();
    assert_eq!(found, want);
    assert_eq!(store.gc_state().await.expect("look").deletes, 1);
    let queue = store.repair_queue().await.expect("look");
    assert_eq!((queue.completed, queue.pending.values().sum::<u64>()), (0, 1));
    let again = claimed(store, stripe, LONG).await;
    assert_eq!(again.id, job.id);
    store.finish_repair(again.id, again.fence, &RepairDone::default()).await.expect("finish");
    let queue = store.repair_queue().await.expect("look");
    assert_eq!((queue.completed, queue.pending.len(), queue.in_progress), (1, 0, 0));
    until("ended jobs can be dropped", async || {
        (store.purge_repairs(Duration::ZERO, 10).await.expect("purge") == 1).then_some(())
    })
    .await;
    assert_eq!(store.repair_queue().await.expect("look").completed, 0);
    let later = in_hand(store, &segment).await;
    let wait = RepairDone { again_after: Some(LONG), ..RepairDone::default() };
    store.finish_repair(later.id, later.fence, &wait).await.expect("finish");
    tick(store).await;
    assert!(claim(store, 10, LONG).await.is_empty());
}

/// Neither what was surplus before another copy turned out bad, nor what was to be replaced on a node that left. What was
/// made is recorded all the same, and the stripe is looked at again.
pub async fn a_plan_that_was_overtaken_takes_nothing_away(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 6).await;
    let segment = stored(store, place, "k", 1, &nodes[..5]).await;
    let stripe = at(&segment, 0);
    let on = async |node: NodeId| store.node_locations(node, None, 10).await.expect("look").len();
    let removed = || vec![(shard(0), nodes[0])];
    // The shard is on two nodes: one copy is surplus.
    let job = in_hand(store, &segment).await;
    let twice = RepairDone { added: vec![(shard(0), location(nodes[5], 7))], ..RepairDone::default() };
    store.finish_repair(job.id, job.fence, &twice).await.expect("finish");
    let job = in_hand(store, &segment).await;
    let bad = BadLocation {
        segment: segment.id,
        stripe: 0,
        shard: shard(0),
        node: nodes[5],
        fault: Fault::Corrupt,
    };
    store.report_bad_locations(&[bad]).await.expect("report");
    let trim = RepairDone { removed: removed(), ..RepairDone::default() };
    store.finish_repair(job.id, job.fence, &trim).await.expect("finish");
    assert_eq!((on(nodes[0]).await, store.gc_state().await.expect("look").deletes), (1, 0));
    let job = claimed(store, stripe, LONG).await;
    let elsewhere = RepairDone {
        added: vec![(shard(0), location(nodes[5], 8)), (shard(1), location(fresh(), 8))],
        removed: removed(),
        ..RepairDone::default()
    };
    store.finish_repair(job.id, job.fence, &elsewhere).await.expect("finish");
    assert_eq!((on(nodes[0]).await, store.gc_state().await.expect("look").deletes), (1, 0));
    let found = state(store, stripe).await.expect("live").locations;
    assert!(found.iter().all(|at| at.status == LocationStatus::Stored), "what was made is recorded");
    let job = claimed(store, stripe, LONG).await;
    store.finish_repair(job.id, job.fence, &trim).await.expect("finish");
    assert_eq!((on(nodes[0]).await, store.gc_state().await.expect("look").deletes), (0, 1));
}

/// Nor is anything taken away for it: the node was emptied, perhaps, after it stored what was made.
pub async fn what_a_repair_stored_in_a_former_life_is_not_recorded(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = stored(store, place, "k", 1, &nodes).await;
    let new = new_node();
    store.register_node(&new).await.expect("register");
    let job = in_hand(store, &segment).await;
    let anew = RegisterNode { incarnation: Uuid::new_v4(), ..new.clone() };
    store.register_node(&anew).await.expect("register again");
    let moved = |at: NewLocation| RepairDone {
        added: vec![(shard(0), at)],
        removed: vec![(shard(0), nodes[0])],
        ..RepairDone::default()
    };
    store.finish_repair(job.id, job.fence, &moved(location(new.id, 7))).await.expect("finish");
    assert_eq!(state(store, at(&segment, 0)).await, Some(committed(&segment, 0)));
    assert_eq!(store.gc_state().await.expect("look").deletes, 0);
    let job = claimed(store, at(&segment, 0), LONG).await;
    let generation = Generation { incarnation: anew.incarnation, counter: 1 };
    let made = moved(NewLocation { generation, ..location(new.id, 1) });
    store.finish_repair(job.id, job.fence, &made).await.expect("finish");
    let held = state(store, at(&segment, 0)).await.expect("live").locations;
    let first: Vec<_> = held.iter().filter(|at| at.shard == shard(0)).collect();
    assert_eq!(first.iter().map(|at| (at.node, at.generation)).collect::<Vec<_>>(), [(new.id, generation)]);
}

/// The chunks that were made go to deletion, and the job is over.
pub async fn a_repair_of_a_condemned_segment_records_nothing(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 6).await;
    let segment = stored(store, place, "k", 1, &nodes[..5]).await;
    let job = in_hand(store, &segment).await;
    place.delete(store, &["k"]).await;
    condemn(store).await;
    let done = RepairDone { added: vec![(shard(0), location(nodes[5], 7))], ..RepairDone::default() };
    store.finish_repair(job.id, job.fence, &done).await.expect("finish");
    assert!(store.node_locations(nodes[5], None, 10).await.expect("look").is_empty());
    assert_eq!(store.gc_state().await.expect("look").deletes, 1);
    let SegmentBody::Stripes(stripes) = &segment.body else { panic!("made of stripes") };
    let delete = until("the chunk can be deleted", async || {
        store.claim_deletes(10, LONG, LONG).await.expect("claim").pop()
    })
    .await;
    assert_eq!((delete.node, delete.chunk), (nodes[5], stripes[0].shards[0].chunk));
    assert_eq!(delete.generation, Generation { incarnation: FIRST_LIFE, counter: 7 });
    let queue = store.repair_queue().await.expect("look");
    assert_eq!((queue.pending.len(), queue.in_progress), (0, 0));
}
