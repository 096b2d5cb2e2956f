//! What rows are made of, whichever the engine: JSON columns, shown names, the stored answer of a Complete, and
//! what a file's shape and a stripe's repair follow from.
//!
//! Pure. Not here: SQL (`postgres`, `sqlite`), paging (`listing`).

use std::collections::BTreeMap;
use std::ops::Range;

use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::placement::tolerance;
use cyxcloud_core::{ByteCount, ChunkId, FileId, Geometry, OwnerId, Timestamp};
use uuid::Uuid;

use crate::model::{
    Attributes, Content, Extent, Multipart, NewLocation, NewSegment, NewStripe, Object, SegmentBody,
    SegmentRange, StoredChecksum,
};
use crate::upkeep::model::{AuditOutcome, LocationStatus, ScanReason, StripeRef};
use crate::{Error, Result};

/// Stripes that come along with the layout of an object that is one extent: what a reader fetches first, and all that
/// small objects have.
pub(crate) const STRIPES_ALONG: u32 = 4;

/// Which stripes come along with the only extent that a range of the object lies in.
pub(crate) fn stripes_along(extent: &Extent, range: &Range<u64>) -> Range<u32> {
    let size = extent.segment.stripe_size.get().max(1);
    let at =
        |offset: u64| extent.segment_offset + offset.saturating_sub(extent.object_offset).min(extent.length);
    let index = |stripe: u64| u32::try_from(stripe).unwrap_or(u32::MAX);
    let (first, end) = (index(at(range.start) / size), index(at(range.end).div_ceil(size)));
    first..end.min(first.saturating_add(STRIPES_ALONG))
}

/// A row that no version of this program wrote.
pub(crate) fn corrupt(what: &'static str, detail: impl ToString) -> Error {
    Error::Corrupt { what, detail: detail.to_string() }
}

/// As it stands in a JSON column.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data with text keys is JSON")
}

/// The columns `headers` and `metadata`.
pub(crate) fn texts_from_json(what: &'static str, json: &str) -> Result<BTreeMap<String, String>> {
    if json == "{}" {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(json).map_err(|e| corrupt(what, e))
}

/// The column `checksums`.
pub(crate) fn checksums_from_json(json: &str) -> Result<Vec<StoredChecksum>> {
    if json == "[]" {
        return Ok(Vec::new());
    }
    serde_json::from_str(json).map_err(|e| corrupt("checksum", e))
}

/// A Blake3 hash.
pub(crate) fn hash(what: &'static str, bytes: &[u8]) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| corrupt(what, format!("{} bytes instead of 32", bytes.len())))
}

/// The column `key`.
pub(crate) fn object_key(bytes: Vec<u8>) -> Result<ObjectKey> {
    let text = String::from_utf8(bytes).map_err(|e| corrupt("key", e))?;
    ObjectKey::new(text).map_err(|e| corrupt("key", e))
}

/// A geometry from its three columns.
pub(crate) fn geometry(data: i64, parity: i64, copies: i64) -> Result<Geometry> {
    let small = |n: i64| u8::try_from(n).map_err(|e| corrupt("geometry", e));
    Geometry::new(small(data)?, small(parity)?, small(copies)?).map_err(|e| corrupt("geometry", e))
}

/// Refuses a stripe that lacks rows of `chunks`: which of its shards the others are, nobody could tell by their number.
pub(crate) fn check_shards(stripe: StripeRef, geometry: Geometry, shards: usize) -> Result<()> {
    if shards == geometry.shards() {
        return Ok(());
    }
    Err(corrupt("stripe", format!("{shards} shards of {geometry} in {stripe:?}")))
}

/// The column `chunk_locations.status`.
pub(crate) fn location_status(text: &str) -> Result<LocationStatus> {
    let found = LocationStatus::ALL.into_iter().find(|status| status.as_str() == text);
    found.ok_or_else(|| corrupt("location status", text))
}

/// The column `node_scans.reason`.
pub(crate) fn scan_reason(text: &str) -> Result<ScanReason> {
    let found = ScanReason::ALL.into_iter().find(|reason| reason.as_str() == text);
    found.ok_or_else(|| corrupt("reason of a scan", text))
}

/// The column `audit_events.outcome`.
pub(crate) fn audit_outcome(text: &str) -> Result<AuditOutcome> {
    let found = AuditOutcome::ALL.into_iter().find(|outcome| outcome.as_str() == text);
    found.ok_or_else(|| corrupt("outcome of an audit", text))
}

/// A key as people see it in `files.path` and `files.name`: text columns hold no U+0000.
pub(crate) fn shown(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// Host and port of a node's address: one program listens there, whatever it speaks.
pub(crate) fn endpoint(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, endpoint)| endpoint)
}

