//! Asks nodes to prove what they hold, by the call that ranged reads use.
//!
//! A node is asked for a random slice of a random chunk of its own, at times that it cannot foresee; of stripes that are at
//! risk every location is asked for; and what a reader was sent wrong is asked for at once. What a node cannot prove is marked
//! and repaired, and counts against it; what comes too late, or not at all from a node that is heard, is asked again three times
//! and then counts as lost. A round in which a node of our own fails, or too many, says more about the auditor than about them,
//! and is thrown away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::reputation::{self, Record, Standing};
use cyxcloud_core::{ChunkId, NodeId, SegmentId, Timestamp, audit};
use cyxcloud_dataplane::Audited;
use cyxcloud_metadata::Result;
use cyxcloud_metadata::upkeep::model::{
    AuditEvent, AuditOutcome, AuditRecord, Contained, NodeCursor, NodeLocation, NodeUpkeep, ScanReason,
};
use futures::StreamExt;
use futures::future::try_join_all;
use rand::seq::IteratorRandom;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tracing::{info, warn};
use uuid::Uuid;

use crate::repair::pass_on;
use crate::{Context, ticks};

/// Nodes asked at the same time.
const AT_ONCE: usize = 32;
/// How often it is looked for audits that are owed an answer.
const OWED: Duration = Duration::from_secs(1);
/// Locations of stripes at risk that a round asks for.
const AT_RISK_MAX: usize = 64;
/// A stripe that waits for repair is at risk when it tolerates no more than so many losses: 12 shards of 10+4.
const AT_RISK_LOSSES: i32 = 2;
/// Proofs after which a failure is forgiven.
const PROOFS: u32 = 100;
/// A failure weighs less than this once [`PROOFS`] have come after it: the node may take new chunks again.
const FORGIVEN: f64 = 0.61;

/// One question.
#[derive(Debug)]
pub(crate) struct Question {
    node: NodeId,
    at: NodeCursor,
    size: cyxcloud_core::ByteCount,
    slice: std::ops::Range<u64>,
    /// Times the same was answered late before.
    late: u32,
}

/// Questions that were claimed and are to be asked.
pub(crate) type Claimed = UnboundedSender<Vec<Question>>;

/// How a question was answered.
struct Answered {
    question: Question,
    answer: Audited,
}

/// Audits until it is dropped. What others claimed comes by `claimed`.
pub(crate) async fn run(ctx: Arc<Context>, claimed: UnboundedReceiver<Vec<Question>>) {
    if ctx.tuning.audit_interval_secs == 0 {
        return std::future::pending().await;
    }
    tokio::join!(by_turns(&ctx), as_owed(&ctx, claimed));
}

async fn by_turns(ctx: &Context) {
    let interval = ctx.tuning.audit_interval();
    let mut turns = Turns { interval, chance: RandomState::new(), put_off: HashMap::new() };
    let mut ticks = ticks(audit::tick(interval));
    loop {
        ticks.tick().await;
        if let Err(error) = turns.round(ctx).await {
            ctx.metrics.failed("audit", &error);
        }
    }
}

async fn as_owed(ctx: &Arc<Context>, mut claimed: UnboundedReceiver<Vec<Question>>) {
    let mut ticks = ticks(OWED);
    let mut under_way = JoinSet::new();
    loop {
        let questions = tokio::select! {
            Some(ended) = under_way.join_next() => {
                pass_on(ended);
                continue;
            }
            Some(questions) = claimed.recv() => Ok(questions),
            _ = ticks.tick() => claim(ctx).await,
        };
        match questions {
            Ok(questions) if questions.is_empty() => {}
            Ok(questions) => drop(under_way.spawn(settle(ctx.clone(), questions))),
            Err(error) => ctx.metrics.failed("claim audits", &error),
        }
    }
}

