//! 4: programs die at every step there is a name for, are started again, and what was asked is asked again.
//!
//! The point and which of its passes kills are chosen by the seed. Whatever was cut off left the old or the new state, the
//! retry is answered as if nothing had been, and in the end nothing is left over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::faults::CRASH_POINTS;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
use crate::error::{Doing, Error, Result};
use crate::recorder::multipart::{NamedPart, Upload};
use crate::recorder::{Recorder, body_of};
use crate::run::Run;
use crate::s3::{Answer, Refused};
use crate::{eventually, process};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 4,
    name: "crashes",
    about: "each program dies at each of its crash points, is started again, and what was asked is asked again",
    needs: Needs::Nothing,
    duration: Duration::from_secs(420),
    quick: Quick::For(Duration::from_secs(25)),
    controls: &[],
    run: |run| -> Running { Box::pin(crashes(run)) },
};

const BUCKET: &str = "crashes";
/// Bodies that are stripes.
const SIZE: usize = 300_000;
/// How long it may take until a point is passed: mostly the time until a node is missed.
const PASSED_WITHIN: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

async fn crashes(run: Arc<Run>) -> Result<()> {
    let file = run.directory.join("crash");
    let path = process::text(&file);
    let cluster = run
        .cluster()
        .gateway_env("CYXCLOUD_CRASH_FILE", &path)
        .node_env("CYXCLOUD_CRASH_FILE", &path)
        .rebalancer_env("CYXCLOUD_CRASH_FILE", &path)
        .node_env("NODE_TRASH_SECS", "1")
        .start()
        .await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let harm = Harm { run: &run, cluster: &cluster, client: &client, file };
    let mut chance = run.chance(1);
    let mut order = CRASH_POINTS.to_vec();
    let mut hit = 0;
    let began = Instant::now();
    // There is something to be repaired from the beginning.
    for number in 0..4 {
        client.put(&format!("first{number}"), &format!("first{number}"), SIZE).await;
    }
    while !run.has_enough(began) && !run.over() {
        if hit % order.len() == 0 {
            order.shuffle(&mut chance);
        }
        let point = order[hit % order.len()];
        harm.at(point, chance.random_range(1..=2), chance.random_range(0..cluster.nodes.len())).await?;
        run.check_always(&cluster).await?;
        hit += 1;
        run.figure("crash points", hit.min(order.len()) as u64);
        run.figure("crashes at each point", (hit / order.len()) as u64);
        run.figure("crashes", hit as u64);
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

struct Harm<'a> {
    run: &'a Run,
    cluster: &'a Cluster,
    client: &'a Recorder,
    file: PathBuf,
}

impl Harm<'_> {
    /// Has some program die at this point, starts it again, and finishes what was begun.
    async fn at(&self, point: &str, pass: u64, victim: usize) -> Result<()> {
        self.run.history.note("crash at", (point, pass));
        arm(&self.file, &format!("{point}:{pass}"))?;
        let began = Instant::now();
        let mut begun = Vec::new();
        while self.file.exists() {
            if began.elapsed() > PASSED_WITHIN {
                return Err(Error::broken(format!("no program passed {point}")));
            }
            begun.push(self.work(point, victim).await);
        }
        self.revive(point).await?;
        for work in begun {
            self.again(work).await.map_err(|error| Error::broken(format!("after {point}: {error}")))?;
        }
        self.run.still_whole()
    }

    /// Something that leads past the point. What becomes of it is seen later.
    async fn work(&self, point: &str, victim: usize) -> Work {
        let number = self.run.fresh();
        let key = format!("k{number}");
        match point.split_once('.').unwrap_or_default() {
            ("part" | "complete" | "abort", _) => {
                let mut multipart = Multipart { key, upload: None, part: None, etag: None };
                let aborts = point.starts_with("abort");
                // Whoever answers no longer is dead; the rest comes after its revival.
                let _ = self.multipart(&mut multipart, aborts).await;
                Work::Multipart { multipart, aborts }
            }
            ("delete", _) => {
                self.client.put(&key, &key, SIZE).await;
                self.client.delete(&key).await;
                Work::Delete { key }
            }
            ("gc", _) | ("node", "freeing" | "freed") => {
                self.client.put(&key, &key, SIZE).await;
                self.client.delete(&key).await;
                self.armed_still(Duration::from_secs(8)).await;
                Work::Delete { key }
            }
            ("mover", _) => {
                let node = &self.cluster.nodes[victim].process;
                if node.running() {
                    node.kill();
                }
                self.armed_still(PASSED_WITHIN).await;
                Work::Nothing
            }
            _ => {
                self.client.put(&key, &key, SIZE).await;
                Work::Put { key }
            }
        }
    }

    /// Waits until somebody died, or for so long.
    async fn armed_still(&self, limit: Duration) {
        // If nobody did, there will be more work.
        let _ = eventually("somebody dies", limit, || async { (!self.file.exists()).then_some(()) }).await;
    }

    async fn multipart(&self, state: &mut Multipart, aborts: bool) -> Answer<()> {
        let body = body_of(self.run.seed, &state.key, SIZE);
        if state.upload.is_none() {
            state.upload = Some(self.client.open(&state.key, &body).await?);
        }
        let Some(upload) = &state.upload else { return Ok(()) };
        if state.part.is_none() {
            state.part = Some(self.client.part(upload, 1, body).await?);
        }
        if aborts {
            return match self.client.abort(upload).await {
                // It was aborted before its answer was lost.
                Err(refused) if refused.is_absence() => Ok(()),
                answer => answer,
            };
        }
        let etag = self.client.complete(upload, state.part.as_slice()).await?;
        if state.etag.replace(etag.clone()).is_some_and(|before| before != etag) {
            self.run.broken(format!("{} was completed twice with different ETags", state.key));
        }
        Ok(())
    }

    /// Starts whoever died, and waits until all is as before.
    async fn revive(&self, point: &str) -> Result<()> {
        let dead = || async { self.cluster.processes().any(process::Process::was_killed).then_some(()) };
        eventually(&format!("somebody died at {point}"), SOON, dead).await?;
        for gateway in &self.cluster.gateways {
            if !gateway.process.running() {
                gateway.process.start()?;
                self.cluster.answers(&gateway.process, &format!("{}/health", gateway.url)).await?;
                // Nobody uploads now: whatever was under way was this gateway's. Its lease is an hour; let it pass.
                let lapse = "UPDATE upload_intents SET lease_until = now()";
                self.cluster.database.execute(lapse).await?;
            }
        }
        for (index, node) in self.cluster.nodes.iter().enumerate() {
            if !node.process.running() {
                self.cluster.restart_node(index).await?;
            }
        }
        for rebalancer in &self.cluster.rebalancers {
            if !rebalancer.running() {
                rebalancer.start()?;
            }
        }
        self.cluster.wait_online(self.cluster.nodes.len(), SOON).await?;
        for index in 0..self.cluster.gateways.len() {
            self.cluster.wait_writable(index, SOON).await?;
        }
        Ok(())
    }

    /// Asks again for what may have been cut off: it must be answered now, and its outcome be the one asked for.
    async fn again(&self, work: Work) -> Result<()> {
        match work {
            Work::Nothing => {}
            Work::Put { key } => {
                // Old or new, and which of them the history knows.
                self.client.get(&key).await;
                acknowledged(self.client.put(&key, &key, SIZE).await, &format!("PUT {key} again"))?;
                self.client.get(&key).await;
            }
            Work::Delete { key } => {
                self.client.get(&key).await;
                acknowledged(self.client.delete(&key).await, &format!("DELETE {key} again"))?;
                self.client.get(&key).await;
            }
            Work::Multipart { mut multipart, aborts } => {
                self.client.get(&multipart.key).await;
                // Twice: a repeated Complete answers as the first did.
                for _ in 0..2 {
                    let answer: std::result::Result<(), Refused> =
                        self.multipart(&mut multipart, aborts).await;
                    answer.map_err(|refused| Error::broken(format!("{} again: {refused}", multipart.key)))?;
                }
                self.client.get(&multipart.key).await;
            }
        }
        Ok(())
    }
}

/// What was asked and may have been cut off.
enum Work {
    Nothing,
    Put { key: String },
    Delete { key: String },
    Multipart { multipart: Multipart, aborts: bool },
}

/// How far an upload came, by what was answered.
struct Multipart {
    key: String,
    upload: Option<Upload>,
    part: Option<NamedPart>,
    etag: Option<String>,
}

fn acknowledged(was: bool, what: &str) -> Result<()> {
    if was { Ok(()) } else { Err(Error::broken(format!("{what} was not acknowledged"))) }
}

/// Orders a crash; programs look at each pass, so the order appears whole.
fn arm(file: &Path, order: &str) -> Result<()> {
    let doing = "order a crash";
    let draft = file.with_extension("draft");
    std::fs::write(&draft, order).doing(doing)?;
    std::fs::rename(draft, file).doing(doing)
}
