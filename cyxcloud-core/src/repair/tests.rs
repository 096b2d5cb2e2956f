//! Repair keeps its promises on any stripe; the checker counts for itself.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const CHUNK: ByteCount = ByteCount::kib(410);
const DELAY: Duration = Duration::from_secs(900);
const CALM: RepairPolicy = RepairPolicy { delay: DELAY, braked: false };
const BRAKED: RepairPolicy = RepairPolicy { delay: DELAY, braked: true };
static STRANGERS: Operators = Operators::strangers();

fn node(number: usize) -> NodeId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&(number as u32).to_be_bytes());
    NodeId::from_random(bytes)
}

fn number(node: NodeId) -> usize {
    let bytes = node.as_bytes();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
}

fn candidate(number: usize) -> Candidate {
    Candidate {
        node: node(number),
        free: ByteCount::gib(100),
        operator: String::new(),
        subnet: String::new(),
        region: String::new(),
        weight_penalty: false,
        vetted: true,
    }
}

fn candidates(numbers: impl IntoIterator<Item = usize>) -> Vec<Candidate> {
    numbers.into_iter().map(candidate).collect()
}

fn coded(data: u8, parity: u8) -> Geometry {
    Geometry::coded(data, parity).expect("valid")
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Shards and nodes by number, all stored.
fn stored(
    geometry: Geometry,
    rows: impl IntoIterator<Item = (usize, usize)>,
) -> Vec<(ShardIndex, NodeId, Belief)> {
    rows.into_iter()
        .map(|(shard, at)| (geometry.shard(shard).expect("exists"), node(at), Belief::Stored))
        .collect()
}

fn stripe(
    geometry: Geometry,
    target_tolerance: u8,
    locations: &[(ShardIndex, NodeId, Belief)],
) -> Stripe<'_> {
    Stripe { geometry, target_tolerance, chunk_len: CHUNK, locations, operators: &STRANGERS }
}

fn standard(locations: &[(ShardIndex, NodeId, Belief)]) -> Stripe<'_> {
    stripe(Geometry::STANDARD, 4, locations)
}

/// Judged with these nodes absent in this way and all others here.
fn judged(stripe: &Stripe<'_>, absent: &[usize], presence: Presence) -> Health {
    judge(stripe, |node| if absent.contains(&number(node)) { presence } else { Presence::Here })
}

/// Candidates of these operators by number, and who runs them; 0: nobody else's.
fn operated(numbers: &[usize]) -> (Vec<Candidate>, Operators) {
    let nodes: Vec<Candidate> = numbers
        .iter()
        .enumerate()
        .map(|(at, operator)| Candidate { operator: operator_name(*operator), ..candidate(at) })
        .collect();
    let operators = nodes.iter().map(|at| (at.node, at.operator.as_str())).collect();
    (nodes, operators)
}

fn operator_name(number: usize) -> String {
    if number == 0 { String::new() } else { format!("operator-{number}") }
}

fn rows(rows: &[(ShardIndex, NodeId)]) -> Vec<(usize, usize)> {
    let mut rows: Vec<_> = rows.iter().map(|(shard, node)| (shard.get(), number(*node))).collect();
    rows.sort_unstable();
    rows
}

#[test]
fn a_nodes_status_says_what_its_copies_count() {
    let facts = |status| NodeFacts {
        status,
        first_offline_at: None,
        maintenance: false,
        quarantined: false,
        silent: false,
    };
    let absent = Some(Timestamp::from_unix_millis(1));
    let table = [
        (facts(NodeStatus::Online), Presence::Here),
        (facts(NodeStatus::Recovering), Presence::Here),
        (NodeFacts { first_offline_at: absent, ..facts(NodeStatus::Recovering) }, Presence::Here),
        (NodeFacts { maintenance: true, ..facts(NodeStatus::Online) }, Presence::Leaving),
        (NodeFacts { quarantined: true, ..facts(NodeStatus::Recovering) }, Presence::Leaving),
        (NodeFacts { first_offline_at: absent, ..facts(NodeStatus::Offline) }, Presence::Away),
        (NodeFacts { quarantined: true, ..facts(NodeStatus::Offline) }, Presence::Away),
        (facts(NodeStatus::Draining), Presence::Leaving),
        (NodeFacts { first_offline_at: absent, ..facts(NodeStatus::Draining) }, Presence::Lost),
        // Whoever watches over the nodes says when their silence is an absence; nobody does of those that drain by request.
        (NodeFacts { silent: true, ..facts(NodeStatus::Online) }, Presence::Here),
        (NodeFacts { silent: true, ..facts(NodeStatus::Offline) }, Presence::Away),
        (NodeFacts { silent: true, ..facts(NodeStatus::Draining) }, Presence::Lost),
    ];
    for (facts, presence) in table {
        assert_eq!(facts.presence(), presence, "{facts:?}");
    }
}

/// An operator drains it because it is dead: what it had is made at once, of the others, and it is not counted on meanwhile.
#[test]
fn who_is_to_be_emptied_and_silent_is_not_waited_for() {
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = standard(&locations);
    let planned = |silent: bool| {
        let status = NodeStatus::Draining;
        let facts =
            NodeFacts { status, first_offline_at: None, maintenance: false, quarantined: false, silent };
        let of = |node| if number(node) == 5 { facts.presence() } else { Presence::Here };
        let plan = plan(&stripe, of, &candidates((0..20).filter(|at| *at != 5)), &mut rng(1));
        let urgency = urgency(&plan.health, plan.goal, !plan.removals.is_empty(), Duration::ZERO, &CALM);
        let made: Vec<usize> = plan.additions.iter().map(|(shard, _)| shard.get()).collect();
        (plan.health.reachable, urgency, made)
    };
    assert_eq!(planned(false), (Some(4), Urgency::Now { priority: 4 }, vec![5]));
    assert_eq!(planned(true), (Some(3), Urgency::Now { priority: 3 }, vec![5]));
}

