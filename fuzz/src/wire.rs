//! Messages from nodes and clients: what decodes encodes to what decodes to the same; and our own reading of a node's answer,
//! piece by piece, finds what prost finds.

use cyxcloud_core::receipt::{NodeKey, Receipt};
use cyxcloud_core::{ChunkId, Generation};
use cyxcloud_dataplane::fuzzing;
use cyxcloud_proto::convert;
use cyxcloud_proto::{gateway, node};
use prost::Message;

use super::input::{Draft, Input};

/// What is done with the bytes of one kind of message.
type Check = fn(&[u8]);

/// Checks of messages, each by the name of the message.
macro_rules! round_trips {
    ($($message:ty,)*) => { &[$((stringify!($message), round_trip::<$message> as Check),)*] };
}

/// Every message that crosses the wire; an input chooses one by its first byte. New ones go to the end: inputs stay what they were.
const MESSAGES: &[(&str, Check)] = round_trips![
    node::Receipt,
    node::StoreChunkRequest,
    node::StoreChunkResponse,
    node::GetChunkRequest,
    node::GetChunkResponse,
    node::DeleteChunkRequest,
    node::DeleteChunkResponse,
    node::RestoreChunkRequest,
    node::RestoreChunkResponse,
    node::HasChunkRequest,
    node::HasChunkResponse,
    node::ListChunksRequest,
    node::ListChunksResponse,
    node::ReplicateChunkRequest,
    node::ReplicateChunkResponse,
    node::VerifyChunkRequest,
    node::VerifyChunkResponse,
    gateway::RegisterNodeRequest,
    gateway::RegisterNodeResponse,
    gateway::HeartbeatRequest,
    gateway::HeartbeatResponse,
    gateway::GetNodeInfoRequest,
    gateway::NodeInfo,
    gateway::ListNodesRequest,
    gateway::ListNodesResponse,
    gateway::StreamDataRequest,
    gateway::DataChunk,
    gateway::GetDatasetInfoRequest,
    gateway::DatasetInfo,
];

/// Readings of messages, chosen by first bytes from 0x80 on.
const READINGS: &[(&str, Check)] =
    &[("receipts", receipts), ("answers", answers), ("stores", stores), ("inventories", inventories)];

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = usize::from(input.u8());
    let table = if choice < 0x80 { MESSAGES } else { READINGS };
    let (_, check) = table[choice % 0x80 % table.len()];
    check(input.rest());
}

/// Floats may be NaN, so bytes are compared rather than messages.
fn round_trip<M: Message + Default>(data: &[u8]) {
    let Ok(message) = M::decode(data) else { return };
    let written = message.encode_to_vec();
    assert_eq!(written.len(), message.encoded_len());
    let read = M::decode(written.as_slice()).expect("what was written is read");
    assert_eq!(read.encode_to_vec(), written);
}

fn receipts(data: &[u8]) {
    let Ok(message) = node::Receipt::decode(data) else { return };
    let Ok(receipt) = Receipt::try_from(message.clone()) else { return };
    assert_ne!(receipt.generation.counter, 0);
    assert_eq!(node::Receipt::from(receipt), message);
}

/// A GetChunkResponse as the data plane reads it, in pieces of some size, with and without gRPC's head.
fn answers(data: &[u8]) {
    let mut input = Input::new(data);
    let size = 1 + usize::from(input.u8());
    let body = input.rest();
    let whole = body.len().max(1);
    assert_eq!(fuzzing::message_of(body, size), fuzzing::message_of(body, whole));
    let framed = [&[0][..], &(body.len() as u32).to_be_bytes(), body].concat();
    assert_eq!(fuzzing::message_of(&framed, size).as_deref(), Some(body));

    let ours = |number| {
        let field = fuzzing::bytes_field(body, size, number);
        assert_eq!(field, fuzzing::bytes_field(body, whole, number), "the pieces matter");
        field
    };
    let (data, proof) = (ours(1), ours(2));
    // Groups are an extension that no message of ours has; prost skips them and we refuse them.
    if let Ok(theirs) = node::GetChunkResponse::decode(body)
        && let (Some(data), Some(proof)) = (data, proof)
    {
        assert_eq!((data, proof), (theirs.data.to_vec(), theirs.proof.to_vec()));
    }
}

