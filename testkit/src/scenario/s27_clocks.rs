//! 27: the clocks of nodes and gateways are wrong. Within a quarter of an hour nobody notices; beyond, signatures are refused
//! and nothing else happens: whatever is kept or deleted goes by the database's clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 27,
    name: "clocks",
    about: "the clocks of nodes are up to 50 min off, that of a gateway 10 min, and then an hour",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::LeftOut("it has not held often enough yet to be relied on"),
    controls: &[],
    run: |run| -> Running { Box::pin(clocks(run)) },
};

const BUCKET: &str = "clocks";
const OFFSET: &str = "CYXCLOUD_FAULT_CLOCK_OFFSET_SECS";
const SOON: Duration = Duration::from_secs(60);

async fn clocks(run: Arc<Run>) -> Result<()> {
    // The first gateway's clock is right, the second one's is not.
    let cluster = run.cluster().gateways(2).start().await?;
    let clients = run.clients(&cluster, BUCKET).await?;
    let load = Load { workers: 3, ..Load::default() }.small();
    let mut chance = run.chance(1);
    let began = Instant::now();
    loop {
        let workers = load::start(&run, &clients[..1], &load);
        let index = chance.random_range(0..cluster.nodes.len());
        let off: i32 = chance.random_range(-3_000..3_000);
        let node = &cluster.nodes[index].process;
        run.history.note("clock", (&node.name, off));
        node.kill();
        node.set_env(OFFSET, Some(&off.to_string()));
        cluster.restart_node(index).await?;
        let off: i32 = chance.random_range(-600..600);
        set_clock(&cluster, off).await?;
        cluster.wait_writable(1, SOON).await?;
        clients[1].put("skewed", &format!("skewed{}", run.fresh()), 300_000).await;
        clients[1].get("skewed").await;
        let far = if chance.random() { 3_600 } else { -3_600 };
        set_clock(&cluster, far).await?;
        match clients[1].s3().delete(BUCKET, "skewed").await {
            Err(refused) if refused.code == "RequestTimeTooSkewed" => run.count("refused for its time", 1),
            answer => return Err(Error::broken(format!("a gateway an hour off answered {answer:?}"))),
        }
        clients[0].get("skewed").await;
        workers.join(&run).await?;
        run.go_on();
        run.check_always(&cluster).await?;
        run.count("clock set", 2);
        if began.elapsed() >= run.duration {
            break;
        }
    }
    let young = "SELECT count(*) FROM segments WHERE condemned_at > now()";
    if cluster.database.number(young).await? > 0 {
        return Err(Error::broken("something was condemned in the future"));
    }
    run.judge(&cluster, &clients[0], BUCKET).await?;
    cluster.finish().await
}

/// Starts the second gateway with its clock so many seconds off.
async fn set_clock(cluster: &Cluster, off: i32) -> Result<()> {
    let gateway = &cluster.gateways[1];
    gateway.process.stop().await?;
    gateway.process.set_env(OFFSET, Some(&off.to_string()));
    gateway.process.start()?;
    cluster.answers(&gateway.process, &format!("{}/health", gateway.url)).await
}
