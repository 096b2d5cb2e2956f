//! 9: one node lies in each way there is. Nobody is served its lies, it is found out, and nobody else is blamed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::SliceRandom;

use super::{Needs, Quick, Running, Scenario};
use crate::census;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::eventually;
use crate::run::{Run, SETTLE};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 9,
    name: "liar",
    about: "7 nodes, of which one serves wrong, short, swapped or no bytes, or wrong proofs",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::LeftOut("it has not held often enough yet to be relied on"),
    controls: &[],
    run: |run| -> Running { Box::pin(liar(run)) },
};

const BUCKET: &str = "liar";
const LIES: [&str; 5] = ["wrong-bytes", "short", "wrong-proof", "lost", "stale"];
const OBJECTS: u64 = 8;
/// Audits come every 5 s; whatever reads do not find, they do.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(60);

async fn liar(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(7).rebalancer_env("SWEEP_STRIPES_PER_SEC", "1000").start().await?;
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
    for (number, lie) in lies.iter().cycle().enumerate() {
        if number > 0 && began.elapsed() >= run.duration || run.over() {
            break;
        }
        run.history.note("lie", lie);
        let index = chance.random_range(0..cluster.nodes.len());
        let before = failed(&cluster, index).await?;
        let others = failed_by_others(&cluster, index).await?;
        let process = &cluster.nodes[index].process;
        process.kill();
        process.set_env("CYXCLOUD_FAULT_LIE", Some(lie));
        cluster.restart_node(index).await?;
        let what = format!("a node that tells {lie} is found out");
        eventually(&what, FOUND_OUT_WITHIN, || async {
            run.read_all(&client, BUCKET).await.ok()?;
            failed(&cluster, index).await.is_ok_and(|now| now > before).then_some(())
        })
        .await?;
        run.still_whole()?;
        let blamed = failed_by_others(&cluster, index).await? - others;
        if blamed > 0 {
            return Err(Error::broken(format!("honest nodes were blamed {blamed} times")));
        }
        process.kill();
        process.set_env("CYXCLOUD_FAULT_LIE", None);
        cluster.restart_node(index).await?;
        run.count("lie", 1);
        run.settle(&cluster).await?;
    }
    // While a node is held back, stripes survive less: the sweep finds them when it is trusted again.
    eventually("every stripe survives what it is recorded to", SETTLE, || async {
        census::spread(&cluster).await.ok()
    })
    .await?;
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
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
