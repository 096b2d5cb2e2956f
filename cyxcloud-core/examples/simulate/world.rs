//! A cluster of nodes that fail and return, and a sample of its stripes that the planners of the library keep alive.
//!
//! Time jumps from event to event. Not here: the network, the chunks' bytes, and correlated failures.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use cyxcloud_core::node::{LifecycleTimers, NodeStatus};
use cyxcloud_core::placement::{Candidate, place};
use cyxcloud_core::repair::{
    self, Belief, NodeFacts, Operators, Presence, RepairPolicy, Stripe, Urgency, additions, counted_on, goal,
    judge, removals,
};
use cyxcloud_core::{ByteCount, Geometry, NodeId, ShardIndex, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
const YEAR: u64 = 365 * 24 * HOUR;
/// Nodes that each plan chooses from, drawn at random among those online.
const CANDIDATES: usize = 48;
/// How long after a failed attempt a stripe that cannot be read is tried again.
const RETRY: u64 = HOUR;
/// Nodes that vanish within this are taken to have vanished together.
const BRAKE_WINDOW: Duration = Duration::from_secs(900);

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) geometry: Geometry,
    pub(crate) nodes: usize,
    pub(crate) stripes: usize,
    pub(crate) years: f64,
    pub(crate) seed: u64,
    /// Permanent losses per node and year.
    pub(crate) losses: f64,
    /// Transient outages per node and year.
    pub(crate) outages: f64,
    /// Share of the outages that are long.
    pub(crate) long_outages: f64,
    /// Mean length of a short and of a long outage, in hours.
    pub(crate) outage_hours: [f64; 2],
    /// Space of each node, and what is in use of it on average.
    pub(crate) capacity: ByteCount,
    pub(crate) used: ByteCount,
    /// What each node gives to repair, per second.
    pub(crate) repair_rate: ByteCount,
    /// As `REPAIR_DELAY_SECS`.
    pub(crate) delay: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) nodes_lost: u64,
    /// Times that a node was silent for so long that its copies counted as gone.
    pub(crate) nodes_given_up: u64,
    pub(crate) stripes_lost: u64,
    /// Times that too few shards were on nodes that were heard.
    pub(crate) unreadable: u64,
    /// Of the shards on nodes that live, how many fewer than wanted were left at a permanent loss; how often.
    pub(crate) short_by: Vec<u64>,
    pub(crate) repairs: u64,
    /// From when a stripe was asked to be worked on until it was done, in hours: mean and worst.
    pub(crate) wait_mean: f64,
    pub(crate) wait_max: f64,
    /// Received by anybody for repair, per node and day.
    pub(crate) traffic: ByteCount,
    /// Share of the time that repair was at work.
    pub(crate) busy: f64,
    pub(crate) load_max: f64,
    /// The same if every location were dealt to any node with equal chance.
    pub(crate) load_max_by_chance: f64,
    pub(crate) braked_hours: u64,
    pub(crate) stripe_years: f64,
}

pub(crate) struct World {
    setting: Setting,
    timers: LifecycleTimers,
    rng: StdRng,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Makes events of one moment come in the order they were made.
    event_count: u64,
    nodes: Vec<Node>,
    /// Each node has its own.
    operators: Operators,
    stripes: Vec<Rows>,
    /// Alive: places in `nodes`.
    population: Vec<u32>,
    away: BTreeSet<(u64, u32)>,
    /// Drawn once an hour: a goal needs only enough candidates, whichever they are.
    some: Vec<Candidate>,
    braked: bool,
    /// Work, most urgent first; the same stripe may wait twice.
    queue: BTreeSet<(i32, u64, u32)>,
    working: bool,
    /// What is being transferred.
    in_flight: Vec<(ShardIndex, NodeId)>,
    waited: f64,
    moved: f64,
    busy: u64,
    outcome: Outcome,
}

struct Node {
    facts: NodeFacts,
    presence: Presence,
    alive: bool,
    /// Counts outages: events of an earlier one are stale.
    outage: u32,
    away_since: u64,
    locations: u32,
    stripes: Vec<u32>,
    place: u32,
}

#[derive(Default)]
struct Rows {
    rows: Vec<(ShardIndex, NodeId, Belief)>,
    /// When work was asked for, with what priority.
    asked: Option<(i32, u64)>,
    lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Outage { node: u32 },
    Death { node: u32 },
    Offline { node: u32, outage: u32 },
    Drain { node: u32, outage: u32 },
    Remove { node: u32, outage: u32 },
    Return { node: u32, outage: u32 },
    Ask { stripe: u32 },
    Work,
    Done { stripe: u32, since: u64 },
    EachHour,
}

