//! Reed–Solomon coding of sealed stripes, any geometry.
//!
//! A stripe is one buffer of `shards() * shard_len`: the sealed bytes from its start, zeros up to `data() * shard_len`,
//! then the parity. So encoding writes only parity, and shards are slices of the buffer.
//! Not here: sealing (`seal`), and whether a shard's bytes are the right ones (its `ChunkId` says so).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use reed_solomon_erasure::galois_8::{self, ReedSolomon};

use crate::{Geometry, ShardIndex};

/// Shards are a multiple of this, so that SIMD code has no remainder.
const ALIGN: usize = 64;
/// Parity is computed a strip at a time: one strip of every shard fits the cache.
const STRIP: usize = 32 << 10;

/// Why shards could not be rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    /// Fewer distinct shards than data shards.
    #[error("{need} distinct shards are needed and {have} are there")]
    TooFewShards {
        /// distinct shards given
        have: usize,
        /// data shards of the geometry
        need: usize,
    },
    /// Shards of one stripe have one length.
    #[error("shards of one stripe differ in length: {0} and {1} bytes")]
    LengthsDiffer(usize, usize),
    /// A shard of another geometry.
    #[error("the geometry has no shard {0}")]
    NoSuchShard(usize),
}

/// Encodes and rebuilds stripes of one geometry. Cheap to make and to clone: the tables are shared by the process.
#[derive(Clone)]
pub struct Codec {
    geometry: Geometry,
    tables: Arc<Tables>,
}

struct Tables {
    /// None where there is no parity.
    encoder: Option<ReedSolomon>,
    /// Row `i` makes shard `i` of the data shards: the identity, then the parity rows.
    rows: Vec<Vec<u8>>,
}

impl Codec {
    /// The codec of this geometry.
    pub fn new(geometry: Geometry) -> Self {
        static CODECS: OnceLock<Mutex<HashMap<Geometry, Arc<Tables>>>> = OnceLock::new();
        // A panic elsewhere leaves the map whole: entries are inserted complete.
        let mut codecs = CODECS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let tables = codecs.entry(geometry).or_insert_with(|| Arc::new(Tables::new(geometry))).clone();
        Self { geometry, tables }
    }

    /// The geometry.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Length of each shard of a stripe of so many sealed bytes, in bytes. Rounds up: the last data shard is padded, never
    /// cut. With one data shard there is no padding.
    pub fn shard_len(geometry: Geometry, sealed_len: usize) -> usize {
        match geometry.data() {
            1 => sealed_len,
            data => sealed_len.div_ceil(data).next_multiple_of(ALIGN).max(ALIGN),
        }
    }

    /// Length of the buffer that holds all shards of a stripe of so many sealed bytes, in bytes.
    pub fn stripe_len(geometry: Geometry, sealed_len: usize) -> usize {
        Self::shard_len(geometry, sealed_len) * geometry.shards()
    }

    /// Computes the parity in place. The data part holds the sealed bytes, padded with zeros.
    ///
    /// Panics where the buffer is not a whole number of shards: our mistake.
    pub fn encode(&self, stripe: &mut [u8]) {
        let shards = self.geometry.shards();
        assert!(stripe.len().is_multiple_of(shards), "a stripe is a whole number of shards");
        let Some(encoder) = &self.tables.encoder else { return };
        let shard_len = stripe.len() / shards;
        if shard_len == 0 {
            return;
        }
        let (data, parity) = stripe.split_at_mut(shard_len * self.geometry.data());
        for start in (0..shard_len).step_by(STRIP) {
            let strip = start..shard_len.min(start + STRIP);
            let data: Vec<&[u8]> = data.chunks_exact(shard_len).map(|shard| &shard[strip.clone()]).collect();
            let mut parity: Vec<&mut [u8]> =
                parity.chunks_exact_mut(shard_len).map(|shard| &mut shard[strip.clone()]).collect();
            encoder.encode_sep(&data, &mut parity).expect("counts and lengths are those of the geometry");
        }
    }

    /// Rebuilds the `wanted` shards from any `data()` distinct ones of `present` (more are ignored), in the order of
    /// `wanted`.
    pub fn reconstruct(
        &self,
        present: &[(ShardIndex, &[u8])],
        wanted: &[ShardIndex],
    ) -> Result<Vec<Vec<u8>>, ErasureError> {
        let present = self.choose(present)?;
        let len = present[0].1.len();
        if let Some((_, other)) = present.iter().find(|(_, bytes)| bytes.len() != len) {
            return Err(ErasureError::LengthsDiffer(len, other.len()));
        }
        let rows: Vec<&[u8]> =
            wanted.iter().map(|&shard| self.row(shard)).collect::<Result<_, ErasureError>>()?;
        let decode =
            invert(present.iter().map(|&(shard, _)| self.row(shard)).collect::<Result<Vec<_>, _>>()?);
        let mut out = vec![vec![0; len]; wanted.len()];
        let factors: Vec<Vec<u8>> = rows.iter().map(|row| multiply(row, &decode)).collect();
        for start in (0..len).step_by(STRIP) {
            let strip = start..len.min(start + STRIP);
            for (out, factors) in out.iter_mut().zip(&factors) {
                for ((_, bytes), &factor) in present.iter().zip(factors) {
                    galois_8::mul_slice_xor(factor, &bytes[strip.clone()], &mut out[strip.clone()]);
                }
            }
        }
        Ok(out)
    }

