//! Watches over the nodes: keeps the placement view fresh and moves silent nodes through their life.
//!
//! Any number of gateways do this at once: each step names the state it starts from, and the second is refused.
//! Silence counts against a node only when somebody listened: a monitor that has just started, or whose listening was
//! interrupted, waits for the offline threshold before it holds anything against anyone (`listening`). Otherwise a week
//! without gateways or metadata would remove every node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cyxcloud_core::Timestamp;
use cyxcloud_core::node::{LifecycleTimers, NodeClock, NodeDecision, decide};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::model::{Node, NodeStep};
use cyxcloud_metadata::{Error, MetadataStore};
use futures::StreamExt;
use prometheus::{IntGaugeVec, Opts, Registry};
use tracing::{debug, info, warn};

use super::changes::Seen;
use super::listening::{Listening, Moment, believed};
use crate::ephemeral::{Ephemeral, Topic};
use crate::events::Events;

/// How often the nodes are looked at.
const TICK: Duration = Duration::from_secs(1);

/// The watch over the nodes.
#[derive(Debug)]
pub struct Monitor {
    metadata: Arc<dyn MetadataStore>,
    plane: DataPlane,
    ephemeral: Arc<dyn Ephemeral>,
    timers: LifecycleTimers,
    by_status: IntGaugeVec,
    listening: Listening,
    events: Option<Events>,
}

impl Monitor {
    /// A monitor that does nothing until it runs.
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        plane: DataPlane,
        ephemeral: Arc<dyn Ephemeral>,
        timers: LifecycleTimers,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let by_status =
            IntGaugeVec::new(Opts::new("cyxcloud_gateway_nodes", "Nodes by status"), &["status"])?;
        registry.register(Box::new(by_status.clone()))?;
        let listening = Listening::new(&timers);
        Ok(Self { metadata, plane, ephemeral, timers, by_status, listening, events: None })
    }

    /// For whoever knows that something was not heard.
    pub fn listening(&self) -> Listening {
        self.listening.clone()
    }

    /// Tells what changes about the nodes.
    #[must_use]
    pub fn with_events(self, events: Events) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Ticks until it is dropped.
    pub async fn run(self) {
        let mut news = match self.ephemeral.subscribe(Topic::Nodes).await {
            Ok(news) => news,
            Err(error) => {
                warn!(%error, "going on without news from other gateways");
                Box::pin(futures::stream::pending())
            }
        };
        let mut seen = Seen::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = news.next() => {}
            }
            if let Err(error) = self.look(&mut seen).await {
                warn!(%error, "the nodes could not be looked at");
            }
        }
    }

    /// The nodes, and a time that is no earlier.
    async fn read(&self) -> Result<(Vec<Node>, Timestamp), Error> {
        Ok((self.metadata.nodes().await?, self.metadata.now().await?))
    }

    async fn look(&self, seen: &mut Seen) -> Result<(), Error> {
        let (nodes, now) = self.read().await.inspect_err(|_| self.listening.interrupted())?;
        let listened = self.listening.look(Moment { ours: Instant::now(), theirs: now });
        self.count(&nodes);
        for event in seen.look(&nodes) {
            self.events.iter().for_each(|events| events.tell_all(event.clone()));
        }
        let mut changed = false;
        for node in &nodes {
            changed |= self.advance(node, now, listened).await?;
        }
        if changed && let Err(error) = self.ephemeral.publish(Topic::Nodes, "changed").await {
            debug!(%error, "other gateways will see it at their next tick");
        }
        self.plane.refresh_nodes().await
    }

    fn count(&self, nodes: &[Node]) {
        self.by_status.reset();
        for node in nodes {
            self.by_status.with_label_values(&[node.status.as_str()]).inc();
        }
    }

    /// Takes the one step that is due, if any. Says whether there was one.
    async fn advance(&self, node: &Node, now: Timestamp, listened: Duration) -> Result<bool, Error> {
        let clock = NodeClock {
            status: node.status,
            last_heartbeat: node.last_heartbeat,
            status_changed_at: node.status_changed_at,
            first_offline_at: node.first_offline_at,
        };
        let done = match believed(decide(&clock, &self.timers, now), listened, &self.timers) {
            NodeDecision::Stay => return Ok(false),
            NodeDecision::Step(to) => {
                let step = NodeStep { node: node.id, from: node.status, to };
                let done = self.metadata.step_node(&step).await;
                if done.is_ok() {
                    let silence_secs = now.since(node.last_heartbeat).as_secs();
                    info!(node = %node.id, from = node.status.as_str(), to = to.as_str(), silence_secs, "node changed status");
                }
                done
            }
            // Forgetting where the last readable shards are would lose them; the node's row costs nothing.
            NodeDecision::Remove if self.metadata.holds_chunks(node.id).await? => return Ok(false),
            NodeDecision::Remove => {
                let done = self.metadata.remove_node(node.id).await;
                if done.is_ok() {
                    warn!(node = %node.id, "node was silent too long and is removed");
                }
                done
            }
        };
        match done {
            Ok(()) => Ok(true),
            // Another gateway was first.
            Err(Error::Stale { .. } | Error::NoSuchNode) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
