//! 25: the metadata is lost and comes back from a backup, as it was before many PUTs, DELETEs and a collection. What it
//! names is readable, what it does not know stays on the nodes until an operator says that all is well, and goes then.
//!
//! That holds as long as the backup is younger than what is deleted is kept: "grace >= backup age".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;

use super::{Needs, Quick, Running, Scenario};
use crate::census;
use crate::cluster::Cluster;
use crate::databases::{OwnPostgres, Postgres};
use crate::error::{Error, Result};
use crate::eventually;
use crate::process::{Env, Process, call, script, text};
use crate::recorder::body_of;
use crate::run::{Run, SETTLE};
use crate::s3::{Request, S3};

pub(super) const SCENARIO: Scenario = Scenario {
    number: 25,
    name: "metadata-restore",
    about: "the metadata comes back from base backup and log as before PUTs, DELETEs and a collection; 2 objects per second",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::LeftOut(
        "it waits for graces, two minutes; tests/e2e/test_backup.py restores by the same scripts",
    ),
    controls: &[],
    run: |run| -> Running { Box::pin(metadata_restore(run)) },
};

const BUCKET: &str = "kept";
/// For what is put after the restore.
const AFTER: &str = "after";
const SIZES: [usize; 3] = [5_000, 70_000, 300_000];
/// More time than this changes nothing: of so many objects a thousand can be deleted.
const SECS_MAX: u64 = 720;
/// How soon anything of PostgreSQL's own should happen.
const SOON: Duration = Duration::from_secs(60);
const SLOT: &str = "torture";

/// Objects by key, with their sizes. Their bytes follow from the key.
type Objects = BTreeMap<String, usize>;

/// How long what was deleted is kept, and so how old the backup may be: a third of the time that the run has.
fn grace(run: &Run) -> Duration {
    Duration::from_secs((seconds(run) / 3).max(40))
}

fn seconds(run: &Run) -> u64 {
    run.duration.as_secs().min(SECS_MAX)
}

async fn metadata_restore(run: Arc<Run>) -> Result<()> {
    let cluster = run
        .cluster()
        .own_databases()
        .rebalancer_env("GC_GRACE_SECS", &grace(&run).as_secs().to_string())
        .start()
        .await?;
    let Postgres::Own(postgres) = &cluster.postgres else {
        return Err(Error::failed("restore PostgreSQL", "it is not ours"));
    };
    let s3 = cluster.s3(0)?;
    s3.make_bucket(BUCKET).await.map_err(|refused| Error::failed("make a bucket", refused))?;
    let mut kept = Objects::new();
    for number in 0..(2 * seconds(&run)).max(20) {
        put(&run, &s3, &format!("old{number}"), number, &mut kept).await?;
    }
    // Garbage of before the backup, whose grace ends after it.
    put(&run, &s3, "early", 0, &mut Objects::new()).await?;
    delete(&s3, "early").await?;
    let waiting = "SELECT count(*) FROM gc_candidates";
    eventually("what was deleted is condemned", SOON, || async {
        cluster.database.number(waiting).await.is_ok_and(|waiting| waiting == 0).then_some(())
    })
    .await?;
    run.pause(grace(&run) / 2).await;

    let backup = back_up(&run, &cluster, &s3, &mut kept).await?;
    let began = Instant::now();
    change_until_collected(&run, &cluster, &s3, &kept).await?;
    backup.copied(&cluster).await?;
    if began.elapsed() > grace(&run) {
        return Err(Error::failed(
            "restore in time",
            "this machine is too slow: the backup is older than the grace",
        ));
    }
    lose_and_restore(&cluster, postgres, &backup).await?;

    read_all(&run, &s3, &kept).await?;
    stays_frozen(&run, &cluster).await?;
    let client = run.clients(&cluster, AFTER).await?.remove(0);
    client.put("new", "new", 300_000).await;
    let thaw = Request::to(Method::POST, "/api/v1/admin/gc/thaw");
    s3.send(thaw)
        .await
        .map_err(|refused| Error::broken(format!("collection cannot be thawed: {refused}")))?;
    // All that came after the backup is deleted now, and that is the more the longer the run is.
    run.settle_within(&cluster, SETTLE.max(2 * grace(&run))).await?;
    run.judge(&cluster, &client, AFTER).await?;
    read_all(&run, &s3, &kept).await?;
    cluster.finish().await
}

