//! The backstop: every stripe is looked at in turn, slowly, whoever forgot to ask for it.
//!
//! Begins anew when a node joins: stripes may then survive more than they do.

use std::sync::Arc;

use cyxcloud_core::repair::Urgency;
use cyxcloud_metadata::Result;
use cyxcloud_metadata::upkeep::model::{NewRepair, StripeRef};
use std::time::Duration;

use crate::Context;
use crate::throttle::Throttle;

/// Stripes in one statement.
const PAGE: usize = 100;

/// Sweeps until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    if ctx.tuning.sweep_stripes_per_sec == 0 {
        return std::future::pending().await;
    }
    let throttle = Throttle::new(ctx.tuning.sweep_stripes_per_sec);
    let mut tick = ctx.ticks();
    let (mut after, mut nodes) = (None, 0);
    loop {
        match page(&ctx, after, &throttle).await {
            Ok((next, candidates)) => {
                after = if candidates > nodes { None } else { next };
                nodes = candidates;
            }
            Err(error) => ctx.metrics.failed("sweep", &error),
        }
        if after.is_none() {
            tick.tick().await;
        }
    }
}

/// Looks at a page; answers where to go on, and how many nodes take new chunks.
async fn page(
    ctx: &Context,
    after: Option<StripeRef>,
    throttle: &Throttle,
) -> Result<(Option<StripeRef>, usize)> {
    let states = ctx.metadata.sweep_stripes(after, PAGE).await?;
    throttle.take(states.len() as u64).await;
    let cluster = ctx.watch.cluster().await?;
    ctx.metrics.swept.inc_by(states.len() as u64);
    let repairs: Vec<NewRepair> = states
        .iter()
        .filter_map(|state| {
            let (priority, delay) = match cluster.judge(state, ctx.repair_delay()).1 {
                Urgency::Now { priority } => (priority, Duration::ZERO),
                Urgency::After { priority, delay } => (priority, delay),
                Urgency::Whole | Urgency::Waits => return None,
            };
            Some(NewRepair { stripe: state.stripe, priority, delay, reason: "sweep".to_owned() })
        })
        .collect();
    ctx.metadata.queue_repairs(&repairs).await?;
    Ok((states.last().map(|state| state.stripe), cluster.candidates.len()))
}
