//! Reads what is asked for of one stripe.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::seal::{self, FRAME, OwnerSecret, SealError, TAG};
use cyxcloud_metadata::model::{SegmentInfo, StripeLayout};
use tokio::sync::Semaphore;
use tracing::debug;

use super::fetch::Fetched;
use super::open::Sealed;
use super::plan::{self, Work};
use super::{Opened, fetch, open, ranged};
use crate::Plane;
use crate::budget::Permit;
use crate::buffer::Buffer;
use crate::error::ReadError;
use crate::node::pool::Check;

/// Before a stripe is given up it is looked up again, for it may have moved, and asked for again after this pause.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Small ranges that need their whole stripe after all hold more than their permit: at most so many at a time.
static WITHOUT_PERMIT: Semaphore = Semaphore::const_new(2);

/// Fetches, verifies and opens one piece of a read.
pub(super) async fn open(
    plane: Arc<Plane>,
    secret: Arc<OwnerSecret>,
    work: Work,
    permit: Permit,
) -> Result<Opened, ReadError> {
    let (segment, layout, span) = match work {
        Work::Inline { segment, span } => return inline(&secret, &segment, &span),
        Work::Stripe { segment, layout, span } => (segment, layout, span),
    };
    plane.fresh_view().await?;
    if !plan::is_small(&layout, &span) {
        return whole(&plane, secret, &segment, layout, span, permit).await;
    }
    match ranged::read(&plane, &secret, &segment, &layout, span.clone(), permit).await {
        Ok(opened) => Ok(opened),
        Err(permit) => {
            let _turn = WITHOUT_PERMIT.acquire().await;
            whole(&plane, secret, &segment, layout, span, permit).await
        }
    }
}

/// Opens a segment that lives in its row.
fn inline(secret: &OwnerSecret, segment: &SegmentInfo, span: &Range<usize>) -> Result<Opened, ReadError> {
    let does_not_open = |source| ReadError::Sealed { segment: segment.id, stripe: 0, source };
    let Some((plain_hash, sealed)) = &segment.inline else {
        return Err(ReadError::Layout { segment: segment.id, detail: "its row holds no bytes" });
    };
    let plain_len = segment.length.as_usize();
    let key = seal::StripeKey::derive(secret, plain_hash, segment.format);
    let mut opened = sealed.to_vec();
    seal::open_in_place(&key, &mut opened, plain_len).map_err(does_not_open)?;
    let mut hasher = blake3::Hasher::new();
    for frame in seal::plain_frames(plain_len) {
        hasher.update(&opened[frame]);
    }
    if hasher.finalize().as_bytes() != plain_hash {
        return Err(does_not_open(SealError::DoesNotOpen));
    }
    let opened = Bytes::from(opened);
    let slices = (span.start / FRAME..span.end.div_ceil(FRAME))
        .map(|frame| {
            let shift = frame * TAG;
            opened.slice(span.start.max(frame * FRAME) + shift..span.end.min((frame + 1) * FRAME) + shift)
        })
        .collect();
    Ok(Opened { slices, hold: std::sync::Weak::new() })
}

/// Reads a whole stripe and hands out what is asked for of it.
async fn whole(
    plane: &Arc<Plane>,
    secret: Arc<OwnerSecret>,
    segment: &SegmentInfo,
    mut layout: StripeLayout,
    span: Range<usize>,
    permit: Permit,
) -> Result<Opened, ReadError> {
    let stripe = layout.index;
    let sealed = Arc::new(Sealed {
        geometry: segment.geometry,
        format: segment.format,
        plain_hash: layout.plain_hash,
        plain_len: layout.plain_len.as_usize(),
        secret,
    });
    // A stripe opens only if all of its shards are right: frames by their tags, the whole by its hash. So the shards are
    // held against their ids only when it does not.
    let mut first = fetch::fetch(plane, segment, &layout, Check::Later).await;
    if let Ok(fetched) = &first {
        match opened(plane, segment, &sealed, fetched.clone()).await {
            Ok(buffer) => return Ok(open::span(buffer, span, permit)),
            Err(error) => debug!(segment = %segment.id, stripe, %error, "one of the shards is wrong"),
        }
        fetch::report_wrong(plane, segment, &mut layout, fetched);
        first = fetch::fetch(plane, segment, &layout, Check::Now).await;
    }
    let fetched = match first {
        Ok(fetched) => fetched,
        Err(have) => {
            debug!(segment = %segment.id, stripe, have, "stripe could not be read at first");
            tokio::time::sleep(RETRY_PAUSE).await;
            layout = look_up(plane, segment, stripe).await?;
            let need = segment.geometry.data();
            fetch::fetch(plane, segment, &layout, Check::Now).await.map_err(|have| {
                let (segment, have) = (segment.id, have);
                ReadError::Unreadable { segment, stripe, have, need }
            })?
        }
    };
    let buffer = opened(plane, segment, &sealed, fetched).await.map_err(|source| ReadError::Sealed {
        segment: segment.id,
        stripe,
        source,
    })?;
    Ok(open::span(buffer, span, permit))
}

async fn opened(
    plane: &Arc<Plane>,
    segment: &SegmentInfo,
    sealed: &Arc<Sealed>,
    fetched: Vec<Fetched>,
) -> Result<Buffer, SealError> {
    if fetched.iter().any(|fetched| segment.geometry.is_parity(fetched.shard)) {
        plane.metrics.reconstructs.inc();
    }
    let (buffers, sealed) = (plane.buffers.clone(), sealed.clone());
    let shards = fetched.into_iter().map(|fetched| (fetched.shard, fetched.bytes)).collect();
    plane.cpu.run(sealed.plain_len, move || sealed.whole(&buffers, shards)).await
}

/// The stripe as it is recorded now.
async fn look_up(plane: &Plane, segment: &SegmentInfo, stripe: u32) -> Result<StripeLayout, ReadError> {
    let found = plane.metadata.stripes(segment.id, stripe..stripe + 1).await?;
    let layout = found.into_iter().find(|layout| layout.index == stripe);
    let layout = layout.ok_or(ReadError::Layout { segment: segment.id, detail: "a stripe is missing" })?;
    plan::check(segment, &layout)?;
    Ok(layout)
}
