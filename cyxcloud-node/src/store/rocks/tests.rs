//! What a store on disk promises beyond the conformance suite: crashes, failing and full disks.

use std::collections::HashSet;
use std::io::Write as _;
use std::sync::Barrier;

use super::super::conformance;
use super::*;

fn open_at(dir: &Path, allocatable: ByteCount) -> RocksStore {
    RocksStore::open(&config(dir, allocatable)).expect("store opens")
}

fn config(dir: &Path, allocatable: ByteCount) -> RocksConfig {
    RocksConfig { dir: dir.to_owned(), allocatable, page_cache: false }
}

fn open(allocatable: ByteCount) -> (RocksStore, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("temporary directory");
    (open_at(dir.path(), allocatable), dir)
}

fn damage(store: &RocksStore, id: ChunkId, bytes: Bytes) {
    let db = store.db().expect("open");
    db.put_cf(&cf(&db, BYTES), id.as_bytes(), bytes).expect("written");
}

conformance::suite!(open, damage);

/// When tests store.
const AT: Timestamp = Timestamp::from_unix_millis(1_700_000_000_000);

fn put(store: &RocksStore, n: u32) -> (ChunkId, Generation) {
    let bytes = Bytes::from(n.to_be_bytes().repeat(2_000));
    let id = ChunkId::of(&bytes);
    (id, store.put(id, bytes, Bytes::new(), AT).expect("room").generation)
}

/// What a power cut at this instant would leave, on a disk that keeps what it was given.
fn crash(dir: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for file in fs::read_dir(from).expect("readable") {
            let file = file.expect("readable");
            let target = to.join(file.file_name());
            if file.file_type().expect("known").is_dir() {
                fs::create_dir(&target).expect("made");
                copy(&file.path(), &target);
            } else {
                fs::copy(file.path(), target).expect("copied");
            }
        }
    }
    let copied = tempfile::tempdir().expect("temporary directory");
    copy(dir, copied.path());
    copied
}

/// What chunks take of the disk.
fn blob_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir.join("db")).expect("readable");
    let blobs = files.flatten().filter(|file| file.path().extension().is_some_and(|e| e == "blob"));
    blobs.filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}

/// Flushes and compactions that failed.
fn background_errors(db: &DB) -> u64 {
    db.property_int_value("rocksdb.background-errors").expect("readable").expect("is counted")
}

