//! Any stripe in any cluster; the checker counts for itself.

use proptest::prelude::*;

use super::*;

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
        let urgency = match surplus {
            true => urgency(&plan.health, plan.goal, true, DELAY, &CALM),
            false => Plan { removals: Vec::new(), ..plan.clone() }.urgency(DELAY, &CALM),
        };
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
