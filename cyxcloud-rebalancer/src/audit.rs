//! Asks nodes to prove what they hold, by the calls that readers use.
//!
//! A node is asked for a random slice of a random chunk of its own, at times that it cannot foresee; of stripes that are at
//! risk every location is asked for; and what a reader was sent wrong, or was denied, is asked for at once, all of it, by both calls
//! that readers use. What a node cannot prove is marked and repaired, and counts against it; what comes too late, or not at all from
//! a node that is heard, is asked again three times and then counts as lost. What was proven is kept whatever else happened in its round. Of the rest, what says more about the
//! auditor than about them is thrown away: all where a node of our own fails, failures where too many fail together, and silence
//! where more are silent than answer. Who is asked for what is at risk, or owes an answer, is judged in a round of its own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::reputation::{self, Record, Standing};
use cyxcloud_core::{ChunkId, NodeId, SegmentId, Timestamp, audit};
use cyxcloud_dataplane::Audited;
use cyxcloud_metadata::Result;
use cyxcloud_metadata::upkeep::model::{
    AuditEvent, AuditOutcome, AuditRecord, Contained, NodeCursor, NodeLocation, NodeUpkeep,
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
/// Locations of stripes at risk that a round asks for: bounded, for each is read and hashed whole by its node. 38,400 in six hours,
/// if a round comes every 36 s; what is left shows (`audits_at_risk_overdue`).
const AT_RISK_MAX: usize = 64;
/// Stripes, and locations, among which those are counted that were not reached in time.
const OVERDUE_MAX: usize = 1_000;
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
        let (by_turn, at_risk) = tokio::join!(turns.round(ctx), ask_at_risk(ctx));
        for outcome in [by_turn, at_risk] {
            if let Err(error) = outcome {
                ctx.metrics.failed("audit", &error);
            }
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

/// Has nodes answer what they owe. Who is not heard is asked when it returns.
async fn settle(ctx: Arc<Context>, questions: Vec<Question>) {
    let settled = async {
        let (nodes, now) = nodes_now(&ctx).await?;
        let heard = heard(&nodes, now);
        let owed = questions.into_iter().filter(|question| heard.contains(&question.node)).collect();
        each_alone(&ctx, &nodes, now, owed).await
    };
    if let Err(error) = settled.await {
        ctx.metrics.failed("audit", &error);
    }
}

/// Has what is at risk be proven by whoever holds it and is heard.
async fn ask_at_risk(ctx: &Context) -> Result<()> {
    if ctx.tuning.audit_risk_secs == 0 {
        return Ok(());
    }
    let (nodes, now) = nodes_now(ctx).await?;
    let heard = heard(&nodes, now);
    let questions = at_risk(ctx, &heard).await?;
    each_alone(ctx, &nodes, now, questions).await?;
    let first = SegmentId::from_uuid(Uuid::nil());
    let within = Duration::from_secs(ctx.tuning.audit_risk_secs);
    let overdue = ctx.metadata.at_risk(first, AT_RISK_LOSSES, within, OVERDUE_MAX).await?;
    let overdue = overdue.iter().filter(|(node, _)| heard.contains(node)).count();
    ctx.metrics.at_risk_overdue.set(i64::try_from(overdue).unwrap_or(i64::MAX));
    Ok(())
}

/// Asks each node in a round of its own: those who fail together would never be judged, for together they come again.
async fn each_alone(
    ctx: &Context,
    nodes: &[NodeUpkeep],
    now: Timestamp,
    questions: Vec<Question>,
) -> Result<()> {
    if questions.is_empty() {
        return Ok(());
    }
    ctx.plane.refresh_nodes().await?;
    let mut of_each: BTreeMap<NodeId, Vec<Question>> = BTreeMap::new();
    for question in questions {
        of_each.entry(question.node).or_default().push(question);
    }
    try_join_all(of_each.into_values().map(|questions| round(ctx, nodes, now, questions))).await?;
    Ok(())
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
    /// When a round was thrown away as far as it was about them. They come again at other times: those who fail would go on to
    /// fail together.
    put_off: HashMap<NodeId, Timestamp>,
}

impl Turns {
    async fn round(&mut self, ctx: &Context) -> Result<()> {
        let (nodes, now) = nodes_now(ctx).await?;
        let heard = heard(&nodes, now);
        let mut questions = Vec::new();
        for node in nodes.iter().filter(|node| heard.contains(&node.node) && self.is_due(node, now)) {
            questions.extend(question(ctx, node).await?);
        }
        if questions.is_empty() {
            return Ok(());
        }
        ctx.plane.refresh_nodes().await?;
        let put_off = round(ctx, &nodes, now, questions).await?;
        self.put_off.extend(put_off.into_iter().map(|node| (node, now)));
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

/// Asks, judges the answers and keeps what follows. Answers with those who were asked and of whom nothing is kept. The plane must
/// know them all: who registered since its last look could not be asked.
async fn round(
    ctx: &Context,
    nodes: &[NodeUpkeep],
    mut now: Timestamp,
    mut questions: Vec<Question>,
) -> Result<HashSet<NodeId>> {
    let asked: HashSet<NodeId> = questions.iter().map(|question| question.node).collect();
    let mut roll = Roll {
        heard: heard(nodes, now),
        held_back: nodes.iter().filter(|node| node.quarantined).map(|node| node.node).collect(),
        canaries: ctx.tuning.audit_canaries.clone(),
    };
    let (ours, others) = roll.beside(&asked);
    questions.extend(questions_for(ctx, nodes, &ours).await?);
    let mut answers = ask_all(ctx, questions).await;
    if roll.wants_witnesses(&answers) {
        let witnesses = others.into_iter().sample(&mut rand::rng(), audit::WITNESSES);
        answers.extend(ask_all(ctx, questions_for(ctx, nodes, &witnesses).await?).await);
    }
    // Who went away meanwhile is not to blame for its silence.
    if answers.iter().any(|answered| is_silence(&answered.answer)) {
        let (nodes, later) = nodes_now(ctx).await?;
        (roll.heard, now) = (heard(&nodes, later), later);
    }
    let (doubts, events) = roll.weigh(&answers, Uuid::new_v4());
    if events.len() < answers.len() {
        let (asked, kept, Doubts { canary, cut, failures }) = (answers.len(), events.len(), doubts);
        ctx.metrics.rounds_discarded.inc();
        warn!(asked, kept, canary, cut, failures, "part of a round of audits is thrown away");
    }
    keep(ctx, &events, now).await?;
    Ok(left_out(asked, &events))
}

/// Who is who in a round.
#[derive(Debug)]
struct Roll {
    /// Of these an answer can be expected.
    heard: HashSet<NodeId>,
    /// They had failed before it began, and say nothing of the others: a few of them, who are asked so often, would have every
    /// round thrown away.
    held_back: HashSet<NodeId>,
    /// Ours.
    canaries: Vec<NodeId>,
}

/// In what the auditor doubts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubts {
    /// A node of ours failed, or is heard and was silent: nobody else's failure or silence says anything.
    canary: bool,
    /// The line may be cut at this end: silence says nothing.
    cut: bool,
    /// Too many failed together: it may be what is recorded of them that is wrong, or how it is checked.
    failures: bool,
}

impl Roll {
    /// Who is asked beside those who are: ours, who stand in every round; and out of whom witnesses are taken.
    fn beside(&self, asked: &HashSet<NodeId>) -> (Vec<NodeId>, Vec<NodeId>) {
        let left = self.heard.iter().copied().filter(|node| !asked.contains(node));
        let (ours, others): (Vec<NodeId>, Vec<NodeId>) = left.partition(|node| self.canaries.contains(node));
        (ours, others.into_iter().filter(|node| !self.held_back.contains(node)).collect())
    }

    /// Whether others are to show whose fault it is: nobody proved anything, or more were silent than answered.
    fn wants_witnesses(&self, answers: &[Answered]) -> bool {
        let proven = answers.iter().any(|answered| matches!(answered.answer, Audited::Proven));
        !proven || self.doubts(answers).cut
    }

    fn doubts(&self, answers: &[Answered]) -> Doubts {
        let counted = |pass: fn(&Audited) -> bool| -> HashSet<NodeId> {
            let passed = answers.iter().filter(|answered| pass(&answered.answer));
            passed
                .map(|answered| answered.question.node)
                .filter(|node| !self.held_back.contains(node))
                .collect()
        };
        let (asked, failed) = (counted(|_| true), counted(is_failing));
        let answered = counted(|answer| !is_silence(answer));
        let silent = asked.difference(&answered).filter(|node| self.heard.contains(*node)).count();
        let fails = |Answered { question, answer }: &Answered| {
            is_failing(answer) || is_silence(answer) && self.heard.contains(&question.node)
        };
        let canary =
            answers.iter().any(|answer| self.canaries.contains(&answer.question.node) && fails(answer));
        let nobody = answers.iter().all(|answered| is_silence(&answered.answer));
        Doubts {
            canary,
            cut: nobody || audit::is_cut_off(answered.len(), silent),
            failures: audit::discard_round(asked.len(), failed.len(), canary),
        }
    }

    /// What is kept of these answers: every proof, and what is not in doubt.
    fn weigh(&self, answers: &[Answered], round: Uuid) -> (Doubts, Vec<AuditEvent>) {
        let doubts = self.doubts(answers);
        let kept = answers.iter().filter(|answered| match answered.answer {
            Audited::Proven => true,
            // The others' failures do not excuse those who had failed before.
            Audited::Lost | Audited::Wrong => {
                let failed_before = self.held_back.contains(&answered.question.node);
                !doubts.failures || failed_before && !doubts.canary
            }
            Audited::Late | Audited::Unreachable => !doubts.cut && !doubts.canary,
        });
        (doubts, kept.map(|answered| answered.event(round, &self.heard)).collect())
    }
}

/// Those of whom nothing is kept.
fn left_out(mut asked: HashSet<NodeId>, kept: &[AuditEvent]) -> HashSet<NodeId> {
    for event in kept {
        asked.remove(&event.node);
    }
    asked
}

async fn keep(ctx: &Context, events: &[AuditEvent], now: Timestamp) -> Result<()> {
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
    ctx.metadata.record_audits(events, again_after, &judge).await
}

/// Of stripes that could not lose much more, what was not proven lately, wherever it is held by nodes that are `heard`.
async fn at_risk(ctx: &Context, heard: &HashSet<NodeId>) -> Result<Vec<Question>> {
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
    // its proofs would have taken, and as one that is new.
    let quiet = ctx.tuning.audit_interval() / audit::BURST * PROOFS;
    let may = node.quarantined && may_come_back(&node.audits);
    if may && ctx.metadata.forgive_empty(node.node, quiet).await? {
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

/// It says, or shows, that it does not have it.
fn is_failing(answer: &Audited) -> bool {
    match answer {
        Audited::Lost | Audited::Wrong => true,
        Audited::Proven | Audited::Late | Audited::Unreachable => false,
    }
}

fn is_failure(outcome: AuditOutcome) -> bool {
    match outcome {
        AuditOutcome::Lost | AuditOutcome::Wrong => true,
        AuditOutcome::Proven | AuditOutcome::Late | AuditOutcome::Unreachable => false,
    }
}

fn reputation_of(record: &AuditRecord) -> Record {
    Record { alpha: record.alpha, beta: record.beta }
}

/// Whether a node that has nothing left to prove itself by may take new chunks again. Who lost too much waits for an administrator.
fn may_come_back(record: &AuditRecord) -> bool {
    match reputation_of(record).standing() {
        Standing::Trusted | Standing::Suspended => true,
        Standing::Disqualified => false,
    }
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
    let after = reputation::update(reputation_of(record), success);
    let quarantined = match (success, after.standing()) {
        (false, _) | (true, Standing::Disqualified) => Some(true),
        (true, Standing::Trusted) if after.beta < FORGIVEN => Some(false),
        (true, Standing::Trusted | Standing::Suspended) => None,
    };
    let proven = record.proven + u64::from(success);
    let proven_since = proven.saturating_sub(record.proven_before);
    let record = AuditRecord {
        alpha: after.alpha,
        beta: after.beta,
        proven,
        failed: record.failed + u64::from(!success),
        vetted: record.vetted
            || after.standing() == Standing::Trusted
                && audit::is_vetted(record.vetting_since, proven_since, vetting, now),
        ..*record
    };
    (record, quarantined)
}

#[cfg(test)]
mod tests;
