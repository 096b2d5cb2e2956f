//! The pool of node connections and the calls that are made on them.
//!
//! What comes back was checked: a chunk hashes to its id, slices lead to it, a receipt is signed by the node's own key, for the life
//! that it registered. Every outcome is remembered with the node. Not here: which node is asked for what (`write`, `read`).

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::proof;
use cyxcloud_core::receipt::Receipt;
use cyxcloud_core::token::Operation;
use cyxcloud_core::{ByteCount, ChunkId, Generation, NodeId};
use cyxcloud_metadata::model::Node;
use cyxcloud_proto::convert::{self, FieldError};
use cyxcloud_proto::node as wire;
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::data_service_client::DataServiceClient;
use futures::{Stream, StreamExt};
use prost::Message;
use tonic::Status;
use tonic::transport::Channel;
use tracing::debug;

use super::connect::Dialer;
use super::inventory::{Inventory, PAGE_BYTES, PAGE_IN_FULL_BYTES};
use super::issuer::Issuer;
use super::raw::{self, Pieces};
use super::view::{NodeClient, View};
use crate::config::Config;
use crate::cpu::Cpu;
use crate::error::NodeError;
use crate::latency::{LatencyBySize, Repeats};
use crate::metrics::Metrics;

const STORE_CHUNK: &str = "/cyxcloud.node.v1.ChunkService/StoreChunk";
const GET_CHUNK: &str = "/cyxcloud.node.v1.ChunkService/GetChunk";
/// Room for what surrounds a chunk in an answer.
const ENVELOPE: usize = 1024;

/// Connections to all nodes that are known, one each, made when first used.
#[derive(Debug)]
pub struct NodePool {
    view: RwLock<Arc<View>>,
    dialer: Dialer,
    config: Config,
    cpu: Cpu,
    pub(crate) metrics: Metrics,
    pub(crate) store_times: LatencyBySize,
    pub(crate) fetch_times: LatencyBySize,
    pub(crate) fetch_repeats: Repeats,
    /// Signs what nodes want to see.
    pub(crate) issuer: Issuer,
}

/// One entry of a node's inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChunk {
    /// Which.
    pub chunk: ChunkId,
    /// Its length, as the node says.
    pub length: ByteCount,
    /// The newest generation.
    pub generation: Generation,
    /// Whether the node found it corrupt and holds it back.
    pub quarantined: bool,
    /// Sealed descriptors, if it was asked for in full.
    pub descriptors: Vec<Bytes>,
    /// The node's word that it holds it, verified, if it was asked for in full and the node gives it.
    pub receipt: Option<Receipt>,
}

/// When a chunk is held against its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// When it comes.
    Now,
    /// By whoever asked, before anybody relies on it; its length is checked all the same.
    Later,
}

/// The bytes of a chunk, which must be of this length.
fn of_length(answer: Pieces, length: usize) -> Result<Pieces, NodeError> {
    let data = raw::bytes_field(answer, 1)?;
    if data.len() == length { Ok(data) } else { Err(NodeError::Corrupt) }
}

/// What became of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It was held and is gone.
    Gone,
    /// It was not held.
    Absent,
    /// A newer counter or another incarnation is held and was kept.
    KeptNewer,
}

impl NodePool {
    pub(crate) fn new(config: Config, policy: AddressPolicy, cpu: Cpu, metrics: Metrics) -> Self {
        let issuer = Issuer::new(&metrics);
        Self {
            view: RwLock::default(),
            dialer: Dialer {
                policy: Arc::new(policy),
                key: config.key.clone(),
                connect_timeout: config.connect_timeout,
                other_identities: metrics.other_identities.clone(),
            },
            config,
            cpu,
            metrics,
            store_times: LatencyBySize::default(),
            fetch_times: LatencyBySize::default(),
            fetch_repeats: Repeats::default(),
            issuer,
        }
    }

    /// Takes over a new list of nodes.
    pub(crate) fn update(&self, nodes: &[Node]) {
        // Nobody is silent before anybody asked for the time.
        let now = self.issuer.now().unwrap_or_default();
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        *view = Arc::new(view.next(nodes, now, &self.config));
    }