/// Has nodes answer what they owe, each in a round of its own: those who fail together would never be judged, for together they
/// come again. Who is not heard is asked when it returns.
async fn settle(ctx: Arc<Context>, questions: Vec<Question>) {
    let settled = async {
        let (nodes, now) = nodes_now(&ctx).await?;
        let heard = heard(&nodes, now);
        let mut owing: BTreeMap<NodeId, Vec<Question>> = BTreeMap::new();
        for question in questions.into_iter().filter(|question| heard.contains(&question.node)) {
            owing.entry(question.node).or_default().push(question);
        }
        try_join_all(owing.into_values().map(|questions| round(&ctx, &nodes, now, questions))).await
    };
    if let Err(error) = settled.await {
        ctx.metrics.failed("audit", &error);
    }
}

/// Audits that are owed an answer and whose time has come.
async fn claim(ctx: &Context) -> Result<Vec<Question>> {
    let lease = ctx.tuning.audit_timeout() * 4;
    let claimed = ctx.metadata.claim_contained(AT_ONCE, lease).await?;
    let question =
        |Contained { node, at, size, slice, attempts }| Question { node, at, size, slice, late: attempts };
    Ok(claimed.into_iter().map(question).collect())
}

/// Claims what is owed, for whoever is about to change the locations that it is about: what goes with them is asked all the same.
pub(crate) async fn call_in(ctx: &Context) {
    if ctx.tuning.audit_interval_secs == 0 {
        return;
    }
    match claim(ctx).await {
        // Nobody listens only where all ends.
        Ok(questions) => drop(ctx.claimed.send(questions)),
        Err(error) => ctx.metrics.failed("claim audits", &error),
    }
}

/// Whose turn it is.
struct Turns {
    interval: Duration,
    /// Foreseen by nobody, and the same from round to round.
    chance: RandomState,
    /// When a round that they were asked in was thrown away. They come again at other times: those who fail would go on to fail
    /// together.
    put_off: HashMap<NodeId, Timestamp>,
}

impl Turns {
    async fn round(&mut self, ctx: &Context) -> Result<()> {
        let (nodes, now) = nodes_now(ctx).await?;
        let heard = heard(&nodes, now);
        let mut questions = at_risk(ctx, &heard).await?;
        for node in nodes.iter().filter(|node| heard.contains(&node.node) && self.is_due(node, now)) {
            questions.extend(question(ctx, node).await?);
        }
        let asked: HashSet<NodeId> = questions.iter().map(|question| question.node).collect();
        if !asked.is_empty() && !round(ctx, &nodes, now, questions).await? {
            self.put_off.extend(asked.into_iter().map(|node| (node, now)));
        }
        Ok(())
    }

    fn is_due(&self, node: &NodeUpkeep, now: Timestamp) -> bool {
        let interval = self.interval / audit::pace(node.audits.vetted, node.quarantined);
        let last = node.audits.last_audit.max(self.put_off.get(&node.node).copied());
        // The same draw until it has been audited, another one then.
        let draw =
            self.chance.hash_one((node.node, last.map(|last| last.unix_millis()))) as f64 / u64::MAX as f64;
        audit::due(last, audit::jittered(interval, draw), now)
    }
}

async fn nodes_now(ctx: &Context) -> Result<(Vec<NodeUpkeep>, Timestamp)> {
    Ok((ctx.metadata.nodes_upkeep().await?, ctx.metadata.now().await?))
}

/// Those that an answer can be expected of.
fn heard(nodes: &[NodeUpkeep], now: Timestamp) -> HashSet<NodeId> {
    let heard = nodes.iter().filter(|node| audit::is_heard(node.status, node.last_heartbeat, now));
    heard.map(|node| node.node).collect()
}

