//! The node's word with its gateway: it registers, says every now and then that it lives and how it is, and does what
//! the answers ask.
//!
//! Nothing here ends while the node runs: a gateway that is away is waited for, with growing pauses, and said so once.
//! The node serves chunks all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::reservation::StorageAccount;
use cyxcloud_core::{ByteCount, Timestamp};
use cyxcloud_proto::convert::chunk_id_bytes;
use cyxcloud_proto::gateway::node_command::Kind;
use cyxcloud_proto::gateway::node_service_client::NodeServiceClient;
use cyxcloud_proto::gateway::{HeartbeatRequest, NodeCommand, RegisterNodeRequest, RegisterNodeResponse};
use cyxcloud_proto::{GATEWAY_TIME, WIRE_VERSION, signed};
use cyxcloud_tls::{NetStream, connect};
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tonic::transport::{Channel, Uri};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::Error;
use crate::account::AccessToken;
use crate::config::Config;
use crate::corrupt::CorruptChunks;
use crate::gate::{Gate, Trust};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::service::now;
use crate::store::{ChunkStore, Condition, format_newest};
use crate::vitals::Vitals;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The gateway calls back before it answers a registration.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// What the specification says, where neither operator nor gateway does.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(30);
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(600);
const RETRY_MIN: Duration = Duration::from_millis(500);
/// A skew that differs from the one known by less is no news.
const SKEW_NEWS_MS: u64 = 60_000;
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A heartbeat for which the gateway has no room is sent again so soon: it hears a node once at a time, and a node that was just
/// started may meet its former beat.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// For how long a registration waits for its operator's log-in.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything the gateway is told about this node.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) gate: Arc<Gate>,
    /// How far the gateway's clock is ahead of ours, as far as it said.
    pub(crate) skew_ms: AtomicI64,
    /// Token of the node's operator, where there is an account.
    pub(crate) access: Option<AccessToken>,
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) corrupt: Arc<CorruptChunks>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) scrub: Arc<Notify>,
    /// Where others reach this node: host (empty for the address that the gateway sees), gRPC and metrics ports.
    pub(crate) host: String,
    pub(crate) grpc_port: u16,
    pub(crate) metrics_port: u16,
}

impl Membership {
    /// Keeps the node registered, until it is dropped.
    pub(crate) async fn keep(mut self, channel: Channel) {
        let mut client = NodeServiceClient::new(channel);
        loop {
            let answer = self.register(&mut client).await;
            self.metrics.registered.set(1);
            self.heartbeats(&mut client, &answer).await;
            self.metrics.registered.set(0);
        }
    }