    /// The nodes as they are known now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores a chunk and answers with the node's receipt, which was verified.
    pub async fn store_chunk(
        &self,
        node: NodeId,
        chunk: ChunkId,
        data: Bytes,
        descriptor: Bytes,
    ) -> Result<Receipt, NodeError> {
        let began = Instant::now();
        let length = data.len();
        let client = self.client(node)?;
        let request = wire::StoreChunkRequest {
            chunk_id: convert::chunk_id_bytes(&chunk),
            data: Bytes::new(),
            descriptor,
            token: self.token(&client, Operation::Store),
        };
        let timeout = self.config.write_timeout;
        let answer = match self.channel(&client) {
            Ok(channel) => {
                let answer =
                    raw::unary(&channel, STORE_CHUNK, &request, Some((2, data)), ENVELOPE, timeout, timeout);
                answer.await.map_err(|error| match error {
                    NodeError::Corrupt => NodeError::BadReceipt("the answer is malformed"),
                    error => error,
                })
            }
            Err(error) => Err(error),
        };
        let receipt = answer.and_then(|answer| receipt_of(answer, &client.public_key, &chunk, length));
        let receipt = receipt.and_then(|receipt| self.of_this_life(node, receipt));
        self.note(&client, "store", &receipt);
        if receipt.is_ok() {
            self.metrics.stores.inc();
            self.store_times.of(length).record(began.elapsed());
        }
        receipt
    }

    /// Fetches a chunk of this length and checks it against its id.
    pub async fn get_chunk(
        &self,
        node: NodeId,
        chunk: ChunkId,
        length: ByteCount,
    ) -> Result<Bytes, NodeError> {
        self.fetch(node, chunk, length.as_usize(), Check::Now).await.map(Pieces::into_bytes)
    }

    pub(crate) async fn fetch(
        &self,
        node: NodeId,
        chunk: ChunkId,
        length: usize,
        check: Check,
    ) -> Result<Pieces, NodeError> {
        self.fetch_from(node, chunk, length, check, self.config.read_timeout).await
    }

    /// The same, of a node that must begin to answer within `first_byte`. It cannot tell the two apart.
    pub(crate) async fn fetch_from(
        &self,
        node: NodeId,
        chunk: ChunkId,
        length: usize,
        check: Check,
        first_byte: Duration,
    ) -> Result<Pieces, NodeError> {
        let began = Instant::now();
        let client = self.client(node)?;
        let got = self.get(&client, &chunk, &[], length + ENVELOPE, first_byte).await;
        let fetched = match (got, check) {
            (Ok(answer), Check::Now) => self.check_chunk(answer, chunk, length).await,
            (Ok(answer), Check::Later) => of_length(answer, length),
            (Err(error), _) => Err(error),
        };
        self.note(&client, "get", &fetched);
        if fetched.is_ok() {
            self.metrics.fetches.inc();
            self.fetch_times.of(length).record(began.elapsed());
        }
        fetched
    }

    /// Fetches slices of a chunk of this length and verifies that they belong to it. In the order asked for.
    pub async fn get_slices(
        &self,
        node: NodeId,
        chunk: ChunkId,
        length: ByteCount,
        slices: &[Range<u64>],
    ) -> Result<Vec<Bytes>, NodeError> {
        self.get_slices_from(node, chunk, length, slices, self.config.read_timeout).await
    }

    /// The same, of a node that must begin to answer within `first_byte`. It cannot tell the two apart.
    pub async fn get_slices_from(
        &self,
        node: NodeId,
        chunk: ChunkId,
        length: ByteCount,
        slices: &[Range<u64>],
        first_byte: Duration,
    ) -> Result<Vec<Bytes>, NodeError> {
        let began = Instant::now();
        let client = self.client(node)?;
        let wanted: usize = slices.iter().map(|slice| slice.end.saturating_sub(slice.start) as usize).sum();
        // A slice grows to whole groups of 16 KiB at both ends, the last group comes too, and the paths are 64 bytes a step.
        let limit = wanted + (slices.len() + 1) * (40 << 10) + ENVELOPE;
        let verified = self.get(&client, &chunk, slices, limit, first_byte).await.and_then(|answer| {
            let proof = raw::bytes_field(answer, 2)?.into_bytes();
            proof::verify(&chunk, length.get(), slices, &proof).map_err(|_| NodeError::Corrupt)
        });
        self.note(&client, "slice", &verified);
        if verified.is_ok() {
            self.metrics.fetches.inc();
            self.fetch_times.of(wanted).record(began.elapsed());
        }
        verified
    }

