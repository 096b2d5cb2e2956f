//! Which node gets which shard, and what the result survives.
//!
//! Pure: the caller brings the nodes that may take new chunks (status, quarantine and headroom judged already, `free` being
//! what is above the headroom) and carries the plan out. The guarantee: from two nodes up, losing any one of
//! them leaves enough shards, if need be by a few extra copies.
//! Not here: what tolerance a write waits for (`profile`), and repair's order of urgency.

mod tolerance;

use std::cmp::Ordering;
use std::collections::HashMap;

use rand::{Rng, RngExt};

pub use tolerance::tolerance;

use crate::profile::ACK_TOLERANCE_MAX;
use crate::{ByteCount, Geometry, NodeId, ShardIndex};

/// A node that may take new chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// Space above the headroom.
    pub free: ByteCount,
    /// Who runs it; empty: nobody else's.
    pub operator: String,
    /// Its network; empty: not shared.
    pub subnet: String,
    /// Its region or site; empty: not shared.
    pub region: String,
    /// Recently failing: used only where the others are too few.
    pub weight_penalty: bool,
    /// Known for long enough, and proven. Who is not gets a small part of what is written, unless the others are too few.
    pub vetted: bool,
}

/// The part of all locations that goes to nodes that are not vetted, at most, where the vetted ones suffice.
pub const NEW_SHARE: f64 = 0.05;

/// Where a stripe's shards go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Every wanted location, extra copies included; no (shard, node) twice.
    pub assignments: Vec<(ShardIndex, NodeId)>,
    /// Node losses that all of them together survive.
    pub tolerance: u8,
}

/// Why a stripe cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// There is nobody.
    #[error("no storage node can take new data; start nodes, or free space on them")]
    NoNodes,
    /// Not enough of them have room for the guarantee.
    #[error(
        "the {nodes} storage nodes have no room for a stripe of {shards} shards of {shard_len} that survives the loss of one"
    )]
    NoRoom {
        /// nodes offered
        nodes: usize,
        /// shards to be placed
        shards: usize,
        /// length of each
        shard_len: ByteCount,
    },
}

/// Places a new stripe.
///
/// Shards are spread evenly over nodes, then as evenly as they go over operators, subnets and regions; among
/// equals by chance, weighted by free space. From two nodes up the result tolerates at least one loss (unless the
/// geometry is a single copy), and as many as an even spread over the nodes with room can. Nodes that are new get [`NEW_SHARE`]
/// of all that is placed, nodes that fail nothing, unless a stripe tolerates more with them than without.
pub fn place(
    candidates: &[Candidate],
    geometry: Geometry,
    shard_len: ByteCount,
    rng: &mut impl Rng,
) -> Result<Placement, PlacementError> {
    if candidates.is_empty() {
        return Err(PlacementError::NoNodes);
    }
    let no_room = PlacementError::NoRoom { nodes: candidates.len(), shards: geometry.shards(), shard_len };
    let mut best: Option<Placement> = None;
    for (nodes, newcomer) in fields(candidates, geometry, rng) {
        let placement = place_on(&nodes, newcomer, geometry, shard_len, rng);
        best = match (best, placement) {
            (Some(best), Some(placement)) if placement.tolerance <= best.tolerance => Some(best),
            (best, placement) => placement.or(best),
        };
        if best.as_ref().is_some_and(|best| best.tolerance >= ACK_TOLERANCE_MAX) {
            break;
        }
    }
    let promised = u8::from(candidates.len() > 1 && geometry.locations() > 1);
    best.filter(|placement| placement.tolerance >= promised).ok_or(no_room)
}

/// Nodes over which a stripe is spread, and one that is given a single location beside them.
type Nodes<'a> = (Vec<&'a Candidate>, Option<&'a Candidate>);

