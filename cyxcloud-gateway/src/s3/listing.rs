//! Listings in S3's words: objects (both versions) and open multipart uploads.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cyxcloud_core::OwnerId;
use cyxcloud_metadata::model::{ListEntry, ListPage, ListedObject, Multipart};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::api::{Answer, Asked, Translator, bucket, strong};
use super::buckets::owner;
use super::encoding::KeyEncoding;
use super::headers::s3_time;
use crate::objects::{ListUploads, PAGE_MAX};

/// Checks a page size; S3 cuts what is too large and refuses what is negative.
pub(super) fn page_size(asked: Option<i32>, name: &str) -> S3Result<usize> {
    let asked = usize::try_from(asked.unwrap_or(PAGE_MAX as i32));
    let asked = asked.map_err(|_| {
        s3_error!(InvalidArgument, "Argument {name} must be an integer between 0 and 2147483647")
    })?;
    Ok(asked.min(PAGE_MAX))
}

/// A page as both versions of the listing show it.
struct Shown {
    contents: Vec<Object>,
    prefixes: Vec<CommonPrefix>,
}

fn show(page: Vec<ListEntry>, encoding: KeyEncoding, shown_owner: Option<OwnerId>) -> Shown {
    let (mut contents, mut prefixes) = (Vec::new(), Vec::new());
    for entry in page {
        match entry {
            ListEntry::Object(object) => contents.push(show_object(object, encoding, shown_owner)),
            ListEntry::Prefix(prefix) => {
                prefixes.push(CommonPrefix { prefix: Some(encoding.write(&prefix)) })
            }
        }
    }
    Shown { contents, prefixes }
}

fn show_object(object: ListedObject, encoding: KeyEncoding, shown_owner: Option<OwnerId>) -> Object {
    let algorithms = object.checksum_algorithms.into_iter().map(ChecksumAlgorithm::from).collect::<Vec<_>>();
    Object {
        checksum_algorithm: (!algorithms.is_empty()).then_some(algorithms),
        checksum_type: None,
        e_tag: strong(object.etag),
        key: Some(encoding.write(&object.key)),
        last_modified: Some(s3_time(object.modified_at)),
        owner: shown_owner.map(owner),
        restore_status: None,
        size: Some(i64::try_from(object.size.get()).unwrap_or(i64::MAX)),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
    }
}

fn number(count: usize) -> Option<i32> {
    i32::try_from(count).ok()
}

pub(super) async fn v1(s3: &Translator, req: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let encoding = KeyEncoding::from_request(input.encoding_type.as_ref())?;
    let limit = page_size(input.max_keys, "max-keys")?;
    let prefix = input.prefix.unwrap_or_default();
    let marker = input.marker.unwrap_or_default();
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let name = bucket(&input.bucket)?;
    let ListPage { entries, next } =
        s3.objects.list(&asked.caller, &name, &prefix, delimiter.as_deref(), Some(&marker), limit).await?;
    let shown = show(entries, encoding, Some(asked.caller.owner));
    Ok(S3Response::new(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.write(&prefix)),
        marker: Some(encoding.write(&marker)),
        max_keys: number(limit),
        is_truncated: Some(next.is_some()),
        contents: Some(shown.contents),
        common_prefixes: Some(shown.prefixes),
        delimiter: delimiter.map(|delimiter| encoding.write(&delimiter)),
        next_marker: next.map(|next| encoding.write(&next)),
        encoding_type: encoding.to_response(),
        request_charged: None,
    }))
}

pub(super) async fn v2(s3: &Translator, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let encoding = KeyEncoding::from_request(input.encoding_type.as_ref())?;
    let limit = page_size(input.max_keys, "max-keys")?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let after = match &input.continuation_token {
        Some(token) => Some(read_token(token)?),
        None => input.start_after.clone(),
    };
    let name = bucket(&input.bucket)?;
    let ListPage { entries, next } =
        s3.objects.list(&asked.caller, &name, &prefix, delimiter.as_deref(), after.as_deref(), limit).await?;
    let count = entries.len();
    let shown = show(entries, encoding, input.fetch_owner.unwrap_or(false).then_some(asked.caller.owner));
    Ok(S3Response::new(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encoding.write(&prefix)),
        max_keys: number(limit),
        key_count: number(count),
        continuation_token: input.continuation_token,
        is_truncated: Some(next.is_some()),
        next_continuation_token: next.map(|next| write_token(&next)),
        contents: Some(shown.contents),
        common_prefixes: Some(shown.prefixes),
        delimiter: delimiter.map(|delimiter| encoding.write(&delimiter)),
        encoding_type: encoding.to_response(),
        start_after: input.start_after.map(|start| encoding.write(&start)),
        request_charged: None,
    }))
}

