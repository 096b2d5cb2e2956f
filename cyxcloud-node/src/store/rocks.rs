//! Chunks in RocksDB: descriptions in one column family, bytes in blob files beside another.
//!
//! One thread writes (`commit`); reads go straight to the database and are hashed before they leave. The log is
//! read back to the last whole record at start (`PointInTime`, the only mode that goes with recycled log files): what
//! is behind it was either never acknowledged, or `life` notices. A finished log file that is missing or has shrunk is
//! refused by RocksDB itself, loudly: `open` fails.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp};
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, DBRecoveryMode, Direction, IteratorMode, LogLevel, Options, ReadOptions, WriteOptions,
};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::commit::{Committer, Request, Shared, cf, is_full, read_meta};
use super::life::{Life, NewLife};
use super::record::{
    Account, FORMAT_OLDEST, Meta, TRASH, TRASH_START, format_newest, parse_trash_key, trash_key,
};
use super::space::{RESERVE, Space};
use super::{ChunkStore, Condition, Deleted, Entry, Error, Restored, Result, Stored, Trashed, Usage, check};

/// Column family of [`Meta`] by chunk id.
pub(crate) const CHUNKS: &str = "chunks";
/// Column family of bytes by chunk id.
pub(crate) const BYTES: &str = "bytes";
/// Key of the [`Account`] in the default column family.
pub(crate) const ACCOUNT: &[u8] = b"account";
/// First byte of the keys that list the quarantined chunks, in the default column family.
const QUARANTINE: u8 = b'q';

/// Requests that may wait for the writer; more wait in their callers.
const QUEUE: usize = 512;
/// Space is not reclaimed more often than this: it rewrites some of what is kept.
const RECLAIM_PAUSE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// So often in a row it is tried, with ever longer pauses: for a quarter of an hour and more.
const RECLAIM_TRIES: u32 = 8;

