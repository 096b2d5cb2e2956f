//! The one thread that writes: it gathers the requests that wait and makes them durable with one synced batch.
//!
//! Being alone, it decides on what is there without locks, and its sums are exact. Nothing is acknowledged before the
//! sync. A failed write is final: what the disk kept of it is unknown and a later sync that succeeds proves nothing
//! about it, so no more writes are taken until the process starts anew and RocksDB has read its log back. Only a full
//! disk is no failure: RocksDB recovers from it by itself (its file manager polls the free space, flushes to a new log
//! and clears the error), and meanwhile stores are refused with [`Error::Full`]. An index that cannot be read ends
//! writing as well: nobody knows what this node would promise.

mod trash;

use std::collections::{HashMap, HashSet};
#[cfg(test)]
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp, crash_point};
use rocksdb::{BoundColumnFamily, DB, WriteBatch, WriteOptions};
use tracing::{error, info, warn};

use super::life::Life;
use super::record::{Account, Meta, TrashKey, trash_key};
use super::rocks::{ACCOUNT, BYTES, CHUNKS, quarantine_key};
use super::space::{HEADROOM, Space};
use super::{Condition, Deleted, Error, Restored, Result, Stored, Usage};

/// A batch ends at this many bytes: about what a small node's memtable holds in half.
const BATCH_BYTES_MAX: u64 = 8 << 20;
const BATCH_REQUESTS_MAX: usize = 256;
/// How often a delete is tried on a full disk, and how long apart: RocksDB looks for space every 5 s.
const DELETE_TRIES: u32 = 24;
const DELETE_PAUSE: Duration = Duration::from_millis(500);
/// So many bytes deleted are worth reclaiming from the disk.
const RECLAIM_BYTES: u64 = 1 << 30;

/// One request, and where its answer goes.
pub(crate) enum Request {
    Put {
        id: ChunkId,
        bytes: Bytes,
        descriptor: Bytes,
        at: Timestamp,
        intact: bool,
        reply: SyncSender<Result<Stored>>,
    },
    Delete {
        id: ChunkId,
        generation: Generation,
        trash_at: Option<Timestamp>,
        reply: SyncSender<Result<Deleted>>,
    },
    /// Its bytes were read and are whole.
    Restore {
        id: ChunkId,
        generation: Option<Generation>,
        reply: SyncSender<Result<Restored>>,
    },
    Purge {
        until: Timestamp,
        limit: usize,
        reply: SyncSender<Result<usize>>,
    },
    /// Only if this is still the generation held: a newer one has healed it.
    Quarantine {
        id: ChunkId,
        generation: Generation,
        reply: SyncSender<Result<()>>,
    },
    /// From here on records are of this format, if it is newer.
    TakeUp {
        format: u32,
        reply: SyncSender<Result<()>>,
    },
}

impl Request {
    fn weight(&self) -> u64 {
        match self {
            Self::Put { bytes, .. } => bytes.len() as u64 + 512,
            Self::Purge { limit, .. } => 512 * *limit as u64,
            Self::Delete { .. } | Self::Restore { .. } | Self::Quarantine { .. } | Self::TakeUp { .. } => 512,
        }
    }

    /// Whether it needs no space to speak of.
    fn frees(&self) -> bool {
        match self {
            Self::Put { .. } => false,
            Self::Delete { .. }
            | Self::Restore { .. }
            | Self::Purge { .. }
            | Self::Quarantine { .. }
            | Self::TakeUp { .. } => true,
        }
    }

