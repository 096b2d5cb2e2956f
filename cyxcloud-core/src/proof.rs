//! Verified slices of a chunk: the bytes with their Merkle path, checked against nothing but the chunk's id.
//!
//! A Blake3 hash is the root of a tree; a Bao encoding carries the part of the tree that leads to the wanted bytes.
//! Every proof also leads to the chunk's last bytes, so that it proves the length as well: one of another length never verifies.
//! Not here: which slice an auditor picks, and who asks whom.

use std::ops::Range;

use bao_tree::io::BaoContentItem;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::round_up_to_chunks;
use bao_tree::io::sync::{DecodeResponseIter, encode_ranges_validated};
use bao_tree::{BaoTree, BlockSize, ByteRanges, ChunkRanges};
use bytes::{Bytes, BytesMut};

use crate::ChunkId;

/// Leaves of the tree are groups of 16 KiB.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);

/// Why slices could not be proven, or a proof not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// A slice has bytes, and all of them within the chunk.
    #[error("the slice {start}..{end} does not lie within a chunk of {len} bytes, or is empty")]
    BadSlice {
        /// first byte
        start: u64,
        /// one past the last byte
        end: u64,
        /// length of the chunk
        len: u64,
    },
    /// There is nothing to prove.
    #[error("no slices were asked for")]
    NoSlices,
    /// Bytes or path are not those of the chunk.
    #[error("the proof does not lead from the bytes to the chunk's id")]
    Wrong,
}

/// Proves slices of a chunk. The caller holds the right bytes: nothing is checked against an id here.
pub fn prove(chunk: &[u8], slices: &[Range<u64>]) -> Result<Vec<u8>, ProofError> {
    let ranges = tree_ranges(chunk.len() as u64, slices)?;
    let outboard = PreOrderMemOutboard::create(chunk, GROUP);
    // Slices may overlap; what they cover together is at most the chunk.
    let asked =
        slices.iter().fold(0u64, |sum, s| sum.saturating_add(s.end - s.start)).min(chunk.len() as u64);
    let mut proof = Vec::with_capacity(asked as usize + 4096);
    encode_ranges_validated(chunk, &outboard, &ranges, &mut proof).map_err(|_| ProofError::Wrong)?;
    Ok(proof)
}

/// The bytes of each slice, in the order asked for, if the proof leads from them to `id`.
///
/// `chunk_len` comes from our own records, never from whoever sent the proof.
pub fn verify(
    id: &ChunkId,
    chunk_len: u64,
    slices: &[Range<u64>],
    proof: &[u8],
) -> Result<Vec<Bytes>, ProofError> {
    let ranges = tree_ranges(chunk_len, slices)?;
    let tree = BaoTree::new(chunk_len, GROUP);
    let mut unread = proof;
    let mut leaves = Vec::new();
    for item in DecodeResponseIter::new(blake3::Hash::from(*id.as_bytes()), tree, &mut unread, &ranges) {
        if let BaoContentItem::Leaf(leaf) = item.map_err(|_| ProofError::Wrong)? {
            leaves.push((leaf.offset, leaf.data));
        }
    }
    if !unread.is_empty() {
        return Err(ProofError::Wrong);
    }
    slices.iter().map(|slice| cut(&leaves, slice).ok_or(ProofError::Wrong)).collect()
}

/// One slice out of verified leaves, which are in ascending order; without a copy where it lies in one.
fn cut(leaves: &[(u64, Bytes)], slice: &Range<u64>) -> Option<Bytes> {
    let first = leaves.partition_point(|(offset, data)| offset + data.len() as u64 <= slice.start);
    let mut out = BytesMut::new();
    let mut at = slice.start;
    for (offset, data) in &leaves[first..] {
        if at < *offset {
            return None;
        }
        let from = (at - offset) as usize;
        let to = data.len().min((slice.end - offset) as usize);
        if at == slice.start && offset + to as u64 == slice.end {
            return Some(data.slice(from..to));
        }
        out.extend_from_slice(&data[from..to]);
        at = offset + to as u64;
        if at == slice.end {
            return Some(out.freeze());
        }
    }
    None
}

/// What of the tree is sent for these slices: them, and the end.
fn tree_ranges(len: u64, slices: &[Range<u64>]) -> Result<ChunkRanges, ProofError> {
    if slices.is_empty() {
        return Err(ProofError::NoSlices);
    }
    let mut bytes = ByteRanges::from(len.saturating_sub(1)..len);
    for slice in slices {
        if slice.is_empty() || slice.end > len {
            return Err(ProofError::BadSlice { start: slice.start, end: slice.end, len });
        }
        bytes |= ByteRanges::from(slice.clone());
    }
    Ok(round_up_to_chunks(&bytes))
}

#[cfg(test)]
mod tests;
