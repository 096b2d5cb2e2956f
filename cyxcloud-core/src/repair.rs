//! Decides what a stripe needs: what is missing, how urgent that is, where it goes, and what is surplus.
//!
//! Pure: the caller brings what the database knows of the stripe and of the nodes, and carries the plan out. A plan may be
//! stale when it runs: it is recorded only while its job's fence holds, and removals are judged by what was really added.
//! Not here: nodes for new stripes (`placement`), the life of nodes (`node`), the queue (`metadata`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;

use crate::node::NodeStatus;
use crate::placement::{self, Candidate, tolerance};
use crate::{ByteCount, Geometry, NodeId, ShardIndex, Timestamp};

/// A shard on a node.
pub type Place = (ShardIndex, NodeId);

/// What is believed of one location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Belief {
    /// Held.
    Stored,
    /// Held, and to be removed.
    Leaving,
    /// The node does not hold it.
    Missing,
    /// What the node holds is wrong.
    Corrupt,
}

/// How much a node's copies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Presence {
    /// Heard and trusted: its copies count.
    Here,
    /// Heard, but to be emptied: drained by request, in maintenance or quarantined. Read from it, do not count on it.
    Leaving,
    /// Not heard; may return with its data. Counted apart.
    Away,
    /// Not heard for so long that its copies count as gone, or unknown.
    Lost,
}

/// What the database knows of a node, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its status.
    pub status: NodeStatus,
    /// When the absence began that has not ended with `online` since. A draining node without it drains by request.
    pub first_offline_at: Option<Timestamp>,
    /// Paused by its operator.
    pub maintenance: bool,
    /// Held back from new data after a proven fault.
    pub quarantined: bool,
}

impl NodeFacts {
    /// How much its copies count.
    pub const fn presence(&self) -> Presence {
        match (self.status, self.first_offline_at) {
            (NodeStatus::Offline, _) => Presence::Away,
            (NodeStatus::Draining, Some(_)) => Presence::Lost,
            (NodeStatus::Draining, None) => Presence::Leaving,
            (NodeStatus::Online | NodeStatus::Recovering, _) if self.maintenance || self.quarantined => {
                Presence::Leaving
            }
            (NodeStatus::Online | NodeStatus::Recovering, _) => Presence::Here,
        }
    }
}

/// A stripe and where its shards are.
#[derive(Clone, Copy, Debug)]
pub struct Stripe<'a> {
    /// How it is coded.
    pub geometry: Geometry,
    /// Node losses that its profile wants it to survive.
    pub target_tolerance: u8,
    /// Length of its longest chunk.
    pub chunk_len: ByteCount,
    /// Every recorded location; no (shard, node) twice.
    pub locations: &'a [(ShardIndex, NodeId, Belief)],
}

/// Locations by what they are worth, and what they survive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Count and may stay.
    pub here: Vec<Place>,
    /// Can be read and should go.
    pub leaving: Vec<Place>,
    /// On nodes that may return.
    pub away: Vec<Place>,
    /// On nodes that count as gone. They may return all the same.
    pub lost: Vec<Place>,
    /// Not there, or wrong.
    pub bad: Vec<Place>,
    /// Node losses survived by what is here; `None`: it cannot be read from that alone.
    pub lasting: Option<u8>,
    /// The same with what is leaving: what can be read now.
    pub reachable: Option<u8>,
    /// The same if those away return.
    pub hoped: Option<u8>,
}

/// Sorts a stripe's locations.
pub fn judge(stripe: &Stripe<'_>, presence: impl Fn(NodeId) -> Presence) -> Health {
    let mut health = Health::default();
    for &(shard, node, belief) in stripe.locations {
        let list = match (belief, presence(node)) {
            (Belief::Missing | Belief::Corrupt, _) => &mut health.bad,
            (Belief::Stored | Belief::Leaving, Presence::Lost) => &mut health.lost,
            (Belief::Stored | Belief::Leaving, Presence::Away) => &mut health.away,
            (Belief::Leaving, Presence::Here | Presence::Leaving) | (Belief::Stored, Presence::Leaving) => {
                &mut health.leaving
            }
            (Belief::Stored, Presence::Here) => &mut health.here,
        };
        list.push((shard, node));
    }
    let mut counted = health.here.clone();
    health.lasting = tolerance(stripe.geometry, &counted);
    counted.extend(&health.leaving);
    health.reachable = tolerance(stripe.geometry, &counted);
    counted.extend(&health.away);
    health.hoped = tolerance(stripe.geometry, &counted);
    health
}

