//! All that a rebalancer can be told. Read once, in `main`; nothing else looks at the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::value_parser;
use cyxcloud_core::ByteCount;
use cyxcloud_core::NodeId;
use cyxcloud_core::address::{AddressPolicy, OwnAddresses};
use cyxcloud_core::audit;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::secret::{self, SecretError, Strength};
use cyxcloud_tls::ServerKeyArgs;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

/// The rebalancer: repairs, audits, collects.
#[derive(Debug, clap::Parser)]
#[command(
    name = "cyxcloud-rebalancer",
    version,
    about = "Background service of CyxCloud",
    max_term_width = 110,
    after_help = "Secrets: CYXCLOUD_MASTER_KEY (as the gateway has it), DATABASE_URL and REDIS_URL. Each is a variable, or in the file \
        that the variable with _FILE added names (CYXCLOUD_MASTER_KEY_FILE=/run/secrets/master-key)."
)]
pub struct Config {
    /// PostgreSQL connection URL, or DATABASE_URL_FILE
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<SecretString>,
    #[allow(missing_docs)]
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "PATH", hide = true)]
    pub database_url_file: Option<PathBuf>,
    /// Redis connection URL, or REDIS_URL_FILE
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<SecretString>,
    #[allow(missing_docs)]
    #[arg(long, env = "REDIS_URL_FILE", value_name = "PATH", hide = true)]
    pub redis_url_file: Option<PathBuf>,
    /// Key that owners' secrets are wrapped under, as the gateway has it: 64 hexadecimal digits
    #[arg(env = "CYXCLOUD_MASTER_KEY", long = "master-key", hide = true, hide_env_values = true)]
    pub master_key: Option<SecretString>,
    #[allow(missing_docs)]
    #[arg(long, env = "CYXCLOUD_MASTER_KEY_FILE", value_name = "PATH", hide = true)]
    pub master_key_file: Option<PathBuf>,
    /// Networks that nodes may be in although they are private, e.g. 10.0.0.0/8,127.0.0.0/8
    #[arg(long, env = "NODE_NETWORKS", value_name = "CIDR,...", value_delimiter = ',')]
    pub node_networks: Vec<IpNet>,
    /// Health and metrics listen address
    #[arg(long, env = "HTTP_ADDR", value_name = "ADDR", default_value = "0.0.0.0:9093")]
    pub http_addr: SocketAddr,
    /// Start although PostgreSQL is set up so that acknowledged data can be lost
    #[arg(long)]
    pub i_accept_data_loss: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub server_key: ServerKeyArgs,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub tuning: Tuning,

    /// Something else than running: `None` runs.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done once instead of running.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Rebuild lost locations of chunks from what nodes hold, and end
    ///
    /// Asks every node for its inventory, with the sealed descriptors of its chunks, and records where the chunks of known objects
    /// are. Deletes nothing, changes no location that stands, and may be run again. Stop all rebalancers first. Garbage collection
    /// is frozen and stays so until an administrator thaws it (POST /api/v1/admin/gc/thaw). Ends with 1 where a node could not be
    /// read or a stripe stays unreadable.
    RebuildLocations {
        /// Only say what would be recorded
        #[arg(long)]
        dry_run: bool,
        /// Then take out of the nodes' trash what stripes still lack: what was collected since the metadata's backup was made
        #[arg(long, conflicts_with = "dry_run")]
        from_trash: bool,
        /// Only this node's inventory; may be given more than once
        #[arg(long = "node", value_name = "NODE_ID")]
        nodes: Vec<NodeId>,
    },
}

