//! Where bytes are: segments, their stripes, ranges of them, and references from copies.

use cyxcloud_core::{ByteCount, Geometry};

use super::{fresh, key, online_nodes, place};
use crate::model::{Content, NewSegment, NodeStep, SegmentBody, SegmentRange, StripeLayout};
use crate::{Error, MetadataStore};

/// What `stripes` must answer for a segment.
pub(super) fn expected(segment: &NewSegment) -> Vec<StripeLayout> {
    let SegmentBody::Stripes(stripes) = &segment.body else { return Vec::new() };
    let layout = |(stripe, index): (&crate::model::NewStripe, u32)| StripeLayout {
        index,
        plain_hash: stripe.plain_hash,
        plain_len: stripe.plain_len,
        shards: stripe
            .shards
            .iter()
            .map(|shard| crate::model::ShardLayout {
                index: shard.index,
                chunk: shard.chunk,
                size: shard.size,
                nodes: sorted(shard.locations.iter().map(|at| at.node)),
            })
            .collect(),
    };
    stripes.iter().zip(0u32..).map(layout).collect()
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort();
    items
}

/// The stripes of a segment, nodes of each shard in order of id.
pub(super) async fn stripes(
    store: &dyn MetadataStore,
    segment: &NewSegment,
    range: std::ops::Range<u32>,
) -> Vec<StripeLayout> {
    let mut stripes = store.stripes(segment.id, range).await.expect("read stripes");
    for shard in stripes.iter_mut().flat_map(|stripe| &mut stripe.shards) {
        shard.nodes.sort();
    }
    stripes
}

/// From a single copy to 255 shards; shards that no node acknowledged are listed without nodes.
pub async fn stripes_read_back_in_any_geometry(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let coded = |data, parity| Geometry::coded(data, parity).expect("valid");
    let copied = |copies| Geometry::copied(copies).expect("valid");
    let geometries =
        [copied(1), copied(3), copied(5), coded(1, 1), coded(3, 2), coded(10, 4), coded(200, 55)];
    for (geometry, count) in geometries.into_iter().zip([1, 2, 3, 4, 7, 3, 2]) {
        let mut segment = place.striped(geometry, count, &nodes);
        if let (SegmentBody::Stripes(stripes), true) = (&mut segment.body, geometry.parity() > 0) {
            for shard in &mut stripes[0].shards[geometry.data()..] {
                shard.locations.clear();
            }
        }
        let name = geometry.to_string();
        let commit = place.commit(&name, Content::New(segment.clone()));
        store.commit_object(&commit).await.expect("commit");
        let all = expected(&segment);
        assert_eq!(stripes(store, &segment, 0..count).await, all, "{name}");
        assert_eq!(stripes(store, &segment, 0..u32::from(u16::MAX)).await, all, "{name}");
        assert_eq!(stripes(store, &segment, 1..2).await, all.get(1..2).unwrap_or_default(), "{name}");
        assert!(stripes(store, &segment, count..count + 3).await.is_empty());
        let layout =
            store.object_layout(place.bucket, &key(&name), None).await.expect("layout").expect("is there");
        assert_eq!(layout.extents[0].segment.geometry, geometry);
        assert_eq!(layout.extents[0].segment.inline, None);
        assert!(all.starts_with(&along(layout.extents[0].stripes.clone())) && !all.is_empty(), "{name}");
    }
    assert!(store.stripes(fresh(), 0..9).await.expect("read stripes").is_empty());
}

fn along(mut stripes: Vec<StripeLayout>) -> Vec<StripeLayout> {
    for shard in stripes.iter_mut().flat_map(|stripe| &mut stripe.shards) {
        shard.nodes.sort();
    }
    stripes
}

