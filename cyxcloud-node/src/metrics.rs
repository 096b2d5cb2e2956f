//! What a node counts and measures, for Prometheus. One registry per node: several may run in a process.

use std::sync::Arc;
use std::time::Instant;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};
use tonic::{Code, Status};

use crate::store::{ChunkStore, Condition};

/// All counters and gauges of a node.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    pub(crate) in_flight: IntGauge,
    pub(crate) received: IntCounter,
    pub(crate) sent: IntCounter,
    pub(crate) stored_chunk_bytes: Histogram,
    pub(crate) tokens_refused: IntCounter,
    pub(crate) connections_refused: IntCounter,
    pub(crate) strangers_refused: IntCounter,
    pub(crate) heartbeats: IntCounterVec,
    pub(crate) registered: IntGauge,
    pub(crate) corrupt: IntCounter,
    pub(crate) scrubbed: IntCounter,
    pub(crate) scrubbed_bytes: IntCounter,
    pub(crate) scrubs: IntCounter,
    pub(crate) scrub_running: IntGauge,
    pub(crate) peers: IntGauge,
    capacity: IntGauge,
    reserved: IntGauge,
    used: IntGauge,
    available: IntGauge,
    chunks: IntGauge,
    trash_bytes: IntGauge,
    trash_chunks: IntGauge,
    trash_purged: IntCounter,
    quarantined: IntGauge,
    read_only: IntGauge,
    syncs: IntCounter,
    format: IntGauge,
    pub(crate) tls: cyxcloud_tls::Metrics,
}

/// Latencies from a cached read to a disk that is in trouble, in seconds.
const SECONDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Chunks from an inlined trifle to the largest shard, in bytes.
const BYTES: [f64; 8] = [1024.0, 4096.0, 16384.0, 65536.0, 131_072.0, 524_288.0, 4_194_304.0, 67_108_864.0];

struct Maker(Registry);

impl Maker {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("names and labels are ours");
        self.0.register(Box::new(collector.clone())).expect("each name is used once");
        collector
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let m = Maker(Registry::new());
        let seconds =
            HistogramOpts::new("cyxcloud_node_request_duration_seconds", "Time to answer a request.");
        let bytes = HistogramOpts::new("cyxcloud_node_stored_chunk_bytes", "Sizes of chunks stored.");
        let build = IntGauge::with_opts(
            Opts::new("cyxcloud_node_build_info", "Always 1.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        );
        m.add(build).set(1);
        #[cfg(target_os = "linux")]
        m.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("its names are its own");
        Arc::new(Self {
            requests: m.counters("cyxcloud_node_requests_total", "Requests answered.", &["method", "code"]),
            seconds: m.add(HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &["method"])),
            in_flight: m.gauge("cyxcloud_node_requests_in_flight", "Requests being served."),
            received: m.counter("cyxcloud_node_received_bytes_total", "Chunk bytes received."),
            sent: m.counter("cyxcloud_node_sent_bytes_total", "Chunk bytes and proofs sent."),
            stored_chunk_bytes: m.add(Histogram::with_opts(bytes.buckets(BYTES.to_vec()))),
            tokens_refused: m
                .counter("cyxcloud_node_tokens_refused_total", "Calls refused for want of a good token."),
            connections_refused: m.counter(
                "cyxcloud_node_connections_refused_total",
                "Connections closed at once because their address had as many as it may have.",
            ),
            strangers_refused: m.counter(
                "cyxcloud_node_strangers_refused_total",
                "Requests from addresses without a good token for which there was no place, or that did not come in time.",
            ),
            heartbeats: m.counters("cyxcloud_node_heartbeats_total", "Heartbeats sent.", &["result"]),
            registered: m.gauge("cyxcloud_node_registered", "Whether the gateway knows this node."),
            corrupt: m.counter("cyxcloud_node_corrupt_chunks_total", "Chunks found corrupt."),
            scrubbed: m.counter("cyxcloud_node_scrubbed_chunks_total", "Chunks read again to check them."),
            scrubbed_bytes: m
                .counter("cyxcloud_node_scrubbed_bytes_total", "Bytes of chunks read again to check them."),
            scrubs: m.counter("cyxcloud_node_scrubs_total", "Scrubs that reached the last chunk."),
            scrub_running: m.gauge("cyxcloud_node_scrub_running", "Whether chunks are being scrubbed."),
            peers: m.gauge("cyxcloud_node_peers", "Peers known by discovery."),
            capacity: m.gauge("cyxcloud_node_storage_capacity_bytes", "Space offered, reservation included."),
            reserved: m.gauge("cyxcloud_node_storage_reserved_bytes", "Space kept back for system use."),
            used: m.gauge("cyxcloud_node_storage_used_bytes", "Bytes of stored chunks, trash included."),
            available: m.gauge("cyxcloud_node_storage_available_bytes", "Bytes that can still be stored."),
            chunks: m.gauge("cyxcloud_node_chunks", "Chunks held."),
            trash_bytes: m.gauge("cyxcloud_node_trash_bytes", "Bytes of deleted chunks in the trash."),
            trash_chunks: m.gauge("cyxcloud_node_trash_chunks", "Deleted chunks in the trash."),
            trash_purged: m.counter("cyxcloud_node_trash_purged_total", "Chunks purged from the trash."),
            quarantined: m.gauge("cyxcloud_node_quarantined_chunks", "Chunks held back as corrupt."),
            read_only: m.gauge("cyxcloud_node_read_only", "Whether the disk refuses writes."),
            syncs: m
                .counter("cyxcloud_node_store_syncs_total", "Synced writes, each for one or more requests."),
            format: m.gauge("cyxcloud_node_format", "Version of the data directory's format."),
            tls: cyxcloud_tls::Metrics::new(&m.0).expect("each name is used once"),
            registry: m.0,
        })
    }

