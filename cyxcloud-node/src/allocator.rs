//! Tells the C library's allocator to keep what is freed.
//!
//! RocksDB allocates through it, half a megabyte a value. With its defaults each such buffer goes back to the kernel
//! when it is freed and is faulted in, zeroed, for the next: about a fifth of what a read costs a node.

/// Largest allocation served from the heap rather than by `mmap`; the most that glibc takes.
const MMAP_THRESHOLD: libc::c_int = 32 << 20;
/// Free memory at the top of the heap that is kept.
const TRIM_THRESHOLD: libc::c_int = 64 << 20;

/// To be called once, before other threads start. Does nothing where the C library is not glibc.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    #[allow(
        unsafe_code,
        reason = "mallopt has no safe wrapper; it takes two numbers and touches no memory of ours"
    )]
    // SAFETY: glibc documents both parameters; no other thread allocates yet, which mallopt asks for.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
    }
}