/// Asks, and has the answers judged; false if they were thrown away.
async fn round(
    ctx: &Context,
    nodes: &[NodeUpkeep],
    now: Timestamp,
    mut questions: Vec<Question>,
) -> Result<bool> {
    // Who registered since the last look could not be asked.
    ctx.plane.refresh_nodes().await?;
    let mut left = heard(nodes, now);
    left.retain(|node| questions.iter().all(|question| question.node != *node));
    // Ours stand in every round: if they fail, the others' failures say nothing.
    let canaries = &ctx.tuning.audit_canaries;
    let others: Vec<NodeId> = canaries.iter().copied().filter(|node| left.remove(node)).collect();
    questions.extend(questions_for(ctx, nodes, &others).await?);
    let mut answers = ask_all(ctx, questions).await;
    if !answers.iter().any(|answered| matches!(answered.answer, Audited::Proven)) {
        let held_back = |node: &NodeId| nodes.iter().any(|at| at.node == *node && at.quarantined);
        let witnesses = left.into_iter().filter(|node| !held_back(node));
        let witnesses = witnesses.sample(&mut rand::rng(), audit::WITNESSES);
        answers.extend(ask_all(ctx, questions_for(ctx, nodes, &witnesses).await?).await);
    }
    // Who went away meanwhile is not to blame for its silence.
    let (heard, now) = match answers.iter().any(|answered| is_silence(&answered.answer)) {
        true => nodes_now(ctx).await.map(|(nodes, now)| (heard(&nodes, now), now))?,
        false => (HashSet::new(), now),
    };
    let (id, asked) = (Uuid::new_v4(), answers.len());
    let (mut events, answered): (Vec<AuditEvent>, Vec<bool>) =
        answers.iter().map(|answered| (answered.event(id, &heard), !is_silence(&answered.answer))).unzip();
    let held_back: HashSet<NodeId> =
        nodes.iter().filter(|node| node.quarantined).map(|node| node.node).collect();
    let canary_failed = events.iter().any(|event| canaries.contains(&event.node) && is_suspicious(event));
    // Where nobody at all answers, the line may be cut at this end.
    let cut = answered.iter().all(|answered| !answered);
    let discarded = cut || is_discarded(&events, canary_failed, &held_back);
    if discarded {
        ctx.metrics.rounds_discarded.inc();
        warn!(asked, cut, canary_failed, "a round of audits is thrown away: too many failed together");
        // But for what those said who had failed before: the others' failures don't excuse theirs.
        let mut answered = answered.into_iter();
        events.retain(|event| {
            answered.next() == Some(true) && held_back.contains(&event.node) && !canary_failed
        });
    }
    keep(ctx, &events, &held_back, now).await?;
    Ok(!discarded)
}

async fn keep(
    ctx: &Context,
    events: &[AuditEvent],
    held_back: &HashSet<NodeId>,
    now: Timestamp,
) -> Result<()> {
    for event in events {
        ctx.metrics.audits.with_label_values(&[event.outcome.as_str()]).inc();
        if is_failure(event.outcome) {
            info!(node = %event.node, chunk = %event.at.chunk, outcome = event.outcome.as_str(), "audit failed");
            // One bad chunk, or many? Its whole inventory tells. A comparison under way goes on: begun anew by each failure it would
            // never come to its end. What is lost behind it the next one finds, which the next failure asks for.
            ctx.metadata.queue_inventory(event.node).await?;
        }
    }
    let again_after = Duration::from_secs(ctx.tuning.audit_again_secs);
    let vetting = Duration::from_secs(ctx.tuning.vetting_secs);
    let judge = |record: &AuditRecord, event: &AuditEvent| judge(record, event, vetting, now);
    ctx.metadata.record_audits(events, again_after, &judge).await?;
    // What it has is made elsewhere, and it is not asked for it: it may not answer. Once, for a look is begun anew by the next.
    let failed = events.iter().filter(|event| is_failure(event.outcome)).map(|event| event.node);
    for node in failed.filter(|node| !held_back.contains(node)).collect::<HashSet<NodeId>>() {
        ctx.metadata.queue_scan(node, ScanReason::Draining).await?;
    }
    Ok(())
}

