//! Where a node keeps chunks: [`rocks`] in production, [`memory`] for tests and trials.
//!
//! What every store promises is written down as tests in `conformance`: what was acknowledged is there after a
//! crash; what is read is what was stored, or [`Error::Corrupt`]; no generation is given twice; what is used never
//! exceeds what is offered. Blocking on purpose: `service` bridges once, with `spawn_blocking`.
//!
//! A deleted chunk may go to the trash: it is not held any more, but its bytes stay where they are, and it can be
//! restored until it is purged. Trash takes space that nobody else needs: the oldest is purged whenever a store would
//! not fit otherwise. There is no clock here; callers say what time it is.
//! Not here: who may call (`service`), telling the gateway (`heartbeat`), when trash expires (`trash`).

mod commit;
#[cfg(test)]
mod conformance;
mod life;
pub(crate) use life::write_file;
pub mod memory;
mod record;
pub(crate) use record::format_newest;
pub mod rocks;
mod space;

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp};
use uuid::Uuid;

/// Longest chunk a node takes: as much as fits in one message.
pub const CHUNK_BYTES_MAX: ByteCount = ByteCount::mib(66);
/// Longest sealed descriptor that is kept with a chunk.
pub const DESCRIPTOR_BYTES_MAX: usize = 256;
/// How many distinct descriptors are kept with one chunk; the oldest goes first.
pub const DESCRIPTORS_MAX: usize = cyxcloud_core::seal::Descriptor::KEPT_MAX;

/// What a store was, or is, asked to be.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store did not do what it was asked. A variant exists because some caller acts on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's mistake; nothing was stored.
    #[error("the bytes do not hash to {id}")]
    WrongId {
        /// What they were said to be.
        id: ChunkId,
    },
    /// The caller's mistake; nothing was stored.
    #[error("a chunk is 1 byte to {CHUNK_BYTES_MAX} long, not {length}")]
    Length {
        /// How long it was.
        length: ByteCount,
    },
    /// Held, but not what was stored; quarantined until the same chunk is stored again.
    #[error("chunk {id} is corrupt on this node and is held back")]
    Corrupt {
        /// Which one.
        id: ChunkId,
    },
    /// Nothing more fits. Reads and deletes go on, and stores again once there is space.
    #[error("no space is left to offer: {why}")]
    Full {
        /// Whether the offered capacity or the disk itself is exhausted.
        why: String,
    },
    /// A write to disk failed. Nobody knows what such a disk still holds of it, so there is no second try.
    #[error("the disk failed and this node takes no more writes until it is restarted: {reason}")]
    ReadOnly {
        /// What the disk said.
        reason: String,
    },
    /// The index of chunks cannot be read: what else is held is unknown, and waiting does not help.
    #[error(
        "the index of chunks is damaged ({why}): stop this node, remove `db` from its data directory and start it again; \
         what it held is then made again from other nodes"
    )]
    Damaged {
        /// What the database said.
        why: String,
    },
    /// The node is shutting down.
    #[error("the chunk store is closed")]
    Closed,
    /// Something else went wrong; `doing` completes "could not ...".
    #[error("could not {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Io { doing, source: Box::new(source) }
    }
}

/// What became of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Given to this store and to no other.
    pub generation: Generation,
    /// Whether the bytes had been held, and whole, before.
    pub existed: bool,
}

/// What became of a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It was held and no longer is; whether it is in the trash, the caller decided (but for corrupt chunks).
    Gone,
    /// It was not held.
    Absent,
    /// This newer generation, or one of another incarnation, is held and was kept.
    KeptNewer(Generation),
}

/// What became of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It was in the trash and is held again, in the generation it had.
    Back(Generation),
    /// It is neither held nor in the trash, at least not in the generation that was asked for.
    Absent,
    /// It is held, in this generation.
    Held(Generation),
}

/// A deleted chunk that can still be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trashed {
    /// Which chunk.
    pub id: ChunkId,
    /// Length of its bytes.
    pub length: ByteCount,
    /// Given to its last store.
    pub generation: Generation,
    /// When it was deleted, as the caller said.
    pub at: Timestamp,
}

/// What is known of a chunk without reading its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which chunk.
    pub id: ChunkId,
    /// Length of its bytes.
    pub length: ByteCount,
    /// Given to its last store.
    pub generation: Generation,
    /// Whether its bytes were found corrupt.
    pub quarantined: bool,
    /// When it was last stored, as the caller said then; not known of stores in the first format.
    pub stored_at: Option<Timestamp>,
    /// Sealed descriptors stored with it, the oldest first.
    pub descriptors: Vec<Bytes>,
}