fn eventually(what: &str, met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !met() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn newest_log(dir: &Path) -> PathBuf {
    let mut logs: Vec<PathBuf> = fs::read_dir(dir.join("db"))
        .expect("readable")
        .map(|file| file.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs.pop().expect("there is a log")
}

#[test]
fn what_was_acknowledged_survives_a_crash() {
    let (store, dir) = open(ByteCount::gib(1));
    let held: Vec<_> = (0..50).map(|n| put(&store, n)).collect();
    store.delete(held[7].0, held[7].1, None).expect("deleted");
    let after = crash(dir.path());
    let reopened = open_at(after.path(), ByteCount::gib(1));
    assert_eq!(reopened.incarnation(), store.incarnation(), "nothing was lost");
    assert_eq!(reopened.usage().used, store.usage().used);
    assert_eq!(reopened.usage().chunks, 49);
    for (n, (id, generation)) in held.iter().enumerate() {
        let entry = reopened.entry(*id).expect("readable");
        assert_eq!(entry.map(|entry| entry.generation), (n != 7).then_some(*generation));
        assert_eq!(reopened.get(*id).expect("whole").is_some(), n != 7);
    }
    let (_, next) = put(&reopened, 1_000);
    assert!(held.iter().all(|(_, generation)| next.counter > generation.counter), "no counter is used twice");
}

#[test]
fn a_clean_restart_keeps_everything_and_the_incarnation() {
    let (store, dir) = open(ByteCount::gib(1));
    let (id, before) = put(&store, 1);
    let (usage, incarnation) = (store.usage(), store.incarnation());
    drop(store);
    let store = open_at(dir.path(), ByteCount::gib(1));
    assert_eq!((store.usage().used, store.incarnation()), (usage.used, incarnation));
    assert!(store.get(id).expect("whole").is_some());
    assert!(put(&store, 2).1.counter > before.counter);
}

#[test]
fn a_log_that_lost_acknowledged_stores_takes_a_new_incarnation() {
    let (store, dir) = open(ByteCount::gib(1));
    let held: Vec<_> = (0..10).map(|n| put(&store, n)).collect();
    let after = crash(dir.path());
    let log = OpenOptions::new().write(true).open(newest_log(after.path())).expect("log");
    // RocksDB sets space aside behind the records, so cut by content and not by the file's length.
    let written =
        fs::read(newest_log(after.path())).expect("log").iter().rposition(|b| *b != 0).expect("records");
    log.set_len(written as u64 - 10_000).expect("cut");
    drop(log);
    let reopened = open_at(after.path(), ByteCount::gib(1));
    assert_ne!(reopened.incarnation(), store.incarnation());
    assert!(reopened.get(held[0].0).expect("whole").is_some(), "what is left is served");
    assert_eq!(reopened.get(held[9].0).expect("no error"), None);
    let counted: u64 =
        reopened.list(None, 100).expect("readable").iter().map(|entry| entry.length.get()).sum();
    assert_eq!(reopened.usage().used, ByteCount::bytes(counted));
    let kept = Deleted::KeptNewer(held[0].1);
    let newer = Generation { incarnation: reopened.incarnation(), counter: u64::MAX };
    assert_eq!(reopened.delete(held[0].0, newer, None).expect("no error"), kept);
    let (_, next) = put(&reopened, 77);
    assert!(next.counter > held[9].1.counter, "no counter returns, even in a new life");
}

#[test]
fn a_torn_record_that_nobody_was_told_of_is_no_loss() {
    let (store, dir) = open(ByteCount::gib(1));
    let (id, _) = put(&store, 1);
    let before = crash(dir.path());
    let whole = fs::read(newest_log(before.path())).expect("log");
    put(&store, 2);
    let after = crash(dir.path());
    // The second record half-written, and its acknowledgement never given.
    let mut torn = fs::read(newest_log(after.path())).expect("log");
    let end = whole.iter().rposition(|b| *b != 0).expect("records") + 1;
    torn[end + 1_000..].fill(0);
    fs::write(newest_log(before.path()), torn).expect("written");
    let reopened = open_at(before.path(), ByteCount::gib(1));
    assert_eq!(reopened.incarnation(), store.incarnation());
    assert_eq!(reopened.usage().chunks, 1);
    assert!(reopened.get(id).expect("whole").is_some());
}

#[test]
fn a_data_directory_serves_one_node_at_a_time() {
    let (store, dir) = open(ByteCount::gib(1));
    let config = config(dir.path(), ByteCount::gib(1));
    let error = RocksStore::open(&config).expect_err("in use");
    assert!(format!("{:?}", error).contains("in use by another node"));
    drop(store);
    drop(open_at(dir.path(), ByteCount::gib(1)));
}

#[test]
fn concurrent_stores_share_syncs() {
    const THREADS: u32 = 32;
    let (store, _dir) = open(ByteCount::gib(1));
    let before = store.usage().syncs;
    let start = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, start) = (&store, &start);
            scope.spawn(move || {
                start.wait();
                for n in 0..16 {
                    put(store, thread * 1_000 + n);
                }
            });
        }
    });
    let syncs = store.usage().syncs - before;
    assert_eq!(store.usage().chunks, u64::from(THREADS) * 16);
    assert!(syncs < u64::from(THREADS) * 16 / 2, "{syncs} syncs for {} stores", THREADS * 16);
}

