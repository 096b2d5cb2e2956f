//! 31: clients that say half a request, read nothing of what they asked for, or a byte a second of it, or go away. They cost the
//! others nothing, and nothing of them stays: no memory, no file, no upload.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use reqwest::Method;
use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::{Needs, Quick, Running, Scenario};
use crate::MIB;
use crate::cluster::Gateway;
use crate::error::{Doing, Error, Result};
use crate::eventually;
use crate::recorder::{Recorder, body_of};
use crate::run::Run;
use crate::s3::Request;

pub(super) const SCENARIO: Scenario = Scenario {
    number: 31,
    name: "rude",
    about: "clients that say half a request, read nothing or a byte a second, or go away, in numbers",
    needs: Needs::Nothing,
    duration: Duration::from_secs(90),
    quick: Quick::For(Duration::from_secs(20)),
    controls: &[],
    run: |run| -> Running { Box::pin(rude(run)) },
};

const BUCKET: &str = "rude";
const LARGE: usize = 5 * MIB;
/// Rude clients of each kind at the same time.
const AT_ONCE: usize = 24;
/// Clients that go on reading, a byte a second, while the others come and go.
const SLOW: usize = 8;
/// What of an answer waits at their end.
const SLOW_BUFFER: u32 = 4096;
/// Rounds after which all is in use that is kept for later: buffers, connections, threads.
const WARM_UP: usize = 20;
/// How soon files and connections of clients that are gone are closed.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(90);
/// How soon a connection is cut on which the head of a request does not go on: 10 s, on a machine that is busy.
const CUT_WITHIN: Duration = Duration::from_secs(30);
/// What silent clients say before they fall silent: nothing, what might become HTTP/2, half a header.
const HALF_SAID: [&[u8]; 3] = [b"", b"PRI * HT", b"GET / HTTP/1.1\r\nHost: exam"];

