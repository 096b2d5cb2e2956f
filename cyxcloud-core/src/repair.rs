//! Decides what a stripe needs: what is missing, how urgent that is, where it goes, and what is surplus.
//!
//! Pure: the caller brings what the database knows of the stripe and of the nodes, and carries the plan out. A plan may be stale when
//! it runs: it is recorded only while the job's fence holds, and removals are judged again from what was really added.
//! Plans come to rest: once one has been carried out, and nothing else changed, the next is empty.
//! Not here: nodes for new stripes (`placement`), the life of nodes (`node`), the queue (`metadata`).

mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;

pub use spread::Operators;

use crate::node::NodeStatus;
use crate::placement::{Candidate, Rest, tolerance};
use crate::{ByteCount, Geometry, NodeId, ShardIndex, Timestamp};

/// Processor use, in percent, up to which a node has something to spare for repairs.
const SPARE_CPU: u8 = 50;
/// Requests that a node serves at the same time, up to which the same holds, and from which on it has nothing to spare.
const SPARE_REQUESTS: u64 = 16;
const BUSY_REQUESTS: u64 = 64;
/// What repairs are left of their budget where nothing is spare: they must not stand still.
const LEAST_PART: f64 = 0.1;
/// Nodes that may vanish together without suspicion, however small the cluster is.
const BRAKE_NODES: usize = 2;
/// The same as a share of the cluster: one in so many.
const BRAKE_SHARE: usize = 10;

/// The priority of stripes that are whole and only to be spread over more operators: less urgent than any that can lose so much.
pub const SPREAD_PRIORITY: i32 = 1 + u8::MAX as i32;
/// The least urgent priority that waits for nothing, neither a budget nor a free worker: no further loss is survived.
pub const URGENT_MAX: i32 = 0;

/// Whether work of this priority gives way to others: a further loss is survived.
pub const fn can_wait(priority: i32) -> bool {
    priority > URGENT_MAX
}

/// A shard on a node.
pub type Place = (ShardIndex, NodeId);

/// What is believed of one location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Belief {
    /// The node has it.
    Stored,
    /// The node has it, and it is to go from there.
    Leaving,
    /// The node said that it does not have it.
    Missing,
    /// The node has other bytes.
    Corrupt,
}

/// How much a node's copies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Presence {
    /// Heard and trusted: its copies count.
    Here,
    /// Heard, but to be emptied (drained by request, in maintenance, quarantined): read from it, don't count on it.
    Leaving,
    /// Not heard since; may return with its data. Counted apart.
    Away,
    /// Not heard for so long that its copies count as gone (draining because of absence), to be emptied and silent, or unknown.
    Lost,
}

impl Presence {
    /// Whether what it holds can be read: it may be on its way out, but it is heard.
    pub const fn is_there(self) -> bool {
        match self {
            Self::Here | Self::Leaving => true,
            Self::Away | Self::Lost => false,
        }
    }
}

/// What the database knows of a node, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its status.
    pub status: NodeStatus,
    /// When the absence began that has not ended with `online` since; a draining node without it drains by request.
    pub first_offline_at: Option<Timestamp>,
    /// Its operator said that it will be down for a while.
    pub maintenance: bool,
    /// It is not trusted.
    pub quarantined: bool,
    /// Not heard for as long as it takes to be offline. Of all but those who drain by request the status says so too.
    pub silent: bool,
}

impl NodeFacts {
    /// How much its copies count. Of one that is to be emptied nobody waits for the return: nothing would be counted on that it
    /// brings back.
    pub fn presence(&self) -> Presence {
        match self.status {
            NodeStatus::Online | NodeStatus::Recovering if self.maintenance || self.quarantined => {
                Presence::Leaving
            }
            NodeStatus::Online | NodeStatus::Recovering => Presence::Here,
            NodeStatus::Offline => Presence::Away,
            NodeStatus::Draining if self.first_offline_at.is_some() || self.silent => Presence::Lost,
            NodeStatus::Draining => Presence::Leaving,
        }
    }
}

