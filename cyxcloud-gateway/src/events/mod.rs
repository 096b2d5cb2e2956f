//! What happens to somebody's buckets and to the nodes, for whoever listens while it happens.
//!
//! Told and forgotten: nothing here waits, nothing is kept for who is not there, and what finds no room is dropped and
//! counted. Events of buckets reach their owner's listeners only, and each listener has a queue of its own, so that nobody's
//! haste pushes out what another has not read yet. They are passed on to other gateways by [`relay`]; what happens to
//! nodes every gateway sees by itself. Not here: who may listen, and how it is sent ([`crate::websocket`]).

pub mod progress;
pub mod relay;

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::ws::Utf8Bytes;
use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{NodeId, OwnerId};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use relay::{Passed, Relay};

/// Events that wait for one listener, at most, beyond which it misses some: enough for a request that deletes 1,000 objects.
const BACKLOG: usize = 1_024;

/// What can be listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Objects in one's own buckets.
    File,
    /// One's own buckets.
    Bucket,
    /// The storage nodes.
    Node,
}

/// A text that names no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("that is no topic; there are file, bucket and node")]
pub struct UnknownTopic;

impl Topic {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::File, Self::Bucket, Self::Node];

    /// As clients write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Bucket => "bucket",
            Self::Node => "node",
        }
    }
}

impl FromStr for Topic {
    type Err = UnknownTopic;

    fn from_str(text: &str) -> Result<Self, UnknownTopic> {
        Self::ALL.into_iter().find(|topic| topic.as_str() == text).ok_or(UnknownTopic)
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// An object is there, or there anew: uploaded, copied, or completed of its parts.
    #[serde(rename = "file.created")]
    FileCreated {
        /// In which bucket.
        bucket: String,
        /// Under which key.
        key: String,
        /// Its bytes.
        size: u64,
    },
    /// An object is gone.
    #[serde(rename = "file.deleted")]
    FileDeleted {
        /// Out of which bucket.
        bucket: String,
        /// Under which key.
        key: String,
    },
    /// An upload whose length is known goes on. Told at most twice a second.
    #[serde(rename = "file.progress")]
    FileProgress {
        /// Into which bucket.
        bucket: String,
        /// Under which key.
        key: String,
        /// Percent of the body that came in; 100 for a part that is stored.
        progress: u8,
        /// Which part, where it is one of a multipart upload: the percentage is then the part's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<u32>,
    },
    /// A bucket was made.
    #[serde(rename = "bucket.created")]
    BucketCreated {
        /// Its name.
        bucket: String,
    },
    /// A bucket was deleted.
    #[serde(rename = "bucket.deleted")]
    BucketDeleted {
        /// Its name.
        bucket: String,
    },
    /// A node that was not known is there.
    #[serde(rename = "cluster.node_joined")]
    NodeJoined {
        /// Its id.
        #[schema(value_type = String)]
        node_id: NodeId,
        /// `online`, `offline`, `recovering` or `draining`.
        #[schema(value_type = String)]
        status: NodeStatus,
        /// Where it is reached; administrators only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
    },
    /// A node has another status than before.
    #[serde(rename = "cluster.node_status")]
    NodeStatus {
        /// Its id.
        #[schema(value_type = String)]
        node_id: NodeId,
        /// `online`, `offline`, `recovering` or `draining`.
        #[schema(value_type = String)]
        status: NodeStatus,
    },
    /// A node was removed.
    #[serde(rename = "cluster.node_left")]
    NodeLeft {
        /// The id that it had.
        #[schema(value_type = String)]
        node_id: NodeId,
    },
}

impl Event {
    /// What it is about.
    pub const fn topic(&self) -> Topic {
        match self {
            Self::FileCreated { .. } | Self::FileDeleted { .. } | Self::FileProgress { .. } => Topic::File,
            Self::BucketCreated { .. } | Self::BucketDeleted { .. } => Topic::Bucket,
            Self::NodeJoined { .. } | Self::NodeStatus { .. } | Self::NodeLeft { .. } => Topic::Node,
        }
    }

