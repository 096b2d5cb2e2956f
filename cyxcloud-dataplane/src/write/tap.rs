//! What must see the body in order: the caller's tap, and the hash of the whole body.

use super::Tap;

/// Goes from stripe to stripe.
pub(super) struct TapState {
    tap: Tap,
    /// Not needed where the body is one stripe, whose own hash it is.
    whole: Option<blake3::Hasher>,
}

impl TapState {
    pub(super) fn new(tap: Tap, hash_whole: bool) -> Self {
        Self { tap, whole: hash_whole.then(blake3::Hasher::new) }
    }

    pub(super) fn feed(&mut self, plain: &[u8]) {
        if !plain.is_empty() {
            (self.tap)(plain);
        }
        if let Some(whole) = &mut self.whole {
            whole.update(plain);
        }
    }

    /// Blake3 of all that was fed, if it was asked for.
    pub(super) fn whole(self) -> Option<[u8; 32]> {
        self.whole.map(|whole| *whole.finalize().as_bytes())
    }
}
