//! Multipart uploads in S3's words.

use cyxcloud_metadata::model::Part as Row;
use http::HeaderName;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::api::{Answer, Asked, Translator, bucket, encryption, key, strong};
use super::buckets::owner;
use super::headers::{self, s3_time, text};
use super::listing::page_size;
use super::read::{checksum_type, set_checksums};
use super::write::{algorithm, source};
use crate::objects::checksums::Algorithm;
use crate::objects::range::ByteRange;
use crate::objects::{
    self, CompleteUpload, CopyPart, CreateUpload, Error as ObjectError, PART_NUMBER_MAX, PutPart, UploadKey,
};

/// Checks a part number.
pub(super) fn part_number(number: i32) -> S3Result<u32> {
    u32::try_from(number).ok().filter(|number| (1..=PART_NUMBER_MAX).contains(number)).ok_or_else(|| {
        s3_error!(
            InvalidArgument,
            "Part number must be an integer between 1 and {PART_NUMBER_MAX}, inclusive"
        )
    })
}

/// The upload that a request names; an id that we never gave is none.
fn upload_key(asked: &Asked, bucket_name: &str, object_key: String, id: &str) -> S3Result<UploadKey> {
    let (bucket, key) = (bucket(bucket_name)?, key(object_key)?);
    let id = id.parse().map_err(|_| ObjectError::NoSuchUpload)?;
    Ok(UploadKey { caller: asked.caller.clone(), bucket, key, id })
}

pub(super) async fn create(
    s3: &Translator,
    req: S3Request<CreateMultipartUploadInput>,
) -> Answer<CreateMultipartUploadOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let create = CreateUpload {
        caller: asked.caller.clone(),
        bucket: bucket(&input.bucket)?,
        key: key(input.key.clone())?,
        attributes: headers::attributes(&asked.headers, input.metadata)?,
        algorithm: algorithm(input.checksum_algorithm.as_ref())?,
        checksum_type: input.checksum_type.map(|kind| kind.as_str().to_owned()),
    };
    let upload = s3.objects.create_upload(create).await?;
    Ok(S3Response::new(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        checksum_algorithm: upload.checksum_algorithm.map(ChecksumAlgorithm::from),
        checksum_type: upload.checksum_type.map(ChecksumType::from),
        key: Some(input.key),
        server_side_encryption: encryption(),
        upload_id: Some(upload.id.to_string()),
        ..CreateMultipartUploadOutput::default()
    }))
}

pub(super) async fn part(s3: &Translator, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
    let asked = Asked::of(&req)?;
    let claims = headers::claims(&asked.headers, &req.extensions)?;
    let input = req.input;
    let put = PutPart {
        number: part_number(input.part_number)?,
        upload: upload_key(&asked, &input.bucket, input.key, &input.upload_id)?,
        claims,
        stripe_size: headers::stripe_size(&asked.headers)?,
    };
    let body = input.body.ok_or_else(|| s3_error!(IncompleteBody, "The request has no body."))?;
    let part = s3.objects.put_part(put, body).await?;
    let mut output = UploadPartOutput {
        e_tag: strong(part.etag),
        server_side_encryption: encryption(),
        ..UploadPartOutput::default()
    };
    set_checksums!(output, &part.checksums);
    Ok(S3Response::new(output))
}

/// The range of a part copy, which unlike `Range` must be whole and understood.
fn copy_range(asked: &Asked) -> S3Result<Option<(u64, u64)>> {
    let Some(range) = text(&asked.headers, &HeaderName::from_static("x-amz-copy-source-range"))? else {
        return Ok(None);
    };
    match ByteRange::parse(&range) {
        Some(ByteRange::FromTo(first, last)) => Ok(Some((first, last))),
        _ => Err(s3_error!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the \
             zero-based offsets of the first and last bytes to copy"
        )),
    }
}

pub(super) async fn part_copy(
    s3: &Translator,
    req: S3Request<UploadPartCopyInput>,
) -> Answer<UploadPartCopyOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let copy = CopyPart {
        number: part_number(input.part_number)?,
        upload: upload_key(&asked, &input.bucket, input.key, &input.upload_id)?,
        source: source(&asked, input.copy_source)?,
        range: copy_range(&asked)?,
    };
    let part = s3.objects.copy_part(&copy).await?;
    let mut result = CopyPartResult {
        e_tag: strong(part.etag),
        last_modified: Some(s3_time(part.modified_at)),
        ..CopyPartResult::default()
    };
    set_checksums!(result, &part.checksums);
    Ok(S3Response::new(UploadPartCopyOutput {
        copy_part_result: Some(result),
        server_side_encryption: encryption(),
        ..UploadPartCopyOutput::default()
    }))
}

