//! The metadata store: what objects exist, what they are made of, where the pieces are, and which nodes there are.
//!
//! One interface, [`MetadataStore`], two engines: [`postgres`] for clusters and [`sqlite`] inside one process. The
//! promises of the interface are written down as tests in [`conformance`], which run against both.
//!
//! Times are the database's: leases and grace never depend on the clock of a gateway.

pub mod conformance;
pub mod error;
pub mod identity;
mod listing;
pub mod model;
pub mod postgres;
mod rows;
pub mod sqlite;
pub mod upkeep;
mod versions;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::token_keys::Rotation;
use cyxcloud_core::{BucketId, ByteCount, ChunkId, NodeId, OwnerId, SegmentId, Timestamp, UploadId};

pub use error::{Error, Result};
pub use identity::Identity;
use model::{
    Assemble, BadLocation, Bucket, CommitObject, CommitPart, CompleteMultipart, Heard, ListMultiparts,
    ListObjects, ListPage, Multipart, MultipartPage, NewUpload, Node, NodeHeartbeat, NodeStep, Object,
    ObjectLayout, Owner, Part, Precondition, RegisterNode, StripeLayout, TokenKey, Usage,
};
pub use upkeep::Upkeep;

/// The metadata store. Every method is one transaction unless it says otherwise: all of it happens, or nothing.
#[async_trait]
pub trait MetadataStore: Upkeep + Identity + std::fmt::Debug {
    /// Which engine this is, for logs and `/ready`: `postgres` or `sqlite`.
    fn engine(&self) -> &'static str;

    /// Fails if the database cannot answer.
    async fn ping(&self) -> Result<()>;

    /// The database's clock.
    async fn now(&self) -> Result<Timestamp>;

    /// Keeps `value` under `name` unless there is one already; answers with the one kept. For the cluster's own
    /// constants, such as its id and the check value of its master key.
    async fn keep_constant(&self, name: &str, value: &[u8]) -> Result<Vec<u8>>;

    // What tokens for nodes are signed with.

    /// The keys that nodes believe now or will, in order; `first`, as it is wrapped, becomes the first if there is none.
    async fn token_keys(&self, first: &[u8]) -> Result<Vec<TokenKey>>;
    /// Adds the next key and ends those before it as the rotation says; none ends later than it would have. What has ended
    /// is forgotten. `Stale` if `after` is not the newest any more.
    async fn add_token_key(&self, rotation: &Rotation, wrapped_seed: &[u8]) -> Result<TokenKey>;

    // Owners.

    /// Makes an owner, or returns the one that has this id already, unchanged.
    async fn ensure_owner(&self, owner: &Owner) -> Result<Owner>;
    /// One owner.
    async fn owner(&self, id: OwnerId) -> Result<Option<Owner>>;
    /// What the owner stores now.
    async fn owner_usage(&self, id: OwnerId) -> Result<Usage>;

    // Buckets.

    /// Makes a bucket. `BucketExists` if the name is taken, `TooManyBuckets` if its owner has `most` already.
    async fn create_bucket(&self, bucket: &Bucket, most: u32) -> Result<Bucket>;
    /// One bucket.
    async fn bucket(&self, name: &BucketName) -> Result<Option<Bucket>>;
    /// The owner's buckets in byte order of name.
    async fn list_buckets(&self, owner: OwnerId) -> Result<Vec<Bucket>>;
    /// Deletes an empty bucket. `BucketNotEmpty`, `NoSuchBucket`.
    async fn delete_bucket(&self, id: BucketId) -> Result<()>;
    /// The owner's buckets in byte order of name, each with what it holds now.
    async fn buckets_with_usage(&self, owner: OwnerId) -> Result<Vec<(Bucket, Usage)>>;
    /// What the bucket holds now.
    async fn bucket_usage(&self, id: BucketId) -> Result<Usage>;

    // Objects.

