//! Slices of a chunk and the proofs that lead to them: only the true proof is believed, and it gives the chunk's own bytes.

use std::ops::Range;

use cyxcloud_core::ChunkId;
use cyxcloud_core::proof::{ProofError, prove, verify};

use super::input::{Draft, Input, edited, pattern};

/// Some groups of 16 KiB, so that there are paths to lie about.
const CHUNK_MAX: usize = 100 << 10;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let seed = input.u32();
    let chunk = pattern(seed, 1 + input.below(CHUNK_MAX));
    let (id, len) = (ChunkId::of(&chunk), chunk.len() as u64);
    let slices: Vec<Range<u64>> = (0..=input.below(3))
        .map(|_| {
            let start = input.below(chunk.len());
            let size = 1 + input.below(chunk.len() - start);
            start as u64..(start + size) as u64
        })
        .collect();
    let proof = prove(&chunk, &slices).expect("slices lie within the chunk");
    let right: Vec<&[u8]> =
        slices.iter().map(|slice| &chunk[slice.start as usize..slice.end as usize]).collect();
    assert_eq!(verify(&id, len, &slices, &proof).expect("the true proof"), right);

    // Any other length is refused, whatever the slices.
    let other = input.u64();
    if other != len {
        assert!(verify(&id, other, &slices, &proof).is_err(), "length {other} for {len}");
    }
    // Slices that nobody checked.
    let wild = input.u64()..input.u64();
    match prove(&chunk, std::slice::from_ref(&wild)) {
        Ok(_) => assert!(!wild.is_empty() && wild.end <= len),
        Err(error) => {
            assert!(matches!(error, ProofError::BadSlice { .. }));
            assert_eq!(verify(&id, len, std::slice::from_ref(&wild), &proof), Err(error));
        }
    }

    let changed = edited(&proof, &mut input);
    for forged in [changed.as_slice(), input.rest()] {
        if let Ok(believed) = verify(&id, len, &slices, forged) {
            assert_eq!(believed, right, "other bytes than the chunk's were believed");
            assert_eq!(forged, proof, "another proof than the true one was believed");
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let one = |seed: u32, len: u32, slices: &[(u32, u32)]| {
        let start = Draft::default().u32(seed).u32(len - 1).u32(slices.len() as u32 - 1);
        let slices = slices.iter().fold(start, |draft, (start, size)| draft.u32(*start).u32(size - 1));
        slices.u64(u64::from(len) + 1).u64(0).u64(1).u32(0).u32(70).u8(0).rest([3])
    };
    vec![
        one(1, 1, &[(0, 1)]),
        one(2, 16 << 10, &[(0, 16 << 10)]),
        one(3, 100_000, &[(40_000, 100)]),
        one(4, (64 << 10) + 1, &[(0, 10), (60_000, 5_000), (0, 65_537)]),
    ]
}