/// How much is done at a time, and how long things wait.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Background work")]
pub struct Tuning {
    /// How often everything that waits for its time is looked at
    #[arg(long, env = "SCAN_INTERVAL_SECS", value_name = "SECONDS", default_value_t = 300, value_parser = value_parser!(u64).range(1..))]
    pub scan_interval_secs: u64,
    /// Repairs at the same time; where there are two or more, one of eight is kept for what survives no further loss
    #[arg(long, env = "REPAIR_PARALLELISM", value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(1..=1024))]
    pub repair_parallelism: u32,
    /// Copies of a small object at least, where there are nodes for them; more if its bucket's profile says so
    #[arg(long, env = "MIN_REPLICAS", value_name = "N", default_value_t = 3, value_parser = value_parser!(u8).range(1..=20))]
    pub min_replicas: u8,
    /// How long a stripe that survives no further loss waits for a node that is merely away
    #[arg(long, env = "REPAIR_DELAY_SECS", value_name = "SECONDS", default_value_t = 900)]
    pub repair_delay_secs: u64,
    /// Bytes per second that this instance's repairs may move, over all nodes; 0 is no limit
    #[arg(long, env = "REPAIR_BYTES_PER_SEC", value_name = "SIZE", default_value = "50MB")]
    pub repair_bytes_per_sec: ByteCount,
    /// Bytes per second that this instance's repairs may store on any one node or read from it; 0 is no limit
    ///
    /// Of this and of the former less is used where processors are more than half busy or more than 16 requests are
    /// being served, down to a tenth. What survives no further loss waits for neither, and is charged to both.
    /// [default: 10MB, or REPAIR_BYTES_PER_SEC if that is less]
    #[arg(long, env = "REPAIR_NODE_BYTES_PER_SEC", value_name = "SIZE")]
    pub repair_node_bytes_per_sec: Option<ByteCount>,
    /// How long a claimed repair may go without a sign of life before another instance takes it; claimed deletes, of which there
    /// is none, are left alone for twice as long
    #[arg(long, env = "REPAIR_LEASE_SECS", value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(1..))]
    pub repair_lease_secs: u64,
    /// More than a tenth of the nodes (and more than two) going away within this time is not believed
    #[arg(long, env = "REPAIR_BRAKE_WINDOW_SECS", value_name = "SECONDS", default_value_t = 600, value_parser = value_parser!(u64).range(1..))]
    pub brake_window_secs: u64,
    /// Silence after which a node is offline, as the gateways have it: one that is to be emptied is not waited for from then on
    #[arg(long, env = "NODE_OFFLINE_THRESHOLD_MINS", value_name = "MINUTES", default_value_t = 5)]
    pub node_offline_threshold_mins: u64,
    /// The same in seconds, which win
    #[arg(long, env = "NODE_OFFLINE_THRESHOLD_SECS", value_name = "SECONDS")]
    pub node_offline_threshold_secs: Option<u64>,
    /// Stripes looked at per second by the full sweep; 0 turns it off
    #[arg(long, env = "SWEEP_STRIPES_PER_SEC", value_name = "N", default_value_t = 50)]
    pub sweep_stripes_per_sec: u64,
    /// How often a node's inventory is compared with ours
    #[arg(long, env = "RECONCILE_INTERVAL_SECS", value_name = "SECONDS", default_value_t = 86_400, value_parser = value_parser!(u64).range(1..))]
    pub reconcile_interval_secs: u64,
    /// How long what nothing refers to is kept, by the database's clock. Longer than twice the longest upload, and never
    /// shorter than the age of the oldest metadata backup that must restore
    #[arg(long, env = "GC_GRACE_SECS", value_name = "SECONDS", default_value_t = 604_800)]
    pub gc_grace_secs: u64,
    /// More than this part of all segments is not condemned, nor of a node's chunks collected as orphans
    ///
    /// An operator must look: GET /api/v1/admin/gc says why. Up to 1,000 orphans of a node always go. A node that returns after it
    /// was forgotten holds nothing but orphans; 1 lets them go.
    #[arg(long, env = "GC_MAX_FRACTION", value_name = "FRACTION", default_value_t = 0.25)]
    pub gc_max_fraction: f64,
    /// So many segments are always condemned
    #[arg(long, env = "GC_BRAKE_FLOOR", value_name = "N", default_value_t = 10_000)]
    pub gc_brake_floor: u64,
    /// How often each node is audited; 0 turns audits off
    #[arg(long, env = "AUDIT_INTERVAL_SECS", value_name = "SECONDS", default_value_t = 900)]
    pub audit_interval_secs: u64,
    /// How long a node may take to answer an audit
    #[arg(long, env = "AUDIT_TIMEOUT_SECS", value_name = "SECONDS", default_value_t = 15, value_parser = value_parser!(u64).range(1..))]
    pub audit_timeout_secs: u64,
    /// How long it may take to begin its answer [default: 5, or AUDIT_TIMEOUT_SECS if that is less]
    #[arg(long, env = "AUDIT_FIRST_BYTE_SECS", value_name = "SECONDS", value_parser = value_parser!(u64).range(1..))]
    pub audit_first_byte_secs: Option<u64>,
    /// Within what time every location is proven of a stripe that waits for repair and tolerates no more than two losses; 0 asks
    /// for these like for others. A round asks for up to 64: where more are at risk it takes longer
    #[arg(long, env = "AUDIT_RISK_SECS", value_name = "SECONDS", default_value_t = 21_600)]
    pub audit_risk_secs: u64,
    /// How long a node is new: audited four times as often, and given little of what is written. After it, and 100 proofs, it
    /// is given its share
    #[arg(long, env = "VETTING_SECS", value_name = "SECONDS", default_value_t = 604_800)]
    pub vetting_secs: u64,
    /// When an audit that was answered too late is asked again: three times, then it counts as failed
    #[arg(long, env = "AUDIT_AGAIN_SECS", value_name = "SECONDS", default_value_t = 21_600, value_parser = value_parser!(u64).range(1..))]
    pub audit_again_secs: u64,
    /// Nodes of our own: a round of audits in which one of them fails is thrown away
    #[arg(long, env = "AUDIT_CANARIES", value_name = "NODE_ID,...", value_delimiter = ',')]
    pub audit_canaries: Vec<NodeId>,
    /// How long ended repairs and the events of audits are kept
    #[arg(long, env = "HISTORY_SECS", value_name = "SECONDS", default_value_t = 2_592_000)]
    pub history_secs: u64,
    /// Multipart uploads older than this are aborted; 0 never does
    #[arg(long, env = "MULTIPART_EXPIRY_SECS", value_name = "SECONDS", default_value_t = 0)]
    pub multipart_expiry_secs: u64,
}

