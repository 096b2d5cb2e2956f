//! Records what an object or part is made of: a new segment with all its rows, or references to segments that are
//! there.
//!
//! Rows go in by arrays, one statement for all stripes, chunks, locations and repair jobs of a segment.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use cyxcloud_core::ByteCount;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::read;
use super::transact::Failure;
use crate::error::Error;
use crate::model::{Content, NewLocation, NewSegment, NewShard, NewStripe, SegmentBody, SegmentRange};
use crate::rows::{self, FileShape, Owed, SegmentShape, Standing};

/// How the nodes that content names stand.
#[derive(Default)]
pub(super) struct Nodes {
    /// Of those that are known: whether it is online, and the life of its data directory.
    known: BTreeMap<Uuid, (bool, Uuid)>,
}

impl Nodes {
    /// The nodes that contents name, each once; to be bound where `known`, `online` and `lives` are selected.
    pub(super) fn named<'c>(contents: impl IntoIterator<Item = &'c Content>) -> Vec<Uuid> {
        let segments = contents.into_iter().filter_map(|content| match content {
            Content::New(segment) => Some(segment),
            Content::References(_) => None,
        });
        let shards = segments.flat_map(stripes).flat_map(|stripe| &stripe.shards);
        let nodes: BTreeSet<Uuid> =
            shards.flat_map(|shard| &shard.locations).map(|location| location.node.as_uuid()).collect();
        nodes.into_iter().collect()
    }

    /// From the columns `known`, `online` and `lives`.
    pub(super) fn read(row: &PgRow) -> Result<Self, Failure> {
        let ids = |column| row.try_get::<Vec<Uuid>, _>(column);
        let states = row.try_get::<Vec<bool>, _>("online")?.into_iter().zip(ids("lives")?);
        Ok(Self { known: ids("known")?.into_iter().zip(states).collect() })
    }

    fn standing(&self, at: &NewLocation) -> Standing {
        Standing::of(at, self.known.get(&at.node.as_uuid()).copied())
    }
}

/// Content, looked at and (where it refers to segments) locked against collection.
pub(super) struct Body<'a> {
    /// A segment that is to be made with it.
    pub(super) segment: Option<&'a NewSegment>,
    /// As operators see it.
    pub(super) shape: FileShape,
    ranges: Vec<SegmentRange>,
}

impl<'a> Body<'a> {
    /// Looks at content that must have `size` bytes; `SourceGone` where it refers to what is being collected.
    pub(super) async fn prepare(
        conn: &mut PgConnection,
        content: &'a Content,
        size: ByteCount,
    ) -> Result<Self, Failure> {
        let ranges = rows::ranges(content);
        match content {
            Content::New(segment) => {
                rows::check_size(&ranges, size)?;
                let shape = FileShape::of(ranges.first().map(|_| SegmentShape::from(segment)));
                Ok(Self { segment: ranges.first().map(|_| segment), shape, ranges })
            }
            Content::References(_) => Self::of_references(conn, ranges, size).await,
        }
    }

    /// Locks the segments, in order of id, until the references to them are committed.
    pub(super) async fn of_references(
        conn: &mut PgConnection,
        ranges: Vec<SegmentRange>,
        size: ByteCount,
    ) -> Result<Self, Failure> {
        const LOCK: &str =
            "SELECT id, state = 'live' AS live, chunk_count, data_shards, parity_shards, copies,
                stripe_size, inline_hash IS NOT NULL AS inline
            FROM segments WHERE id = ANY($1) ORDER BY id FOR SHARE";
        rows::check_size(&ranges, size)?;
        let ids: BTreeSet<Uuid> = ranges.iter().map(|range| range.segment.as_uuid()).collect();
        let ids: Vec<Uuid> = ids.into_iter().collect();
        let found =
            if ids.is_empty() { Vec::new() } else { sqlx::query(LOCK).bind(&ids).fetch_all(conn).await? };
        let mut shapes = Vec::with_capacity(found.len());
        for row in &found {
            if row.try_get("live")? {
                shapes.push(SegmentShape {
                    geometry: read::geometry(row)?,
                    stripe_size: read::bytes(row, "stripe_size")?,
                    chunk_count: row.try_get("chunk_count")?,
                    inline: row.try_get("inline")?,
                });
            }
        }
        if shapes.len() != ids.len() {
            return Err(Error::SourceGone.into());
        }
        // Both are in order of id.
        let shape =
            |range: &SegmentRange| ids.binary_search(&range.segment.as_uuid()).ok().map(|at| shapes[at]);
        Ok(Self { segment: None, shape: FileShape::of(ranges.iter().filter_map(shape)), ranges })
    }

