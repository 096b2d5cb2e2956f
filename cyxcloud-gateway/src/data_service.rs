//! The gateway's DataService: streams stored objects to programs that train on them.
//!
//! Callers authenticate with the same tokens as on HTTP, in the `authorization` metadata.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_metadata::model::{ListEntry, ListObjects};
use cyxcloud_proto::gateway as wire;
use cyxcloud_proto::gateway::data_service_server::DataService;
use cyxcloud_tls::grpc::PeerInfo;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};
use tracing::warn;

use crate::auth::{Authenticator, Principal};
use crate::journal::Journal;
use crate::objects::conditions::ReadConditions;
use crate::objects::range::ByteRange;
use crate::objects::{BoxError, Error, ObjectService, ReadObject, Select};
use crate::outgoing::{Messages, Patience};

/// Bytes in one message, unless asked for otherwise.
const MESSAGE_DEFAULT: usize = 1 << 20;
/// Fewest and most bytes in one message; clients refuse more than 4 MiB with its envelope unless told otherwise.
const MESSAGE_RANGE: std::ops::RangeInclusive<usize> = (64 << 10)..=(2 << 20);
/// Largest page of objects, and the one given unasked.
const PAGE_MAX: usize = 1_000;

/// DataService over the object service.
#[derive(Debug)]
pub struct DataApi {
    objects: Arc<ObjectService>,
    auth: Arc<Authenticator>,
    journal: Journal,
}

impl DataApi {
    /// Serves what the callers that `auth` lets in own; what they are denied is noted.
    pub fn new(objects: Arc<ObjectService>, auth: Arc<Authenticator>, journal: Journal) -> Self {
        Self { objects, auth, journal }
    }

    /// The answer to what failed.
    fn refused(
        &self,
        who: &Principal,
        action: &'static str,
        target: &str,
        from: Option<IpAddr>,
        error: Error,
    ) -> Status {
        let status = status(error);
        if let (Code::PermissionDenied, Some(from)) = (status.code(), from) {
            self.journal.note_denied(who, action, target, from, "AccessDenied");
        }
        status
    }

    async fn principal<T>(&self, request: &Request<T>) -> Result<Principal, Status> {
        let admitted = self.auth.authenticate_metadata(request.metadata()).await;
        admitted.map_err(|error| Status::unauthenticated(error.message()))
    }
}

#[tonic::async_trait]
impl DataService for DataApi {
    type StreamDataStream = BoxStream<'static, Result<wire::DataChunk, Status>>;

    async fn stream_data(
        &self,
        request: Request<wire::StreamDataRequest>,
    ) -> Result<Response<Self::StreamDataStream>, Status> {
        let (who, from) = (self.principal(&request).await?, address_of(&request));
        let (caller, wanted) = (who.caller(), request.into_inner());
        let message_bytes = match wanted.message_bytes as usize {
            0 => MESSAGE_DEFAULT,
            asked if MESSAGE_RANGE.contains(&asked) => asked,
            _ => return Err(Status::invalid_argument("message_bytes lies between 65536 and 2097152")),
        };
        let read = ReadObject {
            caller,
            bucket: bucket_name(&wanted.bucket)?,
            key: ObjectKey::new(wanted.key).map_err(|error| Status::invalid_argument(error.to_string()))?,
            conditions: ReadConditions::default(),
            select: select(wanted.offset, wanted.length),
        };
        let target = || format!("{}/{}", read.bucket, read.key);
        let (found, body) = self
            .objects
            .get(&read)
            .await
            .map_err(|error| self.refused(&who, "object.read", &target(), from, error))?;
        let object_size = found.object.size.get();
        let chunks = gather(body, message_bytes).scan(found.range.start, move |next, data| {
            let offset = *next;
            let chunk = data.map(|data| {
                *next += data.len() as u64;
                wire::DataChunk { offset, data, object_size }
            });
            std::future::ready(Some(chunk))
        });
        let objects = self.objects.clone();
        Ok(Response::new(
            Messages::watch(chunks.boxed(), Patience::default(), move || objects.readers_wait()).boxed(),
        ))
    }

