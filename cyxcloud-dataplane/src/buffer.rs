//! Buffers for stripes and shards that are used again: touching fresh memory costs more than all that is done with it.
//!
//! A buffer comes with whatever was in it before; whoever takes one writes before reading. What lies idle is bounded.
//! Not here: how much may be in use (`budget`).

use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cyxcloud_core::ByteCount;

use crate::budget::Permit;

/// Idle buffers by capacity.
#[derive(Clone)]
pub(crate) struct BufferPool(Arc<Shared>);

struct Shared {
    idle: Mutex<Idle>,
    idle_max: usize,
}

#[derive(Default)]
struct Idle {
    bytes: usize,
    classes: HashMap<usize, Vec<Vec<u8>>>,
}

impl BufferPool {
    /// Keeps at most `idle_max` bytes of idle buffers.
    pub(crate) fn new(idle_max: ByteCount) -> Self {
        Self(Arc::new(Shared { idle: Mutex::default(), idle_max: idle_max.as_usize() }))
    }

    /// A buffer of so many bytes, whose contents are whatever they are.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        let class = class_of(len);
        let idle = self.0.pop(class);
        Buffer { bytes: idle.unwrap_or_else(|| vec![0; class]), len, home: self.0.clone() }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").field("idle_bytes", &self.0.lock().bytes).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        // Every change below is complete before anything can panic.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self, class: usize) -> Option<Vec<u8>> {
        let mut idle = self.lock();
        let bytes = idle.classes.get_mut(&class)?.pop()?;
        idle.bytes -= class;
        Some(bytes)
    }

    fn push(&self, bytes: Vec<u8>) {
        let class = bytes.len();
        if class == 0 || class > self.idle_max {
            return;
        }
        let mut dropped = Vec::new();
        let mut idle = self.lock();
        idle.bytes += class;
        idle.classes.entry(class).or_default().push(bytes);
        // Sizes that are no longer asked for make room for those that are.
        while idle.bytes > self.idle_max {
            let other = idle.classes.iter().find(|(other, list)| **other != class && !list.is_empty());
            let victim = other.map_or(class, |(other, _)| *other);
            let Some(old) = idle.classes.get_mut(&victim).and_then(Vec::pop) else { break };
            idle.bytes -= victim;
            dropped.push(old);
        }
        // Memory is given back without holding the lock.
        drop(idle);
        drop(dropped);
    }
}

/// Capacity of the buffers that serve this length: at most an eighth (or 4 KiB) more.
fn class_of(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(4096);
    len.next_multiple_of(step)
}

/// A buffer that returns to its pool when it is dropped.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Shared>,
}

impl Buffer {
    /// Keeps the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes it shareable; it returns to its pool, and the permit to its budget, with the last slice.
    pub(crate) fn into_bytes(self, permit: impl Send + 'static) -> Bytes {
        struct Owner<P> {
            bytes: Buffer,
            _permit: P,
        }
        impl<P> AsRef<[u8]> for Owner<P> {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Owner { bytes: self, _permit: permit })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.push(std::mem::take(&mut self.bytes));
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// Plain bytes of a stripe on their way in, with the permit for them.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) bytes: Buffer,
    #[expect(dead_code, reason = "held as long as the bytes are")]
    pub(crate) permit: Permit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let pool = BufferPool::new(ByteCount::mib(1));
        let mut buffer = pool.take(100_000);
        buffer[0] = 7;
        let bytes = buffer.into_bytes(());
        let slice = bytes.slice(0..10);
        drop(bytes);
        assert_eq!(pool.0.lock().bytes, 0);
        drop(slice);
        assert_eq!(pool.0.lock().bytes, class_of(100_000));
        assert_eq!(pool.take(100_000)[0], 7, "the same memory");
        assert_eq!(pool.take(99_999).len(), 99_999);
    }

    #[test]
    fn idle_memory_is_bounded_and_follows_demand() {
        let pool = BufferPool::new(ByteCount::kib(64));
        drop((0..10).map(|_| pool.take(8 << 10)).collect::<Vec<_>>());
        assert_eq!(pool.0.lock().bytes, 64 << 10);
        drop(pool.take(48 << 10));
        assert_eq!(pool.0.lock().bytes, 64 << 10);
        assert_eq!(pool.0.lock().classes[&(48 << 10)].len(), 1);
        drop(pool.take(65 << 10));
        assert_eq!(pool.0.lock().bytes, 64 << 10);
    }

    #[test]
    fn classes_waste_little() {
        for len in [0, 1, 4096, 5000, 131_072, 420_000, 4 << 20, 5_873_000, 64 << 20] {
            let class = class_of(len);
            assert!(class >= len && class - len <= (len / 8).max(4096), "{len} {class}");
        }
    }
}
