//! An upload: the body streams to the nodes under an intent, is checked, and becomes visible in one transaction.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::ByteCount;
use cyxcloud_core::UploadId;
use cyxcloud_core::crash_point;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::profile::Profile;
use cyxcloud_core::stripe::StripeSize;
use cyxcloud_dataplane::WriteRequest;
use cyxcloud_metadata::model::{
    Attributes, Bucket, CommitObject, Content, NewSegment, NewUpload, Object, Precondition, SegmentBody,
};
use cyxcloud_metadata::{Error as MetadataError, MetadataStore};
use futures::{Stream, StreamExt, TryStreamExt as _};
use tracing::{debug, warn};

use super::checksums::{Algorithm, Digests, Hasher};
use super::error::{BodyFault, BoxError, Error, Result};
use super::room::Room;
use super::{BODY_MAX, ObjectService, new_file_id, new_upload_id};
use crate::events::progress::Teller;
use crate::limits::{Caller, Need};

/// So often a cancellation is repeated that found nothing to cancel yet.
const LATE: usize = 3;
/// Pauses before a cancellation that failed is tried again: longer than a database takes to come back.
const CANCEL_AGAIN_AFTER: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(30),
    Duration::from_secs(120),
];

/// Checksums that become known only when the body has ended. An error is the sender's.
pub type LateClaims = Box<dyn FnOnce() -> Result<Vec<(Algorithm, Vec<u8>)>> + Send>;

/// What the sender says of a body. All of it is checked before anything becomes visible.
#[derive(Default)]
pub struct Claims {
    /// Number of bytes.
    pub length: Option<u64>,
    /// MD5 of the bytes.
    pub md5: Option<[u8; 16]>,
    /// Checksums known before the body.
    pub checksums: Vec<(Algorithm, Vec<u8>)>,
    /// Checksums known after it; their algorithms must be among `compute`.
    pub late: Option<LateClaims>,
    /// Checksums to compute and store although none may be claimed.
    pub compute: Vec<Algorithm>,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims")
            .field("length", &self.length)
            .field("compute", &self.compute)
            .finish_non_exhaustive()
    }
}

impl Claims {
    /// Algorithms that the body must be hashed with, MD5 aside.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        self.checksums.iter().map(|(algorithm, _)| *algorithm).chain(self.compute.iter().copied())
    }

    /// Whether the body was what its sender said.
    pub fn check(self, digests: &Digests) -> Result<()> {
        if let Some(want) = self.length
            && want != digests.length
        {
            return Err(Error::IncompleteBody { want, have: digests.length });
        }
        if self.md5.is_some_and(|md5| md5 != digests.md5) {
            return Err(Error::BadDigest { what: "Content-MD5" });
        }
        let late = self.late.map_or_else(|| Ok(Vec::new()), |late| late())?;
        for (algorithm, claimed) in self.checksums.iter().chain(&late) {
            let what = algorithm.name();
            let have = digests.get(*algorithm).ok_or(Error::InvalidChecksum { what })?;
            if have != claimed.as_slice() {
                return Err(Error::BadDigest { what });
            }
        }
        Ok(())
    }
}

/// An upload of one body.
#[derive(Debug)]
pub struct PutObject {
    /// Who uploads.
    pub caller: Caller,
    /// Where to.
    pub bucket: BucketName,
    /// Under which key.
    pub key: ObjectKey,
    /// Headers and metadata; checksums are filled in.
    pub attributes: Attributes,
    /// What must hold of the key.
    pub precondition: Precondition,
    /// What is said of the body.
    pub claims: Claims,
    /// Plain bytes per stripe, if the upload wants its own.
    pub stripe_size: Option<StripeSize>,
}

/// Where a body goes.
pub(super) struct Target<'a> {
    pub(super) bucket: &'a Bucket,
    pub(super) key: &'a ObjectKey,
    /// Which part, where it is one of a multipart upload.
    pub(super) part: Option<u32>,
    pub(super) stripe_size: Option<StripeSize>,
    pub(super) length: Option<u64>,
}

/// A body that is stored and checked, and not yet visible.
pub(super) struct Written {
    pub(super) segment: NewSegment,
    pub(super) digests: Digests,
    pub(super) upload: UploadId,
    pub(super) intent: Option<Intent>,
}