#[test]
fn locations_are_sorted_by_what_they_are_worth() {
    let geometry = coded(2, 3);
    let shard = |index| geometry.shard(index).expect("exists");
    let locations = [
        (shard(0), node(0), Belief::Stored),
        (shard(1), node(0), Belief::Leaving),
        (shard(1), node(1), Belief::Stored),
        (shard(2), node(2), Belief::Leaving),
        (shard(3), node(3), Belief::Stored),
        (shard(0), node(2), Belief::Corrupt),
        (shard(4), node(3), Belief::Missing),
    ];
    let presence = [Presence::Here, Presence::Leaving, Presence::Away, Presence::Lost];
    let health = judge(&stripe(geometry, 3, &locations), |node| presence[number(node)]);
    assert_eq!(rows(&health.here), [(0, 0)]);
    assert_eq!(rows(&health.leaving), [(1, 0), (1, 1)]);
    assert_eq!(rows(&health.away), [(2, 2)]);
    assert_eq!(rows(&health.lost), [(3, 3)]);
    assert_eq!(rows(&health.bad), [(0, 2), (4, 3)]);
    assert_eq!(health.unheld, [shard(3), shard(4)]);
    assert_eq!((health.lasting, health.reachable, health.hoped), (None, Some(0), Some(1)));
}

/// Fourteen nodes with one shard each; `absent` of them away or lost.
#[test]
fn urgency_counts_away_and_lost_nodes_apart() {
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = standard(&locations);
    let asked = |absent: usize, presence, away_for, policy: &RepairPolicy| {
        let absent: Vec<usize> = (0..absent).collect();
        urgency(&judged(&stripe, &absent, presence), 4, false, away_for, policy)
    };
    let short = Duration::from_secs(60);
    use Presence::{Away, Leaving, Lost};
    assert_eq!(asked(0, Away, short, &CALM), Urgency::Whole);
    assert_eq!(asked(3, Away, DELAY * 9, &CALM), Urgency::Waits);
    assert_eq!(asked(4, Away, short, &CALM), Urgency::After { priority: 0, delay: DELAY - short });
    assert_eq!(asked(4, Away, DELAY, &CALM), Urgency::Now { priority: 0 });
    assert_eq!(asked(5, Away, short, &CALM), Urgency::After { priority: -1, delay: DELAY - short });
    assert_eq!(asked(5, Away, DELAY, &BRAKED), Urgency::Now { priority: -1 });
    assert_eq!(asked(1, Lost, short, &CALM), Urgency::Now { priority: 3 });
    assert_eq!(asked(4, Lost, short, &CALM), Urgency::Now { priority: 0 });
    assert_eq!(asked(5, Lost, short, &CALM), Urgency::Now { priority: -1 });
    assert_eq!(asked(1, Leaving, short, &CALM), Urgency::Now { priority: 4 });
    for absent in [1, 2, 3] {
        assert_eq!(asked(absent, Lost, short, &BRAKED), Urgency::Waits);
    }
    assert_eq!(asked(1, Leaving, short, &BRAKED), Urgency::Waits);
    assert_eq!(asked(4, Lost, short, &BRAKED), Urgency::Now { priority: 0 });
}

#[test]
fn a_shard_that_nobody_has_is_short_whatever_the_tolerance() {
    // Thirteen nodes survive three losses at best, with thirteen shards as with fourteen.
    let locations = stored(Geometry::STANDARD, (0..13).map(|i| (i, i)));
    let stripe = standard(&locations);
    let health = judged(&stripe, &[], Presence::Here);
    let goal = goal(&stripe, &health, &candidates(0..13));
    assert_eq!((goal, health.lasting), (3, Some(3)));
    assert_eq!(urgency(&health, goal, false, Duration::ZERO, &CALM), Urgency::Now { priority: 3 });
    let plan = additions(&stripe, &health, goal, &candidates(0..13), &mut rng(1));
    assert_eq!((plan.len(), plan[0].0.get()), (1, 13));
}

#[test]
fn surplus_is_trimmed_only_when_nobody_is_away() {
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)).chain([(0, 14), (1, 15)]));
    let stripe = standard(&locations);
    let health = judged(&stripe, &[], Presence::Here);
    assert_eq!(urgency(&health, 4, true, Duration::ZERO, &CALM), Urgency::Now { priority: 4 });
    assert_eq!(urgency(&health, 4, true, Duration::ZERO, &BRAKED), Urgency::Waits);
    let health = judged(&stripe, &[0], Presence::Away);
    assert_eq!(urgency(&health, 4, true, DELAY, &CALM), Urgency::Waits);
    assert_eq!(urgency(&health, 4, false, DELAY, &CALM), Urgency::Whole);
}

#[test]
fn the_goal_is_what_an_even_spread_survives() {
    let asked = |nodes: usize| {
        let stripe = standard(&[]);
        goal(&stripe, &judged(&stripe, &[], Presence::Here), &candidates(0..nodes))
    };
    for (nodes, expected) in
        [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (6, 1), (7, 2), (12, 2), (13, 3), (14, 4), (90, 4)]
    {
        assert_eq!(asked(nodes), expected, "{nodes} nodes");
    }
    let small = stripe(Geometry::STANDARD_SMALL, 2, &[]);
    let health = judged(&small, &[], Presence::Here);
    for (nodes, expected) in [(0, 0), (1, 0), (2, 1), (3, 2), (9, 2)] {
        assert_eq!(goal(&small, &health, &candidates(0..nodes)), expected, "{nodes} nodes");
    }
}

