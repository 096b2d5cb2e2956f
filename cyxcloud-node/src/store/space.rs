//! What the disk under a data directory still has, and a little of it set aside.
//!
//! A log-structured store needs space even to delete. So stores stop while some is left ([`HEADROOM`]), and a file of
//! [`RESERVE`] is given back when others have filled the disk all the same.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use cyxcloud_core::ByteCount;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// What must stay free: a full log, the tables it is flushed to, and the manifest.
pub(crate) const HEADROOM: ByteCount = ByteCount::mib(96);
/// Length of the file that is given up when the disk runs full.
pub(crate) const RESERVE: ByteCount = ByteCount::mib(32);

/// The disk of one data directory.
#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    reserve: PathBuf,
}

impl Space {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), reserve: dir.join("reserve") }
    }

    /// Bytes that an unprivileged process may still write. An unanswered question counts as enough: the write itself
    /// will tell.
    pub(crate) fn free(&self) -> ByteCount {
        statvfs(&self.dir).map_or(ByteCount::bytes(u64::MAX), |stat| {
            ByteCount::bytes(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
    }

    /// Sets the reserve aside if that leaves the headroom free. Best effort: without it deletes may wait on a disk
    /// that others filled.
    pub(crate) fn keep_reserve(&self) -> io::Result<()> {
        if self.reserve.exists() || self.free() < HEADROOM + RESERVE {
            return Ok(());
        }
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&self.reserve)?;
        fallocate(&file, FallocateFlags::empty(), 0, RESERVE.get())
            .inspect_err(|_| self.give_up_reserve())?;
        File::sync_all(&file)
    }

    /// Gives the reserve back to the disk.
    pub(crate) fn give_up_reserve(&self) {
        // Absent is as good as removed; anything else shows in the next write.
        let _ = fs::remove_file(&self.reserve);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_takes_real_space_and_gives_it_back() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let space = Space::new(dir.path());
        if space.free() < HEADROOM + RESERVE {
            return;
        }
        space.keep_reserve().expect("room for the reserve");
        let blocks = fs::metadata(dir.path().join("reserve")).expect("reserve").blocks();
        assert!(blocks * 512 >= RESERVE.get());
        space.give_up_reserve();
        assert!(!dir.path().join("reserve").exists());
    }
}
