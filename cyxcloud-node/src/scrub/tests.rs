//! When scrubs come, how fast they read, and where they go on.

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::store::memory::MemoryStore;

/// When tests store.
const AT: Timestamp = Timestamp::from_unix_millis(1_700_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn at(millis: i64) -> Timestamp {
    Timestamp::from_unix_millis(millis)
}

fn scrubber(dir: &Path, interval: Option<Duration>) -> (Scrubber, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new(ByteCount::mib(64), Uuid::nil()));
    let scrubber = Scrubber {
        store: store.clone(),
        corrupt: Arc::default(),
        metrics: Metrics::new(),
        dir: dir.to_owned(),
        interval,
        bytes_per_sec: ByteCount::gib(1),
    };
    (scrubber, store)
}

fn fill(store: &MemoryStore, chunks: u32) -> Vec<ChunkId> {
    let mut ids: Vec<ChunkId> = (0..chunks)
        .map(|n| {
            let bytes = Bytes::from(n.to_be_bytes().repeat(100));
            let id = ChunkId::of(&bytes);
            store.put(id, bytes, Bytes::new(), AT).expect("room");
            id
        })
        .collect();
    ids.sort();
    ids
}

async fn eventually(what: &str, met: impl Fn() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "never: {what}");
}

#[test]
fn what_is_written_down_is_read_back_and_nonsense_is_nothing() {
    let id = ChunkId::of(b"chunk");
    for progress in [Progress { begins: at(5), after: None }, Progress { begins: at(-5), after: Some(id) }] {
        assert_eq!(parse(&format(&progress)), Some(progress));
    }
    for nonsense in ["", "5", "x -", "5 ", "5 abc", "5 - -"] {
        assert_eq!(parse(nonsense), None, "{nonsense:?}");
    }
}

#[test]
fn the_first_scrub_is_spread_over_the_interval_and_later_ones_keep_to_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (daily, _) = scrubber(dir.path(), Some(DAY));
    let (asked, _) = scrubber(dir.path(), None);
    let now = at(1_000_000_000);
    let begins = |plan: Option<Progress>| plan.expect("planned").begins;
    assert_eq!(begins(daily.plan(None, now, 0.0)), now);
    assert_eq!(begins(daily.plan(None, now, 0.5)), now.plus(DAY / 2));
    assert_eq!(asked.plan(None, now, 0.5), None);

    let planned = Progress { begins: now.plus(DAY / 4), after: None };
    assert_eq!(daily.plan(Some(planned), now, 0.9), Some(planned), "a restart does not put it off");
    assert_eq!(asked.plan(Some(planned), now, 0.9), None);
    let far = Progress { begins: now.plus(DAY * 30), after: None };
    assert_eq!(begins(daily.plan(Some(far), now, 0.5)), now.plus(DAY / 2), "the interval was shortened");
    for begins in [at(0), now, now.plus(DAY * 30)] {
        let begun = Progress { begins, after: Some(ChunkId::of(b"chunk")) };
        assert_eq!(daily.plan(Some(begun), now, 0.5), Some(begun));
        assert_eq!(asked.plan(Some(begun), now, 0.5), Some(begun), "what was begun is ended");
    }

    let begun = at(500_000_000);
    assert_eq!(begins(daily.next(begun, begun, 0.5)), begun.plus(DAY));
    assert_eq!(begins(daily.next(begun, begun.plus(DAY * 3), 0.5)), begun.plus(DAY * 3), "overdue");
    assert_eq!(begins(daily.next(now.plus(DAY * 30), now, 0.5)), now.plus(DAY), "the clock was set back");
    assert_eq!(asked.next(begun, now, 0.5), None);
}

#[test]
fn scrubs_that_began_together_come_apart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (monthly, _) = scrubber(dir.path(), Some(DAY * 30));
    let now = at(1_000_000_000);
    let next = |chance| monthly.next(now, now, chance).expect("planned");
    let near =
        |plan: Progress, days: u32| plan.begins.since(now).abs_diff(DAY * days) < Duration::from_secs(1);
    assert!(near(next(0.0), 25) && near(next(0.5), 30) && near(next(1.0), 35));
    assert_eq!(monthly.plan(Some(next(1.0)), now, 0.0), Some(next(1.0)), "a restart does not change it");
}

