//! Decoded spans in memory, bounded by their bytes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::Notify;

use super::Layer;
use crate::index::SpanId;
use crate::oci::Digest;

/// Names a span across all indexes of all layers, or a window of one that is too large for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// [`crate::index::LayerIndex::identity`]: two claims may cut one layer in different ways, and nobody is served what only
    /// another one's claim says.
    index: Digest,
    span: SpanId,
    window: Option<u32>,
}

impl Key {
    pub(super) fn new(layer: &Layer, span: SpanId) -> Self {
        Self { index: layer.index.identity(), span, window: None }
    }

    pub(super) fn window(layer: &Layer, span: SpanId, number: u32) -> Self {
        Self { window: Some(number), ..Self::new(layer, span) }
    }

    pub(super) fn span(&self) -> SpanId {
        self.span
    }
}

/// The most recently used decoded spans.
#[derive(Debug)]
pub(super) struct SpanCache {
    limit: u64,
    /// Protects the cache; held for look-ups and insertions only.
    state: Mutex<State>,
    /// Told when the cache stops being empty.
    filled: Notify,
}

#[derive(Debug)]
struct State {
    spans: LruCache<Key, Bytes>,
    used: u64,
}

impl SpanCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, state: Mutex::new(State { spans: LruCache::unbounded(), used: 0 }), filled: Notify::new() }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Bytes> {
        self.lock().spans.get(key).cloned()
    }

    /// Keeps `bytes`, dropping the least recently used until the limit holds. A span larger than half the limit is not
    /// kept: it would push out everything else for one reader.
    pub(super) fn put(&self, key: Key, bytes: Bytes) {
        let size = bytes.len() as u64;
        if size > self.limit / 2 {
            return;
        }
        let mut state = self.lock();
        if let Some(old) = state.spans.put(key, bytes) {
            state.used -= old.len() as u64;
        }
        if state.used == 0 {
            self.filled.notify_one();
        }
        state.used += size;
        while state.used > self.limit {
            let Some((_, dropped)) = state.spans.pop_lru() else { break };
            state.used -= dropped.len() as u64;
        }
    }

    /// Returns when something was put into the empty cache since the last call.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Drops everything.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        let dropped = std::mem::replace(&mut *state, State { spans: LruCache::unbounded(), used: 0 });
        drop(state);
        drop(dropped);
    }

    pub(super) fn used(&self) -> u64 {
        self.lock().used
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