    /// Registers, however long it takes.
    async fn register(&mut self, client: &mut NodeServiceClient<Channel>) -> RegisterNodeResponse {
        let mut pause = RETRY_MIN;
        loop {
            let token = self.operator_token().await;
            match client.register_node(self.registration(token)).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    self.welcome(&answer);
                    return answer;
                }
                // By our clock the signature was too old. Once more by the gateway's; if that does not help, nothing but waiting does.
                Err(status) if self.learn_time(&status) => continue,
                Err(status) => {
                    let seconds = pause.as_secs_f64();
                    let (code, why) = (status.code(), status.message());
                    if hopeless(code) {
                        warn!(?code, why, retry_secs = seconds, "the gateway refuses this node");
                    } else {
                        warn!(?code, why, retry_secs = seconds, "could not register with the gateway");
                    }
                }
            }
            // Up to half again, so that nodes which lost one gateway do not return as one.
            let paused = tokio::time::sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 2.0));
            tokio::select! {
                () = paused => {}
                // Another token may be what was missing.
                () = changed(self.access.as_mut()) => {}
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Whether the gateway said what time it is, and that is news.
    fn learn_time(&self, status: &Status) -> bool {
        let told = status.metadata().get(GATEWAY_TIME).and_then(|value| value.to_str().ok());
        let Some(told) = told.and_then(|text| text.parse::<i64>().ok()) else { return false };
        let skew_ms = told.saturating_sub(now().unix_millis());
        let known = self.skew_ms.swap(skew_ms, Ordering::Relaxed);
        let news = skew_ms.abs_diff(known) > SKEW_NEWS_MS;
        if news {
            warn!(
                skew_secs = skew_ms / 1000,
                "this machine's clock differs from the gateway's, which counts"
            );
        }
        news
    }

    /// The operator's token. A log-in is waited for, but not for long: only the gateway knows whether it wants one.
    async fn operator_token(&mut self) -> String {
        let Some(access) = &mut self.access else { return String::new() };
        // Whoever keeps it may be gone, as the node is in a moment.
        let _ = tokio::time::timeout(TOKEN_TIMEOUT, access.wait_for(Option::is_some)).await;
        let token = access.borrow_and_update();
        token.as_ref().map(|token| token.expose_secret().to_owned()).unwrap_or_default()
    }

    fn registration(&self, access_token: String) -> RegisterNodeRequest {
        let config = &self.config;
        let account = self.account();
        let incarnation = self.store.incarnation();
        let key = self.identity.key();
        let skew_ms = self.skew_ms.load(Ordering::Relaxed);
        let signed_at = Timestamp::from_unix_millis(now().unix_millis().saturating_add(skew_ms));
        let mut request = RegisterNodeRequest {
            public_key: Bytes::copy_from_slice(&key.public()),
            peer_id: self.identity.peer_id().to_owned(),
            label: config.node_id.clone().unwrap_or_else(|| self.identity.default_label().to_string()),
            name: config.node_name.clone(),
            advertise_host: self.host.clone(),
            grpc_port: u32::from(self.grpc_port),
            metrics_port: u32::from(self.metrics_port),
            storage_total: account.total.get(),
            storage_used: account.used.get(),
            region: config.node_region.clone(),
            operator: config.node_operator.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire_version: WIRE_VERSION,
            format_version: self.store.format(),
            incarnation: Bytes::copy_from_slice(incarnation.as_bytes()),
            signed_at_ms: signed_at.unix_millis(),
            signature: Bytes::new(),
            storage_reserved: account.reserved.get(),
            has_reserved: config.storage_reserved_bytes.is_some(),
            access_token,
            tls: config.tls,
        };
        request.signature = Bytes::copy_from_slice(&key.sign(&signed::registration(&request)));
        request
    }

    fn account(&self) -> StorageAccount {
        StorageAccount { used: self.store.usage().used, ..self.config.account() }
    }

    fn welcome(&self, answer: &RegisterNodeResponse) {
        let node = hex::encode(&answer.node_id);
        info!(node, status = answer.status, "registered with the gateway");
        if answer.wire_version != WIRE_VERSION {
            warn!(
                ours = WIRE_VERSION,
                gateways = answer.wire_version,
                "gateway and node speak different versions"
            );
        }
        self.take_up(answer.format_version);
        let trust = Trust::told(answer.require_tokens, &answer.token_keys);
        self.gate.told(trust, Timestamp::from_unix_millis(answer.now_ms));
        if self.config.quiet {
            return;
        }
        print(&summary(
            self.config.account().total,
            ByteCount::bytes(answer.storage_reserved),
            ByteCount::bytes(answer.storage_allocatable),
        ));
    }

    /// Sends heartbeats until the gateway wants a registration instead.
    async fn heartbeats(&self, client: &mut NodeServiceClient<Channel>, answer: &RegisterNodeResponse) {
        let mut vitals = Vitals::default();
        vitals.look();
        let mut silent = false;
        let mut token = answer.token.clone();
        let interval = self.interval(answer.heartbeat_interval_ms);
        let mut timer = tokio::time::interval(interval);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // The first comes at once: registration and life are two things to the gateway.
            timer.tick().await;
            let corrupt = self.corrupt.next();
            let corrupt_chunks = corrupt.iter().map(chunk_id_bytes).collect();
            let request = HeartbeatRequest {
                token: token.clone(),
                ..self.heartbeat(answer, &mut vitals, corrupt_chunks)
            };
            match client.heartbeat(request).await {
                Ok(response) => {
                    self.metrics.heartbeats.with_label_values(&["ok"]).inc();
                    self.corrupt.reported(&corrupt);
                    let response = response.into_inner();
                    debug!(status = response.status, "heartbeat");
                    if std::mem::take(&mut silent) {
                        info!("the gateway answers again");
                    }
                    self.take_up(response.format_version);
                    let trust = Trust::told(response.require_tokens, &response.token_keys);
                    self.gate.told(trust, Timestamp::from_unix_millis(response.now_ms));
                    if !response.token.is_empty() {
                        token = response.token;
                    }
                    if self.obey(&response.commands) {
                        return;
                    }
                }
                Err(status) if must_register(&status) => {
                    self.metrics.heartbeats.with_label_values(&["unknown"]).inc();
                    info!(why = status.message(), "the gateway wants a registration");
                    return;
                }
                Err(status) => {
                    self.metrics.heartbeats.with_label_values(&["failed"]).inc();
                    if !std::mem::replace(&mut silent, true) {
                        warn!(code = ?status.code(), why = status.message(), "heartbeat failed");
                    }
                    if let Some(pause) = sooner(status.code(), interval) {
                        timer.reset_after(pause);
                    }
                }
            }
        }
    }

    fn interval(&self, wanted_ms: u64) -> Duration {
        let asked = if wanted_ms == 0 { HEARTBEAT_DEFAULT } else { Duration::from_millis(wanted_ms) };
        self.config.heartbeat_interval().unwrap_or(asked).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX)
    }

    fn heartbeat(
        &self,
        answer: &RegisterNodeResponse,
        vitals: &mut Vitals,
        corrupt_chunks: Vec<Bytes>,
    ) -> HeartbeatRequest {
        let usage = self.store.usage();
        let (cpu_usage, memory_usage) = vitals.look();
        // The gateway may reserve more than this node does; what is available is the smaller of both.
        let allocatable = ByteCount::bytes(answer.storage_allocatable);
        HeartbeatRequest {
            node_id: answer.node_id.clone(),
            storage_used: usage.used.get(),
            storage_available: usage.available.min(allocatable.saturating_sub(usage.held())).get(),
            cpu_usage,
            memory_usage,
            active_connections: u64::try_from(self.metrics.in_flight.get()).unwrap_or(0),
            maintenance: self.config.maintenance,
            read_only: matches!(self.store.condition(), Condition::ReadOnly(_)),
            incarnation: Bytes::copy_from_slice(self.store.incarnation().as_bytes()),
            corrupt_chunks,
            token: String::new(),
        }
    }

    /// Goes over to the newest format that the gateway and we know. Once in a data directory's life, so it may block.
    fn take_up(&self, offered: u32) {
        let (before, format) = (self.store.format(), offered.min(format_newest()));
        if format <= before {
            return;
        }
        match self.store.take_up(format) {
            Ok(()) => info!(before, format, "the data directory went over to a newer format"),
            Err(error) => warn!(before, format, %error, "the data directory stays in its format for now"),
        }
    }

    /// Does what is asked; says whether that is a new registration.
    fn obey(&self, commands: &[NodeCommand]) -> bool {
        let mut register = false;
        for command in commands {
            match command.kind() {
                Kind::Register => register = true,
                Kind::Scrub => self.scrub.notify_one(),
                Kind::Unspecified => debug!(kind = command.kind, "the gateway asks for something unknown"),
            }
        }
        register
    }
}