/// Over whom a stripe is spread: first the vetted, now and then with one that is new; then all that do not fail; then all. A later
/// one is tried only where an earlier one tolerates too little.
fn fields<'a>(candidates: &'a [Candidate], geometry: Geometry, rng: &mut impl Rng) -> Vec<Nodes<'a>> {
    let everyone: Vec<&Candidate> = candidates.iter().collect();
    let reliable: Vec<&Candidate> = candidates.iter().filter(|candidate| !candidate.weight_penalty).collect();
    let (vetted, new): (Vec<_>, Vec<_>) = reliable.iter().copied().partition(|candidate| candidate.vetted);
    // One location, this often: of all that is placed no more than its share.
    let chance = (NEW_SHARE * geometry.locations() as f64).min(1.0);
    let newcomer = if new.is_empty() || !rng.random_bool(chance) {
        None
    } else {
        new.get(rng.random_range(0..new.len())).copied()
    };
    let mut fields: Vec<Nodes<'a>> = Vec::with_capacity(3);
    for (nodes, newcomer) in [(vetted, newcomer), (reliable, None), (everyone, None)] {
        if fields.last().map_or(0, |(last, _)| last.len()) < nodes.len() {
            fields.push((nodes, newcomer));
        }
    }
    fields
}

/// Plans again for shards whose store failed: over the `candidates` that are left, given what `held` holds of the stripe.
///
/// Never gives a node a shard it holds; prefers nodes with the fewest shards of the stripe, then other domains. Where
/// nodes have become so few that one of them holds too much, extra copies of shards that are not missing are planned as well.
/// What cannot be placed is left out.
pub fn replace(
    candidates: &[Candidate],
    geometry: Geometry,
    shard_len: ByteCount,
    held: &[(ShardIndex, NodeId)],
    missing: &[ShardIndex],
    rng: &mut impl Rng,
) -> Vec<(ShardIndex, NodeId)> {
    Rest { candidates, geometry, shard_len, held, barred: &[] }.plan(missing, geometry.copies() == 1, rng)
}

/// A stripe of which some shards are to be placed again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest<'a> {
    /// Nodes that may take shards.
    pub(crate) candidates: &'a [Candidate],
    /// Of the stripe.
    pub(crate) geometry: Geometry,
    /// Length of each shard.
    pub(crate) shard_len: ByteCount,
    /// What counts.
    pub(crate) held: &'a [(ShardIndex, NodeId)],
    /// What does not count and must not be given either.
    pub(crate) barred: &'a [(ShardIndex, NodeId)],
}

impl Rest<'_> {
    /// A node for each of `missing`, as far as there is one; if asked to `share`, also the extra copies of the guarantee.
    pub(crate) fn plan(
        &self,
        missing: &[ShardIndex],
        share: bool,
        rng: &mut impl Rng,
    ) -> Vec<(ShardIndex, NodeId)> {
        let mut field = self.field(rng);
        for &shard in missing {
            if let Some(node) = field.best(|node| field.may_take(node, shard)) {
                field.assign(shard, node);
            }
        }
        if share {
            field.share();
        }
        field.assignments()
    }

    /// A node for each of `shards`, as far as there is one: of those that pass, each of another operator, that has none and gets one.
    pub(crate) fn plan_apart(
        &self,
        shards: &[ShardIndex],
        pass: impl Fn(&Candidate) -> bool,
        rng: &mut impl Rng,
    ) -> Vec<(ShardIndex, NodeId)> {
        let mut field = self.field(rng);
        for &shard in shards {
            let apart = |node: usize| {
                field.may_take(node, shard)
                    && field.load_of_operator(node) == 0
                    && pass(field.nodes[node].candidate)
            };
            if let Some(node) = field.best(apart) {
                field.assign(shard, node);
            }
        }
        field.assignments()
    }

    fn field(&self, rng: &mut impl Rng) -> Field<'_> {
        let mut field = Field::new(self.candidates.iter().collect(), self.geometry, self.shard_len, rng);
        field.wary = true;
        field.hold(self.held);
        field.bar(self.barred);
        field
    }
}

/// Fewest locations with which `nodes` equal nodes keep the guarantee: all shards once, and a second copy of what would
/// otherwise be too much on one node. 0 where there are no nodes.
pub fn target_locations(geometry: Geometry, nodes: usize) -> usize {
    match nodes {
        0 => 0,
        1 => geometry.shards(),
        _ if geometry.copies() > 1 || geometry.locations() == 1 => geometry.copies().min(nodes),
        _ => geometry.shards() + geometry.shards().saturating_sub(nodes * geometry.parity()),
    }
}

