//! Sealing: what leaves for a node is encrypted and authenticated, and only we can open it.
//!
//! A stripe is sealed with AES-256-GCM in frames of 64 KiB, so that a small range can be opened alone. Its key comes from
//! the owner's secret and the Blake3 of its plain bytes: the same stripe of the same owner seals to the same bytes, and a key
//! never seals two different stripes, which is why the frame's number can be its nonce.
//! Not here: coding (`erasure`), and keeping the master key (the server's configuration).

use std::fmt;
use std::ops::Range;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{Geometry, OwnerId, SegmentId, ShardIndex};

/// Plain bytes in every frame but the last.
pub const FRAME: usize = 64 << 10;
/// Bytes that sealing adds to a frame.
pub const TAG: usize = 16;
/// Version of the sealed format.
pub const FORMAT: u8 = 1;

/// What was to be opened is not what was sealed: other bytes, another key, or another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The tag does not fit.
    #[error("sealed bytes do not open: they were changed, or sealed with another key")]
    DoesNotOpen,
    /// Bytes are missing or too many.
    #[error("sealed bytes have a wrong length: {have} and not {want}")]
    Length {
        /// bytes given
        have: usize,
        /// bytes expected
        want: usize,
    },
    /// Written by a version that this one does not know.
    #[error("sealed format {0} is not known; upgrade this program")]
    UnknownFormat(u8),
}

/// An owner's 32 random bytes from which the keys of all the owner's stripes come.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct OwnerSecret([u8; 32]);

impl OwnerSecret {
    /// Takes 32 random bytes, or those once taken.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be wrapped.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for OwnerSecret {
    type Error = SealError;

    fn try_from(bytes: &[u8]) -> Result<Self, SealError> {
        bytes.try_into().map(Self).map_err(|_| SealError::Length { have: bytes.len(), want: 32 })
    }
}

impl fmt::Debug for OwnerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerSecret(..)")
    }
}

/// The key of one stripe, expanded for use.
pub struct StripeKey {
    key: LessSafeKey,
    format: u8,
}

impl StripeKey {
    /// The key of the stripe whose plain bytes have this Blake3.
    pub fn derive(owner: &OwnerSecret, plain_hash: &[u8; 32], format: u8) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cyxcloud 2025 stripe key v1");
        hasher.update(owner.expose()).update(plain_hash).update(&[format]);
        let bytes = Zeroizing::new(*hasher.finalize().as_bytes());
        Self { key: aes(&bytes), format }
    }

    fn aad(&self, last: bool) -> Aad<[u8; 2]> {
        Aad::from([self.format, u8::from(last)])
    }
}

impl fmt::Debug for StripeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StripeKey(..)")
    }
}

fn aes(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes"))
}

fn frame_nonce(index: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 4..].copy_from_slice(&index.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Length of a sealed stripe in bytes: a tag per started frame.
pub const fn sealed_len(plain_len: usize) -> usize {
    plain_len + plain_len.div_ceil(FRAME) * TAG
}

/// Seals a stripe. `out` has `sealed_len(plain.len())` bytes; what was in it does not matter.
///
/// `key` must be derived from the Blake3 of `plain`: one key never seals two texts.
///
/// Panics where `out` has another length: our mistake.
pub fn seal(key: &StripeKey, plain: &[u8], out: &mut [u8]) {
    assert_eq!(out.len(), sealed_len(plain.len()), "the output has the sealed length");
    let last = plain.len().div_ceil(FRAME).saturating_sub(1);
    for (index, (plain, out)) in plain.chunks(FRAME).zip(out.chunks_mut(FRAME + TAG)).enumerate() {
        let (text, tag) = out.split_at_mut(plain.len());
        key.key
            .seal_out_of_place_scatter(
                frame_nonce(index as u32),
                key.aad(index == last),
                plain,
                text,
                &[],
                tag,
            )
            .expect("AES-GCM seals up to 64 GiB into buffers of the right length");
    }
}

/// Opens a whole stripe in place. Afterwards plain frame `i` lies at `i * (FRAME + TAG)`: see [`plain_frames`].
///
/// On an error nothing in the buffer may be used.
pub fn open_in_place(key: &StripeKey, sealed: &mut [u8], plain_len: usize) -> Result<(), SealError> {
    let want = sealed_len(plain_len);
    if sealed.len() != want {
        return Err(SealError::Length { have: sealed.len(), want });
    }
    let last = plain_len.div_ceil(FRAME).saturating_sub(1);
    for (index, frame) in sealed.chunks_mut(FRAME + TAG).enumerate() {
        open_frame(key, index as u32, index == last, frame)?;
    }
    Ok(())
}

/// Opens one frame in place and returns its plain bytes, which are the frame without the tag at its end.
pub fn open_frame<'a>(
    key: &StripeKey,
    index: u32,
    last: bool,
    frame: &'a mut [u8],
) -> Result<&'a [u8], SealError> {
    let plain = key
        .key
        .open_in_place(frame_nonce(index), key.aad(last), frame)
        .map_err(|_| SealError::DoesNotOpen)?;
    Ok(plain)
}

