//! Which life of its data directory a node is in, and how far its counter has gone: kept beside the database, so
//! that it can testify against it.
//!
//! A generation must never be given twice, and whoever was told that a chunk is stored must find out when it is not.
//! The database alone can promise neither: a recovery that stops at a damaged record of its log ends up in an earlier
//! state and cannot know it. So there are two small files.
//!
//! `life` is replaced atomically and synced. It holds the incarnation, the highest counter that may have been given
//! out (counters are leased in blocks of [`LEASE`], so that this costs one sync in thousands of stores), and the
//! highest one known to be durable at that time. The next life of the process starts behind the lease: no counter is
//! used twice, whatever the database has forgotten.
//!
//! `acked` is written, not synced, after each durable batch: it holds the last counter that may have been
//! acknowledged. It never runs ahead of the database's own synced log. So if the recovered database is behind it (or
//! behind `life`), acknowledged stores are gone: the node takes a new incarnation and says so. The opposite is the
//! normal end of a killed process: a torn, unacknowledged batch at the log's end takes no new incarnation.
//! After a power cut `acked` may be old, or gone: then a loss is certain to be seen only up to the last lease. A disk
//! that loses synced writes at a power cut can hide no more than that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::record::Account;

/// Counters leased at a time.
const LEASE: u64 = 4096;

const MAGIC: &[u8; 8] = b"CYXLIFE1";
const LIFE_LEN: usize = 8 + 16 + 8 + 8 + 8;

/// What `life` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    incarnation: Uuid,
    leased: u64,
    durable: u64,
}

/// Why a data directory begins a new life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewLife {
    /// Nothing was there.
    Fresh,
    /// A database without a readable `life` beside it.
    LifeLost,
    /// The database is missing what it had acknowledged.
    StoresLost { recovered: u64, acknowledged: u64 },
    /// The database belongs to another life than `life` does: one of them was put there from elsewhere.
    Mismatch,
}

/// The counter's keeper. Owned by the one thread that gives generations.
#[derive(Debug)]
pub(crate) struct Life {
    dir: PathBuf,
    acked: File,
    record: Record,
    next: u64,
}

impl Life {
    /// Reads both files and judges the recovered database by them. `account` is what the database says of itself.
    pub(crate) fn open(
        dir: &Path,
        account: Option<&Account>,
        fresh: impl FnOnce() -> Uuid,
    ) -> io::Result<(Self, Option<NewLife>)> {
        let found = read_life(dir)?;
        let acked_path = dir.join("acked");
        let acked_counter = read_acked(&acked_path);
        let acked =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&acked_path)?;
        let (record, why) = judge(found, account, acked_counter, fresh);
        // The lease is taken behind everything that may have been given out in this life.
        let mut life = Self { dir: dir.to_owned(), acked, record, next: record.leased + 1 };
        life.extend(account.map_or(0, |account| account.counter))?;
        life.acknowledge(life.record.durable)?;
        Ok((life, why))
    }

    pub(crate) fn incarnation(&self) -> Uuid {
        self.record.incarnation
    }

    /// The next counter, never given before. `durable` is the highest counter in the database's synced log.
    pub(crate) fn next(&mut self, durable: u64) -> io::Result<u64> {
        if self.next > self.record.leased {
            self.extend(durable)?;
        }
        let counter = self.next;
        self.next += 1;
        Ok(counter)
    }

    /// Says that all counters up to this one are durable and may be acknowledged.
    pub(crate) fn acknowledge(&mut self, counter: u64) -> io::Result<()> {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(self.record.incarnation.as_bytes());
        bytes[16..24].copy_from_slice(&counter.to_be_bytes());
        let check = checksum(&bytes[..24]);
        bytes[24..].copy_from_slice(&check);
        self.acked.write_all_at(&bytes, 0)
    }

    /// Writes down that everything up to `durable` is there, for the next open to rely on.
    pub(crate) fn settle(&mut self, durable: u64) -> io::Result<()> {
        self.write(Record { durable: durable.max(self.record.durable), ..self.record })
    }

    fn extend(&mut self, durable: u64) -> io::Result<()> {
        self.write(Record {
            leased: self.next.saturating_sub(1) + LEASE,
            durable: durable.max(self.record.durable),
            ..self.record
        })
    }

    fn write(&mut self, record: Record) -> io::Result<()> {
        write_file(&self.dir, "life", &encode(&record))?;
        self.record = record;
        Ok(())
    }
}

