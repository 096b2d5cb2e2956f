//! What may be lost: news that gateways pass each other so that they look at the metadata store sooner than their next
//! tick, things that are good once and for minutes (nonces, tickets), counts for rate limits, and the places of an owner that
//! are held. Losing all of it lets nobody in and logs nobody out: what is not here is refused. One thing is here because it was
//! used: registrations of nodes, which are good once as long as this is not lost, and for an hour if it is.
//!
//! Two implementations: Redis between several gateways, and this process alone.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use redis::AsyncCommands;
use tokio::sync::broadcast;
use tracing::{debug, warn};

/// Time after which Redis counts as not answering.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a lost subscription is taken up again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);
/// What limits are told for.
const MINUTE: Duration = Duration::from_secs(60);
/// Values and counts of one kind that are kept in one process, at most; beyond it new ones are refused. What strangers can
/// make many of (counts of addresses, registrations) leaves room for the others.
const KEPT_MAX: usize = 100_000;
/// A kind of which there are as many as there may be is looked through for what is over, this often at most.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// News waiting for a slow subscriber, at most; beyond it the oldest are dropped.
const BACKLOG: usize = 256;

/// Holds a place: KEYS[1] has the holders by when they let go, by Redis's clock; ARGV are the holder, the places there are,
/// and the milliseconds for which one is held. The key ends with its last holder; PEXPIRE's own words for that are Redis 7's.
const HOLD: &str = r"
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
    if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
        return 0
    end
    redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
    if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
    end
    return 1
";

/// Why ephemeral state did not answer. Callers go on without.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing}")]
pub struct Error {
    doing: &'static str,
    #[source]
    source: Option<redis::RedisError>,
}

/// Something that happened, for whoever listens on its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A node joined, left or changed status: read the nodes again.
    Nodes,
    /// A key, token or user was revoked or changed: the message is the id of a token or session, or `*` for the rest.
    Credentials,
    /// Something happened to somebody's buckets, for whoever listens ([`crate::events::relay`]).
    Events,
}

impl Topic {
    fn channel(self) -> &'static str {
        match self {
            Self::Nodes => "cyxcloud.nodes",
            Self::Credentials => "cyxcloud.credentials",
            Self::Events => "cyxcloud.events",
        }
    }
}

/// What comes in on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody said this.
    Message(String),
    /// What is said from about now on is not heard.
    Lost,
    /// It is again; what was said meanwhile is lost.
    Back,
}

/// News as they come in; ends with the process.
pub type News = Pin<Box<dyn Stream<Item = Heard> + Send>>;

/// Shared state that may be lost at any time.
#[async_trait]
pub trait Ephemeral: Send + Sync + std::fmt::Debug {
    /// Which implementation this is, for `/ready`.
    fn engine(&self) -> &'static str;
    /// Whether it answers.
    async fn ping(&self) -> Result<(), Error>;
    /// Tells all current subscribers of the topic. At most once; nobody may have heard it.
    async fn publish(&self, topic: Topic, message: &str) -> Result<(), Error>;
    /// News of the topic from now on, and between which of them some may be missing.
    async fn subscribe(&self, topic: Topic) -> Result<News, Error>;
    /// Keeps a value under a name for so long.
    async fn keep(&self, name: &str, value: &str, ttl: Duration) -> Result<(), Error>;
    /// What is kept under a name; it stays.
    async fn look(&self, name: &str) -> Result<Option<String>, Error>;
    /// Takes what is kept under a name: of all who ask, one gets it.
    async fn take(&self, name: &str) -> Result<Option<String>, Error>;
    /// Holds one of `most` places under a name for so long, from now if it holds one already; `false` where others hold them all.
    async fn hold(&self, name: &str, holder: &str, most: usize, ttl: Duration) -> Result<bool, Error>;
    /// Gives a place back.
    async fn release(&self, name: &str, holder: &str) -> Result<(), Error>;
    /// Counts one more under a name that begins anew after `window`; answers how many there are and how long it lasts.
    async fn count(&self, name: &str, window: Duration) -> Result<(u64, Duration), Error>;
}

/// Counts one more try of somebody at something; where this minute has had more than `most`, how long it lasts.
pub async fn over_limit(
    ephemeral: &dyn Ephemeral,
    what: &str,
    who: &str,
    most: u64,
) -> Result<Option<Duration>, Error> {
    let (count, after) = ephemeral.count(&format!("rate:{what}:{who}"), MINUTE).await?;
    Ok((count > most).then_some(after))
}

