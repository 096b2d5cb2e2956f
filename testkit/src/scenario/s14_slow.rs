//! 14: one node answers late, or drop by drop. Requests do not wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::proxy::Mode;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 14,
    name: "slow",
    about: "7 nodes; one after the other answers half a second late, 5 s late, or a kilobyte per second",
    needs: Needs::Nothing,
    duration: Duration::from_secs(90),
    quick: Quick::For(Duration::from_secs(12)),
    controls: &[],
    run: |run| -> Running { Box::pin(slow(run)) },
};

const BUCKET: &str = "slow";
/// No request may take longer, whoever is slow.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const SLOW: [Mode; 3] =
    [Mode::Latency(Duration::from_millis(500)), Mode::Latency(Duration::from_secs(5)), Mode::Drip(1024)];

async fn slow(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(7).proxies().start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let load = Load { workers: 2, ..Load::default() }.small();
    let mut workers = load::start(&run, std::slice::from_ref(&client), &load);
    workers.watch(&run, &client, ANSWERED_WITHIN, "one slow node");
    let mut chance = run.chance(1);
    let began = Instant::now();
    while began.elapsed() < run.duration && !run.over() {
        let node = &cluster.nodes[chance.random_range(0..cluster.nodes.len())];
        let mode = SLOW[chance.random_range(0..SLOW.len())];
        run.history.note("slow", (node.name(), format!("{mode:?}")));
        // Its heartbeats come in time: it is slow and not away.
        if let Some(proxy) = &node.proxy {
            proxy.set(mode);
            run.pause(Duration::from_millis(chance.random_range(2_000..6_000))).await;
            proxy.set(Mode::Pass);
        }
        run.check_always(&cluster).await?;
        run.count("slow", 1);
    }
    workers.join(&run).await?;
    run.judge(&cluster, &client, BUCKET).await?;
    run.check_honest(&cluster).await?;
    let unanswered = run.counted("PUT unanswered") + run.counted("PUT refused");
    if unanswered * 100 > run.counted("PUT") {
        return Err(Error::broken(format!("{unanswered} PUTs were not acknowledged with one slow node")));
    }
    cluster.finish().await
}