/// Opens one frame into `out`, which has room for its plain bytes and no more. On an error nothing in it may be used.
pub fn open_frame_into(
    key: &StripeKey,
    index: u32,
    last: bool,
    frame: &[u8],
    out: &mut [u8],
) -> Result<(), SealError> {
    let wrong_length = SealError::Length { have: frame.len(), want: out.len() + TAG };
    let (text, tag) = frame.split_at_checked(out.len()).ok_or(wrong_length)?;
    if tag.len() != TAG {
        return Err(wrong_length);
    }
    key.key
        .open_separate_gather(frame_nonce(index), key.aad(last), text, tag, out)
        .map_err(|_| SealError::DoesNotOpen)
}

/// Where the plain bytes lie in an opened stripe, in order; together they are the stripe's plain bytes.
pub fn plain_frames(plain_len: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    (0..plain_len.div_ceil(FRAME)).map(move |index| {
        let start = index * (FRAME + TAG);
        start..start + frame_len(plain_len, index)
    })
}

/// Plain bytes of one frame.
fn frame_len(plain_len: usize, index: usize) -> usize {
    plain_len.saturating_sub(index * FRAME).min(FRAME)
}

/// The frames that a range of plain bytes lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameSpan {
    /// First frame.
    pub first: u32,
    /// One past the last frame.
    pub end: u32,
    /// Where these frames lie, sealed, in the sealed stripe.
    pub sealed: Range<usize>,
}

impl FrameSpan {
    /// Each frame as (number, whether it is the stripe's last, where it lies in the *span's* sealed bytes).
    pub fn frames(&self, plain_len: usize) -> impl Iterator<Item = (u32, bool, Range<usize>)> + use<> {
        let (first, count) = (self.first, plain_len.div_ceil(FRAME));
        (self.first..self.end).map(move |index| {
            let start = (index - first) as usize * (FRAME + TAG);
            let len = frame_len(plain_len, index as usize) + TAG;
            (index, index as usize + 1 == count, start..start + len)
        })
    }
}

/// The frames that hold this range of a stripe's plain bytes. An empty range has none.
///
/// Panics where the range goes beyond the stripe: our mistake.
pub fn frames_of(range: Range<usize>, plain_len: usize) -> FrameSpan {
    assert!(range.end <= plain_len, "the range {range:?} lies within {plain_len} bytes");
    if range.is_empty() {
        return FrameSpan { first: 0, end: 0, sealed: 0..0 };
    }
    let (first, end) = (range.start / FRAME, range.end.div_ceil(FRAME));
    let sealed = first * (FRAME + TAG)..(end * (FRAME + TAG)).min(sealed_len(plain_len));
    FrameSpan { first: first as u32, end: end as u32, sealed }
}

/// The server's master key: wraps owners' secrets, access keys and descriptors, seals no stripe itself.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

/// Under which name a database keeps the [check value](MasterKey::check_value) of its master key.
pub const MASTER_KEY_CHECK: &str = "master_key_check";

/// Why a text is no master key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// Wrong length, or other characters.
    #[error("it is not 64 hexadecimal digits")]
    NotHex,
    /// All bytes are the same.
    #[error("it is not random")]
    NotRandom,
}

impl std::str::FromStr for MasterKey {
    type Err = MasterKeyError;