/// In this process only.
#[derive(Debug)]
pub struct InProcess {
    sender: broadcast::Sender<(Topic, String)>,
    /// By kind.
    kept: Mutex<HashMap<String, Shelf>>,
    /// Under each name, who holds a place until when.
    held: Mutex<HashMap<String, HashMap<String, Instant>>>,
}

/// All of a kind.
#[derive(Debug, Default)]
struct Shelf {
    kept: HashMap<String, Kept>,
    swept: Option<Instant>,
}

/// Which kind of thing a name is of: what is before its first colon or slash; limits are a kind for each thing limited.
fn kind(name: &str) -> &str {
    let end = |text: &str| text.find([':', '/']).unwrap_or(text.len());
    match name.strip_prefix("rate:") {
        Some(limited) => &name[.."rate:".len() + end(limited)],
        None => &name[..end(name)],
    }
}

impl Shelf {
    /// With room for one more.
    fn with_room(&mut self, now: Instant) -> Result<&mut HashMap<String, Kept>, Error> {
        let full = self.kept.len() >= KEPT_MAX;
        if full && self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP_PAUSE) {
            self.kept.retain(|_, kept| kept.until > now);
            self.swept = Some(now);
        }
        if self.kept.len() >= KEPT_MAX {
            return Err(Error { doing: "keep any more", source: None });
        }
        Ok(&mut self.kept)
    }
}

/// A value or a count, until when it is there.
#[derive(Debug)]
struct Kept {
    value: String,
    count: u64,
    until: Instant,
}

impl Default for InProcess {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0, kept: Mutex::default(), held: Mutex::default() }
    }
}

impl InProcess {
    fn shelves(&self) -> MutexGuard<'_, HashMap<String, Shelf>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Ephemeral for InProcess {
    fn engine(&self) -> &'static str {
        "in-process"
    }

    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn publish(&self, topic: Topic, message: &str) -> Result<(), Error> {
        // An error means that nobody listens.
        let _ = self.sender.send((topic, message.to_owned()));
        Ok(())
    }

    async fn subscribe(&self, topic: Topic) -> Result<News, Error> {
        let news = tokio_stream::wrappers::BroadcastStream::new(self.sender.subscribe());
        Ok(Box::pin(news.filter_map(move |item| async move {
            match item {
                Ok((about, message)) => (about == topic).then_some(Heard::Message(message)),
                // Some were dropped, of whatever topic, and this is the next chance to hear more.
                Err(_) => Some(Heard::Back),
            }
        })))
    }

    async fn keep(&self, name: &str, value: &str, ttl: Duration) -> Result<(), Error> {
        let now = Instant::now();
        let kept = Kept { value: value.to_owned(), count: 0, until: now + ttl };
        let mut shelves = self.shelves();
        shelves.entry(kind(name).to_owned()).or_default().with_room(now)?.insert(name.to_owned(), kept);
        Ok(())
    }

    async fn look(&self, name: &str) -> Result<Option<String>, Error> {
        let shelves = self.shelves();
        let kept = shelves.get(kind(name)).and_then(|shelf| shelf.kept.get(name));
        Ok(kept.filter(|kept| kept.until > Instant::now()).map(|kept| kept.value.clone()))
    }

    async fn take(&self, name: &str) -> Result<Option<String>, Error> {
        let taken = self.shelves().get_mut(kind(name)).and_then(|shelf| shelf.kept.remove(name));
        Ok(taken.filter(|kept| kept.until > Instant::now()).map(|kept| kept.value))
    }

    async fn hold(&self, name: &str, holder: &str, most: usize, ttl: Duration) -> Result<bool, Error> {
        let now = Instant::now();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let places = held.entry(name.to_owned()).or_default();
        places.retain(|_, until| *until > now);
        let free = places.len() < most || places.contains_key(holder);
        if free {
            places.insert(holder.to_owned(), now + ttl);
        }
        Ok(free)
    }

    async fn release(&self, name: &str, holder: &str) -> Result<(), Error> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = held.get_mut(name) {
            places.remove(holder);
            if places.is_empty() {
                held.remove(name);
            }
        }
        Ok(())
    }

    async fn count(&self, name: &str, window: Duration) -> Result<(u64, Duration), Error> {
        let now = Instant::now();
        let mut shelves = self.shelves();
        let shelf = shelves.entry(kind(name).to_owned()).or_default();
        let fresh = || Kept { value: String::new(), count: 0, until: now + window };
        // Who is counted already needs no room.
        let kept = match shelf.kept.contains_key(name) {
            true => &mut shelf.kept,
            false => shelf.with_room(now)?,
        };
        let kept = kept.entry(name.to_owned()).or_insert_with(fresh);
        if kept.until <= now {
            *kept = fresh();
        }
        kept.count += 1;
        Ok((kept.count, kept.until - now))
    }
}

