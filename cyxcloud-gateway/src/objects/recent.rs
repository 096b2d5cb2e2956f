//! Buckets that were looked up a moment ago, so that a small request need not look them up again.
//!
//! What is remembered is the row as it was: whose bucket it is and how it keeps things never change, but it may have been
//! deleted since, also by another gateway, and made anew by somebody. So it may say where something is, and never that
//! there is nothing: whoever finds nothing in it asks [`ObjectService::made_anew`]. Refusals are not remembered.

use std::time::Duration;

use cyxcloud_core::name::BucketName;
use cyxcloud_metadata::model::Bucket;
use moka::future::Cache;

use super::ObjectService;
use super::error::{Error, Result};
use crate::limits::{Caller, Need};

/// How long a bucket is remembered.
const REMEMBERED: Duration = Duration::from_secs(2);
/// How many are at most.
const REMEMBERED_MAX: u64 = 1_000;

/// The buckets that are remembered.
#[derive(Clone, Debug)]
pub(super) struct RecentBuckets(Cache<BucketName, Bucket>);

impl RecentBuckets {
    pub(super) fn new() -> Self {
        Self(Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED).build())
    }

    pub(super) async fn remember(&self, bucket: &Bucket) {
        self.0.insert(bucket.name.clone(), bucket.clone()).await;
    }

    pub(super) async fn forget(&self, name: &BucketName) {
        self.0.invalidate(name).await;
    }
}

/// A bucket, and whether it may have been deleted since it was looked up.
pub(super) struct Recent {
    pub(super) bucket: Bucket,
    remembered: bool,
}

impl From<Bucket> for Recent {
    /// Just looked up.
    fn from(bucket: Bucket) -> Self {
        Self { bucket, remembered: false }
    }
}

impl ObjectService {
    /// The caller's bucket of this name as it was a moment ago.
    pub(super) async fn recent_bucket(
        &self,
        caller: &Caller,
        name: &BucketName,
        need: Need<'_>,
    ) -> Result<Recent> {
        if !caller.may(name, need) {
            return Err(Error::NotAllowed);
        }
        match self.recent.0.get(name).await.filter(|bucket| bucket.owner == caller.owner) {
            Some(bucket) => Ok(Recent { bucket, remembered: true }),
            None => Ok(self.bucket(caller, name, need).await?.into()),
        }
    }

    /// The bucket that has the name now, if it is another one. `NoSuchBucket` and `AccessDenied` as for any bucket.
    pub(super) async fn made_anew(
        &self,
        caller: &Caller,
        recent: &Recent,
        need: Need<'_>,
    ) -> Result<Option<Recent>> {
        if !recent.remembered {
            return Ok(None);
        }
        let name = &recent.bucket.name;
        self.recent.forget(name).await;
        let bucket = self.bucket(caller, name, need).await?;
        Ok((bucket.id != recent.bucket.id).then(|| bucket.into()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cyxcloud_core::BucketId;
    use cyxcloud_core::name::ObjectKey;
    use cyxcloud_metadata::model::{Object, Precondition};

    use super::*;
    use crate::objects::testing::service;
    use crate::objects::{Claims, Error, PutObject, ReadObject};

    fn read(bucket: &Bucket, key: &ObjectKey) -> ReadObject {
        ReadObject {
            caller: bucket.owner.into(),
            bucket: bucket.name.clone(),
            key: key.clone(),
            conditions: Default::default(),
            select: Default::default(),
        }
    }

    async fn put(service: &ObjectService, bucket: &Bucket, key: &ObjectKey) -> Result<Object> {
        let put = PutObject {
            caller: bucket.owner.into(),
            bucket: bucket.name.clone(),
            key: key.clone(),
            attributes: Default::default(),
            precondition: Precondition::None,
            claims: Claims { length: Some(5), ..Claims::default() },
            stripe_size: None,
        };
        service.put(put, futures::stream::iter([Ok(Bytes::from_static(b"hello"))])).await
    }

    /// As another gateway does it.
    async fn make_anew(service: &ObjectService, bucket: &Bucket, owner: cyxcloud_core::OwnerId) -> Bucket {
        service.metadata.delete_bucket(bucket.id).await.expect("is empty");
        let id = BucketId::from_random(rand::random());
        let anew = Bucket { id, owner, ..bucket.clone() };
        service.metadata.create_bucket(&anew, 1000).await.expect("makes it anew")
    }

    #[tokio::test]
    async fn what_is_not_in_a_remembered_bucket_is_looked_for_in_the_new_one() {
        let (service, bucket, key) = service().await;
        service.bucket(&bucket.owner.into(), &bucket.name, Need::Look).await.expect("is remembered");
        let anew = make_anew(&service, &bucket, bucket.owner).await;
        let object = put(&service, &bucket, &key).await.expect("goes to the new one");
        assert_eq!(object.bucket, anew.id);
        service.recent.remember(&bucket).await;
        assert_eq!(service.head(&read(&bucket, &key)).await.expect("is there").object, object);
        service.recent.remember(&bucket).await;
        assert_eq!(service.get(&read(&bucket, &key)).await.expect("is there").0.object, object);
        service.recent.remember(&bucket).await;
        let other = ObjectKey::new("other").expect("valid");
        assert!(matches!(service.get(&read(&bucket, &other)).await, Err(Error::NoSuchKey)));
    }

    #[tokio::test]
    async fn a_remembered_bucket_that_is_gone_is_gone() {
        let (service, bucket, key) = service().await;
        service.metadata.delete_bucket(bucket.id).await.expect("is empty");
        service.recent.remember(&bucket).await;
        assert!(matches!(service.head(&read(&bucket, &key)).await, Err(Error::NoSuchBucket)));
        service.recent.remember(&bucket).await;
        assert!(matches!(service.get(&read(&bucket, &key)).await, Err(Error::NoSuchBucket)));
        service.recent.remember(&bucket).await;
        assert!(matches!(put(&service, &bucket, &key).await, Err(Error::NoSuchBucket)));
    }

    #[tokio::test]
    async fn a_bucket_is_remembered_for_its_owner_only() {
        let (service, bucket, key) = service().await;
        service.bucket(&bucket.owner.into(), &bucket.name, Need::Look).await.expect("is remembered");
        let stranger = cyxcloud_core::OwnerId::from_random([9; 16]);
        let look = ReadObject { caller: stranger.into(), ..read(&bucket, &key) };
        assert!(matches!(service.get(&look).await, Err(Error::AccessDenied)));
        service.delete_bucket(&bucket.owner.into(), &bucket.name).await.expect("is empty");
        assert!(service.recent.0.get(&bucket.name).await.is_none(), "it is forgotten with its deletion");
    }
}