pub(crate) fn quarantine_key(id: &ChunkId) -> [u8; 33] {
    let mut key = [QUARANTINE; 33];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

/// Where a store lives and what it may take.
#[derive(Clone, Debug)]
pub struct RocksConfig {
    /// The data directory; made if it is missing.
    pub dir: PathBuf,
    /// Bytes that may hold chunks.
    pub allocatable: ByteCount,
    /// Whether reads go by way of the system's page cache, also where the file system can do without.
    pub page_cache: bool,
}

/// A [`ChunkStore`] on disk.
#[derive(Debug)]
pub struct RocksStore {
    /// `None` once closed.
    db: RwLock<Option<Arc<DB>>>,
    shared: Arc<Shared>,
    incarnation: Uuid,
    requests: Mutex<Option<SyncSender<Request>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held, and so locked, as long as the store is.
    _lock: File,
}

impl RocksStore {
    /// Opens a data directory, or begins one. Fails if another process uses it, if it was written by a newer format,
    /// or if its log is damaged in a way that RocksDB can tell.
    pub fn open(config: &RocksConfig) -> Result<Self> {
        prepare_dir(&config.dir)?;
        let lock = lock_dir(&config.dir)?;
        let space = Space::new(&config.dir);
        if space.free() < RESERVE {
            space.give_up_reserve();
        }
        let db = Arc::new(open_db(config)?);
        let found = read_account(&db)?;
        let fresh = || Uuid::from_bytes(rand::random());
        let (life, why) = Life::open(&config.dir, found.as_ref(), fresh)
            .map_err(|error| Error::io("write the data directory's life down", error))?;
        report(why, life.incarnation());
        let account = Account { incarnation: life.incarnation(), ..found.unwrap_or_default() };
        if found != Some(account) {
            write_account(&db, &account)?;
        }
        if let Err(error) = space.keep_reserve() {
            warn!(%error, "could not set disk space aside; deletes may wait if others fill the disk");
        }
        let shared = Arc::new(Shared::new(config.allocatable, space, &account));
        for id in read_quarantined(&db)? {
            shared.set_quarantined(id, true);
        }
        let incarnation = life.incarnation();
        let (requests, queue) = sync_channel(QUEUE);
        let (reclaim, reclaims) = sync_channel(1);
        let committer = Committer {
            db: db.clone(),
            shared: shared.clone(),
            life,
            account,
            trash_from: TRASH_START,
            reclaim,
        };
        let threads = vec![
            spawn("chunk-commit", move || committer.run(&queue))?,
            spawn("chunk-reclaim", {
                let (db, shared) = (db.clone(), shared.clone());
                move || reclaim_when_asked(&db, &shared, &reclaims)
            })?,
        ];
        Ok(Self {
            db: RwLock::new(Some(db)),
            shared,
            incarnation,
            requests: Mutex::new(Some(requests)),
            threads: Mutex::new(threads),
            _lock: lock,
        })
    }

    fn db(&self) -> Result<Arc<DB>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Closed)
    }

    /// Hands a request to the writer and waits for its answer.
    fn ask<T>(&self, request: impl FnOnce(SyncSender<Result<T>>) -> Request) -> Result<T> {
        if let Some(reason) = self.shared.failed.get() {
            return Err(Error::ReadOnly { reason: reason.clone() });
        }
        let requests =
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Closed)?;
        let (reply, answer) = sync_channel(1);
        requests.send(request(reply)).map_err(|_| Error::Closed)?;
        answer.recv().map_err(|_| Error::Closed)?
    }

    /// Whether exactly these bytes are held, or in the trash. What cannot be read is simply written again.
    fn holds(&self, db: &DB, id: ChunkId, bytes: &[u8]) -> Result<bool> {
        if read_meta(db, &self.shared, id)?.is_none() || self.shared.is_quarantined(&id) {
            return Ok(false);
        }
        Ok(
            matches!(db.get_pinned_cf_opt(&cf(db, BYTES), id.as_bytes(), &reading()), Ok(Some(held)) if *held == *bytes),
        )
    }

    /// What is known of a chunk that is held: trash is not.
    fn held(&self, db: &DB, id: ChunkId) -> Result<Option<Meta>> {
        Ok(read_meta(db, &self.shared, id)?.filter(|meta| meta.trashed.is_none()))
    }

    /// Reads a chunk's bytes, if they hash to its id.
    fn whole(&self, db: &DB, id: ChunkId) -> Result<Option<Bytes>> {
        match db.get_pinned_cf_opt(&cf(db, BYTES), id.as_bytes(), &reading()) {
            Ok(Some(held)) if ChunkId::of(&held) == id => Ok(Some(Bytes::copy_from_slice(&held))),
            Ok(_) => Ok(None),
            Err(error) if is_damage(&error) => Ok(None),
            Err(error) => Err(Error::io("read a chunk", error)),
        }
    }

    /// Holds back what was found corrupt, unless it was stored again since. On disk if that still takes it.
    fn quarantine(&self, id: ChunkId, generation: Generation) {
        warn!(chunk = %id, "chunk is corrupt and held back");
        if let Err(error) = self.ask(|reply| Request::Quarantine { id, generation, reply }) {
            warn!(chunk = %id, %error, "could not write the quarantine down");
            self.shared.set_quarantined(id, true);
        }
    }
}

impl ChunkStore for RocksStore {
    fn put(&self, id: ChunkId, bytes: Bytes, descriptor: Bytes, at: Timestamp) -> Result<Stored> {
        check(id, &bytes)?;
        let db = self.db()?;
        let intact = self.holds(&db, id, &bytes)?;
        self.ask(|reply| Request::Put { id, bytes, descriptor, at, intact, reply })
    }

    fn get(&self, id: ChunkId) -> Result<Option<Bytes>> {
        let db = self.db()?;
        let mut seen = self.held(&db, id)?;
        loop {
            let Some(meta) = seen else { return Ok(None) };
            if meta.quarantined || self.shared.is_quarantined(&id) {
                return Err(Error::Corrupt { id });
            }
            if let Some(bytes) = self.whole(&db, id)? {
                return Ok(Some(bytes));
            }
            // Deleted or stored anew between the two reads is not the disk's fault: look again.
            seen = self.held(&db, id)?;
            if seen.as_ref() == Some(&meta) {
                self.quarantine(id, meta.generation);
                return Err(Error::Corrupt { id });
            }
        }
    }

    fn entry(&self, id: ChunkId) -> Result<Option<Entry>> {
        let found = self.held(&*self.db()?, id)?;
        Ok(found.map(|meta| Entry {
            quarantined: meta.quarantined || self.shared.is_quarantined(&id),
            ..meta.entry(id)
        }))
    }

