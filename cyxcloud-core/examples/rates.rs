//! What one core of this machine does of the work behind a PUT and a GET, for `script/bench` to print beside its
//! figures: one line per step, `NAME BYTES_PER_SECOND`, counted in plain bytes of stripes.
//!
//! Not here: MD5 and SHA-256, which the benchmark measures with OpenSSL.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use cyxcloud_core::erasure::Codec;
use cyxcloud_core::geometry::Geometry;
use cyxcloud_core::seal::{self, FORMAT, OwnerSecret, StripeKey};

/// Plain bytes of the stripe that is worked on.
const STRIPE: usize = 4 << 20;
/// Each step is repeated for so long.
const PATIENCE: Duration = Duration::from_millis(700);

fn main() {
    let plain: Vec<u8> =
        (0..STRIPE as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let key = StripeKey::derive(&OwnerSecret::from_bytes([7; 32]), blake3::hash(&plain).as_bytes(), FORMAT);
    let mut sealed = vec![0; seal::sealed_len(STRIPE)];
    let geometry = Geometry::STANDARD;
    let codec = Codec::new(geometry);
    let mut stripe = vec![0; Codec::stripe_len(geometry, sealed.len())];

    report("blake3", || {
        black_box(blake3::hash(black_box(&plain)));
    });
    report("seal", || seal::seal(&key, black_box(&plain), &mut sealed));
    stripe[..sealed.len()].copy_from_slice(&sealed);
    report("reed_solomon_10_4_encode", || codec.encode(black_box(&mut stripe)));

    let shard_len = stripe.len() / geometry.shards();
    let whole: Vec<_> = stripe.chunks(shard_len).map(|shard| Some(shard.to_vec())).collect();
    let mut work = whole.clone();
    report("reed_solomon_10_4_reconstruct_4", || {
        for lost in work.iter_mut().take(geometry.parity()) {
            *lost = None;
        }
        codec.reconstruct_data(black_box(&mut work)).expect("ten of fourteen shards are enough");
    });
    assert!(work == whole, "a reconstructed shard differs");
}

/// Repeats `work` on one stripe and prints its rate.
fn report(name: &str, mut work: impl FnMut()) {
    work();
    let (started, mut rounds) = (Instant::now(), 0_u32);
    while started.elapsed() < PATIENCE {
        work();
        rounds += 1;
    }
    let rate = f64::from(rounds) * STRIPE as f64 / started.elapsed().as_secs_f64();
    println!("{name} {rate:.0}");
}