#[test]
fn the_goal_counts_room_and_what_is_there_already() {
    // Full nodes give nothing, except what they hold.
    let mut nodes = candidates(0..14);
    nodes[3].free = ByteCount::bytes(CHUNK.get() - 1);
    let empty = standard(&[]);
    let health = judged(&empty, &[], Presence::Here);
    assert_eq!(goal(&empty, &health, &nodes), 3);
    let locations = stored(Geometry::STANDARD, [(0, 3)]);
    let held = standard(&locations);
    assert_eq!(goal(&held, &judged(&held, &[], Presence::Here), &nodes), 4);
    // Two nodes with room for ten shards each keep the guarantee; with room for nine on one of them they cannot.
    let with_room = |chunks: u64| {
        let mut two = candidates(0..2);
        two[0].free = ByteCount::bytes(CHUNK.get() * chunks);
        goal(&empty, &health, &two)
    };
    assert_eq!((with_room(10), with_room(9)), (1, 0));
    // Everything everywhere survives two of three, though an even spread would survive one.
    let locations = stored(Geometry::STANDARD, (0..42).map(|i| (i % 14, i / 14)));
    let rich = standard(&locations);
    assert_eq!(goal(&rich, &judged(&rich, &[], Presence::Here), &candidates(0..3)), 2);
}

#[test]
fn what_a_lost_node_held_is_made_on_another() {
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = standard(&locations);
    let health = judged(&stripe, &[5], Presence::Lost);
    let others = candidates((0..20).filter(|number| *number != 5));
    let plan = additions(&stripe, &health, 4, &others, &mut rng(1));
    assert_eq!(plan.len(), 1);
    assert_eq!(plan[0].0.get(), 5);
    assert!(number(plan[0].1) >= 14);
    // It stays lost: its row is kept, and nothing else is surplus.
    let held = joined(&health.here, &plan);
    assert_eq!(removals(&stripe, &health, &held, 4), []);
}

#[test]
fn a_lost_node_is_forgotten_once_the_stripe_is_whole_without_it() {
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = standard(&locations);
    let health = judged(&stripe, &[5], Presence::Lost);
    // It may return, and is all that is known of its shard.
    assert_eq!(all_removals(&stripe, &health, &health.here, 4), []);
    let held = joined(&health.here, &rowed(5, 17));
    assert_eq!(rows(&all_removals(&stripe, &health, &held, 4)), [(5, 5)]);
    // Whole, but crowded: what the lost node has may still be needed.
    let crowded = joined(&health.here, &rowed(5, 6));
    assert_eq!(all_removals(&stripe, &health, &crowded, 4), []);
    let plan = plan(
        &stripe,
        |node| if number(node) == 5 { Presence::Lost } else { Presence::Here },
        &candidates(0..20),
        &mut rng(1),
    );
    assert_eq!((plan.goal, plan.additions.len(), plan.removals.len()), (4, 1, 0));
}

fn rowed(shard: usize, at: usize) -> Vec<Place> {
    vec![(Geometry::STANDARD.shard(shard).expect("exists"), node(at))]
}

#[test]
fn what_a_returned_node_holds_is_surplus() {
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)).chain([(5, 17)]));
    let stripe = standard(&locations);
    let health = judged(&stripe, &[], Presence::Here);
    assert_eq!(additions(&stripe, &health, 4, &candidates(0..20), &mut rng(1)), []);
    let gone = removals(&stripe, &health, &health.here, 4);
    assert_eq!(rows(&gone), [(5, 17)]);
}

#[test]
fn surplus_does_not_always_cost_the_same_nodes() {
    // A hundred stripes on random nodes, one shard of each held twice: it goes now from one, now from the other.
    let mut of_the_later = 0;
    for seed in 0..100 {
        let mut rng = rng(seed);
        let mut nodes = BTreeSet::new();
        while nodes.len() < 15 {
            nodes.insert(rng.random_range(0..1000));
        }
        let locations = stored(Geometry::STANDARD, nodes.iter().enumerate().map(|(i, node)| (i % 14, *node)));
        let stripe = standard(&locations);
        let health = judged(&stripe, &[], Presence::Here);
        let gone = removals(&stripe, &health, &health.here, 4);
        assert_eq!(gone.len(), 1);
        of_the_later += usize::from(nodes.last() == Some(&number(gone[0].1)));
    }
    assert!((30..=70).contains(&of_the_later), "{of_the_later}");
}

#[test]
fn a_corrupt_shard_may_be_healed_where_it_lies() {
    let mut locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    locations[2].2 = Belief::Corrupt;
    let stripe = standard(&locations);
    let health = judged(&stripe, &[], Presence::Here);
    let plan = additions(&stripe, &health, 4, &candidates(0..14), &mut rng(1));
    assert_eq!(rows(&plan), [(2, 2)]);
    // The row says stored from then on. Had the shard gone elsewhere, the bad row would go.
    assert_eq!(removals(&stripe, &health, &joined(&health.here, &plan), 4), []);
    let elsewhere = joined(&health.here, &[(plan[0].0, node(14))]);
    assert_eq!(rows(&removals(&stripe, &health, &elsewhere, 4)), [(2, 2)]);
    assert_eq!(removals(&stripe, &health, &health.here, 4), []);
}

