//! Gathers heartbeats and records them together, once a second: a thousand nodes cost one statement.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{Heard, NodeHeartbeat};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::listening::Listening;

/// How long heartbeats wait for company.
const GATHER: Duration = Duration::from_secs(1);
/// Heartbeats recorded in one statement, at most.
const BATCH_MAX: usize = 1_000;
/// How long that may take: no node waits for longer, and a connection that is dead must not keep others from being heard.
const RECORD_TIMEOUT: Duration = Duration::from_secs(20);

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

type Waiting = (NodeHeartbeat, oneshot::Sender<Outcome>);

/// Hands heartbeats to the recorder.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    sender: mpsc::Sender<Waiting>,
}

impl Heartbeats {
    /// Starts the recorder; it ends when the last handle is dropped. Heartbeats that are lost interrupt the `listening`.
    pub fn start(metadata: Arc<dyn MetadataStore>, listening: Listening) -> Self {
        let (sender, receiver) = mpsc::channel(BATCH_MAX);
        tokio::spawn(record(metadata, listening, receiver));
        Self { sender }
    }

    /// Returns once the heartbeat is recorded, or is not going to be.
    pub async fn record(&self, beat: NodeHeartbeat) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        if self.sender.send((beat, answer)).await.is_err() {
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
        let beats: Vec<NodeHeartbeat> = batch.iter().map(|(beat, _)| beat.clone()).collect();
        let known = record_batch(&*metadata, &beats).await;
        if known.is_none() {
            listening.interrupted();
        }
        for (index, (_, answer)) in batch.drain(..).enumerate() {
            let outcome = match &known {
                Some(known) => {
                    known.get(index).copied().flatten().map_or(Outcome::Unknown, Outcome::Recorded)
                }
                None => Outcome::Unavailable,
            };
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
