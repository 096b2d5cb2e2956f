//! Workers: each claims a stripe, sees what it needs now, makes it, and records it while its claim stands.
//!
//! What was asked for may be old: the stripe is judged again when its turn comes, and removals once more by what was
//! really added. A worker that is overtaken records nothing; what it stored becomes an orphan.
//! What survives no further loss waits for nobody: a worker is kept for it, and it is not held to the budgets. What is held to them
//! does not keep a worker waiting for long, but goes back to the queue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::placement::tolerance;
use cyxcloud_core::repair::{self, Place, Plan, URGENT_MAX, Urgency, can_wait};
use cyxcloud_core::seal::OwnerSecret;
use cyxcloud_core::{NodeId, crash_point};
use cyxcloud_dataplane::{RepairError, Repaired};
use cyxcloud_metadata::Error as MetadataError;
use cyxcloud_metadata::upkeep::model::{LocationStatus, RepairDone, RepairJob, StripeState};
use futures::future::join_all;
use tokio::task::{JoinError, JoinSet};
use tracing::{debug, info, warn};

use crate::cluster::{Cluster, Load};
use crate::{Context, audit, keep_claim};

/// How often the queue is looked at when nothing is due.
const IDLE: Duration = Duration::from_millis(500);
/// Pause before a failed repair is tried again; doubled each time up to the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// The same where nothing could be done. It is tried at once when somebody else has room (`upkeep`).
const IN_VAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// And of what may not wait: nodes may take chunks again without more room being seen.
const URGENT_IN_VAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));
/// The longest wait for a budget that holds a worker.
const PATIENCE: Duration = Duration::from_secs(5);
/// One of so many workers, and of fewer, is kept for what may not wait, unless it is the only one.
const KEPT_SHARE: usize = 8;
/// Tries after which it is given up until the sweep asks again: some six weeks. Those in vain count, and a cluster that was full for
/// days is not to give up what then fails once.
const RETRIES_MAX: u32 = 1_000;

/// Why a repair did not come through.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error("the secret of owner {0} cannot be had")]
    Secret(cyxcloud_core::OwnerId),
    /// That may change without anybody asking again.
    #[error("nothing could be done: no node has room or takes it")]
    InVain,
}

/// Repairs under way.
#[derive(Default)]
struct Hands {
    /// Asked for as what may not wait.
    urgent: JoinSet<()>,
    others: JoinSet<()>,
}

/// Repairs until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    let most = ctx.tuning.repair_parallelism as usize;
    let mut hands = Hands::default();
    loop {
        if let Err(error) = take_on(&ctx, &mut hands, most).await {
            ctx.metrics.failed("claim repairs", &error);
        }
        let idle = hands.urgent.len() + hands.others.len() < most;
        tokio::select! {
            Some(ended) = hands.urgent.join_next() => pass_on(ended),
            Some(ended) = hands.others.join_next() => pass_on(ended),
            () = tokio::time::sleep(IDLE), if idle => {}
        }
        while let Some(ended) = hands.urgent.try_join_next().or_else(|| hands.others.try_join_next()) {
            pass_on(ended);
        }
    }
}

/// Claims what there are workers for: first whatever is due, then with those that are left what may not wait.
async fn take_on(ctx: &Arc<Context>, hands: &mut Hands, most: usize) -> Result<(), MetadataError> {
    let (mut free, others) = room(most, hands.urgent.len(), hands.others.len(), ctx.repair_budget.due_in());
    for (up_to, limit) in [(i32::MAX, others), (URGENT_MAX, most)] {
        let limit = limit.min(free);
        if limit == 0 {
            continue;
        }
        let jobs = ctx.metadata.claim_repairs(up_to, limit, ctx.tuning.repair_lease()).await?;
        let all = jobs.len() < limit;
        free -= jobs.len();
        for job in jobs {
            let hands = if can_wait(job.priority) { &mut hands.others } else { &mut hands.urgent };
            hands.spawn(work(ctx.clone(), job));
        }
        if all {
            break;
        }
    }
    Ok(())
}

/// How many of so many workers are free, and how many of these for work that can wait, while so many do the one kind and so many the
/// other. None for that where the budget is spent for longer than a worker waits: it would only be put back.
fn room(most: usize, urgent: usize, others: usize, budget_due_in: Duration) -> (usize, usize) {
    let free = most.saturating_sub(urgent + others);
    let kept = most.div_ceil(KEPT_SHARE).min(most.saturating_sub(1));
    let for_others = (most - kept).saturating_sub(others).min(free);
    (free, if budget_due_in > PATIENCE { 0 } else { for_others })
}

