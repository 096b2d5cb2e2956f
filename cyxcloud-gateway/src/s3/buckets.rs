//! Bucket operations in S3's words.

use cyxcloud_core::OwnerId;
use cyxcloud_core::name::BucketName;
use cyxcloud_metadata::model::Bucket as Row;
use http::HeaderName;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::api::{Answer, Asked, Translator, bucket};
use super::headers::{s3_time, text};
use crate::objects::{Error, Need};

/// Names the placement profile of a bucket to be made.
const PROFILE: HeaderName = HeaderName::from_static("x-cyxcloud-profile");
/// Buckets per page where nothing else is asked for; S3's own.
const BUCKETS_MAX: i32 = 10_000;

/// The owner as S3 shows one.
pub(super) fn owner(id: OwnerId) -> Owner {
    Owner { id: Some(id.to_string()), display_name: Some(id.to_string()) }
}

/// Everything to the owner, nothing to anyone else.
pub(super) fn grants(id: OwnerId) -> Grants {
    let grantee = Grantee {
        display_name: Some(id.to_string()),
        email_address: None,
        id: Some(id.to_string()),
        type_: Type::from_static(Type::CANONICAL_USER),
        uri: None,
    };
    let permission = Permission::from_static(Permission::FULL_CONTROL);
    vec![Grant { grantee: Some(grantee), permission: Some(permission) }]
}

/// The caller's bucket of that name, or why not.
pub(super) async fn exists<T>(s3: &Translator, req: &S3Request<T>, name: &str) -> S3Result<Row> {
    let asked = Asked::of(req)?;
    Ok(s3.objects.bucket(&asked.caller, &bucket(name)?, Need::Look).await?)
}

pub(super) async fn create(s3: &Translator, req: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
    let asked = Asked::of(&req)?;
    if req.input.object_lock_enabled_for_bucket == Some(true) {
        return Err(s3_error!(NotImplemented, "Object lock is not implemented."));
    }
    let name: BucketName = req.input.bucket.parse().map_err(Error::InvalidBucketName)?;
    let profile = text(&asked.headers, &PROFILE)?;
    let location = Some(format!("/{name}"));
    match s3.objects.create_bucket(&asked.caller, name, profile.as_deref()).await {
        // Making one's own bucket again changes nothing, as in S3's first region.
        Ok(_) | Err(Error::BucketOwned) => Ok(S3Response::new(CreateBucketOutput { location })),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn head(s3: &Translator, req: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
    exists(s3, &req, &req.input.bucket).await?;
    let region = s3.options.region.clone();
    Ok(S3Response::new(HeadBucketOutput { bucket_region: Some(region), ..HeadBucketOutput::default() }))
}

pub(super) async fn list(s3: &Translator, req: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
    let asked = Asked::of(&req)?;
    let input = req.input;
    let max = input.max_buckets.unwrap_or(BUCKETS_MAX);
    if !(1..=BUCKETS_MAX).contains(&max) {
        return Err(s3_error!(InvalidArgument, "max-buckets must be between 1 and {BUCKETS_MAX}."));
    }
    let prefix = input.prefix.unwrap_or_default();
    let after = input.continuation_token.unwrap_or_default();
    let elsewhere = input.bucket_region.is_some_and(|region| region != s3.options.region);
    let all = if elsewhere { Vec::new() } else { s3.objects.buckets(&asked.caller).await? };
    let mut left = all
        .into_iter()
        .filter(|row| row.name.as_str().starts_with(&prefix) && row.name.as_str() > after.as_str())
        .peekable();
    let page: Vec<Row> = left.by_ref().take(max.unsigned_abs() as usize).collect();
    let next = left.peek().and_then(|_| page.last()).map(|last| last.name.as_str().to_owned());
    let shown = page.into_iter().map(|row| Bucket {
        bucket_region: Some(s3.options.region.clone()),
        creation_date: Some(s3_time(row.created_at)),
        name: Some(row.name.as_str().to_owned()),
    });
    Ok(S3Response::new(ListBucketsOutput {
        buckets: Some(shown.collect()),
        continuation_token: next,
        owner: Some(owner(asked.caller.owner)),
        prefix: (!prefix.is_empty()).then_some(prefix),
    }))
}

pub(super) async fn delete(s3: &Translator, req: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
    let asked = Asked::of(&req)?;
    s3.objects.delete_bucket(&asked.caller, &bucket(&req.input.bucket)?).await?;
    Ok(S3Response::new(DeleteBucketOutput::default()))
}

pub(super) async fn location(
    s3: &Translator,
    req: S3Request<GetBucketLocationInput>,
) -> Answer<GetBucketLocationOutput> {
    exists(s3, &req, &req.input.bucket).await?;
    // The oldest region has no name here.
    let region = Some(s3.options.region.clone()).filter(|region| region != "us-east-1");
    let location_constraint = region.map(BucketLocationConstraint::from);
    Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
}

pub(super) async fn acl(s3: &Translator, req: S3Request<GetBucketAclInput>) -> Answer<GetBucketAclOutput> {
    let row = exists(s3, &req, &req.input.bucket).await?;
    Ok(S3Response::new(GetBucketAclOutput { grants: Some(grants(row.owner)), owner: Some(owner(row.owner)) }))
}
