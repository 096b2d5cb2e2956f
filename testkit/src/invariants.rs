//! What must hold of the metadata, as queries that count what is wrong.

use std::time::{Duration, Instant};

use crate::databases::Database;
use crate::error::{Error, Result};
use crate::eventually;

/// What must be so, and what counts the cases in which it is not.
pub type Invariant = (&'static str, &'static str);

/// What must be zero whenever it is looked at.
pub const ALWAYS: &[Invariant] = &[
    (
        "objects refer to live segments only",
        "SELECT count(*) FROM file_segments f JOIN segments s ON s.id = f.segment_id WHERE s.state <> 'live'",
    ),
    (
        "objects are covered by their segments",
        "SELECT count(*) FROM files f WHERE f.size_bytes <> coalesce(
             (SELECT sum(length) FROM file_segments fs WHERE fs.file_id = f.id), 0)",
    ),
    (
        "stripes have all their chunk rows",
        "SELECT count(*) FROM stripes st JOIN segments s ON s.id = st.segment_id
         WHERE s.data_shards + s.parity_shards <> (SELECT count(*) FROM chunks c
             WHERE c.segment_id = st.segment_id AND c.stripe_index = st.stripe_index)",
    ),
    (
        "a key has one latest version at most",
        "SELECT count(*) FROM (SELECT 1 FROM files WHERE is_latest GROUP BY bucket_id, key HAVING count(*) > 1) d",
    ),
    (
        "locations name the chunk of their row",
        "SELECT count(*) FROM chunk_locations l JOIN chunks c USING (segment_id, stripe_index, shard_index)
         WHERE c.chunk_id <> l.chunk_id",
    ),
    (
        "locations belong to nodes that are known",
        "SELECT count(*) FROM chunk_locations l LEFT JOIN nodes n ON n.id = l.node_id WHERE n.id IS NULL",
    ),
];

/// What must become zero when nothing happens any more.
pub const IN_THE_END: &[Invariant] = &[
    (
        "every stripe is whole",
        "SELECT count(*) FROM stripes st JOIN segments s ON s.id = st.segment_id AND s.state = 'live'
         CROSS JOIN LATERAL (
             SELECT count(DISTINCT l.shard_index) AS shards, count(*) AS places FROM chunk_locations l
             JOIN nodes n ON n.id = l.node_id AND n.status = 'online'
             WHERE l.segment_id = st.segment_id AND l.stripe_index = st.stripe_index AND l.status = 'stored') h
         WHERE h.shards < s.data_shards + s.parity_shards OR h.places < s.copies",
    ),
    ("no location is doubtful", "SELECT count(*) FROM chunk_locations WHERE status <> 'stored'"),
    ("no repair waits", "SELECT count(*) FROM repair_jobs WHERE status IN ('pending', 'in_progress')"),
    ("no upload is under way", "SELECT count(*) FROM upload_intents"),
    (
        "no segment is unreferenced",
        "SELECT count(*) FROM segments s
         WHERE NOT EXISTS (SELECT 1 FROM file_segments f WHERE f.segment_id = s.id)
           AND NOT EXISTS (SELECT 1 FROM part_segments p WHERE p.segment_id = s.id)",
    ),
    (
        "no chunk waits to be deleted",
        "SELECT (SELECT count(*) FROM chunk_deletes) + (SELECT count(*) FROM orphans)",
    ),
    (
        "no node holds two shards of a stripe where there are nodes enough",
        "SELECT count(*) FROM (
             SELECT 1 FROM chunk_locations l JOIN segments s ON s.id = l.segment_id AND s.state = 'live'
             WHERE l.status = 'stored'
               AND (SELECT count(*) FROM nodes WHERE status = 'online') >= s.data_shards + s.parity_shards
             GROUP BY l.segment_id, l.stripe_index, l.node_id HAVING count(*) > 1) d",
    ),
    (
        "disks hold what locations name",
        "SELECT abs(coalesce((SELECT sum(storage_used) FROM nodes), 0) - coalesce((
             SELECT sum(size) FROM (SELECT DISTINCT l.node_id, l.chunk_id, c.size_bytes AS size FROM chunk_locations l
             JOIN chunks c USING (segment_id, stripe_index, shard_index)) d), 0))",
    ),
];

/// Counts who has two places of a stripe, of whom `nodes` names in this column; who is not named is alone.
macro_rules! apart {
    ($column:literal) => {
        concat!(
            "SELECT count(*) FROM (
             SELECT 1 FROM chunk_locations l JOIN segments s ON s.id = l.segment_id AND s.state = 'live'
             JOIN nodes n ON n.id = l.node_id
             WHERE l.status = 'stored'
               AND (SELECT count(DISTINCT coalesce(nullif(",
            $column,
            ", ''), id::text)) FROM nodes
                    WHERE status = 'online' AND NOT quarantined)
                   >= (s.data_shards + s.parity_shards) * s.copies
             GROUP BY l.segment_id, l.stripe_index, coalesce(nullif(n.",
            $column,
            ", ''), n.id::text)
             HAVING count(*) > 1) d"
        )
    };
}

/// Of as many operators (or networks) as a stripe has places, on nodes that may be given new chunks, none has two. Placement and repair
/// count nodes first: with more nodes than operators, of whom some do not answer, an operator may be given two places. One of them moves
/// when nothing else is to be repaired, so that of operators this becomes true some time after all is settled. Nothing moves for networks:
/// of them it is true where nobody was away, failing or late, or where each node is on one of its own.
pub const APART: &[Invariant] = &[
    ("no operator has two places of a stripe where there are operators enough", apart!("operator")),
    ("no network has two places of a stripe where there are networks enough", apart!("subnet")),
];

/// What must be zero where every node kept what it was given, however slow or unreachable it was.
pub const HONEST: &[Invariant] = &[(
    "no honest node's score in audits falls below 0.99",
    "SELECT count(*) FROM nodes WHERE audit_alpha < 0.99 * (audit_alpha + audit_beta)",
)];

/// All of these are zero now.
pub async fn check(database: &Database, all: &[Invariant]) -> Result<()> {
    for (what, sql) in all {
        let found = database.number(sql).await?;
        if found != 0 {
            return Err(Error::broken(format!("not so: {what} ({found})")));
        }
    }
    Ok(())
}

/// All of [`IN_THE_END`] become zero within this time.
pub async fn settle(database: &Database, limit: Duration) -> Result<()> {
    come_true(database, IN_THE_END, limit).await
}

/// All of these become zero within this time, one after the other, and then are all so at once.
pub async fn come_true(database: &Database, all: &[Invariant], limit: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        for (what, sql) in all {
            let left = limit.saturating_sub(began.elapsed());
            let waited = eventually(what, left, || async {
                database.number(sql).await.is_ok_and(|found| found == 0).then_some(())
            });
            if waited.await.is_err() {
                let found = database.number(sql).await?;
                let seconds = limit.as_secs();
                return Err(Error::broken(format!("after {seconds} s not settled: {what} ({found})")));
            }
        }
        if check(database, all).await.is_ok() {
            return Ok(());
        }
    }
}
