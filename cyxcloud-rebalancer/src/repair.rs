//! Workers: each claims a stripe, sees what it needs now, makes it, and records it while its claim stands.
//!
//! What was asked for may be old: the stripe is judged again when its turn comes, and removals once more by what was
//! really added. A worker that is overtaken records nothing; what it stored becomes an orphan.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::placement::tolerance;
use cyxcloud_core::repair::{self, Place, Plan, Urgency};
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
/// Pause before a stripe is looked at again for which nothing could be done.
const IN_VAIN: Duration = Duration::from_secs(60);
/// Tries after which an operator should look; the sweep asks again.
const RETRIES_MAX: u32 = 20;

/// Why a repair did not come through.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error("the secret of owner {0} cannot be had")]
    Secret(cyxcloud_core::OwnerId),
}

/// Repairs until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    let most = ctx.tuning.repair_parallelism as usize;
    let mut under_way = JoinSet::new();
    loop {
        let free = most - under_way.len();
        let claimed = if free == 0 {
            Ok(Vec::new())
        } else {
            ctx.metadata.claim_repairs(free, ctx.tuning.repair_lease()).await
        };
        let idle = match claimed {
            Ok(jobs) => {
                let idle = jobs.len() < free;
                for job in jobs {
                    under_way.spawn(work(ctx.clone(), job));
                }
                idle
            }
            Err(error) => {
                ctx.metrics.failed("claim repairs", &error);
                true
            }
        };
        tokio::select! {
            Some(ended) = under_way.join_next() => pass_on(ended),
            () = tokio::time::sleep(IDLE), if idle => {}
        }
        while let Some(ended) = under_way.try_join_next() {
            pass_on(ended);
        }
    }
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

async fn put_back(ctx: &Context, job: &RepairJob, failure: &Failure) -> Result<(), MetadataError> {
    let delay = (RETRY.0 * (1 << job.retry_count.min(16))).min(RETRY.1);
    let delay = (job.retry_count < RETRIES_MAX).then_some(delay);
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
        Urgency::Now { priority } => make(ctx, &cluster, &state, &plan, priority > 0).await,
        Urgency::Whole => Ok(RepairDone { tolerance: plan.health.lasting, ..RepairDone::default() }),
        Urgency::After { delay, .. } => Ok(RepairDone {
            again_after: Some(delay),
            tolerance: plan.health.lasting,
            ..RepairDone::default()
        }),
        // Under the brake nobody's return need change a status that matters to this stripe.
        Urgency::Waits => {
            let again_after = cluster.braked.then(|| ctx.tuning.scan_interval());
            Ok(RepairDone { again_after, tolerance: plan.health.lasting, ..RepairDone::default() })
        }
    }
}

/// The part of its budget that this node's other work leaves.
fn part_of(cluster: &Cluster, node: NodeId) -> f64 {
    cluster.nodes.get(&node).map(Load::of).unwrap_or_default().leaves()
}

/// Waits until what this repair moves fits into the budgets, of which busy nodes leave less. Which of the holders are read from shows
/// only while it goes on: what they gave is owed, and their next repair waits for it here.
async fn yield_to_others(ctx: &Context, cluster: &Cluster, state: &StripeState, plan: &Plan, cost: u64) {
    let began = Instant::now();
    let chunk = state.chunk_len().get();
    let nodes = plan.additions.iter().map(|(_, node)| async {
        ctx.node_budgets.of(*node).take_of(part_of(cluster, *node), chunk).await;
    });
    let holders: BTreeSet<NodeId> = plan.health.here.iter().map(|(_, node)| *node).collect();
    let sources = holders.into_iter().map(|node| async move { ctx.node_budgets.of(node).wait().await });
    let all = ctx.repair_budget.take_of(cluster.load.leaves(), cost);
    tokio::join!(join_all(nodes), join_all(sources), all);
    ctx.metrics.repair_waited.inc_by(began.elapsed().as_secs_f64());
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
    can_wait: bool,
) -> Result<RepairDone, Failure> {
    // The row of a wrong shard goes with its repair. Whoever is to be audited for it is so all the same.
    if state.locations.iter().any(|at| at.status == LocationStatus::Corrupt) {
        audit::call_in(ctx).await;
    }
    let mut made = Repaired::default();
    if !plan.additions.is_empty() {
        let secret = secret(ctx, state).await?;
        let cost = can_wait.then(|| estimate(state, plan));
        if let Some(cost) = cost {
            yield_to_others(ctx, cluster, state, plan, cost).await;
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
    // No node has room, or nothing can be read: that may change without anybody asking again.
    let in_vain = made.added.is_empty() && removed.is_empty();
    let again_after = if in_vain { Some(IN_VAIN) } else { (!made.failed.is_empty()).then_some(RETRY.0) };
    for (shard, node, error) in &made.failed {
        debug!(%node, shard = shard.get(), %error, "a shard could not be stored there");
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
        again_after,
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
}
