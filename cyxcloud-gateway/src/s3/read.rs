//! Reads in S3's words: headers of the answer, checksums, ranges, and the body as a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use cyxcloud_core::OwnerId;
use cyxcloud_metadata::model::{Object, StoredChecksum};
use futures::Stream;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, EXPIRES};
use http::{HeaderMap, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use s3s::dto::*;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

use super::api::{Answer, Asked, Translator, bucket, encryption, key, strong, version};
use super::buckets::{grants, owner};
use super::headers::{REDIRECT, STORAGE_CLASS, read_conditions, s3_time, select};
use crate::objects::{BodyStream, BoxError, Read, ReadObject};

/// What S3 says of objects that came without a type.
const DEFAULT_TYPE: &str = "binary/octet-stream";
/// Largest page of parts in attributes.
const PARTS_MAX: i32 = 1_000;

/// Fills the checksum fields that most outputs have.
macro_rules! set_checksums {
    ($output:expr, $checksums:expr) => {
        for checksum in $checksums {
            let value = Some(checksum.value.clone());
            match checksum.algorithm.as_str() {
                "CRC32" => $output.checksum_crc32 = value,
                "CRC32C" => $output.checksum_crc32c = value,
                "CRC64NVME" => $output.checksum_crc64nvme = value,
                "SHA1" => $output.checksum_sha1 = value,
                "SHA256" => $output.checksum_sha256 = value,
                _ => {}
            }
        }
    };
}
pub(super) use set_checksums;

/// The type of an object's checksums, in S3's word.
pub(super) fn checksum_type(checksums: &[StoredChecksum]) -> Option<ChecksumType> {
    let composite = checksums.first()?.composite;
    Some(ChecksumType::from_static(if composite {
        ChecksumType::COMPOSITE
    } else {
        ChecksumType::FULL_OBJECT
    }))
}

/// Headers that the query wants instead of the object's.
struct Overrides {
    cache_control: Option<String>,
    content_disposition: Option<String>,
    content_encoding: Option<String>,
    content_language: Option<String>,
    content_type: Option<String>,
    expires: Option<Timestamp>,
}

macro_rules! overrides {
    ($input:expr) => {
        Overrides {
            cache_control: $input.response_cache_control.take(),
            content_disposition: $input.response_content_disposition.take(),
            content_encoding: $input.response_content_encoding.take(),
            content_language: $input.response_content_language.take(),
            content_type: $input.response_content_type.take(),
            expires: $input.response_expires.take(),
        }
    };
}

/// Fills what the outputs of GET and HEAD have in common.
macro_rules! describe {
    ($output:ident, $found:expr, $overrides:expr, $with_checksums:expr) => {{
        let (found, overrides): (&Read, Overrides) = ($found, $overrides);
        let object = &found.object;
        let kept = |name: &http::HeaderName| object.attributes.headers.get(name.as_str()).cloned();
        let content_type = overrides.content_type.or_else(|| object.attributes.content_type.clone());
        let mut output = $output {
            accept_ranges: Some("bytes".to_owned()),
            cache_control: overrides.cache_control.or_else(|| kept(&CACHE_CONTROL)),
            content_disposition: overrides.content_disposition.or_else(|| kept(&CONTENT_DISPOSITION)),
            content_encoding: overrides.content_encoding.or_else(|| kept(&CONTENT_ENCODING)),
            content_language: overrides.content_language.or_else(|| kept(&CONTENT_LANGUAGE)),
            content_type: Some(content_type.unwrap_or_else(|| DEFAULT_TYPE.to_owned())),
            content_length: Some(signed(found.range.end - found.range.start)),
            content_range: content_range(found),
            e_tag: strong(object.etag.clone()),
            expires: overrides.expires,
            last_modified: Some(s3_time(object.modified_at)),
            metadata: Some(object.attributes.metadata.clone().into_iter().collect()),
            parts_count: found.parts.map(|parts| i32::try_from(parts).unwrap_or(i32::MAX)),
            server_side_encryption: encryption(),
            storage_class: kept(&STORAGE_CLASS).map(StorageClass::from),
            website_redirect_location: kept(&REDIRECT),
            ..$output::default()
        };
        // A checksum is of the whole object; a range has none.
        if $with_checksums && !found.partial {
            set_checksums!(output, &object.attributes.checksums);
            output.checksum_type = checksum_type(&object.attributes.checksums);
        }
        output
    }};
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn content_range(found: &Read) -> Option<String> {
    let (range, size) = (&found.range, found.object.size.get());
    let last = range.end.checked_sub(1)?;
    found.partial.then(|| format!("bytes {}-{last}/{size}", range.start))
}

/// What the typed output cannot say: `Expires` as it was stored, whatever it is.
fn raw_headers(object: &Object, overridden: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let stored = object.attributes.headers.get(EXPIRES.as_str()).filter(|_| !overridden);
    if let Some(value) = stored.and_then(|value| HeaderValue::from_str(value).ok()) {
        headers.insert(EXPIRES, value);
    }
    headers
}

fn wants_checksums(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str().eq_ignore_ascii_case(ChecksumMode::ENABLED))
}

fn read_of(asked: &Asked, bucket_name: &str, object_key: String, part: Option<i32>) -> S3Result<ReadObject> {
    Ok(ReadObject {
        caller: asked.caller.clone(),
        bucket: bucket(bucket_name)?,
        key: key(object_key)?,
        conditions: read_conditions(&asked.headers)?,
        select: select(&asked.headers, part)?,
    })
}

pub(super) async fn get(s3: &Translator, mut req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
    let asked = Asked::of(&req)?;
    // `s3s` writes the overrides itself once more, from what it has kept.
    let overrides = overrides!(req.input);
    let input = req.input;
    version(input.version_id.as_deref())?;
    let read = read_of(&asked, &input.bucket, input.key, input.part_number)?;
    let (found, body) = s3.objects.get(&read).await?;
    let headers = raw_headers(&found.object, overrides.expires.is_some());
    let mut output =
        describe!(GetObjectOutput, &found, overrides, wants_checksums(input.checksum_mode.as_ref()));
    output.body = Some(StreamingBlob::from(Body::http_body_unsync(ExactBody(body))));
    Ok(S3Response::with_headers(output, headers))
}

pub(super) async fn head(s3: &Translator, mut req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
    let asked = Asked::of(&req)?;
    let overrides = overrides!(req.input);
    let input = req.input;
    version(input.version_id.as_deref())?;
    let read = read_of(&asked, &input.bucket, input.key, input.part_number)?;
    let found = s3.objects.head(&read).await?;
    let headers = raw_headers(&found.object, overrides.expires.is_some());
    let output =
        describe!(HeadObjectOutput, &found, overrides, wants_checksums(input.checksum_mode.as_ref()));
    Ok(S3Response::with_headers(output, headers))
}

/// The object itself, without conditions.
async fn look(s3: &Translator, asked: &Asked, bucket_name: &str, object_key: String) -> S3Result<Object> {
    let read = ReadObject {
        caller: asked.caller.clone(),
        bucket: bucket(bucket_name)?,
        key: key(object_key)?,
        conditions: Default::default(),
        select: Default::default(),
    };
    Ok(s3.objects.head(&read).await?.object)
}

pub(super) async fn attributes(
    s3: &Translator,
    req: S3Request<GetObjectAttributesInput>,
) -> Answer<GetObjectAttributesOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    version(input.version_id.as_deref())?;
    let object = look(s3, &asked, &input.bucket, input.key).await?;
    // Several names may come in one header.
    let named: Vec<&str> = input.object_attributes.iter().flat_map(|name| name.as_str().split(',')).collect();
    let wants = |name: &str| named.iter().any(|other| other.trim() == name);
    let mut output =
        GetObjectAttributesOutput { last_modified: Some(s3_time(object.modified_at)), ..Default::default() };
    if wants(ObjectAttributes::ETAG) {
        output.e_tag = strong(object.etag.clone());
    }
    if wants(ObjectAttributes::OBJECT_SIZE) {
        output.object_size = Some(signed(object.size.get()));
    }
    if wants(ObjectAttributes::STORAGE_CLASS) {
        let class = object.attributes.headers.get(STORAGE_CLASS.as_str()).cloned();
        output.storage_class =
            Some(class.map_or(StorageClass::from_static(StorageClass::STANDARD), Into::into));
    }
    if wants(ObjectAttributes::CHECKSUM) && !object.attributes.checksums.is_empty() {
        let mut checksum = Checksum::default();
        set_checksums!(checksum, &object.attributes.checksums);
        checksum.checksum_type = checksum_type(&object.attributes.checksums);
        output.checksum = Some(checksum);
    }
    if wants(ObjectAttributes::OBJECT_PARTS) && !object.part_sizes.is_empty() {
        let marker = input.part_number_marker.unwrap_or(0);
        output.object_parts = Some(parts_of(&object, marker, input.max_parts.unwrap_or(PARTS_MAX))?);
    }
    Ok(S3Response::new(output))
}

