//! Workers: each claims a stripe, sees what it needs now, makes it, and records it while its claim stands.
//!
//! What was asked for may be old: the stripe is judged again when its turn comes, and removals once more by what was
//! really added. A worker that is overtaken records nothing; what it stored becomes an orphan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::crash_point;
use cyxcloud_core::placement::tolerance;
use cyxcloud_core::repair::{self, Place, Plan, Urgency};
use cyxcloud_core::seal::OwnerSecret;
use cyxcloud_dataplane::{RepairError, Repaired, repair_cost};
use cyxcloud_metadata::Error as MetadataError;
use cyxcloud_metadata::upkeep::model::{RepairDone, RepairJob, StripeState};
use futures::future::join_all;
use tokio::task::{JoinError, JoinSet};
use tracing::{debug, info, warn};

use crate::Context;
use crate::cluster::{self, Cluster};

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
fn pass_on(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// One job, with its claim kept for as long as it takes.
async fn work(ctx: Arc<Context>, job: RepairJob) {
    let lease = ctx.tuning.repair_lease();
    let keep = async {
        loop {
            tokio::time::sleep(lease / 3).await;
            if let Err(error @ MetadataError::Stale { .. }) =
                ctx.metadata.renew_repair(job.id, job.fence, lease).await
            {
                return error;
            }
        }
    };
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

/// Waits until what this repair moves fits into the budgets, of which busy nodes leave less.
async fn yield_to_others(ctx: &Context, cluster: &Cluster, state: &StripeState, plan: &Plan, cost: u64) {
    let began = Instant::now();
    let chunk = state.chunk_len().get();
    let nodes = plan.additions.iter().map(|(_, node)| async {
        let part = repair::part_of_budget(cluster.nodes.get(node).map_or(0, |node| node.cpu_usage));
        ctx.node_budgets.of(*node).take_of(part, chunk).await;
    });
    let all = ctx.repair_budget.take_of(repair::part_of_budget(cluster.cpu_usage), cost);
    tokio::join!(join_all(nodes), all);
    ctx.metrics.repair_waited.inc_by(began.elapsed().as_secs_f64());
}

async fn make(
    ctx: &Context,
    cluster: &Cluster,
    state: &StripeState,
    plan: &Plan,
    can_wait: bool,
) -> Result<RepairDone, Failure> {
    let mut made = Repaired::default();
    if !plan.additions.is_empty() {
        let secret = secret(ctx, state).await?;
        let cost = repair_cost(state, &plan.additions).get();
        if can_wait {
            yield_to_others(ctx, cluster, state, plan, cost).await;
        }
        made = ctx.plane.repair(state, &secret, &plan.additions).await?;
        ctx.metrics.repair_bytes.inc_by(cost);
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
    let removed = repair::all_removals(&cluster::stripe(state, &locations), &plan.health, &held, plan.goal);
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
