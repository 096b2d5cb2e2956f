//! Reads all chunks again, one after the other: what has rotted is found, held back and reported. Once in about every
//! interval, and whenever the gateway asks.
//!
//! Slowly, by a rate of bytes, so that readers come first. How far it came is kept in the file `scrub` of the data
//! directory (when the scrub began, or will begin, in milliseconds since the Unix epoch; then the last chunk that was
//! read), so that a node that is restarted often still gets to its last chunk. The file may be lost or be a little
//! behind: then some chunks are read once more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::{ByteCount, ChunkId, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::corrupt::CorruptChunks;
use crate::metrics::Metrics;
use crate::service::now;
use crate::store::{ChunkStore, Entry, Error, write_file};

const PAGE: usize = 256;
/// Read in one go: small chunks are not worth a thread each.
const BITE: ByteCount = ByteCount::mib(1);
/// What a read costs the disk at least, however short the chunk.
const READ_MIN: ByteCount = ByteCount::kib(4);
/// How often progress is written down.
const SAVE_PAUSE: Duration = Duration::from_secs(30);
/// How long a scrub that cannot go on waits.
const RETRY_PAUSE: Duration = Duration::from_secs(600);
/// Longest sleep until the clock is looked at again: it may have been set, or the machine suspended.
const SLEEP_MAX: Duration = Duration::from_secs(600);
const FILE: &str = "scrub";

/// What a scrub works on.
#[derive(Debug)]
pub(crate) struct Scrubber {
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) corrupt: Arc<CorruptChunks>,
    pub(crate) metrics: Arc<Metrics>,
    /// The data directory.
    pub(crate) dir: PathBuf,
    /// `None` is only when asked.
    pub(crate) interval: Option<Duration>,
    pub(crate) bytes_per_sec: ByteCount,
}

/// The scrub that runs, or comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    /// When it began or will begin.
    begins: Timestamp,
    /// The last chunk that was read.
    after: Option<ChunkId>,
}

impl Scrubber {
    /// Scrubs until it is dropped. Asking during a scrub makes one more.
    pub(crate) async fn run(self, asked: Arc<Notify>) {
        let mut plan = self.plan(load(&self.dir), now(), rand::random());
        self.save(plan).await;
        let mut pace = Pace::new(self.bytes_per_sec);
        loop {
            let mut progress = match plan {
                // A part of it is done: it goes on at once.
                Some(progress) if progress.after.is_some() => progress,
                _ => {
                    tokio::select! {
                        () = wait(plan) => {}
                        () = asked.notified() => {}
                    }
                    Progress { begins: now(), after: None }
                }
            };
            info!(resumed = progress.after.is_some(), "scrub begins");
            self.metrics.scrub_running.set(1);
            let found = self.scrub(&mut progress, &mut pace).await;
            self.metrics.scrub_running.set(0);
            match found {
                Ok(corrupt) => {
                    info!(corrupt, "scrub ended");
                    self.metrics.scrubs.inc();
                    plan = self.next(progress.begins, now(), rand::random());
                }
                Err(error) => {
                    warn!(%error, "scrub stopped");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    plan = Some(progress);
                }
            }
            self.save(plan).await;
        }
    }

    /// What is to be done at start, by what was written down. `chance` (0 to 1) spreads the first scrubs of nodes that
    /// were started together.
    fn plan(&self, found: Option<Progress>, now: Timestamp, chance: f64) -> Option<Progress> {
        match (found, self.interval) {
            // An interval that was shortened, or a clock that was set back, must not put it off for long.
            (Some(found), Some(interval)) if found.begins <= now.plus(jittered(interval, 1.0)) => Some(found),
            (Some(found), _) if found.after.is_some() => Some(found),
            (_, Some(interval)) => {
                Some(Progress { begins: now.plus(interval.mul_f64(chance.clamp(0.0, 1.0))), after: None })
            }
            (_, None) => None,
        }
    }

    /// The scrub after one that began at `begins`. One that took longer than the interval is followed at once.
    fn next(&self, begins: Timestamp, now: Timestamp, chance: f64) -> Option<Progress> {
        // A clock that was set back meanwhile must not put the next one off.
        let due = |interval| begins.min(now).plus(jittered(interval, chance)).max(now);
        self.interval.map(|interval| Progress { begins: due(interval), after: None })
    }