/// A stripe and where its shards are.
#[derive(Clone, Debug)]
pub struct Stripe<'a> {
    /// How it was cut.
    pub geometry: Geometry,
    /// Node losses that its profile wants it to survive.
    pub target_tolerance: u8,
    /// Length of its longest chunk.
    pub chunk_len: ByteCount,
    /// Every row that names one of its shards; no (shard, node) twice.
    pub locations: &'a [(ShardIndex, NodeId, Belief)],
    /// Of the nodes that hold it and of all candidates.
    pub operators: &'a Operators,
}

impl Stripe<'_> {
    /// With so many copies at least, if it is kept as copies: what was promised of any small object, whatever was recorded of
    /// this one.
    #[must_use]
    pub fn with_copies(self, min: u8) -> Self {
        let geometry = self.geometry;
        match Geometry::copied(min) {
            Ok(wanted)
                if (geometry.data(), geometry.parity()) == (1, 0) && min as usize > geometry.copies() =>
            {
                let target_tolerance = self.target_tolerance.max(min - 1);
                Self { geometry: wanted, target_tolerance, ..self }
            }
            Ok(_) | Err(_) => self,
        }
    }
}

/// Locations by what they are worth, and what they survive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Stored on nodes that are here.
    pub here: Vec<(ShardIndex, NodeId)>,
    /// To go from a node that is here, or stored on a node that is leaving: can be read, is not to be counted on.
    pub leaving: Vec<(ShardIndex, NodeId)>,
    /// On nodes that are away.
    pub away: Vec<(ShardIndex, NodeId)>,
    /// On nodes that are lost; the row is kept, for the node may return.
    pub lost: Vec<(ShardIndex, NodeId)>,
    /// Missing or corrupt, on whatever node: the row is worthless.
    pub bad: Vec<(ShardIndex, NodeId)>,
    /// Shards that are in none of `here`, `leaving` and `away`: nobody's return brings them back.
    pub unheld: Vec<ShardIndex>,
    /// Node losses survived by what is here and may stay; `None`: not readable from that alone.
    pub lasting: Option<u8>,
    /// Node losses survived by what can be read now, which is here or leaving.
    pub reachable: Option<u8>,
    /// Node losses survived if those away return.
    pub hoped: Option<u8>,
}

/// Sorts a stripe's locations by what they are worth.
pub fn judge(stripe: &Stripe<'_>, presence: impl Fn(NodeId) -> Presence) -> Health {
    let mut health = Health::default();
    for &(shard, node, belief) in stripe.locations {
        let list = match (belief, presence(node)) {
            (Belief::Missing | Belief::Corrupt, _) => &mut health.bad,
            (Belief::Stored, Presence::Here) => &mut health.here,
            (Belief::Stored, Presence::Leaving) | (Belief::Leaving, Presence::Here | Presence::Leaving) => {
                &mut health.leaving
            }
            (Belief::Stored | Belief::Leaving, Presence::Away) => &mut health.away,
            (Belief::Stored | Belief::Leaving, Presence::Lost) => &mut health.lost,
        };
        list.push((shard, node));
    }
    let reachable = joined(&health.here, &health.leaving);
    let hoped = joined(&reachable, &health.away);
    health.unheld = stripe.geometry.indices().filter(|shard| !holds(&hoped, *shard)).collect();
    health.lasting = tolerance(stripe.geometry, &health.here);
    // Mostly nothing is leaving or away, and judging is the expensive part.
    health.reachable = match health.leaving.is_empty() {
        true => health.lasting,
        false => tolerance(stripe.geometry, &reachable),
    };
    health.hoped = match health.away.is_empty() {
        true => health.reachable,
        false => tolerance(stripe.geometry, &hoped),
    };
    health
}

/// What must be known of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairPolicy {
    /// How long a stripe that survives no further loss waits for a node that is merely away.
    pub delay: Duration,
    /// More nodes vanished together than is believable: only what survives no further loss is repaired.
    pub braked: bool,
}

