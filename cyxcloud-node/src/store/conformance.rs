//! What every [`ChunkStore`] promises, one promise a function. [`suite!`] runs them on a store.

use std::collections::HashSet;

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp};
use uuid::Uuid;

use super::{ChunkStore, Deleted, Error, Restored, Trashed};

/// Damages a chunk behind the store's back: the store, which chunk, and what the disk holds from now on.
pub(crate) type Damage<'a> = &'a dyn Fn(ChunkId, Bytes);

/// Runs all promises on the stores that `$open(ByteCount)` makes (with something that must outlive them), damaged by
/// `$damage(&store, id, bytes)`.
macro_rules! suite {
    ($open:expr, $damage:expr) => {
        $crate::store::conformance::suite!(@ $open, $damage;
            what_was_stored_is_read, a_wrong_hash_is_refused, storing_again_is_a_new_generation_of_the_same_bytes,
            nothing_beyond_the_offer_is_stored, deletes_obey_generations, the_inventory_is_ordered_and_paged,
            a_corrupt_chunk_is_held_back_and_healed, a_chunk_damaged_in_silence_is_healed_by_storing_it_again,
            concurrent_stores_get_distinct_generations, a_closed_store_says_so,
            trash_is_not_held_and_comes_back_as_it_was, storing_takes_a_chunk_out_of_the_trash,
            a_restore_may_name_its_generation, what_rotted_in_the_trash_is_not_restored,
            a_corrupt_chunk_skips_the_trash, trash_is_purged_by_age_and_is_gone,
            trash_is_listed_in_pages_the_oldest_first, a_full_store_purges_the_oldest_trash_to_make_room,
            trash_is_kept_when_all_of_it_would_not_be_enough, concurrent_use_of_the_trash_keeps_the_sums,
            a_format_is_taken_up_once_and_older_records_are_read);
    };
    (@ $open:expr, $damage:expr; $($promise:ident),*) => {
        $(
            #[test]
            fn $promise() {
                let (store, _kept) = $open(cyxcloud_core::ByteCount::mib(4));
                $crate::store::conformance::$promise(&store, &|id, bytes| $damage(&store, id, bytes));
            }
        )*
    };
}
pub(crate) use suite;

/// When tests store.
const AT: Timestamp = Timestamp::from_unix_millis(1_700_000_000_000);

fn chunk(seed: u64, length: usize) -> (ChunkId, Bytes) {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    (ChunkId::of(&bytes), Bytes::from(bytes))
}

fn put(store: &dyn ChunkStore, seed: u64, length: usize) -> (ChunkId, Bytes, Generation) {
    let (id, bytes) = chunk(seed, length);
    let stored = store.put(id, bytes.clone(), Bytes::new(), AT).expect("there is room");
    (id, bytes, stored.generation)
}

pub(crate) fn what_was_stored_is_read(store: &dyn ChunkStore, _: Damage<'_>) {
    for (seed, length) in [(1, 1), (2, 1023), (3, 1024), (4, 70_000), (5, 1 << 20)] {
        let (id, bytes, generation) = put(store, seed, length);
        assert_eq!(store.get(id).expect("held"), Some(bytes));
        let entry = store.entry(id).expect("readable").expect("held");
        assert_eq!((entry.length, entry.generation), (ByteCount::bytes(length as u64), generation));
        assert_eq!(generation.incarnation, store.incarnation());
        assert!(!entry.quarantined);
    }
    let (absent, _) = chunk(99, 5);
    assert_eq!(store.get(absent).expect("no error"), None);
    assert_eq!(store.entry(absent).expect("no error"), None);
    assert_eq!(store.usage().chunks, 5);
}

