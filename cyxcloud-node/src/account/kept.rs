//! What a node keeps of its operator's log-in, in its data directory, readable by its owner only.
//!
//! Complete on disk before it has its name, as everything that must outlive a power cut. A damaged file is as good as
//! none: a log-in makes another.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use cyxcloud_core::Timestamp;
use cyxwiz_client::Tokens;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::store::write_file;

/// The file's name.
pub(super) const FILE: &str = "cyxwiz-session.json";

/// A log-in.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Where it was made.
    pub(super) api_url: String,
    /// Whose it is.
    pub(super) email: String,
    /// Goes with registrations.
    pub(super) access_token: SecretString,
    /// Is exchanged once for the next two.
    pub(super) refresh_token: SecretString,
    /// When that is due.
    pub(super) renew_at: Timestamp,
    /// When the access token ends.
    pub(super) expires_at: Timestamp,
}

/// The same, as the file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    api_url: String,
    email: String,
    access_token: String,
    refresh_token: String,
    renew_at_ms: i64,
    expires_at_ms: i64,
}

impl Kept {
    /// What was answered to a question asked at `asked`. Renewed when a fifth of its life is left, so that a service that
    /// is away for a moment is not missed.
    pub(super) fn new(api_url: &str, email: &str, tokens: Tokens, asked: Timestamp) -> Self {
        let life = Duration::from_secs(tokens.expires_in);
        Self {
            api_url: api_url.to_owned(),
            email: email.to_owned(),
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
            renew_at: asked.plus(life.mul_f64(0.8)),
            expires_at: asked.plus(life),
        }
    }

    /// Reads it, if it is there.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(path = %path.display(), %error, "a log-in cannot be read");
                }
                return None;
            }
        };
        let Ok(written) = serde_json::from_slice::<Written>(&text) else {
            warn!(path = %path.display(), "a log-in is damaged and not used");
            return None;
        };
        Some(Self {
            api_url: written.api_url,
            email: written.email,
            access_token: written.access_token.into(),
            refresh_token: written.refresh_token.into(),
            renew_at: Timestamp::from_unix_millis(written.renew_at_ms),
            expires_at: Timestamp::from_unix_millis(written.expires_at_ms),
        })
    }

    /// Keeps it; durable when this returns.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let written = Written {
            api_url: self.api_url.clone(),
            email: self.email.clone(),
            access_token: self.access_token.expose_secret().to_owned(),
            refresh_token: self.refresh_token.expose_secret().to_owned(),
            renew_at_ms: self.renew_at.unix_millis(),
            expires_at_ms: self.expires_at.unix_millis(),
        };
        write_file(dir, FILE, &serde_json::to_vec(&written)?)
    }

    /// Forgets it; whether there was one.
    pub(super) fn remove(dir: &Path) -> io::Result<bool> {
        // Half-written, from a crash, it has tokens all the same.
        let removed = |name: &str| match fs::remove_file(dir.join(name)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        let (whole, half) = (removed(FILE)?, removed(&format!("{FILE}.new"))?);
        if whole || half {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(whole || half)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_log_in_is_kept_for_its_owner_only_and_forgotten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(Kept::read(dir.path()).is_none());
        let tokens =
            Tokens { access_token: "hush-a".into(), refresh_token: "hush-r".into(), expires_in: 100 };
        let kept = Kept::new("http://h", "a@b.c", tokens, Timestamp::from_unix_millis(1_000));
        assert!(!format!("{kept:?}").contains("hush"));
        kept.write(dir.path()).expect("written");
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let read = Kept::read(dir.path()).expect("there");
        assert_eq!(read.access_token.expose_secret(), "hush-a");
        assert_eq!((read.renew_at.unix_millis(), read.expires_at.unix_millis()), (81_000, 101_000));
        fs::write(dir.path().join(format!("{FILE}.new")), "half").expect("written");
        assert!(Kept::remove(dir.path()).expect("removed"));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
        assert!(!Kept::remove(dir.path()).expect("nothing there"));
        fs::write(&path, "{}").expect("written");
        assert!(Kept::read(dir.path()).is_none(), "damaged");
    }
}