/// When a stripe should be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Nothing to do.
    Whole,
    /// Work, now.
    Now {
        /// Smaller is more urgent: node losses still survived, -1 where it cannot be read now; [`SPREAD_PRIORITY`] where
        /// nothing is short.
        priority: i32,
    },
    /// Work once this much time has passed, unless somebody returns.
    After {
        /// As in [`Urgency::Now`].
        priority: i32,
        /// From now.
        delay: Duration,
    },
    /// Waits for nodes to return or to count as lost; whoever changes their status asks again.
    Waits,
}

/// How urgent a stripe's work is, but for what only spreads it (see [`Plan::urgency`]).
///
/// `goal`: see [`goal`]. `surplus`: whether there is something to remove from what is here. `away_for`: how long the longest
/// absent of its away nodes has been away.
pub fn urgency(
    health: &Health,
    goal: u8,
    surplus: bool,
    away_for: Duration,
    policy: &RepairPolicy,
) -> Urgency {
    let priority = health.reachable.map_or(-1, i32::from);
    let short_for_good = health.hoped < Some(goal) || !health.unheld.is_empty();
    let short_while_away = health.lasting < Some(goal)
        || health
            .away
            .iter()
            .any(|(shard, _)| !holds(&health.here, *shard) && !holds(&health.leaving, *shard));
    let to_trim = surplus && health.away.is_empty();
    if short_for_good || !health.leaving.is_empty() || to_trim {
        return if policy.braked && can_wait(priority) { Urgency::Waits } else { Urgency::Now { priority } };
    }
    match (short_while_away, surplus) {
        (false, false) => Urgency::Whole,
        // What is surplus now may be needed if those away don't return.
        (false, true) => Urgency::Waits,
        (true, _) if can_wait(priority) => Urgency::Waits,
        (true, _) if away_for >= policy.delay => Urgency::Now { priority },
        (true, _) => Urgency::After { priority, delay: policy.delay.saturating_sub(away_for) },
    }
}

/// The tolerance that these nodes can give the stripe at best, at most its target: an even spread over the candidates and
/// those that hold it already, as far as there is room. Never less than what is here gives, up to the target.
pub fn goal(stripe: &Stripe<'_>, health: &Health, candidates: &[Candidate]) -> u8 {
    let geometry = stripe.geometry;
    let mut room: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (_, node) in &health.here {
        *room.entry(*node).or_default() += 1;
    }
    for candidate in candidates {
        let chunks = candidate.free.get() / stripe.chunk_len.get().max(1);
        if chunks > 0 {
            *room.entry(candidate.node).or_default() += chunks.min(geometry.shards() as u64) as usize;
        }
    }
    let room: Vec<usize> = room.into_values().map(|chunks| chunks.min(geometry.shards())).collect();
    let spread = match geometry.copies() {
        1 => spread_tolerance(geometry, &room),
        copies => room.len().min(copies).saturating_sub(1),
    };
    let best = spread.max(health.lasting.map_or(0, usize::from));
    u8::try_from(best).unwrap_or(u8::MAX).min(stripe.target_tolerance)
}

