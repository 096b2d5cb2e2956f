//! All that a gateway can be told. Read once, in `main`; nothing else looks at the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use cyxcloud_core::ByteCount;
use cyxcloud_core::address::{AddressPolicy, OwnAddresses};
use cyxcloud_core::node::LifecycleTimers;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::secret::{self, SecretError, Strength};
use cyxcloud_tls::crowd::Crowd;
use cyxcloud_tls::{ServerKeyArgs, TlsArgs, TlsError};
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

use crate::objects;
use crate::websocket;
use crate::websocket::origin::{Origin, Origins};

/// Said below `--help`, because flags that carry secrets would show them to everybody on the machine.
const SECRETS_HELP: &str = "\
Secrets: JWT_SECRET (shared with the identity service, 32 bytes or more), CYXCLOUD_MASTER_KEY (64 hexadecimal digits; without it \
nothing stored can be read), CYXCLOUD_ROOT_SECRET_KEY (32 characters or more), DATABASE_URL and REDIS_URL. Each is a variable, \
or in the file that the variable with _FILE added names (JWT_SECRET_FILE=/run/secrets/jwt).";

/// What every machine calls itself.
const LOCAL: &str = "localhost";

/// The CyxCloud gateway: S3 and REST over HTTP, node and data services over gRPC.
#[derive(Debug, Parser)]
#[command(name = "cyxcloud-gateway", version, about, max_term_width = 110, after_help = SECRETS_HELP)]
pub struct Config {
    /// HTTP listen address: S3, REST, health
    #[arg(long, env = "HTTP_ADDR", value_name = "ADDR", default_value = "0.0.0.0:8080")]
    pub http_addr: SocketAddr,
    /// gRPC listen address: NodeService, DataService
    #[arg(long, env = "GRPC_ADDR", value_name = "ADDR", default_value = "0.0.0.0:50052")]
    pub grpc_addr: SocketAddr,
    /// Listen address of Prometheus metrics for whoever reaches it; without it administrators' credentials are needed, at
    /// /metrics of the HTTP port
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDR")]
    pub metrics_addr: Option<SocketAddr>,
    /// Allow browsers from all origins (CORS)
    #[arg(long)]
    pub cors_permissive: bool,
    /// PostgreSQL connection URL; this, --data-dir or --memory-only says where metadata lives
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<SecretString>,
    /// Connections to PostgreSQL, at most
    #[arg(long, env = "DATABASE_CONNECTIONS", value_name = "N", default_value_t = 32)]
    pub database_connections: u32,
    /// Start although PostgreSQL is set up so that acknowledged data can be lost
    #[arg(long)]
    pub i_accept_data_loss: bool,
    /// Redis connection URL; without it ephemeral state lives in this process, which then must be the only gateway
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<SecretString>,
    /// Directory of the embedded database, where there is no PostgreSQL
    #[arg(long, env = "CYXCLOUD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Keep metadata in memory: everything is lost at exit
    #[arg(long)]
    pub memory_only: bool,
    /// Require tokens on gRPC: of nodes and programs here, and of everybody on the nodes; on unless --memory-only
    ///
    /// Without it whoever reaches a node's port may read and delete what it holds.
    #[arg(long, env = "GRPC_AUTH", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub grpc_auth: Option<bool>,
    /// The CyxWiz API, such as http://cyxwiz-api:3002: says what its accounts may store; nodes' operators have accounts there
    #[arg(long, env = "CYXWIZ_API_URL", value_name = "URL")]
    pub cyxwiz_api_url: Option<String>,
    /// How long its answers are believed
    #[arg(long, env = "CYXWIZ_CACHE_SECS", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub cyxwiz_cache_secs: u64,
    /// Networks that nodes may be in although they are private, e.g. 10.0.0.0/8,127.0.0.0/8
    #[arg(long, env = "NODE_NETWORKS", value_name = "CIDR,...", value_delimiter = ',')]
    pub node_networks: Vec<IpNet>,
    /// Nodes that one operator's account may have, where nodes' operators have accounts
    #[arg(long, env = "NODES_PER_OPERATOR_MAX", value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub nodes_per_operator_max: u32,
    /// Newest format that nodes may go over to with their data; hold the old one while older gateways still run, for those refuse
    /// nodes of a newer one
    #[arg(long, env = "NODE_FORMAT", value_name = "N", default_value_t = cyxcloud_proto::FORMAT_NEWEST,
          value_parser = clap::value_parser!(u32).range(cyxcloud_proto::FORMAT_OLDEST as i64..))]
    pub node_format: u32,
    /// Solana RPC endpoint (blockchain builds only)
    #[arg(long, value_name = "URL")]
    pub solana_rpc_url: Option<String>,
    /// Gateway authority keypair (blockchain builds only)
    #[arg(long, env = "GATEWAY_KEYPAIR_PATH", value_name = "PATH")]
    pub keypair_path: Option<PathBuf>,
    /// Enable blockchain integration (blockchain builds only)
    #[arg(long)]
    pub enable_blockchain: bool,

    /// Secret for checking tokens, shared with the identity service; at least 32 bytes
    #[arg(env = "JWT_SECRET", long = "jwt-secret", hide = true, hide_env_values = true)]
    pub jwt_secret: Option<SecretString>,
    /// Secret under which tokens hold too: the one before, or the next, until all gateways and the identity service have it
    #[arg(env = "JWT_SECRET_PREVIOUS", long = "jwt-secret-previous", hide = true, hide_env_values = true)]
    pub jwt_secret_previous: Option<SecretString>,
    /// `iss` that tokens must carry
    #[arg(long, env = "JWT_ISSUER", value_name = "NAME", default_value = "cyxcloud")]
    pub jwt_issuer: String,
    /// `aud` that tokens must carry
    #[arg(long, env = "JWT_AUDIENCE", value_name = "NAME", default_value = "cyxcloud")]
    pub jwt_audience: String,
    /// Key that owners' secrets are wrapped under: 64 hexadecimal digits. Without it nothing stored can be read
    #[arg(env = "CYXCLOUD_MASTER_KEY", long = "master-key", hide = true, hide_env_values = true)]
    pub master_key: Option<SecretString>,
    /// Access key of the root user
    #[arg(long, env = "CYXCLOUD_ROOT_ACCESS_KEY", value_name = "KEY")]
    pub root_access_key: Option<String>,
    /// Secret key of the root user; at least 32 characters
    #[arg(env = "CYXCLOUD_ROOT_SECRET_KEY", long = "root-secret-key", hide = true, hide_env_values = true)]
    pub root_secret_key: Option<SecretString>,
    /// Region that S3 clients sign for
    #[arg(long, env = "CYXCLOUD_REGION", value_name = "NAME", default_value = "us-east-1")]
    pub region: String,
    /// Domains under which bucket.DOMAIN addresses a bucket
    #[arg(
        long,
        env = "CYXCLOUD_DOMAINS",
        value_name = "DOMAIN,...",
        value_delimiter = ',',
        default_value = "s3.localhost,localhost"
    )]
    pub domains: Vec<String>,
    /// Name under which people know this service; wallets' signatures are bound to it
    #[arg(long, env = "CYXCLOUD_AUTH_DOMAIN", value_name = "NAME", default_value = LOCAL)]
    pub auth_domain: String,
    /// Chain that wallets belong to; their signatures are bound to it
    #[arg(long, env = "CYXCLOUD_AUTH_CHAIN", value_name = "NAME", default_value = "solana:mainnet")]
    pub auth_chain: String,
    /// Space that a new user gets
    #[arg(long, env = "CYXCLOUD_USER_QUOTA", value_name = "SIZE", default_value = "10GiB")]
    pub user_quota: ByteCount,
    /// New wallets that may log in from one address (one /64 of IPv6) in an hour, each of which gets that space
    #[arg(long, env = "CYXCLOUD_SIGNUPS_PER_HOUR", value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub signups_per_hour: u32,
    /// Buckets that one owner may have
    #[arg(long, env = "BUCKETS_PER_OWNER_MAX", value_name = "N", default_value_t = objects::BUCKETS_PER_OWNER_MAX,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub buckets_per_owner_max: u32,
    /// Multipart uploads that one owner may have open
    #[arg(long, env = "UPLOADS_PER_OWNER_MAX", value_name = "N", default_value_t = objects::UPLOADS_PER_OWNER_MAX,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub uploads_per_owner_max: u32,
    /// Proxies whose X-Forwarded-For is believed, e.g. 10.0.0.0/8
    #[arg(long, env = "TRUSTED_PROXIES", value_name = "CIDR,...", value_delimiter = ',')]
    pub trusted_proxies: Vec<IpNet>,
    /// Open connections to one port from one address (one /64 of IPv6), at most; trusted proxies have no limit
    #[arg(long, env = "CYXCLOUD_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_per_address: u32,
    /// Web pages that may open WebSockets, beside those of this host, e.g. https://app.example; all with --cors-permissive
    #[arg(long, env = "WS_ORIGINS", value_name = "ORIGIN,...", value_delimiter = ',')]
    pub ws_origins: Vec<Origin>,
    /// Between two pings on a WebSocket; who is silent for two of them is cut off
    #[arg(long, env = "WS_PING_SECS", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub ws_ping_secs: u64,
    /// How long lines of the audit log are kept
    #[arg(long, env = "CYXCLOUD_AUDIT_DAYS", value_name = "DAYS", default_value_t = 400)]
    pub audit_days: u32,
    /// Accept objects although there is only one node and its loss loses them
    #[arg(long, env = "CYXCLOUD_ALLOW_NO_REDUNDANCY", action = ArgAction::SetTrue)]
    pub allow_no_redundancy: bool,
    /// Memory for object bytes in flight, over all requests
    #[arg(long, env = "CYXCLOUD_MEMORY", value_name = "SIZE", default_value = "256MiB")]
    pub memory: ByteCount,
    /// Objects up to this size are kept in the metadata store
    #[arg(long, env = "CYXCLOUD_INLINE_MAX", value_name = "SIZE", default_value = "4KiB")]
    pub inline_max: ByteCount,
    /// Objects up to this size are kept as copies and not coded
    #[arg(long, env = "CYXCLOUD_SMALL_MAX", value_name = "SIZE", default_value = "128KiB")]
    pub small_max: ByteCount,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub tls: TlsArgs,
    /// Speak plain text on the gRPC port although there is a certificate: for nodes in a private network
    #[arg(long, env = "GRPC_PLAINTEXT", help_heading = "TLS")]
    pub grpc_plaintext: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub server_key: ServerKeyArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub timers: TimerConfig,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub files: SecretFiles,
}