/// Of stripes that could not lose much more, what was not proven lately, wherever it is held by nodes that are `heard`.
async fn at_risk(ctx: &Context, heard: &HashSet<NodeId>) -> Result<Vec<Question>> {
    if ctx.tuning.audit_risk_secs == 0 {
        return Ok(Vec::new());
    }
    // Asked for when half of the time is over, so that all are reached before its end.
    let unproven_for = Duration::from_secs(ctx.tuning.audit_risk_secs) / 2;
    let from = SegmentId::from_random(rand::random());
    let look = async |from| ctx.metadata.at_risk(from, AT_RISK_LOSSES, unproven_for, AT_RISK_MAX).await;
    let mut found = look(from).await?;
    let rest = AT_RISK_MAX.saturating_sub(found.len());
    if rest > 0 {
        // And on from the beginning: the first in the order would hardly ever have their turn.
        let first = look(SegmentId::from_uuid(Uuid::nil())).await?;
        found.extend(first.into_iter().filter(|(_, at)| at.at.stripe.segment < from).take(rest));
    }
    let questions = found.into_iter().filter(|(node, _)| heard.contains(node));
    Ok(questions.map(|(node, location)| about(node, location)).collect())
}

/// Asks for a slice of this.
fn about(node: NodeId, location: NodeLocation) -> Question {
    let slice = audit::pick_slice(location.size, &mut rand::rng());
    Question { node, at: location.at, size: location.size, slice, late: 0 }
}

/// A new question for each of these nodes that holds anything.
async fn questions_for(ctx: &Context, nodes: &[NodeUpkeep], ids: &[NodeId]) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for node in nodes.iter().filter(|node| ids.contains(&node.node)) {
        questions.extend(question(ctx, node).await?);
    }
    Ok(questions)
}

/// A new question for a node, if it holds anything.
async fn question(ctx: &Context, node: &NodeUpkeep) -> Result<Option<Question>> {
    let from: [ChunkId; audit::DRAWN] = std::array::from_fn(|_| ChunkId::from_bytes(rand::random()));
    let drawn = ctx.metadata.sample_locations(node.node, &from).await?;
    if let Some(location) = audit::pick_by_bytes(drawn, |location| location.size, &mut rand::rng()) {
        return Ok(Some(about(node.node, location)));
    }
    // All it had was made elsewhere. It comes back, to be asked for what it is given then, after the time that
    // its proofs would have taken.
    let quiet = ctx.tuning.audit_interval() / audit::BURST * PROOFS;
    if node.quarantined && ctx.metadata.forgive_empty(node.node, quiet).await? {
        info!(node = %node.node, "a node that has nothing left to prove takes new chunks again");
    }
    Ok(None)
}

async fn ask_all(ctx: &Context, questions: Vec<Question>) -> Vec<Answered> {
    let answers = futures::stream::iter(questions).map(async |question| ask(ctx, question).await);
    answers.buffer_unordered(AT_ONCE).collect().await
}

async fn ask(ctx: &Context, question: Question) -> Answered {
    let Question { node, at, size, ref slice, .. } = question;
    let (first_byte, deadline) = (ctx.tuning.audit_first_byte(), ctx.tuning.audit_timeout());
    let answer = ctx.plane.audit(node, at.chunk, size, slice.clone(), first_byte, deadline).await;
    Answered { question, answer }
}

impl Answered {
    /// What is kept of it. Nothing follows from the silence of who is not `heard` either.
    fn event(&self, round: Uuid, heard: &HashSet<NodeId>) -> AuditEvent {
        let Question { node, at, slice, late, .. } = &self.question;
        let outcome = match self.answer {
            Audited::Proven => AuditOutcome::Proven,
            Audited::Lost => AuditOutcome::Lost,
            Audited::Wrong => AuditOutcome::Wrong,
            Audited::Late | Audited::Unreachable if !heard.contains(node) => AuditOutcome::Unreachable,
            Audited::Late | Audited::Unreachable if audit::is_too_late(*late) => AuditOutcome::Lost,
            Audited::Late | Audited::Unreachable => AuditOutcome::Late,
        };
        let (node, at, slice) = (*node, *at, slice.clone());
        AuditEvent { round, node, at, slice, outcome, again: *late > 0, when: Timestamp::default() }
    }
}

