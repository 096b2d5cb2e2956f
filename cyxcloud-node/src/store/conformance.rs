//! What every [`ChunkStore`] promises, one promise a function. [`suite!`] runs them on a store.

use std::collections::HashSet;

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation};
use uuid::Uuid;

use super::{ChunkStore, Deleted, Error};

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
            concurrent_stores_get_distinct_generations, a_closed_store_says_so);
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

fn chunk(seed: u64, length: usize) -> (ChunkId, Bytes) {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    (ChunkId::of(&bytes), Bytes::from(bytes))
}

fn put(store: &dyn ChunkStore, seed: u64, length: usize) -> (ChunkId, Bytes, Generation) {
    let (id, bytes) = chunk(seed, length);
    let stored = store.put(id, bytes.clone(), Bytes::new()).expect("there is room");
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

pub(crate) fn a_wrong_hash_is_refused(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, _) = chunk(1, 100);
    let (_, other) = chunk(2, 100);
    assert!(matches!(store.put(id, other, Bytes::new()), Err(Error::WrongId { .. })));
    assert!(matches!(store.put(ChunkId::of(b""), Bytes::new(), Bytes::new()), Err(Error::Length { .. })));
    assert_eq!(store.get(id).expect("no error"), None);
    assert_eq!(store.usage().used, ByteCount::ZERO);
}

pub(crate) fn storing_again_is_a_new_generation_of_the_same_bytes(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, bytes) = chunk(1, 5_000);
    let first = store.put(id, bytes.clone(), Bytes::from_static(b"one")).expect("room");
    let again = store.put(id, bytes.clone(), Bytes::from_static(b"two")).expect("room");
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
    assert!(matches!(store.put(id, bytes.clone(), Bytes::new()), Err(Error::Full { .. })));
    assert_eq!(store.usage().available, ByteCount::ZERO);
    // What is held already takes no space, so it may be stored again.
    let (again, body, _) = held[0].clone();
    assert!(store.put(again, body.clone(), Bytes::new()).expect("takes no space").existed);
    assert_eq!(store.get(again).expect("held"), Some(body));
    let (gone, _, generation) = held[1].clone();
    assert_eq!(store.delete(gone, generation).expect("a full store deletes"), Deleted::Gone);
    store.put(id, bytes, Bytes::new()).expect("there is space again");
    assert_eq!(store.usage().used, ByteCount::bytes((3 << 20) + 1));
}

pub(crate) fn deletes_obey_generations(store: &dyn ChunkStore, _: Damage<'_>) {
    let (id, bytes, old) = put(store, 1, 3_000);
    let new = store.put(id, bytes, Bytes::new()).expect("room").generation;
    assert_eq!(store.delete(id, old).expect("no error"), Deleted::KeptNewer(new));
    let stranger = Generation { incarnation: Uuid::from_bytes([1; 16]), counter: u64::MAX };
    assert_eq!(store.delete(id, stranger).expect("no error"), Deleted::KeptNewer(new));
    assert!(store.get(id).expect("kept").is_some());
    assert_eq!(store.delete(id, new).expect("no error"), Deleted::Gone);
    assert_eq!(store.delete(id, new).expect("no error"), Deleted::Absent);
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
    let stored = store.put(id, bytes.clone(), Bytes::new()).expect("room");
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
    store.put(id, bytes.clone(), Bytes::new()).expect("room");
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
    assert!(matches!(store.put(id, bytes, Bytes::new()), Err(Error::Closed)));
    assert!(matches!(store.get(id), Err(Error::Closed)));
}
