//! Buckets: made, listed, deleted. A bucket's placement profile is chosen once, when it is made.

use cyxcloud_core::name::BucketName;
use cyxcloud_core::profile::Profile;
use cyxcloud_core::{BucketId, Timestamp};
use cyxcloud_metadata::Error as MetadataError;
use cyxcloud_metadata::model::{Bucket, Usage};

use super::ObjectService;
use super::error::{Error, Result};
use crate::events::Event;
use crate::limits::{Caller, Need};

impl ObjectService {
    /// Makes a bucket with the placement profile named, `standard` if none is. `BucketOwned`, `BucketTaken`,
    /// `TooManyBuckets`.
    pub async fn create_bucket(
        &self,
        caller: &Caller,
        name: BucketName,
        profile: Option<&str>,
    ) -> Result<Bucket> {
        if !caller.may(&name, Need::Manage) {
            return Err(Error::NotAllowed);
        }
        let profile = profile.unwrap_or(Profile::STANDARD.name);
        let profile = Profile::by_name(profile).ok_or_else(|| Error::NoSuchProfile(profile.to_owned()))?;
        let bucket = Bucket {
            id: BucketId::from_random(rand::random()),
            name,
            owner: caller.owner,
            profile: profile.name.to_owned(),
            created_at: Timestamp::default(),
        };
        match self.metadata.create_bucket(&bucket, self.config.buckets_max).await {
            Err(MetadataError::BucketExists { owner }) if owner == caller.owner => Err(Error::BucketOwned),
            other => {
                let bucket = other?;
                self.tell(bucket.owner, Event::BucketCreated { bucket: bucket.name.to_string() });
                Ok(bucket)
            }
        }
    }

    /// The caller's buckets in byte order of name.
    pub async fn buckets(&self, caller: &Caller) -> Result<Vec<Bucket>> {
        let mut buckets = self.metadata.list_buckets(caller.owner).await?;
        buckets.retain(|bucket| caller.may(&bucket.name, Need::Look));
        Ok(buckets)
    }

    /// Deletes an empty bucket.
    pub async fn delete_bucket(&self, caller: &Caller, name: &BucketName) -> Result<()> {
        let bucket = self.bucket(caller, name, Need::Manage).await?;
        self.metadata.delete_bucket(bucket.id).await?;
        self.tell(bucket.owner, Event::BucketDeleted { bucket: name.to_string() });
        self.recent.forget(name).await;
        Ok(())
    }

    /// What the bucket holds now.
    pub async fn bucket_usage(&self, bucket: &Bucket) -> Result<Usage> {
        Ok(self.metadata.bucket_usage(bucket.id).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::CreateUpload;
    use crate::objects::testing::service;

    #[tokio::test]
    async fn an_owner_has_as_many_buckets_and_uploads_as_one_may_have() {
        let (mut service, bucket, key) = service().await;
        (service.config.buckets_max, service.config.uploads_max) = (2, 1);
        let caller = Caller::from(bucket.owner);
        let make = async |name: &str| {
            let made = service.create_bucket(&caller, name.parse().expect("valid"), None).await;
            made.map(|bucket| bucket.name)
        };
        make("second").await.expect("there may be two");
        assert!(matches!(make("third").await, Err(Error::TooManyBuckets { max: 2 })));
        assert!(matches!(make("second").await, Err(Error::BucketOwned)));
        let create = CreateUpload {
            caller: caller.clone(),
            bucket: bucket.name.clone(),
            key,
            attributes: Default::default(),
            algorithm: None,
            checksum_type: None,
        };
        service.create_upload(create.clone()).await.expect("there may be one");
        let refused = service.create_upload(create).await;
        assert!(matches!(refused, Err(Error::TooManyUploads { max: 1 })), "{refused:?}");
    }
}
