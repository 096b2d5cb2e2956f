//! Readiness: whether requests can be answered, looked at once a second at most, however often strangers ask.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::node::NodeStatus;
use cyxcloud_metadata::MetadataStore;
use moka::future::Cache;
use serde::Serialize;

use crate::ephemeral::Ephemeral;

/// How old an answer may be.
const AGE_MAX: Duration = Duration::from_secs(1);
/// What does not answer by then does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `/ready` says.
#[derive(Debug, Serialize)]
pub(crate) struct Readiness {
    /// The metadata store answers, and there are nodes enough to write to.
    pub(crate) ready: bool,
    reason: Option<String>,
    metadata: Answers,
    /// May be lost: does not decide.
    ephemeral: Answers,
    nodes_online: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Answers {
    engine: &'static str,
    answers: bool,
}

/// Looks, and remembers what it saw.
#[derive(Debug)]
pub struct Lookout {
    metadata: Arc<dyn MetadataStore>,
    ephemeral: Arc<dyn Ephemeral>,
    nodes_min: usize,
    seen: Recent<Arc<Readiness>>,
}

impl Lookout {
    /// Writes need `nodes_min` nodes online.
    pub fn new(metadata: Arc<dyn MetadataStore>, ephemeral: Arc<dyn Ephemeral>, nodes_min: usize) -> Self {
        Self { metadata, ephemeral, nodes_min, seen: Recent::new(AGE_MAX) }
    }

    pub(crate) async fn readiness(&self) -> Arc<Readiness> {
        self.seen.or_look(async { Arc::new(self.look().await) }).await
    }

    async fn look(&self) -> Readiness {
        let nodes = tokio::time::timeout(PATIENCE, self.metadata.nodes());
        let ephemeral = tokio::time::timeout(PATIENCE, self.ephemeral.ping());
        let (nodes, ephemeral) = tokio::join!(nodes, ephemeral);
        let nodes_online = match nodes {
            Ok(Ok(nodes)) => Some(nodes.iter().filter(|node| node.status == NodeStatus::Online).count()),
            Ok(Err(_)) | Err(_) => None,
        };
        let reason = match nodes_online {
            None => Some("the metadata store does not answer".to_owned()),
            Some(online) if online < self.nodes_min => {
                Some(format!("{online} nodes are online and writes need {}", self.nodes_min))
            }
            Some(_) => None,
        };
        Readiness {
            ready: reason.is_none(),
            reason,
            metadata: Answers { engine: self.metadata.engine(), answers: nodes_online.is_some() },
            ephemeral: Answers { engine: self.ephemeral.engine(), answers: matches!(ephemeral, Ok(Ok(()))) },
            nodes_online,
        }
    }
}

/// A value that is looked up anew when it is older than it may be, once for all who wait for it.
#[derive(Debug)]
struct Recent<T: Clone + Send + Sync + 'static>(Cache<(), T>);

impl<T: Clone + Send + Sync + 'static> Recent<T> {
    fn new(age_max: Duration) -> Self {
        Self(Cache::builder().max_capacity(1).time_to_live(age_max).build())
    }

    async fn or_look(&self, look: impl Future<Output = T>) -> T {
        self.0.get_with((), look).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_at_once_share_a_look_and_later_ones_get_another() {
        let (recent, looks) = (Recent::new(AGE_MAX), AtomicUsize::new(0));
        let together = Barrier::new(2);
        let look = async || {
            let number = looks.fetch_add(1, Ordering::Relaxed) + 1;
            together.wait().await;
            number
        };
        let asked = futures::future::join_all((0..100).map(|_| recent.or_look(look())));
        let (answers, _) = tokio::join!(asked, together.wait());
        assert_eq!(answers, vec![1; 100]);
        assert_eq!(recent.or_look(look()).await, 1, "it is not old yet");
        let later = async {
            loop {
                tokio::task::yield_now().await;
                let number = recent.or_look(look()).await;
                if number > 1 {
                    return number;
                }
            }
        };
        let (number, _) = tokio::join!(later, together.wait());
        assert_eq!(number, 2);
    }
}
