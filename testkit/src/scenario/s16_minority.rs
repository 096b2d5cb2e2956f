//! 16: the line to as many nodes as are tolerated is cut and healed before they count as lost: nothing is refused, and not
//! one byte is moved for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::index::sample;

use super::{Needs, Quick, Running, Scenario};
use crate::Recorder;
use crate::census;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::proxy::Mode;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 16,
    name: "minority",
    about: "7 nodes; the line to as many as are tolerated is cut and healed again: all is readable, no byte is moved",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(8)),
    controls: &[],
    run: |run| -> Running { Box::pin(minority(run)) },
};

const BUCKET: &str = "minority";
const OBJECTS: u64 = 12;
/// No request may take longer while its nodes are silent.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// "Heal -> normal within 30 s".
const NORMAL_WITHIN: Duration = Duration::from_secs(30);

async fn minority(run: Arc<Run>) -> Result<()> {
    // What is away is repaired after this; the line is whole again before.
    let cluster = run
        .cluster()
        .nodes(7)
        .proxies()
        .gateway_env("NODE_DRAIN_THRESHOLD_SECS", "120")
        .rebalancer_env("REPAIR_DELAY_SECS", "45")
        .start()
        .await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    for number in 0..OBJECTS {
        let key = format!("k{number}");
        client.put(&key, &key, [20_000, 300_000][number as usize % 2]).await;
    }
    run.settle(&cluster).await?;
    let tolerance = usize::from(census::spread(&cluster).await?.unwrap_or_default());
    run.figure("tolerance", tolerance as u64);
    let mut chance = run.chance(1);
    let began = Instant::now();
    let before = cluster.received_bytes().await?;
    loop {
        let cut = sample(&mut chance, cluster.nodes.len(), tolerance).into_vec();
        run.history.note("cut", &cut);
        cut.iter().for_each(|&index| cluster.nodes[index].line(Mode::Blackhole));
        // Before anybody has noticed, and when it is known.
        read_in_time(&run, &client).await?;
        cluster.wait_online(cluster.nodes.len() - tolerance, ANSWERED_WITHIN).await?;
        read_in_time(&run, &client).await?;
        run.pause(Duration::from_millis(chance.random_range(0..3_000))).await;
        heal(&run, &cluster, &cut).await?;
        run.count("cut and healed", 1);
        if began.elapsed() * 2 >= run.duration || run.over() {
            break;
        }
    }
    // Repairs that were asked for have been looked at, and found needless.
    run.settle(&cluster).await?;
    let moved = cluster.received_bytes().await? - before;
    if moved > 0 {
        return Err(Error::broken(format!("{moved} bytes were moved for lines that were cut for a moment")));
    }
    // And with writes, which are then short of where they should be, and repaired.
    let workers =
        load::start(&run, std::slice::from_ref(&client), &Load { workers: 2, ..Load::default() }.small());
    while began.elapsed() < run.duration && !run.over() {
        let cut = sample(&mut chance, cluster.nodes.len(), cluster.acked_tolerance().await?).into_vec();
        cut.iter().for_each(|&index| cluster.nodes[index].line(Mode::Blackhole));
        run.pause(Duration::from_millis(chance.random_range(1_000..6_000))).await;
        heal(&run, &cluster, &cut).await?;
        run.count("cut under load", 1);
    }
    workers.join(&run).await?;
    run.judge(&cluster, &client, BUCKET).await?;
    run.check_honest(&cluster).await?;
    cluster.finish().await
}

/// The lines are whole again, and soon all nodes take part again.
async fn heal(run: &Run, cluster: &Cluster, cut: &[usize]) -> Result<()> {
    cut.iter().for_each(|&index| cluster.nodes[index].line(Mode::Pass));
    let healed = Instant::now();
    cluster.wait_online(cluster.nodes.len(), NORMAL_WITHIN).await?;
    run.most("normal again after ms", healed.elapsed().as_millis() as u64);
    Ok(())
}

async fn read_in_time(run: &Run, client: &Recorder) -> Result<()> {
    for number in 0..OBJECTS {
        let asked = Instant::now();
        client.get(&format!("k{number}")).await;
        if asked.elapsed() > ANSWERED_WITHIN {
            let took = asked.elapsed().as_millis();
            return Err(Error::broken(format!("with silent nodes an answer took {took} ms")));
        }
    }
    run.still_whole()
}