fn judge(
    found: Option<Record>,
    account: Option<&Account>,
    acked: Option<(Uuid, u64)>,
    fresh: impl FnOnce() -> Uuid,
) -> (Record, Option<NewLife>) {
    let why = match (found, account) {
        (None, None) => Some(NewLife::Fresh),
        (None, Some(_)) => Some(NewLife::LifeLost),
        (Some(record), account) => {
            let recovered = account.map_or(0, |account| account.counter);
            let witnessed = acked.filter(|(life, _)| *life == record.incarnation).map_or(0, |(_, n)| n);
            let acknowledged = record.durable.max(witnessed);
            if account.is_some_and(|account| account.incarnation != record.incarnation) {
                Some(NewLife::Mismatch)
            } else if recovered < acknowledged {
                Some(NewLife::StoresLost { recovered, acknowledged })
            } else {
                None
            }
        }
    };
    match (why, found) {
        (None, Some(record)) => (record, None),
        // Behind any counter that the database knows, though a new life could start at 1: a mix-up of lives then
        // still shows an order.
        _ => {
            let leased =
                found.map_or(0, |record| record.leased).max(account.map_or(0, |account| account.counter));
            (Record { incarnation: fresh(), leased, durable: 0 }, why)
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    out
}

fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(LIFE_LEN);
    out.extend(MAGIC);
    out.extend(record.incarnation.as_bytes());
    out.extend(record.leased.to_be_bytes());
    out.extend(record.durable.to_be_bytes());
    out.extend(checksum(&out));
    out
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let (body, check) = bytes.split_at_checked(LIFE_LEN - 8)?;
    if check != checksum(body) || &body[..8] != MAGIC {
        return None;
    }
    Some(Record {
        incarnation: Uuid::from_slice(&body[8..24]).ok()?,
        leased: u64::from_be_bytes(body[24..32].try_into().ok()?),
        durable: u64::from_be_bytes(body[32..40].try_into().ok()?),
    })
}

/// A damaged file is as good as none: both end in a new life. One that cannot be read is an error, because it may be
/// readable tomorrow.
fn read_life(dir: &Path) -> io::Result<Option<Record>> {
    match fs::read(dir.join("life")) {
        Ok(bytes) => Ok(decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_acked(path: &Path) -> Option<(Uuid, u64)> {
    let bytes: [u8; 32] = fs::read(path).ok()?.try_into().ok()?;
    if bytes[24..] != checksum(&bytes[..24]) {
        return None;
    }
    Some((Uuid::from_slice(&bytes[..16]).ok()?, u64::from_be_bytes(bytes[16..24].try_into().ok()?)))
}

/// Replaces a file so that a crash at any instant leaves the old one or the new one, readable by the owner only.
pub(crate) fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    // The rename itself must outlive a power cut.
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(incarnation: Uuid, counter: u64) -> Account {
        Account { counter, incarnation, ..Account::default() }
    }

    fn open(dir: &Path, account: Option<&Account>) -> (Life, Option<NewLife>) {
        let fresh = || Uuid::from_bytes(rand::random());
        Life::open(dir, account, fresh).expect("files can be written")
    }

    #[test]
    fn counters_go_on_behind_the_lease_after_a_crash() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mut life, why) = open(dir.path(), None);
        assert_eq!(why, Some(NewLife::Fresh));
        assert_eq!(life.next(0).expect("lease"), 1);
        let last = (0..LEASE * 2).map(|n| life.next(n).expect("lease")).last().expect("some");
        let incarnation = life.incarnation();
        drop(life);
        let (mut life, why) = open(dir.path(), Some(&account(incarnation, last)));
        assert_eq!((why, life.incarnation()), (None, incarnation));
        assert!(life.next(last).expect("lease") > last);
    }

    #[test]
    fn a_database_behind_its_acknowledgements_starts_a_new_life() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mut life, _) = open(dir.path(), None);
        let incarnation = life.incarnation();
        life.next(0).expect("lease");
        life.next(0).expect("lease");
        life.acknowledge(2).expect("written");
        drop(life);
        let (life, why) = open(dir.path(), Some(&account(incarnation, 1)));
        assert_eq!(why, Some(NewLife::StoresLost { recovered: 1, acknowledged: 2 }));
        assert_ne!(life.incarnation(), incarnation);
    }

    #[test]
    fn a_torn_end_that_nobody_was_told_of_is_no_new_life() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mut life, _) = open(dir.path(), None);
        let incarnation = life.incarnation();
        life.next(0).expect("lease");
        life.acknowledge(1).expect("written");
        life.next(1).expect("given, and never acknowledged");
        drop(life);
        let (mut life, why) = open(dir.path(), Some(&account(incarnation, 1)));
        assert_eq!((why, life.incarnation()), (None, incarnation));
        assert!(life.next(1).expect("lease") > 2);
    }

    #[test]
    fn a_database_from_elsewhere_or_without_its_life_starts_a_new_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (life, _) = open(dir.path(), None);
        drop(life);
        let stranger = account(Uuid::from_bytes([8; 16]), 70_000);
        let (mut life, why) = open(dir.path(), Some(&stranger));
        assert_eq!(why, Some(NewLife::Mismatch));
        assert!(life.next(0).expect("lease") > 70_000);
        drop(life);
        fs::write(dir.path().join("life"), b"torn").expect("written");
        assert_eq!(open(dir.path(), Some(&stranger)).1, Some(NewLife::LifeLost));
    }

    #[test]
    fn a_lost_database_is_noticed_after_a_settled_close() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mut life, _) = open(dir.path(), None);
        life.next(0).expect("lease");
        life.settle(1).expect("written");
        drop(life);
        fs::remove_file(dir.path().join("acked")).expect("was there");
        assert_eq!(open(dir.path(), None).1, Some(NewLife::StoresLost { recovered: 0, acknowledged: 1 }));
    }
}