fn show_part(row: Row) -> Part {
    let mut part = Part {
        e_tag: strong(row.etag),
        last_modified: Some(s3_time(row.modified_at)),
        part_number: i32::try_from(row.number).ok(),
        size: i64::try_from(row.size.get()).ok(),
        ..Part::default()
    };
    set_checksums!(part, &row.checksums);
    part
}

pub(super) async fn list_parts(s3: &Translator, req: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let limit = page_size(input.max_parts, "max-parts")?;
    let marker = input.part_number_marker.unwrap_or(0);
    let after = u32::try_from(marker)
        .map_err(|_| s3_error!(InvalidArgument, "Argument part-number-marker must not be negative"))?;
    let upload = upload_key(&asked, &input.bucket, input.key.clone(), &input.upload_id)?;
    let page = s3.objects.list_parts(&objects::ListParts { upload, after, limit }).await?;
    let last = page.parts.last().map_or(marker, |part| i32::try_from(part.number).unwrap_or(i32::MAX));
    let id = page.upload.owner.to_string();
    Ok(S3Response::new(ListPartsOutput {
        bucket: Some(input.bucket),
        checksum_algorithm: page.upload.checksum_algorithm.map(ChecksumAlgorithm::from),
        checksum_type: page.upload.checksum_type.map(ChecksumType::from),
        initiator: Some(Initiator { display_name: Some(id.clone()), id: Some(id) }),
        is_truncated: Some(page.truncated),
        key: Some(input.key),
        max_parts: i32::try_from(limit).ok(),
        next_part_number_marker: Some(last),
        owner: Some(owner(page.upload.owner)),
        part_number_marker: Some(marker),
        parts: Some(page.parts.into_iter().map(show_part).collect()),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(input.upload_id),
        ..ListPartsOutput::default()
    }))
}

/// A part as the client names it at completion.
fn completed(part: CompletedPart) -> S3Result<objects::CompletedPart> {
    let (Some(number), Some(etag)) = (part.part_number, part.e_tag) else {
        return Err(s3_error!(MalformedXML, "Every part has a PartNumber and an ETag."));
    };
    let checksums = [
        (Algorithm::Crc32, part.checksum_crc32),
        (Algorithm::Crc32c, part.checksum_crc32c),
        (Algorithm::Crc64Nvme, part.checksum_crc64nvme),
        (Algorithm::Sha1, part.checksum_sha1),
        (Algorithm::Sha256, part.checksum_sha256),
    ];
    let checksums =
        checksums.into_iter().filter_map(|(algorithm, value)| Some((algorithm, value?))).collect();
    Ok(objects::CompletedPart { number: part_number(number)?, etag: etag.into_value(), checksums })
}

pub(super) async fn complete(
    s3: &Translator,
    req: S3Request<CompleteMultipartUploadInput>,
) -> Answer<CompleteMultipartUploadOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    if named.is_empty() || named.len() > PART_NUMBER_MAX as usize {
        return Err(s3_error!(MalformedXML, "A completion names 1 to {PART_NUMBER_MAX} parts."));
    }
    let size = input.mpu_object_size.map(u64::try_from).transpose();
    let complete = CompleteUpload {
        upload: upload_key(&asked, &input.bucket, input.key.clone(), &input.upload_id)?,
        parts: named.into_iter().map(completed).collect::<S3Result<_>>()?,
        precondition: headers::precondition(&asked.headers)?,
        checksums: headers::checksum_headers(&asked.headers)?,
        checksum_type: input.checksum_type.map(|kind| kind.as_str().to_owned()),
        size: size.map_err(|_| s3_error!(InvalidArgument, "x-amz-mp-object-size must not be negative"))?,
    };
    let object = s3.objects.complete_upload(complete).await?;
    let mut output = CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, super::encoding::KeyEncoding::Url.write(&input.key))),
        bucket: Some(input.bucket),
        checksum_type: checksum_type(&object.attributes.checksums),
        e_tag: strong(object.etag),
        key: Some(input.key),
        server_side_encryption: encryption(),
        ..CompleteMultipartUploadOutput::default()
    };
    set_checksums!(output, &object.attributes.checksums);
    Ok(S3Response::new(output))
}

pub(super) async fn abort(
    s3: &Translator,
    req: S3Request<AbortMultipartUploadInput>,
) -> Answer<AbortMultipartUploadOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    if input.if_match_initiated_time.is_some() {
        return Err(s3_error!(NotImplemented, "An abort cannot be conditional."));
    }
    let upload = upload_key(&asked, &input.bucket, input.key, &input.upload_id)?;
    s3.objects.abort_upload(&upload).await?;
    Ok(S3Response::new(AbortMultipartUploadOutput::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_numbers_have_bounds() {
        assert_eq!(part_number(1).expect("fine"), 1);
        assert_eq!(part_number(10_000).expect("fine"), 10_000);
        for bad in [0, -1, 10_001] {
            assert_eq!(part_number(bad).expect_err("refused").code().as_str(), "InvalidArgument");
        }
    }
}
