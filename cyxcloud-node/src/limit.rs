//! Bounds how many requests are worked on at a time, over all connections: of strangers a few, of everybody else many.
//!
//! A gRPC message, and the token in it, is read into memory before its handler sees it, so the bound sits in front of the
//! decoder. What waits, waits in HTTP/2's windows at its sender. Who comes from where a good token was shown within the last
//! hour is no stranger. Strangers have places of their own, an address a few of them, and their messages must come: whoever
//! takes all that he can get takes nothing from our servers, and little from one that is not known yet. Where no tokens are
//! asked for, nobody is a stranger. Not here: what a good token is (`gate`).
//!
//! What strangers can make a node hold: [`STRANGERS_MAX`] messages, 2 GiB if all are as large as may be, and nearly as much
//! again in the windows of the streams that wait, each of [`STREAM_WINDOW`](crate::STREAM_WINDOW).

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::ChunkId;
use cyxcloud_core::token::{LIFETIME_MAX, Operation};
use cyxcloud_tls::client::address_group;
use cyxcloud_tls::grpc::PeerInfo;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use prometheus::IntCounter;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

use crate::gate::Gate;

/// Requests of those who are known, decoded and worked on at a time.
const REQUESTS_MAX: usize = 128;
/// And of strangers.
const STRANGERS_MAX: usize = 32;
/// Of those, one address's.
const STRANGER_MAX: usize = 4;
/// Requests of strangers that are worked on or wait, see [`Strangers`].
const CROWD_MAX: usize = 512;
/// How long they wait. A server that is not known yet may begin with many stores at once on a slow line; it waits no longer
/// for any of them.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stranger's message may take to come, and the bytes that earn it a second more.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_RATE: u64 = 16 << 10;
/// How long an address is known after a token was shown: none holds longer.
const KNOWN_FOR: Duration = LIFETIME_MAX;
/// Addresses known at a time.
const KNOWN_MAX: usize = 4_096;

/// Where a request comes from: an address, or a network that is as good as one.
fn address_of(peer: Option<&PeerInfo>) -> Option<String> {
    peer?.address.map(|address| address_group(address.ip()))
}

/// How long a message may take of which so much has come.
fn patience(received: u64) -> Duration {
    PATIENCE + Duration::from_millis(received.saturating_mul(1000) / PATIENCE_RATE)
}

/// Where good tokens were shown from, and when last.
#[derive(Debug, Default)]
struct Known(HashMap<String, Instant>);

impl Known {
    fn has(&self, from: &str, now: Instant) -> bool {
        self.0.get(from).is_some_and(|shown| now.saturating_duration_since(*shown) < KNOWN_FOR)
    }

    /// Takes note of a good token; answers whether who comes from there was a stranger until now.
    fn note(&mut self, from: String, now: Instant) -> bool {
        let new = !self.has(&from, now);
        if new && self.0.len() >= KNOWN_MAX {
            self.0.retain(|_, shown| now.saturating_duration_since(*shown) < KNOWN_FOR);
        }
        if new && self.0.len() >= KNOWN_MAX {
            let oldest = self.0.iter().min_by_key(|(_, shown)| **shown).map(|(from, _)| from.clone());
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(from, now);
        new
    }
}

/// Requests of strangers that are worked on or wait, by address. An address may have half as many as there is room for more: alone
/// it may ask for many things at once, and after however many others have taken what they can, there is room for some of the next.
#[derive(Debug, Default)]
struct Strangers {
    requests: usize,
    of: HashMap<String, Stranger>,
}

/// Those of one address.
#[derive(Debug)]
struct Stranger {
    requests: usize,
    turns: Arc<Semaphore>,
}

impl Strangers {
    /// Counts one more, and answers with what it must wait for before it stands in line with those of others; `None` if there is
    /// no room for it.
    fn enter(&mut self, from: &str) -> Option<Arc<Semaphore>> {
        let own = self.of.get(from).map_or(0, |stranger| stranger.requests);
        if own >= CROWD_MAX.saturating_sub(self.requests) / 2 {
            return None;
        }
        let stranger = self
            .of
            .entry(from.to_owned())
            .or_insert_with(|| Stranger { requests: 0, turns: Arc::new(Semaphore::new(STRANGER_MAX)) });
        stranger.requests += 1;
        self.requests += 1;
        Some(stranger.turns.clone())
    }

