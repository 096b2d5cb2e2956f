//! Fake nodes, a metadata store in memory, and a data plane over them.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::profile::Profile;
use cyxcloud_core::seal::{MasterKey, OwnerSecret};
use cyxcloud_core::{BucketId, ByteCount, FileId, OwnerId, Timestamp, UploadId};
use cyxcloud_dataplane::{Config, DataPlane, ReadError, WriteError, WriteRequest};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{
    Attributes, Bucket, CommitObject, Content, Extent, NewSegment, NodeStep, Owner, Precondition,
    RegisterNode, StripeLayout,
};
use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};
use futures::{Stream, StreamExt, TryStreamExt};

use crate::fake::{FakeNode, Fault};

pub(crate) const STRIPE: usize = 1 << 20;

/// What a hung call takes to time out. A test that waits for one has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Quick to suspect a node; slow to give a call up.
pub(crate) fn quick() -> Config {
    Config {
        connect_timeout: Duration::from_secs(2),
        write_timeout: PATIENCE,
        read_timeout: PATIENCE,
        late_store: Duration::from_millis(800),
        late_fetch: (Duration::from_millis(250), Duration::from_millis(1000)),
        straggler_grace: Duration::from_millis(300),
        penalty: (Duration::from_secs(2), Duration::from_secs(8)),
        ..Config::default()
    }
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<FakeNode>,
    pub(crate) metadata: Arc<dyn MetadataStore>,
    pub(crate) plane: DataPlane,
    pub(crate) registry: prometheus::Registry,
    pub(crate) owner: OwnerId,
    pub(crate) secret: Arc<OwnerSecret>,
    pub(crate) profile: &'static Profile,
    bucket: BucketId,
}

