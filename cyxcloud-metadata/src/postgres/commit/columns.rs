//! The rows of a commit, by columns: what its statement takes as arrays.
//!
//! Pure. Not here: the statement, and the rows of stripes (`content`).

use std::collections::BTreeMap;

use cyxcloud_core::{BucketId, OwnerId};
use sqlx::types::Json;
use uuid::Uuid;

use super::{Before, Body, NewVersion};
use crate::model::{NewSegment, SegmentBody, StoredChecksum};
use crate::rows;

/// Columns of `segments`.
#[derive(Default)]
pub(super) struct SegmentColumns<'a> {
    pub(super) id: Vec<Uuid>,
    pub(super) owner: Vec<Uuid>,
    pub(super) length: Vec<i64>,
    pub(super) stripe_size: Vec<i64>,
    pub(super) data: Vec<i16>,
    pub(super) parity: Vec<i16>,
    pub(super) copies: Vec<i16>,
    pub(super) format: Vec<i16>,
    pub(super) content_hash: Vec<&'a [u8]>,
    pub(super) acked_tolerance: Vec<i16>,
    pub(super) target_tolerance: Vec<i16>,
    pub(super) chunk_count: Vec<i32>,
    pub(super) inline_hash: Vec<Option<&'a [u8]>>,
    pub(super) inline_data: Vec<Option<&'a [u8]>>,
}

impl<'a> SegmentColumns<'a> {
    pub(super) fn of(segments: impl Iterator<Item = &'a NewSegment>) -> Self {
        let mut columns = Self::default();
        for segment in segments {
            columns.id.push(segment.id.as_uuid());
            columns.owner.push(segment.owner.as_uuid());
            columns.length.push(segment.length.as_i64());
            columns.stripe_size.push(segment.stripe_size.as_i64());
            columns.data.push(segment.geometry.data() as i16);
            columns.parity.push(segment.geometry.parity() as i16);
            columns.copies.push(segment.geometry.copies() as i16);
            columns.format.push(i16::from(segment.format));
            columns.content_hash.push(&segment.content_hash);
            columns.acked_tolerance.push(i16::from(segment.acked_tolerance));
            columns.target_tolerance.push(i16::from(segment.target_tolerance));
            columns.chunk_count.push(rows::chunk_count(segment));
            let (hash, data) = match &segment.body {
                SegmentBody::Inline { plain_hash, sealed } => {
                    (Some(plain_hash.as_slice()), Some(sealed.as_ref()))
                }
                SegmentBody::Stripes(_) => (None, None),
            };
            columns.inline_hash.push(hash);
            columns.inline_data.push(data);
        }
        columns
    }
}

/// Columns of `files`.
#[derive(Default)]
pub(super) struct FileColumns<'a> {
    pub(super) id: Vec<Uuid>,
    pub(super) bucket: Vec<Uuid>,
    pub(super) key: Vec<&'a [u8]>,
    pub(super) path: Vec<String>,
    pub(super) name: Vec<String>,
    pub(super) owner: Vec<Uuid>,
    pub(super) version_seq: Vec<i64>,
    pub(super) upload: Vec<Uuid>,
    pub(super) content_hash: Vec<&'a [u8]>,
    pub(super) etag: Vec<&'a str>,
    pub(super) size: Vec<i64>,
    pub(super) chunk_count: Vec<i32>,
    pub(super) data: Vec<i16>,
    pub(super) parity: Vec<i16>,
    pub(super) chunk_size: Vec<i64>,
    pub(super) content_type: Vec<Option<&'a str>>,
    pub(super) headers: Vec<Json<&'a BTreeMap<String, String>>>,
    pub(super) metadata: Vec<Json<&'a BTreeMap<String, String>>>,
    pub(super) checksums: Vec<Json<&'a [StoredChecksum]>>,
    /// As text: arrays of arrays must be rectangles.
    pub(super) part_sizes: Vec<String>,
}

impl<'a> FileColumns<'a> {
    pub(super) fn of(files: &[(&'a NewVersion<'a>, &Before, &Body<'_>)]) -> Self {
        let mut columns = Self::default();
        for (version, before, body) in files {
            columns.id.push(version.file.as_uuid());
            columns.bucket.push(version.bucket.as_uuid());
            columns.key.push(version.key.as_bytes());
            columns.path.push(rows::shown(version.key.as_str()));
            columns.name.push(rows::shown(version.key.file_name()));
            columns.owner.push(version.owner.as_uuid());
            columns.version_seq.push(before.current.as_ref().map_or(0, |current| current.version_seq) + 1);
            columns.upload.push(version.upload.as_uuid());
            columns.content_hash.push(version.content_hash);
            columns.etag.push(version.etag);
            columns.size.push(version.size.as_i64());
            columns.chunk_count.push(body.shape.chunk_count);
            columns.data.push(body.shape.data_shards);
            columns.parity.push(body.shape.parity_shards);
            columns.chunk_size.push(body.shape.chunk_size);
            columns.content_type.push(version.attributes.content_type.as_deref());
            columns.headers.push(Json(&version.attributes.headers));
            columns.metadata.push(Json(&version.attributes.metadata));
            columns.checksums.push(Json(&version.attributes.checksums));
            let sizes: Vec<String> = version.part_sizes.iter().map(u64::to_string).collect();
            columns.part_sizes.push(format!("{{{}}}", sizes.join(",")));
        }
        columns
    }
}

/// Columns of `file_segments`.
#[derive(Default)]
pub(super) struct ExtentColumns {
    pub(super) file: Vec<Uuid>,
    pub(super) position: Vec<i32>,
    pub(super) segment: Vec<Uuid>,
    pub(super) object_offset: Vec<i64>,
    pub(super) segment_offset: Vec<i64>,
    pub(super) length: Vec<i64>,
}

impl ExtentColumns {
    pub(super) fn of(files: &[(&NewVersion<'_>, &Before, &Body<'_>)]) -> Self {
        let mut columns = Self::default();
        for (version, _, body) in files {
            let (segments, object_offsets, segment_offsets, lengths) = body.columns();
            columns.file.extend(segments.iter().map(|_| version.file.as_uuid()));
            columns.position.extend((0i32..).take(segments.len()));
            columns.segment.extend(segments);
            columns.object_offset.extend(object_offsets);
            columns.segment_offset.extend(segment_offsets);
            columns.length.extend(lengths);
        }
        columns
    }
}

/// Columns of `usage_deltas`: one row for an owner and bucket, and none where nothing changes.
#[derive(Default)]
pub(super) struct UsageColumns {
    pub(super) owner: Vec<Uuid>,
    pub(super) bucket: Vec<Uuid>,
    pub(super) bytes: Vec<i64>,
    pub(super) objects: Vec<i64>,
}

impl UsageColumns {
    pub(super) fn of(files: &[(&NewVersion<'_>, &Before, &Body<'_>)]) -> Self {
        let mut sums: BTreeMap<(OwnerId, BucketId), (i64, i64)> = BTreeMap::new();
        for (version, before, _) in files {
            for (owner, bytes, objects) in before.deltas(version.owner, version.size) {
                let sum = sums.entry((owner, version.bucket)).or_default();
                *sum = (sum.0 + bytes, sum.1 + objects);
            }
        }
        let mut columns = Self::default();
        for ((owner, bucket), (bytes, objects)) in sums {
            if (bytes, objects) != (0, 0) {
                columns.owner.push(owner.as_uuid());
                columns.bucket.push(bucket.as_uuid());
                columns.bytes.push(bytes);
                columns.objects.push(objects);
            }
        }
        columns
    }
}