/// How full a store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all chunks held, quarantined ones and trash included; a chunk stored twice counts once.
    pub used: ByteCount,
    /// Number of chunks held, trash not included.
    pub chunks: u64,
    /// Bytes of trash.
    pub trash: ByteCount,
    /// Number of chunks in the trash.
    pub trash_chunks: u64,
    /// Number of chunks purged from the trash since the store was opened.
    pub trash_purged: u64,
    /// What can still be stored once all trash is purged: the smaller of what is offered and what the disk has.
    pub available: ByteCount,
    /// Writes that were made durable, each for one or more requests.
    pub syncs: u64,
}

impl Usage {
    /// Bytes of all chunks held, trash not included: what a store cannot do away with.
    pub fn held(&self) -> ByteCount {
        self.used.saturating_sub(self.trash)
    }
}

/// Whether a store takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As it should be.
    Writable,
    /// Takes deletes, and stores again once there is space.
    Full,
    /// Serves reads only, because of this.
    ReadOnly(String),
}

/// A place for chunks. All calls block and may be made from any number of threads.
pub trait ChunkStore: Send + Sync + std::fmt::Debug {
    /// Stores a chunk under its hash. Durable when it returns. The same chunk may be stored again: that is a new
    /// generation of the same bytes, adds the descriptor (unless empty or known), heals a corrupt chunk, and takes the
    /// chunk out of the trash. The oldest trash is purged as far as the chunk would not fit otherwise. `at` is the time
    /// of the store, kept with it where the format has room for it.
    fn put(&self, id: ChunkId, bytes: Bytes, descriptor: Bytes, at: Timestamp) -> Result<Stored>;

    /// The bytes that were stored, or [`Error::Corrupt`]; never other bytes. A chunk found corrupt is quarantined.
    fn get(&self, id: ChunkId) -> Result<Option<Bytes>>;

    /// What is known of a chunk, from memory of it alone.
    fn entry(&self, id: ChunkId) -> Result<Option<Entry>>;

    /// Forgets a chunk whose generation is this one, or an older one of the same incarnation. Durable when it returns.
    /// With `trash_at`, the time of the delete, it goes to the trash, unless it is known to be corrupt.
    fn delete(&self, id: ChunkId, generation: Generation, trash_at: Option<Timestamp>) -> Result<Deleted>;

    /// At most `limit` pieces of trash, the oldest first and by id among those of one time, beginning behind `after`.
    fn trash(&self, after: Option<(Timestamp, ChunkId)>, limit: usize) -> Result<Vec<Trashed>>;

    /// Takes a chunk out of the trash; with `generation` only if this is its generation. Durable when it returns.
    /// What rotted there is not restored: [`Error::Corrupt`].
    fn restore(&self, id: ChunkId, generation: Option<Generation>) -> Result<Restored>;

    /// Forgets trash that was deleted at `until` or before, the oldest first and at most `limit` pieces of it. Fewer
    /// means that there are no more. Durable when it returns.
    fn purge_trash(&self, until: Timestamp, limit: usize) -> Result<usize>;

    /// At most `limit` entries in ascending order of id, beginning behind `after`. Fewer means that there are no more.
    fn list(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<Entry>>;

    /// All chunks held back as corrupt.
    fn quarantined(&self) -> Vec<ChunkId>;

    /// How full it is.
    fn usage(&self) -> Usage;

    /// Whether it takes writes.
    fn condition(&self) -> Condition;

    /// Which life of the data directory this is.
    fn incarnation(&self) -> Uuid;

    /// The format that it is in.
    fn format(&self) -> u32;

    /// Goes over to a newer format, as far as this build knows it; never back. Durable when it returns: programs that do not
    /// know the format refuse the data directory from then on. Older records stay as they are and are read as ever.
    fn take_up(&self, format: u32) -> Result<()>;

    /// Writes out what can be written and stops; every later call may answer [`Error::Closed`]. Nothing that was
    /// acknowledged depends on it.
    fn close(&self);
}

/// Refuses what no store takes, before anything else is done with it.
fn check(id: ChunkId, bytes: &[u8]) -> Result<()> {
    let length = ByteCount::bytes(bytes.len() as u64);
    if bytes.is_empty() || length > CHUNK_BYTES_MAX {
        return Err(Error::Length { length });
    }
    if ChunkId::of(bytes) != id {
        return Err(Error::WrongId { id });
    }
    Ok(())
}

/// Why a chunk does not fit what is offered.
fn full(offered: ByteCount, used: ByteCount, length: ByteCount) -> Error {
    Error::Full { why: format!("of {offered} offered {used} are used, and the chunk has {length}") }
}
