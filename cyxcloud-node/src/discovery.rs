//! Finds other nodes by libp2p (TCP, Noise, Yamux; Kademlia, identify, ping). Optional, and without any authority:
//! what it learns is logged and counted, and nobody stores or reads by it.
//!
//! Peers pass on addresses that strangers chose, so every dial is judged by the address policy; only the operator's own
//! bootstrap peers are exempt. Strangers' records are not kept.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cyxcloud_core::address::AddressPolicy;
use futures::StreamExt;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::kad::store::MemoryStore;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, StreamProtocol, Swarm, SwarmBuilder, Transport, identify, kad, noise, ping, tcp, yamux,
};
use tracing::{debug, info, warn};

use crate::identity::Identity;
use crate::metrics::Metrics;

const KAD: StreamProtocol = StreamProtocol::new("/cyxcloud/kad/1");
const IDENTIFY: &str = "/cyxcloud/id/1";
const LOOK_AROUND: Duration = Duration::from_secs(300);
const CONNECTIONS_MAX: u32 = 128;

/// Why discovery does not run. The node runs without it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error("bootstrap peer {0:?} is not a multiaddress that ends in /p2p/ and a peer id")]
    BadPeer(String),
    #[error("could not {doing}: {why}")]
    Libp2p { doing: &'static str, why: String },
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    limits: connection_limits::Behaviour,
}

/// Runs until it is dropped.
pub(crate) async fn run(
    identity: &Identity,
    listen: (IpAddr, u16),
    bootstrap: &[String],
    policy: AddressPolicy,
    metrics: Arc<Metrics>,
) -> Result<(), DiscoveryError> {
    let peers = bootstrap.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let own = peers.iter().filter_map(|(_, address)| socket(address)).collect();
    let mut swarm = build(identity, policy, own)?;
    let address = Multiaddr::from(listen.0).with(Protocol::Tcp(listen.1));
    swarm.listen_on(address).map_err(|error| failed("listen for peers", error))?;
    for (peer, address) in peers {
        swarm.behaviour_mut().kad.add_address(&peer, address);
    }
    let mut look = tokio::time::interval(LOOK_AROUND);
    loop {
        tokio::select! {
            _ = look.tick() => {
                // Without known peers there is nobody to ask, which is fine for the first node.
                let _ = swarm.behaviour_mut().kad.bootstrap();
            }
            event = swarm.select_next_some() => hear(&mut swarm, event, &metrics),
        }
    }
}

fn hear(swarm: &mut Swarm<Behaviour>, event: SwarmEvent<BehaviourEvent>, metrics: &Metrics) {
    match event {
        SwarmEvent::NewListenAddr { address, .. } => info!(%address, "discovery listens"),
        SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
            peer_id, info, ..
        })) => {
            debug!(peer = %peer_id, agent = info.agent_version, "peer identified itself");
            if info.protocols.contains(&KAD) {
                for address in
                    info.listen_addrs.into_iter().filter(|address| socket(address).is_some()).take(4)
                {
                    swarm.behaviour_mut().kad.add_address(&peer_id, address);
                }
            }
        }
        SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::RoutingUpdated {
            peer, is_new_peer, ..
        })) => {
            let known: usize = swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
            metrics.peers.set(i64::try_from(known).unwrap_or(i64::MAX));
            if is_new_peer {
                info!(%peer, known, "found a peer");
            }
        }
        SwarmEvent::OutgoingConnectionError { error, .. } => debug!(%error, "could not reach a peer"),
        SwarmEvent::ListenerError { error, .. } => warn!(%error, "discovery listener failed"),
        _ => {}
    }
}