/// Runs the setting to its end.
pub(crate) fn run(setting: Setting) -> Outcome {
    let mut world = World::new(setting);
    let end = (setting.years * YEAR as f64) as u64;
    while let Some(Reverse((time, _, event))) = world.events.pop() {
        if time > end {
            break;
        }
        world.now = time;
        world.happen(event);
    }
    world.report()
}

fn id(node: u32) -> NodeId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&node.to_be_bytes());
    NodeId::from_random(bytes)
}

fn place_of(node: NodeId) -> usize {
    let bytes = node.as_bytes();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
}

impl World {
    fn new(setting: Setting) -> Self {
        let mut world = Self {
            setting,
            timers: LifecycleTimers::default(),
            rng: StdRng::seed_from_u64(setting.seed),
            now: 0,
            events: BinaryHeap::new(),
            event_count: 0,
            nodes: Vec::new(),
            operators: Operators::strangers(),
            stripes: Vec::new(),
            population: Vec::new(),
            away: BTreeSet::new(),
            some: Vec::new(),
            braked: false,
            queue: BTreeSet::new(),
            working: false,
            in_flight: Vec::new(),
            waited: 0.0,
            moved: 0.0,
            busy: 0,
            outcome: Outcome { short_by: vec![0; setting.geometry.locations() + 1], ..Outcome::default() },
        };
        for _ in 0..setting.nodes {
            world.join();
        }
        for stripe in 0..setting.stripes {
            let candidates = world.candidates();
            let placed = place(&candidates, setting.geometry, CHUNK, &mut world.rng).expect("there is room");
            world.stripes.push(Rows::default());
            for (shard, node) in placed.assignments {
                world.add(stripe as u32, shard, node);
            }
        }
        world.after(0, Event::EachHour);
        world
    }

    /// A new, empty node.
    fn join(&mut self) {
        let node = self.nodes.len() as u32;
        self.nodes.push(Node {
            facts: NodeFacts {
                status: NodeStatus::Online,
                first_offline_at: None,
                maintenance: false,
                quarantined: false,
                silent: false,
            },
            presence: Presence::Here,
            alive: true,
            outage: 0,
            away_since: 0,
            locations: 0,
            stripes: Vec::new(),
            place: self.population.len() as u32,
        });
        self.population.push(node);
        if let Some(death) = self.wait(self.setting.losses) {
            self.after(death, Event::Death { node });
        }
        self.next_outage(node);
    }

    fn next_outage(&mut self, node: u32) {
        if let Some(outage) = self.wait(self.setting.outages) {
            self.after(outage, Event::Outage { node });
        }
    }

    /// Exponential, for something that happens so often a year.
    fn wait(&mut self, per_year: f64) -> Option<u64> {
        (per_year > 0.0).then(|| self.exponential(YEAR as f64 / per_year))
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-self.rng.random_range(f64::MIN_POSITIVE..1.0).ln() * mean) as u64
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((self.now + millis, self.event_count, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Outage { node } => self.outage(node),
            Event::Death { node } => self.die(node),
            Event::Offline { node, outage } if self.same(node, outage) => self.offline(node),
            Event::Drain { node, outage } if self.same(node, outage) => self.drain(node),
            Event::Remove { node, outage } if self.same(node, outage) => self.remove(node),
            Event::Return { node, outage } if self.same(node, outage) => self.come_back(node),
            Event::Offline { .. } | Event::Drain { .. } | Event::Remove { .. } | Event::Return { .. } => {}
            Event::Ask { stripe } => self.consider(stripe),
            Event::Work => self.work(),
            Event::Done { stripe, since } => self.done(stripe, since),
            Event::EachHour => self.each_hour(),
        }
    }

    fn same(&self, node: u32, outage: u32) -> bool {
        self.nodes[node as usize].outage == outage
    }

    // ---- nodes ----

    fn outage(&mut self, node: u32) {
        if !self.nodes[node as usize].alive {
            return;
        }
        let long = self.rng.random_bool(self.setting.long_outages);
        let length = self.exponential(self.setting.outage_hours[usize::from(long)] * HOUR as f64);
        self.silent(node);
        let outage = self.nodes[node as usize].outage;
        self.after(length, Event::Return { node, outage });
    }