    /// Fills the missing data shards in place from any `data()` shards; missing parity stays missing.
    /// `shards` has one place per shard of the geometry, in order.
    pub fn reconstruct_data(&self, shards: &mut [Option<Vec<u8>>]) -> Result<(), ErasureError> {
        if shards.len() > self.geometry.shards() {
            return Err(ErasureError::NoSuchShard(shards.len() - 1));
        }
        let all = || self.geometry.indices();
        let missing: Vec<ShardIndex> = all()
            .take(self.geometry.data())
            .filter(|shard| shards.get(shard.get()).is_none_or(Option::is_none))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let present: Vec<(ShardIndex, &[u8])> =
            all().zip(shards.iter()).filter_map(|(shard, bytes)| Some((shard, bytes.as_deref()?))).collect();
        let rebuilt = self.reconstruct(&present, &missing)?;
        for (shard, bytes) in missing.into_iter().zip(rebuilt) {
            *shards.get_mut(shard.get()).ok_or(ErasureError::NoSuchShard(shard.get()))? = Some(bytes);
        }
        Ok(())
    }

    /// The first `data()` distinct shards, data before parity: a data shard costs no arithmetic.
    fn choose<'a>(
        &self,
        present: &[(ShardIndex, &'a [u8])],
    ) -> Result<Vec<(ShardIndex, &'a [u8])>, ErasureError> {
        let mut distinct = present.to_vec();
        distinct.sort_by_key(|(shard, _)| *shard);
        distinct.dedup_by_key(|(shard, _)| *shard);
        let (have, need) = (distinct.len(), self.geometry.data());
        if have < need {
            return Err(ErasureError::TooFewShards { have, need });
        }
        distinct.truncate(need);
        Ok(distinct)
    }

    fn row(&self, shard: ShardIndex) -> Result<&[u8], ErasureError> {
        self.tables.rows.get(shard.get()).map(Vec::as_slice).ok_or(ErasureError::NoSuchShard(shard.get()))
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Tables {
    fn new(geometry: Geometry) -> Self {
        let data = geometry.data();
        let identity: Vec<Vec<u8>> =
            (0..data).map(|i| (0..data).map(|j| u8::from(i == j)).collect()).collect();
        if geometry.parity() == 0 {
            return Self { encoder: None, rows: identity };
        }
        let encoder = ReedSolomon::new(data, geometry.parity())
            .expect("a geometry has at most 255 shards, and data and parity");
        // Column j of the parity rows is the parity of the stripe whose only non-zero byte is a 1 in shard j;
        // coding the identity matrix, shard j holding row j, gives all columns at once.
        let mut parity = vec![vec![0; data]; geometry.parity()];
        encoder.encode_sep(&identity, &mut parity).expect("counts and lengths are those of the geometry");
        let rows = identity.into_iter().chain(parity).collect();
        Self { encoder: Some(encoder), rows }
    }
}

/// `row * matrix` over GF(2^8).
fn multiply(row: &[u8], matrix: &[Vec<u8>]) -> Vec<u8> {
    let mut product = vec![0; row.len()];
    for (&factor, other) in row.iter().zip(matrix) {
        galois_8::mul_slice_xor(factor, other, &mut product);
    }
    product
}

/// The inverse of a square matrix by Gauss–Jordan. Any `data()` rows of a Reed–Solomon matrix are independent.
fn invert(rows: Vec<&[u8]>) -> Vec<Vec<u8>> {
    let n = rows.len();
    let mut work: Vec<Vec<u8>> = rows
        .into_iter()
        .enumerate()
        .map(|(i, row)| row.iter().copied().chain((0..n).map(|j| u8::from(i == j))).collect())
        .collect();
    for column in 0..n {
        let pivot =
            (column..n).find(|&row| work[row][column] != 0).expect("rows of the code are independent");
        work.swap(column, pivot);
        let scale = galois_8::div(1, work[column][column]);
        let scaled: Vec<u8> = work[column].iter().map(|&x| galois_8::mul(scale, x)).collect();
        for (row, values) in work.iter_mut().enumerate() {
            let factor = values[column];
            if row != column && factor != 0 {
                galois_8::mul_slice_xor(factor, &scaled, values);
            }
        }
        work[column] = scaled;
    }
    work.into_iter().map(|row| row[n..].to_vec()).collect()
}

#[cfg(test)]
mod tests;
