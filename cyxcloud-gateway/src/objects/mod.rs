//! What object operations mean: buckets, uploads, reads, copies, multipart uploads and listings over the metadata
//! store and the data plane.
//!
//! Nothing here knows S3's wire format; `s3` translates. Whoever calls has authenticated the caller; every method
//! takes the caller and refuses buckets of others and what the caller's limits
//! do not allow. A body is checked against everything its sender said
//! about it before anything becomes visible, and an upload that fails or is dropped leaves no intent behind.

mod account;
mod buckets;
pub mod checksums;
mod complete;
pub mod conditions;
mod copy;
mod delete;
mod error;
mod get;
mod health;
mod list;
mod multipart;
mod put;
pub mod range;
mod recent;
mod room;
mod secrets;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::name::BucketName;
use cyxcloud_core::node::LifecycleTimers;
use cyxcloud_core::stripe::{INLINE_MAX, StripeSize};
use cyxcloud_core::{ByteCount, FileId, OwnerId, UploadId};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{Bucket, Object};

use crate::events::{Event, Events};
pub use crate::limits::{Caller, Limits, Need};
pub use account::{Account, Kept};
pub use complete::{CompleteUpload, CompletedPart};
pub use copy::{CopyObject, CopyPart, Source};
pub use error::{BoxError, Error, Result};
pub use get::{BodyStream, Read, ReadObject, Select};
pub use health::{Condition, ObjectHealth, StripeHealth};
pub use list::{ListParts, ListUploads, PartsPage};
pub use multipart::{CreateUpload, PutPart, UploadKey};
pub use put::{Claims, LateClaims, PutObject};
pub use secrets::OwnerSecrets;

use recent::RecentBuckets;

/// Largest body of one upload, and largest part.
pub const BODY_MAX: ByteCount = ByteCount::gib(5);
/// Largest object.
pub const OBJECT_MAX: ByteCount = ByteCount::gib(50 << 10);
/// Smallest part but the last.
pub const PART_MIN: ByteCount = ByteCount::mib(5);
/// Highest part number.
pub const PART_NUMBER_MAX: u32 = 10_000;
/// Buckets of one owner, and open multipart uploads, where nothing else is configured.
pub const BUCKETS_PER_OWNER_MAX: u32 = 1_000;
/// See [`BUCKETS_PER_OWNER_MAX`].
pub const UPLOADS_PER_OWNER_MAX: u32 = 10_000;
/// Longest page of any listing.
pub const PAGE_MAX: usize = 1_000;

/// What can be set about the object service.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long the intent of an upload outlives its gateway.
    pub lease: Duration,
    /// How often it is renewed while bytes stream.
    pub renew_every: Duration,
    /// Plain bytes per stripe where an upload says nothing.
    pub stripe_size: StripeSize,
    /// Bodies up to this need no intent: they live in the metadata store. Must be the data plane's own threshold.
    pub inline_max: ByteCount,
    /// Buckets of one owner.
    pub buckets_max: u32,
    /// Open multipart uploads of one owner.
    pub uploads_max: u32,
    /// Silence after which a node is offline: one that is to be emptied and was silent for so long holds nothing that could be read.
    pub offline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(3600),
            renew_every: Duration::from_secs(300),
            stripe_size: StripeSize::default(),
            inline_max: INLINE_MAX,
            buckets_max: BUCKETS_PER_OWNER_MAX,
            uploads_max: UPLOADS_PER_OWNER_MAX,
            offline: LifecycleTimers::default().offline,
        }
    }
}

/// The object service. See the module.
#[derive(Debug)]
pub struct ObjectService {
    metadata: Arc<dyn MetadataStore>,
    plane: DataPlane,
    secrets: OwnerSecrets,
    recent: RecentBuckets,
    config: Config,
    events: Option<Events>,
}

impl ObjectService {
    /// A service over a metadata store and a data plane that uses the same store.
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        plane: DataPlane,
        secrets: OwnerSecrets,
        config: Config,
    ) -> Self {
        Self { metadata, plane, secrets, recent: RecentBuckets::new(), config, events: None }
    }

    /// Tells what becomes of buckets and objects.
    #[must_use]
    pub fn with_events(self, events: Events) -> Self {
        Self { events: Some(events), ..self }
    }

    fn tell(&self, owner: OwnerId, event: Event) {
        if let Some(events) = &self.events {
            events.tell(owner, event);
        }
    }

    /// Tells that an object is there.
    fn tell_created(&self, bucket: &Bucket, object: &Object) {
        let (name, key) = (bucket.name.to_string(), object.key.as_str().to_owned());
        self.tell(bucket.owner, Event::FileCreated { bucket: name, key, size: object.size.get() });
    }

    /// Tells that objects are gone, of those that were there.
    fn tell_deleted<'a>(&self, bucket: &Bucket, objects: impl IntoIterator<Item = &'a Object>) {
        for object in objects {
            let (name, key) = (bucket.name.to_string(), object.key.as_str().to_owned());
            self.tell(bucket.owner, Event::FileDeleted { bucket: name, key });
        }
    }

    /// The data plane above the nodes.
    pub fn plane(&self) -> &DataPlane {
        &self.plane
    }

    /// Whether somebody waits to read because others hold the memory for it.
    pub fn readers_wait(&self) -> bool {
        self.plane.readers_wait()
    }

    /// The metadata store below.
    pub fn metadata(&self) -> &Arc<dyn MetadataStore> {
        &self.metadata
    }

    /// The caller's bucket of this name, for what the caller's limits allow. `NoSuchBucket`, `AccessDenied`.
    pub async fn bucket(&self, caller: &Caller, name: &BucketName, need: Need<'_>) -> Result<Bucket> {
        if !caller.may(name, need) {
            return Err(Error::NotAllowed);
        }
        let bucket = self.metadata.bucket(name).await?.ok_or(Error::NoSuchBucket)?;
        self.recent.remember(&bucket).await;
        if bucket.owner == caller.owner { Ok(bucket) } else { Err(Error::AccessDenied) }
    }
}

fn new_upload_id() -> UploadId {
    UploadId::from_random(rand::random())
}

fn new_file_id() -> FileId {
    FileId::from_random(rand::random())
}
