//! Which addresses we connect to on a stranger's word.
//!
//! A node says where it is reached, so the address was chosen by somebody who may mean harm: resolve once, check here,
//! connect to exactly what was checked. Not here: resolving and connecting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use ipnet::IpNet;

/// Why an address is not connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefused {
    /// Nothing listens there.
    #[error("{0}: port 0 cannot be connected to")]
    NoPort(SocketAddr),
    /// Ours.
    #[error("{0}: this is one of the server's own endpoints")]
    Own(SocketAddr),
    /// The machine we run on.
    #[error(
        "{0}: loopback addresses are this machine's; to try several servers on one, list their network with --node-networks"
    )]
    Loopback(SocketAddr),
    /// May be right, but the operator has to say so.
    #[error(
        "{0}: private addresses must be allowed first; start the gateway with --node-networks and the network's CIDR"
    )]
    Private(SocketAddr),
    /// Link-local, cloud metadata, multicast, documentation and the like.
    #[error("{0}: {1} addresses are never connected to")]
    Never(SocketAddr, &'static str),
}

/// What may be connected to.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    /// Private networks in which nodes live (`--node-networks`). Loopback is one of them where it is listed by itself, and
    /// not where a network contains it with all the rest.
    pub networks: Vec<IpNet>,
    /// Whether all loopback is fine, listed or not: standalone servers and tests.
    pub loopback: bool,
    /// Our own database and cache endpoints.
    pub forbidden: OwnAddresses,
}

/// Where our own servers are, or were. A clone is the same list, so that whoever looks them up again tells all who dial.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses(Arc<RwLock<Vec<SocketAddr>>>);

impl OwnAddresses {
    /// Adds what is not known yet. Nothing is taken away: a server that is found elsewhere may still be where it was.
    pub fn add(&self, found: &[SocketAddr]) {
        let found = found.iter().map(|own| SocketAddr::new(own.ip().to_canonical(), own.port()));
        for own in found {
            if !self.hold(own) {
                self.0.write().unwrap_or_else(PoisonError::into_inner).push(own);
            }
        }
    }

    /// Whether this, with a canonical address, is one of them.
    fn hold(&self, addr: SocketAddr) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&addr)
    }
}

impl From<Vec<SocketAddr>> for OwnAddresses {
    fn from(found: Vec<SocketAddr>) -> Self {
        let own = Self::default();
        own.add(&found);
        own
    }
}

impl AddressPolicy {
    /// Says whether this address may be connected to.
    pub fn check(&self, addr: SocketAddr) -> Result<(), AddressRefused> {
        let ip = addr.ip().to_canonical();
        if addr.port() == 0 {
            return Err(AddressRefused::NoPort(addr));
        }
        let listed = self.networks.iter().any(|network| network.contains(&ip));
        let listed_by_itself =
            self.networks.iter().any(|net| net.network().is_loopback() && net.contains(&ip));
        match class_of(ip) {
            Class::Public => {}
            Class::Loopback if self.loopback || listed_by_itself => {}
            Class::Loopback => return Err(AddressRefused::Loopback(addr)),
            Class::Private if listed => {}
            Class::Private => return Err(AddressRefused::Private(addr)),
            Class::Never(kind) => return Err(AddressRefused::Never(addr, kind)),
        }
        // Last: who asks for a network of ours at random is not told which of its addresses is a server.
        match self.forbidden.hold(SocketAddr::new(ip, addr.port())) {
            true => Err(AddressRefused::Own(addr)),
            false => Ok(()),
        }
    }
}

/// The network that counts as one failure domain: `/24`, or `/64` for IPv6.
pub fn subnet_of(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(ip) => {
            let network = Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64));
            format!("{network}/64")
        }
    }
}

/// Whether the way there leads over networks that anybody may listen on.
pub fn is_public(ip: IpAddr) -> bool {
    matches!(class_of(ip.to_canonical()), Class::Public)
}

/// Whether it is this machine's or of a private network, listed or not: nobody comes from there over the public one.
pub fn is_private(ip: IpAddr) -> bool {
    matches!(class_of(ip.to_canonical()), Class::Private | Class::Loopback)
}

