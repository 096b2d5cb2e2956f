//! Multipart uploads, from creation to their one outcome.

use std::collections::BTreeMap;
use std::time::Duration;

use cyxcloud_core::{ByteCount, ChunkId, NodeId, Timestamp, UploadId};
use uuid::Uuid;

use super::repairs::{claimed, location};
use super::stripes::{LONG, at, coded, state};
use super::{MANY, Place, fresh, key, new_node, online_nodes, place, place_with_quota};
use crate::error::PartsRefusal;
use crate::model::{
    Assembled, Attributes, BadLocation, CommitPart, CompleteMultipart, Content, Fault, ListMultiparts,
    Multipart, NewSegment, NewUpload, Object, Part, Precondition, RegisterNode, StoredChecksum,
};
use crate::upkeep::model::RepairDone;
use crate::{Error, MetadataStore, Result};

/// Opens a multipart upload.
pub(super) async fn open(store: &dyn MetadataStore, place: Place, name: &str) -> Multipart {
    let upload = new_upload(place, name);
    let made = store.create_multipart(&upload, MANY).await.expect("open a multipart upload");
    assert_eq!(made, Multipart { initiated_at: made.initiated_at, ..upload });
    assert!(made.initiated_at > Timestamp::default());
    made
}

fn new_upload(place: Place, name: &str) -> Multipart {
    Multipart {
        id: fresh(),
        bucket: place.bucket,
        key: key(name),
        owner: place.owner,
        attributes: Attributes {
            content_type: Some("image/png".to_owned()),
            headers: BTreeMap::from([("cache-control".to_owned(), "no-store".to_owned())]),
            metadata: BTreeMap::from([("by".to_owned(), "someone".to_owned())]),
            checksums: Vec::new(),
        },
        checksum_algorithm: Some("CRC32C".to_owned()),
        checksum_type: Some("FULL_OBJECT".to_owned()),
        initiated_at: Timestamp::default(),
    }
}

pub(super) fn new_part(place: Place, upload: UploadId, number: u32, body: &[u8]) -> CommitPart {
    CommitPart {
        multipart: upload,
        number,
        intent: None,
        size: ByteCount::bytes(body.len() as u64),
        etag: Uuid::new_v4().simple().to_string(),
        content_hash: *ChunkId::of(body).as_bytes(),
        checksums: vec![checksum(&number.to_string())],
        content: Content::New(place.inline(body)),
    }
}

fn checksum(value: &str) -> StoredChecksum {
    StoredChecksum { algorithm: "CRC32C".to_owned(), value: value.to_owned(), composite: false }
}

async fn upload_part(
    store: &dyn MetadataStore,
    place: Place,
    upload: UploadId,
    number: u32,
    body: &[u8],
) -> Part {
    store.commit_part(&new_part(place, upload, number, body)).await.expect("commit a part")
}

fn request(upload: &Multipart, parts: &[&Part]) -> CompleteMultipart {
    CompleteMultipart {
        multipart: upload.id,
        bucket: upload.bucket,
        key: upload.key.clone(),
        file: fresh(),
        precondition: Precondition::None,
        parts: parts.iter().map(|part| (part.number, part.etag.clone())).collect(),
    }
}

fn assemble(upload: &Multipart, parts: &[Part]) -> Result<Assembled, PartsRefusal> {
    let numbers: Vec<String> = parts.iter().map(|part| part.number.to_string()).collect();
    Ok(Assembled {
        etag: format!("assembled-{}", parts.len()),
        content_hash: *ChunkId::of(upload.id.as_bytes()).as_bytes(),
        checksums: vec![checksum(&numbers.join("+"))],
    })
}

async fn complete(store: &dyn MetadataStore, request: &CompleteMultipart) -> Result<Object> {
    store.complete_multipart(request, &assemble).await
}

