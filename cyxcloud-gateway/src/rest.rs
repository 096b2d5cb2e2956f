//! The account's own REST routes: what it stores, and how an object is kept.
//!
//! JSON out; errors as problem documents ([`crate::problem`]). Whoever serves this has authenticated the
//! request and put the `Principal` in its extensions.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRef, FromRequest, Path, Request, State};
use axum::{Extension, Json};
use chrono::{DateTime, SecondsFormat, Utc};
use cyxcloud_core::Timestamp;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_metadata::model::{Bucket, Usage};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::BODY_MAX;
use crate::auth::Principal;
use crate::documents::{self, Documents, Sender, Terms};
use crate::objects::{Condition, Error, Kept, Need, ObjectHealth, ObjectService};
use crate::problem::{Kind, Problem};

/// What a body here may be.
const TERMS: Terms = Terms { bytes_max: BODY_MAX, time_max: Duration::from_secs(30) };

/// A whole body, if it is none too large.
pub(crate) struct Raw(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw
where
    Documents: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let sender = Sender::of(request.extensions());
        let taken = Documents::from_ref(state).take_in(sender, request.into_body(), TERMS).await;
        taken.map(Self).map_err(|error| match error {
            documents::Error::TooLong => {
                Problem::new(Kind::TooLarge, format!("a body here has {BODY_MAX} bytes at most"))
            }
            documents::Error::Late => {
                let detail =
                    format!("the body did not come within {} s; send it again", TERMS.time_max.as_secs());
                Problem::new(Kind::InvalidRequest, detail)
            }
            documents::Error::NoRoom => {
                Problem::new(Kind::Unavailable, "there are too many bodies to be read just now; try again")
                    .retry_after(Duration::from_secs(1))
            }
            documents::Error::Body(_) => {
                Problem::new(Kind::InvalidRequest, "the body did not come to its end; send it again")
            }
        })
    }
}

type Caller = Option<Extension<Principal>>;
type Objects = State<Arc<ObjectService>>;

pub(crate) fn known(caller: Caller) -> Result<Principal, Problem> {
    caller.map(|Extension(principal)| principal).ok_or_else(|| {
        let detail = "send a signature (AWS SigV4, service s3) or Authorization: Bearer with an access token";
        Problem::new(Kind::Unauthenticated, detail)
    })
}

fn name_of(bucket: &str) -> Result<BucketName, Problem> {
    bucket.parse().map_err(|_| Problem::from(Error::NoSuchBucket))
}

/// What the account stores.
#[derive(Serialize, ToSchema)]
pub(crate) struct AccountBody {
    owner_id: String,
    username: Option<String>,
    /// Of the buckets that the credentials open; `null`, like the next and those of each bucket, for a key limited to prefixes.
    storage_used_bytes: Option<u64>,
    object_count: Option<u64>,
    /// `null` is no limit.
    storage_quota_bytes: Option<u64>,
    buckets: Vec<BucketBody>,
}

/// What a bucket stores.
#[derive(Serialize, ToSchema)]
pub(crate) struct BucketBody {
    name: String,
    created_at: String,
    /// How its objects are placed.
    profile: String,
    /// `null`, like the next, for a key limited to prefixes: of a bucket only the whole is counted.
    storage_used_bytes: Option<u64>,
    object_count: Option<u64>,
}

impl BucketBody {
    fn of(bucket: &Bucket, usage: Option<Usage>) -> Self {
        Self {
            name: bucket.name.as_str().to_owned(),
            created_at: rfc3339(bucket.created_at),
            profile: bucket.profile.clone(),
            storage_used_bytes: usage.map(|usage| usage.bytes.get()),
            object_count: usage.map(|usage| usage.objects),
        }
    }
}

/// Node losses that an object survives.
#[derive(Serialize, ToSchema)]
pub(crate) struct ToleranceBody {
    /// When it was stored.
    acknowledged: u8,
    /// When all that was wanted is in place.
    target: u8,
}

/// How an object is kept.
#[derive(Serialize, ToSchema)]
pub(crate) struct ObjectBody {
    bucket: String,
    key: String,
    size_bytes: u64,
    etag: String,
    /// Blake3, in hexadecimal.
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

/// How much of an object is there.
#[derive(Serialize, ToSchema)]
pub(crate) struct HealthBody {
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

pub(crate) async fn account(State(objects): Objects, caller: Caller) -> Result<Json<AccountBody>, Problem> {
    let caller = known(caller)?;
    let account = objects.account(&caller.caller()).await?;
    Ok(Json(AccountBody {
        owner_id: account.owner.id.to_string(),
        username: account.owner.username,
        storage_used_bytes: account.usage.map(|usage| usage.bytes.get()),
        object_count: account.usage.map(|usage| usage.objects),
        storage_quota_bytes: account.owner.storage_quota.map(|quota| quota.get()),
        buckets: account.buckets.iter().map(|(bucket, usage)| BucketBody::of(bucket, *usage)).collect(),
    }))
}

pub(crate) async fn bucket(
    State(objects): Objects,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<BucketBody>, Problem> {
    let caller = known(caller)?;
    let bucket = objects.bucket(&caller.caller(), &name_of(&name)?, Need::List("")).await?;
    let usage = objects.bucket_usage(&bucket).await?;
    Ok(Json(BucketBody::of(&bucket, Some(usage))))
}

pub(crate) async fn object(
    State(objects): Objects,
    caller: Caller,
    Path((name, key)): Path<(String, String)>,
) -> Result<Json<ObjectBody>, Problem> {
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
