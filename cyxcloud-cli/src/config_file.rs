//! The config file as it is changed: only the session in its `[auth]` table, all at once, for its owner's eyes only.
//!
//! Whoever reads it sees the old file or the new one, never part of one. Comments, order and entries of others stay.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use toml_edit::{DocumentMut, Item, Table, value};

use crate::config::{Error, Saved, Token, url_text};

/// What we write, and take away again at log-out.
const ENTRIES: [&str; 6] =
    ["access_token", "refresh_token", "wallet_address", "expires_at", "gateway", "api_url"];
/// A table that we make says where it came from.
const NEW_FILE: &str = "# CyxCloud CLI Configuration\n";

/// Held while a session is renewed, so that two programs do not renew it both. Freed when dropped, or when we die.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "held, not read")] File);

/// Waits for the lock of this config file.
pub(crate) async fn lock(path: &Path) -> Result<Lock, Error> {
    let path = real(path);
    let unwritable =
        |reason: std::io::Error| Error::Unwritable { path: path.clone(), reason: reason.to_string() };
    make_directory(&path).map_err(unwritable)?;
    let mut name = path.clone().into_os_string();
    name.push(".lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(name).map_err(unwritable)?;
    // Another program may hold it for as long as a server takes to answer.
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    let locked = locked.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)));
    locked.map(Lock).map_err(unwritable)
}

/// The session that is in the file now.
pub(crate) fn session(path: &Path) -> Result<Option<Saved>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            crate::config::saved_in(&text).map_err(|reason| Error::Invalid { path: path.to_owned(), reason })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Unreadable { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// Puts a session into the file in place of the one that is there, or takes that one away.
pub(crate) fn save(path: &Path, session: Option<&Saved>) -> Result<(), Error> {
    let path = real(path);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match session {
            Some(_) => NEW_FILE.to_owned(),
            None => return Ok(()),
        },
        Err(error) => return Err(Error::Unreadable { path, reason: error.to_string() }),
    };
    let text = edit(&text, session).map_err(|reason| Error::Invalid { path: path.clone(), reason })?;
    replace(&path, &text).map_err(|error| Error::Unwritable { path, reason: error.to_string() })
}

/// Where the file really is: a link to it stays a link.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory(path))
}

/// The new content in one step; a temporary file is its owner's only from the beginning.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    make_directory(path)?;
    let mut file = tempfile::Builder::new().prefix(".config-").tempfile_in(directory(path))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory(path))?.sync_all()
}

/// The file's text with another session.
fn edit(text: &str, session: Option<&Saved>) -> Result<String, String> {
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    if session.is_some() {
        document.entry("auth").or_insert_with(|| Item::Table(Table::new()));
    }
    let Some(auth) = document.get_mut("auth") else { return Ok(text.to_owned()) };
    let auth = auth.as_table_like_mut().ok_or("auth is not a table")?;
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
    for name in ENTRIES {
        let now = session.and_then(|session| match name {
            "access_token" => Some(session.access_token.0.clone()),
            "refresh_token" => session.refresh_token.as_ref().map(|Token(token)| token.clone()),
            "wallet_address" => session.wallet_address.clone(),
            "expires_at" => session.expires_at.map(time),
            "gateway" => session.gateway.as_ref().map(|url| url_text(url).to_owned()),
            _ => session.api_url.as_ref().map(|url| url_text(url).to_owned()),
        });
        match now {
            Some(now) => {
                auth.insert(name, value(now));
            }
            None => {
                auth.remove(name);
            }
        }
    }
    if session.is_none() && auth.is_empty() {
        document.remove("auth");
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "# mine\n[gateway]\nurl = \"http://h:1\" # here\n\n[auth]\naccess_key = \"A\" # kept\nsecret_key = 'S'\n\n[other]\nx = 1\n";

    fn saved(token: &str) -> Saved {
        Saved {
            access_token: Token(token.to_owned()),
            refresh_token: Some(Token(format!("{token}-refresh"))),
            wallet_address: Some("W".to_owned()),
            expires_at: Some("2030-01-01T00:00:00Z".parse().expect("a time")),
            gateway: Some("https://files.example:8443/base".parse().expect("a URL")),
            api_url: None,
        }
    }

    #[test]
    fn a_session_comes_and_goes_and_the_rest_stays() {
        let with = edit(THEIRS, Some(&saved("t"))).expect("edits");
        for kept in
            ["# mine\n", "url = \"http://h:1\" # here\n", "access_key = \"A\" # kept\n", "[other]\nx = 1\n"]
        {
            assert!(with.contains(kept), "{kept}\n{with}");
        }
        assert!(
            with.contains("access_token = \"t\"\n")
                && with.contains("expires_at = \"2030-01-01T00:00:00Z\"\n")
                && with.contains("gateway = \"https://files.example:8443/base\"\n")
        );
        assert_eq!(crate::config::saved_in(&with), Ok(Some(saved("t"))));
        assert_eq!(edit(&with, None).as_deref(), Ok(THEIRS));
    }

    #[test]
    fn an_empty_file_becomes_the_specification_s() {
        let with = edit("", Some(&saved("t"))).expect("edits");
        assert!(
            with.starts_with("[auth]\naccess_token = \"t\"\nrefresh_token = \"t-refresh\"\nwallet_address"),
            "{with}"
        );
        assert_eq!(edit(&with, None).as_deref(), Ok(""));
        assert_eq!(edit("", None).as_deref(), Ok(""));
        let inline = edit("auth = { access_key = 'A' }\n", Some(&saved("t"))).expect("edits");
        assert_eq!(crate::config::saved_in(&inline), Ok(Some(saved("t"))));
    }

    #[test]
    fn a_broken_file_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        for broken in ["[auth\n", "auth = 7\n"] {
            std::fs::write(&path, broken).expect("written");
            assert!(matches!(save(&path, Some(&saved("t"))), Err(Error::Invalid { .. })));
            assert_eq!(std::fs::read_to_string(&path).expect("read"), broken);
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_its_owner_s_only_and_a_link_stays_one() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        let path = directory.path().join("deep/er/config.toml");
        save(&path, Some(&saved("t"))).expect("saved");
        assert_eq!((mode(&path), mode(path.parent().expect("a directory"))), (0o600, 0o700));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("opened up");
        let link = directory.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        save(&link, Some(&saved("u"))).expect("saved");
        assert!(link.is_symlink());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(session(&path).expect("read"), Some(saved("u")));
        assert_eq!(
            std::fs::read_dir(path.parent().expect("one")).expect("listed").count(),
            1,
            "nothing left behind"
        );
    }

    #[tokio::test]
    async fn the_lock_is_held_by_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        let first = lock(&path).await.expect("locked");
        let mut second = tokio_util::task::AbortOnDropHandle::new(tokio::spawn({
            let path = path.clone();
            async move { lock(&path).await.map(|_| ()) }
        }));
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        (&mut second).await.expect("runs").expect("locked");
    }
}
