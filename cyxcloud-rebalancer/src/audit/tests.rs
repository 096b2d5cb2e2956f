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
        vetting_since: Timestamp::default(),
        proven_before: 0,
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
    // Who was let back begins anew, however often it had proven itself before.
    let back = AuditRecord { proven: 5_000, proven_before: 5_000, vetting_since: day(7), ..newcomer() };
    let proven = |record: AuditRecord, times: usize, now| {
        let prove = |record: AuditRecord, _| judge(&record, &event(1, AuditOutcome::Proven), WEEK, now).0;
        (0..times).fold(record, prove)
    };
    assert!(!proven(back, 99, day(30)).vetted && !proven(back, 200, day(13)).vetted);
    assert!(proven(back, 100, day(14)).vetted);
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
fn who_lost_too_much_waits_for_an_administrator() {
    let after = |failures: usize, proofs: usize| {
        let outcomes = std::iter::repeat_n(AuditOutcome::Lost, failures)
            .chain(std::iter::repeat_n(AuditOutcome::Proven, proofs));
        outcomes.fold((newcomer(), None), |(record, held_back), outcome| {
            let (record, verdict) = judge(&record, &event(1, outcome), WEEK, Timestamp::default());
            (record, verdict.or(held_back))
        })
    };
    let (record, held_back) = after(10, 0);
    assert!(may_come_back(&record) && held_back == Some(true));
    assert_eq!(after(10, 2_000).1, Some(false));
    let (record, held_back) = after(11, 0);
    assert!(!may_come_back(&record) && held_back == Some(true));
    let (record, held_back) = after(11, 20_000);
    assert!(!may_come_back(&record) && held_back == Some(true));
    // One that was let back before this was so is held back again when it is asked next.
    let verdict = judge(&record, &event(1, AuditOutcome::Proven), WEEK, Timestamp::default()).1;
    assert_eq!(verdict, Some(true));
    assert!(may_come_back(&newcomer()), "its record begun anew");
}

fn id(node: u8) -> NodeId {
    NodeId::from_random([node; 16])
}

fn ids(nodes: &[u8]) -> HashSet<NodeId> {
    nodes.iter().copied().map(id).collect()
}

/// A hundred nodes are heard.
fn roll(held_back: &[u8], canaries: &[u8]) -> Roll {
    let heard = (0..100).map(id).collect();
    Roll { heard, held_back: ids(held_back), canaries: canaries.iter().copied().map(id).collect() }
}

fn answered(node: u8, answer: Audited) -> Answered {
    let AuditEvent { node, at, slice, .. } = event(node, AuditOutcome::Proven);
    let size = cyxcloud_core::ByteCount::kib(1);
    Answered { question: Question { node, at, size, slice, late: 0 }, answer }
}

/// The first so many answer wrong, the next so many not at all, and the others as they should, of so many.
fn answers(wrong: u8, silent: u8, of: u8) -> Vec<Answered> {
    let answer = |node: u8| {
        if node < wrong {
            Audited::Wrong
        } else if node < wrong + silent {
            Audited::Late
        } else {
            Audited::Proven
        }
    };
    (0..of).map(|node| answered(node, answer(node))).collect()
}

/// How many proofs, silences and failures are kept.
fn kept(roll: &Roll, answers: &[Answered]) -> (usize, usize, usize) {
    let (_, events) = roll.weigh(answers, Uuid::nil());
    let count = |outcome| events.iter().filter(|event| event.outcome == outcome).count();
    assert_eq!((count(AuditOutcome::Unreachable), count(AuditOutcome::Lost)), (0, 0));
    (count(AuditOutcome::Proven), count(AuditOutcome::Late), count(AuditOutcome::Wrong))
}

#[test]
fn where_many_fail_together_only_proofs_are_kept() {
    let kept = |wrong, of, held_back: &[u8]| kept(&roll(held_back, &[]), &answers(wrong, 0, of)).2;
    assert_eq!((kept(1, 20, &[]), kept(2, 20, &[]), kept(3, 20, &[])), (1, 2, 0));
    assert_eq!((kept(1, 2, &[]), kept(2, 8, &[])), (1, 0));
    // Who was held back before protects nobody, by failing or by not failing; nor do the others protect it.
    assert_eq!((kept(3, 20, &[0, 1]), kept(7, 20, &[0, 1, 2, 3, 4, 5])), (3, 7));
    assert_eq!(kept(2, 20, &[2, 3]), 0, "two of eighteen");
    assert_eq!(kept(5, 8, &[0, 1]), 2, "those who had failed before");
    let (doubts, events) = roll(&[], &[]).weigh(&answers(2, 0, 8), Uuid::nil());
    assert_eq!(doubts, Doubts { canary: false, cut: false, failures: true });
    assert_eq!(events.len(), 6);
    assert_eq!(left_out(ids(&[0, 1, 2, 3]), &events), ids(&[0, 1]), "they come at another time");
}