/// The way to the gateway. The address is the operator's, so it is not judged; behind https its certificate must come from an
/// authority that we trust, and we show our own key.
pub(crate) fn channel(config: &Config, identity: &Identity) -> Result<Channel, Error> {
    let url = &config.central_server_addr;
    let wrong = || Error::GatewayAddress { url: url.clone() };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let tls = match uri.scheme_str() {
        Some("http") => None,
        Some("https") => Some(connect::trusting(config.tls_ca.as_deref(), identity.key())?),
        _ => return Err(wrong()),
    };
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let endpoint = cyxcloud_tls::grpc::endpoint(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let connector = tower::service_fn(move |_: Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let stream = match tls {
                None => NetStream::Plain(stream),
                Some(tls) => connect::secure(tls, &host, stream).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Unknown, or its node token has ended or was signed by a secret that counts no more.
fn must_register(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::Unauthenticated)
}

/// After which time a heartbeat that failed is sent again, where that is not the usual one.
fn sooner(code: Code, interval: Duration) -> Option<Duration> {
    (code == Code::ResourceExhausted).then_some(BUSY_PAUSE.min(interval))
}

/// Waits for another token; for ever where there is none to come.
async fn changed(access: Option<&mut AccessToken>) {
    if let Some(access) = access
        && access.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Whether waiting alone will not help: somebody must change something first.
fn hopeless(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition | Code::Unauthenticated
    )
}

/// The box of specification section 4.6.
fn summary(total: ByteCount, reserved: ByteCount, available: ByteCount) -> String {
    const LINE: &str = "========================================";
    let gb = |count: ByteCount| format!("{:.1} GB", count.get() as f64 / (1u64 << 30) as f64);
    format!(
        "{LINE}\n  Storage Reservation Summary\n{LINE}\n  Total Capacity:  {}\n  System Reserved: {}\n  Available:       {}\n{LINE}",
        gb(total),
        gb(reserved),
        gb(available)
    )
}

#[allow(clippy::print_stdout, reason = "the specification has the node show this to its operator")]
fn print(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_hears_another_beat_is_asked_again_soon() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(sooner(Code::ResourceExhausted, minute), Some(Duration::from_secs(2)));
        assert_eq!(sooner(Code::ResourceExhausted, second), Some(second), "never later than otherwise");
        assert_eq!(sooner(Code::Unavailable, minute), None);
    }

    #[test]
    fn the_summary_is_the_specification_s() {
        let text = summary(ByteCount::gib(100), ByteCount::gib(2), ByteCount::gib(98));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "  Storage Reservation Summary");
        assert_eq!(
            lines[3..6],
            ["  Total Capacity:  100.0 GB", "  System Reserved: 2.0 GB", "  Available:       98.0 GB"]
        );
    }
}