/// It begins in the oldest format, which every gateway knows; the newer one remembers when a chunk was stored.
pub(crate) fn a_format_is_taken_up_once_and_older_records_are_read(store: &dyn ChunkStore, _: Damage<'_>) {
    let stored_at = |id| store.entry(id).expect("readable").expect("held").stored_at;
    assert_eq!(store.format(), 1);
    let (old, bytes, _) = put(store, 1, 100);
    assert_eq!(stored_at(old), None);
    store.take_up(2).expect("known");
    let (new, _, generation) = put(store, 2, 100);
    assert_eq!((store.format(), stored_at(old), stored_at(new)), (2, None, Some(AT)));
    assert_eq!(store.get(old).expect("held"), Some(bytes.clone()));
    // It goes to the trash and comes back with it.
    store.delete(new, generation, Some(AT)).expect("held");
    store.restore(new, None).expect("there");
    assert_eq!(stored_at(new), Some(AT));
    let later = AT.plus(std::time::Duration::from_secs(1));
    store.put(old, bytes, Bytes::new(), later).expect("room");
    assert_eq!(stored_at(old), Some(later));
    store.take_up(1).expect("no way back");
    store.take_up(99).expect("as far as it is known");
    assert_eq!(store.format(), 2);
}

pub(crate) fn a_wrong_hash_is_refused(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, _) = chunk(1, 100);
    let (_, other) = chunk(2, 100);
    assert!(matches!(store.put(id, other, Bytes::new(), AT), Err(Error::WrongId { .. })));
    assert!(matches!(store.put(ChunkId::of(b""), Bytes::new(), Bytes::new(), AT), Err(Error::Length { .. })));
    assert_eq!(store.get(id).expect("no error"), None);
    assert_eq!(store.usage().used, ByteCount::ZERO);
}

pub(crate) fn storing_again_is_a_new_generation_of_the_same_bytes(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, bytes) = chunk(1, 5_000);
    let first = store.put(id, bytes.clone(), Bytes::from_static(b"one"), AT).expect("room");
    let again = store.put(id, bytes.clone(), Bytes::from_static(b"two"), AT).expect("room");
    assert!(!first.existed && again.existed);
    assert!(again.generation.counter > first.generation.counter);
    let entry = store.entry(id).expect("readable").expect("held");
    assert_eq!(entry.generation, again.generation);
    assert_eq!(entry.descriptors, [Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
    assert_eq!(store.usage().used, ByteCount::bytes(5_000));
    assert_eq!(store.usage().chunks, 1);
    assert_eq!(store.get(id).expect("held"), Some(bytes));
}

pub(crate) fn nothing_beyond_the_offer_is_stored(store: &dyn ChunkStore, _: Damage<'_>) {
    let held: Vec<_> = (0..4).map(|seed| put(store, seed, 1 << 20)).collect();
    let (id, bytes) = chunk(9, 1);
    assert!(matches!(store.put(id, bytes.clone(), Bytes::new(), AT), Err(Error::Full { .. })));
    assert_eq!(store.usage().available, ByteCount::ZERO);
    // What is held already takes no space, so it may be stored again.
    let (again, body, _) = held[0].clone();
    assert!(store.put(again, body.clone(), Bytes::new(), AT).expect("takes no space").existed);
    assert_eq!(store.get(again).expect("held"), Some(body));
    let (gone, _, generation) = held[1].clone();
    assert_eq!(store.delete(gone, generation, None).expect("a full store deletes"), Deleted::Gone);
    store.put(id, bytes, Bytes::new(), AT).expect("there is space again");
    assert_eq!(store.usage().used, ByteCount::bytes((3 << 20) + 1));
}

pub(crate) fn deletes_obey_generations(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, bytes, old) = put(store, 1, 3_000);
    let new = store.put(id, bytes, Bytes::new(), AT).expect("room").generation;
    assert_eq!(store.delete(id, old, None).expect("no error"), Deleted::KeptNewer(new));
    let stranger = Generation { incarnation: Uuid::from_bytes([1; 16]), counter: u64::MAX };
    assert_eq!(store.delete(id, stranger, None).expect("no error"), Deleted::KeptNewer(new));
    assert!(store.get(id).expect("kept").is_some());
    assert_eq!(store.delete(id, new, None).expect("no error"), Deleted::Gone);
    assert_eq!(store.delete(id, new, None).expect("no error"), Deleted::Absent);
    assert_eq!(store.get(id).expect("no error"), None);
    assert_eq!(store.usage().used, ByteCount::ZERO);
    let (_, _, later) = put(store, 1, 3_000);
    assert!(later.counter > new.counter, "a counter never returns");
}