/// Thresholds that contradict each other.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TuningError {
    /// A part of a whole.
    #[error("GC_MAX_FRACTION is {0}; it must lie between 0 and 1")]
    Fraction(f64),
    /// What a repair stores would be collected before it is recorded.
    #[error(
        "GC_GRACE_SECS ({grace}) must be at least twice REPAIR_LEASE_SECS ({lease}): what a slow repair stores would be \
         collected before it is recorded"
    )]
    GraceBelowLease {
        /// GC_GRACE_SECS
        grace: u64,
        /// REPAIR_LEASE_SECS
        lease: u64,
    },
    /// An audit would still wait for its answer when the next is due.
    #[error(
        "AUDIT_TIMEOUT_SECS ({timeout}) must be shorter than AUDIT_INTERVAL_SECS ({interval}): a node would be asked again \
         before it had to answer"
    )]
    AuditTimeout {
        /// AUDIT_TIMEOUT_SECS
        timeout: u64,
        /// AUDIT_INTERVAL_SECS
        interval: u64,
    },
    /// An answer would be there before it begins.
    #[error(
        "AUDIT_FIRST_BYTE_SECS ({first_byte}) must not be longer than AUDIT_TIMEOUT_SECS ({timeout}): an answer ends after it \
         begins. Leave the one out, or raise the other"
    )]
    AuditFirstByte {
        /// AUDIT_FIRST_BYTE_SECS
        first_byte: u64,
        /// AUDIT_TIMEOUT_SECS
        timeout: u64,
    },
    /// One pause of a node would be four late answers.
    #[error(
        "AUDIT_AGAIN_SECS ({again}) must not be shorter than AUDIT_TIMEOUT_SECS ({timeout}): a node that pauses once would be late \
         four times over, and what it holds would count as lost"
    )]
    AuditAgain {
        /// AUDIT_AGAIN_SECS
        again: u64,
        /// AUDIT_TIMEOUT_SECS
        timeout: u64,
    },
    /// What is at risk could not be proven so often.
    #[error(
        "AUDIT_RISK_SECS ({risk}) must not be shorter than the time between two rounds of audits, a {}th of \
         AUDIT_INTERVAL_SECS ({interval}): raise the one, or lower the other; 0 asks for what is at risk like for the rest",
        audit::BURST
    )]
    AuditRisk {
        /// AUDIT_RISK_SECS
        risk: u64,
        /// AUDIT_INTERVAL_SECS
        interval: u64,
    },
    /// A part of a whole.
    #[error(
        "REPAIR_NODE_BYTES_PER_SEC ({node}) must not be more than REPAIR_BYTES_PER_SEC ({all}), which is for all nodes together: \
         raise the one, or lower the other; 0 sets no limit of its own for a node"
    )]
    NodeBytes {
        /// REPAIR_NODE_BYTES_PER_SEC
        node: u64,
        /// REPAIR_BYTES_PER_SEC
        all: u64,
    },
}

