//! Which stripes, and what of each, a range of an object lies in; and their layout, looked up in pages ahead of need.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use cyxcloud_core::erasure::Codec;
use cyxcloud_core::seal;
use cyxcloud_core::stripe::{self, StripeSpan};
use cyxcloud_core::{ByteCount, SegmentId};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{Extent, SegmentInfo, StripeLayout};
use tokio_util::task::AbortOnDropHandle;

use crate::error::ReadError;

/// Stripes of the first page, which the first byte waits for, of the second, and of the largest.
const PAGE_FIRST: u32 = 4;
const PAGE_SECOND: u32 = 16;
const PAGE_MAX: u32 = 64;
/// A stripe whose sealed bytes are no more than this is always read whole.
const WHOLE_MAX: usize = 64 << 10;

/// One piece of the read.
#[derive(Debug)]
pub(super) enum Work {
    /// Of a segment that lives in its row.
    Inline { segment: Arc<SegmentInfo>, span: Range<usize> },
    /// Of a stripe.
    Stripe { segment: Arc<SegmentInfo>, layout: StripeLayout, span: Range<usize> },
}

impl Work {
    /// Bytes of memory that it takes.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Inline { segment, .. } => segment.length.as_usize(),
            Self::Stripe { segment, layout, span } if is_small(layout, span) => {
                2 * seal::frames_of(span.clone(), layout.plain_len.as_usize()).sealed.len()
                    + segment.geometry.data()
            }
            Self::Stripe { segment, layout, .. } => stripe_cost(segment, layout.plain_len.as_usize()),
        }
    }
}

/// Whether only the frames asked for should be fetched.
pub(super) fn is_small(layout: &StripeLayout, span: &Range<usize>) -> bool {
    let plain_len = layout.plain_len.as_usize();
    plain_len > WHOLE_MAX && span.len() <= plain_len / 4
}

/// The shards as they arrive, and the stripe that they make.
fn stripe_cost(segment: &SegmentInfo, plain_len: usize) -> usize {
    2 * segment.geometry.data() * Codec::shard_len(segment.geometry, seal::sealed_len(plain_len))
}

/// The most that a stripe of this segment takes.
pub(super) fn stripe_cost_max(segment: &SegmentInfo) -> usize {
    stripe_cost(segment, segment.stripe_size.min(segment.length).as_usize())
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    /// A piece.
    Work(Work),
    /// Its layout is still being looked up.
    NotYet,
    /// Nothing.
    End,
}

/// Walks through the extents.
pub(super) struct Planner {
    metadata: Arc<dyn MetadataStore>,
    extents: VecDeque<Extent>,
    /// What is left of the object's range.
    range: Range<u64>,
    current: Option<Current>,
}

/// The segment that is being read.
struct Current {
    segment: Arc<SegmentInfo>,
    spans: std::iter::Peekable<Box<dyn Iterator<Item = StripeSpan> + Send>>,
    pages: Pages,
}

impl Planner {
    pub(super) fn new(metadata: Arc<dyn MetadataStore>, extents: Vec<Extent>, range: Range<u64>) -> Self {
        Self { metadata, extents: extents.into(), range, current: None }
    }

    /// The next piece. Unless it `may_wait`, it does not wait for the metadata store.
    pub(super) async fn next(&mut self, may_wait: bool) -> Result<Next, ReadError> {
        loop {
            let Some(current) = &mut self.current else {
                match self.enter()? {
                    Some(next) => return Ok(next),
                    None => continue,
                }
            };
            let Some(span) = current.spans.peek() else {
                self.current = None;
                continue;
            };
            let Some(layout) = current.pages.get(span.index, may_wait).await? else {
                return Ok(Next::NotYet);
            };
            let span = span.range.clone();
            current.spans.next();
            check(&current.segment, &layout)?;
            return Ok(Next::Work(Work::Stripe { segment: current.segment.clone(), layout, span }));
        }
    }

    /// Goes on to the next extent; answers if that alone says what comes next.
    fn enter(&mut self) -> Result<Option<Next>, ReadError> {
        if self.range.is_empty() {
            return Ok(Some(Next::End));
        }
        let at = self.range.start;
        let Some(extent) = self.extents.pop_front() else { return Err(ReadError::NotCovered { at }) };
        let end = extent.object_offset.saturating_add(extent.length);
        if end <= at {
            return Ok(None);
        }
        if extent.object_offset > at {
            return Err(ReadError::NotCovered { at });
        }
        let from = extent.segment_offset + (at - extent.object_offset);
        let to = from + (end.min(self.range.end) - at);
        self.range.start = end.min(self.range.end);
        let segment = Arc::new(extent.segment);
        if to > segment.length.get() || segment.stripe_size == ByteCount::ZERO {
            return Err(ReadError::Layout { segment: segment.id, detail: "the range goes beyond its end" });
        }
        if segment.inline.is_some() {
            let span = from as usize..to as usize;
            return Ok(Some(Next::Work(Work::Inline { segment, span })));
        }
        let spans: Box<dyn Iterator<Item = StripeSpan> + Send> =
            Box::new(stripe::locate(from..to, segment.stripe_size));
        let first = from / segment.stripe_size.get();
        let end = stripe::stripes_of(ByteCount::bytes(to), segment.stripe_size);
        let index = |n: u64| {
            u32::try_from(n)
                .map_err(|_| ReadError::Layout { segment: segment.id, detail: "it has too many stripes" })
        };
        let wanted = index(first)?..index(end)?;
        let pages = Pages::new(self.metadata.clone(), segment.id, wanted, extent.stripes);
        self.current = Some(Current { segment, spans: spans.peekable(), pages });
        Ok(None)
    }
}