/// Between gateways, by Redis.
pub struct Redis {
    client: redis::Client,
    connection: redis::aio::ConnectionManager,
    hold: redis::Script,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.write_str("Redis")
    }
}

impl Redis {
    /// Connects, and comes back by itself when the connection is lost later.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let failed = |source| Error { doing: "connect to Redis", source: Some(source) };
        let client = redis::Client::open(url).map_err(failed)?;
        let config = redis::aio::ConnectionManagerConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_number_of_retries(2);
        let connection = client.get_connection_manager_with_config(config).await.map_err(failed)?;
        Ok(Self { client, connection, hold: redis::Script::new(HOLD) })
    }

    /// Host and port that connections go to; none where that is a socket of this machine.
    pub fn endpoint(url: &str) -> Result<Option<(String, u16)>, Error> {
        use redis::ConnectionAddr::{Tcp, TcpTls};
        let failed = |source| Error { doing: "read REDIS_URL", source: Some(source) };
        let client = redis::Client::open(url).map_err(failed)?;
        Ok(match client.get_connection_info().addr() {
            Tcp(host, port) | TcpTls { host, port, .. } => Some((host.clone(), *port)),
            _ => None,
        })
    }
}

#[async_trait]
impl Ephemeral for Redis {
    fn engine(&self) -> &'static str {
        "redis"
    }

    async fn ping(&self) -> Result<(), Error> {
        let mut connection = self.connection.clone();
        let answer: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut connection).await;
        answer.map(|_| ()).map_err(|source| Error { doing: "reach Redis", source: Some(source) })
    }

    async fn publish(&self, topic: Topic, message: &str) -> Result<(), Error> {
        let mut connection = self.connection.clone();
        let told: redis::RedisResult<i64> = connection.publish(topic.channel(), message).await;
        told.map(|_| ()).map_err(|source| Error { doing: "publish to Redis", source: Some(source) })
    }

    async fn subscribe(&self, topic: Topic) -> Result<News, Error> {
        let (sender, receiver) = tokio::sync::mpsc::channel(BACKLOG);
        let first = listen(&self.client, topic).await?;
        let client = self.client.clone();
        tokio::spawn(async move {
            let mut messages = Some(first);
            while !sender.is_closed() {
                if let Some(stream) = messages.take() {
                    forward(stream, &sender).await;
                    debug!(channel = topic.channel(), "lost the subscription");
                    // Fails where nobody listens any more, which ends the loop.
                    let _ = sender.send(Heard::Lost).await;
                }
                tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
                match listen(&client, topic).await {
                    Ok(stream) => {
                        let _ = sender.send(Heard::Back).await;
                        messages = Some(stream);
                    }
                    Err(error) => warn!(%error, "redis does not answer; going on without news"),
                }
            }
        });
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }

    async fn keep(&self, name: &str, value: &str, ttl: Duration) -> Result<(), Error> {
        let mut connection = self.connection.clone();
        let kept: redis::RedisResult<()> =
            connection.pset_ex(key_of(name), value, u64::try_from(ttl.as_millis()).unwrap_or(1)).await;
        kept.map_err(|source| Error { doing: "keep something in Redis", source: Some(source) })
    }

    async fn look(&self, name: &str) -> Result<Option<String>, Error> {
        let mut connection = self.connection.clone();
        let seen: redis::RedisResult<Option<String>> = connection.get(key_of(name)).await;
        seen.map_err(|source| Error { doing: "look something up in Redis", source: Some(source) })
    }

    async fn take(&self, name: &str) -> Result<Option<String>, Error> {
        let mut connection = self.connection.clone();
        let taken: redis::RedisResult<Option<String>> = connection.get_del(key_of(name)).await;
        taken.map_err(|source| Error { doing: "take something from Redis", source: Some(source) })
    }

    async fn hold(&self, name: &str, holder: &str, most: usize, ttl: Duration) -> Result<bool, Error> {
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let mut connection = self.connection.clone();
        let mut script = self.hold.key(key_of(name));
        let held = script.arg(holder).arg(most).arg(ttl).invoke_async(&mut connection).await;
        held.map_err(|source| Error { doing: "hold a place in Redis", source: Some(source) })
    }

    async fn release(&self, name: &str, holder: &str) -> Result<(), Error> {
        let mut connection = self.connection.clone();
        let released: redis::RedisResult<i64> = connection.zrem(key_of(name), holder).await;
        released
            .map(|_| ())
            .map_err(|source| Error { doing: "give a place back in Redis", source: Some(source) })
    }

    async fn count(&self, name: &str, window: Duration) -> Result<(u64, Duration), Error> {
        let window = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let mut connection = self.connection.clone();
        // Together, so that no count is left without an end; and in words that Redis 6 knows.
        let counted: redis::RedisResult<(u64, i64)> = redis::pipe()
            .atomic()
            .cmd("SET")
            .arg(key_of(name))
            .arg(0)
            .arg("PX")
            .arg(window)
            .arg("NX")
            .ignore()
            .incr(key_of(name), 1)
            .pttl(key_of(name))
            .query_async(&mut connection)
            .await;
        let (count, left) =
            counted.map_err(|source| Error { doing: "count in Redis", source: Some(source) })?;
        Ok((count, Duration::from_millis(u64::try_from(left).unwrap_or(0))))
    }
}

