//! What the metadata store keeps, as plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::repair::NodeFacts;
use cyxcloud_core::token_keys::KeyTimes;
use cyxcloud_core::{
    BucketId, ByteCount, ChunkId, FileId, Generation, Geometry, NodeId, OwnerId, SegmentId, ShardIndex,
    Timestamp, UploadId,
};
use uuid::Uuid;

/// A person or program that owns buckets: a row of `users`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Primary key.
    pub id: OwnerId,
    /// Unique label.
    pub username: Option<String>,
    /// Address, if given.
    pub email: Option<String>,
    /// Solana wallet in base58, if linked.
    pub wallet_address: Option<String>,
    /// `user` or `admin`.
    pub admin: bool,
    /// Bytes the owner may store; `None` is no limit.
    pub storage_quota: Option<ByteCount>,
    /// The owner's sealing secret, wrapped under the server's master key.
    pub wrapped_secret: Vec<u8>,
    /// When it was made, by the database's clock. Ignored on creation.
    pub created_at: Timestamp,
}

/// A key that our servers sign tokens for nodes with: a row of `token_keys`.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey {
    /// When it is good for what.
    pub times: KeyTimes,
    /// Its seed, wrapped under the server's master key.
    pub wrapped_seed: Vec<u8>,
    /// By the database's clock.
    pub created_at: Timestamp,
}

/// Without the seed, wrapped or not.
impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { times, created_at, .. } = self;
        f.debug_struct("TokenKey")
            .field("times", times)
            .field("created_at", created_at)
            .finish_non_exhaustive()
    }
}

/// A row of `buckets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Primary key.
    pub id: BucketId,
    /// Unique name.
    pub name: BucketName,
    /// Whose it is.
    pub owner: OwnerId,
    /// Name of the placement profile.
    pub profile: String,
    /// When it was made, by the database's clock. Ignored on creation.
    pub created_at: Timestamp,
}

/// What is stored, folded and unfolded together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of current objects, as their owners see them.
    pub bytes: ByteCount,
    /// Current objects.
    pub objects: u64,
}

/// An upload that begins: a row of `upload_intents`.
#[derive(Clone, Debug)]
pub struct NewUpload {
    /// Identity of the operation.
    pub id: UploadId,
    /// Who uploads.
    pub owner: OwnerId,
    /// Where to.
    pub bucket: BucketId,
    /// Under which key.
    pub key: ObjectKey,
    /// How long the intent lives unless it is renewed, in database time.
    pub lease: Duration,
    /// Bytes that it will take of the owner's quota, as far as known; given back when the intent ends.
    pub reserve: ByteCount,
}

