//! 5: the power of as many nodes as the tolerance says goes in the middle of a load; every chunk that they had signed for is
//! there when it comes back.
//!
//! Receipts are counted, not objects: what coding tolerates would hide that a node does not sync.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::index::sample;

use super::power::{CODED, check_receipts, cut_under_load, on_disks, power_back, receipts};
use super::{Control, Needs, Quick, Running, Scenario};
use crate::error::Result;
use crate::run::Run;

/// Nodes acknowledge what the page cache holds.
pub(super) const UNSYNCED: Control = Control {
    name: "unsynced",
    about: "nodes sign receipts for what they did not sync",
    node: &[("CYXCLOUD_FAULT_UNSYNCED", "1")],
    ..Control::NONE
};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 5,
    name: "power-loss",
    about: "18 nodes on ext4; up to as many as are tolerated lose power under load; every receipt they signed must hold",
    needs: Needs::Mounts,
    duration: Duration::from_secs(120),
    quick: Quick::For(Duration::from_secs(5)),
    controls: &[UNSYNCED],
    run: |run| -> Running { Box::pin(power_loss(run)) },
};

const BUCKET: &str = "power";

async fn power_loss(run: Arc<Run>) -> Result<()> {
    let cluster = on_disks(run.cluster().nodes(18)).start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let mut chance = run.chance(1);
    client.put("first", "first", 300_000).await;
    let began = Instant::now();
    loop {
        let tolerance = cluster.acked_tolerance().await?.max(1);
        let count = chance.random_range(1..=tolerance);
        run.count(if count == 1 { "one cut" } else { "several cut at once" }, 1);
        let cut = sample(&mut chance, cluster.nodes.len(), count).into_vec();
        // What is repaired or collected meanwhile would not be what was signed for.
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.freeze());
        let moment = Duration::from_millis(chance.random_range(500..2_500));
        cut_under_load(&run, &cluster, &client.lenient(), &cut, moment, CODED).await?;
        let mut signed = Vec::new();
        for &index in &cut {
            signed.push((index, receipts(&cluster, index).await?));
        }
        // As many as are tolerated are away: what was acknowledged is readable.
        run.read_some(&client, BUCKET, 200, run.counted("round")).await?;
        power_back(&cluster, &cut).await?;
        for (index, signed) in &signed {
            check_receipts(&run, &cluster, *index, signed).await?;
        }
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.thaw());
        run.count("round", 1);
        if run.has_enough(began) || run.over() && run.still_whole().is_err() {
            break;
        }
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}
