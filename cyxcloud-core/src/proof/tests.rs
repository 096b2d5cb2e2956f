//! Right proofs are believed, and no changed one.

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

fn chunk(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 13 + i / 1024) as u8).collect()
}

fn check(chunk: &[u8], slices: &[Range<u64>]) {
    let proof = prove(chunk, slices).expect("slices lie within");
    let got = verify(&ChunkId::of(chunk), chunk.len() as u64, slices, &proof).expect("verifies");
    for (slice, bytes) in slices.iter().zip(got) {
        assert_eq!(bytes, &chunk[slice.start as usize..slice.end as usize], "{slice:?} of {}", chunk.len());
    }
}

#[test]
fn slices_at_all_edges_verify() {
    for len in [1, 2, 1023, 1024, 1025, 16_383, 16_384, 16_385, 32_768, 49_153, 419_584] {
        let bytes = chunk(len as usize);
        let mut edges: Vec<u64> = [0, 1, 1024, 16_383, 16_384, 16_385, len / 2, len - 1, len].to_vec();
        edges.retain(|&edge| edge <= len);
        for &start in &edges {
            for &end in edges.iter().filter(|&&end| end > start) {
                check(&bytes, std::slice::from_ref(&(start..end)));
            }
        }
    }
}

#[test]
fn slices_may_overlap_and_come_in_any_order() {
    check(&chunk(200_000), &[150_000..160_000, 0..10, 5..70_000, 199_999..200_000, 0..10]);
}

#[test]
fn a_small_slice_is_a_small_proof() {
    let proof = prove(&chunk(419_584), std::slice::from_ref(&(65_552..131_104))).expect("lies within");
    assert!(proof.len() < (5 << 14) + 2048, "{}", proof.len());
}

#[test]
fn what_does_not_lie_within_is_refused() {
    let bytes = chunk(1000);
    let one = |slice: Range<u64>| prove(&bytes, std::slice::from_ref(&slice));
    assert!(matches!(one(0..1001), Err(ProofError::BadSlice { .. })));
    assert!(matches!(one(5..5), Err(ProofError::BadSlice { .. })));
    assert!(matches!(one(Range { start: 6, end: 5 }), Err(ProofError::BadSlice { .. })));
    assert_eq!(prove(&bytes, &[]), Err(ProofError::NoSlices));
    assert!(matches!(
        verify(&ChunkId::of(&bytes), 1000, std::slice::from_ref(&(0..1001)), &[]),
        Err(ProofError::BadSlice { .. })
    ));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = chunk(3 << 10);
    let slice = 1030u64..1040;
    let proof = prove(&bytes, std::slice::from_ref(&slice)).expect("lies within");
    for bit in 0..proof.len() * 8 {
        let mut bad = proof.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let answer = verify(&ChunkId::of(&bytes), bytes.len() as u64, std::slice::from_ref(&slice), &bad);
        assert_eq!(answer, Err(ProofError::Wrong), "bit {bit}");
    }
}