/// What must hold for a write or delete to happen. Judged under the key's lock; a delete marker counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Always.
    #[default]
    None,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: *`.
    Exists,
    /// `If-Match: "etag"`; without quotes here.
    EtagIs(String),
}

impl Precondition {
    /// Whether it holds for the current object's ETag (`None`: there is no current object).
    /// An `If-Match` on an absent key is `NoSuchKey`, as S3 answers.
    pub fn judge(&self, current_etag: Option<&str>) -> crate::Result<()> {
        match (self, current_etag) {
            (Self::None, _) | (Self::Absent, None) | (Self::Exists, Some(_)) => Ok(()),
            (Self::EtagIs(want), Some(have)) if want == have => Ok(()),
            (Self::Exists | Self::EtagIs(_), None) => Err(crate::Error::NoSuchKey),
            (Self::Absent | Self::EtagIs(_), Some(_)) => Err(crate::Error::PreconditionFailed),
        }
    }
}

/// A checksum that a client gave or asked for, kept with the object.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredChecksum {
    /// S3's name of the algorithm, such as `CRC64NVME`.
    pub algorithm: String,
    /// Base64; of a composite with its `-N`.
    pub value: String,
    /// Whether it is over the parts' checksums rather than over the object.
    pub composite: bool,
}

/// What describes an object beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// Other content headers that S3 keeps and returns (`cache-control`, `content-disposition`,
    /// `content-encoding`, `content-language`, `expires`, `x-amz-website-redirect-location`, `x-amz-storage-class`), lower-case names.
    pub headers: BTreeMap<String, String>,
    /// `x-amz-meta-*` without the prefix, lower-case names.
    pub metadata: BTreeMap<String, String>,
    /// Checksums to be returned.
    pub checksums: Vec<StoredChecksum>,
}

/// A node's answer to one store, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLocation {
    /// Who holds it.
    pub node: NodeId,
    /// The generation of that store.
    pub generation: Generation,
    /// The node's signature (64 bytes) and its time, from the receipt.
    pub receipt_signature: Vec<u8>,
    /// `stored_at` of the receipt: the node's clock; evidence only, decides nothing.
    pub stored_at: Timestamp,
}

/// One shard of a stripe to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewShard {
    /// Its place.
    pub index: ShardIndex,
    /// Blake3 of its bytes.
    pub chunk: ChunkId,
    /// Its length.
    pub size: ByteCount,
    /// Where it was acknowledged; may be empty (left to repair).
    pub locations: Vec<NewLocation>,
}

/// One stripe to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewStripe {
    /// Blake3 of the plain bytes.
    pub plain_hash: [u8; 32],
    /// Number of plain bytes.
    pub plain_len: ByteCount,
    /// All shards of the geometry, in order.
    pub shards: Vec<NewShard>,
    /// Node losses that the acknowledged locations survive.
    pub tolerance: u8,
}

/// Where a segment's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentBody {
    /// On nodes, in order. Empty for a body of no bytes.
    Stripes(Vec<NewStripe>),
    /// Sealed in the row itself. `plain_hash` is what the key is derived from.
    Inline {
        /// Blake3 of the plain bytes.
        plain_hash: [u8; 32],
        /// The sealed bytes.
        sealed: Bytes,
    },
}

/// A segment to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSegment {
    /// Random.
    pub id: SegmentId,
    /// Whose secret sealed it.
    pub owner: OwnerId,
    /// Plain bytes.
    pub length: ByteCount,
    /// Plain bytes of every stripe but the last.
    pub stripe_size: ByteCount,
    /// How stripes are coded.
    pub geometry: Geometry,
    /// Version of the sealed format.
    pub format: u8,
    /// Blake3 over the plain body.
    pub content_hash: [u8; 32],
    /// Where the bytes are.
    pub body: SegmentBody,
    /// Node losses that every stripe must survive, or it is not acknowledged.
    pub ack_tolerance: u8,
    /// Node losses that every stripe survives as it was stored. Less is recorded where nodes were lost by the commit.
    pub acked_tolerance: u8,
    /// Node losses that the profile wants every stripe to survive.
    pub target_tolerance: u8,
}

/// A range of an existing segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRange {
    /// Which.
    pub segment: SegmentId,
    /// First byte within the segment.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// What an object or part is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes just written.
    New(NewSegment),
    /// Ranges of segments that exist; they are locked and must be live.
    References(Vec<SegmentRange>),
}

/// All that makes an object visible, in one transaction.
#[derive(Clone, Debug)]
pub struct CommitObject {
    /// Identity of the operation; unique, so that a commit whose answer was lost can be found again.
    pub upload: UploadId,
    /// Whether `begin_upload` was called. The commit then ends the intent and refuses if it is gone.
    pub has_intent: bool,
    /// Primary key of the new version.
    pub file: FileId,
    /// Who pays.
    pub owner: OwnerId,
    /// Where.
    pub bucket: BucketId,
    /// Under which key.
    pub key: ObjectKey,
    /// What must hold.
    pub precondition: Precondition,
    /// Plain bytes.
    pub size: ByteCount,
    /// Without quotes.
    pub etag: String,
    /// Blake3 of the body, or over its segments' hashes.
    pub content_hash: [u8; 32],
    /// Headers and metadata.
    pub attributes: Attributes,
    /// The bytes.
    pub content: Content,
}

/// A current object as HEAD and listings see it: a row of `files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Primary key.
    pub file: FileId,
    /// Where.
    pub bucket: BucketId,
    /// Under which key.
    pub key: ObjectKey,
    /// Whose secret seals it.
    pub owner: OwnerId,
    /// S3 version id; `null` where versioning is off.
    pub version_id: String,
    /// Plain bytes.
    pub size: ByteCount,
    /// Without quotes.
    pub etag: String,
    /// Blake3 content hash.
    pub content_hash: [u8; 32],
    /// Headers and metadata.
    pub attributes: Attributes,
    /// Sizes of the parts of a multipart object in order, empty otherwise.
    pub part_sizes: Vec<u64>,
    /// When it became visible, by the database's clock.
    pub modified_at: Timestamp,
}

