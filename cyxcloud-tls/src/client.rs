//! Whose request it is, as far as limits are concerned: the peer's address, or what a trusted proxy says of it.
//!
//! Pure. `X-Forwarded-For` is what a stranger wrote unless every hop after the entry is a proxy of ours.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

/// The client's address, as a request with these headers from this peer says. In canonical form.
pub fn of_request(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let forwarded = headers.get_all("x-forwarded-for").iter();
    // Bytes that are no text may stand beside what our proxy wrote.
    let lines: Vec<_> = forwarded.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    client(peer, lines.iter().map(|line| &**line), trusted)
}

/// Whether an address is in one of these networks. An IPv4 address written as IPv6 is what it is.
pub fn is_in(address: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|net| net.contains(&address.to_canonical()))
}

/// The client's address: the last one in the chain that is none of our proxies.
fn client<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer.to_canonical();
    for entry in forwarded.rev().flat_map(|line| line.rsplit(',')) {
        if !is_in(client, trusted) {
            break;
        }
        // What cannot be read ends the chain: whoever is before it, our own proxy reported it.
        let Ok(before) = entry.trim().parse::<IpAddr>() else { break };
        client = before.to_canonical();
    }
    client
}

/// The address as limits count it: a household's whole IPv6 network is one.
pub fn address_group(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().expect("a network")).collect();
        client(peer.parse().expect("an address"), forwarded.iter().copied(), &trusted).to_string()
    }

    #[test]
    fn adv_19_only_proxies_of_ours_are_believed() {
        assert_eq!(of("203.0.113.5", &["1.2.3.4"], &[]), "203.0.113.5");
        assert_eq!(of("203.0.113.5", &["1.2.3.4"], &["10.0.0.0/8"]), "203.0.113.5");
        assert_eq!(of("10.0.0.1", &["1.2.3.4"], &["10.0.0.0/8"]), "1.2.3.4");
        // The client wrote the first one itself.
        assert_eq!(of("10.0.0.1", &["9.9.9.9, 1.2.3.4"], &["10.0.0.0/8"]), "1.2.3.4");
        assert_eq!(of("10.0.0.1", &["9.9.9.9", "1.2.3.4 , 10.0.0.2"], &["10.0.0.0/8"]), "1.2.3.4");
        assert_eq!(of("10.0.0.1", &["1.2.3.4, junk"], &["10.0.0.0/8"]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["9.9.9.9, 1.2.3.4, 10.2.3.4"], &["10.0.0.0/8"]), "1.2.3.4");
        assert_eq!(of("10.0.0.1", &["9.9.9.9, junk, 10.2.3.4"], &["10.0.0.0/8"]), "10.2.3.4");
        assert_eq!(of("10.0.0.1", &[], &["10.0.0.0/8"]), "10.0.0.1");
        assert_eq!(of("::ffff:10.0.0.1", &["::ffff:1.2.3.4"], &["10.0.0.0/8"]), "1.2.3.4");
    }

    #[test]
    fn what_is_no_text_ends_the_chain_and_hides_nothing_behind_it() {
        let trusted: [IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
        let of = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                let line = http::HeaderValue::from_bytes(line.as_bytes());
                headers.append("x-forwarded-for", line.expect("a header"));
            }
            of_request(&headers, IpAddr::from([10, 0, 0, 1]), &trusted).to_string()
        };
        assert_eq!(of(&["1.2.3.4", "\u{fc}, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(of(&["1.2.3.4", "\u{fc}", "10.0.0.2"]), "10.0.0.2");
    }

    #[test]
    fn an_ipv6_network_counts_once() {
        let counted = |text: &str| address_group(text.parse().expect("an address"));
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), counted("2001:db8:1:2:ffff::1"));
        assert_ne!(counted("2001:db8:1:2::1"), counted("2001:db8:1:3::1"));
        assert_eq!(counted("192.0.2.7"), "192.0.2.7");
        assert_eq!(counted("::ffff:192.0.2.7"), "192.0.2.7");
    }
}