/// Shards to be made, each with its node. Empty when the stripe is at its goal. `health` may be what is [`counted_on`].
///
/// Missing shards first, which includes those that lie on leaving nodes only: whoever carries the plan out copies them where
/// it can and need not rebuild them. Then moves that raise the tolerance to `goal`, planned as copies; the other half of a move
/// is a removal. What cannot be placed is left out. Who spoilt a shard of the stripe is given another one, or the same, only where
/// the others do not suffice.
pub fn additions(
    stripe: &Stripe<'_>,
    health: &Health,
    goal: u8,
    candidates: &[Candidate],
    rng: &mut impl Rng,
) -> Vec<(ShardIndex, NodeId)> {
    let geometry = stripe.geometry;
    let missing = missing(geometry, &health.here);
    if missing.is_empty() && health.lasting >= Some(goal) {
        return Vec::new();
    }
    let barred: Vec<_> = health.leaving.iter().chain(&health.away).chain(&health.lost).copied().collect();
    let mut planned = |candidates: &[Candidate]| {
        let rest =
            Rest { candidates, geometry, shard_len: stripe.chunk_len, held: &health.here, barred: &barred };
        let found = rest.plan(&missing, false, rng);
        if geometry.locations() == 1 || geometry.copies() > 1 {
            return found;
        }
        raised(rest, &missing, found, goal, rng)
    };
    let spoilt = |node: NodeId| stripe.locations.iter().any(|at| at.1 == node && at.2 == Belief::Corrupt);
    if !candidates.iter().any(|candidate| spoilt(candidate.node)) {
        return planned(candidates);
    }
    let others: Vec<Candidate> = candidates.iter().filter(|at| !spoilt(at.node)).cloned().collect();
    let plan = planned(&others);
    let held = joined(&health.here, &plan);
    let suffices =
        missing.iter().all(|shard| holds(&plan, *shard)) && tolerance(geometry, &held) >= Some(goal);
    if suffices { plan } else { planned(candidates) }
}

/// Locations that may go once `held` (all that counts as here, additions included) stands: rows that are bad and whose shard is
/// held, leaving copies whose shard is held elsewhere, and surplus copies, fullest nodes first, and of equally full ones those of
/// the operator with the most.
///
/// What remains of here survives at least as many losses as all of it did or as `goal` asks, whichever is less, and so does what
/// remains of here and leaving; away and lost rows stay.
pub fn removals(
    stripe: &Stripe<'_>,
    health: &Health,
    held: &[(ShardIndex, NodeId)],
    goal: u8,
) -> Vec<(ShardIndex, NodeId)> {
    // A bad row that is held was healed: the same row now says that it is stored.
    let worthless = |row: &&(ShardIndex, NodeId)| holds(held, row.0) && !held.contains(row);
    let mut gone: Vec<_> = health.bad.iter().filter(worthless).copied().collect();
    let mut trim = Trim::new(stripe, goal, held, &health.leaving);
    for row in health.leaving.iter().filter(worthless) {
        gone.extend(trim.leave(*row));
    }
    while let Some(row) = trim.fullest_surplus() {
        gone.extend(trim.drop(row));
    }
    gone
}

/// Rows on lost nodes that may be forgotten once `kept` (what remains of here) stands: all of them if the stripe is whole without
/// them, otherwise none, for a lost node may return. What it then still holds is an orphan.
pub fn forgotten(stripe: &Stripe<'_>, health: &Health, kept: &[Place], goal: u8) -> Vec<Place> {
    let whole = missing(stripe.geometry, kept).is_empty() && tolerance(stripe.geometry, kept) >= Some(goal);
    if whole { health.lost.iter().filter(|row| !kept.contains(row)).copied().collect() } else { Vec::new() }
}

/// What a plan for the stripe counts on: where it survives further losses those away are left the time to return, whatever
/// else is amiss, and nothing is made of what they bring back.
///
/// Not of a copy beside one that leaves: it may go only once as many are here.
pub fn counted_on(stripe: &Stripe<'_>, health: &Health) -> Health {
    let mut counted = health.clone();
    let leaving_copies = stripe.geometry.data() == 1 && !health.leaving.is_empty();
    if health.away.is_empty() || health.reachable <= Some(0) || leaving_copies {
        return counted;
    }
    // What can be had from a node that leaves is copied, so that this one can be emptied.
    let returns = |row: &Place| !holds(&health.leaving, row.0);
    let (returning, others): (Vec<Place>, Vec<Place>) = health.away.iter().copied().partition(returns);
    counted.away = others;
    counted.here.extend(returning);
    counted.lasting = tolerance(stripe.geometry, &counted.here);
    counted
}

/// What a stripe needs.
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
    /// The stripe is whole, and what is to be made only gives what some operators have too much of to others.
    pub spreads: bool,
}

