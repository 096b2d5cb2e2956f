use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn node(n: u8) -> NodeId {
    NodeId::from_random([n; 16])
}

fn candidate(n: u8) -> Candidate {
    Candidate {
        node: node(n),
        free: ByteCount::gib(10),
        operator: String::new(),
        subnet: String::new(),
        region: String::new(),
        weight_penalty: false,
    }
}

fn presences(of: &[Presence]) -> impl Fn(NodeId) -> Presence + '_ {
    |id| (0..of.len()).find(|n| node(*n as u8) == id).map_or(Presence::Lost, |n| of[n])
}

fn candidates(of: &[Presence]) -> Vec<Candidate> {
    (0..of.len()).filter(|n| of[*n] == Presence::Here).map(|n| candidate(n as u8)).collect()
}

fn spread(geometry: Geometry, nodes: usize) -> Vec<(ShardIndex, NodeId, Belief)> {
    let copies = |shard: ShardIndex| (0..geometry.copies()).map(move |copy| shard.get() + copy);
    geometry
        .indices()
        .flat_map(|shard| copies(shard).map(move |at| (shard, node((at % nodes) as u8), Belief::Stored)))
        .collect()
}

fn stripe(geometry: Geometry, target: u8, locations: &[(ShardIndex, NodeId, Belief)]) -> Stripe<'_> {
    Stripe { geometry, target_tolerance: target, chunk_len: ByteCount::kib(420), locations }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

const POLICY: RepairPolicy = RepairPolicy { delay: Duration::from_secs(900), braked: false };

fn urgency_of(stripe: &Stripe<'_>, of: &[Presence], away_for: u64, policy: &RepairPolicy) -> Urgency {
    let plan = plan(stripe, presences(of), &candidates(of), &mut rng());
    urgency(stripe, &plan, Duration::from_secs(away_for), policy)
}

#[test]
fn what_a_node_is_worth_follows_from_its_status() {
    let facts = |status, absent: bool, maintenance, quarantined| {
        let first_offline_at = absent.then(Timestamp::default);
        NodeFacts { status, first_offline_at, maintenance, quarantined }.presence()
    };
    use NodeStatus::{Draining, Offline, Online, Recovering};
    assert_eq!(facts(Online, false, false, false), Presence::Here);
    assert_eq!(facts(Recovering, true, false, false), Presence::Here);
    assert_eq!(facts(Online, false, true, false), Presence::Leaving);
    assert_eq!(facts(Recovering, true, false, true), Presence::Leaving);
    assert_eq!(facts(Offline, true, true, true), Presence::Away);
    assert_eq!(facts(Draining, true, false, false), Presence::Lost);
    assert_eq!(facts(Draining, false, false, false), Presence::Leaving);
}

#[test]
fn a_whole_stripe_needs_nothing() {
    for (geometry, target) in [(Geometry::STANDARD, 4), (Geometry::STANDARD_SMALL, 2)] {
        let locations = spread(geometry, 16);
        let of = [Presence::Here; 16];
        assert_eq!(urgency_of(&stripe(geometry, target, &locations), &of, 0, &POLICY), Urgency::Whole);
    }
}

#[test]
fn absence_waits_and_loss_does_not() {
    let geometry = Geometry::STANDARD;
    let locations = spread(geometry, 14);
    let stripe = stripe(geometry, 4, &locations);
    let mut of = vec![Presence::Here; 18];
    of[0] = Presence::Away;
    assert_eq!(urgency_of(&stripe, &of, 10_000, &POLICY), Urgency::Waits);
    of[0] = Presence::Lost;
    assert_eq!(urgency_of(&stripe, &of, 0, &POLICY), Urgency::Now { priority: 3 });
    of[0] = Presence::Leaving;
    assert_eq!(urgency_of(&stripe, &of, 0, &POLICY), Urgency::Now { priority: 4 });
    of[..4].fill(Presence::Away);
    let delay = Duration::from_secs(600);
    assert_eq!(urgency_of(&stripe, &of, 300, &POLICY), Urgency::After { priority: 0, delay });
    assert_eq!(urgency_of(&stripe, &of, 900, &POLICY), Urgency::Now { priority: 0 });
    of[4] = Presence::Away;
    assert_eq!(urgency_of(&stripe, &of, 900, &POLICY), Urgency::Now { priority: -1 });
}

#[test]
fn the_brake_holds_all_but_what_may_lose_nothing_more() {
    let geometry = Geometry::STANDARD;
    let mut locations = spread(geometry, 14);
    locations[0].2 = Belief::Corrupt;
    let braked = RepairPolicy { braked: true, ..POLICY };
    let mut of = vec![Presence::Here; 18];
    assert_eq!(urgency_of(&stripe(geometry, 4, &locations), &of, 0, &POLICY), Urgency::Now { priority: 3 });
    assert_eq!(urgency_of(&stripe(geometry, 4, &locations), &of, 0, &braked), Urgency::Waits);
    of[1..4].fill(Presence::Away);
    assert_eq!(urgency_of(&stripe(geometry, 4, &locations), &of, 0, &braked), Urgency::Now { priority: 0 });
}