/// What decides whether a node that is known may register as somebody's.
pub(crate) struct Registered {
    operator: String,
    address: String,
    suspended: bool,
    /// Drained by an administrator, or suspended.
    drained: bool,
}

impl Registered {
    /// As both engines read it, in the order of the fields.
    pub(crate) fn read((operator, address, suspended, drained): (String, String, bool, bool)) -> Self {
        Self { operator, address, suspended, drained }
    }

    pub(crate) fn is_at(&self, at: &str) -> bool {
        endpoint(&self.address) == at
    }

    pub(crate) fn is_of(&self, operator: &str) -> bool {
        self.operator == operator
    }

    /// Whether what it has proven was proven for somebody else. Only an account is somebody: who is first named, or by his account
    /// where the node had named itself, is who he was, so that no cluster loses all that it trusts when it begins to ask for
    /// operators.
    pub(crate) fn changes_hands(&self, operator: &str) -> bool {
        !self.is_of(operator) && self.operator.parse::<OwnerId>().is_ok()
    }

    /// Whether it is to stay with its operator: while he is suspended, and, where he is an account, while an administrator drains
    /// it, which hides a suspension. Where operators are not `asked` for, nobody is suspended or kept.
    pub(crate) fn is_kept(&self, asked: bool, operator: &str) -> bool {
        asked && !self.is_of(operator) && (self.suspended || self.drained && self.changes_hands(operator))
    }
}

/// What a body consists of, in order. A body of no bytes consists of nothing: it has no segment at all.
pub(crate) fn ranges(content: &Content) -> Vec<SegmentRange> {
    match content {
        Content::New(new) if new.length == ByteCount::ZERO => Vec::new(),
        Content::New(new) => vec![SegmentRange { segment: new.id, offset: 0, length: new.length.get() }],
        Content::References(ranges) => ranges.iter().copied().filter(|range| range.length > 0).collect(),
    }
}

/// Refuses content that is not `size` bytes long: our mistake, caught before it is visible.
pub(crate) fn check_size(ranges: &[SegmentRange], size: ByteCount) -> Result<()> {
    let sum = ranges.iter().try_fold(0u64, |sum, range| sum.checked_add(range.length));
    if sum == Some(size.get()) {
        return Ok(());
    }
    let source = format!("the content has {sum:?} bytes and not {}", size.get());
    Err(Error::Database { doing: "record content", source: source.into() })
}

/// Rows of `chunks` that a segment has; one that lives in its row has none.
pub(crate) fn chunk_count(segment: &NewSegment) -> i32 {
    match &segment.body {
        SegmentBody::Inline { .. } => 0,
        SegmentBody::Stripes(stripes) => {
            let chunks: usize = stripes.iter().map(|stripe| stripe.shards.len()).sum();
            i32::try_from(chunks).unwrap_or(i32::MAX)
        }
    }
}

/// How many of these, in their order, come to no more than `most`; the first one always.
pub(crate) fn up_to(most: u64, counts: impl IntoIterator<Item = u64>) -> usize {
    let sums = counts.into_iter().scan(0u64, |sum, count| {
        *sum = sum.saturating_add(count);
        Some(*sum)
    });
    sums.enumerate().take_while(|(nth, sum)| *nth == 0 || *sum <= most).count()
}

/// What a segment adds to the shape of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentShape {
    pub(crate) geometry: Geometry,
    pub(crate) stripe_size: ByteCount,
    pub(crate) chunk_count: i32,
    pub(crate) inline: bool,
}

impl From<&NewSegment> for SegmentShape {
    fn from(new: &NewSegment) -> Self {
        Self {
            geometry: new.geometry,
            stripe_size: new.stripe_size,
            chunk_count: chunk_count(new),
            inline: matches!(new.body, SegmentBody::Inline { .. }),
        }
    }
}

/// The columns of `files` that tell operators how it is cut: those of its first segment, and the sum of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileShape {
    pub(crate) chunk_count: i32,
    pub(crate) data_shards: i16,
    pub(crate) parity_shards: i16,
    pub(crate) chunk_size: i64,
}

impl FileShape {
    /// One shape per range of the file, in order.
    pub(crate) fn of(segments: impl IntoIterator<Item = SegmentShape>) -> Self {
        let mut segments = segments.into_iter();
        let Some(first) = segments.next() else { return Self::default() };
        let (data, parity) =
            if first.inline { (1, 0) } else { (first.geometry.data(), first.geometry.parity()) };
        Self {
            chunk_count: segments
                .fold(first.chunk_count, |sum, segment| sum.saturating_add(segment.chunk_count)),
            data_shards: i16::try_from(data).unwrap_or(i16::MAX),
            parity_shards: i16::try_from(parity).unwrap_or(i16::MAX),
            chunk_size: first.stripe_size.as_i64(),
        }
    }
}

