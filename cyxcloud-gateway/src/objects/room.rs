//! Room for a body of which nobody said how long it is: reserved of the owner's quota ahead of its bytes, step by step.
//!
//! Nothing is taken that was not reserved, however many such bodies come at once. Not here: bodies whose length is known,
//! which reserve all of it before they begin.

use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::{ByteCount, UploadId};
use cyxcloud_metadata::{MetadataStore, Result};
use futures::{Stream, TryStreamExt as _};

use super::error::BodyFault;

/// Bytes of the first step. Each later one is as long as all before it, up to the last of these: small bodies keep little room
/// from others, and large ones ask seldom.
const STEP_MIN: u64 = 1 << 20;
const STEP_MAX: u64 = 64 << 20;

/// What an upload has reserved, and how it gets more.
#[derive(Debug)]
pub(super) struct Room {
    metadata: Arc<dyn MetadataStore>,
    upload: UploadId,
    /// `None` where there is no quota.
    reserved: Option<u64>,
}

impl Room {
    /// For an upload that was begun. Refuses where there is room for no byte.
    pub(super) async fn begin(metadata: Arc<dyn MetadataStore>, upload: UploadId) -> Result<Self> {
        let mut room = Self { metadata, upload, reserved: Some(0) };
        room.make(1).await?;
        Ok(room)
    }

    /// Sees that so many bytes in all are reserved, or refuses.
    async fn make(&mut self, bytes: u64) -> Result<()> {
        while let Some(reserved) = self.reserved
            && reserved < bytes
        {
            let step = reserved.clamp(STEP_MIN, STEP_MAX).max(bytes - reserved);
            let reserved = self.metadata.reserve_more(self.upload, ByteCount::bytes(step)).await?;
            self.reserved = reserved.map(ByteCount::get);
        }
        Ok(())
    }

    /// The body, ended by a fault where there is no room for more of it.
    pub(super) fn hold<S>(self, body: S) -> impl Stream<Item = Result<Bytes, BodyFault>> + Send
    where
        S: Stream<Item = Result<Bytes, BodyFault>> + Send,
    {
        futures::stream::try_unfold((Box::pin(body), self, 0), |(mut body, mut room, had)| async move {
            let Some(bytes) = body.try_next().await? else { return Ok(None) };
            let have = had + bytes.len() as u64;
            room.make(have).await.map_err(BodyFault::NoRoom)?;
            Ok(Some((bytes, (body, room, have))))
        })
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_metadata::Error as MetadataError;
    use cyxcloud_metadata::identity::model::PersonChange;
    use cyxcloud_metadata::model::NewUpload;
    use futures::StreamExt as _;

    use super::*;
    use crate::objects::ObjectService;
    use crate::objects::testing::service;

    const MIB: u64 = 1 << 20;

    /// A service whose owner may store so much, and two uploads under way there.
    async fn two_uploads(quota: Option<ByteCount>) -> (ObjectService, [UploadId; 2]) {
        let (service, bucket, key) = service().await;
        let change = PersonChange { quota: Some(quota), ..PersonChange::default() };
        service.metadata.change_person(bucket.owner, &change).await.expect("changes the quota");
        let ids = [[3; 16], [4; 16]].map(UploadId::from_random);
        for id in ids {
            let upload = NewUpload {
                id,
                owner: bucket.owner,
                bucket: bucket.id,
                key: key.clone(),
                lease: std::time::Duration::from_secs(60),
                reserve: ByteCount::ZERO,
            };
            service.metadata.begin_upload(&upload).await.expect("begins");
        }
        (service, ids)
    }

    /// What comes of a body of so many MiB, in pieces of one, and how it ends.
    async fn take(room: Room, mib: usize) -> (u64, Option<BodyFault>) {
        let piece = Bytes::from(vec![0; MIB as usize]);
        let body = futures::stream::iter((0..mib).map(|_| Ok(piece.clone())));
        let (mut taken, mut fault) = (0, None);
        let mut body = Box::pin(room.hold(body));
        while let Some(piece) = body.next().await {
            match piece {
                Ok(bytes) => taken += bytes.len() as u64,
                Err(error) => fault = Some(error),
            }
        }
        (taken, fault)
    }

    #[tokio::test]
    async fn adv_42_a_body_of_unknown_length_ends_where_the_room_does() {
        let (service, [first, second]) = two_uploads(Some(ByteCount::bytes(5 * MIB + 1))).await;
        let begin = async |id| Room::begin(Arc::clone(&service.metadata), id).await;
        let full = |error: &MetadataError| matches!(error, MetadataError::QuotaExceeded { .. });
        let (one, other) = (begin(first).await.expect("room"), begin(second).await.expect("room"));
        // It has the room that the other did not reserve.
        let (taken, fault) = take(one, 9).await;
        assert!(matches!(fault, Some(BodyFault::NoRoom(error)) if full(&error)));
        assert_eq!(taken, 4 * MIB);
        let (taken, fault) = take(other, 1).await;
        assert!(taken == MIB && fault.is_none());
        assert!(begin(second).await.is_err_and(|error| full(&error)), "there is room for no byte");
    }

    #[tokio::test]
    async fn where_there_is_no_quota_there_is_room() {
        let (service, [first, _]) = two_uploads(None).await;
        let room = Room::begin(Arc::clone(&service.metadata), first).await.expect("room");
        let (taken, fault) = take(room, 9).await;
        assert!(taken == 9 * MIB && fault.is_none());
    }
}
