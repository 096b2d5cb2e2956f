//! Faults that tests ask a process for: switches that make it do wrong, and points at which it dies.
//!
//! Only builds with the feature `faults` know them. Without it, [`switch`] is a constant `false`, [`value`] a constant
//! `None` and `crash_point!` nothing, so that release builds contain neither the checks nor what they would turn on.
//! The one place in this crate that looks at the process around it.

#[cfg(all(feature = "faults", not(debug_assertions)))]
compile_error!("the feature `faults` is for development builds only: build releases without it");

#[cfg(feature = "faults")]
pub use armed::{passed, switch, value};

/// Every crash point there is, by the program that passes it. One that is passed and not named here does not compile,
/// one that is armed and not named here is refused, and script/torture arms each of them.
pub const CRASH_POINTS: &[&str] = &[
    // The gateway: an upload (those of `put` up to its commit are passed by parts as well),
    "put.begun",
    "put.stored_1",
    "put.stored_9",
    "put.stored_10",
    "put.stored_12",
    "put.before_commit",
    "put.committed",
    "put.before_reply",
    // a part, the end of a multipart upload, and a delete.
    "part.before_commit",
    "part.committed",
    "complete.before_commit",
    "complete.committed",
    "abort.before_commit",
    "abort.committed",
    "delete.before_commit",
    "delete.committed",
    // The rebalancer: collection, and repairs.
    "gc.condemned",
    "gc.collected",
    "gc.deleted_one",
    "gc.deleted",
    "mover.copied",
    "mover.stored",
    "mover.before_record",
    "mover.recorded",
    // A node: a store, and what takes chunks away (into the trash, or for good).
    "node.received",
    "node.written",
    "node.synced",
    "node.freeing",
    "node.freed",
];

/// Whether [`CRASH_POINTS`] names it.
pub const fn is_crash_point(name: &str) -> bool {
    let mut n = 0;
    while n < CRASH_POINTS.len() {
        if same(CRASH_POINTS[n].as_bytes(), name.as_bytes()) {
            return true;
        }
        n += 1;
    }
    false
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut n = 0;
    while n < a.len() && n < b.len() && a[n] == b[n] {
        n += 1;
    }
    n == a.len() && n == b.len()
}

/// What a process takes for the time when it is `millis` (Unix time): off by `CYXCLOUD_FAULT_CLOCK_OFFSET_SECS`, and in each
/// second by another offset of at most `CYXCLOUD_FAULT_CLOCK_JUMPS_SECS`. For wall clocks only.
pub fn wall_clock(millis: i64) -> i64 {
    let secs = |name| value(name).and_then(|secs| secs.parse::<i64>().ok()).unwrap_or(0);
    let off =
        secs("CLOCK_OFFSET_SECS").saturating_add(jump(millis.div_euclid(1000), secs("CLOCK_JUMPS_SECS")));
    millis.saturating_add(off.saturating_mul(1000))
}

/// An offset for this second, from `-most` to `most`.
const fn jump(second: i64, most: i64) -> i64 {
    let Some(width) = most.checked_mul(2) else { return 0 };
    if width <= 0 {
        return 0;
    }
    // Neighbours get offsets that have nothing to do with each other (the finalizer of SplitMix64).
    let mixed = (second as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 27)) % (width as u64 + 1)) as i64 - most
}

/// Whether `CYXCLOUD_FAULT_<name>` is `1`; `name` is spelled as in the variable: `UNSYNCED`.
#[cfg(not(feature = "faults"))]
pub const fn switch(_name: &str) -> bool {
    false
}

/// The text of `CYXCLOUD_FAULT_<name>`, unless it is unset or empty.
#[cfg(not(feature = "faults"))]
pub const fn value(_name: &str) -> Option<&'static str> {
    None
}

/// Kills this process here, as a power cut would, when the environment says so: `CYXCLOUD_CRASH_AT=name:n` at the
/// n-th pass of this name since the start; `CYXCLOUD_CRASH_FILE=path` at the n-th pass after the file at `path` was
/// found to say `name:n`; the file is removed first, so that the process may be started again.
#[cfg(feature = "faults")]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{
        const { assert!($crate::faults::is_crash_point($name), "faults::CRASH_POINTS does not name it") };
        $crate::faults::passed($name)
    }};
}

/// Kills this process here when a test says so; nothing without the feature `faults`.
#[cfg(not(feature = "faults"))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        const { assert!($crate::faults::is_crash_point($name), "faults::CRASH_POINTS does not name it") }
    };
}

#[cfg(test)]
mod tests {
    use super::jump;

