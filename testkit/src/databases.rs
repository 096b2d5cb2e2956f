//! PostgreSQL and Redis for a cluster: a database of those that `script/databases` gives, or servers of its own that a
//! scenario may kill.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row};

use crate::error::{Doing, Error, Result};
use crate::eventually;
use crate::process::{Env, Process, call, free_ports, script, text};

/// The metadata of one cluster, as the harness looks at it.
#[derive(Clone, Debug)]
pub struct Database {
    /// As the cluster's processes are told.
    pub url: String,
    pool: PgPool,
}

impl Database {
    fn new(url: String) -> Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&url)
            .doing("use the database's address")?;
        Ok(Self { url, pool })
    }

    /// For what the helpers below cannot do.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A number. NULL is 0.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        let sql = format!("SELECT coalesce(({sql})::bigint, 0)");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.doing("ask the database")
    }

    /// The first column of each row, which must be text.
    pub async fn texts(&self, sql: &str) -> Result<Vec<String>> {
        let sql = AssertSqlSafe(sql.to_owned());
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.doing("ask the database")?;
        rows.iter().map(|row| row.try_get(0).doing("read the database's answer")).collect()
    }

    /// Runs several statements, one after the other.
    pub async fn execute_all(&self, sql: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .doing("change the database")
            .map(drop)
    }

    /// Changes something; how many rows.
    pub async fn execute(&self, sql: &str) -> Result<u64> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(sqlx::query(sql).execute(&self.pool).await.doing("change the database")?.rows_affected())
    }
}

/// Where a cluster's database lives.
#[derive(Debug)]
pub enum Postgres {
    /// One database of a server that others use too; dropped in the end.
    Shared {
        /// Of the server.
        url: String,
        /// Of ours.
        name: String,
    },
    /// A server that may be killed.
    Own(OwnPostgres),
}

impl Postgres {
    /// A new database on the server that `CYXCLOUD_TEST_POSTGRES` names.
    pub async fn shared() -> Result<(Self, Database)> {
        let missing = "it is not set; run by script/torture, or: script/databases -- cyx-torture ...";
        let url = std::env::var("CYXCLOUD_TEST_POSTGRES")
            .map_err(|_| Error::failed("use CYXCLOUD_TEST_POSTGRES", missing))?;
        let name = format!("cyx_{}", uuid::Uuid::new_v4().simple());
        let server = Database::new(url.clone())?;
        server.execute(&format!("CREATE DATABASE {name}")).await?;
        server.pool.close().await;
        let (address, _) = url
            .rsplit_once('/')
            .ok_or_else(|| Error::failed("use CYXCLOUD_TEST_POSTGRES", "it is no URL"))?;
        let database = Database::new(format!("{address}/{name}"))?;
        Ok((Self::Shared { url, name }, database))
    }

    /// A server of its own under `dir`.
    pub async fn own(dir: &Path) -> Result<(Self, Database)> {
        let own = OwnPostgres::new(dir)?;
        own.start().await?;
        let database = Database::new(own.url())?;
        Ok((Self::Own(own), database))
    }

    /// Drops what is shared; an own server ends with its cluster.
    pub async fn finish(&self) -> Result<()> {
        let Self::Shared { url, name } = self else { return Ok(()) };
        let server = Database::new(url.clone())?;
        server.execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.map(drop)
    }
}

/// A PostgreSQL server with its data in one directory. It keeps its defaults for durability.
#[derive(Debug)]
pub struct OwnPostgres {
    /// `PGDATA`.
    pub data: PathBuf,
    /// On 127.0.0.1.
    pub port: u16,
    process: Process,
}

