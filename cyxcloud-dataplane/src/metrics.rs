//! What the data plane counts, for Prometheus.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tracing::debug;

/// Counters and gauges, all named `cyxcloud_dataplane_*`.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Plain bytes, `direction` = `written` or `read`.
    pub(crate) bytes: IntCounterVec,
    /// Stores that were acknowledged.
    pub(crate) stores: IntCounter,
    /// Fetches of chunks and slices that were verified.
    pub(crate) fetches: IntCounter,
    pub(crate) pushes: IntCounter,
    /// Calls to nodes that failed, by `operation` and `reason`.
    pub(crate) failures: IntCounterVec,
    /// Shards asked for, or offered to another node, because one was late; by `operation`.
    pub(crate) hedges: IntCounterVec,
    /// Stripes that were decoded because data shards were not there.
    pub(crate) reconstructs: IntCounter,
    /// Shards that were not what their id says.
    pub(crate) corrupt_shards: IntCounter,
    /// Shards that a node did not hold although it should.
    pub(crate) missing_shards: IntCounter,
    /// Connections refused because another key than the node's answered at its address.
    pub(crate) other_identities: IntCounter,
    /// Bytes held by requests, `direction` = `write` or `read`.
    pub(crate) budget_in_use: IntGaugeVec,
    /// Number of the key that tokens for nodes are signed with.
    pub(crate) signing_key: IntGauge,
}

impl Metrics {
    /// Registers everything. What is registered already (a second data plane in one process) is counted but not shown.
    pub(crate) fn new(registry: &Registry) -> Self {
        let name = |name: &str, help: &str| Opts::new(format!("cyxcloud_dataplane_{name}"), help);
        let counter = |opts| IntCounter::with_opts(opts).expect("the name is valid");
        let counters =
            |opts, labels: &[&str]| IntCounterVec::new(opts, labels).expect("names and labels are valid");
        let metrics = Self {
            bytes: counters(
                name("bytes_total", "Plain bytes written to and read from nodes"),
                &["direction"],
            ),
            stores: counter(name("stores_total", "Chunks stored and acknowledged by a valid receipt")),
            pushes: counter(name(
                "pushes_total",
                "Chunks that one node sent to another and that were acknowledged",
            )),
            fetches: counter(name("fetches_total", "Chunks and slices fetched and verified")),
            failures: counters(
                name("failures_total", "Calls to nodes that failed"),
                &["operation", "reason"],
            ),
            hedges: counters(
                name("hedges_total", "Calls repeated elsewhere because one was late"),
                &["operation"],
            ),
            reconstructs: counter(name(
                "reconstructs_total",
                "Stripes decoded because data shards were not there",
            )),
            corrupt_shards: counter(name("corrupt_shards_total", "Shards that were not what their id says")),
            missing_shards: counter(name("missing_shards_total", "Shards not held by a node that should")),
            other_identities: counter(name(
                "identity_mismatches_total",
                "Connections refused because who answered was not the node registered there",
            )),
            budget_in_use: IntGaugeVec::new(name("budget_bytes", "Bytes held by requests"), &["direction"])
                .expect("names and labels are valid"),
            signing_key: IntGauge::with_opts(name(
                "signing_key",
                "Number of the key that tokens for nodes are signed with",
            ))
            .expect("the name is valid"),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &Registry) {
        let all: [Box<dyn prometheus::core::Collector>; 12] = [
            Box::new(self.bytes.clone()),
            Box::new(self.stores.clone()),
            Box::new(self.fetches.clone()),
            Box::new(self.pushes.clone()),
            Box::new(self.failures.clone()),
            Box::new(self.hedges.clone()),
            Box::new(self.reconstructs.clone()),
            Box::new(self.corrupt_shards.clone()),
            Box::new(self.missing_shards.clone()),
            Box::new(self.other_identities.clone()),
            Box::new(self.budget_in_use.clone()),
            Box::new(self.signing_key.clone()),
        ];
        for collector in all {
            if let Err(error) = registry.register(collector) {
                debug!(%error, "metric of the data plane is not shown");
            }
        }
    }
}
