//! Reads choices off the front of an input. What is missing reads as zero, so every input means something.

/// What is left of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// So many bytes; zeros where there are no more.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let here = self.0.len().min(N);
        out[..here].copy_from_slice(&self.0[..here]);
        self.0 = &self.0[here..];
        out
    }

    pub fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        self.u32() as usize % end
    }

    /// Up to so many bytes, behind their length.
    pub fn some(&mut self, max: usize) -> &'a [u8] {
        let len = usize::from(self.u16()).min(max).min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    /// The same as text; what is none is left out.
    pub fn text(&mut self, max: usize) -> String {
        String::from_utf8_lossy(self.some(max)).replace('\u{fffd}', "")
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Bytes that are the same for the same seed and differ from place to place.
pub fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut out = Vec::with_capacity(len + 4);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Changes bytes as the input says: at least one edit, which may leave them as they were.
pub fn edited(original: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=input.below(3) {
        let at = input.below(bytes.len() + 1);
        match input.u8() % 6 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (input.u8() % 8),
            1 if at < bytes.len() => bytes[at] = input.u8(),
            2 => bytes.insert(at, input.u8()),
            3 if at < bytes.len() => {
                bytes.remove(at);
            }
            4 => bytes.truncate(at),
            _ => bytes.extend_from_slice(input.some(64)),
        }
    }
    bytes
}

/// Writes an input, field by field as [`Input`] reads it.
#[derive(Default)]
pub struct Draft(Vec<u8>);

impl Draft {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn some(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.0.extend_from_slice(&u16::try_from(bytes.len()).expect("short").to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn rest(mut self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        self.0.extend_from_slice(bytes.as_ref());
        self.0
    }
}
