//! 17: the line to more nodes than are tolerated is cut. Writes are refused, nothing of them is to be seen, and no node pays
//! for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::index::sample;

use super::{Needs, Quick, Running, Scenario};
use crate::error::{Error, Result};
use crate::proxy::Mode;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 17,
    name: "majority",
    about: "7 nodes; the line to most of them is cut: writes are refused, nothing of them is seen, no node is blamed",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(8)),
    controls: &[],
    run: |run| -> Running { Box::pin(majority(run)) },
};

const BUCKET: &str = "majority";
const OBJECTS: u64 = 8;
/// No refusal may take longer.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
const BLAMED: &str = "SELECT sum(audits_failed) FROM nodes";

async fn majority(run: Arc<Run>) -> Result<()> {
    let cluster =
        run.cluster().nodes(7).proxies().gateway_env("NODE_DRAIN_THRESHOLD_SECS", "120").start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let put = async |number: u64| {
        let (key, value) = (format!("k{number}"), format!("k{number}#{}", run.fresh()));
        client.put_or_why(&key, &value, [20_000, 300_000][number as usize % 2]).await
    };
    for number in 0..OBJECTS {
        put(number)
            .await
            .map_err(|refused| Error::broken(format!("with all nodes a PUT was refused: {refused}")))?;
    }
    run.settle(&cluster).await?;
    let blamed = cluster.database.number(BLAMED).await?;
    let mut chance = run.chance(1);
    let began = Instant::now();
    loop {
        // One node is left, or none: no stripe and no copy survives as many losses as it must.
        let left = chance.random_range(0..=1);
        let cut = sample(&mut chance, cluster.nodes.len(), cluster.nodes.len() - left).into_vec();
        run.history.note("cut", &cut);
        cut.iter().for_each(|&index| cluster.nodes[index].line(Mode::Blackhole));
        for number in 0..OBJECTS {
            let asked = Instant::now();
            match put(number).await {
                Ok(()) => {
                    return Err(Error::broken(format!("with {left} of 7 nodes a PUT was acknowledged")));
                }
                Err(refused) if refused.is_unavailable() => run.count("refused with 503", 1),
                Err(refused) => {
                    let what =
                        format!("with {left} of 7 nodes a PUT was refused with {refused}, not with 503");
                    return Err(Error::broken(what));
                }
            }
            run.most("slowest refusal ms", asked.elapsed().as_millis() as u64);
            if asked.elapsed() > REFUSED_WITHIN {
                let took = asked.elapsed().as_millis();
                return Err(Error::broken(format!("a refusal took {took} ms")));
            }
            if began.elapsed() > run.duration {
                break;
            }
        }
        cut.iter().for_each(|&index| cluster.nodes[index].line(Mode::Pass));
        cluster.wait_online(cluster.nodes.len(), Duration::from_secs(60)).await?;
        cluster.wait_writable(0, Duration::from_secs(60)).await?;
        run.read_all(&client, BUCKET).await?;
        run.check_always(&cluster).await?;
        run.count("cut and healed", 1);
        if began.elapsed() >= run.duration || run.over() {
            break;
        }
    }
    run.judge(&cluster, &client, BUCKET).await?;
    run.check_honest(&cluster).await?;
    let now = cluster.database.number(BLAMED).await?;
    if now > blamed {
        return Err(Error::broken(format!("nodes that could not be reached failed {} audits", now - blamed)));
    }
    cluster.finish().await
}
