//! From spans to verified bytes: the only way layer data reaches anything that serves it.
//!
//! Three difficulties meet here. *Many readers, one download*: a span asked for by sixty processes must be fetched and
//! decoded once ([`OnceMap`]). *Nothing unverified*: bytes may come from a disk that rots or a server that lies, so a span
//! counts only after its decoded form matched the index ([`Fetcher::span`]), and only then are its bytes recorded in the
//! blob store. *Never in the way*: decoding runs on a bounded number of threads, decoded spans live in a byte-bounded
//! cache (`SpanCache`), and background work yields to readers ([`Demand`]). A source that does not answer is waited for as
//! long as the mount says ([`Patience`]).
//!
//! [`first_contact`] is the exception that proves a layer: it streams the blob once, in order, and the index builder
//! verifies the whole of it. A layer whose index somebody else made is proven at the end of its [`fill()`].

mod anew;
mod buffers;
mod decoding;
mod demand;
mod fill;
mod first_contact;
mod large;
mod layer;
mod line;
mod once_map;
mod outage;
mod pieces;
mod plan;
mod prefetch;
mod proof;
mod queue;
mod readahead;
mod spans;
mod steady;
mod sync;
mod touched;
mod windows;

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::Semaphore;

pub use demand::Demand;
pub use fill::{Urgency, fill};
pub use first_contact::{Progress, first_contact};
use large::LargeSpans;
pub use layer::{Layer, Traffic};
pub use once_map::{Claim, OnceMap};
pub use outage::{OnOutage, Outage, Patience};
pub use readahead::Foretold;
use spans::Use;
pub use touched::{Ranges, Touched, join_ranges};
pub use windows::WindowSource;

use crate::index::{self, SpanId};
use crate::oci::Digest;
use crate::source::{self, BlobReader};
use crate::store;

/// Why bytes could not be had. Cheap to clone: every waiter of a shared fetch gets its own.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The bytes are not in the cache and the source may not be asked.
    #[error("bytes {start}-{end} of layer {layer} are not in the cache and the mount is offline")]
    Offline {
        /// The layer.
        layer: Digest,
        /// First byte missing.
        start: u64,
        /// End of what is missing.
        end: u64,
    },
    /// The source's bytes do not decode to what the index says, also when fetched again.
    #[error("layer {layer}: the bytes {start}-{end} from {source_name} are wrong")]
    Corrupt {
        /// The layer.
        layer: Digest,
        /// First byte of the span.
        start: u64,
        /// End of the span.
        end: u64,
        /// Where they came from.
        source_name: String,
    },
    /// The layer is not what its manifest promises, or cannot be read as a layer.
    #[error("layer {layer} is rejected")]
    Rejected {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: Arc<crate::index::Rejected>,
    },
    /// The layer's index, which was not made here, says something else than is so. Nothing of the layer is served any more.
    #[error("layer {layer} is not what its index says: {what}")]
    Disproven {
        /// The layer.
        layer: Digest,
        /// The first difference: of which path, and what it is.
        what: Arc<str>,
    },
    /// The index itself is damaged, or its decoder has no room to write to.
    #[error(transparent)]
    Index(Arc<index::Error>),
    /// The cache directory failed in a way that cannot be worked around.
    #[error("the cache failed")]
    Store(#[source] Arc<store::Error>),
    /// A task ended without an answer: the daemon is stopping.
    #[error("interrupted")]
    Interrupted,
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Whose bytes go first, strictly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A reader waits.
    Demand,
    /// A reader may come here next: a guess, which is only worth the wire that others leave.
    ReadAhead,
    /// An earlier start read this, or a reader that goes in order is on its way here.
    Profile,
    /// The rest of the image.
    Fill,
}

impl Priority {
    /// From the most urgent on.
    const ALL: [Self; 4] = [Self::Demand, Self::ReadAhead, Self::Profile, Self::Fill];
}

