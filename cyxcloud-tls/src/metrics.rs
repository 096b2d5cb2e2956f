//! What the TLS ports count, for Prometheus.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Counters and gauges, all named `cyxcloud_tls_*`.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Option<Registry>,
    /// When the certificate in use ends, in seconds since the Unix epoch. Shown only where there is one: no alarm should go off
    /// for want of a date.
    pub(crate) expiry: IntGauge,
    /// Loads of the certificate's files after the first, by `result`: `ok` or `failed`.
    pub(crate) reloads: IntCounterVec,
    /// Connections that were cut before they were secure, by `port` and `reason`.
    pub(crate) failures: IntCounterVec,
}

impl Metrics {
    /// Registers the counts.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self { registry: Some(registry.clone()), ..Self::unregistered() };
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        Ok(metrics)
    }

    /// Shows when the certificate ends, from now on.
    pub(crate) fn show_expiry(&self, not_after: i64) -> Result<(), prometheus::Error> {
        self.expiry.set(not_after);
        self.registry.as_ref().map_or(Ok(()), |registry| registry.register(Box::new(self.expiry.clone())))
    }

    /// Counts that nobody sees: for servers without metrics.
    pub fn unregistered() -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("names and labels are valid")
        };
        Self {
            registry: None,
            expiry: IntGauge::new(
                "cyxcloud_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use ends, in seconds since the Unix epoch",
            )
            .expect("the name is valid"),
            reloads: counters(
                "cyxcloud_tls_reloads_total",
                "Loads of a changed certificate, by result",
                &["result"],
            ),
            failures: counters(
                "cyxcloud_tls_handshake_failures_total",
                "Connections cut before they were secure, by port and reason",
                &["port", "reason"],
            ),
        }
    }
}
