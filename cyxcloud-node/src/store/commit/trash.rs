//! The writer's part in the trash: what leaves it, and why.
//!
//! A chunk goes there and comes back by its record alone; its bytes are not touched until it is purged.

use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp};
use rocksdb::{Direction, IteratorMode};
use tracing::{info, warn};

use super::{Committer, Draft, cf};
use crate::store::record::{Meta, TRASH, parse_trash_key, trash_key};
use crate::store::rocks::{BYTES, CHUNKS};
use crate::store::space::HEADROOM;
use crate::store::{Error, Restored, Result};

impl Committer {
    /// Puts a chunk that is held into the trash.
    pub(super) fn discard(&self, draft: &mut Draft, id: ChunkId, held: Meta, at: Timestamp) {
        let key = trash_key(at, &id);
        draft.account.discard(held.length);
        // A clock may have been set back since.
        draft.trash_from = draft.trash_from.min(key);
        draft.batch.put(key, []);
        let meta = Meta { trashed: Some(at), ..held };
        draft.batch.put_cf(&cf(&self.db, CHUNKS), id.as_bytes(), meta.encode());
        draft.after.insert(id, Some(meta));
    }

    /// Takes the bytes and all that is known of a chunk out of the database.
    pub(super) fn forget(&self, draft: &mut Draft, id: ChunkId, length: ByteCount) {
        draft.batch.delete_cf(&cf(&self.db, BYTES), id.as_bytes());
        draft.batch.delete_cf(&cf(&self.db, CHUNKS), id.as_bytes());
        draft.garbage += length.get();
        draft.carried.remove(&id);
        draft.after.insert(id, None);
    }

    pub(super) fn plan_restore(
        &self,
        draft: &mut Draft,
        id: ChunkId,
        generation: Option<Generation>,
    ) -> Result<Restored> {
        let Some(held) = self.held(draft, id)? else { return Ok(Restored::Absent) };
        let Some(at) = held.trashed else { return Ok(Restored::Held(held.generation)) };
        if generation.is_some_and(|asked| asked != held.generation) {
            return Ok(Restored::Absent);
        }
        draft.batch.delete(trash_key(at, &id));
        draft.account.restore(held.length);
        let meta = Meta { trashed: None, ..held };
        let generation = meta.generation;
        draft.batch.put_cf(&cf(&self.db, CHUNKS), id.as_bytes(), meta.encode());
        draft.after.insert(id, Some(meta));
        Ok(Restored::Back(generation))
    }

    pub(super) fn plan_purge(&self, draft: &mut Draft, until: Timestamp, limit: usize) -> Result<usize> {
        let mut purged = 0;
        self.purge_oldest(draft, |at, _| {
            let goes = at <= until && purged < limit;
            purged += usize::from(goes);
            goes
        })?;
        Ok(purged)
    }

    /// Purges the oldest trash until this much is free.
    pub(super) fn make_room(&self, draft: &mut Draft, bytes: ByteCount) -> Result<()> {
        let mut freed = ByteCount::ZERO;
        self.purge_oldest(draft, |_, length| {
            let goes = freed < bytes;
            freed = freed + length;
            goes
        })
    }

    /// Purges trash where it fills the disk itself. The disk has its space back only when it is reclaimed, so a store
    /// may have been refused already; `wanted` is the most that one would have taken.
    pub(super) fn relieve(&mut self, wanted: u64) {
        if self.account.trash_chunks == 0 || self.shared.failed.get().is_some() {
            return;
        }
        let enough = HEADROOM + HEADROOM.max(ByteCount::bytes(wanted));
        let short = enough.saturating_sub(self.shared.space.free() + self.shared.coming());
        if short == ByteCount::ZERO {
            return;
        }
        // Some more: to reclaim it rewrites part of what is kept, which must not happen for every few stores.
        let more = ByteCount::bytes(self.shared.worth_reclaiming().min(self.account.trash.get() / 10));
        let bytes = short + HEADROOM.max(more);
        let mut draft = self.draft();
        if let Err(error) = self.make_room(&mut draft, bytes) {
            return warn!(%error, "could not purge trash");
        }
        if draft.purged == 0 {
            return;
        }
        info!(chunks = draft.purged, bytes = draft.garbage, "purged trash because the disk is nearly full");
        // On a disk that takes nothing at all this waits for nobody: the next request leads here again.
        self.write(draft, false);
    }

    /// Purges trash, the oldest first, as long as `goes` says so of its time and length.
    fn purge_oldest(
        &self,
        draft: &mut Draft,
        mut goes: impl FnMut(Timestamp, ByteCount) -> bool,
    ) -> Result<()> {
        if draft.account.trash_chunks == 0 {
            return Ok(());
        }
        let from = draft.trash_from;
        for item in self.db.iterator(IteratorMode::From(&from, Direction::Forward)) {
            let (key, _) = item.map_err(|error| Error::io("list the trash", error))?;
            if key.first() != Some(&TRASH) {
                break;
            }
            let Some((at, id)) = parse_trash_key(&key) else { continue };
            let held = match self.held(draft, id) {
                Ok(held) => held.filter(|held| held.trashed == Some(at)),
                Err(error) => {
                    // One record that is damaged must not keep all later trash from being purged.
                    warn!(chunk = %id, %error, "could not purge a chunk from the trash");
                    None
                }
            };
            // Purged or restored by this very batch, unless it is damaged.
            let Some(held) = held else { continue };
            if !goes(at, held.length) {
                break;
            }
            self.forget(draft, id, held.length);
            draft.batch.delete(&key);
            draft.account.purge(held.length);
            draft.purged += 1;
            draft.trash_from = trash_key(at, &id);
        }
        Ok(())
    }
}
