//! Multipart uploads, until they are completed: created, filled part by part, aborted.
//!
//! Each part is an upload with an intent of its own; the multipart upload itself has no lease.

use bytes::Bytes;
use cyxcloud_core::crash_point;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::stripe::StripeSize;
use cyxcloud_core::{ByteCount, Timestamp, UploadId};
use cyxcloud_metadata::model::{Attributes, Bucket, CommitPart, Content, Multipart, Part};
use futures::Stream;

use super::checksums::Algorithm;
use super::error::{BoxError, Error, Result};
use super::put::{Claims, Intent, Target};
use super::{ObjectService, new_upload_id};
use crate::events::progress::progress;
use crate::limits::{Caller, Need};

/// S3's word for a checksum over the parts' checksums.
pub(super) const COMPOSITE: &str = "COMPOSITE";
/// S3's word for a checksum over the object.
pub(super) const FULL_OBJECT: &str = "FULL_OBJECT";

/// Opens a multipart upload.
#[derive(Clone, Debug)]
pub struct CreateUpload {
    /// Who uploads.
    pub caller: Caller,
    /// Where to.
    pub bucket: BucketName,
    /// Under which key.
    pub key: ObjectKey,
    /// Headers and metadata of the object to be.
    pub attributes: Attributes,
    /// Checksum to keep of every part and of the object.
    pub algorithm: Option<Algorithm>,
    /// `COMPOSITE` or `FULL_OBJECT`; each algorithm has its own default.
    pub checksum_type: Option<String>,
}

/// Names an open multipart upload; all three must agree.
#[derive(Clone, Debug)]
pub struct UploadKey {
    /// Who asks.
    pub caller: Caller,
    /// Where.
    pub bucket: BucketName,
    /// Under which key.
    pub key: ObjectKey,
    /// The id that clients see.
    pub id: UploadId,
}

/// Uploads one part.
#[derive(Debug)]
pub struct PutPart {
    /// Of which upload.
    pub upload: UploadKey,
    /// 1 to 10,000.
    pub number: u32,
    /// What is said of the body.
    pub claims: Claims,
    /// Plain bytes per stripe, if the part wants its own.
    pub stripe_size: Option<StripeSize>,
}

impl ObjectService {
    /// Opens a multipart upload.
    pub async fn create_upload(&self, create: CreateUpload) -> Result<Multipart> {
        let bucket = self.bucket(&create.caller, &create.bucket, Need::Write(&create.key)).await?;
        let checksum_type = checksum_type(create.algorithm, create.checksum_type)?;
        let upload = Multipart {
            id: new_upload_id(),
            bucket: bucket.id,
            key: create.key,
            owner: create.caller.owner,
            attributes: create.attributes,
            checksum_algorithm: create.algorithm.map(|algorithm| algorithm.name().to_owned()),
            checksum_type,
            initiated_at: Timestamp::default(),
        };
        Ok(self.metadata.create_multipart(&upload, self.config.uploads_max).await?)
    }

    /// The open upload that all three of bucket, key and id name.
    pub(super) async fn open_upload(&self, named: &UploadKey, need: Need<'_>) -> Result<(Bucket, Multipart)> {
        let bucket = self.bucket(&named.caller, &named.bucket, need).await?;
        let upload = self.metadata.multipart(named.id).await?;
        let upload = upload.filter(|upload| upload.bucket == bucket.id && upload.key == named.key);
        Ok((bucket, upload.ok_or(Error::NoSuchUpload)?))
    }

