//! The account's own REST routes: what it stores, and how an object is kept.
//!
//! JSON out; errors as problem documents (RFC 9457) with a stable `type`. Whoever serves this has authenticated the
//! request and put the `Principal` in its extensions.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::{DateTime, SecondsFormat, Utc};
use cyxcloud_core::Timestamp;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_metadata::model::{Bucket, Usage};
use serde::Serialize;

use crate::auth::{AuthError, Principal};
use crate::objects::{Condition, Error, Kept, Need, ObjectHealth, ObjectService};

/// Prefix of problem types; they name a problem and need not lead anywhere.
const PROBLEM: &str = "urn:cyxcloud:problem:";

/// A problem document.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct ProblemBody<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Problem {
    /// A problem of this kind, which becomes its stable `type`. `detail` says what to do next.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { status, kind, title, detail: detail.into(), retry_after: None }
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    /// Why credentials open nothing.
    pub fn of_auth(error: &AuthError) -> Self {
        let detail = error.message();
        match error.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "Credentials are needed", detail)
            }
            status if status.is_server_error() => Self::new(status, "unavailable", "Not available", detail),
            status => Self::new(status, "invalid-credentials", "Invalid credentials", detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            r#type: format!("{PROBLEM}{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let mut response = (self.status, Json(body)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.retry_after {
            let seconds = HeaderValue::from(after.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        match error {
            Error::NoSuchBucket => {
                Self::new(StatusCode::NOT_FOUND, "no-such-bucket", "No such bucket", detail)
            }
            Error::NoSuchKey => Self::new(StatusCode::NOT_FOUND, "no-such-key", "No such key", detail),
            Error::AccessDenied | Error::NotAllowed => {
                Self::new(StatusCode::FORBIDDEN, "access-denied", "Access denied", detail)
            }
            Error::Unavailable(_) => {
                tracing::error!(%error, "a rest request failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not available", detail)
            }
            other => {
                tracing::error!(error = ?other, "a rest request failed");
                let detail = "something went wrong on our side; try again";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
            }
        }
    }
}

type Caller = Option<Extension<Principal>>;
type Objects = State<Arc<ObjectService>>;

pub(crate) fn known(caller: Caller) -> Result<Principal, Problem> {
    caller.map(|Extension(principal)| principal).ok_or_else(|| {
        let detail = "send a signature (AWS SigV4, service s3) or Authorization: Bearer with an access token";
        Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", "Credentials are needed", detail)
    })
}

fn name_of(bucket: &str) -> Result<BucketName, Problem> {
    bucket.parse().map_err(|_| Problem::from(Error::NoSuchBucket))
}

#[derive(Serialize)]
struct AccountBody {
    owner_id: String,
    username: Option<String>,
    storage_used_bytes: u64,
    object_count: u64,
    storage_quota_bytes: Option<u64>,
    buckets: Vec<BucketBody>,
}

#[derive(Serialize)]
struct BucketBody {
    name: String,
    created_at: String,
    profile: String,
    storage_used_bytes: u64,
    object_count: u64,
}

impl BucketBody {
    fn of(bucket: &Bucket, usage: Usage) -> Self {
        Self {
            name: bucket.name.as_str().to_owned(),
            created_at: rfc3339(bucket.created_at),
            profile: bucket.profile.clone(),
            storage_used_bytes: usage.bytes.get(),
            object_count: usage.objects,
        }
    }
}

#[derive(Serialize)]
struct ToleranceBody {
    acknowledged: u8,
    target: u8,
}

#[derive(Serialize)]
struct ObjectBody {
    bucket: String,
    key: String,
    size_bytes: u64,
    etag: String,
    content_hash: String,
    content_type: Option<String>,
    modified_at: String,
    geometry: String,
    tolerance: ToleranceBody,
    stripe_size_bytes: u64,
    segments: u64,
    chunk_count: u64,
    /// `null` while it cannot be had.
    health: Option<HealthBody>,
}

#[derive(Serialize)]
struct HealthBody {
    condition: Condition,
    /// Of the worst stripe, like the next two; `null` where all bytes live in the database.
    shards_present: Option<usize>,
    shards_wanted: Option<usize>,
    /// More node losses that it survives; `null` where it cannot be read now.
    tolerates: Option<u8>,
    last_proven_at: Option<String>,
    stripes_short: u64,
    stripes_checked: u64,
    stripes: u64,
}

impl From<ObjectHealth> for HealthBody {
    fn from(health: ObjectHealth) -> Self {
        Self {
            condition: health.condition,
            shards_present: health.worst.map(|worst| worst.present),
            shards_wanted: health.worst.map(|worst| worst.wanted),
            tolerates: health.worst.and_then(|worst| worst.tolerates),
            last_proven_at: health.proven_at.map(rfc3339),
            stripes_short: health.short,
            stripes_checked: health.looked_at,
            stripes: health.stripes,
        }
    }
}

impl ObjectBody {
    fn of(bucket: String, kept: Kept, health: Option<ObjectHealth>) -> Self {
        let object = kept.object;
        Self {
            bucket,
            key: object.key.as_str().to_owned(),
            size_bytes: object.size.get(),
            etag: object.etag,
            content_hash: hex::encode(object.content_hash),
            content_type: object.attributes.content_type,
            modified_at: rfc3339(object.modified_at),
            geometry: kept.geometry,
            tolerance: ToleranceBody { acknowledged: kept.acknowledged, target: kept.target },
            stripe_size_bytes: kept.stripe_size.get(),
            segments: kept.segments,
            chunk_count: kept.chunks,
            health: health.map(HealthBody::from),
        }
    }
}

pub(crate) fn rfc3339(time: Timestamp) -> String {
    let time = DateTime::<Utc>::from_timestamp_millis(time.unix_millis()).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub(crate) async fn account(State(objects): Objects, caller: Caller) -> Result<impl IntoResponse, Problem> {
    let caller = known(caller)?;
    let account = objects.account(&caller.caller()).await?;
    Ok(Json(AccountBody {
        owner_id: account.owner.id.to_string(),
        username: account.owner.username,
        storage_used_bytes: account.usage.bytes.get(),
        object_count: account.usage.objects,
        storage_quota_bytes: account.owner.storage_quota.map(|quota| quota.get()),
        buckets: account.buckets.iter().map(|(bucket, usage)| BucketBody::of(bucket, *usage)).collect(),
    }))
}

pub(crate) async fn bucket(
    State(objects): Objects,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let caller = known(caller)?;
    let bucket = objects.bucket(&caller.caller(), &name_of(&name)?, Need::List("")).await?;
    let usage = objects.bucket_usage(&bucket).await?;
    Ok(Json(BucketBody::of(&bucket, usage)))
}

pub(crate) async fn object(
    State(objects): Objects,
    caller: Caller,
    Path((name, key)): Path<(String, String)>,
) -> Result<impl IntoResponse, Problem> {
    let caller = known(caller)?;
    let key = ObjectKey::new(key).map_err(|_| Problem::from(Error::NoSuchKey))?;
    let bucket = name_of(&name)?;
    let kept = objects.kept(&caller.caller(), &bucket, &key).await?;
    // What can be said is said, also when this part cannot be had now.
    let health = objects.health(&caller.caller(), &bucket, &key).await.inspect_err(|error| {
        tracing::warn!(%error, "the health of an object cannot be had now");
    });
    Ok(Json(ObjectBody::of(name, kept, health.ok())))
}