/// Those of the range that was asked for and no others, also through a reference into the middle of a segment; none of what
/// lives in its row.
pub async fn the_first_stripes_come_with_the_layout(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let geometry = Geometry::coded(3, 2).expect("valid");
    let small = place.striped(Geometry::copied(3).expect("valid"), 1, &nodes);
    // 8 stripes of 1,000 bytes and one of 137.
    let large = place.striped(geometry, 9, &nodes);
    for (name, segment) in [("small", &small), ("large", &large)] {
        store.commit_object(&place.commit(name, Content::New(segment.clone()))).await.expect("commit");
    }
    let part = SegmentRange { segment: large.id, offset: 2500, length: 4000 };
    store.commit_object(&place.commit("part", Content::References(vec![part]))).await.expect("commit");
    place.put(store, "inline", b"0123456789").await;
    let indices = async |name: &str, range: Option<std::ops::Range<u64>>| {
        let layout =
            store.object_layout(place.bucket, &key(name), range).await.expect("layout").expect("is there");
        let [extent] = layout.extents.as_slice() else { panic!("one extent") };
        let found = along(extent.stripes.clone());
        let want = expected(if name == "small" { &small } else { &large });
        for stripe in &found {
            assert_eq!(stripe, &want[stripe.index as usize], "{name}");
        }
        found.iter().map(|stripe| stripe.index).collect::<Vec<_>>()
    };
    assert_eq!(indices("small", None).await, [0]);
    assert_eq!(indices("small", Some(3..4)).await, [0]);
    assert_eq!(indices("large", None).await, [0, 1, 2, 3]);
    assert_eq!(indices("large", Some(999..1000)).await, [0]);
    assert_eq!(indices("large", Some(999..1001)).await, [0, 1]);
    assert_eq!(indices("large", Some(7000..u64::MAX)).await, [7, 8]);
    assert_eq!(indices("part", None).await, [2, 3, 4, 5]);
    assert_eq!(indices("part", Some(1500..1501)).await, [4]);
    assert_eq!(indices("part", Some(3499..5000)).await, [5, 6]);
    assert!(indices("inline", None).await.is_empty());
}

/// Whatever they ask for: in a row, in stripes, of many extents, outside of the object, absent.
pub async fn layouts_asked_for_at_once_are_not_mixed_up(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let large = place.striped(Geometry::coded(3, 2).expect("valid"), 9, &nodes);
    store.commit_object(&place.commit("large", Content::New(large.clone()))).await.expect("commit");
    place.put(store, "inline", b"0123456789").await;
    let extents = [(0, 2), (5, 5)].map(|(offset, length)| SegmentRange { segment: large.id, offset, length });
    store
        .commit_object(&place.commit("pieces", Content::References(extents.to_vec())))
        .await
        .expect("commit");
    let asked = [
        ("large", None, 1, 4),
        ("large", Some(999..1001), 1, 2),
        ("none", None, 0, 0),
        ("inline", None, 1, 0),
        ("pieces", None, 2, 0),
        ("large", Some(9000..9001), 0, 0),
        ("pieces", Some(3..4), 1, 1),
    ];
    let asked: Vec<_> = asked.iter().cycle().take(20 * asked.len()).collect();
    let ask = async |name: &str, range: &Option<std::ops::Range<u64>>| {
        let layout = store.object_layout(place.bucket, &key(name), range.clone()).await.expect("layout");
        if let Some(layout) = &layout {
            assert_eq!(layout.object.key, key(name));
        }
        let extents = layout.map(|layout| layout.extents).unwrap_or_default();
        (extents.len(), extents.iter().map(|extent| extent.stripes.len()).sum::<usize>())
    };
    let found = futures::future::join_all(asked.iter().map(|(name, range, _, _)| ask(name, range))).await;
    for ((name, range, extents, stripes), found) in asked.into_iter().zip(found) {
        assert_eq!(found, (*extents, *stripes), "{name} {range:?}");
    }
}