/// Of the parts named, in order; with the headers of its creation and what the caller made of the parts.
pub async fn a_multipart_upload_becomes_an_object(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    assert_eq!(store.multipart(upload.id).await.expect("read"), Some(upload.clone()));
    let big = upload_part(store, place, upload.id, 10_000, b"abcdefg").await;
    let dropped = upload_part(store, place, upload.id, 3, b"not named").await;
    let small = upload_part(store, place, upload.id, 1, b"1234").await;
    assert_eq!(place.get(store, "k").await, None);
    let before = place.put(store, "k", b"before").await;
    let request = request(&upload, &[&small, &big]);
    let made = complete(store, &request).await.expect("complete");
    assert!(made.modified_at >= before.modified_at);
    assert_eq!(
        made,
        Object {
            file: request.file,
            bucket: place.bucket,
            key: key("k"),
            owner: place.owner,
            version_id: "null".to_owned(),
            size: ByteCount::bytes(11),
            etag: "assembled-2".to_owned(),
            content_hash: *ChunkId::of(upload.id.as_bytes()).as_bytes(),
            attributes: Attributes { checksums: vec![checksum("1+10000")], ..upload.attributes.clone() },
            part_sizes: vec![4, 7],
            modified_at: made.modified_at,
        }
    );
    assert_eq!(place.get(store, "k").await, Some(made));
    let layout = store.object_layout(place.bucket, &key("k"), None).await.expect("layout").expect("is there");
    let at: Vec<_> = layout.extents.iter().map(|e| (e.object_offset, e.segment_offset, e.length)).collect();
    assert_eq!(at, [(0, 0, 4), (4, 0, 7)]);
    assert!(layout.extents.iter().all(|extent| extent.segment.content_hash != dropped.content_hash));
    let usage = store.bucket_usage(place.bucket).await.expect("usage");
    assert_eq!((usage.bytes.get(), usage.objects), (11, 1));
    assert_eq!(store.multipart(upload.id).await.expect("read"), None);
    let late = store.commit_part(&new_part(place, upload.id, 2, b"late")).await;
    assert!(matches!(late, Err(Error::NoSuchUpload)), "{late:?}");
}

/// The last one counts.
pub async fn a_part_replaces_the_one_of_its_number(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    let first = upload_part(store, place, upload.id, 1, b"first").await;
    let second = upload_part(store, place, upload.id, 1, b"the second").await;
    assert_eq!(store.list_parts(upload.id, 0, 10).await.expect("list"), std::slice::from_ref(&second));
    let old = complete(store, &request(&upload, &[&first])).await;
    assert!(matches!(old, Err(Error::InvalidPart { number: 1 })), "{old:?}");
    let made = complete(store, &request(&upload, &[&second])).await.expect("complete");
    assert_eq!(made.size, ByteCount::bytes(10));
    let layout = store.object_layout(place.bucket, &key("k"), None).await.expect("layout").expect("is there");
    assert_eq!(layout.extents[0].segment.content_hash, second.content_hash);
}

/// In order of number, whatever the order they came in.
pub async fn parts_are_listed_in_pages(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    assert!(store.list_parts(upload.id, 0, 10).await.expect("list").is_empty());
    let mut parts = Vec::new();
    for number in [7, 300, 2, 10_000, 1, 5] {
        parts.push(upload_part(store, place, upload.id, number, &number.to_be_bytes()).await);
    }
    parts.sort_by_key(|part| part.number);
    assert_eq!(store.list_parts(upload.id, 0, 1000).await.expect("list"), parts);
    assert_eq!(store.list_parts(upload.id, 2, 2).await.expect("list"), parts[2..4]);
    assert_eq!(store.list_parts(upload.id, 6, 1).await.expect("list"), parts[3..4]);
    assert!(store.list_parts(upload.id, 10_000, 9).await.expect("list").is_empty());
    let unknown = store.list_parts(fresh(), 0, 9).await;
    assert!(matches!(unknown, Err(Error::NoSuchUpload)), "{unknown:?}");
}

/// Even after the object has been replaced; with other parts it is unknown.
pub async fn complete_asked_again_answers_the_same(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    let one = upload_part(store, place, upload.id, 1, b"one").await;
    let two = upload_part(store, place, upload.id, 2, b"two").await;
    let both = request(&upload, &[&one, &two]);
    let made = complete(store, &both).await.expect("complete");
    let retry = CompleteMultipart { file: fresh(), ..both.clone() };
    assert_eq!(complete(store, &retry).await.expect("complete again"), made);
    let other = complete(store, &request(&upload, &[&one])).await;
    assert!(matches!(other, Err(Error::NoSuchUpload)), "{other:?}");
    let newer = place.put(store, "k", b"newer").await;
    let condition = CompleteMultipart { precondition: Precondition::None, ..both };
    assert_eq!(complete(store, &condition).await.expect("complete again"), made);
    assert_eq!(place.get(store, "k").await, Some(newer));
    let abort = store.abort_multipart(place.bucket, &key("k"), upload.id).await;
    assert!(matches!(abort, Err(Error::NoSuchUpload)), "{abort:?}");
}