/// Sizes of the fetcher's pools and caches.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decoded spans kept in memory, in bytes.
    pub memory: u64,
    /// Spans decoded at once.
    pub decoders: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: 64 << 20, decoders: std::thread::available_parallelism().map_or(2, usize::from) }
    }
}

/// Turns spans into verified bytes, once each, for all mounts of the daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

/// How often the bytes of a span are looked at again because others discarded bytes of the same blob, before they are
/// discarded whatever they are now.
const OVERTAKEN: u32 = 8;

#[derive(Debug)]
struct Inner {
    cache: spans::SpanCache,
    ahead: decoding::Ahead,
    flights: OnceMap<spans::Key, Result<Bytes, Error>>,
    decoders: Semaphore,
    /// Room in memory for one window of a large span that is being decoded.
    window: Semaphore,
    demand: Demand,
    planner: plan::Planner,
    buffers: buffers::Buffers,
}

impl Fetcher {
    /// A fetcher with empty caches.
    pub fn new(options: Options) -> Self {
        Self {
            inner: Arc::new(Inner {
                cache: spans::SpanCache::new(options.memory),
                ahead: decoding::Ahead::new(options.decoders.max(1)),
                flights: OnceMap::default(),
                decoders: Semaphore::new(options.decoders.max(1)),
                window: Semaphore::new(1),
                demand: Demand::default(),
                planner: plan::Planner::default(),
                buffers: buffers::Buffers::default(),
            }),
        }
    }

    /// Who is waiting for bytes right now; background work asks this before it takes the wire.
    pub fn demand(&self) -> &Demand {
        &self.inner.demand
    }

    /// The decoded span if it is in memory, for a reader. Never blocks beyond a short lock. Must be called in a runtime or in
    /// its context.
    pub fn cached(&self, layer: &Layer, span: SpanId) -> Option<Bytes> {
        if layer.condemned().is_some() {
            return None;
        }
        self.in_memory(layer, span, Use::Read)
    }

    /// The decoded span if it can be had without waiting for anybody: from memory, or decoded by the calling thread from
    /// bytes that are on disk, if a decoder is free and nobody else is at it.
    ///
    /// Takes a few milliseconds of CPU at most. None also if the bytes turn out to be wrong: [`Self::span`] mends that.
    pub fn span_now(&self, layer: &Arc<Layer>, span: SpanId) -> Option<Bytes> {
        if let Some(bytes) = self.cached(layer, span) {
            return Some(bytes);
        }
        if LargeSpans::is_large(&layer.index, span) || !layer.is_at_hand(span) || layer.condemned().is_some() {
            return None;
        }
        let (key, asked) = (spans::Key::new(layer, span), spans::Key::asked(layer, span));
        let decoder = self.inner.decoders.try_acquire().ok()?;
        let claim = self.inner.flights.claim(asked)?;
        let compressed = layer.blob.read(layer.index.compressed(span)).ok().flatten();
        let decode = |compressed: Bytes| self.inner.buffers.decode(&layer.index, span, &compressed).ok();
        let decoded = compressed.and_then(decode);
        drop(decoder);
        let Some(bytes) = decoded else {
            // Whoever joined meanwhile must not depend on who claims next.
            claim.hand_over(self.work(layer, span));
            return None;
        };
        self.inner.cache.put(key, bytes.clone(), Use::Read);
        claim.finish(Ok(bytes.clone()));
        self.decode_behind(layer, span);
        Some(bytes)
    }

    /// Gives back the memory of decoded spans whenever nobody has read for `quiet`: what was read is in the kernel's
    /// cache by then. Runs for ever.
    pub async fn shrink_when_idle(&self, quiet: std::time::Duration) {
        loop {
            self.inner.cache.filled().await;
            self.demand().idle_for(quiet).await;
            self.inner.ahead.clear();
            self.inner.cache.clear();
            self.inner.buffers.clear();
        }
    }

