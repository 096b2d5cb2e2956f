//! 31: clients that say half a request, read nothing of what they asked for, or go away. They cost the others nothing, and
//! nothing of them stays: no memory, no file, no upload.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use reqwest::Method;
use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
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
    about: "clients that say half a request, read nothing, or go away, in numbers",
    needs: Needs::Nothing,
    duration: Duration::from_secs(90),
    quick: Quick::LeftOut("it has not held often enough yet to be relied on"),
    controls: &[],
    run: |run| -> Running { Box::pin(rude(run)) },
};

const BUCKET: &str = "rude";
const LARGE: usize = 5 * MIB;
/// Rude clients of each kind at the same time.
const AT_ONCE: usize = 24;
/// How soon a connection is cut on which nothing is said, and how soon all of it is forgotten.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(90);

async fn rude(run: Arc<Run>) -> Result<()> {
    let cluster = run.cluster().start().await?;
    let gateway = &cluster.gateways[0];
    let client = run.clients(&cluster, BUCKET).await?.remove(0);
    client.put("large", "large", LARGE).await;
    // As it is once everything has been used that is kept.
    for _ in 0..3 {
        round(&run, gateway, &client).await?;
    }
    let calm = files(gateway)?;
    let before = memory(gateway)?;
    let began = Instant::now();
    while began.elapsed() < run.duration && !run.over() {
        round(&run, gateway, &client).await?;
        let key = format!("k{}", run.fresh());
        if !client.put(&key, &key, 20_000).await {
            return Err(Error::broken("a polite client was not served beside rude ones"));
        }
        client.get(&key).await;
    }
    let files_now =
        eventually("files and connections of rude clients are closed", FORGOTTEN_WITHIN, || async {
            files(gateway).ok().filter(|&now| now <= calm + AT_ONCE)
        })
        .await?;
    let after = memory(gateway)?;
    run.figure("open files before", calm as u64);
    run.figure("open files after", files_now as u64);
    run.figure("MiB before", before >> 20);
    run.figure("MiB after", after >> 20);
    if after > before + before / 2 + (64 << 20) {
        return Err(Error::broken(format!("memory grew from {} to {} MiB", before >> 20, after >> 20)));
    }
    run.judge(&cluster, &client, BUCKET).await?;
    cluster.finish().await
}

/// Some of each kind at once; returns when all are gone, one way or the other.
async fn round(run: &Arc<Run>, gateway: &Gateway, client: &Recorder) -> Result<()> {
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
    silent(run, &address).await
}

/// Whoever says nothing more is cut off at some time. Looked at once in a run, because it is waited for.
async fn silent(run: &Run, address: &str) -> Result<()> {
    if run.counted("silent client cut off") > 0 {
        return Ok(());
    }
    let doing = "be silent";
    let mut stream = TcpStream::connect(address).await.doing(doing)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: exam").await.doing(doing)?;
    let mut answer = Vec::new();
    let cut = tokio::time::timeout(FORGOTTEN_WITHIN, stream.read_to_end(&mut answer)).await;
    if cut.is_err() {
        return Err(Error::broken("a client that had said half a header was never cut off"));
    }
    run.count("silent client cut off", 1);
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
