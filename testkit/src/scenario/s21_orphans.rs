//! 21: uploads are cut off at any byte, by clients that go away and by gateways that are killed. Nothing of them stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::task::JoinSet;

use super::{Needs, Quick, Running, Scenario};
use crate::MIB;
use crate::error::{Error, Result};
use crate::recorder::body_of;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 21,
    name: "orphans",
    about: "uploads are cut off at any byte, by clients that go away and by gateways that are killed",
    needs: Needs::Nothing,
    duration: Duration::from_secs(90),
    quick: Quick::For(Duration::from_secs(8)),
    controls: &[],
    run: |run| -> Running { Box::pin(orphans(run)) },
};

const BUCKET: &str = "orphans";
const AT_ONCE: usize = 6;
const SOON: Duration = Duration::from_secs(60);

async fn orphans(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    for number in 0..8 {
        let key = format!("live{number}");
        client.put(&key, &key, [20_000, 300_000][number % 2]).await;
    }
    let mut chance = run.chance(1);
    let mut cut = Vec::new();
    let began = Instant::now();
    while !run.has_enough(began) && !run.over() {
        let mut uploads = JoinSet::new();
        let kills = chance.random_range(0..4) == 0;
        for _ in 0..AT_ONCE {
            let size = [70_000, 300_000, 2 * MIB, 5 * MIB][chance.random_range(0..4)];
            let key = format!("cut{}-{size}", run.fresh());
            cut.push((key.clone(), size));
            let patience = Duration::from_millis(chance.random_range(1..250));
            let (s3, body) = (client.s3().clone(), body_of(run.seed, &key, size));
            uploads.spawn(async move {
                tokio::time::timeout(patience, s3.put(BUCKET, &key, body)).await.is_ok_and(|put| put.is_ok())
            });
        }
        if kills {
            run.pause(Duration::from_millis(chance.random_range(1..200))).await;
            cluster.gateways[0].process.kill();
            run.count("gateway killed", 1);
        }
        while let Some(done) = uploads.join_next().await {
            run.count(if done.unwrap_or(false) { "upload in time" } else { "upload cut off" }, 1);
        }
        if kills {
            let gateway = &cluster.gateways[0];
            gateway.process.start()?;
            cluster.answers(&gateway.process, &format!("{}/health", gateway.url)).await?;
            cluster.wait_writable(0, SOON).await?;
            // What was under way was this gateway's, and what it had asked of the database is done by now. Its lease is an hour; let it pass.
            cluster.database.execute("UPDATE upload_intents SET lease_until = now()").await?;
        }
    }
    run.settle(&cluster).await?;
    for (key, size) in cut {
        match client.s3().get(BUCKET, &key).await {
            Ok(reply) if reply.body == body_of(run.seed, &key, size) => run.count("whole after all", 1),
            Err(refused) if refused.is_absence() => {}
            Ok(reply) => {
                let length = reply.body.len();
                return Err(Error::broken(format!("{key} was cut off and reads as {length} other bytes")));
            }
            Err(refused) => return Err(Error::broken(format!("{key} was cut off and reads as {refused}"))),
        }
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}
