//! Decoded spans in memory, bounded by their bytes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    /// The source that is asked for it, if it is.
    source: Option<u64>,
}

impl Key {
    /// The span, wherever it came from.
    pub(super) fn new(layer: &Layer, span: SpanId) -> Self {
        Self { index: layer.index.identity(), span, window: None, source: None }
    }

    /// The span as it is asked of the layer's source: another one may fail where this does not.
    pub(super) fn asked(layer: &Layer, span: SpanId) -> Self {
        Self { source: Some(layer.source), ..Self::new(layer, span) }
    }

    pub(super) fn window(layer: &Layer, span: SpanId, number: u32) -> Self {
        Self { window: Some(number), ..Self::new(layer, span) }
    }

    pub(super) fn span(&self) -> SpanId {
        self.span
    }
}

/// What a span is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Somebody reads its files.
    Read,
    /// Somebody looks into them, because they will be read.
    Look,
}

/// How long a span that was decoded for readers to come is kept for them.
pub(super) const UNREAD: Duration = Duration::from_secs(10);

/// Decoded spans that were used recently, and those that nobody has read yet.
///
/// During a start, spans come faster than the program reads them. What was used last is not what will be used next then: it
/// goes in order, and what it has read it is done with. So of those that are not recent the unread are kept, up to half of all,
/// before those that were read, and nothing more is to be decoded ahead while a quarter of all is unread
/// ([`has_room_ahead`](Self::has_room_ahead)).
#[derive(Debug)]
pub(super) struct SpanCache {
    limit: u64,
    /// Protects the cache; held for look-ups and insertions only.
    state: Mutex<State>,
    /// Told when the cache stops being empty.
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// A quarter of all: what just came or was just used.
    recent: Shelf,
    unread: Shelf,
    /// All the rest.
    read: Shelf,
    /// Unread bytes on all shelves.
    unread_bytes: u64,
}

#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    is_read: bool,
    since: Instant,
}

#[derive(Debug)]
struct Shelf {
    spans: LruCache<Key, Kept>,
    used: u64,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { spans: LruCache::unbounded(), used: 0 }
    }
}

impl Shelf {
    fn put(&mut self, key: Key, kept: Kept) {
        self.used += kept.bytes.len() as u64;
        if let Some(old) = self.spans.put(key, kept) {
            self.used -= old.bytes.len() as u64;
        }
    }

    fn take(&mut self, key: &Key) -> Option<Kept> {
        let kept = self.spans.pop(key)?;
        self.used -= kept.bytes.len() as u64;
        Some(kept)
    }

    /// The one that was used longest ago.
    fn take_last(&mut self) -> Option<(Key, Kept)> {
        let (key, kept) = self.spans.pop_lru()?;
        self.used -= kept.bytes.len() as u64;
        Some((key, kept))
    }
}

impl State {
    fn used(&self) -> u64 {
        self.recent.used + self.unread.used + self.read.used
    }

    /// Takes a span from wherever it is.
    fn take(&mut self, key: &Key) -> Option<Kept> {
        let kept = self.recent.take(key).or_else(|| self.unread.take(key)).or_else(|| self.read.take(key))?;
        if !kept.is_read {
            self.unread_bytes -= kept.bytes.len() as u64;
        }
        Some(kept)
    }

    fn put(&mut self, key: Key, kept: Kept) {
        if !kept.is_read {
            self.unread_bytes += kept.bytes.len() as u64;
        }
        self.recent.put(key, kept);
    }

    /// Moves on what is not recent any more, and drops what has no room.
    fn settle(&mut self, limit: u64, now: Instant) {
        while self.recent.used > limit / 4 {
            let Some((key, kept)) = self.recent.take_last() else { break };
            let size = kept.bytes.len() as u64;
            if kept.is_read {
                self.read.put(key, kept);
            } else if self.unread.used + size <= limit / 2 {
                self.unread.put(key, kept);
            } else {
                self.unread_bytes -= size;
            }
        }
        while let Some((_, kept)) = self.unread.spans.peek_lru()
            && now.duration_since(kept.since) > UNREAD
        {
            let Some((key, kept)) = self.unread.take_last() else { break };
            self.unread_bytes -= kept.bytes.len() as u64;
            self.read.put(key, Kept { is_read: true, ..kept });
        }
        while self.used() > limit && self.read.take_last().is_some() {}
    }
}