/// Bytes that no compression, zero page or repeated block could stand for.
pub(crate) fn random(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// A body in pieces of odd sizes.
pub(crate) fn stream(body: &Bytes) -> impl Stream<Item = Result<Bytes, String>> + Send + use<> {
    let body = body.clone();
    let mut at = 0;
    let pieces = std::iter::from_fn(move || {
        let end = body.len().min(at + 7 + at % 70_001);
        (at < body.len()).then(|| body.slice(std::mem::replace(&mut at, end)..end))
    });
    futures::stream::iter(pieces.map(Ok))
}

impl Cluster {
    pub(crate) async fn start(nodes: u8) -> Self {
        Self::with(nodes, quick()).await
    }

    pub(crate) async fn with(nodes: u8, config: Config) -> Self {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("open the metadata store"));
        let registry = prometheus::Registry::new();
        let policy = AddressPolicy { loopback: true, ..AddressPolicy::default() };
        let master = MasterKey::from_bytes([1; 32]);
        let plane = DataPlane::new(config, metadata.clone(), policy, master, &registry);
        let owner = Owner {
            id: OwnerId::from_random(rand::random()),
            username: None,
            email: None,
            wallet_address: None,
            admin: false,
            storage_quota: None,
            wrapped_secret: vec![7; 60],
            created_at: Timestamp::default(),
        };
        let owner = metadata.ensure_owner(&owner).await.expect("make an owner").id;
        let name: BucketName = "bucket".parse().expect("a valid name");
        let bucket = Bucket {
            id: BucketId::from_random(rand::random()),
            name,
            owner,
            profile: "standard".to_owned(),
            created_at: Timestamp::default(),
        };
        let bucket = metadata.create_bucket(&bucket, 1000).await.expect("make a bucket").id;
        let mut cluster = Self {
            nodes: Vec::new(),
            metadata,
            plane,
            registry,
            owner,
            secret: Arc::new(OwnerSecret::from_bytes([2; 32])),
            profile: &Profile::STANDARD,
            bucket,
        };
        for number in 0..nodes {
            cluster.add(number).await;
        }
        cluster.plane.refresh_nodes().await.expect("look up the nodes");
        cluster
    }

    async fn add(&mut self, number: u8) {
        let node = FakeNode::start(number);
        let register = RegisterNode {
            id: node.id,
            public_key: node.public_key(),
            peer_id: format!("peer-{number}"),
            label: format!("node-{number}"),
            name: format!("Node {number}"),
            grpc_address: format!("http://{}", node.address),
            metrics_address: "http://127.0.0.1:1".to_owned(),
            incarnation: node.incarnation(),
            storage_total: ByteCount::gib(10),
            storage_reserved: ByteCount::ZERO,
            storage_used: ByteCount::ZERO,
            region: String::new(),
            operator: String::new(),
            subnet: "127.0.0.0/24".to_owned(),
            version: "0".to_owned(),
            wire_version: 1,
            nodes_max: None,
        };
        self.metadata.register_node(&register).await.expect("register a node");
        self.nodes.push(node);
    }

    /// Tells everybody that a node is offline.
    pub(crate) async fn mark_offline(&self, node: usize) {
        let step = NodeStep { node: self.nodes[node].id, from: NodeStatus::Online, to: NodeStatus::Offline };
        self.metadata.step_node(&step).await.expect("step a node");
        self.plane.refresh_nodes().await.expect("look up the nodes");
    }

    pub(crate) fn fault_all(&self, fault: Fault) {
        self.nodes.iter().for_each(|node| node.fault(fault));
    }

    pub(crate) fn request(&self, length: Option<u64>) -> WriteRequest {
        WriteRequest {
            owner: self.owner,
            secret: self.secret.clone(),
            profile: self.profile,
            stripe_size: ByteCount::bytes(STRIPE as u64),
            length,
        }
    }

    /// Writes a body and checks all that can be known of the segment, and that the tap saw the body.
    pub(crate) async fn write(&self, body: &Bytes, known: bool) -> Result<NewSegment, WriteError<String>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tap = {
            let seen = seen.clone();
            Box::new(move |bytes: &[u8]| seen.lock().expect("not poisoned").extend_from_slice(bytes))
        };
        let request = self.request(known.then_some(body.len() as u64));
        let segment = self.plane.write_segment(request, stream(body), tap).await?;
        assert!(*seen.lock().expect("not poisoned") == body[..], "the tap sees the body in order");
        assert_eq!(segment.length, ByteCount::bytes(body.len() as u64));
        assert_eq!(segment.content_hash, *blake3::hash(body).as_bytes());
        Ok(segment)
    }

    /// Makes the segment an object and returns its extents.
    pub(crate) async fn commit(&self, segment: NewSegment) -> Vec<Extent> {
        let key = ObjectKey::new(segment.id.to_string()).expect("a valid key");
        let commit = CommitObject {
            upload: UploadId::from_random(rand::random()),
            has_intent: false,
            file: FileId::from_random(rand::random()),
            owner: self.owner,
            bucket: self.bucket,
            key: key.clone(),
            precondition: Precondition::None,
            size: segment.length,
            etag: "etag".to_owned(),
            content_hash: segment.content_hash,
            attributes: Attributes::default(),
            content: Content::New(segment),
        };
        self.metadata.commit_object(&commit).await.expect("commit");
        let layout = self.metadata.object_layout(self.bucket, &key, None).await.expect("look up");
        layout.expect("it was committed").extents
    }

    /// Writes and commits a body.
    pub(crate) async fn put(&self, body: &Bytes) -> Vec<Extent> {
        let segment = self.write(body, true).await.expect("write");
        self.commit(segment).await
    }

    pub(crate) async fn get(&self, extents: &[Extent], range: Range<u64>) -> Result<Vec<u8>, ReadError> {
        self.plane
            .read(self.secret.clone(), extents.to_vec(), range)
            .try_fold(Vec::new(), async |mut all, bytes| {
                assert!(!bytes.is_empty(), "no empty pieces");
                all.extend_from_slice(&bytes);
                Ok(all)
            })
            .await
    }

    pub(crate) async fn get_all(&self, extents: &[Extent]) -> Result<Vec<u8>, ReadError> {
        self.get(extents, 0..extents.iter().map(|extent| extent.length).sum()).await
    }

    pub(crate) async fn stripes(&self, extents: &[Extent]) -> Vec<StripeLayout> {
        self.metadata.stripes(extents[0].segment.id, 0..u32::MAX).await.expect("look up")
    }

    /// Sum of a metric over its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let name = format!("cyxcloud_dataplane_{name}");
        self.registry
            .gather()
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(|family| family.get_metric())
            .map(|metric| metric.get_gauge().get_value() + metric.get_counter().get_value())
            .sum()
    }

    /// Waits until all memory was returned.
    pub(crate) async fn memory_is_returned(&self) {
        for _ in 0..200 {
            if self.metric("budget_bytes") == 0.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{} bytes of the budget are still held", self.metric("budget_bytes"));
    }
}

/// A body that ends with an error after so many bytes.
pub(crate) fn broken(len: usize) -> impl Stream<Item = Result<Bytes, String>> + Send {
    stream(&random(len, 5)).chain(futures::stream::iter([Err("the client went away".to_owned())]))
}
