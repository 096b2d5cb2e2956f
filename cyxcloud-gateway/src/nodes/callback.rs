//! Calls a node back at the address it claims, before anything is stored there.
//!
//! The address was chosen by a stranger: it is resolved once, judged, and the judged address is the one that is dialled.
//! No redirects are followed, little is read, and it does not take long; neither what is said of it nor when tells a
//! stranger what is there.

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
/// When a stranger is told that a node did not answer as it should, counted from the first call: no sooner than both of
/// them take at most. What refuses a connection and what lets it wait would differ by seconds otherwise.
pub const TOLD_AFTER: Duration = Duration::from_secs(2 * CALL_TIMEOUT.as_secs());
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
    /// Whether something was dialled, of which the time that it took tells.
    fn was_dialled(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Identity { .. } | Self::Unhealthy { .. } => true,
            Self::Unresolvable { .. } | Self::Refused(_) => false,
        }
    }
}

/// Calls, and tells no sooner that nothing came of it, if anything was dialled at all.
pub async fn no_sooner<T>(
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

/// Finds an address of `host` that may be dialled. `port` only takes part in the judgement.
pub async fn resolve(policy: &AddressPolicy, host: &str, port: u16) -> Result<IpAddr, Error> {
    let unresolvable = || Error::Unresolvable { host: host.chars().take(255).collect() };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => {
            let lookup = tokio::time::timeout(CALL_TIMEOUT, tokio::net::lookup_host((bare, port))).await;
            lookup.map_err(|_| unresolvable())?.map_err(|_| unresolvable())?.collect()
        }
    };
    let mut refusal = None;
    for address in found {
        match policy.check(address) {
            Ok(()) => return Ok(address.ip()),
            Err(refused) => refusal = Some(refused),
        }
    }
    Err(refusal.map_or_else(unresolvable, Error::Refused))
}

/// Asks `GET /health` at an address that was judged.
pub async fn check_health(policy: &AddressPolicy, address: SocketAddr) -> Result<(), Error> {
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
    /// Shakes hands with a chunk service that speaks TLS: it must hold the key that is being registered.
    pub async fn check_identity(&self, address: SocketAddr, public_key: [u8; 32]) -> Result<(), Error> {
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
    use super::*;

    fn loopback() -> AddressPolicy {
        AddressPolicy {
            networks: vec!["127.0.0.0/8".parse().expect("valid")],
            loopback: true,
            forbidden: Vec::new(),
        }
    }

    fn closed() -> AddressPolicy {
        AddressPolicy { networks: Vec::new(), loopback: false, forbidden: Vec::new() }
    }

    async fn answering(answer: &'static str) -> SocketAddr {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn addresses_of_strangers_are_judged_before_they_are_dialled() {
        for host in
            ["127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1", "localhost", "0.0.0.0"]
        {
            assert!(matches!(resolve(&closed(), host, 80).await, Err(Error::Refused(_))), "{host}");
        }
        assert!(resolve(&loopback(), "localhost", 80).await.is_ok());
        assert!(matches!(
            resolve(&loopback(), "no.such.host.invalid", 80).await,
            Err(Error::Unresolvable { .. })
        ));
        let address = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK").await;
        assert!(matches!(check_health(&closed(), address).await, Err(Error::Refused(_))));
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
            let refused = resolve(&closed(), "127.0.0.1", 80).await.expect_err("refused");
            no_sooner(hour, async { Err::<(), _>(refused) }).await.expect_err("refused");
        };
        tokio::time::timeout(CALL_TIMEOUT, others).await.expect("at once");
    }

    #[tokio::test]
    async fn only_ok_is_healthy() {
        let good = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK").await;
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
