//! Owners, buckets, objects and nodes for tests.

use bytes::Bytes;
use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, ChunkId, Generation, Geometry, NodeId, OwnerId, Timestamp};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{
    Attributes, Bucket, CommitObject, Content, NewLocation, NewSegment, NewShard, NewStripe, NewUpload, Node,
    Owner, Precondition, RegisterNode, SegmentBody,
};
use uuid::Uuid;

/// An owner with a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) owner: OwnerId,
    pub(crate) bucket: BucketId,
}

/// A new id.
pub(crate) fn fresh<T: From<Uuid>>() -> T {
    T::from(Uuid::new_v4())
}

/// A key.
pub(crate) fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).expect("a key")
}

/// A new owner with a new bucket.
pub(crate) async fn place(store: &dyn MetadataStore) -> Place {
    let owner = Owner {
        id: fresh(),
        username: None,
        email: None,
        wallet_address: None,
        admin: false,
        storage_quota: None,
        wrapped_secret: vec![1; 60],
        created_at: Timestamp::default(),
    };
    let bucket = Bucket {
        id: fresh(),
        name: format!("b-{}", Uuid::new_v4().simple()).parse().expect("a name"),
        owner: owner.id,
        profile: "standard".to_owned(),
        created_at: Timestamp::default(),
    };
    store.ensure_owner(&owner).await.expect("owner");
    store.create_bucket(&bucket, 1000).await.expect("bucket");
    Place { owner: owner.id, bucket: bucket.id }
}

impl Place {
    /// A segment of `body` in its row.
    pub(crate) fn inline(self, body: &[u8]) -> NewSegment {
        NewSegment {
            id: fresh(),
            owner: self.owner,
            length: ByteCount::bytes(body.len() as u64),
            stripe_size: ByteCount::mib(4),
            geometry: Geometry::STANDARD_SMALL,
            format: 1,
            content_hash: *ChunkId::of(body).as_bytes(),
            body: SegmentBody::Inline {
                plain_hash: *ChunkId::of(body).as_bytes(),
                sealed: Bytes::from([body, &[0; 16]].concat()),
            },
            ack_tolerance: 0,
            acked_tolerance: 1,
            target_tolerance: 1,
        }
    }

    /// A segment of `stripes` stripes of `geometry`, shard `i` on node `i` modulo their number.
    pub(crate) fn striped(self, geometry: Geometry, stripes: u32, nodes: &[Node]) -> NewSegment {
        let stripe = |number: u32| NewStripe {
            plain_hash: *ChunkId::of(&number.to_le_bytes()).as_bytes(),
            plain_len: ByteCount::bytes(1000),
            shards: geometry.indices().map(|index| shard(geometry, index, nodes)).collect(),
            tolerance: 1,
        };
        NewSegment {
            length: ByteCount::bytes(1000 * u64::from(stripes)),
            stripe_size: ByteCount::bytes(1000),
            geometry,
            body: SegmentBody::Stripes((0..stripes).map(stripe).collect()),
            ..self.inline(b"")
        }
    }

    /// A commit without an intent.
    pub(crate) fn commit(self, name: &str, segment: NewSegment) -> CommitObject {
        CommitObject {
            upload: fresh(),
            has_intent: false,
            file: fresh(),
            owner: self.owner,
            bucket: self.bucket,
            key: key(name),
            precondition: Precondition::None,
            size: segment.length,
            etag: Uuid::new_v4().simple().to_string(),
            content_hash: segment.content_hash,
            attributes: Attributes::default(),
            content: Content::New(segment),
        }
    }

    /// A commit with an intent, which is begun.
    pub(crate) async fn commit_with_intent(
        self,
        store: &dyn MetadataStore,
        name: &str,
        segment: NewSegment,
    ) -> CommitObject {
        let commit = CommitObject { has_intent: true, ..self.commit(name, segment) };
        let intent = NewUpload {
            id: commit.upload,
            owner: self.owner,
            bucket: self.bucket,
            key: commit.key.clone(),
            lease: std::time::Duration::from_secs(3600),
            reserve: cyxcloud_core::ByteCount::default(),
        };
        store.begin_upload(&intent).await.expect("intent");
        commit
    }
}

fn shard(geometry: Geometry, index: cyxcloud_core::ShardIndex, nodes: &[Node]) -> NewShard {
    let locations = (0..geometry.copies()).map(|copy| {
        let node = &nodes[(index.get() + copy) % nodes.len()];
        NewLocation {
            node: node.id,
            generation: Generation { incarnation: node.incarnation, counter: 1 },
            receipt_signature: vec![5; 64],
            stored_at: Timestamp::from_unix_millis(1_700_000_000_000),
        }
    });
    NewShard {
        index,
        chunk: ChunkId::of(Uuid::new_v4().as_bytes()),
        size: ByteCount::bytes(128),
        locations: locations.collect(),
    }
}

/// Nodes that are online.
pub(crate) async fn nodes(store: &dyn MetadataStore, count: u32) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 0..count {
        let id: NodeId = fresh();
        let node = RegisterNode {
            id,
            public_key: *ChunkId::of(id.as_bytes()).as_bytes(),
            peer_id: format!("12D3Koo{id}"),
            label: format!("node-{number}"),
            name: format!("Node {number}"),
            grpc_address: format!("http://{id}.example:50051"),
            metrics_address: "http://127.0.0.1:9090".to_owned(),
            incarnation: Uuid::new_v4(),
            storage_total: ByteCount::gib(100),
            storage_reserved: ByteCount::gib(2),
            storage_used: ByteCount::gib(49),
            region: String::new(),
            operator: String::new(),
            subnet: "127.0.0.0/24".to_owned(),
            version: "0.1.0".to_owned(),
            wire_version: 1,
            nodes_max: None,
        };
        nodes.push(store.register_node(&node).await.expect("register"));
    }
    nodes
}
