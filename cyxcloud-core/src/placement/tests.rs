//! Placement keeps its promise on any cluster; the checker counts for itself.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::profile::Profile;

const SHARD: ByteCount = ByteCount::kib(410);

fn node(number: usize) -> NodeId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    NodeId::from_random(bytes)
}

fn candidate(number: usize) -> Candidate {
    Candidate {
        node: node(number),
        free: ByteCount::gib(100),
        operator: format!("operator-{number}"),
        subnet: format!("10.0.{number}.0/24"),
        region: String::new(),
        weight_penalty: false,
        vetted: true,
    }
}

fn cluster(nodes: usize) -> Vec<Candidate> {
    (0..nodes).map(candidate).collect()
}

fn coded(data: u8, parity: u8) -> Geometry {
    Geometry::coded(data, parity).expect("valid")
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Distinct shards left when these nodes are lost.
fn left(held: &[(ShardIndex, NodeId)], lost: &BTreeSet<NodeId>) -> usize {
    held.iter()
        .filter(|(_, node)| !lost.contains(node))
        .map(|(shard, _)| shard)
        .collect::<BTreeSet<_>>()
        .len()
}

/// The definition of tolerance, by trying every set of nodes.
fn tolerance_by_trial(geometry: Geometry, held: &[(ShardIndex, NodeId)]) -> Option<u8> {
    let nodes: Vec<NodeId> =
        held.iter().map(|(_, node)| *node).collect::<BTreeSet<_>>().into_iter().collect();
    assert!(nodes.len() <= 16, "too many sets to try");
    let fatal = (0..1u32 << nodes.len())
        .filter(|mask| {
            let lost = nodes.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, node)| *node);
            left(held, &lost.collect()) < geometry.data()
        })
        .map(u32::count_ones)
        .min()?;
    fatal.checked_sub(1).map(|tolerance| tolerance as u8)
}

/// All that a placement promises, counted without the code under test.
fn violations(candidates: &[Candidate], geometry: Geometry, placement: &Placement) -> Vec<String> {
    let mut found = Vec::new();
    let held = &placement.assignments;
    let distinct: BTreeSet<_> = held.iter().collect();
    if distinct.len() != held.len() {
        found.push("a node was given a shard twice".to_owned());
    }
    let shards: BTreeSet<ShardIndex> = held.iter().map(|(shard, _)| *shard).collect();
    if shards.len() != geometry.shards() {
        found.push(format!("{} of {} shards are placed", shards.len(), geometry.shards()));
    }
    let mut loads: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (_, node) in held {
        *loads.entry(*node).or_default() += 1;
    }
    for (node, load) in &loads {
        match candidates.iter().find(|candidate| candidate.node == *node) {
            None => found.push(format!("{node} is no candidate")),
            Some(candidate) if candidate.free.get() < load * SHARD.get() => {
                found.push(format!("{node} has no room for {load}"));
            }
            Some(_) => {}
        }
    }
    let losses: Vec<BTreeSet<NodeId>> = loads.keys().map(|node| BTreeSet::from([*node])).collect();
    if candidates.len() > 1 && geometry.locations() > 1 {
        for lost in losses {
            if left(held, &lost) < geometry.data() {
                found.push(format!("the loss of {lost:?} is fatal"));
            }
        }
    }
    found
}

#[test]
fn the_figures_of_the_design() {
    let geometry = Geometry::STANDARD;
    let figures =
        [(2, 20, 1), (3, 16, 1), (4, 14, 1), (6, 14, 1), (7, 14, 2), (12, 14, 2), (13, 14, 3), (14, 14, 4)];
    for (nodes, locations, tolerates) in figures {
        for seed in 0..20 {
            let placement = place(&cluster(nodes), geometry, SHARD, &mut rng(seed)).expect("there is room");
            assert_eq!(placement.assignments.len(), locations, "{nodes} nodes");
            assert_eq!(placement.tolerance, tolerates, "{nodes} nodes");
            assert_eq!(target_locations(geometry, nodes), locations);
        }
    }
    assert_eq!(place(&cluster(100), geometry, SHARD, &mut rng(0)).map(|p| p.tolerance), Ok(4));
}