/// Of REPAIR_NODE_BYTES_PER_SEC and AUDIT_FIRST_BYTE_SECS, where what they are parts of allows it.
const NODE_BYTES_PER_SEC: u64 = 10_000_000;
const FIRST_BYTE_SECS: u64 = 5;

impl Tuning {
    /// Refuses thresholds that contradict each other.
    pub fn check(&self) -> Result<(), TuningError> {
        if !(0.0..=1.0).contains(&self.gc_max_fraction) {
            return Err(TuningError::Fraction(self.gc_max_fraction));
        }
        let (grace, lease) = (self.gc_grace_secs, self.repair_lease_secs);
        if grace < lease.saturating_mul(2) {
            return Err(TuningError::GraceBelowLease { grace, lease });
        }
        let (timeout, interval) = (self.audit_timeout_secs, self.audit_interval_secs);
        if interval > 0 && timeout >= interval {
            return Err(TuningError::AuditTimeout { timeout, interval });
        }
        if let Some(first_byte) = self.audit_first_byte_secs.filter(|first_byte| *first_byte > timeout) {
            return Err(TuningError::AuditFirstByte { first_byte, timeout });
        }
        let again = self.audit_again_secs;
        if interval > 0 && again < timeout {
            return Err(TuningError::AuditAgain { again, timeout });
        }
        let (risk, tick) = (self.audit_risk_secs, audit::tick(self.audit_interval()));
        if interval > 0 && risk > 0 && Duration::from_secs(risk) < tick {
            return Err(TuningError::AuditRisk { risk, interval });
        }
        let (node, all) = (self.repair_node_bytes().get(), self.repair_bytes_per_sec.get());
        if all > 0 && node > all {
            return Err(TuningError::NodeBytes { node, all });
        }
        Ok(())
    }

    /// Silence after which a node is offline.
    pub fn offline(&self) -> Duration {
        let secs = self.node_offline_threshold_mins.saturating_mul(60);
        Duration::from_secs(self.node_offline_threshold_secs.unwrap_or(secs))
    }

    pub(crate) fn audit_interval(&self) -> Duration {
        Duration::from_secs(self.audit_interval_secs)
    }

    pub(crate) fn audit_timeout(&self) -> Duration {
        Duration::from_secs(self.audit_timeout_secs)
    }

    pub(crate) fn audit_first_byte(&self) -> Duration {
        self.audit_first_byte_secs
            .map_or(self.audit_timeout().min(Duration::from_secs(FIRST_BYTE_SECS)), Duration::from_secs)
    }

    /// 0 is no limit.
    pub(crate) fn repair_node_bytes(&self) -> ByteCount {
        let all = Some(self.repair_bytes_per_sec).filter(|all| *all > ByteCount::ZERO);
        let most = ByteCount::bytes(NODE_BYTES_PER_SEC);
        self.repair_node_bytes_per_sec.unwrap_or_else(|| all.map_or(most, |all| all.min(most)))
    }

    pub(crate) fn scan_interval(&self) -> Duration {
        Duration::from_secs(self.scan_interval_secs)
    }

    pub(crate) fn repair_lease(&self) -> Duration {
        Duration::from_secs(self.repair_lease_secs)
    }

    /// Claimed deletes are sent at once. Whoever takes longer shares them with another, and a chunk is deleted twice, which is
    /// harmless: a delete names a generation.
    pub(crate) fn delete_lease(&self) -> Duration {
        self.repair_lease() * 2
    }

