//! Connections for tonic's server: plain ones as they come, secure ones when their handshake is done.
//!
//! A slow handshake holds up nobody: each runs in a task of its own and joins the others when it is ready. Who then says nothing,
//! or not enough to be somebody who speaks HTTP/2, is cut off; from then on pings find out who is gone. Who has as many connections
//! as an address may have gets no more.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{Endpoint, Uri};

use crate::accept::{Acceptor, NetStream};
use crate::crowd::{Crowd, Place};
use crate::identity::PeerKey;

/// Connections whose handshake is done and which wait to be taken.
const READY_MAX: usize = 64;

/// A client has this long to say what every client of HTTP/2 says first.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of that: the preface, and the head of the frame with its settings.
const GREETING_BYTES: usize = 24 + 9;

/// Who is at the other end of a connection. Found in the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where the connection comes from.
    pub address: Option<SocketAddr>,
    /// The identity that was shown in the handshake, and proven by it.
    pub key: Option<PeerKey>,
}

/// Who may connect.
#[derive(Clone, Debug)]
pub struct Guests {
    /// Who is connected.
    pub crowd: Crowd,
    /// Connections that were closed at once because their address had as many as it may have.
    pub refused: IntCounter,
}

impl Guests {
    /// A place for this connection, if there is one. Who is gone already needs none.
    fn seat(&self, stream: &TcpStream) -> Option<Place> {
        let place = self.crowd.enter(stream.peer_addr().ok()?.ip());
        if place.is_none() {
            self.refused.inc();
        }
        place
    }
}

/// A connection that reads until its time is over, unless the greeting has come by then.
#[derive(Debug)]
pub struct Greeted {
    stream: NetStream,
    _place: Place,
    /// Bytes of the greeting that have not come, and until when they may.
    wanted: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Greeted {
    fn new(stream: NetStream, place: Place) -> Self {
        let wanted = Some((GREETING_BYTES, Box::pin(tokio::time::sleep(GREETING_TIMEOUT))));
        Self { stream, _place: place, wanted }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some((missing, until)) = &mut self.wanted {
            *missing = missing.saturating_sub(buffer.filled().len() - before);
            if *missing == 0 {
                self.wanted = None;
            } else if read.is_pending() && until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no greeting in time")));
            }
        }
        read
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Greeted {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        PeerInfo { address: self.stream.tcp().peer_addr().ok(), key: self.stream.peer_key() }
    }
}

/// An endpoint whose connector shakes hands by itself where the address says https. tonic is shown the plain address, so that it
/// does not do so once more, and requests name the real one.
pub fn endpoint(uri: Uri) -> Endpoint {
    let mut parts = uri.clone().into_parts();
    parts.scheme = "http".parse().ok();
    match Uri::from_parts(parts) {
        Ok(shown) => Endpoint::from(shown).origin(uri),
        Err(_) => Endpoint::from(uri),
    }
}

/// What tonic accepts from.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Greeted>> + Send>>;

/// Accepts until it is dropped; with TLS where there is a certificate.
pub fn incoming(listener: TcpIncoming, guests: Guests, acceptor: Option<Acceptor>) -> Incoming {
    let mut seated = Box::pin(listener.filter_map(move |accepted| {
        let seated = match accepted {
            Ok(stream) => guests.seat(&stream).map(|place| Ok((stream, place))),
            Err(error) => Some(Err(error)),
        };
        std::future::ready(seated)
    }));
    let Some(acceptor) = acceptor else {
        let plain = |(stream, place)| Greeted::new(NetStream::Plain(stream), place);
        return Box::pin(seated.map(move |accepted| accepted.map(plain)));
    };
    let (ready, taken) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = seated.next() => accepted,
                // Whoever served is gone; handshakes under way end with this task.
                () = ready.closed() => return,
                Some(_) = handshakes.join_next() => continue,
            };
            match accepted {
                Some(Ok((stream, place))) => {
                    let (acceptor, ready) = (acceptor.clone(), ready.clone());
                    handshakes.spawn(async move {
                        if let Ok(stream) = NetStream::open(Some(&acceptor), stream).await {
                            let _ = ready.send(Ok(Greeted::new(stream, place))).await;
                        }
                    });
                }
                // tonic knows which of these pass.
                Some(Err(error)) => {
                    let _ = ready.send(Err(error)).await;
                }
                None => return,
            }
        }
    });
    Box::pin(ReceiverStream::new(taken))
}
