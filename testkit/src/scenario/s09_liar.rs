//! 9: nodes lie, one at a time, in each way there is. Nobody is served a lie, the liar is found out, and nobody else is blamed.
//!
//! Who is found out is held back from new chunks until it has proven itself, or an administrator takes it back. What it cannot
//! prove is made again on the others, so these must stay enough for as many losses as every stripe is recorded to survive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;

use super::{Needs, Quick, Running, Scenario, one_of_enough};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::eventually;
use crate::recorder::Recorder;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 9,
    name: "liar",
    about: "12 nodes, of which one after the other serves wrong, short, swapped or no bytes, or wrong proofs",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::For(Duration::from_secs(15)),
    controls: &[],
    run: |run| -> Running { Box::pin(liar(run)) },
};

const BUCKET: &str = "liar";
const LIES: [&str; 5] = ["wrong-bytes", "short", "wrong-proof", "lost", "stale"];
const OBJECTS: u64 = 8;
/// Fewer than 13, from where stripes survive three losses and need 13 for it.
const NODES: usize = 12;
/// Whoever sends a reader wrong bytes is audited within a second; the other lies are met by the audits, which come every 5 s.
/// Reading all objects takes its time beside that, on a machine that is busy.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(15);

async fn liar(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(NODES).rebalancer_env("SWEEP_STRIPES_PER_SEC", "1000").start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    for number in 0..OBJECTS {
        let key = format!("k{number}");
        client.put(&key, &key, [20_000, 300_000][number as usize % 2]).await;
    }
    run.settle(&cluster).await?;
    let mut chance = run.chance(1);
    let mut lies = LIES.to_vec();
    lies.shuffle(&mut chance);
    let began = Instant::now();
    let mut lies = lies.into_iter().cycle();
    while let Some(index) = one_of_enough(&cluster, &mut chance).await?
        && let Some(lie) = lies.next()
    {
        // Whoever held nothing would have nothing to lie about.
        let key = format!("k{}", OBJECTS + run.fresh());
        client.put(&key, &key, 300_000).await;
        tell(&run, &cluster, &client, index, lie).await?;
        run.count("lie", 1);
        run.settle(&cluster).await?;
        cluster.take_back(index).await?;
        if began.elapsed() >= run.duration || run.over() {
            break;
        }
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// This node lies so until it is found out, and is honest again.
async fn tell(run: &Run, cluster: &Cluster, client: &Recorder, index: usize, lie: &str) -> Result<()> {
    run.history.note("lie", (lie, cluster.nodes[index].name()));
    let before = failed(cluster, index).await?;
    let others = failed_by_others(cluster, index).await?;
    let process = &cluster.nodes[index].process;
    process.kill();
    process.set_env("CYXCLOUD_FAULT_LIE", Some(lie));
    cluster.restart_node(index).await?;
    let what = format!("a node that tells {lie} is found out");
    let began = Instant::now();
    eventually(&what, FOUND_OUT_WITHIN, || async {
        run.read_all(client, BUCKET).await.ok()?;
        failed(cluster, index).await.is_ok_and(|now| now > before).then_some(())
    })
    .await?;
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    run.history.note("found out", (lie, took));
    run.figure("found out within ms", took.max(run.counted("found out within ms")));
    run.still_whole()?;
    let blamed = failed_by_others(cluster, index).await? - others;
    if blamed > 0 {
        return Err(Error::broken(format!("honest nodes were blamed {blamed} times")));
    }
    process.kill();
    process.set_env("CYXCLOUD_FAULT_LIE", None);
    cluster.restart_node(index).await
}

/// Audits that this node failed.
async fn failed(cluster: &Cluster, index: usize) -> Result<i64> {
    let name = cluster.nodes[index].name();
    cluster.database.number(&format!("SELECT audits_failed FROM nodes WHERE label = '{name}'")).await
}

/// Audits that all others failed.
async fn failed_by_others(cluster: &Cluster, index: usize) -> Result<i64> {
    let name = cluster.nodes[index].name();
    cluster.database.number(&format!("SELECT sum(audits_failed) FROM nodes WHERE label <> '{name}'")).await
}
