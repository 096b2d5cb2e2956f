//! 10: the disks of some nodes fill up, by what is stored and by what others put there. Writes go elsewhere; reads and deletes go on
//! where nothing more fits; and when there is space again, it is used.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::ChunkId;
use rustix::fs::{FallocateFlags, fallocate};

use super::{Needs, Quick, Running, Scenario};
use crate::census;
use crate::cluster::{Cluster, Storage};
use crate::disk::Kind;
use crate::error::{Doing, Error, Result};
use crate::load::{self, Load};
use crate::run::Run;
use crate::{MIB, eventually};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 10,
    name: "disk-full",
    about: "9 nodes, two of them on disks of 256 MiB that fill up under load: writes go elsewhere, reads and deletes go on",
    needs: Needs::Mounts,
    duration: Duration::from_secs(60),
    quick: Quick::For(Duration::from_secs(10)),
    controls: &[],
    run: |run| -> Running { Box::pin(disk_full(run)) },
};

const BUCKET: &str = "full";
const SMALL: [usize; 2] = [0, 1];
/// Room for headroom and reserve, and a little more.
const DISK: u64 = 256 << 20;
/// Segments of objects that were deleted or replaced.
const UNCOLLECTED: &str = "SELECT count(*) FROM segments s WHERE NOT EXISTS (SELECT FROM file_segments f WHERE f.segment_id = s.id)";
/// What is deleted is collected after its grace, and a node whose disk is full may be asked more than once.
const DELETED_WITHIN: Duration = Duration::from_secs(180);
/// "Writable within 60 s after space returns".
const WRITABLE_WITHIN: Duration = Duration::from_secs(60);

async fn disk_full(run: Arc<Run>) -> Result<()> {
    let storage = vec![Storage::Disk(Kind::Tmpfs(DISK)), Storage::Disk(Kind::Ext4(DISK)), Storage::Directory];
    let cluster = run.cluster().nodes(9).storage_of_each(storage).start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let load = Load { sizes: vec![20_000, 300_000, 5 * MIB], ..Load::default() };
    let began = Instant::now();
    loop {
        // By what is stored: the gateways stop asking before nothing fits any more.
        let workers = load::start(&run, std::slice::from_ref(&client), &load);
        run.pause(run.duration.max(Duration::from_secs(5)) / 2).await;
        // By others, to the last byte, in the middle of writes.
        for index in SMALL {
            fill(&cluster.nodes[index].data.with_file_name("filler"))?;
        }
        run.history.note("full", SMALL);
        let mut held = Vec::new();
        for index in SMALL {
            takes_nothing(&cluster, index).await?;
            held.push((index, located(&cluster, index).await?));
        }
        run.pause(Duration::from_secs(5)).await;
        workers.join(&run).await?;
        run.mostly_answered("PUT")?;
        // Reads and deletes, with as many others away as are tolerated.
        let tolerance = cluster.acked_tolerance().await?.max(1);
        for node in cluster.nodes.iter().rev().take(tolerance) {
            node.process.kill();
        }
        run.read_all(&client, BUCKET).await?;
        for number in 0..6 {
            if !client.delete(&format!("w0-{number}")).await {
                run.broken("a DELETE was refused because disks are full".to_owned());
            }
        }
        for index in (0..cluster.nodes.len()).rev().take(tolerance) {
            cluster.restart_node(index).await?;
        }
        // What these and the load deleted or replaced meanwhile leaves the full disks, where nothing more fits.
        for (index, held) in &held {
            let gone = deleted(&cluster, *index, held).await?;
            run.count("chunk deleted from a full disk", gone);
        }
        for index in SMALL {
            alive(&cluster, index)?;
            std::fs::remove_file(cluster.nodes[index].data.with_file_name("filler")).doing("make room")?;
        }
        for index in SMALL {
            takes_again(&cluster, index).await?;
        }
        run.count("round", 1);
        if began.elapsed() >= run.duration {
            break;
        }
    }
    if run.counted("chunk deleted from a full disk") == 0 {
        return Err(Error::failed("delete from full disks", "nothing that was there was to be deleted"));
    }
    run.judge(&cluster, &client, BUCKET).await?;
    for index in SMALL {
        alive(&cluster, index)?;
    }
    cluster.finish().await
}

/// Takes all space there is, as somebody else would.
fn fill(path: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).doing("fill a disk")?;
    let mut piece: u64 = 64 << 20;
    let mut length = 0;
    while piece >= 4096 {
        match fallocate(&file, FallocateFlags::empty(), length, piece) {
            Ok(()) => length += piece,
            Err(_) => piece /= 2,
        }
    }
    Ok(())
}

fn alive(cluster: &Cluster, index: usize) -> Result<()> {
    let process = &cluster.nodes[index].process;
    match process.running() {
        true => Ok(()),
        false => Err(Error::broken(format!("{} ended on a full disk:\n{}", process.name, process.tail(10)))),
    }
}

/// The chunks that a node is believed to hold.
async fn located(cluster: &Cluster, index: usize) -> Result<BTreeSet<ChunkId>> {
    let name = cluster.nodes[index].name();
    let sql = format!(
        "SELECT DISTINCT encode(l.chunk_id, 'hex') FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = '{name}'"
    );
    let ids = cluster.database.texts(&sql).await?;
    ids.iter().map(|id| id.parse().doing("read a node's chunks")).collect()
}

/// Waits until all that was deleted is collected, and none of these that the node is no longer believed to hold is there; how many
/// these are.
async fn deleted(cluster: &Cluster, index: usize, held: &BTreeSet<ChunkId>) -> Result<u64> {
    let node = &cluster.nodes[index];
    let what = format!("what is deleted leaves the full disk of {}", node.name());
    eventually(&what, DELETED_WITHIN, || async {
        if cluster.database.number(UNCOLLECTED).await.ok()? > 0 {
            return None;
        }
        let named = located(cluster, index).await.ok()?;
        let there = census::connect(cluster, node).await.ok()?.inventory().await.ok()?;
        let mut unnamed = held.difference(&named);
        let gone = unnamed.clone().count() as u64;
        unnamed.all(|chunk| !there.contains(chunk)).then_some(gone)
    })
    .await
}

async fn space(cluster: &Cluster, index: usize) -> Result<i64> {
    let name = cluster.nodes[index].name();
    cluster.database.number(&format!("SELECT storage_available FROM nodes WHERE label = '{name}'")).await
}

async fn takes_nothing(cluster: &Cluster, index: usize) -> Result<()> {
    let what = format!("{} says that it has no space", cluster.nodes[index].name());
    eventually(&what, WRITABLE_WITHIN, || async {
        space(cluster, index).await.is_ok_and(|space| space == 0).then_some(())
    })
    .await
}

async fn takes_again(cluster: &Cluster, index: usize) -> Result<()> {
    let what = format!("{} has space again", cluster.nodes[index].name());
    eventually(&what, WRITABLE_WITHIN, || async {
        space(cluster, index).await.is_ok_and(|space| space > 0).then_some(())
    })
    .await
}
