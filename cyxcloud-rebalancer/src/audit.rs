//! Asks nodes to prove what they hold, by the call that ranged reads use.
//!
//! A node is asked for a random slice of a random chunk of its own. What it cannot prove is marked and repaired, and counts
//! against it; what comes too late is asked again, and the third time counts as lost. A round in which too many fail
//! says more about the auditor than about them, and is thrown away.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::reputation::{self, Record, Standing};
use cyxcloud_core::{ChunkId, NodeId, Timestamp, audit};
use cyxcloud_dataplane::Audited;
use cyxcloud_metadata::Result;
use cyxcloud_metadata::upkeep::model::{
    AuditEvent, AuditOutcome, AuditRecord, Contained, NodeCursor, NodeUpkeep, ScanReason,
};
use futures::StreamExt;
use tracing::{info, warn};
use uuid::Uuid;

use crate::Context;

/// Nodes asked at the same time.
const AT_ONCE: usize = 32;
/// Late answers after which an audit counts as failed.
const LATE_MAX: u32 = 3;
/// After a failure a node is asked so many times as often, until it is trusted again.
const BURST: u32 = 25;
/// Proofs after which a failure is forgiven.
const PROOFS: u32 = 100;
/// A failure weighs less than this once [`PROOFS`] have come after it: the node may take new chunks again.
const FORGIVEN: f64 = 0.61;

/// One question.
struct Question {
    node: NodeId,
    at: NodeCursor,
    size: cyxcloud_core::ByteCount,
    slice: std::ops::Range<u64>,
    /// Times the same was answered late before.
    late: u32,
}

