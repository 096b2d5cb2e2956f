//! 20: many put and delete the same bytes while they are collected: what was acknowledged must be there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Needs, Quick, Running, Scenario};
use crate::error::Result;
use crate::load::Workers;
use crate::run::Run;
use crate::{MIB, Recorder};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 20,
    name: "gc-race",
    about: "8 clients put and delete the same 4 MiB while they are collected; grace 2 s, trash off",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(20)),
    controls: &[],
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
    while began.elapsed() < run.duration && !run.over() {
        run.pause(Duration::from_secs(2)).await;
        run.check_always(&cluster).await?;
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
