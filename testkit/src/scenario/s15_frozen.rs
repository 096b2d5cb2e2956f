//! 15: nodes freeze in the middle of what they do, keep their connections and go on later, none the wiser. What they sign for then comes
//! too late, and changes nothing of what was recorded without them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
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
/// In which what a rebalancer had sent to the database when it was halted is done.
const SENT: Duration = Duration::from_millis(500);
/// All that is recorded of where chunks are, each row beginning with its segment.
const RECORDED: &str = "SELECT concat_ws(' ', segment_id, stripe_index, shard_index, node_id, chunk_id, incarnation, generation, \
                        receipt_at, status) FROM chunk_locations";

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
        late_changes_nothing(&run, &cluster, index).await?;
        run.count("freeze", 1);
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

/// The node goes on, and with it what it was asked before it froze. Nobody repairs or collects meanwhile, so nothing that is recorded
/// of any segment that there was may change.
async fn late_changes_nothing(run: &Run, cluster: &Cluster, index: usize) -> Result<()> {
    for rebalancer in &cluster.rebalancers {
        rebalancer.halt().await?;
    }
    run.pause(SENT).await;
    let before = recorded(cluster).await?;
    cluster.nodes[index].process.thaw();
    cluster.wait_back(index).await?;
    run.pause(SENT).await;
    let after = recorded(cluster).await?;
    cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.thaw());
    run.count("locations compared", before.len() as u64);
    let name = cluster.nodes[index].name();
    // Uploads that ended meanwhile have segments of their own.
    let segments: BTreeSet<&str> = before.iter().map(|row| segment_of(row)).collect();
    let mut changed = after.iter().filter(|row| segments.contains(segment_of(row)) && !before.contains(*row));
    if let Some(row) = changed.next().or_else(|| before.difference(&after).next()) {
        return Err(Error::broken(format!("when {name} went on, what was recorded changed: {row}")));
    }
    Ok(())
}

async fn recorded(cluster: &Cluster) -> Result<BTreeSet<String>> {
    Ok(cluster.database.texts(RECORDED).await?.into_iter().collect())
}

fn segment_of(row: &str) -> &str {
    row.split(' ').next().unwrap_or(row)
}