    /// It cannot be heard from now on.
    fn silent(&mut self, node: u32) {
        let slot = &mut self.nodes[node as usize];
        slot.outage += 1;
        slot.away_since = self.now;
        let outage = slot.outage;
        let LifecycleTimers { offline, drain, remove, .. } = self.timers;
        self.after(offline.as_millis() as u64, Event::Offline { node, outage });
        self.after(drain.as_millis() as u64, Event::Drain { node, outage });
        self.after(remove.as_millis() as u64, Event::Remove { node, outage });
    }

    fn die(&mut self, node: u32) {
        self.outcome.nodes_lost += 1;
        let slot = &mut self.nodes[node as usize];
        slot.alive = false;
        let (place, was_away) = (slot.place, slot.presence != Presence::Here);
        self.population.swap_remove(place as usize);
        if let Some(&moved) = self.population.get(place as usize) {
            self.nodes[moved as usize].place = place;
        }
        self.join();
        for stripe in self.nodes[node as usize].stripes.clone() {
            self.count_survivors(stripe);
        }
        if was_away {
            // The clock of its absence runs already; it only never returns.
            let since = self.nodes[node as usize].away_since;
            self.rearm(node, since);
        } else {
            self.silent(node);
        }
    }

    /// Its absence goes on, without a return.
    fn rearm(&mut self, node: u32, since: u64) {
        let slot = &mut self.nodes[node as usize];
        slot.outage += 1;
        let (outage, presence) = (slot.outage, slot.presence);
        let passed = self.now - since;
        let due = |after: Duration| (after.as_millis() as u64).saturating_sub(passed);
        let (drain, remove) = (due(self.timers.drain), due(self.timers.remove));
        if presence == Presence::Away {
            self.after(drain, Event::Drain { node, outage });
        }
        self.after(remove, Event::Remove { node, outage });
    }

    fn become_status(&mut self, node: u32, status: NodeStatus) {
        let now = self.time();
        let slot = &mut self.nodes[node as usize];
        self.away.remove(&(slot.away_since, node));
        slot.facts.status = status;
        slot.facts.first_offline_at = match status {
            NodeStatus::Online => None,
            _ => slot.facts.first_offline_at.or(Some(now)),
        };
        slot.presence = slot.facts.presence();
        if slot.presence == Presence::Away {
            self.away.insert((slot.away_since, node));
        }
    }

    fn offline(&mut self, node: u32) {
        self.become_status(node, NodeStatus::Offline);
        for stripe in self.nodes[node as usize].stripes.clone() {
            let spare = self.spare(stripe);
            self.outcome.unreadable += u64::from(spare == -1);
            // More than that waits: `repair::urgency` says so of every stripe of which nothing but nodes away is short.
            if spare <= 0 {
                self.consider(stripe);
            }
        }
    }

    fn drain(&mut self, node: u32) {
        self.outcome.nodes_given_up += 1;
        self.become_status(node, NodeStatus::Draining);
        for stripe in self.nodes[node as usize].stripes.clone() {
            self.consider(stripe);
        }
    }

    fn remove(&mut self, node: u32) {
        for stripe in std::mem::take(&mut self.nodes[node as usize].stripes) {
            self.stripes[stripe as usize].rows.retain(|row| place_of(row.1) != node as usize);
            self.nodes[node as usize].locations = 0;
            self.count_if_lost(stripe);
            self.consider(stripe);
        }
    }

    fn come_back(&mut self, node: u32) {
        self.become_status(node, NodeStatus::Online);
        self.nodes[node as usize].outage += 1;
        self.next_outage(node);
        let wanted = self.setting.geometry.locations();
        for stripe in self.nodes[node as usize].stripes.clone() {
            if self.stripes[stripe as usize].rows.len() > wanted {
                self.consider(stripe);
            }
        }
    }