#[test]
fn no_other_length_is_believed() {
    let bytes = chunk(70_000);
    let (id, slice) = (ChunkId::of(&bytes), std::slice::from_ref(&(0..100)));
    let proof = prove(&bytes, slice).expect("lies within");
    for len in (100..140_000).chain([1 << 20, 1 << 40]).filter(|&len| len != 70_000) {
        assert_eq!(verify(&id, len, slice, &proof), Err(ProofError::Wrong), "{len}");
    }
    // Nor one made for the length that is claimed.
    for len in [100u64, 1024, 16_384, 32_768, 65_536, 69_632, 69_999] {
        let other = prove(&bytes[..len as usize], slice).expect("lies within");
        assert_eq!(verify(&id, len, slice, &other), Err(ProofError::Wrong), "{len}");
        assert_eq!(verify(&id, 70_000, slice, &other), Err(ProofError::Wrong), "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn mutations_are_never_accepted(
        len in 1usize..100_000,
        ends in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        at: prop::sample::Index,
        change in 1u8..,
        shift in 1u64..50_000,
    ) {
        let bytes = chunk(len);
        let (a, b) = (ends.0.index(len) as u64, ends.1.index(len) as u64);
        let slice = a.min(b)..a.max(b) + 1;
        let slices = std::slice::from_ref(&slice);
        let id = ChunkId::of(&bytes);
        let proof = prove(&bytes, slices).expect("lies within");
        let got = verify(&id, len as u64, slices, &proof).expect("verifies");
        prop_assert_eq!(&got[0], &bytes[a.min(b) as usize..=a.max(b) as usize]);

        let mut flipped = proof.clone();
        let place = at.index(flipped.len());
        flipped[place] ^= change;
        prop_assert!(verify(&id, len as u64, slices, &flipped).is_err());
        prop_assert!(verify(&id, len as u64, slices, &proof[..place]).is_err());
        let mut longer = proof.clone();
        longer.push(change);
        prop_assert!(verify(&id, len as u64, slices, &longer).is_err());

        let mut other = bytes.clone();
        other[a as usize] ^= change;
        prop_assert!(verify(&ChunkId::of(&other), len as u64, slices, &proof).is_err());
        let forged = prove(&other, slices).expect("lies within");
        prop_assert!(verify(&id, len as u64, slices, &forged).is_err());

        // At another offset the same proof must never pass off these bytes as those.
        let moved = slice.start + shift..slice.end + shift;
        if moved.end <= len as u64
            && let Ok(got) = verify(&id, len as u64, std::slice::from_ref(&moved), &proof)
        {
            prop_assert_eq!(&got[0], &bytes[moved.start as usize..moved.end as usize]);
        }
    }
}

/// What a node could send in place of a proof: 100,000 of them, ten kinds.
#[test]
fn none_of_a_hundred_thousand_forgeries_is_accepted() {
    const FORGERIES: usize = 100_000;
    const CHUNKS: usize = 50;
    let mut rng = StdRng::seed_from_u64(1);
    let mut tried = 0;
    for _ in 0..CHUNKS {
        let len = rng.random_range(2 * 16_384..8 * 16_384);
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes[..]);
        let other: Vec<u8> = bytes.iter().map(|byte| byte ^ 0x55).collect();
        let (id, len) = (ChunkId::of(&bytes), len as u64);
        let group = |rng: &mut StdRng| {
            let start = rng.random_range(0..len.div_ceil(16_384)) * 16_384;
            start..(start + 16_384).min(len)
        };
        for _ in 0..FORGERIES / CHUNKS / 10 {
            let (slice, elsewhere) = loop {
                let (one, two) = (group(&mut rng), group(&mut rng));
                if one != two {
                    break (one, two);
                }
            };
            let (asked, elsewhere) = (std::slice::from_ref(&slice), std::slice::from_ref(&elsewhere));
            let proof = prove(&bytes, asked).expect("lies within");
            assert_eq!(
                verify(&id, len, asked, &proof).expect("verifies")[0],
                bytes[slice.start as usize..slice.end as usize]
            );
            let leaf = (slice.end - slice.start) as usize;
            // Hashes of siblings stand before the leaf.
            let siblings = proof.len() - leaf;
            let changed = |from: usize, to: usize, rng: &mut StdRng| {
                let mut proof = proof.clone();
                proof[rng.random_range(from..to)] ^= rng.random_range(1..=255u8);
                proof
            };
            let swapped = {
                let mut proof = proof.clone();
                let (left, right) = proof[..64].split_at_mut(32);
                left.swap_with_slice(right);
                proof
            };
            let shorter = &bytes[..len as usize - 1];
            let forgeries = [
                // Of another chunk; of another place, as answered earlier; of the chunk without its last byte.
                prove(&other, asked).expect("lies within"),
                prove(&bytes, elsewhere).expect("lies within"),
                prove(shorter, std::slice::from_ref(&(slice.start..slice.end.min(len - 1))))
                    .unwrap_or_default(),
                // A sibling, a byte of the leaf, two siblings the wrong way round.
                changed(0, siblings, &mut rng),
                changed(siblings, proof.len(), &mut rng),
                swapped,
                // Cut off, drawn out, nothing, noise.
                proof[..rng.random_range(0..proof.len())].to_vec(),
                [&proof[..], &[0]].concat(),
                Vec::new(),
                (0..proof.len()).map(|_| rng.random()).collect(),
            ];
            for (kind, forgery) in forgeries.iter().enumerate() {
                tried += 1;
                let answer = verify(&id, len, asked, forgery).err();
                assert_eq!(answer, Some(ProofError::Wrong), "kind {kind} at {slice:?} of {len}");
            }
        }
    }
    assert_eq!(tried, FORGERIES);
}