pub(crate) fn the_inventory_is_ordered_and_paged(store: &dyn ChunkStore, _: Damage<'_>) {
    let mut ids: Vec<ChunkId> = (0..25).map(|seed| put(store, seed, 10).0).collect();
    ids.sort();
    let mut listed = Vec::new();
    loop {
        let page = store.list(listed.last().copied(), 10).expect("readable");
        listed.extend(page.iter().map(|entry| entry.id));
        if page.len() < 10 {
            break;
        }
    }
    assert_eq!(listed, ids);
    assert_eq!(store.list(ids.last().copied(), 10).expect("readable"), []);
}

pub(crate) fn a_corrupt_chunk_is_held_back_and_healed(store: &dyn ChunkStore, damage: Damage<'_>) {
    let (id, bytes, _) = put(store, 1, 9_000);
    let mut wrong = bytes.to_vec();
    wrong[4_321] ^= 1;
    damage(id, Bytes::from(wrong));
    assert!(matches!(store.get(id), Err(Error::Corrupt { .. })));
    assert!(store.entry(id).expect("readable").expect("held").quarantined);
    assert!(store.list(None, 10).expect("readable")[0].quarantined);
    assert_eq!(store.quarantined(), [id]);
    // Even if the disk now gives the right bytes, it is not believed.
    damage(id, bytes.clone());
    assert!(matches!(store.get(id), Err(Error::Corrupt { .. })));
    let stored = store.put(id, bytes.clone(), Bytes::new(), AT).expect("room");
    assert!(!stored.existed);
    assert_eq!(store.get(id).expect("healed"), Some(bytes));
    assert_eq!(store.quarantined(), []);
    assert_eq!(store.usage().used, ByteCount::bytes(9_000));
}

pub(crate) fn a_chunk_damaged_in_silence_is_healed_by_storing_it_again(
    store: &dyn ChunkStore,
    damage: Damage<'_>,
) {
    let (id, bytes, _) = put(store, 1, 9_000);
    damage(id, Bytes::from(vec![0; 9_000]));
    store.put(id, bytes.clone(), Bytes::new(), AT).expect("room");
    assert_eq!(store.get(id).expect("whole"), Some(bytes));
}