    /// Segment ids, offsets within the whole, offsets within the segments, lengths.
    pub(super) fn columns(&self) -> (Vec<Uuid>, Vec<i64>, Vec<i64>, Vec<i64>) {
        let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut at = 0;
        for range in &self.ranges {
            columns.0.push(range.segment.as_uuid());
            columns.1.push(read::int(at));
            columns.2.push(read::int(range.offset));
            columns.3.push(read::int(range.length));
            at += range.length;
        }
        columns
    }

    /// The inlined body of a new segment: plain hash and sealed bytes.
    pub(super) fn inline(&self) -> Option<(&'a [u8; 32], &'a Bytes)> {
        match &self.segment?.body {
            SegmentBody::Inline { plain_hash, sealed } => Some((plain_hash, sealed)),
            SegmentBody::Stripes(_) => None,
        }
    }
}

fn stripes(segment: &NewSegment) -> &[NewStripe] {
    match &segment.body {
        SegmentBody::Stripes(stripes) => stripes,
        SegmentBody::Inline { .. } => &[],
    }
}

/// Records stripes, chunks, locations and repair jobs of new segments, whose own rows are there already. What was
/// stored on nodes that are removed by now, or in a former life of theirs, is left out.
pub(super) async fn insert_stripes<'c>(
    conn: &mut PgConnection,
    segments: impl IntoIterator<Item = &'c NewSegment>,
    nodes: &Nodes,
) -> Result<(), Failure> {
    const INSERT: &str =
        concat!(include_str!("sql/stripes_insert.sql"), include_str!("sql/queue_conflict.sql"));
    const PROMISE_LESS: &str = "UPDATE segments s SET acked_tolerance = p.tolerance
        FROM unnest($1::uuid[], $2::smallint[]) p (id, tolerance) WHERE s.id = p.id";
    let mut rows = StripeRows::default();
    for segment in segments {
        rows.push(segment, nodes)?;
    }
    let StripeRows { stripes: stripe, chunks: chunk, locations: location, jobs: job, promised } = rows;
    if stripe.segment.is_empty() {
        return Ok(());
    }
    if !promised.is_empty() {
        let (segments, tolerances): (Vec<Uuid>, Vec<i16>) = promised.into_iter().unzip();
        sqlx::query(PROMISE_LESS).bind(segments).bind(tolerances).execute(&mut *conn).await?;
    }
    sqlx::query(INSERT)
        .bind(stripe.segment)
        .bind(stripe.index)
        .bind(stripe.plain_hash)
        .bind(stripe.plain_len)
        .bind(chunk.segment)
        .bind(chunk.stripe)
        .bind(chunk.shard)
        .bind(chunk.chunk)
        .bind(chunk.is_parity)
        .bind(chunk.size)
        .bind(chunk.copies)
        .bind(location.segment)
        .bind(location.stripe)
        .bind(location.shard)
        .bind(location.node)
        .bind(location.chunk)
        .bind(location.incarnation)
        .bind(location.generation)
        .bind(location.receipt)
        .bind(location.receipt_at)
        .bind(job.segment)
        .bind(job.stripe)
        .bind(job.priority)
        .bind(job.reason)
        .execute(conn)
        .await?;
    Ok(())
}

/// The rows of new segments, by columns.
#[derive(Default)]
struct StripeRows<'a> {
    stripes: Stripes<'a>,
    chunks: Chunks<'a>,
    locations: Locations<'a>,
    jobs: Jobs,
    /// Segments of which less can be promised than was acknowledged, with the tolerance that can.
    promised: Vec<(Uuid, i16)>,
}

