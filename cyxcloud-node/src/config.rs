//! All that a node can be told: flags, environment, and a file, in this order of weight.
//!
//! Read once, in `main`; nothing else looks at the environment. A file has the names of the environment in lower case
//! (`storage_path = "/data"`), and an unknown name in it is an error. Standalone makes a [`Config`] from
//! [`Config::default`] and reads neither.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser};
use cyxcloud_core::ByteCount;
use cyxcloud_core::address::{AddressPolicy, OwnAddresses};
use cyxcloud_core::reservation::{SYSTEM_RESERVED, StorageAccount};
use cyxcloud_core::secret::{self, SecretError, Strength};
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

/// Why a node cannot be started as told.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Wrong flags or environment; clap has the words, and `--help` and `--version` come this way too.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The file of `--config` cannot be used.
    #[error("could not use the configuration file {path}: {why}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A value is missing.
    #[error("{name} is required: {what}")]
    Missing {
        /// Its name in the environment.
        name: &'static str,
        /// What belongs there.
        what: &'static str,
    },
    /// A secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A value, or two together, make no sense.
    #[error("{0}")]
    Unusable(String),
}

/// What a node is told.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "cyxcloud-node",
    version,
    about = "Storage node of CyxCloud: lends a disk and serves chunks from it"
)]
pub struct Config {
    /// Configuration file (TOML) with the names of the environment in lower case; flags and environment win.
    #[arg(long, env = "CYXCLOUD_NODE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Label of this node; needs not be unique. [default: a UUID derived from the node's key]
    #[arg(long, env = "NODE_ID")]
    pub node_id: Option<String>,

    /// Human-readable name.
    #[arg(long, env = "NODE_NAME", default_value = "storage-node")]
    pub node_name: String,

    /// Region or site, a failure domain.
    #[arg(long, env = "NODE_REGION", default_value = "")]
    pub node_region: String,

    /// Who operates the node, a failure domain.
    #[arg(long, env = "NODE_OPERATOR", default_value = "")]
    pub node_operator: String,

    /// Address on which the chunk service listens.
    #[arg(long, env = "GRPC_HOST", default_value = "0.0.0.0")]
    pub grpc_host: IpAddr,

    /// Port of the chunk service; 0 lets the system choose.
    #[arg(long, env = "GRPC_PORT", default_value_t = 50051)]
    pub grpc_port: u16,

    /// Address on which health and metrics are served.
    #[arg(long, env = "METRICS_HOST", default_value = "0.0.0.0")]
    pub metrics_host: IpAddr,

    /// Port of health and metrics; 0 lets the system choose.
    #[arg(long, env = "METRICS_PORT", default_value_t = 9090)]
    pub metrics_port: u16,

    /// Networks that metrics are served to (CIDR, separated by commas), beside this machine; health is everybody's.
    /// [default: private networks, without 100.64.0.0/10]
    #[arg(long, env = "METRICS_NETWORKS", value_name = "CIDR,...", value_delimiter = ',')]
    pub metrics_networks: Vec<IpNet>,

    /// Host, or host:port, where others reach the chunk service. [default: the address the gateway sees, and GRPC_PORT]
    #[arg(long, env = "ADVERTISE_ADDR")]
    pub advertise_addr: Option<String>,

    /// Data directory; made with mode 0700 if it is missing.
    #[arg(long, env = "STORAGE_PATH", default_value = "/data/storage")]
    pub storage_path: PathBuf,

    /// Space this node offers, in GB; beyond it, less the reservation, a store is refused.
    #[arg(long, env = "STORAGE_CAPACITY_GB", default_value = "100", value_parser = ByteCount::parse_gb)]
    pub storage_capacity_gb: ByteCount,

    /// Part of the capacity kept back for system use, such as 64MiB. [default: 2 GiB]
    #[arg(long, env = "STORAGE_RESERVED_BYTES")]
    pub storage_reserved_bytes: Option<ByteCount>,

    /// Read chunks by way of the system's page cache: costs CPU, and saves a slow disk from reading twice what is asked
    /// for often, where there is memory to spare.
    #[arg(long, env = "STORAGE_PAGE_CACHE")]
    pub storage_page_cache: bool,