impl ObjectService {
    /// Stores a body as an object.
    pub async fn put<S>(&self, put: PutObject, body: S) -> Result<Object>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        let PutObject { caller, bucket, key, mut attributes, precondition, claims, stripe_size } = put;
        // What a precondition says of a key must not be said of a bucket that is no more.
        let recent = match precondition {
            Precondition::None => self.recent_bucket(&caller, &bucket, Need::Write(&key)).await?,
            _ => self.bucket(&caller, &bucket, Need::Write(&key)).await?.into(),
        };
        let bucket = &recent.bucket;
        self.check_early(bucket, &key, &precondition).await?;
        let target = Target { bucket, key: &key, part: None, stripe_size, length: claims.length };
        let written = self.write_body(target, claims, body).await?;
        attributes.checksums = written.digests.stored();
        let mut commit = CommitObject {
            upload: written.upload,
            has_intent: written.intent.is_some(),
            file: new_file_id(),
            owner: caller.owner,
            bucket: bucket.id,
            key,
            precondition,
            size: ByteCount::bytes(written.digests.length),
            etag: written.digests.etag(),
            content_hash: written.segment.content_hash,
            attributes,
            content: Content::New(written.segment),
        };
        crash_point!("put.before_commit");
        let object = match self.metadata.commit_object(&commit).await {
            Err(MetadataError::NoSuchBucket) => {
                let anew = self.made_anew(&caller, &recent, Need::Write(&commit.key)).await?;
                // What was written keeps the promise of the profile that it was written for.
                let anew =
                    anew.filter(|anew| anew.bucket.profile == bucket.profile).ok_or(Error::NoSuchBucket)?;
                commit.bucket = anew.bucket.id;
                self.metadata.commit_object(&commit).await?
            }
            committed => committed?,
        };
        crash_point!("put.committed");
        written.intent.into_iter().for_each(Intent::ended);
        self.tell_created(bucket, &object);
        Ok(object)
    }

    /// Refuses before taking bytes what the commit would refuse after them.
    pub(super) async fn check_early(
        &self,
        bucket: &Bucket,
        key: &ObjectKey,
        precondition: &Precondition,
    ) -> Result<()> {
        if *precondition == Precondition::None {
            return Ok(());
        }
        let current = self.metadata.object(bucket.id, key).await?;
        Ok(precondition.judge(current.as_ref().map(|object| object.etag.as_str()))?)
    }

    /// Streams a body to the nodes and checks it. Nothing is visible yet; what is returned must be committed, and if
    /// it is dropped instead, its intent is cancelled.
    pub(super) async fn write_body<S>(&self, target: Target<'_>, claims: Claims, body: S) -> Result<Written>
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send,
    {
        let max = BODY_MAX.get();
        if claims.length.is_some_and(|length| length > max) {
            return Err(Error::TooLarge { max });
        }
        let bucket = target.bucket;
        let profile =
            Profile::by_name(&bucket.profile).ok_or_else(|| Error::NoSuchProfile(bucket.profile.clone()))?;
        let secret = self.secrets.of(bucket.owner).await?;
        let upload = new_upload_id();
        let stays_inline = claims.length.is_some_and(|length| length <= self.config.inline_max.get());
        let intent = if stays_inline {
            None
        } else {
            self.check_capacity(profile).await?;
            Some(self.begin(upload, &target).await?)
        };
        let room = match (&intent, claims.length) {
            (Some(_), None) => Some(Room::begin(Arc::clone(&self.metadata), upload).await?),
            _ => None,
        };
        let request = WriteRequest {
            owner: bucket.owner,
            secret,
            profile,
            stripe_size: target.stripe_size.unwrap_or(self.config.stripe_size).get(),
            length: claims.length,
        };
        let hasher = Arc::new(Mutex::new(Some(Hasher::new(claims.algorithms()))));
        let tapped = Arc::clone(&hasher);
        let tap = Box::new(move |bytes: &[u8]| {
            if let Some(hasher) = tapped.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                hasher.update(bytes);
            }
        });
        let mut teller = self.events.clone().zip(claims.length).map(|(events, total)| {
            Teller::begin(events, total, bucket.clone(), target.key.clone(), target.part)
        });
        let body = limited(body, claims.length, max).inspect_ok(move |bytes| {
            if let Some(teller) = &mut teller {
                teller.received(bytes.len());
            }
        });
        let body = match room {
            Some(room) => room.hold(body).left_stream(),
            None => body.right_stream(),
        };
        let segment = match &intent {
            None => self.plane.write_segment(request, body, tap).await?,
            Some(intent) => tokio::select! {
                written = self.plane.write_segment(request, body, tap) => written?,
                gone = self.keep_alive(intent) => return Err(gone),
            },
        };
        let hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner).take();
        let digests = hasher.expect("only this place takes the hasher").finish();
        claims.check(&digests)?;
        let without_intent =
            intent.is_none() && matches!(&segment.body, SegmentBody::Stripes(s) if !s.is_empty());
        assert!(!without_intent, "the data plane put a body on nodes that was to stay inline");
        Ok(Written { segment, digests, upload, intent })
    }

    /// Refuses before taking bytes where there are too few nodes. The list may be older than a node that just came.
    async fn check_capacity(&self, profile: &Profile) -> Result<()> {
        if self.plane.check_capacity(profile).is_err() {
            self.plane.refresh_nodes().await?;
            self.plane.check_capacity(profile)?;
        }
        Ok(())
    }

    async fn begin(&self, upload: UploadId, target: &Target<'_>) -> Result<Intent> {
        // Armed before the call: if the answer is lost, the row may be there.
        let mut intent = Intent { metadata: Arc::clone(&self.metadata), id: Some(upload), begun: false };
        let begin = NewUpload {
            id: upload,
            owner: target.bucket.owner,
            bucket: target.bucket.id,
            key: target.key.clone(),
            lease: self.config.lease,
            // Where the length is not known, `Room` reserves as bytes come.
            reserve: ByteCount::bytes(target.length.unwrap_or(0)),
        };
        self.metadata.begin_upload(&begin).await?;
        intent.begun = true;
        crash_point!("put.begun");
        Ok(intent)
    }

    /// Renews the lease for as long as it is polled; returns only when it is lost.
    async fn keep_alive(&self, intent: &Intent) -> Error {
        let mut ticks = tokio::time::interval(self.config.renew_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let Some(id) = intent.id else { return Error::UploadGone };
            match self.metadata.renew_upload(id, self.config.lease).await {
                Ok(()) => debug!(upload = %id, "renewed the lease of an upload"),
                Err(MetadataError::UploadGone) => return Error::UploadGone,
                // The lease is many renewals long; if it does run out, the commit refuses.
                Err(error) => warn!(upload = %id, %error, "could not renew the lease of an upload"),
            }
        }
    }
}

