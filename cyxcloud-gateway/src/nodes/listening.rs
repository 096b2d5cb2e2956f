//! Since when silence counts: since when somebody has been listening without a break.
//!
//! Heartbeats that cannot be recorded, and a time in which nobody looks (the metadata is away, a machine is paused, a
//! laptop sleeps, a clock is set), leave what looks like the silence of every node. So each of them begins that time anew.
//! [`Watch`] and [`believed`] decide, and are pure; [`Listening`] shares a watch among who records and who judges.
//! Not here: heartbeats that another gateway could not record.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cyxcloud_core::Timestamp;
use cyxcloud_core::node::{LifecycleTimers, NodeDecision, NodeStatus};
use tracing::{info, warn};

/// Time between two looks that is no break, however soon nodes are offline: three ticks of the monitor.
const PAUSE_MIN: Duration = Duration::from_secs(3);
/// The same as a part of the offline threshold: the database of a large cluster may be slow.
const PAUSE_PART: u32 = 10;

/// A moment by two clocks, of which neither is enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// By this machine's, which nobody sets; it may stand still while the machine sleeps.
    pub(super) ours: Instant,
    /// By the database's, which goes on then; it may be set.
    pub(super) theirs: Timestamp,
}

impl Moment {
    /// How far apart two are, by the clock that says more.
    fn apart(self, other: Self) -> Duration {
        let ours = self.ours.max(other.ours).duration_since(self.ours.min(other.ours));
        let theirs = self.theirs.max(other.theirs).since(self.theirs.min(other.theirs));
        ours.max(theirs)
    }

    /// How long after another it is, by the clock that says less.
    fn since(self, earlier: Self) -> Duration {
        self.ours.saturating_duration_since(earlier.ours).min(self.theirs.since(earlier.theirs))
    }
}

/// Looks at the nodes that followed each other without a break.
#[derive(Clone, Copy, Debug)]
struct Watch {
    first: Moment,
    last: Moment,
}

impl Watch {
    /// What one more look makes of the looks before it.
    fn look(before: Option<Self>, now: Moment, pause_max: Duration) -> Self {
        match before {
            Some(watch) if watch.last.apart(now) <= pause_max => Self { last: now, ..watch },
            Some(_) | None => Self { first: now, last: now },
        }
    }

    /// For how long it has lasted.
    fn duration(&self) -> Duration {
        self.last.since(self.first)
    }
}

/// What may be done of what was decided, by somebody who has listened for so long: nothing is held against a node that
/// he might not have heard.
pub(super) fn believed(decision: NodeDecision, listened: Duration, timers: &LifecycleTimers) -> NodeDecision {
    let blames = match decision {
        NodeDecision::Remove | NodeDecision::Step(NodeStatus::Offline | NodeStatus::Draining) => true,
        NodeDecision::Stay | NodeDecision::Step(NodeStatus::Online | NodeStatus::Recovering) => false,
    };
    if blames && listened < timers.offline { NodeDecision::Stay } else { decision }
}

/// The watch of one gateway. A clone is the same.
#[derive(Clone, Debug)]
pub struct Listening {
    watch: Arc<Mutex<Option<Watch>>>,
    pause_max: Duration,
}

impl Listening {
    /// One that has not begun.
    pub fn new(timers: &LifecycleTimers) -> Self {
        Self { watch: Arc::default(), pause_max: PAUSE_MIN.max(timers.offline / PAUSE_PART) }
    }

    /// Something was not heard: it begins anew with the next look.
    pub fn interrupted(&self) {
        if self.watch().take().is_some() {
            info!("nodes cannot be heard: their silence counts from when they can be");
        }
    }

    /// The nodes were looked at; for how long that has been so without a break.
    pub(super) fn look(&self, now: Moment) -> Duration {
        let mut watch = self.watch();
        let looked = Watch::look(*watch, now, self.pause_max);
        let pause = watch.replace(looked).map_or(Duration::ZERO, |before| before.last.apart(now));
        if pause > self.pause_max {
            let pause_secs = pause.as_secs();
            warn!(pause_secs, "nobody listened for a while: the silence of nodes counts from now");
        }
        looked.duration()
    }