/// By number; and the upload stays open.
pub async fn parts_that_are_not_there_are_refused(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    let one = upload_part(store, place, upload.id, 1, b"one").await;
    let three = upload_part(store, place, upload.id, 3, b"three").await;
    let asked = |parts: &[(u32, &str)]| CompleteMultipart {
        parts: parts.iter().map(|(number, etag)| (*number, (*etag).to_owned())).collect(),
        ..request(&upload, &[])
    };
    for (parts, wrong) in [
        (vec![(1, one.etag.as_str()), (2, "x"), (3, three.etag.as_str())], 2),
        (vec![(1, "x"), (3, three.etag.as_str())], 1),
        (vec![(1, one.etag.as_str()), (4, three.etag.as_str())], 4),
    ] {
        let answer = complete(store, &asked(&parts)).await;
        assert!(matches!(answer, Err(Error::InvalidPart { number }) if number == wrong), "{answer:?}");
    }
    assert_eq!(place.get(store, "k").await, None);
    complete(store, &request(&upload, &[&one, &three])).await.expect("still open");
}

/// It would make an object that nobody can read. Once it can be read again it is as good as any, whatever is still to be repaired.
pub async fn a_part_that_was_lost_is_refused(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes = online_nodes(store, 5).await;
    let upload = open(store, place, "k").await;
    let one = upload_part(store, place, upload.id, 1, b"one").await;
    let segment = place.striped(coded(), 1, &nodes);
    let two = CommitPart {
        size: segment.length,
        content: Content::New(segment.clone()),
        ..new_part(place, upload.id, 2, b"")
    };
    let two = store.commit_part(&two).await.expect("commit a part");
    let shard = |index| segment.geometry.shard(index).expect("exists");
    // Of five shards three are needed.
    let lost = [0, 1, 4].map(|index| BadLocation {
        segment: segment.id,
        stripe: 0,
        shard: shard(index),
        node: nodes[index],
        fault: Fault::Missing,
    });
    store.report_bad_locations(&lost).await.expect("report");
    let both = request(&upload, &[&one, &two]);
    let refused = complete(store, &both).await;
    assert!(matches!(refused, Err(Error::InvalidPart { number: 2 })), "{refused:?}");
    assert_eq!(place.get(store, "k").await, None);
    let job = claimed(store, at(&segment, 0), LONG).await;
    let found = RepairDone {
        added: vec![(shard(4), location(nodes[4], 7))],
        again_after: Some(Duration::ZERO),
        ..RepairDone::default()
    };
    store.finish_repair(job.id, job.fence, &found).await.expect("finish");
    complete(store, &both).await.expect("still open, and three are there");
}

/// It is told the upload and the parts named, in order, and may refuse them.
pub async fn what_assemble_refuses_changes_nothing(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    let parts = [
        upload_part(store, place, upload.id, 4, b"four").await,
        upload_part(store, place, upload.id, 9, b"nine").await,
    ];
    upload_part(store, place, upload.id, 5, b"not named").await;
    let request = request(&upload, &[&parts[0], &parts[1]]);
    let refuse = |seen: &Multipart, given: &[Part]| {
        assert_eq!((seen, given), (&upload, parts.as_slice()));
        Err(PartsRefusal::TooSmall { number: 4 })
    };
    let refused = store.complete_multipart(&request, &refuse).await;
    assert!(
        matches!(refused, Err(Error::PartsRefused { reason: PartsRefusal::TooSmall { number: 4 } })),
        "{refused:?}"
    );
    assert_eq!(place.get(store, "k").await, None);
    assert_eq!(store.list_parts(upload.id, 0, 9).await.expect("list").len(), 3);
    complete(store, &request).await.expect("still open");
}

