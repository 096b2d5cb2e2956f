//! `cyx-torture`: runs scenarios, each with its seeds, and says what held.

#![allow(clippy::print_stdout, reason = "what it says is what it is run for")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde::{Deserialize, Serialize};
use testkit::scenario::enough::{Enough, reached};
use testkit::scenario::{ALL, Control, Quick, Scenario};
use testkit::{Doing, Error, Result, Run};

/// Tries to make a cluster break its promises: seeded scenarios with faults, and what must hold at their end.
///
/// One seed chooses all that is random here; what processes and the scheduler do with it differs from run to run.
#[derive(Debug, Parser)]
#[command(name = "script/torture", max_term_width = 110)]
struct Options {
    /// By number or name; any number of times; all unless told
    #[arg(long, value_name = "N|NAME")]
    scenario: Vec<String>,
    /// Any number of times; one by chance unless told
    #[arg(long)]
    seed: Vec<u64>,
    /// The seeds 1 to COUNT, besides those given
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    seeds: u32,
    /// How long harm is done in each run; each scenario has its own time unless told
    #[arg(long)]
    minutes: Option<f64>,
    /// Go on until as much was tried as --list says, for --minutes at most (three times as long as it says unless told)
    #[arg(long, conflicts_with_all = ["quick", "controls"])]
    until_enough: bool,
    /// One line of JSON per run is appended here; what stands there as held is not run again
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Run the negative controls instead: programs that do it wrong, each of which must be found out; with --quick, each once
    #[arg(long)]
    controls: bool,
    /// Only what fits into script/test, for a short time each
    #[arg(long)]
    quick: bool,
    /// Say what there is, and end
    #[arg(long)]
    list: bool,
}

/// One run, as it stands in the results.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    scenario: String,
    seed: u64,
    seconds_of_harm: f64,
    #[serde(default, skip_serializing_if = "is_no")]
    until_enough: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    control: String,
    held: bool,
    /// Nothing was broken, and less was tried than must be in so much time.
    #[serde(default, skip_serializing_if = "is_no")]
    too_little: bool,
    seconds: u64,
    counts: BTreeMap<String, u64>,
    /// How much of some counts is enough.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    wanted: BTreeMap<String, u64>,
    broken: Vec<String>,
}

fn is_no(answer: &bool) -> bool {
    !answer
}

impl Outcome {
    /// The same run, with as much harm or more.
    fn covers(&self, task: &Task) -> bool {
        let as_much = match task.until_enough {
            true => self.has_enough(&task.scenario.enough()),
            // One that went on until it had enough may have ended early.
            false => !self.until_enough && self.seconds_of_harm >= task.duration.as_secs_f64(),
        };
        self.scenario == task.scenario.title()
            && self.seed == task.seed
            && self.control == control_of(task)
            && as_much
    }

    fn has_enough(&self, enough: &Enough) -> bool {
        reached(enough.floors, |what| self.counts.get(what).copied().unwrap_or_default())
    }
}

/// What is to be run.
#[derive(Clone, Copy, Debug)]
struct Task {
    scenario: &'static Scenario,
    seed: u64,
    duration: Duration,
    /// It may end before its time once it has enough.
    until_enough: bool,
    control: Option<&'static Control>,
}

