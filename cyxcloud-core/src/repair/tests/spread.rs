//! Shards of one operator are moved apart, after all else.

use super::*;

/// Fourteen operators, of whom the first two have two nodes: the last ones.
fn fourteen() -> Vec<usize> {
    (1..=14).chain([1, 2]).collect()
}

/// Shards 0 and 13 with the first operator, none with the last.
fn crowded() -> Vec<(ShardIndex, NodeId, Belief)> {
    stored(Geometry::STANDARD, (0..13).map(|i| (i, i)).chain([(13, 14)]))
}

#[test]
fn a_second_shard_of_an_operator_goes_to_one_that_has_none() {
    let (nodes, operators) = operated(&fourteen());
    let locations = crowded();
    let stripe = Stripe { operators: &operators, ..standard(&locations) };
    for seed in 0..20 {
        let plan = plan(&stripe, |_| Presence::Here, &nodes, &mut rng(seed));
        assert_eq!((plan.spreads, plan.additions.len(), plan.removals.len()), (true, 1, 0));
        let (moved, to) = plan.additions[0];
        assert!([0, 13].contains(&moved.get()) && number(to) == 13, "{moved:?} to {to:?}");
        // After all else, and not while we suspect ourselves.
        assert_eq!(plan.urgency(Duration::ZERO, &CALM), Urgency::Now { priority: SPREAD_PRIORITY });
        assert_eq!(plan.urgency(Duration::ZERO, &BRAKED), Urgency::Waits);
        // The other half: what the crowded operator has of it goes, and not what was just made. Until then nothing does.
        let held = joined(&plan.health.here, &plan.additions);
        let from = if moved.get() == 0 { (0, 0) } else { (13, 14) };
        assert_eq!(rows(&all_removals(&stripe, &plan.health, &held, plan.goal)), [from]);
        assert_eq!(all_removals(&stripe, &plan.health, &plan.health.here, plan.goal), []);
    }
}

#[test]
fn nothing_moves_where_anything_else_is_to_be_done_or_somebody_lacks() {
    let locations = crowded();
    let planned = |nodes: &[Candidate],
                   operators: &Operators,
                   at: &[(ShardIndex, NodeId, Belief)],
                   away: Option<usize>| {
        let stripe = Stripe { operators, ..standard(at) };
        let of = |node| if Some(number(node)) == away { Presence::Away } else { Presence::Here };
        let plan = plan(&stripe, of, nodes, &mut rng(1));
        (plan.spreads, plan.additions.len(), plan.urgency(Duration::ZERO, &CALM))
    };
    let (nodes, operators) = operated(&fourteen());
    assert!(planned(&nodes, &operators, &locations, None).0);
    // The fourteenth has no room, is failing, or takes nothing.
    let last = |change: fn(&mut Candidate)| {
        let mut nodes = nodes.clone();
        change(&mut nodes[13]);
        planned(&nodes, &operators, &locations, None)
    };
    let nothing = (false, 0, Urgency::Whole);
    assert_eq!(last(|node| node.free = ByteCount::bytes(CHUNK.get() - 1)), nothing);
    assert_eq!(last(|node| node.weight_penalty = true), nothing);
    let without: Vec<Candidate> = nodes.iter().filter(|at| number(at.node) != 13).cloned().collect();
    assert_eq!(planned(&without, &operators, &locations, None), nothing);
    // It is one that has a shard already, under another node.
    let (thirteen, of_thirteen) = operated(&(1..=13).chain([3, 1, 2]).collect::<Vec<usize>>());
    assert_eq!(planned(&thirteen, &of_thirteen, &locations, None), nothing);
    // Somebody is away, or what it has is missing: that comes first, if anything does.
    assert_eq!(planned(&nodes, &operators, &locations, Some(5)), (false, 0, Urgency::Waits));
    let mut missing = crowded();
    missing[5].2 = Belief::Missing;
    assert_eq!(planned(&nodes, &operators, &missing, None), (false, 1, Urgency::Now { priority: 3 }));
    // Nobody has two.
    let apart = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    assert_eq!(planned(&nodes, &operators, &apart, None), nothing);
}

