//! From paths to keys and back.
//!
//! A key may be anything; a path may not. What would be another file than the key says, or lie outside of the
//! target folder, is refused and never bent.

use std::path::{Component, Path, PathBuf};

use cyxcloud_core::name::ObjectKey;

/// Why a path has no key, or a key no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?}: the name is not UTF-8, which keys are; rename it")]
    NotUtf8(PathBuf),
    #[error("{key:?}: {reason}")]
    Key { key: String, reason: String },
    #[error(
        "{0:?}: this key would leave the target folder; download it by itself, with --key and a file name"
    )]
    Leaves(String),
    #[error(
        "{0:?}: this key is not the name of a file here; download it by itself, with --key and a file name"
    )]
    NoFile(String),
}

/// Takes a key, or says what is wrong with it.
pub(crate) fn check(key: &str) -> Result<(), Error> {
    let reason = match ObjectKey::new(key) {
        Err(error) => error.to_string(),
        Ok(_) if key.split('/').any(|part| part == "." || part == "..") => {
            "HTTP cannot carry a key with . or .. between slashes".to_owned()
        }
        Ok(_) => return Ok(()),
    };
    Err(Error::Key { key: key.to_owned(), reason })
}

/// A folder as the start of its keys: with a slash at its end, unless it is the whole bucket.
pub(crate) fn folder(prefix: &str) -> String {
    if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") }
}

/// The key of a file that lies at `relative` in a directory uploaded to `folder`.
pub(crate) fn key_of(folder: &str, relative: &Path) -> Result<String, Error> {
    let mut key = folder.to_owned();
    for (place, component) in relative.components().enumerate() {
        let Component::Normal(name) = component else {
            return Err(Error::Key {
                key: relative.display().to_string(),
                reason: "not a relative path".to_owned(),
            });
        };
        let name = name.to_str().ok_or_else(|| Error::NotUtf8(relative.to_owned()))?;
        if place > 0 {
            key.push('/');
        }
        key.push_str(name);
    }
    check(&key)?;
    Ok(key)
}

/// Where a key under `folder` lies in the target directory. `None` for the folder's own marker.
/// A key that ends with a slash is a directory.
pub(crate) fn path_of(folder: &str, key: &str) -> Result<Option<PathBuf>, Error> {
    let no_file = || Error::NoFile(key.to_owned());
    let relative = key.strip_prefix(folder).ok_or_else(no_file)?;
    if relative.is_empty() {
        return Ok(None);
    }
    if relative.starts_with('/') || relative.split('/').any(|part| part == "..") {
        return Err(Error::Leaves(key.to_owned()));
    }
    let mut path = PathBuf::new();
    for part in relative.strip_suffix('/').unwrap_or(relative).split('/') {
        if part.is_empty() || part == "." || part.contains('\0') {
            return Err(no_file());
        }
        if cfg!(windows) && part.contains(['\\', ':', '*', '?', '"', '<', '>', '|']) {
            return Err(Error::Leaves(key.to_owned()));
        }
        path.push(part);
    }
    // Whatever this system makes of the text, every part is one plain name.
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    if plain { Ok(Some(path)) } else { Err(Error::Leaves(key.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_folder_and_path() {
        assert_eq!(key_of("", Path::new("a/b c")).as_deref(), Ok("a/b c"));
        assert_eq!(key_of(&folder("photos"), Path::new("ü/+%.jpg")).as_deref(), Ok("photos/ü/+%.jpg"));
        assert_eq!(folder("photos/"), "photos/");
        assert!(key_of("", Path::new("../a")).is_err());
        assert!(key_of("", Path::new("/a")).is_err());
        assert!(key_of(&"x".repeat(1020), Path::new("abcde")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_text_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"a\xff");
        assert!(matches!(key_of("", Path::new(name)), Err(Error::NotUtf8(_))));
    }

    #[test]
    fn what_came_from_a_path_goes_back_to_it() {
        for path in ["a", "a/b/c.txt", "with space/+plus/%25", "ünï/…/日本", "-", "..a/b..", "C:x"] {
            let key = key_of("in/", Path::new(path)).expect("a key");
            if !cfg!(windows) {
                assert_eq!(path_of("in/", &key), Ok(Some(PathBuf::from(path))), "{path}");
            }
        }
    }

    #[test]
    fn no_key_leaves_the_folder() {
        for key in ["../x", "a/../x", "..", "a/..", "/etc/passwd", "//etc/passwd", "a/../../x"] {
            assert_eq!(path_of("", key), Err(Error::Leaves(key.to_owned())), "{key}");
        }
        assert_eq!(path_of("in/", "in//etc"), Err(Error::Leaves("in//etc".into())));
        for key in ["a//b", "./a", "a/./b", "a//", "nul\0"] {
            assert_eq!(path_of("", key), Err(Error::NoFile(key.to_owned())), "{key}");
        }
        assert_eq!(path_of("in/", "out/a"), Err(Error::NoFile("out/a".into())));
    }

    #[test]
    fn folders_have_markers() {
        assert_eq!(path_of("in/", "in/"), Ok(None));
        assert_eq!(path_of("in/", "in/sub/"), Ok(Some(PathBuf::from("sub"))));
    }

    #[test]
    fn keys_that_cannot_be_sent_are_refused() {
        for key in ["", "a/../b", "./a", "..", &"x".repeat(1025)] {
            assert!(check(key).is_err(), "{key:?}");
        }
        for key in ["a//b", "//", "a b+%/ü", "..a", &"x".repeat(1024)] {
            assert!(check(key).is_ok(), "{key:?}");
        }
    }
}
