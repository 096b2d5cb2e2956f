//! The metadata store inside one process, on SQLite.
//!
//! A write is durable when it returns: WAL with `synchronous=FULL`, one writer that groups commits. One process has
//! the file at a time; another is refused. Not here: what the methods promise (`MetadataStore`, `conformance`).

mod audits;
mod background;
mod buckets;
mod commit;
mod content;
mod deletes;
mod engine;
mod garbage;
mod held;
mod identity;
mod inventory;
mod multipart;
mod nodes;
mod objects;
mod owners;
mod repairs;
mod row;
mod scans;
mod schema;
mod stripes;
mod token_keys;
mod uploads;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::token_keys::Rotation;
use cyxcloud_core::{BucketId, ByteCount, ChunkId, NodeId, OwnerId, SegmentId, Timestamp, UploadId};

use self::engine::Engine;
use self::multipart::Prepared;
pub use self::schema::SqliteConfig;
use crate::MetadataStore;
use crate::error::{Error, Result};
use crate::model::{
    Assemble, BadLocation, Bucket, CommitObject, CommitPart, CompleteMultipart, Heard, ListMultiparts,
    ListObjects, ListPage, Multipart, MultipartPage, NewUpload, Node, NodeHeartbeat, NodeStep, Object,
    ObjectLayout, Owner, Part, Precondition, RegisterNode, StripeLayout, TokenKey, Usage,
};

/// The embedded metadata store. Dropping it finishes what was begun and closes the file.
#[derive(Debug)]
pub struct SqliteStore {
    engine: Engine,
}

impl SqliteStore {
    /// Opens the database, making it if there is none, and brings its schema up to date. Blocks on the disk.
    ///
    /// `Unavailable` if the file cannot be used or another process has it; `Corrupt` if a newer program wrote it.
    pub fn open(config: &SqliteConfig) -> Result<Self> {
        Ok(Self { engine: schema::open(config)? })
    }
}