enum Class {
    Public,
    Private,
    Loopback,
    Never(&'static str),
}

fn class_of(ip: IpAddr) -> Class {
    match ip {
        IpAddr::V4(ip) => class_of_v4(ip),
        IpAddr::V6(ip) => class_of_v6(ip),
    }
}

/// After the IANA registry of special-purpose addresses (RFC 6890 and its successors), and the metadata services of clouds.
fn class_of_v4(ip: Ipv4Addr) -> Class {
    match ip.octets() {
        [100, 100, 100, 200] | [168, 63, 129, 16] => Class::Never("cloud metadata"),
        [127, ..] => Class::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Class::Private,
        [0, ..] => Class::Never("unspecified"),
        [169, 254, ..] => Class::Never("link-local"),
        [192, 0, 0, _] => Class::Never("protocol assignment"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Never("documentation"),
        [192, 88, 99, _] => Class::Never("6to4 relay"),
        [198, 18..=19, ..] => Class::Never("benchmarking"),
        [224..=239, ..] => Class::Never("multicast"),
        [240..=255, ..] => Class::Never("reserved"),
        _ => Class::Public,
    }
}

/// The same for IPv6. Addresses that carry an IPv4 one lead there, so they are as good as it is, and never better
/// than public: who lists a private network does not mean a translator's way into it.
fn class_of_v6(ip: Ipv6Addr) -> Class {
    const METADATA: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
        Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
    ];
    if let Some(ip) = ip.to_ipv4_mapped() {
        return class_of_v4(ip);
    }
    if METADATA.contains(&ip) {
        return Class::Never("cloud metadata");
    }
    let s = ip.segments();
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Never("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low, "translated (NAT64) non-public"),
        [0x2002, high, low, ..] => embedded(high, low, "6to4 non-public"),
        [0x2001, 0x0000, ..] => Class::Never("Teredo"),
        [0x2001, 0x0db8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => Class::Never("documentation"),
        // 2001::/23 is for protocols; nothing in it is a host of ours.
        [0x2001, 0x0001..=0x01ff, ..] => Class::Never("protocol assignment"),
        [0xfc00..=0xfdff, ..] => Class::Private,
        [0xfe80..=0xfebf, ..] => Class::Never("link-local"),
        [0xfec0..=0xfeff, ..] => Class::Never("site-local"),
        [0xff00..=0xffff, ..] => Class::Never("multicast"),
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Never("reserved"),
    }
}

fn embedded(high: u16, low: u16, otherwise: &'static str) -> Class {
    match class_of_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))) {
        Class::Public => Class::Public,
        Class::Private | Class::Loopback | Class::Never(_) => Class::Never(otherwise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &AddressPolicy, addr: &str) -> Result<(), AddressRefused> {
        policy.check(addr.parse().expect("a socket address"))
    }

    fn strict() -> AddressPolicy {
        AddressPolicy::default()
    }

    fn listing_everything() -> AddressPolicy {
        let networks = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("a network")).to_vec();
        AddressPolicy { networks, ..AddressPolicy::default() }
    }

    #[test]
    fn public_addresses_are_fine() {
        for addr in [
            "1.1.1.1:50051",
            "172.15.0.1:1",
            "172.32.0.1:1",
            "100.128.0.1:1",
            "192.167.1.1:1",
            "[2606:4700::1]:50051",
            "[::ffff:1.1.1.1]:1",
            "[64:ff9b::1.1.1.1]:1",
        ] {
            assert_eq!(check(&strict(), addr), Ok(()), "{addr}");
        }
    }

    #[test]
    fn addresses_are_public_or_private_or_neither() {
        let public = |ip: &str| is_public(ip.parse().expect("an address"));
        assert!(public("1.1.1.1") && public("2606:4700::1"));
        let private = |ip: &str| is_private(ip.parse().expect("an address"));
        for ip in ["10.0.0.1", "192.168.1.1", "127.0.0.1", "::1", "fd12::1", "::ffff:10.0.0.1"] {
            assert!(private(ip) && !public(ip), "{ip}");
        }
        for ip in ["169.254.1.1", "fe80::1", "64:ff9b::10.0.0.1", "0.0.0.0"] {
            assert!(!private(ip) && !public(ip), "{ip}");
        }
        assert!(!private("1.1.1.1") && !private("2606:4700::1"));
    }

    #[test]
    fn private_addresses_must_be_listed() {
        let policy = AddressPolicy { networks: vec!["10.1.0.0/16".parse().expect("a network")], ..strict() };
        for addr in ["10.1.2.3:50051", "[::ffff:10.1.2.3]:1"] {
            assert!(matches!(check(&strict(), addr), Err(AddressRefused::Private(_))), "{addr}");
            assert_eq!(check(&policy, addr), Ok(()), "{addr}");
        }
        for addr in ["10.2.0.1:1", "172.16.0.1:1", "192.168.1.1:1", "100.64.0.1:1", "[fd12::1]:1"] {
            assert!(matches!(check(&policy, addr), Err(AddressRefused::Private(_))), "{addr}");
            assert_eq!(check(&listing_everything(), addr), Ok(()), "{addr}");
        }
    }

    #[test]
    fn some_addresses_are_never_fine() {
        for addr in [
            "169.254.169.254:80",
            "169.254.1.1:1",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "0.0.0.0:1",
            "0.1.2.3:1",
            "224.0.0.1:1",
            "239.255.255.255:1",
            "240.0.0.1:1",
            "255.255.255.255:1",
            "192.0.2.1:1",
            "198.51.100.7:1",
            "203.0.113.9:1",
            "192.0.0.192:1",
            "198.18.0.1:1",
            "192.88.99.1:1",
            "[::]:1",
            "[fe80::1]:1",
            "[febf::1]:1",
            "[fec0::1]:1",
            "[ff02::1]:1",
            "[fd00:ec2::254]:80",
            "[fd20:ce::254]:80",
            "[2001:db8::1]:1",
            "[3fff::1]:1",
            "[64:ff9b::10.0.0.1]:1",
            "[64:ff9b::169.254.169.254]:1",
            "[64:ff9b::127.0.0.1]:1",
            "[64:ff9b:1::1]:1",
            "[2002:0a00:0001::1]:1",
            "[2002:7f00:0001::1]:1",
            "[2001:0:1::1]:1",
            "[::ffff:169.254.169.254]:80",
            "[::ffff:0.0.0.0]:1",
            "[::127.0.0.1]:1",
            "[100::1]:1",
            "[4000::1]:1",
            "[2001:20::1]:1",
        ] {
            for mut policy in [strict(), listing_everything()] {
                policy.loopback = true;
                assert!(matches!(check(&policy, addr), Err(AddressRefused::Never(..))), "{addr}");
            }
        }
    }

    #[test]
    fn loopback_is_for_standalone_and_where_it_is_listed() {
        let standalone = AddressPolicy { loopback: true, ..strict() };
        let listing =
            |network: &str| AddressPolicy { networks: vec![network.parse().expect("a network")], ..strict() };
        for (network, inside, outside) in [
            ("127.0.0.0/8", "127.9.9.9:1", "[::1]:1"),
            ("127.0.0.0/8", "[::ffff:127.0.0.1]:1", "[::ffff:10.0.0.1]:1"),
            ("127.0.0.1/32", "127.0.0.1:1", "127.0.0.2:1"),
            ("::1/128", "[::1]:1", "127.0.0.1:1"),
        ] {
            assert_eq!(check(&listing(network), inside), Ok(()), "{network}");
            check(&listing(network), outside).expect_err(network);
        }
        for addr in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            for policy in [strict(), listing_everything(), listing("127.0.0.0/0"), listing("10.0.0.0/8")] {
                assert!(matches!(check(&policy, addr), Err(AddressRefused::Loopback(_))), "{addr}");
            }
            assert_eq!(check(&standalone, addr), Ok(()), "{addr}");
        }
    }

    #[test]
    fn our_own_endpoints_are_never_fine() {
        let own: Vec<SocketAddr> =
            ["127.0.0.1:5432", "10.0.0.5:6379"].map(|addr| addr.parse().expect("a socket address")).to_vec();
        let policy = AddressPolicy { loopback: true, forbidden: own.into(), ..listing_everything() };
        for addr in ["127.0.0.1:5432", "[::ffff:127.0.0.1]:5432", "10.0.0.5:6379"] {
            assert!(matches!(check(&policy, addr), Err(AddressRefused::Own(_))), "{addr}");
        }
        assert_eq!(check(&policy, "127.0.0.1:50051"), Ok(()));
        let unlisted = AddressPolicy { networks: Vec::new(), loopback: false, ..policy.clone() };
        assert!(matches!(check(&unlisted, "10.0.0.5:6379"), Err(AddressRefused::Private(_))), "as any other");
        assert!(matches!(check(&policy, "1.1.1.1:0"), Err(AddressRefused::NoPort(_))));
        // What is found later counts for everybody who has a copy.
        let copy = policy.clone();
        assert_eq!(check(&copy, "10.0.0.6:6379"), Ok(()));
        policy.forbidden.add(&["[::ffff:10.0.0.6]:6379".parse().expect("a socket address")]);
        for addr in ["10.0.0.5:6379", "10.0.0.6:6379"] {
            assert!(matches!(check(&copy, addr), Err(AddressRefused::Own(_))), "{addr}");
        }
    }

    #[test]
    fn subnets_are_24_and_64_bits() {
        let subnet = |ip: &str| subnet_of(ip.parse().expect("an address"));
        assert_eq!(subnet("10.1.2.3"), "10.1.2.0/24");
        assert_eq!(subnet("::ffff:10.1.2.3"), "10.1.2.0/24");
        assert_eq!(subnet("2606:4700:1:2:3:4:5:6"), "2606:4700:1:2::/64");
    }
}
