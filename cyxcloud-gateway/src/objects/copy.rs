//! Copies: references to the source's segments, no bytes moved.
//!
//! Where a copy needs a hash that the source does not have (the MD5 of a range, another checksum), the bytes are
//! read once through the hasher and thrown away. The source is read under its bucket's owner, the target under its
//! own; both must be the caller's.

use std::ops::Range;

use cyxcloud_core::ByteCount;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_metadata::model::{
    Attributes, CommitObject, CommitPart, Content, Extent, Object, Part, Precondition, SegmentRange,
};
use futures::StreamExt;

use super::checksums::{Algorithm, Digests, Hasher, stored};
use super::conditions::ReadConditions;
use super::error::{BoxError, Error, Result};
use super::get::{Read, Select};
use super::multipart::part_algorithm;
use super::range::ByteRange;
use super::{BODY_MAX, ObjectService, UploadKey, new_file_id, new_upload_id};
use crate::limits::{Caller, Need};

/// Times to read the source again when it is collected under our hands.
const TRIES_MAX: usize = 4;
/// Pieces that may wait for the hasher.
const HASH_AHEAD: usize = 4;

/// What is copied.
#[derive(Clone, Debug)]
pub struct Source {
    /// From where.
    pub bucket: BucketName,
    /// What.
    pub key: ObjectKey,
    /// What must hold of it.
    pub conditions: ReadConditions,
}

/// Copies a whole object.
#[derive(Clone, Debug)]
pub struct CopyObject {
    /// Who copies.
    pub caller: Caller,
    /// What.
    pub source: Source,
    /// Where to.
    pub bucket: BucketName,
    /// Under which key.
    pub key: ObjectKey,
    /// Headers and metadata instead of the source's.
    pub replace: Option<Attributes>,
    /// A storage class, which is not copied with the headers.
    pub storage_class: Option<String>,
    /// A checksum that the copy must have.
    pub algorithm: Option<Algorithm>,
    /// What must hold of the target's key.
    pub precondition: Precondition,
    /// Whether the request changes something about the object even if it is copied onto itself.
    pub changes: bool,
}

/// Copies an object, or a range of it, as a part.
#[derive(Clone, Debug)]
pub struct CopyPart {
    /// Of which upload.
    pub upload: UploadKey,
    /// 1 to 10,000.
    pub number: u32,
    /// What.
    pub source: Source,
    /// First and last byte; the last one is included and must exist.
    pub range: Option<(u64, u64)>,
}

/// What a copied part says about its bytes.
struct Summary {
    etag: String,
    content_hash: [u8; 32],
    digests: Vec<(Algorithm, Vec<u8>)>,
}

impl ObjectService {
    /// Copies an object.
    pub async fn copy(&self, copy: &CopyObject) -> Result<Object> {
        if copy.source.bucket == copy.bucket && copy.source.key == copy.key && !copy.changes {
            return Err(Error::CopyOntoItself);
        }
        let bucket = self.bucket(&copy.caller, &copy.bucket, Need::Write(&copy.key)).await?;
        for _ in 0..TRIES_MAX {
            let (found, extents) = self.source(&copy.caller, &copy.source, Select::Whole).await?;
            let content = references(&extents, &found.range);
            let source = found.object;
            let mut attributes = copy.replace.clone().unwrap_or_else(|| source.attributes.clone());
            match &copy.storage_class {
                Some(class) => attributes.headers.insert(STORAGE_CLASS.to_owned(), class.clone()),
                None => attributes.headers.remove(STORAGE_CLASS),
            };
            attributes.checksums = source.attributes.checksums.clone();
            if let Some(algorithm) = copy.algorithm {
                let kept = attributes
                    .checksums
                    .iter()
                    .find(|sum| sum.algorithm == algorithm.name() && !sum.composite);
                let checksum = match kept {
                    Some(kept) => kept.clone(),
                    None => {
                        let whole = 0..source.size.get();
                        let (digests, _) = self.hash(&source, extents, whole, [algorithm]).await?;
                        stored(algorithm, digests.get(algorithm).unwrap_or_default())
                    }
                };
                attributes.checksums = vec![checksum];
            }
            let commit = CommitObject {
                upload: new_upload_id(),
                has_intent: false,
                file: new_file_id(),
                owner: copy.caller.owner,
                bucket: bucket.id,
                key: copy.key.clone(),
                precondition: copy.precondition.clone(),
                size: source.size,
                etag: source.etag,
                content_hash: source.content_hash,
                attributes,
                content,
            };
            match self.metadata.commit_object(&commit).await {
                Err(cyxcloud_metadata::Error::SourceGone) => continue,
                done => {
                    let object = done?;
                    self.tell_created(&bucket, &object);
                    return Ok(object);
                }
            }
        }
        Err(Error::Busy)
    }