/// Tokens are opaque: clients must not build on them, and any key survives in one.
fn write_token(after: &str) -> String {
    URL_SAFE_NO_PAD.encode(after)
}

fn read_token(token: &str) -> S3Result<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok()).filter(|text| !text.is_empty());
    text.ok_or_else(|| s3_error!(InvalidArgument, "The continuation token provided is incorrect"))
}

pub(super) async fn uploads(
    s3: &Translator,
    req: S3Request<ListMultipartUploadsInput>,
) -> Answer<ListMultipartUploadsOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let encoding = KeyEncoding::from_request(input.encoding_type.as_ref())?;
    let limit = page_size(input.max_uploads, "max-uploads")?;
    let prefix = input.prefix.unwrap_or_default();
    let key_marker = input.key_marker.filter(|marker| !marker.is_empty());
    // Without a key marker S3 ignores this one.
    let id_marker = input.upload_id_marker.filter(|marker| key_marker.is_some() && !marker.is_empty());
    let after_upload = id_marker.as_ref().map(|marker| marker.parse()).transpose();
    let after_upload = after_upload.map_err(|_| s3_error!(InvalidArgument, "Invalid uploadId marker"))?;
    let list = ListUploads {
        prefix: prefix.clone(),
        delimiter: input.delimiter.clone(),
        after_key: key_marker.clone(),
        after_upload,
        limit,
    };
    let page = s3.objects.list_uploads(&asked.caller, &bucket(&input.bucket)?, list).await?;
    let (next_key, next_upload) = page.next.map_or((None, None), |(key, upload)| (Some(key), upload));
    let prefixes = page.prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(encoding.write(prefix)) });
    Ok(S3Response::new(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        common_prefixes: Some(prefixes.collect()),
        delimiter: input.delimiter.map(|delimiter| encoding.write(&delimiter)),
        encoding_type: encoding.to_response(),
        is_truncated: Some(next_key.is_some()),
        key_marker: Some(encoding.write(&key_marker.unwrap_or_default())),
        max_uploads: number(limit),
        next_key_marker: next_key.map(|key| encoding.write(&key)),
        next_upload_id_marker: next_upload.map(|id| id.to_string()),
        prefix: Some(encoding.write(&prefix)),
        upload_id_marker: Some(id_marker.unwrap_or_default()),
        uploads: Some(page.uploads.into_iter().map(|upload| show_upload(upload, encoding)).collect()),
        request_charged: None,
    }))
}

fn show_upload(upload: Multipart, encoding: KeyEncoding) -> MultipartUpload {
    let id = upload.owner.to_string();
    MultipartUpload {
        checksum_algorithm: upload.checksum_algorithm.map(ChecksumAlgorithm::from),
        checksum_type: upload.checksum_type.map(ChecksumType::from),
        initiated: Some(s3_time(upload.initiated_at)),
        initiator: Some(Initiator { display_name: Some(id.clone()), id: Some(id) }),
        key: Some(encoding.write(upload.key.as_str())),
        owner: Some(owner(upload.owner)),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(upload.id.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_carry_any_key() {
        for key in ["a", "ü \u{1}\0/", &"x".repeat(1024)] {
            assert_eq!(read_token(&write_token(key)).expect("reads"), key);
        }
        assert!(read_token("!").is_err());
        assert!(read_token("").is_err());
    }

    #[test]
    fn pages_are_cut_and_not_negative() {
        assert_eq!(page_size(None, "max-keys").expect("fine"), 1000);
        assert_eq!(page_size(Some(0), "max-keys").expect("fine"), 0);
        assert_eq!(page_size(Some(5000), "max-keys").expect("fine"), 1000);
        assert!(page_size(Some(-1), "max-keys").is_err());
    }
}