    fn from_str(text: &str) -> Result<Self, MasterKeyError> {
        let digits = Zeroizing::new(text.trim().as_bytes().to_vec());
        let mut key = Zeroizing::new([0; 32]);
        if digits.len() != 64 {
            return Err(MasterKeyError::NotHex);
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16).ok_or(MasterKeyError::NotHex)?;
                *byte = *byte << 4 | value as u8;
            }
        }
        if key.iter().all(|byte| *byte == key[0]) {
            return Err(MasterKeyError::NotRandom);
        }
        Ok(Self(*key))
    }
}

fn owner_context(owner: OwnerId) -> String {
    format!("owner-secret/{owner}")
}

/// Version byte and synthetic nonce in front of a wrapped secret.
const WRAP_HEAD: usize = 1 + 24;

impl MasterKey {
    /// Takes 32 random bytes, or those once taken.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Encrypts a secret so that it opens only with the same master key and `context` (what it is and whose).
    ///
    /// `nonce_random` is fresh randomness. The nonce is 192 bits computed from it and the secret, so a
    /// repeated one gives away only that the same secret was wrapped twice.
    pub fn wrap(&self, context: &str, secret: &[u8], nonce_random: [u8; 12]) -> Vec<u8> {
        let nonce = self.synthetic_nonce(context, secret, &nonce_random);
        let (key, nonce_low) = self.wrapping_key(&nonce);
        let mut out = Vec::with_capacity(WRAP_HEAD + secret.len() + TAG);
        out.push(FORMAT);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(secret);
        let tag = key
            .seal_in_place_separate_tag(nonce_low, Aad::from(context.as_bytes()), &mut out[WRAP_HEAD..])
            .expect("AES-GCM seals up to 64 GiB");
        out.extend_from_slice(tag.as_ref());
        out
    }

    /// Opens what [`Self::wrap`] made in this context.
    pub fn unwrap(&self, context: &str, wrapped: &[u8]) -> Result<Vec<u8>, SealError> {
        let &[format, ref rest @ ..] = wrapped else { return Err(SealError::DoesNotOpen) };
        if format != FORMAT {
            return Err(SealError::UnknownFormat(format));
        }
        let (nonce, text) = rest.split_first_chunk::<24>().ok_or(SealError::DoesNotOpen)?;
        let (key, nonce_low) = self.wrapping_key(nonce);
        let mut secret = text.to_vec();
        let len = key
            .open_in_place(nonce_low, Aad::from(context.as_bytes()), &mut secret)
            .map_err(|_| SealError::DoesNotOpen)?
            .len();
        secret.truncate(len);
        Ok(secret)
    }

    /// Wraps an owner's sealing secret, bound to the owner, so that one owner's cannot be put in another's row.
    pub fn wrap_owner_secret(&self, owner: OwnerId, secret: &OwnerSecret, nonce_random: [u8; 12]) -> Vec<u8> {
        self.wrap(&owner_context(owner), secret.expose(), nonce_random)
    }

    /// Opens what [`Self::wrap_owner_secret`] made for this owner.
    pub fn open_owner_secret(&self, owner: OwnerId, wrapped: &[u8]) -> Result<OwnerSecret, SealError> {
        let secret = Zeroizing::new(self.unwrap(&owner_context(owner), wrapped)?);
        let bytes = <[u8; 32]>::try_from(secret.as_slice());
        bytes.map(OwnerSecret::from_bytes).map_err(|_| SealError::Length { have: secret.len(), want: 32 })
    }

    /// What a database may keep to recognise the master key it belongs to; says nothing about it.
    pub fn check_value(&self) -> [u8; 32] {
        blake3::derive_key("cyxcloud 2025 master key check value v1", &self.0)
    }

    fn synthetic_nonce(&self, context: &str, secret: &[u8], random: &[u8; 12]) -> [u8; 24] {
        let key = Zeroizing::new(blake3::derive_key("cyxcloud 2025 wrap nonce v1", &self.0));
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher
            .update(random)
            .update(&(context.len() as u64).to_be_bytes())
            .update(context.as_bytes())
            .update(secret);
        let mut nonce = [0; 24];
        nonce.copy_from_slice(&hasher.finalize().as_bytes()[..24]);
        nonce
    }

