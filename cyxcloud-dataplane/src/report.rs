//! Tells the metadata store about bad locations, in the background and never faster than it can take them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::BadLocation;
use tracing::{info, warn};

/// What waits to be reported; more is dropped, since whoever reads next finds it again.
const WAITING_MAX: usize = 4096;
/// Locations per call, and the pause between calls.
const BATCH: usize = 256;
const PAUSE: Duration = Duration::from_millis(200);
const ATTEMPTS: u32 = 5;

/// Collects findings and reports them in batches.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    metadata: Arc<dyn MetadataStore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<BadLocation>,
    running: bool,
}

impl Reporter {
    pub(crate) fn new(metadata: Arc<dyn MetadataStore>) -> Self {
        Self { metadata, state: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a bad location.
    pub(crate) fn report(&self, bad: BadLocation) {
        let mut state = self.lock();
        if state.waiting.len() >= WAITING_MAX || state.waiting.contains(&bad) {
            return;
        }
        info!(node = %bad.node, segment = %bad.segment, stripe = bad.stripe, shard = bad.shard.get(), fault = ?bad.fault,
            "bad location found");
        state.waiting.push_back(bad);
        if !state.running {
            state.running = true;
            tokio::spawn(self.clone().run());
        }
    }

    /// Reports until nothing waits.
    async fn run(self) {
        let mut failures = 0;
        loop {
            let batch: Vec<BadLocation> = {
                let mut state = self.lock();
                let count = state.waiting.len().min(BATCH);
                if count == 0 {
                    state.running = false;
                    return;
                }
                state.waiting.drain(..count).collect()
            };
            match self.metadata.report_bad_locations(&batch).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    warn!(error = &error as &dyn std::error::Error, "bad locations could not be reported");
                    if failures < ATTEMPTS {
                        self.lock().waiting.extend(batch);
                    }
                }
            }
            tokio::time::sleep(PAUSE * (1 << failures.min(5))).await;
        }
    }
}