/// A run of an object's bytes within one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte within the object.
    pub object_offset: u64,
    /// First byte within the segment.
    pub segment_offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// The segment.
    pub segment: SegmentInfo,
    /// What the store gave along, so that a reader need not ask: some of the segment's stripes, in order and without
    /// gaps, from the first one that the range asked for lies in. None of this is a promise; ask `stripes` for others.
    pub stripes: Vec<StripeLayout>,
}

/// What reading a segment needs to know; immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Primary key.
    pub id: SegmentId,
    /// Whose secret sealed it.
    pub owner: OwnerId,
    /// Plain bytes.
    pub length: ByteCount,
    /// Plain bytes of every stripe but the last.
    pub stripe_size: ByteCount,
    /// How stripes are coded.
    pub geometry: Geometry,
    /// Version of the sealed format.
    pub format: u8,
    /// Blake3 over the plain body.
    pub content_hash: [u8; 32],
    /// Acknowledged tolerance.
    pub acked_tolerance: u8,
    /// Wanted tolerance.
    pub target_tolerance: u8,
    /// `(plain hash, sealed bytes)`, where it lives in the row.
    pub inline: Option<([u8; 32], Bytes)>,
}

/// An object with where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLayout {
    /// The object.
    pub object: Object,
    /// Its extents in order; they cover `0..size`.
    pub extents: Vec<Extent>,
}

/// A stripe as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeLayout {
    /// Place in the segment.
    pub index: u32,
    /// Blake3 of the plain bytes.
    pub plain_hash: [u8; 32],
    /// Number of plain bytes.
    pub plain_len: ByteCount,
    /// Shards in order.
    pub shards: Vec<ShardLayout>,
}

/// A shard as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLayout {
    /// Its place.
    pub index: ShardIndex,
    /// Blake3 of its bytes.
    pub chunk: ChunkId,
    /// Its length.
    pub size: ByteCount,
    /// Nodes that are believed to hold it (locations of status `stored`).
    pub nodes: Vec<NodeId>,
}

/// A location found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLocation {
    /// The stripe's segment.
    pub segment: SegmentId,
    /// The stripe.
    pub stripe: u32,
    /// The shard.
    pub shard: ShardIndex,
    /// The node that failed.
    pub node: NodeId,
    /// How.
    pub fault: Fault,
}

/// In what way a location is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node says it does not hold it.
    Missing,
    /// The node sent other bytes. It is audited for it at once.
    Corrupt,
    /// The node says that its bytes rotted.
    Rotten,
}

/// What to list.
#[derive(Clone, Debug)]
pub struct ListObjects {
    /// Where.
    pub bucket: BucketId,
    /// Only keys that begin with this; empty is all.
    pub prefix: String,
    /// Fold keys that share what lies between the prefix and the next delimiter.
    pub delimiter: Option<String>,
    /// Only entries after this one in byte order (a key, or a common prefix, which excludes all keys under it).
    pub after: Option<String>,
    /// Page size, objects and common prefixes together.
    pub limit: usize,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListEntry {
    /// An object.
    Object(ListedObject),
    /// Keys folded under a common prefix, which includes the delimiter.
    Prefix(String),
}

/// The part of an object that listings show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: String,
    /// Plain bytes.
    pub size: ByteCount,
    /// Without quotes.
    pub etag: String,
    /// When it became visible.
    pub modified_at: Timestamp,
    /// Names of its checksum algorithms.
    pub checksum_algorithms: Vec<String>,
}

/// A page of a listing in byte order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects and common prefixes, at most `limit`.
    pub entries: Vec<ListEntry>,
    /// Pass as `after` to go on; `None` at the end.
    pub next: Option<String>,
}