    pub(crate) fn gc_grace(&self) -> Duration {
        Duration::from_secs(self.gc_grace_secs)
    }
}

impl Default for Tuning {
    fn default() -> Self {
        use clap::{Args, Command, FromArgMatches};
        // Not from the environment of whoever embeds it.
        let command = Self::augment_args(Command::new("tuning")).mut_args(|arg| arg.env(None));
        let matches = command.get_matches_from(["tuning"]);
        Self::from_arg_matches(&matches).expect("every argument has a default")
    }
}

/// The secrets, wherever they came from.
#[derive(Debug)]
pub struct Secrets {
    /// Where PostgreSQL is.
    pub database_url: SecretString,
    /// Where Redis is, if there is one.
    pub redis_url: Option<SecretString>,
    /// What owners' secrets are wrapped under.
    pub master_key: MasterKey,
}

impl Config {
    /// Reads the secrets and refuses what is none.
    pub fn secrets(&self) -> Result<Secrets, SecretError> {
        const KEY: &str = "CYXCLOUD_MASTER_KEY";
        let obtain = |name, value: &Option<SecretString>, file: &Option<PathBuf>| {
            let value = value.as_ref().map(|value| value.expose_secret());
            let read = |path: &std::path::Path| std::fs::read_to_string(path);
            secret::obtain(name, value, file.as_deref(), Strength::Any, read)
        };
        let master_key = obtain(KEY, &self.master_key, &self.master_key_file)?
            .ok_or(SecretError::Missing(KEY, "the key that the gateway has"))?;
        let database_url = obtain("DATABASE_URL", &self.database_url, &self.database_url_file)?
            .ok_or(SecretError::Missing("DATABASE_URL", "postgres://USER:PASSWORD@HOST/DATABASE"))?;
        let redis_url = obtain("REDIS_URL", &self.redis_url, &self.redis_url_file)?;
        let server_key = self.server_key.text();
        let server_key = server_key.as_ref().map(|text| ("SERVER_KEY", text.expose_secret()));
        for (name, url) in [
            ("the password in DATABASE_URL", Some(&database_url)),
            ("the password in REDIS_URL", redis_url.as_ref()),
        ] {
            let password = url.and_then(|url| secret::url_password(url)).unwrap_or_default();
            let all = [(KEY, master_key.as_str()), (name, password.as_str())].into_iter().chain(server_key);
            secret::distinct(&all.collect::<Vec<_>>())?;
        }
        let master_key = master_key.parse().map_err(|error| SecretError::NoKey(KEY, error))?;
        Ok(Secrets {
            database_url: database_url.into(),
            redis_url: redis_url.map(SecretString::from),
            master_key,
        })
    }