#[test]
fn the_pace_is_a_rate_that_saves_nothing_up() {
    let mut pace = Pace::new(ByteCount::mib(1));
    let begun = Instant::now();
    let secs = Duration::from_secs;
    assert_eq!(pace.next(begun, ByteCount::mib(2)), begun + secs(2));
    assert_eq!(pace.next(begun + secs(2), ByteCount::mib(1)), begun + secs(3));
    // A read that took longer than its share is not made up for by later ones, and time is not saved while none is.
    assert_eq!(pace.next(begun + secs(100), ByteCount::mib(1)), begun + secs(101));
    assert_eq!(pace.next(begun + secs(100), ByteCount::mib(1)), begun + secs(102));
}

#[test]
fn pages_are_cut_into_pieces_of_bounded_length() {
    let entry = |mib: u64| Entry {
        id: ChunkId::of(&mib.to_be_bytes()),
        length: ByteCount::kib(mib * 512),
        generation: cyxcloud_core::Generation { incarnation: Uuid::nil(), counter: 1 },
        quarantined: false,
        stored_at: None,
        descriptors: Vec::new(),
    };
    let page = [1, 1, 1, 9, 9, 1].map(entry);
    let lengths: Vec<usize> = bites(&page).map(<[Entry]>::len).collect();
    assert_eq!(lengths, [2, 1, 1, 1, 1]);
    assert_eq!(bites(&[]).count(), 0);
}

#[tokio::test]
async fn a_scrub_finds_all_that_rotted_and_the_next_is_planned() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (scrubber, store) = scrubber(dir.path(), Some(Duration::from_millis(20)));
    let ids = fill(&store, 600);
    for id in &ids[..3] {
        store.damage(*id, Bytes::from_static(b"rot"));
    }
    let (corrupt, metrics) = (scrubber.corrupt.clone(), scrubber.metrics.clone());
    let running = tokio::spawn(scrubber.run(Arc::default()));
    eventually("two scrubs", || metrics.scrubs.get() >= 2).await;
    assert_eq!(corrupt.next(), ids[..3]);
    assert!(metrics.scrubbed.get() >= 600 + 597, "what is quarantined is read no more");
    running.abort();
    assert_eq!(load(dir.path()).map(|progress| progress.after.is_none()), Some(true));
}

#[tokio::test]
async fn a_restart_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (scrubber, store) = scrubber(dir.path(), Some(DAY));
    let ids = fill(&store, 600);
    let begun = now();
    let progress = Progress { begins: begun, after: Some(ids[449]) };
    scrubber.save(Some(progress)).await;
    assert_eq!(load(dir.path()), Some(progress));
    let metrics = scrubber.metrics.clone();
    let running = tokio::spawn(scrubber.run(Arc::default()));
    eventually("the scrub ends", || metrics.scrubs.get() == 1).await;
    assert_eq!(metrics.scrubbed.get(), 150);
    assert_eq!(metrics.scrubbed_bytes.get(), 150 * 400);
    let is_planned = |next: Progress| {
        next.after.is_none() && next.begins.since(begun).abs_diff(DAY) <= DAY / 6 + Duration::from_secs(1)
    };
    eventually("the next is planned", || load(dir.path()).is_some_and(is_planned)).await;
    running.abort();
}

#[tokio::test]
async fn without_an_interval_a_scrub_comes_when_it_is_asked_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (scrubber, store) = scrubber(dir.path(), None);
    fill(&store, 10);
    let metrics = scrubber.metrics.clone();
    let asked = Arc::new(Notify::new());
    let running = tokio::spawn(scrubber.run(asked.clone()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(metrics.scrubbed.get(), 0);
    asked.notify_one();
    eventually("one scrub", || metrics.scrubs.get() == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((metrics.scrubs.get(), metrics.scrubbed.get()), (1, 10));
    assert_eq!(load(dir.path()), None, "nothing is planned");
    running.abort();
}
