//! What is kept beside a chunk's bytes, and how it is written.
//!
//! Pure. Numbers are big-endian. Both stores decide by the rules here, so that they cannot differ.

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp};
use uuid::Uuid;

use super::{DESCRIPTORS_MAX, Entry, Trashed};

/// Versions of the records below; a data directory names the one it was written in. Gateways judge a registration by
/// the same numbers.
pub(crate) use cyxcloud_proto::{FORMAT_OLDEST, format_newest};

/// The first format whose records say when a chunk was stored.
const FORMAT_STORED_AT: u32 = 2;
const QUARANTINED: u8 = 1;
/// The time of the delete, 8 bytes, follows the generation.
const TRASHED: u8 = 2;
/// The time of the store, 8 bytes, follows that.
const STORED_AT: u8 = 4;

/// First byte of the keys that list the trash.
pub(crate) const TRASH: u8 = b't';

/// Key of one piece of trash in the list of it: in the order of time, then of id. What else there is to know stands
/// in the chunk's [`Meta`], which decides.
pub(crate) type TrashKey = [u8; 41];

/// Before all trash.
pub(crate) const TRASH_START: TrashKey = {
    let mut key = [0; 41];
    key[0] = TRASH;
    key
};

pub(crate) fn trash_key(at: Timestamp, id: &ChunkId) -> TrashKey {
    let mut key = TRASH_START;
    // With the sign turned over, bytes have the order of times even before 1970.
    key[1..9].copy_from_slice(&(at.unix_millis().cast_unsigned() ^ (1 << 63)).to_be_bytes());
    key[9..].copy_from_slice(id.as_bytes());
    key
}

/// `None` if this is no key of [`trash_key`].
pub(crate) fn parse_trash_key(key: &[u8]) -> Option<(Timestamp, ChunkId)> {
    let mut reader = Reader(key);
    if reader.u8()? != TRASH {
        return None;
    }
    let at = Timestamp::from_unix_millis((reader.u64()? ^ (1 << 63)).cast_signed());
    Some((at, ChunkId::try_from(reader.0).ok()?))
}

/// What is known of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) length: ByteCount,
    pub(crate) generation: Generation,
    pub(crate) quarantined: bool,
    /// When it was deleted, if it is not held any more but in the trash. Never together with `quarantined`.
    pub(crate) trashed: Option<Timestamp>,
    /// When it was last stored, as its receipt says; not known of stores in the first format.
    pub(crate) stored_at: Option<Timestamp>,
    pub(crate) descriptors: Vec<Bytes>,
}

impl Meta {
    /// A chunk's first store.
    pub(crate) fn new(length: ByteCount, generation: Generation) -> Self {
        Self {
            length,
            generation,
            quarantined: false,
            trashed: None,
            stored_at: None,
            descriptors: Vec::new(),
        }
    }

    /// Keeps a descriptor unless it is empty or known. Past the limit the oldest goes: newer ones are likelier to
    /// belong to something that still exists.
    pub(crate) fn remember(&mut self, descriptor: &Bytes) {
        if descriptor.is_empty() || self.descriptors.contains(descriptor) {
            return;
        }
        if self.descriptors.len() >= DESCRIPTORS_MAX {
            self.descriptors.remove(0);
        }
        self.descriptors.push(descriptor.clone());
    }

    /// Whether somebody who knows `generation` may delete this: it must be this one or a newer one of the same
    /// life. A newer store must not be deleted by a decision that did not know of it, and generations of
    /// different lives have no order.
    pub(crate) fn may_be_deleted_by(&self, generation: Generation) -> bool {
        generation.incarnation == self.generation.incarnation && self.generation.counter <= generation.counter
    }

    pub(crate) fn entry(&self, id: ChunkId) -> Entry {
        Entry {
            id,
            length: self.length,
            generation: self.generation,
            quarantined: self.quarantined,
            stored_at: self.stored_at,
            descriptors: self.descriptors.clone(),
        }
    }

    /// As a piece of trash, if it is one.
    pub(crate) fn as_trash(&self, id: ChunkId) -> Option<Trashed> {
        let (length, generation) = (self.length, self.generation);
        self.trashed.map(|at| Trashed { id, length, generation, at })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let descriptors: usize = self.descriptors.iter().map(|d| d.len() + 2).sum();
        let mut out = Vec::with_capacity(50 + descriptors);
        let flag = |set, flag| if set { flag } else { 0 };
        let (trashed, stored_at) = (self.trashed.is_some(), self.stored_at.is_some());
        out.push(flag(self.quarantined, QUARANTINED) | flag(trashed, TRASHED) | flag(stored_at, STORED_AT));
        out.extend(self.length.get().to_be_bytes());
        out.extend(self.generation.incarnation.as_bytes());
        out.extend(self.generation.counter.to_be_bytes());
        for at in [self.trashed, self.stored_at].into_iter().flatten() {
            out.extend(at.unix_millis().to_be_bytes());
        }
        for descriptor in &self.descriptors {
            let length = u16::try_from(descriptor.len()).expect("the service refuses longer descriptors");
            out.extend(length.to_be_bytes());
            out.extend_from_slice(descriptor);
        }
        out
    }

