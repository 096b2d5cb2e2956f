//! Files with secrets: whether others on this machine can read them.

use std::path::Path;

/// What to say of a file that others can read; nothing where only its owner can, or it is not there.
pub(crate) fn warning(path: &Path) -> Option<String> {
    is_open(path).then(|| format!("others can read {}: chmod 600 it", path.display()))
}

#[cfg(unix)]
fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn is_open(_: &Path) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_read_is_said() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        assert_eq!(warning(&path), None);
        std::fs::write(&path, "hush").expect("written");
        for (mode, open) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o644, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            let said = warning(&path);
            assert_eq!(said.is_some(), open, "{mode:o}");
            assert!(said.is_none_or(|said| said.contains("secret: chmod 600 it")));
        }
    }
}
