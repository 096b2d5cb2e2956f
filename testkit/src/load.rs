//! Clients that do a bit of everything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::{KIB, MIB, Recorder, Run};

/// How long a worker's last operation may take.
const LAST: Duration = Duration::from_secs(120);

/// What a load is made of.
#[derive(Clone, Debug)]
pub struct Load {
    /// Workers at the same time.
    pub workers: u64,
    /// Keys of each.
    pub keys: u32,
    /// Whether all workers share the same keys, so that they race for them.
    pub shared: bool,
    /// Bytes of a value, one of these.
    pub sizes: Vec<usize>,
    /// Whether keys are listed and created (`If-None-Match: *`) as well.
    pub lists: bool,
}

impl Default for Load {
    fn default() -> Self {
        let sizes = vec![100, 5_000, 70_000, 300_000, 5 * MIB + 1];
        Self { workers: 4, keys: 12, shared: false, sizes, lists: false }
    }
}

impl Load {
    /// None that is kept in copies, of which one loss is survived when they are acknowledged: where all others are coded and there
    /// are nodes enough, two are.
    pub fn coded(self) -> Self {
        Self { sizes: vec![100, 4_000, 140_000, 300_000, 5 * MIB + 1], ..self }
    }

    /// Bodies that meet nodes but cost little: no large objects.
    pub fn small(self) -> Self {
        Self { sizes: vec![100, 5 * KIB, 70_000, 300_000], ..self }
    }
}

/// Workers that run until the run is over.
#[derive(Debug)]
pub struct Workers(JoinSet<()>);

impl Workers {
    /// None yet.
    pub fn new() -> Self {
        Self(JoinSet::new())
    }

    /// One more.
    pub fn add(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }

    /// One more, which looks at the clock: with `whom` as it is, no PUT and no GET takes longer than `within`. How long they took is
    /// kept as `PUT with ...` and `GET with ...`.
    pub fn watch(&mut self, run: &Arc<Run>, client: &Recorder, within: Duration, whom: &'static str) {
        let (run, client) = (run.clone(), client.clone());
        self.add(async move {
            while !run.over() {
                let asked = Instant::now();
                client.put("watched", &format!("watched{}", run.fresh()), 300_000).await;
                let put = asked.elapsed();
                client.get("watched").await;
                for (method, took) in [("PUT", put), ("GET", asked.elapsed() - put)] {
                    run.took(&format!("{method} with {whom}"), took);
                    run.most(&format!("slowest {method} ms"), took.as_millis() as u64);
                    if took > within {
                        run.broken(format!("with {whom} a {method} took {} ms", took.as_millis()));
                    }
                }
            }
        });
    }

    /// Tells them to end and waits for them.
    pub async fn join(mut self, run: &Run) -> Result<()> {
        run.stop();
        let all = async {
            while let Some(ended) = self.0.join_next().await {
                if let Err(error) = ended {
                    // A bug in the harness must not look like success.
                    return Err(Error::failed("run a worker", error));
                }
            }
            Ok(())
        };
        let late = |_| Error::broken(format!("an operation took longer than {} s", LAST.as_secs()));
        tokio::time::timeout(LAST, all).await.map_err(late)??;
        run.still_whole()
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self::new()
    }
}

/// Starts a load on these clients, which workers take in turn.
pub fn start(run: &Arc<Run>, clients: &[Recorder], load: &Load) -> Workers {
    run.go_on();
    let mut workers = Workers::new();
    for number in 0..load.workers {
        let client = clients[number as usize % clients.len()].clone();
        workers.add(work(run.clone(), client, load.clone(), number));
    }
    workers
}

async fn work(run: Arc<Run>, client: Recorder, load: Load, number: u64) {
    let mut chance = run.chance(1_000 + number);
    let prefix = if load.shared { "k".to_owned() } else { format!("w{number}-") };
    let keys: Vec<String> = (0..load.keys).map(|n| format!("{prefix}{n}")).collect();
    while !run.over() {
        let key = &keys[chance.random_range(0..keys.len())];
        let size = load.sizes[chance.random_range(0..load.sizes.len())];
        let dice = chance.random_range(0..100);
        let value = format!("{key}#{}", run.fresh());
        match dice {
            0..45 => drop(client.put(key, &value, size).await),
            45..55 => drop(client.delete(key).await),
            55..60 if load.lists => drop(client.create(key, &value, size).await),
            60..66 if load.lists => drop(client.list(&prefix, chance.random_range(2..8), &keys).await),
            66..76 => drop(client.head(key).await),
            _ => drop(client.get(key).await),
        }
    }
}