    fn outages(&self) -> &outage::Outages {
        self.inner.planner.outages()
    }

    /// Bytes that were asked of all sources and have not come.
    pub fn outstanding(&self) -> u64 {
        self.inner.planner.outstanding()
    }

    /// Bytes of decoded spans held in memory.
    pub fn memory_used(&self) -> u64 {
        self.inner.cache.used()
    }

    /// Bytes that these may have at most.
    pub fn memory_limit(&self) -> u64 {
        self.inner.cache.limit()
    }

    /// The decoded bytes of `span`, from memory, from the blob store or from the source, verified against the index.
    ///
    /// All callers that want the same span share one fetch; a caller that gives up does not end it for the others. Waits
    /// for the windows of the index if the span needs one that is not here yet. Of a layer that is
    /// [condemned](Layer::condemned) there is nothing.
    pub async fn span(&self, layer: &Arc<Layer>, span: SpanId) -> Result<Bytes, Error> {
        self.span_for(layer, span, Use::Read).await
    }

    /// As [`Self::span`], for who only looks into files that others will read.
    pub async fn look_into(&self, layer: &Arc<Layer>, span: SpanId) -> Result<Bytes, Error> {
        self.span_for(layer, span, Use::Look).await
    }

    async fn span_for(&self, layer: &Arc<Layer>, span: SpanId, purpose: Use) -> Result<Bytes, Error> {
        if let Some(error) = layer.condemned() {
            return Err(error.clone());
        }
        if let Some(bytes) = self.in_memory(layer, span, purpose) {
            return Ok(bytes);
        }
        let bytes = self.flight(layer, span).await.unwrap_or(Err(Error::Interrupted))?;
        if purpose == Use::Read {
            drop(self.inner.cache.get(&spans::Key::new(layer, span), purpose));
        }
        self.decode_behind(layer, span);
        Ok(bytes)
    }

    /// The decoded span if it is in memory. What a reader has taken makes room for others.
    fn in_memory(&self, layer: &Layer, span: SpanId, purpose: Use) -> Option<Bytes> {
        let kept = self.inner.cache.get(&spans::Key::new(layer, span), purpose);
        if kept.is_some() {
            self.decode_next();
        }
        kept.or_else(|| layer.large.get(span))
    }

    /// Joins or starts the fetch of a span that is not in memory.
    fn flight(
        &self,
        layer: &Arc<Layer>,
        span: SpanId,
    ) -> impl Future<Output = Option<Result<Bytes, Error>>> + Send + 'static {
        let work = self.work(layer, span);
        self.inner.flights.join(spans::Key::asked(layer, span), move || work)
    }

    /// Obtains a span and keeps it in memory.
    fn work(&self, layer: &Arc<Layer>, span: SpanId) -> impl Future<Output = Result<Bytes, Error>> + Send + use<> {
        let (inner, layer) = (Arc::clone(&self.inner), Arc::clone(layer));
        async move {
            let bytes = inner.obtain(&layer, span, large::Target::File).await?;
            if !LargeSpans::is_large(&layer.index, span) {
                inner.cache.put(spans::Key::new(&layer, span), bytes.clone(), Use::Look);
            }
            Ok(bytes)
        }
    }
}