/// Ends a body that is longer than was said or than can be.
fn limited<S>(
    body: S,
    announced: Option<u64>,
    max: u64,
) -> impl Stream<Item = Result<Bytes, BodyFault>> + Send
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send,
{
    let mut have = 0u64;
    body.map(move |item| {
        let bytes = item.map_err(BodyFault::Sender)?;
        have += bytes.len() as u64;
        match announced {
            Some(want) if have > want => Err(BodyFault::Longer { want, have }),
            _ if have > max => Err(BodyFault::TooLong { max }),
            _ => Ok(bytes),
        }
    })
}

/// An upload's row in the database; cancelled when dropped, unless it has ended.
#[derive(Debug)]
pub(super) struct Intent {
    metadata: Arc<dyn MetadataStore>,
    id: Option<UploadId>,
    /// Whether its row is known to be there.
    begun: bool,
}

impl Intent {
    /// The commit has ended it.
    pub(super) fn ended(mut self) {
        self.id = None;
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        // Without a runtime we are shutting down; the lease runs out by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (metadata, begun) = (Arc::clone(&self.metadata), self.begun);
        runtime.spawn(async move {
            // While it seems to be under way, nothing that was deleted since leaves the nodes: worth some patience. Nor is it over
            // when it was given up while it was being begun: its row may come after it was looked for.
            for (tried, pause) in CANCEL_AGAIN_AFTER.into_iter().enumerate() {
                match metadata.cancel_upload(id).await {
                    Ok(()) if begun || tried >= LATE => return,
                    Ok(()) => {}
                    Err(error) => debug!(upload = %id, %error, "could not cancel an upload yet"),
                }
                tokio::time::sleep(pause).await;
            }
            if let Err(error) = metadata.cancel_upload(id).await {
                warn!(upload = %id, %error, "could not cancel an upload; its lease will run out");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::testing::service;

    fn digests(body: &[u8]) -> Digests {
        let mut hasher = Hasher::new(Algorithm::ALL);
        hasher.update(body);
        hasher.finish()
    }

    /// Whoever asked went away while it was being begun, and the store was slower than he.
    #[tokio::test]
    async fn what_is_begun_after_it_was_given_up_is_cancelled() {
        let (service, bucket, key) = service().await;
        let (metadata, id) = (Arc::clone(&service.metadata), UploadId::from_random([9; 16]));
        drop(Intent { metadata: Arc::clone(&metadata), id: Some(id), begun: false });
        // The first one lets the intent's own begin, and the second comes after that.
        for _ in 0..2 {
            metadata.cancel_upload(id).await.expect("cancels");
        }
        let lease = Duration::from_secs(3_600);
        let late =
            NewUpload { id, owner: bucket.owner, bucket: bucket.id, key, lease, reserve: ByteCount::ZERO };
        metadata.begin_upload(&late).await.expect("begins");
        metadata.renew_upload(id, lease).await.expect("is there");
        let gone = async {
            while metadata.renew_upload(id, lease).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.expect("is cancelled all the same");
    }

    #[test]
    fn a_body_must_be_what_its_sender_said() {
        let have = digests(b"hello");
        let good = |algorithm: Algorithm| (algorithm, algorithm.of(b"hello"));
        assert!(Claims::default().check(&have).is_ok());
        assert!(Claims { length: Some(5), md5: Some(have.md5), ..Claims::default() }.check(&have).is_ok());
        for algorithm in Algorithm::ALL {
            assert!(Claims { checksums: vec![good(algorithm)], ..Claims::default() }.check(&have).is_ok());
            let bad = vec![(algorithm, algorithm.of(b"hellO"))];
            let late = bad.clone();
            let early = Claims { checksums: bad, ..Claims::default() };
            assert!(matches!(early.check(&have), Err(Error::BadDigest { .. })));
            let late = Claims { late: Some(Box::new(move || Ok(late))), ..Claims::default() };
            assert!(matches!(late.check(&have), Err(Error::BadDigest { .. })));
        }
        let short = Claims { length: Some(6), ..Claims::default() };
        assert!(matches!(short.check(&have), Err(Error::IncompleteBody { want: 6, have: 5 })));
        let md5 = Claims { md5: Some([0; 16]), ..Claims::default() };
        assert!(matches!(md5.check(&have), Err(Error::BadDigest { what: "Content-MD5" })));
    }

    #[test]
    fn a_late_claim_that_was_not_announced_is_refused() {
        let mut hasher = Hasher::new([]);
        hasher.update(b"hello");
        let late = vec![(Algorithm::Crc32, Algorithm::Crc32.of(b"hello"))];
        let claims = Claims { late: Some(Box::new(move || Ok(late))), ..Claims::default() };
        assert!(matches!(claims.check(&hasher.finish()), Err(Error::InvalidChecksum { what: "CRC32" })));
    }

    mod intents {
        use std::time::Duration;

        use super::super::*;
        use crate::objects::testing::service;

        async fn is_gone(service: &ObjectService, id: UploadId) -> bool {
            let renewed = service.metadata.renew_upload(id, Duration::from_secs(60)).await;
            matches!(renewed, Err(MetadataError::UploadGone))
        }

        #[tokio::test]
        async fn one_that_is_dropped_is_cancelled() {
            let (service, bucket, key) = service().await;
            let target = Target { bucket: &bucket, key: &key, part: None, stripe_size: None, length: None };
            let id = new_upload_id();
            let intent = service.begin(id, &target).await.expect("begins");
            assert!(!is_gone(&service, id).await);
            drop(intent);
            for _ in 0..200 {
                if is_gone(&service, id).await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("the intent is still there");
        }

        #[tokio::test]
        async fn one_that_has_ended_is_left_alone() {
            let (service, bucket, key) = service().await;
            let target = Target { bucket: &bucket, key: &key, part: None, stripe_size: None, length: None };
            let id = new_upload_id();
            service.begin(id, &target).await.expect("begins").ended();
            tokio::time::sleep(Duration::from_millis(30)).await;
            assert!(!is_gone(&service, id).await);
        }

        #[tokio::test]
        async fn renewing_ends_when_the_lease_is_lost() {
            let (service, bucket, key) = service().await;
            let target = Target { bucket: &bucket, key: &key, part: None, stripe_size: None, length: None };
            let id = new_upload_id();
            let intent = service.begin(id, &target).await.expect("begins");
            let waited = tokio::time::timeout(Duration::from_millis(50), service.keep_alive(&intent)).await;
            assert!(waited.is_err(), "it renews for as long as the intent is there");
            service.metadata.cancel_upload(id).await.expect("cancels");
            assert!(matches!(service.keep_alive(&intent).await, Error::UploadGone));
        }
    }
}