#[test]
fn who_spoilt_a_shard_is_given_none_if_others_suffice() {
    let mut locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    locations[2].2 = Belief::Corrupt;
    let stripe = standard(&locations);
    let health = judged(&stripe, &[], Presence::Here);
    for seed in 0..20 {
        let plan = additions(&stripe, &health, 4, &candidates(0..16), &mut rng(seed));
        assert!(plan.len() == 1 && plan[0].0.get() == 2 && number(plan[0].1) >= 14, "{plan:?}");
    }
    // The others hold a shard each: with a second one for one of them the stripe would survive less.
    let plan = additions(&stripe, &health, 4, &candidates(0..14), &mut rng(1));
    assert_eq!(rows(&plan), [(2, 2)]);
    // Where less is wanted, that is the lesser evil.
    let plan = additions(&stripe, &health, 3, &candidates(0..14), &mut rng(1));
    assert!(plan.len() == 1 && number(plan[0].1) != 2, "{plan:?}");
    // Copies likewise.
    let mut copies = stored(Geometry::STANDARD_SMALL, [(0, 0), (0, 1), (0, 2)]);
    copies[1].2 = Belief::Corrupt;
    let small = self::stripe(Geometry::STANDARD_SMALL, 2, &copies);
    let health = judged(&small, &[], Presence::Here);
    assert_eq!(rows(&additions(&small, &health, 2, &candidates(0..4), &mut rng(1))), [(0, 3)]);
    assert_eq!(rows(&additions(&small, &health, 2, &candidates(0..3), &mut rng(1))), [(0, 1)]);
}

#[test]
fn nobody_is_given_what_it_may_still_have() {
    // Fourteen nodes each hold a shard, one of them is not counted; its candidacy is older than its absence.
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = standard(&locations);
    for presence in [Presence::Leaving, Presence::Away, Presence::Lost] {
        let health = judged(&stripe, &[5], presence);
        assert_eq!(additions(&stripe, &health, 4, &candidates([5]), &mut rng(1)), [], "{presence:?}");
        let plan = additions(&stripe, &health, 3, &candidates([5, 6]), &mut rng(1));
        assert_eq!(rows(&plan), [(5, 6)], "{presence:?}");
    }
}

#[test]
fn a_drained_node_is_emptied() {
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = standard(&locations);
    let health = judged(&stripe, &[0, 1], Presence::Leaving);
    let rest = candidates(2..16);
    assert_eq!(goal(&stripe, &health, &rest), 4);
    let plan = additions(&stripe, &health, 4, &rest, &mut rng(1));
    assert_eq!(rows(&plan).iter().map(|row| row.0).collect::<Vec<_>>(), [0, 1]);
    // Before they are made, nothing may go.
    assert_eq!(removals(&stripe, &health, &health.here, 4), []);
    let gone = removals(&stripe, &health, &joined(&health.here, &plan), 4);
    assert_eq!(rows(&gone), [(0, 0), (1, 1)]);
}

#[test]
fn new_nodes_raise_the_tolerance_by_moves() {
    for (before, after, moved) in [(13, 14, 1), (2, 14, 12), (1, 14, 13), (1, 2, 10), (4, 7, 6)] {
        let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i % before)));
        let stripe = standard(&locations);
        let health = judged(&stripe, &[], Presence::Here);
        let nodes = candidates(0..after);
        let goal = goal(&stripe, &health, &nodes);
        let plan = additions(&stripe, &health, goal, &nodes, &mut rng(1));
        let held = joined(&health.here, &plan);
        assert!(tolerance(Geometry::STANDARD, &held) >= Some(goal), "{before} to {after}");
        assert!(plan.len() <= moved, "{before} to {after}: {} copies", plan.len());
        let gone = removals(&stripe, &health, &held, goal);
        assert!(after == 2 || gone.len() == plan.len(), "{before} to {after}");
    }
}

#[test]
fn copies_are_counted_and_lie_on_distinct_nodes() {
    let geometry = Geometry::STANDARD_SMALL;
    let locations = stored(geometry, (0..3).map(|i| (0, i)));
    let small = stripe(geometry, 2, &locations);
    let health = judged(&small, &[1], Presence::Lost);
    assert_eq!(urgency(&health, 2, false, Duration::ZERO, &CALM), Urgency::Now { priority: 1 });
    let nodes = candidates([0, 2, 3, 4]);
    let plan = additions(&small, &health, 2, &nodes, &mut rng(1));
    assert_eq!(plan.len(), 1);
    assert!([3, 4].contains(&number(plan[0].1)));
    let five = stored(geometry, (0..5).map(|i| (0, i)));
    let rich = stripe(geometry, 2, &five);
    let health = judged(&rich, &[], Presence::Here);
    assert_eq!(removals(&rich, &health, &health.here, 2).len(), 2);
    // A lower goal does not take wanted copies away.
    assert_eq!(removals(&rich, &health, &health.here, 0).len(), 2);
}

#[test]
fn what_was_promised_of_copies_is_made_where_there_are_nodes_for_it() {
    let geometry = Geometry::copied(2).expect("valid");
    let locations = stored(geometry, (0..2).map(|i| (0, i)));
    let recorded = stripe(geometry, 1, &locations);
    let planned = |min, nodes: usize| {
        let small = recorded.clone().with_copies(min);
        let plan = plan(&small, |_| Presence::Here, &candidates(0..nodes), &mut rng(1));
        let urgency = urgency(&plan.health, plan.goal, false, Duration::ZERO, &CALM);
        (plan.additions.len(), urgency != Urgency::Whole)
    };
    assert_eq!(planned(1, 9), (0, false));
    assert_eq!(planned(2, 9), (0, false));
    assert_eq!(planned(4, 9), (2, true));
    assert_eq!(planned(4, 3), (1, true));
    assert_eq!(planned(4, 2), (0, false), "nowhere to put it");
    // Three copies of one that was to have two are no surplus.
    let three = stored(geometry, (0..3).map(|i| (0, i)));
    let small = stripe(geometry, 1, &three);
    let surplus =
        |small: Stripe<'_>| plan(&small, |_| Presence::Here, &candidates(0..9), &mut rng(1)).removals.len();
    assert_eq!((surplus(small.clone()), surplus(small.with_copies(3))), (1, 0));
    let coded = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    assert_eq!(standard(&coded).with_copies(9).geometry, Geometry::STANDARD);
}

