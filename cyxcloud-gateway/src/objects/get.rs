//! Reads: conditions, ranges and parts, and the verified bytes as a stream.
//!
//! The first bytes are fetched before the answer begins, so that an object that cannot be read is an error and not
//! a broken body. A stream ends with exactly the bytes announced, or with an error.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_dataplane::ReadError;
use cyxcloud_metadata::model::{Bucket, Extent, Object, ObjectLayout};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use super::ObjectService;
use super::conditions::{ReadConditions, Verdict};
use super::error::{BoxError, Error, Result};
use super::range::ByteRange;
use crate::limits::{Caller, Need};

/// Times to look again when an object is replaced while we look at it.
const RACES_MAX: usize = 8;

/// Which bytes of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// All of them.
    #[default]
    Whole,
    /// A range.
    Range(ByteRange),
    /// A part of a multipart object, from 1; part 1 of any other object is all of it.
    Part(u32),
}

/// A read, or a look.
#[derive(Clone, Debug)]
pub struct ReadObject {
    /// Who reads.
    pub caller: Caller,
    /// Where.
    pub bucket: BucketName,
    /// What.
    pub key: ObjectKey,
    /// What must hold.
    pub conditions: ReadConditions,
    /// Which bytes.
    pub select: Select,
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct Read {
    /// The object.
    pub object: Object,
    /// The bytes of it that were asked for.
    pub range: Range<u64>,
    /// Whether a range or part was asked for (and not ignored).
    pub partial: bool,
    /// How many parts a multipart object has, where one was asked for.
    pub parts: Option<u32>,
}

impl ObjectService {
    /// What a read would find, without the bytes.
    pub async fn head(&self, read: &ReadObject) -> Result<Read> {
        let mut recent = self.recent_bucket(&read.caller, &read.bucket, Need::Read(&read.key)).await?;
        let object = loop {
            match self.metadata.object(recent.bucket.id, &read.key).await? {
                Some(object) => break object,
                None => {
                    recent = self
                        .made_anew(&read.caller, &recent, Need::Read(&read.key))
                        .await?
                        .ok_or(Error::NoSuchKey)?
                }
            }
        };
        judge(&read.conditions, &object)?;
        select(object, read.select)
    }

    /// Reads an object.
    pub async fn get(&self, read: &ReadObject) -> Result<(Read, BodyStream)> {
        let mut recent = self.recent_bucket(&read.caller, &read.bucket, Need::Read(&read.key)).await?;
        let (found, extents) = loop {
            match self.find(&recent.bucket, &read.key, &read.conditions, read.select).await {
                Err(Error::NoSuchKey) => {
                    recent = self
                        .made_anew(&read.caller, &recent, Need::Read(&read.key))
                        .await?
                        .ok_or(Error::NoSuchKey)?;
                }
                found => break found?,
            }
        };
        let body = self.open(&found.object, extents, found.range.clone()).await?;
        Ok((found, body))
    }

    /// The object and where the bytes selected are.
    pub(super) async fn find(
        &self,
        bucket: &Bucket,
        key: &ObjectKey,
        conditions: &ReadConditions,
        selected: Select,
    ) -> Result<(Read, Vec<Extent>)> {
        for _ in 0..RACES_MAX {
            // A plain range is known before the object is; others need its size or parts first.
            let (range, expected) = match selected {
                Select::Whole => (None, None),
                Select::Range(ByteRange::FromTo(first, last)) => (Some(first..last.saturating_add(1)), None),
                Select::Range(_) | Select::Part(_) => {
                    let object = self.metadata.object(bucket.id, key).await?.ok_or(Error::NoSuchKey)?;
                    judge(conditions, &object)?;
                    let file = object.file;
                    (Some(select(object, selected)?.range), Some(file))
                }
            };
            let layout = self.metadata.object_layout(bucket.id, key, range).await?.ok_or(Error::NoSuchKey)?;
            let ObjectLayout { object, extents } = layout;
            if expected.is_some_and(|file| file != object.file) {
                continue;
            }
            judge(conditions, &object)?;
            return Ok((select(object, selected)?, extents));
        }
        Err(Error::Busy)
    }