impl Plan {
    /// When it is to be carried out; `away_for` as for [`urgency`]. What only spreads comes after everything else.
    pub fn urgency(&self, away_for: Duration, policy: &RepairPolicy) -> Urgency {
        match urgency(&self.health, self.goal, !self.removals.is_empty(), away_for, policy) {
            Urgency::Whole if self.spreads && policy.braked => Urgency::Waits,
            Urgency::Whole if self.spreads => Urgency::Now { priority: SPREAD_PRIORITY },
            Urgency::Now { priority } if can_wait(priority) && self.is_left_to_the_absent() => Urgency::Waits,
            otherwise => otherwise,
        }
    }

    /// Whether there is nothing to do until those away return: what leaves is here as well, and may go once they are here, too.
    fn is_left_to_the_absent(&self) -> bool {
        let health = &self.health;
        let nothing = self.additions.is_empty() && self.removals.is_empty();
        let comes_back =
            !health.away.is_empty() && health.unheld.is_empty() && health.hoped >= Some(self.goal);
        nothing && comes_back && health.leaving.iter().all(|(shard, _)| holds(&health.here, *shard))
    }
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
    let moves = spread::moves(stripe, &health, goal, candidates, rng);
    let spreads = !moves.is_empty();
    let additions = match spreads {
        true => moves,
        false => additions(stripe, &counted_on(stripe, &health), goal, candidates, rng),
    };
    let removals = all_removals(stripe, &health, &health.here, goal);
    Plan { health, goal, additions, removals, spreads }
}

/// [`removals`], and what is [`forgotten`] with them.
pub fn all_removals(stripe: &Stripe<'_>, health: &Health, held: &[Place], goal: u8) -> Vec<Place> {
    let mut gone = removals(stripe, health, held, goal);
    let kept: Vec<Place> = held.iter().filter(|row| !gone.contains(row)).copied().collect();
    gone.extend(forgotten(stripe, health, &kept, goal));
    gone
}

/// Whether more nodes vanished together than is believable: of `nodes` nodes, those away (not yet lost) since these
/// times; more than max(2, 10 %) of them within `window`.
pub fn brake(nodes: usize, away_since: &[Timestamp], window: Duration) -> bool {
    let mut since = away_since.to_vec();
    since.sort_unstable();
    let mut first = 0;
    since.iter().enumerate().any(|(last, &time)| {
        while time.since(since[first]) > window {
            first += 1;
        }
        let together = last + 1 - first;
        together > BRAKE_NODES && together * BRAKE_SHARE > nodes
    })
}

/// The part of its budget that repair may use of a node whose processors are busy with so many percent and that serves so many
/// requests: all up to [`SPARE_CPU`] and [`SPARE_REQUESTS`], then less, evenly, down to [`LEAST_PART`], by whichever is the
/// scarcer. Whoever waits for an answer comes first.
pub fn part_of_budget(cpu_usage: u8, requests: u64) -> f64 {
    let busy =
        |used: u64, spare: u64, all: u64| used.min(all).saturating_sub(spare) as f64 / (all - spare) as f64;
    let processors = busy(cpu_usage.into(), SPARE_CPU.into(), 100);
    let busiest = processors.max(busy(requests, SPARE_REQUESTS, BUSY_REQUESTS));
    1.0 - busiest * (1.0 - LEAST_PART)
}

/// Shards that are not held, or the copies that are wanted beyond those held.
fn missing(geometry: Geometry, here: &[(ShardIndex, NodeId)]) -> Vec<ShardIndex> {
    let mut missing = Vec::new();
    for shard in geometry.indices() {
        let copies = here.iter().filter(|(held, _)| *held == shard).count();
        missing.extend((copies..geometry.copies()).map(|_| shard));
    }
    missing
}

