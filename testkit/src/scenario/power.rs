//! What the scenarios of power loss share: a load of puts, the cut itself, and the count of receipts that were kept.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::ChunkId;
use futures::StreamExt;
use rand::RngExt;
use sqlx::Row;

use crate::Recorder;
use crate::census;
use crate::cluster::{Builder, Cluster, Storage};
use crate::disk::Kind;
use crate::error::{Doing, Error, Result};
use crate::load::Workers;
use crate::run::Run;

/// Nodes must find headroom and reserve on it; only what is written takes space here.
const DISK: u64 = 640 << 20;

/// Bytes of what is put, one of these: kept in copies and coded.
pub(super) const MIXED: [usize; 4] = [20_000, 70_000, 140_000, 300_000];
/// The same without copies, of which one loss is survived when they are acknowledged: these survive two.
pub(super) const CODED: [usize; 4] = [2_000, 140_000, 200_000, 300_000];

/// Reads at the same time, of one node.
const READS: usize = 4;

/// A cluster whose nodes each have an ext4 of their own.
pub(super) fn on_disks(builder: Builder) -> Builder {
    builder.storage(Storage::Disk(Kind::Ext4(DISK)))
}

/// Workers that put new keys and nothing else, so that every location that is recorded must be there.
pub(super) fn puts(run: &Arc<Run>, client: &Recorder, count: u64, sizes: [usize; 4]) -> Workers {
    run.go_on();
    let mut workers = Workers::new();
    for number in 0..count {
        let (run, client) = (run.clone(), client.clone());
        workers.add(async move {
            let mut chance = run.chance(10_000 + number);
            while !run.over() {
                let key = format!("k{}", run.fresh());
                let size = sizes[chance.random_range(0..sizes.len())];
                client.put(&key, &key, size).await;
            }
        });
    }
    workers
}

/// Runs such a load for a moment and cuts the power of these nodes in the middle of it.
pub(super) async fn cut_under_load(
    run: &Arc<Run>,
    cluster: &Cluster,
    client: &Recorder,
    nodes: &[usize],
    moment: Duration,
    sizes: [usize; 4],
) -> Result<()> {
    let workers = puts(run, client, 6, sizes);
    run.pause(moment).await;
    // All at once for whoever looks from outside. Halted first: a sync that is in the kernel when the file system is shut down may
    // come back as done, which a real cut would let nobody see.
    for &index in nodes {
        cluster.nodes[index].process.freeze();
    }
    for &index in nodes {
        cluster.nodes[index].process.halt().await?;
        cluster.nodes[index].disk()?.fail()?;
    }
    run.history.note("power cut", nodes);
    for &index in nodes {
        cluster.nodes[index].process.kill();
    }
    workers.join(run).await?;
    for &index in nodes {
        cluster.nodes[index].disk()?.unmount()?;
    }
    run.count("power cut", nodes.len() as u64);
    Ok(())
}

/// Power is back: the disks hold what had reached them, and the nodes start on that.
pub(super) async fn power_back(cluster: &Cluster, nodes: &[usize]) -> Result<()> {
    for &index in nodes {
        cluster.nodes[index].disk()?.mount()?;
        cluster.nodes[index].process.start()?;
    }
    for &index in nodes {
        cluster.wait_back(index).await?;
    }
    Ok(())
}

/// The receipts that the gateway recorded of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Receipts {
    incarnations: BTreeSet<uuid::Uuid>,
    chunks: BTreeSet<ChunkId>,
}

/// What a node signed for, as far as an object was acknowledged for it. Nobody may repair or collect meanwhile.
pub(super) async fn receipts(cluster: &Cluster, index: usize) -> Result<Receipts> {
    let doing = "read a node's receipts";
    let sql = "SELECT l.chunk_id, l.incarnation FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = $1";
    let name = cluster.nodes[index].name();
    let rows = sqlx::query(sql).bind(name).fetch_all(cluster.database.pool()).await.doing(doing)?;
    let mut receipts = Receipts::default();
    for row in rows {
        let chunk: Vec<u8> = row.try_get(0).doing(doing)?;
        receipts.chunks.insert(ChunkId::try_from(&chunk[..]).doing(doing)?);
        receipts.incarnations.insert(row.try_get(1).doing(doing)?);
    }
    Ok(receipts)
}

/// A node that is back holds every chunk that it signed for, whole.
pub(super) async fn check_receipts(
    run: &Run,
    cluster: &Cluster,
    index: usize,
    signed: &Receipts,
) -> Result<()> {
    let node = &cluster.nodes[index];
    let client = census::connect(cluster, node).await?;
    let held = client.inventory().await?;
    let missing = signed.chunks.difference(&held).count();
    if missing > 0 {
        return Err(Error::broken(format!(
            "{} signed for {} chunks and lacks {missing} of them after the power came back",
            node.name(),
            signed.chunks.len()
        )));
    }
    let mut reads = futures::stream::iter(&signed.chunks)
        .map(|&id| {
            let client = client.clone();
            async move { client.read(id).await.map_err(|why| (id, why)) }
        })
        .buffer_unordered(READS);
    while let Some(answer) = reads.next().await {
        if let Err((id, why)) = answer {
            return Err(Error::broken(format!("{} signed for chunk {id}: {why}", node.name())));
        }
    }
    let sql = format!("SELECT incarnation::text FROM nodes WHERE label = '{}'", node.name());
    let now = cluster.database.texts(&sql).await?.concat();
    if signed.incarnations.iter().any(|then| then.to_string() != now) {
        return Err(Error::broken(format!("{} lost nothing and yet began a new life", node.name())));
    }
    run.count("receipts checked", signed.chunks.len() as u64);
    Ok(())
}