    /// Reads everything behind `progress.after`, and moves that along.
    async fn scrub(&self, progress: &mut Progress, pace: &mut Pace) -> Result<usize, Error> {
        let mut found = 0;
        let mut saved = Instant::now();
        self.save(Some(*progress)).await;
        loop {
            let (store, after) = (self.store.clone(), progress.after);
            let page = blocking(move || store.list(after, PAGE)).await?;
            for bite in bites(&page) {
                let begun = Instant::now();
                found += self.check(bite.to_vec()).await?;
                progress.after = bite.last().map(|entry| entry.id);
                let cost = bite.iter().map(|entry| entry.length.max(READ_MIN)).sum();
                tokio::time::sleep_until(pace.next(begun, cost)).await;
                if saved.elapsed() >= SAVE_PAUSE {
                    self.save(Some(*progress)).await;
                    saved = Instant::now();
                }
            }
            if page.len() < PAGE {
                return Ok(found);
            }
        }
    }

    /// Reads some chunks and tells how many are corrupt.
    async fn check(&self, entries: Vec<Entry>) -> Result<usize, Error> {
        let (store, corrupt, metrics) = (self.store.clone(), self.corrupt.clone(), self.metrics.clone());
        blocking(move || {
            let mut bad = 0;
            for entry in entries.iter().filter(|entry| !entry.quarantined) {
                match store.get(entry.id) {
                    // What was deleted since is no concern.
                    Ok(_) => {}
                    Err(Error::Corrupt { id }) => {
                        corrupt.found(id);
                        metrics.corrupt.inc();
                        bad += 1;
                    }
                    Err(Error::Closed) => return Err(Error::Closed),
                    Err(error) => warn!(chunk = %entry.id, %error, "could not read a chunk to check it"),
                }
                metrics.scrubbed.inc();
                metrics.scrubbed_bytes.inc_by(entry.length.get());
            }
            Ok(bad)
        })
        .await
    }

    /// Best effort: what is not written down is read again.
    async fn save(&self, plan: Option<Progress>) {
        let dir = self.dir.clone();
        let saved = tokio::task::spawn_blocking(move || match plan {
            Some(progress) => write_file(&dir, FILE, format(&progress).as_bytes()),
            None => match std::fs::remove_file(dir.join(FILE)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        });
        if let Ok(Err(error)) = saved.await {
            warn!(%error, "could not write down how far the scrub came");
        }
    }
}

/// The time from one scrub to the next, by a `chance` from 0 to 1: an interval, or up to a sixth of it less or more. Nodes that began
/// one together, all being asked or overdue, would go on together.
fn jittered(interval: Duration, chance: f64) -> Duration {
    interval.mul_f64((5.0 + 2.0 * chance.clamp(0.0, 1.0)) / 6.0)
}

/// Waits until a scrub is due; for ever if none is planned.
async fn wait(plan: Option<Progress>) {
    let Some(Progress { begins, .. }) = plan else { return std::future::pending().await };
    loop {
        let left = begins.since(now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(SLEEP_MAX)).await;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Closed))
}

/// Cuts a page into pieces of about [`BITE`], each with one chunk at least.
fn bites(mut page: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    std::iter::from_fn(move || {
        let mut bytes = ByteCount::ZERO;
        let fits = page.iter().take_while(|entry| {
            let fits = bytes == ByteCount::ZERO || bytes + entry.length <= BITE;
            bytes = bytes + entry.length;
            fits
        });
        let (bite, rest) = page.split_at(fits.count());
        page = rest;
        (!bite.is_empty()).then_some(bite)
    })
}

fn format(progress: &Progress) -> String {
    let after = progress.after.map_or("-".to_owned(), |id| id.to_string());
    format!("{} {after}\n", progress.begins.unix_millis())
}

fn parse(text: &str) -> Option<Progress> {
    let (begins, after) = text.trim_end().split_once(' ')?;
    let begins = Timestamp::from_unix_millis(begins.parse().ok()?);
    let after = match after {
        "-" => None,
        id => Some(id.parse().ok()?),
    };
    Some(Progress { begins, after })
}

fn load(dir: &Path) -> Option<Progress> {
    parse(&std::fs::read_to_string(dir.join(FILE)).ok()?)
}

/// Lets so many bytes pass in a second, and saves nothing up while nothing passes.
#[derive(Debug)]
struct Pace {
    bytes_per_sec: ByteCount,
    free: Option<Instant>,
}

impl Pace {
    fn new(bytes_per_sec: ByteCount) -> Self {
        Self { bytes_per_sec, free: None }
    }

    /// When to go on after these bytes, which were asked for at `begun`.
    fn next(&mut self, begun: Instant, bytes: ByteCount) -> Instant {
        let takes = Duration::from_secs_f64(bytes.get() as f64 / self.bytes_per_sec.get().max(1) as f64);
        let free = self.free.map_or(begun, |free| free.max(begun)) + takes;
        self.free = Some(free);
        free
    }
}

#[cfg(test)]
mod tests;