async fn put(run: &Run, s3: &S3, key: &str, number: u64, objects: &mut Objects) -> Result<()> {
    let size = SIZES[number as usize % SIZES.len()];
    let stored = s3.put(BUCKET, key, body_of(run.seed, key, size)).await;
    stored.map_err(|refused| Error::broken(format!("PUT {key} was refused: {refused}")))?;
    objects.insert(key.to_owned(), size);
    Ok(())
}

async fn delete(s3: &S3, key: &str) -> Result<()> {
    let deleted = s3.delete(BUCKET, key).await;
    deleted.map_err(|refused| Error::broken(format!("DELETE {key} was refused: {refused}")))
}

/// A base backup, and a copy of the log since, of which a moment is chosen.
struct Backup {
    base: PathBuf,
    wal: PathBuf,
    moment: String,
    copying: Process,
}

/// Base backup and log, with a few objects between the one and the chosen moment.
async fn back_up(run: &Run, cluster: &Cluster, s3: &S3, kept: &mut Objects) -> Result<Backup> {
    let directory = run.directory.join("backup");
    let (url, to) = (&cluster.database.url, text(&directory));
    let backup = script("backup");
    let arguments = ["wal", "--database-url", url, "--to", &to, "--slot", SLOT];
    let command = std::iter::once(backup.as_str()).chain(arguments).map(str::to_owned).collect();
    let copying = Process::new("wal", command, Env::new(), run.directory.join("wal.log"));
    copying.start()?;
    let copies = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active");
    eventually("the log is copied", SOON, || async {
        cluster.database.number(&copies).await.is_ok_and(|count| count == 1).then_some(())
    })
    .await?;
    call(&backup, &["base", "--database-url", url, "--to", &to])?;
    for number in 0..5 {
        put(run, s3, &format!("between{number}"), number, kept).await?;
    }
    // Between two commits.
    let moment = cluster.database.texts("SELECT clock_timestamp()::text FROM pg_sleep(0.2)").await?.concat();
    let base = only_base(&directory)?;
    Ok(Backup { base, wal: directory.join("wal"), moment, copying })
}

fn only_base(directory: &Path) -> Result<PathBuf> {
    let found = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let base =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-"));
    found.into_iter().find(base).ok_or_else(|| Error::failed("find the base backup", "there is none"))
}

impl Backup {
    /// All that was committed until now is in the copy of the log, which ends.
    async fn copied(&self, cluster: &Cluster) -> Result<()> {
        let written = cluster.database.texts("SELECT pg_current_wal_flush_lsn()::text").await?.concat();
        let copied = format!(
            "SELECT count(*) FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
             WHERE slot_name = '{SLOT}' AND r.flush_lsn >= '{written}'"
        );
        eventually("all of the log is copied", SOON, || async {
            cluster.database.number(&copied).await.is_ok_and(|count| count == 1).then_some(())
        })
        .await?;
        self.copying.stop().await
    }
}

/// Puts new objects, deletes old ones and overwrites others, until what was garbage before the backup is gone from the nodes, and on
/// until each old one had its turn or the backup is nearly too old.
async fn change_until_collected(run: &Run, cluster: &Cluster, s3: &S3, kept: &Objects) -> Result<()> {
    let condemned = "SELECT condemned_at::text FROM segments WHERE state = 'condemned' ORDER BY condemned_at";
    let newest = cluster.database.texts(condemned).await?.pop().unwrap_or_default();
    let left = format!(
        "SELECT (SELECT count(*) FROM segments WHERE condemned_at <= '{newest}') + (SELECT count(*) FROM chunk_deletes)"
    );
    let (began, grace) = (Instant::now(), grace(run));
    let mut old = kept.keys();
    for number in 0_u64.. {
        let is_left = cluster.database.number(&left).await? > 0;
        if is_left && began.elapsed() > 2 * grace {
            return Err(Error::broken("garbage was not collected when its grace was over"));
        }
        if !is_left && (old.len() == 0 || began.elapsed() > grace / 4 * 3) {
            break;
        }
        put(run, s3, &format!("new{number}"), number, &mut Objects::new()).await?;
        run.count("PUT after the backup", 1);
        match old.next() {
            None => {}
            Some(key) if number.is_multiple_of(4) => {
                let other = body_of(run.seed, "overwritten", 70_000);
                let stored = s3.put(BUCKET, key, other).await;
                stored.map_err(|refused| Error::broken(format!("PUT {key} was refused: {refused}")))?;
                run.count("PUT after the backup", 1);
            }
            Some(key) => {
                delete(s3, key).await?;
                run.count("DELETE after the backup", 1);
            }
        }
    }
    Ok(())
}