#[test]
fn a_failed_write_is_final_and_reads_go_on() {
    let (store, dir) = open(ByteCount::gib(1));
    let (id, generation) = put(&store, 1);
    let set = |fault| *store.shared.fault.lock().expect("not poisoned") = fault;
    set(Some("IO error: While fdatasync: db/000004.log: Input/output error"));
    let bytes = Bytes::from_static(b"not stored");
    let other = ChunkId::of(&bytes);
    assert!(matches!(store.put(other, bytes.clone(), Bytes::new(), AT), Err(Error::ReadOnly { .. })));
    set(None);
    assert!(
        matches!(store.put(other, bytes.clone(), Bytes::new(), AT), Err(Error::ReadOnly { .. })),
        "no second try"
    );
    assert!(matches!(store.delete(id, generation, None), Err(Error::ReadOnly { .. })));
    assert!(matches!(store.condition(), Condition::ReadOnly(_)));
    assert!(store.get(id).expect("whole").is_some());
    assert_eq!(store.get(other).expect("no error"), None);
    drop(store);
    let store = open_at(dir.path(), ByteCount::gib(1));
    store.put(other, bytes, Bytes::new(), AT).expect("a restart reads the log back and starts anew");
}

#[test]
fn a_damaged_index_is_said_and_takes_no_more_writes() {
    let (store, dir) = open(ByteCount::gib(1));
    let (id, _) = put(&store, 1);
    drop(store);
    for file in std::fs::read_dir(dir.path().join("db")).expect("a database") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = std::fs::read(&path).expect("readable");
            // In the first block, which holds records.
            bytes[8] ^= 1;
            std::fs::write(&path, bytes).expect("writable");
        }
    }
    let store = open_at(dir.path(), ByteCount::gib(1));
    assert_eq!(store.condition(), Condition::Writable, "nobody has looked yet");
    let error = store.list(None, 10).expect_err("not a shorter list");
    assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("remove `db`"), "{error}");
    assert!(matches!(store.get(id), Err(Error::Damaged { .. })), "and no absent chunk");
    let bytes = Bytes::from_static(b"not stored");
    assert!(store.put(ChunkId::of(&bytes), bytes, Bytes::new(), AT).is_err());
    assert!(matches!(store.condition(), Condition::ReadOnly(_)));
}

#[test]
fn a_full_disk_refuses_stores_serves_reads_and_deletes_and_recovers() {
    let (store, _dir) = open(ByteCount::gib(1));
    let (id, generation) = put(&store, 1);
    let (other, _) = put(&store, 2);
    let set = |fault| *store.shared.fault.lock().expect("not poisoned") = fault;
    set(Some("IO error: No space left on device: While appending to file: db/000004.log"));
    let bytes = Bytes::from_static(b"no room for me");
    let refused = ChunkId::of(&bytes);
    assert!(matches!(store.put(refused, bytes.clone(), Bytes::new(), AT), Err(Error::Full { .. })));
    assert_eq!(store.condition(), Condition::Full);
    assert!(store.get(other).expect("whole").is_some());
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| store.delete(id, generation, None));
        std::thread::sleep(Duration::from_millis(200));
        set(None);
        assert_eq!(deleting.join().expect("no panic").expect("waited for space"), Deleted::Gone);
    });
    store.put(refused, bytes, Bytes::new(), AT).expect("there is space again");
    assert_eq!(store.condition(), Condition::Writable);
    assert_eq!(store.usage().chunks, 2);
}

#[test]
fn quarantine_outlives_a_restart() {
    let (store, dir) = open(ByteCount::gib(1));
    let (id, _) = put(&store, 1);
    damage(&store, id, Bytes::from_static(b"rot"));
    assert!(matches!(store.get(id), Err(Error::Corrupt { .. })));
    drop(store);
    let store = open_at(dir.path(), ByteCount::gib(1));
    assert_eq!(store.quarantined(), [id]);
    assert!(matches!(store.get(id), Err(Error::Corrupt { .. })));
    put(&store, 1);
    drop(store);
    assert_eq!(open_at(dir.path(), ByteCount::gib(1)).quarantined(), []);
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_unix_millis(millis)
}