    fn delete(&self, id: ChunkId, generation: Generation, trash_at: Option<Timestamp>) -> Result<Deleted> {
        self.ask(|reply| Request::Delete { id, generation, trash_at, reply })
    }

    fn trash(&self, after: Option<(Timestamp, ChunkId)>, limit: usize) -> Result<Vec<Trashed>> {
        let db = self.db()?;
        let after = after.map(|(at, id)| trash_key(at, &id));
        let mode = IteratorMode::From(after.as_ref().unwrap_or(&TRASH_START), Direction::Forward);
        let mut trash = Vec::with_capacity(limit.min(1024));
        for item in db.iterator(mode) {
            let (key, _) = item.map_err(|error| Error::io("list the trash", error))?;
            if trash.len() >= limit || key.first() != Some(&TRASH) {
                break;
            }
            let Some((at, id)) = parse_trash_key(&key) else { continue };
            if after.is_some_and(|after| *key == after) {
                continue;
            }
            // It may have been restored or purged since the list was opened.
            let found = read_meta(&db, &self.shared, id)?.and_then(|meta| meta.as_trash(id));
            trash.extend(found.filter(|found| found.at == at));
        }
        Ok(trash)
    }

    fn restore(&self, id: ChunkId, generation: Option<Generation>) -> Result<Restored> {
        let db = self.db()?;
        // Nobody may be told that a chunk is back when its bytes are not. Between this look and the writer's they can
        // only be purged, or stored anew.
        let meant = || -> Result<Option<Trashed>> {
            let found = read_meta(&db, &self.shared, id)?.and_then(|meta| meta.as_trash(id));
            Ok(found.filter(|found| generation.is_none_or(|asked| asked == found.generation)))
        };
        let seen = meant()?;
        if seen.is_some() && self.whole(&db, id)?.is_none() && meant()? == seen {
            warn!(chunk = %id, "chunk became corrupt in the trash and is not restored");
            return Err(Error::Corrupt { id });
        }
        self.ask(|reply| Request::Restore { id, generation, reply })
    }

    fn purge_trash(&self, until: Timestamp, limit: usize) -> Result<usize> {
        self.ask(|reply| Request::Purge { until, limit, reply })
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<Entry>> {
        let db = self.db()?;
        let doing = "list chunks";
        let start = after.map_or([0; 32], |id| *id.as_bytes());
        let mode = IteratorMode::From(&start, Direction::Forward);
        let mut entries = Vec::with_capacity(limit.min(1024));
        for item in db.iterator_cf(&cf(&db, CHUNKS), mode) {
            let (key, value) = item.map_err(|error| self.shared.index_error(doing, error))?;
            let id = ChunkId::try_from(&*key).map_err(|error| Error::io(doing, error))?;
            if Some(id) == after {
                continue;
            }
            if entries.len() >= limit {
                break;
            }
            let meta = Meta::decode(&value).ok_or_else(|| self.shared.damaged_record(id))?;
            if meta.trashed.is_some() {
                continue;
            }
            entries.push(Entry {
                quarantined: meta.quarantined || self.shared.is_quarantined(&id),
                ..meta.entry(id)
            });
        }
        Ok(entries)
    }

    fn quarantined(&self) -> Vec<ChunkId> {
        self.shared.quarantined.read().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    fn usage(&self) -> Usage {
        self.shared.usage()
    }

    fn condition(&self) -> Condition {
        self.shared.condition()
    }

    fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    fn format(&self) -> u32 {
        self.shared.format.load(Ordering::Relaxed)
    }

    fn take_up(&self, format: u32) -> Result<()> {
        let format = format.min(format_newest());
        if format <= self.format() {
            return Ok(());
        }
        self.ask(|reply| Request::TakeUp { format, reply })
    }

    fn close(&self) {
        // Without a sender the writer ends, after it has answered everybody who waits.
        drop(self.requests.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(db) = self.db.write().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut threads = threads.into_iter();
        if threads.next().is_some_and(|writer| writer.join().is_err()) {
            error!("the writing thread panicked");
        }
        if self.shared.failed.get().is_none() {
            // Only to start faster: the log holds it all.
            for name in [CHUNKS, BYTES] {
                if let Err(error) = db.flush_cf(&cf(&db, name)) {
                    warn!(%error, "could not flush at the end");
                }
            }
        }
        db.cancel_all_background_work(true);
        threads.for_each(|thread| drop(thread.join()));
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Error::io("start a thread", error))
}

/// Blake3 judges what was read, so RocksDB need not, and a chunk read once is not worth its room in the cache.
fn reading() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(false);
    options.fill_cache(false);
    options
}

/// Whether a failed read means that these bytes are damaged, and not that the machine is short of something.
fn is_damage(error: &rocksdb::Error) -> bool {
    let text = error.as_ref();
    error.kind() == rocksdb::ErrorKind::Corruption
        || text.contains("Input/output error")
        || text.contains("No such file or directory")
}

fn prepare_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Error::io("make the data directory", error))
}

