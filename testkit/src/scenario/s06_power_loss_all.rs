//! 6: the power of all nodes goes at once in the middle of a load; no acknowledged object is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::power::{MIXED, check_receipts, cut_under_load, on_disks, power_back, receipts};
use super::s05_power_loss::UNSYNCED;
use super::{Needs, Quick, Running, Scenario};
use crate::error::Result;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 6,
    name: "power-loss-all",
    about: "18 nodes on ext4; all of them lose power at once under load; no acknowledged object may be lost",
    needs: Needs::Mounts,
    duration: Duration::from_secs(120),
    quick: Quick::LeftOut("5 cuts the power of as many at once as writes survive, and looks at the same"),
    controls: &[UNSYNCED],
    run: |run| -> Running { Box::pin(power_loss_all(run)) },
};

const BUCKET: &str = "power";

async fn power_loss_all(run: Arc<Run>) -> Result<()> {
    let cluster = on_disks(run.cluster().nodes(18)).start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let mut chance = run.chance(1);
    let all: Vec<usize> = (0..cluster.nodes.len()).collect();
    let began = Instant::now();
    loop {
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.freeze());
        let moment = Duration::from_millis(chance.random_range(1_000..4_000));
        cut_under_load(&run, &cluster, &client.lenient(), &all, moment, MIXED).await?;
        let mut signed = Vec::new();
        for &index in &all {
            signed.push(receipts(&cluster, index).await?);
        }
        power_back(&cluster, &all).await?;
        for (index, signed) in all.iter().zip(&signed) {
            check_receipts(&run, &cluster, *index, signed).await?;
        }
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.thaw());
        cluster.wait_writable(0, Duration::from_secs(60)).await?;
        run.read_some(&client, BUCKET, 200, run.counted("round")).await?;
        run.count("round", 1);
        if run.has_enough(began) {
            break;
        }
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}