pub(crate) fn concurrent_stores_get_distinct_generations(store: &dyn ChunkStore, _: Damage<'_>) {
    let counters: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16u64)
            .map(|thread| {
                scope.spawn(move || {
                    (0..8).map(|n| put(store, thread % 4 * 100 + n, 2_000).2.counter).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(counters.iter().collect::<HashSet<_>>().len(), 128);
    assert_eq!(store.usage().used, ByteCount::bytes(32 * 2_000), "each chunk counts once");
}

pub(crate) fn a_closed_store_says_so(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, bytes, _) = put(store, 1, 10);
    store.close();
    assert!(matches!(store.put(id, bytes, Bytes::new(), AT), Err(Error::Closed)));
    assert!(matches!(store.get(id), Err(Error::Closed)));
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_unix_millis(millis)
}

/// A chunk that was stored and deleted at this time.
fn trashed(store: &dyn ChunkStore, seed: u64, length: usize, millis: i64) -> (ChunkId, Bytes, Generation) {
    let (id, bytes, generation) = put(store, seed, length);
    assert_eq!(store.delete(id, generation, Some(at(millis))).expect("held"), Deleted::Gone);
    (id, bytes, generation)
}

fn ids(trash: &[Trashed]) -> Vec<ChunkId> {
    trash.iter().map(|piece| piece.id).collect()
}

pub(crate) fn trash_is_not_held_and_comes_back_as_it_was(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, bytes) = chunk(1, 5_000);
    let generation = store.put(id, bytes.clone(), Bytes::from_static(b"d"), AT).expect("room").generation;
    put(store, 2, 100);
    let older = Generation { counter: generation.counter - 1, ..generation };
    let kept = store.delete(id, older, Some(at(7))).expect("no error");
    assert_eq!(kept, Deleted::KeptNewer(generation), "the trash changes nothing about generations");
    assert_eq!(store.delete(id, generation, Some(at(7))).expect("held"), Deleted::Gone);
    assert_eq!(store.get(id).expect("no error"), None);
    assert_eq!(store.entry(id).expect("no error"), None);
    assert_eq!(store.list(None, 10).expect("readable").len(), 1);
    for trash_at in [None, Some(at(9))] {
        assert_eq!(store.delete(id, generation, trash_at).expect("no error"), Deleted::Absent);
    }
    let usage = store.usage();
    assert_eq!((usage.chunks, usage.used), (1, ByteCount::bytes(5_100)));
    assert_eq!(
        (usage.trash_chunks, usage.trash, usage.held()),
        (1, ByteCount::bytes(5_000), ByteCount::bytes(100))
    );
    let piece = Trashed { id, length: ByteCount::bytes(5_000), generation, at: at(7) };
    assert_eq!(store.trash(None, 10).expect("readable"), [piece]);

    assert_eq!(store.restore(id, None).expect("no error"), Restored::Back(generation));
    assert_eq!(store.restore(id, None).expect("no error"), Restored::Held(generation));
    assert_eq!(store.get(id).expect("held"), Some(bytes));
    let entry = store.entry(id).expect("readable").expect("held");
    assert_eq!((entry.generation, entry.descriptors), (generation, vec![Bytes::from_static(b"d")]));
    assert_eq!(store.trash(None, 10).expect("readable"), []);
    let usage = store.usage();
    assert_eq!((usage.chunks, usage.trash_chunks, usage.trash), (2, 0, ByteCount::ZERO));
    assert_eq!(store.purge_trash(at(i64::MAX), 10).expect("no error"), 0, "what was restored is no trash");
    assert_eq!(store.delete(id, generation, None).expect("held"), Deleted::Gone);
    assert_eq!(store.restore(id, None).expect("no error"), Restored::Absent);
}

pub(crate) fn storing_takes_a_chunk_out_of_the_trash(store: &dyn ChunkStore, damage: Damage<'_>) {
    for (seed, rotten) in [(1, false), (2, true)] {
        let (id, bytes, old) = trashed(store, seed, 5_000, 7);
        if rotten {
            damage(id, Bytes::from(vec![0; 5_000]));
        }
        let stored = store.put(id, bytes.clone(), Bytes::new(), AT).expect("room");
        assert!(!stored.existed, "it was not held");
        assert!(stored.generation.counter > old.counter);
        assert_eq!(store.get(id).expect("whole"), Some(bytes));
        assert_eq!(store.restore(id, None).expect("no error"), Restored::Held(stored.generation));
        assert_eq!(
            store.delete(id, old, Some(at(8))).expect("no error"),
            Deleted::KeptNewer(stored.generation)
        );
    }
    assert_eq!(store.trash(None, 10).expect("readable"), []);
    assert_eq!(store.purge_trash(at(i64::MAX), 10).expect("no error"), 0);
    let usage = store.usage();
    assert_eq!((usage.used, usage.chunks), (ByteCount::bytes(10_000), 2));
    assert_eq!((usage.trash, usage.trash_chunks), (ByteCount::ZERO, 0));
}

pub(crate) fn a_restore_may_name_its_generation(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, bytes, old) = put(store, 1, 100);
    let new = store.put(id, bytes, Bytes::new(), AT).expect("room").generation;
    store.delete(id, new, Some(at(1))).expect("held");
    assert_eq!(store.restore(id, Some(old)).expect("no error"), Restored::Absent);
    assert_eq!(store.entry(id).expect("no error"), None);
    assert_eq!(store.restore(id, Some(new)).expect("no error"), Restored::Back(new));
    assert_eq!(store.restore(id, Some(old)).expect("no error"), Restored::Held(new));
}

