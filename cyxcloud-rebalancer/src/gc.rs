//! Garbage: what nothing refers to is condemned, collected after its grace, and deleted from nodes.
//!
//! Each step looks once more at what the one before decided, in the database and by its clock; a delete names the
//! generation that was recorded, so that a node keeps whatever was stored since.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cyxcloud_core::{NodeId, crash_point};
use cyxcloud_dataplane::{Deleted, NodeError};
use cyxcloud_metadata::Result;
use cyxcloud_metadata::upkeep::model::{ChunkDelete, DeleteOutcome, GcBrake, GcHalt};
use futures::StreamExt;
use tracing::{error, info};

use crate::Context;

/// Segments or orphans in one transaction.
const BATCH: usize = 1_000;
/// Chunks on nodes whose rows go in one transaction, however large their segments: uploads and heartbeats may wait for it.
const CHUNKS: u64 = 20_000;
/// Deletes claimed at a time, and sent at the same time.
const DELETES: usize = 512;
const DELETES_AT_ONCE: usize = 32;
/// How long a round goes on deleting; then the other steps have their turn.
const DELETING: Duration = Duration::from_secs(60);
/// So many orphans of a node always go: what cut-off uploads leave, all there is of a small cluster.
const ORPHANS_FLOOR: u64 = 1_000;
/// Pause before a delete is tried again, doubled each time up to the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));

/// Collects until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    let mut halted = None;
    let mut tick = ctx.ticks();
    loop {
        tick.tick().await;
        match round(&ctx).await {
            Ok(halt) => {
                ctx.metrics.gc_halted.set(i64::from(halt.is_some()));
                if halt != halted {
                    match &halt {
                        Some(halt) => {
                            error!(why = %halt, "not all is collected until an operator has looked and asked for POST /api/v1/admin/gc/thaw")
                        }
                        None => info!("collection goes on"),
                    }
                    halted = halt;
                }
            }
            Err(error) => ctx.metrics.failed("collect garbage", &error),
        }
    }
}

/// One round of every step, each for as long as it finds full batches. What a brake keeps from one does not keep the others
/// from theirs: what was condemned before goes on, and can become less.
async fn round(ctx: &Context) -> Result<Option<GcHalt>> {
    let halts = [condemn(ctx).await?, collect(ctx).await?, condemn_orphans(ctx).await?];
    let began = Instant::now();
    while delete(ctx).await? >= DELETES && began.elapsed() < DELETING {}
    let state = ctx.metadata.gc_state().await?;
    let gauges = [
        ("candidates", state.candidates),
        ("condemned", state.condemned),
        ("deletes", state.deletes),
        ("deletes_due", state.deletes_due),
        ("orphans", state.orphans),
    ];
    for (kind, count) in gauges {
        ctx.metrics.garbage.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    let halt = halts.into_iter().flatten().next().or(state.frozen.map(GcHalt::Frozen));
    // That it is frozen is known already to whoever froze it.
    let braked = halt.iter().find(|halt| !matches!(halt, GcHalt::Frozen(_))).map(ToString::to_string);
    if braked != state.halted {
        ctx.metadata.note_gc_halt(braked.as_deref()).await?;
    }
    Ok(halt)
}

async fn condemn(ctx: &Context) -> Result<Option<GcHalt>> {
    let brake = GcBrake { max_fraction: ctx.tuning.gc_max_fraction, floor: ctx.tuning.gc_brake_floor };
    loop {
        let step = match ctx.metadata.condemn_segments(BATCH, brake).await? {
            Ok(step) => step,
            Err(halt) => return Ok(Some(halt)),
        };
        ctx.metrics.collected.with_label_values(&["segments_condemned"]).inc_by(step.taken);
        if step.taken > 0 {
            crash_point!("gc.condemned");
        }
        if (step.looked_at as usize) < BATCH {
            return Ok(None);
        }
    }
}

async fn collect(ctx: &Context) -> Result<Option<GcHalt>> {
    loop {
        let step = match ctx.metadata.collect_segments(ctx.tuning.gc_grace(), BATCH, CHUNKS).await? {
            Ok(step) => step,
            Err(halt) => return Ok(Some(halt)),
        };
        ctx.metrics.collected.with_label_values(&["segments_collected"]).inc_by(step.taken);
        ctx.metrics.collected.with_label_values(&["chunks_handed_over"]).inc_by(step.chunks);
        if step.taken > 0 {
            crash_point!("gc.collected");
        }
        // Few may be as many as were allowed.
        if step.looked_at == 0 {
            return Ok(None);
        }
    }
}

async fn condemn_orphans(ctx: &Context) -> Result<Option<GcHalt>> {
    let brake = GcBrake { max_fraction: ctx.tuning.gc_max_fraction, floor: ORPHANS_FLOOR };
    loop {
        let step = ctx.metadata.condemn_orphans(ctx.tuning.gc_grace(), BATCH, brake).await?;
        if (step.taken as usize) < BATCH {
            return Ok(step.halt);
        }
    }
}

/// Deletes what may go from nodes; answers how many were claimed.
async fn delete(ctx: &Context) -> Result<usize> {
    let (lease, silence) = (ctx.tuning.delete_lease(), ctx.tuning.offline());
    let claimed = ctx.metadata.claim_deletes(DELETES, lease, silence).await?;
    let count = claimed.len();
    let silent = Mutex::default();
    let outcomes: Vec<(i64, DeleteOutcome)> = futures::stream::iter(claimed)
        .map(async |delete| (delete.id, delete_one(ctx, &delete, &silent).await))
        .buffer_unordered(DELETES_AT_ONCE)
        .collect()
        .await;
    if !outcomes.is_empty() {
        crash_point!("gc.deleted");
        ctx.metadata.finish_deletes(&outcomes).await?;
    }
    Ok(count)
}

/// Not from nodes that are `silent`: others' deletes would wait while each of theirs is waited for.
async fn delete_one(ctx: &Context, delete: &ChunkDelete, silent: &Mutex<BTreeSet<NodeId>>) -> DeleteOutcome {
    let silent = || silent.lock().unwrap_or_else(PoisonError::into_inner);
    let later = || {
        ctx.metrics.collected.with_label_values(&["chunks_put_off"]).inc();
        DeleteOutcome::Later((RETRY.0 * (1 << delete.attempts.min(16))).min(RETRY.1))
    };
    if silent().contains(&delete.node) {
        return later();
    }
    let outcome = ctx.plane.nodes().delete_chunk(delete.node, delete.chunk, delete.generation).await;
    crash_point!("gc.deleted_one");
    let step = match outcome {
        Ok(Deleted::Gone) => "chunks_deleted",
        Ok(Deleted::Absent) => "chunks_absent",
        Ok(Deleted::KeptNewer) => "chunks_kept_newer",
        Err(error) => {
            tracing::debug!(node = %delete.node, chunk = %delete.chunk, %error, "chunk not deleted yet");
            if matches!(error, NodeError::TimedOut) {
                silent().insert(delete.node);
            }
            return later();
        }
    };
    ctx.metrics.collected.with_label_values(&[step]).inc();
    DeleteOutcome::Settled
}