    fn leave(&mut self, from: &str) {
        if let Some(stranger) = self.of.get_mut(from) {
            self.requests -= 1;
            stranger.requests -= 1;
            if stranger.requests == 0 {
                self.of.remove(from);
            }
        }
    }
}

/// All who call: whom the gate let pass, and who may begin a request now.
#[derive(Debug)]
pub(crate) struct Callers {
    gate: Arc<Gate>,
    known: Mutex<Known>,
    /// Wakes those who wait, for some of them are known now.
    news: Notify,
    strangers: Mutex<Strangers>,
    /// For requests of those who are known.
    permits: Arc<Semaphore>,
    /// For strangers'.
    places: Arc<Semaphore>,
    refused: IntCounter,
}

impl Callers {
    /// `refused`: counts requests of strangers for which there was no place, or that did not come.
    pub(crate) fn new(gate: Arc<Gate>, refused: IntCounter) -> Self {
        Self {
            gate,
            known: Mutex::default(),
            news: Notify::new(),
            strangers: Mutex::default(),
            permits: Arc::new(Semaphore::new(REQUESTS_MAX)),
            places: Arc::new(Semaphore::new(STRANGERS_MAX)),
            refused,
        }
    }

    /// Lets a call pass the gate, or says why not. Whoever shows a good token is no stranger from then on.
    pub(crate) fn check(
        &self,
        token: &[u8],
        operation: Operation,
        chunk: Option<&ChunkId>,
        peer: Option<PeerInfo>,
    ) -> Result<(), Status> {
        let key = peer.and_then(|peer| peer.key).map(|key| key.0);
        self.gate.check(token, operation, chunk, key)?;
        if self.gate.wants_tokens()
            && let Some(from) = address_of(peer.as_ref())
        {
            self.welcome(from);
        }
        Ok(())
    }

    fn welcome(&self, from: String) {
        let new = locked(&self.known).note(from, Instant::now());
        if new {
            self.news.notify_waiters();
        }
    }

    /// Whether who comes from there is no stranger.
    fn knows(&self, from: &str) -> bool {
        !self.gate.wants_tokens() || locked(&self.known).has(from, Instant::now())
    }

    async fn until_known(&self, from: &str) {
        loop {
            // Before the look, so that no news come unnoticed between the two.
            let news = self.news.notified();
            if self.knows(from) {
                return;
            }
            news.await;
        }
    }

    /// A place for a request, as soon as there is one.
    async fn enter(self: &Arc<Self>, from: &str) -> Result<Place, Status> {
        if !self.knows(from) {
            let seat = self.seat(from).ok_or_else(|| self.refuse())?;
            let (turns, places) = (seat.turns.clone(), self.places.clone());
            // Behind those of its own address first: no address has more than a few in the line of all.
            let placed = async move {
                let turn = turns.acquire_owned().await.expect("never closed");
                (places.acquire_owned().await.expect("never closed"), turn)
            };
            tokio::select! {
                biased;
                () = self.until_known(from) => {}
                (permit, turn) = placed => {
                    return Ok(Place { _permit: permit, stranger: Some((turn, seat)) });
                }
                () = tokio::time::sleep(TURN_TIMEOUT) => return Err(self.refuse()),
            }
        }
        let permit = self.permits.clone().acquire_owned().await.expect("never closed");
        Ok(Place { _permit: permit, stranger: None })
    }

