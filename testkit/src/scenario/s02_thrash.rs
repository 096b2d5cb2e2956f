//! 2: nodes are killed and started again, as many at once as acknowledged writes survive, under load; then all that is owed is
//! paid.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::index::sample;

use super::{Needs, Quick, Running, Scenario};
use crate::error::Result;
use crate::load::{self, Load};
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 2,
    name: "thrash",
    about: "16 nodes; as many as acknowledged writes survive are killed and started again, on and on, under a mixed load",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(20)),
    controls: &[],
    run: |run| -> Running { Box::pin(thrash(run)) },
};

const BUCKET: &str = "thrash";
/// With two of them away what is written meanwhile is still acknowledged only when it survives the loss of two.
const NODES: usize = 16;

async fn thrash(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(NODES).gateways(2).start().await?;
    let clients = run.clients(&cluster, BUCKET).await?;
    clients[0].put("first", "first", 300_000).await;
    let workers = load::start(&run, &clients, &Load { lists: true, ..Load::default().coded() });
    let mut chance = run.chance(1);
    let began = Instant::now();
    while began.elapsed() < run.duration && !run.over() {
        let most = cluster.acked_tolerance().await?.max(1);
        let count = chance.random_range(1..=most);
        run.count(if count == 1 { "one killed" } else { "several killed at once" }, 1);
        let away = sample(&mut chance, cluster.nodes.len(), count).into_vec();
        run.history.note("kill", &away);
        for &index in &away {
            cluster.nodes[index].process.kill();
        }
        run.count("kill", away.len() as u64);
        run.pause(Duration::from_millis(chance.random_range(500..3_000))).await;
        // The next ones only when these serve again: together they would be more than was promised.
        cluster.restart_nodes(&away).await?;
        run.history.note("back", &away);
        run.check_always(&cluster).await?;
    }
    workers.join(&run).await?;
    run.mostly_answered("PUT")?;
    run.settle_soon(&cluster).await?;
    run.judge(&cluster, &clients[0], BUCKET).await?;
    run.away_in_turn(&cluster, &clients[1], BUCKET).await?;
    run.check_history()?;
    cluster.finish().await
}
