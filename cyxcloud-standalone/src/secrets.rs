//! The secrets of a standalone server: made once, kept in its data directory, readable by its owner only.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use rand::RngExt;
use serde::{Deserialize, Serialize};

const FILE: &str = "secrets.toml";

/// What a standalone server must not lose, nor show.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Secrets {
    /// Access key of the root user.
    pub(crate) root_access_key: String,
    /// Its secret key.
    pub(crate) root_secret_key: String,
    /// 64 hexadecimal digits that everything stored is sealed under.
    pub(crate) master_key: String,
    /// Signs tokens.
    pub(crate) jwt_secret: String,
}

impl Secrets {
    /// Reads the file, or makes it.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| {
                format!("{} cannot be understood; what is stored cannot be read without it: restore it from a copy", path.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if directory.join("metadata.sqlite").exists() {
                    bail!("{} is missing, and what is stored here cannot be read without it: restore it from a copy", path.display());
                }
                let secrets = Self::make();
                secrets.keep(directory, &path).with_context(|| format!("write {}", path.display()))?;
                Ok(secrets)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn make() -> Self {
        let mut rng = rand::rng();
        // Access keys of 20 and secrets of 40 characters, as S3 clients expect them.
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut letters = |count: usize, alphabet: &[u8]| -> String {
            (0..count).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
        };
        let root_access_key = format!("CYX{}", letters(17, alphabet));
        let root_secret_key = letters(40, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789");
        let mut bytes = || hex::encode(rng.random::<[u8; 32]>());
        Self { root_access_key, root_secret_key, master_key: bytes(), jwt_secret: bytes() }
    }

    /// Complete on disk before it has its name: a crash leaves the whole file or none.
    fn keep(&self, directory: &Path, path: &Path) -> anyhow::Result<()> {
        let temporary = directory.join(".secrets.toml.new");
        let text = format!(
            "# Secrets of this CyxCloud server. Keep a copy in a safe place: without master_key nothing stored can be read.\n{}",
            toml::to_string(self)?
        );
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_kept_from_others() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let first = Secrets::open(directory.path()).expect("makes them");
        let again = Secrets::open(directory.path()).expect("reads them");
        assert_eq!(first.master_key, again.master_key);
        assert_eq!(first.root_secret_key, again.root_secret_key);
        assert_eq!((first.root_access_key.len(), first.root_secret_key.len()), (20, 40));
        let mode = fs::metadata(directory.path().join(FILE)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn lost_secrets_are_not_replaced_over_data() {
        let directory = tempfile::tempdir().expect("makes a directory");
        fs::write(directory.path().join("metadata.sqlite"), b"x").expect("writes");
        assert!(Secrets::open(directory.path()).is_err());
    }
}