/// What is recorded of a stripe must fit what is recorded of its segment.
pub(super) fn check(segment: &SegmentInfo, layout: &StripeLayout) -> Result<(), ReadError> {
    let wrong = |detail| Err(ReadError::Layout { segment: segment.id, detail });
    let plain_len = stripe::stripe_len(segment.length, segment.stripe_size, layout.index);
    if layout.plain_len != ByteCount::bytes(plain_len as u64) || plain_len == 0 {
        return wrong("a stripe has another length than its place in the segment says");
    }
    let shard_len = Codec::shard_len(segment.geometry, seal::sealed_len(plain_len));
    if layout.shards.iter().any(|shard| shard.size != ByteCount::bytes(shard_len as u64)) {
        return wrong("a shard has another length than its geometry says");
    }
    if layout.shards.iter().any(|shard| shard.index.get() >= segment.geometry.shards()) {
        return wrong("a stripe has shards beyond its geometry");
    }
    Ok(())
}

/// Layouts of consecutive stripes.
struct Pages {
    metadata: Arc<dyn MetadataStore>,
    segment: SegmentId,
    /// Not yet looked up.
    left: Range<u32>,
    size: u32,
    page: VecDeque<StripeLayout>,
    coming: Option<AbortOnDropHandle<cyxcloud_metadata::Result<Vec<StripeLayout>>>>,
}

impl Pages {
    /// Begins with the layouts that are `known`, if they are of the first stripes wanted.
    fn new(
        metadata: Arc<dyn MetadataStore>,
        segment: SegmentId,
        mut left: Range<u32>,
        known: Vec<StripeLayout>,
    ) -> Self {
        let of_use = known.into_iter().zip(left.clone()).take_while(|(layout, index)| layout.index == *index);
        let page: VecDeque<StripeLayout> = of_use.map(|(layout, _)| layout).collect();
        let size = if page.is_empty() { PAGE_FIRST } else { PAGE_SECOND };
        left.start += u32::try_from(page.len()).unwrap_or(u32::MAX);
        Self { metadata, segment, left, size, page, coming: None }
    }

    /// The layout of the next stripe, which must be `index`; `None` if that would mean waiting and it may not.
    async fn get(&mut self, index: u32, may_wait: bool) -> Result<Option<StripeLayout>, ReadError> {
        if self.page.is_empty() {
            match &self.coming {
                Some(coming) if !may_wait && !coming.is_finished() => return Ok(None),
                None if !may_wait => {
                    self.look_ahead();
                    return Ok(None);
                }
                Some(_) | None => self.turn().await?,
            }
        } else if self.coming.is_none() {
            self.look_ahead();
        }
        let missing = ReadError::Layout { segment: self.segment, detail: "a stripe is missing" };
        self.page.pop_front().filter(|layout| layout.index == index).map(Some).ok_or(missing)
    }

    /// Turns to the next page, and looks up the one after it.
    async fn turn(&mut self) -> Result<(), ReadError> {
        let page = match self.coming.take() {
            None => {
                let range = self.next_range();
                self.metadata.stripes(self.segment, range).await?
            }
            Some(coming) => match coming.await {
                Ok(page) => page?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime shuts down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        };
        self.page = page.into();
        self.look_ahead();
        Ok(())
    }

    fn look_ahead(&mut self) {
        if self.left.is_empty() {
            return;
        }
        let (metadata, segment, range) = (self.metadata.clone(), self.segment, self.next_range());
        let lookup = async move { metadata.stripes(segment, range).await };
        self.coming = Some(AbortOnDropHandle::new(tokio::spawn(lookup)));
    }

    fn next_range(&mut self) -> Range<u32> {
        let start = self.left.start;
        let end = self.left.end.min(start.saturating_add(self.size));
        self.left.start = end;
        self.size = (self.size * (PAGE_SECOND / PAGE_FIRST)).min(PAGE_MAX);
        start..end
    }
}