    /// `None` if these bytes were not written by [`encode`](Self::encode).
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let flags = reader.u8()?;
        let known = QUARANTINED | TRASHED | if format_newest() >= FORMAT_STORED_AT { STORED_AT } else { 0 };
        if flags & !known != 0 {
            return None;
        }
        let mut meta = Self {
            length: ByteCount::bytes(reader.u64()?),
            generation: Generation { incarnation: reader.uuid()?, counter: reader.u64()? },
            quarantined: flags & QUARANTINED != 0,
            trashed: None,
            stored_at: None,
            descriptors: Vec::new(),
        };
        if flags & TRASHED != 0 {
            meta.trashed = Some(reader.time()?);
        }
        if flags & STORED_AT != 0 {
            meta.stored_at = Some(reader.time()?);
        }
        while !reader.0.is_empty() {
            let length = u16::from_be_bytes(reader.array()?);
            meta.descriptors.push(Bytes::copy_from_slice(reader.take(usize::from(length))?));
        }
        Some(meta)
    }
}

/// Sums over all chunks, written with every batch so that they are exact after any crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    /// Version of the records; older programs refuse a directory by it.
    pub(crate) format: u32,
    /// Bytes of all chunks, those in the trash included.
    pub(crate) used: ByteCount,
    /// Chunks held, those in the trash not included.
    pub(crate) chunks: u64,
    /// Highest counter given out.
    pub(crate) counter: u64,
    /// The life that wrote this.
    pub(crate) incarnation: Uuid,
    /// Bytes of the chunks in the trash.
    pub(crate) trash: ByteCount,
    /// Chunks in the trash.
    pub(crate) trash_chunks: u64,
}

/// Of nothing at all.
impl Default for Account {
    fn default() -> Self {
        Self {
            format: FORMAT_OLDEST,
            used: ByteCount::ZERO,
            chunks: 0,
            counter: 0,
            incarnation: Uuid::nil(),
            trash: ByteCount::ZERO,
            trash_chunks: 0,
        }
    }
}

impl Account {
    /// What a record written now says of when its chunk was stored.
    pub(crate) fn stored_at(&self, at: Timestamp) -> Option<Timestamp> {
        (self.format >= FORMAT_STORED_AT).then_some(at)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(60);
        out.extend(self.format.to_be_bytes());
        out.extend(self.used.get().to_be_bytes());
        out.extend(self.chunks.to_be_bytes());
        out.extend(self.counter.to_be_bytes());
        out.extend(self.incarnation.as_bytes());
        out.extend(self.trash.get().to_be_bytes());
        out.extend(self.trash_chunks.to_be_bytes());
        out
    }