impl OwnPostgres {
    fn new(dir: &Path) -> Result<Self> {
        let bin = postgres_bin()?;
        let root = rustix::process::geteuid().is_root();
        let base = dir.join("postgres");
        std::fs::create_dir_all(&base).doing("make a directory for PostgreSQL")?;
        let data = base.join("data");
        let mut as_postgres: Vec<String> = Vec::new();
        if root {
            // PostgreSQL refuses to run as root.
            call("chown", &["postgres", &text(&base)])?;
            for parent in dir.ancestors().filter(|parent| parent.starts_with(std::env::temp_dir())) {
                call("chmod", &["a+x", &text(parent)])?;
            }
            as_postgres = ["runuser", "-u", "postgres", "--"].map(str::to_owned).to_vec();
        }
        let initdb = [text(&bin.join("initdb")), "-D".to_owned(), text(&data)];
        let options = ["-U", "cyxcloud", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"];
        let command: Vec<&str> =
            as_postgres.iter().chain(&initdb).map(String::as_str).chain(options).collect();
        let (program, arguments) = command.split_first().unwrap_or((&"initdb", &[]));
        call(program, arguments)?;
        let port = free_ports(1)?.remove(0);
        let mut command = as_postgres;
        command.extend([text(&bin.join("postgres")), "-D".to_owned(), text(&data)]);
        command.extend(["-p".to_owned(), port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200"] {
            command.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let process = Process::new("postgres", command, Env::new(), dir.join("postgres.log"));
        Ok(Self { data, port, process })
    }

    fn url(&self) -> String {
        format!("postgres://cyxcloud@127.0.0.1:{}/postgres", self.port)
    }

    fn postmaster(&self) -> Option<Pid> {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        Pid::from_raw(file.lines().next()?.trim().parse().ok()?)
    }

    /// Starts it, and waits until it answers.
    pub async fn start(&self) -> Result<()> {
        let answers = Database::new(self.url())?;
        eventually("PostgreSQL answers", Duration::from_secs(60), || async {
            // After a kill, what is left of the old server may still be in the way: then it ends again at once.
            if !self.process.running() {
                self.process.start().ok()?;
            }
            answers.number("SELECT 1").await.ok()
        })
        .await
        .map(drop)
    }

    /// As a crash of the machine's PostgreSQL would: the postmaster is gone, and its children find out.
    pub fn kill(&self) {
        // The file outlives its process, whose number may be another's by now.
        if self.process.running()
            && let Some(pid) = self.postmaster()
        {
            // Gone already is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        self.process.kill();
    }

    /// Loses all that it had (which is kept beside), and begins again with what `script/restore` makes of a base backup and a
    /// copy of the log, as it was at `until`.
    pub async fn restore(&self, base: &Path, wal: &Path, until: &str) -> Result<()> {
        self.kill();
        std::fs::rename(&self.data, self.data.with_extension("lost")).doing("put the lost data aside")?;
        // The server runs as another user than we do.
        let parent = wal.parent().unwrap_or(wal);
        call("chmod", &["a+x", &text(parent)])?;
        call("chmod", &["-R", "a+rX", &text(wal)])?;
        let (base, wal, to) = (text(base), text(wal), text(&self.data));
        let arguments = ["postgres", "--from", &base, "--wal", &wal, "--until", until, "--to", &to];
        let user = ["--user", "cyxcloud"];
        call(&script("restore"), &[&arguments[..], &user].concat())?;
        self.start().await
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The programs of the newest PostgreSQL there is.
pub fn postgres_bin() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, bin)| bin)
        .ok_or_else(|| Error::failed("find PostgreSQL", "it is missing; run script/bootstrap"))
}

/// Where a cluster's ephemeral state lives.
#[derive(Debug)]
pub enum Redis {
    /// A numbered database of a server that others use too.
    Shared {
        /// With the number.
        url: String,
    },
    /// A server that may be killed.
    Own {
        /// Of the server.
        url: String,
        /// Itself.
        process: Process,
        /// What [`Redis::save`] writes.
        snapshot: PathBuf,
    },
}

impl Redis {
    /// A database of the server that `CYXCLOUD_TEST_REDIS` names. Clusters on one Redis must not meet.
    pub fn shared() -> Result<Self> {
        static TAKEN: AtomicU8 = AtomicU8::new(0);
        let missing = "it is not set; run by script/torture, or: script/databases -- cyx-torture ...";
        let server = std::env::var("CYXCLOUD_TEST_REDIS")
            .map_err(|_| Error::failed("use CYXCLOUD_TEST_REDIS", missing))?;
        let number = TAKEN.fetch_add(1, Ordering::Relaxed) % 16;
        Ok(Self::Shared { url: format!("{server}/{number}") })
    }

    /// A server of its own, with nothing on disk unless told to [save](Self::save).
    pub async fn own(dir: &Path) -> Result<Self> {
        let port = free_ports(1)?.remove(0);
        let (port_text, snapshot) = (port.to_string(), dir.join("redis.rdb"));
        let dir_text = text(dir);
        let server = ["redis-server", "--port", &port_text, "--bind", "127.0.0.1"];
        let disk = ["--save", "", "--appendonly", "no", "--dir", &dir_text, "--dbfilename", "redis.rdb"];
        let command = server.iter().chain(&disk).map(|&word| word.to_owned()).collect();
        let process = Process::new("redis", command, Env::new(), dir.join("redis.log"));
        let own = Self::Own { url: format!("redis://127.0.0.1:{port}"), process, snapshot };
        own.start().await?;
        Ok(own)
    }

    /// As the cluster's processes are told.
    pub fn url(&self) -> &str {
        match self {
            Self::Shared { url } | Self::Own { url, .. } => url,
        }
    }

    /// Starts an own server with what it saved, if anything, and waits until it listens.
    pub async fn start(&self) -> Result<()> {
        let Self::Own { url, process, .. } = self else { return Ok(()) };
        process.start()?;
        let address = url.trim_start_matches("redis://").to_owned();
        eventually("Redis listens", Duration::from_secs(30), || async {
            tokio::net::TcpStream::connect(&address).await.ok()
        })
        .await
        .map(drop)
    }

    /// Kills an own server, and with it all that it did not save.
    pub fn kill(&self) {
        if let Self::Own { process, .. } = self {
            process.kill();
        }
    }

    /// Writes what the server knows now to its disk.
    pub fn save(&self) -> Result<()> {
        call("redis-cli", &["-u", self.url(), "SAVE"]).map(drop)
    }

    /// Makes the server forget everything while it runs.
    pub fn flush(&self) -> Result<()> {
        call("redis-cli", &["-u", self.url(), "FLUSHALL"]).map(drop)
    }

    /// Takes from an own server's disk what it saved.
    pub fn wipe(&self) -> Result<()> {
        match self {
            Self::Own { snapshot, .. } if snapshot.exists() => {
                std::fs::remove_file(snapshot).doing("remove what Redis saved")
            }
            _ => Ok(()),
        }
    }
}
