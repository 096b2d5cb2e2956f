//! Histories that are known to be good or bad.

use proptest::prelude::*;

use super::*;

fn value(n: u8) -> Value {
    [n; 32]
}

fn write(n: u8) -> Act {
    Act::Write(Some(value(n)))
}

fn read(n: u8) -> Act {
    Act::Read(Some(value(n)))
}

fn history(ops: &[(u64, Option<u64>, Act)]) -> Vec<Op> {
    let each = ops.iter().enumerate().map(|(id, &(call, ret, act))| Op { id: id as u64, call, ret, act });
    each.collect()
}

fn holds(ops: &[(u64, Option<u64>, Act)]) -> bool {
    linearizable(&history(ops)).is_ok()
}

#[test]
fn a_read_sees_what_was_written_before_it() {
    assert!(holds(&[(0, Some(1), write(1)), (2, Some(3), read(1))]));
    assert!(!holds(&[(0, Some(1), write(1)), (2, Some(3), write(2)), (4, Some(5), read(1))]), "stale");
    assert!(!holds(&[(0, Some(1), write(1)), (2, Some(3), Act::Read(None))]), "lost");
    assert!(!holds(&[(0, Some(1), read(1))]), "from nowhere");
    assert!(!holds(&[(0, Some(1), read(1)), (2, Some(3), write(1))]), "from the future");
    assert!(
        !holds(&[(0, Some(1), write(1)), (2, Some(3), Act::Write(None)), (4, Some(5), read(1))]),
        "undead"
    );
}

#[test]
fn operations_that_overlap_may_come_in_either_order() {
    let racing = [(0, Some(10), write(1)), (0, Some(10), write(2))];
    for seen in [1, 2] {
        let mut ops = racing.to_vec();
        ops.extend([(11, Some(12), read(seen)), (13, Some(14), read(seen))]);
        assert!(holds(&ops), "either, and then that one");
        ops.push((15, Some(16), read(3 - seen)));
        assert!(!holds(&ops), "but it doesn't change its mind");
    }
    assert!(holds(&[(0, Some(10), write(1)), (1, Some(2), Act::Read(None)), (3, Some(4), read(1))]));
    assert!(
        !holds(&[(0, Some(10), write(1)), (1, Some(2), read(1)), (3, Some(4), Act::Read(None))]),
        "back again"
    );
}

#[test]
fn what_nobody_answered_may_happen_late_or_never_but_only_once() {
    let open = [(0, None, write(1)), (1, Some(2), write(2))];
    let then = |reads: &[u8]| {
        let mut ops = open.to_vec();
        let each = reads.iter().zip(0..).map(|(n, at)| (10 + 2 * at, Some(11 + 2 * at), read(*n)));
        ops.extend(each);
        holds(&ops)
    };
    assert!(then(&[2, 2]), "never");
    assert!(then(&[1, 1]), "before it was heard of");
    assert!(then(&[2, 1, 1]), "late");
    assert!(!then(&[2, 1, 2]), "twice");
    assert!(!then(&[2, 3]), "something else");
}

#[test]
fn a_creation_needs_absence() {
    assert!(holds(&[(0, Some(1), Act::Create(value(1))), (2, Some(3), Act::Exists(true))]));
    assert!(!holds(&[(0, Some(1), write(1)), (2, Some(3), Act::Create(value(2)))]));
    assert!(
        !holds(&[(0, Some(9), Act::Create(value(1))), (0, Some(9), Act::Create(value(2)))]),
        "one of two"
    );
    assert!(holds(&[
        (0, Some(9), write(1)),
        (0, Some(9), Act::Write(None)),
        (0, Some(9), Act::Exists(false))
    ]));
}

#[test]
fn many_unanswered_writes_stay_cheap() {
    let mut ops: Vec<_> = (0..60).map(|n| (u64::from(n), None, write(n))).collect();
    ops.extend((0..60_u8).map(|n| (1_000 + 10 * u64::from(n), Some(1_005 + 10 * u64::from(n)), read(n))));
    assert!(holds(&ops));
    ops.push((5_000, Some(5_001), read(0)));
    assert!(!holds(&ops), "each only once");
}

/// What clients might do: which act, how long before and after its effect, and whether its end is known.
fn intents() -> impl Strategy<Value = Vec<(u8, u8, u64, u64, bool)>> {
    proptest::collection::vec((0..6_u8, 0..4_u8, 0..25_u64, 0..25_u64, proptest::bool::weighted(0.9)), 1..60)
}

/// Operations that took effect one after the other, ten apart, on a register that works.
fn played(intents: &[(u8, u8, u64, u64, bool)]) -> Vec<Op> {
    let mut now: Option<Value> = None;
    let mut ops = Vec::new();
    for (id, &(kind, n, before, after, known)) in intents.iter().enumerate() {
        let effect = 100 + 10 * id as u64;
        let act = match kind {
            0 | 1 => write(n),
            2 => Act::Write(None),
            3 | 4 => Act::Read(now),
            _ => Act::Exists(now.is_some()),
        };
        let Some(then) = act.on(now) else { continue };
        now = then;
        let ret = (known || kind > 2).then_some(effect + after);
        ops.push(Op { id: id as u64, call: effect - before, ret, act });
    }
    ops
}

proptest! {
    #[test]
    fn what_a_register_did_is_always_explained(intents in intents()) {
        prop_assert_eq!(linearizable(&played(&intents)), Ok(()));
    }

    #[test]
    fn a_value_that_was_never_written_is_always_noticed(intents in intents(), place in 0..60_usize) {
        let mut ops = played(&intents);
        let place = place % ops.len();
        ops[place].act = read(99);
        ops[place].ret = ops[place].ret.or(Some(u64::MAX));
        prop_assert!(linearizable(&ops).is_err());
    }

    #[test]
    fn a_lost_write_is_always_noticed(intents in intents()) {
        let mut ops = played(&intents);
        let end = 10_000;
        ops.push(Op { id: 1_000, call: end, ret: Some(end + 1), act: write(50) });
        ops.push(Op { id: 1_001, call: end + 2, ret: Some(end + 3), act: Act::Read(None) });
        // A delete that nobody answered may have come late, unless it had to come before.
        let open_delete = ops.iter().any(|op| op.ret.is_none() && op.act == Act::Write(None));
        prop_assert!(open_delete || linearizable(&ops).is_err());
    }
}