    /// Has one node send a chunk of this length to another, past us, and answers with the other's receipt, which was verified.
    pub async fn replicate_chunk(
        &self,
        (from, to): (NodeId, NodeId),
        chunk: ChunkId,
        length: usize,
        descriptor: Bytes,
    ) -> Result<Receipt, NodeError> {
        let (source, target) = (self.client(from)?, self.client(to)?);
        let request = wire::ReplicateChunkRequest {
            chunk_id: convert::chunk_id_bytes(&chunk),
            target_address: target.address.clone(),
            target_key: Bytes::copy_from_slice(&target.public_key),
            descriptor,
            token: self.token(&source, Operation::Replicate),
            target_token: self.issuer.to_store(&target.public_key, &source.public_key, chunk),
        };
        let mut service = DataServiceClient::new(self.channel(&source)?);
        let answer = with_timeout(self.config.read_timeout, service.replicate_chunk(request)).await;
        let receipt = answer.and_then(|answer| believe(answer.receipt, &target.public_key, &chunk, length));
        let receipt = receipt.and_then(|receipt| self.of_this_life(to, receipt));
        match &receipt {
            Ok(_) => {
                self.metrics.pushes.inc();
                self.note(&source, "push", &receipt);
            }
            // Unless the other failed before: then it may have waited for that one.
            Err(NodeError::TimedOut) if target.health.is_well() => self.note(&source, "push", &receipt),
            // Whether its own fault or the other's kept it from it does not show.
            Err(error) => self.metrics.failures.with_label_values(&["push", error.reason()]).inc(),
        }
        receipt
    }

    /// Asks the node to forget one generation of a chunk, or an older one of the same incarnation.
    pub async fn delete_chunk(
        &self,
        node: NodeId,
        chunk: ChunkId,
        generation: Generation,
    ) -> Result<Deleted, NodeError> {
        use wire::delete_chunk_response::Outcome;
        let client = self.client(node)?;
        let request = wire::DeleteChunkRequest {
            chunk_id: convert::chunk_id_bytes(&chunk),
            generation: Some(generation.into()),
            token: self.token(&client, Operation::Delete),
        };
        let mut service = self.service(&client)?;
        let answer = with_timeout(self.config.write_timeout, service.delete_chunk(request)).await;
        let deleted = answer.and_then(|answer| match answer.outcome() {
            Outcome::Deleted => Ok(Deleted::Gone),
            Outcome::Absent => Ok(Deleted::Absent),
            Outcome::KeptNewer => Ok(Deleted::KeptNewer),
            Outcome::Unspecified => {
                let got = answer.outcome.to_string();
                Err(malformed(FieldError { field: "outcome", want: "an outcome", got }))
            }
        });
        self.note(&client, "delete", &deleted);
        deleted
    }

    /// Asks the node to take a chunk out of its trash, whichever generation is there. Whether it did.
    pub async fn restore_chunk(&self, node: NodeId, chunk: ChunkId) -> Result<bool, NodeError> {
        use wire::restore_chunk_response::Outcome;
        let client = self.client(node)?;
        let request = wire::RestoreChunkRequest {
            chunk_id: convert::chunk_id_bytes(&chunk),
            generation: None,
            token: self.token(&client, Operation::Restore),
        };
        let mut service = self.service(&client)?;
        let answer = with_timeout(self.config.write_timeout, service.restore_chunk(request)).await;
        let restored = answer.map(|answer| answer.outcome() == Outcome::Restored);
        self.note(&client, "restore", &restored);
        restored
    }

    /// Length and newest generation of a chunk, if the node says that it holds it.
    pub async fn has_chunk(
        &self,
        node: NodeId,
        chunk: ChunkId,
    ) -> Result<Option<(ByteCount, Generation)>, NodeError> {
        let client = self.client(node)?;
        let request = wire::HasChunkRequest {
            chunk_id: convert::chunk_id_bytes(&chunk),
            token: self.token(&client, Operation::Has),
        };
        let mut service = self.service(&client)?;
        let answer = with_timeout(self.config.read_timeout, service.has_chunk(request)).await;
        let held = answer.and_then(|answer| {
            if !answer.held {
                return Ok(None);
            }
            let generation =
                convert::required("generation", answer.generation).and_then(Generation::try_from);
            Ok(Some((ByteCount::bytes(answer.length), generation.map_err(malformed)?)))
        });
        self.note(&client, "has", &held);
        held
    }