fn build(
    identity: &Identity,
    policy: AddressPolicy,
    own: HashSet<SocketAddr>,
) -> Result<Swarm<Behaviour>, DiscoveryError> {
    let swarm = SwarmBuilder::with_existing_identity(identity.keypair())
        .with_tokio()
        .with_other_transport(|key| {
            let tcp = tcp::tokio::Transport::new(tcp::Config::default());
            let noise = noise::Config::new(key)?;
            Ok(Judged { inner: tcp, policy, own }
                .upgrade(Version::V1)
                .authenticate(noise)
                .multiplex(yamux::Config::default())
                .boxed())
        })
        .map_err(|error| failed("set up the transport", error))?
        .with_behaviour(behaviour)
        .map_err(|error| failed("set up discovery", error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    Ok(swarm)
}

fn behaviour(key: &libp2p::identity::Keypair) -> Behaviour {
    let peer = key.public().to_peer_id();
    let mut config = kad::Config::new(KAD);
    config.set_record_filtering(kad::StoreInserts::FilterBoth);
    // `run` does that, and knows that the first node of all has nobody to ask.
    config.set_periodic_bootstrap_interval(None);
    let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), config);
    kad.set_mode(Some(kad::Mode::Server));
    let agent = format!("cyxcloud-node/{}", env!("CARGO_PKG_VERSION"));
    let identify = identify::Config::new(IDENTIFY.to_owned(), key.public()).with_agent_version(agent);
    let limits = ConnectionLimits::default()
        .with_max_established(Some(CONNECTIONS_MAX))
        .with_max_pending_incoming(Some(CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(2));
    Behaviour {
        kad,
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
        limits: connection_limits::Behaviour::new(limits),
    }
}

fn failed(doing: &'static str, error: impl std::fmt::Display) -> DiscoveryError {
    DiscoveryError::Libp2p { doing, why: error.to_string() }
}

fn parse(text: &str) -> Result<(libp2p::PeerId, Multiaddr), DiscoveryError> {
    let wrong = || DiscoveryError::BadPeer(text.to_owned());
    let mut address: Multiaddr = text.trim().parse().map_err(|_| wrong())?;
    match address.pop() {
        Some(Protocol::P2p(peer)) => Ok((peer, address)),
        _ => Err(wrong()),
    }
}

/// The address that a dial would connect to. Names have none: there is no resolver here.
fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::from(ip),
        Protocol::Ip6(ip) => IpAddr::from(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

/// A transport that dials only what the policy allows.
struct Judged<T> {
    inner: T,
    policy: AddressPolicy,
    own: HashSet<SocketAddr>,
}

impl<T: Transport + Unpin> Transport for Judged<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        match socket(&addr) {
            Some(to) if self.own.contains(&to) || self.policy.check(to).is_ok() => {
                self.inner.dial(addr, opts)
            }
            _ => {
                debug!(%addr, "not dialled: the address policy refuses it");
                Err(TransportError::MultiaddrNotSupported(addr))
            }
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_peers_name_their_peer() {
        let peer = Identity::from_seed([1; 32]).peer_id().to_owned();
        let (parsed, address) = parse(&format!("/ip4/192.0.2.1/tcp/4001/p2p/{peer}")).expect("complete");
        assert_eq!(parsed.to_string(), peer);
        assert_eq!(socket(&address), "192.0.2.1:4001".parse().ok());
        assert!(parse("/ip4/192.0.2.1/tcp/4001").is_err());
        assert!(parse("node-1:4001").is_err());
    }

    #[tokio::test]
    async fn two_nodes_find_each_other() {
        let policy = || AddressPolicy { loopback: true, ..AddressPolicy::default() };
        let mut first = build(&Identity::from_seed([1; 32]), policy(), HashSet::new()).expect("built");
        first.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("address")).expect("listens");
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = first.select_next_some().await {
                break address;
            }
        };
        let (known, second) = (Metrics::new(), Metrics::new());
        let metrics = known.clone();
        let first = tokio::spawn(async move {
            loop {
                let event = first.select_next_some().await;
                hear(&mut first, event, &metrics);
            }
        });
        let bootstrap = vec![format!("{address}/p2p/{}", Identity::from_seed([1; 32]).peer_id())];
        let identity = Identity::from_seed([2; 32]);
        let metrics = second.clone();
        let second_task = tokio::spawn(async move {
            run(&identity, (IpAddr::from([127, 0, 0, 1]), 0), &bootstrap, policy(), metrics).await
        });
        let met = async {
            while known.peers.get() == 0 || second.peers.get() == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), met).await.expect("they meet");
        first.abort();
        second_task.abort();
    }

    #[tokio::test]
    async fn an_address_that_the_policy_refuses_is_not_dialled() {
        let mut swarm =
            build(&Identity::from_seed([1; 32]), AddressPolicy::default(), HashSet::new()).expect("built");
        let peer = libp2p::PeerId::random();
        let address: Multiaddr = format!("/ip4/169.254.169.254/tcp/80/p2p/{peer}").parse().expect("address");
        swarm.dial(address).expect("queued");
        loop {
            if let SwarmEvent::OutgoingConnectionError { error, .. } = swarm.select_next_some().await {
                let text = format!("{error:?}");
                assert!(text.contains("MultiaddrNotSupported"), "{text}");
                return;
            }
        }
    }
}