/// The tolerance that these nodes can give the stripe, at most its target: an even spread over the candidates and those that
/// hold it already.
pub fn goal(stripe: &Stripe<'_>, health: &Health, candidates: &[Candidate]) -> u8 {
    let holders = health.here.iter().map(|(_, node)| *node);
    let nodes: BTreeSet<NodeId> = candidates.iter().map(|candidate| candidate.node).chain(holders).collect();
    even_tolerance(stripe.geometry, nodes.len()).max(health.lasting.unwrap_or(0)).min(stripe.target_tolerance)
}

/// What an even spread over so many nodes survives; with the extra copies of placement's guarantee.
fn even_tolerance(geometry: Geometry, nodes: usize) -> u8 {
    let small = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    if geometry.data() == 1 {
        return small(geometry.locations().min(nodes).saturating_sub(1));
    }
    if nodes < 2 {
        return 0;
    }
    let (each, more) = (geometry.shards() / nodes, geometry.shards() % nodes);
    let taken = |lost: usize| lost * each + more.min(lost);
    let survived = (1..nodes).take_while(|&lost| taken(lost) <= geometry.parity()).count();
    small(survived.max(1))
}

/// Shards to be made, each with its node, so that what is here reaches `goal`. Missing ones first, those on leaving nodes
/// among them; then copies that lie better. What cannot be placed is left out.
pub fn additions(
    stripe: &Stripe<'_>,
    health: &Health,
    goal: u8,
    candidates: &[Candidate],
    rng: &mut impl Rng,
) -> Vec<Place> {
    let held = |shard: ShardIndex| health.here.iter().filter(|(held, _)| *held == shard).count();
    let copies = stripe.geometry.copies();
    let missing: Vec<ShardIndex> = stripe
        .geometry
        .indices()
        .flat_map(|shard| std::iter::repeat_n(shard, copies.saturating_sub(held(shard))))
        .collect();
    // Where nodes are few, extra copies may be missing though no shard is.
    let mut added = if missing.is_empty() && health.lasting.is_some_and(|now| now >= goal) {
        Vec::new()
    } else {
        placement::replace(candidates, stripe.geometry, stripe.chunk_len, &health.here, &missing, rng)
    };
    if stripe.geometry.data() > 1 {
        let moves = better_places(stripe, health, goal, candidates, &added);
        added.extend(moves);
    }
    added
}

/// Copies of shards that crowd a node, on nodes that have fewer, until the even spread survives `goal` losses.
fn better_places(
    stripe: &Stripe<'_>,
    health: &Health,
    goal: u8,
    candidates: &[Candidate],
    added: &[Place],
) -> Vec<Place> {
    let mut layout: Vec<Place> = health.here.iter().chain(added).copied().collect();
    if tolerance(stripe.geometry, &layout).is_some_and(|now| now >= goal) {
        return Vec::new();
    }
    thin_out(&mut layout);
    let mut room: BTreeMap<NodeId, u64> = candidates
        .iter()
        .map(|candidate| (candidate.node, candidate.free.get() / stripe.chunk_len.get().max(1)))
        .collect();
    for (_, node) in added {
        room.entry(*node).and_modify(|room| *room = room.saturating_sub(1));
    }
    let mut moves = Vec::new();
    while tolerance(stripe.geometry, &layout).is_none_or(|now| now < goal) {
        let Some((from, to)) = next_move(&layout, &room) else { break };
        let (shard, _) = layout[from];
        layout[from] = (shard, to);
        room.entry(to).and_modify(|room| *room = room.saturating_sub(1));
        moves.push((shard, to));
        if moves.len() >= stripe.geometry.shards() {
            break;
        }
    }
    moves
}