impl<'a> StripeRows<'a> {
    fn push(&mut self, segment: &'a NewSegment, nodes: &Nodes) -> Result<(), Failure> {
        let id = segment.id.as_uuid();
        let mut promised = segment.acked_tolerance;
        for (new, index) in stripes(segment).iter().zip(0i32..) {
            self.stripes.push(id, index, new);
            for shard in &new.shards {
                self.chunks.push(segment, index, shard);
                self.locations.push(id, index, shard, nodes);
            }
            let standing = |at: &NewLocation| nodes.standing(at);
            if let Some(owed) = rows::owed(segment, new, standing)? {
                promised = promised.min(owed.promised);
                self.jobs.push(id, index, &owed);
            }
        }
        if promised < segment.acked_tolerance {
            self.promised.push((id, i16::from(promised)));
        }
        Ok(())
    }
}

/// Columns of `stripes`.
#[derive(Default)]
struct Stripes<'a> {
    segment: Vec<Uuid>,
    index: Vec<i32>,
    plain_hash: Vec<&'a [u8]>,
    plain_len: Vec<i64>,
}

impl<'a> Stripes<'a> {
    fn push(&mut self, segment: Uuid, index: i32, stripe: &'a NewStripe) {
        self.segment.push(segment);
        self.index.push(index);
        self.plain_hash.push(&stripe.plain_hash);
        self.plain_len.push(stripe.plain_len.as_i64());
    }
}

/// Columns of `chunks`.
#[derive(Default)]
struct Chunks<'a> {
    segment: Vec<Uuid>,
    stripe: Vec<i32>,
    shard: Vec<i16>,
    chunk: Vec<&'a [u8]>,
    is_parity: Vec<bool>,
    size: Vec<i64>,
    copies: Vec<i16>,
}

impl<'a> Chunks<'a> {
    fn push(&mut self, segment: &NewSegment, stripe: i32, shard: &'a NewShard) {
        let index = shard.index.get();
        self.segment.push(segment.id.as_uuid());
        self.stripe.push(stripe);
        self.shard.push(index as i16);
        self.chunk.push(shard.chunk.as_bytes());
        self.is_parity.push(index >= segment.geometry.data());
        self.size.push(shard.size.as_i64());
        self.copies.push(segment.geometry.copies() as i16);
    }
}

/// Columns of `chunk_locations`.
#[derive(Default)]
struct Locations<'a> {
    segment: Vec<Uuid>,
    stripe: Vec<i32>,
    shard: Vec<i16>,
    node: Vec<Uuid>,
    chunk: Vec<&'a [u8]>,
    incarnation: Vec<Uuid>,
    generation: Vec<i64>,
    receipt: Vec<&'a [u8]>,
    receipt_at: Vec<DateTime<Utc>>,
}

impl<'a> Locations<'a> {
    fn push(&mut self, segment: Uuid, stripe: i32, shard: &'a NewShard, nodes: &Nodes) {
        for location in &shard.locations {
            if nodes.standing(location) == Standing::Gone {
                continue;
            }
            self.segment.push(segment);
            self.stripe.push(stripe);
            self.shard.push(shard.index.get() as i16);
            self.node.push(location.node.as_uuid());
            self.chunk.push(shard.chunk.as_bytes());
            self.incarnation.push(location.generation.incarnation);
            self.generation.push(read::int(location.generation.counter));
            self.receipt.push(&location.receipt_signature);
            self.receipt_at.push(read::datetime(location.stored_at));
        }
    }
}

/// Columns of `repair_jobs`.
#[derive(Default)]
struct Jobs {
    segment: Vec<Uuid>,
    stripe: Vec<i32>,
    priority: Vec<i32>,
    reason: Vec<&'static str>,
}

impl Jobs {
    fn push(&mut self, segment: Uuid, stripe: i32, owed: &Owed) {
        self.segment.push(segment);
        self.stripe.push(stripe);
        self.priority.push(owed.priority);
        self.reason.push(owed.reason);
    }
}