#[test]
fn trash_survives_restarts_and_crashes() {
    let (store, dir) = open(ByteCount::gib(1));
    let held: Vec<_> = (0..6).map(|n| put(&store, n)).collect();
    for (n, (id, generation)) in held.iter().enumerate().take(5) {
        store.delete(*id, *generation, Some(at(n as i64))).expect("held");
    }
    assert_eq!(store.restore(held[4].0, None).expect("there"), Restored::Back(held[4].1));
    assert_eq!(store.purge_trash(at(0), 10).expect("no error"), 1);
    let (usage, trash) = (store.usage(), store.trash(None, 10).expect("readable"));
    assert_eq!((usage.chunks, usage.trash_chunks), (2, 3));
    let check = |store: &RocksStore| {
        assert_eq!(store.trash(None, 10).expect("readable"), trash);
        let now = store.usage();
        assert_eq!((now.used, now.chunks), (usage.used, usage.chunks));
        assert_eq!((now.trash, now.trash_chunks), (usage.trash, usage.trash_chunks));
        assert_eq!(store.get(held[1].0).expect("no error"), None);
        assert!(store.get(held[4].0).expect("whole").is_some());
    };
    let crashed = crash(dir.path());
    check(&open_at(crashed.path(), ByteCount::gib(1)));
    drop(store);
    let store = open_at(dir.path(), ByteCount::gib(1));
    check(&store);
    assert_eq!(store.purge_trash(at(1), 10).expect("no error"), 1);
    assert_eq!(store.restore(held[2].0, Some(held[2].1)).expect("there"), Restored::Back(held[2].1));
    assert!(store.get(held[2].0).expect("whole").is_some());
}

/// The records as builds without a trash wrote them; the format's number is the same.
#[test]
fn a_data_directory_from_before_there_was_trash_opens() {
    let (store, dir) = open(ByteCount::gib(1));
    let (id, generation) = put(&store, 1);
    drop(store);
    {
        let db = open_db(&config(dir.path(), ByteCount::gib(1))).expect("closed before");
        let account = db.get(ACCOUNT).expect("readable").expect("there");
        db.put(ACCOUNT, &account[..44]).expect("written");
    }
    let store = open_at(dir.path(), ByteCount::gib(1));
    assert_eq!((store.usage().chunks, store.usage().trash_chunks), (1, 0));
    assert!(store.get(id).expect("whole").is_some());
    store.delete(id, generation, Some(at(1))).expect("held");
    assert_eq!(store.restore(id, None).expect("there"), Restored::Back(generation));
}

#[test]
fn a_format_taken_up_stays_and_one_to_come_is_refused() {
    let (store, dir) = open(ByteCount::gib(1));
    let (old, _) = put(&store, 1);
    store.take_up(2).expect("known");
    let (new, _) = put(&store, 2);
    let copied = crash(dir.path());
    drop(store);
    for dir in [dir.path(), copied.path()] {
        let store = open_at(dir, ByteCount::gib(1));
        assert_eq!(store.format(), 2);
        let stored_at = |id| store.entry(id).expect("readable").expect("held").stored_at;
        assert_eq!((stored_at(old), stored_at(new)), (None, Some(AT)));
    }
    {
        let db = open_db(&config(dir.path(), ByteCount::gib(1))).expect("closed before");
        let mut account = db.get(ACCOUNT).expect("readable").expect("there");
        account[3] = 3;
        db.put(ACCOUNT, &account).expect("written");
    }
    let config = config(dir.path(), ByteCount::gib(1));
    let refused = RocksStore::open(&config).expect_err("it is of a format to come");
    let why = std::error::Error::source(&refused).expect("says why").to_string();
    assert!(why.contains("has format 3 and this build reads formats 1 to 2"), "{why}");
}

#[test]
fn purged_bytes_leave_the_disk_and_bytes_in_the_trash_do_not() {
    let (store, dir) = open(ByteCount::mib(64));
    for n in 0..40u32 {
        let (id, bytes) = big(n);
        let generation = store.put(id, bytes, Bytes::new(), AT).expect("room").generation;
        store.delete(id, generation, Some(at(n.into()))).expect("held");
    }
    // Whatever of them could be taken off the disk is.
    reclaim(&store.db().expect("open"));
    let full = blob_bytes(dir.path());
    assert!(full >= 40 << 20, "{full} bytes of blobs");
    for n in 0..40u32 {
        assert_eq!(store.purge_trash(at(n.into()), 10).expect("no error"), 1);
    }
    eventually("the bytes leave the disk", || blob_bytes(dir.path()) <= 24 << 20);
}

