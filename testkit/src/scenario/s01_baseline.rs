//! 1: no harm at all: many clients race for the same few keys through two gateways, and one order explains what each saw.

use std::sync::Arc;
use std::time::Duration;

use super::{Needs, Quick, Running, Scenario};
use crate::error::Result;
use crate::load::{self, Load};
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 1,
    name: "baseline",
    about: "14 nodes; 20 clients race for 10 keys through two gateways; every answer must be explained by one order",
    needs: Needs::Nothing,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(15)),
    controls: &[],
    run: |run| -> Running { Box::pin(baseline(run)) },
};

const BUCKET: &str = "baseline";

async fn baseline(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(14).gateways(2).start().await?;
    let clients = run.clients(&cluster, BUCKET).await?;
    let load = Load { workers: 20, keys: 10, shared: true, lists: true, ..Load::default().small() };
    let workers = load::start(&run, &clients, &load);
    run.pause(run.duration).await;
    workers.join(&run).await?;
    for what in ["PUT", "DELETE", "HEAD"] {
        for how in ["refused", "unanswered"] {
            let count = run.counted(&format!("{what} {how}"));
            if count > 0 {
                run.broken(format!("{count} times {what} was {how}, though nothing was wrong"));
            }
        }
    }
    run.judge(&cluster, &clients[1], BUCKET).await?;
    cluster.finish().await
}