    /// The gateway's gRPC address, such as http://gateway:50052 or https://gateway:50052.
    #[arg(long, env = "CENTRAL_SERVER_ADDR", default_value = "")]
    pub central_server_addr: String,

    /// Speak TLS on the port of the chunk service, with a certificate made from this node's key; gateways know the key and accept no
    /// other.
    #[arg(long, env = "NODE_TLS")]
    pub tls: bool,

    /// Certificates (PEM) of the authorities to trust for an https:// gateway. [default: the system's]
    #[arg(long, env = "TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Seconds between heartbeats. [default: what the gateway says, 30]
    #[arg(long, env = "HEARTBEAT_INTERVAL_SECS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub heartbeat_interval_secs: Option<u64>,

    /// Open connections from one address (one /64 of IPv6), at most. Of addresses that have shown no good token within an hour, 32
    /// requests are worked on at a time, 4 of each; more wait or are refused.
    #[arg(long, env = "CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_per_address: u32,

    /// Say in heartbeats that a planned pause is on: nothing new is stored here, and absence raises no alarm.
    #[arg(long, env = "MAINTENANCE")]
    pub maintenance: bool,

    /// Private networks in which other nodes live (CIDR, separated by commas); chunks are pushed nowhere else but to
    /// public addresses.
    #[arg(long, env = "NODE_NETWORKS", value_delimiter = ',')]
    pub node_networks: Vec<IpNet>,

    /// Let chunks be pushed to nodes on this machine too: for tests.
    #[arg(long, env = "NODE_LOOPBACK", hide = true)]
    pub node_loopback: bool,

    /// Register without showing the storage reservation: for a process that runs several nodes.
    #[arg(skip)]
    pub quiet: bool,

    /// Hours for which a deleted chunk can be restored; 0 deletes at once. What is stored comes first: the oldest goes
    /// earlier when space is short.
    #[arg(long, env = "NODE_TRASH_HOURS", value_name = "HOURS", default_value_t = 168)]
    pub trash_hours: u64,

    /// The same in seconds, which wins.
    #[arg(long, env = "NODE_TRASH_SECS", value_name = "SECONDS")]
    pub trash_secs: Option<u64>,

    /// Days in which every chunk is read again and checked; 0 does so only when the gateway asks.
    #[arg(long, env = "SCRUB_INTERVAL_DAYS", value_name = "DAYS", default_value_t = 30)]
    pub scrub_interval_days: u64,

    /// The same in seconds, which wins.
    #[arg(long, env = "SCRUB_INTERVAL_SECS", value_name = "SECONDS")]
    pub scrub_interval_secs: Option<u64>,

    /// How fast chunks are read to be checked, per second.
    #[arg(long, env = "SCRUB_BYTES_PER_SEC", value_name = "SIZE", default_value = "8MiB")]
    pub scrub_bytes_per_sec: ByteCount,

    /// Port of libp2p discovery.
    #[arg(long, env = "LIBP2P_PORT", default_value_t = 4001)]
    pub libp2p_port: u16,

    /// Peers to begin discovery with (multiaddresses with /p2p/, separated by commas); any given starts discovery.
    #[arg(long, env = "BOOTSTRAP_PEERS", value_delimiter = ',')]
    pub bootstrap_peers: Vec<String>,

    /// Start discovery without bootstrap peers: others may begin with this node.
    #[arg(long, env = "DISCOVERY")]
    pub discovery: bool,

    /// Seconds that requests may take to end when the node stops.
    #[arg(long, env = "SHUTDOWN_GRACE_SECS", default_value_t = 10)]
    pub shutdown_grace_secs: u64,

    /// The CyxWiz API at which the node's operator has an account, such as http://cyxwiz-api:3002.
    #[arg(long, env = "CYXWIZ_API_URL")]
    pub cyxwiz_api_url: Option<String>,

    /// Operator's e-mail address there.
    #[arg(long, env = "CYXWIZ_EMAIL")]
    pub cyxwiz_email: Option<String>,

    /// Operator's password there, or CYXWIZ_PASSWORD_FILE.
    #[arg(long, env = "CYXWIZ_PASSWORD", hide_env_values = true)]
    pub cyxwiz_password: Option<SecretString>,

