//! 9: nodes lie, one at a time, in each way there is. Nobody is served a lie, the liar is found out, and nobody else is blamed.
//!
//! Who is found out is held back from new chunks until it has proven itself, or an administrator takes it back. What it cannot
//! prove is made again on the others, so these must stay enough for as many losses as every stripe is recorded to survive.
//!
//! Often an audit meets a liar before any client does. Where a client was first, the gateway's log says when, and the database
//! itself writes down when it knew: both by this machine's clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use rand::seq::SliceRandom;

use super::{Needs, Quick, Running, Scenario, one_of_enough};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::eventually;
use crate::recorder::Recorder;
use crate::run::Run;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 9,
    name: "liar",
    about: "12 nodes, of which one after the other serves wrong, short, too many, swapped or no bytes, no message, or wrong proofs; or is right \
            on audits only",
    needs: Needs::Nothing,
    duration: Duration::from_secs(120),
    quick: Quick::For(Duration::from_secs(15)),
    controls: &[],
    run: |run| -> Running { Box::pin(liar(run)) },
};

const BUCKET: &str = "liar";
const LIES: [&str; 8] =
    ["wrong-bytes", "short", "long", "garbled", "wrong-proof", "audits-only", "lost", "stale"];
const OBJECTS: u64 = 8;
/// Who read everything at the same time.
const READERS: usize = 3;
/// Fewer than 13, from where stripes survive three losses and need 13 for it.
const NODES: usize = 12;
/// Whoever sends a reader wrong bytes, or denies a shard, is audited within a second; wrong proofs are met by the audits, which
/// come every 5 s. Reading all objects takes its time beside that, on a machine that is busy.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(15);
/// "First lie -> shard marked lost within 1 s".
const MARKED_WITHIN: Duration = Duration::from_secs(1);
/// And its node held back from writes: it is looked for audits that are owed once a second, and this one may take 2 s
/// (`AUDIT_TIMEOUT_SECS`).
const HELD_BACK_WITHIN: Duration = Duration::from_secs(3);

/// When locations turned bad, and when nodes were held back.
const WITNESS: &str = "
    CREATE TABLE torture_lies (at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(), node UUID NOT NULL, what TEXT NOT NULL);
    CREATE FUNCTION torture_marked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO torture_lies (node, what) VALUES (NEW.node_id,
            format('segment=%s stripe=%s shard=%s ', NEW.segment_id, NEW.stripe_index, NEW.shard_index));
        RETURN NULL;
    END $$;
    CREATE TRIGGER torture_marked AFTER UPDATE ON chunk_locations FOR EACH ROW
        WHEN (NEW.status IN ('missing', 'corrupt') AND OLD.status IS DISTINCT FROM NEW.status)
        EXECUTE FUNCTION torture_marked();
    CREATE FUNCTION torture_held_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO torture_lies (node, what) VALUES (NEW.id, 'held back');
        RETURN NULL;
    END $$;
    CREATE TRIGGER torture_held_back AFTER UPDATE ON nodes FOR EACH ROW
        WHEN (NEW.quarantined AND NOT OLD.quarantined) EXECUTE FUNCTION torture_held_back();";
/// What a gateway says when a client's read meets a lie.
const MET: &str = "bad location found";

