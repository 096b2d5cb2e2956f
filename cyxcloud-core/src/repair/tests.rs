//! What is planned for stripes that were chosen; for any stripe in `model`.

mod model;
mod spread;

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
    assert!(made(&[(5, Away)]).is_empty(), "it only waits");
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

/// What leaves is here as well, beside another shard, and goes when the node returns that has that one.
#[test]
fn what_only_a_return_can_end_waits_for_it() {
    use Presence::{Away, Here, Leaving};
    // Shards 3 and 5 lie together on node 3; 3 is on node 14, too, and 5 on node 15.
    let rows = (0..14).filter(|i| *i != 5).map(|i| (i, i)).chain([(5, 3), (3, 14), (5, 15)]);
    let locations = stored(Geometry::STANDARD, rows);
    let stripe = standard(&locations);
    let urgency = |away: Presence| {
        let of = |node| {
            [(14, away), (15, Leaving)].into_iter().find(|at| at.0 == number(node)).map_or(Here, |at| at.1)
        };
        let others = candidates((0..24).filter(|at| of(node(*at)) == Here));
        let plan = plan(&stripe, of, &others, &mut rng(1));
        (plan.additions.len(), plan.urgency(DELAY, &CALM))
    };
    assert_eq!(urgency(Away), (0, Urgency::Waits));
    assert!(matches!(urgency(Here), (_, Urgency::Now { .. })), "now it may go");
    assert!(matches!(urgency(Presence::Lost), (1, Urgency::Now { .. })), "nobody returns");
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