    /// File that holds the operator's password.
    #[arg(long, env = "CYXWIZ_PASSWORD_FILE", value_name = "PATH", hide = true)]
    pub cyxwiz_password_file: Option<PathBuf>,

    /// Forget the log-in at the CyxWiz API that the data directory keeps, and end.
    #[arg(long)]
    pub logout: bool,
}

impl Default for Config {
    /// What a node without flags, environment and file is told.
    fn default() -> Self {
        // Not from the environment of whoever embeds it.
        let command = Self::command().mut_args(|arg| arg.env(None));
        Self::from_arg_matches(&command.get_matches_from(["cyxcloud-node"]))
            .expect("every argument has a default")
    }
}

impl Config {
    /// Reads flags (the program's name first), environment and file.
    pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigError> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let matches = Self::command().try_get_matches_from(&args)?;
        if let Some(path) = matches.get_one::<PathBuf>("config") {
            let given = |id: &str| {
                matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
            };
            args.extend(read_file(path, &Self::command(), given)?);
        }
        let mut config = Self::from_arg_matches(&Self::command().try_get_matches_from(&args)?)?;
        config.read_password()?;
        config.check()
    }

    /// Takes the password from wherever it is; afterwards it is in its own field.
    fn read_password(&mut self) -> Result<(), SecretError> {
        const NAME: &str = "CYXWIZ_PASSWORD";
        let file = self.cyxwiz_password_file.take();
        let given = self.cyxwiz_password.as_ref().map(ExposeSecret::expose_secret);
        let read = |path: &Path| std::fs::read_to_string(path);
        // Whether it is long enough is for the service to say that has the account.
        let password = secret::obtain(NAME, given, file.as_deref(), Strength::AtLeast(1), read)?;
        self.cyxwiz_password = password.map(SecretString::from);
        Ok(())
    }

    /// Checks what one value cannot know alone, and what has no default.
    pub fn check(mut self) -> Result<Self, ConfigError> {
        if self.logout {
            // Nothing else is looked at.
            return Ok(self);
        }
        self.check_account()?;
        if self.central_server_addr.trim().is_empty() {
            let what = "the gateway's gRPC address, such as http://gateway:50052";
            return Err(ConfigError::Missing { name: "CENTRAL_SERVER_ADDR", what });
        }
        if !self.central_server_addr.contains("://") {
            self.central_server_addr = format!("http://{}", self.central_server_addr.trim());
        }
        let account = self.account();
        if account.allocatable() == ByteCount::ZERO {
            return Err(ConfigError::Unusable(format!(
                "STORAGE_CAPACITY_GB offers {}, of which {} are reserved, so nothing is left for chunks; offer more or lower STORAGE_RESERVED_BYTES",
                account.total, account.reserved
            )));
        }
        if self.scrub_bytes_per_sec == ByteCount::ZERO {
            return Err(ConfigError::Unusable(
                "SCRUB_BYTES_PER_SEC is at least 1; SCRUB_INTERVAL_DAYS=0 leaves scrubbing to the gateway"
                    .to_owned(),
            ));
        }
        self.bootstrap_peers.retain(|peer| !peer.trim().is_empty());
        self.advertise_addr = self.advertise_addr.filter(|address| !address.trim().is_empty());
        self.advertised()?;
        Ok(self)
    }

    /// An account is at an address. What is empty counts as not given: files of many variables leave them so.
    fn check_account(&mut self) -> Result<(), ConfigError> {
        for text in [&mut self.cyxwiz_api_url, &mut self.cyxwiz_email] {
            *text = text.take().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        }
        if self.cyxwiz_api_url.is_none() && self.cyxwiz_email.is_some() {
            let what =
                "CYXWIZ_EMAIL is set, and this is where that account is, such as http://cyxwiz-api:3002";
            return Err(ConfigError::Missing { name: "CYXWIZ_API_URL", what });
        }
        Ok(())
    }

    /// The offered space, with nothing used yet.
    pub fn account(&self) -> StorageAccount {
        StorageAccount {
            total: self.storage_capacity_gb,
            reserved: self.storage_reserved_bytes.unwrap_or(SYSTEM_RESERVED),
            used: ByteCount::ZERO,
        }
    }

    /// Host and port of `ADVERTISE_ADDR`; an empty host is the address that the gateway sees.
    pub fn advertised(&self) -> Result<(String, Option<u16>), ConfigError> {
        let Some(text) = &self.advertise_addr else { return Ok((String::new(), None)) };
        let wrong = || ConfigError::Unusable(format!("ADVERTISE_ADDR {text:?} is not a host or host:port"));
        let bare =
            text.trim().trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/');
        if let Ok(ip) = bare.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok((ip.to_string(), None));
        }
        let (host, port) = match bare.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
            None => (bare, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(fine) {
            return Err(wrong());
        }
        Ok((host.to_owned(), port))
    }

    /// Where this node may push chunks to.
    pub fn policy(&self) -> AddressPolicy {
        AddressPolicy {
            networks: self.node_networks.clone(),
            loopback: self.node_loopback,
            forbidden: OwnAddresses::default(),
        }
    }

    /// The operator's own pace of heartbeats, if there is one.
    pub fn heartbeat_interval(&self) -> Option<Duration> {
        self.heartbeat_interval_secs.map(Duration::from_secs)
    }

    /// How long deleted chunks can be restored; zero if not at all.
    pub fn trash_period(&self) -> Duration {
        Duration::from_secs(self.trash_secs.unwrap_or_else(|| self.trash_hours.saturating_mul(3_600)))
    }

    /// How often all chunks are read again, unless only when asked.
    pub fn scrub_interval(&self) -> Option<Duration> {
        let days = self.scrub_interval_days;
        let secs = self.scrub_interval_secs.unwrap_or_else(|| days.saturating_mul(86_400));
        (secs > 0).then(|| Duration::from_secs(secs))
    }

    /// Whether libp2p discovery runs.
    pub fn wants_discovery(&self) -> bool {
        self.discovery || !self.bootstrap_peers.is_empty()
    }
}

