//! One layer: what is known of it, what is here of it, and where the rest comes from.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::large::LargeSpans;
use super::proof::Proof;
use super::readahead::{Foretold, ReadAhead};
use super::windows::Windows;
use super::{Error, OnceMap};
use crate::index::{LayerIndex, SpanId};
use crate::source::BlobReader;
use crate::store::{Blob, Scratch};

/// One layer of a mounted image: its index, its bytes on disk and where the others come from.
#[derive(Debug)]
pub struct Layer {
    /// What the layer holds.
    pub index: LayerIndex,
    /// Its compressed bytes, as far as they are here.
    pub blob: Arc<Blob>,
    /// Where missing bytes come from; none when offline.
    pub reader: Option<Arc<dyn BlobReader>>,
    /// How errors name that place.
    pub source_name: Arc<str>,
    /// Tells sources apart, by that name.
    pub(super) source: u64,
    /// Whose outage it is when the source does not answer: its host, which other sources may share.
    pub(super) place: Arc<str>,
    /// What was moved for this layer.
    pub traffic: Traffic,
    /// What is known of its index, if that is a claim.
    pub(super) proof: Proof,
    /// What brings the windows of its index, if that was opened without them.
    pub(super) windows: Windows,
    /// The chunks of it that are being streamed, by where they begin and end in the blob.
    pub(super) chunks: OnceMap<(u64, u64), Result<Bytes, Error>>,
    /// Its spans that are too large for memory.
    pub(super) large: LargeSpans,
    /// What its readers did.
    pub(super) readahead: ReadAhead,
}

impl Layer {
    /// A layer with nothing in memory; `scratch` is where what is too large for it is decoded to, on the cache's file system.
    pub fn new(
        index: LayerIndex,
        blob: Arc<Blob>,
        reader: Option<Arc<dyn BlobReader>>,
        source_name: &str,
        scratch: Scratch,
    ) -> Self {
        let place = reader.as_ref().and_then(|reader| reader.host()).unwrap_or(source_name).into();
        Self {
            index,
            blob,
            reader,
            place,
            source_name: source_name.into(),
            source: hash(source_name),
            traffic: Traffic::default(),
            proof: Proof::default(),
            windows: Windows::default(),
            chunks: OnceMap::default(),
            large: LargeSpans::new(scratch),
            readahead: ReadAhead::default(),
        }
    }

    /// True if the compressed bytes of `span` are here, verified or not.
    pub fn has(&self, span: SpanId) -> bool {
        self.blob.missing(self.index.compressed(span)).is_empty()
    }

    /// True if decoding `span` needs nothing from the source: its bytes are here, and what the index says of it.
    pub fn is_at_hand(&self, span: SpanId) -> bool {
        self.has(span) && !self.index.lacks_window(span)
    }

    /// True if bytes that do not decode as the index says are to be forgotten and fetched again.
    ///
    /// An index that was made here is right, so the bytes are wrong. A claim may be wrong itself: then it must not take from
    /// the cache what was verified as a whole, or what cannot be had again.
    pub fn may_forget(&self) -> bool {
        self.is_proven() || (!self.blob.is_complete() && self.reader.is_some())
    }

    /// Says that bytes of `range` are wrong; true if another host will be asked for them.
    pub(super) fn distrust(&self, range: Range<u64>) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.distrust(range))
    }

    /// Says that what will be read is known and being fetched. It need not be guessed until readers have waited for several
    /// things that were not foretold.
    pub fn foretell(&self, what: Foretold) {
        self.readahead.foretell(what);
    }
}

fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Counters of what came over the network.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes: AtomicU64,
    requests: AtomicU64,
}

impl Traffic {
    /// Bytes received.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ranged reads asked of the source.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