    /// What is told of it to who is no administrator, where that is less: where nodes are is not everybody's business.
    fn less(&self) -> Option<Self> {
        match self {
            Self::NodeJoined { node_id, status, .. } => {
                Some(Self::NodeJoined { node_id: *node_id, status: *status, address: None })
            }
            // Of one's own, or no more than id and status.
            Self::FileCreated { .. }
            | Self::FileDeleted { .. }
            | Self::FileProgress { .. }
            | Self::BucketCreated { .. }
            | Self::BucketDeleted { .. }
            | Self::NodeStatus { .. }
            | Self::NodeLeft { .. } => None,
        }
    }
}

/// An event as it is sent, written down once for all who hear it.
#[derive(Clone, Debug)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    text: Utf8Bytes,
    less: Option<Utf8Bytes>,
}

impl Notice {
    fn of(event: Event) -> Self {
        let write = |event: &Event| serde_json::to_string(event).expect("an event is JSON").into();
        Self { text: write(&event), less: event.less().as_ref().map(write), event }
    }

    /// The message, for an administrator or somebody else.
    pub fn text(&self, admin: bool) -> Utf8Bytes {
        match &self.less {
            Some(less) if !admin => less.clone(),
            _ => self.text.clone(),
        }
    }
}

/// Counts of events and of who hears them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) connections: IntGauge,
    pub(crate) sent: IntCounterVec,
    dropped: IntCounterVec,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let connections = IntGauge::new("cyxcloud_gateway_websocket_connections", "Open WebSockets")?;
        let sent = IntCounterVec::new(
            Opts::new(
                "cyxcloud_gateway_websocket_events_sent_total",
                "Events sent over WebSockets, by topic",
            ),
            &["topic"],
        )?;
        let dropped = IntCounterVec::new(
            Opts::new(
                "cyxcloud_gateway_websocket_events_dropped_total",
                "Events that were not sent: to a reader that was too slow, or to other gateways, which Redis did not reach",
            ),
            &["to"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(sent.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        Ok(Self { connections, sent, dropped })
    }

    pub(crate) fn dropped_for_reader(&self, count: u64) {
        self.dropped.with_label_values(&["reader"]).inc_by(count);
    }

    fn dropped_for_gateways(&self, count: usize) {
        self.dropped.with_label_values(&["gateways"]).inc_by(count as u64);
    }
}

type Open = HashMap<OwnerId, Vec<Ear>>;

/// A listener's other end.
#[derive(Clone, Debug)]
struct Ear {
    queue: mpsc::Sender<Arc<Notice>>,
    missed: Arc<AtomicU64>,
}

impl Ear {
    fn tell(&self, notice: &Arc<Notice>) {
        // Closed means that it is leaving.
        if let Err(TrySendError::Full(_)) = self.queue.try_send(notice.clone()) {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Inner {
    /// Of owners who have listeners here.
    open: Mutex<Open>,
    relay: Option<mpsc::Sender<Passed>>,
    metrics: Metrics,
}

/// Tells events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

impl Events {
    /// Of this gateway alone.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Self::with(registry, None)
    }

    /// Of all gateways, and what passes them between those.
    pub fn among_gateways(
        registry: &Registry,
        ephemeral: Arc<dyn crate::ephemeral::Ephemeral>,
    ) -> Result<(Self, Relay), prometheus::Error> {
        let (sender, waiting) = mpsc::channel(relay::WAITING_MAX);
        let events = Self::with(registry, Some(sender))?;
        Ok((events.clone(), Relay::new(ephemeral, events, waiting)))
    }

    fn with(registry: &Registry, relay: Option<mpsc::Sender<Passed>>) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::new(registry)?;
        Ok(Self(Arc::new(Inner { open: Mutex::default(), relay, metrics })))
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells one owner's listeners, at all gateways.
    pub fn tell(&self, owner: OwnerId, event: Event) {
        if let Some(relay) = &self.0.relay
            && relay.try_send(Passed { owner, event: event.clone() }).is_err()
        {
            self.0.metrics.dropped_for_gateways(1);
        }
        self.deliver(owner, event);
    }

    /// Tells one owner's listeners at this gateway.
    fn deliver(&self, owner: OwnerId, event: Event) {
        let open = self.open();
        if let Some(ears) = open.get(&owner) {
            let notice = Arc::new(Notice::of(event));
            ears.iter().for_each(|ear| ear.tell(&notice));
        }
    }

    /// Tells everybody who listens at this gateway.
    pub fn tell_all(&self, event: Event) {
        let notice = Arc::new(Notice::of(event));
        self.open().values().flatten().for_each(|ear| ear.tell(&notice));
    }

    /// From now on, what is for this owner and for everybody.
    pub fn listen(&self, owner: OwnerId) -> Listener {
        let (queue, heard) = mpsc::channel(BACKLOG);
        let ear = Ear { queue, missed: Arc::default() };
        self.open().entry(owner).or_default().push(ear.clone());
        Listener { owner, ear, heard, events: self.clone() }
    }
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Heard {
    /// Something that happened.
    Notice(Arc<Notice>),
    /// So many events went by unheard, because it was too slow.
    Missed(u64),
}

/// Hears one owner's events until it is dropped.
#[derive(Debug)]
pub struct Listener {
    owner: OwnerId,
    ear: Ear,
    heard: mpsc::Receiver<Arc<Notice>>,
    events: Events,
}

impl Listener {
    /// The next of what is told; nothing is lost where this is not waited for to the end.
    pub async fn next(&mut self) -> Heard {
        // First: whoever looks again because of it then knows all that happened meanwhile.
        if let Some(missed) = self.missed() {
            return missed;
        }
        match self.heard.recv().await {
            Some(notice) => Heard::Notice(notice),
            // It holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// The next of what was told by now.
    pub fn told(&mut self) -> Option<Heard> {
        self.missed().or_else(|| self.heard.try_recv().ok().map(Heard::Notice))
    }

    fn missed(&self) -> Option<Heard> {
        let missed = self.ear.missed.swap(0, Ordering::Relaxed);
        (missed > 0).then_some(Heard::Missed(missed))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut open = self.events.open();
        let Some(ears) = open.get_mut(&self.owner) else { return };
        ears.retain(|ear| !Arc::ptr_eq(&ear.missed, &self.ear.missed));
        if ears.is_empty() {
            open.remove(&self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use serde_json::json;

    use super::*;

    fn owner(seed: u8) -> OwnerId {
        OwnerId::from_random([seed; 16])
    }

    fn created(key: &str) -> Event {
        Event::FileCreated { bucket: "photos".to_owned(), key: key.to_owned(), size: 3 }
    }

    fn events() -> Events {
        Events::new(&Registry::new()).expect("registers")
    }

    fn heard(listener: &mut Listener) -> Option<Event> {
        match listener.told()? {
            Heard::Notice(notice) => Some(notice.event.clone()),
            Heard::Missed(missed) => panic!("missed {missed}"),
        }
    }

    #[test]
    fn messages_are_those_of_the_specification() {
        let node_id = NodeId::from_random([7; 16]);
        let joined = Event::NodeJoined {
            node_id,
            status: NodeStatus::Online,
            address: Some("http://10.0.0.7:50051".to_owned()),
        };
        let id = node_id.to_string();
        let names = |event: &Event| {
            (event.topic(), serde_json::from_str::<serde_json::Value>(&Notice::of(event.clone()).text(true)))
        };
        for (event, topic, message) in [
            (
                created("a \"b\""),
                Topic::File,
                json!({"type": "file.created", "data": {"bucket": "photos", "key": "a \"b\"", "size": 3}}),
            ),
            (
                Event::FileProgress { bucket: "photos".into(), key: "k".into(), progress: 75, part: None },
                Topic::File,
                json!({"type": "file.progress", "data": {"bucket": "photos", "key": "k", "progress": 75}}),
            ),
            (
                Event::BucketDeleted { bucket: "photos".into() },
                Topic::Bucket,
                json!({"type": "bucket.deleted", "data": {"bucket": "photos"}}),
            ),
            (
                joined.clone(),
                Topic::Node,
                json!({"type": "cluster.node_joined",
                       "data": {"node_id": id, "status": "online", "address": "http://10.0.0.7:50051"}}),
            ),
            (
                Event::NodeStatus { node_id, status: NodeStatus::Offline },
                Topic::Node,
                json!({"type": "cluster.node_status", "data": {"node_id": id, "status": "offline"}}),
            ),
        ] {
            let (about, text) = names(&event);
            assert_eq!((about, text.expect("is JSON")), (topic, message));
            let again = serde_json::from_str::<Event>(&Notice::of(event.clone()).text(true));
            assert_eq!(again.expect("reads back"), event);
        }
        let less = Notice::of(joined).text(false);
        assert!(!less.contains("address") && !less.contains("10.0.0.7") && less.contains(&id), "{less}");
    }

    #[test]
    fn topics_have_one_spelling() {
        for topic in Topic::ALL {
            assert_eq!(topic.as_str().parse(), Ok(topic));
            assert!(UnknownTopic.to_string().contains(topic.as_str()));
        }
        for other in ["", "File", "files", "file ", "cluster"] {
            assert_eq!(other.parse::<Topic>(), Err(UnknownTopic), "{other:?}");
        }
    }

    #[test]
    fn adv_33_nobody_hears_what_is_anothers() {
        let events = events();
        let (mut mine, mut too, mut other) =
            (events.listen(owner(1)), events.listen(owner(1)), events.listen(owner(2)));
        events.tell(owner(1), created("a"));
        assert_eq!((heard(&mut mine), heard(&mut too)), (Some(created("a")), Some(created("a"))));
        assert_eq!((heard(&mut mine), heard(&mut other)), (None, None));
        let gone = Event::NodeLeft { node_id: NodeId::from_random([7; 16]) };
        events.tell_all(gone.clone());
        assert_eq!((heard(&mut mine), heard(&mut other)), (Some(gone.clone()), Some(gone)));
    }

    #[test]
    fn a_slow_listener_is_told_what_it_missed_and_costs_others_nothing() {
        let events = events();
        let (mut slow, mut other) = (events.listen(owner(1)), events.listen(owner(2)));
        events.tell(owner(2), created("kept"));
        for number in 0..BACKLOG + 5 {
            events.tell(owner(1), created(&number.to_string()));
        }
        assert!(matches!(slow.next().now_or_never(), Some(Heard::Missed(5))));
        let queued: Vec<Event> = std::iter::from_fn(|| heard(&mut slow)).collect();
        let wanted: Vec<Event> = (0..BACKLOG).map(|number| created(&number.to_string())).collect();
        assert_eq!(queued, wanted, "and goes on with what it could keep");
        events.tell(owner(1), created("more"));
        assert_eq!(heard(&mut slow), Some(created("more")));
        assert_eq!(heard(&mut other), Some(created("kept")));
    }

    #[test]
    fn nothing_is_kept_for_who_left() {
        let events = events();
        let (first, second) = (events.listen(owner(1)), events.listen(owner(1)));
        drop(first);
        assert_eq!(events.open().len(), 1);
        drop(second);
        assert!(events.open().is_empty());
        events.tell(owner(1), created("unheard"));
        assert_eq!(heard(&mut events.listen(owner(1))), None);
    }
}
