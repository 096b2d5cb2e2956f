//! 23: PostgreSQL is killed under load, again and again. What was acknowledged is there, what was not is old or new, and
//! gateways and rebalancers need no help. Once it stays away for longer than a node may be silent before it counts as lost:
//! none is missed for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
use crate::databases::{OwnPostgres, Postgres};
use crate::error::{Error, Result};
use crate::eventually;
use crate::load::{self, Load};
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 23,
    name: "postgres-crash",
    about: "PostgreSQL is killed under load and started again, again and again; once it stays away for long",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::For(Duration::from_secs(8)),
    controls: &[],
    run: |run| -> Running { Box::pin(postgres_crash(run)) },
};

const BUCKET: &str = "postgres";
/// How soon everything must work again, once PostgreSQL answers.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// How long nodes are silent before they are offline: long enough for a busy machine to hear all of them again in time.
const OFFLINE: Duration = Duration::from_secs(6);
/// And before they count as lost.
const LOST: Duration = Duration::from_secs(10);
/// Longer than either.
const AWAY: Duration = Duration::from_secs(12);

async fn postgres_crash(run: Arc<Run>) -> Result<()> {
    let cluster = run
        .cluster()
        .own_databases()
        .gateways(2)
        .gateway_env("NODE_OFFLINE_THRESHOLD_SECS", &OFFLINE.as_secs().to_string())
        .gateway_env("NODE_DRAIN_THRESHOLD_SECS", &LOST.as_secs().to_string())
        .start()
        .await?;
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
    away_for_long(&run, &cluster, postgres).await?;
    run.read_all(&clients[1], BUCKET).await?;
    run.check_history()?;
    cluster.check_logs()?;
    cluster.finish().await
}

/// No heartbeat can be recorded for longer than it takes to be lost: nobody is blamed for it, and nothing is moved. Who is
/// silent afterwards is missed as ever.
async fn away_for_long(run: &Run, cluster: &Cluster, postgres: &OwnPostgres) -> Result<()> {
    // Workers are gone; pauses are to last.
    run.go_on();
    cluster.wait_online(cluster.nodes.len(), BACK_WITHIN).await?;
    let (before, received) = (lives(cluster).await?, cluster.received_bytes().await?);
    run.history.note("kill", "postgres, for long");
    postgres.kill();
    run.pause(AWAY).await;
    postgres.start().await?;
    let back = cluster.database.texts("SELECT now()::text").await?.concat();
    let unheard = format!("SELECT count(*) FROM nodes WHERE last_heartbeat <= '{back}'");
    eventually("every node is heard again", BACK_WITHIN, || async {
        cluster.database.number(&unheard).await.is_ok_and(|unheard| unheard == 0).then_some(())
    })
    .await?;
    // Whoever was blamed would be offline by now, and lost.
    run.pause(LOST).await;
    let after = lives(cluster).await?;
    if after != before {
        let seconds = AWAY.as_secs();
        return Err(Error::broken(format!(
            "nodes were blamed for {seconds} s without PostgreSQL: {before:?} became {after:?}"
        )));
    }
    let moved = cluster.received_bytes().await? - received;
    if moved > 0 {
        return Err(Error::broken(format!("{moved} bytes were moved because PostgreSQL was away")));
    }
    for index in 0..cluster.gateways.len() {
        cluster.wait_writable(index, BACK_WITHIN).await?;
    }
    cluster.nodes[0].process.kill();
    cluster.wait_online(cluster.nodes.len() - 1, OFFLINE + BACK_WITHIN).await?;
    cluster.restart_node(0).await
}

/// What the database knows of each node's life.
async fn lives(cluster: &Cluster) -> Result<Vec<String>> {
    let sql =
        "SELECT concat_ws(' ', label, status, failure_count, status_changed_at) FROM nodes ORDER BY label";
    cluster.database.texts(sql).await
}