/// How a node stands when a commit names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// `online`.
    Online,
    /// Known, in any other state: it may come back with what it stored.
    Elsewhere,
    /// Removed since, or its data directory has begun another life than the one it stored in. No location is recorded on it:
    /// its inventory may have been compared by now, and nobody else would look whether it still has what it stored.
    Gone,
}

impl Standing {
    /// Of the node of `at`, if it is `known`: whether it is online, and the life of its data directory.
    pub(crate) fn of(at: &NewLocation, known: Option<(bool, Uuid)>) -> Self {
        match known {
            Some((is_online, life)) if life == at.generation.incarnation => {
                if is_online {
                    Self::Online
                } else {
                    Self::Elsewhere
                }
            }
            Some(_) | None => Self::Gone,
        }
    }
}

/// A repair that a commit owes, in the columns of `repair_jobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    /// Node losses still tolerated.
    pub(crate) priority: i32,
    pub(crate) reason: &'static str,
    /// Node losses survived by what is recorded: all that the commit can promise.
    pub(crate) promised: u8,
}

/// Whether a stripe of the segment that is being committed needs repair: it is below its target, or a node that holds a part of
/// it is not online any more. Refuses (`Stale`) if so many left meanwhile that the rest could not be read, or would survive less
/// than is asked for.
pub(crate) fn owed(
    segment: &NewSegment,
    stripe: &NewStripe,
    standing: impl Fn(&NewLocation) -> Standing,
) -> Result<Option<Owed>> {
    let standing = &standing;
    let places = || {
        stripe
            .shards
            .iter()
            .flat_map(move |shard| shard.locations.iter().map(move |at| (shard.index, at.node, standing(at))))
    };
    if places().all(|(.., how)| how == Standing::Online) {
        let short = stripe.tolerance < segment.target_tolerance;
        return Ok(short.then_some(Owed {
            priority: stripe.tolerance.into(),
            reason: "below target",
            promised: stripe.tolerance,
        }));
    }
    let survives = |counts: fn(Standing) -> bool| {
        let held = places().filter(|(.., how)| counts(*how)).map(|(shard, node, _)| (shard, node));
        tolerance(segment.geometry, &held.collect::<Vec<_>>())
    };
    // Nobody is told that bytes are kept which could not be read back now, or not as safely as is asked for.
    let now = survives(|how| how == Standing::Online);
    let promised = survives(|how| how != Standing::Gone);
    match (now, promised) {
        (Some(now), Some(promised)) if promised >= segment.ack_tolerance => {
            Ok(Some(Owed { priority: now.into(), reason: "node not online", promised }))
        }
        _ => Err(Error::Stale { what: "set of nodes" }),
    }
}

/// What Complete answered, and to which parts: the column `multipart_uploads.result`.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Completed {
    file: FileId,
    version_id: String,
    size: ByteCount,
    etag: String,
    content_hash: [u8; 32],
    checksums: Vec<StoredChecksum>,
    part_sizes: Vec<u64>,
    modified_at: Timestamp,
    /// Blake3 of the list of parts.
    parts: String,
}

impl Completed {
    /// Keeps the answer `object` to the request that named `parts`.
    pub(crate) fn new(object: &Object, parts: &[(u32, String)]) -> Self {
        Self {
            file: object.file,
            version_id: object.version_id.clone(),
            size: object.size,
            etag: object.etag.clone(),
            content_hash: object.content_hash,
            checksums: object.attributes.checksums.clone(),
            part_sizes: object.part_sizes.clone(),
            modified_at: object.modified_at,
            parts: fingerprint(parts),
        }
    }

    /// As it was stored.
    pub(crate) fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|e| corrupt("result of a multipart upload", e))
    }

    /// The answer once more; `NoSuchUpload` if other parts are named now.
    pub(crate) fn answer(self, upload: &Multipart, parts: &[(u32, String)]) -> Result<Object> {
        if self.parts != fingerprint(parts) {
            return Err(Error::NoSuchUpload);
        }
        Ok(Object {
            file: self.file,
            bucket: upload.bucket,
            key: upload.key.clone(),
            owner: upload.owner,
            version_id: self.version_id,
            size: self.size,
            etag: self.etag,
            content_hash: self.content_hash,
            attributes: Attributes { checksums: self.checksums, ..upload.attributes.clone() },
            part_sizes: self.part_sizes,
            modified_at: self.modified_at,
        })
    }
}

fn fingerprint(parts: &[(u32, String)]) -> String {
    use std::fmt::Write;
    let mut list = String::with_capacity(parts.len() * 40);
    for (number, etag) in parts {
        writeln!(list, "{number} {etag}").expect("text takes any text");
    }
    ChunkId::of(list.as_bytes()).to_string()
}

