//! All that a rebalancer can be told. Read once, in `main`; nothing else looks at the environment.

use std::net::SocketAddr;
use std::time::Duration;

use clap::value_parser;
use cyxcloud_core::ByteCount;
use cyxcloud_core::NodeId;
use cyxcloud_core::address::AddressPolicy;
use ipnet::IpNet;
use secrecy::SecretString;

/// The rebalancer: repairs, audits, collects.
#[derive(Debug, clap::Parser)]
#[command(
    name = "cyxcloud-rebalancer",
    version,
    about = "Background service of CyxCloud",
    max_term_width = 110
)]
pub struct Config {
    /// PostgreSQL connection URL
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: SecretString,
    /// Redis connection URL
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<SecretString>,
    /// Key that owners' secrets are wrapped under, as the gateway has it: 64 hexadecimal digits
    #[arg(env = "CYXCLOUD_MASTER_KEY", long = "master-key", hide = true, hide_env_values = true)]
    pub master_key: Option<SecretString>,
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
    /// Repairs at the same time
    #[arg(long, env = "REPAIR_PARALLELISM", value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(1..=1024))]
    pub repair_parallelism: u32,
    /// Copies of a small object that operators are promised at least; the buckets' profiles say how many there are
    #[arg(long, env = "MIN_REPLICAS", value_name = "N", default_value_t = 3, value_parser = value_parser!(u8).range(1..=20))]
    pub min_replicas: u8,
    /// How long a stripe that survives no further loss waits for a node that is merely away
    #[arg(long, env = "REPAIR_DELAY_SECS", value_name = "SECONDS", default_value_t = 900)]
    pub repair_delay_secs: u64,
    /// Bytes per second that repairs may move, over all nodes; 0 is no limit
    #[arg(long, env = "REPAIR_BYTES_PER_SEC", value_name = "SIZE", default_value = "50MB")]
    pub repair_bytes_per_sec: ByteCount,
    /// Bytes per second that repairs may store on any one node; 0 is no limit
    ///
    /// Of this and of the former less is used where processors are more than half busy, down to a tenth. What
    /// survives no further loss waits for neither.
    #[arg(long, env = "REPAIR_NODE_BYTES_PER_SEC", value_name = "SIZE", default_value = "10MB")]
    pub repair_node_bytes_per_sec: ByteCount,
    /// How long a claimed repair may go without a sign of life before another instance takes it; claimed deletes, of which there
    /// is none, are left alone for twice as long
    #[arg(long, env = "REPAIR_LEASE_SECS", value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(1..))]
    pub repair_lease_secs: u64,
    /// More than a tenth of the nodes (and more than two) going away within this time is not believed
    #[arg(long, env = "REPAIR_BRAKE_WINDOW_SECS", value_name = "SECONDS", default_value_t = 600)]
    pub brake_window_secs: u64,
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
    /// Collection stops when more than this part of all segments would be condemned
    #[arg(long, env = "GC_MAX_FRACTION", value_name = "FRACTION", default_value_t = 0.25)]
    pub gc_max_fraction: f64,
    /// So many condemned segments never stop it
    #[arg(long, env = "GC_BRAKE_FLOOR", value_name = "N", default_value_t = 10_000)]
    pub gc_brake_floor: u64,
    /// How often each node is audited; 0 turns audits off
    #[arg(long, env = "AUDIT_INTERVAL_SECS", value_name = "SECONDS", default_value_t = 900)]
    pub audit_interval_secs: u64,
    /// How long a node may take to answer an audit
    #[arg(long, env = "AUDIT_TIMEOUT_SECS", value_name = "SECONDS", default_value_t = 15, value_parser = value_parser!(u64).range(1..))]
    pub audit_timeout_secs: u64,
    /// When an audit that was answered too late is asked again; the third time it counts as failed
    #[arg(long, env = "AUDIT_AGAIN_SECS", value_name = "SECONDS", default_value_t = 21_600)]
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
}

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
        Ok(())
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

impl Config {
    /// Which addresses of nodes may be connected to.
    pub fn address_policy(&self, own: Vec<SocketAddr>) -> AddressPolicy {
        let loopback = self.node_networks.iter().any(|network| network.addr().is_loopback());
        AddressPolicy { networks: self.node_networks.clone(), loopback, forbidden: own }
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
    }
}
