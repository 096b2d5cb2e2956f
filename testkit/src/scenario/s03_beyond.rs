//! 3: as many nodes as the tolerance says may go, and nothing is refused; one more, and what cannot be read is refused, not
//! made up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::index::sample;

use super::{Control, Needs, Quick, Running, Scenario};
use crate::Recorder;
use crate::census;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::run::Run;

/// Gateways acknowledge what can just be read.
const ACK_AT_DATA: Control = Control {
    name: "ack-at-data",
    about: "gateways acknowledge a stripe as soon as it can be read, whatever it survives",
    gateway: &[("CYXCLOUD_FAULT_ACK_AT_DATA", "1")],
    ..Control::NONE
};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 3,
    name: "beyond",
    about: "14 nodes, a shard on each: four away, all must be readable; five away, all must be refused; back, all again",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::ZERO),
    controls: &[ACK_AT_DATA],
    run: |run| -> Running { Box::pin(beyond(run)) },
};

const BUCKET: &str = "beyond";
const OBJECTS: u64 = 50;
/// How often each is asked for that cannot be read.
const ASKED: u64 = 4;
const REFUSED_WITHIN: Duration = Duration::from_secs(5);

async fn beyond(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(14).rebalancer_env("SWEEP_STRIPES_PER_SEC", "1000").start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    for number in 0..OBJECTS as usize {
        let key = format!("k{number}");
        client.put(&key, &key, 300_000 + number).await;
    }
    at_once(&run, &cluster, &client).await?;
    run.settle(&cluster).await?;
    let mut chance = run.chance(1);
    let began = Instant::now();
    loop {
        let tolerance = usize::from(census::spread(&cluster).await?.unwrap_or_default());
        run.figure("tolerance", tolerance as u64);
        let down: Vec<usize> = sample(&mut chance, cluster.nodes.len(), tolerance + 1).into_vec();
        let (one_more, tolerated) = down.split_last().ok_or_else(|| Error::failed("choose nodes", "none"))?;
        // What is made again meanwhile would survive more.
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.freeze());
        for &index in tolerated {
            cluster.nodes[index].process.kill();
        }
        run.read_all(&client, BUCKET).await?;
        cluster.nodes[*one_more].process.kill();
        all_refused(&run, &client).await?;
        cluster.restart_nodes(&down).await?;
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.thaw());
        run.read_all(&client, BUCKET).await?;
        run.settle(&cluster).await?;
        run.count("round", 1);
        if began.elapsed() >= run.duration {
            break;
        }
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// What was acknowledged survives at once what was promised, before anything can have been repaired.
async fn at_once(run: &Run, cluster: &Cluster, client: &Recorder) -> Result<()> {
    cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.freeze());
    for number in 0..OBJECTS as usize {
        let key = format!("k{number}");
        client.put(&key, &format!("{key} anew"), 300_000 + number).await;
    }
    let promised = cluster.acked_tolerance().await?;
    run.figure("acknowledged tolerance", promised as u64);
    let down = sample(&mut run.chance(2), cluster.nodes.len(), promised).into_vec();
    down.iter().for_each(|&index| cluster.nodes[index].process.kill());
    run.read_all(client, BUCKET).await?;
    cluster.restart_nodes(&down).await?;
    cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.thaw());
    Ok(())
}

/// With one node more away than is tolerated, and a shard of each object on each, none can be read: each is refused with 503, in time.
async fn all_refused(run: &Run, client: &Recorder) -> Result<()> {
    let client = client.lenient();
    for number in 0..ASKED * OBJECTS {
        let asked = Instant::now();
        match client.get_or_why(&format!("k{}", number % OBJECTS)).await {
            Ok(()) => {
                return Err(Error::broken("with more nodes away than are tolerated something was answered"));
            }
            Err(refused) if refused.is_unavailable() => run.count("refused with 503", 1),
            Err(refused) => {
                return Err(Error::broken(format!(
                    "what cannot be read was refused with {refused}, not with 503"
                )));
            }
        }
        run.most("slowest refusal ms", asked.elapsed().as_millis() as u64);
        if asked.elapsed() > REFUSED_WITHIN {
            return Err(Error::broken(format!("a refusal took {} ms", asked.elapsed().as_millis())));
        }
    }
    run.still_whole()
}