fn is_silence(answer: &Audited) -> bool {
    match answer {
        Audited::Late | Audited::Unreachable => true,
        Audited::Proven | Audited::Lost | Audited::Wrong => false,
    }
}

fn is_failure(outcome: AuditOutcome) -> bool {
    match outcome {
        AuditOutcome::Lost | AuditOutcome::Wrong => true,
        AuditOutcome::Proven | AuditOutcome::Late | AuditOutcome::Unreachable => false,
    }
}

/// Whether it may be the auditor's fault. Who is not heard is not blamed for anything, so nobody needs to be protected from it.
fn is_suspicious(event: &AuditEvent) -> bool {
    is_failure(event.outcome) || event.outcome == AuditOutcome::Late
}

/// Who was held back already when the round began says nothing of the others: a few of them, who are asked so often, would have
/// every round thrown away.
fn is_discarded(events: &[AuditEvent], canary_failed: bool, held_back: &HashSet<NodeId>) -> bool {
    let counted = || events.iter().filter(|event| !held_back.contains(&event.node));
    let asked: HashSet<NodeId> = counted().map(|event| event.node).collect();
    let failed: HashSet<NodeId> =
        counted().filter(|event| is_suspicious(event)).map(|event| event.node).collect();
    audit::discard_round(asked.len(), failed.len(), canary_failed)
}

