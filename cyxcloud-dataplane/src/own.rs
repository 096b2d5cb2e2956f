//! Our own servers, which no node may claim to be: looked up by their names, at the start and again and again, since a name may
//! come to lead elsewhere, or nowhere just then.
//! Not here: who they are (whoever connects to them reads that), that they are not dialled (`cyxcloud_core::address`).

use std::net::SocketAddr;
use std::time::Duration;

use cyxcloud_core::address::OwnAddresses;
use tracing::warn;

/// Pause between two looks.
const EVERY: Duration = Duration::from_secs(60);
/// A name that takes longer is not found.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnServer {
    /// The variable that names it. What is in that may hold a password, and is not told.
    pub variable: &'static str,
    /// Its name, or its address.
    pub host: String,
    /// Where it listens.
    pub port: u16,
}

/// All of them, and where they were found.
#[derive(Debug)]
pub struct OwnServers {
    servers: Vec<OwnServer>,
    addresses: OwnAddresses,
}

impl OwnServers {
    /// Looks them up once.
    pub async fn find(servers: Vec<OwnServer>) -> Self {
        let own = Self { servers, addresses: OwnAddresses::default() };
        own.look().await;
        own
    }

    /// What is known of them, now and later.
    pub fn addresses(&self) -> OwnAddresses {
        self.addresses.clone()
    }

    /// Looks them up again and again, until it is dropped.
    pub async fn keep_looking(self) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.look().await;
        }
    }

    async fn look(&self) {
        for OwnServer { variable, host, port } in &self.servers {
            let lookup = tokio::net::lookup_host((host.trim_matches(['[', ']']), *port));
            let found: Vec<SocketAddr> = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
                Ok(Ok(found)) => found.collect(),
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            if found.is_empty() {
                warn!(
                    variable,
                    host, "a server of ours is not found by its name: a node might say that it is there"
                );
            }
            self.addresses.add(&found);
        }
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::address::{AddressPolicy, AddressRefused};

    use super::*;

    #[tokio::test]
    async fn what_is_ours_is_no_node_s() {
        let at = |host: &str, port| OwnServer { variable: "DATABASE_URL", host: host.to_owned(), port };
        let servers = vec![at("no.such.host.invalid", 1), at("10.0.0.5", 5432), at("[::1]", 6379)];
        let own = OwnServers::find(servers).await;
        let networks = ["10.0.0.0/8", "::1/128"].map(|network| network.parse().expect("a network")).to_vec();
        let policy = AddressPolicy { networks, loopback: false, forbidden: own.addresses() };
        let check = |addr: &str| policy.check(addr.parse().expect("an address"));
        for addr in ["10.0.0.5:5432", "[::1]:6379"] {
            assert!(matches!(check(addr), Err(AddressRefused::Own(_))), "{addr}");
        }
        for addr in ["10.0.0.5:50051", "10.0.0.6:5432", "[::1]:50051"] {
            assert_eq!(check(addr), Ok(()), "{addr}");
        }
    }
}