/// Of an object of many extents.
pub async fn a_range_finds_only_what_overlaps_it(store: &dyn MetadataStore) {
    let place = place(store).await;
    place.put(store, "source", b"0123456789").await;
    let Content::References(whole) = place.references(store, "source").await else {
        panic!("asked for references")
    };
    let segment = whole[0].segment;
    // 10 + 3 + 1 + 6 bytes.
    let ranges =
        [(0, 10), (4, 3), (9, 1), (2, 6)].map(|(offset, length)| SegmentRange { segment, offset, length });
    store.commit_object(&place.commit("k", Content::References(ranges.to_vec()))).await.expect("commit");
    let offsets = async |range: Option<std::ops::Range<u64>>| {
        let layout =
            store.object_layout(place.bucket, &key("k"), range).await.expect("layout").expect("is there");
        assert_eq!(layout.object.size, ByteCount::bytes(20));
        layout.extents.iter().map(|e| (e.object_offset, e.segment_offset, e.length)).collect::<Vec<_>>()
    };
    let all = [(0, 0, 10), (10, 4, 3), (13, 9, 1), (14, 2, 6)];
    assert_eq!(offsets(None).await, all);
    assert_eq!(offsets(Some(0..20)).await, all);
    assert_eq!(offsets(Some(0..1)).await, all[..1]);
    assert_eq!(offsets(Some(9..11)).await, all[..2]);
    assert_eq!(offsets(Some(10..13)).await, all[1..2]);
    assert_eq!(offsets(Some(12..14)).await, all[1..3]);
    assert_eq!(offsets(Some(19..u64::MAX)).await, all[3..]);
    assert!(offsets(Some(20..30)).await.is_empty());
    let absent = store.object_layout(place.bucket, &key("none"), None).await.expect("layout");
    assert!(absent.is_none());
}

/// The bytes stay where they are when the source is overwritten or deleted.
pub async fn a_copy_outlives_its_source(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let segment = place.striped(Geometry::coded(3, 2).expect("valid"), 2, &nodes);
    store.commit_object(&place.commit("source", Content::New(segment.clone()))).await.expect("commit");
    let copy = place.references(store, "source").await;
    let made = store.commit_object(&place.commit("copy", copy.clone())).await.expect("copy");
    assert_eq!(made.size, segment.length);
    place.put(store, "source", b"another").await;
    place.delete(store, &["source"]).await;
    assert_eq!(place.references(store, "copy").await, copy);
    assert_eq!(stripes(store, &segment, 0..2).await, expected(&segment));
    // A copy onto itself, as clients do to change metadata.
    store.commit_object(&place.commit("copy", copy.clone())).await.expect("copy onto itself");
    assert_eq!(place.references(store, "copy").await, copy);
    assert_eq!(stripes(store, &segment, 0..2).await, expected(&segment));
}

/// Nothing is made of it.
pub async fn a_reference_to_nothing_is_refused(store: &dyn MetadataStore) {
    let place = place(store).await;
    let before = place.put(store, "k", b"before").await;
    let nothing = Content::References(vec![SegmentRange { segment: fresh(), offset: 0, length: 5 }]);
    let refused = store.commit_object(&place.commit("k", nothing)).await;
    assert!(matches!(refused, Err(Error::SourceGone)), "{refused:?}");
    assert_eq!(place.get(store, "k").await, Some(before));
}

/// A commit that names a node that is offline stands; one that rests on a removed node is refused or leaves it out.
pub async fn a_node_that_left_holds_nothing(store: &dyn MetadataStore) {
    use cyxcloud_core::node::NodeStatus::{Draining, Offline, Online};
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let geometry = Geometry::coded(3, 2).expect("valid");
    let step = async |from, to| {
        store.step_node(&NodeStep { node: nodes[0], from, to }).await.expect("step");
    };
    step(Online, Offline).await;
    let offline = place.striped(geometry, 1, &nodes);
    store.commit_object(&place.commit("offline", Content::New(offline.clone()))).await.expect("commit");
    assert_eq!(stripes(store, &offline, 0..1).await, expected(&offline));
    step(Offline, Draining).await;
    store.remove_node(nodes[0]).await.expect("remove");
    let removed = place.striped(geometry, 1, &nodes);
    match store.commit_object(&place.commit("removed", Content::New(removed.clone()))).await {
        Ok(_) => {
            let shards = &stripes(store, &removed, 0..1).await[0].shards;
            assert!(shards.iter().all(|shard| !shard.nodes.contains(&nodes[0])));
            assert_eq!(shards.iter().filter(|shard| !shard.nodes.is_empty()).count(), 4);
        }
        Err(_) => assert_eq!(place.get(store, "removed").await, None),
    }
}