/// Audits until it is dropped.
pub(crate) async fn run(ctx: Arc<Context>) {
    if ctx.tuning.audit_interval_secs == 0 {
        return std::future::pending().await;
    }
    let interval = Duration::from_secs(ctx.tuning.audit_interval_secs);
    let mut tick = tokio::time::interval((interval / BURST).max(Duration::from_secs(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = round(&ctx, interval).await {
            ctx.metrics.failed("audit", &error);
        }
    }
}

async fn round(ctx: &Context, interval: Duration) -> Result<()> {
    let mut questions = contained(ctx).await?;
    questions.extend(due(ctx, interval).await?);
    if questions.is_empty() {
        return Ok(());
    }
    let deadline = Duration::from_secs(ctx.tuning.audit_timeout_secs);
    let id = Uuid::new_v4();
    let events: Vec<AuditEvent> = futures::stream::iter(questions)
        .map(async |question| ask(ctx, id, question, deadline).await)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    if is_discarded(&events, &ctx.tuning.audit_canaries) {
        ctx.metrics.rounds_discarded.inc();
        warn!(asked = events.len(), "a round of audits is thrown away: too many failed together");
        return Ok(());
    }
    for event in &events {
        ctx.metrics.audits.with_label_values(&[event.outcome.as_str()]).inc();
        if is_failure(event.outcome) {
            info!(node = %event.node, chunk = %event.at.chunk, outcome = event.outcome.as_str(), "audit failed");
            // One bad chunk, or many? Its whole inventory tells.
            ctx.metadata.queue_scan(event.node, ScanReason::Periodic).await?;
        }
    }
    let again_after = Duration::from_secs(ctx.tuning.audit_again_secs);
    ctx.metadata.record_audits(&events, again_after, &judge).await
}

/// Audits that are owed an answer and whose time has come.
async fn contained(ctx: &Context) -> Result<Vec<Question>> {
    let lease = Duration::from_secs(ctx.tuning.audit_timeout_secs) * 4;
    let claimed = ctx.metadata.claim_contained(AT_ONCE, lease).await?;
    let question =
        |Contained { node, at, size, slice, attempts }| Question { node, at, size, slice, late: attempts };
    Ok(claimed.into_iter().map(question).collect())
}

/// A new question for every node whose turn it is.
async fn due(ctx: &Context, interval: Duration) -> Result<Vec<Question>> {
    let now = ctx.metadata.now().await?;
    let mut questions = Vec::new();
    for node in ctx.metadata.nodes_upkeep().await? {
        if !is_due(&node, interval, now) {
            continue;
        }
        let from = ChunkId::from_bytes(rand::random());
        let Some(location) = ctx.metadata.sample_location(node.node, from).await? else {
            // All it had was made elsewhere. It comes back, to be asked for what it is given then, after the time that
            // its proofs would have taken.
            if node.quarantined && ctx.metadata.forgive_empty(node.node, interval / BURST * PROOFS).await? {
                info!(node = %node.node, "a node that has nothing left to prove takes new chunks again");
            }
            continue;
        };
        let slice = audit::pick_slice(location.size, &mut rand::rng());
        questions.push(Question { node: node.node, at: location.at, size: location.size, slice, late: 0 });
    }
    Ok(questions)
}

fn is_due(node: &NodeUpkeep, interval: Duration, now: Timestamp) -> bool {
    let interval = if node.quarantined { interval / BURST } else { interval };
    // How many it holds is found out by asking for one.
    node.status.serves_reads() && audit::due(node.audits.last_audit, 1, interval, now)
}

async fn ask(ctx: &Context, round: Uuid, question: Question, deadline: Duration) -> AuditEvent {
    let Question { node, at, size, slice, late } = question;
    let outcome = match ctx.plane.audit(node, at.chunk, size, slice.clone(), deadline).await {
        Audited::Proven => AuditOutcome::Proven,
        Audited::Lost => AuditOutcome::Lost,
        Audited::Wrong => AuditOutcome::Wrong,
        Audited::Late if late + 1 >= LATE_MAX => AuditOutcome::Lost,
        Audited::Late => AuditOutcome::Late,
        Audited::Unreachable => AuditOutcome::Unreachable,
    };
    AuditEvent { round, node, at, slice, outcome, again: late > 0, when: Timestamp::default() }
}

fn is_failure(outcome: AuditOutcome) -> bool {
    match outcome {
        AuditOutcome::Lost | AuditOutcome::Wrong => true,
        AuditOutcome::Proven | AuditOutcome::Late | AuditOutcome::Unreachable => false,
    }
}

fn is_discarded(events: &[AuditEvent], canaries: &[NodeId]) -> bool {
    let asked: HashSet<NodeId> = events.iter().map(|event| event.node).collect();
    // Who cannot be reached is not blamed for anything, so nobody needs to be protected from it.
    let failing = |event: &&AuditEvent| is_failure(event.outcome) || event.outcome == AuditOutcome::Late;
    let failed: HashSet<NodeId> = events.iter().filter(failing).map(|event| event.node).collect();
    let canary_failed = canaries.iter().any(|canary| failed.contains(canary));
    audit::discard_round(asked.len(), failed.len(), canary_failed)
}

/// A node's record after an event, and whether it is held back from new data.
fn judge(record: &AuditRecord, event: &AuditEvent) -> (AuditRecord, Option<bool>) {
    let success = match event.outcome {
        AuditOutcome::Proven => true,
        AuditOutcome::Lost | AuditOutcome::Wrong => false,
        AuditOutcome::Late | AuditOutcome::Unreachable => return (*record, None),
    };
    let before = Record { alpha: record.alpha, beta: record.beta };
    let after = reputation::update(before, success);
    let quarantined = match (success, after.standing()) {
        (false, _) => Some(true),
        (true, Standing::Trusted) if after.beta < FORGIVEN => Some(false),
        (true, Standing::Trusted | Standing::Suspended | Standing::Disqualified) => None,
    };
    let record = AuditRecord {
        alpha: after.alpha,
        beta: after.beta,
        proven: record.proven + u64::from(success),
        failed: record.failed + u64::from(!success),
        last_audit: record.last_audit,
    };
    (record, quarantined)
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::{Geometry, SegmentId};
    use cyxcloud_metadata::upkeep::model::StripeRef;

    use super::*;

    fn event(node: u8, outcome: AuditOutcome) -> AuditEvent {
        AuditEvent {
            round: Uuid::nil(),
            node: NodeId::from_random([node; 16]),
            at: NodeCursor {
                chunk: ChunkId::of(b"x"),
                stripe: StripeRef { segment: SegmentId::from_random([1; 16]), index: 0 },
                shard: Geometry::STANDARD.shard(0).expect("exists"),
            },
            slice: 0..1,
            outcome,
            again: false,
            when: Timestamp::default(),
        }
    }

    #[test]
    fn a_failure_holds_a_node_back_until_it_has_proven_itself() {
        let mut record = AuditRecord { alpha: 0.0, beta: 0.0, proven: 0, failed: 0, last_audit: None };
        let mut held_back = None;
        let mut meet = |outcome| {
            let (next, verdict) = judge(&record, &event(1, outcome));
            record = next;
            held_back = verdict.or(held_back);
            held_back
        };
        assert_ne!(meet(AuditOutcome::Proven), Some(true));
        assert_eq!(meet(AuditOutcome::Wrong), Some(true));
        assert_eq!(meet(AuditOutcome::Late), Some(true));
        for _ in 0..98 {
            assert_eq!(meet(AuditOutcome::Proven), Some(true));
        }
        for _ in 0..5 {
            meet(AuditOutcome::Proven);
        }
        assert_eq!(meet(AuditOutcome::Unreachable), Some(false));
    }

    #[test]
    fn a_round_in_which_many_fail_says_nothing() {
        let round = |failed: u8| -> Vec<AuditEvent> {
            let outcome = |n| if n < failed { AuditOutcome::Late } else { AuditOutcome::Proven };
            (0..20).map(|n| event(n, outcome(n))).collect()
        };
        assert!(!is_discarded(&round(1), &[]));
        assert!(!is_discarded(&round(2), &[]));
        assert!(is_discarded(&round(3), &[]));
        assert!(is_discarded(&round(1), &[NodeId::from_random([0; 16])]));
    }
}