#[test]
fn too_many_at_once_are_not_believed() {
    let at = |secs: u64| Timestamp::default().plus(Duration::from_secs(secs));
    let window = Duration::from_secs(600);
    assert!(!brake(18, &[], window));
    assert!(!brake(18, &[at(0), at(1)], window));
    assert!(brake(18, &[at(0), at(1), at(600)], window));
    assert!(!brake(18, &[at(0), at(1), at(601)], window));
    let hundred: Vec<Timestamp> = (0..100).map(at).collect();
    assert!(!brake(1000, &hundred, window));
    assert!(brake(999, &hundred, window));
}

#[test]
fn joining_nodes_raise_the_tolerance() {
    let geometry = Geometry::STANDARD;
    let locations = spread(geometry, 5);
    let stripe = stripe(geometry, 4, &locations);
    let of = [Presence::Here; 14];
    let plan = plan(&stripe, presences(&of), &candidates(&of), &mut rng());
    assert_eq!((plan.health.lasting, plan.goal), (Some(1), 4));
    let held: Vec<Place> = plan.health.here.iter().chain(&plan.additions).copied().collect();
    let gone = removals(&stripe, &plan.health, &held, plan.goal);
    let left: Vec<Place> = held.into_iter().filter(|place| !gone.contains(place)).collect();
    assert_eq!(tolerance(geometry, &left), Some(4));
    assert_eq!(left.len(), 14);
}

/// Carries a plan out as the rebalancer does.
fn carry_out(
    stripe: &Stripe<'_>,
    plan: &Plan,
    locations: &[(ShardIndex, NodeId, Belief)],
) -> Vec<(ShardIndex, NodeId, Belief)> {
    let held: Vec<Place> = plan.health.here.iter().chain(&plan.additions).copied().collect();
    let gone = removals(stripe, &plan.health, &held, plan.goal);
    let mut after: Vec<_> = locations
        .iter()
        .filter(|(shard, node, _)| {
            !plan.additions.contains(&(*shard, *node)) && !gone.contains(&(*shard, *node))
        })
        .copied()
        .collect();
    after.extend(
        plan.additions
            .iter()
            .filter(|p| !gone.contains(p))
            .map(|&(shard, node)| (shard, node, Belief::Stored)),
    );
    after
}

fn some_geometry() -> impl Strategy<Value = (Geometry, u8)> {
    prop_oneof![
        Just((Geometry::STANDARD, 4)),
        Just((Geometry::OPEN, 10)),
        Just((Geometry::STANDARD_SMALL, 2)),
        Just((Geometry::OPEN_SMALL, 5)),
        Just((Geometry::coded(3, 2).expect("valid"), 2)),
    ]
}

fn some_presence() -> impl Strategy<Value = Presence> {
    prop_oneof![
        6 => Just(Presence::Here),
        1 => Just(Presence::Leaving),
        1 => Just(Presence::Away),
        1 => Just(Presence::Lost),
    ]
}

fn some_belief() -> impl Strategy<Value = Belief> {
    prop_oneof![
        8 => Just(Belief::Stored),
        1 => Just(Belief::Leaving),
        1 => Just(Belief::Missing),
        1 => Just(Belief::Corrupt),
    ]
}

proptest! {
    #[test]
    fn plans_keep_what_is_kept_and_come_to_an_end(
        (geometry, target) in some_geometry(),
        of in proptest::collection::vec(some_presence(), 1..20),
        beliefs in proptest::collection::vec((0usize..64, 0usize..64, some_belief()), 0..40),
        seed: u64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut known = BTreeMap::new();
        for (shard, at, belief) in beliefs {
            let shard = geometry.shard(shard % geometry.shards()).expect("exists");
            known.insert((shard, node((at % of.len()) as u8)), belief);
        }
        let mut locations: Vec<(ShardIndex, NodeId, Belief)> =
            known.into_iter().map(|((shard, node), belief)| (shard, node, belief)).collect();
        let candidates = candidates(&of);
        for round in 0..4 {
            let before = locations.clone();
            let stripe = stripe(geometry, target, &before);
            let plan = plan(&stripe, presences(&of), &candidates, &mut rng);
            let mut added = plan.additions.clone();
            added.sort_unstable();
            added.dedup();
            prop_assert_eq!(added.len(), plan.additions.len(), "nothing twice");
            for place in &plan.additions {
                prop_assert!(!plan.health.here.contains(place));
                prop_assert!(candidates.iter().any(|candidate| candidate.node == place.1));
            }
            locations = carry_out(&stripe, &plan, &before);
            let after = judge(&super::Stripe { locations: &locations, ..stripe }, presences(&of));
            prop_assert!(after.lasting >= plan.health.lasting.min(Some(plan.goal)), "{:?} {:?}", plan, after);
            prop_assert!(after.reachable >= plan.health.reachable.min(Some(plan.goal)), "{:?} {:?}", plan, after);
            prop_assert_eq!(&after.away, &plan.health.away);
            if candidates.len() > 1 {
                prop_assert!(after.lasting.is_some_and(|now| now >= plan.goal), "{:?} {:?}", plan, after);
            }
            if round == 3 {
                prop_assert!(plan.additions.is_empty() && plan.removals.is_empty(), "{:?}", plan);
            }
        }
    }
}