/// Files that hold secrets instead of the variables; read by [`Config::check`].
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SecretFiles {
    /// Instead of DATABASE_URL.
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "PATH", hide = true)]
    pub database_url_file: Option<PathBuf>,
    /// Instead of REDIS_URL.
    #[arg(long, env = "REDIS_URL_FILE", value_name = "PATH", hide = true)]
    pub redis_url_file: Option<PathBuf>,
    /// Instead of JWT_SECRET.
    #[arg(long, env = "JWT_SECRET_FILE", value_name = "PATH", hide = true)]
    pub jwt_secret_file: Option<PathBuf>,
    /// Instead of JWT_SECRET_PREVIOUS.
    #[arg(long, env = "JWT_SECRET_PREVIOUS_FILE", value_name = "PATH", hide = true)]
    pub jwt_secret_previous_file: Option<PathBuf>,
    /// Instead of CYXCLOUD_MASTER_KEY.
    #[arg(long, env = "CYXCLOUD_MASTER_KEY_FILE", value_name = "PATH", hide = true)]
    pub master_key_file: Option<PathBuf>,
    /// Instead of CYXCLOUD_ROOT_SECRET_KEY.
    #[arg(long, env = "CYXCLOUD_ROOT_SECRET_KEY_FILE", value_name = "PATH", hide = true)]
    pub root_secret_key_file: Option<PathBuf>,
}

