//! Usage and quota.

use cyxcloud_core::ByteCount;

use super::{MANY, place, place_with_quota};
use crate::model::{Content, Usage};
use crate::{Error, MetadataStore};

/// Through puts, overwrites, copies and deletes, many at once, before and after every fold.
pub async fn usage_adds_up_folded_or_not(store: &dyn MetadataStore) {
    let place = place(store).await;
    let second = store.create_bucket(&super::new_bucket(place.owner), MANY).await.expect("make a bucket");
    let beside = super::Place { bucket: second.id, ..place };
    let check = async |here: (u64, u64), there: (u64, u64)| {
        let usage = |(bytes, objects)| Usage { bytes: ByteCount::bytes(bytes), objects };
        assert_eq!(store.bucket_usage(place.bucket).await.expect("usage"), usage(here));
        assert_eq!(store.bucket_usage(beside.bucket).await.expect("usage"), usage(there));
        let listed = store.buckets_with_usage(place.owner).await.expect("usage");
        let names = listed.iter().map(|(bucket, _)| bucket.clone()).collect::<Vec<_>>();
        assert_eq!(names, store.list_buckets(place.owner).await.expect("list"));
        let of = |id| listed.iter().find(|(bucket, _)| bucket.id == id).map(|(_, usage)| *usage);
        assert_eq!((of(place.bucket), of(beside.bucket)), (Some(usage(here)), Some(usage(there))));
        let both = usage((here.0 + there.0, here.1 + there.1));
        assert_eq!(store.owner_usage(place.owner).await.expect("usage"), both);
    };
    check((0, 0), (0, 0)).await;
    let names: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
    let puts = names.iter().map(|name| place.put(store, name, b"12345"));
    futures::future::join_all(puts).await;
    check((100, 20), (0, 0)).await;
    store.fold_usage(7).await.expect("fold");
    check((100, 20), (0, 0)).await;
    beside.put(store, "00", b"123").await;
    let overwrites = names[..10].iter().map(|name| place.put(store, name, b"1"));
    futures::future::join_all(overwrites).await;
    let copy = place.references(store, "15").await;
    store.commit_object(&beside.commit("copy", copy)).await.expect("copy");
    check((60, 20), (8, 2)).await;
    while store.fold_usage(5).await.expect("fold") > 0 {}
    check((60, 20), (8, 2)).await;
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    place.delete(store, &all).await;
    place.delete(store, &all).await;
    check((0, 0), (8, 2)).await;
    while store.fold_usage(1000).await.expect("fold") > 0 {}
    check((0, 0), (8, 2)).await;
}

/// To the byte; what an overwrite frees counts as free.
pub async fn a_quota_is_kept(store: &dyn MetadataStore) {
    let place = place_with_quota(store, Some(ByteCount::bytes(10))).await;
    let put = async |name: &str, body: &[u8]| {
        store.commit_object(&place.commit(name, Content::New(place.inline(body)))).await
    };
    put("a", b"1234567").await.expect("fits");
    let refused = put("b", b"1234").await;
    assert!(matches!(refused, Err(Error::QuotaExceeded { quota: 10 })), "{refused:?}");
    assert_eq!(place.get(store, "b").await, None);
    put("b", b"123").await.expect("fits to the byte");
    put("a", b"7654321").await.expect("replaces as many bytes");
    while store.fold_usage(1000).await.expect("fold") > 0 {}
    let refused = put("c", b"1").await;
    assert!(matches!(refused, Err(Error::QuotaExceeded { .. })), "{refused:?}");
    put("c", b"").await.expect("no bytes always fit");
    place.delete(store, &["a"]).await;
    put("c", b"1234567").await.expect("fits again");
    let usage = store.owner_usage(place.owner).await.expect("usage");
    assert_eq!((usage.bytes.get(), usage.objects), (10, 2));
}
