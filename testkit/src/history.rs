//! What clients asked and were answered, written down outside the cluster.
//!
//! One JSON line when an operation begins and one when it ends, in a file that is synced before anything is concluded from
//! an end. Lines are written in order, so a durable end implies a durable beginning.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use crate::check::{Act, Op};
use crate::error::{Doing, Result};

enum Line {
    Say(String),
    Sync(String, oneshot::Sender<()>),
}

/// The history of one run. Times are nanoseconds since it began, by a clock that never goes back.
#[derive(Debug)]
pub struct History {
    began: Instant,
    next: AtomicU64,
    lines: Mutex<Option<Sender<Line>>>,
    writer: Option<std::thread::JoinHandle<()>>,
    ops: Mutex<BTreeMap<String, Vec<Op>>>,
}

/// An operation that has begun.
#[derive(Debug)]
pub struct Begun {
    /// Its number in the history.
    pub id: u64,
    call: u64,
}

impl History {
    /// Begins to write to a new file.
    pub fn new(path: &Path) -> Result<Self> {
        let file = File::create(path).doing("make the history's file")?;
        let (lines, queue) = channel();
        let writer = std::thread::spawn(move || write(file, &queue));
        Ok(Self {
            began: Instant::now(),
            next: AtomicU64::new(1),
            lines: Mutex::new(Some(lines)),
            writer: Some(writer),
            ops: Mutex::default(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn send(&self, line: Line) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lines) = &*lines {
            // The writer only ends with us.
            let _ = lines.send(line);
        }
    }

    /// Something that is no operation: a fault, a mark.
    pub fn note(&self, what: &str, details: impl Serialize) {
        self.send(Line::Say(json!({"t": self.now(), "note": what, "of": json!(details)}).to_string()));
    }

    /// An operation begins; `details` say which.
    pub fn begin(&self, op: &str, key: &str, details: impl Serialize) -> Begun {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let call = self.now();
        let line = json!({"t": call, "id": id, "begin": op, "key": key, "of": json!(details)});
        self.send(Line::Say(line.to_string()));
        Begun { id, call }
    }

    /// It ended. `acts` are what the checker is to know of it, by key: nothing where nothing was learnt. Those that `open`
    /// says may yet take effect, or never. Returns when the line is on disk.
    pub async fn end(&self, begun: &Begun, answer: &str, acts: Vec<(String, Act)>, open: bool) {
        let ret = self.now();
        let (done, synced) = oneshot::channel();
        let line = json!({"t": ret, "id": begun.id, "end": answer, "open": open});
        self.send(Line::Sync(line.to_string(), done));
        // Without an answer the writer is gone, and so is the run.
        let _ = synced.await;
        let mut ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, act) in acts {
            let op = Op { id: begun.id, call: begun.call, ret: (!open).then_some(ret), act };
            ops.entry(key).or_default().push(op);
        }
    }

    /// All that the checker is to know, by key.
    pub fn ops(&self) -> BTreeMap<String, Vec<Op>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = self.writer.take() {
            // It only panics when the disk is full, which was said.
            let _ = writer.join();
        }
    }
}

/// Writes what waits, and syncs once for all who wait for it.
#[allow(clippy::expect_used, reason = "a run without its history proves nothing")]
fn write(mut file: File, queue: &Receiver<Line>) {
    while let Ok(first) = queue.recv() {
        let mut text = String::new();
        let mut waiting = Vec::new();
        for line in std::iter::once(first).chain(queue.try_iter().take(1000)) {
            let line = match line {
                Line::Say(line) => line,
                Line::Sync(line, done) => {
                    waiting.push(done);
                    line
                }
            };
            text.push_str(&line);
            text.push('\n');
        }
        file.write_all(text.as_bytes()).expect("the history is written");
        if !waiting.is_empty() {
            file.sync_data().expect("the history is synced");
        }
        for done in waiting {
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }
}