/// One attempt over exactly these nodes, and one location for the `newcomer`; `None` where there is no room.
fn place_on(
    nodes: &[&Candidate],
    newcomer: Option<&Candidate>,
    geometry: Geometry,
    shard_len: ByteCount,
    rng: &mut impl Rng,
) -> Option<Placement> {
    let all = nodes.iter().copied().chain(newcomer).collect();
    let mut field = Field::new(all, geometry, shard_len, rng);
    let mut shards: Vec<ShardIndex> = geometry.indices().collect();
    // Whoever is picked first has the most room or a domain of its own; it must not always get the data shards.
    for last in (1..shards.len()).rev() {
        shards.swap(last, rng.random_range(0..=last));
    }
    if newcomer.is_some() {
        field.give_one(shards.first().copied(), nodes.len());
    }
    for shard in shards {
        for copy in field.holders[shard.get()].len()..geometry.copies() {
            match field.best(|node| field.may_take(node, shard)) {
                Some(node) => field.assign(shard, node),
                None if copy > 0 => break,
                None => return None,
            }
        }
    }
    if geometry.copies() == 1 && geometry.locations() > 1 {
        field.share();
    }
    let assignments = field.assignments();
    let tolerance = tolerance(geometry, &assignments)?;
    Some(Placement { assignments, tolerance })
}

/// The nodes of one planning, with what each has been given.
struct Field<'a> {
    geometry: Geometry,
    nodes: Vec<Slot<'a>>,
    /// Shards per operator, subnet and region.
    domains: [Vec<usize>; 3],
    /// Holders of each shard: places in `nodes`, or `None` for a node that is no candidate.
    holders: Vec<Vec<Option<usize>>>,
    /// Places in `nodes` that must not be given a shard, though they don't count as its holders.
    barred: Vec<(ShardIndex, usize)>,
    planned: Vec<(ShardIndex, usize)>,
    /// Whether the new come after the vetted.
    wary: bool,
}

struct Slot<'a> {
    candidate: &'a Candidate,
    domains: [usize; 3],
    /// Shards of the stripe that it holds or is to hold.
    load: usize,
    /// Chunks that still fit.
    room: u64,
    /// Smaller is drawn first.
    draw: f64,
}

impl<'a> Field<'a> {
    fn new(
        candidates: Vec<&'a Candidate>,
        geometry: Geometry,
        shard_len: ByteCount,
        rng: &mut impl Rng,
    ) -> Self {
        let mut names: [HashMap<&str, usize>; 3] = Default::default();
        let mut counts = [0; 3];
        let nodes = candidates
            .into_iter()
            .map(|candidate| {
                let texts = [&candidate.operator, &candidate.subnet, &candidate.region];
                let mut domains = [0; 3];
                for level in 0..3 {
                    let fresh = counts[level];
                    domains[level] = match texts[level].as_str() {
                        "" => fresh,
                        name => *names[level].entry(name).or_insert(fresh),
                    };
                    counts[level] += usize::from(domains[level] == fresh);
                }
                let room = candidate.free.get() / shard_len.get().max(1);
                Slot { candidate, domains, load: 0, room, draw: draw(candidate.free, rng) }
            })
            .collect();
        Self {
            geometry,
            nodes,
            domains: counts.map(|count| vec![0; count]),
            holders: vec![Vec::new(); geometry.shards()],
            barred: Vec::new(),
            planned: Vec::new(),
            wary: false,
        }
    }

    /// Takes note of what is already there.
    fn hold(&mut self, held: &[(ShardIndex, NodeId)]) {
        let places = self.places();
        for (shard, node) in held {
            let place = places.get(node).copied();
            if let Some(holders) = self.holders.get_mut(shard.get()) {
                holders.push(place);
            }
            if let Some(place) = place {
                self.count(place);
            }
        }
    }

