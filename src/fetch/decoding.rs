//! Decoding before anybody waits: spans that a start will read, and the one behind the span that was just read.
//!
//! A reader that finds its span decoded waits for nothing. But decoders are few, and memory is bounded: what is decoded too early
//! is dropped before it is read, and a reader who comes meanwhile waits behind it. So no more are decoded at once than there
//! are decoders, and none while a good part of the memory is unread ([`has_room_ahead`](super::spans::SpanCache::has_room_ahead)).
//! The rest waits here, in the order in which it was foretold, until readers have come that far; what they have passed, or do
//! not come to, is forgotten.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::spans::{Key, UNREAD};
use super::{Fetcher, LargeSpans, Layer};
use crate::index::SpanId;
use crate::limits::DECODE_AHEAD_SPANS;

/// What is to be decoded ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    /// How many are decoded at once.
    most: usize,
    /// Protects the list; held for a few moves.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// How many are being decoded.
    running: usize,
}

#[derive(Debug)]
struct Waiting {
    layer: Weak<Layer>,
    span: SpanId,
    since: Instant,
}

/// One that is being decoded; ends when dropped.
#[derive(Debug)]
struct Running(Fetcher);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.inner.ahead.lock().running -= 1;
    }
}

impl Ahead {
    pub(super) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// Forgets what waits.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut self.lock().waiting);
        drop(dropped);
    }

    /// Adds a span; of too many the first are forgotten.
    fn add(&self, layer: &Arc<Layer>, span: SpanId) {
        let waiting = &mut self.lock().waiting;
        if waiting.len() >= DECODE_AHEAD_SPANS {
            waiting.pop_front();
        }
        waiting.push_back(Waiting { layer: Arc::downgrade(layer), span, since: Instant::now() });
    }

    /// True if nothing waits, as is so whenever no start is being fetched.
    fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    fn forget(&self, layer: &Arc<Layer>, span: SpanId) {
        let is_it = |one: &Waiting| one.span == span && std::ptr::eq(one.layer.as_ptr(), Arc::as_ptr(layer));
        self.lock().waiting.retain(|one| !is_it(one));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetcher {
    /// Takes note that a reader had to have `span` decoded, and decodes the one after it if that costs no request and a
    /// decoder is free: files that lie together are read together, and the reader is busy with this one for a while.
    pub(super) fn decode_behind(&self, layer: &Arc<Layer>, span: SpanId) {
        self.inner.ahead.forget(layer, span);
        if let Some(next) = layer.index.next_span(span)
            && self.inner.decoders.available_permits() > 0
            && let Some(running) = self.room_ahead()
        {
            self.decode_ahead(running, layer, next);
        }
        self.decode_next();
    }

    /// Decodes a span that readers will come to, now or when they have read enough of what is decoded already. Must be called
    /// in a runtime or in its context.
    pub fn decode_soon(&self, layer: &Arc<Layer>, span: SpanId) {
        self.inner.ahead.add(layer, span);
        self.decode_next();
    }

    /// Decodes what comes next of all that waits, as far as there is room.
    pub(super) fn decode_next(&self) {
        while !self.inner.ahead.is_empty()
            && let Some(running) = self.room_ahead()
        {
            let next = self.inner.ahead.lock().waiting.pop_front();
            let Some(Waiting { layer, span, since }) = next else { return };
            if let Some(layer) = layer.upgrade().filter(|_| since.elapsed() < UNREAD) {
                self.decode_ahead(running, &layer, span);
            }
        }
    }

    /// True if the span is decoded, in memory or beside it.
    pub(super) fn has_decoded(&self, layer: &Layer, span: SpanId) -> bool {
        self.inner.cache.has(&Key::new(layer, span)) || layer.large.get(span).is_some()
    }

    /// The right to decode one more span, if there is room for it.
    fn room_ahead(&self) -> Option<Running> {
        if !self.inner.cache.has_room_ahead() {
            return None;
        }
        let mut state = self.inner.ahead.lock();
        if state.running >= self.inner.ahead.most {
            return None;
        }
        state.running += 1;
        Some(Running(self.clone()))
    }

    /// Decodes a span for a reader to come, if its bytes are here and it is not decoded.
    fn decode_ahead(&self, running: Running, layer: &Arc<Layer>, span: SpanId) {
        if LargeSpans::is_large(&layer.index, span) || !layer.has(span) || self.has_decoded(layer, span) {
            return;
        }
        let flight = self.flight(layer, span);
        tokio::spawn(async move {
            if let Some(Err(error)) = flight.await {
                tracing::debug!(%error, "span is not decoded ahead");
            }
            let fetcher = running.0.clone();
            drop(running);
            fetcher.decode_next();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::scene;
    use super::super::{Options, Priority};
    use super::*;

    #[tokio::test]
    async fn what_is_foretold_is_decoded_as_far_as_readers_keep_up() {
        let scene = scene(16, 1, Default::default());
        // A quarter of it has room for about six of the spans.
        let fetcher = Fetcher::new(Options { memory: 10 << 20, decoders: 2 });
        let wanted: Vec<_> = (0..16).map(|number| (Arc::clone(&scene.layer), scene.span(number))).collect();
        fetcher.prefetch(&wanted, Priority::Profile).await.expect("all can be had");
        let decoded = || (0..16).filter(|number| fetcher.has_decoded(&scene.layer, scene.span(*number)));
        let rests = async || {
            while fetcher.inner.ahead.lock().running > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let bound = Duration::from_secs(20);
        tokio::time::timeout(bound, rests()).await.expect("it ends");
        let first = decoded().count() as u32;
        assert!((3..8).contains(&first) && decoded().eq(0..first), "{:?}", decoded().collect::<Vec<_>>());
        // Readers come: what they have read makes room, what they have had decoded themselves is not decoded again.
        fetcher.span(&scene.layer, scene.span(15)).await.expect("it is here");
        for number in 0..3 {
            fetcher.span(&scene.layer, scene.span(number)).await.expect("it is here");
        }
        let goes_on = async {
            while !fetcher.has_decoded(&scene.layer, scene.span(first)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(bound, goes_on).await.expect("it goes on");
        tokio::time::timeout(bound, rests()).await.expect("it ends");
        let waits = |number| fetcher.inner.ahead.lock().waiting.iter().any(|one| one.span == scene.span(number));
        assert!(waits(14) && !waits(15));
        fetcher.inner.ahead.clear();
        assert!(!waits(14));
    }
}