    fn each_hour(&mut self) {
        let away: Vec<Timestamp> =
            self.away.iter().map(|(since, _)| Timestamp::from_unix_millis(*since as i64)).collect();
        self.braked = repair::brake(self.setting.nodes, &away, BRAKE_WINDOW);
        self.some = self.candidates();
        self.outcome.braked_hours += u64::from(self.braked);
        self.after(HOUR, Event::EachHour);
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.now as i64)
    }

    // ---- stripes ----

    /// Node losses that what is here survives, -1 for none to spare: every location of these stripes has a node of its own.
    fn spare(&self, stripe: u32) -> i64 {
        self.distinct(stripe, |node| node.presence == Presence::Here) - self.setting.geometry.data() as i64
    }

    /// Distinct shards (or copies) on the nodes that pass.
    fn distinct(&self, stripe: u32, pass: impl Fn(&Node) -> bool) -> i64 {
        let copied = self.setting.geometry.copies() > 1;
        let (mut seen, mut count) = (0_u64, 0);
        for (shard, node, _) in &self.stripes[stripe as usize].rows {
            let bit = 1 << shard.get();
            if (copied || seen & bit == 0) && pass(&self.nodes[place_of(*node)]) {
                seen |= bit;
                count += 1;
            }
        }
        count
    }

    fn count_survivors(&mut self, stripe: u32) {
        if self.stripes[stripe as usize].lost {
            return;
        }
        let alive = self.distinct(stripe, |node| node.alive).max(0) as usize;
        let wanted = self.setting.geometry.locations();
        self.outcome.short_by[wanted.saturating_sub(alive)] += 1;
        self.count_if_lost(stripe);
    }

    fn count_if_lost(&mut self, stripe: u32) {
        let alive = self.distinct(stripe, |node| node.alive);
        let rows = &mut self.stripes[stripe as usize];
        if !rows.lost && alive < self.setting.geometry.data() as i64 {
            rows.lost = true;
            self.outcome.stripes_lost += 1;
        }
    }

    fn add(&mut self, stripe: u32, shard: ShardIndex, node: NodeId) {
        self.stripes[stripe as usize].rows.push((shard, node, Belief::Stored));
        let slot = &mut self.nodes[place_of(node)];
        slot.locations += 1;
        slot.stripes.push(stripe);
    }

    fn drop_row(&mut self, stripe: u32, row: (ShardIndex, NodeId)) {
        self.stripes[stripe as usize].rows.retain(|(shard, node, _)| (*shard, *node) != row);
        let slot = &mut self.nodes[place_of(row.1)];
        slot.locations -= 1;
        if let Some(at) = slot.stripes.iter().position(|held| *held == stripe) {
            slot.stripes.swap_remove(at);
        }
    }

    /// A few nodes that are online, with the room that they have.
    fn candidates(&mut self) -> Vec<Candidate> {
        let scale = self.scale();
        let mut drawn: Vec<u32> = (0..CANDIDATES)
            .map(|_| self.population[self.rng.random_range(0..self.population.len())])
            .collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
            .into_iter()
            .filter(|node| self.nodes[*node as usize].presence == Presence::Here)
            .map(|node| Candidate {
                node: id(node),
                free: self.setting.capacity.saturating_sub(ByteCount::bytes(
                    (f64::from(self.nodes[node as usize].locations) * CHUNK.get() as f64 * scale) as u64,
                )),
                operator: String::new(),
                subnet: String::new(),
                region: String::new(),
                weight_penalty: false,
                vetted: true,
            })
            .collect()
    }

    /// Stripes of the cluster that each one of the sample stands for.
    fn scale(&self) -> f64 {
        let setting = &self.setting;
        let sampled = (setting.stripes * setting.geometry.locations()) as f64 * CHUNK.get() as f64;
        setting.nodes as f64 * setting.used.get() as f64 / sampled
    }

    /// Asks the library how urgent the stripe is, and queues it.
    fn consider(&mut self, stripe: u32) {
        if self.stripes[stripe as usize].lost {
            return;
        }
        let policy = RepairPolicy { delay: self.setting.delay, braked: self.braked };
        let (seen, now) = (self.see(stripe), self.time());
        let health = judge(&seen, |node| self.nodes[place_of(node)].presence);
        let goal = goal(&seen, &health, &self.some);
        // No stripe here has more locations than wanted for any other reason than that a node came back.
        let surplus = health.here.len() > self.setting.geometry.locations();
        let since =
            |node: &NodeId| Timestamp::from_unix_millis(self.nodes[place_of(*node)].away_since as i64);
        let away_for = health.away.iter().map(|(_, node)| now.since(since(node))).max().unwrap_or_default();
        match repair::urgency(&health, goal, surplus, away_for, &policy) {
            Urgency::Whole | Urgency::Waits => self.forget(stripe),
            Urgency::Now { priority } => self.ask(stripe, priority),
            Urgency::After { delay, .. } => {
                self.forget(stripe);
                self.after(delay.as_millis() as u64, Event::Ask { stripe });
            }
        }
    }

    fn see(&self, stripe: u32) -> Stripe<'_> {
        let geometry = self.setting.geometry;
        Stripe {
            geometry,
            target_tolerance: (geometry.locations() - geometry.data()) as u8,
            chunk_len: CHUNK,
            locations: &self.stripes[stripe as usize].rows,
            operators: &self.operators,
        }
    }

    fn forget(&mut self, stripe: u32) {
        if let Some((priority, since)) = self.stripes[stripe as usize].asked.take() {
            self.queue.remove(&(priority, since, stripe));
        }
    }

    fn ask(&mut self, stripe: u32, priority: i32) {
        let since = self.stripes[stripe as usize].asked.map_or(self.now, |(_, since)| since);
        self.forget(stripe);
        self.stripes[stripe as usize].asked = Some((priority, since));
        self.queue.insert((priority, since, stripe));
        if !self.working {
            self.working = true;
            self.after(0, Event::Work);
        }
    }

    /// Plans for the most urgent stripe; its transfers take the whole cluster's bandwidth for as long as they need.
    fn work(&mut self) {
        while let Some((_, since, stripe)) = self.queue.pop_first() {
            self.stripes[stripe as usize].asked = None;
            let candidates = self.candidates();
            let mut rng = StdRng::seed_from_u64(self.rng.random());
            let seen = self.see(stripe);
            let health = judge(&seen, |node| self.nodes[place_of(node)].presence);
            let goal = goal(&seen, &health, &candidates);
            let plan = additions(&seen, &counted_on(&seen, &health), goal, &candidates, &mut rng);
            if !plan.is_empty() && health.reachable.is_none() {
                self.after(RETRY, Event::Ask { stripe });
                continue;
            }
            if plan.is_empty() {
                self.trim(stripe);
                continue;
            }
            let chunks = (self.setting.geometry.data() + plan.len()) as f64;
            let bytes = chunks * CHUNK.get() as f64 * self.scale();
            let rate = self.setting.repair_rate.get() as f64 * self.setting.nodes as f64;
            let millis = (bytes / rate * SECOND as f64).ceil() as u64;
            self.moved += bytes;
            self.busy += millis;
            self.outcome.repairs += 1;
            self.in_flight = plan;
            self.after(millis, Event::Done { stripe, since });
            return;
        }
        self.working = false;
    }

    fn done(&mut self, stripe: u32, since: u64) {
        let hours = (self.now - since) as f64 / HOUR as f64;
        self.waited += hours;
        self.outcome.wait_max = self.outcome.wait_max.max(hours);
        for (shard, node) in std::mem::take(&mut self.in_flight) {
            // What a node was sent that is not there any more is planned again.
            if self.nodes[place_of(node)].presence == Presence::Here && !self.stripes[stripe as usize].lost {
                self.add(stripe, shard, node);
            }
        }
        self.trim(stripe);
        self.consider(stripe);
        self.work();
    }

    fn trim(&mut self, stripe: u32) {
        let seen = self.see(stripe);
        let health = judge(&seen, |node| self.nodes[place_of(node)].presence);
        let goal = goal(&seen, &health, &self.some);
        for row in removals(&seen, &health, &health.here, goal) {
            self.drop_row(stripe, row);
        }
    }

    // ---- the end ----

    fn report(mut self) -> Outcome {
        let loads: Vec<u32> =
            self.population.iter().map(|node| self.nodes[*node as usize].locations).collect();
        let total: u32 = loads.iter().sum();
        let mut dealt = vec![0_u32; loads.len()];
        for _ in 0..total {
            dealt[self.rng.random_range(0..loads.len())] += 1;
        }
        let mean = f64::from(total) / loads.len() as f64;
        let most = |loads: &[u32]| f64::from(loads.iter().max().copied().unwrap_or(0)) / mean;
        let setting = &self.setting;
        let node_days = setting.nodes as f64 * setting.years * 365.0;
        let mut outcome = self.outcome;
        outcome.load_max = most(&loads);
        outcome.load_max_by_chance = most(&dealt);
        outcome.traffic = ByteCount::bytes((self.moved / node_days) as u64);
        outcome.busy = self.busy as f64 / (setting.years * YEAR as f64);
        outcome.wait_mean = self.waited / outcome.repairs.max(1) as f64;
        outcome.stripe_years = setting.stripes as f64 * setting.years;
        outcome
    }
}

/// Length of every chunk: a tenth of a stripe of 4 MiB, and no longer for copies. What a node holds is given in bytes, so
/// the figures depend on it only through the number of chunks.
const CHUNK: ByteCount = ByteCount::kib(410);