#[test]
fn one_node_gets_everything_and_promises_nothing() {
    let placement = place(&cluster(1), Geometry::STANDARD, SHARD, &mut rng(1)).expect("there is room");
    assert_eq!((placement.assignments.len(), placement.tolerance), (14, 0));
    assert_eq!(place(&[], Geometry::STANDARD, SHARD, &mut rng(1)), Err(PlacementError::NoNodes));
}

/// Every set of so many acknowledgements survives what the profile waits for, and one fewer does not always.
#[test]
fn acknowledgements_that_suffice() {
    let geometry = Geometry::STANDARD;
    for (nodes, enough) in [
        (2, 20),
        (3, 16),
        (4, 14),
        (5, 13),
        (6, 13),
        (7, 12),
        (10, 12),
        (13, 12),
        (14, 12),
        (20, 12),
        (40, 12),
    ] {
        let placement = place(&cluster(nodes), geometry, SHARD, &mut rng(7)).expect("there is room");
        let held = placement.assignments;
        let wanted = Profile::STANDARD.ack_tolerance(nodes, false).expect("two nodes or more");
        let always = |missing: usize| {
            subsets(held.len(), missing).all(|mask| {
                let acked: Vec<_> = held
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| mask >> i & 1 == 0)
                    .map(|(_, &ack)| ack)
                    .collect();
                tolerance(geometry, &acked).is_some_and(|tolerance| tolerance >= wanted)
            })
        };
        assert!(always(held.len() - enough), "{nodes} nodes, {enough} acknowledgements");
        assert!(!always(held.len() - enough + 1), "{nodes} nodes, {} acknowledgements", enough - 1);
    }
}

/// All bit masks of `n` bits with exactly `size` set.
fn subsets(n: usize, size: usize) -> impl Iterator<Item = u32> {
    (0..1u32 << n).filter(move |mask| mask.count_ones() as usize == size)
}

#[test]
fn copies_lie_on_distinct_nodes() {
    let small = Geometry::STANDARD_SMALL;
    for (nodes, locations) in [(1, 1), (2, 2), (3, 3), (40, 3)] {
        let placement = place(&cluster(nodes), small, SHARD, &mut rng(3)).expect("there is room");
        assert_eq!(placement.assignments.len(), locations);
        assert_eq!(usize::from(placement.tolerance), locations - 1);
        assert_eq!(target_locations(small, nodes), locations);
    }
}

#[test]
fn domains_are_spread() {
    // 40 nodes of 20 operators in 5 regions: no operator twice, and no region more than three times.
    let mut nodes = cluster(40);
    for (i, candidate) in nodes.iter_mut().enumerate() {
        candidate.operator = format!("operator-{}", i % 20);
        candidate.region = format!("region-{}", i % 5);
    }
    for seed in 0..50 {
        let placement = place(&nodes, Geometry::STANDARD, SHARD, &mut rng(seed)).expect("there is room");
        let mut operators = BTreeMap::<&str, usize>::new();
        let mut regions = BTreeMap::<&str, usize>::new();
        for (_, node) in &placement.assignments {
            let candidate =
                nodes.iter().find(|candidate| candidate.node == *node).expect("placed on a candidate");
            *operators.entry(&candidate.operator).or_default() += 1;
            *regions.entry(&candidate.region).or_default() += 1;
        }
        assert_eq!(operators.values().max(), Some(&1));
        assert_eq!(regions.values().max(), Some(&3));
    }
}

#[test]
fn the_emptiest_node_does_not_take_everything() {
    let mut nodes = cluster(40);
    nodes[0].free = ByteCount::gib(1000);
    let mut times = [0; 40];
    for seed in 0..400 {
        let placement =
            place(&nodes, Geometry::STANDARD_SMALL, SHARD, &mut rng(seed)).expect("there is room");
        for (_, placed) in placement.assignments {
            let at = nodes.iter().position(|candidate| candidate.node == placed).expect("a candidate");
            times[at] += 1;
        }
    }
    let others = times[1..].iter().sum::<i32>() / 39;
    assert!(times[0] > 3 * others && times[0] < 400, "{} against {others}", times[0]);
    assert!(times.iter().all(|&times| times > 0));
}

