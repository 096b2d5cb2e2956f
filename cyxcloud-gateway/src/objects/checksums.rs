//! What a body hashes to: MD5 and the checksums that S3 clients use, in one pass.
//!
//! Pure. CRCs of neighbouring byte ranges can be combined without the bytes ([`combine`]), hashes cannot; for those
//! a multipart object has a checksum over its parts' checksums ([`composite`]).

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cyxcloud_metadata::model::StoredChecksum;
use md5::{Digest as _, Md5};

/// A checksum algorithm that S3 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// A text that is not a checksum of its algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value is not a base64 {} of {} bytes", .0.name(), .0.len())]
pub struct NotAChecksum(pub Algorithm);

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// S3's name, such as `CRC64NVME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// By S3's name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// Length of a value in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a length of values, not of a collection")]
    pub const fn len(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Whether the checksum of a whole follows from those of its parts.
    pub fn combines(self) -> bool {
        self.crc().is_some()
    }

    /// Reads a value as clients send it.
    pub fn parse(self, base64: &str) -> Result<Vec<u8>, NotAChecksum> {
        BASE64.decode(base64.trim()).ok().filter(|value| value.len() == self.len()).ok_or(NotAChecksum(self))
    }

    /// The checksum of bytes in memory.
    pub fn of(self, bytes: &[u8]) -> Vec<u8> {
        let mut state = State::new(self);
        state.update(bytes);
        state.finish()
    }

    fn crc(self) -> Option<crc_fast::CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(crc_fast::CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(crc_fast::CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(crc_fast::CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    /// A CRC as S3 writes it: big-endian, as wide as the algorithm.
    fn crc_bytes(self, crc: u64) -> Vec<u8> {
        crc.to_be_bytes()[8 - self.len()..].to_vec()
    }
}

/// Base64 as S3 writes checksums.
pub fn encode(value: &[u8]) -> String {
    BASE64.encode(value)
}

/// The checksum of the concatenation of parts, from each part's checksum and length. `None` where the algorithm
/// cannot do that, or a value is not one of its own.
pub fn combine<'a>(
    algorithm: Algorithm,
    parts: impl IntoIterator<Item = (&'a [u8], u64)>,
) -> Option<Vec<u8>> {
    let crc = algorithm.crc()?;
    let mut whole = None;
    for (value, length) in parts {
        if value.len() != algorithm.len() {
            return None;
        }
        let value = value.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        whole = Some(match whole {
            None => value,
            Some(_) if length == 0 && value == 0 => continue,
            Some(before) => crc_fast::checksum_combine(crc, before, value, length),
        });
    }
    Some(algorithm.crc_bytes(whole.unwrap_or(0)))
}

/// The checksum over the parts' checksums; S3 writes it with `-N` behind.
pub fn composite<'a>(algorithm: Algorithm, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut state = State::new(algorithm);
    parts.into_iter().for_each(|value| state.update(value));
    state.finish()
}

/// A checksum of a whole object as it is stored.
pub fn stored(algorithm: Algorithm, value: &[u8]) -> StoredChecksum {
    StoredChecksum { algorithm: algorithm.name().to_owned(), value: encode(value), composite: false }
}

enum State {
    Crc(Algorithm, Box<crc_fast::Digest>),
    Sha(Algorithm, Context),
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        match (algorithm.crc(), algorithm) {
            (Some(crc), _) => Self::Crc(algorithm, Box::new(crc_fast::Digest::new(crc))),
            (None, Algorithm::Sha1) => Self::Sha(algorithm, Context::new(&SHA1_FOR_LEGACY_USE_ONLY)),
            (None, _) => Self::Sha(algorithm, Context::new(&SHA256)),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc(_, digest) => digest.update(bytes),
            Self::Sha(_, context) => context.update(bytes),
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Crc(algorithm, _) | Self::Sha(algorithm, _) => *algorithm,
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Crc(algorithm, digest) => algorithm.crc_bytes(digest.finalize()),
            Self::Sha(_, context) => context.finish().as_ref().to_vec(),
        }
    }
}

/// Hashes a body as it passes: always MD5, and the checksums asked for.
pub struct Hasher {
    md5: Md5,
    states: Vec<State>,
    length: u64,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Hasher {
    /// A hasher that has seen nothing. Algorithms named twice count once.
    pub fn new(algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        let mut states: Vec<State> = Vec::new();
        for algorithm in algorithms {
            if !states.iter().any(|state| state.algorithm() == algorithm) {
                states.push(State::new(algorithm));
            }
        }
        Self { md5: Md5::new(), states, length: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.states.iter_mut().for_each(|state| state.update(bytes));
        self.length += bytes.len() as u64;
    }

    /// What all the bytes hash to.
    pub fn finish(self) -> Digests {
        Digests {
            md5: self.md5.finalize().into(),
            length: self.length,
            checksums: self.states.into_iter().map(|state| (state.algorithm(), state.finish())).collect(),
        }
    }
}

/// What a body hashed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// MD5 of the bytes.
    pub md5: [u8; 16],
    /// Number of bytes.
    pub length: u64,
    /// The checksums asked for.
    pub checksums: Vec<(Algorithm, Vec<u8>)>,
}

impl Digests {
    /// The ETag of an object or part: MD5 in hexadecimal.
    pub fn etag(&self) -> String {
        hex::encode(self.md5)
    }

    /// One of the checksums asked for.
    pub fn get(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.checksums.iter().find(|(other, _)| *other == algorithm).map(|(_, value)| value.as_slice())
    }

    /// The checksums as they are stored with the object.
    pub fn stored(&self) -> Vec<StoredChecksum> {
        self.checksums.iter().map(|(algorithm, value)| stored(*algorithm, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hashed(bytes: &[u8]) -> Digests {
        let mut hasher = Hasher::new(Algorithm::ALL);
        bytes.chunks(7).for_each(|piece| hasher.update(piece));
        hasher.finish()
    }

    #[test]
    fn known_values() {
        let digests = hashed(b"123456789");
        let hex_of = |algorithm| hex::encode(digests.get(algorithm).expect("asked for"));
        assert_eq!(hex_of(Algorithm::Crc32), "cbf43926");
        assert_eq!(hex_of(Algorithm::Crc32c), "e3069283");
        assert_eq!(hex_of(Algorithm::Crc64Nvme), "ae8b14860a799888");
        assert_eq!(hex_of(Algorithm::Sha1), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
        assert_eq!(
            hex_of(Algorithm::Sha256),
            "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"
        );
        assert_eq!(digests.etag(), "25f9e794323b453885f5181f1b624d0b");
        assert_eq!(digests.length, 9);
    }

    #[test]
    fn nothing_hashes_too() {
        let digests = hashed(b"");
        assert_eq!(digests.etag(), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(digests.get(Algorithm::Crc64Nvme), Some([0u8; 8].as_slice()));
        assert_eq!(combine(Algorithm::Crc32, []), Some(vec![0; 4]));
    }

    #[test]
    fn values_of_another_algorithm_are_refused() {
        assert_eq!(Algorithm::Crc32.parse("y/Q5Jg=="), Ok(vec![0xcb, 0xf4, 0x39, 0x26]));
        assert_eq!(Algorithm::Crc64Nvme.parse("y/Q5Jg=="), Err(NotAChecksum(Algorithm::Crc64Nvme)));
        assert!(Algorithm::Sha256.parse("not base64").is_err());
        assert_eq!(Algorithm::by_name("crc64nvme"), Some(Algorithm::Crc64Nvme));
    }

    proptest! {
        #[test]
        fn combining_parts_is_hashing_the_whole(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..6),
        ) {
            let whole = parts.concat();
            for algorithm in Algorithm::ALL {
                let values: Vec<(Vec<u8>, u64)> =
                    parts.iter().map(|part| (algorithm.of(part), part.len() as u64)).collect();
                let combined = combine(algorithm, values.iter().map(|(value, len)| (value.as_slice(), *len)));
                prop_assert_eq!(combined, algorithm.combines().then(|| algorithm.of(&whole)));
            }
        }
    }
}