    /// Half of the nonce goes into the key, so that any number of secrets can be wrapped under one master key.
    fn wrapping_key(&self, nonce: &[u8; 24]) -> (LessSafeKey, Nonce) {
        let mut hasher = blake3::Hasher::new_derive_key("cyxcloud 2025 wrap key v1");
        hasher.update(&self.0).update(&nonce[..12]);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        let mut low = [0; NONCE_LEN];
        low.copy_from_slice(&nonce[12..]);
        (aes(&key), Nonce::assume_unique_for_key(low))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// Where a chunk belongs and what opens it: with the nodes' chunks, their descriptors and the master key a lost database can
/// be rebuilt. Opaque to nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Whose secret sealed the stripe.
    pub owner: OwnerId,
    /// The segment.
    pub segment: SegmentId,
    /// Place of the stripe in the segment.
    pub stripe: u32,
    /// Place of the shard in the stripe.
    pub shard: ShardIndex,
    /// How the stripe is coded.
    pub geometry: Geometry,
    /// Version of the sealed format.
    pub format: u8,
    /// Plain bytes of this stripe.
    pub plain_len: u32,
    /// Plain bytes of every stripe of the segment but the last.
    pub stripe_size: u32,
    /// Blake3 of the stripe's plain bytes.
    pub plain_hash: [u8; 32],
}

const DESCRIPTOR_CONTEXT: &str = "descriptor";
const DESCRIPTOR_LEN: usize = 16 + 16 + 4 + 1 + 3 + 1 + 4 + 4 + 32 + 32;

impl Descriptor {
    /// Longest sealed descriptor in bytes, of this and any coming version.
    pub const SEALED_MAX: usize = 256;
    /// How many distinct ones a node keeps with one chunk. So many say that there may have been more.
    pub const KEPT_MAX: usize = 16;

    /// Seals it together with the owner's secret, without which the stripe could not be opened.
    /// `nonce` is fresh randomness.
    pub fn seal(&self, master: &MasterKey, owner_secret: &OwnerSecret, nonce: [u8; 12]) -> Vec<u8> {
        let mut plain = Zeroizing::new(Vec::with_capacity(DESCRIPTOR_LEN));
        plain.extend_from_slice(self.owner.as_bytes());
        plain.extend_from_slice(self.segment.as_bytes());
        plain.extend_from_slice(&self.stripe.to_be_bytes());
        plain.push(self.shard.get() as u8);
        plain.extend([self.geometry.data(), self.geometry.parity(), self.geometry.copies()].map(|n| n as u8));
        plain.push(self.format);
        plain.extend_from_slice(&self.plain_len.to_be_bytes());
        plain.extend_from_slice(&self.stripe_size.to_be_bytes());
        plain.extend_from_slice(&self.plain_hash);
        plain.extend_from_slice(owner_secret.expose());
        master.wrap(DESCRIPTOR_CONTEXT, &plain, nonce)
    }

    /// Opens a sealed descriptor.
    pub fn open(master: &MasterKey, sealed: &[u8]) -> Result<(Self, OwnerSecret), SealError> {
        let plain = Zeroizing::new(master.unwrap(DESCRIPTOR_CONTEXT, sealed)?);
        let wrong = SealError::Length { have: plain.len(), want: DESCRIPTOR_LEN };
        let mut fields = Fields(&plain);
        let owner = OwnerId::from(uuid::Uuid::from_bytes(fields.take().ok_or(wrong)?));
        let segment = SegmentId::from(uuid::Uuid::from_bytes(fields.take().ok_or(wrong)?));
        let stripe = u32::from_be_bytes(fields.take().ok_or(wrong)?);
        let [shard, data, parity, copies, format] = fields.take().ok_or(wrong)?;
        let plain_len = u32::from_be_bytes(fields.take().ok_or(wrong)?);
        let stripe_size = u32::from_be_bytes(fields.take().ok_or(wrong)?);
        let plain_hash = fields.take().ok_or(wrong)?;
        let secret = OwnerSecret::from_bytes(fields.take().ok_or(wrong)?);
        let geometry = Geometry::new(data, parity, copies).map_err(|_| SealError::DoesNotOpen)?;
        let shard = geometry.shard(usize::from(shard)).ok_or(SealError::DoesNotOpen)?;
        let descriptor =
            Self { owner, segment, stripe, shard, geometry, format, plain_len, stripe_size, plain_hash };
        if fields.0.is_empty() { Ok((descriptor, secret)) } else { Err(wrong) }
    }
}

/// Fixed-size fields from the front of a byte string.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests;
