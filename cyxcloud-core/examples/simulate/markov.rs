//! The chance that a stripe is lost within a year, computed as a Markov chain of its healthy shards.
//!
//! Each healthy shard is lost at rate λ, independently; once no more than `threshold` are healthy, all are restored at rate 1/T, at once.
//! Fewer than are needed to read is the end. The chance is that of a year in the long run, not of a stripe's first.

use cyxcloud_core::Geometry;

/// Hours of a year.
const YEAR_HOURS: f64 = 365.0 * 24.0;

/// `rate`: λ, per shard and year; `hours`: T.
pub(crate) fn loss_per_year(geometry: Geometry, rate: f64, hours: f64, threshold: usize) -> f64 {
    // Years from `healthy` shards until the end: `alone + (1 - sure) * years from whole`, where `sure` is the chance of the end
    // before the next repair. Both follow from one shard fewer, by sums and products of positive numbers only.
    let (mut alone, mut sure) = (0.0, 1.0);
    for healthy in geometry.data()..=geometry.locations() {
        let loss = healthy as f64 * rate;
        let repair = if healthy <= threshold { YEAR_HOURS / hours } else { 0.0 };
        alone = (1.0 + loss * alone) / (loss + repair);
        sure *= loss / (loss + repair);
    }
    -(-sure / alone).exp_m1()
}

/// λ of nodes of which this share is lost within a year.
pub(crate) fn rate(losses: f64) -> f64 {
    -(-losses).ln_1p()
}
