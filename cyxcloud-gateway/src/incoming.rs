//! The body of a request as it comes in: cut off when its sender falls silent or only drips, and accounted for when the
//! answer is ready before its end.
//!
//! On HTTP/1 what is left of a body stands between its request and the next one. Either it is read to its end, or the
//! connection ends with the answer, and the answer says so; nothing else keeps requests apart.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

/// How patient a server is with bodies.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A sender may be silent this long in the middle of a body.
    pub silence: Duration,
    /// Bytes that must come, on average, for each second that a sender lets us wait beyond `silence`. Time in which we
    /// take nothing counts for nobody.
    pub rate: u32,
    /// What is left of a body is read up to here to keep the connection; more is not worth it.
    pub left_bytes: usize,
    /// And no longer than this.
    pub left_time: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(60),
            rate: 256,
            left_bytes: 1 << 20,
            left_time: Duration::from_secs(2),
        }
    }
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed or was closed.
    #[error("the connection broke off")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing came for a while.
    #[error("nothing was received for {} s", .0.as_secs())]
    Silent(Duration),
    /// Too little came for too long.
    #[error("less than {0} bytes were received per second")]
    Slow(u32),
}

/// What is known of a body beside whoever reads it.
#[derive(Debug)]
struct Seen<B> {
    ended: AtomicBool,
    left: Mutex<Option<B>>,
}

/// A body that is watched.
#[derive(Debug)]
pub struct Watched<B> {
    inner: Option<B>,
    seen: Arc<Seen<B>>,
    patience: Patience,
    waiting: Option<Waiting>,
    waited: Duration,
    received: u64,
}

/// For the sender, now.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    until: Pin<Box<Sleep>>,
}

impl Patience {
    /// How long a sender may be silent now, who sent so much and let us wait so long, and what it is then.
    fn now(&self, received: u64, waited: Duration) -> (Duration, Error) {
        let earned =
            self.silence + Duration::from_millis(received.saturating_mul(1000) / u64::from(self.rate.max(1)));
        match earned.saturating_sub(waited) {
            left if left < self.silence => (left, Error::Slow(self.rate)),
            _ => (self.silence, Error::Silent(self.silence)),
        }
    }
}

/// Tells, once the answer is ready, whether the connection can carry another request.
#[derive(Debug)]
pub struct Watch<B> {
    /// There never was one.
    empty: bool,
    seen: Arc<Seen<B>>,
    patience: Patience,
}

/// Begins to watch a body.
pub fn watch<B: Body>(body: B, patience: Patience) -> (Watched<B>, Watch<B>) {
    let empty = body.is_end_stream();
    let seen = Arc::new(Seen { ended: AtomicBool::new(empty), left: Mutex::new(None) });
    let watched = Watched {
        inner: Some(body),
        seen: seen.clone(),
        patience,
        waiting: None,
        waited: Duration::ZERO,
        received: 0,
    };
    (watched, Watch { empty, seen, patience })
}

