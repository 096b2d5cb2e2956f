//! What the rebalancer counts, for Prometheus; all named `cyxcloud_rebalancer_*`.

use cyxcloud_metadata::upkeep::model::StripeRef;
use prometheus::{Counter, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Counters and gauges.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) expired: IntCounter,
    pub(crate) folded: IntCounter,
    pub(crate) failures: IntCounterVec,
    pub(crate) healthy: IntGauge,
    /// Repairs by how they ended.
    pub(crate) repairs: IntCounterVec,
    /// Shards made by repairs, by `how`.
    pub(crate) shards: IntCounterVec,
    pub(crate) repair_bytes: IntCounter,
    pub(crate) repair_waited: Counter,
    /// Repairs by what they wait for.
    pub(crate) queue: IntGaugeVec,
    pub(crate) oldest_due_secs: IntGauge,
    pub(crate) braked: IntGauge,
    pub(crate) scanned: IntCounterVec,
    pub(crate) inventory: IntCounterVec,
    pub(crate) swept: IntCounter,
    /// Audits by outcome.
    pub(crate) audits: IntCounterVec,
    pub(crate) rounds_discarded: IntCounter,
    pub(crate) at_risk_overdue: IntGauge,
    /// Segments and chunks that collection went on with, by `step`.
    pub(crate) collected: IntCounterVec,
    pub(crate) garbage: IntGaugeVec,
    pub(crate) gc_halted: IntGauge,
    pub(crate) connections_refused: IntCounter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let make = Maker(registry);
        let metrics = Self {
            connections_refused: make.counter(
                "connections_refused_total",
                "Connections for health or metrics closed at once because their address had as many as it may have",
            )?,
            expired: make.counter("uploads_expired_total", "Uploads ended because their lease ran out")?,
            folded: make.counter("usage_deltas_folded_total", "Usage deltas folded into totals")?,
            failures: make.counters("failures_total", "Pieces of background work that failed", "work")?,
            healthy: make.gauge("healthy", "1 if the last round of upkeep succeeded")?,
            repairs: make.counters("repairs_total", "Repairs by how they ended", "outcome")?,
            shards: make.counters("repaired_shards_total", "Shards made, copied or rebuilt", "how")?,
            repair_bytes: make.counter("repair_bytes_total", "Bytes moved by repairs")?,
            repair_waited: make.shown(Counter::with_opts(Maker::opts(
                "repair_waited_seconds_total",
                "Time that repairs waited for their budgets",
            ))?)?,
            queue: make.gauges(
                "repair_jobs",
                "Repairs by state; to_spread: not pending, for nothing is short; failed: given up within the last 24 hours",
                "state",
            )?,
            oldest_due_secs: make
                .gauge("repair_oldest_due_seconds", "Age of the oldest repair that is due")?,
            braked: make.gauge("repair_braked", "1 while more nodes are away than is believed")?,
            scanned: make.counters(
                "scanned_locations_total",
                "Locations looked at in scans of nodes",
                "reason",
            )?,
            inventory: make.counters(
                "inventory_findings_total",
                "What inventories were found to differ in",
                "finding",
            )?,
            swept: make.counter("swept_stripes_total", "Stripes looked at by the full sweep")?,
            audits: make.counters("audits_total", "Audits by outcome", "outcome")?,
            rounds_discarded: make.counter(
                "audit_rounds_discarded_total",
                "Rounds thrown away, but for what was proven, because we suspected ourselves",
            )?,
            at_risk_overdue: make.gauge(
                "audits_at_risk_overdue",
                "Locations at risk, of nodes that are heard, not proven within AUDIT_RISK_SECS; 1,000 are looked at",
            )?,
            collected: make.counters("collected_total", "Steps of garbage collection", "step")?,
            garbage: make.gauges(
                "garbage",
                "What waits to be collected; no more than 100,000 of a kind are counted",
                "kind",
            )?,
            gc_halted: make
                .gauge("gc_halted", "1 while collection is frozen or a brake holds; an operator must look")?,
        };
        metrics.healthy.set(1);
        Ok(metrics)
    }

    /// Takes note of work that failed and is tried again by itself.
    pub(crate) fn failed(&self, work: &str, error: &(dyn std::error::Error + 'static)) {
        self.failures.with_label_values(&[work]).inc();
        tracing::warn!(work, error, "background work failed; it is tried again");
    }

    /// Takes note of a stripe that cannot be looked at: nobody sees what it needs until somebody mends its rows.
    pub(crate) fn unreadable(&self, stripe: StripeRef, error: &(dyn std::error::Error + 'static)) {
        self.failures.with_label_values(&["read a stripe"]).inc();
        tracing::error!(segment = %stripe.segment, stripe = stripe.index, error, "a stripe cannot be read; it is passed by");
    }
}

struct Maker<'r>(&'r Registry);

impl Maker<'_> {
    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("cyxcloud_rebalancer_{name}"), help)
    }

    fn shown<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: C,
    ) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.shown(IntCounter::with_opts(Self::opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
        self.shown(IntCounterVec::new(Self::opts(name, help), &[label])?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.shown(IntGauge::with_opts(Self::opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> Result<IntGaugeVec, prometheus::Error> {
        self.shown(IntGaugeVec::new(Self::opts(name, help), &[label])?)
    }
}
