//! Small duties: uploads that were given up end, usage is folded into totals, history is dropped in time, and what no node had room
//! for is tried again once one has.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::placement::Candidate;
use cyxcloud_core::repair::URGENT_MAX;
use cyxcloud_core::stripe::STRIPE_DEFAULT;
use cyxcloud_core::{ByteCount, NodeId};
use cyxcloud_metadata::Result;
use tracing::{debug, info};

use crate::Context;

/// Rows handled in one transaction.
const BATCH: usize = 1_000;
/// What a chunk of a full stripe of ten takes at least.
const CHUNK: ByteCount = ByteCount::bytes(STRIPE_DEFAULT.get() / 10);
/// Repairs that are hurried in one round.
const HURRIED_MAX: u64 = 100_000;
/// Ended multipart uploads are kept so long, for whoever asks again.
const ENDED_MULTIPARTS: Duration = Duration::from_secs(7 * 24 * 3600);

/// Keeps up until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    let mut tick = ctx.ticks();
    let mut roomy = HashSet::new();
    loop {
        tick.tick().await;
        match round(&ctx, &mut roomy).await {
            Ok(()) => ctx.metrics.healthy.set(1),
            Err(error) => {
                ctx.metrics.healthy.set(0);
                ctx.metrics.failed("upkeep", &error);
            }
        }
    }
}

/// One round: goes on while there are full batches. `roomy` had room in the last one.
async fn round(ctx: &Context, roomy: &mut HashSet<NodeId>) -> Result<()> {
    let metadata = &ctx.metadata;
    loop {
        let expired = metadata.expire_uploads(BATCH).await?;
        ctx.metrics.expired.inc_by(expired as u64);
        if expired > 0 {
            info!(count = expired, "uploads whose lease ran out were ended");
        }
        let folded = metadata.fold_usage(BATCH).await?;
        ctx.metrics.folded.inc_by(folded as u64);
        debug!(count = folded, "usage folded");
        if expired < BATCH && folded < BATCH {
            break;
        }
    }
    let history = Duration::from_secs(ctx.tuning.history_secs);
    let open_for = ctx.tuning.multipart_expiry_secs;
    let open_for = (open_for > 0).then(|| Duration::from_secs(open_for));
    while metadata.purge_repairs(history, BATCH).await? >= BATCH {}
    while metadata.purge_audits(history, BATCH).await? >= BATCH {}
    while metadata.purge_multiparts(ENDED_MULTIPARTS, open_for, BATCH).await? >= BATCH {}
    hurry(ctx, roomy).await?;
    show_queue(ctx).await
}

/// Has repairs that were in vain be tried again where somebody joined, returned or got space since: as many as that may hold.
async fn hurry(ctx: &Context, roomy: &mut HashSet<NodeId>) -> Result<()> {
    let cluster = ctx.watch.cluster().await?;
    let (now, mut left) = with_room(&cluster.candidates, roomy);
    *roomy = now;
    while left > 0 {
        let hurried = ctx.metadata.hurry_repairs(left.min(BATCH)).await?;
        left -= hurried;
        if hurried == 0 {
            break;
        }
    }
    Ok(())
}

/// Those that have room for a chunk of whatever stripe, and how many chunks those may hold that had none before.
fn with_room(candidates: &[Candidate], before: &HashSet<NodeId>) -> (HashSet<NodeId>, usize) {
    let roomy = || candidates.iter().filter(|node| node.free >= STRIPE_DEFAULT);
    let chunks = |node: &Candidate| node.free.get() / CHUNK.get();
    let fresh = roomy().filter(|node| !before.contains(&node.node)).map(chunks);
    let fresh = fresh.fold(0, u64::saturating_add).min(HURRIED_MAX);
    (roomy().map(|node| node.node).collect(), fresh as usize)
}

async fn show_queue(ctx: &Context) -> Result<()> {
    let queue = ctx.metadata.repair_queue().await?;
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let waiting: u64 = queue.pending.values().sum();
    let at_edge: u64 = queue.pending.range(..=URGENT_MAX).map(|(_, count)| count).sum();
    let gauges = [
        ("pending", waiting),
        ("pending_tolerating_no_loss", at_edge),
        ("to_spread", queue.to_spread),
        ("due", queue.due),
        ("in_progress", queue.in_progress),
        ("failed", queue.failed),
    ];
    for (state, n) in gauges {
        ctx.metrics.queue.with_label_values(&[state]).set(count(n));
    }
    ctx.metrics.oldest_due_secs.set(count(queue.oldest_due.unwrap_or_default().as_secs()));
    ctx.metrics.braked.set(i64::from(ctx.watch.cluster().await?.braked));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_space_has_room_again() {
        let node = |number: u8, free| Candidate {
            node: NodeId::from_random([number; 16]),
            free,
            operator: String::new(),
            subnet: String::new(),
            region: String::new(),
            weight_penalty: false,
            vetted: true,
        };
        let full = [node(1, ByteCount::gib(1)), node(2, ByteCount::kib(1))];
        let freed = [node(1, ByteCount::gib(1)), node(2, ByteCount::mib(4))];
        let (had, fresh) = with_room(&full, &HashSet::new());
        assert_eq!((had.len(), fresh), (1, 2_560));
        assert_eq!(with_room(&full, &had), (had.clone(), 0), "nobody else");
        let (all, fresh) = with_room(&freed, &had);
        assert_eq!((all.len(), fresh), (2, 10), "no more are tried than it may hold");
        assert_eq!(with_room(&full, &all).1, 0, "one less");
        let (_, most) = with_room(&[node(3, ByteCount::gib(1 << 20))], &all);
        assert_eq!(most as u64, HURRIED_MAX);
    }
}
