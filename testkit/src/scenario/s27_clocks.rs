//! 27: the clocks of nodes and gateways are wrong, and jump each second. Nodes go by the gateway's; clients' signatures are
//! refused by a gateway that is more than a quarter of an hour off; and nothing else happens: whatever is claimed, kept or deleted goes by
//! the database's clock, and so does whether a node takes a token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario, witness};
use crate::census;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::process::Process;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 27,
    name: "clocks",
    about: "clocks of nodes are up to 2 h off, or jump so far each second, those of gateways 10 min, and then an hour",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(10)),
    controls: &[],
    run: |run| -> Running { Box::pin(clocks(run)) },
};

const BUCKET: &str = "clocks";
/// More than the hour that a registration's signature may be old: the node signs again by the gateway's clock.
const NODE_SECS: i32 = 7_200;
/// A request's signature may be a quarter of an hour old.
const GATEWAY_SECS: i32 = 600;
const SOON: Duration = Duration::from_secs(60);
/// How long clocks jump in each round, under load.
const JUMPING: Duration = Duration::from_secs(6);
/// When tokens for a node begin and cease to hold, in seconds from now by the database's clock, and whether it takes them: clocks may
/// be a minute apart, and no token may hold for more than an hour. Half a minute beside the limits, for what telling the time takes.
const WINDOWS: [((i64, i64), bool); 6] = [
    ((0, 600), true),
    ((30, 630), true),
    ((-600, -30), true),
    ((90, 690), false),
    ((-600, -90), false),
    ((-10, 3_620), false),
];

/// What is wrong with a clock.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// So many seconds off.
    Off(i32),
    /// In each second another offset, of so many seconds at most.
    Jumps(i32),
}

async fn clocks(run: Arc<Run>) -> Result<()> {
    // The first gateway's clock is right, the second one's is not.
    let cluster = run.cluster().gateways(2).start().await?;
    let clients = run.clients(&cluster, BUCKET).await?;
    witness::watch(&cluster.database).await?;
    let load = Load { workers: 3, ..Load::default() }.small();
    let mut chance = run.chance(1);
    let began = Instant::now();
    loop {
        let workers = load::start(&run, &clients[..1], &load);
        let index = chance.random_range(0..cluster.nodes.len());
        let off = chance.random_range(-NODE_SECS..NODE_SECS);
        set_node(&run, &cluster, index, Wrong::Off(off)).await?;
        tokens(&run, &cluster, index).await?;
        // What would hold by its own clock.
        let own = i64::from(off);
        if own.abs() > 900 {
            token(&run, &cluster, index, (own - 300, own + 300), false).await?;
        }
        set_gateway(&run, &cluster, Wrong::Off(chance.random_range(-GATEWAY_SECS..GATEWAY_SECS))).await?;
        cluster.wait_writable(1, SOON).await?;
        clients[1].put("skewed", &format!("skewed{}", run.fresh()), 300_000).await;
        clients[1].get("skewed").await;
        let far = if chance.random() { 3_600 } else { -3_600 };
        set_gateway(&run, &cluster, Wrong::Off(far)).await?;
        match clients[1].s3().delete(BUCKET, "skewed").await {
            Err(refused) if refused.code == "RequestTimeTooSkewed" => run.count("refused for its time", 1),
            answer => return Err(Error::broken(format!("a gateway an hour off answered {answer:?}"))),
        }
        clients[0].get("skewed").await;
        set_gateway(&run, &cluster, Wrong::Jumps(GATEWAY_SECS)).await?;
        cluster.wait_writable(1, SOON).await?;
        workers.join(&run).await?;
        let workers = load::start(&run, &clients, &load);
        let index = chance.random_range(0..cluster.nodes.len());
        set_node(&run, &cluster, index, Wrong::Jumps(NODE_SECS)).await?;
        for _ in 0..3 {
            tokens(&run, &cluster, index).await?;
            run.pause(JUMPING / 3).await;
        }
        workers.join(&run).await?;
        run.go_on();
        run.check_always(&cluster).await?;
        witness::check(&cluster.database).await?;
        run.count("clock set", 5);
        if began.elapsed() >= run.duration {
            break;
        }
    }
    let young = "SELECT count(*) FROM segments WHERE condemned_at > now()";
    if cluster.database.number(young).await? > 0 {
        return Err(Error::broken("something was condemned in the future"));
    }
    run.judge(&cluster, &clients[0], BUCKET).await?;
    witness::check(&cluster.database).await?;
    run.figure("segments collected", witness::collected(&cluster.database).await?);
    cluster.finish().await
}

/// Whatever the node's clock says, it takes tokens for as long as they hold by the database's, and no others.
async fn tokens(run: &Run, cluster: &Cluster, index: usize) -> Result<()> {
    for (window, good) in WINDOWS {
        token(run, cluster, index, window, good).await?;
    }
    Ok(())
}

async fn token(run: &Run, cluster: &Cluster, index: usize, window: (i64, i64), good: bool) -> Result<()> {
    let node = &cluster.nodes[index];
    let taken = census::connect_between(cluster, node, window).await?.is_let_in().await?;
    if taken != good {
        let (name, (from, until)) = (node.name(), window);
        let did = if taken { "took" } else { "refused" };
        return Err(Error::broken(format!(
            "{name} {did} a token that holds from {from} s to {until} s from now"
        )));
    }
    run.count(if taken { "token taken" } else { "token refused for its time" }, 1);
    Ok(())
}

/// What a process gets to know of its clock at its next start.
fn tell(run: &Run, process: &Process, wrong: Wrong) {
    let (off, jumps) = match wrong {
        Wrong::Off(secs) => (secs, 0),
        Wrong::Jumps(secs) => (0, secs),
    };
    run.history.note("clock", (&process.name, off, jumps));
    process.set_env("CYXCLOUD_FAULT_CLOCK_OFFSET_SECS", Some(&off.to_string()));
    process.set_env("CYXCLOUD_FAULT_CLOCK_JUMPS_SECS", Some(&jumps.to_string()));
}

/// Kills a node and starts it with this clock.
async fn set_node(run: &Run, cluster: &Cluster, index: usize, wrong: Wrong) -> Result<()> {
    let node = &cluster.nodes[index].process;
    node.kill();
    tell(run, node, wrong);
    cluster.restart_node(index).await
}

/// Stops the second gateway and starts it with this clock.
async fn set_gateway(run: &Run, cluster: &Cluster, wrong: Wrong) -> Result<()> {
    let gateway = &cluster.gateways[1];
    gateway.process.stop().await?;
    tell(run, &gateway.process, wrong);
    gateway.process.start()?;
    cluster.answers(&gateway.process, &format!("{}/health", gateway.url)).await
}
