//! A proxy between a store and PostgreSQL that cuts the connection at COMMIT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to the next COMMIT; those after it pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// Nothing.
    Never = 0,
    /// It never reaches the server.
    BeforeCommit = 1,
    /// The server commits, and the answer is lost.
    AfterCommit = 2,
    /// It reaches the server, whose answer is not waited for.
    DuringCommit = 3,
}

/// The proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Where to connect.
    pub(crate) address: SocketAddr,
    next: Arc<AtomicU8>,
}

impl Proxy {
    /// Starts one in front of a server.
    pub(crate) async fn start(server: (String, u16)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let next = Arc::new(AtomicU8::new(Cut::Never as u8));
        let shared = Arc::clone(&next);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server.clone()).await.expect("reach the server");
                tokio::spawn(carry(client, server, Arc::clone(&shared)));
            }
        });
        Self { address, next }
    }

    /// Arms it for one COMMIT.
    pub(crate) fn arm(&self, cut: Cut) {
        self.next.store(cut as u8, Ordering::SeqCst);
    }

    /// Whether it has cut.
    pub(crate) fn has_cut(&self) -> bool {
        self.next.load(Ordering::SeqCst) == Cut::Never as u8
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, next: Arc<AtomicU8>) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(n @ 1..) = read else { return };
                // Our COMMIT is a message of its own.
                let commit = up[..n].windows(7).any(|window| window == b"COMMIT\0");
                let cut = if commit { next.swap(Cut::Never as u8, Ordering::SeqCst) } else { 0 };
                if cut == Cut::BeforeCommit as u8 {
                    return;
                }
                if server.write_all(&up[..n]).await.is_err() {
                    return;
                }
                if cut == Cut::AfterCommit as u8 {
                    let _ = server.read(&mut down).await;
                    return;
                }
                if cut == Cut::DuringCommit as u8 {
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(n @ 1..) = read else { return };
                if client.write_all(&down[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