impl Inner {
    /// Assembles the compressed bytes of a span, decodes and verifies them, and records what was fetched.
    ///
    /// A span that does not verify is fetched once more in full: the disk's copy may have rotted, or one answer may have
    /// been damaged on the way. Wrong twice means the source holds something else. If somebody discarded bytes of the blob
    /// meanwhile, the wrong ones may have been mended already, and what is there now is looked at first.
    async fn obtain(self: &Arc<Self>, layer: &Arc<Layer>, span: SpanId, target: large::Target) -> Result<Bytes, Error> {
        let range = layer.index.compressed(span);
        let (mut attempts, mut overtaken) = (2, 0);
        while attempts > 0 {
            attempts -= 1;
            let mark = layer.blob.mark();
            let decoded = if LargeSpans::is_large(&layer.index, span) {
                self.windows_for(layer, span).await?;
                match large::obtain(layer, span, target).await {
                    Ok(bytes) => Ok(bytes),
                    Err(large::Failure::Input(error)) => return Err(error),
                    Err(large::Failure::Decode(error)) => Err(error),
                }
            } else {
                self.decode(layer, span).await?
            };
            match decoded {
                Ok(bytes) => return Ok(bytes),
                Err(error @ index::Error::Span { .. }) if !layer.may_forget() => {
                    tracing::warn!(layer = %layer.index.layer(), %error, "span does not verify, and the index may be wrong");
                    break;
                }
                Err(error @ index::Error::Span { .. }) => {
                    tracing::warn!(
                        layer = %layer.index.layer(), start = range.start, end = range.end, attempts,
                        error = %error, "span does not verify, fetching it again"
                    );
                    if overtaken == OVERTAKEN {
                        layer.blob.discard(range.clone())?;
                    } else if !layer.blob.discard_since(range.clone(), mark)? {
                        overtaken += 1;
                        attempts += 1;
                        continue;
                    }
                    // Another host may have what this one has not.
                    attempts += u32::from(layer.distrust(range.clone()));
                }
                // Other bytes would not help.
                Err(error) => return Err(Error::Index(Arc::new(error))),
            }
        }
        Err(Error::Corrupt {
            layer: layer.index.layer(),
            start: range.start,
            end: range.end,
            source_name: layer.source_name.to_string(),
        })
    }

    /// Decodes a span in memory, on one of a bounded number of threads.
    async fn decode(self: &Arc<Self>, layer: &Arc<Layer>, span: SpanId) -> Result<Result<Bytes, index::Error>, Error> {
        let (compressed, windows) = tokio::join!(self.compressed(layer, span), self.windows_for(layer, span));
        let compressed = compressed?;
        windows?;
        let permit = self.decoders.acquire().await.map_err(|_| Error::Interrupted)?;
        let (task, buffers) = (Arc::clone(layer), self.buffers.clone());
        let decoded = tokio::task::spawn_blocking(move || buffers.decode(&task.index, span, &compressed)).await;
        drop(permit);
        decoded.map_err(|_| Error::Interrupted)
    }

    /// The compressed bytes of a span, from the blob store if it has them all and from the source if not.
    async fn compressed(&self, layer: &Arc<Layer>, span: SpanId) -> Result<Bytes, Error> {
        let wanted = [(Arc::clone(layer), span)];
        if !layer.has(span)
            && let Some(ticket) = self.planner.want(&wanted, Priority::Demand).pop().flatten()
        {
            return ticket.bytes().await;
        }
        let (task, range) = (Arc::clone(layer), layer.index.compressed(span));
        let local = tokio::task::spawn_blocking(move || task.blob.read(range)).await;
        match local.map_err(|_| Error::Interrupted)? {
            Ok(Some(bytes)) => return Ok(bytes),
            // Forgotten between the two looks, or unreadable: the source has it all.
            Ok(None) => {}
            Err(error) => tracing::warn!(layer = %layer.index.layer(), %error, "cached blob is unreadable"),
        }
        self.planner.want_anyway(layer, span).bytes().await
    }
}

/// Collects one ranged read, counting it.
pub async fn read_range(reader: &dyn BlobReader, range: Range<u64>, traffic: &Traffic) -> Result<Bytes, Error> {
    if range.is_empty() {
        return Ok(Bytes::new());
    }
    traffic.request();
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let mut stream = reader.read(range).await?;
    let mut whole = BytesMut::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        traffic.received(piece.len());
        if whole.is_empty() {
            if piece.len() == length {
                return Ok(piece);
            }
            whole.reserve(length);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests;