fn parts_of(object: &Object, marker: i32, max: i32) -> S3Result<GetObjectAttributesParts> {
    let (Ok(after), Ok(limit)) = (usize::try_from(marker), usize::try_from(max.min(PARTS_MAX))) else {
        return Err(s3_error!(InvalidArgument, "max-parts and part-number-marker are not negative."));
    };
    let total = object.part_sizes.len();
    let page = object.part_sizes.iter().enumerate().skip(after).take(limit);
    let parts: Vec<ObjectPart> = page
        .map(|(index, size)| ObjectPart {
            part_number: i32::try_from(index + 1).ok(),
            size: Some(signed(*size)),
            ..ObjectPart::default()
        })
        .collect();
    let end = after + parts.len();
    Ok(GetObjectAttributesParts {
        is_truncated: Some(end < total && limit > 0),
        max_parts: Some(max.min(PARTS_MAX)),
        next_part_number_marker: i32::try_from(end).ok(),
        part_number_marker: Some(marker),
        parts: Some(parts),
        total_parts_count: i32::try_from(total).ok(),
    })
}

pub(super) async fn acl(s3: &Translator, req: S3Request<GetObjectAclInput>) -> Answer<GetObjectAclOutput> {
    let asked = Asked::of(&req)?;
    version(req.input.version_id.as_deref())?;
    let id: OwnerId = look(s3, &asked, &req.input.bucket, req.input.key).await?.owner;
    Ok(S3Response::new(GetObjectAclOutput {
        grants: Some(grants(id)),
        owner: Some(owner(id)),
        request_charged: None,
    }))
}

