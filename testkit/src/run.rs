//! One scenario with one seed: its chances, its directory, what it counted, and what was found broken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::sync::watch;

use crate::census;
use crate::check;
use crate::cluster::{Builder, Cluster};
use crate::error::{Error, Result};
use crate::history::History;
use crate::invariants;
use crate::process;
use crate::recorder::Recorder;
use crate::scenario::Control;
use crate::scenario::enough::{Floor, reached};

/// How long all that is owed may take when nothing happens any more.
pub const SETTLE: Duration = Duration::from_secs(180);
/// "Clean within 60 s after each change", for who has the machine to itself.
const CLEAN: Duration = Duration::from_secs(60);

/// One run. Shared by its workers.
#[derive(Debug)]
pub struct Run {
    /// Chooses all that is random.
    pub seed: u64,
    /// How long harm is done, at most.
    pub duration: Duration,
    /// Once these are reached harm may end before its time; none: it goes on to the end.
    pub until: &'static [Floor],
    /// What is kept when the run fails.
    pub directory: PathBuf,
    /// What clients saw.
    pub history: History,
    /// What is deliberately wrong in this run, which must be found out.
    pub control: Option<&'static Control>,
    names: AtomicU64,
    counts: Mutex<BTreeMap<String, u64>>,
    times: Mutex<BTreeMap<String, Vec<Duration>>>,
    found: Mutex<Vec<String>>,
    over: watch::Sender<bool>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// Begins a run in a directory that exists.
    pub fn new(
        directory: &Path,
        seed: u64,
        duration: Duration,
        until: &'static [Floor],
        control: Option<&'static Control>,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            seed,
            duration,
            until,
            directory: directory.to_owned(),
            history: History::new(&directory.join("history.jsonl"))?,
            control,
            names: AtomicU64::new(0),
            counts: Mutex::default(),
            times: Mutex::default(),
            found: Mutex::default(),
            over: watch::Sender::new(false),
        }))
    }

    /// Chances of one part of the run, the same for the same seed whatever the other parts draw.
    pub fn chance(&self, part: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(part))
    }

    /// A number not given before in this run, so that values get names of their own.
    pub fn fresh(&self) -> u64 {
        self.names.fetch_add(1, Ordering::Relaxed)
    }

    /// A cluster under this run's directory, wrong in the way that this run's control says.
    pub fn cluster(&self) -> Builder {
        let mut builder = Builder::new(&self.directory.join("cluster"));
        if let Some(control) = self.control {
            for (name, value) in control.gateway {
                builder = builder.gateway_env(name, value);
            }
            for (name, value) in control.node {
                builder = builder.node_env(name, value);
            }
            for (name, value) in control.rebalancer {
                builder = builder.rebalancer_env(name, value);
            }
        }
        builder
    }

    /// Makes a bucket through the first gateway, and gives a recording client of it for each gateway.
    pub async fn clients(self: &Arc<Self>, cluster: &Cluster, bucket: &str) -> Result<Vec<Recorder>> {
        let first = cluster.s3(0)?;
        first.make_bucket(bucket).await.map_err(|refused| Error::failed("make a bucket", refused))?;
        (0..cluster.gateways.len()).map(|index| Ok(Recorder::new(self, cluster.s3(index)?, bucket))).collect()
    }

    /// Counts something, for the report.
    pub fn count(&self, what: &str, n: u64) {
        *held(&self.counts).entry(what.to_owned()).or_default() += n;
    }

    /// A figure for the report, in place of what stood there.
    pub fn figure(&self, what: &str, n: u64) {
        held(&self.counts).insert(what.to_owned(), n);
    }

    /// A figure for the report, of which the largest counts.
    pub fn most(&self, what: &str, n: u64) {
        let mut counts = held(&self.counts);
        let most = counts.entry(what.to_owned()).or_default();
        *most = n.max(*most);
    }

    /// What was counted so far under this name.
    pub fn counted(&self, what: &str) -> u64 {
        held(&self.counts).get(what).copied().unwrap_or_default()
    }

    /// How long something took, among others that are like it.
    pub fn took(&self, what: &str, time: Duration) {
        held(&self.times).entry(what.to_owned()).or_default().push(time);
    }

    /// What 99 of 100 of these took at most.
    pub fn p99(&self, what: &str) -> Option<Duration> {
        let mut times = held(&self.times).get(what)?.clone();
        times.sort_unstable();
        times.get((times.len() * 99).div_ceil(100).checked_sub(1)?).copied()
    }

    /// All that was counted.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        held(&self.counts).clone()
    }

    /// A promise was not kept: the run is over and lost, though its scenario may still tidy up.
    pub fn broken(&self, what: String) {
        self.history.note("broken", &what);
        held(&self.found).push(what);
        self.stop();
    }

    /// What was found broken.
    pub fn found(&self) -> Vec<String> {
        held(&self.found).clone()
    }

    /// Goes on only while nothing is broken.
    pub fn still_whole(&self) -> Result<()> {
        held(&self.found).first().map_or(Ok(()), |what| Err(Error::Broken(what.clone())))
    }

    /// Tells workers to end.
    pub fn stop(&self) {
        self.over.send_replace(true);
    }

    /// Lets workers work again, unless something is broken.
    pub fn go_on(&self) {
        if held(&self.found).is_empty() {
            self.over.send_replace(false);
        }
    }

    /// Whether workers are to end.
    pub fn over(&self) -> bool {
        *self.over.borrow()
    }

    /// Lets time pass in which others work; returns early when the run is over.
    pub async fn pause(&self, time: Duration) {
        let mut over = self.over.subscribe();
        // Time being up is what is waited for.
        let _ = tokio::time::timeout(time, over.wait_for(|over| *over)).await;
    }

    /// Whether harm that began then need not go on: its time is up, or enough was tried where the run is only to go on until then.
    pub fn has_enough(&self, began: Instant) -> bool {
        let enough = !self.until.is_empty() && reached(self.until, |what| self.counted(what));
        enough || began.elapsed() >= self.duration
    }

    /// What must hold at every moment, does.
    pub async fn check_always(&self, cluster: &Cluster) -> Result<()> {
        invariants::check(&cluster.database, invariants::ALWAYS).await
    }

    /// Nobody was blamed for what was not his fault; and there were audits that could have blamed somebody.
    pub async fn check_honest(&self, cluster: &Cluster) -> Result<()> {
        let proven =
            cluster.database.number("SELECT coalesce(sum(audits_proven), 0)::bigint FROM nodes").await?;
        self.figure("audits proven", u64::try_from(proven).unwrap_or(0));
        if proven == 0 {
            return Err(Error::broken("no audit was answered, so nobody could be blamed"));
        }
        invariants::check(&cluster.database, invariants::HONEST).await
    }

    /// Nothing happens any more: waits until all that is owed is paid.
    pub async fn settle(&self, cluster: &Cluster) -> Result<()> {
        self.settle_within(cluster, SETTLE).await
    }

    /// The same, where more is owed than usual.
    pub async fn settle_within(&self, cluster: &Cluster, limit: Duration) -> Result<()> {
        let began = Instant::now();
        invariants::settle(&cluster.database, limit).await?;
        self.most("settled after s", began.elapsed().as_secs());
        Ok(())
    }

    /// The same, and soon. How soon is only judged where nobody else's cluster or compiler had a part of the machine.
    pub async fn settle_soon(&self, cluster: &Cluster) -> Result<()> {
        let alone = process::alone();
        let began = Instant::now();
        self.settle(cluster).await?;
        let took = began.elapsed();
        if !alone || !process::alone() {
            self.count("settled beside others", 1);
            return Ok(());
        }
        self.most("settled alone after s", took.as_secs());
        if took > CLEAN {
            let (took, clean) = (took.as_secs(), CLEAN.as_secs());
            return Err(Error::broken(format!(
                "settled after {took} s, alone on the machine, and not within {clean}"
            )));
        }
        Ok(())
    }

    /// Reads some of the keys that the history knows: the cost of a round must not grow with those before it.
    pub async fn read_some(&self, client: &Recorder, bucket: &str, most: usize, part: u64) -> Result<()> {
        let mut keys = self.keys(bucket);
        keys.shuffle(&mut self.chance(3_000 + part));
        keys.truncate(most);
        self.read(client, keys).await
    }

    /// Reads every key that the history knows, through this client.
    pub async fn read_all(&self, client: &Recorder, bucket: &str) -> Result<()> {
        self.read(client, self.keys(bucket)).await
    }

    fn keys(&self, bucket: &str) -> Vec<String> {
        let prefix = format!("{bucket}/");
        let names = self.history.ops().into_keys();
        names.filter_map(|name| Some(name.strip_prefix(&prefix)?.to_owned())).collect()
    }

    async fn read(&self, client: &Recorder, keys: Vec<String>) -> Result<()> {
        for key in keys {
            client.get(&key).await;
            self.still_whole()?;
        }
        Ok(())
    }

    /// Reads everything with as many nodes away as every stripe survives where it is, until each node was away once.
    pub async fn away_in_turn(&self, cluster: &Cluster, client: &Recorder, bucket: &str) -> Result<()> {
        let mut waiting: Vec<usize> = (0..cluster.nodes.len()).collect();
        waiting.shuffle(&mut self.chance(2_000));
        while !waiting.is_empty() {
            // What was repaired while the last ones were away must be spread again.
            self.settle_soon(cluster).await?;
            let survived = census::spread(cluster).await?.unwrap_or(1);
            let away = waiting.split_off(waiting.len().saturating_sub(usize::from(survived).max(1)));
            self.history.note("away", &away);
            self.figure("away at once", away.len().max(self.counted("away at once") as usize) as u64);
            for &index in &away {
                cluster.nodes[index].process.kill();
            }
            self.read_all(client, bucket).await?;
            cluster.restart_nodes(&away).await?;
        }
        Ok(())
    }

    /// "Success >= 99 %", each request sent once.
    pub fn mostly_answered(&self, what: &str) -> Result<()> {
        let good = self.counted(what);
        let bad = self.counted(&format!("{what} refused")) + self.counted(&format!("{what} unanswered"));
        if bad * 99 > good {
            return Err(Error::broken(format!("{bad} of {} {what}s failed", good + bad)));
        }
        Ok(())
    }

    /// Every key's history has an explanation.
    pub fn check_history(&self) -> Result<()> {
        self.still_whole()?;
        let ops = self.history.ops();
        self.figure("operations checked", ops.values().map(|ops| ops.len() as u64).sum());
        match check::anomalies(&ops).first() {
            None => Ok(()),
            Some((key, anomaly)) => Err(Error::broken(format!("{key}: {anomaly}"))),
        }
    }

    /// The judgement at the end of most scenarios: settled, invariants, what disks hold, everything readable, all explained.
    pub async fn judge(&self, cluster: &Cluster, client: &Recorder, bucket: &str) -> Result<()> {
        self.still_whole()?;
        self.settle(cluster).await?;
        self.check_always(cluster).await?;
        let held = census::take(cluster).await?;
        self.figure("chunks read in the census", held.chunks);
        held.nothing_else()?;
        self.read_all(client, bucket).await?;
        self.check_history()?;
        cluster.check_logs()
    }
}