impl Task {
    /// Whether it has the time to reach what is enough. A control's run ends when it is found out.
    fn must_have_enough(&self) -> bool {
        self.control.is_none() && (self.until_enough || self.duration >= self.scenario.enough().within)
    }
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    too_little: u32,
    skipped: u32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        list();
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        tokio::select! {
            done = run_all(&options) => done,
            // Whatever runs is dropped, which ends its processes and unmounts its disks.
            () = interrupted() => Err(Error::failed("go on", "interrupted")),
        }
    });
    match done {
        Ok(Tally { passed, failed, too_little, skipped }) => {
            println!("{passed} passed, {failed} failed, {too_little} tried too little, {skipped} skipped");
            if failed + too_little == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("{error}");
            ExitCode::from(2)
        }
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

fn list() {
    for scenario in ALL {
        println!("{:16} {:>4} s  {}", scenario.title(), scenario.duration.as_secs(), scenario.about);
        let enough = scenario.enough();
        for (what, least) in enough.floors {
            println!("{:25}in {} min: {what} {least}", "", enough.within.as_secs() / 60);
        }
        if let Quick::LeftOut(why) = scenario.quick {
            println!("{:25}not in script/test: {why}", "");
        }
        for control in scenario.controls {
            println!("{:25}control {}: {}", "", control.name, control.about);
        }
    }
}

async fn run_all(options: &Options) -> Result<Tally> {
    for said in &options.scenario {
        if !ALL.iter().any(|scenario| scenario.is_called(said)) {
            return Err(Error::failed(
                format!("find scenario {said}"),
                "there is none; --list says which there are",
            ));
        }
    }
    let held_before = read_results(options.results.as_deref())?;
    let mut seeds = options.seed.clone();
    seeds.extend(1..=u64::from(options.seeds));
    if seeds.is_empty() {
        seeds.push(u64::from(rand::random::<u32>()));
    }
    let mut tally = Tally::default();
    for &seed in &seeds {
        for scenario in ALL {
            let wanted = options.scenario.iter().any(|said| scenario.is_called(said));
            if !options.scenario.is_empty() && !wanted {
                continue;
            }
            for task in tasks(scenario, seed, options, wanted, &mut tally) {
                if held_before.iter().any(|outcome| outcome.covers(&task)) {
                    println!("{}: held before", title(&task));
                    tally.passed += 1;
                    continue;
                }
                run_one(&task, options, &mut tally).await?;
            }
        }
    }
    Ok(tally)
}

/// What a scenario is to be run as: itself, or each of its controls. What is left out is said.
fn tasks(
    scenario: &'static Scenario,
    seed: u64,
    options: &Options,
    wanted: bool,
    tally: &mut Tally,
) -> Vec<Task> {
    if options.controls && scenario.controls.is_empty() {
        return Vec::new();
    }
    let enough = scenario.enough();
    let until_enough = options.until_enough && !enough.floors.is_empty();
    let duration = match (options.minutes, options.quick, scenario.quick) {
        (Some(minutes), ..) => Duration::from_secs_f64(minutes.max(0.0) * 60.0),
        (None, ..) if until_enough => enough.within * 3,
        (None, true, Quick::For(duration)) => duration,
        (None, true, Quick::LeftOut(why)) if !wanted => {
            println!("{}: left out: {why}", scenario.title());
            tally.skipped += 1;
            return Vec::new();
        }
        (None, ..) => scenario.duration,
    };
    // A control's run ends when it is found out: it may take as long as there is.
    let duration = if options.controls { duration.max(scenario.duration) } else { duration };
    if let Err(error) = scenario.possible() {
        println!("{}: left out: {error}", scenario.title());
        // What could not be tried was not found out. script/test goes on without what needs root.
        *(if options.controls && !options.quick { &mut tally.failed } else { &mut tally.skipped }) += 1;
        return Vec::new();
    }
    let task = Task { scenario, seed, duration, until_enough, control: None };
    match options.controls {
        false => vec![task],
        true => {
            let controls = scenario.controls.iter();
            let wanted = controls.filter(|control| !options.quick || is_first(scenario, control));
            wanted.map(|control| Task { control: Some(control), ..task }).collect()
        }
    }
}

/// Whether no scenario before this one has the same control.
fn is_first(scenario: &Scenario, control: &Control) -> bool {
    let has = |other: &&Scenario| other.controls.iter().any(|each| each.name == control.name);
    ALL.iter().find(has).is_some_and(|first| first.number == scenario.number)
}

fn control_of(task: &Task) -> String {
    task.control.map(|control| control.name.to_owned()).unwrap_or_default()
}

fn title(task: &Task) -> String {
    let control = task.control.map(|control| format!(" with {}", control.name)).unwrap_or_default();
    format!("{}{control} seed {}", task.scenario.title(), task.seed)
}

async fn run_one(task: &Task, options: &Options, tally: &mut Tally) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix(&format!("torture-{}-", task.scenario.title()))
        .tempdir()
        .doing("make a directory for the run")?
        .keep();
    let enough = task.scenario.enough();
    let until = if task.until_enough { enough.floors } else { &[] };
    let run = Run::new(&directory, task.seed, task.duration, until, task.control)?;
    let began = Instant::now();
    let ended = (task.scenario.run)(run.clone()).await;
    run.stop();
    let mut broken = run.found();
    let mut stopped = false;
    match ended {
        Ok(()) => {}
        Err(Error::LeftOut(why)) => {
            println!("{}: left out: {why}", title(task));
            tally.skipped += 1;
            return std::fs::remove_dir_all(&directory).doing("remove the run's directory");
        }
        Err(Error::Broken(why)) if broken.contains(&why) => {}
        Err(Error::Broken(why)) => broken.push(why),
        Err(error @ Error::Failed { .. }) => {
            stopped = broken.is_empty();
            broken.push(format!("stopped: {error}"));
        }
    }
    // A control must be found out, and not merely fall over.
    let held = if task.control.is_some() { !broken.is_empty() && !stopped } else { broken.is_empty() };
    let mut counts = run.counts();
    let mut wanted = BTreeMap::new();
    for (what, least) in enough.floors.iter().filter(|_| task.control.is_none()) {
        counts.entry((*what).to_owned()).or_default();
        wanted.insert((*what).to_owned(), *least);
    }
    let mut outcome = Outcome {
        scenario: task.scenario.title(),
        seed: task.seed,
        seconds_of_harm: task.duration.as_secs_f64(),
        until_enough: task.until_enough,
        control: control_of(task),
        held,
        too_little: false,
        seconds: began.elapsed().as_secs(),
        counts,
        wanted,
        broken: broken.iter().take(5).cloned().collect(),
    };
    if held && task.must_have_enough() && !outcome.has_enough(&enough) {
        (outcome.held, outcome.too_little) = (false, true);
    }
    say(task, &outcome, &directory);
    if let Some(file) = &options.results {
        append(file, &outcome)?;
    }
    drop(run);
    *(match (outcome.held, outcome.too_little) {
        (true, _) => &mut tally.passed,
        (false, true) => &mut tally.too_little,
        (false, false) => &mut tally.failed,
    }) += 1;
    match held {
        true => std::fs::remove_dir_all(&directory).doing("remove the run's directory"),
        false => Ok(()),
    }
}