/// PostgreSQL is gone with all that it had; gateways and rebalancers end, nodes go on.
async fn lose_and_restore(cluster: &Cluster, postgres: &OwnPostgres, backup: &Backup) -> Result<()> {
    let ours = || cluster.gateways.iter().map(|gateway| &gateway.process).chain(&cluster.rebalancers);
    ours().for_each(Process::kill);
    postgres.restore(&backup.base, &backup.wal, &backup.moment).await?;
    ours().try_for_each(Process::start)?;
    for gateway in &cluster.gateways {
        cluster.answers(&gateway.process, &format!("{}/health", gateway.url)).await?;
    }
    cluster.wait_online(cluster.nodes.len(), SOON).await
}

/// All that the backup names is there, byte for byte, and nothing else.
async fn read_all(run: &Run, s3: &S3, kept: &Objects) -> Result<()> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = s3.page(BUCKET, "", 1_000, after).await;
        let (listed, next) = page.map_err(|refused| Error::broken(format!("LIST was refused: {refused}")))?;
        keys.extend(listed.into_iter().map(|listed| listed.key));
        after = next;
        if after.is_none() {
            break;
        }
    }
    if !keys.iter().eq(kept.keys()) {
        return Err(Error::broken(format!(
            "{} keys were in the backup and {} are listed",
            kept.len(),
            keys.len()
        )));
    }
    for (key, &size) in kept {
        let read = s3.get(BUCKET, key).await;
        let body =
            read.map_err(|refused| Error::broken(format!("{key}, of the backup, is lost: {refused}")))?.body;
        if body != body_of(run.seed, key, size) {
            return Err(Error::broken(format!("{key}, of the backup, has other bytes")));
        }
    }
    run.figure("objects of the backup", kept.len() as u64);
    Ok(())
}

/// Nothing goes from the nodes until somebody says so, however long its grace is over.
async fn stays_frozen(run: &Run, cluster: &Cluster) -> Result<()> {
    let unknown = census::unnamed(cluster).await?.len();
    run.figure("chunks that the backup did not know", unknown as u64);
    if unknown == 0 {
        return Err(Error::failed("look at orphans", "nodes hold nothing that the backup did not know"));
    }
    let grace = grace(run);
    let seconds = grace.as_secs();
    let over =
        format!("SELECT count(*) FROM orphans WHERE first_seen < now() - interval '{seconds} seconds'");
    let all = format!("SELECT ({over}) + (SELECT count(*) FROM chunk_deletes)");
    eventually(
        "all that the backup did not know is seen, for longer than its grace",
        grace + SETTLE,
        || async {
            cluster
                .database
                .number(&all)
                .await
                .is_ok_and(|seen| seen.unsigned_abs() as usize >= unknown)
                .then_some(())
        },
    )
    .await?;
    // Rounds of collection come every second.
    run.pause(Duration::from_secs(5)).await;
    let still = census::unnamed(cluster).await?.len();
    if still < unknown {
        return Err(Error::broken(format!(
            "{} chunks were deleted while collection was frozen",
            unknown - still
        )));
    }
    let frozen = "SELECT convert_from(value, 'UTF8') FROM constants WHERE name = 'gc_frozen'";
    match cluster.database.texts(frozen).await?.concat() {
        why if why.starts_with("restored from a backup") => Ok(()),
        why => Err(Error::broken(format!("collection is not frozen after a restore ({why:?})"))),
    }
}