/// Two who are slow, or mean to be, would otherwise keep a small cluster from ever being audited.
#[test]
fn silence_is_kept_where_most_answer() {
    let kept = |silent, of| kept(&roll(&[], &[]), &answers(0, silent, of));
    assert_eq!((kept(2, 8), kept(2, 4), kept(20, 100)), ((6, 2, 0), (2, 2, 0), (80, 20, 0)));
    // The line to many is cut: nobody is blamed, and what was proven is kept.
    assert_eq!(
        (kept(3, 5), kept(6, 7), kept(7, 7), kept(1, 1)),
        ((2, 0, 0), (1, 0, 0), (0, 0, 0), (0, 0, 0))
    );
    // Silence does not excuse who failed, nor the other way round.
    let both = |wrong, silent, of| self::kept(&roll(&[], &[]), &answers(wrong, silent, of));
    assert_eq!((both(1, 2, 8), both(2, 2, 8), both(1, 5, 8)), ((5, 2, 1), (4, 2, 0), (2, 0, 1)));
    // One that is held back shows neither that the line is cut nor that it is not.
    let held_back = roll(&[0, 1, 2], &[]);
    assert_eq!(self::kept(&held_back, &answers(0, 3, 4)), (1, 3, 0));
    let told = |silent: u8| -> Vec<Answered> {
        let silent = (3..3 + silent).map(|node| answered(node, Audited::Unreachable));
        silent.chain((0..3).map(|node| answered(node, Audited::Proven))).collect()
    };
    assert_eq!(self::kept(&held_back, &told(1)), (3, 0, 0));
    assert_eq!(self::kept(&held_back, &answers(0, 3, 3)), (0, 0, 0), "nobody answers");
}

/// It is not silent of whom some answers came; and who is not heard any more is silent towards everybody.
#[test]
fn whoever_answers_anything_is_reached() {
    let mut answers = answers(0, 0, 1);
    answers.extend((0..9).map(|_| answered(0, Audited::Late)));
    assert_eq!(kept(&roll(&[], &[]), &answers), (1, 9, 0));
    let mut gone = roll(&[], &[]);
    gone.heard = ids(&[0, 1]);
    let answers = self::answers(0, 4, 5);
    let (doubts, events) = gone.weigh(&answers, Uuid::nil());
    assert!(doubts.cut && events.len() == 1, "two that are heard say nothing, and one answers");
    gone.heard = ids(&[3, 4]);
    let (doubts, events) = gone.weigh(&answers, Uuid::nil());
    let outcomes: Vec<AuditOutcome> = events.iter().map(|event| event.outcome).collect();
    use AuditOutcome::{Late, Proven, Unreachable};
    assert!(!doubts.cut);
    assert_eq!(outcomes, [Unreachable, Unreachable, Unreachable, Late, Proven]);
}

#[test]
fn witnesses_are_called_where_the_fault_may_be_ours() {
    let roll = roll(&[7, 8], &[5, 6, 200]);
    let wants = |wrong, silent, of| roll.wants_witnesses(&answers(wrong, silent, of));
    assert!(wants(1, 0, 1) && wants(0, 1, 1) && wants(0, 3, 5) && wants(2, 2, 4));
    assert!(!wants(0, 0, 1) && !wants(1, 0, 2) && !wants(0, 1, 2) && !wants(3, 2, 6));
    let (ours, others) = roll.beside(&ids(&[1, 5]));
    assert_eq!(ours, [id(6)], "the one that is asked is not asked twice, nor one that is not heard");
    let others: HashSet<NodeId> = others.into_iter().collect();
    assert!(others.is_disjoint(&ids(&[1, 5, 6, 7, 8, 200])) && others.len() == 95);
    // Alone with two that are well a node is judged, and not where one of them does no better.
    let alone = |answer: fn() -> Audited, other: fn() -> Audited| {
        kept(&roll, &[answered(1, answer()), answered(2, Audited::Proven), answered(3, other())])
    };
    let (wrong, late, proven) = (|| Audited::Wrong, || Audited::Late, || Audited::Proven);
    assert_eq!((alone(wrong, proven), alone(late, proven)), ((2, 0, 1), (2, 1, 0)));
    assert_eq!((alone(wrong, wrong), alone(late, late)), ((1, 0, 0), (1, 0, 0)));
}

#[test]
fn where_a_node_of_our_own_fails_nobody_is_blamed() {
    let round = |canary: Option<Audited>, held_back: &[u8]| {
        let mut answers = answers(1, 1, 12);
        answers.extend(canary.map(|answer| answered(50, answer)));
        kept(&roll(held_back, &[50, 51]), &answers)
    };
    assert_eq!((round(Some(Audited::Proven), &[]), round(None, &[])), ((11, 1, 1), (10, 1, 1)));
    for failed in [Audited::Wrong, Audited::Lost, Audited::Late, Audited::Unreachable] {
        assert_eq!(round(Some(failed), &[0, 1]), (10, 0, 0), "not even who had failed before");
    }
    // Ours that went away is silent towards everybody.
    let mut roll = roll(&[], &[50]);
    roll.heard.remove(&id(50));
    let (doubts, events) =
        roll.weigh(&[answered(50, Audited::Late), answered(1, Audited::Proven)], Uuid::nil());
    assert_eq!((doubts.canary, events.len()), (false, 2));
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
