//! How well an object is kept at this moment, judged by its worst stripe.
//!
//! A shard is present if a node that is there is believed to hold it. The numbers are what the database knows: audits,
//! readers and inventories keep that honest. Not here: what is done about it (the rebalancer).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::placement::tolerance;
use cyxcloud_core::{NodeId, Timestamp};
use cyxcloud_metadata::model::Node;
use cyxcloud_metadata::upkeep::model::{LocationStatus, StripeState};

use super::{Error, ObjectService, Result};
use crate::limits::{Caller, Need};

/// Stripes that are looked at of one object: 16 GiB of 4 MiB stripes.
const STRIPES_MAX: usize = 4096;

/// One word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Every stripe has all of its shards, and survives the loss of a node.
    Healthy,
    /// Something is missing; it survives at least one more loss.
    Degraded,
    /// The loss of one more node could make it unreadable.
    AtRisk,
    /// A stripe cannot be read now.
    Unreadable,
}

/// Health of one stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeHealth {
    /// Distinct shards present (copies: nodes that hold one).
    pub present: usize,
    /// Shards there should be (copies: wanted copies).
    pub wanted: usize,
    /// Node losses it still survives; `None`: it cannot be read now.
    pub tolerates: Option<u8>,
    /// Since when its readability has last been proven: the `data`-newest proof. `None`: never.
    pub proven_at: Option<Timestamp>,
    condition: Condition,
}

/// Health of an object: its worst stripe, and how far it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectHealth {
    /// In one word.
    pub condition: Condition,
    /// The worst stripe; `None` if all bytes live in the database.
    pub worst: Option<StripeHealth>,
    /// The oldest of the stripes' proofs; `None` while one was never proven.
    pub proven_at: Option<Timestamp>,
    /// Stripes that lack something.
    pub short: u64,
    /// Stripes looked at.
    pub looked_at: u64,
    /// Stripes there are.
    pub stripes: u64,
}

/// The nodes of which what they hold can be read. Who drains because it has long been away, or was told to and is silent, has
/// nothing that could be.
pub(super) fn there(nodes: &[Node], now: Timestamp, offline: Duration) -> HashSet<NodeId> {
    let there = nodes.iter().filter(|node| node.facts(now, offline).presence().is_there());
    there.map(|node| node.id).collect()
}

/// Judges one stripe by the nodes that are [`there`].
pub(super) fn judge(stripe: &StripeState, there: &HashSet<NodeId>) -> StripeHealth {
    let good: Vec<_> = stripe
        .locations
        .iter()
        .filter(|location| location.status == LocationStatus::Stored && there.contains(&location.node))
        .collect();
    let held: Vec<_> = good.iter().map(|location| (location.shard, location.node)).collect();
    let copies = stripe.geometry.data() == 1;
    let present = if copies {
        held.iter().map(|(_, node)| node).collect::<BTreeSet<_>>().len()
    } else {
        held.iter().map(|(shard, _)| shard).collect::<BTreeSet<_>>().len()
    };
    let wanted = if copies { stripe.geometry.locations() } else { stripe.geometry.shards() };
    let tolerates = tolerance(stripe.geometry, &held);

    let mut newest: HashMap<_, Timestamp> = HashMap::new();
    for location in &good {
        if let Some(at) = location.proven_at {
            let known = newest.entry(location.shard).or_insert(at);
            *known = (*known).max(at);
        }
    }
    let mut proofs: Vec<Timestamp> = newest.into_values().collect();
    proofs.sort_unstable_by(|a, b| b.cmp(a));
    let condition = match tolerates {
        None => Condition::Unreadable,
        Some(0) => Condition::AtRisk,
        Some(_) if present < wanted => Condition::Degraded,
        Some(_) => Condition::Healthy,
    };
    let proven_at = proofs.get(stripe.geometry.data() - 1).copied();
    StripeHealth { present, wanted, tolerates, proven_at, condition }
}

/// Sums up.
pub(super) fn summarize(stripes: &[StripeState], total: u64, there: &HashSet<NodeId>) -> ObjectHealth {
    let judged: Vec<StripeHealth> = stripes.iter().map(|stripe| judge(stripe, there)).collect();
    // Unreadable first, then by the fewest losses, then by the fewest shards.
    let worst = judged.iter().min_by_key(|s| (s.tolerates, s.present)).copied();
    ObjectHealth {
        condition: judged.iter().map(|s| s.condition).max().unwrap_or(Condition::Healthy),
        proven_at: judged.iter().map(|s| s.proven_at).min().flatten(),
        short: judged.iter().filter(|s| s.present < s.wanted).count() as u64,
        looked_at: judged.len() as u64,
        stripes: total,
        worst,
    }
}

impl ObjectService {
    /// Health of an object of the caller's.
    pub async fn health(
        &self,
        caller: &Caller,
        bucket: &BucketName,
        key: &ObjectKey,
    ) -> Result<ObjectHealth> {
        let bucket = self.bucket(caller, bucket, Need::Read(key)).await?;
        let object = self.metadata.object(bucket.id, key).await?.ok_or(Error::NoSuchKey)?;
        let kept = self.metadata.object_stripes(object.file, STRIPES_MAX).await?.ok_or(Error::NoSuchKey)?;
        let (nodes, now) = (self.metadata.nodes().await?, self.metadata.now().await?);
        Ok(summarize(&kept.stripes, kept.total, &there(&nodes, now, self.config.offline)))
    }
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
