//! What may be lost: today the news that gateways pass each other so that they look at the metadata store sooner
//! than their next tick. Losing all of it makes nothing wrong, only later.
//!
//! Two implementations: Redis between several gateways, and this process alone.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use redis::AsyncCommands;
use tokio::sync::broadcast;
use tracing::{debug, warn};

/// Time after which Redis counts as not answering.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a lost subscription is taken up again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);
/// News waiting for a slow subscriber, at most; beyond it the oldest are dropped.
const BACKLOG: usize = 256;

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
}

impl Topic {
    fn channel(self) -> &'static str {
        match self {
            Self::Nodes => "cyxcloud.nodes",
        }
    }
}

/// News as they come in; ends with the process.
pub type News = Pin<Box<dyn Stream<Item = String> + Send>>;

/// Shared state that may be lost at any time.
#[async_trait]
pub trait Ephemeral: Send + Sync + std::fmt::Debug {
    /// Which implementation this is, for `/ready`.
    fn engine(&self) -> &'static str;
    /// Whether it answers.
    async fn ping(&self) -> Result<(), Error>;
    /// Tells all current subscribers of the topic. At most once; nobody may have heard it.
    async fn publish(&self, topic: Topic, message: &str) -> Result<(), Error>;
    /// News of the topic from now on. Gaps are not reported.
    async fn subscribe(&self, topic: Topic) -> Result<News, Error>;
}

/// In this process only.
#[derive(Debug)]
pub struct InProcess {
    sender: broadcast::Sender<(Topic, String)>,
}

impl Default for InProcess {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
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
            item.ok().and_then(|(about, message)| (about == topic).then_some(message))
        })))
    }
}

/// Between gateways, by Redis.
pub struct Redis {
    client: redis::Client,
    connection: redis::aio::ConnectionManager,
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
        Ok(Self { client, connection })
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
                }
                tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
                match listen(&client, topic).await {
                    Ok(stream) => messages = Some(stream),
                    Err(error) => warn!(%error, "redis does not answer; going on without news"),
                }
            }
        });
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }
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

async fn forward((_sink, mut stream): Subscription, sender: &tokio::sync::mpsc::Sender<String>) {
    loop {
        tokio::select! {
            message = stream.next() => {
                let Some(message) = message else { return };
                // Full means that the subscriber is slow; it will read everything anew at the next one.
                let _ = sender.try_send(message.get_payload().unwrap_or_default());
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
        assert_eq!(news.next().await.as_deref(), Some("one"));
        assert_eq!(news.next().await.as_deref(), Some("two"));
    }

    #[tokio::test]
    async fn in_process() {
        news_reach_a_subscriber(&InProcess::default()).await;
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
        news_reach_a_subscriber(&Redis::connect(&url).await.expect("connects")).await;
    }

    #[tokio::test]
    async fn an_absent_redis_is_an_error_and_not_a_hang() {
        assert!(Redis::connect("redis://127.0.0.1:1/").await.is_err());
    }
}