/// A node's record after an event, and whether it is held back from new data.
fn judge(
    record: &AuditRecord,
    event: &AuditEvent,
    vetting: Duration,
    now: Timestamp,
) -> (AuditRecord, Option<bool>) {
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
    let proven = record.proven + u64::from(success);
    let record = AuditRecord {
        alpha: after.alpha,
        beta: after.beta,
        proven,
        failed: record.failed + u64::from(!success),
        vetted: record.vetted
            || after.standing() == Standing::Trusted
                && audit::is_vetted(record.registered_at, proven, vetting, now),
        ..*record
    };
    (record, quarantined)
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::Geometry;
    use cyxcloud_core::node::NodeStatus;
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

    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn newcomer() -> AuditRecord {
        AuditRecord {
            alpha: 0.0,
            beta: 0.0,
            proven: 0,
            failed: 0,
            last_audit: None,
            registered_at: Timestamp::default(),
            vetted: false,
        }
    }

    #[test]
    fn adv_41_a_node_is_vetted_after_a_week_and_a_hundred_proofs() {
        let day = |days: i64| Timestamp::from_unix_millis(days * 86_400_000);
        let after = |proofs: usize, failing: bool, now| {
            let mut record = newcomer();
            if failing {
                for _ in 0..40 {
                    record = judge(&record, &event(1, AuditOutcome::Wrong), WEEK, now).0;
                }
            }
            for _ in 0..proofs {
                record = judge(&record, &event(1, AuditOutcome::Proven), WEEK, now).0;
            }
            record.vetted
        };
        assert!(!after(99, false, day(30)) && !after(5_000, false, day(6)));
        assert!(after(100, false, day(7)));
        assert!(!after(100, true, day(7)), "suspended");
        // Late answers and failures neither make nor take it.
        let vetted = AuditRecord { vetted: true, ..newcomer() };
        assert!(judge(&vetted, &event(1, AuditOutcome::Wrong), WEEK, day(1)).0.vetted);
        assert!(!judge(&newcomer(), &event(1, AuditOutcome::Late), WEEK, day(900)).0.vetted);
    }

    #[test]
    fn a_node_is_asked_at_other_times_than_its_neighbour() {
        let mut turns =
            Turns { interval: Duration::from_secs(900), chance: RandomState::new(), put_off: HashMap::new() };
        let last = Timestamp::from_unix_millis(1_000_000_000);
        let waits = |turns: &Turns, node: u8| -> usize {
            let node = NodeUpkeep {
                node: NodeId::from_random([node; 16]),
                status: NodeStatus::Online,
                status_changed_at: last,
                last_heartbeat: last,
                quarantined: false,
                audits: AuditRecord { last_audit: Some(last), vetted: true, ..newcomer() },
                reconciled_at: None,
                locations: 1,
            };
            let at = |secs: usize| last.plus(Duration::from_secs(secs as u64));
            let first = (0..4_000).find(|&secs| turns.is_due(&node, at(secs)));
            let first = first.expect("within one and a half times the interval");
            assert!((first..first + 100).all(|secs| turns.is_due(&node, at(secs))));
            first
        };
        let each: HashSet<usize> = (0..40).map(|node| waits(&turns, node)).collect();
        assert!(each.len() > 30 && each.iter().all(|wait| (450..=1350).contains(wait)), "{each:?}");
        // Two who failed in one round are not asked again in one.
        let later = last.plus(Duration::from_secs(2_000));
        turns.put_off.extend((0..40).map(|node| (NodeId::from_random([node; 16]), later)));
        let again: HashSet<usize> = (0..40).map(|node| waits(&turns, node)).collect();
        assert!(again.len() > 30 && again.iter().all(|wait| (2_450..=3_350).contains(wait)), "{again:?}");
    }

    #[test]
    fn a_failure_holds_a_node_back_until_it_has_proven_itself() {
        let mut record = newcomer();
        let mut held_back = None;
        let mut meet = |outcome| {
            let (next, verdict) = judge(&record, &event(1, outcome), WEEK, Timestamp::default());
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
        let discarded = |failed: u8, held_back: &[u8]| {
            let held_back = held_back.iter().map(|node| NodeId::from_random([*node; 16])).collect();
            is_discarded(&round(failed), false, &held_back)
        };
        assert!(!discarded(1, &[]) && !discarded(2, &[]) && discarded(3, &[]));
        assert!(is_discarded(&round(1), true, &HashSet::new()));
        // Who was held back before protects nobody, by failing or by not failing.
        assert!(!discarded(3, &[0, 1]) && !discarded(7, &[0, 1, 2, 3, 4, 5]));
        assert!(discarded(2, &[2, 3]), "two of eighteen");
    }

    #[test]
    fn who_is_heard_and_does_not_answer_fails_in_the_end() {
        let meet = |answer, late, is_heard: bool| {
            let AuditEvent { node, at, slice, .. } = event(1, AuditOutcome::Proven);
            let question = Question { node, at, size: cyxcloud_core::ByteCount::kib(1), slice, late };
            let heard = is_heard.then_some(node).into_iter().collect();
            let event = Answered { question, answer }.event(Uuid::nil(), &heard);
            (event.outcome, event.again)
        };
        for silence in [|| Audited::Late, || Audited::Unreachable] {
            assert_eq!(meet(silence(), 0, true), (AuditOutcome::Late, false));
            assert_eq!(meet(silence(), 2, true), (AuditOutcome::Late, true));
            assert_eq!(meet(silence(), 3, true), (AuditOutcome::Lost, true));
            assert_eq!(meet(silence(), 0, false), (AuditOutcome::Unreachable, false));
            assert_eq!(meet(silence(), 9, false), (AuditOutcome::Unreachable, true));
        }
        assert_eq!(meet(Audited::Proven, 3, true), (AuditOutcome::Proven, true));
        assert_eq!(meet(Audited::Wrong, 0, false), (AuditOutcome::Wrong, false));
    }
}
