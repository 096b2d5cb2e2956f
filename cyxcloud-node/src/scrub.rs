//! Reads all chunks again, one after the other, when the gateway asks: what has rotted is found, held back and reported.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{info, warn};

use crate::corrupt::CorruptChunks;
use crate::metrics::Metrics;
use crate::store::{ChunkStore, Error};

const PAGE: usize = 64;
/// Between pages, so that readers come first.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs a scrub whenever it is asked for; asking during one makes one more.
pub(crate) async fn run(
    store: Arc<dyn ChunkStore>,
    corrupt: Arc<CorruptChunks>,
    metrics: Arc<Metrics>,
    asked: Arc<Notify>,
) {
    loop {
        asked.notified().await;
        info!("scrub begins");
        match scrub(&store, &corrupt, &metrics).await {
            Ok(found) => info!(corrupt = found, "scrub ended"),
            Err(error) => warn!(%error, "scrub stopped"),
        }
    }
}

async fn scrub(
    store: &Arc<dyn ChunkStore>,
    corrupt: &Arc<CorruptChunks>,
    metrics: &Arc<Metrics>,
) -> Result<usize, Error> {
    let mut after = None;
    let mut found = 0;
    loop {
        let (store, corrupt, metrics) = (store.clone(), corrupt.clone(), metrics.clone());
        let page = move || {
            let entries = store.list(after, PAGE)?;
            let mut bad = 0;
            for entry in entries.iter().filter(|entry| !entry.quarantined) {
                if let Err(Error::Corrupt { id }) = store.get(entry.id) {
                    corrupt.found(id);
                    metrics.corrupt.inc();
                    bad += 1;
                }
                metrics.scrubbed.inc();
            }
            Ok((entries.last().map(|entry| entry.id), bad))
        };
        let (last, bad) = tokio::task::spawn_blocking(page).await.unwrap_or(Err(Error::Closed))?;
        found += bad;
        if last.is_none() {
            return Ok(found);
        }
        after = last;
        tokio::time::sleep(PAUSE).await;
    }
}