/// Objects have no tags; clients that copy ask for them.
pub(super) async fn tagging(
    s3: &Translator,
    req: S3Request<GetObjectTaggingInput>,
) -> Answer<GetObjectTaggingOutput> {
    let asked = Asked::of(&req)?;
    version(req.input.version_id.as_deref())?;
    look(s3, &asked, &req.input.bucket, req.input.key).await?;
    Ok(S3Response::new(GetObjectTaggingOutput { tag_set: Vec::new(), version_id: None }))
}

/// A body whose length is known before its first byte.
struct ExactBody(BodyStream);

impl HttpBody for ExactBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let item = ready!(Pin::new(&mut self.0).poll_next(cx));
        if let Some(Err(error)) = &item {
            tracing::error!(%error, "a read failed after its answer had begun; the connection is broken off");
        }
        Poll::Ready(item.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.remaining())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_pages() {
        let object = Object {
            file: cyxcloud_core::FileId::from_random([1; 16]),
            bucket: cyxcloud_core::BucketId::from_random([1; 16]),
            key: cyxcloud_core::name::ObjectKey::new("k").expect("valid"),
            owner: OwnerId::from_random([1; 16]),
            version_id: "null".to_owned(),
            size: cyxcloud_core::ByteCount::bytes(9),
            etag: "e".to_owned(),
            content_hash: [0; 32],
            attributes: Default::default(),
            part_sizes: vec![4, 4, 1],
            modified_at: cyxcloud_core::Timestamp::default(),
        };
        let page = parts_of(&object, 1, 1).expect("fine");
        assert_eq!(page.parts.as_ref().map(Vec::len), Some(1));
        assert_eq!(page.next_part_number_marker, Some(2));
        assert_eq!(page.is_truncated, Some(true));
        assert_eq!(parts_of(&object, 2, 10).expect("fine").is_truncated, Some(false));
        assert!(parts_of(&object, -1, 10).is_err());
    }
}
