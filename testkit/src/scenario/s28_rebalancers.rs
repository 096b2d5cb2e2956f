//! 28: three rebalancers, one of which sleeps past its lease again and again: none records what it no longer may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Control, Needs, Quick, Running, Scenario, witness};
use crate::MIB;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::run::Run;

/// Whoever lost its claim records all the same.
const UNFENCED: Control = Control {
    name: "unfenced",
    about: "rebalancers record repairs although their claim was lost",
    rebalancer: &[("CYXCLOUD_FAULT_UNFENCED", "1")],
    ..Control::NONE
};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 28,
    name: "rebalancers",
    about: "8 nodes, 3 rebalancers, of which one sleeps past its lease again and again while nodes are lost",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(20)),
    controls: &[UNFENCED],
    run: |run| -> Running { Box::pin(rebalancers(run)) },
};

const BUCKET: &str = "fenced";

async fn rebalancers(run: Arc<Run>) -> Result<()> {
    // Repairs take their time, so that whoever falls asleep has some in hand.
    let cluster =
        run.cluster().nodes(8).rebalancers(3).rebalancer_env("REPAIR_BYTES_PER_SEC", "4MB").start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    witness::watch(&cluster.database).await?;
    let mut chance = run.chance(1);
    for number in 0..30 {
        let key = format!("k{number}");
        let size = [70_000, 300_000, 5 * MIB][chance.random_range(0..3)];
        client.put(&key, &key, size).await;
    }
    let load = Load { workers: 2, ..Load::default() };
    let workers = load::start(&run, std::slice::from_ref(&client), &load);
    let began = Instant::now();
    while !run.has_enough(began) && !run.over() {
        let index = chance.random_range(0..cluster.nodes.len());
        // Long enough to count as lost, so that there is work.
        cluster.nodes[index].process.kill();
        for _ in 0..6 {
            let sleeper = &cluster.rebalancers[chance.random_range(0..cluster.rebalancers.len())];
            sleeper.freeze();
            run.pause(Duration::from_millis(chance.random_range(1_500..3_000))).await;
            sleeper.thaw();
            run.count("slept past the lease", 1);
        }
        cluster.restart_node(index).await?;
        run.check_always(&cluster).await?;
        run.figure("jobs done", jobs_done(&cluster).await?);
        if let Err(Error::Broken(what)) = witness::check(&cluster.database).await {
            run.broken(what);
        }
    }
    workers.join(&run).await?;
    witness::check(&cluster.database).await?;
    run.judge(&cluster, &client, BUCKET).await?;
    run.figure("jobs done", jobs_done(&cluster).await?);
    cluster.finish().await
}

async fn jobs_done(cluster: &Cluster) -> Result<u64> {
    let done = "SELECT count(*) FROM repair_jobs WHERE status = 'completed'";
    Ok(cluster.database.number(done).await?.unsigned_abs())
}
