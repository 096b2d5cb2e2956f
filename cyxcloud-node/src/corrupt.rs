//! Chunks found corrupt and not yet reported: they wait here for a heartbeat that the gateway accepts.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cyxcloud_core::ChunkId;

/// What one heartbeat carries at most.
const REPORT_MAX: usize = 1000;

/// The reports that wait.
#[derive(Debug, Default)]
pub(crate) struct CorruptChunks {
    waiting: Mutex<BTreeSet<ChunkId>>,
}

impl CorruptChunks {
    /// Begins with what was quarantined before: whether that was ever reported, nobody wrote down.
    pub(crate) fn new(quarantined: impl IntoIterator<Item = ChunkId>) -> Self {
        Self { waiting: Mutex::new(quarantined.into_iter().collect()) }
    }

    pub(crate) fn found(&self, id: ChunkId) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// What the next heartbeat says.
    pub(crate) fn next(&self) -> Vec<ChunkId> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter().take(REPORT_MAX).copied().collect()
    }

    /// The gateway has heard these.
    pub(crate) fn reported(&self, ids: &[ChunkId]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            waiting.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_waits_until_it_was_accepted() {
        let id = |n: u32| ChunkId::of(&n.to_be_bytes());
        let corrupt = CorruptChunks::new((0..1500).map(id));
        let first = corrupt.next();
        assert_eq!(first.len(), REPORT_MAX);
        assert_eq!(corrupt.next(), first, "not accepted, so said again");
        corrupt.reported(&first);
        assert_eq!(corrupt.next().len(), 500);
        corrupt.found(first[0]);
        assert_eq!(corrupt.next().len(), 501);
    }
}