async fn liar(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().nodes(NODES).rebalancer_env("SWEEP_STRIPES_PER_SEC", "1000").start().await?;
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    cluster.database.execute_all(WITNESS).await?;
    for number in 0..OBJECTS {
        let key = format!("k{number}");
        client.put(&key, &key, [20_000, 300_000][number as usize % 2]).await;
    }
    run.settle(&cluster).await?;
    let mut chance = run.chance(1);
    let mut lies = LIES.to_vec();
    lies.shuffle(&mut chance);
    let began = Instant::now();
    let mut told = 0;
    while !run.has_enough(began) && !run.over() {
        let Some(index) = one_of_enough(&cluster, &mut chance).await? else {
            // Until one of those held back has proven itself. It is honest again.
            read(&run, &client).await?;
            continue;
        };
        // Whoever held nothing would have nothing to lie about.
        let key = format!("k{}", OBJECTS + run.fresh() % (4 * OBJECTS));
        client.put(&key, &format!("{key}#{}", run.fresh()), 300_000).await;
        tell(&run, &cluster, &client, index, lies[told % lies.len()]).await?;
        told += 1;
        run.count("lie", 1);
        run.settle(&cluster).await?;
        cluster.take_back(index).await?;
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// Several readers at once read all there is.
async fn read(run: &Run, client: &Recorder) -> Result<()> {
    try_join_all((0..READERS).map(|_| run.read_all(client, BUCKET))).await.map(drop)
}

/// This node lies so until it is found out, and is honest again.
async fn tell(run: &Run, cluster: &Cluster, client: &Recorder, index: usize, lie: &str) -> Result<()> {
    run.history.note("lie", (lie, cluster.nodes[index].name()));
    let before = failed(cluster, index).await?;
    let others = failed_by_others(cluster, index).await?;
    let node = &cluster.nodes[index];
    let process = &node.process;
    process.kill();
    process.set_env("CYXCLOUD_FAULT_LIE", Some(lie));
    process.start()?;
    // Nobody reads while it is away, after which it would be asked last for a while.
    cluster.answers(process, &node.health()).await?;
    let (began, since) = (Instant::now(), Utc::now());
    let what = format!("a node that tells {lie} is found out");
    eventually(&what, FOUND_OUT_WITHIN, || async {
        read(run, client).await.ok()?;
        failed(cluster, index).await.is_ok_and(|now| now > before).then_some(())
    })
    .await?;
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    run.history.note("found out", (lie, took));
    run.most("found out within ms", took);
    run.still_whole()?;
    let blamed = failed_by_others(cluster, index).await? - others;
    if blamed > 0 {
        return Err(Error::broken(format!("honest nodes were blamed {blamed} times")));
    }
    known_in_time(run, cluster, index, since).await?;
    cluster.wait_back(index).await?;
    process.kill();
    process.set_env("CYXCLOUD_FAULT_LIE", None);
    cluster.restart_node(index).await
}

/// Where a client was the first to meet the lie: how long it took the database to know that this shard is bad, and the node held back.
async fn known_in_time(run: &Run, cluster: &Cluster, index: usize, since: DateTime<Utc>) -> Result<()> {
    let (name, process) = (cluster.nodes[index].name(), &cluster.gateways[0].process);
    let id =
        cluster.database.texts(&format!("SELECT id::text FROM nodes WHERE label = '{name}'")).await?.concat();
    let log = process.output();
    let Some((met, line)) = first_met(&log, &id, since) else {
        run.count("lie that no client met", 1);
        return Ok(());
    };
    let sql = format!(
        "SELECT (extract(epoch FROM at) * 1000)::bigint::text || ' ' || what FROM torture_lies
         WHERE node = '{id}' AND at >= to_timestamp({}::numeric / 1000) ORDER BY at",
        since.timestamp_millis()
    );
    let known = cluster.database.texts(&sql).await?;
    let marked = when(&known, |what| line.contains(what));
    let held_back = when(&known, |what| what == "held back");
    for (what, at, within) in [("marked", marked, MARKED_WITHIN), ("held back", held_back, HELD_BACK_WITHIN)]
    {
        // An audit may have been before the client.
        let Some(took) = at.and_then(|at| u64::try_from(at - met.timestamp_millis()).ok()) else { continue };
        run.count(&format!("{what} after a client met it"), 1);
        run.most(&format!("{what} within ms"), took);
        if Duration::from_millis(took) > within {
            return Err(Error::broken(format!(
                "{name} lied to a client and was {what} only after {took} ms"
            )));
        }
    }
    Ok(())
}

/// The time of the first of these rows that says so.
fn when(known: &[String], so: impl Fn(&str) -> bool) -> Option<i64> {
    let (at, _) = known.iter().filter_map(|row| row.split_once(' ')).find(|&(_, what)| so(what))?;
    at.parse().ok()
}

/// When a gateway's log first says, after this, that a read met something bad of this node's; and the line.
fn first_met<'a>(log: &'a str, node: &str, since: DateTime<Utc>) -> Option<(DateTime<Utc>, &'a str)> {
    let node = format!("node={node} ");
    let lines = log.lines().filter(|line| line.contains(MET) && line.contains(&node));
    lines
        .filter_map(|line| {
            let at = DateTime::parse_from_rfc3339(line.split_whitespace().next()?).ok()?;
            Some((at.to_utc(), line))
        })
        .find(|(at, _)| *at >= since)
}

/// Audits that this node failed.
async fn failed(cluster: &Cluster, index: usize) -> Result<i64> {
    let name = cluster.nodes[index].name();
    cluster.database.number(&format!("SELECT audits_failed FROM nodes WHERE label = '{name}'")).await
}

/// Audits that all others failed.
async fn failed_by_others(cluster: &Cluster, index: usize) -> Result<i64> {
    let name = cluster.nodes[index].name();
    cluster.database.number(&format!("SELECT sum(audits_failed) FROM nodes WHERE label <> '{name}'")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_after_the_lie_began_is_the_one() {
        let line = |second: u32, node: &str| {
            format!(
                "2026-11-27T05:46:{second:02}.123456Z  INFO cyxcloud_dataplane::report: bad location found node={node} \
                 segment=s stripe=0 shard=3 fault=Corrupt\n"
            )
        };
        let log =
            [line(1, "a"), line(2, "b"), "2026-11-27T05:46:02Z  INFO x: other\n".to_owned(), line(3, "a")]
                .concat();
        let since = |text: &str| DateTime::parse_from_rfc3339(text).expect("a time").to_utc();
        let (at, found) = first_met(&log, "a", since("2026-11-27T05:46:01.5Z")).expect("is there");
        assert_eq!(at, since("2026-11-27T05:46:03.123456Z"));
        assert!(found.contains("segment=s stripe=0 shard=3 ") && found.contains("fault=Corrupt"));
        assert!(first_met(&log, "c", since("2026-11-27T05:46:00Z")).is_none());
    }
}