/// For every method; and its key is as it was.
pub async fn an_aborted_upload_is_gone(store: &dyn MetadataStore) {
    let place = place(store).await;
    let before = place.put(store, "k", b"before").await;
    let upload = open(store, place, "k").await;
    let part = upload_part(store, place, upload.id, 1, b"one").await;
    store.abort_multipart(place.bucket, &upload.key, upload.id).await.expect("abort");
    assert_eq!(store.multipart(upload.id).await.expect("read"), None);
    for answer in [
        complete(store, &request(&upload, &[&part])).await.map(|_| ()),
        store.commit_part(&new_part(place, upload.id, 2, b"two")).await.map(|_| ()),
        store.list_parts(upload.id, 0, 9).await.map(|_| ()),
        store.abort_multipart(place.bucket, &upload.key, upload.id).await,
    ] {
        assert!(matches!(answer, Err(Error::NoSuchUpload)), "{answer:?}");
    }
    assert_eq!(place.get(store, "k").await, Some(before));
}

/// An id under another key or bucket is unknown.
pub async fn an_upload_is_known_by_bucket_and_key_too(store: &dyn MetadataStore) {
    let (place, other) = (place(store).await, place(store).await);
    let upload = open(store, place, "k").await;
    let part = upload_part(store, place, upload.id, 1, b"one").await;
    let right = request(&upload, &[&part]);
    for (bucket, name) in [(other.bucket, "k"), (place.bucket, "l")] {
        let wrong = CompleteMultipart { bucket, key: key(name), ..right.clone() };
        let answer = complete(store, &wrong).await.map(|_| ());
        assert!(matches!(answer, Err(Error::NoSuchUpload)), "{answer:?}");
        let answer = store.abort_multipart(bucket, &key(name), upload.id).await;
        assert!(matches!(answer, Err(Error::NoSuchUpload)), "{answer:?}");
    }
    complete(store, &right).await.expect("complete");
    assert_eq!(store.multipart(fresh()).await.expect("read"), None);
}

/// And all who ask get that one.
pub async fn complete_twice_at_once_makes_one_object(store: &dyn MetadataStore) {
    let place = place(store).await;
    for round in 0..8 {
        let name = format!("k{round}");
        let upload = open(store, place, &name).await;
        let part = upload_part(store, place, upload.id, 1, b"one").await;
        let requests: Vec<_> = (0..4).map(|_| request(&upload, &[&part])).collect();
        let answers =
            futures::future::join_all(requests.iter().map(|request| complete(store, request))).await;
        let made = place.get(store, &name).await.expect("completed");
        for answer in answers {
            assert_eq!(answer.expect("complete"), made);
        }
    }
    let usage = store.bucket_usage(place.bucket).await.expect("usage");
    assert_eq!((usage.bytes.get(), usage.objects), (24, 8));
}

/// Either there is an object and abort was refused, or there is none and complete was.
pub async fn complete_and_abort_at_once_have_one_outcome(store: &dyn MetadataStore) {
    let place = place(store).await;
    for round in 0..16 {
        let name = format!("k{round}");
        let upload = open(store, place, &name).await;
        let part = upload_part(store, place, upload.id, 1, b"one").await;
        let request = request(&upload, &[&part]);
        let abort = store.abort_multipart(place.bucket, &upload.key, upload.id);
        let (made, aborted) = if round % 2 == 0 {
            futures::join!(complete(store, &request), abort)
        } else {
            let (aborted, made) = futures::join!(abort, complete(store, &request));
            (made, aborted)
        };
        let there = place.get(store, &name).await;
        match (made, aborted) {
            (Ok(made), Err(Error::NoSuchUpload)) => assert_eq!(there, Some(made)),
            (Err(Error::NoSuchUpload), Ok(())) => assert_eq!(there, None),
            outcomes => panic!("{outcomes:?}"),
        }
    }
}

/// To a range of it, which outlives the source.
pub async fn a_part_can_refer_to_an_object(store: &dyn MetadataStore) {
    let place = place(store).await;
    place.put(store, "source", b"0123456789").await;
    let Content::References(mut ranges) = place.references(store, "source").await else {
        panic!("references")
    };
    (ranges[0].offset, ranges[0].length) = (3, 4);
    let upload = open(store, place, "k").await;
    let copied = CommitPart {
        size: ByteCount::bytes(4),
        content: Content::References(ranges.clone()),
        ..new_part(place, upload.id, 1, b"")
    };
    let copied = store.commit_part(&copied).await.expect("commit a part");
    let written = upload_part(store, place, upload.id, 2, b"tail").await;
    ranges[0].segment = fresh();
    let nothing = CommitPart {
        size: ByteCount::bytes(4),
        content: Content::References(ranges),
        ..new_part(place, upload.id, 3, b"")
    };
    let refused = store.commit_part(&nothing).await;
    assert!(matches!(refused, Err(Error::SourceGone)), "{refused:?}");
    place.delete(store, &["source"]).await;
    complete(store, &request(&upload, &[&copied, &written])).await.expect("complete");
    let layout =
        store.object_layout(place.bucket, &key("k"), Some(2..6)).await.expect("layout").expect("is there");
    let at: Vec<_> = layout.extents.iter().map(|e| (e.object_offset, e.segment_offset, e.length)).collect();
    assert_eq!(at, [(0, 3, 4), (4, 0, 4)]);
}