/// Timers of the nodes' life cycle; each also in seconds, which wins.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Node life cycle")]
pub struct TimerConfig {
    /// Silence after which a node is offline
    #[arg(long, env = "NODE_OFFLINE_THRESHOLD_MINS", value_name = "MINUTES", default_value_t = 5)]
    pub node_offline_threshold_mins: u64,
    /// The same in seconds
    #[arg(long, env = "NODE_OFFLINE_THRESHOLD_SECS", value_name = "SECONDS")]
    pub node_offline_threshold_secs: Option<u64>,
    /// How long a node that came back stays in quarantine
    #[arg(long, env = "NODE_RECOVERY_QUARANTINE_MINS", value_name = "MINUTES", default_value_t = 5)]
    pub node_recovery_quarantine_mins: u64,
    /// The same in seconds
    #[arg(long, env = "NODE_RECOVERY_QUARANTINE_SECS", value_name = "SECONDS")]
    pub node_recovery_quarantine_secs: Option<u64>,
    /// Silence after which a node's chunks are moved away
    #[arg(long, env = "NODE_DRAIN_THRESHOLD_HOURS", value_name = "HOURS", default_value_t = 4)]
    pub node_drain_threshold_hours: u64,
    /// The same in seconds
    #[arg(long, env = "NODE_DRAIN_THRESHOLD_SECS", value_name = "SECONDS")]
    pub node_drain_threshold_secs: Option<u64>,
    /// Silence after which a node is removed
    #[arg(long, env = "NODE_REMOVE_THRESHOLD_DAYS", value_name = "DAYS", default_value_t = 7)]
    pub node_remove_threshold_days: u64,
    /// The same in seconds
    #[arg(long, env = "NODE_REMOVE_THRESHOLD_SECS", value_name = "SECONDS")]
    pub node_remove_threshold_secs: Option<u64>,
    /// How often nodes are asked to send a heartbeat
    #[arg(long, env = "NODE_HEARTBEAT_INTERVAL_SECS", value_name = "SECONDS", default_value_t = 30)]
    pub node_heartbeat_interval_secs: u64,
}

