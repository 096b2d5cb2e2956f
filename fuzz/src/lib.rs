//! Fuzz targets for every decoder that sees a stranger's bytes.
//!
//! A target is a function of bytes that panics where a property does not hold; each file says which. Beside it are inputs to
//! begin with, written down in `corpus/`. The programs in `fuzz_targets/` hand these functions to libFuzzer; the gateway's test
//! `corpora` includes this file and runs them over the corpora in every ordinary build.
//!
//! Not here: what a node reads from its own disk (RocksDB is not instrumented), Solana's and PostgreSQL's protocols, and what others
//! read before anything of ours does. Records and handshakes of TLS are rustls's and webpki's, which have targets of their own, as
//! tungstenite has for WebSockets' frames; `peers` and `sockets` begin with what they hand on. Messages between peers are libp2p's:
//! nothing is made of them but addresses to dial, and those are judged, which `addresses` holds; mDNS is not built in.

#![allow(unreachable_pub, dead_code, reason = "also a module of a test")]

mod addresses;
mod chunked;
mod cli;
mod door;
mod downloads;
mod gateway;
mod http;
mod identity;
mod input;
mod names;
mod node;
mod numbers;
mod peers;
mod proof;
mod runtime;
mod s3;
mod sealed;
mod signed;
mod sockets;
mod tokens;
mod wire;

/// Clients and gateways of the gateway's own tests.
#[path = "../../cyxcloud-gateway/tests/auth_support/mod.rs"]
mod auth_support;
#[path = "../../cyxcloud-gateway/tests/objects_support/mod.rs"]
mod objects_support;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As `script/fuzz` and `corpus/` call it.
    pub name: &'static str,
    /// Panics where a property does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "addresses", run: addresses::run, seeds: addresses::seeds },
    Target { name: "chunked", run: chunked::run, seeds: chunked::seeds },
    Target { name: "door", run: door::run, seeds: door::seeds },
    Target { name: "downloads", run: downloads::run, seeds: downloads::seeds },
    Target { name: "http", run: http::run, seeds: http::seeds },
    Target { name: "identity", run: identity::run, seeds: identity::seeds },
    Target { name: "names", run: names::run, seeds: names::seeds },
    Target { name: "numbers", run: numbers::run, seeds: numbers::seeds },
    Target { name: "peers", run: peers::run, seeds: peers::seeds },
    Target { name: "proof", run: proof::run, seeds: proof::seeds },
    Target { name: "s3", run: s3::run, seeds: s3::seeds },
    Target { name: "sealed", run: sealed::run, seeds: sealed::seeds },
    Target { name: "signed", run: signed::run, seeds: signed::seeds },
    Target { name: "sockets", run: sockets::run, seeds: sockets::seeds },
    Target { name: "tokens", run: tokens::run, seeds: tokens::seeds },
    Target { name: "wire", run: wire::run, seeds: wire::seeds },
];

/// Runs one input of a target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("there is no target {name}")).run)(data);
}