    /// Copies an object, or a range of it, as a part.
    pub async fn copy_part(&self, copy: &CopyPart) -> Result<Part> {
        let (bucket, upload) = self.open_upload(&copy.upload, Need::Write(&copy.upload.key)).await?;
        let algorithm = part_algorithm(&upload)?;
        let select =
            copy.range.map_or(Select::Whole, |(first, last)| Select::Range(ByteRange::FromTo(first, last)));
        for _ in 0..TRIES_MAX {
            let (found, extents) = self.source(&copy.upload.caller, &copy.source, select).await?;
            let size = found.object.size.get();
            if copy.range.is_some_and(|(_, last)| last >= size) {
                return Err(Error::InvalidSourceRange { size });
            }
            let length = found.range.end - found.range.start;
            if length > BODY_MAX.get() {
                return Err(Error::TooLarge { max: BODY_MAX.get() });
            }
            self.metadata.check_room(upload.owner, ByteCount::bytes(length)).await?;
            let content = references(&extents, &found.range);
            let summary = self.summarize(found, extents, algorithm).await?;
            let commit = CommitPart {
                multipart: upload.id,
                number: copy.number,
                intent: None,
                size: ByteCount::bytes(length),
                etag: summary.etag,
                content_hash: summary.content_hash,
                checksums: summary
                    .digests
                    .iter()
                    .map(|(algorithm, value)| stored(*algorithm, value))
                    .collect(),
                content,
            };
            match self.metadata.commit_part(&commit).await {
                Err(cyxcloud_metadata::Error::SourceGone) => continue,
                done => {
                    let part = done?;
                    self.tell_part(&bucket, &upload.key, &part);
                    return Ok(part);
                }
            }
        }
        Err(Error::Busy)
    }

    /// Finds the source and judges its conditions; for a copy, an unmodified source is a failed condition.
    async fn source(&self, caller: &Caller, source: &Source, select: Select) -> Result<(Read, Vec<Extent>)> {
        let bucket = self.bucket(caller, &source.bucket, Need::Read(&source.key)).await?;
        self.find(&bucket, &source.key, &source.conditions, select).await.map_err(|error| match error {
            Error::NotModified { .. } => Error::PreconditionFailed("x-amz-copy-source-if-none-match"),
            Error::InvalidRange { size } => Error::InvalidSourceRange { size },
            other => other,
        })
    }

    /// MD5, content hash and checksum of the bytes found: those of the source where they are the same bytes.
    async fn summarize(
        &self,
        found: Read,
        extents: Vec<Extent>,
        algorithm: Option<Algorithm>,
    ) -> Result<Summary> {
        let Read { object, range, .. } = found;
        let whole = range == (0..object.size.get());
        if whole && is_md5(&object.etag) {
            let kept = algorithm.map(|algorithm| (algorithm, checksum_of(&object, algorithm)));
            match kept {
                None => {
                    return Ok(Summary {
                        etag: object.etag,
                        content_hash: object.content_hash,
                        digests: vec![],
                    });
                }
                Some((algorithm, Some(value))) => {
                    let digests = vec![(algorithm, value)];
                    return Ok(Summary { etag: object.etag, content_hash: object.content_hash, digests });
                }
                Some((_, None)) => {}
            }
        }
        let (digests, content_hash) = self.hash(&object, extents, range, algorithm).await?;
        Ok(Summary { etag: digests.etag(), content_hash, digests: digests.checksums })
    }