/// Leaves one location of each shard, on the emptiest of its nodes: surplus copies are no measure of an even spread.
fn thin_out(layout: &mut Vec<Place>) {
    loop {
        let load = |node: NodeId| layout.iter().filter(|(_, other)| *other == node).count();
        let copies = |shard: ShardIndex| layout.iter().filter(|(other, _)| *other == shard).count();
        let spare =
            (0..layout.len()).filter(|&at| copies(layout[at].0) > 1).max_by_key(|&at| load(layout[at].1));
        match spare {
            Some(at) => layout.swap_remove(at),
            None => return,
        };
    }
}

/// Which location should lie elsewhere, and where: from the fullest node to the emptiest that gains by it.
fn next_move(layout: &[Place], room: &BTreeMap<NodeId, u64>) -> Option<(usize, NodeId)> {
    let mut loads: BTreeMap<NodeId, usize> = room.keys().map(|node| (*node, 0)).collect();
    for (_, node) in layout {
        *loads.entry(*node).or_default() += 1;
    }
    let (&fullest, &most) = loads.iter().max_by_key(|(_, load)| **load)?;
    let fits = |node: &NodeId| room.get(node).is_some_and(|room| *room > 0);
    layout.iter().enumerate().filter(|(_, (_, node))| *node == fullest).find_map(|(place, (shard, _))| {
        let gains = |(node, load): &(&NodeId, &usize)| {
            **load + 1 < most && fits(node) && !layout.contains(&(*shard, **node))
        };
        let (to, _) = loads.iter().filter(gains).min_by_key(|(_, load)| **load)?;
        Some((place, *to))
    })
}

/// Locations that may go once `held` stands: all that counts as here, with what was added.
///
/// Bad ones whose shard is held; leaving and lost ones, once the stripe is whole without them; and surplus copies, from the
/// fullest nodes first. What remains survives as many losses as `held` did, or as `goal` asks if that is less; no shard
/// loses its last place. Those away stay.
pub fn removals(stripe: &Stripe<'_>, health: &Health, held: &[Place], goal: u8) -> Vec<Place> {
    let mut held = held.to_vec();
    held.sort_unstable();
    held.dedup();
    let is_held = |shard: ShardIndex| held.iter().any(|(kept, _)| *kept == shard);
    let stands = |place: &Place| held.contains(place);
    let mut gone: Vec<Place> =
        health.bad.iter().filter(|place| is_held(place.0) && !stands(place)).copied().collect();
    let survives = tolerance(stripe.geometry, &held);
    let whole = stripe.geometry.indices().all(is_held) && survives.is_some_and(|now| now >= goal);
    if whole {
        gone.extend(health.leaving.iter().chain(&health.lost).filter(|place| !stands(place)));
        gone.extend(surplus(stripe.geometry, &mut held, goal));
    }
    gone
}

/// Takes surplus copies out of `held` and names them.
fn surplus(geometry: Geometry, held: &mut Vec<Place>, goal: u8) -> Vec<Place> {
    let mut gone = Vec::new();
    loop {
        let load = |node: NodeId| held.iter().filter(|(_, other)| *other == node).count();
        let copies = |shard: ShardIndex| held.iter().filter(|(other, _)| *other == shard).count();
        let mut spare: Vec<(usize, usize)> = (0..held.len())
            .filter(|&at| copies(held[at].0) > geometry.copies())
            .map(|at| (load(held[at].1), at))
            .collect();
        spare.sort_unstable_by(|a, b| b.cmp(a));
        let keeps_goal = |at: usize| {
            let rest: Vec<Place> =
                held.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, place)| *place).collect();
            tolerance(geometry, &rest).is_some_and(|now| now >= goal)
        };
        let Some((_, at)) = spare.into_iter().find(|(_, at)| keeps_goal(*at)) else { return gone };
        gone.push(held.remove(at));
    }
}