#[async_trait]
impl MetadataStore for SqliteStore {
    fn engine(&self) -> &'static str {
        "sqlite"
    }

    async fn ping(&self) -> Result<()> {
        const DOING: &str = "reach the metadata database";
        if !self.engine.is_running() {
            return Err(Error::Unavailable { doing: DOING, source: "the writer has stopped".into() });
        }
        self.engine
            .read(DOING, |db| Ok(row::exists(db, "SELECT 1 FROM sqlite_master", []).map(|_| ())?))
            .await
    }

    async fn now(&self) -> Result<Timestamp> {
        Ok(row::now())
    }

    async fn keep_constant(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.engine.write("keep a constant", move |db| owners::keep_constant(db, &name, &value)).await
    }

    async fn token_keys(&self, first: &[u8]) -> Result<Vec<TokenKey>> {
        let keys = self.engine.read("read the keys for tokens", token_keys::believed).await?;
        if !keys.is_empty() {
            return Ok(keys);
        }
        let first = first.to_vec();
        self.engine.write("make a key for tokens", move |db| token_keys::make_first(db, &first)).await
    }

    async fn add_token_key(&self, rotation: &Rotation, wrapped_seed: &[u8]) -> Result<TokenKey> {
        let (rotation, seed) = (*rotation, wrapped_seed.to_vec());
        self.engine.write("rotate the key for tokens", move |db| token_keys::add(db, &rotation, &seed)).await
    }

    async fn ensure_owner(&self, owner: &Owner) -> Result<Owner> {
        let owner = owner.clone();
        self.engine.write("make an owner", move |db| owners::ensure(db, &owner)).await
    }

    async fn owner(&self, id: OwnerId) -> Result<Option<Owner>> {
        self.engine.read("read an owner", move |db| owners::get(db, id)).await
    }

    async fn owner_usage(&self, id: OwnerId) -> Result<Usage> {
        self.engine.read("read an owner's usage", move |db| owners::usage(db, id)).await
    }

    async fn create_bucket(&self, bucket: &Bucket, most: u32) -> Result<Bucket> {
        let bucket = bucket.clone();
        self.engine.write("create the bucket", move |db| buckets::create(db, &bucket, most)).await
    }

    async fn bucket(&self, name: &BucketName) -> Result<Option<Bucket>> {
        let name = name.clone();
        self.engine.read("read the bucket", move |db| buckets::get(db, name.as_str())).await
    }

    async fn list_buckets(&self, owner: OwnerId) -> Result<Vec<Bucket>> {
        self.engine.read("list buckets", move |db| buckets::list(db, owner)).await
    }

    async fn delete_bucket(&self, id: BucketId) -> Result<()> {
        self.engine.write("delete the bucket", move |db| buckets::delete(db, id)).await
    }

    async fn buckets_with_usage(&self, owner: OwnerId) -> Result<Vec<(Bucket, Usage)>> {
        let list = move |db: &rusqlite::Connection| buckets::list_with_usage(db, owner);
        self.engine.read("list buckets and their usage", list).await
    }

    async fn bucket_usage(&self, id: BucketId) -> Result<Usage> {
        self.engine.read("read the bucket's usage", move |db| buckets::usage(db, id)).await
    }

    async fn begin_upload(&self, upload: &NewUpload) -> Result<()> {
        let upload = upload.clone();
        self.engine.write("begin the upload", move |db| uploads::begin(db, &upload)).await
    }

    async fn reserve_more(&self, id: UploadId, more: ByteCount) -> Result<Option<ByteCount>> {
        self.engine.write("reserve room for the upload", move |db| uploads::reserve_more(db, id, more)).await
    }

    async fn renew_upload(&self, id: UploadId, lease: Duration) -> Result<()> {
        self.engine.write("renew the upload", move |db| uploads::renew(db, id, lease)).await
    }

    async fn cancel_upload(&self, id: UploadId) -> Result<()> {
        self.engine.write("cancel the upload", move |db| uploads::end(db, id).map(|_| ())).await
    }

    async fn commit_object(&self, commit: &CommitObject) -> Result<Object> {
        let commit = commit.clone();
        self.engine.write("commit the object", move |db| commit::object(db, &commit)).await
    }

    async fn object(&self, bucket: BucketId, key: &ObjectKey) -> Result<Option<Object>> {
        let key = key.clone();
        self.engine.read("read the object", move |db| objects::get(db, bucket, &key)).await
    }

    async fn object_layout(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectLayout>> {
        let key = key.clone();
        self.engine.read("read the object's layout", move |db| objects::layout(db, bucket, &key, range)).await
    }

    async fn stripes(&self, segment: SegmentId, range: Range<u32>) -> Result<Vec<StripeLayout>> {
        self.engine.read("read stripes", move |db| objects::stripes(db, segment, range)).await
    }

    async fn delete_objects(
        &self,
        bucket: BucketId,
        keys: &[ObjectKey],
        precondition: &Precondition,
    ) -> Result<Vec<Option<Object>>> {
        let (keys, precondition) = (keys.to_vec(), precondition.clone());
        self.engine.write("delete objects", move |db| commit::delete(db, bucket, &keys, &precondition)).await
    }

    async fn list_objects(&self, query: &ListObjects) -> Result<ListPage> {
        let query = query.clone();
        self.engine.read("list objects", move |db| objects::list(db, &query)).await
    }

    async fn create_multipart(&self, upload: &Multipart, most: u32) -> Result<Multipart> {
        let upload = upload.clone();
        self.engine.write("create the multipart upload", move |db| multipart::create(db, &upload, most)).await
    }

    async fn multipart(&self, id: UploadId) -> Result<Option<Multipart>> {
        self.engine.read("read the multipart upload", move |db| multipart::get(db, id)).await
    }

    async fn commit_part(&self, part: &CommitPart) -> Result<Part> {
        let part = part.clone();
        self.engine.write("commit the part", move |db| multipart::commit_part(db, &part)).await
    }

    async fn list_parts(&self, id: UploadId, after: u32, limit: usize) -> Result<Vec<Part>> {
        self.engine.read("list parts", move |db| multipart::list_parts(db, id, after, limit)).await
    }

    async fn complete_multipart(
        &self,
        complete: &CompleteMultipart,
        assemble: &Assemble<'_>,
    ) -> Result<Object> {
        const DOING: &str = "complete the multipart upload";
        loop {
            let request = complete.clone();
            let (upload, parts) =
                match self.engine.read(DOING, move |db| multipart::prepare(db, &request)).await? {
                    Prepared::Answered(object) => return Ok(object),
                    Prepared::Ready(upload, parts) => (upload, parts),
                };
            let assembled = assemble(&upload, &parts).map_err(|reason| Error::PartsRefused { reason })?;
            let request = complete.clone();
            let finish = move |db: &rusqlite::Connection| multipart::finish(db, &request, &parts, &assembled);
            // Parts that changed in between are looked at again.
            if let Some(object) = self.engine.write(DOING, finish).await? {
                return Ok(object);
            }
        }
    }

    async fn abort_multipart(&self, bucket: BucketId, key: &ObjectKey, id: UploadId) -> Result<()> {
        let key = key.clone();
        self.engine
            .write("abort the multipart upload", move |db| multipart::abort(db, bucket, &key, id))
            .await
    }

    async fn list_multiparts(&self, query: &ListMultiparts) -> Result<MultipartPage> {
        let query = query.clone();
        self.engine.read("list multipart uploads", move |db| multipart::list(db, &query)).await
    }

    async fn register_node(&self, node: &RegisterNode) -> Result<Node> {
        let node = node.clone();
        self.engine.write("register the node", move |db| nodes::register(db, &node)).await
    }

    async fn record_heartbeats(&self, beats: &[NodeHeartbeat]) -> Result<Vec<Option<Heard>>> {
        let beats = beats.to_vec();
        self.engine.write("record heartbeats", move |db| nodes::heartbeats(db, &beats)).await
    }

    async fn nodes(&self) -> Result<Vec<Node>> {
        self.engine.read("list nodes", nodes::list).await
    }

    async fn step_node(&self, step: &NodeStep) -> Result<()> {
        let step = *step;
        self.engine.write("change the node's status", move |db| nodes::step(db, &step)).await
    }

    async fn drain_node(&self, node: NodeId, wanted: bool) -> Result<bool> {
        self.engine.write("drain the node", move |db| nodes::drain(db, node, wanted)).await
    }

    async fn suspend_nodes(&self, operators: &[String], suspended: bool) -> Result<Vec<NodeId>> {
        let operators = operators.to_vec();
        self.engine.write("suspend nodes", move |db| nodes::suspend(db, &operators, suspended)).await
    }

    async fn holds_chunks(&self, id: NodeId) -> Result<bool> {
        self.engine.read("look for what the node holds", move |db| nodes::holds_chunks(db, id)).await
    }

    async fn remove_node(&self, id: NodeId) -> Result<()> {
        self.engine.write("remove the node", move |db| nodes::remove(db, id)).await
    }

    async fn report_bad_locations(&self, bad: &[BadLocation]) -> Result<()> {
        let bad = bad.to_vec();
        self.engine.write("record bad locations", move |db| nodes::report_bad(db, &bad)).await
    }

    async fn report_corrupt_chunks(&self, node: NodeId, chunks: &[ChunkId]) -> Result<usize> {
        let chunks = chunks.to_vec();
        self.engine.write("record corrupt chunks", move |db| nodes::report_corrupt(db, node, &chunks)).await
    }

    /// There are none to fold: the one writer keeps the totals exact.
    async fn fold_usage(&self, _limit: usize) -> Result<usize> {
        Ok(0)
    }

    async fn expire_uploads(&self, limit: usize) -> Result<usize> {
        self.engine.write("collect uploads that ran out", move |db| uploads::expire(db, limit)).await
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod upkeep_tests;