    async fn get_dataset_info(
        &self,
        request: Request<wire::GetDatasetInfoRequest>,
    ) -> Result<Response<wire::DatasetInfo>, Status> {
        let (who, from) = (self.principal(&request).await?, address_of(&request));
        let (caller, wanted) = (who.caller(), request.into_inner());
        let limit = match wanted.page_size as usize {
            0 => PAGE_MAX,
            asked => asked.min(PAGE_MAX),
        };
        let bucket = self
            .objects
            .bucket(&caller, &bucket_name(&wanted.bucket)?, crate::objects::Need::List(&wanted.prefix))
            .await
            .map_err(|error| self.refused(&who, "bucket.read", &wanted.bucket, from, error))?;
        let query = ListObjects {
            bucket: bucket.id,
            prefix: wanted.prefix,
            delimiter: None,
            after: (!wanted.after.is_empty()).then_some(wanted.after),
            limit,
        };
        let page =
            self.objects.metadata().list_objects(&query).await.map_err(|error| status(error.into()))?;
        let mut objects = Vec::new();
        for entry in page.entries {
            let ListEntry::Object(listed) = entry else { continue };
            let Ok(key) = ObjectKey::new(listed.key.clone()) else { continue };
            // Gone since it was listed: the next page would not show it either.
            let Some(object) = self
                .objects
                .metadata()
                .object(bucket.id, &key)
                .await
                .map_err(|error| status(error.into()))?
            else {
                continue;
            };
            objects.push(wire::DatasetObject {
                key: listed.key,
                size: object.size.get(),
                content_hash: hex::encode(object.content_hash),
            });
        }
        let page_bytes = objects.iter().map(|object| object.size).sum();
        Ok(Response::new(wire::DatasetInfo { objects, next: page.next.unwrap_or_default(), page_bytes }))
    }
}

/// From where a request came.
fn address_of<T>(request: &Request<T>) -> Option<IpAddr> {
    Some(request.extensions().get::<PeerInfo>()?.address?.ip())
}

fn select(offset: u64, length: u64) -> Select {
    match (offset, length) {
        (0, 0) => Select::Whole,
        (offset, 0) => Select::Range(ByteRange::From(offset)),
        (offset, length) => Select::Range(ByteRange::FromTo(offset, offset.saturating_add(length - 1))),
    }
}

/// Makes messages of `size` bytes (the last one shorter) of whatever pieces come in.
fn gather(
    body: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    size: usize,
) -> impl Stream<Item = Result<Bytes, Status>> + Send {
    let state = (body.boxed(), BytesMut::new(), false);
    futures::stream::unfold(state, move |(mut body, mut held, ended)| async move {
        while !ended && held.len() < size {
            match body.next().await {
                Some(Ok(piece)) => held.extend_from_slice(&piece),
                Some(Err(error)) => {
                    warn!(%error, "a data stream broke off");
                    return Some((Err(Status::data_loss(error.to_string())), (body, BytesMut::new(), true)));
                }
                None if held.is_empty() => return None,
                None => return Some((Ok(held.split().freeze()), (body, held, true))),
            }
        }
        if held.is_empty() {
            return None;
        }
        let message = held.split_to(size.min(held.len())).freeze();
        Some((Ok(message), (body, held, ended)))
    })
}

fn bucket_name(name: &str) -> Result<BucketName, Status> {
    name.parse()
        .map_err(|error: cyxcloud_core::name::BucketNameError| Status::invalid_argument(error.to_string()))
}

fn status(error: Error) -> Status {
    let text = error.to_string();
    match error {
        Error::NoSuchBucket | Error::NoSuchKey => Status::not_found(text),
        Error::AccessDenied | Error::NotAllowed => Status::permission_denied(text),
        Error::InvalidRange { .. } => Status::out_of_range(text),
        other => {
            warn!(error = &other as &dyn std::error::Error, "a data request failed");
            Status::unavailable(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_have_the_size_asked_for() {
        let pieces = [3usize, 70, 1, 26, 50].map(|len| Ok(Bytes::from(vec![7; len])));
        let messages: Vec<usize> = gather(futures::stream::iter(pieces), 64)
            .map(|message| message.expect("no error").len())
            .collect()
            .await;
        assert_eq!(messages, [64, 64, 22]);
    }

    #[tokio::test]
    async fn an_error_ends_the_stream() {
        let pieces =
            [Ok(Bytes::from_static(b"abc")), Err(BoxError::from("lost")), Ok(Bytes::from_static(b"def"))];
        let messages: Vec<bool> =
            gather(futures::stream::iter(pieces), 64).map(|message| message.is_ok()).collect().await;
        assert_eq!(messages, [false]);
    }
}
