//! Buckets.

use cyxcloud_core::UploadId;

use super::multipart::open;
use super::{MANY, fresh, key, new_bucket, new_owner, place};
use crate::model::{Bucket, Content};
use crate::{Error, MetadataStore};

/// Of many who want it, one gets it; the others learn whose it is.
pub async fn a_bucket_name_is_taken_once(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let wanted = new_bucket(owner);
    assert_eq!(store.bucket(&wanted.name).await.expect("read a bucket"), None);
    let rivals: Vec<Bucket> = (0..8).map(|_| Bucket { id: fresh(), ..wanted.clone() }).collect();
    let asked =
        futures::future::join_all(rivals.iter().map(|bucket| store.create_bucket(bucket, MANY))).await;
    let mut made = Vec::new();
    for answer in asked {
        match answer {
            Ok(bucket) => made.push(bucket),
            Err(Error::BucketExists { owner: holder }) => assert_eq!(holder, owner),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(made.len(), 1);
    assert_eq!(made[0], Bucket { id: made[0].id, created_at: made[0].created_at, ..wanted.clone() });
    assert_eq!(store.bucket(&wanted.name).await.expect("read a bucket"), made.pop());
}

/// In byte order.
pub async fn buckets_are_listed_by_name_for_their_owner_only(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    assert!(store.list_buckets(owner).await.expect("list buckets").is_empty());
    let stem = new_bucket(owner).name;
    for tail in ["b", "a", "a.b", "a-b", "0"] {
        let name = format!("{stem}{tail}").parse().expect("a good name");
        store.create_bucket(&Bucket { name, ..new_bucket(owner) }, MANY).await.expect("make a bucket");
    }
    place(store).await;
    let names: Vec<String> = store
        .list_buckets(owner)
        .await
        .expect("list buckets")
        .into_iter()
        .map(|b| b.name.to_string())
        .collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!((names.len(), &names), (5, &sorted));
}

/// And no more, however many ask at once; who has them all still learns that a name is taken.
pub async fn an_owner_has_so_many_buckets(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let wanted: Vec<Bucket> = (0..8).map(|_| new_bucket(owner)).collect();
    let asked = futures::future::join_all(wanted.iter().map(|bucket| store.create_bucket(bucket, 3))).await;
    let too_many = |answer: &Result<Bucket, Error>| matches!(answer, Err(Error::TooManyBuckets { max: 3 }));
    assert_eq!(
        (asked.iter().flatten().count(), asked.iter().filter(|answer| too_many(answer)).count()),
        (3, 5)
    );
    let have = store.list_buckets(owner).await.expect("list buckets");
    assert_eq!(have.len(), 3);
    let again = store.create_bucket(&Bucket { id: fresh(), ..have[0].clone() }, 3).await;
    assert!(matches!(again, Err(Error::BucketExists { owner: holder }) if holder == owner), "{again:?}");
    assert!(too_many(&store.create_bucket(&new_bucket(owner), 3).await));
    store.delete_bucket(have[0].id).await.expect("delete an empty bucket");
    store.create_bucket(&new_bucket(owner), 3).await.expect("there is room for one");
}

/// While it holds an object or an open multipart upload.
pub async fn a_bucket_in_use_stays(store: &dyn MetadataStore) {
    let place = place(store).await;
    place.put(store, "k", b"x").await;
    let refused = store.delete_bucket(place.bucket).await;
    assert!(matches!(refused, Err(Error::BucketNotEmpty)), "{refused:?}");
    place.delete(store, &["k"]).await;
    let upload: UploadId = open(store, place, "m").await.id;
    let refused = store.delete_bucket(place.bucket).await;
    assert!(matches!(refused, Err(Error::BucketNotEmpty)), "{refused:?}");
    store.abort_multipart(place.bucket, &key("m"), upload).await.expect("abort");
    store.delete_bucket(place.bucket).await.expect("delete an empty bucket");
    let again = store.delete_bucket(place.bucket).await;
    assert!(matches!(again, Err(Error::NoSuchBucket)), "{again:?}");
}

/// Its name is free again, for a bucket with another id.
pub async fn a_deleted_bucket_takes_nothing_more(store: &dyn MetadataStore) {
    let owner = store.ensure_owner(&new_owner(None)).await.expect("make an owner").id;
    let bucket = store.create_bucket(&new_bucket(owner), MANY).await.expect("make a bucket");
    let place = super::Place { owner, bucket: bucket.id };
    store.delete_bucket(bucket.id).await.expect("delete an empty bucket");
    assert_eq!(store.bucket(&bucket.name).await.expect("read a bucket"), None);
    let late = store.commit_object(&place.commit("k", Content::New(place.inline(b"x")))).await;
    assert!(matches!(late, Err(Error::NoSuchBucket)), "{late:?}");
    let again = Bucket { id: fresh(), ..bucket };
    store.create_bucket(&again, MANY).await.expect("the name is free");
    assert_eq!(place.get(store, "k").await, None);
}
