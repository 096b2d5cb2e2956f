//! What is under a key, what is to be there instead, and whether it may: the same for both engines.
//!
//! Pure. Not here: how a key is locked, and SQL (`postgres`, `sqlite`).

use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::{BucketId, ByteCount, FileId, OwnerId, Timestamp, UploadId};
use uuid::Uuid;

use crate::model::{Attributes, CommitObject, Object, Precondition};
use crate::{Result, check_quota};

/// The version that is current now.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) file: Uuid,
    pub(crate) version_seq: i64,
    pub(crate) owner: OwnerId,
    pub(crate) size: ByteCount,
    pub(crate) etag: String,
    pub(crate) is_delete_marker: bool,
}

/// A version to be made current.
#[derive(Debug)]
pub(crate) struct NewVersion<'a> {
    pub(crate) file: FileId,
    pub(crate) upload: UploadId,
    pub(crate) bucket: BucketId,
    pub(crate) key: &'a ObjectKey,
    pub(crate) owner: OwnerId,
    pub(crate) precondition: &'a Precondition,
    pub(crate) size: ByteCount,
    pub(crate) etag: &'a str,
    pub(crate) content_hash: &'a [u8; 32],
    pub(crate) attributes: &'a Attributes,
    pub(crate) part_sizes: Vec<u64>,
}

impl<'a> NewVersion<'a> {
    pub(crate) fn of(commit: &'a CommitObject) -> Self {
        Self {
            file: commit.file,
            upload: commit.upload,
            bucket: commit.bucket,
            key: &commit.key,
            owner: commit.owner,
            precondition: &commit.precondition,
            size: commit.size,
            etag: &commit.etag,
            content_hash: &commit.content_hash,
            attributes: &commit.attributes,
            part_sizes: Vec::new(),
        }
    }

    /// As readers will see it.
    pub(crate) fn into_object(self, modified_at: Timestamp) -> Object {
        Object {
            file: self.file,
            bucket: self.bucket,
            key: self.key.clone(),
            owner: self.owner,
            version_id: "null".to_owned(),
            size: self.size,
            etag: self.etag.to_owned(),
            content_hash: *self.content_hash,
            attributes: self.attributes.clone(),
            part_sizes: self.part_sizes,
            modified_at,
        }
    }
}

/// What readers see of the current version.
pub(crate) fn visible(current: Option<&Current>) -> Option<&Current> {
    current.filter(|current| !current.is_delete_marker)
}

/// Whether a version may take the key of `current`, where its owner has this quota and has used so much of it: what it
/// replaces of the same owner counts as free, and what is no longer than that is always let in.
pub(crate) fn admit(
    current: Option<&Current>,
    quota: Option<ByteCount>,
    used: ByteCount,
    new: &NewVersion<'_>,
) -> Result<()> {
    let visible = visible(current);
    new.precondition.judge(visible.map(|current| current.etag.as_str()))?;
    let own = visible.filter(|current| current.owner == new.owner);
    let freed = own.map_or(ByteCount::ZERO, |current| current.size);
    if new.size <= freed {
        return Ok(());
    }
    check_quota(quota, used.saturating_sub(freed), new.size)
}
