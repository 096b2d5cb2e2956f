//! Answers as they go out: whoever does not take one loses it, so that what it holds returns to others.
//!
//! A time-out for writing is not enough. On HTTP/2 a client that grants no window leaves nothing to be written, and on HTTP/1
//! a few bytes now and then satisfy it. What is watched here is that an answer is asked for its next piece.
//! Not here: bodies that come in (`incoming`).

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

/// An answer may be left alone this long.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes handed out at once: who takes so many within the time is slow, and no more than that.
const PIECE: usize = 128 << 10;

/// How patient a server is with answers that nobody takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// An answer may be left alone this long.
    alone: Duration,
    /// And only this long while others wait to read because there is no memory left for it.
    wanted: Duration,
    /// How often is looked.
    look: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { alone: STALL_TIMEOUT, wanted: Duration::from_secs(20), look: Duration::from_secs(2) }
    }
}

impl Patience {
    fn most(&self, wanted: bool) -> Duration {
        if wanted { self.wanted } else { self.alone }
    }
}

/// Since when an answer waits to be asked for more. Lives as long as anything of the answer does.
#[derive(Debug)]
struct Pulse {
    born: Instant,
    /// Milliseconds after `born`; or that it is us who are waited for.
    offered: AtomicU64,
}

const OURS: u64 = u64::MAX;

impl Pulse {
    fn new() -> Arc<Self> {
        Arc::new(Self { born: Instant::now(), offered: AtomicU64::new(0) })
    }

    fn offer(&self) {
        self.offered.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn ours(&self) {
        self.offered.store(OURS, Ordering::Relaxed);
    }

    fn waited(&self) -> Duration {
        match self.offered.load(Ordering::Relaxed) {
            OURS => Duration::ZERO,
            offered => self.born.elapsed().saturating_sub(Duration::from_millis(offered)),
        }
    }
}

/// The answers on one connection that are not yet taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    pulses: Arc<Mutex<Vec<Weak<Pulse>>>>,
    patience: Patience,
}

impl Answers {
    /// Begins to watch an answer.
    pub(crate) fn watch<B>(&self, body: B) -> Answer<B> {
        let pulse = Pulse::new();
        let mut pulses = self.lock();
        pulses.retain(|pulse| pulse.strong_count() > 0);
        pulses.push(Arc::downgrade(&pulse));
        Answer { inner: body, rest: Bytes::new(), pulse }
    }

    /// Ends when an answer is left alone for too long. The connection must be cut then: nothing else makes a buffer give back
    /// what is in it. `wanted` tells whether others wait.
    pub(crate) async fn stalled(&self, wanted: impl Fn() -> bool) {
        loop {
            tokio::time::sleep(self.patience.look).await;
            if self.longest() > self.patience.most(wanted()) {
                return;
            }
        }
    }