/// A panic of a worker is one of the rebalancer.
pub(crate) fn pass_on(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// One job, with its claim kept for as long as it takes.
async fn work(ctx: Arc<Context>, job: RepairJob) {
    let lease = ctx.tuning.repair_lease();
    let keep = keep_claim(lease, || ctx.metadata.renew_repair(job.id, job.fence, lease));
    let outcome = tokio::select! {
        outcome = carry_out(&ctx, &job) => outcome,
        overtaken = keep => Err(overtaken.into()),
    };
    let ended = match outcome {
        Ok(done) => {
            crash_point!("mover.before_record");
            let recorded = ctx.metadata.finish_repair(job.id, job.fence, &done).await;
            crash_point!("mover.recorded");
            recorded.map(|()| if done.again_after.is_some() { "again" } else { "done" })
        }
        Err(Failure::Metadata(error @ MetadataError::Stale { .. })) => Err(error),
        Err(failure @ Failure::InVain) => {
            let pauses = if can_wait(job.priority) { IN_VAIN } else { URGENT_IN_VAIN };
            let delay = backoff(pauses, job.retry_count);
            debug!(segment = %job.stripe.segment, stripe = job.stripe.index, tries = job.retry_count + 1, "repair was in vain");
            let why = failure.to_string();
            ctx.metadata.fail_repair(job.id, job.fence, &why, Some(delay)).await.map(|()| "in_vain")
        }
        Err(failure) => put_back(&ctx, &job, &failure).await.map(|()| "failed"),
    };
    match ended {
        Ok(outcome) => ctx.metrics.repairs.with_label_values(&[outcome]).inc(),
        Err(MetadataError::Stale { .. }) => {
            debug!(segment = %job.stripe.segment, stripe = job.stripe.index, "repair was overtaken");
            ctx.metrics.repairs.with_label_values(&["overtaken"]).inc();
        }
        Err(error) => ctx.metrics.failed("record a repair", &error),
    }
}

/// The pause after so many that came before.
fn backoff((first, longest): (Duration, Duration), tries: u32) -> Duration {
    (first * (1 << tries.min(16))).min(longest)
}

async fn put_back(ctx: &Context, job: &RepairJob, failure: &Failure) -> Result<(), MetadataError> {
    let delay = (job.retry_count < RETRIES_MAX).then(|| backoff(RETRY, job.retry_count));
    let mut text = failure.to_string();
    if let Some(source) = std::error::Error::source(failure) {
        text = format!("{text}: {source}");
    }
    warn!(segment = %job.stripe.segment, stripe = job.stripe.index, tries = job.retry_count + 1, error = text, "repair failed");
    ctx.metadata.fail_repair(job.id, job.fence, &text, delay).await
}

/// Sees what the stripe needs now, and makes it.
async fn carry_out(ctx: &Context, job: &RepairJob) -> Result<RepairDone, Failure> {
    let Some(state) = ctx.metadata.stripe_states(&[job.stripe]).await?.pop() else {
        return Ok(RepairDone::default());
    };
    let cluster = ctx.watch.cluster().await?;
    let (plan, urgency) = cluster.judge(&state, ctx.repair_delay());
    match urgency {
        // It was worse when it was asked for. A worker that is kept for what may not wait does not wait for a budget.
        Urgency::Now { priority } if can_wait(priority) && !can_wait(job.priority) => {
            Ok(put_off(&plan, priority, Duration::ZERO))
        }
        Urgency::Now { priority } => make(ctx, &cluster, &state, &plan, priority).await,
        Urgency::Whole => Ok(RepairDone { tolerance: plan.health.lasting, ..RepairDone::default() }),
        Urgency::After { priority, delay } => Ok(put_off(&plan, priority, delay)),
        // Under the brake nobody's return need change a status that matters to this stripe.
        Urgency::Waits => {
            let again_after = cluster.braked.then(|| ctx.tuning.scan_interval());
            Ok(RepairDone { again_after, tolerance: plan.health.lasting, ..RepairDone::default() })
        }
    }
}

/// Nothing was done yet, and it is as urgent as this.
fn put_off(plan: &Plan, priority: i32, again_after: Duration) -> RepairDone {
    RepairDone {
        again_after: Some(again_after),
        priority: Some(priority),
        tolerance: plan.health.lasting,
        ..RepairDone::default()
    }
}

/// The part of its budget that this node's other work leaves.
fn part_of(cluster: &Cluster, node: NodeId) -> f64 {
    cluster.nodes.get(&node).map(Load::of).unwrap_or_default().leaves()
}

/// Waits until what this repair moves fits into the budgets, of which busy nodes leave less. Which of the holders are read from shows
/// only while it goes on: what they gave is owed, and their next repair waits for it here. Where it would be long, nothing is
/// taken, and it answers how much later the repair should come again. The worker rests all the same: with one such stripe after the
/// other it would go through all the queue.
async fn yield_to_others(
    ctx: &Context,
    cluster: &Cluster,
    state: &StripeState,
    plan: &Plan,
    cost: u64,
) -> Option<Duration> {
    let began = Instant::now();
    let chunk = state.chunk_len().get();
    let involved =
        plan.additions.iter().chain(&plan.health.here).map(|(_, node)| ctx.node_budgets.of(*node).due_in());
    let longest = involved.max().unwrap_or_default().max(ctx.repair_budget.due_in());
    if longest > PATIENCE {
        tokio::time::sleep(PATIENCE).await;
        ctx.metrics.repair_waited.inc_by(began.elapsed().as_secs_f64());
        return Some(longest - PATIENCE);
    }
    let nodes = plan.additions.iter().map(|(_, node)| async {
        ctx.node_budgets.of(*node).take_of(part_of(cluster, *node), chunk).await;
    });
    let holders: BTreeSet<NodeId> = plan.health.here.iter().map(|(_, node)| *node).collect();
    let sources = holders.into_iter().map(|node| tokio::time::sleep(ctx.node_budgets.of(node).due_in()));
    let all = ctx.repair_budget.take_of(cluster.load.leaves(), cost);
    tokio::join!(join_all(nodes), join_all(sources), all);
    ctx.metrics.repair_waited.inc_by(began.elapsed().as_secs_f64());
    None
}

/// Bytes that a plan moves if all goes well: a shard that somebody here holds goes from node to node, others are rebuilt.
fn estimate(state: &StripeState, plan: &Plan) -> u64 {
    let held = |shard| plan.health.here.iter().chain(&plan.health.leaving).any(|(held, _)| *held == shard);
    let rebuilds = plan.additions.iter().any(|(shard, _)| !held(*shard));
    let fetched = if rebuilds { state.geometry.data() } else { 0 };
    state.chunk_len().get().saturating_mul((fetched + plan.additions.len()) as u64)
}

/// Charges the budgets for what was moved, where so much was taken from them before. What could not wait took nothing, and makes
/// others wait.
fn charge(
    ctx: &Context,
    cluster: &Cluster,
    state: &StripeState,
    plan: &Plan,
    taken: Option<u64>,
    made: &Result<Repaired, RepairError>,
) {
    let chunk = state.chunk_len().get();
    let (moved, to_each, sources) = match made {
        Ok(made) => (made.moved(state).get(), chunk, made.sources.as_slice()),
        Err(error) => (error.moved(state).get(), 0, [].as_slice()),
    };
    ctx.metrics.repair_bytes.inc_by(moved);
    ctx.repair_budget.settle(cluster.load.leaves(), taken.unwrap_or(0), moved);
    let budget = |node| (ctx.node_budgets.of(node), part_of(cluster, node));
    for &(_, node) in &plan.additions {
        let (budget, part) = budget(node);
        budget.settle(part, taken.map_or(0, |_| chunk), to_each);
    }
    for &node in sources {
        let (budget, part) = budget(node);
        budget.owe(part, chunk);
    }
}

async fn make(
    ctx: &Context,
    cluster: &Cluster,
    state: &StripeState,
    plan: &Plan,
    priority: i32,
) -> Result<RepairDone, Failure> {
    // The row of a wrong or denied shard goes with its repair. Whoever is to be audited for it is so all the same.
    let doubtful = |status| matches!(status, LocationStatus::Corrupt | LocationStatus::Missing);
    if state.locations.iter().any(|at| doubtful(at.status)) {
        audit::call_in(ctx).await;
    }
    let mut made = Repaired::default();
    if !plan.additions.is_empty() {
        let secret = secret(ctx, state).await?;
        let cost = can_wait(priority).then(|| estimate(state, plan));
        if let Some(cost) = cost
            && let Some(later) = yield_to_others(ctx, cluster, state, plan, cost).await
        {
            return Ok(put_off(plan, priority, later));
        }
        let outcome = ctx.plane.repair(state, &secret, &plan.additions).await;
        charge(ctx, cluster, state, plan, cost, &outcome);
        made = outcome?;
        ctx.metrics.shards.with_label_values(&["pushed"]).inc_by(made.pushed as u64);
        ctx.metrics.shards.with_label_values(&["copied"]).inc_by(made.copied as u64);
        ctx.metrics.shards.with_label_values(&["rebuilt"]).inc_by(made.rebuilt as u64);
        crash_point!("mover.stored");
    }
    let held: Vec<Place> = plan
        .health
        .here
        .iter()
        .copied()
        .chain(made.added.iter().map(|(shard, at)| (*shard, at.node)))
        .collect();
    let locations: Vec<_> =
        state.locations.iter().map(|at| (at.shard, at.node, at.status.belief())).collect();
    let removed = repair::all_removals(&cluster.stripe(state, &locations), &plan.health, &held, plan.goal);
    let kept: Vec<Place> = held.into_iter().filter(|place| !removed.contains(place)).collect();
    for (shard, node, error) in &made.failed {
        debug!(%node, shard = shard.get(), %error, "a shard could not be stored there");
    }
    if made.added.is_empty() && removed.is_empty() {
        return Err(Failure::InVain);
    }
    info!(
        segment = %state.stripe.segment, stripe = state.stripe.index, added = made.added.len(), removed = removed.len(),
        failed = made.failed.len(), "stripe repaired"
    );
    Ok(RepairDone {
        tolerance: tolerance(state.geometry, &kept),
        added: made.added,
        removed,
        grace: ctx.tuning.gc_grace(),
        again_after: (!made.failed.is_empty()).then_some(RETRY.0),
        priority: None,
    })
}

async fn secret(ctx: &Context, state: &StripeState) -> Result<OwnerSecret, Failure> {
    let owner = ctx.metadata.owner(state.owner).await?.ok_or(Failure::Secret(state.owner))?;
    ctx.master.open_owner_secret(state.owner, &owner.wrapped_secret).map_err(|_| Failure::Secret(state.owner))
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::repair::Health;
    use cyxcloud_core::{ByteCount, Geometry};
    use cyxcloud_metadata::conformance::samples;

    use super::*;
    use crate::throttle::Throttle;

    #[test]
    fn what_goes_from_node_to_node_costs_little() {
        let geometry = Geometry::STANDARD;
        let node = |number: u8| NodeId::from_random([number; 16]);
        let at = |index: usize, number| (geometry.shard(index).expect("exists"), node(number));
        let state = samples::stripe(geometry, ByteCount::bytes(100));
        let cost = |additions: Vec<Place>| {
            let health = Health { here: vec![at(0, 0)], leaving: vec![at(1, 1)], ..Health::default() };
            estimate(&state, &Plan { health, goal: 4, additions, removals: Vec::new(), spreads: false })
        };
        assert_eq!(cost(vec![at(1, 20)]), 100);
        assert_eq!(cost(vec![at(0, 20), at(1, 21)]), 200);
        assert_eq!(cost(vec![at(2, 20)]), 1100);
        assert_eq!(cost(vec![at(1, 20), at(2, 21), at(3, 22)]), 1300);
    }

    #[test]
    fn a_worker_is_kept_for_what_may_not_wait() {
        let calm = Duration::ZERO;
        assert_eq!(room(4, 0, 0, calm), (4, 3));
        assert_eq!(room(4, 0, 3, calm), (1, 0));
        assert_eq!(room(4, 1, 2, calm), (1, 1));
        assert_eq!(room(4, 4, 0, calm), (0, 0));
        assert_eq!(room(4, 2, 3, calm), (0, 0));
        assert_eq!((room(17, 0, 0, calm), room(2, 0, 0, calm)), ((17, 14), (2, 1)));
        // Of one none can be kept; it does not sleep for long.
        assert_eq!(room(1, 0, 0, calm), (1, 1));
    }

    #[test]
    fn what_is_owed_keeps_no_worker_from_what_may_not_wait() {
        let budget = Throttle::new(1_000);
        for _ in 0..3_600 {
            budget.owe(1.0, 1_000);
        }
        assert!(budget.due_in() > PATIENCE);
        assert_eq!(room(4, 0, 0, budget.due_in()), (4, 0));
    }

    #[test]
    fn what_is_in_vain_is_tried_ever_less_often() {
        let pauses = [0, 1, 2, 5, 6, 40].map(|tries| backoff(IN_VAIN, tries).as_secs());
        assert_eq!(pauses, [60, 120, 240, 1920, 3600, 3600]);
        assert_eq!([0, 3, 4, 40].map(|tries| backoff(URGENT_IN_VAIN, tries).as_secs()), [60, 480, 600, 600]);
        assert_eq!([0, 1, 10].map(|tries| backoff(RETRY, tries).as_secs()), [5, 10, 3600]);
    }
}