    #[test]
    fn a_clock_jumps_both_ways_and_never_too_far() {
        let jumps: Vec<i64> = (1_800_000_000..1_800_000_100).map(|second| jump(second, 600)).collect();
        assert!(jumps.iter().all(|jump| jump.abs() <= 600));
        assert!(jumps.iter().any(|jump| *jump < -300) && jumps.iter().any(|jump| *jump > 300), "{jumps:?}");
        assert_eq!(jump(1_800_000_000, 0), 0);
    }
}

#[cfg(feature = "faults")]
mod armed {
    use std::collections::HashMap;
    use std::path::PathBuf;
    use std::sync::{LazyLock, Mutex, PoisonError};

    /// The variables at the first question; later changes to the environment change nothing.
    static FAULTS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.to_str()?.strip_prefix("CYXCLOUD_FAULT_")?.to_owned();
                Some((name, value.to_str()?.to_owned()))
            })
            .collect()
    });
    static AT: LazyLock<Option<Order>> =
        LazyLock::new(|| Order::parse(&std::env::var("CYXCLOUD_CRASH_AT").ok()?));
    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("CYXCLOUD_CRASH_FILE").map(PathBuf::from));
    static PASSES: LazyLock<Mutex<Passes>> = LazyLock::new(Mutex::default);

    /// See the constant of the same name.
    pub fn switch(name: &str) -> bool {
        value(name) == Some("1")
    }

    /// See the constant of the same name.
    pub fn value(name: &str) -> Option<&'static str> {
        FAULTS.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Counts a pass of a crash point, and may not return. Use `crash_point!`.
    pub fn passed(name: &str) {
        if AT.is_none() && FILE.is_none() {
            return;
        }
        let mut passes = PASSES.lock().unwrap_or_else(PoisonError::into_inner);
        let dies = passes.count(name, AT.as_ref());
        let ordered = FILE.as_ref().and_then(|path| Order::parse(&std::fs::read_to_string(path).ok()?));
        let dies_by_file = passes.count_ordered(name, ordered)
            && FILE.as_ref().is_some_and(|path| std::fs::remove_file(path).is_ok());
        if dies || dies_by_file {
            die();
        }
    }

    fn die() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is on its way; should it be refused, nothing after this point may run either.
        std::process::abort()
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Order {
        name: String,
        pass: u64,
    }

    impl Order {
        fn parse(text: &str) -> Option<Self> {
            let (name, pass) = text.trim().rsplit_once(':')?;
            // A test that waits for a point that nobody passes would prove nothing.
            assert!(super::is_crash_point(name), "there is no crash point {name}; see faults::CRASH_POINTS");
            Some(Self { name: name.to_owned(), pass: pass.parse().ok()? })
        }
    }

    #[derive(Default)]
    struct Passes {
        since_start: HashMap<String, u64>,
        /// What the file said when it was last looked at, and passes of that name since.
        ordered: Option<(Order, u64)>,
    }

    impl Passes {
        fn count(&mut self, name: &str, order: Option<&Order>) -> bool {
            let passes = self.since_start.entry(name.to_owned()).or_default();
            *passes += 1;
            order.is_some_and(|order| order.name == name && order.pass == *passes)
        }

        fn count_ordered(&mut self, name: &str, order: Option<Order>) -> bool {
            let Some(order) = order else {
                self.ordered = None;
                return false;
            };
            if self.ordered.as_ref().is_none_or(|(known, _)| *known != order) {
                self.ordered = Some((order, 0));
            }
            self.ordered.as_mut().is_some_and(|(order, passes)| {
                *passes += u64::from(order.name == name);
                order.name == name && *passes >= order.pass
            })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn order(text: &str) -> Option<Order> {
            Order::parse(text)
        }

        #[test]
        fn the_named_pass_of_the_named_point_is_the_one() {
            let at = order("put.committed:2");
            let mut passes = Passes::default();
            assert!(!passes.count("put.committed", at.as_ref()));
            assert!(!passes.count("gc.condemned", at.as_ref()));
            assert!(passes.count("put.committed", at.as_ref()));
            assert!(!passes.count("put.committed", at.as_ref()), "once");
            assert_eq!(order("put.committed"), None);
        }

        #[test]
        fn a_file_counts_from_when_it_was_found() {
            let mut passes = Passes::default();
            assert!(!passes.count_ordered("gc.collected", None));
            assert!(!passes.count_ordered("gc.deleted", order("gc.collected:2\n")));
            assert!(!passes.count_ordered("gc.collected", order("gc.collected:2\n")));
            assert!(passes.count_ordered("gc.collected", order("gc.collected:2\n")));
            assert!(!passes.count_ordered("gc.collected", None), "removed");
            assert!(passes.count_ordered("gc.collected", order("gc.collected:1")), "armed anew");
        }

        #[test]
        #[should_panic(expected = "there is no crash point put.commited")]
        fn a_point_that_nobody_passes_cannot_be_armed() {
            order("put.commited:1");
        }
    }
}
