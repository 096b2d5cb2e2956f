//! The catalogue of scenarios, one file each. Numbers are those of docs/reliability.md.
//!
//! To add one: its file, and one line in [`ALL`]; and one in `enough`, if it must go on for some time to say anything.

pub mod enough;
mod power;
mod s01_baseline;
mod s02_thrash;
mod s03_beyond;
mod s04_crashes;
mod s05_power_loss;
mod s06_power_loss_all;
mod s07_damaged_files;
mod s08_bit_rot;
mod s09_liar;
mod s10_disk_full;
mod s12_dying_disk;
mod s14_slow;
mod s15_frozen;
mod s16_minority;
mod s17_majority;
mod s20_gc_race;
mod s21_orphans;
mod s22_multipart;
mod s23_postgres_crash;
mod s25_metadata_restore;
mod s26_redis_lost;
mod s27_clocks;
mod s28_rebalancers;
mod s31_rude;
mod witness;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::cluster::Cluster;
use crate::disk::require_mounts;
use crate::error::Result;
use crate::run::Run;
use crate::scenario::enough::Enough;

/// All of them, in the order of their numbers.
pub const ALL: &[Scenario] = &[
    s01_baseline::SCENARIO,
    s02_thrash::SCENARIO,
    s03_beyond::SCENARIO,
    s04_crashes::SCENARIO,
    s05_power_loss::SCENARIO,
    s06_power_loss_all::SCENARIO,
    s07_damaged_files::SCENARIO,
    s08_bit_rot::SCENARIO,
    s09_liar::SCENARIO,
    s10_disk_full::SCENARIO,
    s12_dying_disk::SCENARIO,
    s14_slow::SCENARIO,
    s15_frozen::SCENARIO,
    s16_minority::SCENARIO,
    s17_majority::SCENARIO,
    s20_gc_race::SCENARIO,
    s21_orphans::SCENARIO,
    s22_multipart::SCENARIO,
    s23_postgres_crash::SCENARIO,
    s25_metadata_restore::SCENARIO,
    s26_redis_lost::SCENARIO,
    s27_clocks::SCENARIO,
    s28_rebalancers::SCENARIO,
    s31_rude::SCENARIO,
];

/// From so many nodes up, shards of 10+4 survive the loss of any two.
const ENOUGH_FOR_TWO: usize = 7;

/// One of the nodes that may be given new chunks, by chance, if the others are enough without it. `None`: too many are held
/// back after failed audits, and what another one lost would have to be made on too few to survive what was promised.
async fn one_of_enough(cluster: &Cluster, chance: &mut StdRng) -> Result<Option<usize>> {
    let trusted = cluster.trusted().await?;
    Ok(trusted.choose(chance).copied().filter(|_| trusted.len() > ENOUGH_FOR_TWO))
}

/// What runs while a scenario does.
pub type Running = Pin<Box<dyn Future<Output = Result<()>>>>;

/// One way to try to break a promise.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// In the catalogue.
    pub number: u32,
    /// Short, in one word or with hyphens.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What the machine must let us do.
    pub needs: Needs,
    /// How long harm is done unless told; starting and judging come on top.
    pub duration: Duration,
    /// How long in `script/test`, or why not there.
    pub quick: Quick,
    /// Builds that do it wrong, each of which it must find out.
    pub controls: &'static [Control],
    /// Does it.
    pub run: fn(Arc<Run>) -> Running,
}

/// What a scenario asks of the machine. (PostgreSQL and Redis are there for all; a scenario that kills them starts its own.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing more.
    Nothing,
    /// Mounting disks, so root.
    Mounts,
}

/// Whether `script/test` runs a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// Yes, and does harm for so long.
    For(Duration),
    /// No; this is why.
    LeftOut(&'static str),
}

/// A deliberate fault in the programs. A scenario that holds in spite of it proves nothing.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Short.
    pub name: &'static str,
    /// What is wrong, in one line.
    pub about: &'static str,
    /// Variables for gateways.
    pub gateway: &'static [(&'static str, &'static str)],
    /// Variables for nodes.
    pub node: &'static [(&'static str, &'static str)],
    /// Variables for rebalancers.
    pub rebalancer: &'static [(&'static str, &'static str)],
}

impl Control {
    /// Nothing is wrong: a base for `..`.
    pub const NONE: Self = Self { name: "", about: "", gateway: &[], node: &[], rebalancer: &[] };
}

impl Scenario {
    /// Number and name, as it is printed.
    pub fn title(&self) -> String {
        format!("{}-{}", self.number, self.name)
    }

    /// Whether somebody who says this means it: its number, its name, or both.
    pub fn is_called(&self, said: &str) -> bool {
        said == self.number.to_string() || said == self.name || said == self.title()
    }

    /// How much it must have tried.
    pub fn enough(&self) -> Enough {
        enough::of(self.number)
    }

    /// Whether this machine lets it run.
    pub fn possible(&self) -> Result<()> {
        match self.needs {
            Needs::Nothing => Ok(()),
            Needs::Mounts => require_mounts(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_called_by_its_number_and_by_its_name_and_no_other_is() {
        for (index, scenario) in ALL.iter().enumerate() {
            for said in [scenario.number.to_string(), scenario.name.to_owned(), scenario.title()] {
                let called: Vec<usize> =
                    ALL.iter().enumerate().filter(|(_, s)| s.is_called(&said)).map(|(n, _)| n).collect();
                assert_eq!(called, [index], "{said}");
            }
        }
        assert!(ALL.is_sorted_by_key(|scenario| scenario.number));
    }
}