    /// The bytes of a range, the first of them at hand.
    pub(super) async fn open(
        &self,
        object: &Object,
        extents: Vec<Extent>,
        range: Range<u64>,
    ) -> Result<BodyStream> {
        let length = range.end - range.start;
        if length == 0 {
            return Ok(BodyStream { first: None, rest: futures::stream::empty().boxed(), remaining: 0 });
        }
        let secret = self.secrets.of(object.owner).await?;
        let mut rest = self.plane.read(secret, extents, range).boxed();
        let first = rest.next().await.transpose()?;
        Ok(BodyStream { first, rest, remaining: length })
    }
}

/// Turns conditions into an answer.
pub(super) fn judge(conditions: &ReadConditions, object: &Object) -> Result<()> {
    match conditions.judge(&object.etag, object.modified_at) {
        Verdict::Proceed => Ok(()),
        Verdict::NotModified => {
            Err(Error::NotModified { etag: object.etag.clone(), modified_at: object.modified_at })
        }
        Verdict::Failed(condition) => Err(Error::PreconditionFailed(condition)),
    }
}

fn select(object: Object, selected: Select) -> Result<Read> {
    let size = object.size.get();
    match selected {
        Select::Whole => Ok(Read { object, range: 0..size, partial: false, parts: None }),
        Select::Range(range) => {
            let range = range.resolve(size).map_err(|_| Error::InvalidRange { size })?;
            Ok(Read { object, range, partial: true, parts: None })
        }
        Select::Part(number) => {
            let parts = object.part_sizes.len() as u32;
            let range = part_range(&object.part_sizes, size, number)
                .ok_or(Error::NoSuchObjectPart { number, parts: parts.max(1) })?;
            let partial = !range.is_empty();
            Ok(Read { object, range, partial, parts: (parts > 0).then_some(parts) })
        }
    }
}

fn part_range(part_sizes: &[u64], size: u64, number: u32) -> Option<Range<u64>> {
    if part_sizes.is_empty() {
        return (number == 1).then_some(0..size);
    }
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    let start = part_sizes.get(..index)?.iter().sum();
    Some(start..start + part_sizes.get(index)?)
}

/// Verified bytes: exactly as many as were announced, or an error.
pub struct BodyStream {
    first: Option<Bytes>,
    rest: BoxStream<'static, Result<Bytes, ReadError>>,
    remaining: u64,
}

impl std::fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyStream").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

impl BodyStream {
    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }
}

/// The stream ended before its time, or did not end. Our mistake; the connection must break.
#[derive(Debug, thiserror::Error)]
#[error("the data plane sent another number of bytes than the object has; {0} were left")]
struct WrongLength(u64);

impl Stream for BodyStream {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let item = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => std::task::ready!(self.rest.poll_next_unpin(cx)),
        };
        let left = self.remaining;
        Poll::Ready(Some(match item {
            Some(Ok(bytes)) if bytes.len() as u64 <= left => {
                self.remaining = left - bytes.len() as u64;
                Ok(bytes)
            }
            Some(Ok(_)) | None => Err(WrongLength(left).into()),
            Some(Err(error)) => Err(error.into()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_one_behind_the_other() {
        assert_eq!(part_range(&[5, 5, 2], 12, 1), Some(0..5));
        assert_eq!(part_range(&[5, 5, 2], 12, 3), Some(10..12));
        assert_eq!(part_range(&[5, 5, 2], 12, 4), None);
        assert_eq!(part_range(&[5, 5, 2], 12, 0), None);
        assert_eq!(part_range(&[], 12, 1), Some(0..12));
        assert_eq!(part_range(&[], 12, 2), None);
    }

    fn stream(items: Vec<Result<Bytes, ReadError>>, remaining: u64) -> BodyStream {
        BodyStream { first: None, rest: futures::stream::iter(items).boxed(), remaining }
    }

    #[tokio::test]
    async fn a_body_is_never_shorter_or_longer_than_announced() {
        let bytes = || Ok(Bytes::from_static(b"abc"));
        let collect =
            |stream: futures::stream::Take<BodyStream>| stream.map(|item| item.is_ok()).collect::<Vec<_>>();
        assert_eq!(collect(stream(vec![bytes(), bytes()], 6).take(9)).await, [true, true]);
        assert_eq!(collect(stream(vec![bytes()], 6).take(2)).await, [true, false]);
        assert_eq!(collect(stream(vec![bytes(), bytes()], 4).take(2)).await, [true, false]);
    }
}
