//! 12: disks die under load: every write fails, or the kernel makes them read-only. A node signs nothing from then on, takes no
//! part in writes any more, and what it had signed for before is there when the disk is mounted again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::RngExt;

use super::power::{MIXED, check_receipts, on_disks, power_back, puts, receipts};
use super::{Needs, Quick, Running, Scenario};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::eventually;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 12,
    name: "dying-disk",
    about: "8 nodes on ext4; a disk fails every write, or turns read-only, under load: nothing is signed from then on",
    needs: Needs::Mounts,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::ZERO),
    controls: &[],
    run: |run| -> Running { Box::pin(dying_disk(run)) },
};

const BUCKET: &str = "dying";
/// "Out of the write set within 30 s".
const OUT_WITHIN: Duration = Duration::from_secs(30);

async fn dying_disk(run: Arc<Run>) -> Result<()> {
    let cluster = on_disks(run.cluster().nodes(8)).start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let mut chance = run.chance(1);
    client.put("first", "first", 300_000).await;
    let began = Instant::now();
    for round in 0.. {
        let index = chance.random_range(0..cluster.nodes.len());
        let node = &cluster.nodes[index];
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.freeze());
        let workers = puts(&run, &client, 4, MIXED);
        run.pause(Duration::from_millis(chance.random_range(500..2_000))).await;
        if round % 2 == 0 {
            node.disk()?.fail()?;
            run.count("failing disk", 1);
        } else {
            node.disk()?.read_only()?;
            run.count("read-only disk", 1);
        }
        let dead = SystemTime::now();
        run.history.note("dying disk", node.name());
        out_of_the_write_set(&cluster, index).await?;
        run.pause(Duration::from_secs(1)).await;
        workers.join(&run).await?;
        nothing_signed_since(&cluster, index, dead).await?;
        let signed = receipts(&cluster, index).await?;
        run.read_all(&client, BUCKET).await?;
        node.process.kill();
        node.disk()?.unmount()?;
        power_back(&cluster, &[index]).await?;
        check_receipts(&run, &cluster, index, &signed).await?;
        cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.thaw());
        run.settle(&cluster).await?;
        if round >= 1 && began.elapsed() >= run.duration {
            break;
        }
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// The gateways give it nothing more to store.
async fn out_of_the_write_set(cluster: &Cluster, index: usize) -> Result<()> {
    let name = cluster.nodes[index].name();
    let sql =
        format!("SELECT count(*) FROM nodes WHERE label = '{name}' AND (read_only OR status <> 'online')");
    eventually(&format!("{name} is out of the write set"), OUT_WITHIN, || async {
        cluster.database.number(&sql).await.is_ok_and(|count| count == 1).then_some(())
    })
    .await
}

/// No receipt is younger than the disk's last working moment. Both clocks are this machine's.
async fn nothing_signed_since(cluster: &Cluster, index: usize, dead: SystemTime) -> Result<()> {
    let since = dead.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let name = cluster.nodes[index].name();
    let sql = format!(
        "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id
         WHERE n.label = '{name}' AND l.receipt_at > to_timestamp({since:.3}) + interval '2 milliseconds'"
    );
    let count = cluster.database.number(&sql).await?;
    if count != 0 {
        return Err(Error::broken(format!("{name} signed {count} receipts after its disk had died")));
    }
    Ok(())
}