    /// Records that an upload is under way, before any byte reaches a node, and reserves its bytes of the quota.
    /// `QuotaExceeded` if there is no room beside what is stored, uploaded in parts, and reserved.
    async fn begin_upload(&self, upload: &NewUpload) -> Result<()>;
    /// Reserves more of the quota for an upload of which nobody said how long it is: at most `more`, and less if there is
    /// no room for that. Answers what it has reserved in all, or `None` where there is no quota. `QuotaExceeded` if there is
    /// room for nothing, `UploadGone`.
    async fn reserve_more(&self, id: UploadId, more: ByteCount) -> Result<Option<ByteCount>>;
    /// Extends the lease from now. `UploadGone` if it ran out and was collected.
    async fn renew_upload(&self, id: UploadId, lease: Duration) -> Result<()>;
    /// Ends an upload that failed. Never an error if it is gone already.
    async fn cancel_upload(&self, id: UploadId) -> Result<()>;
    /// Makes an object visible and the one it replaces garbage. Checks bucket, precondition, quota, intent and
    /// liveness of referenced segments under the key's lock. `Stale` if so much of what was stored is lost by now that the rest
    /// would not survive what is asked for. If the answer to COMMIT is lost, finds out what
    /// happened and answers accordingly.
    async fn commit_object(&self, commit: &CommitObject) -> Result<Object>;
    /// The current object under the key.
    async fn object(&self, bucket: BucketId, key: &ObjectKey) -> Result<Option<Object>>;
    /// The current object and where its bytes are; `range` limits the extents to those that overlap it.
    async fn object_layout(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectLayout>>;
    /// The stripes of a segment, in order, those that exist of the range.
    async fn stripes(&self, segment: SegmentId, range: Range<u32>) -> Result<Vec<StripeLayout>>;
    /// Deletes current objects; one answer per key, in order: the object deleted, or `None` if there was none.
    /// With a precondition that does not hold the whole call fails and nothing is deleted.
    async fn delete_objects(
        &self,
        bucket: BucketId,
        keys: &[ObjectKey],
        precondition: &Precondition,
    ) -> Result<Vec<Option<Object>>>;
    /// A page of current objects in byte order. Does not read what it folds.
    async fn list_objects(&self, query: &ListObjects) -> Result<ListPage>;

    // Multipart uploads.

    /// Opens a multipart upload. `TooManyUploads` if its owner has `most` open ones already.
    async fn create_multipart(&self, upload: &Multipart, most: u32) -> Result<Multipart>;
    /// One open multipart upload.
    async fn multipart(&self, id: UploadId) -> Result<Option<Multipart>>;
    /// Records a part; the one it replaces becomes garbage. `NoSuchUpload` unless the upload is open; `Stale` as of a commit;
    /// `QuotaExceeded` if its intent did not reserve as much and there is no room for it.
    async fn commit_part(&self, part: &CommitPart) -> Result<Part>;
    /// Parts after a number, in order, at most `limit`. `NoSuchUpload` unless the upload is open.
    async fn list_parts(&self, id: UploadId, after: u32, limit: usize) -> Result<Vec<Part>>;
    /// Makes an object of the parts named; the others become garbage. O(parts). Called again with the same parts
    /// after success, it answers as it did then. `InvalidPart` for one that is not there as named, or of which so much is known to
    /// be lost that nobody could read it.
    async fn complete_multipart(
        &self,
        complete: &CompleteMultipart,
        assemble: &Assemble<'_>,
    ) -> Result<Object>;
    /// Drops an open multipart upload and its parts. `NoSuchUpload` unless it is open.
    async fn abort_multipart(&self, bucket: BucketId, key: &ObjectKey, id: UploadId) -> Result<()>;
    /// Open multipart uploads of a bucket.
    async fn list_multiparts(&self, query: &ListMultiparts) -> Result<MultipartPage>;

    // Nodes.

    /// Makes a node known or updates it; the public key is its identity. A node that was offline or draining
    /// comes back as `recovering`, a new one starts `online`. `AddressTaken` where it takes the address of another one that is
    /// online or recovering; `TooManyNodes` where it is one more of its operator's than that may have; `NodeSuspended` where,
    /// operators being asked for, it would leave one who is suspended, or an account while an administrator drains it. What a node had already it keeps; but from one account to another it begins
    /// as one that is new, and is to be vetted again.
    async fn register_node(&self, node: &RegisterNode) -> Result<Node>;
    /// Records heartbeats; answers per heartbeat what is known of the node, or `None` if nobody knows it.
    async fn record_heartbeats(&self, beats: &[NodeHeartbeat]) -> Result<Vec<Option<Heard>>>;
    /// All nodes, in order of id.
    async fn nodes(&self) -> Result<Vec<Node>>;
    /// Carries out one step of a node's life cycle. `Stale` if it is elsewhere by now. Going offline counts a
    /// failure, unless a planned pause was announced, and starts `first_offline_at`; coming online ends it.
    async fn step_node(&self, step: &NodeStep) -> Result<()>;
    /// Drains the nodes of operators who are suspended, whatever they do otherwise, or has those that drain for that
    /// reason recover; all others are left as they are. Answers which nodes changed.
    async fn suspend_nodes(&self, operators: &[String], suspended: bool) -> Result<Vec<NodeId>>;
    /// Drains a node because an administrator wants it, also one that drains for its absence and would come back; or no longer,
    /// whereupon it is `recovering`. Whether anything changed: a suspended operator's nodes go on draining.
    async fn drain_node(&self, node: NodeId, wanted: bool) -> Result<bool>;
    /// Whether a node is believed to hold anything that an object needs (a location of status `stored`).
    async fn holds_chunks(&self, id: NodeId) -> Result<bool>;
    /// Forgets a node and its locations. `Stale` unless it is `draining`.
    async fn remove_node(&self, id: NodeId) -> Result<()>;
    /// Marks locations lost or corrupt and queues the repair of their stripes; of nodes that sent other bytes an audit of the
    /// whole chunk is due at once, among the contained ones. So it is, of one chunk, of a node that denied some, if it is not
    /// held back, owes no answer soon, and collection is not frozen. Idempotent.
    async fn report_bad_locations(&self, bad: &[BadLocation]) -> Result<()>;

    /// Marks every location of these chunks on this node corrupt and queues repairs, as the node itself asked;
    /// answers how many locations that were. Idempotent.
    async fn report_corrupt_chunks(&self, node: NodeId, chunks: &[ChunkId]) -> Result<usize>;

    // Upkeep.

    /// Folds at most `limit` usage deltas into their totals; answers how many there were.
    async fn fold_usage(&self, limit: usize) -> Result<usize>;
    /// Collects at most `limit` intents whose lease ran out; answers how many there were.
    async fn expire_uploads(&self, limit: usize) -> Result<usize>;
}

/// How much of `wanted` there is room for beside what is used; refuses if that is nothing.
pub(crate) fn room_for(quota: ByteCount, used: ByteCount, wanted: ByteCount) -> Result<ByteCount> {
    check_quota(Some(quota), used, ByteCount::bytes(1))?;
    Ok(wanted.min(quota.saturating_sub(used)))
}

/// What keeps an owner's quota: refuses if `used` and `more` go beyond it.
pub fn check_quota(quota: Option<ByteCount>, used: ByteCount, more: ByteCount) -> Result<()> {
    match quota {
        Some(quota) if used.saturating_add(more) > quota => Err(Error::QuotaExceeded { quota: quota.get() }),
        _ => Ok(()),
    }
}
