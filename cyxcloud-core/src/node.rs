//! The life of a storage node: four statuses, and one way from one to another.
//!
//! Pure: [`decide`] is handed what the database knows of a node and a `now` from the same clock, and says what should
//! become of it; whoever carries it out refuses a step whose node has moved on.
//! Not here: which shards a lost node leaves to be repaired.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Timestamp;

/// What the metadata store believes of a node. A node that is removed has no row and so no status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// Heard from, trusted with new chunks.
    Online,
    /// Missed heartbeats; may return with its data, so nothing is moved yet.
    Offline,
    /// Back after an absence; must stay heard for the quarantine before it takes new chunks.
    Recovering,
    /// Its chunks are being moved away, because of its absence or because its operator asked.
    Draining,
}

/// A text that is no status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a node status; use online, offline, recovering or draining")]
pub struct UnknownStatus(String);

/// What can happen to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeEvent {
    /// A known node registered again. (A new node starts as [`NodeStatus::Online`].)
    Registered,
    /// A heartbeat came. Raised for a draining node only where absence caused the draining: what an operator asked
    /// for is not undone by a heartbeat.
    Heard,
    /// No heartbeat for the offline threshold.
    Missed,
    /// Heard for the whole quarantine.
    QuarantineOver,
    /// No heartbeat for the drain threshold.
    DrainDue,
    /// No heartbeat for the remove threshold. The status stays: the row goes.
    RemoveDue,
    /// The operator wants to leave.
    DrainAsked,
}

/// An event that cannot happen to a node of this status: plan again from the node's newest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node that is {status} cannot take the event {event:?}")]
pub struct Refused {
    /// What the node is.
    pub status: NodeStatus,
    /// What was said to have happened.
    pub event: NodeEvent,
}

impl NodeStatus {
    /// All statuses, in the order of the lifecycle.
    pub const ALL: [Self; 4] = [Self::Online, Self::Offline, Self::Recovering, Self::Draining];

    /// The text that the database, the wire and operators use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Recovering => "recovering",
            Self::Draining => "draining",
        }
    }

    /// Whether new chunks may be placed on it.
    pub const fn takes_new_chunks(self) -> bool {
        match self {
            Self::Online => true,
            Self::Offline | Self::Recovering | Self::Draining => false,
        }
    }

    /// Whether a reader should ask it like any other. An offline node may still be asked as a last resort: it was
    /// not heard, which does not mean that it cannot hear.
    pub const fn serves_reads(self) -> bool {
        match self {
            Self::Online | Self::Recovering | Self::Draining => true,
            Self::Offline => false,
        }
    }

    /// Whether what it holds counts as a replica in what operators are shown.
    pub const fn counts_as_replica(self) -> bool {
        match self {
            Self::Online | Self::Recovering => true,
            Self::Offline | Self::Draining => false,
        }
    }

    /// The only way from one status to another.
    pub const fn next(self, event: NodeEvent) -> Result<Self, Refused> {
        use NodeEvent as E;
        use NodeStatus as S;
        Ok(match (self, event) {
            (S::Online, E::Registered | E::Heard) => S::Online,
            (S::Online | S::Recovering, E::Missed) => S::Offline,
            (S::Offline, E::Missed) => S::Offline,
            // Back from an absence, by whatever door: quarantine first.
            (S::Offline | S::Recovering, E::Registered | E::Heard) => S::Recovering,
            (S::Draining, E::Heard) => S::Recovering,
            (S::Recovering, E::QuarantineOver) => S::Online,
            (S::Offline, E::DrainDue) => S::Draining,
            (S::Online | S::Offline | S::Recovering | S::Draining, E::DrainAsked) => S::Draining,
            // A node that registers while it drains keeps draining; its heartbeats decide.
            (S::Draining, E::Registered | E::Missed | E::DrainDue | E::RemoveDue) => S::Draining,
            (S::Online, E::QuarantineOver | E::DrainDue | E::RemoveDue)
            | (S::Offline, E::QuarantineOver | E::RemoveDue)
            | (S::Recovering, E::DrainDue | E::RemoveDue)
            | (S::Draining, E::QuarantineOver) => return Err(Refused { status: self, event }),
        })
    }
}

