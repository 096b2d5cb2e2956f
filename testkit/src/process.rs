//! Programs as child processes: started with a log, killed, frozen and thawed by process id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Doing, Error, Result};

/// Variables as programs get them.
pub type Env = BTreeMap<String, String>;

/// Of the caller's environment, what programs need to run at all; no configuration of the caller's reaches a server.
const KEPT: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

const PORTS_FROM: u16 = 10_000;

/// Variables from literals.
pub fn env<const N: usize>(pairs: [(&str, &str); N]) -> Env {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The program `name` of the build under test: development unless `CYXCLOUD_E2E_PROFILE` says release.
pub fn binary(name: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/cyxcloud/target")
    });
    let profile = std::env::var("CYXCLOUD_E2E_PROFILE").unwrap_or_else(|_| "debug".to_owned());
    let path = target.join(profile).join(name);
    if path.exists() {
        return Ok(path);
    }
    Err(Error::failed(format!("find {}", path.display()), "build it first (script/torture does)"))
}

/// Ports nobody listens on, and that nobody is given: they are below those that outgoing connections get, so that a killed
/// server finds its port again.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
    if outgoing < PORTS_FROM + 1_000 {
        return Err(Error::failed("find free ports", "outgoing connections get nearly all of them here"));
    }
    let mut given = held(&GIVEN);
    let mut ports = Vec::with_capacity(count);
    for _ in 0..10_000 {
        if ports.len() == count {
            return Ok(ports);
        }
        let port = rand::random_range(PORTS_FROM..outgoing);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            ports.push(port);
        }
    }
    Err(Error::failed("find free ports", "nearly all are taken"))
}

/// A program that runs until it is stopped. Its output is in `log`, appended over restarts.
#[derive(Debug)]
pub struct Process {
    /// As it is called in messages and in its log's name.
    pub name: String,
    /// What it said.
    pub log: PathBuf,
    command: Vec<String>,
    env: Mutex<Env>,
    child: Mutex<Option<Child>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Not yet started. `command` is the program and its arguments.
    pub fn new(name: impl Into<String>, command: Vec<String>, env: Env, log: PathBuf) -> Self {
        let (env, child) = (Mutex::new(env), Mutex::new(None));
        Self { name: name.into(), log, command, env, child }
    }

    /// What it gets to know at its next start; `None` takes a variable away.
    pub fn set_env(&self, name: &str, value: Option<&str>) {
        let mut env = held(&self.env);
        match value {
            Some(value) => env.insert(name.to_owned(), value.to_owned()),
            None => env.remove(name),
        };
    }

    /// Starts it; fails if it runs already.
    pub fn start(&self) -> Result<()> {
        let doing = || format!("start {}", self.name);
        if self.running() {
            return Err(Error::failed(doing(), "it runs already"));
        }
        let log =
            || -> std::io::Result<File> { OpenOptions::new().create(true).append(true).open(&self.log) };
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| Error::failed(doing(), "no program"))?;
        let level = std::env::var("CYXCLOUD_E2E_LOG").unwrap_or_else(|_| "info".to_owned());
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs([("NO_COLOR", "1"), ("RUST_BACKTRACE", "1"), ("RUST_LOG", &level)])
            .envs(&*held(&self.env))
            .stdin(Stdio::null())
            .stdout(log().doing(doing())?)
            .stderr(log().doing(doing())?)
            .spawn()
            .doing(doing())?;
        *held(&self.child) = Some(child);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<Pid> {
        let mut child = held(&self.child);
        let child = child.as_mut()?;
        match child.try_wait() {
            Ok(None) => Pid::from_raw(i32::try_from(child.id()).ok()?),
            _ => None,
        }
    }

    /// Whether it runs (or is frozen).
    pub fn running(&self) -> bool {
        self.pid().is_some()
    }

    /// How it ended, if it was started and has.
    pub fn ended(&self) -> Option<ExitStatus> {
        held(&self.child).as_mut()?.try_wait().ok()?
    }

    /// Whether somebody killed it, itself at a crash point included.
    pub fn was_killed(&self) -> bool {
        self.ended().is_some_and(|status| status.signal() == Some(9))
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may end at this very moment: then there is nobody to tell.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it without goodbye, and returns when it is gone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.reap();
    }

    fn reap(&self) {
        if let Some(child) = held(&self.child).as_mut() {
            // Only fails when it was waited for already.
            let _ = child.wait();
        }
    }

    /// Asks it to end (SIGTERM), and returns when it has.
    pub async fn stop(&self) -> Result<()> {
        self.signal(Signal::TERM);
        let what = format!("{} ends after SIGTERM", self.name);
        crate::eventually(&what, std::time::Duration::from_secs(30), || async {
            (!self.running()).then_some(())
        })
        .await
    }

    /// Stops it in its tracks (SIGSTOP): connections stay, nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Stops it in its tracks, and returns when none of its threads is under way any more, not even in the kernel.
    pub async fn halt(&self) -> Result<()> {
        self.freeze();
        crate::eventually(
            &format!("{} stands still", self.name),
            std::time::Duration::from_secs(10),
            || async {
                let Some(pid) = self.pid() else { return Some(()) };
                let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
                state.rsplit_once(") ")?.1.starts_with('T').then_some(())
            },
        )
        .await
    }

    /// Lets it go on (SIGCONT), none the wiser.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// All that it said, over all its lives.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// The last lines of it.
    pub fn tail(&self, lines: usize) -> String {
        let output = self.output();
        let all: Vec<&str> = output.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end; what it printed, or why it failed.
pub fn call(program: &str, arguments: &[&str]) -> Result<String> {
    let doing = || format!("run {program} {}", arguments.join(" "));
    let done =
        Command::new(program).args(arguments).stdin(Stdio::null()).current_dir("/").output().doing(doing())?;
    if !done.status.success() {
        return Err(Error::failed(doing(), String::from_utf8_lossy(&done.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Whether nobody else's nodes run on this machine, and no compiler: how long something takes is only judged where that is so.
pub fn alone() -> bool {
    let own = std::process::id();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut stats = processes.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    !stats.any(|stat| is_anothers(&stat, own))
}

/// By a line of `/proc/*/stat`: `pid (name) state parent ...`. Our own nodes are our children.
fn is_anothers(stat: &str, own: u32) -> bool {
    let Some((head, rest)) = stat.rsplit_once(") ") else { return false };
    let name = head.split_once('(').map_or("", |(_, name)| name);
    let parent = rest.split_whitespace().nth(1).and_then(|parent| parent.parse::<u32>().ok());
    match name {
        "cyxcloud-node" => parent != Some(own),
        "rustc" => true,
        _ => false,
    }
}

/// One of the repository's scripts, as a program.
pub fn script(name: &str) -> String {
    format!("{}/../script/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::is_anothers;

    #[test]
    fn our_own_nodes_leave_us_alone_and_others_do_not() {
        assert!(!is_anothers("41 (cyxcloud-node) S 7 41 7 0", 7));
        assert!(is_anothers("41 (cyxcloud-node) S 8 41 7 0", 7));
        assert!(is_anothers("42 (rustc) R 7 42 7 0", 7));
        assert!(!is_anothers("43 (a) b (c) S 8 43 7 0", 7));
        assert!(!is_anothers("", 7));
    }
}
