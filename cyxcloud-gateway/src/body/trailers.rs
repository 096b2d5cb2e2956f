//! What an `aws-chunked` body says after its last byte.

use std::sync::{Arc, OnceLock};

/// Handle to the trailers of a body, in the request's extensions of bodies that have them. Empty until the body has
/// been read to its end without error; the values are what the client sent, to be compared with what was computed.
#[derive(Clone, Debug, Default)]
pub struct TrailerChecksums(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    expected: Vec<String>,
    values: OnceLock<Vec<(String, String)>>,
}

impl TrailerChecksums {
    /// For a body whose `x-amz-trailer` announced these names, in lower case.
    pub(crate) fn expecting(expected: Vec<String>) -> Self {
        Self(Arc::new(Inner { expected, values: OnceLock::new() }))
    }

    /// Names announced, such as `x-amz-checksum-crc32`; all of them will be there when the body has ended.
    pub fn expected(&self) -> &[String] {
        &self.0.expected
    }

    /// Names (lower-case) and values, once the body has ended.
    pub fn get(&self) -> Option<&[(String, String)]> {
        self.0.values.get().map(Vec::as_slice)
    }

    /// Called once, by the decoder that reached the end.
    pub(super) fn set(&self, values: Vec<(String, String)>) {
        // A second end of the same body cannot be; the first one would stand.
        let _ = self.0.values.set(values);
    }
}