impl NodeEvent {
    /// All events.
    pub const ALL: [Self; 7] = [
        Self::Registered,
        Self::Heard,
        Self::Missed,
        Self::QuarantineOver,
        Self::DrainDue,
        Self::RemoveDue,
        Self::DrainAsked,
    ];
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for NodeStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// How long silence may last before something follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifecycleTimers {
    /// Silence after which a node is offline.
    pub offline: Duration,
    /// How long a node that came back must be heard before it is online.
    pub quarantine: Duration,
    /// Silence after which its chunks are moved away.
    pub drain: Duration,
    /// Silence after which it is forgotten.
    pub remove: Duration,
}

/// Timers that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimersError {
    /// A node would be offline between two heartbeats.
    #[error("the offline threshold must be longer than nothing")]
    NoOffline,
    /// Each follows from longer silence than the one before.
    #[error(
        "the offline threshold ({offline:?}) must be shorter than the drain threshold ({drain:?}), and that shorter than \
         the remove threshold ({remove:?})"
    )]
    OutOfOrder {
        /// offline threshold
        offline: Duration,
        /// drain threshold
        drain: Duration,
        /// remove threshold
        remove: Duration,
    },
}

impl Default for LifecycleTimers {
    fn default() -> Self {
        const MINUTE: u64 = 60;
        Self {
            offline: Duration::from_secs(5 * MINUTE),
            quarantine: Duration::from_secs(5 * MINUTE),
            drain: Duration::from_secs(4 * 60 * MINUTE),
            remove: Duration::from_secs(7 * 24 * 60 * MINUTE),
        }
    }
}

impl LifecycleTimers {
    /// Refuses timers in the wrong order.
    pub fn check(&self) -> Result<(), TimersError> {
        let Self { offline, drain, remove, quarantine: _ } = *self;
        if offline.is_zero() {
            return Err(TimersError::NoOffline);
        }
        if offline >= drain || drain >= remove {
            return Err(TimersError::OutOfOrder { offline, drain, remove });
        }
        Ok(())
    }
}

/// What the database knows of a node's life; all times by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeClock {
    /// Its status.
    pub status: NodeStatus,
    /// When it was last heard.
    pub last_heartbeat: Timestamp,
    /// Since when it has this status.
    pub status_changed_at: Timestamp,
    /// When the absence began that has not ended with `online` since. A draining node without it drains because its
    /// operator asked.
    pub first_offline_at: Option<Timestamp>,
}

/// What should become of a node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeDecision {
    /// Nothing.
    Stay,
    /// It takes this status.
    Step(NodeStatus),
    /// Its row goes.
    Remove,
}

/// Judges one node. At most one step at a time, and none follows another at once: where a step came late, because nobody could
/// hear the node before, the rest of the time until the next is counted from it.
pub fn decide(clock: &NodeClock, timers: &LifecycleTimers, now: Timestamp) -> NodeDecision {
    let silence = now.since(clock.last_heartbeat);
    let since_step = now.since(clock.status_changed_at);
    let LifecycleTimers { offline, drain, remove, .. } = *timers;
    let event = match clock.status {
        NodeStatus::Online | NodeStatus::Recovering if silence >= offline => NodeEvent::Missed,
        NodeStatus::Online => return NodeDecision::Stay,
        // Heard after the quarantine's end, not only silent for less than the threshold.
        NodeStatus::Recovering
            if clock.last_heartbeat.since(clock.status_changed_at) >= timers.quarantine =>
        {
            NodeEvent::QuarantineOver
        }
        NodeStatus::Recovering => return NodeDecision::Stay,
        NodeStatus::Offline if silence < offline => NodeEvent::Heard,
        NodeStatus::Offline if silence >= drain && since_step >= drain.saturating_sub(offline) => {
            NodeEvent::DrainDue
        }
        NodeStatus::Offline => return NodeDecision::Stay,
        NodeStatus::Draining if silence >= remove && since_step >= remove.saturating_sub(drain) => {
            return NodeDecision::Remove;
        }
        NodeStatus::Draining if silence < offline && clock.first_offline_at.is_some() => NodeEvent::Heard,
        NodeStatus::Draining => return NodeDecision::Stay,
    };
    match clock.status.next(event) {
        Ok(status) if status != clock.status => NodeDecision::Step(status),
        Ok(_) | Err(Refused { .. }) => NodeDecision::Stay,
    }
}

#[cfg(test)]
mod tests;
