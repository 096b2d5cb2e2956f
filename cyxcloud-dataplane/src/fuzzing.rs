//! What the fuzz targets in `fuzz/` reach of this crate's inside: how answers of nodes are read.
//!
//! No interface: nothing else may use it, and it may change at any time.

use cyxcloud_core::ChunkId;
use cyxcloud_core::receipt::Receipt;
use cyxcloud_proto::node as wire;

use crate::node::raw::Pieces;
use crate::node::{ListedChunk, pool, raw};

/// The message in a response body that came so many bytes at a time.
pub fn message_of(body: &[u8], at_a_time: usize) -> Option<Vec<u8>> {
    raw::message_of(Pieces::of(body, at_a_time)).ok().map(|message| message.into_bytes().to_vec())
}

/// The last `bytes` field of this number in a message that came so many bytes at a time.
pub fn bytes_field(message: &[u8], at_a_time: usize, number: u32) -> Option<Vec<u8>> {
    raw::bytes_field(Pieces::of(message, at_a_time), number).ok().map(|field| field.into_bytes().to_vec())
}

/// An entry of the inventory of the node with this key.
pub fn listed(entry: wire::ChunkEntry, key: &[u8; 32]) -> Option<ListedChunk> {
    pool::listed(entry, key).ok()
}

/// The receipt in the answer of the node with this key to the store of a chunk.
pub fn receipt_of(answer: &[u8], key: &[u8; 32], chunk: &ChunkId, length: usize) -> Option<Receipt> {
    pool::receipt_of(Pieces::of(answer, answer.len().max(1)), key, chunk, length).ok()
}