    /// The node's inventory after `after`, in ascending order of id, at most `limit` entries (0: all); `in_full` with
    /// descriptors and receipts.
    pub async fn list_chunks(
        &self,
        node: NodeId,
        after: Option<ChunkId>,
        limit: u64,
        in_full: bool,
    ) -> Result<impl Stream<Item = Result<ListedChunk, NodeError>> + Send + 'static, NodeError> {
        let client = self.client(node)?;
        let request = wire::ListChunksRequest {
            after: after.as_ref().map(convert::chunk_id_bytes).unwrap_or_default(),
            limit,
            with_descriptors: in_full,
            with_receipts: in_full,
            token: self.token(&client, Operation::List),
        };
        let page = if in_full { PAGE_IN_FULL_BYTES } else { PAGE_BYTES };
        let mut service = ChunkServiceClient::new(self.channel(&client)?).max_decoding_message_size(page);
        let patience = self.config.read_timeout;
        let pages = with_timeout(patience, service.list_chunks(request)).await;
        self.note(&client, "list", &pages);
        Ok(Inventory::new(pages?, client.public_key, after, patience).entries().boxed())
    }

    fn client(&self, node: NodeId) -> Result<Arc<NodeClient>, NodeError> {
        self.view().nodes.get(&node).map(|node| node.client.clone()).ok_or(NodeError::Unknown(node))
    }

    /// A token for an operation on a node; where the connection proves our key, good for nobody else.
    fn token(&self, client: &NodeClient, operation: Operation) -> Bytes {
        let secure = client.address.starts_with("https://");
        self.issuer.session(&client.public_key, operation, secure.then(|| self.dialer.key.public()))
    }

    fn channel(&self, client: &NodeClient) -> Result<Channel, NodeError> {
        if let Some(channel) = client.channel.get() {
            return Ok(channel.clone());
        }
        let fresh = self.dialer.channel(&client.address, client.id, client.public_key)?;
        Ok(client.channel.get_or_init(|| fresh).clone())
    }

    /// The generated client, for calls that move little.
    fn service(&self, client: &NodeClient) -> Result<ChunkServiceClient<Channel>, NodeError> {
        Ok(ChunkServiceClient::new(self.channel(client)?)
            .max_decoding_message_size(cyxcloud_proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(cyxcloud_proto::MESSAGE_BYTES_MAX))
    }

    async fn get(
        &self,
        client: &NodeClient,
        chunk: &ChunkId,
        slices: &[Range<u64>],
        limit: usize,
        first_byte: Duration,
    ) -> Result<Pieces, NodeError> {
        let request = wire::GetChunkRequest {
            chunk_id: convert::chunk_id_bytes(chunk),
            slices: slices
                .iter()
                .map(|slice| wire::Slice {
                    offset: slice.start,
                    length: slice.end.saturating_sub(slice.start),
                })
                .collect(),
            token: self.token(client, Operation::Get),
        };
        let channel = self.channel(client)?;
        raw::unary(&channel, GET_CHUNK, &request, None, limit, self.config.read_timeout, first_byte).await
    }

    /// A chunk that was not checked when it came turned out to be wrong.
    pub(crate) fn note_corrupt(&self, node: NodeId) {
        if let Ok(client) = self.client(node) {
            self.note::<()>(&client, "get", &Err(NodeError::Corrupt));
        }
    }

    async fn check_chunk(&self, answer: Pieces, chunk: ChunkId, length: usize) -> Result<Pieces, NodeError> {
        let data = of_length(answer, length)?;
        let check = move || data.is_chunk(&chunk).then_some(data).ok_or(NodeError::Corrupt);
        // A shard of usual size takes 70 µs, less than it takes to hand it over and to wait for it.
        if length <= 1 << 20 { check() } else { self.cpu.run(length, check).await }
    }

    /// The node's receipt, if it is of the life that it is known by now. One that began another takes nothing until it said so.
    fn of_this_life(&self, node: NodeId, receipt: Receipt) -> Result<Receipt, NodeError> {
        match self.view().lives(node, receipt.generation.incarnation) {
            true => Ok(receipt),
            false => Err(NodeError::BadReceipt("it is of a life that the node did not register")),
        }
    }

    /// Remembers how a call went.
    fn note<T>(&self, client: &NodeClient, operation: &'static str, outcome: &Result<T, NodeError>) {
        let Err(error) = outcome else { return client.health.succeeded() };
        self.metrics.failures.with_label_values(&[operation, error.reason()]).inc();
        debug!(node = %client.id, operation, %error, "call to node failed");
        match error {
            NodeError::Full => client.health.full(),
            // It answered well enough; it just does not have it.
            NodeError::Missing => {}
            NodeError::Unknown(_)
            | NodeError::BadAddress { .. }
            | NodeError::TimedOut
            | NodeError::Corrupt
            | NodeError::Rotten
            | NodeError::BadReceipt(_)
            | NodeError::Status { .. } => client.health.failed(self.config.penalty),
        }
    }

    /// Remembers that a node kept us waiting.
    pub(crate) fn note_late(&self, node: NodeId) {
        if let Ok(client) = self.client(node) {
            client.health.failed(self.config.penalty);
        }
    }
}

