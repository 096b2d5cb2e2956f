//! What the data plane can be told.

use std::time::Duration;

use cyxcloud_core::ByteCount;
use cyxcloud_core::node::LifecycleTimers;
use cyxcloud_core::stripe::{INLINE_MAX, SMALL_MAX};
use cyxcloud_tls::ServerKey;

/// Limits and time-outs of the data plane. The defaults suit a gateway.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long to wait for a connection to a node.
    pub connect_timeout: Duration,
    /// How long one store may take, from the first byte sent to the receipt.
    pub write_timeout: Duration,
    /// How long one fetch may take.
    pub read_timeout: Duration,
    /// Bytes that all requests together may hold. Half of it is for writes and half for reads, so that neither can
    /// starve the other.
    pub memory: ByteCount,
    /// Bytes that one request may hold; one stripe's worth if that is more.
    pub per_request: ByteCount,
    /// A sender may keep others waiting for memory so long beyond the time that its bytes earn it: it is to fill a stripe within a
    /// minute. Where nobody waits, nobody is hurried.
    pub sender_grace: Duration,
    /// Stripes fetched ahead of the one that is being sent to the reader.
    pub read_ahead: usize,
    /// Stripes of one request that are stored at the same time.
    pub stripes_in_flight: usize,
    /// At most this long does a stripe that may commit wait for the rest of its stores. It waits no longer than it took so
    /// far.
    pub straggler_grace: Duration,
    /// At least this long must a store take before other nodes are asked to take its shard too.
    pub late_store: Duration,
    /// At least this long must no node at all have signed for a shard before a stripe that too few have stored is given up.
    pub silence: Duration,
    /// At least and at most this long must a fetch take before another shard is asked for in its place.
    pub late_fetch: (Duration, Duration),
    /// How long a node that failed is avoided, first and at most; it doubles with every failure in a row.
    pub penalty: (Duration, Duration),
    /// Silence after which a node is offline: one that is to be emptied and was silent for so long is asked last, like those away.
    pub offline: Duration,
    /// Free space that a node must have beyond the shard it is to take.
    pub headroom: ByteCount,
    /// Bodies up to this live sealed in the metadata store.
    pub inline_max: ByteCount,
    /// Bodies up to this are stored as copies.
    pub small_max: ByteCount,
    /// Whether a single node may be all there is: the operator's consent to lose everything with it.
    pub consent_to_no_redundancy: bool,
    /// The key that nodes are shown.
    pub key: ServerKey,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(15),
            memory: ByteCount::mib(256),
            per_request: ByteCount::mib(64),
            sender_grace: Duration::from_secs(10),
            read_ahead: 3,
            stripes_in_flight: 6,
            straggler_grace: Duration::from_secs(1),
            late_store: Duration::from_secs(1),
            silence: Duration::from_secs(6),
            late_fetch: (Duration::from_millis(60), Duration::from_secs(2)),
            penalty: (Duration::from_secs(2), Duration::from_secs(30)),
            offline: LifecycleTimers::default().offline,
            headroom: ByteCount::mib(16),
            inline_max: INLINE_MAX,
            small_max: SMALL_MAX,
            consent_to_no_redundancy: false,
            key: ServerKey::for_this_run(),
        }
    }
}
