//! 15: nodes freeze in the middle of what they do, keep their connections and go on later, none the wiser.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 15,
    name: "frozen",
    about: "7 nodes; one after the other freezes under load, shorter or longer than it takes to be missed, and goes on",
    needs: Needs::Nothing,
    duration: Duration::from_secs(90),
    quick: Quick::For(Duration::from_secs(8)),
    controls: &[],
    run: |run| -> Running { Box::pin(frozen(run)) },
};

const BUCKET: &str = "frozen";
/// No request may take longer, whoever is frozen.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

async fn frozen(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(7).start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let load = Load { workers: 3, ..Load::default() }.small();
    let mut workers = load::start(&run, std::slice::from_ref(&client), &load);
    workers.watch(&run, &client, ANSWERED_WITHIN, "one node frozen");
    let mut chance = run.chance(1);
    let began = Instant::now();
    while began.elapsed() < run.duration && !run.over() {
        let index = chance.random_range(0..cluster.nodes.len());
        let node = &cluster.nodes[index];
        run.history.note("freeze", node.name());
        node.process.freeze();
        // Missed after 3 s, lost after 10.
        let [short, away, lost] = [500..2_500, 4_000..8_000, 11_000..14_000];
        let range = [short, away, lost][chance.random_range(0..3)].clone();
        run.pause(Duration::from_millis(chance.random_range(range))).await;
        node.process.thaw();
        run.count("freeze", 1);
        cluster.wait_back(index).await?;
        run.check_always(&cluster).await?;
    }
    workers.join(&run).await?;
    run.judge(&cluster, &client, BUCKET).await?;
    run.check_honest(&cluster).await?;
    let unanswered = run.counted("PUT unanswered") + run.counted("PUT refused");
    if unanswered * 100 > run.counted("PUT") {
        return Err(Error::broken(format!("{unanswered} PUTs were not acknowledged with one node frozen")));
    }
    cluster.finish().await
}
