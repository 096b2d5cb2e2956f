//! Stripes as upkeep sees them: one by one, in a sweep, and of an object.

use std::time::Duration;

use cyxcloud_core::{ByteCount, Geometry, NodeId};

use super::{Place, fresh, online_nodes, place};
use crate::model::{BadLocation, Content, Fault, NewSegment, SegmentBody, SegmentRange};
use crate::upkeep::model::{GcBrake, LocationState, LocationStatus, ObjectStripes, StripeRef, StripeState};
use crate::{Error, MetadataStore};

/// What a claim lives that nobody is to take over.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// No brake at all.
pub(super) const FREE: GcBrake = GcBrake { max_fraction: 1.0, floor: u64::MAX };

/// Three data shards and two of parity: each test's nodes are five.
pub(super) fn coded() -> Geometry {
    Geometry::coded(3, 2).expect("valid")
}

/// Asks again until there is an answer: leases and grace pass by the database's clock.
pub(super) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < give_up, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the database's clock has moved on.
pub(super) async fn tick(store: &dyn MetadataStore) {
    let before = store.now().await.expect("now");
    until("the clock moves on", async || {
        (store.now().await.expect("now").since(before) > Duration::from_millis(2)).then_some(())
    })
    .await;
}

/// A stripe of a segment.
pub(super) fn at(segment: &NewSegment, index: u32) -> StripeRef {
    StripeRef { segment: segment.id, index }
}

/// Commits a segment of `stripes` stripes under a key.
pub(super) async fn stored(
    store: &dyn MetadataStore,
    place: Place,
    key: &str,
    stripes: u32,
    nodes: &[NodeId],
) -> NewSegment {
    let segment = place.striped(coded(), stripes, nodes);
    store.commit_object(&place.commit(key, Content::New(segment.clone()))).await.expect("commit");
    segment
}

/// A stripe's state, if it has one.
pub(super) async fn state(store: &dyn MetadataStore, stripe: StripeRef) -> Option<StripeState> {
    let mut states = store.stripe_states(&[stripe]).await.expect("read the state of a stripe");
    assert!(states.len() <= 1);
    states.pop()
}

/// Condemns what nothing refers to; a test that asks looks at what became of it.
pub(super) async fn condemn(store: &dyn MetadataStore) {
    store.condemn_segments(1000, FREE).await.expect("condemn").expect("go on");
}

/// What the state of a stripe must be as it was committed.
pub(super) fn committed(segment: &NewSegment, index: u32) -> StripeState {
    let SegmentBody::Stripes(stripes) = &segment.body else { panic!("made of stripes") };
    let stripe = &stripes[index as usize];
    let mut locations: Vec<LocationState> = Vec::new();
    for shard in &stripe.shards {
        locations.extend(shard.locations.iter().map(|at| LocationState {
            shard: shard.index,
            node: at.node,
            generation: at.generation,
            status: LocationStatus::Stored,
            proven_at: None,
        }));
    }
    locations.sort_by_key(|at| (at.shard, at.node.as_uuid()));
    StripeState {
        stripe: at(segment, index),
        owner: segment.owner,
        geometry: segment.geometry,
        format: segment.format,
        stripe_size: segment.stripe_size,
        plain_hash: stripe.plain_hash,
        plain_len: stripe.plain_len,
        target_tolerance: segment.target_tolerance,
        shards: stripe.shards.iter().map(|shard| (shard.chunk, shard.size)).collect(),
        locations,
    }
}

/// Nobody could tell which shards the others are; whoever sweeps learns which stripe it is, and the others are read without it.
pub async fn a_stripe_that_lacks_a_chunk_is_unreadable(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let mut segment = place.striped(coded(), 2, &nodes);
    let SegmentBody::Stripes(stripes) = &mut segment.body else { panic!("made of stripes") };
    stripes[0].shards.remove(1);
    let made = store.commit_object(&place.commit("k", Content::New(segment.clone()))).await.expect("commit");
    let is_corrupt =
        |answer: Result<(), Error>| assert!(matches!(answer, Err(Error::Corrupt { .. })), "{answer:?}");
    is_corrupt(store.stripe_states(&[at(&segment, 0), at(&segment, 1)]).await.map(drop));
    is_corrupt(store.sweep_stripes(None, 10).await.map(drop));
    is_corrupt(store.object_stripes(made.file, 10).await.map(drop));
    assert_eq!(state(store, at(&segment, 1)).await, Some(committed(&segment, 1)));
    assert_eq!(store.list_stripes(None, 10).await.expect("list"), [at(&segment, 0), at(&segment, 1)]);
}