impl SpanCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, state: Mutex::default(), filled: Notify::new() }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn get(&self, key: &Key, purpose: Use) -> Option<Bytes> {
        let mut state = self.lock();
        if purpose == Use::Look
            && let Some(kept) = state.unread.spans.peek(key)
        {
            return Some(kept.bytes.clone());
        }
        let kept = state.take(key)?;
        let bytes = kept.bytes.clone();
        let is_read = kept.is_read || purpose == Use::Read;
        state.put(*key, Kept { is_read, ..kept });
        state.settle(self.limit, Instant::now());
        Some(bytes)
    }

    /// Keeps `bytes`, dropping others until the limit holds. A span larger than half the limit is not kept: it would push
    /// out everything else for one reader.
    pub(super) fn put(&self, key: Key, bytes: Bytes, purpose: Use) {
        if bytes.len() as u64 > self.limit / 2 {
            return;
        }
        let mut state = self.lock();
        let was_read = state.take(&key).is_some_and(|kept| kept.is_read);
        if state.used() == 0 {
            self.filled.notify_one();
        }
        let is_read = was_read || purpose == Use::Read;
        state.put(key, Kept { bytes, is_read, since: Instant::now() });
        state.settle(self.limit, Instant::now());
    }

    /// True if the span is here.
    pub(super) fn has(&self, key: &Key) -> bool {
        let state = self.lock();
        [&state.recent, &state.unread, &state.read].iter().any(|shelf| shelf.spans.contains(key))
    }

    /// True if less than a quarter of all is unread.
    pub(super) fn has_room_ahead(&self) -> bool {
        self.lock().unread_bytes < self.limit / 4
    }

    /// Returns when something was put into the empty cache since the last call.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Drops everything.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut *self.lock());
        drop(dropped);
    }

    pub(super) fn used(&self) -> u64 {
        self.lock().used()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spans of a hundred bytes, in a cache of twelve.
    fn cache() -> (SpanCache, impl Fn(u8) -> Key) {
        let span = crate::fetch::tests::scene(2, 1, Default::default()).span(0);
        let key = move |number| Key { index: Digest::sha256(&[number]), span, window: None, source: None };
        (SpanCache::new(1200), key)
    }

    fn bytes(number: u8) -> Bytes {
        vec![number; 100].into()
    }

    #[test]
    fn what_was_read_makes_room_and_what_is_unread_stays_up_to_a_half() {
        let (cache, key) = cache();
        for number in 0..3 {
            cache.put(key(number), bytes(number), Use::Look);
        }
        for number in 10..40 {
            cache.put(key(number), bytes(number), Use::Read);
        }
        assert_eq!(cache.used(), 1200);
        let here = |numbers: std::ops::Range<u8>| numbers.filter(|number| cache.has(&key(*number))).collect::<Vec<_>>();
        assert_eq!(here(0..40), [0, 1, 2, 31, 32, 33, 34, 35, 36, 37, 38, 39]);
        assert_eq!(cache.get(&key(1), Use::Look), Some(bytes(1)));
        assert_eq!(cache.get(&key(2), Use::Read), Some(bytes(2)));
        for number in 40..60 {
            cache.put(key(number), bytes(number), Use::Read);
        }
        assert_eq!(here(0..3), [0, 1], "looking into it is not reading it");
        assert!(cache.has_room_ahead());
        cache.put(key(60), bytes(60), Use::Look);
        assert!(!cache.has_room_ahead(), "there are three");
        assert_eq!(cache.get(&key(0), Use::Read), Some(bytes(0)));
        assert!(cache.has_room_ahead() && cache.used() <= 1200);
        cache.clear();
        assert_eq!((cache.used(), cache.get(&key(1), Use::Read)), (0, None));
    }

    #[test]
    fn what_nobody_comes_for_goes_the_way_of_what_was_read() {
        let (cache, key) = cache();
        for number in 0..9 {
            cache.put(key(number), bytes(number), Use::Look);
        }
        assert!(!cache.has_room_ahead());
        assert!(cache.has(&key(5)) && !cache.has(&key(9)));
        cache.lock().settle(1200, Instant::now() + 2 * UNREAD);
        assert!(cache.has(&key(5)) && cache.lock().unread_bytes == 300, "there is room for it, and three are recent");
        for number in 10..40 {
            cache.put(key(number), bytes(number), Use::Read);
        }
        assert!(!cache.has(&key(5)) && cache.has(&key(8)));
    }

    #[test]
    fn one_that_would_push_out_everything_is_not_kept() {
        let (cache, key) = cache();
        cache.put(key(1), vec![0; 601].into(), Use::Read);
        assert!(!cache.has(&key(1)) && cache.used() == 0);
    }
}