/// The plan `found` for the missing shards, or one with moves as well if it gives more of the tolerance that is wanted.
fn raised(
    rest: Rest<'_>,
    missing: &[ShardIndex],
    found: Vec<(ShardIndex, NodeId)>,
    goal: u8,
    rng: &mut impl Rng,
) -> Vec<(ShardIndex, NodeId)> {
    let (geometry, here) = (rest.geometry, rest.held);
    let survives = |plan: &[(ShardIndex, NodeId)]| tolerance(geometry, &joined(here, plan));
    let (mut best, mut best_survives) = (found.clone(), survives(&found));
    // Each node keeps at most so many of its shards and the others are placed again; the fewer it keeps, the more even.
    for kept_max in (1..=loads(here).into_values().max().unwrap_or(1)).rev() {
        if best_survives >= Some(goal) {
            break;
        }
        let kept = homes(geometry, here, kept_max);
        let moved = geometry.indices().filter(|shard| !holds(&kept, *shard) && !missing.contains(shard));
        let wanted: Vec<ShardIndex> = missing.iter().copied().chain(moved).collect();
        let mut plan = Rest { held: &kept, ..rest }.plan(&wanted, true, rng);
        plan.retain(|row| !here.contains(row));
        let plan_survives = survives(&plan);
        if plan_survives > best_survives {
            (best, best_survives) = (plan, plan_survives);
        }
    }
    let floor = best_survives.min(Some(goal));
    without_needless(best, |plan, dropped| {
        (holds(here, dropped) || holds(plan, dropped)) && survives(plan) >= floor
    })
}

/// Leaves out what the plan does not need.
fn without_needless(
    mut plan: Vec<(ShardIndex, NodeId)>,
    still_does: impl Fn(&[(ShardIndex, NodeId)], ShardIndex) -> bool,
) -> Vec<(ShardIndex, NodeId)> {
    for at in (0..plan.len()).rev() {
        let row = plan.remove(at);
        if !still_does(&plan, row.0) {
            plan.insert(at, row);
        }
    }
    plan
}

/// One holder for each shard, none with more than `kept_max`; shards for which there is none are left out.
fn homes(geometry: Geometry, here: &[(ShardIndex, NodeId)], kept_max: usize) -> Vec<(ShardIndex, NodeId)> {
    let mut shards: Vec<(ShardIndex, Vec<NodeId>)> = geometry
        .indices()
        .map(|shard| (shard, here.iter().filter(|(held, _)| *held == shard).map(|(_, node)| *node).collect()))
        .collect();
    shards.sort_by_key(|(_, holders)| holders.len());
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut homes = Vec::new();
    for (shard, holders) in shards {
        let least = holders.into_iter().min_by_key(|node| (load.get(node).copied().unwrap_or(0), *node));
        let Some(home) = least else { continue };
        let kept = load.entry(home).or_default();
        if *kept < kept_max {
            *kept += 1;
            homes.push((shard, home));
        }
    }
    homes
}

/// What an even spread survives on nodes that can hold so many shards each, extra copies included.
fn spread_tolerance(geometry: Geometry, room: &[usize]) -> usize {
    // How many nodes get a first shard, a second, and so on.
    let mut rounds = Vec::new();
    let mut left = geometry.shards();
    for level in 1..=geometry.shards() {
        let given = room.iter().filter(|room| **room >= level).count().min(left);
        if given == 0 {
            break;
        }
        left -= given;
        rounds.push(given);
    }
    let Some(spare) = (geometry.shards() - left).checked_sub(geometry.data()) else { return 0 };
    let mut lost = 0;
    let without_copies = (0..room.len())
        .take_while(|&fullest| {
            lost += rounds.iter().filter(|given| **given > fullest).count();
            lost <= spare
        })
        .count();
    let fullest = room.iter().max().copied().unwrap_or(0);
    let others_suffice = room.iter().sum::<usize>() - fullest >= geometry.data();
    without_copies.max(usize::from(others_suffice && geometry.locations() > 1))
}