    fn seat(self: &Arc<Self>, from: &str) -> Option<Seat> {
        let turns = locked(&self.strangers).enter(from)?;
        Some(Seat { callers: self.clone(), from: from.to_owned(), turns })
    }

    fn refuse(&self) -> Status {
        self.refused.inc();
        Status::resource_exhausted("too many requests of callers who have shown no token; try again later")
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stranger's request among the others, until it is dropped.
#[derive(Debug)]
struct Seat {
    callers: Arc<Callers>,
    from: String,
    turns: Arc<Semaphore>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        locked(&self.callers.strangers).leave(&self.from);
    }
}

/// What a request holds while it is worked on.
#[derive(Debug)]
struct Place {
    _permit: OwnedSemaphorePermit,
    stranger: Option<(OwnedSemaphorePermit, Seat)>,
}

/// A stranger's message, which must come. Whoever is known by the time it should have is not hurried any more.
#[derive(Debug)]
struct Hurried {
    inner: Body,
    callers: Arc<Callers>,
    from: String,
    began: Instant,
    received: u64,
    until: Option<Pin<Box<Sleep>>>,
}

impl Hurried {
    fn new(inner: Body, callers: Arc<Callers>, from: String, began: Instant) -> Self {
        let until = Some(Box::pin(tokio::time::sleep_until(began + patience(0))));
        Self { inner, callers, from, began, received: 0, until }
    }
}

impl http_body::Body for Hurried {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            if let Some(Ok(frame)) = &frame {
                this.received += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame);
        }
        while let Some(until) = &mut this.until {
            ready!(until.as_mut().poll(cx));
            let deadline = this.began + patience(this.received);
            if this.callers.knows(&this.from) {
                this.until = None;
            } else if Instant::now() < deadline {
                until.as_mut().reset(deadline);
            } else {
                this.callers.refused.inc();
                return Poll::Ready(Some(Err(Status::deadline_exceeded("the message did not come in time"))));
            }
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A service with a bound. Those with the same callers share it.
#[derive(Clone, Debug)]
pub(crate) struct Limited<S> {
    inner: S,
    callers: Arc<Callers>,
}

impl<S> Limited<S> {
    pub(crate) fn new(inner: S, callers: Arc<Callers>) -> Self {
        Self { inner, callers }
    }
}

impl<S: NamedService> NamedService for Limited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Limited<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The one that was polled ready takes the call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let callers = self.callers.clone();
        // Whose address nobody knows was gone before it asked.
        let from = address_of(request.extensions().get()).unwrap_or_default();
        Box::pin(async move {
            let place = match callers.enter(&from).await {
                Ok(place) => place,
                Err(refused) => return Ok(refused.into_http()),
            };
            let request = match place.stranger {
                None => request,
                Some(_) => request.map(|body| Body::new(Hurried::new(body, callers, from, Instant::now()))),
            };
            inner.call(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::receipt::NodeKey;
    use cyxcloud_core::token::{Operations, SESSION_LIFETIME, Token};
    use http_body_util::{BodyExt, StreamBody};
    use tonic::Code;

    use super::*;
    use crate::gate::Trust;
    use crate::service::now;

    const NODE: [u8; 32] = [2; 32];

    /// Callers of a node that wants tokens signed by this key, or none.
    fn callers(key: Option<&NodeKey>) -> (tempfile::TempDir, Arc<Callers>) {
        let dir = tempfile::tempdir().expect("made");
        let counter = |name| IntCounter::new(name, "x").expect("a counter");
        let gate = Gate::open(NODE, dir.path(), counter("tokens"));
        let keys: Vec<[u8; 32]> = key.iter().map(|key| key.public()).collect();
        gate.told(Trust::told(key.is_some(), &keys), now());
        (dir, Arc::new(Callers::new(Arc::new(gate), counter("strangers"))))
    }

    fn key() -> NodeKey {
        NodeKey::from_seed([1; 32])
    }

    fn peer(address: &str) -> Option<PeerInfo> {
        Some(PeerInfo { address: Some(address.parse().expect("an address")), key: None })
    }

    /// Whether there is a place at once.
    async fn place(callers: &Arc<Callers>, from: &str) -> Option<Result<Place, Status>> {
        tokio::time::timeout(Duration::from_millis(50), callers.enter(from)).await.ok()
    }

    async fn placed(callers: &Arc<Callers>, from: &str) -> Place {
        place(callers, from).await.expect("at once").expect("not refused")
    }

    #[test]
    fn an_address_is_known_for_an_hour_from_its_last_token() {
        let (mut known, begin) = (Known::default(), Instant::now());
        let at = |minutes: u64| begin + Duration::from_secs(60 * minutes);
        assert!(!known.has("a", at(0)));
        assert!(known.note("a".to_owned(), at(0)) && !known.note("a".to_owned(), at(40)));
        assert!(known.has("a", at(99)) && !known.has("a", at(100)) && !known.has("b", at(99)));
        assert!(known.note("a".to_owned(), at(100)), "anew");
    }

    #[test]
    fn so_many_are_known_and_who_was_not_heard_of_for_longest_is_forgotten() {
        let (mut known, begin) = (Known::default(), Instant::now());
        let at = |seconds: usize| begin + Duration::from_secs(seconds as u64 / 2);
        for number in 0..KNOWN_MAX {
            known.note(number.to_string(), at(number));
        }
        known.note("0".to_owned(), at(KNOWN_MAX));
        known.note("another".to_owned(), at(KNOWN_MAX));
        assert_eq!(known.0.len(), KNOWN_MAX);
        assert!(known.has("0", at(KNOWN_MAX)) && known.has("another", at(KNOWN_MAX)));
        assert!(!known.has("1", at(KNOWN_MAX)));
        known.note("later".to_owned(), at(KNOWN_MAX) + KNOWN_FOR);
        assert_eq!(known.0.len(), 1, "all others are over");
    }

    #[test]
    fn adv_30_there_is_room_for_another_address_whoever_came_before() {
        let mut strangers = Strangers::default();
        let mut fill = |from: &str| std::iter::from_fn(|| strangers.enter(from)).count();
        let alone = fill("first");
        assert!(alone > REQUESTS_MAX, "{alone}: a server that is not known yet begins with many");
        let others: Vec<usize> = (0..8).map(|number| fill(&number.to_string())).collect();
        assert!(others.is_sorted_by(|earlier, later| earlier >= later), "{others:?}");
        assert!(fill("last") >= 1 && fill("first") == 0);
        for _ in 0..alone {
            strangers.leave("first");
        }
        assert!(!strangers.of.contains_key("first"), "nothing is remembered of who left");
        let counted: usize = strangers.of.values().map(|stranger| stranger.requests).sum();
        assert_eq!(strangers.requests, counted);
        assert!(strangers.enter("first").is_some());
    }

    #[test]
    fn time_is_earned_by_bytes() {
        assert_eq!(patience(0), PATIENCE);
        assert_eq!(patience(420_000).as_secs(), 35);
        assert!(patience(u64::MAX) > PATIENCE);
    }

    #[tokio::test]
    async fn adv_30_strangers_take_no_place_of_those_who_are_known() {
        let (_dir, callers) = callers(Some(&key()));
        let mut held = Vec::new();
        for number in 0..STRANGERS_MAX / STRANGER_MAX {
            for _ in 0..STRANGER_MAX {
                held.push(placed(&callers, &number.to_string()).await);
            }
            assert!(place(&callers, &number.to_string()).await.is_none(), "it waits behind its own");
        }
        assert!(place(&callers, "another").await.is_none(), "strangers have no more places");
        callers.welcome("known".to_owned());
        for _ in 0..REQUESTS_MAX {
            let place = placed(&callers, "known").await;
            assert!(place.stranger.is_none());
            held.push(place);
        }
        assert!(place(&callers, "known").await.is_none(), "nor has who is known");
        drop(held.remove(0));
        assert!(placed(&callers, "another").await.stranger.is_some());
        assert_eq!(callers.refused.get(), 0);
        drop(held);
        assert!(locked(&callers.strangers).of.is_empty());
    }

    #[tokio::test]
    async fn who_shows_a_token_while_more_of_it_waits_is_let_in() {
        let (_dir, callers) = callers(Some(&key()));
        let mut held = Vec::new();
        for _ in 0..STRANGER_MAX {
            held.push(placed(&callers, "192.0.2.1").await);
        }
        let waiting = tokio::spawn({
            let callers = callers.clone();
            async move { callers.enter("192.0.2.1").await }
        });
        assert!(place(&callers, "192.0.2.1").await.is_none() && !waiting.is_finished());
        let token = Token {
            id: [1; 16],
            node: NODE,
            operations: Operations::of(&[Operation::Has]),
            holder: None,
            issued: now(),
            expires: now().plus(SESSION_LIFETIME),
            chunk: None,
        };
        let token = token.sign(&key());
        let show = |operation, address| callers.check(&token, operation, None, peer(address));
        assert!(show(Operation::Get, "192.0.2.1:7").is_err() && !callers.knows("192.0.2.1"));
        assert!(show(Operation::Has, "192.0.2.1:7").is_ok() && callers.knows("192.0.2.1"));
        let place = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("it waits no more");
        assert!(place.expect("no panic").expect("not refused").stranger.is_none());
        assert!(!callers.knows("192.0.2.2"), "others are what they were");
        assert!(show(Operation::Has, "[2001:db8::1]:7").is_ok() && callers.knows("2001:db8:0:0::/64"));
    }

    #[tokio::test]
    async fn adv_30_what_finds_no_room_is_refused_at_once() {
        let (_dir, callers) = callers(Some(&key()));
        let mut seats = Vec::new();
        while let Some(seat) = callers.seat("crowd") {
            seats.push(seat);
        }
        let refused = place(&callers, "crowd").await.expect("at once").expect_err("refused");
        assert_eq!((refused.code(), callers.refused.get()), (Code::ResourceExhausted, 1));
        assert!(placed(&callers, "another").await.stranger.is_some());
    }

    #[tokio::test]
    async fn nobody_is_a_stranger_where_no_tokens_are_asked_for() {
        let (_dir, callers) = callers(None);
        let mut held = Vec::new();
        for _ in 0..REQUESTS_MAX {
            held.push(placed(&callers, "anybody").await);
        }
        assert!(held.iter().all(|place| place.stranger.is_none()));
        assert!(callers.check(b"", Operation::Has, None, peer("192.0.2.1:7")).is_ok());
        assert!(locked(&callers.known).0.is_empty(), "nor is anybody known by it");
    }

    #[tokio::test]
    async fn adv_30_a_stranger_s_message_must_come() {
        type Piece = Result<Frame<Bytes>, Status>;
        let (_dir, callers) = callers(Some(&key()));
        let silent = || Body::new(StreamBody::new(futures::stream::pending::<Piece>()));
        let begun_before = |past: Duration, from: &str| {
            Hurried::new(silent(), callers.clone(), from.to_owned(), Instant::now() - past).collect()
        };
        let cut = begun_before(PATIENCE, "a").await.expect_err("cut off");
        assert_eq!((cut.code(), callers.refused.get()), (Code::DeadlineExceeded, 1));
        let soon = tokio::time::timeout(Duration::from_millis(50), begun_before(Duration::ZERO, "a")).await;
        assert!(soon.is_err(), "there is time yet");
        callers.welcome("b".to_owned());
        let known = tokio::time::timeout(Duration::from_millis(50), begun_before(PATIENCE, "b")).await;
        assert!(known.is_err(), "who is known is not hurried");
    }
}