/// Of live segments; with every location whatever is believed of it.
pub async fn a_stripe_shows_all_its_locations(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let coded = stored(store, place, "coded", 2, &nodes).await;
    let mut copied = place.striped(Geometry::copied(3).expect("valid"), 1, &nodes);
    copied.target_tolerance = 2;
    let SegmentBody::Stripes(stripes) = &mut copied.body else { panic!("made of stripes") };
    stripes[0].tolerance = 2;
    store.commit_object(&place.commit("copied", Content::New(copied.clone()))).await.expect("commit");
    let want = [committed(&coded, 1), committed(&copied, 0)];
    let ask = [at(&coded, 1), at(&coded, 2), at(&copied, 0), StripeRef { segment: fresh(), index: 0 }];
    let mut found = store.stripe_states(&ask).await.expect("read");
    found.sort_by_key(|state| state.stripe != ask[0]);
    // Its own store is a proof, if the engine says so.
    for state in found.iter_mut().flat_map(|state| &mut state.locations) {
        state.proven_at = None;
    }
    assert_eq!(found, want);
    let bad = |shard: usize, fault| BadLocation {
        segment: coded.id,
        stripe: 1,
        shard: coded.geometry.shard(shard).expect("exists"),
        node: nodes[shard],
        fault,
    };
    store.report_bad_locations(&[bad(0, Fault::Missing), bad(3, Fault::Corrupt)]).await.expect("report");
    let statuses: Vec<LocationStatus> =
        state(store, at(&coded, 1)).await.expect("live").locations.iter().map(|at| at.status).collect();
    use LocationStatus::{Corrupt, Missing, Stored};
    assert_eq!(statuses, [Missing, Stored, Stored, Corrupt, Stored]);
    place.delete(store, &["coded"]).await;
    condemn(store).await;
    assert_eq!(state(store, at(&coded, 1)).await, None);
    assert!(store.stripe_states(&[]).await.expect("read nothing").is_empty());
}

/// Each stripe of a live segment once, in order, whatever the page's size.
pub async fn a_sweep_meets_every_stripe_once(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let mut want = Vec::new();
    for (name, count) in [("a", 3), ("b", 1), ("c", 4)] {
        let segment = stored(store, place, name, count, &nodes).await;
        want.extend((0..count).map(|index| at(&segment, index)));
    }
    let gone = stored(store, place, "gone", 2, &nodes).await;
    place.put(store, "inline", b"no stripes").await;
    place.delete(store, &["gone"]).await;
    condemn(store).await;
    want.sort_by_key(|stripe| (stripe.segment.as_uuid(), stripe.index));
    for limit in [1, 2, 3, 100] {
        let (mut met, mut after) = (Vec::new(), None);
        loop {
            let page = store.sweep_stripes(after, limit).await.expect("sweep");
            assert!(page.len() <= limit);
            let listed = store.list_stripes(after, limit).await.expect("list");
            assert!(page.iter().map(|state| state.stripe).eq(listed));
            let Some(last) = page.last() else { break };
            assert!(page.iter().all(|state| state.shards.len() == 5 && state.locations.len() == 5));
            after = Some(last.stripe);
            met.extend(page.into_iter().map(|state| state.stripe));
        }
        assert!(met.iter().all(|stripe| stripe.segment != gone.id));
        assert_eq!(met, want, "{limit} at a time");
    }
}

/// Once each, in order, however often and from wherever its segments are referred to.
pub async fn an_object_shows_its_stripes(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let (first, second) =
        (stored(store, place, "first", 2, &nodes).await, stored(store, place, "second", 3, &nodes).await);
    let inline = place.put(store, "inline", b"0123456789").await;
    let Content::References(small) = place.references(store, "inline").await else { panic!("asked for") };
    let whole =
        |segment: &NewSegment| SegmentRange { segment: segment.id, offset: 0, length: segment.length.get() };
    let ranges = vec![whole(&second), small[0], whole(&first), whole(&second)];
    let made =
        store.commit_object(&place.commit("mixed", Content::References(ranges))).await.expect("commit");
    let shown = store.object_stripes(made.file, 100).await.expect("read").expect("is there");
    assert_eq!((shown.file, shown.bucket, shown.total), (made.file, place.bucket, 5));
    assert_eq!(shown.inline_bytes, ByteCount::bytes(10));
    let order: Vec<StripeRef> = shown.stripes.iter().map(|state| state.stripe).collect();
    let want: Vec<StripeRef> =
        (0..3).map(|index| at(&second, index)).chain((0..2).map(|index| at(&first, index))).collect();
    assert_eq!(order, want);
    assert_eq!(shown.stripes[4].shards, committed(&first, 1).shards);
    let some = store.object_stripes(made.file, 4).await.expect("read").expect("is there");
    assert_eq!((some.stripes.as_slice(), some.total), (&shown.stripes[..4], 5));
    let only = store.object_stripes(inline.file, 100).await.expect("read").expect("is there");
    let inline_only = ObjectStripes {
        file: inline.file,
        bucket: place.bucket,
        stripes: Vec::new(),
        inline_bytes: ByteCount::bytes(10),
        total: 0,
    };
    assert_eq!(only, inline_only);
    assert_eq!(store.object_stripes(fresh(), 100).await.expect("read"), None);
    place.put(store, "mixed", b"overwritten").await;
    assert_eq!(store.object_stripes(made.file, 100).await.expect("read"), None);
}
