//! 20: many put and delete the same bytes while they are collected: what was acknowledged must be there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Control, Needs, Quick, Running, Scenario};
use crate::error::Result;
use crate::load::Workers;
use crate::run::Run;
use crate::{MIB, Recorder};

/// Nobody looks before a chunk is deleted.
const LOCK_FREE_GC: Control = Control {
    name: "lock-free-gc",
    about: "rebalancers delete chunks without a look at what is named or under way",
    rebalancer: &[("CYXCLOUD_FAULT_LOCK_FREE_GC", "1")],
    ..Control::NONE
};

/// No node fails here, so each of these was taken from under a location that names it.
const TAKEN: &str = "SELECT count(*) FROM chunk_locations WHERE status <> 'stored'";

pub(super) const SCENARIO: Scenario = Scenario {
    number: 20,
    name: "gc-race",
    about: "8 clients put and delete the same 4 MiB while they are collected; grace 2 s, trash off",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(20)),
    controls: &[LOCK_FREE_GC],
    run: |run| -> Running { Box::pin(gc_race(run)) },
};

const BUCKET: &str = "race";
const VALUE: &str = "the same for all";
const SIZE: usize = 4 * MIB;
const CLIENTS: u64 = 8;

async fn gc_race(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let mut workers = Workers::new();
    for number in 0..CLIENTS {
        workers.add(cycle(run.clone(), client.clone(), number));
    }
    let began = Instant::now();
    while !run.has_enough(began) && !run.over() {
        run.pause(Duration::from_millis(200)).await;
        run.check_always(&cluster).await?;
        let taken = cluster.database.number(TAKEN).await?;
        if taken > 0 {
            run.broken(format!("{taken} chunks that locations name are not where they should be"));
        }
    }
    workers.join(&run).await?;
    for number in (0..CLIENTS).step_by(2) {
        client.put(&format!("k{number}"), VALUE, SIZE).await;
    }
    run.judge(&cluster, &client, BUCKET).await?;
    run.away_in_turn(&cluster, &client, BUCKET).await?;
    run.check_history()?;
    cluster.finish().await
}

async fn cycle(run: Arc<Run>, client: Recorder, number: u64) {
    let mut chance = run.chance(number);
    let key = format!("k{number}");
    let pauses = [0, 0, 500, 2_000, 4_000];
    while !run.over() {
        if client.put(&key, VALUE, SIZE).await {
            client.get(&key).await;
            run.pause(Duration::from_millis(pauses[chance.random_range(0..pauses.len())])).await;
            client.get(&key).await;
        }
        client.delete(&key).await;
        run.pause(Duration::from_millis(pauses[chance.random_range(0..pauses.len() - 1)])).await;
        run.count("cycle", 1);
    }
}
