//! Every loss that a geometry promises to survive.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

fn geometry(data: u8, parity: u8) -> Geometry {
    Geometry::coded(data, parity).expect("valid")
}

/// An encoded stripe of random bytes, with the last bytes of the data part zero.
fn stripe(codec: &Codec, sealed_len: usize, rng: &mut impl Rng) -> Vec<u8> {
    let mut stripe = vec![0; Codec::stripe_len(codec.geometry(), sealed_len)];
    rng.fill_bytes(&mut stripe[..sealed_len]);
    codec.encode(&mut stripe);
    stripe
}

fn shards_of(geometry: Geometry, stripe: &[u8]) -> Vec<(ShardIndex, &[u8])> {
    geometry.indices().zip(stripe.chunks_exact(stripe.len() / geometry.shards())).collect()
}

/// All subsets of `0..n` with at most `most` elements, as bit masks.
fn subsets(n: usize, most: usize) -> impl Iterator<Item = u32> {
    (0..1u32 << n).filter(move |mask| mask.count_ones() as usize <= most)
}

#[test]
fn every_loss_of_up_to_parity_shards_is_rebuilt() {
    let mut rng = StdRng::seed_from_u64(1);
    for (data, parity) in [(1, 0), (1, 2), (2, 1), (3, 2), (3, 5), (4, 0), (4, 2), (6, 3), (10, 4), (5, 8)] {
        let geometry = geometry(data, parity);
        let codec = Codec::new(geometry);
        let stripe = stripe(&codec, 333, &mut rng);
        let shards = shards_of(geometry, &stripe);
        for lost in subsets(geometry.shards(), geometry.parity()) {
            let is_lost = |shard: &ShardIndex| lost >> shard.get() & 1 == 1;
            let left: Vec<_> = shards.iter().copied().filter(|(shard, _)| !is_lost(shard)).collect();
            let wanted: Vec<_> = geometry.indices().filter(is_lost).collect();
            let rebuilt = codec.reconstruct(&left, &wanted).expect("enough shards");
            for (shard, bytes) in wanted.iter().zip(rebuilt) {
                assert_eq!(bytes, shards[shard.get()].1, "{geometry} lost {lost:b}");
            }
        }
    }
}

#[test]
fn one_loss_too_many_is_an_error_and_never_bytes() {
    let mut rng = StdRng::seed_from_u64(2);
    for (data, parity) in [(2, 1), (4, 2), (10, 4)] {
        let geometry = geometry(data, parity);
        let codec = Codec::new(geometry);
        let stripe = stripe(&codec, 100, &mut rng);
        let shards = shards_of(geometry, &stripe);
        let left = &shards[geometry.parity() + 1..];
        let error = ErasureError::TooFewShards { have: geometry.data() - 1, need: geometry.data() };
        let wanted: Vec<_> = geometry.indices().take(1).collect();
        assert_eq!(codec.reconstruct(left, &wanted), Err(error));
        // The same shard twice is one shard.
        let twice: Vec<_> = left.iter().chain(left).copied().collect();
        assert_eq!(codec.reconstruct(&twice, &wanted), Err(error));
    }
}

#[test]
fn shards_of_different_length_are_refused() {
    let geometry = geometry(2, 1);
    let present: Vec<(ShardIndex, &[u8])> = geometry.indices().zip([&[0u8; 64][..], &[0; 63]]).collect();
    let wanted: Vec<_> = geometry.indices().skip(2).collect();
    assert_eq!(Codec::new(geometry).reconstruct(&present, &wanted), Err(ErasureError::LengthsDiffer(64, 63)));
}

#[test]
fn parity_is_that_of_the_library() {
    let mut rng = StdRng::seed_from_u64(3);
    for (data, parity) in [(3, 2), (10, 4), (10, 10), (50, 20)] {
        let geometry = geometry(data, parity);
        let codec = Codec::new(geometry);
        let stripe = stripe(&codec, 3_000_000, &mut rng);
        let shards: Vec<&[u8]> = shards_of(geometry, &stripe).into_iter().map(|(_, bytes)| bytes).collect();
        let library = ReedSolomon::new(geometry.data(), geometry.parity()).expect("valid");
        assert_eq!(library.verify(&shards), Ok(true), "{geometry}");
    }
}

#[test]
fn missing_data_is_filled_in_place() {
    let mut rng = StdRng::seed_from_u64(4);
    let geometry = geometry(10, 4);
    let codec = Codec::new(geometry);
    let stripe = stripe(&codec, 1000, &mut rng);
    let whole: Vec<Option<Vec<u8>>> =
        shards_of(geometry, &stripe).into_iter().map(|(_, bytes)| Some(bytes.to_vec())).collect();
    let mut shards = whole.clone();
    for lost in [0, 3, 9, 11] {
        shards[lost] = None;
    }
    codec.reconstruct_data(&mut shards).expect("ten are left");
    assert_eq!(shards[..10], whole[..10]);
    assert_eq!(shards[11], None);
}

#[test]
fn lengths_are_aligned_only_where_there_is_something_to_cut() {
    let ten = geometry(10, 4);
    for (sealed, want) in [(0, 64), (1, 64), (640, 64), (641, 128), (4_195_328, 419_584)] {
        assert_eq!(Codec::shard_len(ten, sealed), want, "{sealed}");
    }
    assert_eq!(Codec::shard_len(Geometry::STANDARD_SMALL, 17), 17);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_data_shards_rebuild_all_others(
        data in 1u8..40, parity in 0u8..40, len in 0usize..200_000, seed: u64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let geometry = geometry(data, parity);
        let codec = Codec::new(geometry);
        let stripe = stripe(&codec, len, &mut rng);
        let shards = shards_of(geometry, &stripe);
        let mut order: Vec<usize> = (0..geometry.shards()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, rng.random_range(0..=last));
        }
        let (kept, lost) = order.split_at(geometry.data());
        let present: Vec<_> = kept.iter().map(|&shard| shards[shard]).collect();
        let wanted: Vec<_> = lost.iter().map(|&shard| shards[shard].0).collect();
        let rebuilt = codec.reconstruct(&present, &wanted).expect("enough shards");
        for (bytes, &shard) in rebuilt.iter().zip(lost) {
            prop_assert_eq!(&bytes[..], shards[shard].1);
        }
    }
}