pub(crate) fn what_rotted_in_the_trash_is_not_restored(store: &dyn ChunkStore, damage: Damage<'_>) {
    let (id, bytes, _) = trashed(store, 1, 5_000, 7);
    damage(id, Bytes::from(vec![0; 5_000]));
    assert!(matches!(store.restore(id, None), Err(Error::Corrupt { .. })));
    assert_eq!(store.get(id).expect("no error"), None);
    assert_eq!(store.quarantined(), [], "only what is held is held back");
    store.put(id, bytes.clone(), Bytes::new(), AT).expect("room");
    assert_eq!(store.get(id).expect("healed"), Some(bytes));
}

pub(crate) fn a_corrupt_chunk_skips_the_trash(store: &dyn ChunkStore, damage: Damage<'_>) {
    let (id, _, generation) = put(store, 1, 5_000);
    damage(id, Bytes::from(vec![0; 5_000]));
    assert!(matches!(store.get(id), Err(Error::Corrupt { .. })));
    assert_eq!(store.delete(id, generation, Some(at(7))).expect("held"), Deleted::Gone);
    assert_eq!(store.trash(None, 10).expect("readable"), []);
    assert_eq!(store.quarantined(), []);
    assert_eq!(store.restore(id, None).expect("no error"), Restored::Absent);
    assert_eq!(store.usage().used, ByteCount::ZERO);
}

pub(crate) fn trash_is_purged_by_age_and_is_gone(store: &dyn ChunkStore, _: Damage<'_>) {
    let trash: Vec<_> = (0..10).map(|n| trashed(store, n, 1_000, 100 + n as i64).0).collect();
    assert_eq!(store.purge_trash(at(99), 100).expect("no error"), 0);
    assert_eq!(store.purge_trash(at(105), 4).expect("no error"), 4);
    assert_eq!(store.purge_trash(at(105), 4).expect("no error"), 2, "those of that very time, too");
    assert_eq!(store.purge_trash(at(105), 4).expect("no error"), 0);
    assert_eq!(ids(&store.trash(None, 100).expect("readable")), trash[6..]);
    for (n, id) in trash.iter().enumerate() {
        let restored = store.restore(*id, None).expect("no error");
        assert_eq!(matches!(restored, Restored::Back(_)), n >= 6, "{n}: {restored:?}");
    }
    let usage = store.usage();
    assert_eq!((usage.used, usage.chunks, usage.trash_purged), (ByteCount::bytes(4_000), 4, 6));
    // A clock that was set back in between: what is older than what was purged last is found all the same.
    let (early, _, _) = trashed(store, 50, 1_000, 3);
    assert_eq!(ids(&store.trash(None, 100).expect("readable")), [early]);
    assert_eq!(store.purge_trash(at(3), 100).expect("no error"), 1);
    assert_eq!(store.usage().trash_chunks, 0);
}

pub(crate) fn trash_is_listed_in_pages_the_oldest_first(store: &dyn ChunkStore, _: Damage<'_>) {
    let mut wanted: Vec<_> = (0..25)
        .map(|n| (at(n as i64 / 4 * -1_000), trashed(store, n, 10, n as i64 / 4 * -1_000).0))
        .collect();
    wanted.sort();
    let mut listed: Vec<(Timestamp, ChunkId)> = Vec::new();
    loop {
        let page = store.trash(listed.last().copied(), 10).expect("readable");
        listed.extend(page.iter().map(|piece| (piece.at, piece.id)));
        if page.len() < 10 {
            break;
        }
    }
    assert_eq!(listed, wanted);
    assert_eq!(store.trash(listed.last().copied(), 10).expect("readable"), []);
}