/// The file's values as flags, but for those given otherwise.
fn read_file(
    path: &Path,
    command: &clap::Command,
    given: impl Fn(&str) -> bool,
) -> Result<Vec<OsString>, ConfigError> {
    let wrong = |why: String| ConfigError::File { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let mut args = Vec::new();
    for (name, value) in table {
        let named = |arg: &&Arg| {
            arg.get_id() != "config"
                && arg.get_env().is_some_and(|env| env.to_string_lossy().eq_ignore_ascii_case(&name))
        };
        let Some(arg) = command.get_arguments().find(named) else {
            return Err(wrong(format!("there is no setting {name:?}")));
        };
        if given(arg.get_id().as_str()) {
            continue;
        }
        let flag = format!("--{}", arg.get_long().unwrap_or_default());
        match (matches!(arg.get_action(), ArgAction::SetTrue), value) {
            (true, toml::Value::Boolean(true)) => args.push(flag.into()),
            (true, toml::Value::Boolean(false)) => {}
            (true, _) => return Err(wrong(format!("{name} is true or false"))),
            (false, value) => args.push(format!("{flag}={}", plain(&name, value).map_err(wrong)?).into()),
        }
    }
    Ok(args)
}

fn plain(name: &str, value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Array(items) => {
            let items: Result<Vec<_>, _> = items.into_iter().map(|item| plain(name, item)).collect();
            Ok(items?.join(","))
        }
        toml::Value::Boolean(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => {
            Err(format!("{name} is a text, a number or a list of them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<Config, ConfigError> {
        let program = ["cyxcloud-node", "--central-server-addr", "gateway:50052"];
        Config::load(program.iter().chain(args).map(OsString::from))
    }

    #[test]
    fn the_defaults_are_those_of_the_specification_and_of_default() {
        let parsed = load(&[]).expect("complete");
        let written = Config { central_server_addr: "gateway:50052".to_owned(), ..Config::default() };
        assert_eq!(format!("{parsed:?}"), format!("{:?}", written.check().expect("complete")));
        assert_eq!(parsed.account().allocatable(), ByteCount::gib(98));
    }

    #[test]
    fn the_file_yields_to_flags_and_unknown_names_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node.toml");
        std::fs::write(
            &path,
            "grpc_port = 1\nmetrics_port = 2\nstorage_capacity_gb = 3.5\nmaintenance = true\nnode_networks = [\"10.0.0.0/8\", \"192.168.0.0/16\"]\n",
        )
        .expect("written");
        let file = path.to_str().expect("plain path");
        let config = load(&["--config", file, "--grpc-port", "7"]).expect("fine");
        assert_eq!((config.grpc_port, config.metrics_port, config.maintenance), (7, 2, true));
        assert_eq!(config.storage_capacity_gb, ByteCount::mib(3584));
        assert_eq!(config.node_networks.len(), 2);
        std::fs::write(&path, "grpc_prot = 1\n").expect("written");
        assert!(load(&["--config", file]).expect_err("a typing error").to_string().contains("grpc_prot"));
    }

    #[test]
    fn nonsense_is_one_clear_line() {
        assert!(
            load(&["--storage-capacity-gb", "1"]).expect_err("all reserved").to_string().contains("reserved")
        );
        let missing = Config::load(["cyxcloud-node", "--central-server-addr="].map(OsString::from));
        assert!(missing.expect_err("no gateway").to_string().contains("CENTRAL_SERVER_ADDR"));
        assert!(load(&["--advertise-addr", "a b"]).is_err());
    }

    #[test]
    fn periods_are_told_in_large_units_or_in_seconds() {
        let of = |args: &[&str]| {
            let config = load(args).expect("fine");
            (config.trash_period().as_secs(), config.scrub_interval().map(|period| period.as_secs()))
        };
        assert_eq!(of(&[]), (7 * 86_400, Some(30 * 86_400)));
        assert_eq!(of(&["--trash-hours", "2", "--scrub-interval-days", "1"]), (7_200, Some(86_400)));
        assert_eq!(of(&["--trash-secs", "3", "--scrub-interval-secs", "4"]), (3, Some(4)));
        assert_eq!(of(&["--trash-hours", "0", "--scrub-interval-days", "0"]), (0, None));
        assert!(load(&["--scrub-bytes-per-sec", "0"]).is_err());
    }

    #[test]
    fn advertised_addresses_have_an_optional_port() {
        let of = |text| {
            let config = Config { advertise_addr: Some(String::from(text)), ..Config::default() };
            config.advertised().expect("an address")
        };
        assert_eq!(of("node-1"), ("node-1".to_owned(), None));
        assert_eq!(of("192.0.2.7:50061"), ("192.0.2.7".to_owned(), Some(50061)));
        assert_eq!(of("[2001:db8::1]:50061"), ("2001:db8::1".to_owned(), Some(50061)));
        assert_eq!(of("2001:db8::1"), ("2001:db8::1".to_owned(), None));
    }

    #[test]
    fn an_account_has_an_address() {
        assert!(load(&["--cyxwiz-email", "a@b.c"]).is_err());
        let config = load(&["--cyxwiz-api-url", "", "--cyxwiz-email", ""]).expect("nothing is set");
        assert_eq!((config.cyxwiz_api_url, config.cyxwiz_email), (None, None));
        let forget = Config::load(["cyxcloud-node", "--logout"].map(OsString::from));
        assert!(forget.expect("needs no gateway").logout);
    }

    #[test]
    fn a_password_is_in_one_place() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("password");
        let file = path.to_str().expect("plain path");
        let password = |text: &str| {
            std::fs::write(&path, text).expect("written");
            load(&["--cyxwiz-password-file", file]).map(|config| config.cyxwiz_password)
        };
        let read = password("correct horse\n").expect("fine").expect("is there");
        assert_eq!(read.expose_secret(), "correct horse");
        for bad in ["", "\n", "password", "two\nlines"] {
            assert!(password(bad).is_err(), "{bad:?}");
        }
        let twice = load(&["--cyxwiz-password-file", file, "--cyxwiz-password", "correct horse"]);
        assert!(twice.expect_err("twice").to_string().contains("CYXWIZ_PASSWORD_FILE"));
    }

    #[test]
    fn a_password_is_not_printed() {
        let config = Config { cyxwiz_password: Some("hunter2".into()), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