    /// Which addresses of nodes may be connected to.
    pub fn address_policy(&self, own: OwnAddresses) -> AddressPolicy {
        AddressPolicy { networks: self.node_networks.clone(), loopback: false, forbidden: own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_agree() {
        let tuning = Tuning::default();
        assert_eq!(tuning.check(), Ok(()));
        assert_eq!((tuning.scan_interval_secs, tuning.repair_parallelism, tuning.min_replicas), (300, 4, 3));
        assert_eq!(tuning.offline(), cyxcloud_core::node::LifecycleTimers::default().offline);
        assert_eq!(
            Tuning { node_offline_threshold_secs: Some(7), ..tuning }.offline(),
            Duration::from_secs(7)
        );
    }

    #[test]
    fn secrets_are_there_once_and_differ() {
        use clap::Parser;
        let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let secrets = |args: &[&str]| {
            let args = [&["cyxcloud-rebalancer"], args].concat();
            Config::try_parse_from(args).expect("the flags exist").secrets()
        };
        let url = ["--database-url", "postgres://u:p@h/d"];
        let missing = secrets(&url).expect_err("no key").to_string();
        assert!(missing.contains("CYXCLOUD_MASTER_KEY_FILE"), "{missing}");
        assert!(matches!(secrets(&["--master-key", key]), Err(SecretError::Missing("DATABASE_URL", _))));
        let with = |more: &[&str]| secrets(&[&url[..], &["--master-key", key], more].concat());
        assert!(matches!(with(&["--master-key-file", "/dev/null"]), Err(SecretError::Twice(_))));
        assert!(matches!(with(&["--redis-url-file", "/dev/null"]), Err(SecretError::Weak("REDIS_URL", _))));
        let same = format!("redis://:{key}@h");
        assert!(matches!(with(&["--redis-url", &same]), Err(SecretError::Same("CYXCLOUD_MASTER_KEY", _))));
        assert!(matches!(with(&["--server-key", key]), Err(SecretError::Same("CYXCLOUD_MASTER_KEY", _))));
        let good = with(&[]).expect("enough");
        assert!(!format!("{good:?}").contains("u:p"), "{good:?}");
    }

    #[test]
    fn contradictions_are_named() {
        let wrong = |change: fn(&mut Tuning)| {
            let mut tuning = Tuning::default();
            change(&mut tuning);
            tuning.check().expect_err("contradicts itself").to_string()
        };
        assert!(wrong(|t| t.gc_grace_secs = 100).contains("GC_GRACE_SECS (100)"));
        assert!(wrong(|t| t.audit_timeout_secs = 900).contains("AUDIT_TIMEOUT_SECS (900)"));
        assert!(wrong(|t| t.gc_max_fraction = 1.5).contains("GC_MAX_FRACTION is 1.5"));
        for (said, message) in [
            (
                ["AUDIT_FIRST_BYTE_SECS (16)", "AUDIT_TIMEOUT_SECS (15)"],
                wrong(|t| t.audit_first_byte_secs = Some(16)),
            ),
            (["AUDIT_AGAIN_SECS (14)", "AUDIT_TIMEOUT_SECS (15)"], wrong(|t| t.audit_again_secs = 14)),
            (["AUDIT_RISK_SECS (35)", "AUDIT_INTERVAL_SECS (900)"], wrong(|t| t.audit_risk_secs = 35)),
            (
                ["REPAIR_NODE_BYTES_PER_SEC (50000001)", "REPAIR_BYTES_PER_SEC (50000000)"],
                wrong(|t| t.repair_node_bytes_per_sec = Some(ByteCount::bytes(50_000_001))),
            ),
        ] {
            assert!(said.iter().all(|name| message.contains(name)), "{message}");
        }
    }

    #[test]
    fn what_is_not_said_contradicts_nothing() {
        let with = |change: fn(&mut Tuning)| {
            let mut tuning = Tuning::default();
            change(&mut tuning);
            assert_eq!(tuning.check(), Ok(()));
            (tuning.audit_first_byte().as_secs(), tuning.repair_node_bytes().get())
        };
        assert_eq!(with(|_| {}), (5, 10_000_000));
        assert_eq!(with(|t| t.audit_timeout_secs = 2), (2, 10_000_000));
        assert_eq!(with(|t| t.audit_first_byte_secs = Some(15)), (15, 10_000_000));
        assert_eq!(with(|t| t.repair_bytes_per_sec = ByteCount::bytes(4_000_000)), (5, 4_000_000));
        assert_eq!(with(|t| t.repair_bytes_per_sec = ByteCount::ZERO), (5, 10_000_000));
        assert_eq!(with(|t| t.repair_node_bytes_per_sec = Some(ByteCount::ZERO)), (5, 0));
        assert_eq!(with(|t| (t.audit_risk_secs, t.audit_interval_secs) = (35, 0)), (5, 10_000_000));
        assert_eq!(with(|t| t.audit_risk_secs = 36), (5, 10_000_000));
        assert_eq!(with(|t| t.audit_again_secs = 15), (5, 10_000_000));
        assert_eq!(with(|t| (t.audit_again_secs, t.audit_interval_secs) = (1, 0)), (5, 10_000_000));
    }

    /// Without a window no brake would hold; without a pause a node that is slow for a minute has lost what it holds.
    #[test]
    fn what_must_take_some_time_is_not_0() {
        use clap::Parser;
        let parsed = |flag, value| Config::try_parse_from(["cyxcloud-rebalancer", flag, value]).is_ok();
        for flag in ["--brake-window-secs", "--audit-again-secs"] {
            assert!(parsed(flag, "1") && !parsed(flag, "0"), "{flag}");
        }
    }
}
