//! A TCP proxy in this process that treats what passes badly, for partitions and bad lines without root.
//!
//! What is held back is not lost: as on a healed line, it arrives when the mode is [`Mode::Pass`] again, unless either side
//! gave up meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::error::{Doing, Result};

const BUFFER: usize = 64 << 10;
/// Buffers on their way through one direction.
const QUEUE: usize = 64;

/// What happens to bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Pass,
    /// They take this much longer, each way.
    Latency(Duration),
    /// They are held back, both ways.
    Blackhole,
    /// Requests arrive and replies are held back.
    NoReplies,
    /// Replies arrive and requests are held back.
    NoRequests,
    /// After this many bytes of a connection, counted over both ways, it is reset.
    ResetAfter(u64),
    /// One bit of every n-th byte of the replies is wrong.
    CorruptReplies(u64),
    /// Replies come at so many bytes per second.
    Drip(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Request,
    Reply,
}

impl Mode {
    fn holds(self, way: Way) -> bool {
        match self {
            Self::Blackhole => true,
            Self::NoReplies => way == Way::Reply,
            Self::NoRequests => way == Way::Request,
            Self::Pass | Self::Latency(_) | Self::ResetAfter(_) | Self::CorruptReplies(_) | Self::Drip(_) => {
                false
            }
        }
    }
}

/// Stands before one address until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect instead.
    pub port: u16,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of a port of this machine, letting everything pass.
    pub async fn before(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.doing("listen for a proxy")?;
        let own = listener.local_addr().doing("listen for a proxy")?.port();
        let (mode, seen) = watch::channel(Mode::Pass);
        let task = tokio::spawn(accept(listener, SocketAddr::from(([127, 0, 0, 1], port)), seen));
        Ok(Self { port: own, mode, task })
    }

    /// From now on, for connections there are as well.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, mode: watch::Receiver<Mode>) {
    // Connections end with the proxy.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(connection(client, target, mode.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut client: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>) {
    // A line that is cut lets no connection be made either.
    if mode.wait_for(|mode| !mode.holds(Way::Request)).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    for stream in [&client, &server] {
        // Without it the proxy would be slower, and nothing else.
        let _ = stream.set_nodelay(true);
    }
    let passed = AtomicU64::new(0);
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let requests = pump(from_client, to_server, Way::Request, mode.clone(), &passed);
        let replies = pump(from_server, to_client, Way::Reply, mode, &passed);
        tokio::try_join!(requests, replies)
    };
    if ended.is_err() {
        for stream in [&client, &server] {
            // A stream that is gone needs no reset.
            let _ = stream.set_zero_linger();
        }
    }
}

/// One direction of one connection; an error ends both with a reset.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    mut mode: watch::Receiver<Mode>,
    passed: &AtomicU64,
) -> io::Result<()> {
    let (queue, mut queued) = mpsc::channel::<(Instant, Bytes)>(QUEUE);
    let reading = {
        let mode = mode.clone();
        async move {
            loop {
                let mut buffer = BytesMut::with_capacity(BUFFER);
                if from.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
                let late = if let Mode::Latency(late) = *mode.borrow() { late } else { Duration::ZERO };
                if queue.send((Instant::now() + late, buffer.freeze())).await.is_err() {
                    return Ok(());
                }
            }
        }
    };
    let writing = async {
        while let Some((due, mut bytes)) = queued.recv().await {
            tokio::time::sleep_until(due.into()).await;
            while !bytes.is_empty() {
                let Ok(now) = mode.wait_for(|mode| !mode.holds(way)).await.map(|mode| *mode) else {
                    return to.shutdown().await;
                };
                bytes = forward(&mut to, bytes, way, now, passed).await?;
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(drop)
}

/// Sends these bytes, or of those that drip the first few; answers what is left of them, for which the mode may be another.
async fn forward(
    to: &mut WriteHalf<'_>,
    mut bytes: Bytes,
    way: Way,
    mode: Mode,
    passed: &AtomicU64,
) -> io::Result<Bytes> {
    let rest = match mode {
        Mode::Drip(rate) if way == Way::Reply => {
            let piece = usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1);
            bytes.split_off(piece.min(bytes.len()))
        }
        _ => Bytes::new(),
    };
    let before = passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    let after = before + bytes.len() as u64;
    match mode {
        Mode::ResetAfter(most) if after > most => return Err(io::ErrorKind::ConnectionReset.into()),
        Mode::CorruptReplies(every) if way == Way::Reply => {
            let mut bytes = BytesMut::from(&bytes[..]);
            let next = before.next_multiple_of(every.max(1));
            for place in (next..after).step_by(usize::try_from(every.max(1)).unwrap_or(usize::MAX)) {
                if let Some(byte) = bytes.get_mut((place - before) as usize) {
                    *byte ^= 1;
                }
            }
            to.write_all(&bytes).await?;
        }
        Mode::Drip(_) if way == Way::Reply => {
            to.write_all(&bytes).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        _ => to.write_all(&bytes).await?,
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends back what it gets.
    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        port
    }

    async fn talk(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await.map(|_| answer)
    }

    #[tokio::test]
    async fn what_was_held_back_arrives_when_the_line_is_whole_again() {
        let proxy = Proxy::before(echo().await).await.expect("a proxy");
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).await.expect("connected");
        assert_eq!(talk(&mut stream, b"one").await.expect("an answer"), b"one");
        for cut in [Mode::Blackhole, Mode::NoReplies, Mode::NoRequests] {
            proxy.set(cut);
            let mut waiting = Box::pin(talk(&mut stream, b"two"));
            let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
            assert!(early.is_err(), "{cut:?}");
            proxy.set(Mode::Pass);
            assert_eq!(waiting.await.expect("an answer"), b"two", "{cut:?}");
        }
    }

    #[tokio::test]
    async fn bytes_are_damaged_and_connections_reset_as_told() {
        let proxy = Proxy::before(echo().await).await.expect("a proxy");
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).await.expect("connected");
        proxy.set(Mode::CorruptReplies(1));
        assert_eq!(talk(&mut stream, b"bcd").await.expect("an answer"), b"cbe");
        proxy.set(Mode::ResetAfter(8));
        assert!(talk(&mut stream, b"too much").await.is_err());
    }

    #[tokio::test]
    async fn what_drips_comes_at_once_when_it_drips_no_more() {
        let proxy = Proxy::before(echo().await).await.expect("a proxy");
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).await.expect("connected");
        proxy.set(Mode::Drip(10));
        // At this pace it would take 100 s.
        let text = [b'x'; 1_000];
        let mut waiting = Box::pin(talk(&mut stream, &text));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
        assert!(early.is_err());
        proxy.set(Mode::Pass);
        let late = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        assert_eq!(late.expect("in time").expect("an answer"), text);
    }
}