/// The answer to a store is believed only with a receipt that the node signed for this very chunk.
fn stores(data: &[u8]) {
    let key = NodeKey::from_seed([7; 32]);
    let chunk = ChunkId::of(b"chunk");
    if let Some(receipt) = fuzzing::receipt_of(data, &key.public(), &chunk, 5) {
        assert_eq!((receipt.chunk, receipt.length.get()), (chunk, 5));
        assert_eq!(receipt.verify(&key.public()), Ok(()));
    }
}

fn inventories(data: &[u8]) {
    let key = NodeKey::from_seed([7; 32]).public();
    let Ok(page) = node::ListChunksResponse::decode(data) else { return };
    for entry in page.chunks {
        let Some(listed) = fuzzing::listed(entry.clone(), &key) else { continue };
        assert_eq!(convert::chunk_id_bytes(&listed.chunk), entry.chunk_id);
        assert_eq!(Some(node::Generation::from(listed.generation)), entry.generation);
        let stated = (listed.length.get(), listed.quarantined, &listed.descriptors);
        assert_eq!(stated, (entry.length, entry.quarantined, &entry.descriptors));
        assert_eq!(listed.receipt.is_some(), entry.receipt.is_some(), "a receipt is dropped or made up");
        if let Some(receipt) = listed.receipt {
            assert_eq!((receipt.chunk, receipt.generation), (listed.chunk, listed.generation));
            assert_eq!(receipt.verify(&key), Ok(()));
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let key = NodeKey::from_seed([7; 32]);
    let chunk = ChunkId::of(b"chunk");
    let generation = Generation { incarnation: uuid::Uuid::from_bytes([3; 16]), counter: 9 };
    let at = cyxcloud_core::Timestamp::from_unix_millis(1_700_000_000_000);
    let receipt: node::Receipt =
        Receipt::sign(&key, chunk, cyxcloud_core::ByteCount::bytes(5), generation, at).into();
    let stored = node::StoreChunkResponse { receipt: Some(receipt.clone()), existed: true };
    let answer = node::GetChunkResponse { data: vec![1; 40].into(), proof: vec![2; 30].into() };
    let entry = node::ChunkEntry {
        chunk_id: convert::chunk_id_bytes(&chunk),
        length: 5,
        generation: Some(generation.into()),
        quarantined: false,
        descriptors: vec![vec![8; 90].into(), vec![9; 90].into()],
        receipt: Some(receipt.clone()),
    };
    let bare = node::ChunkEntry { receipt: None, quarantined: true, ..entry.clone() };
    let inventory = node::ListChunksResponse { chunks: vec![entry, bare] };
    let heartbeat = gateway::HeartbeatRequest {
        node_id: vec![1; 16].into(),
        cpu_usage: f64::NAN,
        incarnation: vec![2; 16].into(),
        corrupt_chunks: vec![vec![3; 32].into(), vec![4; 31].into()],
        ..gateway::HeartbeatRequest::default()
    };
    let place = |wanted: &str| {
        let at = |table: &[(&str, Check)]| table.iter().position(|(name, _)| *name == wanted);
        let choice = at(MESSAGES).or_else(|| at(READINGS).map(|at| at + 0x80));
        Draft::default().u8(choice.expect("one of them") as u8)
    };
    vec![
        place("node::Receipt").rest(receipt.encode_to_vec()),
        place("gateway::HeartbeatRequest").rest(heartbeat.encode_to_vec()),
        place("node::ListChunksResponse").rest(inventory.encode_to_vec()),
        place("receipts").rest(receipt.encode_to_vec()),
        place("answers").u8(6).rest(answer.encode_to_vec()),
        place("stores").rest(stored.encode_to_vec()),
        place("inventories").rest(inventory.encode_to_vec()),
    ]
}