    /// `Err` holds the format version if it is not known, or `None` if this is no account at all.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Option<u32>> {
        let mut reader = Reader(bytes);
        let format = u32::from_be_bytes(reader.array().ok_or(None)?);
        if !(FORMAT_OLDEST..=format_newest()).contains(&format) {
            return Err(Some(format));
        }
        let mut read = || {
            Some(Self {
                format,
                used: ByteCount::bytes(reader.u64()?),
                chunks: reader.u64()?,
                counter: reader.u64()?,
                incarnation: reader.uuid()?,
                ..Self::default()
            })
        };
        let mut account = read().ok_or(None)?;
        // A directory from before there was trash has none.
        if !reader.0.is_empty() {
            account.trash = ByteCount::bytes(reader.u64().ok_or(None)?);
            account.trash_chunks = reader.u64().ok_or(None)?;
        }
        Ok(account)
    }

    /// A chunk came.
    pub(crate) fn add(&mut self, length: ByteCount) {
        self.used = self.used + length;
        self.chunks += 1;
    }

    /// A chunk that was held has gone.
    pub(crate) fn remove(&mut self, length: ByteCount) {
        self.used = self.used.saturating_sub(length);
        self.chunks = self.chunks.saturating_sub(1);
    }

    /// A chunk that was held is in the trash.
    pub(crate) fn discard(&mut self, length: ByteCount) {
        self.chunks = self.chunks.saturating_sub(1);
        self.trash = self.trash + length;
        self.trash_chunks += 1;
    }

    /// A chunk that was in the trash is held.
    pub(crate) fn restore(&mut self, length: ByteCount) {
        self.chunks += 1;
        self.trash = self.trash.saturating_sub(length);
        self.trash_chunks = self.trash_chunks.saturating_sub(1);
    }

    /// A chunk that was in the trash has gone.
    pub(crate) fn purge(&mut self, length: ByteCount) {
        self.restore(length);
        self.remove(length);
    }

    /// What must be purged before this much more fits an offer; `None` if all the trash is not enough.
    pub(crate) fn lacks(&self, offered: ByteCount, length: ByteCount) -> Option<ByteCount> {
        let lack = (self.used + length).saturating_sub(offered);
        (lack <= self.trash).then_some(lack)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn time(&mut self) -> Option<Timestamp> {
        self.u64().map(|millis| Timestamp::from_unix_millis(millis.cast_signed()))
    }

    fn uuid(&mut self) -> Option<Uuid> {
        self.array().map(Uuid::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn generation(incarnation: u8, counter: u64) -> Generation {
        Generation { incarnation: Uuid::from_bytes([incarnation; 16]), counter }
    }

    #[test]
    fn records_survive_being_written() {
        let mut meta = Meta::new(ByteCount::bytes(9), generation(1, 2));
        meta.remember(&Bytes::from_static(b"a"));
        meta.remember(&Bytes::from_static(b"bc"));
        meta.quarantined = true;
        assert_eq!(Meta::decode(&meta.encode()), Some(meta.clone()));
        meta = Meta { quarantined: false, trashed: Some(Timestamp::from_unix_millis(-5)), ..meta };
        assert_eq!(Meta::decode(&meta.encode()), Some(meta.clone()));
        meta = Meta { stored_at: Some(Timestamp::from_unix_millis(7)), ..meta };
        assert_eq!(Meta::decode(&meta.encode()), Some(meta.clone()));
        meta = Meta { trashed: None, ..meta };
        assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        let account = Account {
            format: 2,
            used: ByteCount::mib(1),
            chunks: 2,
            counter: 3,
            incarnation: Uuid::from_bytes([4; 16]),
            trash: ByteCount::kib(5),
            trash_chunks: 6,
        };
        assert_eq!(Account::decode(&account.encode()), Ok(account));
        assert_eq!(Account::decode(&3u32.to_be_bytes()), Err(Some(3)));
        assert_eq!(Account::decode(&0u32.to_be_bytes()), Err(Some(0)));
    }

    /// Bytes that builds without a trash wrote, spelled out: data directories hold them.
    #[test]
    fn records_from_before_there_was_trash_are_read() {
        let meta = [
            &[1][..],
            &9u64.to_be_bytes(),
            &[1; 16],
            &2u64.to_be_bytes(),
            &[0, 1, b'a'],
            &[0, 2, b'b', b'c'],
        ]
        .concat();
        let read = Meta::decode(&meta).expect("well formed");
        assert_eq!((read.length, read.generation), (ByteCount::bytes(9), generation(1, 2)));
        assert_eq!((read.quarantined, read.trashed), (true, None));
        assert_eq!(read.descriptors, [Bytes::from_static(b"a"), Bytes::from_static(b"bc")]);
        assert_eq!(read.encode(), meta, "and written as ever as long as there is none");
        let account = [
            &1u32.to_be_bytes()[..],
            &7u64.to_be_bytes(),
            &2u64.to_be_bytes(),
            &3u64.to_be_bytes(),
            &[4; 16],
        ]
        .concat();
        let read = Account::decode(&account).expect("well formed");
        assert_eq!((read.used, read.chunks, read.counter), (ByteCount::bytes(7), 2, 3));
        assert_eq!((read.trash, read.trash_chunks), (ByteCount::ZERO, 0));
    }

    #[test]
    fn only_the_newer_format_says_when() {
        let at = Timestamp::from_unix_millis(7);
        assert_eq!(Account::default().stored_at(at), None);
        assert_eq!(Account { format: 2, ..Account::default() }.stored_at(at), Some(at));
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_not_guessed_at() {
        let mut bytes = Meta::new(ByteCount::bytes(9), generation(1, 2)).encode();
        bytes[0] = 8;
        assert_eq!(Meta::decode(&bytes), None);
    }

    #[test]
    fn trash_is_listed_in_the_order_of_time() {
        let id = |n: u8| ChunkId::of(&[n]);
        let at = Timestamp::from_unix_millis;
        let sorted: Vec<_> = [-2, -1, 0, 1, 1 << 40].map(|millis| trash_key(at(millis), &id(1))).into();
        assert!(sorted.is_sorted() && sorted.iter().all(|key| *key > TRASH_START));
        assert_eq!(parse_trash_key(&sorted[1]), Some((at(-1), id(1))));
        assert_eq!(parse_trash_key(&sorted[1][..40]), None);
        assert_eq!(parse_trash_key(b"account"), None);
    }

    #[test]
    fn descriptors_are_distinct_and_the_oldest_goes_first() {
        let mut meta = Meta::new(ByteCount::bytes(1), generation(1, 1));
        meta.remember(&Bytes::new());
        for n in 0..20u8 {
            meta.remember(&Bytes::copy_from_slice(&[n]));
            meta.remember(&Bytes::copy_from_slice(&[n]));
        }
        let kept: Vec<u8> = meta.descriptors.iter().map(|d| d[0]).collect();
        assert_eq!(kept, (4..20).collect::<Vec<u8>>());
    }

    #[test]
    fn only_who_knows_the_newest_generation_deletes() {
        let meta = Meta::new(ByteCount::bytes(1), generation(1, 5));
        assert!(meta.may_be_deleted_by(generation(1, 5)));
        assert!(meta.may_be_deleted_by(generation(1, 6)));
        assert!(!meta.may_be_deleted_by(generation(1, 4)));
        assert!(!meta.may_be_deleted_by(generation(2, 9)));
    }

    proptest! {
        #[test]
        fn strange_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = Meta::decode(&bytes);
            let _ = Account::decode(&bytes);
        }
    }
}