#[test]
fn failing_nodes_are_used_only_where_needed() {
    let mut nodes = cluster(15);
    nodes[3].weight_penalty = true;
    for seed in 0..20 {
        let placement = place(&nodes, Geometry::STANDARD, SHARD, &mut rng(seed)).expect("there is room");
        assert!(placement.assignments.iter().all(|(_, placed)| *placed != nodes[3].node));
    }
    // Six nodes of which one fails: five others do as well as six.
    let mut six = cluster(6);
    six[0].weight_penalty = true;
    let placement = place(&six, Geometry::STANDARD, SHARD, &mut rng(1)).expect("there is room");
    assert!(placement.assignments.iter().all(|(_, placed)| *placed != six[0].node));
    // All fail, or all but one: then they are all there is.
    for reliable in 0..2 {
        let mut failing = cluster(4);
        failing[reliable..].iter_mut().for_each(|candidate| candidate.weight_penalty = true);
        assert_eq!(place(&failing, Geometry::STANDARD, SHARD, &mut rng(1)).map(|p| p.tolerance), Ok(1));
    }
}

#[test]
fn the_new_get_a_small_part_of_what_is_written() {
    for (vetted, new, geometry) in [
        (20, 1, Geometry::STANDARD),
        (20, 10, Geometry::STANDARD),
        (9, 3, Geometry::STANDARD),
        (14, 40, Geometry::STANDARD),
        (18, 6, Geometry::copied(3).expect("is a geometry")),
    ] {
        let mut nodes = cluster(vetted + new);
        nodes[vetted..].iter_mut().for_each(|candidate| candidate.vetted = false);
        let newcomers: Vec<NodeId> = nodes[vetted..].iter().map(|candidate| candidate.node).collect();
        let (mut given, mut all, mut rng) = (0, 0, rng(7));
        let mut met = std::collections::BTreeSet::new();
        for _ in 0..2_000 {
            let placement = place(&nodes, geometry, SHARD, &mut rng).expect("there is room");
            all += placement.assignments.len();
            for (_, node) in placement.assignments.iter().filter(|(_, node)| newcomers.contains(node)) {
                given += 1;
                met.insert(*node);
            }
        }
        let share = f64::from(given) / all as f64;
        assert!(share <= NEW_SHARE * 1.1, "{share} of what is written goes to {new} new beside {vetted}");
        assert!(share > NEW_SHARE * 0.9, "{share}: they are to prove themselves by something");
        assert_eq!(met.len(), new, "each of them");
    }
}

#[test]
fn the_new_are_used_like_others_where_the_vetted_are_too_few() {
    let mut nodes = cluster(14);
    nodes[3..].iter_mut().for_each(|candidate| candidate.vetted = false);
    let placement = place(&nodes, Geometry::STANDARD, SHARD, &mut rng(1)).expect("there is room");
    assert_eq!(placement.tolerance, 4);
    nodes.iter_mut().for_each(|candidate| candidate.vetted = false);
    let placement = place(&nodes, Geometry::STANDARD, SHARD, &mut rng(1)).expect("there is room");
    assert_eq!(placement.tolerance, 4);
}

#[test]
fn a_lost_shard_goes_to_a_vetted_node_if_there_is_one() {
    let mut nodes = cluster(18);
    nodes[14..17].iter_mut().for_each(|candidate| candidate.vetted = false);
    let held: Vec<(ShardIndex, NodeId)> =
        Geometry::STANDARD.indices().zip(&nodes).skip(1).map(|(shard, at)| (shard, at.node)).collect();
    let missing = [Geometry::STANDARD.indices().next().expect("has shards")];
    for seed in 0..20 {
        let placed = replace(&nodes[1..], Geometry::STANDARD, SHARD, &held, &missing, &mut rng(seed));
        assert_eq!(placed, [(missing[0], nodes[17].node)]);
    }
}