fn lock_dir(dir: &Path) -> Result<File> {
    let doing = "lock the data directory";
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(|error| Error::io(doing, error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = format!("{} is in use by another node", dir.display());
            Err(Error::io(doing, std::io::Error::other(text)))
        }
        Err(error) => Err(Error::io(doing, std::io::Error::from(error))),
    }
}

fn read_account(db: &DB) -> Result<Option<Account>> {
    let doing = "read the store's account";
    let Some(bytes) = db.get(ACCOUNT).map_err(|error| Error::io(doing, error))? else { return Ok(None) };
    Account::decode(&bytes).map(Some).map_err(|version| {
        let text = match version {
            Some(version) => {
                format!(
                    "the data directory has format {version} and this build reads formats {FORMAT_OLDEST} to {}; start it with \
                     the newer program",
                    format_newest()
                )
            }
            None => "the account is damaged".to_owned(),
        };
        Error::io(doing, std::io::Error::other(text))
    })
}

fn write_account(db: &DB, account: &Account) -> Result<()> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.put_opt(ACCOUNT, account.encode(), &options).map_err(|error| {
        if is_full(error.as_ref()) {
            return Error::Full { why: error.into_string() };
        }
        Error::io("write the store's account", error)
    })
}

fn read_quarantined(db: &DB) -> Result<Vec<ChunkId>> {
    let mut ids = Vec::new();
    for item in db.iterator(IteratorMode::From(&[QUARANTINE], Direction::Forward)) {
        let (key, _) = item.map_err(|error| Error::io("list the quarantined chunks", error))?;
        match key.split_first() {
            Some((&QUARANTINE, id)) => ids.extend(ChunkId::try_from(id).ok()),
            _ => break,
        }
    }
    Ok(ids)
}

fn report(why: Option<NewLife>, incarnation: Uuid) {
    match why {
        None => {}
        Some(NewLife::Fresh) => info!(%incarnation, "new data directory"),
        Some(NewLife::LifeLost) => {
            warn!(%incarnation, "the file life is missing or damaged, so this data directory takes a new incarnation");
        }
        Some(NewLife::Mismatch) => warn!(
            %incarnation,
            "the database belongs to another life than the file beside it, so this data directory takes a new incarnation"
        ),
        Some(NewLife::StoresLost { recovered, acknowledged }) => error!(
            %incarnation, recovered, acknowledged,
            "the recovered log lacks stores that were acknowledged, so this data directory takes a new incarnation"
        ),
    }
}

