//! The operations, one line each: who asks is taken from the request, what it means is in the modules beside.

use std::sync::Arc;

use async_trait::async_trait;
use cyxcloud_core::name::{BucketName, ObjectKey};
use http::{HeaderMap, StatusCode};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::error::s3_error_of;
use super::{Options, buckets, headers, listing, multipart, read, unconfigured, write};
use crate::auth::Principal;
use crate::objects::{Caller, ObjectService};

/// What everything is sealed with, in S3's words.
pub(super) fn encryption() -> Option<ServerSideEncryption> {
    Some(ServerSideEncryption::from_static(ServerSideEncryption::AES256))
}

/// Translates S3's operations into those of the object service.
#[derive(Debug)]
pub(super) struct Translator {
    pub(super) objects: Arc<ObjectService>,
    pub(super) options: Arc<Options>,
}

/// What every operation knows of its request beside its input.
pub(super) struct Asked {
    /// Who asks.
    pub(super) caller: Caller,
    /// The headers as they came.
    pub(super) headers: Arc<HeaderMap>,
}

impl Asked {
    pub(super) fn of<T>(request: &S3Request<T>) -> S3Result<Self> {
        let principal = request.extensions.get::<Principal>();
        let caller = principal.ok_or_else(|| s3_error!(AccessDenied, "Access Denied"))?.caller();
        Ok(Self { caller, headers: headers::original(&request.extensions)? })
    }
}

/// The bucket named; no name that could not be made is one.
pub(super) fn bucket(name: &str) -> S3Result<BucketName> {
    name.parse().map_err(|_| s3_error!(NoSuchBucket, "The specified bucket does not exist."))
}

/// The key named.
pub(super) fn key(key: String) -> S3Result<ObjectKey> {
    use cyxcloud_core::name::ObjectKeyError as E;
    ObjectKey::new(key).map_err(|error| match error {
        E::TooLong(_) => s3_error!(KeyTooLongError, "Your key is too long; it can have 1024 bytes."),
        E::Empty => s3_error_of(
            "UserKeyMustBeSpecified",
            StatusCode::BAD_REQUEST,
            "A key has at least one character.",
        ),
    })
}

/// Versioning is off: the one version there is is called `null`.
pub(super) fn version(id: Option<&str>) -> S3Result<()> {
    match id {
        None | Some("null") => Ok(()),
        Some(_) => Err(s3_error!(NoSuchVersion, "The specified version does not exist.")),
    }
}

pub(super) fn strong(etag: impl Into<String>) -> Option<ETag> {
    Some(ETag::Strong(etag.into()))
}

pub(super) type Answer<T> = S3Result<S3Response<T>>;

#[async_trait]
impl S3 for Translator {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        buckets::create(self, req).await
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        buckets::head(self, req).await
    }

    async fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        buckets::list(self, req).await
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
        buckets::delete(self, req).await
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> Answer<GetBucketLocationOutput> {
        buckets::location(self, req).await
    }

    async fn get_bucket_acl(&self, req: S3Request<GetBucketAclInput>) -> Answer<GetBucketAclOutput> {
        buckets::acl(self, req).await
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> Answer<GetBucketVersioningOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Ok(S3Response::new(GetBucketVersioningOutput::default()))
    }

    async fn get_bucket_policy(&self, req: S3Request<GetBucketPolicyInput>) -> Answer<GetBucketPolicyOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::policy())
    }

    async fn get_bucket_cors(&self, req: S3Request<GetBucketCorsInput>) -> Answer<GetBucketCorsOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::cors())
    }

    async fn get_bucket_lifecycle_configuration(
        &self,
        req: S3Request<GetBucketLifecycleConfigurationInput>,
    ) -> Answer<GetBucketLifecycleConfigurationOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::lifecycle())
    }

    async fn get_bucket_website(
        &self,
        req: S3Request<GetBucketWebsiteInput>,
    ) -> Answer<GetBucketWebsiteOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::website())
    }

    async fn get_bucket_tagging(
        &self,
        req: S3Request<GetBucketTaggingInput>,
    ) -> Answer<GetBucketTaggingOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::bucket_tagging())
    }

    async fn get_bucket_replication(
        &self,
        req: S3Request<GetBucketReplicationInput>,
    ) -> Answer<GetBucketReplicationOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::replication())
    }

    async fn get_object_lock_configuration(
        &self,
        req: S3Request<GetObjectLockConfigurationInput>,
    ) -> Answer<GetObjectLockConfigurationOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::object_lock())
    }

    async fn get_public_access_block(
        &self,
        req: S3Request<GetPublicAccessBlockInput>,
    ) -> Answer<GetPublicAccessBlockOutput> {
        buckets::exists(self, &req, &req.input.bucket).await?;
        Err(unconfigured::public_access_block())
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        write::put(self, req).await
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        write::copy(self, req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        write::delete(self, req).await
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        write::delete_many(self, req).await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        read::get(self, req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        read::head(self, req).await
    }

    async fn get_object_attributes(
        &self,
        req: S3Request<GetObjectAttributesInput>,
    ) -> Answer<GetObjectAttributesOutput> {
        read::attributes(self, req).await
    }

    async fn get_object_acl(&self, req: S3Request<GetObjectAclInput>) -> Answer<GetObjectAclOutput> {
        read::acl(self, req).await
    }

    async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> Answer<GetObjectTaggingOutput> {
        read::tagging(self, req).await
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        listing::v1(self, req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        listing::v2(self, req).await
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        listing::uploads(self, req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        multipart::create(self, req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        multipart::part(self, req).await
    }

    async fn upload_part_copy(&self, req: S3Request<UploadPartCopyInput>) -> Answer<UploadPartCopyOutput> {
        multipart::part_copy(self, req).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        multipart::list_parts(self, req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        multipart::complete(self, req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        multipart::abort(self, req).await
    }
}