/// What nodes report, as a whole number of percent; what is none becomes 0.
pub(crate) fn percent(reported: f64) -> u8 {
    reported.clamp(0.0, 100.0).round() as u8
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::{Generation, NodeId, OwnerId, SegmentId};

    use super::*;
    use crate::model::{NewLocation, NewShard};

    fn node(n: u8) -> NodeId {
        NodeId::from_random([n; 16])
    }

    fn segment(geometry: Geometry, ack_tolerance: u8, target_tolerance: u8) -> NewSegment {
        NewSegment {
            id: SegmentId::from_random([1; 16]),
            owner: OwnerId::from_random([2; 16]),
            length: ByteCount::bytes(9),
            stripe_size: ByteCount::mib(4),
            geometry,
            format: 1,
            content_hash: [1; 32],
            body: SegmentBody::Stripes(Vec::new()),
            ack_tolerance,
            acked_tolerance: target_tolerance,
            target_tolerance,
        }
    }

    fn stripe(geometry: Geometry, tolerance: u8) -> NewStripe {
        let shard = |index: cyxcloud_core::ShardIndex| NewShard {
            index,
            chunk: ChunkId::of(&[index.get() as u8]),
            size: ByteCount::bytes(64),
            locations: vec![NewLocation {
                node: node(index.get() as u8),
                generation: Generation { incarnation: Uuid::nil(), counter: 1 },
                receipt_signature: vec![0; 64],
                stored_at: Timestamp::default(),
            }],
        };
        let shards = geometry.indices().map(shard).collect();
        NewStripe { plain_hash: [1; 32], plain_len: ByteCount::bytes(9), shards, tolerance }
    }

    #[test]
    fn a_whole_stripe_on_online_nodes_owes_nothing() {
        let geometry = Geometry::coded(3, 2).expect("valid");
        let online = |_: &NewLocation| Standing::Online;
        let segment = segment(geometry, 1, 2);
        assert_eq!(owed(&segment, &stripe(geometry, 2), online).expect("readable"), None);
        let short = owed(&segment, &stripe(geometry, 1), online).expect("readable").expect("owed");
        assert_eq!((short.priority, short.promised), (1, 1));
    }

    #[test]
    fn nodes_that_left_make_a_repair_urgent_or_refuse_the_commit() {
        let geometry = Geometry::coded(3, 2).expect("valid");
        let gone = |how: Standing, n: u8| {
            move |at: &NewLocation| if at.node.as_bytes()[0] < n { how } else { Standing::Online }
        };
        // The version bits of a UUID are elsewhere than in its first byte.
        let owes = |ack, how, n| {
            let owed = owed(&segment(geometry, ack, 2), &stripe(geometry, 2), gone(how, n));
            owed.map(|owed| owed.map(|owed| (owed.priority, owed.promised)))
        };
        // Who may come back is counted on for what is promised, and not for what is urgent.
        assert_eq!(owes(2, Standing::Elsewhere, 2).expect("kept"), Some((0, 2)));
        assert_eq!(owes(1, Standing::Gone, 1).expect("kept"), Some((1, 1)));
        assert_eq!(owes(0, Standing::Gone, 2).expect("kept"), Some((0, 0)));
        for (ack, how, n) in [
            (0, Standing::Gone, 3),
            (0, Standing::Elsewhere, 3),
            (2, Standing::Gone, 1),
            (1, Standing::Gone, 2),
        ] {
            let refused = owes(ack, how, n);
            assert!(matches!(refused, Err(Error::Stale { .. })), "{ack} {how:?} {n}");
        }
    }

    #[test]
    fn who_began_another_life_is_gone() {
        let geometry = Geometry::copied(1).expect("valid");
        let at = &stripe(geometry, 0).shards[0].locations[0];
        let (same, another) = (at.generation.incarnation, Uuid::from_u128(1));
        assert_eq!(Standing::of(at, Some((true, same))), Standing::Online);
        assert_eq!(Standing::of(at, Some((false, same))), Standing::Elsewhere);
        for known in [Some((true, another)), Some((false, another)), None] {
            assert_eq!(Standing::of(at, known), Standing::Gone);
        }
    }

    #[test]
    fn content_must_add_up() {
        let range = |length| SegmentRange { segment: SegmentId::from_random([1; 16]), offset: 0, length };
        assert!(check_size(&[range(3), range(4)], ByteCount::bytes(7)).is_ok());
        assert!(check_size(&[range(3)], ByteCount::bytes(7)).is_err());
        assert!(check_size(&[range(u64::MAX), range(8)], ByteCount::bytes(7)).is_err());
        assert!(ranges(&Content::References(vec![range(0)])).is_empty());
    }
}
