//! Deletes: metadata only; what is no longer referenced is collected later.

use cyxcloud_core::crash_point;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_metadata::model::{Object, Precondition};

use super::ObjectService;
use super::error::Result;
use crate::limits::{Caller, Need};

impl ObjectService {
    /// Deletes the object under a key, if there is one.
    pub async fn delete(
        &self,
        caller: &Caller,
        bucket: &BucketName,
        key: &ObjectKey,
        precondition: &Precondition,
    ) -> Result<Option<Object>> {
        let bucket = self.bucket(caller, bucket, Need::Write(key)).await?;
        let mut deleted =
            self.metadata.delete_objects(bucket.id, std::slice::from_ref(key), precondition).await?;
        crash_point!("delete.committed");
        self.tell_deleted(&bucket, deleted.iter().flatten());
        Ok(deleted.pop().flatten())
    }

    /// Deletes the objects under these keys; keys without one are as good as deleted.
    pub async fn delete_many(&self, caller: &Caller, bucket: &BucketName, keys: &[ObjectKey]) -> Result<()> {
        if let Some(other) = keys.iter().find(|key| !caller.may(bucket, Need::Write(key))) {
            self.bucket(caller, bucket, Need::Write(other)).await?;
        }
        let bucket = self.bucket(caller, bucket, Need::Look).await?;
        if !keys.is_empty() {
            let deleted = self.metadata.delete_objects(bucket.id, keys, &Precondition::None).await?;
            self.tell_deleted(&bucket, deleted.iter().flatten());
        }
        Ok(())
    }
}
