//! 28: three rebalancers, one of which sleeps past its lease again and again: none records what it no longer may, and in the end each
//! shard has a node, an operator and a network of its own again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Control, Needs, Quick, Running, Scenario, witness};
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::run::Run;
use crate::{MIB, invariants};

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
    about: "14 nodes of 14 operators; 3 rebalancers, of which one sleeps past its lease, again and again, while nodes are lost",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(20)),
    controls: &[UNFENCED],
    run: |run| -> Running { Box::pin(rebalancers(run)) },
};

const BUCKET: &str = "fenced";
/// As many as 10+4 has shards, each of an operator and on a network of its own.
const NODES: usize = 14;
const DOMAINS: &str =
    "SELECT least(count(DISTINCT nullif(operator, '')), count(DISTINCT nullif(subnet, ''))) FROM nodes";

async fn rebalancers(run: Arc<Run>) -> Result<()> {
    // Repairs take their time, so that whoever falls asleep has some in hand.
    let cluster = run
        .cluster()
        .nodes(NODES)
        .operators(NODES)
        .apart()
        .rebalancers(3)
        .rebalancer_env("REPAIR_BYTES_PER_SEC", "16MB")
        .start()
        .await?;
    if cluster.database.number(DOMAINS).await?.unsigned_abs() < NODES as u64 {
        return Err(Error::failed("put nodes apart", "they do not have an operator and a network each"));
    }
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
        run.figure("shards made anew", cluster.repaired_shards().await?);
        if let Err(Error::Broken(what)) = witness::check(&cluster.database).await {
            run.broken(what);
        }
    }
    workers.join(&run).await?;
    witness::check(&cluster.database).await?;
    run.judge(&cluster, &client, BUCKET).await?;
    invariants::check(&cluster.database, invariants::APART).await?;
    witness::check(&cluster.database).await?;
    run.figure("shards made anew", cluster.repaired_shards().await?);
    cluster.finish().await
}