fn say(task: &Task, outcome: &Outcome, directory: &Path) {
    let word = match (task.control.is_some(), outcome.held) {
        (false, true) => "held",
        (false, false) if outcome.too_little => "TOO LITTLE TRIED",
        (false, false) => "BROKEN",
        (true, true) => "found out",
        (true, false) => "NOT FOUND OUT",
    };
    let count = |(what, n): (&String, &u64)| match outcome.wanted.get(what) {
        Some(least) => format!("{what} {n} of {least}"),
        None => format!("{what} {n}"),
    };
    let counts: Vec<String> = outcome.counts.iter().map(count).collect();
    println!("{}: {word} in {} s: {}", title(task), outcome.seconds, counts.join(", "));
    if !outcome.held || task.control.is_some() {
        for what in &outcome.broken {
            println!("  {what}");
        }
    }
    if outcome.too_little {
        let number = task.scenario.number;
        println!("  on: script/torture --scenario {number} --seed {} --until-enough", task.seed);
    } else if !outcome.held {
        println!("  logs and history: {}", directory.display());
        let controls = if task.control.is_some() { " --controls" } else { "" };
        println!(
            "  again: script/torture --scenario {} --seed {} --minutes {}{controls}",
            task.scenario.number,
            task.seed,
            task.duration.as_secs_f64() / 60.0
        );
    }
}

/// What held before.
fn read_results(file: Option<&Path>) -> Result<Vec<Outcome>> {
    let Some(file) = file.filter(|file| file.exists()) else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(file).doing("read the results")?;
    // The last line may be torn: its run is simply repeated.
    let outcomes = text.lines().filter_map(|line| serde_json::from_str::<Outcome>(line).ok());
    Ok(outcomes.filter(|outcome| outcome.held).collect())
}

fn append(file: &Path, outcome: &Outcome) -> Result<()> {
    let doing = "write the results";
    let mut line = serde_json::to_string(outcome).doing(doing)?;
    line.push('\n');
    let mut file = OpenOptions::new().create(true).append(true).open(file).doing(doing)?;
    file.write_all(line.as_bytes()).doing(doing)?;
    file.sync_data().doing(doing)
}