    fn longest(&self) -> Duration {
        let pulses = self.lock();
        pulses.iter().filter_map(Weak::upgrade).map(|pulse| pulse.waited()).max().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Pulse>>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer's body that is watched.
#[derive(Debug)]
pub(crate) struct Answer<B> {
    inner: B,
    rest: Bytes,
    pulse: Arc<Pulse>,
}

impl<B: Body<Data = Bytes> + Unpin> Answer<B> {
    fn piece(&mut self) -> Bytes {
        struct Last {
            bytes: Bytes,
            _pulse: Arc<Pulse>,
        }
        impl AsRef<[u8]> for Last {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        self.pulse.offer();
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        if !self.is_end_stream() {
            return piece;
        }
        // Nobody asks for more after the last piece: it is taken when it is dropped.
        Bytes::from_owner(Last { bytes: piece, _pulse: self.pulse.clone() })
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            this.pulse.ours();
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(other) => {
                    this.pulse.offer();
                    return Poll::Ready(Some(Ok(other)));
                }
            }
        }
        Poll::Ready(Some(Ok(Frame::data(this.piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(inner.lower() + rest);
        hint
    }
}

/// What messages come from.
type Reader<T> = BoxStream<'static, Result<T, Status>>;

/// A stream of messages that loses what it reads from when nobody takes it, and then ends with an error.
pub(crate) struct Messages<T> {
    reader: Arc<Mutex<Option<Reader<T>>>>,
    pulse: Arc<Pulse>,
    ended: bool,
    _watch: AbortOnDropHandle<()>,
}

impl<T: Send + 'static> Messages<T> {
    /// Begins to watch. `wanted` tells whether others wait.
    pub(crate) fn watch(
        reader: BoxStream<'static, Result<T, Status>>,
        patience: Patience,
        wanted: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        let (reader, pulse) = (Arc::new(Mutex::new(Some(reader))), Pulse::new());
        let watch = {
            let (reader, pulse) = (reader.clone(), pulse.clone());
            async move {
                while pulse.waited() <= patience.most(wanted()) {
                    tokio::time::sleep(patience.look).await;
                }
                reader.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        };
        Self { reader, pulse, ended: false, _watch: AbortOnDropHandle::new(tokio::spawn(watch)) }
    }
}

impl<T: Send + 'static> Stream for Messages<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        this.pulse.ours();
        let item = match this.reader.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(reader) => ready!(reader.poll_next_unpin(cx)),
            None => {
                this.ended = true;
                Some(Err(Status::deadline_exceeded("the stream was left alone for too long")))
            }
        };
        this.pulse.offer();
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    /// Generous enough for a busy machine.
    const SHORT: Patience = Patience {
        alone: Duration::from_millis(1500),
        wanted: Duration::from_millis(600),
        look: Duration::from_millis(20),
    };

    fn short() -> Answers {
        Answers { patience: SHORT, ..Answers::default() }
    }

    fn answer(answers: &Answers, len: usize) -> Answer<Full<Bytes>> {
        answers.watch(Full::new(vec![7; len].into()))
    }

    #[tokio::test]
    async fn a_body_is_handed_out_in_pieces() {
        let answers = Answers::default();
        let mut body = answer(&answers, 2 * PIECE + 5);
        let mut lengths = Vec::new();
        while let Some(frame) = body.frame().await {
            lengths.push(frame.expect("a frame").into_data().expect("data").len());
            let left: usize = 2 * PIECE + 5 - lengths.iter().sum::<usize>();
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(left as u64), left == 0));
        }
        assert_eq!(lengths, [PIECE, PIECE, 5]);
        assert!(answer(&answers, 0).is_end_stream());
    }

    #[tokio::test]
    async fn adv_30_answers_that_nobody_takes_are_noticed() {
        let answers = short();
        let stalled = async |wanted: bool, most: Duration| {
            tokio::time::timeout(most, answers.stalled(|| wanted)).await.is_ok()
        };
        let mut never = answer(&answers, 2 * PIECE);
        assert!(!stalled(false, SHORT.wanted * 3 / 2).await);
        assert!(stalled(true, SHORT.wanted).await, "it holds what others want");
        assert!(stalled(false, SHORT.alone).await);
        never.frame().await.expect("a frame").expect("data");
        assert!(!stalled(true, SHORT.wanted / 2).await, "it goes on");
        let last = never.frame().await.expect("a frame").expect("data");
        assert!(never.is_end_stream());
        drop(never);
        assert!(stalled(true, SHORT.alone).await, "the last piece is not taken");
        drop(last);
        assert!(!stalled(true, SHORT.wanted * 2).await, "all is taken");
    }

    #[tokio::test]
    async fn what_waits_for_us_is_not_cut() {
        let answers = short();
        let pending = futures::stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
        let mut body = answers.watch(http_body_util::StreamBody::new(pending));
        assert!(futures::poll!(body.frame()).is_pending());
        assert!(tokio::time::timeout(2 * SHORT.wanted, answers.stalled(|| true)).await.is_err());
    }

    #[tokio::test]
    async fn adv_30_messages_that_nobody_takes_are_lost() {
        for (wanted, after) in [(false, SHORT.alone), (true, SHORT.wanted)] {
            let held = Arc::new(());
            let keeps = held.clone();
            let reader = futures::stream::repeat_with(move || {
                let _keeps = &keeps;
                Ok(1)
            });
            let mut messages = Messages::watch(reader.boxed(), SHORT, move || wanted);
            for _ in 0..3 {
                assert!(matches!(messages.next().await, Some(Ok(1))));
                tokio::time::sleep(after / 2).await;
            }
            assert_eq!(Arc::strong_count(&held), 2);
            tokio::time::sleep(after).await;
            assert_eq!(Arc::strong_count(&held), 1, "the reader is gone while nobody asks");
            assert!(matches!(messages.next().await, Some(Err(_))), "and that is no good end");
            assert!(messages.next().await.is_none());
        }
    }
}