    /// Sets what does not change.
    pub(crate) fn offer(&self, account: &cyxcloud_core::reservation::StorageAccount) {
        self.capacity.set(account.total.as_i64());
        self.reserved.set(account.reserved.as_i64());
    }

    /// Everything in Prometheus' text format, with the store's numbers of this instant.
    pub(crate) fn render(&self, store: &dyn ChunkStore) -> Vec<u8> {
        let usage = store.usage();
        self.used.set(usage.used.as_i64());
        self.available.set(usage.available.as_i64());
        self.chunks.set(i64::try_from(usage.chunks).unwrap_or(i64::MAX));
        self.trash_bytes.set(usage.trash.as_i64());
        self.trash_chunks.set(i64::try_from(usage.trash_chunks).unwrap_or(i64::MAX));
        self.trash_purged.inc_by(usage.trash_purged.saturating_sub(self.trash_purged.get()));
        self.quarantined.set(i64::try_from(store.quarantined().len()).unwrap_or(i64::MAX));
        self.read_only.set(i64::from(matches!(store.condition(), Condition::ReadOnly(_))));
        self.syncs.inc_by(usage.syncs.saturating_sub(self.syncs.get()));
        self.format.set(i64::from(store.format()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("memory takes it");
        text
    }

    /// Starts to measure a request; whatever becomes of it is counted, even that its caller went away.
    pub(crate) fn begin(self: &Arc<Self>, method: &'static str) -> Measured {
        self.in_flight.inc();
        Measured { metrics: self.clone(), method, begun: Instant::now(), code: Code::Cancelled }
    }
}

/// A request in progress.
pub(crate) struct Measured {
    metrics: Arc<Metrics>,
    method: &'static str,
    begun: Instant,
    code: Code,
}

impl Measured {
    pub(crate) fn end<T>(mut self, result: Result<T, Status>) -> Result<T, Status> {
        self.code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        result
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        self.metrics.requests.with_label_values(&[self.method, name(self.code)]).inc();
        self.metrics.seconds.with_label_values(&[self.method]).observe(self.begun.elapsed().as_secs_f64());
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
