//! How much a scenario must have tried before "held" says anything: figures that are a matter of time only.
//!
//! A run that is given so many minutes must reach them, or it tried too little; a shorter one says how far it came. One table, to be
//! held against the plan at a glance.

use std::time::Duration;

/// One of a run's counts by its name, and how much of it is wanted.
pub type Floor = (&'static str, u64);

/// How much is enough for one scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enough {
    /// Which scenario.
    pub number: u32,
    /// In this time of harm two processors reach it, with other runs beside it.
    pub within: Duration,
    /// What must be counted. Nothing: any run will do.
    pub floors: &'static [Floor],
}

const TABLE: &[Enough] = &[
    enough(4, 7, &[("crashes at each point", 5)]),
    enough(5, 5, &[("receipts checked", 2_000)]),
    enough(6, 10, &[("PUT", 2_000)]),
    enough(7, 60, &[("edit", 200)]),
    enough(9, 15, &[("GET", 10_000)]),
    enough(20, 30, &[("cycle", 5_000)]),
    enough(21, 5, &[("upload cut off", 500)]),
    enough(22, 3, &[("upload", 1_000)]),
    enough(23, 10, &[("kill", 50)]),
    enough(25, 12, &[("PUT after the backup", 1_000), ("DELETE after the backup", 1_000)]),
    enough(26, 3, &[("nonce tried again", 1_000), ("ended credentials tried", 1_000)]),
    enough(28, 10, &[("shards made anew", 500)]),
    enough(31, 5, &[("rude client", 10_000)]),
];

const fn enough(number: u32, minutes: u64, floors: &'static [Floor]) -> Enough {
    Enough { number, within: Duration::from_secs(60 * minutes), floors }
}

/// Of the scenario with this number.
pub(super) fn of(number: u32) -> Enough {
    let found = TABLE.iter().find(|enough| enough.number == number);
    found.copied().unwrap_or(Enough { number, within: Duration::ZERO, floors: &[] })
}

/// Whether all of these were reached.
pub fn reached(floors: &[Floor], counted: impl Fn(&str) -> u64) -> bool {
    floors.iter().all(|(what, least)| counted(what) >= *least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{ALL, Quick};

    #[test]
    fn each_line_is_about_a_scenario_and_none_is_demanded_of_a_quick_run() {
        for line in TABLE {
            let scenario = ALL.iter().find(|scenario| scenario.number == line.number);
            let scenario = scenario.expect("a line is about a scenario that there is");
            assert!(!line.floors.is_empty(), "{}", scenario.title());
            if let Quick::For(duration) = scenario.quick {
                assert!(duration < line.within, "{}", scenario.title());
            }
        }
        assert!(TABLE.is_sorted_by_key(|line| line.number));
    }

    #[test]
    fn every_floor_must_be_reached() {
        let floors = of(25).floors;
        assert!(reached(floors, |_| 1_000));
        assert!(!reached(floors, |what| if what.starts_with("PUT") { 5_000 } else { 999 }));
        assert!(reached(of(1).floors, |_| 0), "where nothing is wanted");
    }
}
