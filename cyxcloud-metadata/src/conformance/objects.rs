//! Objects: what is committed is what is read, and who wins when many want a key.

use std::collections::BTreeMap;

use cyxcloud_core::ByteCount;

use super::{key, place};
use crate::model::{Attributes, CommitObject, Content, Object, Precondition, SegmentBody, StoredChecksum};
use crate::{Error, MetadataStore};

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Every field of it, by HEAD and by layout.
pub async fn an_object_reads_back_as_committed(store: &dyn MetadataStore) {
    let place = place(store).await;
    let segment = place.inline(b"the body");
    let attributes = Attributes {
        content_type: Some("text/plain; charset=utf-8".to_owned()),
        headers: texts(&[("cache-control", "no-cache"), ("content-language", "de")]),
        metadata: texts(&[("colour", "grün \"quoted\" \\ 'x'"), ("empty", "")]),
        checksums: vec![StoredChecksum {
            algorithm: "CRC64NVME".to_owned(),
            value: "AAAAAAAAAAA=".to_owned(),
            composite: false,
        }],
    };
    let commit = CommitObject { attributes, ..place.commit("a/b c", Content::New(segment.clone())) };
    let before = store.now().await.expect("tell the time");
    let made = store.commit_object(&commit).await.expect("commit");
    let want = Object {
        file: commit.file,
        bucket: place.bucket,
        key: commit.key.clone(),
        owner: place.owner,
        version_id: "null".to_owned(),
        size: ByteCount::bytes(8),
        etag: commit.etag.clone(),
        content_hash: commit.content_hash,
        attributes: commit.attributes.clone(),
        part_sizes: Vec::new(),
        modified_at: made.modified_at,
    };
    assert_eq!(made, want);
    assert!(made.modified_at.unix_millis() >= before.unix_millis() - 1);
    assert_eq!(place.get(store, "a/b c").await, Some(want.clone()));
    let layout =
        store.object_layout(place.bucket, &commit.key, None).await.expect("layout").expect("is there");
    assert_eq!((layout.object, layout.extents.len()), (want, 1));
    let extent = &layout.extents[0];
    assert_eq!((extent.object_offset, extent.segment_offset, extent.length), (0, 0, 8));
    let info = &extent.segment;
    assert_eq!((info.id, info.owner, info.length), (segment.id, segment.owner, segment.length));
    assert_eq!((info.stripe_size, info.geometry, info.format), (segment.stripe_size, segment.geometry, 1));
    assert_eq!(info.content_hash, segment.content_hash);
    assert_eq!((info.acked_tolerance, info.target_tolerance), (4, 4));
    let SegmentBody::Inline { plain_hash, sealed } = segment.body else { panic!("made inline") };
    assert_eq!(info.inline, Some((plain_hash, sealed)));
}

/// Unicode, control characters, U+0000, and all of S3's 1,024 bytes.
pub async fn keys_hold_anything(store: &dyn MetadataStore) {
    let place = place(store).await;
    let longest = "é".repeat(512);
    let keys = ["\0", "a\0b", "a", "//", "a b+c%20\\'\"", "日本語/🦀", "\u{10ffff}", "\r\n\t", &longest];
    for name in keys {
        assert_eq!(place.get(store, name).await, None, "{name:?}");
        place.put(store, name, name.as_bytes()).await;
    }
    for name in keys {
        let object = place.get(store, name).await.unwrap_or_else(|| panic!("{name:?} is there"));
        assert_eq!((object.key.as_str(), object.size), (name, ByteCount::bytes(name.len() as u64)));
    }
    let deleted = place.delete(store, &keys).await;
    assert!(deleted.iter().all(Option::is_some));
}

/// Whether its segment says stripes or inline, or there is none; and it can be copied.
pub async fn a_body_of_no_bytes_is_an_object(store: &dyn MetadataStore) {
    let place = place(store).await;
    let striped = Content::New(place.striped(cyxcloud_core::Geometry::STANDARD, 0, &[]));
    for (name, content) in [("striped", striped), ("inline", Content::New(place.inline(b"")))] {
        let made = store.commit_object(&place.commit(name, content)).await.expect("commit");
        assert_eq!(made.size, ByteCount::ZERO);
        let copy = place.references(store, name).await;
        store.commit_object(&place.commit(&format!("copy of {name}"), copy)).await.expect("copy");
    }
    for name in ["striped", "inline", "copy of striped", "copy of inline"] {
        let layout =
            store.object_layout(place.bucket, &key(name), None).await.expect("layout").expect("is there");
        assert_eq!(layout.extents.iter().map(|extent| extent.length).sum::<u64>(), 0, "{name}");
    }
    assert_eq!(place.delete(store, &["striped", "inline"]).await.len(), 2);
}

/// The key has one current object, and only the new one counts.
pub async fn an_overwrite_replaces_the_object(store: &dyn MetadataStore) {
    let place = place(store).await;
    for body in [b"one".as_slice(), b"four", b"", b"fifteen"] {
        let made = place.put(store, "k", body).await;
        assert_eq!(place.get(store, "k").await, Some(made));
        let usage = store.bucket_usage(place.bucket).await.expect("read usage");
        assert_eq!((usage.bytes.get(), usage.objects), (body.len() as u64, 1));
    }
}

