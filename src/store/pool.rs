//! Open descriptors of blobs, a bounded number of them.
//!
//! A blob opens its files when it needs them and holds them weakly; the pool holds the recently used ones strongly. So a
//! daemon with hundreds of mounts does not run out of descriptors, and a busy blob does not reopen its file per read.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::lock;
use crate::limits::OPEN_BLOBS;

/// Keeps the descriptors used last open.
#[derive(Debug)]
pub(super) struct Pool {
    /// By key. The lock is a leaf: nothing else is taken under it, and nothing is closed under it.
    open: Mutex<LruCache<u64, Arc<File>>>,
    keys: AtomicU64,
}

impl Pool {
    pub(super) fn new() -> Self {
        let bound = NonZeroUsize::new(OPEN_BLOBS).expect("the bound is a positive constant");
        Self { open: Mutex::new(LruCache::new(bound)), keys: AtomicU64::new(0) }
    }

    /// A key that nobody else has.
    pub(super) fn key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps `file` open as the one used last, instead of what `key` kept before.
    pub(super) fn keep(&self, key: u64, file: &Arc<File>) {
        let evicted = lock(&self.open).push(key, Arc::clone(file));
        drop(evicted);
    }

    /// Keeps nothing any more.
    pub(super) fn clear(&self) {
        let mut open = lock(&self.open);
        let bound = open.cap();
        let kept = std::mem::replace(&mut *open, LruCache::new(bound));
        drop(open);
        drop(kept);
    }

    /// Keeps nothing for `key` any more.
    pub(super) fn forget(&self, key: u64) {
        let forgotten = lock(&self.open).pop(&key);
        drop(forgotten);
    }
}
