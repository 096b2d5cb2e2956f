//! The Ed25519 key of one of our own servers (gateway, rebalancer), which it shows to nodes.
//!
//! Given by the operator, or made at the first start and kept in the data directory. Several servers may share one. It is derived
//! from no other secret, so that none can be told from another.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cyxcloud_core::receipt::NodeKey;
use cyxcloud_core::secret::{Strength, Weakness};
use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};

/// Its name in the data directory.
const FILE: &str = "gateway.key";

/// Where the key comes from. Nothing at all makes one for this run, or keeps one in the data directory.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct ServerKeyArgs {
    /// Ed25519 key that this server shows to nodes: a seed of 64 hexadecimal digits
    #[arg(env = "SERVER_KEY", long = "server-key", hide = true, hide_env_values = true)]
    pub server_key: Option<SecretString>,
    /// File that holds the key (64 hexadecimal digits) which this server shows to nodes; made if it is missing
    #[arg(long, env = "SERVER_KEY_FILE", value_name = "FILE")]
    pub server_key_file: Option<PathBuf>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum ServerKeyError {
    /// Two places name it.
    #[error("SERVER_KEY and SERVER_KEY_FILE are both set; set one of them")]
    Twice,
    /// It is something else.
    #[error("{place} is not 64 hexadecimal digits; make one with: openssl rand -hex 32")]
    Damaged {
        /// Variable or file.
        place: String,
    },
    /// It is one that anybody may guess.
    #[error("{place} is not usable: {weakness}; make one with: openssl rand -hex 32")]
    Weak {
        /// Variable or file.
        place: String,
        /// What is wrong with it.
        weakness: Weakness,
    },
    /// The disk.
    #[error("could not {doing} the server's key {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A server's identity towards nodes.
#[derive(Clone, Debug)]
pub struct ServerKey(NodeKey);

impl ServerKey {
    /// A key that nobody will know again.
    pub fn for_this_run() -> Self {
        Self(NodeKey::from_seed(rand::random()))
    }

    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        self.0.public()
    }

    /// What signs, and what certificates are made from.
    pub fn identity(&self) -> &NodeKey {
        &self.0
    }
}

impl ServerKeyArgs {
    /// The text that was given, or that is in the file, to be held against other secrets. A file that cannot be read is
    /// for [`Self::open`] to complain about.
    pub fn text(&self) -> Option<SecretString> {
        let read = |path: &PathBuf| std::fs::read_to_string(path).ok();
        let text = match &self.server_key {
            Some(text) => Some(text.expose_secret().to_owned()),
            None => self.server_key_file.as_ref().and_then(read),
        };
        text.map(|text| text.trim().into())
    }

    /// The key that was given; else the one in the data directory, made if it is missing; else one for this run.
    pub fn open(&self, data_dir: Option<&Path>) -> Result<ServerKey, ServerKeyError> {
        match (&self.server_key, &self.server_key_file) {
            (Some(_), Some(_)) => Err(ServerKeyError::Twice),
            (Some(text), None) => parse(text.expose_secret(), "SERVER_KEY"),
            (None, Some(path)) => keep(path),
            (None, None) => match data_dir {
                Some(directory) => keep(&directory.join(FILE)),
                None => Ok(ServerKey::for_this_run()),
            },
        }
    }
}

fn parse(text: &str, place: &str) -> Result<ServerKey, ServerKeyError> {
    let (text, place) = (text.trim(), place.to_owned());
    let mut seed = [0; 32];
    if hex::decode_to_slice(text, &mut seed).is_err() {
        return Err(ServerKeyError::Damaged { place });
    }
    Strength::Key.check(text).map_err(|weakness| ServerKeyError::Weak { place, weakness })?;
    Ok(ServerKey(NodeKey::from_seed(seed)))
}

/// Reads the file, or makes it. Two servers that start together end up with the same key.
fn keep(path: &Path) -> Result<ServerKey, ServerKeyError> {
    let io = |doing| move |source| ServerKeyError::Io { doing, path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path).map_err(io("write"))?;
            info!(file = %path.display(), "made a key for this server");
        }
        Err(error) => return Err(io("read")(error)),
        Ok(_) => tighten(path).map_err(io("protect"))?,
    }
    let text = std::fs::read_to_string(path).map_err(io("read"))?;
    parse(&text, &path.display().to_string())
}

/// Whole or not at all, and never over one that is there.
fn make(path: &Path) -> io::Result<()> {
    let seed: [u8; 32] = rand::random();
    let fresh = path.with_extension(format!("new-{:08x}", rand::random::<u32>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let written = writeln!(file, "{}", hex::encode(seed)).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match std::fs::hard_link(&fresh, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    std::fs::remove_file(&fresh)?;
    linked
}

fn tighten(path: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        warn!(file = %path.display(), mode = format!("{mode:o}"), "the server's key can be read by others; chmod 600 it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let args = ServerKeyArgs::default();
        let first = args.open(Some(dir.path())).expect("made");
        let second = args.open(Some(dir.path())).expect("read");
        assert_eq!(first.public(), second.public());
        let mode = std::fs::metadata(dir.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
        assert_ne!(args.open(None).expect("random").public(), args.open(None).expect("random").public());
    }

    #[test]
    fn a_key_that_is_none_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        std::fs::write(&path, "not a key").expect("written");
        let file = ServerKeyArgs { server_key: None, server_key_file: Some(path.clone()) };
        assert!(matches!(file.open(None), Err(ServerKeyError::Damaged { .. })));
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "not a key");
        let both = ServerKeyArgs { server_key: Some("00".repeat(32).into()), server_key_file: Some(path) };
        assert!(matches!(both.open(None), Err(ServerKeyError::Twice)));
    }

    #[test]
    fn a_key_that_anybody_may_guess_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        for text in ["00".repeat(32), "07".repeat(32), "0a0B".repeat(16)] {
            std::fs::write(&path, format!("{text}\n")).expect("written");
            let file = ServerKeyArgs { server_key: None, server_key_file: Some(path.clone()) };
            let given = ServerKeyArgs { server_key: Some(text.into()), server_key_file: None };
            for args in [file, given] {
                let refused = args.open(None);
                assert!(matches!(refused, Err(ServerKeyError::Weak { .. })), "{refused:?}");
            }
        }
        let good = hex::encode((0..32).collect::<Vec<u8>>());
        std::fs::write(&path, format!("{good}\n")).expect("written");
        let file = ServerKeyArgs { server_key: None, server_key_file: Some(path) };
        file.open(None).expect("good");
        assert_eq!(file.text().expect("is there").expose_secret(), good);
        assert!(ServerKeyArgs::default().text().is_none());
    }
}
