//! 8: bits rot under the nodes' own checks, in up to as many shards of an object as there is parity: every read is right, and
//! scrubbing finds all of it. One shard more, and the read is refused, never wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::ChunkId;
use rand::RngExt;
use rand::seq::index::sample;
use rocksdb::{DB, Options};
use sqlx::Row;

use super::{Needs, Quick, Running, Scenario};
use crate::census;
use crate::cluster::Cluster;
use crate::error::{Doing, Error, Result};
use crate::run::Run;
use crate::{Recorder, eventually};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 8,
    name: "bit-rot",
    about: "14 nodes; one bit of 1, 2, 3 and 4 shards of objects rots: all reads are right, a scrub finds all; of 5: refused",
    needs: Needs::Nothing,
    duration: Duration::ZERO,
    quick: Quick::For(Duration::ZERO),
    controls: &[],
    run: |run| -> Running { Box::pin(bit_rot(run)) },
};

const BUCKET: &str = "rot";
/// For each number of rotten shards.
const OBJECTS: usize = 100;
const PARITY: usize = 4;
/// "One pass": small disks are read through in seconds.
const FOUND_WITHIN: Duration = Duration::from_secs(120);

async fn bit_rot(run: Arc<Run>) -> Result<()> {
    let cluster = run
        .cluster()
        .nodes(14)
        .node_env("SCRUB_INTERVAL_DAYS", "0")
        .node_env("SCRUB_BYTES_PER_SEC", "1GiB")
        .start()
        .await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    for rotten in 1..=PARITY + 1 {
        for number in 0..OBJECTS {
            let key = format!("rot{rotten}-{number}");
            client.put(&key, &key, 150_000 + number).await;
        }
    }
    run.settle(&cluster).await?;
    let rotten = choose(&run, &cluster).await?;
    // Repair would hide what is to be seen.
    cluster.rebalancers.iter().for_each(|rebalancer| rebalancer.kill());
    rot(&run, &cluster, &rotten).await?;
    // Half of them are read before the scrub, which may find the others by itself.
    for number in (0..OBJECTS).step_by(2) {
        for rotten in 1..=PARITY {
            client.get(&format!("rot{rotten}-{number}")).await;
        }
        refused(&run, &client, number).await?;
    }
    run.still_whole()?;
    for node in &cluster.nodes {
        node.process.set_env("SCRUB_INTERVAL_SECS", Some("1"));
        node.process.kill();
    }
    for node in &cluster.nodes {
        node.process.start()?;
    }
    for index in 0..cluster.nodes.len() {
        cluster.wait_back(index).await?;
    }
    all_found(&run, &cluster, &rotten).await?;
    for number in 0..OBJECTS {
        refused(&run, &client, number).await?;
        client.delete(&format!("rot{}-{number}", PARITY + 1)).await;
    }
    for rebalancer in &cluster.rebalancers {
        rebalancer.start()?;
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// Which chunks of which nodes rot: of the objects `rotN-`, N shards each.
async fn choose(run: &Run, cluster: &Cluster) -> Result<BTreeMap<String, Vec<ChunkId>>> {
    let doing = "choose what rots";
    let sql = "SELECT f.path, array_agg(n.label ORDER BY l.shard_index), array_agg(l.chunk_id ORDER BY l.shard_index)
               FROM files f JOIN file_segments s ON s.file_id = f.id
               JOIN chunk_locations l ON l.segment_id = s.segment_id JOIN nodes n ON n.id = l.node_id
               WHERE f.bucket = $1 GROUP BY f.path ORDER BY f.path";
    let rows = sqlx::query(sql).bind(BUCKET).fetch_all(cluster.database.pool()).await.doing(doing)?;
    let mut chance = run.chance(1);
    let mut rotten: BTreeMap<String, Vec<ChunkId>> = BTreeMap::new();
    for row in rows {
        let path: String = row.try_get(0).doing(doing)?;
        let nodes: Vec<String> = row.try_get(1).doing(doing)?;
        let chunks: Vec<Vec<u8>> = row.try_get(2).doing(doing)?;
        let count = path.trim_start_matches("rot").split('-').next().and_then(|count| count.parse().ok());
        let count: usize = count.ok_or_else(|| Error::failed(doing, format!("{path} says no number")))?;
        for shard in sample(&mut chance, chunks.len(), count) {
            let id = ChunkId::try_from(&chunks[shard][..]).doing(doing)?;
            rotten.entry(nodes[shard].clone()).or_default().push(id);
        }
    }
    Ok(rotten)
}

/// Flips one bit of each of these chunks, in the stopped nodes' databases: RocksDB's own checksums agree with the wrong bytes.
async fn rot(run: &Run, cluster: &Cluster, rotten: &BTreeMap<String, Vec<ChunkId>>) -> Result<()> {
    let mut chance = run.chance(2);
    for (index, node) in cluster.nodes.iter().enumerate() {
        let Some(chunks) = rotten.get(node.name()) else { continue };
        node.process.kill();
        let doing = || format!("let chunks of {} rot", node.name());
        let path = node.data.join("db");
        let families = DB::list_cf(&Options::default(), &path).doing(doing())?;
        let db = DB::open_cf(&Options::default(), &path, families).doing(doing())?;
        for id in chunks {
            let bytes = db.cf_handle("bytes").ok_or_else(|| Error::failed(doing(), "it keeps no bytes"))?;
            let found = db.get_cf(&bytes, id.as_bytes()).doing(doing())?;
            let mut chunk = found.ok_or_else(|| Error::failed(doing(), "a chunk is not there"))?;
            let place = chance.random_range(0..chunk.len());
            chunk[place] ^= 1 << chance.random_range(0..8);
            db.put_cf(&bytes, id.as_bytes(), chunk).doing(doing())?;
            run.count("shards rotten", 1);
        }
        db.flush().doing(doing())?;
        drop(db);
        cluster.restart_node(index).await?;
    }
    Ok(())
}

/// With more rotten shards than parity there is nothing to read: refused, and in time.
async fn refused(run: &Run, client: &Recorder, number: usize) -> Result<()> {
    if client.lenient().get(&format!("rot{}-{number}", PARITY + 1)).await {
        return Err(Error::broken("an object with too many rotten shards was answered"));
    }
    run.still_whole()
}

/// Every rotten chunk is held back by its node, without anybody having asked for it.
async fn all_found(run: &Run, cluster: &Cluster, rotten: &BTreeMap<String, Vec<ChunkId>>) -> Result<()> {
    let began = Instant::now();
    for node in &cluster.nodes {
        let Some(chunks) = rotten.get(node.name()) else { continue };
        let client = census::connect(cluster, node).await?;
        eventually(&format!("the scrub of {} finds what rotted", node.name()), FOUND_WITHIN, || async {
            let held_back = client.quarantined().await.ok()?;
            chunks.iter().all(|id| held_back.contains(id)).then_some(())
        })
        .await?;
    }
    run.figure("all found after s", began.elapsed().as_secs());
    Ok(())
}