#[test]
fn a_damaged_blob_file_is_corrupt_and_not_an_error() {
    let (store, dir) = open(ByteCount::gib(1));
    let (id, _) = put(&store, 1);
    drop(store);
    let blobs =
        fs::read_dir(dir.path().join("db")).expect("readable").map(|file| file.expect("readable").path());
    let mut blobs = blobs.filter(|path| path.extension().is_some_and(|e| e == "blob"));
    let blob = blobs.next().expect("flushed to a blob");
    let mut bytes = fs::read(&blob).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&blob, bytes).expect("written");
    let store = open_at(dir.path(), ByteCount::gib(1));
    assert!(matches!(store.get(id), Err(Error::Corrupt { .. })));
}

#[test]
fn deleted_bytes_leave_the_disk() {
    let (store, dir) = open(ByteCount::mib(64));
    let held: Vec<_> = (0..40u32)
        .map(|n| {
            let (id, bytes) = big(n);
            (id, store.put(id, bytes, Bytes::new(), AT).expect("room").generation)
        })
        .collect();
    let db = store.db().expect("open");
    db.flush_cf(&cf(&db, BYTES)).expect("flushed");
    let full = blob_bytes(dir.path());
    assert!(full >= 40 << 20, "{full} bytes of blobs");
    for (id, generation) in &held {
        assert_eq!(store.delete(*id, *generation, None).expect("no error"), Deleted::Gone);
    }
    eventually("the bytes leave the disk", || blob_bytes(dir.path()) <= 24 << 20);
}

#[test]
fn killed_processes_lose_nothing_though_logs_are_recycled() {
    const TEST: &str = "store::rocks::tests::killed_processes_lose_nothing_though_logs_are_recycled";
    const ROUNDS: u32 = 3;
    const CHUNKS_A_ROUND: u32 = 100;
    let chunks = |round: u32| (round * CHUNKS_A_ROUND..(round + 1) * CHUNKS_A_ROUND).map(big);
    if let (Some(dir), Ok(round)) =
        (std::env::var_os("CYXCLOUD_TEST_DIR"), std::env::var("CYXCLOUD_TEST_ROUND"))
    {
        let store = open_at(Path::new(&dir), ByteCount::gib(1));
        for (id, bytes) in chunks(round.parse().expect("a number")) {
            store.put(id, bytes, Bytes::new(), AT).expect("room");
        }
        // No destructor runs and no buffer is flushed, as if killed.
        std::process::abort();
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    for round in 0..ROUNDS {
        let child = std::process::Command::new(std::env::current_exe().expect("known"))
            .args(["--exact", TEST])
            .env("CYXCLOUD_TEST_DIR", dir.path())
            .env("CYXCLOUD_TEST_ROUND", round.to_string())
            .output()
            .expect("runs");
        assert!(!child.status.success(), "it ends by abort");
    }
    let first = fs::read(dir.path().join("life")).expect("a life");
    let store = open_at(dir.path(), ByteCount::gib(1));
    assert_eq!(store.usage().chunks, u64::from(ROUNDS * CHUNKS_A_ROUND));
    for (id, bytes) in (0..ROUNDS).flat_map(chunks) {
        assert_eq!(store.get(id).expect("whole"), Some(bytes));
    }
    let incarnations: HashSet<Uuid> =
        store.list(None, 1_000).expect("readable").iter().map(|entry| entry.generation.incarnation).collect();
    assert_eq!(incarnations, HashSet::from([store.incarnation()]), "nothing was lost in between");
    assert!(first.windows(16).any(|window| window == store.incarnation().as_bytes()));
}

/// Runs `work` in a directory on a file system of 300 MB: this test again, in a mount namespace of its own. Where the
/// system lets nobody make one, there is no way to fill a disk without harm, and the fault injected above must do.
fn on_a_small_disk(test: &str, work: impl FnOnce(&Path)) {
    const DISK: &str = "CYXCLOUD_TEST_SMALL_DISK";
    if let Some(disk) = std::env::var_os(DISK) {
        return work(Path::new(&disk));
    }
    let unshare = || std::process::Command::new("unshare");
    if !unshare().args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        return;
    }
    let disk = tempfile::tempdir().expect("temporary directory");
    let test_binary = std::env::current_exe().expect("known");
    let script = format!(
        "mount -t tmpfs -o size=300m tmpfs \"${DISK}\" && exec \"$0\" --exact store::rocks::tests::{test} --nocapture"
    );
    let done = unshare()
        .args(["-rm", "sh", "-c", &script])
        .arg(test_binary)
        .env(DISK, disk.path())
        .output()
        .expect("unshare runs");
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && text.contains("1 passed"), "{text}");
}