    fn refuse(self, reason: &str) {
        let error = Error::ReadOnly { reason: reason.to_owned() };
        match self {
            Self::Put { reply, .. } => drop(reply.send(Err(error))),
            Self::Delete { reply, .. } => drop(reply.send(Err(error))),
            Self::Restore { reply, .. } => drop(reply.send(Err(error))),
            Self::Purge { reply, .. } => drop(reply.send(Err(error))),
            Self::Quarantine { reply, .. } | Self::TakeUp { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// An answer that waits for the sync.
enum Answer {
    Put(SyncSender<Result<Stored>>, Stored),
    Delete(SyncSender<Result<Deleted>>, Deleted),
    Restore(SyncSender<Result<Restored>>, Restored),
    Purge(SyncSender<Result<usize>>, usize),
    /// Of a quarantine, or a format taken up.
    Done(SyncSender<Result<()>>),
}

impl Answer {
    /// Whoever asked may have gone; the write stands all the same.
    fn good(self) {
        match self {
            Self::Put(reply, stored) => drop(reply.send(Ok(stored))),
            Self::Delete(reply, deleted) => drop(reply.send(Ok(deleted))),
            Self::Restore(reply, restored) => drop(reply.send(Ok(restored))),
            Self::Purge(reply, purged) => drop(reply.send(Ok(purged))),
            Self::Done(reply) => drop(reply.send(Ok(()))),
        }
    }

    fn bad(self, error: Error) {
        match self {
            Self::Put(reply, _) => drop(reply.send(Err(error))),
            Self::Delete(reply, _) => drop(reply.send(Err(error))),
            Self::Restore(reply, _) => drop(reply.send(Err(error))),
            Self::Purge(reply, _) => drop(reply.send(Err(error))),
            Self::Done(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// What the writer tells the readers.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) allocatable: ByteCount,
    pub(crate) space: Space,
    pub(crate) used: AtomicU64,
    pub(crate) chunks: AtomicU64,
    pub(crate) trash: AtomicU64,
    pub(crate) trash_chunks: AtomicU64,
    pub(crate) trash_purged: AtomicU64,
    pub(crate) format: AtomicU32,
    pub(crate) syncs: AtomicU64,
    /// Why no more writes are taken.
    pub(crate) failed: OnceLock<String>,
    pub(crate) full: AtomicBool,
    pub(crate) quarantined: RwLock<HashSet<ChunkId>>,
    /// Bytes deleted since space was last reclaimed.
    pub(crate) garbage: AtomicU64,
    /// Bytes deleted that are being reclaimed right now.
    pub(crate) reclaiming: AtomicU64,
    #[cfg(test)]
    pub(crate) fault: Mutex<Option<&'static str>>,
}

impl Shared {
    pub(crate) fn new(allocatable: ByteCount, space: Space, account: &Account) -> Self {
        Self {
            allocatable,
            space,
            used: AtomicU64::new(account.used.get()),
            chunks: AtomicU64::new(account.chunks),
            trash: AtomicU64::new(account.trash.get()),
            trash_chunks: AtomicU64::new(account.trash_chunks),
            trash_purged: AtomicU64::new(0),
            format: AtomicU32::new(account.format),
            syncs: AtomicU64::new(0),
            failed: OnceLock::new(),
            full: AtomicBool::new(false),
            quarantined: RwLock::default(),
            garbage: AtomicU64::new(0),
            reclaiming: AtomicU64::new(0),
            #[cfg(test)]
            fault: Mutex::default(),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let used = ByteCount::bytes(self.used.load(Ordering::Relaxed));
        let trash = ByteCount::bytes(self.trash.load(Ordering::Relaxed));
        let offered = self.allocatable.saturating_sub(used.saturating_sub(trash));
        Usage {
            used,
            chunks: self.chunks.load(Ordering::Relaxed),
            trash,
            trash_chunks: self.trash_chunks.load(Ordering::Relaxed),
            trash_purged: self.trash_purged.load(Ordering::Relaxed),
            available: offered.min((self.space.free() + trash).saturating_sub(HEADROOM)),
            syncs: self.syncs.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn condition(&self) -> Condition {
        if let Some(reason) = self.failed.get() {
            return Condition::ReadOnly(reason.clone());
        }
        let full = self.full.load(Ordering::Relaxed) || self.usage().available == ByteCount::ZERO;
        if full { Condition::Full } else { Condition::Writable }
    }

    /// Why the index could not be read. Once it is known to be damaged, no more writes are taken.
    pub(crate) fn index_error(&self, doing: &'static str, error: rocksdb::Error) -> Error {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => self.damaged(error.into_string()),
            _ => Error::io(doing, error),
        }
    }

    /// A record of the index makes no sense.
    pub(crate) fn damaged_record(&self, id: ChunkId) -> Error {
        self.damaged(format!("the record of chunk {id} makes no sense"))
    }

    fn damaged(&self, why: String) -> Error {
        let damage = Error::Damaged { why };
        if self.failed.set(damage.to_string()).is_ok() {
            error!(%damage, "this node takes no more writes");
        }
        damage
    }

    pub(crate) fn is_quarantined(&self, id: &ChunkId) -> bool {
        self.quarantined.read().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    pub(crate) fn set_quarantined(&self, id: ChunkId, quarantined: bool) {
        let mut set = self.quarantined.write().unwrap_or_else(PoisonError::into_inner);
        if quarantined {
            set.insert(id)
        } else {
            set.remove(&id)
        };
    }

    /// Whether it is time to make RocksDB drop what was deleted: a lot of it, or all there is when the disk is full.
    fn should_reclaim(&self) -> bool {
        let garbage = self.garbage.load(Ordering::Relaxed);
        garbage > self.worth_reclaiming() || (garbage > 0 && self.space.free() < HEADROOM + HEADROOM)
    }

    /// More garbage than this is reclaimed at once.
    fn worth_reclaiming(&self) -> u64 {
        RECLAIM_BYTES.min(self.allocatable.get() / 10).max(16 << 20)
    }

    /// What the disk gets back once all that was deleted is reclaimed.
    fn coming(&self) -> ByteCount {
        ByteCount::bytes(self.garbage.load(Ordering::Relaxed))
            + ByteCount::bytes(self.reclaiming.load(Ordering::Relaxed))
    }
}

/// The writer's own state.
pub(crate) struct Committer {
    pub(crate) db: Arc<DB>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) life: Life,
    pub(crate) account: Account,
    /// No trash is listed before this key. Spares the search for the oldest a walk over all that was purged, which
    /// RocksDB steps over one by one until it compacts.
    pub(crate) trash_from: TrashKey,
    /// Asked to reclaim space; another thread does it.
    pub(crate) reclaim: SyncSender<()>,
}

/// What one batch is going to change, beside the batch itself.
struct Draft {
    batch: WriteBatch,
    account: Account,
    /// Chunks as they will be; `None` is deleted.
    after: HashMap<ChunkId, Option<Meta>>,
    /// Chunks whose bytes this batch already carries.
    carried: HashSet<ChunkId>,
    answers: Vec<Answer>,
    garbage: u64,
    /// How much of the disk it takes: once in the log and once in a table.
    weight: u64,
    /// The most that the disk was asked for, granted or not.
    wanted: u64,
    trash_from: TrashKey,
    /// Chunks purged from the trash.
    purged: u64,
    /// Whether stores are in it.
    stores: bool,
}

impl Committer {
    /// Works until all senders are gone; then everything that was asked has been answered.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        let mut left_over = None;
        while let Some(first) = left_over.take().or_else(|| requests.recv().ok()) {
            let frees = first.frees();
            let mut weight = first.weight();
            let mut gathered = vec![first];
            while weight < BATCH_BYTES_MAX && gathered.len() < BATCH_REQUESTS_MAX {
                let Ok(next) = requests.try_recv() else { break };
                // What frees space is never in one batch with what takes it: a full disk refuses only the latter.
                if next.frees() != frees {
                    left_over = Some(next);
                    break;
                }
                weight += next.weight();
                gathered.push(next);
            }
            self.commit(gathered, frees);
        }
        if self.shared.failed.get().is_none()
            && let Err(error) = self.life.settle(self.account.counter)
        {
            warn!(%error, "could not write the counter down at the end");
        }
    }

    fn commit(&mut self, requests: Vec<Request>, frees: bool) {
        if let Some(reason) = self.shared.failed.get() {
            return requests.into_iter().for_each(|request| request.refuse(reason));
        }
        let mut draft = self.draft();
        for request in requests {
            self.plan(&mut draft, request);
        }
        let wanted = draft.wanted;
        if !draft.answers.is_empty() {
            self.write(draft, frees);
        }
        self.relieve(wanted);
        if self.shared.should_reclaim() {
            // Full means that it has been asked already.
            let _ = self.reclaim.try_send(());
        }
    }

    fn draft(&self) -> Draft {
        Draft {
            batch: WriteBatch::default(),
            account: self.account,
            after: HashMap::new(),
            carried: HashSet::new(),
            answers: Vec::new(),
            garbage: 0,
            weight: 0,
            wanted: 0,
            trash_from: self.trash_from,
            purged: 0,
            stores: false,
        }
    }

    /// Adds one request to the batch, or answers it at once.
    fn plan(&mut self, draft: &mut Draft, request: Request) {
        match request {
            Request::Put { id, bytes, descriptor, at, intact, reply } => {
                match self.plan_put(draft, id, &bytes, &descriptor, at, intact) {
                    Ok(stored) => draft.answers.push(Answer::Put(reply, stored)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Request::Delete { id, generation, trash_at, reply } => {
                match self.plan_delete(draft, id, generation, trash_at) {
                    Ok(Deleted::Gone) => draft.answers.push(Answer::Delete(reply, Deleted::Gone)),
                    done => drop(reply.send(done)),
                }
            }
            Request::Restore { id, generation, reply } => match self.plan_restore(draft, id, generation) {
                Ok(back @ Restored::Back(_)) => draft.answers.push(Answer::Restore(reply, back)),
                done => drop(reply.send(done)),
            },
            Request::Purge { until, limit, reply } => match self.plan_purge(draft, until, limit) {
                Ok(purged @ 1..) => draft.answers.push(Answer::Purge(reply, purged)),
                done => drop(reply.send(done)),
            },
            Request::Quarantine { id, generation, reply } => {
                match self.plan_quarantine(draft, id, generation) {
                    Ok(true) => draft.answers.push(Answer::Done(reply)),
                    done => drop(reply.send(done.map(|_| ()))),
                }
            }
            // The account goes out with every batch.
            Request::TakeUp { format, reply } => {
                draft.account.format = draft.account.format.max(format);
                draft.answers.push(Answer::Done(reply));
            }
        }
    }

    fn held(&self, draft: &Draft, id: ChunkId) -> Result<Option<Meta>> {
        match draft.after.get(&id) {
            Some(meta) => Ok(meta.clone()),
            None => read_meta(&self.db, &self.shared, id),
        }
    }

    fn plan_put(
        &mut self,
        draft: &mut Draft,
        id: ChunkId,
        bytes: &Bytes,
        descriptor: &Bytes,
        at: Timestamp,
        intact: bool,
    ) -> Result<Stored> {
        let held = self.held(draft, id)?;
        let length = ByteCount::bytes(bytes.len() as u64);
        let whole = held.as_ref().is_some_and(|meta| !meta.quarantined);
        let carry = !(whole && (intact || draft.carried.contains(&id)));
        if held.is_none() {
            let (offered, used) = (self.shared.allocatable, draft.account.used);
            let lack = draft.account.lacks(offered, length);
            self.make_room(draft, lack.ok_or_else(|| super::full(offered, used, length))?)?;
        }
        if carry {
            self.disk_has(draft, 2 * length.get())?;
        }
        let counter = self.life.next(self.account.counter).map_err(|error| self.lease_failed(error))?;
        let generation = Generation { incarnation: self.life.incarnation(), counter };
        draft.account.counter = counter;
        let existed = whole && held.as_ref().is_some_and(|meta| meta.trashed.is_none());
        if let Some(at) = held.as_ref().and_then(|meta| meta.trashed) {
            draft.batch.delete(trash_key(at, &id));
            draft.account.restore(length);
        }
        let mut meta = match held {
            Some(meta) => Meta { generation, quarantined: false, trashed: None, ..meta },
            None => {
                draft.account.add(length);
                Meta::new(length, generation)
            }
        };
        meta.stored_at = draft.account.stored_at(at);
        meta.remember(descriptor);
        if carry {
            draft.batch.put_cf(&cf(&self.db, BYTES), id.as_bytes(), bytes);
            draft.batch.delete(quarantine_key(&id));
            draft.carried.insert(id);
            draft.weight += 2 * length.get();
        }
        draft.batch.put_cf(&cf(&self.db, CHUNKS), id.as_bytes(), meta.encode());
        draft.after.insert(id, Some(meta));
        draft.stores = true;
        Ok(Stored { generation, existed })
    }

    fn plan_delete(
        &self,
        draft: &mut Draft,
        id: ChunkId,
        generation: Generation,
        trash_at: Option<Timestamp>,
    ) -> Result<Deleted> {
        let held = self.held(draft, id)?.filter(|held| held.trashed.is_none());
        let Some(held) = held else { return Ok(Deleted::Absent) };
        if !held.may_be_deleted_by(generation) {
            return Ok(Deleted::KeptNewer(held.generation));
        }
        // Nobody wants a corrupt chunk back.
        match trash_at.filter(|_| !held.quarantined && !self.shared.is_quarantined(&id)) {
            Some(at) => self.discard(draft, id, held, at),
            None => {
                draft.account.remove(held.length);
                draft.batch.delete(quarantine_key(&id));
                self.forget(draft, id, held.length);
            }
        }
        Ok(Deleted::Gone)
    }

    fn plan_quarantine(&self, draft: &mut Draft, id: ChunkId, generation: Generation) -> Result<bool> {
        match self.held(draft, id)? {
            Some(held) if held.generation == generation && !held.quarantined && held.trashed.is_none() => {
                let meta = Meta { quarantined: true, ..held };
                draft.batch.put_cf(&cf(&self.db, CHUNKS), id.as_bytes(), meta.encode());
                draft.batch.put(quarantine_key(&id), []);
                draft.after.insert(id, Some(meta));
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn disk_has(&self, draft: &mut Draft, more: u64) -> Result<()> {
        let more = draft.weight + more;
        draft.wanted = draft.wanted.max(more);
        let free = self.shared.space.free();
        if free < HEADROOM + ByteCount::bytes(more) {
            self.shared.full.store(true, Ordering::Relaxed);
            return Err(Error::Full {
                why: format!("the disk has {free} left, and {HEADROOM} must stay free"),
            });
        }
        Ok(())
    }

    fn lease_failed(&self, error: std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::StorageFull {
            self.shared.full.store(true, Ordering::Relaxed);
            return Error::Full { why: error.to_string() };
        }
        self.fail(format!("could not lease generations: {error}"))
    }

    fn fail(&self, reason: String) -> Error {
        error!(%reason, "a write failed, so this node takes no more of them");
        let reason = self.shared.failed.get_or_init(|| reason).clone();
        Error::ReadOnly { reason }
    }

    fn write(&mut self, mut draft: Draft, frees: bool) {
        // A lease that failed half-way through the planning failed the whole batch.
        if let Some(reason) = self.shared.failed.get() {
            let refuse = |answer: Answer| answer.bad(Error::ReadOnly { reason: reason.clone() });
            return draft.answers.into_iter().for_each(refuse);
        }
        let mut batch = std::mem::take(&mut draft.batch);
        batch.put(ACCOUNT, draft.account.encode());
        let again = frees.then(|| batch.data().to_vec());
        match self.sync(batch, draft.stores) {
            Ok(()) => self.acknowledge(draft),
            Err(reason) if is_full(&reason) => {
                self.out_of_space(&reason);
                if again.is_some_and(|batch| self.retry(&batch)) {
                    return self.acknowledge(draft);
                }
                let refuse = |answer: Answer| answer.bad(Error::Full { why: reason.clone() });
                draft.answers.into_iter().for_each(refuse);
            }
            Err(reason) => {
                self.fail(reason.clone());
                let refuse = |answer: Answer| answer.bad(Error::ReadOnly { reason: reason.clone() });
                draft.answers.into_iter().for_each(refuse);
            }
        }
    }

    /// Writes and syncs one batch. An error is RocksDB's own words: it tells a full disk from a broken one no other way.
    fn sync(&self, batch: WriteBatch, stores: bool) -> std::result::Result<(), String> {
        #[cfg(test)]
        if let Some(fault) = *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(fault.to_owned());
        }
        write_durably(&self.db, batch, stores)?;
        if stores {
            crash_point!("node.synced")
        } else {
            crash_point!("node.freed")
        }
        Ok(())
    }

    fn acknowledge(&mut self, draft: Draft) {
        let account = draft.account;
        self.account = account;
        self.trash_from = draft.trash_from;
        let shared = &self.shared;
        shared.used.store(account.used.get(), Ordering::Relaxed);
        shared.chunks.store(account.chunks, Ordering::Relaxed);
        shared.trash.store(account.trash.get(), Ordering::Relaxed);
        shared.trash_chunks.store(account.trash_chunks, Ordering::Relaxed);
        shared.trash_purged.fetch_add(draft.purged, Ordering::Relaxed);
        shared.format.store(account.format, Ordering::Relaxed);
        shared.syncs.fetch_add(1, Ordering::Relaxed);
        shared.garbage.fetch_add(draft.garbage, Ordering::Relaxed);
        if shared.full.swap(false, Ordering::Relaxed) {
            info!("the disk takes writes again");
            // Best effort; the next time it is needed it may not be there.
            let _ = shared.space.keep_reserve();
        }
        for (id, meta) in draft.after {
            shared.set_quarantined(id, meta.is_some_and(|meta| meta.quarantined));
        }
        // Before any answer: whoever is told of a store must find it missing if it is ever missing.
        if let Err(error) = self.life.acknowledge(account.counter) {
            warn!(%error, "could not note how far stores were acknowledged");
        }
        draft.answers.into_iter().for_each(Answer::good);
    }

    fn out_of_space(&self, reason: &str) {
        self.shared.space.give_up_reserve();
        if !self.shared.full.swap(true, Ordering::Relaxed) {
            warn!(%reason, "the disk is full, so stores are refused until there is space");
        }
    }

    /// Tries a batch that only frees space until RocksDB has recovered. Writing it twice does no harm: deletes are
    /// idempotent and the account holds sums, not differences.
    fn retry(&self, batch: &[u8]) -> bool {
        (0..DELETE_TRIES).any(|_| {
            std::thread::sleep(DELETE_PAUSE);
            self.sync(WriteBatch::from_data(batch), false).is_ok()
        })
    }
}

#[cfg(not(feature = "faults"))]
fn write_durably(db: &DB, batch: WriteBatch, _stores: bool) -> std::result::Result<(), String> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options).map_err(rocksdb::Error::into_string)
}

/// The same in two steps, so that a test can stop between them, or leave the second out.
#[cfg(feature = "faults")]
fn write_durably(db: &DB, batch: WriteBatch, stores: bool) -> std::result::Result<(), String> {
    db.write_opt(batch, &WriteOptions::default()).map_err(rocksdb::Error::into_string)?;
    if stores {
        crash_point!("node.written")
    } else {
        crash_point!("node.freeing")
    }
    if cyxcloud_core::faults::switch("UNSYNCED") {
        return Ok(());
    }
    // What was written is visible by now, so it cannot be refused any more, not even for want of space: other words
    // than RocksDB's make this a failure for good.
    db.flush_wal(true).map_err(|_| "the log could not be synced".to_owned())
}

/// Whether RocksDB's words are those of a full disk.
pub(crate) fn is_full(reason: &str) -> bool {
    reason.contains("No space left on device")
}

/// What is known of a chunk, from the database. A record that cannot be read is damage that nobody expected: it is an
/// error here, and never taken for an absent chunk.
pub(crate) fn read_meta(db: &DB, shared: &Shared, id: ChunkId) -> Result<Option<Meta>> {
    let doing = "read what is known of a chunk";
    let found = db.get_pinned_cf(&cf(db, CHUNKS), id.as_bytes());
    let found = found.map_err(|error| shared.index_error(doing, error))?;
    found.map(|bytes| Meta::decode(&bytes).ok_or_else(|| shared.damaged_record(id))).transpose()
}

/// A column family that `open` made sure of.
pub(crate) fn cf<'a>(db: &'a DB, name: &str) -> Arc<BoundColumnFamily<'a>> {
    db.cf_handle(name).expect("opened with all column families")
}