/// A multipart upload: a row of `multipart_uploads`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multipart {
    /// The upload id that clients see, as a UUID.
    pub id: UploadId,
    /// Where.
    pub bucket: BucketId,
    /// Under which key.
    pub key: ObjectKey,
    /// Who.
    pub owner: OwnerId,
    /// Headers and metadata of the object to be.
    pub attributes: Attributes,
    /// S3's name of the checksum algorithm chosen at creation.
    pub checksum_algorithm: Option<String>,
    /// `COMPOSITE` or `FULL_OBJECT`, if chosen.
    pub checksum_type: Option<String>,
    /// When, by the database's clock. Ignored on creation.
    pub initiated_at: Timestamp,
}

/// A part to be recorded; it replaces one of the same number.
#[derive(Clone, Debug)]
pub struct CommitPart {
    /// The multipart upload.
    pub multipart: UploadId,
    /// 1 to 10,000.
    pub number: u32,
    /// The intent under which the part was written; ended by the commit.
    pub intent: Option<UploadId>,
    /// Plain bytes.
    pub size: ByteCount,
    /// MD5 in hexadecimal.
    pub etag: String,
    /// Blake3 of the part.
    pub content_hash: [u8; 32],
    /// Checksums given with the part.
    pub checksums: Vec<StoredChecksum>,
    /// The bytes.
    pub content: Content,
}

/// A part as it is listed and assembled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// 1 to 10,000.
    pub number: u32,
    /// Plain bytes.
    pub size: ByteCount,
    /// MD5 in hexadecimal.
    pub etag: String,
    /// Blake3 of the part.
    pub content_hash: [u8; 32],
    /// Checksums given with the part.
    pub checksums: Vec<StoredChecksum>,
    /// When it was recorded.
    pub modified_at: Timestamp,
}

/// What the parts make, computed by the caller inside the completing transaction.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// `md5(part md5s)-N`, without quotes.
    pub etag: String,
    /// Blake3 over the parts' hashes.
    pub content_hash: [u8; 32],
    /// Of the whole object.
    pub checksums: Vec<StoredChecksum>,
}

/// Makes an object of parts: `(parts in order) -> what they make`. Pure, because transactions may be retried.
pub type Assemble<'a> =
    dyn Fn(&Multipart, &[Part]) -> Result<Assembled, crate::error::PartsRefusal> + Send + Sync + 'a;

/// Completes a multipart upload.
#[derive(Clone, Debug)]
pub struct CompleteMultipart {
    /// The multipart upload.
    pub multipart: UploadId,
    /// Must be the upload's own.
    pub bucket: BucketId,
    /// Must be the upload's own.
    pub key: ObjectKey,
    /// Primary key of the new version.
    pub file: FileId,
    /// What must hold.
    pub precondition: Precondition,
    /// `(number, etag without quotes)` in strictly ascending order.
    pub parts: Vec<(u32, String)>,
}

/// A page of open multipart uploads.
#[derive(Clone, Debug, Default)]
pub struct MultipartPage {
    /// In byte order of key, then of time.
    pub uploads: Vec<Multipart>,
    /// Folded prefixes, in byte order.
    pub prefixes: Vec<String>,
    /// `(key or prefix, upload id)` to go on after; `None` at the end.
    pub next: Option<(String, Option<UploadId>)>,
}

/// What to list of the open multipart uploads.
#[derive(Clone, Debug)]
pub struct ListMultiparts {
    /// Where.
    pub bucket: BucketId,
    /// Only keys that begin with this.
    pub prefix: String,
    /// Fold by this.
    pub delimiter: Option<String>,
    /// Only uploads of keys after this one, or of this key with later ids if `after_upload` is given.
    pub after_key: Option<String>,
    /// See `after_key`.
    pub after_upload: Option<UploadId>,
    /// Page size.
    pub limit: usize,
}