/// While one node is emptied another restarts: what it brings back is not made for that.
#[test]
fn those_away_are_left_the_time_to_return() {
    use Presence::{Away, Here, Leaving, Lost};
    let locations = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)));
    let stripe = standard(&locations);
    let made = |not_here: &[(usize, Presence)]| {
        let of = |node| not_here.iter().find(|(at, _)| *at == number(node)).map_or(Here, |(_, how)| *how);
        let others = candidates((0..24).filter(|at| of(node(*at)) == Here));
        let plan = plan(&stripe, of, &others, &mut rng(1));
        let mut made: Vec<usize> = plan.additions.iter().map(|(shard, _)| shard.get()).collect();
        made.sort_unstable();
        made
    };
    assert_eq!(made(&[(3, Leaving), (5, Away)]), [3]);
    assert_eq!(made(&[(3, Lost), (5, Away), (6, Away)]), [3]);
    assert_eq!(made(&[(5, Away)]), [], "it only waits");
    // Nothing more may be lost.
    assert_eq!(made(&[(3, Lost), (5, Away), (6, Away), (7, Away)]), [3, 5, 6, 7]);
    assert_eq!(made(&[(4, Away), (5, Away), (6, Away), (7, Away)]), [4, 5, 6, 7]);
    // What lies on a node that leaves is copied, whoever else has it.
    let twice = stored(Geometry::STANDARD, (0..14).map(|i| (i, i)).chain([(5, 14)]));
    let twice = standard(&twice);
    let of =
        |node| [(5, Away), (14, Leaving)].into_iter().find(|at| at.0 == number(node)).map_or(Here, |at| at.1);
    let others = candidates((0..24).filter(|at| of(node(*at)) == Here));
    let plan = plan(&twice, of, &others, &mut rng(1));
    assert_eq!(plan.additions.iter().map(|(shard, _)| shard.get()).collect::<Vec<_>>(), [5]);
}

// ---- operators ----

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

#[test]
fn the_brake_counts_those_who_vanished_together() {
    let at = |secs: &[i64]| -> Vec<Timestamp> {
        secs.iter().map(|secs| Timestamp::from_unix_millis(secs * 1000)).collect()
    };
    let window = Duration::from_secs(100);
    assert!(!brake(5, &at(&[0, 50]), window));
    assert!(brake(5, &at(&[0, 50, 100]), window));
    assert!(!brake(5, &at(&[0, 50, 101]), window));
    // In any order, and wherever the window lies.
    assert!(brake(20, &at(&[900, 0, 901, 450, 950]), window));
    assert!(!brake(30, &at(&[0, 1, 2]), window));
    assert!(brake(30, &at(&[0, 1, 2, 3]), window));
    assert!(!brake(0, &[], window));
}

// ---- any stripe ----

/// A cluster and one stripe, as they may be found.
#[derive(Clone, Debug)]
struct Scene {
    geometry: Geometry,
    target: u8,
    presence: Vec<Presence>,
    /// Here, but takes nothing new: back from an absence, or full.
    closed: Vec<bool>,
    /// By number; 0, and none: nobody else's.
    run_by: Vec<usize>,
    locations: BTreeMap<(ShardIndex, NodeId), Belief>,
}

impl Scene {
    fn random(shape: (u8, u8, u8), nodes: usize, trouble: f64, surplus: f64, seed: u64) -> Self {
        let mut rng = rng(seed);
        let geometry = Geometry::new(shape.0, shape.1, shape.2).expect("valid");
        let mut any = |of: [Presence; 3]| {
            if rng.random_bool(trouble) { of[rng.random_range(0..3)] } else { Presence::Here }
        };
        let presence = (0..nodes).map(|_| any([Presence::Leaving, Presence::Away, Presence::Lost])).collect();
        let closed = (0..nodes).map(|_| rng.random_bool(trouble / 4.0)).collect();
        let mut locations = BTreeMap::new();
        let wanted = geometry.locations() + (geometry.locations() as f64 * surplus) as usize;
        for at in 0..wanted {
            let shard = geometry.shard(at % geometry.shards()).expect("exists");
            let belief = match rng.random_bool(trouble / 2.0) {
                true => [Belief::Leaving, Belief::Missing, Belief::Corrupt][rng.random_range(0..3)],
                false => Belief::Stored,
            };
            if rng.random_bool(1.0 - trouble / 2.0) {
                locations.insert((shard, node(rng.random_range(0..nodes))), belief);
            }
        }
        let target = (geometry.locations() - geometry.data()).min(255) as u8;
        Self { geometry, target, presence, closed, run_by: Vec::new(), locations }
    }

    /// With its nodes run by so many operators, some by nobody else.
    fn run_by(mut self, operators: usize, seed: u64) -> Self {
        let mut rng = rng(seed ^ 2);
        self.run_by = (0..self.presence.len()).map(|_| rng.random_range(0..=operators)).collect();
        self
    }

