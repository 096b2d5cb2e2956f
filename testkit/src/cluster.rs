//! A cluster of real processes: gateways, nodes and rebalancers over PostgreSQL and Redis.
//!
//! Everything a builder can say has a default. Each process has its log, and each node its directory, under the run's
//! directory. Nothing here sleeps for a fixed time: all waiting is for a condition.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::seal::MasterKey;
use reqwest::Method;

use crate::databases::{Database, Postgres, Redis};
use crate::disk::{Disk, Kind};
use crate::error::{Doing, Error, Result};
use crate::eventually;
use crate::process::{Env, Process, binary, env, free_ports, text};
use crate::proxy::{Mode, Proxy};
use crate::s3::{Credentials, Request, S3};

/// How long anything that should happen soon may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// How long what nothing refers to is kept, unless told otherwise.
pub const GC_GRACE_SECS: &str = "2";

/// What nodes keep their data on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A directory.
    Directory,
    /// A disk of its own, which needs root.
    Disk(Kind),
}

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    directory: PathBuf,
    nodes: usize,
    gateways: usize,
    rebalancers: usize,
    operators: usize,
    gateway_env: Env,
    node_env: Env,
    rebalancer_env: Env,
    storage: Vec<Storage>,
    proxies: bool,
    apart: bool,
    own_databases: bool,
}