fn big(n: u32) -> (ChunkId, Bytes) {
    let bytes = Bytes::from(blake3::hash(&n.to_be_bytes()).as_bytes().repeat(32_768));
    (ChunkId::of(&bytes), bytes)
}

#[test]
fn a_real_disk_that_fills_up_refuses_stores_and_recovers_by_deletes() {
    on_a_small_disk("a_real_disk_that_fills_up_refuses_stores_and_recovers_by_deletes", |disk| {
        let store = open_at(&disk.join("node"), ByteCount::gib(10));
        let mut held = Vec::new();
        let refused = (0..400).find_map(|n| {
            let (id, bytes) = big(n);
            match store.put(id, bytes, Bytes::new(), AT) {
                Ok(stored) => {
                    held.push((id, stored.generation));
                    None
                }
                Err(error) => Some(error),
            }
        });
        assert!(matches!(refused, Some(Error::Full { .. })), "{refused:?}");
        assert!(held.len() > 50, "{} chunks fit 300 MB", held.len());
        for (id, _) in &held {
            assert!(store.get(*id).expect("whole").is_some());
        }
        for (id, generation) in held.drain(..).rev().take(30) {
            assert_eq!(store.delete(id, generation, None).expect("a full disk deletes"), Deleted::Gone);
        }
        let (id, bytes) = big(1_000);
        let deadline = Instant::now() + Duration::from_secs(60);
        while store.put(id, bytes.clone(), Bytes::new(), AT).is_err() {
            assert!(Instant::now() < deadline, "space never came back: {:?}", store.usage());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(store.get(id).expect("whole"), Some(bytes));
    });
}

/// Nobody asks for it again where no more is deleted.
#[test]
fn what_could_not_be_reclaimed_for_want_of_space_is_reclaimed_later() {
    on_a_small_disk("what_could_not_be_reclaimed_for_want_of_space_is_reclaimed_later", |disk| {
        let (node, filler) = (disk.join("node"), disk.join("filler"));
        let store = open_at(&node, ByteCount::gib(10));
        let db = store.db().expect("open");
        let put = |n| {
            let (id, bytes) = big(n);
            (id, store.put(id, bytes, Bytes::new(), AT).expect("room").generation)
        };
        let held: Vec<_> = (0..90).map(put).collect();
        db.flush_cf(&cf(&db, BYTES)).expect("room");
        assert!(blob_bytes(&node) > 80 << 20);
        let fill = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&filler).expect("opened");
            while file.write_all(&[1; 65_536]).is_ok() {}
        };
        // Less is free than what is kept takes when it is written anew.
        fill();
        let (gone, kept): (Vec<_>, Vec<_>) = held.iter().partition(|(id, _)| id.as_bytes()[0] % 4 == 0);
        for (id, generation) in &gone {
            assert_eq!(store.delete(*id, *generation, None).expect("deletes go on"), Deleted::Gone);
            fill();
        }
        eventually("it was tried", || background_errors(&db) > 0);
        fs::remove_file(&filler).expect("was there");
        eventually("what was deleted leaves the disk", || unreclaimed(&db, &store.shared) < 8 << 20);
        assert!(kept.iter().all(|(id, _)| store.get(*id).expect("whole").is_some()));
    });
}

