//! Simulates years of a cluster that the planners of this library repair, and computes what is too rare to be seen.
//!
//! `script/simulate --help` says how to run it, docs/durability.md what is assumed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod markov;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cyxcloud_core::node::LifecycleTimers;
use cyxcloud_core::{ByteCount, Geometry};
use world::{Outcome, Setting};

const HELP: &str = "\
usage: script/simulate [options]
  --nodes N        nodes of the cluster (10000)
  --years Y        simulated years, fractions allowed (1)
  --seed S         the same seed gives the same figures (1)
  --geometry G     10+4, 10+10, \"3 copies\", any K+M or \"N copies\", or all (10+4)
  --losses LIST    per cent of the nodes lost for good within a year, with commas (5,10,20)
  --stripes N      sampled stripes (20000)
  --outages N      transient outages per node and year; one in ten lasts 12 hours on average, the others 1 hour (12)
  --repair-rate R  what each node gives to repair per second (1MB)
  --delay SECS     how long a stripe that survives no further loss waits, REPAIR_DELAY_SECS (900)
  --markov         only the computed table
  -h, --help       this text";

/// Fewest nodes: every location must find a node of its own among those drawn.
const NODES_MIN: usize = 100;

struct Options {
    setting: Setting,
    geometries: Vec<Geometry>,
    losses: Vec<f64>,
    only_markov: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match options(&arguments) {
        Ok(options) => {
            report(&options);
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            eprintln!("simulate: {wrong}\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        setting: Setting {
            geometry: Geometry::STANDARD,
            nodes: 10_000,
            stripes: 20_000,
            years: 1.0,
            seed: 1,
            losses: 0.0,
            outages: 12.0,
            long_outages: 0.1,
            outage_hours: [1.0, 12.0],
            capacity: ByteCount::bytes(1_000_000_000_000),
            used: ByteCount::bytes(500_000_000_000),
            repair_rate: ByteCount::bytes(1_000_000),
            delay: Duration::from_secs(900),
        },
        geometries: vec![Geometry::STANDARD],
        losses: vec![0.05, 0.10, 0.20],
        only_markov: false,
    };
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        if name == "--markov" {
            options.only_markov = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value, or is unknown"))?;
        set(&mut options, name, value).ok_or_else(|| format!("{name} {value} makes no sense"))?;
    }
    Ok(options)
}

fn set(options: &mut Options, name: &str, value: &str) -> Option<()> {
    let positive = |value: &str| value.parse().ok().filter(|number: &f64| *number > 0.0 && *number < 1e6);
    let setting = &mut options.setting;
    match name {
        "--nodes" => setting.nodes = value.parse().ok().filter(|nodes| *nodes >= NODES_MIN)?,
        "--stripes" => setting.stripes = value.parse().ok().filter(|stripes| *stripes > 0)?,
        "--years" => setting.years = positive(value)?,
        "--seed" => setting.seed = value.parse().ok()?,
        "--outages" => setting.outages = value.parse().ok().filter(|outages| *outages >= 0.0)?,
        "--repair-rate" => setting.repair_rate = value.parse().ok().filter(|rate| *rate > ByteCount::ZERO)?,
        "--delay" => setting.delay = Duration::from_secs(value.parse().ok()?),
        "--losses" => {
            options.losses = value
                .split(',')
                .map(|per_cent| {
                    positive(per_cent).filter(|number| *number < 100.0).map(|number| number / 100.0)
                })
                .collect::<Option<_>>()?;
        }
        "--geometry" if value == "all" => {
            options.geometries = vec![Geometry::STANDARD, Geometry::OPEN, Geometry::STANDARD_SMALL];
        }
        "--geometry" => options.geometries = vec![geometry(value)?],
        _ => return None,
    }
    Some(())
}

/// At most what the candidates that are drawn can hold on nodes of their own.
fn geometry(text: &str) -> Option<Geometry> {
    let geometry = match text.split_once('+') {
        Some((data, parity)) => Geometry::coded(data.parse().ok()?, parity.parse().ok()?).ok(),
        None => Geometry::copied(text.strip_suffix("copies")?.trim().parse().ok()?).ok(),
    };
    geometry.filter(|geometry| geometry.locations() <= 24)
}

fn report(options: &Options) {
    if !options.only_markov {
        simulated(options);
    }
    for geometry in &options.geometries {
        computed(*geometry, &options.losses);
    }
}

fn simulated(options: &Options) {
    let Setting { nodes, stripes, years, seed, outages, repair_rate, .. } = options.setting;
    println!(
        "{nodes} nodes, {years} years, {stripes} sampled stripes, seed {seed}, {outages} outages per node and year, {} B/s of repair per node\n",
        repair_rate.get()
    );
    println!(
        "| geometry | lost/yr | nodes lost | given up | stripes lost of stripe-years | computed | unreadable | a loss left short by 1, 2, .. | repairs | wait mean / max (h) | traffic/node/day | busy | max/mean load (chance) |"
    );
    println!("|{}", "---|".repeat(13));
    let started = Instant::now();
    for geometry in &options.geometries {
        for losses in &options.losses {
            let setting = Setting { geometry: *geometry, losses: markov::rate(*losses), ..options.setting };
            row(&setting, *losses, &world::run(setting));
        }
    }
    println!("\nran for {:.0} s\n", started.elapsed().as_secs_f64());
}

fn row(setting: &Setting, losses: f64, outcome: &Outcome) {
    // What the chain says of this: found lost after the drain threshold, and done after the wait.
    let hours = LifecycleTimers::default().drain.as_secs_f64() / 3600.0 + outcome.wait_mean;
    let geometry = setting.geometry;
    let expected = markov::loss_per_year(geometry, setting.losses, hours, geometry.locations() - 1);
    let deepest = outcome.short_by.iter().rposition(|times| *times > 0).unwrap_or(0);
    let short: Vec<String> = outcome.short_by.iter().take(deepest + 1).skip(1).map(u64::to_string).collect();
    println!(
        "| {} | {} % | {} | {} | {} of {} | {:.1e} | {} | {} | {} | {:.2} / {:.1} | {:.1} GB | {:.0} % | {:.2} ({:.2}) |{}",
        geometry,
        losses * 100.0,
        outcome.nodes_lost,
        outcome.nodes_given_up,
        outcome.stripes_lost,
        outcome.stripe_years,
        expected * outcome.stripe_years,
        outcome.unreadable,
        short.join(", "),
        outcome.repairs,
        outcome.wait_mean,
        outcome.wait_max,
        outcome.traffic.get() as f64 / 1e9,
        outcome.busy * 100.0,
        outcome.load_max,
        outcome.load_max_by_chance,
        if outcome.braked_hours > 0 {
            format!(" braked for {} h", outcome.braked_hours)
        } else {
            String::new()
        },
    );
}

fn computed(geometry: Geometry, losses: &[f64]) {
    let most = geometry.locations();
    let thresholds: Vec<usize> = (geometry.data()..most).rev().take(4).collect();
    println!("Chance that a stripe of {geometry} is lost within a year, independent losses, repair at:\n");
    let heads: Vec<String> = thresholds.iter().map(|threshold| format!("≤ {threshold}")).collect();
    println!("| lost/yr | detect and repair | {} |", heads.join(" | "));
    println!("|---|---|{}", "---|".repeat(thresholds.len()));
    for losses in losses {
        for hours in [6.0, 24.0, 72.0] {
            let cells: Vec<String> = thresholds
                .iter()
                .map(|threshold| {
                    format!(
                        "{:.1e}",
                        markov::loss_per_year(geometry, markov::rate(*losses), hours, *threshold)
                    )
                })
                .collect();
            println!("| {} % | {hours} h | {} |", losses * 100.0, cells.join(" | "));
        }
    }
    println!();
}
