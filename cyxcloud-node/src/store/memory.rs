//! Chunks in memory: for tests, and for trying things out without a disk.
//!
//! Keeps every promise of a [`ChunkStore`] but the one about crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp};
use uuid::Uuid;

use super::record::{Account, Meta, format_newest};
use super::{
    ChunkStore, Condition, Deleted, Entry, Error, Restored, Result, Stored, Trashed, Usage, check, full,
};

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
    /// The trash among them.
    trash: BTreeSet<(Timestamp, ChunkId)>,
    account: Account,
    writes: u64,
    purged: u64,
    closed: bool,
}

impl State {
    /// What is held: trash is not.
    fn held(&self, id: ChunkId) -> Option<&Meta> {
        self.chunks.get(&id).map(|(meta, _)| meta).filter(|meta| meta.trashed.is_none())
    }

    /// Forgets trash, the oldest first, as long as `goes` says so.
    fn purge(&mut self, mut goes: impl FnMut(Timestamp, ByteCount) -> bool) {
        while let Some((at, id)) = self.trash.first().copied() {
            let length = self.chunks.get(&id).map_or(ByteCount::ZERO, |(meta, _)| meta.length);
            if !goes(at, length) {
                return;
            }
            self.trash.pop_first();
            self.chunks.remove(&id);
            self.account.purge(length);
            self.purged += 1;
        }
    }
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
    fn put(&self, id: ChunkId, bytes: Bytes, descriptor: Bytes, at: Timestamp) -> Result<Stored> {
        check(id, &bytes)?;
        let length = ByteCount::bytes(bytes.len() as u64);
        let mut state = self.state()?;
        let held = state.chunks.get(&id).map(|(meta, _)| meta.clone());
        if held.is_none() {
            let used = state.account.used;
            let lack = state.account.lacks(self.allocatable, length);
            let lack = lack.ok_or_else(|| full(self.allocatable, used, length))?;
            let mut freed = ByteCount::ZERO;
            state.purge(|_, length| {
                let goes = freed < lack;
                freed = freed + length;
                goes
            });
            state.account.add(length);
        }
        state.account.counter += 1;
        state.writes += 1;
        let generation = Generation { incarnation: self.incarnation, counter: state.account.counter };
        let existed = held.as_ref().is_some_and(|meta| !meta.quarantined && meta.trashed.is_none());
        let held = held.unwrap_or_else(|| Meta::new(length, generation));
        if let Some(at) = held.trashed {
            state.trash.remove(&(at, id));
            state.account.restore(length);
        }
        let stored_at = state.account.stored_at(at);
        let mut meta = Meta { generation, quarantined: false, trashed: None, stored_at, ..held };
        meta.remember(&descriptor);
        state.chunks.insert(id, (meta, bytes));
        Ok(Stored { generation, existed })
    }

    fn get(&self, id: ChunkId) -> Result<Option<Bytes>> {
        let mut state = self.state()?;
        let Some((meta, bytes)) = state.chunks.get_mut(&id).filter(|(meta, _)| meta.trashed.is_none()) else {
            return Ok(None);
        };
        meta.quarantined |= ChunkId::of(bytes) != id;
        if meta.quarantined { Err(Error::Corrupt { id }) } else { Ok(Some(bytes.clone())) }
    }

    fn entry(&self, id: ChunkId) -> Result<Option<Entry>> {
        Ok(self.state()?.held(id).map(|meta| meta.entry(id)))
    }

    fn delete(&self, id: ChunkId, generation: Generation, trash_at: Option<Timestamp>) -> Result<Deleted> {
        let mut state = self.state()?;
        let Some(held) = state.held(id).cloned() else { return Ok(Deleted::Absent) };
        if !held.may_be_deleted_by(generation) {
            return Ok(Deleted::KeptNewer(held.generation));
        }
        state.writes += 1;
        match trash_at.filter(|_| !held.quarantined) {
            Some(at) => {
                if let Some((meta, _)) = state.chunks.get_mut(&id) {
                    meta.trashed = Some(at);
                }
                state.trash.insert((at, id));
                state.account.discard(held.length);
            }
            None => {
                state.chunks.remove(&id);
                state.account.remove(held.length);
            }
        }
        Ok(Deleted::Gone)
    }

    fn trash(&self, after: Option<(Timestamp, ChunkId)>, limit: usize) -> Result<Vec<Trashed>> {
        let state = self.state()?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let keys = state.trash.range((start, Bound::Unbounded));
        Ok(keys.filter_map(|(_, id)| state.chunks.get(id)?.0.as_trash(*id)).take(limit).collect())
    }

    fn restore(&self, id: ChunkId, generation: Option<Generation>) -> Result<Restored> {
        let mut state = self.state()?;
        let Some((meta, bytes)) = state.chunks.get_mut(&id) else { return Ok(Restored::Absent) };
        let Some(at) = meta.trashed else { return Ok(Restored::Held(meta.generation)) };
        if generation.is_some_and(|asked| asked != meta.generation) {
            return Ok(Restored::Absent);
        }
        if ChunkId::of(bytes) != id {
            return Err(Error::Corrupt { id });
        }
        meta.trashed = None;
        let (length, generation) = (meta.length, meta.generation);
        state.trash.remove(&(at, id));
        state.account.restore(length);
        state.writes += 1;
        Ok(Restored::Back(generation))
    }

    fn purge_trash(&self, until: Timestamp, limit: usize) -> Result<usize> {
        let mut state = self.state()?;
        let mut purged = 0;
        state.purge(|at, _| {
            let goes = at <= until && purged < limit;
            purged += usize::from(goes);
            goes
        });
        state.writes += u64::from(purged > 0);
        Ok(purged)
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<Entry>> {
        let state = self.state()?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = state.chunks.range((start, Bound::Unbounded));
        let held = range.filter(|(_, (meta, _))| meta.trashed.is_none());
        Ok(held.take(limit).map(|(id, (meta, _))| meta.entry(*id)).collect())
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
            trash: state.account.trash,
            trash_chunks: state.account.trash_chunks,
            trash_purged: state.purged,
            available: self
                .allocatable
                .saturating_sub(state.account.used.saturating_sub(state.account.trash)),
            syncs: state.writes,
        }
    }

    fn condition(&self) -> Condition {
        if self.usage().available == ByteCount::ZERO { Condition::Full } else { Condition::Writable }
    }

    fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    fn format(&self) -> u32 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).account.format
    }

    fn take_up(&self, format: u32) -> Result<()> {
        let mut state = self.state()?;
        state.account.format = state.account.format.max(format.min(format_newest()));
        Ok(())
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
