//! The metadata store on PostgreSQL (or what speaks its language): the truth of a cluster.
//!
//! Read committed, with row locks where something is decided: each statement sees what was committed before it began,
//! so what is read after a lock is read under it. Locks are taken in one order: keys (sorted), multipart upload,
//! segments (sorted), nodes (sorted), their scans, locations (sorted), repair jobs, the owner, then rows of one's own; where two meet
//! all the same, one is run again. No LISTEN, no advisory locks, no connection outside a transaction.

mod audits;
mod background;
mod commit;
mod connect;
mod content;
mod deletes;
mod garbage;
mod gather;
mod held;
mod identity;
mod listing;
mod multipart;
mod nodes;
mod objects;
mod people;
mod pool;
mod read;
mod repairs;
mod scans;
mod stripes;
mod token_keys;
mod transact;
mod upkeep;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::token_keys::Rotation;
use cyxcloud_core::{BucketId, ByteCount, ChunkId, NodeId, OwnerId, SegmentId, Timestamp, UploadId};

pub use self::connect::endpoint;
use self::pool::Connections;
use crate::MetadataStore;
use crate::error::Result;
use crate::model::{
    Assemble, BadLocation, Bucket, CommitObject, CommitPart, CompleteMultipart, Heard, ListMultiparts,
    ListObjects, ListPage, Multipart, MultipartPage, NewUpload, Node, NodeHeartbeat, NodeStep, Object,
    ObjectLayout, Owner, Part, Precondition, RegisterNode, StripeLayout, TokenKey, Usage,
};

/// Where the database is.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`; a secret, because of the password.
    pub url: String,
    /// Most connections held at a time.
    pub max_connections: u32,
    /// Goes on although the server is configured so that acknowledged commits can be lost.
    pub accept_data_loss: bool,
}

/// Without the URL, which has a password in it.
impl std::fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("max_connections", &self.max_connections)
            .field("accept_data_loss", &self.accept_data_loss)
            .finish_non_exhaustive()
    }
}

/// The metadata store on PostgreSQL.
#[derive(Clone)]
pub struct PostgresStore {
    pool: Connections,
    commits: commit::Commits,
    intents: upkeep::Intents,
    layouts: objects::Layouts,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("idle", &self.pool.idle()).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects within 5 seconds, refuses an unsafe server (`UnsafeDatabase`), and brings the schema up to date.
    pub async fn connect(config: &PostgresConfig) -> Result<Self> {
        let pool = connect::open(config).await?;
        Ok(Self {
            commits: commit::gather(&pool),
            intents: upkeep::gather(&pool),
            layouts: objects::gather(&pool),
            pool,
        })
    }

    /// Waits for connections in use to come back and closes them all.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

#[async_trait]
impl MetadataStore for PostgresStore {
    fn engine(&self) -> &'static str {
        "postgres"
    }

    async fn ping(&self) -> Result<()> {
        self.database_time().await.map(|_| ())
    }

    async fn now(&self) -> Result<Timestamp> {
        self.database_time().await
    }

    async fn keep_constant(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        self.constant(name, value).await
    }

    async fn token_keys(&self, first: &[u8]) -> Result<Vec<TokenKey>> {
        self.believed_token_keys(first).await
    }

    async fn add_token_key(&self, rotation: &Rotation, wrapped_seed: &[u8]) -> Result<TokenKey> {
        self.next_token_key(rotation, wrapped_seed).await
    }

    async fn ensure_owner(&self, owner: &Owner) -> Result<Owner> {
        self.make_owner(owner).await
    }

    async fn owner(&self, id: OwnerId) -> Result<Option<Owner>> {
        self.one_owner(id).await
    }

    async fn owner_usage(&self, id: OwnerId) -> Result<Usage> {
        self.usage_of_owner(id).await
    }

    async fn create_bucket(&self, bucket: &Bucket, most: u32) -> Result<Bucket> {
        self.make_bucket(bucket, most).await
    }

    async fn bucket(&self, name: &BucketName) -> Result<Option<Bucket>> {
        self.one_bucket(name).await
    }

    async fn list_buckets(&self, owner: OwnerId) -> Result<Vec<Bucket>> {
        self.buckets_of(owner).await
    }

    async fn delete_bucket(&self, id: BucketId) -> Result<()> {
        self.drop_bucket(id).await
    }

