//! Makes the C library's allocator give large buffers back.
//!
//! Decoding takes and frees buffers of half a megabyte on many threads. By default glibc raises the size from which it maps
//! memory of its own to that of the largest buffer freed, and from then on keeps such buffers in heaps that hardly ever
//! shrink: 214 MB resident after one start of a Python image, and 424 MB with mimalloc. With the limit fixed, every large
//! buffer goes back to the system when it is freed, at the price of its page faults: a hundredth of the time its decoding
//! takes.

/// Buffers from this many bytes on are mapped one by one.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Heaps that threads share. They hold small objects only, so few are enough.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 4;

/// Settles how this process allocates; to be called before threads start.
#[cfg(target_env = "gnu")]
pub(super) fn give_back_large_buffers() {
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE), (libc::M_ARENA_MAX, HEAPS)]
    {
        // SAFETY: mallopt(3) takes two integers and only changes parameters of the allocator.
        let accepted = unsafe { libc::mallopt(parameter, value) };
        if accepted == 0 {
            tracing::debug!(parameter, value, "the allocator does not know this parameter");
        }
    }
}

/// Other C libraries map large buffers one by one anyway.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back_large_buffers() {}
