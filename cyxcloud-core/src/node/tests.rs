//! The picture of the lifecycle against the code, and the specification's timeline.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// The table that people read; see the message below when it differs.
const TABLE: &str = include_str!("lifecycle.txt");

fn table() -> String {
    let mut lines =
        vec![format!("{:<16}{}", "", NodeStatus::ALL.map(|status| format!("{status:<12}")).concat())];
    for event in NodeEvent::ALL {
        let cells = NodeStatus::ALL.map(|status| {
            let next = status.next(event).map_or("-", NodeStatus::as_str);
            format!("{next:<12}")
        });
        lines.push(format!("{:<16}{}", format!("{event:?}"), cells.concat()));
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn the_table_in_the_repository_is_the_code() {
    let drawn: String =
        TABLE.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert_eq!(drawn, table(), "src/node/lifecycle.txt should read:\n{}", table());
}

#[test]
fn statuses_survive_text_and_json_like_text() {
    for status in NodeStatus::ALL {
        assert_eq!(status.as_str().parse(), Ok(status));
    }
    assert!("Online".parse::<NodeStatus>().is_err());
    assert!("removed".parse::<NodeStatus>().is_err());
}

#[test]
fn timers_in_the_wrong_order_are_refused() {
    let good = LifecycleTimers::default();
    assert_eq!(good.check(), Ok(()));
    assert_eq!(LifecycleTimers { offline: Duration::ZERO, ..good }.check(), Err(TimersError::NoOffline));
    for bad in [
        LifecycleTimers { offline: good.drain, ..good },
        LifecycleTimers { drain: good.remove, ..good },
        LifecycleTimers { remove: Duration::from_secs(1), ..good },
    ] {
        assert!(matches!(bad.check(), Err(TimersError::OutOfOrder { .. })));
    }
}

const START: Timestamp = Timestamp::from_unix_millis(1_000_000_000);

fn after(secs: u64) -> Timestamp {
    START.plus(Duration::from_secs(secs))
}

/// A node and its monitor, as the database would keep it.
struct World {
    clock: Option<NodeClock>,
    timers: LifecycleTimers,
}

impl World {
    fn new() -> Self {
        let clock = NodeClock {
            status: NodeStatus::Online,
            last_heartbeat: START,
            status_changed_at: START,
            first_offline_at: None,
        };
        Self { clock: Some(clock), timers: LifecycleTimers::default() }
    }

    fn heard(&mut self, secs: u64) {
        if let Some(clock) = &mut self.clock {
            clock.last_heartbeat = after(secs);
        }
    }

    fn judge(&mut self, secs: u64) -> Option<NodeStatus> {
        let clock = self.clock.as_mut()?;
        match decide(clock, &self.timers, after(secs)) {
            NodeDecision::Stay => {}
            NodeDecision::Remove => self.clock = None,
            NodeDecision::Step(status) => {
                clock.status = status;
                clock.status_changed_at = after(secs);
                clock.first_offline_at = match status {
                    NodeStatus::Online => None,
                    _ => Some(clock.first_offline_at.unwrap_or(after(secs))),
                };
            }
        }
        self.clock.map(|clock| clock.status)
    }
}

#[test]
fn a_short_absence_ends_in_quarantine() {
    let mut world = World::new();
    assert_eq!(world.judge(299), Some(NodeStatus::Online));
    assert_eq!(world.judge(300), Some(NodeStatus::Offline));
    world.heard(600);
    assert_eq!(world.judge(600), Some(NodeStatus::Recovering));
    for secs in (630..900).step_by(30) {
        world.heard(secs);
        assert_eq!(world.judge(secs), Some(NodeStatus::Recovering), "{secs}");
    }
    // The quarantine's end alone is not enough: the node must still be heard then.
    assert_eq!(world.judge(899), Some(NodeStatus::Recovering));
    world.heard(900);
    assert_eq!(world.judge(900), Some(NodeStatus::Online));
}

#[test]
fn silence_in_quarantine_is_an_absence_again() {
    let mut world = World::new();
    world.judge(300);
    world.heard(400);
    assert_eq!(world.judge(400), Some(NodeStatus::Recovering));
    assert_eq!(world.judge(700), Some(NodeStatus::Offline));
}

#[test]
fn a_long_absence_drains_and_then_removes() {
    const HOUR: u64 = 3600;
    let mut world = World::new();
    assert_eq!(world.judge(300), Some(NodeStatus::Offline));
    assert_eq!(world.judge(4 * HOUR - 1), Some(NodeStatus::Offline));
    assert_eq!(world.judge(4 * HOUR), Some(NodeStatus::Draining));
    assert_eq!(world.judge(7 * 24 * HOUR - 1), Some(NodeStatus::Draining));
    assert_eq!(world.judge(7 * 24 * HOUR), None);
}

#[test]
fn a_heartbeat_ends_a_drain_that_absence_caused_and_no_other() {
    let mut world = World::new();
    world.judge(300);
    world.judge(4 * 3600);
    world.heard(5 * 3600);
    assert_eq!(world.judge(5 * 3600), Some(NodeStatus::Recovering));

    let mut asked = World::new();
    asked.clock = asked.clock.map(|clock| NodeClock { status: NodeStatus::Draining, ..clock });
    asked.heard(60);
    assert_eq!(asked.judge(60), Some(NodeStatus::Draining));
}

/// The metadata was away for a week, say, or every gateway.
#[test]
fn a_step_that_came_late_is_not_followed_at_once() {
    const HOUR: u64 = 3600;
    let mut world = World::new();
    let late = 8 * 24 * HOUR;
    assert_eq!(world.judge(late), Some(NodeStatus::Offline));
    // As long as from five minutes of silence to four hours.
    let lost = late + 4 * HOUR - 300;
    assert_eq!(world.judge(lost - 1), Some(NodeStatus::Offline));
    assert_eq!(world.judge(lost), Some(NodeStatus::Draining));
    let gone = lost + 7 * 24 * HOUR - 4 * HOUR;
    assert_eq!(world.judge(gone - 1), Some(NodeStatus::Draining));
    assert_eq!(world.judge(gone), None);
}

proptest! {
    /// Whatever is heard and whenever it is judged: steps are legal, and nobody who is heard is removed.
    #[test]
    fn every_life_is_legal(steps in prop::collection::vec((1u64..200_000, any::<bool>()), 1..200)) {
        let mut world = World::new();
        let (mut now, mut heard_at) = (0, 0);
        for (pause, heard) in steps {
            now += pause;
            if heard {
                world.heard(now);
                heard_at = now;
            }
            let before = world.clock.map(|clock| clock.status);
            let status = world.judge(now);
            let Some(before) = before else { break };
            match status {
                None => prop_assert!(now - heard_at >= 7 * 24 * 3600 && before == NodeStatus::Draining),
                Some(status) if status != before => {
                    prop_assert!(NodeEvent::ALL.iter().any(|&event| before.next(event) == Ok(status)));
                    prop_assert!(!(before == NodeStatus::Offline && status == NodeStatus::Online));
                }
                Some(_) => {}
            }
        }
    }
}
