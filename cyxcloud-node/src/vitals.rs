//! How busy the machine is, for heartbeats. Where the system does not say (it is not Linux), 0.

use std::fs;

/// Remembers the last look, since processor use is a difference.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    cpu: Option<(u64, u64)>,
}

impl Vitals {
    /// Processor use since the last call, and memory use, both 0 to 100.
    pub(crate) fn look(&mut self) -> (f64, f64) {
        let now = fs::read_to_string("/proc/stat").ok().and_then(|text| cpu_times(&text));
        let before = std::mem::replace(&mut self.cpu, now);
        let cpu = match (before, now) {
            (Some((busy0, all0)), Some((busy1, all1))) if all1 > all0 => {
                100.0 * busy1.saturating_sub(busy0) as f64 / (all1 - all0) as f64
            }
            _ => 0.0,
        };
        let memory =
            fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_use(&text)).unwrap_or(0.0);
        (cpu.clamp(0.0, 100.0), memory.clamp(0.0, 100.0))
    }
}

/// Busy and total ticks of all processors.
fn cpu_times(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    // user nice system idle iowait irq softirq steal; guests are in user already
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).take(8).map(|word| word.parse().unwrap_or(0)).collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

fn memory_use(meminfo: &str) -> Option<f64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    (total > 0.0).then(|| 100.0 * (total - available) / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_tables_are_read() {
        let stat = "cpu  10 0 10 70 10 0 0 0 5 5\ncpu0 1 2 3 4\n";
        assert_eq!(cpu_times(stat), Some((20, 100)));
        let meminfo = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   250 kB\n";
        assert_eq!(memory_use(meminfo), Some(75.0));
        assert_eq!((cpu_times("nothing"), memory_use("nothing")), (None, None));
    }
}
