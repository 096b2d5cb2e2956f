//! Chunks in memory: for tests, and for trying things out without a disk.
//!
//! Keeps every promise of a [`ChunkStore`] but the one about crashes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation};
use uuid::Uuid;

use super::record::{Account, Meta};
use super::{ChunkStore, Condition, Deleted, Entry, Error, Result, Stored, Usage, check, full};

/// A [`ChunkStore`] that ends with its process.
#[derive(Debug)]
pub struct MemoryStore {
    allocatable: ByteCount,
    incarnation: Uuid,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: BTreeMap<ChunkId, (Meta, Bytes)>,
    account: Account,
    writes: u64,
    closed: bool,
}

impl MemoryStore {
    /// An empty store that takes this much. The incarnation is random and the caller's.
    pub fn new(allocatable: ByteCount, incarnation: Uuid) -> Self {
        Self { allocatable, incarnation, state: Mutex::default() }
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed { Err(Error::Closed) } else { Ok(state) }
    }

    /// What a failing disk would do.
    #[cfg(test)]
    pub(crate) fn damage(&self, id: ChunkId, bytes: Bytes) {
        if let Some(held) = self.state().expect("open").chunks.get_mut(&id) {
            held.1 = bytes;
        }
    }
}

impl ChunkStore for MemoryStore {
    fn put(&self, id: ChunkId, bytes: Bytes, descriptor: Bytes) -> Result<Stored> {
        check(id, &bytes)?;
        let length = ByteCount::bytes(bytes.len() as u64);
        let mut state = self.state()?;
        let held = state.chunks.get(&id).map(|(meta, _)| meta.clone());
        if held.is_none() && state.account.used + length > self.allocatable {
            return Err(full(self.allocatable, state.account.used, length));
        }
        state.account.counter += 1;
        state.writes += 1;
        let generation = Generation { incarnation: self.incarnation, counter: state.account.counter };
        let existed = held.as_ref().is_some_and(|meta| !meta.quarantined);
        if held.is_none() {
            state.account.add(length);
        }
        let held = held.unwrap_or_else(|| Meta::new(length, generation));
        let mut meta = Meta { generation, quarantined: false, ..held };
        meta.remember(&descriptor);
        state.chunks.insert(id, (meta, bytes));
        Ok(Stored { generation, existed })
    }

    fn get(&self, id: ChunkId) -> Result<Option<Bytes>> {
        let mut state = self.state()?;
        let Some((meta, bytes)) = state.chunks.get_mut(&id) else { return Ok(None) };
        meta.quarantined |= ChunkId::of(bytes) != id;
        if meta.quarantined { Err(Error::Corrupt { id }) } else { Ok(Some(bytes.clone())) }
    }

    fn entry(&self, id: ChunkId) -> Result<Option<Entry>> {
        Ok(self.state()?.chunks.get(&id).map(|(meta, _)| meta.entry(id)))
    }

    fn delete(&self, id: ChunkId, generation: Generation) -> Result<Deleted> {
        let mut state = self.state()?;
        let Some((meta, _)) = state.chunks.get(&id) else { return Ok(Deleted::Absent) };
        if !meta.may_be_deleted_by(generation) {
            return Ok(Deleted::KeptNewer(meta.generation));
        }
        let length = meta.length;
        state.chunks.remove(&id);
        state.account.remove(length);
        state.writes += 1;
        Ok(Deleted::Gone)
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<Entry>> {
        let state = self.state()?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = state.chunks.range((start, Bound::Unbounded));
        Ok(range.take(limit).map(|(id, (meta, _))| meta.entry(*id)).collect())
    }

    fn quarantined(&self) -> Vec<ChunkId> {
        let Ok(state) = self.state() else { return Vec::new() };
        state.chunks.iter().filter(|(_, (meta, _))| meta.quarantined).map(|(id, _)| *id).collect()
    }

    fn usage(&self) -> Usage {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Usage {
            used: state.account.used,
            chunks: state.account.chunks,
            available: self.allocatable.saturating_sub(state.account.used),
            syncs: state.writes,
        }
    }

    fn condition(&self) -> Condition {
        if self.usage().available == ByteCount::ZERO { Condition::Full } else { Condition::Writable }
    }

    fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    fn open(allocatable: ByteCount) -> (MemoryStore, ()) {
        (MemoryStore::new(allocatable, Uuid::from_bytes(rand::random())), ())
    }

    conformance::suite!(open, MemoryStore::damage);
}
