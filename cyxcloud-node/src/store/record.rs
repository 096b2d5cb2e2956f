//! What is kept beside a chunk's bytes, and how it is written.
//!
//! Pure. Numbers are big-endian. Both stores decide by the rules here, so that they cannot differ.

use bytes::Bytes;
use cyxcloud_core::{ByteCount, ChunkId, Generation};
use uuid::Uuid;

use super::{DESCRIPTORS_MAX, Entry};

/// Version of the records below; a data directory names the one it was written in. Gateways judge a registration by
/// the same number.
pub(crate) use cyxcloud_proto::FORMAT_VERSION;

const QUARANTINED: u8 = 1;

/// What is known of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) length: ByteCount,
    pub(crate) generation: Generation,
    pub(crate) quarantined: bool,
    pub(crate) descriptors: Vec<Bytes>,
}

impl Meta {
    /// A chunk's first store.
    pub(crate) fn new(length: ByteCount, generation: Generation) -> Self {
        Self { length, generation, quarantined: false, descriptors: Vec::new() }
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
            descriptors: self.descriptors.clone(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let descriptors: usize = self.descriptors.iter().map(|d| d.len() + 2).sum();
        let mut out = Vec::with_capacity(34 + descriptors);
        out.push(if self.quarantined { QUARANTINED } else { 0 });
        out.extend(self.length.get().to_be_bytes());
        out.extend(self.generation.incarnation.as_bytes());
        out.extend(self.generation.counter.to_be_bytes());
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
        let mut meta = Self {
            length: ByteCount::bytes(reader.u64()?),
            generation: Generation { incarnation: reader.uuid()?, counter: reader.u64()? },
            quarantined: flags & QUARANTINED != 0,
            descriptors: Vec::new(),
        };
        while !reader.0.is_empty() {
            let length = u16::from_be_bytes(reader.array()?);
            meta.descriptors.push(Bytes::copy_from_slice(reader.take(usize::from(length))?));
        }
        Some(meta)
    }
}

/// Sums over all chunks, written with every batch so that they are exact after any crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) used: ByteCount,
    pub(crate) chunks: u64,
    /// Highest counter given out.
    pub(crate) counter: u64,
    /// The life that wrote this.
    pub(crate) incarnation: Uuid,
}

impl Account {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(44);
        out.extend(FORMAT_VERSION.to_be_bytes());
        out.extend(self.used.get().to_be_bytes());
        out.extend(self.chunks.to_be_bytes());
        out.extend(self.counter.to_be_bytes());
        out.extend(self.incarnation.as_bytes());
        out
    }

    /// `Err` holds the format version if it is not ours, or `None` if this is no account at all.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Option<u32>> {
        let mut reader = Reader(bytes);
        let version = u32::from_be_bytes(reader.array().ok_or(None)?);
        if version != FORMAT_VERSION {
            return Err(Some(version));
        }
        let mut read = || {
            Some(Self {
                used: ByteCount::bytes(reader.u64()?),
                chunks: reader.u64()?,
                counter: reader.u64()?,
                incarnation: reader.uuid()?,
            })
        };
        read().ok_or(None)
    }

    pub(crate) fn add(&mut self, length: ByteCount) {
        self.used = self.used + length;
        self.chunks += 1;
    }

    pub(crate) fn remove(&mut self, length: ByteCount) {
        self.used = self.used.saturating_sub(length);
        self.chunks = self.chunks.saturating_sub(1);
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
        assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        let account = Account {
            used: ByteCount::mib(1),
            chunks: 2,
            counter: 3,
            incarnation: Uuid::from_bytes([4; 16]),
        };
        assert_eq!(Account::decode(&account.encode()), Ok(account));
        assert_eq!(Account::decode(&2u32.to_be_bytes()), Err(Some(2)));
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