#[test]
fn full_nodes_are_left_out_and_too_little_room_is_an_error() {
    let mut nodes = cluster(10);
    nodes[0].free = ByteCount::bytes(SHARD.get() - 1);
    let placement = place(&nodes, Geometry::STANDARD, SHARD, &mut rng(1)).expect("there is room");
    assert!(placement.assignments.iter().all(|(_, placed)| *placed != nodes[0].node));
    for candidate in &mut nodes[1..] {
        candidate.free = SHARD;
    }
    assert!(matches!(
        place(&nodes, Geometry::STANDARD, SHARD, &mut rng(1)),
        Err(PlacementError::NoRoom { .. })
    ));
    // Room on one node alone keeps no guarantee.
    nodes[1].free = ByteCount::gib(1);
    assert!(place(&nodes[..2], Geometry::STANDARD, SHARD, &mut rng(1)).is_err());
}

#[test]
fn a_second_plan_avoids_what_failed_and_what_holds() {
    let nodes = cluster(7);
    let geometry = Geometry::STANDARD;
    let placement = place(&nodes, geometry, SHARD, &mut rng(1)).expect("there is room");
    let failed = nodes[2].node;
    let (lost, held): (Vec<_>, Vec<_>) =
        placement.assignments.into_iter().partition(|(_, node)| *node == failed);
    let missing: Vec<ShardIndex> = lost.iter().map(|(shard, _)| *shard).collect();
    let rest: Vec<Candidate> = nodes.iter().filter(|candidate| candidate.node != failed).cloned().collect();
    let plan = replace(&rest, geometry, SHARD, &held, &missing, &mut rng(2));
    assert_eq!(plan.len(), missing.len());
    let all: Vec<_> = held.into_iter().chain(plan).collect();
    assert_eq!(tolerance(geometry, &all), Some(1));
    assert!(all.iter().all(|(_, node)| *node != failed));
}

#[test]
fn when_three_nodes_are_left_extra_copies_are_planned() {
    let nodes = cluster(4);
    let geometry = Geometry::STANDARD;
    let placement = place(&nodes, geometry, SHARD, &mut rng(5)).expect("there is room");
    let (lost, held): (Vec<_>, Vec<_>) =
        placement.assignments.into_iter().partition(|(_, node)| *node == nodes[0].node);
    let missing: Vec<ShardIndex> = lost.iter().map(|(shard, _)| *shard).collect();
    let plan = replace(&nodes[1..], geometry, SHARD, &held, &missing, &mut rng(6));
    let all: Vec<_> = held.into_iter().chain(plan).collect();
    assert_eq!((all.len(), tolerance(geometry, &all)), (16, Some(1)));
}

#[test]
fn a_lost_copy_goes_where_there_is_none() {
    let nodes = cluster(3);
    let shard = Geometry::STANDARD_SMALL.shard(0).expect("exists");
    let held = [(shard, nodes[0].node), (shard, nodes[1].node)];
    let plan = replace(&nodes, Geometry::STANDARD_SMALL, SHARD, &held, &[shard], &mut rng(1));
    assert_eq!(plan, [(shard, nodes[2].node)]);
    assert_eq!(replace(&nodes[..2], Geometry::STANDARD_SMALL, SHARD, &held, &[shard], &mut rng(1)), []);
}

#[test]
fn too_few_shards_have_no_tolerance() {
    let geometry = coded(4, 2);
    let held: Vec<_> = geometry.indices().map(|shard| (shard, node(shard.get()))).collect();
    assert_eq!(tolerance(geometry, &held[..3]), None);
    assert_eq!(tolerance(geometry, &held[..4]), Some(0));
    assert_eq!(tolerance(geometry, &held), Some(2));
    assert_eq!(tolerance(geometry, &[]), None);
}