impl<B> Body for Watched<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        match Pin::new(&mut *inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                if frame.is_none() || inner.is_end_stream() {
                    this.seen.ended.store(true, Ordering::Release);
                }
                if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
                    this.received += data.map_or(0, |data| data.len() as u64);
                }
                if let Some(waiting) = this.waiting.take() {
                    this.waited += waiting.since.elapsed();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(|error| Error::Connection(error.into()))))
            }
            Poll::Pending => {
                let (longest, cut) = this.patience.now(this.received, this.waited);
                let waiting = this.waiting.get_or_insert_with(|| Waiting {
                    since: Instant::now(),
                    until: Box::pin(tokio::time::sleep(longest)),
                });
                std::task::ready!(waiting.until.as_mut().poll(cx));
                Poll::Ready(Some(Err(cut)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        if !self.seen.ended.load(Ordering::Acquire) {
            *self.seen.left.lock().unwrap_or_else(PoisonError::into_inner) = self.inner.take();
        }
    }
}

impl<B: Body + Unpin> Watch<B> {
    /// Whether nothing of the body is left, after reading a little where that helps. A client that waits for
    /// `100 Continue` has sent nothing yet and may never; it is not asked to now. Neither is one that has nothing to send,
    /// and not every client that was answered without is in order for another request: the aws command line (1.46) takes
    /// the answer to that for the one before, without its headers.
    pub async fn is_over(self, expects_continue: bool) -> bool {
        if expects_continue && self.empty {
            return false;
        }
        if self.seen.ended.load(Ordering::Acquire) {
            return true;
        }
        let left = self.seen.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        match left {
            Some(body) if !expects_continue => {
                let reading = read_to_end(body, self.patience.left_bytes);
                tokio::time::timeout(self.patience.left_time, reading).await.unwrap_or(false)
            }
            // Somebody still holds it, or it may never come.
            Some(_) | None => false,
        }
    }
}

async fn read_to_end<B: Body + Unpin>(mut body: B, bytes_max: usize) -> bool {
    let mut left = bytes_max;
    if body.size_hint().lower() > bytes_max as u64 {
        return false;
    }
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let length = frame.data_ref().map_or(0, bytes::Buf::remaining);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::StreamExt;
    use http_body_util::StreamBody;

    use super::*;

    type Frames = Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

    fn body(pieces: usize, size: usize, ends: bool) -> StreamBody<Frames> {
        let pieces =
            futures::stream::iter((0..pieces).map(move |_| Ok(Frame::data(Bytes::from(vec![0; size])))));
        let rest = futures::stream::pending().take(if ends { 0 } else { 1 });
        StreamBody::new(Box::pin(pieces.chain(rest)))
    }

    const SHORT: Patience = Patience {
        silence: Duration::from_millis(20),
        rate: 256,
        left_bytes: 1 << 10,
        left_time: Duration::from_millis(20),
    };

    #[tokio::test]
    async fn a_body_read_to_its_end_is_over() {
        let (body, watched) = watch(body(3, 10, true), Patience::default());
        assert_eq!(body.collect().await.expect("complete").to_bytes().len(), 30);
        assert!(watched.is_over(true).await);
    }

    #[tokio::test]
    async fn who_was_not_told_to_continue_makes_another_connection() {
        let (_, watched) = watch(http_body_util::Empty::<Bytes>::new(), Patience::default());
        assert!(!watched.is_over(true).await);
        let (_, watched) = watch(http_body_util::Empty::<Bytes>::new(), Patience::default());
        assert!(watched.is_over(false).await);
    }

    #[tokio::test]
    async fn a_little_that_is_left_is_read() {
        let (body, watched) = watch(body(3, 10, true), Patience::default());
        drop(body);
        assert!(watched.is_over(false).await);
    }

    #[tokio::test]
    async fn what_may_never_come_is_not_waited_for() {
        let (first, watched) = watch(body(3, 10, true), Patience::default());
        drop(first);
        assert!(!watched.is_over(true).await);
        let (held, watched) = watch(body(3, 10, true), Patience::default());
        assert!(!watched.is_over(false).await);
        drop(held);
    }

    #[tokio::test]
    async fn much_or_slow_rests_end_the_connection() {
        let (much, watched) = watch(body(3, SHORT.left_bytes / 2, true), SHORT);
        drop(much);
        assert!(!watched.is_over(false).await);
        let (slow, watched) = watch(body(1, 10, false), SHORT);
        drop(slow);
        assert!(!watched.is_over(false).await);
    }

    #[tokio::test]
    async fn a_silent_sender_is_cut_off() {
        let (silent, _watched) = watch(body(1, 10, false), SHORT);
        let error = silent.collect().await.expect_err("cut off");
        assert!(matches!(error, Error::Silent(_)), "{error}");
    }

    #[test]
    fn adv_30_time_is_earned_by_bytes() {
        let patience = Patience::default();
        let left = |received, waited| patience.now(received, Duration::from_secs(waited));
        assert!(matches!(left(0, 0), (left, Error::Silent(_)) if left == patience.silence));
        assert!(matches!(left(0, 59), (left, Error::Slow(256)) if left == Duration::from_secs(1)));
        assert!(matches!(left(100, 60), (left, Error::Slow(256)) if left < Duration::from_secs(1)));
        assert!(matches!(left(100, 61), (Duration::ZERO, Error::Slow(256))));
        // Much at once pays for many pauses, none of them longer than silence may be.
        assert!(matches!(left(1 << 20, 600), (left, Error::Silent(_)) if left == patience.silence));
        assert!(matches!(left(u64::MAX, 600), (left, Error::Silent(_)) if left == patience.silence));
    }

    /// Pieces of `size` bytes, one each 10 ms, before patience for 300 ms.
    async fn sent(size: usize) -> Result<usize, Error> {
        let pieces = futures::stream::iter(0..100).then(move |_| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; size])))
        });
        let patience = Patience { silence: Duration::from_millis(300), ..Patience::default() };
        let (body, _watched) = watch(StreamBody::new(Box::pin(pieces)), patience);
        body.collect().await.map(|body| body.to_bytes().len())
    }

    #[tokio::test]
    async fn adv_30_a_body_that_only_drips_is_cut_off() {
        assert!(matches!(sent(1).await, Err(Error::Slow(256))));
        assert_eq!(sent(1000).await.expect("fast enough"), 100_000);
    }
}
