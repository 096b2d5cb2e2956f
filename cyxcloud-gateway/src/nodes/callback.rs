//! Calls a node back at the address it claims, before anything is stored there.
//!
//! The address was chosen by a stranger: it is resolved once, judged, and the judged address is the one that is dialled.
//! No redirects are followed, little is read, and it does not take long; neither what is said of it nor when tells a
//! stranger what is there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cyxcloud_core::address::{AddressPolicy, AddressRefused};
use cyxcloud_tls::{ServerKey, connect, identity};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use prometheus::IntCounter;
use tokio::net::TcpStream;

/// For the whole call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// When a stranger is told that a node did not answer as it should, counted from when its name is looked up: no sooner than
/// that and both calls take at most. What refuses a connection and what lets it wait would differ by seconds otherwise.
pub const TOLD_AFTER: Duration = Duration::from_secs(3 * CALL_TIMEOUT.as_secs());
/// Longest answer that is read.
const ANSWER_MAX: usize = 1024;

/// Who calls back, and where it may.
#[derive(Debug)]
pub struct Caller {
    /// Which addresses may be dialled.
    pub policy: AddressPolicy,
    /// What nodes that speak TLS are shown.
    pub key: ServerKey,
    /// Nodes refused because somebody else answered at their address.
    pub other_identities: IntCounter,
}

/// Where a node says that it is reached.
#[derive(Debug)]
pub struct Claim {
    /// An address, or a name.
    pub host: String,
    /// Port of its chunk service.
    pub grpc: u16,
    /// Port of its health.
    pub metrics: u16,
    /// The key that its chunk service proves, where it speaks TLS.
    pub key: Option<[u8; 32]>,
}

impl Claim {
    /// The address, where it is one. What a name leads to, whoever gave it may not know.
    pub fn literal(&self) -> Option<IpAddr> {
        self.bare_host().parse().ok()
    }

    fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Where a node was reached.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// Its chunk service.
    pub chunks: SocketAddr,
    /// Its health.
    pub health: SocketAddr,
}

/// Why a node was not accepted at its address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name does not resolve.
    #[error("{host} cannot be resolved")]
    Unresolvable {
        /// as the node gave it
        host: String,
    },
    /// No address of it may be dialled.
    #[error(transparent)]
    Refused(#[from] AddressRefused),
    /// It cannot be reached, or does not speak HTTP.
    #[error("{address} does not answer {asked}: {reason}")]
    Silent {
        /// dialled
        address: SocketAddr,
        /// what it was asked
        asked: &'static str,
        /// what went wrong
        reason: String,
    },
    /// It said that it speaks TLS, and does not, or is somebody else.
    #[error("{address} does not prove the key of this node: {reason}")]
    Identity {
        /// dialled
        address: SocketAddr,
        /// what went wrong
        reason: String,
    },
    /// It answers, but not with 200 and `OK`.
    #[error("{address} is not healthy: it answered {answer:?}")]
    Unhealthy {
        /// dialled
        address: SocketAddr,
        /// status and the beginning of the body
        answer: String,
    },
}

impl Error {
    /// Whether something was dialled, of which the time that it took tells; or would have been, were it not our own.
    fn was_dialled(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Identity { .. } | Self::Unhealthy { .. } => true,
            Self::Refused(AddressRefused::Own(_)) => true,
            Self::Unresolvable { .. } | Self::Refused(_) => false,
        }
    }
}

/// Calls, and tells no sooner that nothing came of it, if anything was dialled at all.
async fn no_sooner<T>(
    told_after: Duration,
    calls: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let began = Instant::now();
    let outcome = calls.await;
    if outcome.as_ref().is_err_and(Error::was_dialled) {
        tokio::time::sleep(told_after.saturating_sub(began.elapsed())).await;
    }
    outcome
}

/// The first address that may be dialled, of all that a name leads to; else why the last may not, if there is one.
fn choose(policy: &AddressPolicy, found: &[SocketAddr]) -> Result<IpAddr, Option<AddressRefused>> {
    let mut refusal = None;
    for address in found {
        match policy.check(*address) {
            Ok(()) => return Ok(address.ip()),
            Err(refused) => refusal = Some(refused),
        }
    }
    Err(refusal)
}