#[test]
fn a_real_disk_full_of_trash_takes_stores_all_the_same() {
    on_a_small_disk("a_real_disk_full_of_trash_takes_stores_all_the_same", |disk| {
        let store = open_at(&disk.join("node"), ByteCount::gib(10));
        let mut trashed = 0;
        let deadline = Instant::now() + Duration::from_secs(240);
        // Three times what the disk takes goes through the trash.
        for n in 0..900 {
            let (id, bytes) = big(n);
            let stored = loop {
                assert!(Instant::now() < deadline, "{trashed} deletes, {:?}", store.usage());
                match store.put(id, bytes.clone(), Bytes::new(), AT) {
                    Ok(stored) => break stored,
                    // Until RocksDB has given back what was purged.
                    Err(Error::Full { .. }) => std::thread::sleep(Duration::from_millis(200)),
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!(store.delete(id, stored.generation, Some(at(n.into()))).expect("held"), Deleted::Gone);
            trashed += 1;
        }
        let usage = store.usage();
        assert_eq!(usage.chunks, 0);
        assert_eq!(usage.trash_chunks + usage.trash_purged, trashed);
        assert!(usage.trash_purged > 0 && usage.trash_chunks > 0, "{usage:?}");
        let left = store.trash(None, 1_000).expect("readable");
        assert_eq!(left.len() as u64, usage.trash_chunks);
        let oldest = left.first().map(|piece| piece.at.unix_millis());
        assert_eq!(oldest, i64::try_from(usage.trash_purged).ok(), "the oldest went first");
    });
}

#[test]
fn a_real_disk_that_others_fill_serves_reads_and_deletes_and_recovers() {
    on_a_small_disk("a_real_disk_that_others_fill_serves_reads_and_deletes_and_recovers", |disk| {
        let store = open_at(&disk.join("node"), ByteCount::gib(10));
        let held: Vec<_> = (0..20)
            .map(|n| {
                let (id, bytes) = big(n);
                (id, store.put(id, bytes, Bytes::new(), AT).expect("room").generation)
            })
            .collect();
        let filler = disk.join("filler");
        let fill = || {
            use std::io::Write;
            let mut file = OpenOptions::new().create(true).append(true).open(&filler).expect("opened");
            while file.write_all(&[1; 65_536]).is_ok() {}
        };
        fill();
        let (new, bytes) = big(100);
        assert!(matches!(store.put(new, bytes.clone(), Bytes::new(), AT), Err(Error::Full { .. })));
        assert_eq!(store.usage().available, ByteCount::ZERO);
        for (id, generation) in &held[..5] {
            assert!(store.get(*id).expect("whole").is_some());
            assert_eq!(store.delete(*id, *generation, None).expect("deletes go on"), Deleted::Gone);
            fill();
        }
        // Until RocksDB cannot write at all: a store that is refused by the disk itself, and not by arithmetic.
        store.shared.space.give_up_reserve();
        fill();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(2));
                fs::remove_file(&filler).expect("was there");
            });
            for (id, generation) in &held[5..] {
                assert_eq!(store.delete(*id, *generation, None).expect("waits for space"), Deleted::Gone);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = store.put(new, bytes.clone(), Bytes::new(), AT) {
            assert!(Instant::now() < deadline, "stores never came back: {error}");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(store.get(new).expect("whole"), Some(bytes));
        assert_eq!(store.usage().chunks, 1);
    });
}

/// What RocksDB itself does on a disk that is full, with nothing of ours between: the writer relies on it.
#[test]
fn a_write_that_the_disk_refuses_for_space_is_no_failure() {
    on_a_small_disk("a_write_that_the_disk_refuses_for_space_is_no_failure", |disk| {
        let store = open_at(&disk.join("node"), ByteCount::gib(10));
        let db = store.db().expect("open");
        let filler = disk.join("filler");
        fs::write(&filler, vec![1; 150 << 20]).expect("room");
        let mut options = WriteOptions::default();
        options.set_sync(true);
        // Behind the writer's back, so that its own check of the space does not stop it first.
        let error = (0..400u32)
            .find_map(|n| db.put_cf_opt(&cf(&db, BYTES), n.to_be_bytes(), big(n).1, &options).err())
            .expect("300 MB fill up");
        assert!(is_full(error.as_ref()), "{error}");
        let (id, bytes) = big(1_000);
        fs::remove_file(&filler).expect("was there");
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = store.put(id, bytes.clone(), Bytes::new(), AT) {
            assert!(matches!(error, Error::Full { .. }), "{error}");
            assert!(Instant::now() < deadline, "RocksDB never recovered: {error}");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(store.get(id).expect("whole"), Some(bytes));
    });
}
