//! A bound on the memory that one input may take. libFuzzer's own needs a sanitizer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Inputs are at most some hundred kilobytes; nothing that is read from them may take this much at once.
const BYTES: usize = 192 << 20;

/// Bytes that are allocated now.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// How many of these may be at once.
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, which ends the program at the bound.
pub(crate) struct Bounded;

/// Runs `read` with the bound.
pub(crate) fn bounded(read: impl FnOnce()) {
    BOUND.store(HELD.load(Ordering::Relaxed).saturating_add(BYTES), Ordering::Relaxed);
    read();
    BOUND.store(usize::MAX, Ordering::Relaxed);
}

fn take(size: usize) {
    let held = HELD.fetch_add(size, Ordering::Relaxed).saturating_add(size);
    let bound = BOUND.load(Ordering::Relaxed);
    if held > bound {
        BOUND.store(usize::MAX, Ordering::Relaxed);
        eprintln!("an allocation of {size} bytes is one too many");
        panic!("more than {BYTES} bytes are taken for one input");
    }
}

// SAFETY: everything is left to the system's allocator; counting allocates nothing while the bound is in force.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps to the contract of this function, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        take(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
