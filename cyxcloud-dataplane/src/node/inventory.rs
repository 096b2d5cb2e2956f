//! A node's list of what it holds, as it comes in: page by page, in ascending order, and not too slowly.
//!
//! The list is a stranger's. One that repeats itself, breaks off without ending, or comes in a trickle ends in an error, and a
//! page is of a size that says how much memory it takes.

use std::time::Duration;

use cyxcloud_core::ChunkId;
use cyxcloud_proto::node::ListChunksResponse;
use futures::{Stream, TryStreamExt};
use tokio::time::Instant;
use tonic::{Code, Streaming};

use super::pool::{ListedChunk, listed};
use crate::error::NodeError;

/// Largest page, in bytes on the wire: nodes put 4,096 entries of less than a hundred bytes into one.
pub(super) const PAGE_BYTES: usize = 1 << 20;
/// The same with descriptors and receipts: 512 entries of up to five kilobytes.
pub(super) const PAGE_IN_FULL_BYTES: usize = 4 << 20;
/// How much longer each entry lets us wait for the next.
const EARNED: Duration = Duration::from_millis(10);

/// The rest of a list.
pub(super) struct Inventory {
    pages: Streaming<ListChunksResponse>,
    /// Whose receipts are in it.
    key: [u8; 32],
    /// What came last.
    last: Option<ChunkId>,
    /// How long the node may still keep us waiting, and at most.
    patience: Duration,
    most: Duration,
}

impl Inventory {
    /// What comes after `after`.
    pub(super) fn new(
        pages: Streaming<ListChunksResponse>,
        key: [u8; 32],
        after: Option<ChunkId>,
        patience: Duration,
    ) -> Self {
        Self { pages, key, last: after, patience, most: patience }
    }

    /// Entry by entry.
    pub(super) fn entries(self) -> impl Stream<Item = Result<ListedChunk, NodeError>> + Send + 'static {
        futures::stream::try_unfold(self, Self::page).try_flatten()
    }

    async fn page(
        mut self,
    ) -> Result<Option<(impl Stream<Item = Result<ListedChunk, NodeError>> + Send, Self)>, NodeError> {
        let asked = Instant::now();
        let page = tokio::time::timeout(self.patience, self.pages.message()).await;
        let page = page.map_err(|_| NodeError::TimedOut)?;
        let Some(page) = page.map_err(|status| NodeError::from_status(&status))? else { return Ok(None) };
        let earned = EARNED * u32::try_from(page.chunks.len()).unwrap_or(u32::MAX);
        self.patience = (self.patience.saturating_sub(asked.elapsed()) + earned).min(self.most);
        let mut entries = Vec::with_capacity(page.chunks.len());
        for entry in page.chunks {
            let entry = listed(entry, &self.key)?;
            if self.last.is_some_and(|last| entry.chunk <= last) {
                let message = "its list of chunks is not in order".to_owned();
                return Err(NodeError::Status { code: Code::Internal, message });
            }
            self.last = Some(entry.chunk);
            entries.push(entry);
        }
        Ok(Some((futures::stream::iter(entries.into_iter().map(Ok)), self)))
    }
}
