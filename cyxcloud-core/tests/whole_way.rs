//! A body's whole way: cut, sealed, coded, hashed; shards lost; rebuilt, opened, compared. Any length, any geometry.

use cyxcloud_core::erasure::Codec;
use cyxcloud_core::seal::{self, FORMAT, FRAME, OwnerSecret, StripeKey};
use cyxcloud_core::{ByteCount, ChunkId, Geometry, ShardIndex, stripe};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

const STRIPE: ByteCount = ByteCount::mib(1);

/// What is kept of a stripe: its plain hash and length, and each shard with its id.
struct Stored {
    plain_hash: [u8; 32],
    plain_len: usize,
    shards: Vec<(ShardIndex, ChunkId, Vec<u8>)>,
}

fn store(owner: &OwnerSecret, geometry: Geometry, body: &[u8]) -> Vec<Stored> {
    let codec = Codec::new(geometry);
    body.chunks(STRIPE.as_usize())
        .map(|plain| {
            let plain_hash = *blake3::hash(plain).as_bytes();
            let sealed_len = seal::sealed_len(plain.len());
            let mut buffer = vec![0; Codec::stripe_len(geometry, sealed_len)];
            seal::seal(&StripeKey::derive(owner, &plain_hash, FORMAT), plain, &mut buffer[..sealed_len]);
            codec.encode(&mut buffer);
            let shards = geometry
                .indices()
                .zip(buffer.chunks_exact(Codec::shard_len(geometry, sealed_len)))
                .map(|(index, bytes)| (index, ChunkId::of(bytes), bytes.to_vec()))
                .collect();
            Stored { plain_hash, plain_len: plain.len(), shards }
        })
        .collect()
}

/// Reads with `parity` shards of each stripe lost at random.
fn load(owner: &OwnerSecret, geometry: Geometry, stored: &[Stored], rng: &mut impl Rng) -> Vec<u8> {
    let codec = Codec::new(geometry);
    let mut body = Vec::new();
    for stripe in stored {
        let mut left: Vec<_> = stripe.shards.iter().collect();
        for _ in 0..geometry.parity() {
            left.swap_remove(rng.random_range(0..left.len()));
        }
        assert!(left.iter().all(|(_, id, bytes)| ChunkId::of(bytes) == *id));
        let present: Vec<(ShardIndex, &[u8])> =
            left.iter().map(|(index, _, bytes)| (*index, &bytes[..])).collect();
        let wanted: Vec<ShardIndex> = geometry.indices().take(geometry.data()).collect();
        let mut sealed = codec.reconstruct(&present, &wanted).expect("enough shards").concat();
        let sealed_len = seal::sealed_len(stripe.plain_len);
        assert!(sealed[sealed_len..].iter().all(|&byte| byte == 0), "padding is zeros");
        let key = StripeKey::derive(owner, &stripe.plain_hash, FORMAT);
        seal::open_in_place(&key, &mut sealed[..sealed_len], stripe.plain_len).expect("opens");
        let start = body.len();
        for frame in seal::plain_frames(stripe.plain_len) {
            body.extend_from_slice(&sealed[frame]);
        }
        assert_eq!(blake3::hash(&body[start..]).as_bytes(), &stripe.plain_hash);
    }
    body
}

fn round_trip(geometry: Geometry, len: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let owner = OwnerSecret::from_bytes([9; 32]);
    let mut body = vec![0; len];
    rng.fill_bytes(&mut body);
    let stored = store(&owner, geometry, &body);
    assert_eq!(stored.len() as u64, stripe::stripes_of(ByteCount::bytes(len as u64), STRIPE));
    assert!(load(&owner, geometry, &stored, &mut rng) == body, "{geometry}, {len} bytes");
}

#[test]
fn lengths_at_every_edge() {
    let stripe = STRIPE.as_usize();
    for (data, parity) in [(1, 0), (1, 2), (4, 2), (10, 4), (10, 10)] {
        let geometry = Geometry::coded(data, parity).expect("valid");
        for len in [
            0,
            1,
            2,
            63,
            64,
            65,
            639,
            640,
            641,
            FRAME - 17,
            FRAME - 16,
            FRAME - 1,
            FRAME,
            FRAME + 1,
            stripe - 1,
            stripe,
            stripe + 1,
            2 * stripe - 1,
            2 * stripe,
            2 * stripe + 1,
        ] {
            round_trip(geometry, len, len as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_length_comes_back(data in 1u8..16, parity in 0u8..12, len in 0usize..3_000_000, seed: u64) {
        round_trip(Geometry::coded(data, parity).expect("valid"), len, seed);
    }
}