impl Default for TimerConfig {
    fn default() -> Self {
        use clap::{Args, Command, FromArgMatches};
        // Not from the environment of whoever embeds it.
        let command = Self::augment_args(Command::new("timers")).mut_args(|arg| arg.env(None));
        Self::from_arg_matches(&command.get_matches_from(["timers"])).expect("every argument has a default")
    }
}

impl TimerConfig {
    /// The timers as durations.
    pub fn lifecycle(&self) -> LifecycleTimers {
        let seconds = |secs: Option<u64>, many: u64, unit: u64| {
            Duration::from_secs(secs.unwrap_or_else(|| many.saturating_mul(unit)))
        };
        LifecycleTimers {
            offline: seconds(self.node_offline_threshold_secs, self.node_offline_threshold_mins, 60),
            quarantine: seconds(self.node_recovery_quarantine_secs, self.node_recovery_quarantine_mins, 60),
            drain: seconds(self.node_drain_threshold_secs, self.node_drain_threshold_hours, 3_600),
            remove: seconds(self.node_remove_threshold_secs, self.node_remove_threshold_days, 86_400),
        }
    }

    /// How often a heartbeat is wanted.
    pub fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(self.node_heartbeat_interval_secs.max(1))
    }
}

/// Why a configuration cannot be run. Each says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Two or more places for the metadata, or none.
    #[error(
        "give one of DATABASE_URL (PostgreSQL), --data-dir (embedded database) and --memory-only, not {0}"
    )]
    Database(&'static str),
    /// There is no chain code in this build.
    #[error("this build has no blockchain support: leave out {0}")]
    NoBlockchain(&'static str),
    /// The CyxWiz API's address is none.
    #[error("CYXWIZ_API_URL")]
    Identity(#[from] cyxwiz_client::Error),
    /// A secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Half of the root user's credentials.
    #[error("{0} is required: {1}")]
    Missing(&'static str, &'static str),
    /// The root user's access key cannot be one.
    #[error("{0} is not usable: {1}")]
    Unusable(&'static str, &'static str),
    /// The timers contradict each other.
    #[error(transparent)]
    Timers(#[from] cyxcloud_core::node::TimersError),
    /// Half of what TLS needs is missing.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A number is out of range.
    #[error("{0}")]
    Range(String),
}

impl Config {
    /// Reads secrets from their files, and checks what one field cannot know alone.
    pub fn check(mut self) -> Result<Self, ConfigError> {
        self.read_secrets()?;
        self.check_database()?;
        for (given, flag) in [
            (self.enable_blockchain, "--enable-blockchain"),
            (self.solana_rpc_url.is_some(), "--solana-rpc-url"),
            (self.keypair_path.is_some(), "--keypair-path (GATEWAY_KEYPAIR_PATH)"),
        ] {
            if given {
                return Err(ConfigError::NoBlockchain(flag));
            }
        }
        self.check_secrets()?;
        // What is empty counts as not given: files of many variables leave it so.
        self.cyxwiz_api_url = self.cyxwiz_api_url.filter(|url| !url.trim().is_empty());
        self.identity_service()?;
        self.timers.lifecycle().check()?;
        self.tls.pair()?;
        if self.inline_max > ByteCount::kib(64) {
            return Err(ConfigError::Range("--inline-max is at most 64KiB".to_owned()));
        }
        if self.small_max < self.inline_max || self.small_max > ByteCount::mib(4) {
            return Err(ConfigError::Range("--small-max lies between --inline-max and 4MiB".to_owned()));
        }
        if self.memory < ByteCount::mib(64) {
            return Err(ConfigError::Range("--memory is at least 64MiB".to_owned()));
        }
        Ok(self)
    }

    /// Whether gRPC takes no call without a token.
    pub fn requires_node_auth(&self) -> bool {
        self.grpc_auth.unwrap_or(!self.memory_only)
    }

    fn check_database(&self) -> Result<(), ConfigError> {
        let places = [self.database_url.is_some(), self.data_dir.is_some(), self.memory_only];
        match places.iter().filter(|given| **given).count() {
            0 => Err(ConfigError::Database("none of them")),
            1 => Ok(()),
            // An environment that names the database is overruled by the flag that forces memory.
            _ if self.memory_only => Ok(()),
            _ => Err(ConfigError::Database("several")),
        }
    }

    /// Takes secrets from wherever they are; afterwards they are in their own fields.
    fn read_secrets(&mut self) -> Result<(), SecretError> {
        let files = std::mem::take(&mut self.files);
        for (name, value, file, strength) in [
            ("DATABASE_URL", &mut self.database_url, &files.database_url_file, Strength::Any),
            ("REDIS_URL", &mut self.redis_url, &files.redis_url_file, Strength::Any),
            ("JWT_SECRET", &mut self.jwt_secret, &files.jwt_secret_file, Strength::Key),
            (
                "JWT_SECRET_PREVIOUS",
                &mut self.jwt_secret_previous,
                &files.jwt_secret_previous_file,
                Strength::Key,
            ),
            // Its parser is stricter and says more.
            ("CYXCLOUD_MASTER_KEY", &mut self.master_key, &files.master_key_file, Strength::Any),
            (
                "CYXCLOUD_ROOT_SECRET_KEY",
                &mut self.root_secret_key,
                &files.root_secret_key_file,
                Strength::Key,
            ),
        ] {
            let given = value.as_ref().map(|value| value.expose_secret());
            let read = |path: &std::path::Path| std::fs::read_to_string(path);
            *value = secret::obtain(name, given, file.as_deref(), strength, read)?.map(SecretString::from);
        }
        Ok(())
    }

    fn check_secrets(&self) -> Result<(), ConfigError> {
        if self.jwt_secret.is_none() {
            return Err(SecretError::Missing(
                "JWT_SECRET",
                "at least 32 random bytes, e.g. $(openssl rand -hex 32)",
            )
            .into());
        }
        if self.master_key.is_none() && !self.memory_only {
            return Err(SecretError::Missing(
                "CYXCLOUD_MASTER_KEY",
                "64 random hexadecimal digits, e.g. $(openssl rand -hex 32), of which you keep a copy in a safe place",
            )
            .into());
        }
        self.master_key()?;
        self.check_distinct()?;
        match (&self.root_access_key, &self.root_secret_key) {
            (None, None) => Ok(()),
            (Some(id), Some(_)) if id.len() < 3 || !id.bytes().all(|b| b.is_ascii_graphic() && b != b'/') => {
                Err(ConfigError::Unusable(
                    "CYXCLOUD_ROOT_ACCESS_KEY",
                    "it needs 3 or more printable characters and no slash",
                ))
            }
            (Some(_), Some(_)) => Ok(()),
            (Some(_), None) => Err(SecretError::Missing(
                "CYXCLOUD_ROOT_SECRET_KEY",
                "the root access key is set; e.g. $(openssl rand -hex 20)",
            )
            .into()),
            (None, Some(_)) => {
                Err(ConfigError::Missing("CYXCLOUD_ROOT_ACCESS_KEY", "the root secret key is set"))
            }
        }
    }

    fn check_distinct(&self) -> Result<(), SecretError> {
        let server_key = self.server_key.text();
        let ours: Vec<(&'static str, &str)> = [
            ("JWT_SECRET", &self.jwt_secret),
            ("JWT_SECRET_PREVIOUS", &self.jwt_secret_previous),
            ("CYXCLOUD_MASTER_KEY", &self.master_key),
            ("CYXCLOUD_ROOT_SECRET_KEY", &self.root_secret_key),
            ("SERVER_KEY", &server_key),
        ]
        .into_iter()
        .filter_map(|(name, secret)| Some((name, secret.as_ref()?.expose_secret())))
        .collect();
        secret::distinct(&ours)?;
        // Databases may share theirs with each other, but with nothing of ours.
        for (name, url) in [
            ("the password in DATABASE_URL", &self.database_url),
            ("the password in REDIS_URL", &self.redis_url),
        ] {
            let Some(password) = url.as_ref().and_then(|url| secret::url_password(url.expose_secret()))
            else {
                continue;
            };
            secret::distinct(&[&ours[..], &[(name, &password)]].concat())?;
        }
        Ok(())
    }

    /// The master key, if one was given.
    pub fn master_key(&self) -> Result<Option<MasterKey>, ConfigError> {
        let Some(text) = &self.master_key else { return Ok(None) };
        let key = text.expose_secret().parse::<MasterKey>();
        Ok(key.map(Some).map_err(|error| SecretError::NoKey("CYXCLOUD_MASTER_KEY", error))?)
    }

    /// The CyxWiz API, if there is one to ask.
    pub fn identity_service(&self) -> Result<Option<cyxwiz_client::Client>, ConfigError> {
        const AGENT: &str = concat!("cyxcloud-gateway/", env!("CARGO_PKG_VERSION"));
        let client = |url: &String| cyxwiz_client::Client::new(url, AGENT);
        Ok(self.cyxwiz_api_url.as_ref().map(client).transpose()?)
    }

    /// Who may connect to one port.
    pub fn crowd(&self) -> Crowd {
        Crowd::with_exempt(self.connections_per_address as usize, self.trusted_proxies.clone())
    }

    /// Whether others reach us here, and yet signatures of wallets are bound to a name that is everybody's own: whoever is given
    /// one elsewhere could show it here.
    pub(crate) fn signs_as_another(&self, listens: IpAddr) -> bool {
        self.auth_domain.eq_ignore_ascii_case(LOCAL) && !listens.to_canonical().is_loopback()
    }

    /// What is set about WebSockets.
    pub fn sockets(&self) -> websocket::Config {
        let origins = Origins { named: self.ws_origins.clone(), any: self.cors_permissive };
        websocket::Config { origins, ping_every: Duration::from_secs(self.ws_ping_secs) }
    }

    /// Whether the operators of nodes must be known.
    pub fn wants_operators(&self) -> bool {
        self.cyxwiz_api_url.is_some() && self.grpc_auth != Some(false)
    }

    /// Which addresses of nodes may be dialled. `own` are our database and cache, never to be dialled for a node.
    pub fn address_policy(&self, own: OwnAddresses) -> AddressPolicy {
        AddressPolicy { networks: self.node_networks.clone(), loopback: false, forbidden: own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn parse(args: &[&str]) -> Result<Config, ConfigError> {
        let defaults = ["cyxcloud-gateway", "--jwt-secret", SECRET];
        Config::try_parse_from(defaults.iter().chain(args)).expect("the flags exist").check()
    }

    #[test]
    fn memory_needs_no_more() {
        parse(&["--memory-only"]).expect("enough to start");
    }

    #[test]
    fn operators_must_be_known_where_they_can_be() {
        let wants = |args: &[&str]| {
            parse(&[&["--memory-only"], args].concat()).expect("enough to start").wants_operators()
        };
        let api = ["--cyxwiz-api-url", "http://cyxwiz-api:3002"];
        assert!(!wants(&[]) && !wants(&["--grpc-auth"]) && !wants(&["--cyxwiz-api-url", ""]));
        assert!(wants(&api) && !wants(&[&api[..], &["--grpc-auth=false"]].concat()));
    }

    #[test]
    fn a_public_gateway_needs_a_name_of_its_own() {
        let warns = |args: &[&str], listens: &str| {
            let config = parse(&[&["--memory-only"], args].concat()).expect("enough to start");
            config.signs_as_another(listens.parse().expect("an address"))
        };
        assert!(
            warns(&[], "0.0.0.0") && warns(&[], "::") && warns(&["--auth-domain", "Localhost"], "192.0.2.1")
        );
        for here in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(!warns(&[], here), "{here}");
        }
        assert!(!warns(&["--auth-domain", "files.example"], "0.0.0.0"));
    }

    #[test]
    fn contradictions_and_weak_secrets_are_refused() {
        let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        for bad in [
            &[][..],
            &["--data-dir", "/tmp/x"],
            &["--data-dir", "/tmp/x", "--database-url", "postgres://x/y", "--master-key", key],
            &["--memory-only", "--enable-blockchain"],
            &["--memory-only", "--cyxwiz-api-url", "cyxwiz-api:3002"],
            &["--memory-only", "--cyxwiz-api-url", "http://u:p@cyxwiz-api:3002"],
            &["--memory-only", "--master-key", "abc"],
            &["--memory-only", "--master-key", &"00".repeat(32)],
            &["--memory-only", "--master-key", key, "--server-key", key],
            &["--memory-only", "--root-access-key", "root"],
            &["--memory-only", "--root-access-key", "root", "--root-secret-key", "short"],
            &["--memory-only", "--root-access-key", "root", "--root-secret-key", &SECRET[1..]],
            &["--memory-only", "--root-access-key", "root", "--root-secret-key", SECRET],
            &["--memory-only", "--root-secret-key", &key[1..]],
            &["--memory-only", "--redis-url", "redis://:0123456789abcdef0123456789abcdef@h"],
            &["--memory-only", "--jwt-secret-file", "/dev/null"],
            &["--memory-only", "--master-key-file", "/dev/null"],
            &["--memory-only", "--redis-url-file", "/nonexistent"],
            &["--memory-only", "--jwt-secret", "your-secret-here"],
            &["--memory-only", "--node-drain-threshold-secs", "1"],
            &["--memory-only", "--inline-max", "1MiB"],
            &["--memory-only", "--tls-cert", "cert.pem"],
            &["--memory-only", "--tls-key", "key.pem"],
        ] {
            let mut args = bad.to_vec();
            let replaces_secret = args.contains(&"--jwt-secret");
            let result = if replaces_secret {
                args.insert(0, "cyxcloud-gateway");
                Config::try_parse_from(args).expect("the flags exist").check()
            } else {
                parse(&args)
            };
            assert!(result.is_err(), "{bad:?}");
        }
        parse(&["--data-dir", "/tmp/x", "--master-key", key]).expect("enough to start");
    }

    #[test]
    fn tokens_are_wanted_unless_all_is_forgotten_at_exit() {
        let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let lasting = ["--data-dir", "/tmp/x", "--master-key", key];
        let wants = |args: &[&str]| parse(args).expect("enough to start").requires_node_auth();
        assert!(wants(&lasting) && !wants(&["--memory-only"]));
        assert!(wants(&["--memory-only", "--grpc-auth"]));
        assert!(!wants(&[&lasting[..], &["--grpc-auth=false"]].concat()));
    }

    #[test]
    fn secrets_may_be_in_files() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.into_os_string().into_string().expect("plain path")
        };
        let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let root = "abcdefghijklmnopqrstuvwxyz0123456789";
        let config = parse(&[
            "--database-url-file",
            &path("url", "postgres://u:p@h/d\n"),
            "--master-key-file",
            &path("key", &format!("{key}\n")),
            "--root-access-key",
            "root",
            "--root-secret-key-file",
            &path("root", root),
        ])
        .expect("all there");
        let text = |secret: &Option<SecretString>| secret.as_ref().map(|s| s.expose_secret().to_owned());
        assert_eq!(text(&config.database_url).as_deref(), Some("postgres://u:p@h/d"));
        assert_eq!(text(&config.master_key).as_deref(), Some(key));
        assert_eq!(text(&config.root_secret_key).as_deref(), Some(root));
        config.check().expect("as good the second time");
    }

    #[test]
    fn secrets_do_not_print() {
        let config = parse(&["--memory-only"]).expect("enough to start");
        assert!(!format!("{config:?}").contains(SECRET));
    }
}