async fn with_timeout<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, NodeError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(NodeError::from_status(&status)),
        Err(_) => Err(NodeError::TimedOut),
    }
}

fn malformed(error: FieldError) -> NodeError {
    NodeError::Status { code: tonic::Code::Internal, message: format!("the answer is malformed: {error}") }
}

/// An entry of an inventory, with its receipt if that is signed by the node and for this entry.
pub(crate) fn listed(mut entry: wire::ChunkEntry, key: &[u8; 32]) -> Result<ListedChunk, NodeError> {
    let receipt = entry.receipt.take();
    let mut listed = described(entry).map_err(malformed)?;
    let Some(receipt) = receipt else { return Ok(listed) };
    let receipt = Receipt::try_from(receipt).map_err(|_| NodeError::BadReceipt("a field is malformed"))?;
    let named = (receipt.chunk, receipt.length, receipt.generation);
    if named != (listed.chunk, listed.length, listed.generation) {
        return Err(NodeError::BadReceipt("it is for something else"));
    }
    receipt.verify(key).map_err(|_| NodeError::BadReceipt("the signature does not fit"))?;
    listed.receipt = Some(receipt);
    Ok(listed)
}

fn described(entry: wire::ChunkEntry) -> Result<ListedChunk, FieldError> {
    Ok(ListedChunk {
        chunk: convert::chunk_id("chunks.chunk_id", &entry.chunk_id)?,
        length: ByteCount::bytes(entry.length),
        generation: convert::required("chunks.generation", entry.generation)?.try_into()?,
        quarantined: entry.quarantined,
        descriptors: entry.descriptors,
        receipt: None,
    })
}

/// The receipt in an answer to a store, if it says what it must and is signed by the node.
pub(crate) fn receipt_of(
    answer: Pieces,
    key: &[u8; 32],
    chunk: &ChunkId,
    length: usize,
) -> Result<Receipt, NodeError> {
    let answer = wire::StoreChunkResponse::decode(answer.into_bytes())
        .map_err(|_| NodeError::BadReceipt("the answer is malformed"))?;
    believe(answer.receipt, key, chunk, length)
}

/// A receipt, if it is for this chunk, of the node with this key.
fn believe(
    receipt: Option<wire::Receipt>,
    key: &[u8; 32],
    chunk: &ChunkId,
    length: usize,
) -> Result<Receipt, NodeError> {
    let receipt = receipt.ok_or(NodeError::BadReceipt("there is none"))?;
    let receipt = Receipt::try_from(receipt).map_err(|_| NodeError::BadReceipt("a field is malformed"))?;
    if receipt.chunk != *chunk || receipt.length != ByteCount::bytes(length as u64) {
        return Err(NodeError::BadReceipt("it is for something else"));
    }
    receipt.verify(key).map_err(|_| NodeError::BadReceipt("the signature does not fit"))?;
    Ok(receipt)
}
