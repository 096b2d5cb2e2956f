//! 23: PostgreSQL is killed under load, again and again. What was acknowledged is there, what was not is old or new, and
//! gateways and rebalancers need no help.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::databases::Postgres;
use crate::error::{Error, Result};
use crate::load::{self, Load};
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 23,
    name: "postgres-crash",
    about: "PostgreSQL is killed under load and started again, again and again",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::For(Duration::from_secs(8)),
    controls: &[],
    run: |run| -> Running { Box::pin(postgres_crash(run)) },
};

const BUCKET: &str = "postgres";
/// How soon everything must work again, once PostgreSQL answers.
const BACK_WITHIN: Duration = Duration::from_secs(10);

async fn postgres_crash(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().own_databases().gateways(2).start().await?;
    let Postgres::Own(postgres) = &cluster.postgres else {
        return Err(Error::failed("kill PostgreSQL", "it is not ours"));
    };
    let clients = run.clients(&cluster, BUCKET).await?;
    let lenient: Vec<_> = clients.iter().map(crate::Recorder::lenient).collect();
    let load = Load { lists: true, ..Load::default() }.small();
    let workers = load::start(&run, &lenient, &load);
    let mut chance = run.chance(1);
    let began = Instant::now();
    while began.elapsed() < run.duration && !run.over() {
        run.pause(Duration::from_millis(chance.random_range(500..4_000))).await;
        run.history.note("kill", "postgres");
        postgres.kill();
        run.pause(Duration::from_millis(chance.random_range(0..1_500))).await;
        postgres.start().await?;
        let back = Instant::now();
        for index in 0..cluster.gateways.len() {
            cluster.wait_writable(index, BACK_WITHIN).await?;
        }
        run.most("gateways back after s, at most", back.elapsed().as_secs());
        run.check_always(&cluster).await?;
        run.count("kill", 1);
    }
    workers.join(&run).await?;
    run.judge(&cluster, &clients[0], BUCKET).await?;
    run.read_all(&clients[1], BUCKET).await?;
    run.check_history()?;
    cluster.finish().await
}
