//! Addresses that a node names and networks that an operator names: what is let through is public or listed, in every spelling.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cyxcloud_core::address::{AddressPolicy, OwnAddresses, subnet_of};
use ipnet::IpNet;

use super::input::{Draft, Input};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (loopback, port) = (input.u8() % 2 == 1, input.u16());
    let networks: Vec<IpNet> = input.text(200).split(',').filter_map(|net| net.trim().parse().ok()).collect();
    let ip = match input.u8() % 3 {
        0 => IpAddr::V4(Ipv4Addr::from(input.array::<4>())),
        1 => IpAddr::V6(Ipv6Addr::from(input.array::<16>())),
        // As in a registration, where a name would be looked up.
        _ => match std::str::from_utf8(input.rest()).map(str::parse) {
            Ok(Ok(ip)) => ip,
            _ => return,
        },
    };
    let policy = AddressPolicy { networks, loopback, forbidden: OwnAddresses::default() };
    let addr = SocketAddr::new(ip, port);
    let allowed = policy.check(addr).is_ok();
    assert!(!allowed || port != 0);
    if allowed {
        plausible(ip.to_canonical(), &policy);
        let forbidden = vec![SocketAddr::new(ip.to_canonical(), port)].into();
        let own = AddressPolicy { forbidden, ..policy.clone() };
        assert!(own.check(addr).is_err(), "one of our own endpoints");
    }
    if let IpAddr::V4(v4) = ip {
        let mapped = SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), port);
        assert_eq!(policy.check(mapped).is_ok(), allowed, "{mapped} is {addr}");
        // What a translator leads to is never better than public.
        let [a, b, c, d] = v4.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        let public = AddressPolicy::default().check(addr).is_ok();
        for through in [
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        ] {
            let through = SocketAddr::new(IpAddr::V6(through), port);
            assert_eq!(policy.check(through).is_ok(), public, "{through} leads to {addr}");
        }
    }
    let subnet: IpNet = subnet_of(ip).parse().expect("a network");
    assert!(subnet.contains(&ip.to_canonical()));
    assert_eq!(subnet_of(subnet.addr()), subnet.to_string());
}

/// Written from the standard library's own notions, which know less than the policy does.
fn plausible(ip: IpAddr, policy: &AddressPolicy) {
    let listed = policy.networks.iter().any(|network| network.contains(&ip));
    let (private, never) = match ip {
        IpAddr::V4(ip) => (
            ip.is_private(),
            ip.is_unspecified()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_documentation(),
        ),
        IpAddr::V6(ip) => {
            (ip.is_unique_local(), ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast())
        }
    };
    assert!(!never, "{ip}");
    assert!(!private || listed, "{ip} is private and not listed");
    assert!(!ip.is_loopback() || policy.loopback || listed, "{ip} is loopback");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = |loopback: u8, networks: &str, ip: &str| {
        Draft::default().u8(loopback).u8(0x1f).u8(0x90).some(networks).u8(2).rest(ip)
    };
    vec![
        text(0, "", "1.1.1.1"),
        text(0, "10.0.0.0/8, fd00::/8", "10.1.2.3"),
        text(0, "10.0.0.0/8", "::ffff:10.1.2.3"),
        text(1, "0.0.0.0/0,::/0", "127.0.0.1"),
        text(0, "127.0.0.0/8", "::1"),
        text(1, "0.0.0.0/0,::/0", "64:ff9b::a9fe:a9fe"),
        text(0, "fd00::/8", "fd12::1"),
        Draft::default().u8(0).u8(1).u8(1).some("100.64.0.0/10").u8(0).rest([100, 64, 1, 1]),
    ]
}