/// Taking away copies for as long as what remains survives what it must.
struct Trim<'a> {
    geometry: Geometry,
    operators: &'a Operators,
    held: Vec<(ShardIndex, NodeId)>,
    leaving: Vec<(ShardIndex, NodeId)>,
    /// What `held` must survive.
    held_floor: Option<u8>,
    /// What `held` and `leaving` must survive together.
    read_floor: Option<u8>,
    /// Needed. Still so when there is less: what was refused once need not be tried again.
    needed: BTreeSet<(ShardIndex, NodeId)>,
    /// Makes ties fall differently for each stripe: the same nodes would lose them all otherwise.
    salt: u128,
}

impl<'a> Trim<'a> {
    fn new(
        stripe: &Stripe<'a>,
        goal: u8,
        held: &[(ShardIndex, NodeId)],
        leaving: &[(ShardIndex, NodeId)],
    ) -> Self {
        let geometry = stripe.geometry;
        let floor = |rows: &[_]| tolerance(geometry, rows).min(Some(goal));
        let held_floor = floor(held);
        let read_floor = if leaving.is_empty() { held_floor } else { floor(&joined(held, leaving)) };
        Self {
            geometry,
            operators: stripe.operators,
            held_floor,
            read_floor,
            held: held.to_vec(),
            leaving: leaving.to_vec(),
            needed: BTreeSet::new(),
            salt: held.iter().fold(0, |salt: u128, (_, node)| salt.wrapping_add(node.as_uuid().as_u128())),
        }
    }

    /// Lets a leaving copy go, if it may.
    fn leave(&mut self, row: (ShardIndex, NodeId)) -> Option<(ShardIndex, NodeId)> {
        self.leaving.retain(|other| *other != row);
        if self.stands() {
            return Some(row);
        }
        self.leaving.push(row);
        None
    }

    /// Lets a held copy go, if it may.
    fn drop(&mut self, row: (ShardIndex, NodeId)) -> Option<(ShardIndex, NodeId)> {
        self.held.retain(|other| *other != row);
        if self.stands() {
            return Some(row);
        }
        self.held.push(row);
        self.needed.insert(row);
        None
    }

    fn stands(&self) -> bool {
        let held = tolerance(self.geometry, &self.held);
        // Most often what is held suffices, whatever else there is.
        held >= self.held_floor
            && (held >= self.read_floor
                || tolerance(self.geometry, &joined(&self.held, &self.leaving)) >= self.read_floor)
    }

    /// A copy beyond those wanted that was not tried yet, on the node with the most of them all; of equals, of the operator with
    /// the most: of what has moved, that is where it was.
    fn fullest_surplus(&self) -> Option<(ShardIndex, NodeId)> {
        let (load, crowd) = (loads(&self.held), self.operators.loads(&self.held));
        let mut copies: BTreeMap<ShardIndex, usize> = BTreeMap::new();
        for (shard, _) in &self.held {
            *copies.entry(*shard).or_default() += 1;
        }
        self.held
            .iter()
            .filter(|row| copies[&row.0] > self.geometry.copies() && !self.needed.contains(*row))
            .max_by_key(|row| {
                let crowd = crowd[&self.operators.of(row.1)];
                (load[&row.1], copies[&row.0], crowd, self.lot(row.1), row.0)
            })
            .copied()
    }

    /// A different order of the nodes for each stripe; no two nodes have the same.
    fn lot(&self, node: NodeId) -> u128 {
        const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        (node.as_uuid().as_u128() ^ self.salt).wrapping_mul(ODD)
    }
}

fn loads(rows: &[(ShardIndex, NodeId)]) -> BTreeMap<NodeId, usize> {
    let mut loads = BTreeMap::new();
    for (_, node) in rows {
        *loads.entry(*node).or_default() += 1;
    }
    loads
}

fn holds(rows: &[(ShardIndex, NodeId)], shard: ShardIndex) -> bool {
    rows.iter().any(|(held, _)| *held == shard)
}

fn joined(a: &[(ShardIndex, NodeId)], b: &[(ShardIndex, NodeId)]) -> Vec<(ShardIndex, NodeId)> {
    a.iter().chain(b).copied().collect()
}

#[cfg(test)]
mod tests;