/// Makes RocksDB drop deleted bytes: it forgets keys at once, but frees blob files only as it compacts.
fn reclaim_when_asked(db: &DB, shared: &Shared, asked: &Receiver<()>) {
    let mut not_before = Instant::now();
    while asked.recv().is_ok() {
        let mut tries = 0;
        loop {
            match asked.recv_timeout(not_before.saturating_duration_since(Instant::now())) {
                Ok(()) => continue,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let bytes = shared.garbage.swap(0, Ordering::Relaxed);
            shared.reclaiming.store(bytes, Ordering::Relaxed);
            let before = unreclaimed(db, shared);
            reclaim(db);
            shared.reclaiming.store(0, Ordering::Relaxed);
            let left = unreclaimed(db, shared);
            tries += 1;
            not_before = Instant::now() + RECLAIM_PAUSE * tries;
            // Most of it; what was deleted before it was flushed has no place in the files.
            if before.saturating_sub(left) >= bytes.min(before) / 8 * 7 || tries == RECLAIM_TRIES {
                info!(bytes, left, "compacted after deletes");
                break;
            }
            // A full disk has no space for what is kept, which is written anew first. RocksDB does not say so, and where stores are
            // refused, perhaps nobody deletes either: nobody would ask again.
            warn!(bytes, left, "what was deleted was not reclaimed; it is tried again");
            shared.garbage.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// Bytes in blob files beyond those of all chunks. What is in the log still counts as reclaimed.
fn unreclaimed(db: &DB, shared: &Shared) -> u64 {
    let kept = shared.used.load(Ordering::Relaxed) + shared.trash.load(Ordering::Relaxed);
    let blobs = db.property_int_value_cf(&cf(db, BYTES), "rocksdb.live-blob-file-size");
    blobs.ok().flatten().map_or(0, |blobs| blobs.saturating_sub(kept))
}

/// What is deleted leaves the disk, and nothing else.
fn reclaim(db: &DB) {
    let mut options = CompactOptions::default();
    options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
    collect_blobs(db, true);
    db.compact_range_cf_opt(&cf(db, BYTES), None::<&[u8]>, None::<&[u8]>, &options);
    collect_blobs(db, false);
}

/// Whether compactions rewrite the live bytes of old blob files. Only while deleted bytes are reclaimed: chunk ids are
/// random, so every compaction of keys meets every blob file, and each would rewrite half of all that is stored.
fn collect_blobs(db: &DB, on: bool) {
    let value = if on { "true" } else { "false" };
    if let Err(error) = db.set_options_cf(&cf(db, BYTES), &[("enable_blob_garbage_collection", value)]) {
        warn!(%error, on, "could not switch the collection of blob files");
    }
}

/// Opens the database as DESIGN section 11 found it fastest, with little memory: several nodes may share a machine.
fn open_db(config: &RocksConfig) -> Result<DB> {
    let RocksConfig { dir, allocatable, page_cache } = config;
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    // A recycled log file has its blocks already: a sync then needs no journal write of the file system.
    options.set_recycle_log_file_num(4);
    options.set_max_total_wal_size(64 << 20);
    let direct = takes_direct_io(dir);
    options.set_use_direct_io_for_flush_and_compaction(direct);
    // Past the page cache a chunk costs the kernel a quarter to a half second of CPU less per GiB.
    options.set_use_direct_reads(direct && !page_cache);
    options.set_max_background_jobs(2);
    options.set_max_open_files(512);
    options.set_max_file_opening_threads(2);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    let cache = Cache::new_lru_cache(8 << 20);
    let families = [
        ColumnFamilyDescriptor::new("default", family(&cache, 1 << 20)),
        ColumnFamilyDescriptor::new(CHUNKS, family(&cache, 4 << 20)),
        ColumnFamilyDescriptor::new(BYTES, bytes_family(&cache, *allocatable)),
    ];
    DB::open_cf_descriptors(&options, dir.join("db"), families)
        .map_err(|error| Error::io("open the chunk database", error))
}

fn family(cache: &Cache, memtable: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(memtable);
    options.set_compression_type(DBCompressionType::None);
    options
}

/// Bytes go from the log to blob files and are never rewritten by compaction of their keys. What is sealed cannot be
/// compressed.
fn bytes_family(cache: &Cache, allocatable: ByteCount) -> Options {
    // A flush makes one blob file, so a large disk gets larger ones.
    let memtable: usize = if allocatable > ByteCount::gib(512) { 64 << 20 } else { 16 << 20 };
    let mut options = family(cache, memtable);
    options.set_max_write_buffer_number(3);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(1024);
    options.set_blob_file_size(256 << 20);
    options.set_blob_compression_type(DBCompressionType::None);
    // See `collect_blobs`.
    options.set_enable_blob_gc(false);
    options.set_blob_gc_age_cutoff(0.5);
    options
}

/// Not every file system does (some overlays and network mounts refuse), and RocksDB would refuse to work.
fn takes_direct_io(dir: &Path) -> bool {
    let path = dir.join("direct-io-probe");
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::DIRECT;
    let opened = rustix::fs::open(&path, flags, rustix::fs::Mode::from_raw_mode(0o600)).is_ok();
    // It need not be there any more.
    let _ = fs::remove_file(&path);
    opened
}

#[cfg(test)]
mod tests;
