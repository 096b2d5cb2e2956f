//! A node that lies: for tests of those who must notice. Only with the feature `faults`, and only when the environment
//! asks for it: `CYXCLOUD_FAULT_LIE=wrong-bytes|short|long|garbled|wrong-proof|audits-only|lost|stale` changes what `GetChunk`
//! answers.
//!
//! Everything else such a node says is true, its receipts and its own verification included: it is found out by what
//! it hands over.

use std::ops::Range;

use bytes::Bytes;
use cyxcloud_core::ChunkId;
use cyxcloud_core::proof::prove;
use cyxcloud_proto::node::GetChunkResponse;
use tonic::Status;

use super::Service;

/// What it does instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// One bit is wrong, in the middle of the chunk or of the proof.
    WrongBytes,
    /// The last byte is missing.
    Short,
    /// A mebibyte follows that nobody stored.
    Long,
    /// What is sent is not the message that its head promises.
    Garbled,
    /// Whole chunks are right and proofs are not.
    WrongProof,
    /// Proofs are right and whole chunks are not.
    AuditsOnly,
    /// Denies that it holds the chunk.
    Lost,
    /// Hands over another chunk that it holds.
    Stale,
}

impl Lie {
    /// What the environment asks for.
    pub(super) fn told() -> Option<Self> {
        Self::named(cyxcloud_core::faults::value("LIE")?)
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "wrong-bytes" => Self::WrongBytes,
            "short" => Self::Short,
            "long" => Self::Long,
            "garbled" => Self::Garbled,
            "wrong-proof" => Self::WrongProof,
            "audits-only" => Self::AuditsOnly,
            "lost" => Self::Lost,
            "stale" => Self::Stale,
            _ => return None,
        })
    }

    /// By how much the head of an answer, which says how long the message is, is wrong.
    pub(super) fn garbles() -> u32 {
        u32::from(Self::told() == Some(Self::Garbled))
    }

    /// Answers a request for a chunk, or for slices of it.
    pub(super) fn answer(
        self,
        service: &Service,
        id: ChunkId,
        slices: &[Range<u64>],
    ) -> Result<GetChunkResponse, Status> {
        let data = service.load(id)?;
        let other = if self == Self::Stale { another(service, id)? } else { None };
        self.change(id, data, other, slices)
    }

    fn change(
        self,
        id: ChunkId,
        data: Bytes,
        other: Option<Bytes>,
        slices: &[Range<u64>],
    ) -> Result<GetChunkResponse, Status> {
        if self == Self::Lost {
            return Err(Status::not_found(format!("chunk {id} is not held here")));
        }
        let proven =
            |bytes: &[u8]| prove(bytes, slices).map_err(|error| Status::invalid_argument(error.to_string()));
        let truth = if slices.is_empty() { data.to_vec() } else { proven(&data)? };
        let told = match self {
            Self::WrongProof if slices.is_empty() => truth,
            Self::AuditsOnly if !slices.is_empty() => truth,
            // It is the head that is wrong.
            Self::Garbled => truth,
            Self::Short => truth[..truth.len() - 1].to_vec(),
            Self::Long => [truth, vec![7; 1 << 20]].concat(),
            // Where there is no other chunk, or none that is long enough for the slices.
            Self::Stale => {
                let told = other.and_then(|other| {
                    if slices.is_empty() { Some(other.to_vec()) } else { proven(&other).ok() }
                });
                told.unwrap_or_else(|| flipped(truth))
            }
            Self::WrongBytes | Self::WrongProof | Self::AuditsOnly | Self::Lost => flipped(truth),
        };
        let (data, proof) = if slices.is_empty() { (told, Vec::new()) } else { (Vec::new(), told) };
        Ok(GetChunkResponse { data: data.into(), proof: proof.into() })
    }
}

fn flipped(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes
}

fn another(service: &Service, id: ChunkId) -> Result<Option<Bytes>, Status> {
    let entries = service.store.list(None, 2).map_err(|error| service.status(error))?;
    let other = entries.iter().find(|entry| entry.id != id && !entry.quarantined);
    other.map(|entry| service.load(entry.id)).transpose()
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::proof::verify;

    use super::*;

    fn chunk(seed: u8) -> (ChunkId, Bytes) {
        let bytes = Bytes::from(vec![seed; 100_000]);
        (ChunkId::of(&bytes), bytes)
    }

    #[test]
    fn every_lie_can_be_noticed_and_is_one() {
        let (id, data) = chunk(1);
        let slice = 5_000..60_000;
        let (_, other) = chunk(2);
        for name in ["wrong-bytes", "short", "long", "wrong-proof", "audits-only", "lost", "stale"] {
            for other in [None, Some(other.clone())] {
                let lie = Lie::named(name).expect("known");
                let tell = |slices: &[Range<u64>]| lie.change(id, data.clone(), other.clone(), slices);
                let whole = tell(&[]).map(|told| ChunkId::of(&told.data) == id);
                assert_eq!(whole.is_ok_and(|right| right), name == "wrong-proof", "{name}");
                let proven = tell(std::slice::from_ref(&slice));
                let right = proven.is_ok_and(|told| {
                    verify(&id, 100_000, std::slice::from_ref(&slice), &told.proof).is_ok()
                });
                assert_eq!(right, name == "audits-only", "{name}");
            }
        }
        assert_eq!(Lie::named("truth"), None);
    }
}
