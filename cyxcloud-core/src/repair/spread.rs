//! Gives each shard of a stripe an operator of its own, where there are as many operators as it has shards.
//!
//! Placement tries that, but it and repair count nodes first: where some are late or away, an operator may be given two shards, and
//! would take both along. What is surplus with such a one moves to operators that have none. A move is planned as a copy; the other
//! half of it is a removal, which takes the copy of the crowded operator. A node that gets one has none of the stripe, so that no
//! losses of nodes cost more than before.
//! Only of stripes that want nothing else, and after everything else. Where a fourteenth operator joins thirteen, each stripe of 10+4 has
//! one shard to give away, a fourteenth of all that is stored: that takes its time, within the budgets of all repairs.
//! Networks and regions are preferred as in `placement`, and nothing moves for their sake.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::Rng;

use super::{Health, Place, Stripe, loads, missing};
use crate::placement::{Candidate, Rest};
use crate::{NodeId, ShardIndex};

/// Who runs the nodes, as far as it matters: which of them have the same operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operators(BTreeMap<NodeId, usize>);

/// Whoever runs a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operator {
    /// By number: perhaps of others, too.
    Named(usize),
    /// Of this one only.
    Own(NodeId),
}

impl Operators {
    /// Each node is nobody else's.
    pub const fn strangers() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn of(&self, node: NodeId) -> Operator {
        self.0.get(&node).map_or(Operator::Own(node), |number| Operator::Named(*number))
    }

    /// Rows of each operator.
    pub(super) fn loads(&self, rows: &[Place]) -> BTreeMap<Operator, usize> {
        let mut loads = BTreeMap::new();
        for (_, node) in rows {
            *loads.entry(self.of(*node)).or_default() += 1;
        }
        loads
    }
}

/// Of nodes and the names of their operators; empty: nobody else's.
impl<'a> FromIterator<(NodeId, &'a str)> for Operators {
    fn from_iter<I: IntoIterator<Item = (NodeId, &'a str)>>(nodes: I) -> Self {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut operators = BTreeMap::new();
        for (node, name) in nodes {
            if !name.is_empty() {
                let fresh = numbers.len();
                operators.insert(node, *numbers.entry(name).or_insert(fresh));
            }
        }
        Self(operators)
    }
}

/// Shards to be copied, each to a node of another operator that has none, so that none need have two; empty where there are not as
/// many operators as the stripe has places, or where it wants anything else.
///
/// There are those that hold it, and those of candidates with room that are vetted and did not fail lately: what moves without need can
/// wait until they are.
pub(super) fn moves(
    stripe: &Stripe<'_>,
    health: &Health,
    goal: u8,
    candidates: &[Candidate],
    rng: &mut impl Rng,
) -> Vec<Place> {
    let (geometry, operators) = (stripe.geometry, stripe.operators);
    let surplus = match wants_nothing(stripe, health, goal) {
        true => surplus(operators, &health.here),
        false => Vec::new(),
    };
    if surplus.is_empty() {
        return Vec::new();
    }
    let holding: BTreeSet<Operator> = health.here.iter().map(|(_, node)| operators.of(*node)).collect();
    // Who is new would be given a shard of all that is stored by naming another operator.
    let all_new = candidates.iter().all(|candidate| !candidate.vetted);
    let can_take = |candidate: &Candidate| {
        let has_room = candidate.free >= stripe.chunk_len;
        has_room
            && !candidate.weight_penalty
            && (candidate.vetted || all_new)
            && !holding.contains(&operators.of(candidate.node))
    };
    let others: BTreeSet<Operator> = candidates
        .iter()
        .filter(|candidate| can_take(candidate))
        .map(|candidate| operators.of(candidate.node))
        .collect();
    if holding.len() + others.len() < geometry.locations() {
        return Vec::new();
    }
    let rest = Rest { candidates, geometry, shard_len: stripe.chunk_len, held: &health.here, barred: &[] };
    rest.plan_apart(&surplus, can_take, rng)
}

/// Whether what is here takes each of its places once, survives what it should, and is all there is.
fn wants_nothing(stripe: &Stripe<'_>, health: &Health, goal: u8) -> bool {
    let elsewhere = [&health.leaving, &health.away, &health.lost, &health.bad];
    health.here.len() == stripe.geometry.locations()
        && elsewhere.iter().all(|rows| rows.is_empty())
        && health.lasting >= Some(goal)
        && missing(stripe.geometry, &health.here).is_empty()
}

/// Of what each operator holds all but one, which is on the emptiest of its nodes.
fn surplus(operators: &Operators, here: &[Place]) -> Vec<ShardIndex> {
    let load = loads(here);
    let mut rows = here.to_vec();
    rows.sort_by_key(|(_, node)| load[node]);
    let mut met = BTreeSet::new();
    rows.retain(|(_, node)| !met.insert(operators.of(*node)));
    rows.into_iter().map(|(shard, _)| shard).collect()
}
