//! 7: files of a stopped node are damaged at random: logs, manifest, tables, blobs. It starts or refuses loudly, never serves
//! wrong bytes, and what it lost is found and made again.
//!
//! A node that lost chunks fails audits, and is held back from new ones until it has proven itself, or an administrator takes it
//! back: only as many are damaged at a time as leave enough for as many losses as every stripe is recorded to survive.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Needs, Quick, Running, Scenario, one_of_enough};
use crate::cluster::Cluster;
use crate::error::{Doing, Error, Result};
use crate::run::Run;
use crate::{MIB, Recorder, census, invariants};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 7,
    name: "damaged-files",
    about: "12 nodes; one is stopped and a log, manifest, table or blob file of it damaged, again and again",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::For(Duration::from_secs(15)),
    controls: &[],
    run: |run| -> Running { Box::pin(damaged_files(run)) },
};

const BUCKET: &str = "damaged";
/// Fewer than 13, from where stripes survive three losses and need 13 for it.
const NODES: usize = 12;
/// So many that a round takes no longer than the one before it.
const KEYS: u64 = 40;
/// "Missing shards appear within 60 s and are rebuilt", on a machine that is busy.
const MENDED: Duration = Duration::from_secs(180);

async fn damaged_files(run: Arc<Run>) -> Result<()> {
    let cluster = run
        .cluster()
        .nodes(NODES)
        .rebalancer_env("SWEEP_STRIPES_PER_SEC", "1000")
        .node_env("SCRUB_INTERVAL_SECS", "3")
        .node_env("SCRUB_BYTES_PER_SEC", "1GiB")
        .start()
        .await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    let mut chance = run.chance(1);
    for number in 0..KEYS {
        put(&client, &mut chance, number).await;
    }
    run.settle(&cluster).await?;
    let began = Instant::now();
    while !run.has_enough(began) {
        let Some(index) = one_of_enough(&cluster, &mut chance).await? else {
            // Until one of those held back has proven itself.
            run.pause(Duration::from_secs(1)).await;
            run.still_whole()?;
            continue;
        };
        // New bytes in the log, half of the time with the tables and blobs of a clean end.
        for _ in 0..3 {
            put(&client, &mut chance, KEYS + run.fresh()).await;
        }
        if chance.random() {
            cluster.nodes[index].process.stop().await?;
        } else {
            cluster.nodes[index].process.kill();
        }
        for _ in 0..chance.random_range(1..=3) {
            damage(&run, &cluster, index, &mut chance)?;
        }
        start_or_refuse(&run, &cluster, index).await?;
        run.read_all(&client, BUCKET).await?;
        mended(&run, &cluster).await?;
        cluster.take_back(index).await?;
        run.count("round", 1);
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// What a node with a damaged index tells its operator.
const WHAT_TO_DO: &str = "remove `db` from its data directory and start it again";

async fn put(client: &Recorder, chance: &mut StdRng, number: u64) {
    let size = [20_000, 70_000, 200_000, 300_000, 5 * MIB][chance.random_range(0..5)];
    let key = format!("k{}", number % KEYS);
    client.put(&key, &format!("{key}#{number}"), size).await;
}

/// One random edit of one random file.
fn damage(run: &Run, cluster: &Cluster, index: usize, chance: &mut StdRng) -> Result<()> {
    let db = cluster.nodes[index].data.join("db");
    let kinds = ["log", "manifest", "sst", "blob"];
    let kind = kinds[chance.random_range(0..kinds.len())];
    let files = files_of(&db, kind)?;
    if files.is_empty() {
        return Ok(());
    }
    let path = &files[chance.random_range(0..files.len())];
    let doing = || format!("damage {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing())?;
    let mut bytes = std::fs::read(path).doing(doing())?;
    // RocksDB sets space aside behind a log's records: what is cut or flipped there is nobody's.
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if written == 0 {
        return Ok(());
    }
    let torn = kind == "log" && chance.random();
    let what = if torn {
        let less = chance.random_range(1..=4_096).min(written);
        file.set_len((written - less) as u64).doing(doing())?;
        run.count("log cut", 1);
        format!("cut {less} of {written} bytes")
    } else {
        let place = chance.random_range(0..written);
        bytes[place] ^= 1 << chance.random_range(0..8);
        file.write_all_at(&bytes[place..=place], place as u64).doing(doing())?;
        run.count(&format!("{kind} flipped"), 1);
        format!("flipped a bit of byte {place}")
    };
    run.count("edit", 1);
    run.history.note("damage", (cluster.nodes[index].name(), path.display().to_string(), what));
    Ok(())
}

fn files_of(db: &Path, kind: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(db).doing("list a node's files")? {
        let path = entry.doing("list a node's files")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is = match kind {
            "manifest" => name.starts_with("MANIFEST"),
            _ => path.extension().is_some_and(|extension| extension == kind),
        };
        if is {
            files.push(path.clone());
        }
    }
    files.sort();
    Ok(files)
}

/// The node serves again, or says why not and what is left to its operator.
async fn start_or_refuse(run: &Run, cluster: &Cluster, index: usize) -> Result<()> {
    let node = &cluster.nodes[index];
    node.process.start()?;
    match cluster.answers(&node.process, &node.health()).await {
        Ok(()) => run.count("started", 1),
        Err(_) if node.process.ended().is_some_and(|status| status.code() == Some(1)) => {
            let said = node.process.tail(1);
            if !said.contains("cyxcloud-node: could not open the data directory") {
                return Err(Error::broken(format!("{} refused without saying why: {said}", node.name())));
            }
            run.count("refused loudly", 1);
            std::fs::remove_dir_all(node.data.join("db")).doing("remove a node's database")?;
            node.process.start()?;
        }
        // It found its index damaged before anybody could see it well.
        Err(_) if node.process.running() && node.process.tail(20).contains(WHAT_TO_DO) => {
            run.count("found damaged at once", 1);
            node.process.kill();
            std::fs::remove_dir_all(node.data.join("db")).doing("remove a node's database")?;
            node.process.start()?;
        }
        Err(error) => return Err(error),
    }
    cluster.wait_back(index).await
}

/// Every chunk is where it should be again, though nobody says that anything was lost. A node that finds its index damaged
/// says so, takes no more writes and waits for its operator, who does what it says: the database is removed, and the node begins
/// anew with the identity it had.
async fn mended(run: &Run, cluster: &Cluster) -> Result<()> {
    let began = Instant::now();
    while let Some(why) = still_wrong(run, cluster).await? {
        if began.elapsed() > MENDED {
            return Err(Error::broken(format!("not mended after {} s: {why}", MENDED.as_secs())));
        }
        run.pause(Duration::from_millis(500)).await;
    }
    let took = began.elapsed().as_secs();
    run.figure("mended within s", took.max(run.counted("mended within s")));
    Ok(())
}

async fn still_wrong(run: &Run, cluster: &Cluster) -> Result<Option<Error>> {
    let sql = "SELECT label FROM nodes WHERE read_only AND status = 'online'";
    for label in cluster.database.texts(sql).await? {
        let Some(index) = cluster.nodes.iter().position(|node| node.name() == label) else { continue };
        let node = &cluster.nodes[index];
        if !node.process.output().contains(WHAT_TO_DO) {
            return Err(Error::broken(format!("{label} takes no writes and does not say what to do")));
        }
        run.count("found damaged later", 1);
        node.process.kill();
        std::fs::remove_dir_all(node.data.join("db")).doing("remove a node's database")?;
        cluster.restart_node(index).await?;
    }
    if let Err(why) = invariants::check(&cluster.database, invariants::IN_THE_END).await {
        return Ok(Some(why));
    }
    // The census asks as a reader would; what is wrong, the nodes and the rebalancer find by themselves.
    Ok(census::take(cluster).await.err())
}