#[test]
fn copies_lie_with_distinct_operators_where_there_are_as_many() {
    let geometry = Geometry::STANDARD_SMALL;
    let locations = stored(geometry, (0..3).map(|i| (0, i)));
    let planned = |numbers: &[usize]| {
        let (nodes, operators) = operated(numbers);
        let small = Stripe { operators: &operators, ..stripe(geometry, 2, &locations) };
        let plan = plan(&small, |_| Presence::Here, &nodes, &mut rng(1));
        let held = joined(&plan.health.here, &plan.additions);
        (rows(&plan.additions), rows(&all_removals(&small, &plan.health, &held, plan.goal)))
    };
    let (added, gone) = planned(&[1, 1, 2, 2, 3]);
    assert_eq!(added, [(0, 4)]);
    assert!(gone == [(0, 0)] || gone == [(0, 1)], "{gone:?}");
    assert_eq!(planned(&[1, 1, 2, 2, 1]), (vec![], vec![]));
    assert_eq!(planned(&[1, 1, 1, 2, 3]).0.len(), 2);
    assert_eq!(planned(&[0, 0, 0, 0, 0]), (vec![], vec![]));
}

#[test]
fn a_node_without_a_name_is_an_operator_of_its_own() {
    // One node has two shards, which is all that is wanted of the stripe's tolerance.
    let locations = stored(Geometry::STANDARD, (0..13).map(|i| (i, i)).chain([(13, 0)]));
    let planned = |target| {
        let stripe = stripe(Geometry::STANDARD, target, &locations);
        let plan = plan(&stripe, |_| Presence::Here, &candidates(0..14), &mut rng(1));
        (plan.spreads, plan.additions.iter().map(|(_, node)| number(*node)).collect::<Vec<_>>())
    };
    assert_eq!(planned(3), (true, vec![13]));
    assert_eq!(planned(4), (false, vec![13]), "that raises its tolerance");
}

/// Those that come to hold something have operators of their own, too, and what fails to move stays where it is.
#[test]
fn an_operator_that_has_everything_keeps_one() {
    let numbers: Vec<usize> = [1; 14].into_iter().chain(2..=14).chain(2..=14).collect();
    let (nodes, operators) = operated(&numbers);
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = Stripe { operators: &operators, ..standard(&locations) };
    let plan = plan(&stripe, |_| Presence::Here, &nodes, &mut rng(1));
    let given: BTreeSet<usize> = plan.additions.iter().map(|(_, node)| numbers[number(*node)]).collect();
    assert_eq!((plan.additions.len(), given), (13, (2..=14).collect::<BTreeSet<usize>>()));
    for stored in [1, 6, 13] {
        let held = joined(&plan.health.here, &plan.additions[..stored]);
        let gone = all_removals(&stripe, &plan.health, &held, plan.goal);
        assert_eq!(gone.len(), stored);
        assert!(gone.iter().all(|(_, node)| numbers[number(*node)] == 1), "{gone:?}");
    }
}

#[test]
fn nothing_is_moved_to_who_is_not_vetted() {
    let (mut nodes, operators) = operated(&fourteen());
    let locations = crowded();
    let stripe = Stripe { operators: &operators, ..standard(&locations) };
    let moved = |nodes: &[Candidate]| plan(&stripe, |_| Presence::Here, nodes, &mut rng(1)).additions.len();
    assert_eq!(moved(&nodes), 1);
    let holding: BTreeSet<NodeId> = locations.iter().map(|(_, node, _)| *node).collect();
    nodes.iter_mut().filter(|node| !holding.contains(&node.node)).for_each(|node| node.vetted = false);
    assert_eq!(moved(&nodes), 0);
    nodes.iter_mut().for_each(|node| node.vetted = false);
    assert_eq!(moved(&nodes), 1, "where all are new");
}

#[test]
fn of_equal_operators_one_on_another_network_and_vetted_is_given_more() {
    let numbers: Vec<usize> = fourteen().into_iter().chain([15, 16]).collect();
    let (mut nodes, operators) = operated(&numbers);
    // The fourteenth shares its network with a holder, the sixteenth is new.
    for at in [3, 13] {
        nodes[at].subnet = "10.0.0.0/24".to_owned();
    }
    nodes[17].vetted = false;
    let locations = crowded();
    let stripe = Stripe { operators: &operators, ..standard(&locations) };
    for seed in 0..20 {
        let plan = plan(&stripe, |_| Presence::Here, &nodes, &mut rng(seed));
        assert_eq!(plan.additions.iter().map(|(_, node)| number(*node)).collect::<Vec<_>>(), [16]);
    }
}
