//! Uploads under way: their lease, their end, and the commit that is asked twice.

use std::time::Duration;

use cyxcloud_core::UploadId;

use super::{Place, fresh, key, place};
use crate::model::{CommitObject, Content, NewUpload, Precondition};
use crate::{Error, MetadataStore};

const LONG: Duration = Duration::from_secs(3600);

async fn begin(store: &dyn MetadataStore, place: Place, name: &str, lease: Duration) -> UploadId {
    let upload = NewUpload {
        id: fresh(),
        owner: place.owner,
        bucket: place.bucket,
        key: key(name),
        lease,
        reserve: cyxcloud_core::ByteCount::default(),
    };
    store.begin_upload(&upload).await.expect("begin an upload");
    upload.id
}

fn commit(place: Place, name: &str, upload: UploadId) -> CommitObject {
    CommitObject { upload, has_intent: true, ..place.commit(name, Content::New(place.inline(b"body"))) }
}

/// Lets time pass and collects until the upload is collected.
async fn expire(store: &dyn MetadataStore) {
    tokio::time::sleep(Duration::from_millis(20)).await;
    while store.expire_uploads(100).await.expect("collect uploads") > 0 {}
}

/// Whoever lost the first answer learns it from the second.
pub async fn a_commit_asked_again_answers_the_same(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = begin(store, place, "with", LONG).await;
    let first = CommitObject { precondition: Precondition::Absent, ..commit(place, "with", upload) };
    let second = CommitObject {
        precondition: Precondition::Absent,
        ..place.commit("without", Content::New(place.inline(b"body")))
    };
    for asked in [first, second] {
        let made = store.commit_object(&asked).await.expect("commit");
        let again = store.commit_object(&asked).await.expect("commit again");
        assert_eq!(again, made);
        assert_eq!(place.get(store, asked.key.as_str()).await, Some(made));
    }
    assert_eq!(store.bucket_usage(place.bucket).await.expect("read usage").objects, 2);
}

/// So that the same upload can be tried again.
pub async fn a_failed_commit_leaves_its_intent(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = begin(store, place, "k", LONG).await;
    let refused = CommitObject { precondition: Precondition::Exists, ..commit(place, "k", upload) };
    let answer = store.commit_object(&refused).await;
    assert!(matches!(answer, Err(Error::NoSuchKey)), "{answer:?}");
    let accepted = CommitObject { precondition: Precondition::None, ..refused };
    store.commit_object(&accepted).await.expect("commit with the intent that is still there");
    let ended = store.renew_upload(upload, LONG).await;
    assert!(matches!(ended, Err(Error::UploadGone)), "{ended:?}");
}

/// The lease counts from the renewal.
pub async fn a_renewed_upload_stays(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = begin(store, place, "k", Duration::from_millis(1500)).await;
    store.renew_upload(upload, LONG).await.expect("renew");
    tokio::time::sleep(Duration::from_millis(1600)).await;
    expire(store).await;
    store.commit_object(&commit(place, "k", upload)).await.expect("commit");
    assert!(place.get(store, "k").await.is_some());
}

/// And cancelling it again, or cancelling what never was, is fine.
pub async fn a_cancelled_upload_is_gone(store: &dyn MetadataStore) {
    let place = place(store).await;
    let upload = begin(store, place, "k", LONG).await;
    store.cancel_upload(upload).await.expect("cancel");
    store.cancel_upload(upload).await.expect("cancel again");
    store.cancel_upload(fresh()).await.expect("cancel nothing");
    let late = store.commit_object(&commit(place, "k", upload)).await;
    assert!(matches!(late, Err(Error::UploadGone)), "{late:?}");
    assert_eq!(place.get(store, "k").await, None);
}

/// It cannot be renewed, and its commit makes nothing visible and replaces nothing.
pub async fn an_upload_that_ran_out_is_gone(store: &dyn MetadataStore) {
    let place = place(store).await;
    let before = place.put(store, "k", b"before").await;
    let upload = begin(store, place, "k", Duration::ZERO).await;
    expire(store).await;
    let renewed = store.renew_upload(upload, LONG).await;
    assert!(matches!(renewed, Err(Error::UploadGone)), "{renewed:?}");
    let late = store.commit_object(&commit(place, "k", upload)).await;
    assert!(matches!(late, Err(Error::UploadGone)), "{late:?}");
    assert_eq!(place.get(store, "k").await, Some(before));
}
