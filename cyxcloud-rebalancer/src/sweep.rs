//! The backstop: every stripe is looked at in turn, slowly, whoever forgot to ask for it.
//!
//! A pass goes on to its end, whoever joins meanwhile; the next one sees what that changed for the stripes before. What cannot be
//! read is passed by: it must not keep the rest from being looked at.

use std::sync::Arc;

use cyxcloud_metadata::Result;
use cyxcloud_metadata::upkeep::model::{NewRepair, StripeRef};

use crate::throttle::Throttle;
use crate::{Context, scan};

/// Stripes in one statement.
const PAGE: usize = 100;
/// Times that a page is tried before it is looked at stripe by stripe.
const TRIES: u32 = 3;

/// Sweeps until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    if ctx.tuning.sweep_stripes_per_sec == 0 {
        return std::future::pending().await;
    }
    let throttle = Throttle::new(ctx.tuning.sweep_stripes_per_sec);
    let mut tick = ctx.ticks();
    let (mut after, mut failures) = (None, 0);
    loop {
        let looked = if failures < TRIES {
            page(&ctx, after, &throttle).await
        } else {
            each(&ctx, after, &throttle).await
        };
        match looked {
            Ok(next) => (after, failures) = (next, 0),
            Err(error) => {
                failures += 1;
                ctx.metrics.failed("sweep", &error);
            }
        }
        if after.is_none() || failures > 0 {
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

/// The same, stripe by stripe, where one of them cannot be read.
async fn each(ctx: &Context, after: Option<StripeRef>, throttle: &Throttle) -> Result<Option<StripeRef>> {
    let stripes = ctx.metadata.list_stripes(after, PAGE).await?;
    throttle.take(stripes.len() as u64).await;
    scan::judge_each(ctx, &stripes, "sweep").await?;
    ctx.metrics.swept.inc_by(stripes.len() as u64);
    Ok(stripes.last().copied())
}