async fn rude(run: Arc<Run>) -> Result<()> {
    // No node is harmed here: one that is slow to say that it lives beside so many clients is not to be missed.
    let cluster = run
        .cluster()
        .gateway_env("NODE_OFFLINE_THRESHOLD_SECS", "30")
        .gateway_env("NODE_DRAIN_THRESHOLD_SECS", "60")
        .start()
        .await?;
    let gateway = &cluster.gateways[0];
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    client.put("large", "large", LARGE).await;
    let mut before = Vec::new();
    let mut slow = JoinSet::new();
    for _ in 0..WARM_UP {
        stay(&run, gateway, &client, &mut slow)?;
        before.push(round(&run, gateway, &client).await?);
    }
    slow.shutdown().await;
    silent(&run, gateway).await?;
    let calm = files(gateway)?;
    let mut after = Vec::new();
    let began = Instant::now();
    while !run.has_enough(began) && !run.over() {
        stay(&run, gateway, &client, &mut slow)?;
        after.push(round(&run, gateway, &client).await?);
    }
    slow.shutdown().await;
    silent(&run, gateway).await?;
    let files_now =
        eventually("files and connections of rude clients are closed", FORGOTTEN_WITHIN, || async {
            files(gateway).ok().filter(|&now| now <= calm)
        })
        .await?;
    run.figure("open files before", calm as u64);
    run.figure("open files after", files_now as u64);
    not_grown(&run, &before, &after)?;
    if run.counted("slow reader") == 0 {
        return Err(Error::failed("read slowly", "nobody was given anything to read"));
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// Buffers are kept and given back by turns: what grows is the most of it.
fn not_grown(run: &Run, before: &[u64], after: &[u64]) -> Result<()> {
    let latest = &after[after.len().saturating_sub(before.len())..];
    let most = |readings: &[u64]| readings.iter().max().copied().unwrap_or_default();
    let (before, after) = (most(before), most(latest));
    run.figure("MiB before", before >> 20);
    run.figure("MiB after", after >> 20);
    if after > before + before / 10 {
        return Err(Error::broken(format!("memory grew from {} to {} MiB", before >> 20, after >> 20)));
    }
    Ok(())
}

/// Some of each kind at once, and a polite one after them, who must be served. Returns the gateway's memory
/// when all are gone, one way or the other.
async fn round(run: &Arc<Run>, gateway: &Gateway, client: &Recorder) -> Result<u64> {
    let mut chance = run.chance(run.fresh());
    let address = gateway.url.trim_start_matches("http://").to_owned();
    let mut clients: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..AT_ONCE {
        let patience = Duration::from_millis(chance.random_range(1..300));
        let (s3, key) = (client.s3().clone(), format!("cut{}", run.fresh()));
        let body = body_of(run.seed, &key, MIB);
        clients.spawn(async move {
            // Gone in the middle of its body.
            let _ = tokio::time::timeout(patience, s3.put(BUCKET, &key, body)).await;
            Ok(())
        });
        let s3 = client.s3().clone();
        clients.spawn(async move {
            // Asks for much and reads nothing of it.
            let unread = s3.begin(Request::new(Method::GET, BUCKET, "large")).await;
            tokio::time::sleep(patience).await;
            drop(unread);
            Ok(())
        });
        let address = address.clone();
        clients.spawn(async move {
            // Says half a request line and half a header, and goes.
            let doing = "be rude";
            let mut stream = TcpStream::connect(&address).await.doing(doing)?;
            stream.write_all(b"PUT /rude/half HTTP/1.1\r\nHost: exam").await.doing(doing)?;
            tokio::time::sleep(patience).await;
            Ok(())
        });
    }
    while let Some(gone) = clients.join_next().await {
        gone.doing("run a rude client")??;
        run.count("rude client", 1);
    }
    let key = format!("k{}", run.fresh());
    if !client.put(&key, &key, 20_000).await {
        return Err(Error::broken("a polite client was not served beside rude ones"));
    }
    client.get(&key).await;
    memory(gateway)
}

/// Has so many slow readers at it: new ones in place of those whom the gateway cut off.
fn stay(run: &Arc<Run>, gateway: &Gateway, client: &Recorder, slow: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = slow.try_join_next() {
        ended.doing("run a slow reader")??;
    }
    while slow.len() < SLOW {
        let head = client.s3().head_of(&Request::new(Method::GET, BUCKET, "large"));
        slow.spawn(read_slowly(run.clone(), gateway.url.trim_start_matches("http://").to_owned(), head));
    }
    Ok(())
}

/// Asks for much and takes a byte of it a second, until that ends.
async fn read_slowly(run: Arc<Run>, address: String, head: String) -> Result<()> {
    let doing = "read slowly";
    let socket = TcpSocket::new_v4().doing(doing)?;
    socket.set_recv_buffer_size(SLOW_BUFFER).doing(doing)?;
    let mut stream = socket.connect(address.parse().doing(doing)?).await.doing(doing)?;
    stream.write_all(head.as_bytes()).await.doing(doing)?;
    let mut status = [0; 12];
    // With so many others at it a gateway may say that it is busy.
    if stream.read_exact(&mut status).await.is_ok() && status.ends_with(b" 200") {
        run.count("slow reader", 1);
        while stream.read_u8().await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        run.count("slow reader cut off", 1);
    }
    Ok(())
}

/// Whoever does not go on saying what it wants is cut off.
async fn silent(run: &Run, gateway: &Gateway) -> Result<()> {
    let doing = "be silent";
    let mut streams = Vec::new();
    for said in HALF_SAID {
        let mut stream = TcpStream::connect(gateway.url.trim_start_matches("http://")).await.doing(doing)?;
        stream.write_all(said).await.doing(doing)?;
        streams.push((said, stream));
    }
    for (said, mut stream) in streams {
        let mut answer = Vec::new();
        if tokio::time::timeout(CUT_WITHIN, stream.read_to_end(&mut answer)).await.is_err() {
            let said = String::from_utf8_lossy(said);
            return Err(Error::broken(format!("a client that said {said:?} and no more was never cut off")));
        }
        run.count("silent client cut off", 1);
    }
    Ok(())
}

fn pid(gateway: &Gateway) -> Result<Pid> {
    gateway.process.pid().ok_or_else(|| Error::broken("the gateway ended"))
}

/// Open files and connections of the gateway.
fn files(gateway: &Gateway) -> Result<usize> {
    let directory = format!("/proc/{}/fd", pid(gateway)?.as_raw_nonzero());
    Ok(std::fs::read_dir(directory).doing("count open files")?.count())
}

/// Its memory in bytes.
fn memory(gateway: &Gateway) -> Result<u64> {
    let doing = "read a program's memory";
    let file = format!("/proc/{}/status", pid(gateway)?.as_raw_nonzero());
    let status = std::fs::read_to_string(file).doing(doing)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::failed(doing, "there is none"))
}
