//! Listings: of objects, of open multipart uploads and of their parts.

use cyxcloud_core::UploadId;
use cyxcloud_core::name::BucketName;
use cyxcloud_metadata::model::{ListMultiparts, ListObjects, ListPage, Multipart, MultipartPage, Part};

use super::error::Result;
use super::{ObjectService, PAGE_MAX, UploadKey};
use crate::limits::{Caller, Need};

/// What to list of a bucket's open multipart uploads.
#[derive(Clone, Debug)]
pub struct ListUploads {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Fold by this.
    pub delimiter: Option<String>,
    /// Only uploads of keys after this one, or of this key with ids after `after_upload`.
    pub after_key: Option<String>,
    /// See `after_key`.
    pub after_upload: Option<UploadId>,
    /// Page size.
    pub limit: usize,
}

/// What to list of an upload's parts.
#[derive(Clone, Debug)]
pub struct ListParts {
    /// Which upload.
    pub upload: UploadKey,
    /// Only parts after this number.
    pub after: u32,
    /// Page size.
    pub limit: usize,
}

/// A page of parts.
#[derive(Clone, Debug)]
pub struct PartsPage {
    /// The upload.
    pub upload: Multipart,
    /// In order of number.
    pub parts: Vec<Part>,
    /// Whether there are more.
    pub truncated: bool,
}

impl ObjectService {
    /// A page of a bucket's objects. `limit` is cut to [`PAGE_MAX`]; zero answers nothing and is no end.
    pub async fn list(
        &self,
        caller: &Caller,
        bucket: &BucketName,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<ListPage> {
        let bucket = self.bucket(caller, bucket, Need::List(prefix)).await?;
        if limit == 0 {
            return Ok(ListPage::default());
        }
        let query = ListObjects {
            bucket: bucket.id,
            prefix: prefix.to_owned(),
            delimiter: delimiter.filter(|delimiter| !delimiter.is_empty()).map(str::to_owned),
            after: after.filter(|after| !after.is_empty()).map(str::to_owned),
            limit: limit.min(PAGE_MAX),
        };
        Ok(self.metadata.list_objects(&query).await?)
    }

    /// A page of a bucket's open multipart uploads.
    pub async fn list_uploads(
        &self,
        caller: &Caller,
        bucket: &BucketName,
        list: ListUploads,
    ) -> Result<MultipartPage> {
        let bucket = self.bucket(caller, bucket, Need::List(&list.prefix)).await?;
        if list.limit == 0 {
            return Ok(MultipartPage::default());
        }
        let query = ListMultiparts {
            bucket: bucket.id,
            prefix: list.prefix,
            delimiter: list.delimiter.filter(|delimiter| !delimiter.is_empty()),
            after_key: list.after_key.filter(|after| !after.is_empty()),
            after_upload: list.after_upload,
            limit: list.limit.min(PAGE_MAX),
        };
        Ok(self.metadata.list_multiparts(&query).await?)
    }

    /// A page of an upload's parts.
    pub async fn list_parts(&self, list: &ListParts) -> Result<PartsPage> {
        let (_, upload) = self.open_upload(&list.upload, Need::Read(&list.upload.key)).await?;
        let limit = list.limit.min(PAGE_MAX);
        // One more than asked for tells whether there are more.
        let mut parts = self.metadata.list_parts(upload.id, list.after, limit + 1).await?;
        let truncated = parts.len() > limit && limit > 0;
        parts.truncate(limit);
        Ok(PartsPage { upload, parts, truncated })
    }
}