/// On absent and on present keys, for every kind.
pub async fn preconditions_are_judged(store: &dyn MetadataStore) {
    let place = place(store).await;
    let put = async |precondition: Precondition| {
        let commit = CommitObject { precondition, ..place.commit("k", Content::New(place.inline(b"x"))) };
        store.commit_object(&commit).await
    };
    assert!(matches!(put(Precondition::Exists).await, Err(Error::NoSuchKey)));
    assert!(matches!(put(Precondition::EtagIs("x".into())).await, Err(Error::NoSuchKey)));
    let first = put(Precondition::Absent).await.expect("nothing is there");
    assert!(matches!(put(Precondition::Absent).await, Err(Error::PreconditionFailed)));
    assert!(matches!(put(Precondition::EtagIs("x".into())).await, Err(Error::PreconditionFailed)));
    assert_eq!(place.get(store, "k").await, Some(first.clone()));
    let second = put(Precondition::EtagIs(first.etag.clone())).await.expect("the ETag is right");
    assert!(matches!(put(Precondition::EtagIs(first.etag)).await, Err(Error::PreconditionFailed)));
    let third = put(Precondition::Exists).await.expect("something is there");
    assert_ne!(second.etag, third.etag);
    place.delete(store, &["k"]).await;
    assert!(matches!(put(Precondition::EtagIs(third.etag)).await, Err(Error::NoSuchKey)));
    put(Precondition::Absent).await.expect("nothing is there any more");
}

/// `If-None-Match: *` from 32 sides at once.
pub async fn of_many_creators_of_a_key_one_wins(store: &dyn MetadataStore) {
    let place = place(store).await;
    let commit = |_| CommitObject {
        precondition: Precondition::Absent,
        ..place.commit("k", Content::New(place.inline(b"x")))
    };
    let commits: Vec<CommitObject> = (0..32).map(commit).collect();
    let winner = one_of(store, &commits).await;
    assert_eq!(place.get(store, "k").await, Some(winner));
}

/// `If-Match: <etag>` from 32 sides at once.
pub async fn of_many_overwriters_of_a_version_one_wins(store: &dyn MetadataStore) {
    let place = place(store).await;
    let etag = place.put(store, "k", b"first").await.etag;
    let commit = |_| CommitObject {
        precondition: Precondition::EtagIs(etag.clone()),
        ..place.commit("k", Content::New(place.inline(b"x")))
    };
    let commits: Vec<CommitObject> = (0..32).map(commit).collect();
    let winner = one_of(store, &commits).await;
    assert_eq!(place.get(store, "k").await, Some(winner));
    let usage = store.bucket_usage(place.bucket).await.expect("read usage");
    assert_eq!((usage.bytes.get(), usage.objects), (1, 1));
}

/// Runs all commits at once; all but one must find their precondition failed.
async fn one_of(store: &dyn MetadataStore, commits: &[CommitObject]) -> Object {
    let answers = futures::future::join_all(commits.iter().map(|commit| store.commit_object(commit))).await;
    let mut winners = Vec::new();
    for answer in answers {
        match answer {
            Ok(object) => winners.push(object),
            Err(Error::PreconditionFailed) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    winners.remove(0)
}

/// None waits for another's failure, none is lost.
pub async fn commits_of_many_keys_at_once_all_stand(store: &dyn MetadataStore) {
    let place = place(store).await;
    let commit = |n: usize| {
        // Every third is refused; its neighbours must not notice.
        let precondition = if n % 3 == 2 { Precondition::Exists } else { Precondition::Absent };
        CommitObject { precondition, ..place.commit(&format!("{n:03}"), Content::New(place.inline(b"x"))) }
    };
    let commits: Vec<CommitObject> = (0..200).map(commit).collect();
    let answers = futures::future::join_all(commits.iter().map(|commit| store.commit_object(commit))).await;
    for (n, answer) in answers.into_iter().enumerate() {
        let there = place.get(store, &format!("{n:03}")).await;
        match answer {
            Ok(object) => assert_eq!(there, Some(object)),
            Err(Error::NoSuchKey) => assert_eq!((n % 3, there), (2, None)),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(store.bucket_usage(place.bucket).await.expect("read usage").objects, 134);
}

/// Also for keys that are not there, and keys named twice.
pub async fn deletes_answer_per_key_in_order(store: &dyn MetadataStore) {
    let place = place(store).await;
    let (b, a) = (place.put(store, "b", b"2").await, place.put(store, "a", b"1").await);
    let kept = place.put(store, "c", b"3").await;
    let deleted = place.delete(store, &["b", "none", "a", "b"]).await;
    assert_eq!(deleted, [Some(b), None, Some(a), None]);
    assert_eq!(place.delete(store, &["a"]).await, [None]);
    assert!(place.delete(store, &[]).await.is_empty());
    assert_eq!(place.get(store, "a").await, None);
    assert_eq!(place.get(store, "c").await, Some(kept));
}

/// All keys of the call or none.
pub async fn a_delete_refused_deletes_nothing(store: &dyn MetadataStore) {
    let place = place(store).await;
    let object = place.put(store, "k", b"1").await;
    let delete = async |keys: &[&str], precondition: Precondition| {
        let keys: Vec<_> = keys.iter().map(|name| key(name)).collect();
        store.delete_objects(place.bucket, &keys, &precondition).await
    };
    let wrong = delete(&["k"], Precondition::EtagIs("other".into())).await;
    assert!(matches!(wrong, Err(Error::PreconditionFailed)), "{wrong:?}");
    let absent = delete(&["k", "none"], Precondition::Exists).await;
    assert!(matches!(absent, Err(Error::NoSuchKey)), "{absent:?}");
    assert_eq!(place.get(store, "k").await, Some(object.clone()));
    let right = delete(&["k"], Precondition::EtagIs(object.etag.clone())).await.expect("the ETag is right");
    assert_eq!(right, [Some(object)]);
}
