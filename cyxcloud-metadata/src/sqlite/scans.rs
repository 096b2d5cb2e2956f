//! Nodes that are to be looked through: asked for, in hand, done.
//!
//! A row stays when its scan is done, so that its fence only grows: whoever had the scan before can do nothing any
//! more. Not here: what is met on the way (`inventory`).

use std::time::Duration;

use cyxcloud_core::NodeId;
use rusqlite::{Connection, Row, params};

use super::content::small;
use super::engine::Done;
use super::row::{self, all, int, one, run};
use crate::error::Error;
use crate::rows::{self, corrupt};
use crate::upkeep::model::{NodeCursor, NodeScan, ScanClass, ScanReason};

fn reason(row: &Row<'_>, column: usize) -> Done<ScanReason> {
    let text = row.get_ref(column)?.as_str().map_err(|e| corrupt("reason of a scan", e))?;
    Ok(rows::scan_reason(text)?)
}

const QUEUE: &str = "INSERT INTO node_scans (node_id, reason, since, not_before)
    SELECT id, ?2, ?3, ?3 FROM nodes WHERE id = ?1
    ON CONFLICT (node_id, reason) DO UPDATE SET since = excluded.since, not_before = excluded.not_before,
        done = 0, fence = fence + 1, lease_until = NULL,
        cursor_chunk = NULL, cursor_segment = NULL, cursor_stripe = NULL, cursor_shard = NULL";

/// Asks for a node's inventory, unless that waits or is in hand.
pub(super) fn queue_inventory(db: &Connection, node: NodeId) -> Done<()> {
    let ask = format!("{QUEUE} WHERE done");
    run(db, &ask, params![node.as_uuid(), ScanReason::Periodic.as_str(), row::now().unix_millis()])?;
    Ok(())
}

/// Asks for a node to be looked through from the beginning, whoever is at it now.
pub(super) fn queue(db: &Connection, node: NodeId, reason: ScanReason) -> Done<()> {
    match run(db, QUEUE, params![node.as_uuid(), reason.as_str(), row::now().unix_millis()])? {
        0 => Err(Error::NoSuchNode.into()),
        _ => Ok(()),
    }
}

/// One whose holder died waits from when its lease ran out: one that kills whoever takes it is behind the others then.
pub(super) fn claim(db: &Connection, up_to: ScanClass, limit: usize, lease: Duration) -> Done<Vec<NodeScan>> {
    // Classes as `ScanClass` has them.
    const DUE: &str = "SELECT id FROM (
            SELECT rowid AS id, max(not_before, coalesce(lease_until, not_before)) AS waits_since,
                CASE WHEN reason IN ('offline', 'draining', 'maintenance') THEN 0
                    WHEN reason <> 'periodic' AND not_before <= since THEN 1
                    ELSE 2 END AS class
            FROM node_scans
            WHERE NOT done AND not_before <= ?1 AND (lease_until IS NULL OR lease_until <= ?1))
        WHERE class <= ?3 ORDER BY class, waits_since LIMIT ?2";
    const CLAIM: &str = "UPDATE node_scans SET fence = fence + 1, lease_until = ?2 WHERE rowid = ?1
        RETURNING node_id, reason, since, fence, cursor_chunk, cursor_segment, cursor_stripe, cursor_shard";
    let now = row::now();
    let range = params![now.unix_millis(), int(limit as u64), up_to.rank()];
    let due: Vec<i64> = all(db, DUE, range, |row| Ok(row.get(0)?))?;
    let mut scans = Vec::new();
    for id in due {
        scans.extend(one(db, CLAIM, params![id, row::after(now, lease)], scan)?);
    }
    Ok(scans)
}

fn scan(row: &Row<'_>) -> Done<NodeScan> {
    let begun = row.get::<_, Option<Vec<u8>>>(4)?.is_some();
    Ok(NodeScan {
        node: row::id(row, 0)?,
        reason: reason(row, 1)?,
        since: row::time(row, 2)?,
        fence: row.get(3)?,
        after: if begun { Some(row::cursor(row, 4)?) } else { None },
    })
}

fn held(touched: usize) -> Done<()> {
    match touched {
        0 => Err(Error::Stale { what: "claim of the scan" }.into()),
        _ => Ok(()),
    }
}

pub(super) fn renew(db: &Connection, scan: &NodeScan, lease: Duration) -> Done<()> {
    const RENEW: &str = "UPDATE node_scans SET lease_until = ?4
        WHERE node_id = ?1 AND reason = ?2 AND fence = ?3 AND NOT done";
    let (node, reason) = (scan.node.as_uuid(), scan.reason.as_str());
    held(run(db, RENEW, params![node, reason, scan.fence, row::after(row::now(), lease)])?)
}

pub(super) fn advance(db: &Connection, scan: &NodeScan, after: NodeCursor, lease: Duration) -> Done<()> {
    const ADVANCE: &str = "UPDATE node_scans SET lease_until = ?4, cursor_chunk = ?5, cursor_segment = ?6,
            cursor_stripe = ?7, cursor_shard = ?8
        WHERE node_id = ?1 AND reason = ?2 AND fence = ?3 AND NOT done";
    held(run(
        db,
        ADVANCE,
        params![
            scan.node.as_uuid(),
            scan.reason.as_str(),
            scan.fence,
            row::after(row::now(), lease),
            after.chunk.as_bytes().as_slice(),
            after.stripe.segment.as_uuid(),
            after.stripe.index,
            small(after.shard.get()),
        ],
    )?)
}

pub(super) fn pause(db: &Connection, scan: &NodeScan, pause: Duration) -> Done<()> {
    // Whoever put it down cannot go on with it.
    const PAUSE: &str = "UPDATE node_scans SET not_before = ?4, fence = fence + 1, lease_until = NULL
        WHERE node_id = ?1 AND reason = ?2 AND fence = ?3 AND NOT done";
    let (node, reason) = (scan.node.as_uuid(), scan.reason.as_str());
    held(run(db, PAUSE, params![node, reason, scan.fence, row::after(row::now(), pause)])?)
}

pub(super) fn finish(db: &Connection, scan: &NodeScan, again_after: Option<Duration>) -> Done<()> {
    // The fence moves on: a scan that waits for its next pass is in nobody's hand.
    const FINISH: &str = "UPDATE node_scans SET done = ?4, not_before = coalesce(?5, not_before), fence = fence + 1,
            lease_until = NULL, cursor_chunk = NULL, cursor_segment = NULL, cursor_stripe = NULL, cursor_shard = NULL
        WHERE node_id = ?1 AND reason = ?2 AND fence = ?3 AND NOT done";
    let again = again_after.map(|delay| row::after(row::now(), delay));
    let (node, reason) = (scan.node.as_uuid(), scan.reason.as_str());
    held(run(db, FINISH, params![node, reason, scan.fence, again.is_none(), again])?)
}
