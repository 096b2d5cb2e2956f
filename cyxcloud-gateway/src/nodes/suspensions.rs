//! Looks now and then whether the operators of nodes may still take part: the nodes of one who is suspended, by an
//! administrator here or at the identity service, drain until that is lifted.
//!
//! They are read from meanwhile, since what they hold may be needed; nothing new is placed on them, and repair moves away
//! what they hold. Where it cannot be found out nothing changes. Any number of gateways do this at once. Not here:
//! registration, which such an operator is refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::OwnerId;
use cyxcloud_metadata::{MetadataStore, Result};
use futures::{StreamExt, stream};
use tracing::{debug, info, warn};

use crate::auth::Authenticator;
use crate::ephemeral::{Ephemeral, Topic};
use crate::journal;

/// How often operators are looked up. What the identity service said is believed for longer.
const TICK: Duration = Duration::from_secs(5);
/// Operators asked about at the same time.
const AT_ONCE: usize = 8;

/// The watch over operators.
#[derive(Debug)]
pub struct Suspensions {
    metadata: Arc<dyn MetadataStore>,
    ephemeral: Arc<dyn Ephemeral>,
    operators: Arc<Authenticator>,
}

impl Suspensions {
    /// A watch that does nothing until it runs; `operators` knows nodes' operators.
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        ephemeral: Arc<dyn Ephemeral>,
        operators: Arc<Authenticator>,
    ) -> Self {
        Self { metadata, ephemeral, operators }
    }

    /// Looks until it is dropped.
    pub async fn run(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.look().await {
                warn!(%error, "the nodes' operators could not be looked at");
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let nodes = self.metadata.nodes().await?;
        let operators: BTreeSet<OwnerId> =
            nodes.iter().filter_map(|node| node.operator.parse().ok()).collect();
        let asked = stream::iter(operators)
            .map(async |operator| (operator, self.operators.is_suspended(operator).await));
        let known: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        for suspended in [true, false] {
            let these = known.iter().filter(|(_, known)| *known == Some(suspended));
            let these: Vec<String> = these.map(|(operator, _)| operator.to_string()).collect();
            self.record(&these, suspended).await?;
        }
        Ok(())
    }

    async fn record(&self, operators: &[String], suspended: bool) -> Result<()> {
        let changed = self.metadata.suspend_nodes(operators, suspended).await?;
        for node in &changed {
            let action = if suspended { "node.suspend" } else { "node.recover" };
            journal::write(&*self.metadata, None, "gateway", action, &node.to_string(), None, "ok").await;
            match suspended {
                true => warn!(%node, "the node's operator is suspended: it drains, and takes nothing new"),
                false => info!(%node, "the node's operator is no longer suspended: it recovers"),
            }
        }
        if !changed.is_empty()
            && let Err(error) = self.ephemeral.publish(Topic::Nodes, "suspended").await
        {
            debug!(%error, "other gateways will see it at their next tick");
        }
        Ok(())
    }
}
