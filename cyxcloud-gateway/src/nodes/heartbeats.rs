//! Gathers heartbeats and records them together, once a second: a thousand nodes cost one statement.
//!
//! All wait in one queue, so each node has two in it and no more: whoever sends many keeps nobody else from being heard.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::NodeId;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{Heard, NodeHeartbeat};
use cyxcloud_tls::crowd::{Crowd, Place};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::listening::Listening;

/// How long heartbeats wait for company.
const GATHER: Duration = Duration::from_secs(1);
/// Heartbeats recorded in one statement, at most.
const BATCH_MAX: usize = 1_000;
/// How long that may take: no node waits for longer, and a connection that is dead must not keep others from being heard.
const RECORD_TIMEOUT: Duration = Duration::from_secs(20);

/// Heartbeats of one node under way: that of a process which was killed, and the first of the one that was started in its place.
const TURNS: usize = 2;

/// What became of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Recorded; with what is known of the node.
    Recorded(Heard),
    /// Nobody knows this node.
    Unknown,
    /// The metadata store did not answer.
    Unavailable,
}

struct Waiting {
    beat: NodeHeartbeat,
    answer: oneshot::Sender<Outcome>,
    /// Held here too: whoever asked may go, and the heartbeat waits all the same.
    turn: Arc<Place>,
}

/// Hands heartbeats to the recorder.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    sender: mpsc::Sender<Waiting>,
    turns: Crowd,
}

impl Heartbeats {
    /// Starts the recorder; it ends when the last handle is dropped. Heartbeats that are lost interrupt the `listening`.
    pub fn start(metadata: Arc<dyn MetadataStore>, listening: Listening) -> Self {
        let (sender, receiver) = mpsc::channel(BATCH_MAX);
        tokio::spawn(record(metadata, listening, receiver));
        Self { sender, turns: Crowd::new(TURNS) }
    }

    /// A turn of the node; `None` while it has as many as it may have. For who has proven to be that node.
    pub fn turn(&self, node: NodeId) -> Option<Arc<Place>> {
        self.turns.enter_as(node.to_string()).map(Arc::new)
    }

    /// Returns once the heartbeat of the node whose turn it is is recorded, or is not going to be.
    pub async fn record(&self, turn: &Arc<Place>, beat: NodeHeartbeat) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        if self.sender.send(Waiting { beat, answer, turn: turn.clone() }).await.is_err() {
            return Outcome::Unavailable;
        }
        outcome.await.unwrap_or(Outcome::Unavailable)
    }
}

async fn record(
    metadata: Arc<dyn MetadataStore>,
    listening: Listening,
    mut receiver: mpsc::Receiver<Waiting>,
) {
    let mut batch: Vec<Waiting> = Vec::new();
    while receiver.recv_many(&mut batch, BATCH_MAX).await > 0 {
        tokio::time::sleep(GATHER).await;
        while batch.len() < BATCH_MAX {
            match receiver.try_recv() {
                Ok(waiting) => batch.push(waiting),
                Err(_) => break,
            }
        }
        let beats: Vec<NodeHeartbeat> = batch.iter().map(|waiting| waiting.beat.clone()).collect();
        let known = record_batch(&*metadata, &beats).await;
        if known.is_none() {
            listening.interrupted();
        }
        for (index, Waiting { answer, turn, .. }) in batch.drain(..).enumerate() {
            let outcome = match &known {
                Some(known) => {
                    known.get(index).copied().flatten().map_or(Outcome::Unknown, Outcome::Recorded)
                }
                None => Outcome::Unavailable,
            };
            // First: whoever is answered may beat again.
            drop(turn);
            // Whoever waited may have gone; the heartbeat counts all the same.
            let _ = answer.send(outcome);
        }
    }
}

/// Records them; what is then known of each node, or nothing where they are lost.
async fn record_batch(metadata: &dyn MetadataStore, beats: &[NodeHeartbeat]) -> Option<Vec<Option<Heard>>> {
    let count = beats.len();
    match tokio::time::timeout(RECORD_TIMEOUT, metadata.record_heartbeats(beats)).await {
        Ok(Ok(known)) => Some(known),
        Ok(Err(error)) => {
            warn!(%error, count, "heartbeats were not recorded");
            None
        }
        Err(_) => {
            warn!(limit_secs = RECORD_TIMEOUT.as_secs(), count, "heartbeats were not recorded in time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::ByteCount;
    use cyxcloud_core::node::LifecycleTimers;
    use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};
    use futures::FutureExt as _;

    use super::*;

    fn beat(node: NodeId) -> NodeHeartbeat {
        NodeHeartbeat {
            node,
            storage_used: ByteCount::ZERO,
            storage_available: ByteCount::ZERO,
            cpu_usage: 0.0,
            memory_usage: 0.0,
            active_connections: 0,
            maintenance: false,
            read_only: false,
        }
    }

    #[tokio::test]
    async fn adv_30_many_beats_of_one_node_take_two_places() {
        let metadata = Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens"));
        let heartbeats = Heartbeats::start(metadata, Listening::new(&LifecycleTimers::default()));
        let [loud, quiet] = [1, 2].map(|seed| NodeId::from_random([seed; 16]));
        for round in 0..2 {
            let mut under_way = 0;
            for _ in 0..3 * BATCH_MAX {
                let Some(turn) = heartbeats.turn(loud) else { continue };
                under_way += 1;
                // Asks and goes away at once, as often as it can.
                assert_eq!(heartbeats.record(&turn, beat(loud)).now_or_never(), None);
            }
            assert_eq!(under_way, TURNS, "round {round}");
            assert_eq!(heartbeats.sender.capacity(), BATCH_MAX - TURNS, "all others find room");
            let turn = heartbeats.turn(quiet).expect("nobody else's turn");
            assert_eq!(heartbeats.record(&turn, beat(quiet)).await, Outcome::Unknown);
            let _another = heartbeats.turn(quiet).expect("it was started again");
            assert!(heartbeats.turn(quiet).is_none(), "who is being answered has not been");
        }
    }
}