impl Builder {
    /// Six nodes, one gateway, one rebalancer, under this directory; clocks scaled so that a test can wait for them.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            nodes: 6,
            gateways: 1,
            rebalancers: 1,
            operators: 0,
            gateway_env: env([
                ("NODE_NETWORKS", "127.0.0.0/8"),
                ("NODE_HEARTBEAT_INTERVAL_SECS", "1"),
                ("NODE_OFFLINE_THRESHOLD_SECS", "3"),
                ("NODE_RECOVERY_QUARANTINE_SECS", "1"),
                ("NODE_DRAIN_THRESHOLD_SECS", "10"),
                ("NODE_REMOVE_THRESHOLD_SECS", "3600"),
                // All wallets come from this machine.
                ("CYXCLOUD_SIGNUPS_PER_HOUR", "100000"),
            ]),
            node_env: env([
                ("NODE_TRASH_SECS", "0"),
                ("NODE_NETWORKS", "127.0.0.0/8"),
                ("NODE_LOOPBACK", "true"),
                ("STORAGE_CAPACITY_GB", "20"),
                ("STORAGE_RESERVED_BYTES", "0"),
                ("HEARTBEAT_INTERVAL_SECS", "1"),
            ]),
            rebalancer_env: env([
                ("NODE_NETWORKS", "127.0.0.0/8"),
                ("SCAN_INTERVAL_SECS", "1"),
                ("NODE_OFFLINE_THRESHOLD_SECS", "3"),
                ("REPAIR_DELAY_SECS", "1"),
                ("REPAIR_LEASE_SECS", "1"),
                ("REPAIR_BYTES_PER_SEC", "0"),
                ("REPAIR_NODE_BYTES_PER_SEC", "0"),
                ("GC_GRACE_SECS", GC_GRACE_SECS),
                ("RECONCILE_INTERVAL_SECS", "5"),
                ("AUDIT_INTERVAL_SECS", "5"),
                ("AUDIT_TIMEOUT_SECS", "2"),
            ]),
            storage: vec![Storage::Directory],
            proxies: false,
            apart: false,
            own_databases: false,
        }
    }

    /// So many nodes.
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// So many gateways; nodes register with them in turn.
    pub fn gateways(mut self, count: usize) -> Self {
        self.gateways = count;
        self
    }

    /// So many rebalancers.
    pub fn rebalancers(mut self, count: usize) -> Self {
        self.rebalancers = count;
        self
    }

    /// Nodes belong to so many operators, in turn; 0: each to nobody else.
    pub fn operators(mut self, count: usize) -> Self {
        self.operators = count;
        self
    }

    /// A variable for every gateway.
    pub fn gateway_env(mut self, name: &str, value: &str) -> Self {
        self.gateway_env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A variable for every node.
    pub fn node_env(mut self, name: &str, value: &str) -> Self {
        self.node_env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A variable for every rebalancer.
    pub fn rebalancer_env(mut self, name: &str, value: &str) -> Self {
        self.rebalancer_env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// What the nodes' data is on.
    pub fn storage(mut self, storage: Storage) -> Self {
        self.storage = vec![storage];
        self
    }

    /// What the data of each node is on; those beyond the list are as its last entry.
    pub fn storage_of_each(mut self, storage: Vec<Storage>) -> Self {
        self.storage = storage;
        self
    }

    /// Puts a proxy before every node, and one before the gateway for every node.
    pub fn proxies(mut self) -> Self {
        self.proxies = true;
        self
    }

    /// Puts every node on a network (a /24) of its own, all of them this machine's. Proxies have one address for all.
    pub fn apart(mut self) -> Self {
        self.apart = true;
        self
    }

    /// A PostgreSQL and a Redis that nobody else uses, so that they may be killed.
    pub fn own_databases(mut self) -> Self {
        self.own_databases = true;
        self
    }

    /// Makes all of it without starting its processes (but for databases of its own).
    pub async fn build(self) -> Result<Cluster> {
        std::fs::create_dir_all(&self.directory).doing("make the cluster's directory")?;
        let (postgres, database) = match self.own_databases {
            true => Postgres::own(&self.directory).await?,
            false => Postgres::shared().await?,
        };
        let redis = if self.own_databases { Redis::own(&self.directory).await? } else { Redis::shared()? };
        let hex = |bytes: usize| -> String {
            (0..bytes).map(|_| format!("{:02x}", rand::random::<u8>())).collect()
        };
        let credentials =
            Credentials { access_key: format!("CYX{}", hex(8).to_uppercase()), secret_key: hex(20) };
        let shared = env([
            ("DATABASE_URL", &database.url),
            ("REDIS_URL", redis.url()),
            ("JWT_SECRET", &hex(32)),
            ("CYXCLOUD_MASTER_KEY", &hex(32)),
        ]);
        let mut cluster = Cluster {
            gateways: Vec::new(),
            nodes: Vec::new(),
            rebalancers: Vec::new(),
            rebalancer_ports: free_ports(self.rebalancers)?,
            credentials,
            database,
            postgres,
            redis,
            shared,
            plan: self,
        };
        for index in 0..cluster.plan.gateways {
            let gateway = cluster.make_gateway(index)?;
            cluster.gateways.push(gateway);
        }
        for index in 0..cluster.plan.nodes {
            let node = cluster.make_node(index).await?;
            cluster.nodes.push(node);
        }
        for index in 0..cluster.plan.rebalancers {
            let rebalancer = cluster.make_rebalancer(index)?;
            cluster.rebalancers.push(rebalancer);
        }
        Ok(cluster)
    }

    /// Makes it, starts it, and waits until it takes objects that need nodes.
    pub async fn start(self) -> Result<Cluster> {
        let cluster = self.build().await?;
        match cluster.start().await {
            Ok(()) => Ok(cluster),
            Err(Error::Broken(why)) => Err(Error::failed("start the cluster", why)),
            Err(error) => Err(error),
        }
    }
}

/// One gateway.
#[derive(Debug)]
pub struct Gateway {
    /// The program.
    pub process: Process,
    /// `http://127.0.0.1:port`.
    pub url: String,
    /// For nodes.
    pub grpc_port: u16,
    /// Prometheus metrics.
    pub metrics_port: u16,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// The program.
    pub process: Process,
    /// Where it listens.
    pub host: String,
    /// Of its chunk service, without proxy.
    pub grpc_port: u16,
    /// Of its health and metrics.
    pub metrics_port: u16,
    /// `STORAGE_PATH`.
    pub data: PathBuf,
    /// What that is on, if it is on a disk of its own.
    pub disk: Option<Disk>,
    /// Between gateways, rebalancers and this node.
    pub proxy: Option<Proxy>,
    /// Between this node and its gateway.
    pub uplink: Option<Proxy>,
}

impl Node {
    /// As it calls itself, and as the database knows it (`nodes.label`).
    pub fn name(&self) -> &str {
        &self.process.name
    }

    /// Where it says whether it is well.
    pub fn health(&self) -> String {
        format!("http://{}:{}/health", self.host, self.metrics_port)
    }

    /// Does this to everything between this node and the rest. Needs [`Builder::proxies`].
    pub fn line(&self, mode: Mode) {
        for proxy in [&self.proxy, &self.uplink].into_iter().flatten() {
            proxy.set(mode);
        }
    }

    /// The disk of its own.
    pub fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().ok_or_else(|| Error::failed("use a node's disk", "it has none of its own"))
    }
}

/// All processes and what they stand on. Dropped, it ends them without goodbye.
#[derive(Debug)]
pub struct Cluster {
    /// At least one.
    pub gateways: Vec<Gateway>,
    /// In the order in which they were made: `node-1` is the first.
    pub nodes: Vec<Node>,
    /// Perhaps none.
    pub rebalancers: Vec<Process>,
    /// Of their health and metrics, in the same order.
    pub rebalancer_ports: Vec<u16>,
    /// Of the root user.
    pub credentials: Credentials,
    /// The metadata.
    pub database: Database,
    /// Where that lives.
    pub postgres: Postgres,
    /// Ephemeral state.
    pub redis: Redis,
    shared: Env,
    plan: Builder,
}

impl Cluster {
    /// What owners' secrets and the servers' own keys are wrapped under.
    pub fn master_key(&self) -> Result<MasterKey> {
        let text = self.shared.get("CYXCLOUD_MASTER_KEY").map(String::as_str).unwrap_or_default();
        text.parse().doing("read the master key")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.plan.directory.join(format!("{name}.log"))
    }

    fn make_gateway(&self, index: usize) -> Result<Gateway> {
        let ports = free_ports(3)?;
        let mut variables = self.shared.clone();
        variables.extend(env([
            ("HTTP_ADDR", &format!("127.0.0.1:{}", ports[0])),
            ("GRPC_ADDR", &format!("127.0.0.1:{}", ports[1])),
            ("METRICS_ADDR", &format!("127.0.0.1:{}", ports[2])),
            ("CYXCLOUD_ROOT_ACCESS_KEY", &self.credentials.access_key),
            ("CYXCLOUD_ROOT_SECRET_KEY", &self.credentials.secret_key),
        ]));
        variables.extend(self.plan.gateway_env.clone());
        let name = format!("gateway-{}", index + 1);
        let command = vec![text(&binary("cyxcloud-gateway")?)];
        let process = Process::new(name.clone(), command, variables, self.log(&name));
        let url = format!("http://127.0.0.1:{}", ports[0]);
        Ok(Gateway { process, url, grpc_port: ports[1], metrics_port: ports[2] })
    }

    async fn make_node(&self, index: usize) -> Result<Node> {
        let ports = free_ports(3)?;
        let name = format!("node-{}", index + 1);
        let host = match (self.plan.apart, self.plan.proxies) {
            (false, _) => "127.0.0.1".to_owned(),
            (true, false) => format!("127.0.{}.1", index + 1),
            (true, true) => {
                return Err(Error::failed("put nodes on networks of their own", "they are behind proxies"));
            }
        };
        let data = self.plan.directory.join(&name);
        let storage = self.plan.storage.get(index).or(self.plan.storage.last());
        let disk = match storage {
            Some(Storage::Disk(kind)) => Some(Disk::new(*kind, &data)?),
            _ => None,
        };
        // ext4 puts lost+found into its root.
        let data = if disk.is_some() { data.join("data") } else { data };
        let mut gateway_port = self.gateways[index % self.gateways.len()].grpc_port;
        let (mut proxy, mut uplink) = (None, None);
        if self.plan.proxies {
            proxy = Some(Proxy::before(ports[0]).await?);
            uplink = Some(Proxy::before(gateway_port).await?);
        }
        gateway_port = uplink.as_ref().map_or(gateway_port, |proxy| proxy.port);
        let advertised = proxy.as_ref().map_or(ports[0], |proxy| proxy.port);
        let operator = match self.plan.operators {
            0 => String::new(),
            count => format!("operator-{}", index % count + 1),
        };
        let mut variables = env([
            ("NODE_ID", &name),
            ("NODE_NAME", &name),
            ("NODE_OPERATOR", &operator),
            ("GRPC_HOST", &host),
            ("GRPC_PORT", &ports[0].to_string()),
            ("METRICS_HOST", &host),
            ("METRICS_PORT", &ports[1].to_string()),
            ("LIBP2P_PORT", &ports[2].to_string()),
            ("STORAGE_PATH", &text(&data)),
            ("CENTRAL_SERVER_ADDR", &format!("http://127.0.0.1:{gateway_port}")),
            ("ADVERTISE_ADDR", &format!("{host}:{advertised}")),
        ]);
        variables.extend(self.plan.node_env.clone());
        let command = vec![text(&binary("cyxcloud-node")?)];
        let process = Process::new(name.clone(), command, variables, self.log(&name));
        let (grpc_port, metrics_port) = (ports[0], ports[1]);
        Ok(Node { process, host, grpc_port, metrics_port, data, disk, proxy, uplink })
    }

    fn make_rebalancer(&self, index: usize) -> Result<Process> {
        let mut variables = self.shared.clone();
        variables.insert("HTTP_ADDR".to_owned(), format!("127.0.0.1:{}", self.rebalancer_ports[index]));
        variables.extend(self.plan.rebalancer_env.clone());
        let name = format!("rebalancer-{}", index + 1);
        let command = vec![text(&binary("cyxcloud-rebalancer")?)];
        Ok(Process::new(name.clone(), command, variables, self.log(&name)))
    }

    /// Starts every process, and waits until an object that needs nodes is stored through each gateway.
    pub async fn start(&self) -> Result<()> {
        for gateway in &self.gateways {
            gateway.process.start()?;
            self.answers(&gateway.process, &format!("{}/health", gateway.url)).await?;
        }
        for node in &self.nodes {
            node.process.start()?;
        }
        for rebalancer in &self.rebalancers {
            rebalancer.start()?;
        }
        self.wait_online(self.nodes.len(), SOON).await?;
        for index in 0..self.gateways.len() {
            self.wait_writable(index, SOON).await?;
        }
        Ok(())
    }

    /// Starts one more node, as the builder would have.
    pub async fn add_node(&mut self) -> Result<()> {
        let node = self.make_node(self.nodes.len()).await?;
        node.process.start()?;
        self.nodes.push(node);
        Ok(())
    }

    /// Every process of ours.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        let gateways = self.gateways.iter().map(|gateway| &gateway.process);
        gateways.chain(self.nodes.iter().map(|node| &node.process)).chain(&self.rebalancers)
    }

    /// A client of one gateway, as root.
    pub fn s3(&self, gateway: usize) -> Result<S3> {
        S3::new(&self.gateways[gateway % self.gateways.len()].url, &self.credentials)
    }

    /// Waits until a URL answers with success, or its process has ended.
    pub async fn answers(&self, process: &Process, url: &str) -> Result<()> {
        let http = reqwest::Client::builder().tls_certs_only([]).build().doing("set up a client")?;
        let what = format!("{} answers at {url}", process.name);
        eventually(&what, SOON, || async {
            if !process.running() {
                return Some(Err(Error::broken(format!("{} ended:\n{}", process.name, process.tail(15)))));
            }
            let answer = http.get(url).timeout(Duration::from_secs(5)).send().await.ok()?;
            answer.status().is_success().then_some(Ok(()))
        })
        .await?
    }

    /// Nodes that the database calls online.
    pub async fn online(&self) -> Result<usize> {
        let count = self.database.number("SELECT count(*) FROM nodes WHERE status = 'online'").await?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Waits until exactly so many nodes are online.
    pub async fn wait_online(&self, count: usize, limit: Duration) -> Result<()> {
        eventually(&format!("{count} nodes are online"), limit, || async {
            self.online().await.is_ok_and(|online| online == count).then_some(())
        })
        .await
    }

    /// Which nodes may be given new chunks: online, and not held back after failed audits.
    pub async fn trusted(&self) -> Result<Vec<usize>> {
        let sql = "SELECT label FROM nodes WHERE status = 'online' AND NOT quarantined";
        let names = self.database.texts(sql).await?;
        let named = |index: &usize| names.iter().any(|name| name == self.nodes[*index].name());
        Ok((0..self.nodes.len()).filter(named).collect())
    }

    /// Lets a node that is held back after failed audits be given new chunks again, as an administrator does once it is mended.
    pub async fn take_back(&self, index: usize) -> Result<()> {
        let held_back = format!(
            "SELECT id::text FROM nodes WHERE label = '{}' AND quarantined",
            self.nodes[index].name()
        );
        for id in self.database.texts(&held_back).await? {
            let resume = Request::to(Method::POST, &format!("/api/v1/admin/nodes/{id}/resume"));
            match self.s3(0)?.send(resume).await {
                Ok(_) => {}
                Err(refused) if refused.status == Some(409) => {} // it proved itself meanwhile
                Err(refused) => return Err(Error::failed("take a node back", refused)),
            }
        }
        Ok(())
    }

    /// Waits until an object that needs nodes can be stored through this gateway, whose view of them may be a second old.
    pub async fn wait_writable(&self, gateway: usize, limit: Duration) -> Result<()> {
        let s3 = self.s3(gateway)?;
        let bucket = format!("probe-{}", uuid::Uuid::new_v4().simple());
        eventually("a bucket can be made", limit, || async { s3.make_bucket(&bucket).await.ok() }).await?;
        eventually("an object can be stored", limit, || async {
            s3.put(&bucket, "p", Bytes::from(vec![7; 300_000])).await.ok()
        })
        .await?;
        eventually("it can be deleted", limit, || async { s3.delete(&bucket, "p").await.ok() }).await
    }

    /// Waits until a node that was just started serves and a heartbeat of this life of it was heard.
    pub async fn wait_back(&self, index: usize) -> Result<()> {
        let node = &self.nodes[index];
        let before = self.database.texts("SELECT now()::text").await?.concat();
        self.answers(&node.process, &node.health()).await?;
        // Its row may say online all the while: a short absence is none yet.
        let heard = format!(
            "SELECT count(*) FROM nodes WHERE label = '{}' AND status = 'online' AND last_heartbeat > '{before}'",
            node.name()
        );
        eventually(&format!("a heartbeat of {} is heard", node.name()), SOON, || async {
            self.database.number(&heard).await.is_ok_and(|count| count == 1).then_some(())
        })
        .await
    }

    /// Starts a node that was killed, and waits until it takes part again.
    pub async fn restart_node(&self, index: usize) -> Result<()> {
        self.nodes[index].process.start()?;
        self.wait_back(index).await
    }

    /// Starts nodes that were killed, and waits until all of them take part again.
    pub async fn restart_nodes(&self, indexes: &[usize]) -> Result<()> {
        for &index in indexes {
            self.nodes[index].process.start()?;
        }
        for &index in indexes {
            self.wait_back(index).await?;
        }
        Ok(())
    }

    /// How many nodes may go right after the acknowledgement, whichever they are: the least that is recorded of any live segment.
    pub async fn acked_tolerance(&self) -> Result<usize> {
        let sql = "SELECT min(acked_tolerance) FROM segments WHERE state = 'live' AND inline_data IS NULL";
        Ok(usize::try_from(self.database.number(sql).await?).unwrap_or(0))
    }

    /// No program of ours may panic, whatever a scenario did to it.
    pub fn check_logs(&self) -> Result<()> {
        for process in self.processes() {
            let output = process.output();
            if let Some(line) = output.lines().find(|line| line.contains("panicked")) {
                return Err(Error::broken(format!("{} panicked: {line}", process.name)));
            }
        }
        Ok(())
    }

    /// Ends everything, and drops what is not ours alone.
    pub async fn finish(self) -> Result<()> {
        for process in self.processes() {
            process.kill();
        }
        self.database.pool().close().await;
        self.postgres.finish().await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Before their disks are unmounted, which happens when `nodes` is dropped.
        for process in self.processes() {
            process.kill();
        }
    }
}