    fn operator_name(&self, number: usize) -> String {
        operator_name(self.run_by.get(number).copied().unwrap_or(0))
    }

    fn operators(&self) -> Operators {
        let names: Vec<String> = (0..self.presence.len()).map(|at| self.operator_name(at)).collect();
        names.iter().enumerate().map(|(at, name)| (node(at), name.as_str())).collect()
    }

    /// Who runs a node, told apart from all others.
    fn operator(&self, number: usize) -> String {
        let name = self.operator_name(number);
        if name.is_empty() { format!("node-{number}") } else { name }
    }

    fn rows(&self) -> Vec<(ShardIndex, NodeId, Belief)> {
        self.locations.iter().map(|(row, belief)| (row.0, row.1, *belief)).collect()
    }

    fn presence(&self, node: NodeId) -> Presence {
        self.presence[number(node)]
    }

    fn candidates(&self) -> Vec<Candidate> {
        (0..self.presence.len())
            .filter(|at| self.presence[*at] == Presence::Here && !self.closed[*at])
            .map(|at| Candidate { operator: self.operator_name(at), ..candidate(at) })
            .collect()
    }

    /// What counts.
    fn here(&self) -> Vec<Place> {
        let rows = self.locations.iter();
        rows.filter(|(row, belief)| **belief == Belief::Stored && self.presence(row.1) == Presence::Here)
            .map(|(row, _)| *row)
            .collect()
    }

    /// Places of each operator that counts.
    fn crowds(&self) -> BTreeMap<String, usize> {
        let mut crowds = BTreeMap::new();
        for (_, node) in self.here() {
            *crowds.entry(self.operator(number(node))).or_default() += 1;
        }
        crowds
    }