    /// Reads a range once, for its hashes.
    async fn hash(
        &self,
        object: &Object,
        extents: Vec<Extent>,
        range: Range<u64>,
        algorithms: impl IntoIterator<Item = Algorithm>,
    ) -> Result<(Digests, [u8; 32])> {
        let mut body = self.open(object, extents, range).await?;
        let (pieces, mut waiting) = tokio::sync::mpsc::channel::<bytes::Bytes>(HASH_AHEAD);
        let mut hasher = Hasher::new(algorithms);
        let hashing = tokio::task::spawn_blocking(move || {
            let mut content = blake3::Hasher::new();
            while let Some(piece) = waiting.blocking_recv() {
                hasher.update(&piece);
                content.update(&piece);
            }
            (hasher.finish(), *content.finalize().as_bytes())
        });
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(unreadable)?;
            // The hasher goes away only if it panics; joining it below tells.
            let _ = pieces.send(piece).await;
        }
        drop(pieces);
        Ok(hashing.await.expect("hashing does not panic"))
    }
}

/// Name of the header that keeps the storage class.
const STORAGE_CLASS: &str = "x-amz-storage-class";

fn unreadable(error: BoxError) -> Error {
    match error.downcast::<cyxcloud_dataplane::ReadError>() {
        Ok(error) => Error::from(*error),
        Err(error) => Error::NotStored(error),
    }
}

/// An ETag that is the MD5 of the bytes, which that of a multipart object is not.
fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn checksum_of(object: &Object, algorithm: Algorithm) -> Option<Vec<u8>> {
    let mut checksums = object.attributes.checksums.iter();
    let stored = checksums.find(|sum| sum.algorithm == algorithm.name() && !sum.composite)?;
    algorithm.parse(&stored.value).ok()
}

/// What of the extents lies in a range of the object, as ranges of their segments.
fn references(extents: &[Extent], range: &Range<u64>) -> Content {
    let inside = |extent: &Extent| {
        let from = range.start.max(extent.object_offset);
        let to = range.end.min(extent.object_offset + extent.length);
        (from < to).then(|| SegmentRange {
            segment: extent.segment.id,
            offset: extent.segment_offset + (from - extent.object_offset),
            length: to - from,
        })
    };
    Content::References(extents.iter().filter_map(inside).collect())
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::{Geometry, SegmentId};
    use cyxcloud_metadata::model::SegmentInfo;

    use super::*;

    fn extent(object_offset: u64, segment_offset: u64, length: u64) -> Extent {
        Extent {
            object_offset,
            segment_offset,
            length,
            segment: SegmentInfo {
                id: SegmentId::from_random([object_offset as u8; 16]),
                owner: cyxcloud_core::OwnerId::from_random([1; 16]),
                length: ByteCount::bytes(segment_offset + length),
                stripe_size: ByteCount::mib(4),
                geometry: Geometry::STANDARD,
                format: 1,
                content_hash: [0; 32],
                acked_tolerance: 1,
                target_tolerance: 4,
                inline: None,
            },
            stripes: Vec::new(),
        }
    }

    #[test]
    fn references_are_cut_to_the_range() {
        let extents = [extent(0, 0, 10), extent(10, 5, 10), extent(20, 0, 10)];
        let of = |range: Range<u64>| match references(&extents, &range) {
            Content::References(ranges) => ranges.iter().map(|r| (r.offset, r.length)).collect::<Vec<_>>(),
            Content::New(_) => Vec::new(),
        };
        assert_eq!(of(0..30), [(0, 10), (5, 10), (0, 10)]);
        assert_eq!(of(3..12), [(3, 7), (5, 2)]);
        assert_eq!(of(15..20), [(10, 5)]);
        assert_eq!(of(10..11), [(5, 1)]);
    }

    #[test]
    fn etags_of_multipart_objects_are_no_md5() {
        assert!(is_md5("d41d8cd98f00b204e9800998ecf8427e"));
        assert!(!is_md5("d41d8cd98f00b204e9800998ecf8427e-2"));
    }
}