    async fn buckets_with_usage(&self, owner: OwnerId) -> Result<Vec<(Bucket, Usage)>> {
        self.buckets_and_usage_of(owner).await
    }

    async fn bucket_usage(&self, id: BucketId) -> Result<Usage> {
        self.usage_of_bucket(id).await
    }

    async fn begin_upload(&self, upload: &NewUpload) -> Result<()> {
        self.intend(upload).await
    }

    async fn reserve_more(&self, id: UploadId, more: ByteCount) -> Result<Option<ByteCount>> {
        self.reserve(id, more).await
    }

    async fn renew_upload(&self, id: UploadId, lease: Duration) -> Result<()> {
        self.renew(id, lease).await
    }

    async fn cancel_upload(&self, id: UploadId) -> Result<()> {
        self.cancel(id).await
    }

    async fn commit_object(&self, commit: &CommitObject) -> Result<Object> {
        self.commit(commit).await
    }

    async fn object(&self, bucket: BucketId, key: &ObjectKey) -> Result<Option<Object>> {
        self.current(bucket, key).await
    }

    async fn object_layout(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectLayout>> {
        self.layout(bucket, key, range).await
    }

    async fn stripes(&self, segment: SegmentId, range: Range<u32>) -> Result<Vec<StripeLayout>> {
        self.read_stripes(segment, range).await
    }

    async fn delete_objects(
        &self,
        bucket: BucketId,
        keys: &[ObjectKey],
        precondition: &Precondition,
    ) -> Result<Vec<Option<Object>>> {
        self.delete(bucket, keys, precondition).await
    }

    async fn list_objects(&self, query: &ListObjects) -> Result<ListPage> {
        self.page_of_objects(query).await
    }

    async fn create_multipart(&self, upload: &Multipart, most: u32) -> Result<Multipart> {
        self.open_multipart(upload, most).await
    }

    async fn multipart(&self, id: UploadId) -> Result<Option<Multipart>> {
        self.open_upload(id).await
    }

    async fn commit_part(&self, part: &CommitPart) -> Result<Part> {
        self.record_part(part).await
    }

    async fn list_parts(&self, id: UploadId, after: u32, limit: usize) -> Result<Vec<Part>> {
        self.parts(id, after, limit).await
    }

    async fn complete_multipart(
        &self,
        complete: &CompleteMultipart,
        assemble: &Assemble<'_>,
    ) -> Result<Object> {
        self.complete(complete, assemble).await
    }

    async fn abort_multipart(&self, bucket: BucketId, key: &ObjectKey, id: UploadId) -> Result<()> {
        self.abort(bucket, key, id).await
    }

    async fn list_multiparts(&self, query: &ListMultiparts) -> Result<MultipartPage> {
        self.page_of_multiparts(query).await
    }

    async fn register_node(&self, node: &RegisterNode) -> Result<Node> {
        self.register(node).await
    }

    async fn record_heartbeats(&self, beats: &[NodeHeartbeat]) -> Result<Vec<Option<Heard>>> {
        self.hear(beats).await
    }

    async fn nodes(&self) -> Result<Vec<Node>> {
        self.all_nodes().await
    }

    async fn step_node(&self, step: &NodeStep) -> Result<()> {
        self.step(step).await
    }

    async fn drain_node(&self, node: NodeId, wanted: bool) -> Result<bool> {
        self.drain(node, wanted).await
    }

    async fn suspend_nodes(&self, operators: &[String], suspended: bool) -> Result<Vec<NodeId>> {
        self.suspend(operators, suspended).await
    }

    async fn holds_chunks(&self, id: NodeId) -> Result<bool> {
        self.holds(id).await
    }

    async fn remove_node(&self, id: NodeId) -> Result<()> {
        self.forget(id).await
    }

    async fn report_bad_locations(&self, bad: &[BadLocation]) -> Result<()> {
        self.mark_bad(bad).await
    }

    async fn report_corrupt_chunks(&self, node: NodeId, chunks: &[ChunkId]) -> Result<usize> {
        self.mark_corrupt(node, chunks).await
    }

    async fn fold_usage(&self, limit: usize) -> Result<usize> {
        self.fold(limit).await
    }

    async fn expire_uploads(&self, limit: usize) -> Result<usize> {
        self.expire(limit).await
    }
}