/// Asks `GET /health` at an address that was judged.
async fn check_health(policy: &AddressPolicy, address: SocketAddr) -> Result<(), Error> {
    policy.check(address)?;
    let silent = |reason: String| Error::Silent { address, asked: "GET /health", reason };
    match tokio::time::timeout(CALL_TIMEOUT, ask(address)).await {
        Err(_) => Err(silent(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
        Ok(Err(reason)) => Err(silent(reason)),
        Ok(Ok((http::StatusCode::OK, body))) if body.trim_ascii() == b"OK" => Ok(()),
        Ok(Ok((status, body))) => {
            let text: String = String::from_utf8_lossy(&body).chars().take(80).collect();
            Err(Error::Unhealthy { address, answer: format!("{status} {text}") })
        }
    }
}

impl Caller {
    /// Calls a node where it says that it is. That nobody answers there as he should is told no sooner than `told_after`.
    pub async fn call_back(&self, claim: &Claim, told_after: Duration) -> Result<Reached, Error> {
        let found = async {
            match claim.literal() {
                Some(ip) => Ok(vec![SocketAddr::new(ip, claim.grpc)]),
                None => Ok(tokio::net::lookup_host((claim.bare_host(), claim.grpc)).await?.collect()),
            }
        };
        no_sooner(told_after, self.call(claim, found)).await
    }

    /// What is `found` is asked for once, and only what was chosen of it is dialled: a name that leads elsewhere a moment
    /// later leads nobody there.
    async fn call(
        &self,
        claim: &Claim,
        found: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> Result<Reached, Error> {
        let unresolvable = || Error::Unresolvable { host: claim.host.chars().take(255).collect() };
        let found = tokio::time::timeout(CALL_TIMEOUT, found).await.map_err(|_| unresolvable())?;
        let found = found.map_err(|_| unresolvable())?;
        let ip = choose(&self.policy, &found)
            .map_err(|refusal| refusal.map_or_else(unresolvable, Error::Refused))?;
        let (chunks, health) = (SocketAddr::new(ip, claim.grpc), SocketAddr::new(ip, claim.metrics));
        check_health(&self.policy, health).await?;
        if let Some(key) = claim.key {
            self.check_identity(chunks, key).await?;
        }
        Ok(Reached { chunks, health })
    }

    /// Shakes hands with a chunk service that speaks TLS: it must hold the key that is being registered.
    async fn check_identity(&self, address: SocketAddr, public_key: [u8; 32]) -> Result<(), Error> {
        self.policy.check(address)?;
        let silent = |reason: String| Error::Silent { address, asked: "a TLS handshake", reason };
        let tls = identity::client_config(self.key.identity(), public_key);
        let shake = async {
            let stream = TcpStream::connect(address).await.map_err(|error| silent(error.to_string()))?;
            connect::secure(tls, &address.ip().to_string(), stream).await.map(drop).map_err(|error| {
                if identity::is_other_identity(&error) {
                    self.other_identities.inc();
                }
                Error::Identity { address, reason: error.to_string() }
            })
        };
        let late = |_| silent(format!("no answer within {} s", CALL_TIMEOUT.as_secs()));
        tokio::time::timeout(CALL_TIMEOUT, shake).await.map_err(late)?
    }
}

async fn ask(address: SocketAddr) -> Result<(http::StatusCode, Bytes), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get("/health")
        .header(http::header::HOST, address.to_string())
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string());
    let result = match answer {
        Ok(response) => {
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            body.map(|body| (status, body.to_bytes())).map_err(|error| error.to_string())
        }
        Err(reason) => Err(reason),
    };
    driver.abort();
    result
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;

    const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK";

    fn loopback() -> AddressPolicy {
        AddressPolicy { loopback: true, ..closed() }
    }

    fn closed() -> AddressPolicy {
        AddressPolicy::default()
    }

    fn listing(network: &str) -> AddressPolicy {
        AddressPolicy { networks: vec![network.parse().expect("a network")], ..closed() }
    }

    fn caller(policy: AddressPolicy) -> Caller {
        let other_identities = IntCounter::new("others", "others").expect("a name");
        Caller { policy, key: ServerKey::for_this_run(), other_identities }
    }

    fn claim(host: &str, port: u16) -> Claim {
        Claim { host: host.to_owned(), grpc: port, metrics: port, key: None }
    }

    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
        answering_at(listener, answer).0
    }

    /// Two addresses of this machine, with one port that nobody has at either.
    async fn neighbours() -> (TcpListener, TcpListener) {
        loop {
            let first = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
            let port = first.local_addr().expect("bound").port();
            match TcpListener::bind(("127.0.0.2", port)).await {
                Ok(second) => return (first, second),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}"),
            }
        }
    }

    /// With how many came.
    fn answering_at(listener: TcpListener, answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = listener.local_addr().expect("bound");
        let visits = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&visits);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counting.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, visits)
    }

    #[tokio::test]
    async fn addresses_of_strangers_are_judged_before_they_are_dialled() {
        for host in
            ["127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1", "localhost", "0.0.0.0"]
        {
            let answer = caller(closed()).call_back(&claim(host, 80), Duration::ZERO).await;
            assert!(matches!(answer, Err(Error::Refused(_))), "{host}");
        }
        let nowhere = claim("no.such.host.invalid", 80);
        let answer = caller(loopback()).call_back(&nowhere, Duration::ZERO).await;
        assert!(matches!(answer, Err(Error::Unresolvable { .. })));
        let address = answering(GOOD).await;
        assert!(matches!(check_health(&closed(), address).await, Err(Error::Refused(_))));
        for host in ["localhost", "127.0.0.1", "[127.0.0.1]"] {
            let local = caller(listing("127.0.0.0/8"));
            let reached = local.call_back(&claim(host, address.port()), Duration::ZERO).await.expect(host);
            assert_eq!((reached.health, reached.chunks), (address, address));
        }
    }

    #[test]
    fn of_all_that_a_name_leads_to_one_that_may_be_dialled_is_chosen() {
        let chosen = |found: &[&str]| {
            let found: Vec<SocketAddr> = found.iter().map(|at| at.parse().expect("an address")).collect();
            choose(&listing("10.1.0.0/16"), &found)
        };
        let is = |ip: &str| Ok(ip.parse::<IpAddr>().expect("an address"));
        assert_eq!(chosen(&["1.1.1.1:1", "1.0.0.1:1"]), is("1.1.1.1"));
        assert_eq!(chosen(&["169.254.169.254:1", "10.0.0.1:1", "127.0.0.1:1", "1.1.1.1:1"]), is("1.1.1.1"));
        assert_eq!(chosen(&["[::ffff:10.0.0.1]:1", "[::ffff:10.1.0.1]:1"]), is("::ffff:10.1.0.1"));
        for private in ["10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let refused = chosen(&["127.0.0.1:1", "[::ffff:127.0.0.1]:1", private]);
            assert!(matches!(refused, Err(Some(AddressRefused::Private(_)))), "{refused:?}");
        }
        assert_eq!(chosen(&[]), Err(None));
    }

    #[tokio::test]
    async fn what_was_chosen_is_what_is_dialled() {
        let (first, second) = neighbours().await;
        let (elsewhere, visits_elsewhere) = answering_at(first, GOOD);
        let (here, visits) = answering_at(second, GOOD);
        let caller = caller(listing("127.0.0.0/8"));
        // Whoever looked it up again would go elsewhere.
        let named = claim("localhost", here.port());
        let found = async || Ok(vec![SocketAddr::from(([10, 0, 0, 1], here.port())), here, elsewhere]);
        let reached = caller.call(&named, found()).await.expect("healthy");
        assert_eq!((reached.health, reached.chunks), (here, here));
        assert_eq!(visits.load(Ordering::SeqCst), 1);
        let answer = caller.call(&Claim { key: Some([7; 32]), ..named }, found()).await;
        assert!(matches!(answer, Err(Error::Identity { address, .. }) if address == here), "{answer:?}");
        assert_eq!(visits.load(Ordering::SeqCst), 3, "its health, and its key");
        assert_eq!(visits_elsewhere.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn when_a_failure_is_told_says_nothing_of_it() {
        const SOON: Duration = Duration::from_millis(200);
        let address = SocketAddr::from(([192, 0, 2, 1], 80));
        let silent = || Error::Silent { address, asked: "GET /health", reason: String::new() };
        let failures = [
            silent(),
            Error::Identity { address, reason: String::new() },
            Error::Unhealthy { address, answer: String::new() },
            Error::Refused(AddressRefused::Own(address)),
        ];
        for error in failures {
            let began = Instant::now();
            no_sooner(SOON, async { Err::<(), _>(error) }).await.expect_err("failed");
            assert!(began.elapsed() >= SOON, "at once");
        }
        let began = Instant::now();
        let later = async {
            tokio::time::sleep(SOON / 2).await;
            Err::<(), _>(silent())
        };
        no_sooner(SOON, later).await.expect_err("failed");
        assert!(began.elapsed() >= SOON, "after a while");
        // What was not dialled, and what went well, nobody waits for.
        let hour = Duration::from_secs(3600);
        let others = async {
            no_sooner(hour, async { Ok(()) }).await.expect("fine");
            let unresolvable = Error::Unresolvable { host: String::new() };
            no_sooner(hour, async { Err::<(), _>(unresolvable) }).await.expect_err("no such name");
            let refused = claim("127.0.0.1", 80);
            caller(closed()).call_back(&refused, hour).await.expect_err("refused");
        };
        tokio::time::timeout(CALL_TIMEOUT, others).await.expect("at once");
    }

    #[tokio::test]
    async fn only_ok_is_healthy() {
        let good = answering(GOOD).await;
        check_health(&loopback(), good).await.expect("healthy");
        for answer in [
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nOK",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
        ] {
            let address = answering(answer).await;
            assert!(
                matches!(check_health(&loopback(), address).await, Err(Error::Unhealthy { .. })),
                "{answer}"
            );
        }
        let noise = answering("SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(check_health(&loopback(), noise).await, Err(Error::Silent { .. })));
    }
}