    /// Takes note of who must not be given what.
    fn bar(&mut self, barred: &[(ShardIndex, NodeId)]) {
        if !barred.is_empty() {
            let places = self.places();
            self.barred.extend(barred.iter().filter_map(|(shard, node)| Some((*shard, *places.get(node)?))));
        }
    }

    fn places(&self) -> HashMap<NodeId, usize> {
        self.nodes.iter().enumerate().map(|(place, slot)| (slot.candidate.node, place)).collect()
    }

    fn count(&mut self, place: usize) {
        let slot = &mut self.nodes[place];
        slot.load += 1;
        for (level, &domain) in slot.domains.iter().enumerate() {
            self.domains[level][domain] += 1;
        }
    }

    /// Shards of the stripe on nodes of whoever runs this one, as far as they are among these.
    fn load_of_operator(&self, place: usize) -> usize {
        let [operator, ..] = self.nodes[place].domains;
        self.domains[0][operator]
    }

    fn may_take(&self, place: usize, shard: ShardIndex) -> bool {
        !self.holders[shard.get()].contains(&Some(place)) && !self.barred.contains(&(shard, place))
    }

    /// The node to be given the next shard, of those with room that pass.
    fn best(&self, pass: impl Fn(usize) -> bool) -> Option<usize> {
        (0..self.nodes.len())
            .filter(|&place| self.nodes[place].room > 0 && pass(place))
            .min_by(|&a, &b| self.order(a, b))
    }

    fn order(&self, a: usize, b: usize) -> Ordering {
        let rank = |place: usize| {
            let slot = &self.nodes[place];
            let [operator, subnet, region] = slot.domains;
            let shared = [self.domains[0][operator], self.domains[1][subnet], self.domains[2][region]];
            let wary = self.wary && !slot.candidate.vetted;
            (slot.load, slot.candidate.weight_penalty || wary, shared)
        };
        let (slot_a, slot_b) = (&self.nodes[a], &self.nodes[b]);
        rank(a)
            .cmp(&rank(b))
            .then_with(|| slot_a.draw.total_cmp(&slot_b.draw))
            .then_with(|| slot_a.candidate.node.cmp(&slot_b.candidate.node))
    }

    fn assign(&mut self, shard: ShardIndex, place: usize) {
        self.holders[shard.get()].push(Some(place));
        self.nodes[place].room -= 1;
        self.count(place);
        self.planned.push((shard, place));
    }

    /// Gives the node at this place this shard, if it has room, and nothing else.
    fn give_one(&mut self, shard: Option<ShardIndex>, place: usize) {
        if let Some(shard) = shard.filter(|_| self.nodes[place].room > 0) {
            self.assign(shard, place);
        }
        self.nodes[place].room = 0;
    }

    /// Adds second copies until no candidate alone holds more shards than there is parity: the guarantee.
    fn share(&mut self) {
        let mut alone: Vec<Vec<ShardIndex>> = vec![Vec::new(); self.nodes.len()];
        for shard in self.geometry.indices() {
            if let [Some(place)] = self.holders[shard.get()][..] {
                alone[place].push(shard);
            }
        }
        for (place, mine) in alone.into_iter().enumerate() {
            let (spared, shared) = mine.split_at(mine.len().min(self.geometry.parity()));
            let mut needed = shared.len();
            for &shard in shared.iter().chain(spared) {
                if needed == 0 {
                    break;
                }
                if let Some(other) = self.best(|other| other != place && self.may_take(other, shard)) {
                    self.assign(shard, other);
                    needed -= 1;
                }
            }
        }
    }

    fn assignments(&self) -> Vec<(ShardIndex, NodeId)> {
        self.planned.iter().map(|&(shard, place)| (shard, self.nodes[place].candidate.node)).collect()
    }
}

/// Efraimidis–Spirakis: taking the smallest first draws without replacement, weighted by free space.
fn draw(free: ByteCount, rng: &mut impl Rng) -> f64 {
    let chance: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
    -chance.ln() / (free.get().max(1) as f64)
}

#[cfg(test)]
mod tests;
