//! Clusters of real processes, faults, histories and censuses: what it takes to find out whether promises are kept.
//!
//! A scenario (`scenario/`, one file each) starts a [`Cluster`], drives it through a [`Recorder`] that writes down what was
//! asked and answered, does harm to it, and has it judged: by [`check`] (what clients saw), [`invariants`] (what the
//! database says) and [`census`] (what the disks hold). Only tests depend on this crate.

pub mod census;
pub mod check;
pub mod cluster;
pub mod databases;
pub mod disk;
pub mod error;
pub mod history;
pub mod invariants;
pub mod load;
pub mod metrics;
pub mod process;
pub mod proxy;
pub mod recorder;
pub mod run;
pub mod s3;
pub mod scenario;
pub mod wait;

pub use crate::cluster::{Builder, Cluster, Storage};
pub use crate::error::{Doing, Error, Result};
pub use crate::recorder::Recorder;
pub use crate::run::Run;
pub use crate::wait::eventually;

/// 1024 bytes.
pub const KIB: usize = 1 << 10;
/// 1024 KiB.
pub const MIB: usize = 1 << 20;