    /// Distinct shards left of what can be read (or of what is here) when these nodes are lost.
    fn left(&self, lost: &[usize], leaving_too: bool) -> usize {
        let counts = |node: NodeId, belief: Belief| match (self.presence(node), belief) {
            (Presence::Here, Belief::Stored) => true,
            (Presence::Here | Presence::Leaving, Belief::Stored | Belief::Leaving) => leaving_too,
            _ => false,
        };
        self.locations
            .iter()
            .filter(|((_, node), belief)| counts(*node, **belief) && !lost.contains(&number(*node)))
            .map(|((shard, _), _)| *shard)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Whether the loss of any `losses` nodes leaves enough, tried one by one.
    fn survives(&self, losses: u8, leaving_too: bool) -> bool {
        fn try_all(scene: &Scene, lost: &mut Vec<usize>, from: usize, more: u8, leaving_too: bool) -> bool {
            if more == 0 {
                return scene.left(lost, leaving_too) >= scene.geometry.data();
            }
            (from..scene.presence.len()).all(|at| {
                lost.push(at);
                let fine = try_all(scene, lost, at + 1, more - 1, leaving_too);
                lost.pop();
                fine
            })
        }
        // Everything fits on fewer nodes than are lost: nothing can be left.
        let losses = usize::from(losses).min(self.presence.len());
        try_all(self, &mut Vec::new(), 0, losses as u8, leaving_too)
    }

    /// Node losses survived, at most `goal`.
    fn survived(&self, goal: u8, leaving_too: bool) -> Option<u8> {
        (0..=goal).take_while(|losses| self.survives(*losses, leaving_too)).last()
    }

    /// Carries one plan out, judging every step. How many rows changed. With `waits` it counts on those away as [`plan`] does.
    fn step(&mut self, waits: bool, rng: &mut StdRng) -> Result<usize, TestCaseError> {
        let (before_rows, operators) = (self.rows(), self.operators());
        let stripe = Stripe { operators: &operators, ..stripe(self.geometry, self.target, &before_rows) };
        let health = judge(&stripe, |node| self.presence(node));
        let candidates = self.candidates();
        let goal = goal(&stripe, &health, &candidates);
        let before = self.clone();

        let counted = if waits { counted_on(&stripe, &health) } else { health.clone() };
        let plan = additions(&stripe, &counted, goal, &candidates, rng);
        for row in &plan {
            prop_assert!(candidates.iter().any(|candidate| candidate.node == row.1), "no candidate");
            let old = self.locations.insert(*row, Belief::Stored);
            prop_assert!(
                matches!(old, None | Some(Belief::Missing | Belief::Corrupt)),
                "{row:?} was {old:?}, or was planned twice"
            );
        }
        let held = joined(&health.here, &plan);
        let gone = removals(&stripe, &health, &held, goal);
        let with_additions = self.clone();
        for row in &gone {
            let belief = self.locations.remove(row);
            prop_assert!(belief.is_some(), "{row:?} was removed twice or never was");
            let worthless = matches!(belief, Some(Belief::Missing | Belief::Corrupt));
            let absent = matches!(self.presence(row.1), Presence::Away | Presence::Lost);
            prop_assert!(worthless || !absent, "{row:?} is {belief:?} on an absent node");
        }
        // Nothing fell below the goal or below what it was, and no shard lost its last copy.
        for leaving_too in [false, true] {
            prop_assert!(self.survived(goal, leaving_too) >= before.survived(goal, leaving_too));
            prop_assert!(self.survived(goal, leaving_too) >= with_additions.survived(goal, leaving_too));
        }
        prop_assert_eq!(self.left(&[], true), with_additions.left(&[], true));
        prop_assert!(with_additions.left(&[], false) >= before.left(&[], false));
        Ok(plan.len() + gone.len())
    }

    /// Carries a plan out as the rebalancer does, judging what it spreads; of what is to be made each fails with this chance. How
    /// many rows changed.
    fn carry_out(&mut self, failing: f64, rng: &mut StdRng) -> Result<usize, TestCaseError> {
        let (rows, operators) = (self.rows(), self.operators());
        let stripe = Stripe { operators: &operators, ..stripe(self.geometry, self.target, &rows) };
        let plan = plan(&stripe, |node| self.presence(node), &self.candidates(), rng);
        let before = self.clone();
        let mut made = plan.additions.clone();
        made.retain(|_| !rng.random_bool(failing));
        self.locations.extend(made.iter().map(|row| (*row, Belief::Stored)));
        let held = joined(&plan.health.here, &made);
        let gone = all_removals(&stripe, &plan.health, &held, plan.goal);
        for row in &gone {
            prop_assert!(self.locations.remove(row).is_some(), "{row:?} was removed twice or never was");
        }
        let survives = |rows: &[Place]| tolerance(self.geometry, rows);
        let (was, is) = (survives(&before.here()), survives(&self.here()));
        prop_assert!(is.min(Some(plan.goal)) >= was.min(Some(plan.goal)), "{was:?} became {is:?}");
        let last = Urgency::Now { priority: SPREAD_PRIORITY };
        prop_assert_eq!(plan.spreads, plan.urgency(DELAY, &CALM) == last);
        if plan.spreads {
            prop_assert!(is >= was, "{was:?} became {is:?}");
            before.check_moves(&plan)?;
            prop_assert_eq!(gone.len(), made.len());
            prop_assert!(gone.iter().all(|row| !made.contains(row)), "what was moved was removed again");
            let surplus = |crowds: BTreeMap<String, usize>| crowds.values().map(|n| n - 1).sum::<usize>();
            prop_assert_eq!(surplus(self.crowds()) + made.len(), surplus(before.crowds()));
        }
        Ok(made.len() + gone.len())
    }

    /// The same until nothing is left to be done.
    fn come_to_rest(&mut self, rng: &mut StdRng) -> Result<(), TestCaseError> {
        let mut rounds = 0;
        while self.carry_out(0.0, rng)? > 0 {
            rounds += 1;
            prop_assert!(rounds < 12, "no end: {self:?}");
        }
        Ok(())
    }

    /// Each goes to an operator that has none, and afterwards nobody has two: there are enough of them. Nothing else is to be done.
    fn check_moves(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let crowds = self.crowds();
        let given: BTreeSet<String> =
            plan.additions.iter().map(|(_, at)| self.operator(number(*at))).collect();
        prop_assert_eq!(given.len(), plan.additions.len(), "one operator is given two");
        prop_assert!(given.iter().all(|operator| !crowds.contains_key(operator)));
        prop_assert_eq!(crowds.len() + given.len(), self.geometry.locations());
        prop_assert_eq!(self.here().len(), self.locations.len(), "something is missing or away");
        prop_assert_eq!(self.locations.len(), self.geometry.locations());
        prop_assert!(plan.removals.is_empty());
        Ok(())
    }

    /// Work is asked for exactly where a plan would do something, unless it waits for somebody.
    fn check_urgency(&self, waits: bool) -> Result<(), TestCaseError> {
        let (rows, operators) = (self.rows(), self.operators());
        let stripe = Stripe { operators: &operators, ..stripe(self.geometry, self.target, &rows) };
        let health = judge(&stripe, |node| self.presence(node));
        let candidates = self.candidates();
        let goal = goal(&stripe, &health, &candidates);
        let counted = if waits { counted_on(&stripe, &health) } else { health.clone() };
        let plan = additions(&stripe, &counted, goal, &candidates, &mut rng(0));
        let surplus = !removals(&stripe, &health, &health.here, goal).is_empty();
        match urgency(&health, goal, surplus, DELAY, &CALM) {
            Urgency::Whole => prop_assert!(plan.is_empty() && !surplus, "whole, and yet {plan:?}"),
            Urgency::Waits => {
                prop_assert!(!health.away.is_empty() && health.reachable > Some(0) || surplus);
            }
            Urgency::Now { priority } => {
                let counted = self.survived(self.target, true).map_or(-1, i32::from);
                prop_assert_eq!(priority.min(self.target.into()), counted);
            }
            Urgency::After { .. } => prop_assert!(false, "the delay is over"),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn repair_converges_and_never_lowers_what_a_stripe_survives(
        shape in prop::sample::select(vec![
            (10, 4, 1), (4, 2, 1), (3, 1, 1), (4, 0, 1), (6, 3, 1), (2, 3, 1), (1, 2, 1), (1, 0, 1), (1, 0, 3), (1, 0, 6),
        ]),
        nodes in 1usize..=20, operators in 0usize..8, trouble in 0.0f64..0.8, surplus in 0.0f64..1.5, waits: bool,
        seed: u64,
    ) {
        let mut scene = Scene::random(shape, nodes, trouble, surplus, seed).run_by(operators, seed);
        let mut rng = rng(seed ^ 1);
        scene.check_urgency(waits)?;
        let mut rounds = 0;
        while scene.step(waits, &mut rng)? > 0 {
            rounds += 1;
            prop_assert!(rounds < 8, "no end: {scene:?}");
        }
        scene.check_urgency(waits)?;
    }

    /// Where there are nodes for it, what waits for those away has nothing left to do meanwhile.
    #[test]
    fn who_waits_rests(
        shape in prop::sample::select(vec![(10, 4, 1), (4, 2, 1), (3, 1, 1), (1, 2, 1), (1, 0, 3)]),
        nodes in 1usize..=20, trouble in 0.0f64..0.8, surplus in 0.0f64..0.5, seed: u64,
    ) {
        let mut scene = Scene::random(shape, nodes, trouble, surplus, seed);
        scene.presence.resize(nodes + 16, Presence::Here);
        scene.closed.resize(nodes + 16, false);
        while scene.step(true, &mut rng(seed))? > 0 {}
        let rows = scene.rows();
        let stripe = stripe(scene.geometry, scene.target, &rows);
        let plan = plan(&stripe, |node| scene.presence(node), &scene.candidates(), &mut rng(seed));
        // Rows of the lost may go at any time.
        let surplus = !removals(&stripe, &plan.health, &plan.health.here, plan.goal).is_empty();
        let urgency = urgency(&plan.health, plan.goal, surplus, DELAY, &CALM);
        prop_assert!(matches!(urgency, Urgency::Whole | Urgency::Waits), "{urgency:?}: {plan:?}");
    }

    /// Nodes with room, all of those here: then nothing stays short.
    #[test]
    fn additions_reach_the_goal_where_there_are_nodes_for_it(
        shape in prop::sample::select(vec![(10, 4, 1), (10, 10, 1), (4, 2, 1), (3, 1, 1), (4, 0, 1), (1, 2, 1), (1, 0, 3)]),
        nodes in 1usize..=20, trouble in 0.0f64..0.8, surplus in 0.0f64..1.5, seed: u64,
    ) {
        let mut scene = Scene::random(shape, nodes, trouble, surplus, seed);
        scene.target = scene.target.min(4);
        scene.closed.fill(false);
        // A node that is to be rid of a shard is not given it back; without such rows one plan is enough.
        for ((_, node), belief) in &mut scene.locations {
            if *belief == Belief::Leaving && scene.presence[number(*node)] == Presence::Here {
                *belief = Belief::Missing;
            }
        }
        let rows = scene.rows();
        let stripe = stripe(scene.geometry, scene.target, &rows);
        let health = judge(&stripe, |node| scene.presence(node));
        let goal = goal(&stripe, &health, &scene.candidates());
        let plan = additions(&stripe, &health, goal, &scene.candidates(), &mut rng(seed));
        for row in &plan {
            scene.locations.insert(*row, Belief::Stored);
        }
        if !scene.candidates().is_empty() {
            prop_assert_eq!(scene.survived(goal, false), Some(goal));
            prop_assert_eq!(scene.left(&[], false), scene.geometry.shards());
        }
        scene.step(false, &mut rng(seed))?;
        prop_assert_eq!(scene.step(false, &mut rng(seed ^ 1))?, 0, "the second plan is not empty");
    }

    /// Whoever runs the nodes, whatever is amiss, and though not all comes off.
    #[test]
    fn plans_that_spread_come_to_rest(
        shape in prop::sample::select(vec![(10, 4, 1), (4, 2, 1), (3, 1, 1), (4, 0, 1), (1, 2, 1), (1, 0, 1), (1, 0, 3), (1, 0, 6)]),
        nodes in 1usize..=24, operators in 0usize..24, target in 0u8..6, trouble in 0.0f64..0.5, surplus in 0.0f64..0.5,
        seed: u64,
    ) {
        let mut scene = Scene::random(shape, nodes, trouble, surplus, seed).run_by(operators, seed);
        scene.target = scene.target.min(target);
        let mut rng = rng(seed ^ 1);
        for _ in 0..3 {
            scene.carry_out(0.5, &mut rng)?;
        }
        scene.come_to_rest(&mut rng)?;
    }

    /// Where all is well, and nothing was made beyond what is wanted.
    #[test]
    fn where_there_are_as_many_operators_as_places_none_keeps_two(
        shape in prop::sample::select(vec![(10, 4, 1), (4, 2, 1), (3, 1, 1), (4, 0, 1), (1, 2, 1), (1, 0, 3), (1, 0, 6)]),
        more in 0usize..10, own in 0.0f64..1.0, target in 0u8..6, failing in 0.0f64..0.9, seed: u64,
    ) {
        let places = Geometry::new(shape.0, shape.1, shape.2).expect("valid").locations();
        // As many operators as nodes at most, and fewer where they are drawn twice.
        let operators = ((places + more) as f64 * own) as usize;
        let mut scene = Scene::random(shape, places + more, 0.0, 0.0, seed).run_by(operators, seed);
        scene.target = scene.target.min(target);
        let mut rng = rng(seed ^ 1);
        for _ in 0..3 {
            scene.carry_out(failing, &mut rng)?;
        }
        scene.come_to_rest(&mut rng)?;
        let all: BTreeSet<String> = (0..places + more).map(|at| scene.operator(at)).collect();
        if all.len() >= places && scene.locations.len() == places {
            prop_assert_eq!(scene.crowds().len(), places);
        }
    }
}

#[test]
fn repair_yields_to_who_waits_and_never_stands_still() {
    let permille = |cpu, requests| (part_of_budget(cpu, requests) * 1000.0).round();
    assert_eq!([0, 50, 75, 100, 255].map(|cpu| permille(cpu, 3)), [1000.0, 1000.0, 550.0, 100.0, 100.0]);
    assert_eq!([0, 16, 40, 64, u64::MAX].map(|n| permille(20, n)), [1000.0, 1000.0, 550.0, 100.0, 100.0]);
    // The scarcer of the two counts.
    assert_eq!((permille(75, 64), permille(100, 40)), (100.0, 100.0));
    assert!((1..=100).all(|cpu| part_of_budget(cpu, 0) <= part_of_budget(cpu - 1, 0)));
    assert!((1..=100).all(|n| part_of_budget(0, n) <= part_of_budget(0, n - 1)));
}
