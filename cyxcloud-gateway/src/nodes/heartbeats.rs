//! Gathers heartbeats and records them together, once a second: a thousand nodes cost one statement.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{Heard, NodeHeartbeat};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

/// How long heartbeats wait for company.
const GATHER: Duration = Duration::from_secs(1);
/// Heartbeats recorded in one statement, at most.
const BATCH_MAX: usize = 1_000;

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
    /// Starts the recorder; it ends when the last handle is dropped.
    pub fn start(metadata: Arc<dyn MetadataStore>) -> Self {
        let (sender, receiver) = mpsc::channel(BATCH_MAX);
        tokio::spawn(record(metadata, receiver));
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

async fn record(metadata: Arc<dyn MetadataStore>, mut receiver: mpsc::Receiver<Waiting>) {
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
        let known = metadata.record_heartbeats(&beats).await;
        if let Err(error) = &known {
            warn!(%error, count = beats.len(), "heartbeats were not recorded");
        }
        for (index, (_, answer)) in batch.drain(..).enumerate() {
            let outcome = match &known {
                Ok(known) => known.get(index).copied().flatten().map_or(Outcome::Unknown, Outcome::Recorded),
                Err(_) => Outcome::Unavailable,
            };
            // Whoever waited may have gone; the heartbeat counts all the same.
            let _ = answer.send(outcome);
        }
    }
}