    fn watch(&self) -> MutexGuard<'_, Option<Watch>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_unix_millis(1_700_000_000_000);
    const TICK: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    /// Both clocks, and what is known by them.
    struct World {
        now: Moment,
        listening: Listening,
    }

    impl World {
        fn new() -> Self {
            let now = Moment { ours: Instant::now(), theirs: START };
            Self { now, listening: Listening::new(&LifecycleTimers::default()) }
        }

        /// Time passes on this machine and in the database, and somebody looks.
        fn look_after(&mut self, ours: Duration, theirs: Duration) -> Duration {
            self.now = Moment { ours: self.now.ours + ours, theirs: self.now.theirs.plus(theirs) };
            self.listening.look(self.now)
        }

        /// Somebody looks each second for so long.
        fn listen(&mut self, time: Duration) -> Duration {
            (0..time.as_secs()).fold(Duration::ZERO, |_, _| self.look_after(TICK, TICK))
        }
    }

    #[test]
    fn whoever_begins_has_heard_nothing_yet() {
        let mut world = World::new();
        assert_eq!(world.look_after(Duration::ZERO, Duration::ZERO), Duration::ZERO);
        assert_eq!(world.listen(5 * MINUTE), 5 * MINUTE);
        assert_eq!(world.look_after(30 * TICK, 30 * TICK), 5 * MINUTE + 30 * TICK, "slow, and no break");
    }

    #[test]
    fn a_break_by_either_clock_begins_anew() {
        // The metadata hung; this machine slept, or its clock stood still; the database's clock was set, forward and back.
        for (ours, theirs) in [(6 * MINUTE, 6 * MINUTE), (TICK, 6 * MINUTE), (6 * MINUTE, TICK)] {
            let mut world = World::new();
            world.listen(10 * MINUTE);
            assert_eq!(world.look_after(ours, theirs), Duration::ZERO, "{ours:?} {theirs:?}");
            assert_eq!(world.listen(2 * MINUTE), 2 * MINUTE);
        }
        let mut world = World::new();
        world.listen(10 * MINUTE);
        world.now.theirs = START;
        assert_eq!(world.look_after(TICK, TICK), Duration::ZERO);
        assert_eq!(world.listen(MINUTE), MINUTE);
    }

    #[test]
    fn what_was_not_heard_begins_anew() {
        let mut world = World::new();
        world.listen(10 * MINUTE);
        // As the recorder of heartbeats has it.
        world.listening.clone().interrupted();
        assert_eq!(world.look_after(TICK, TICK), Duration::ZERO);
        assert_eq!(world.listen(MINUTE), MINUTE);
    }

    #[test]
    fn clocks_of_different_speed_count_by_the_slower() {
        let mut world = World::new();
        world.look_after(TICK, TICK);
        for _ in 0..60 {
            world.look_after(TICK, 2 * TICK);
        }
        assert_eq!(world.look_after(TICK, TICK), 61 * TICK);
    }

    #[test]
    fn breaks_are_measured_by_what_they_could_hide() {
        let pause_max = |offline: Duration| {
            Listening::new(&LifecycleTimers { offline, ..LifecycleTimers::default() }).pause_max
        };
        assert_eq!(pause_max(3 * TICK), 3 * TICK);
        assert_eq!(pause_max(5 * MINUTE), 30 * TICK);
    }

    #[test]
    fn nothing_is_held_against_who_was_not_listened_to() {
        let timers = LifecycleTimers::default();
        let blames = [
            NodeDecision::Remove,
            NodeDecision::Step(NodeStatus::Offline),
            NodeDecision::Step(NodeStatus::Draining),
        ];
        for decision in blames {
            assert_eq!(believed(decision, timers.offline - TICK, &timers), NodeDecision::Stay);
            assert_eq!(believed(decision, timers.offline, &timers), decision);
        }
        let others = [
            NodeDecision::Stay,
            NodeDecision::Step(NodeStatus::Online),
            NodeDecision::Step(NodeStatus::Recovering),
        ];
        for decision in others {
            assert_eq!(believed(decision, Duration::ZERO, &timers), decision);
        }
    }
}
