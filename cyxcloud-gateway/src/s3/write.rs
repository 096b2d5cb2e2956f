//! Writes in S3's words: put, copy, delete.

use std::collections::HashSet;

use cyxcloud_core::name::ObjectKey;
use cyxcloud_metadata::model::Precondition;
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::api::{Answer, Asked, Translator, bucket, encryption, key, strong, version};
use super::deeds::Fates;
use super::headers;
use super::read::{checksum_type, set_checksums};
use crate::objects::checksums::Algorithm;
use crate::objects::{self, PAGE_MAX, PutObject, Source};

pub(super) async fn put(s3: &Translator, req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
    let asked = Asked::of(&req)?;
    let claims = headers::claims(&asked.headers, &req.extensions)?;
    let input = req.input;
    let put = PutObject {
        caller: asked.caller.clone(),
        bucket: bucket(&input.bucket)?,
        key: key(input.key)?,
        attributes: headers::attributes(&asked.headers, input.metadata)?,
        precondition: headers::precondition(&asked.headers)?,
        claims,
        stripe_size: headers::stripe_size(&asked.headers)?,
    };
    let body = input.body.ok_or_else(|| s3_error!(IncompleteBody, "The request has no body."))?;
    let object = s3.objects.put(put, body).await?;
    let mut output = PutObjectOutput {
        checksum_type: checksum_type(&object.attributes.checksums),
        e_tag: strong(object.etag),
        server_side_encryption: encryption(),
        ..PutObjectOutput::default()
    };
    set_checksums!(output, &object.attributes.checksums);
    cyxcloud_core::crash_point!("put.before_reply");
    Ok(S3Response::new(output))
}

/// The source of a copy as the object service names it.
pub(super) fn source(asked: &Asked, source: CopySource) -> S3Result<Source> {
    let CopySource::Bucket { bucket: name, key: source_key, version_id } = source else {
        return Err(s3_error!(
            NotImplemented,
            "Access points are not implemented; name the source as bucket/key."
        ));
    };
    version(version_id.as_deref())?;
    Ok(Source {
        bucket: bucket(&name)?,
        key: key(source_key.into_string())?,
        conditions: headers::source_conditions(&asked.headers)?,
    })
}

/// The algorithm that a request names.
pub(super) fn algorithm(named: Option<&ChecksumAlgorithm>) -> S3Result<Option<Algorithm>> {
    let Some(named) = named else { return Ok(None) };
    let known = Algorithm::by_name(named.as_str());
    known.map(Some).ok_or_else(|| {
        s3_error!(InvalidRequest, "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
    })
}

pub(super) async fn copy(s3: &Translator, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let replaces = match input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => false,
        Some(MetadataDirective::REPLACE) => true,
        Some(_) => return Err(s3_error!(InvalidArgument, "Unknown metadata directive.")),
    };
    let changes = replaces
        || input.storage_class.is_some()
        || input.server_side_encryption.is_some()
        || input.website_redirect_location.is_some();
    let replace = if replaces { Some(headers::attributes(&asked.headers, input.metadata)?) } else { None };
    let copy = objects::CopyObject {
        caller: asked.caller.clone(),
        source: source(&asked, input.copy_source)?,
        bucket: bucket(&input.bucket)?,
        key: key(input.key)?,
        replace,
        storage_class: headers::storage_class(&asked.headers)?,
        algorithm: algorithm(input.checksum_algorithm.as_ref())?,
        precondition: headers::precondition(&asked.headers)?,
        changes,
    };
    let object = s3.objects.copy(&copy).await?;
    let mut result = CopyObjectResult {
        checksum_type: checksum_type(&object.attributes.checksums),
        e_tag: strong(object.etag),
        last_modified: Some(headers::s3_time(object.modified_at)),
        ..CopyObjectResult::default()
    };
    set_checksums!(result, &object.attributes.checksums);
    Ok(S3Response::new(CopyObjectOutput {
        copy_object_result: Some(result),
        server_side_encryption: encryption(),
        ..CopyObjectOutput::default()
    }))
}

pub(super) async fn delete(s3: &Translator, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    if input.if_match_size.is_some() || input.if_match_last_modified_time.is_some() {
        return Err(s3_error!(NotImplemented, "Deletes can be conditional on If-Match only."));
    }
    version(input.version_id.as_deref())?;
    let precondition = headers::precondition(&asked.headers)?;
    if precondition == Precondition::Absent {
        return Err(s3_error!(NotImplemented, "A delete cannot have If-None-Match."));
    }
    s3.objects.delete(&asked.caller, &bucket(&input.bucket)?, &key(input.key)?, &precondition).await?;
    Ok(S3Response::new(DeleteObjectOutput::default()))
}

/// What becomes of one key of a delete request.
enum Fate {
    Deleted(String),
    Failed(String, S3Error),
}

pub(super) async fn delete_many(
    s3: &Translator,
    req: S3Request<DeleteObjectsInput>,
) -> Answer<DeleteObjectsOutput> {
    let asked = Asked::of(&req)?;
    let bucket = bucket(&req.input.bucket)?;
    let Delete { objects, quiet } = req.input.delete;
    if objects.is_empty() || objects.len() > PAGE_MAX {
        return Err(s3_error!(MalformedXML, "A delete names 1 to {PAGE_MAX} keys."));
    }
    let mut fates = Vec::with_capacity(objects.len());
    let mut plain: Vec<ObjectKey> = Vec::new();
    let mut seen = HashSet::new();
    for named in objects {
        match one(&named) {
            Err(error) => fates.push(Fate::Failed(named.key, error)),
            Ok((key, Precondition::None)) => {
                fates.push(Fate::Deleted(named.key));
                if seen.insert(key.clone()) {
                    plain.push(key);
                }
            }
            Ok((key, condition)) => {
                let done = s3.objects.delete(&asked.caller, &bucket, &key, &condition).await;
                fates.push(match done {
                    Ok(_) => Fate::Deleted(named.key),
                    Err(error) => Fate::Failed(named.key, error.into()),
                });
            }
        }
    }
    s3.objects.delete_many(&asked.caller, &bucket, &plain).await?;
    let told = fates.iter().map(|fate| match fate {
        Fate::Deleted(key) => (key.clone(), "ok".to_owned()),
        Fate::Failed(key, error) => (key.clone(), error.code().as_str().to_owned()),
    });
    let told = Fates(told.collect());
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for fate in fates {
        match fate {
            Fate::Deleted(_) if quiet == Some(true) => {}
            Fate::Deleted(key) => deleted.push(DeletedObject { key: Some(key), ..DeletedObject::default() }),
            Fate::Failed(key, error) => errors.push(Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(key),
                message: error.message().map(str::to_owned),
                version_id: None,
            }),
        }
    }
    let mut response = S3Response::new(DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        ..DeleteObjectsOutput::default()
    });
    response.extensions.insert(told);
    Ok(response)
}

/// One key of a delete request and the condition on it.
fn one(named: &ObjectIdentifier) -> S3Result<(ObjectKey, Precondition)> {
    version(named.version_id.as_deref())?;
    if named.size.is_some() || named.last_modified_time.is_some() {
        return Err(s3_error!(NotImplemented, "Deletes can be conditional on ETags only."));
    }
    let condition = named.e_tag.as_ref().map_or(Precondition::None, |etag| match etag.value() {
        "*" => Precondition::Exists,
        value => Precondition::EtagIs(value.to_owned()),
    });
    Ok((key(named.key.clone())?, condition))
}