/// As an object's commit does: what a former life of a node stored is left out, and the part refused if it must survive more than
/// the rest does.
pub async fn a_part_promises_what_is_left(store: &dyn MetadataStore) {
    let place = place(store).await;
    let nodes: Vec<RegisterNode> = (0..5).map(|_| new_node()).collect();
    for node in &nodes {
        store.register_node(node).await.expect("register");
    }
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let anew = RegisterNode { incarnation: Uuid::new_v4(), ..nodes[0].clone() };
    store.register_node(&anew).await.expect("register again");
    let upload = open(store, place, "k").await;
    let part = |number: u32, ack_tolerance: u8| {
        let segment =
            NewSegment { ack_tolerance, acked_tolerance: ack_tolerance, ..place.striped(coded(), 1, &ids) };
        let part = CommitPart {
            size: segment.length,
            content: Content::New(segment.clone()),
            ..new_part(place, upload.id, number, b"")
        };
        (part, segment)
    };
    let (kept, segment) = part(1, 1);
    store.commit_part(&kept).await.expect("one may be lost");
    let held = state(store, at(&segment, 0)).await.expect("live").locations;
    assert_eq!(held.iter().map(|at| at.node).collect::<Vec<_>>(), ids[1..]);
    let refused = store.commit_part(&part(2, 2).0).await;
    assert!(matches!(refused, Err(Error::Stale { .. })), "{refused:?}");
    let listed = store.list_parts(upload.id, 0, 9).await.expect("list parts");
    assert_eq!(listed.iter().map(|part| part.number).collect::<Vec<_>>(), [1]);
}

/// Unless it is gone because that part was recorded: then the answer is the same.
pub async fn a_part_whose_intent_is_gone_is_refused(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = open(store, place, "k").await;
    let intent = NewUpload {
        id: fresh(),
        owner: place.owner,
        bucket: place.bucket,
        key: key("k"),
        lease: Duration::from_secs(3600),
        reserve: ByteCount::default(),
    };
    store.begin_upload(&intent).await.expect("begin");
    let part = CommitPart { intent: Some(intent.id), ..new_part(place, upload.id, 1, b"one") };
    let made = store.commit_part(&part).await.expect("commit a part");
    assert_eq!(store.commit_part(&part).await.expect("asked again"), made);
    let late = CommitPart { intent: Some(fresh()), ..new_part(place, upload.id, 1, b"late") };
    let refused = store.commit_part(&late).await;
    assert!(matches!(refused, Err(Error::UploadGone)), "{refused:?}");
    assert_eq!(store.list_parts(upload.id, 0, 9).await.expect("list"), [made]);
}

/// Refused, the upload stays open.
pub async fn complete_keeps_preconditions_and_quota(store: &dyn MetadataStore) {
    let place = place_with_quota(store, Some(ByteCount::bytes(10))).await;
    let upload = open(store, place, "k").await;
    let part = upload_part(store, place, upload.id, 1, b"1234567").await;
    place.put(store, "k", b"x").await;
    let request = request(&upload, &[&part]);
    let absent = CompleteMultipart { precondition: Precondition::Absent, ..request.clone() };
    let refused = complete(store, &absent).await;
    assert!(matches!(refused, Err(Error::PreconditionFailed)), "{refused:?}");
    place.put(store, "l", b"12345").await;
    let refused = complete(store, &request).await;
    assert!(matches!(refused, Err(Error::QuotaExceeded { .. })), "{refused:?}");
    place.delete(store, &["k", "l"]).await;
    complete(store, &absent).await.expect("there is room, and no object");
}

