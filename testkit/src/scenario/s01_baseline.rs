//! 1: no harm at all: many clients race for the same few keys through two gateways, and one order explains what each saw. Before that,
//! while nobody hurries, each shard is given an operator of its own; and in the end each has one, whatever was hurried.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
use crate::error::Result;
use crate::load::{self, Load};
use crate::run::{Run, SETTLE};
use crate::{Recorder, invariants};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 1,
    name: "baseline",
    about: "16 nodes of 14 operators; 20 clients race for 10 keys through two gateways; one order must explain every answer",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(15)),
    controls: &[],
    run: |run| -> Running { Box::pin(baseline(run)) },
};

const BUCKET: &str = "baseline";
/// Two operators have two: who looked at nodes only would give them two shards of most stripes.
const NODES: usize = 16;
/// As many as 10+4 has shards.
const OPERATORS: usize = 14;
/// Stored while nobody hurries.
const CALM: usize = 10;
/// A node that was late at the start is avoided for half a minute at most.
const CALM_WITHIN: Duration = Duration::from_secs(60);

async fn baseline(run: Arc<Run>) -> Result<()> {
    // No node is harmed here: one that is slow to say that it lives beside so many clients is not to be missed.
    let cluster = run
        .cluster()
        .nodes(NODES)
        .operators(OPERATORS)
        .gateways(2)
        .gateway_env("NODE_OFFLINE_THRESHOLD_SECS", "30")
        .gateway_env("NODE_DRAIN_THRESHOLD_SECS", "60")
        .start()
        .await?;
    let clients = run.clients(&cluster, BUCKET).await?;
    apart(&run, &cluster, &clients[0]).await?;
    let load = Load { workers: 20, keys: 10, shared: true, lists: true, ..Load::default().small() };
    let workers = load::start(&run, &clients, &load);
    run.pause(run.duration).await;
    workers.join(&run).await?;
    for what in ["PUT", "DELETE", "HEAD"] {
        for how in ["refused", "unanswered"] {
            let count = run.counted(&format!("{what} {how}"));
            if count > 0 {
                run.broken(format!("{count} times {what} was {how}, though nothing was wrong"));
            }
        }
    }
    // Where nodes are late, others are preferred to them, whoever runs these. That is made up for once nothing is short.
    let (_, operators) = invariants::APART[0];
    let shared = cluster.database.number(operators).await?.unsigned_abs();
    run.figure("stripes with two shards of one operator", shared);
    run.settle(&cluster).await?;
    let began = Instant::now();
    invariants::come_true(&cluster.database, invariants::APART, SETTLE).await?;
    run.figure("spread after s", began.elapsed().as_secs());
    run.judge(&cluster, &clients[1], BUCKET).await?;
    invariants::check(&cluster.database, invariants::APART).await?;
    cluster.finish().await
}

/// What is stored while all nodes answer in time lies on as many operators as it has places.
async fn apart(run: &Run, cluster: &Cluster, client: &Recorder) -> Result<()> {
    let began = Instant::now();
    loop {
        for number in 0..CALM {
            let key = format!("calm{number}");
            client.put(&key, &format!("{key}#{}", run.fresh()), [20_000, 300_000][number % 2]).await;
        }
        run.settle(cluster).await?;
        match invariants::check(&cluster.database, invariants::APART).await {
            Err(_) if began.elapsed() < CALM_WITHIN => run.count("stored anew", 1),
            judged => return judged,
        }
    }
}