/// What a stripe needs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where everything is.
    pub health: Health,
    /// What it should survive.
    pub goal: u8,
    /// To be made.
    pub additions: Vec<Place>,
    /// What may go as things are, before any addition.
    pub removals: Vec<Place>,
}

/// Looks at a stripe and says what it needs.
pub fn plan(
    stripe: &Stripe<'_>,
    presence: impl Fn(NodeId) -> Presence,
    candidates: &[Candidate],
    rng: &mut impl Rng,
) -> Plan {
    let health = judge(stripe, presence);
    let goal = goal(stripe, &health, candidates);
    let additions = additions(stripe, &health, goal, candidates, rng);
    let removals = removals(stripe, &health, &health.here, goal);
    Plan { health, goal, additions, removals }
}

/// What must be known of the cluster to judge how urgent something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairPolicy {
    /// How long a stripe that survives no further loss waits for a node that is merely away.
    pub delay: Duration,
    /// More nodes vanished together than is believable: only what survives no further loss is repaired.
    pub braked: bool,
}

/// When work is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// There is none.
    Whole,
    /// At once. Smaller is more urgent: node losses still survived, -1 where it cannot be read now.
    Now {
        /// node losses still survived
        priority: i32,
    },
    /// Once this much time has passed, unless somebody returns.
    After {
        /// as above
        priority: i32,
        /// from now
        delay: Duration,
    },
    /// When nodes return or count as lost; whoever changes their status asks again.
    Waits,
}

/// When a plan's work is due. `away_for`: how long the longest absent of the stripe's away nodes has been away.
///
/// Losses are counted apart: what is lost or corrupt is made again at once, what is merely away only where nothing more may
/// be lost, after a delay.
pub fn urgency(stripe: &Stripe<'_>, plan: &Plan, away_for: Duration, policy: &RepairPolicy) -> Urgency {
    let Plan { health, goal, additions, removals } = plan;
    let priority = health.reachable.map_or(-1, i32::from);
    if additions.is_empty() && removals.is_empty() {
        let unreadable = health.reachable.is_none();
        return if unreadable && health.hoped.is_some() { Urgency::Waits } else { Urgency::Whole };
    }
    let at_edge = priority <= 0;
    if policy.braked && !at_edge {
        return Urgency::Waits;
    }
    if is_short_for_good(stripe, health, *goal) || !health.leaving.is_empty() || health.away.is_empty() {
        return Urgency::Now { priority };
    }
    if !at_edge || additions.is_empty() {
        return Urgency::Waits;
    }
    match policy.delay.checked_sub(away_for) {
        None | Some(Duration::ZERO) => Urgency::Now { priority },
        Some(delay) => Urgency::After { priority, delay },
    }
}

/// Whether something is missing that no return of a node would bring back.
fn is_short_for_good(stripe: &Stripe<'_>, health: &Health, goal: u8) -> bool {
    let known: BTreeSet<Place> =
        [&health.here, &health.leaving, &health.away].into_iter().flatten().copied().collect();
    let short = |shard| known.iter().filter(|(held, _)| *held == shard).count() < stripe.geometry.copies();
    // Copies may be fewer than wanted because there are too few nodes; then the goal is lower too.
    let missing = if stripe.geometry.data() == 1 { false } else { stripe.geometry.indices().any(short) };
    missing || health.hoped.is_none_or(|hoped| hoped < goal)
}

/// Whether more nodes vanished together than is believable, so that we should suspect ourselves: of `nodes` nodes, more
/// than two and more than a tenth went away within `window` of each other. `away_since` names those not yet lost.
pub fn brake(nodes: usize, away_since: &[Timestamp], window: Duration) -> bool {
    let mut times = away_since.to_vec();
    times.sort_unstable();
    let together = (0..times.len())
        .map(|first| times[first..].iter().take_while(|time| time.since(times[first]) <= window).count())
        .max();
    together.unwrap_or(0) > 2.max(nodes / 10)
}

#[cfg(test)]
mod tests;