fn key_of(name: &str) -> String {
    format!("cyxcloud:{name}")
}

/// A subscription; the stream ends when the sink is dropped.
type Subscription = (redis::aio::PubSubSink, redis::aio::PubSubStream);

async fn listen(client: &redis::Client, topic: Topic) -> Result<Subscription, Error> {
    let failed = |source| Error { doing: "subscribe at Redis", source: Some(source) };
    let connecting = tokio::time::timeout(ANSWER_TIMEOUT, client.get_async_pubsub()).await;
    let pubsub =
        connecting.map_err(|_| Error { doing: "reach Redis in time", source: None })?.map_err(failed)?;
    let (mut sink, stream) = pubsub.split();
    sink.subscribe(topic.channel()).await.map_err(failed)?;
    Ok((sink, stream))
}

async fn forward((_sink, mut stream): Subscription, sender: &tokio::sync::mpsc::Sender<Heard>) {
    loop {
        tokio::select! {
            message = stream.next() => {
                let Some(message) = message else { return };
                // Waits for a slow subscriber: what Redis then cannot keep for us it cuts off, which is told.
                let _ = sender.send(Heard::Message(message.get_payload().unwrap_or_default())).await;
            }
            () = sender.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn news_reach_a_subscriber(ephemeral: &dyn Ephemeral) {
        ephemeral.ping().await.expect("answers");
        let mut news = ephemeral.subscribe(Topic::Nodes).await.expect("subscribes");
        ephemeral.publish(Topic::Nodes, "one").await.expect("publishes");
        ephemeral.publish(Topic::Nodes, "two").await.expect("publishes");
        for said in ["one", "two"] {
            assert_eq!(news.next().await, Some(Heard::Message(said.to_owned())));
        }
    }

    async fn what_is_kept_is_taken_once(ephemeral: &dyn Ephemeral) {
        let name = format!("test:{}", uuid::Uuid::new_v4());
        let minute = Duration::from_secs(60);
        assert_eq!(ephemeral.take(&name).await.expect("answers"), None);
        ephemeral.keep(&name, "value", minute).await.expect("keeps");
        for _ in 0..2 {
            assert_eq!(ephemeral.look(&name).await.expect("answers").as_deref(), Some("value"));
        }
        let takers = (0..8).map(|_| ephemeral.take(&name));
        let taken = futures::future::join_all(takers).await;
        let taken: Vec<String> = taken.into_iter().filter_map(|taken| taken.expect("answers")).collect();
        assert_eq!(taken, ["value"]);
        ephemeral.keep(&name, "short", Duration::from_millis(1)).await.expect("keeps");
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(ephemeral.look(&name).await.expect("answers"), None);
        assert_eq!(ephemeral.take(&name).await.expect("answers"), None);
        for n in 1..=3 {
            let (count, left) = ephemeral.count(&name, minute).await.expect("counts");
            assert!(count == n && left <= minute && left > Duration::from_secs(30), "{count} {left:?}");
        }
    }

    async fn so_many_places_are_held_and_given_back(ephemeral: &dyn Ephemeral) {
        let name = format!("test:{}", uuid::Uuid::new_v4());
        let minute = Duration::from_secs(60);
        let hold = async |holder: &str, ttl| ephemeral.hold(&name, holder, 2, ttl).await.expect("answers");
        assert!(hold("a", minute).await && hold("b", minute).await);
        assert!(!hold("c", minute).await && hold("a", minute).await, "who holds one goes on holding it");
        ephemeral.release(&name, "a").await.expect("answers");
        ephemeral.release(&name, "nobody").await.expect("answers");
        assert!(hold("c", minute).await && !hold("a", minute).await);
        // Whoever does not say that it is still there is not.
        assert!(hold("b", Duration::from_millis(1)).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(hold("d", minute).await && !hold("b", minute).await);
        let other = ephemeral.hold(&format!("{name}-other"), "c", 2, minute).await;
        assert!(other.expect("answers"), "another name has places of its own");
    }

    #[tokio::test]
    async fn much_of_one_kind_leaves_room_for_others() {
        let ephemeral = InProcess::default();
        let (hour, short) = (Duration::from_secs(3600), Duration::from_millis(1));
        for number in 0..KEPT_MAX {
            let window = if number == 0 { short } else { hour };
            ephemeral.count(&format!("registration:{number}"), window).await.expect("there is room");
        }
        assert!(ephemeral.count("registration:known", hour).await.is_ok(), "the first is over");
        assert!(ephemeral.count("registration:more", hour).await.is_err());
        assert_eq!(ephemeral.count("registration:known", hour).await.expect("is counted").0, 2);
        ephemeral.keep("nonce:a", "value", hour).await.expect("another kind");
        assert_eq!(ephemeral.take("nonce:a").await.expect("answers").as_deref(), Some("value"));
        assert_eq!(over_limit(&ephemeral, "challenge", "somebody", 1).await.expect("counts"), None);
        assert_eq!(kind("rate:register:192.0.2.1"), "rate:register");
        assert_eq!(kind("scrub/5"), "scrub");
    }

    #[tokio::test]
    async fn in_process() {
        news_reach_a_subscriber(&InProcess::default()).await;
        what_is_kept_is_taken_once(&InProcess::default()).await;
        so_many_places_are_held_and_given_back(&InProcess::default()).await;
    }

    #[tokio::test]
    async fn redis() {
        let url = std::env::var("CYXCLOUD_TEST_REDIS")
            .expect("CYXCLOUD_TEST_REDIS names a Redis server for tests, or is `omit`; script/test sets it");
        if url == "omit" {
            #[allow(clippy::print_stderr, reason = "what a run leaves out is said aloud")]
            {
                eprintln!("left out: redis (CYXCLOUD_TEST_REDIS=omit)");
            }
            return;
        }
        let redis = Redis::connect(&url).await.expect("connects");
        news_reach_a_subscriber(&redis).await;
        what_is_kept_is_taken_once(&redis).await;
        so_many_places_are_held_and_given_back(&redis).await;
        what_is_held_and_counted_ends(&redis).await;
    }

    /// Whoever goes without a word leaves nothing behind for good.
    async fn what_is_held_and_counted_ends(redis: &Redis) {
        let name = || format!("test:{}", uuid::Uuid::new_v4());
        let (held, counted) = (name(), name());
        let (short, minute) = (Duration::from_secs(30), Duration::from_secs(60));
        let left = async |name: &str| {
            let mut connection = redis.connection.clone();
            let left: redis::RedisResult<i64> = connection.pttl(key_of(name)).await;
            left.expect("answers")
        };
        assert!(redis.hold(&held, "a", 2, short).await.expect("answers"));
        assert!((1..=30_000).contains(&left(&held).await));
        // As long as the one who holds longest.
        for (holder, ttl) in [("b", minute), ("a", short)] {
            assert!(redis.hold(&held, holder, 2, ttl).await.expect("answers"));
            assert!((30_001..=60_000).contains(&left(&held).await), "{holder}");
        }
        for _ in 0..2 {
            redis.count(&counted, short).await.expect("counts");
            assert!((1..=30_000).contains(&left(&counted).await));
        }
    }

    /// Options of PEXPIRE are Redis 7's: before, the script failed after it had written, and a key without an end was left.
    #[test]
    fn places_are_held_in_words_of_redis_6() {
        for line in HOLD.lines().filter(|line| line.contains("'PEXPIRE'")) {
            assert!(!["'NX'", "'XX'", "'GT'", "'LT'"].iter().any(|option| line.contains(option)), "{line}");
        }
    }

    #[test]
    fn redis_is_where_its_url_says() {
        for (url, host) in [
            ("redis://:p|a^s@cache.internal:6380/1", "cache.internal"),
            ("redis://10.0.0.5:6380", "10.0.0.5"),
            ("redis://[::1]:6380/", "::1"),
        ] {
            assert_eq!(Redis::endpoint(url).expect(url), Some((host.to_owned(), 6380)), "{url}");
        }
        assert_eq!(Redis::endpoint("redis+unix:///run/redis.sock").expect("a socket"), None);
    }

    #[tokio::test]
    async fn an_absent_redis_is_an_error_and_not_a_hang() {
        assert!(Redis::connect("redis://127.0.0.1:1/").await.is_err());
    }
}