#[test]
fn entangled_layouts_are_judged_quickly() {
    // 100 shards on 40 nodes, each twice: pairs at random, the hardest shape that anyone could make.
    let geometry = coded(60, 40);
    let mut rng = rng(11);
    let held: Vec<_> = geometry
        .indices()
        .flat_map(|shard| {
            [rng.random_range(0..40), rng.random_range(0..40)].map(|place| (shard, node(place)))
        })
        .collect();
    let start = std::time::Instant::now();
    assert!(tolerance(geometry, &held).is_some());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn placement_never_breaks_its_promise(
        nodes in 1usize..=40, shape in prop::sample::select(vec![(10, 4), (10, 10), (4, 2), (3, 1), (4, 0), (1, 2), (20, 6)]),
        operators in 1usize..30, regions in 1usize..5, tight: bool, mixed: bool, seed: u64,
    ) {
        let mut rng = rng(seed);
        let geometry = coded(shape.0, shape.1);
        let mut candidates = cluster(nodes);
        for candidate in &mut candidates {
            candidate.operator = format!("operator-{}", rng.random_range(0..operators));
            candidate.region = format!("region-{}", rng.random_range(0..regions));
            candidate.weight_penalty = rng.random_bool(0.1);
            candidate.vetted = !mixed || rng.random_bool(0.8);
            if tight {
                candidate.free = ByteCount::bytes(SHARD.get() * rng.random_range(0..12));
            }
        }
        match place(&candidates, geometry, SHARD, &mut rng) {
            Ok(placement) => {
                prop_assert_eq!(violations(&candidates, geometry, &placement), Vec::<String>::new());
                if nodes <= 12 {
                    let trial = tolerance_by_trial(geometry, &placement.assignments);
                    prop_assert_eq!(Some(placement.tolerance), trial);
                }
                if !tight && candidates.iter().all(|candidate| candidate.vetted && !candidate.weight_penalty) {
                    prop_assert_eq!(placement.assignments.len(), target_locations(geometry, nodes));
                }
            }
            Err(PlacementError::NoRoom { .. }) => prop_assert!(tight, "there was room"),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    /// The exact search against the definition, on layouts that no placement would make.
    #[test]
    fn tolerance_is_the_definition(
        data in 1u8..8, parity in 0u8..6, nodes in 1usize..9,
        held in prop::collection::vec((0usize..14, 0usize..9), 0..40),
    ) {
        let geometry = coded(data, parity);
        let held: Vec<_> = held
            .into_iter()
            .filter_map(|(shard, place)| Some((geometry.shard(shard)?, node(place % nodes))))
            .collect();
        prop_assert_eq!(tolerance(geometry, &held), tolerance_by_trial(geometry, &held));
    }

    /// Plans for failed stores: nobody gets what it holds, nobody more than it has room for.
    #[test]
    fn second_plans_are_sound(nodes in 2usize..20, lost in 0usize..19, seed: u64) {
        let geometry = Geometry::STANDARD;
        let candidates = cluster(nodes);
        let mut rng = rng(seed);
        let placement = place(&candidates, geometry, SHARD, &mut rng).expect("there is room");
        let gone = candidates[lost % nodes].node;
        let (failed, held): (Vec<_>, Vec<_>) =
            placement.assignments.into_iter().partition(|(_, node)| *node == gone);
        let missing: Vec<ShardIndex> = failed.iter().map(|(shard, _)| *shard).collect();
        let rest: Vec<Candidate> = candidates.into_iter().filter(|candidate| candidate.node != gone).collect();
        let plan = replace(&rest, geometry, SHARD, &held, &missing, &mut rng);
        for pair in &plan {
            prop_assert!(!held.contains(pair));
            prop_assert!(pair.1 != gone);
        }
        let all: Vec<_> = held.into_iter().chain(plan).collect();
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        let survives = tolerance(geometry, &all);
        prop_assert!(survives >= Some(u8::from(rest.len() > 1)), "{:?} over {} nodes", survives, rest.len());
    }
}