/// By key, then by time; folded like objects; ended ones are left out.
pub async fn open_uploads_are_listed_in_pages(store: &dyn MetadataStore) {
    let (place, other) = (place(store).await, place(store).await);
    open(store, other, "a").await;
    let mut want: Vec<(String, UploadId)> = Vec::new();
    for name in ["b", "a", "a", "d/1", "d/2", "c", "a", "e\u{10ffff}", "e"] {
        want.push((name.to_owned(), open(store, place, name).await.id));
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let ended = open(store, place, "a").await;
    store.abort_multipart(place.bucket, &ended.key, ended.id).await.expect("abort");
    want.sort_by(|a, b| a.0.cmp(&b.0)); // stable: in the order of their creation
    for limit in [1, 2, 3, 100] {
        assert_eq!(all_uploads(store, place, "", None, limit).await.0, want, "limit {limit}");
        let (uploads, prefixes) = all_uploads(store, place, "", Some("/"), limit).await;
        let unfolded: Vec<_> = want.iter().filter(|(name, _)| !name.contains('/')).cloned().collect();
        assert_eq!((uploads, prefixes), (unfolded, vec!["d/".to_owned()]), "limit {limit}");
        let (uploads, prefixes) = all_uploads(store, place, "d/", Some("/"), limit).await;
        assert_eq!((uploads.len(), prefixes.len()), (2, 0));
    }
    let after_a = ListMultiparts { after_key: Some("a".to_owned()), ..uploads(place, "", None, 100) };
    let page = store.list_multiparts(&after_a).await.expect("list");
    assert_eq!((page.uploads.len(), page.uploads[0].key.as_str(), page.next), (6, "b", None));
}

/// And no more, in all its buckets, however many ask at once; those that ended count no more.
pub async fn an_owner_has_so_many_open_uploads(store: &dyn MetadataStore) {
    let (place, other) = (place(store).await, place(store).await);
    let second = store.create_bucket(&super::new_bucket(place.owner), MANY).await.expect("make a bucket");
    let beside = Place { bucket: second.id, ..place };
    let wanted: Vec<_> = (0..8).map(|n| new_upload(if n % 2 == 0 { place } else { beside }, "k")).collect();
    let asked =
        futures::future::join_all(wanted.iter().map(|upload| store.create_multipart(upload, 3))).await;
    let too_many = |answer: &Result<Multipart>| matches!(answer, Err(Error::TooManyUploads { max: 3 }));
    assert_eq!(asked.iter().filter(|answer| too_many(answer)).count(), 5, "{asked:?}");
    store.create_multipart(&new_upload(other, "k"), 3).await.expect("another has its own count");
    let made: Vec<Multipart> = asked.into_iter().flatten().collect();
    store.abort_multipart(made[0].bucket, &made[0].key, made[0].id).await.expect("abort");
    let part = upload_part(store, place, made[1].id, 1, b"one").await;
    complete(store, &request(&made[1], &[&part])).await.expect("complete");
    for _ in 0..2 {
        store.create_multipart(&new_upload(place, "l"), 3).await.expect("there is room for two");
    }
    assert!(too_many(&store.create_multipart(&new_upload(place, "l"), 3).await));
}

fn uploads(place: Place, prefix: &str, delimiter: Option<&str>, limit: usize) -> ListMultiparts {
    ListMultiparts {
        bucket: place.bucket,
        prefix: prefix.to_owned(),
        delimiter: delimiter.map(str::to_owned),
        after_key: None,
        after_upload: None,
        limit,
    }
}

async fn all_uploads(
    store: &dyn MetadataStore,
    place: Place,
    prefix: &str,
    delimiter: Option<&str>,
    limit: usize,
) -> (Vec<(String, UploadId)>, Vec<String>) {
    let mut query = uploads(place, prefix, delimiter, limit);
    let (mut found, mut prefixes) = (Vec::new(), Vec::new());
    loop {
        let page = store.list_multiparts(&query).await.expect("list");
        assert!(page.uploads.len() + page.prefixes.len() <= limit);
        found.extend(page.uploads.into_iter().map(|upload| (upload.key.as_str().to_owned(), upload.id)));
        prefixes.extend(page.prefixes);
        let Some((key, upload)) = page.next else { return (found, prefixes) };
        (query.after_key, query.after_upload) = (Some(key), upload);
    }
}
