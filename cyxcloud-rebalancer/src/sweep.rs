//! The backstop: every stripe is looked at in turn, slowly, whoever forgot to ask for it.
//!
//! A pass goes on to its end, whoever joins meanwhile; the next one sees what that changed for the stripes before.

use std::sync::Arc;

use cyxcloud_metadata::Result;
use cyxcloud_metadata::upkeep::model::{NewRepair, StripeRef};

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
    let mut after = None;
    loop {
        match page(&ctx, after, &throttle).await {
            Ok(next) => after = next,
            Err(error) => ctx.metrics.failed("sweep", &error),
        }
        if after.is_none() {
            tick.tick().await;
        }
    }
}

/// Looks at a page; answers where to go on.
async fn page(ctx: &Context, after: Option<StripeRef>, throttle: &Throttle) -> Result<Option<StripeRef>> {
    let states = ctx.metadata.sweep_stripes(after, PAGE).await?;
    throttle.take(states.len() as u64).await;
    let cluster = ctx.watch.cluster().await?;
    ctx.metrics.swept.inc_by(states.len() as u64);
    let repairs: Vec<NewRepair> =
        states.iter().filter_map(|state| cluster.repair_of(state, ctx.repair_delay(), "sweep")).collect();
    ctx.metadata.queue_repairs(&repairs).await?;
    Ok(states.last().map(|state| state.stripe))
}