    /// Stores a part; it replaces one of the same number.
    pub async fn put_part<S>(&self, put: PutPart, body: S) -> Result<Part>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        let PutPart { upload, number, mut claims, stripe_size } = put;
        let (bucket, open) = self.open_upload(&upload, Need::Write(&upload.key)).await?;
        if let Some(wanted) = part_algorithm(&open)? {
            if let Some(other) = claims.algorithms().find(|algorithm| *algorithm != wanted) {
                return Err(Error::OtherAlgorithm { want: wanted.name().to_owned(), have: other.name() });
            }
            claims.compute.push(wanted);
        }
        let target = Target {
            bucket: &bucket,
            key: &upload.key,
            part: Some(number),
            stripe_size,
            length: claims.length,
        };
        // One that stays in the database has no intent to reserve by.
        if let Some(length) = claims.length.filter(|length| *length <= self.config.inline_max.get()) {
            self.metadata.check_room(bucket.owner, ByteCount::bytes(length)).await?;
        }
        let written = self.write_body(target, claims, body).await?;
        let commit = CommitPart {
            multipart: upload.id,
            number,
            intent: written.intent.is_some().then_some(written.upload),
            size: ByteCount::bytes(written.digests.length),
            etag: written.digests.etag(),
            content_hash: written.segment.content_hash,
            checksums: written.digests.stored(),
            content: Content::New(written.segment),
        };
        crash_point!("part.before_commit");
        let part = self.metadata.commit_part(&commit).await?;
        crash_point!("part.committed");
        written.intent.into_iter().for_each(Intent::ended);
        self.tell_part(&bucket, &upload.key, &part);
        Ok(part)
    }

    /// Tells that a part is stored.
    pub(super) fn tell_part(&self, bucket: &Bucket, key: &ObjectKey, part: &Part) {
        self.tell(bucket.owner, progress(bucket, key, 100, Some(part.number)));
    }

    /// Drops an open upload and its parts.
    pub async fn abort_upload(&self, upload: &UploadKey) -> Result<()> {
        let bucket = self.bucket(&upload.caller, &upload.bucket, Need::Write(&upload.key)).await?;
        self.metadata.abort_multipart(bucket.id, &upload.key, upload.id).await?;
        crash_point!("abort.committed");
        Ok(())
    }
}

/// The algorithm that every part of an upload is hashed with.
pub(super) fn part_algorithm(upload: &Multipart) -> Result<Option<Algorithm>> {
    let Some(name) = &upload.checksum_algorithm else { return Ok(None) };
    let known = Algorithm::by_name(name).ok_or_else(|| cyxcloud_metadata::Error::Corrupt {
        what: "multipart upload",
        detail: format!("its checksum algorithm is {name:?}"),
    });
    Ok(Some(known?))
}

/// The type of an upload's checksum: what was asked for if the algorithm can do it, else its default.
fn checksum_type(algorithm: Option<Algorithm>, asked: Option<String>) -> Result<Option<String>> {
    let (algorithm, asked) = match (algorithm, asked) {
        (None, None) => return Ok(None),
        (None, Some(kind)) => return Err(Error::ImpossibleChecksum { algorithm: "missing", kind }),
        (Some(algorithm), asked) => (algorithm, asked),
    };
    let default = if algorithm == Algorithm::Crc64Nvme { FULL_OBJECT } else { COMPOSITE };
    let kind = asked.unwrap_or_else(|| default.to_owned());
    let possible = match kind.as_str() {
        COMPOSITE => algorithm != Algorithm::Crc64Nvme,
        FULL_OBJECT => algorithm.combines(),
        _ => false,
    };
    if possible {
        Ok(Some(kind))
    } else {
        Err(Error::ImpossibleChecksum { algorithm: algorithm.name(), kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_types_are_those_of_s3() {
        use Algorithm as A;
        let kind = |algorithm, asked: Option<&str>| checksum_type(algorithm, asked.map(str::to_owned)).ok();
        let some = |kind: &str| Some(Some(kind.to_owned()));
        assert_eq!(kind(None, None), Some(None));
        assert_eq!(kind(None, Some(COMPOSITE)), None);
        for algorithm in [A::Crc32, A::Crc32c] {
            assert_eq!(kind(Some(algorithm), None), some(COMPOSITE));
            assert_eq!(kind(Some(algorithm), Some(FULL_OBJECT)), some(FULL_OBJECT));
        }
        assert_eq!(kind(Some(A::Crc64Nvme), None), some(FULL_OBJECT));
        assert_eq!(kind(Some(A::Crc64Nvme), Some(COMPOSITE)), None);
        for algorithm in [A::Sha1, A::Sha256] {
            assert_eq!(kind(Some(algorithm), None), some(COMPOSITE));
            assert_eq!(kind(Some(algorithm), Some(FULL_OBJECT)), None);
        }
        assert_eq!(kind(Some(A::Sha1), Some("ODD")), None);
    }
}