pub(crate) fn a_full_store_purges_the_oldest_trash_to_make_room(store: &dyn ChunkStore, _: Damage<'_>) {
    let held = put(store, 0, 1 << 20);
    let trash: Vec<_> = (1..4).map(|n| trashed(store, n, 1 << 20, 10 - n as i64)).collect();
    assert_eq!(store.usage().used, ByteCount::mib(4));
    assert_eq!(store.usage().available, ByteCount::mib(3), "trash is in nobody's way");
    put(store, 9, (1 << 20) + 1);
    let left = ids(&store.trash(None, 10).expect("readable"));
    assert_eq!(left, [trash[0].0], "the two oldest had to go");
    assert_eq!(store.usage().used, ByteCount::bytes((3 << 20) + 1));
    assert_eq!(store.restore(trash[2].0, None).expect("no error"), Restored::Absent);
    // What comes out of the trash takes no more space, so nothing else goes for it.
    put(store, 10, (1 << 20) - 1);
    let (id, bytes, _) = trash[0].clone();
    store.put(id, bytes.clone(), Bytes::new(), AT).expect("its space was counted all the time");
    assert_eq!(store.get(id).expect("whole"), Some(bytes));
    assert_eq!(store.usage().available, ByteCount::ZERO);
    assert_eq!(store.get(held.0).expect("whole"), Some(held.1));
}

pub(crate) fn trash_is_kept_when_all_of_it_would_not_be_enough(store: &dyn ChunkStore, _: Damage<'_>) {
    put(store, 0, 3 << 20);
    let (id, bytes, generation) = trashed(store, 1, 1 << 20, 5);
    let (large, body) = chunk(2, (1 << 20) + 1);
    assert!(matches!(store.put(large, body, Bytes::new(), AT), Err(Error::Full { .. })));
    assert_eq!(store.restore(id, None).expect("no error"), Restored::Back(generation));
    assert_eq!(store.get(id).expect("whole"), Some(bytes));
}

pub(crate) fn concurrent_use_of_the_trash_keeps_the_sums(store: &dyn ChunkStore, _: Damage<'_>) {
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            scope.spawn(move || {
                for n in 0..60u64 {
                    let (id, bytes) = chunk(n % 5, 100_000);
                    let generation = store.put(id, bytes, Bytes::new(), AT).expect("five fit").generation;
                    let millis = (n * 8 + thread) as i64 % 17;
                    match (thread + n) % 4 {
                        0 => drop(store.delete(id, generation, Some(at(millis))).expect("no error")),
                        1 => drop(store.restore(id, None).expect("no error")),
                        2 => drop(store.purge_trash(at(millis), 2).expect("no error")),
                        _ => drop(store.delete(id, generation, None).expect("no error")),
                    }
                }
            });
        }
    });
    let (held, trash) = (store.list(None, 10).expect("readable"), store.trash(None, 10).expect("readable"));
    let usage = store.usage();
    assert_eq!((usage.chunks, usage.trash_chunks), (held.len() as u64, trash.len() as u64));
    assert_eq!(usage.trash, ByteCount::bytes(100_000 * trash.len() as u64));
    assert_eq!(usage.held(), ByteCount::bytes(100_000 * held.len() as u64));
    for entry in held {
        assert!(store.get(entry.id).expect("whole").is_some());
    }
    for piece in trash {
        assert_eq!(
            store.restore(piece.id, Some(piece.generation)).expect("whole"),
            Restored::Back(piece.generation)
        );
    }
}