/// A storage node: a row of `nodes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Primary key; stable for a public key.
    pub id: NodeId,
    /// Ed25519 public key.
    pub public_key: [u8; 32],
    /// libp2p peer id.
    pub peer_id: String,
    /// NODE_ID.
    pub label: String,
    /// NODE_NAME.
    pub name: String,
    /// URL of the ChunkService.
    pub grpc_address: String,
    /// URL of health and metrics.
    pub metrics_address: String,
    /// The data directory's life.
    pub incarnation: Uuid,
    /// Offered capacity, reservation included.
    pub storage_total: ByteCount,
    /// Reserved for system use.
    pub storage_reserved: ByteCount,
    /// Bytes of stored chunks, as last reported.
    pub storage_used: ByteCount,
    /// Bytes that can still be stored, as last reported; already less the reservation.
    pub storage_available: ByteCount,
    /// Place in the life cycle.
    pub status: NodeStatus,
    /// When it last changed.
    pub status_changed_at: Timestamp,
    /// Last sign of life, by the database's clock.
    pub last_heartbeat: Timestamp,
    /// Since when it is silent.
    pub first_offline_at: Option<Timestamp>,
    /// Times it went offline, planned pauses aside.
    pub failure_count: u32,
    /// Failure domain.
    pub region: String,
    /// Failure domain; empty: the node itself.
    pub operator: String,
    /// Failure domain: the /24 or /64 of its address.
    pub subnet: String,
    /// Software version.
    pub version: String,
    /// Wire protocol version.
    pub wire_version: u32,
    /// Paused by its operator.
    pub maintenance: bool,
    /// Its disk refuses writes.
    pub read_only: bool,
    /// Held back from new data after a proven fault.
    pub quarantined: bool,
    /// Known and proven for long enough to be given its share of what is written.
    pub vetted: bool,
    /// Processor use of its machine at the last heartbeat, in percent.
    pub cpu_usage: u8,
    /// Requests that it served at the last heartbeat.
    pub active_connections: u64,
}

impl Node {
    /// What decides how much its copies count, by the database's clock; `offline` is the silence after which a node is.
    pub fn facts(&self, now: Timestamp, offline: Duration) -> NodeFacts {
        NodeFacts {
            status: self.status,
            first_offline_at: self.first_offline_at,
            maintenance: self.maintenance,
            quarantined: self.quarantined,
            silent: now.since(self.last_heartbeat) >= offline,
        }
    }
}

/// A registration, after the gateway has checked it.
#[derive(Clone, Debug)]
pub struct RegisterNode {
    /// Used if the public key is new.
    pub id: NodeId,
    /// Ed25519 public key.
    pub public_key: [u8; 32],
    /// libp2p peer id.
    pub peer_id: String,
    /// NODE_ID.
    pub label: String,
    /// NODE_NAME.
    pub name: String,
    /// URL of the ChunkService.
    pub grpc_address: String,
    /// URL of health and metrics.
    pub metrics_address: String,
    /// The data directory's life.
    pub incarnation: Uuid,
    /// Offered capacity, reservation included.
    pub storage_total: ByteCount,
    /// Reserved for system use.
    pub storage_reserved: ByteCount,
    /// Bytes of stored chunks.
    pub storage_used: ByteCount,
    /// Failure domain.
    pub region: String,
    /// Failure domain.
    pub operator: String,
    /// Failure domain.
    pub subnet: String,
    /// Software version.
    pub version: String,
    /// Wire protocol version.
    pub wire_version: u32,
    /// Nodes that its operator may have, this one included; `None`: as many as there are.
    pub nodes_max: Option<u32>,
}

/// What the store knows of a node whose heartbeat it recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its place in the life cycle.
    pub status: NodeStatus,
    /// The life of its data directory that it registered with.
    pub incarnation: Uuid,
    /// The database's time.
    pub now: Timestamp,
}

/// One heartbeat of a batch.
#[derive(Clone, Debug)]
pub struct NodeHeartbeat {
    /// Who.
    pub node: NodeId,
    /// Bytes of stored chunks.
    pub storage_used: ByteCount,
    /// Bytes that can still be stored.
    pub storage_available: ByteCount,
    /// 0 to 100.
    pub cpu_usage: f64,
    /// 0 to 100.
    pub memory_usage: f64,
    /// Requests being served.
    pub active_connections: u64,
    /// Paused by its operator.
    pub maintenance: bool,
    /// Its disk refuses writes.
    pub read_only: bool,
}

/// A step of a node's life cycle to be recorded, if the node is still in `from`.
#[derive(Clone, Copy, Debug)]
pub struct NodeStep {
    /// Who.
    pub node: NodeId,
    /// Where it must be.
    pub from: NodeStatus,
    /// Where it goes.
    pub to: NodeStatus,
}
