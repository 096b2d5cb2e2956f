//! 14: one node answers late, or drop by drop. Requests do not wait for it. In the end all of them drip: what no other node can give
//! is not waited for either.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::proxy::Mode;
use crate::run::Run;
use crate::{MIB, Recorder, eventually};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 14,
    name: "slow",
    about: "7 nodes; one after the other answers half a second late, 5 s late, or a kilobyte per second; then all drip",
    needs: Needs::Nothing,
    duration: Duration::from_secs(90),
    quick: Quick::For(Duration::from_secs(12)),
    controls: &[],
    run: |run| -> Running { Box::pin(slow(run)) },
};

const BUCKET: &str = "slow";
/// No request may take longer, whoever is slow.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const DRIP: Mode = Mode::Drip(1024);
const SLOW: [Mode; 3] =
    [Mode::Latency(Duration::from_millis(500)), Mode::Latency(Duration::from_secs(5)), DRIP];
/// Whom the clock is looked at with: nobody at first, for what is usual here and now.
const NOBODY: &str = "no slow node";
const ONE: &str = "one slow node";
/// Of the time, one part is for what is usual.
const USUAL: u32 = 4;
/// What a read that meets a slow node for the first time may take beside twice what is usual. Another shard is asked for when a
/// fetch is 2 s late (`Config::late_fetch`), which is looked for as often as a fetch may be late: so up to twice as long.
const NOTICED_WITHIN: Duration = Duration::from_secs(4);
/// A shard of this, 410 KiB, would drip for 400 s. A fetch may take 15 s (`Config::read_timeout`), so what comes at less than
/// 27 KiB/s is cut; a read is given up after it was tried twice.
const LARGE: usize = 4 * MIB;
const CUT_WITHIN: Duration = Duration::from_secs(50);
const READ_AGAIN_WITHIN: Duration = Duration::from_secs(30);
/// Runs that are shorter do without, for it takes nearly as long.
const ALL_DRIP_FROM: Duration = Duration::from_secs(60);

async fn slow(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(7).proxies().start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    client.put("large", "large", LARGE).await;
    let load = Load { workers: 2, ..Load::default() }.small();
    let mut workers = load::start(&run, std::slice::from_ref(&client), &load);
    workers.watch(&run, &client, ANSWERED_WITHIN, NOBODY);
    run.pause(run.duration / USUAL).await;
    workers.join(&run).await?;
    let mut workers = load::start(&run, std::slice::from_ref(&client), &load);
    workers.watch(&run, &client, ANSWERED_WITHIN, ONE);
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
    not_much_slower(&run)?;
    if run.duration >= ALL_DRIP_FROM {
        all_drip(&run, &cluster, &client).await?;
    }
    run.judge(&cluster, &client, BUCKET).await?;
    run.check_honest(&cluster).await?;
    let unanswered = run.counted("PUT unanswered") + run.counted("PUT refused");
    if unanswered * 100 > run.counted("PUT") {
        return Err(Error::broken(format!("{unanswered} PUTs were not acknowledged with one slow node")));
    }
    cluster.finish().await
}

/// "GET p99 <= 2x baseline", and what noticing takes by design; for PUTs the figure is only reported.
fn not_much_slower(run: &Run) -> Result<()> {
    for method in ["PUT", "GET"] {
        let p99 = |whom: &str| run.p99(&format!("{method} with {whom}")).unwrap_or_default();
        let (usual, slow) = (p99(NOBODY), p99(ONE));
        run.figure(&format!("{method} p99 ms usually"), usual.as_millis() as u64);
        run.figure(&format!("{method} p99 ms with one slow node"), slow.as_millis() as u64);
        run.figure(
            &format!("{method} p99 in % of usual"),
            (slow.as_millis() * 100 / usual.as_millis().max(1)) as u64,
        );
        if method == "GET" && slow > 2 * usual + NOTICED_WITHIN {
            return Err(Error::broken(format!(
                "one GET of a hundred took {} ms with one slow node, and {} ms without",
                slow.as_millis(),
                usual.as_millis()
            )));
        }
    }
    Ok(())
}

/// Every node sends drop by drop: what would take minutes is refused, and can be read again afterwards.
async fn all_drip(run: &Run, cluster: &Cluster, client: &Recorder) -> Result<()> {
    run.settle(cluster).await?;
    let set = |mode: Mode| {
        cluster.nodes.iter().filter_map(|node| node.proxy.as_ref()).for_each(|proxy| proxy.set(mode))
    };
    set(DRIP);
    run.history.note("all drip", ());
    let asked = Instant::now();
    let answer = client.lenient().get_or_why("large").await;
    let took = asked.elapsed();
    set(Mode::Pass);
    run.figure("a drip is cut within ms", took.as_millis() as u64);
    match answer {
        Err(refused) if refused.is_unavailable() && took <= CUT_WITHIN => {}
        Err(refused) => {
            let what = format!(
                "where all nodes drip, a GET was refused after {} ms with {refused}",
                took.as_millis()
            );
            return Err(Error::broken(what));
        }
        Ok(()) => {
            return Err(Error::failed(
                "have all nodes drip",
                "4 MiB were read at a kilobyte per second and node",
            ));
        }
    }
    let lenient = client.lenient();
    eventually("what dripped can be read again", READ_AGAIN_WITHIN, || async {
        lenient.get("large").await.then_some(())
    })
    .await?;
    run.still_whole()
}
