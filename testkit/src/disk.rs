//! Disks that can be filled, made to fail, and cut off from power: loop-mounted ext4 and small tmpfs.
//!
//! A power cut is ext4's own shutdown ioctl: from that instant nothing reaches the disk, neither the page cache nor the
//! journal's tail, so what was not synced is gone after [`Disk::mount`]. Neither a lying device cache nor reordered blocks are
//! modelled. All of it needs root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::process::{call, text};

/// `_IOR('X', 125, u32)`, with the flag "don't even flush the journal".
const EXT4_SHUTDOWN: u32 = 0x8004_587d;
const NO_LOG_FLUSH: u32 = 2;
/// Times that a disk is mounted until it is not as it was cut off.
const REMOUNTS_MAX: u32 = 50;

/// What a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A sparse image of this many bytes with ext4 on it.
    Ext4(u64),
    /// Memory of this many bytes.
    Tmpfs(u64),
}

/// One disk, mounted unless a test took it away.
#[derive(Debug)]
pub struct Disk {
    kind: Kind,
    image: PathBuf,
    /// Where it is mounted.
    pub at: PathBuf,
}

impl Disk {
    /// Makes and mounts a disk at `at`, with its image beside it.
    pub fn new(kind: Kind, at: &Path) -> Result<Self> {
        require_mounts()?;
        let disk = Self { kind, image: at.with_extension("img"), at: at.to_owned() };
        std::fs::create_dir_all(at).doing("make a mount point")?;
        if let Kind::Ext4(bytes) = kind {
            let image = File::create(&disk.image).doing("make an image")?;
            image.set_len(bytes).doing("make an image")?;
            // Few inodes and no reserve for root: the disks are small and every byte counts.
            call("mkfs.ext4", &["-q", "-F", "-m", "0", "-N", "2048", &text(&disk.image)])?;
        }
        disk.mount()?;
        Ok(disk)
    }

    /// Mounts it (again): what an ext4 disk holds then is what had reached it.
    pub fn mount(&self) -> Result<()> {
        match self.kind {
            Kind::Ext4(_) => {
                let options = "loop,errors=remount-ro";
                for _ in 0..REMOUNTS_MAX {
                    call("mount", &["-o", options, &text(&self.image), &text(&self.at)])?;
                    if !self.is_cut_off() {
                        return Ok(());
                    }
                    // Whoever still looks at a file system keeps it, and a mount then finds it as it was cut off.
                    self.unmount()?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(Error::failed(
                    format!("mount {}", text(&self.image)),
                    "somebody keeps it as it was cut off",
                ))
            }
            Kind::Tmpfs(bytes) => {
                call("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", &text(&self.at)])
                    .map(drop)
            }
        }
    }

    /// Takes it away; whoever uses it must have ended.
    pub fn unmount(&self) -> Result<()> {
        call("umount", &[&text(&self.at)]).map(drop)
    }

    fn is_cut_off(&self) -> bool {
        let probe = self.at.join("probe");
        let tried = File::create(&probe).and_then(|_| std::fs::remove_file(&probe));
        tried.is_err_and(|error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()))
    }

    /// From now on every write fails with EIO, and nothing of what was not synced is ever on the disk. Reads of what is in
    /// memory may go on. Only ext4.
    pub fn fail(&self) -> Result<()> {
        let dir = File::open(&self.at).doing("open a disk")?;
        shut_down(&dir).doing("cut a disk off")
    }

    /// Makes the kernel find an error in the file system, after which it is read-only: EROFS on every write. Only ext4.
    pub fn read_only(&self) -> Result<()> {
        let source = call("findmnt", &["-n", "-o", "SOURCE", &text(&self.at)])?;
        let device = Path::new(source.trim()).file_name().unwrap_or_default();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        std::fs::write(trigger, "1").doing("make a disk read-only")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not mounted any more is as good.
        let _ = call("umount", &["-q", &text(&self.at)])
            .or_else(|_| call("umount", &["-q", "-l", &text(&self.at)]));
    }
}

#[allow(unsafe_code, reason = "ext4's shutdown has no safe wrapper anywhere")]
fn shut_down(dir: &File) -> rustix::io::Result<()> {
    // SAFETY: the kernel reads one u32 behind the pointer that `Setter` makes of its value, and writes nothing.
    unsafe {
        rustix::ioctl::ioctl(dir, rustix::ioctl::Setter::<{ EXT4_SHUTDOWN as _ }, u32>::new(NO_LOG_FLUSH))
    }
}

/// Whether this machine lets us mount loop devices; says why not.
pub fn require_mounts() -> Result<()> {
    static ANSWER: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let answer = ANSWER.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root: it mounts disks".to_owned());
        }
        try_mount().map_err(|error| format!("needs loop mounts of ext4: {error}"))
    });
    answer.clone().map_err(Error::LeftOut)
}

fn try_mount() -> Result<()> {
    let dir = tempfile::tempdir().doing("make a directory")?;
    let (image, at) = (dir.path().join("try.img"), dir.path().join("try"));
    std::fs::create_dir(&at).doing("make a mount point")?;
    File::create(&image).and_then(|file| file.set_len(16 << 20)).doing("make an image")?;
    call("mkfs.ext4", &["-q", "-F", &text(&image)])?;
    call("mount", &["-o", "loop", &text(&image), &text(&at)])?;
    call("umount", &[&text(&at)]).map(drop)
}
