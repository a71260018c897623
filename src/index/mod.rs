//! Layer indexes: what one layer holds and how to decode any part of it.
//!
//! A [`LayerIndex`] is immutable and named by its layer's digest. It has two halves. The *entries*, in tar order, are
//! what the tree is merged from and are not needed afterwards. The *spans* say which compressed bytes decode to which
//! part of the uncompressed stream, and carry what decoding needs (gzip windows) and the BLAKE3 digest that each decoded
//! span must have; they serve every read. Both halves live in one buffer, memory-mapped from the store: what is
//! not used is not in memory.
//!
//! An index that was made here, by a pass over the whole layer in which both digests were right, is *proven*. What
//! somebody else says of the layer is a [`Claim`]: it serves reads in the same way, each span being compared with the digest
//! that the claim gives, until the layer's bytes are all here and it can be compared with the truth ([`compare`]).
//!
//! `format` describes that buffer, `spans` the two kinds of records in it; `entries` and `windows` are the encodings
//! inside it, `dependencies` what helps to fetch ahead. [`build()`] makes an index from a layer's bytes in one streamed pass, `claim` makes one from what another tool
//! says, `decode` turns a span's compressed bytes into verified ones.

mod build;
mod claim;
mod compare;
mod decode;
mod dependencies;
mod entries;
mod format;
mod rejected;
mod rfc3339;
pub mod soci;
mod spans;
#[cfg(test)]
mod tests;
pub mod toc;
mod varint;
mod windows;

use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::codec;
use crate::limits::LAZY_SPAN_BYTES;
use crate::oci::Digest;
use crate::tar::Entry;

pub use build::build;
pub use claim::{Claim, ClaimedSpan, Malformed, SpanDigest, Start, Times};
pub use compare::{Difference, FORMAT_FILES, compare};
pub use dependencies::DependencyTable;
pub use rejected::{BuildError, Rejected};

use entries::{EntryReader, Suspended};
use format::{Form, Parts};
use spans::Table;

/// Gives an encoded index the digests that it would have if somebody had made it so.
#[cfg(fuzzing)]
pub fn reseal(bytes: &mut [u8]) {
    format::reseal(bytes);
}

/// How a layer's blob is compressed, found by looking at its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar stream.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

/// The number of a span in its layer, in stream order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(u32);

impl SpanId {
    /// The number, from 0 and below [`LayerIndex::span_count`] of the index it came from.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What a layer's descriptor and its image's config promise, checked while it is indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Expected {
    /// Digest of the blob.
    pub layer: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Digest of the uncompressed stream.
    pub diff_id: Digest,
}

/// What one layer holds.
#[derive(Debug, Clone)]
pub struct LayerIndex {
    /// The encoded form, perhaps without the windows.
    bytes: Bytes,
    parts: Parts,
    /// The window section, once it is here.
    windows: Arc<OnceLock<Bytes>>,
    is_proven: bool,
    identity: Digest,
}

/// Why an index cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stored index is damaged or of another version; it is to be thrown away and made anew.
    #[error("index of layer {0} is damaged: {1}")]
    Damaged(String, &'static str),
    /// The compressed bytes given are not those that the layer holds there.
    #[error("bytes {} to {} of layer {layer} are wrong: span {span} {fault}", bytes.start, bytes.end)]
    Span {
        /// The layer.
        layer: Digest,
        /// The number of the span.
        span: u32,
        /// Its place in the blob.
        bytes: Range<u64>,
        /// What is wrong.
        fault: SpanFault,
    },
    /// The span needs a window, and the windows have not arrived ([`LayerIndex::set_windows`]).
    #[error("the windows of the index of layer {0} are not here yet")]
    NoWindows(Digest),
    /// The destination of [`LayerIndex::decode_to`] refused bytes.
    #[error("decoded bytes could not be written")]
    Output(#[source] std::io::Error),
}

/// What is wrong with a span's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpanFault {
    /// There are too few or too many of them.
    #[error("has another length")]
    Length,
    /// They cannot be decoded.
    #[error("cannot be decoded: {0}")]
    Codec(codec::Error),
    /// They decode to something else.
    #[error("decodes to other bytes")]
    Digest,
}

impl LayerIndex {
    /// Opens an encoded index that was made here, checking its version, its header and the digests of everything except
    /// the windows, which are checked when used.
    pub fn open(bytes: Bytes) -> Result<Self, Error> {
        let parts = Parts::parse(&bytes).map_err(|(layer, what)| Error::Damaged(layer, what))?;
        if parts.form != Form::Own || bytes.len() != parts.windows().end {
            return Err(Error::Damaged(parts.layer.to_string(), "it is not whole, or only a claim"));
        }
        Ok(Self::of(bytes, parts, true))
    }

    /// Opens an encoded index that somebody else made: one of ours from elsewhere, or a claim that was encoded here.
    ///
    /// `bytes` may be the [metadata](Self::metadata_len) only; the windows then come later, by [`Self::set_windows`].
    pub fn open_claim(bytes: Bytes) -> Result<Self, Error> {
        let parts = Parts::parse(&bytes).map_err(|(layer, what)| Error::Damaged(layer, what))?;
        Ok(Self::of(bytes, parts, false))
    }

    fn of(bytes: Bytes, parts: Parts, is_proven: bool) -> Self {
        let identity = if is_proven { parts.layer } else { format::identity(&bytes) };
        let section = parts.windows();
        let windows = OnceLock::new();
        if bytes.len() == section.end {
            windows.get_or_init(|| bytes.slice(section));
        }
        Self { bytes, parts, windows: Arc::new(windows), is_proven, identity }
    }

    /// True if this is an index of the layer that `expected` names, or says so.
    pub fn is_of(&self, expected: &Expected) -> bool {
        let Expected { layer, size, diff_id } = expected;
        (self.layer(), self.compressed_size(), self.diff_id()) == (*layer, *size, *diff_id)
    }

    /// Checks what opening leaves for later: the windows, if they are here. Reads all of them, about a hundredth of the
    /// layer.
    pub fn check(&self) -> Result<(), Error> {
        let sound = self.windows.get().is_none_or(|section| self.parts.windows_are_sound(&self.bytes, section));
        if sound { Ok(()) } else { Err(self.damaged("a window is damaged")) }
    }

    /// The encoded form, as the store keeps it; without the windows if it was opened so. Deterministic: equal layers give
    /// equal bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// All of the encoded form, wherever its windows came from; none while they are not here.
    pub fn encoded(&self) -> Option<Bytes> {
        if self.bytes.len() as u64 == self.encoded_len() {
            return Some(self.bytes.clone());
        }
        let windows = self.windows.get()?;
        Some([&self.bytes[..], &windows[..]].concat().into())
    }

    /// True if this was made here, from the whole layer; false for what somebody else says of it.
    pub fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Names what this index says: the layer's digest if it is proven, and else a digest of the layer's and of all of the
    /// index, so that no claim stands for another.
    pub fn identity(&self) -> Digest {
        self.identity
    }

    /// True if both say the same of the layer, byte for byte; the windows need not be here, the metadata names them.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let metadata = |index: &Self| index.bytes.slice(..index.parts.windows().start);
        metadata(self) == metadata(other)
    }

    /// How the times of entries compare with those of the layer.
    pub fn times(&self) -> Times {
        match self.parts.form {
            Form::Own => Times::Exact,
            Form::Claimed(times) => times,
        }
    }

    /// Length of the metadata: the bytes of the encoded form before the windows, which come last.
    pub fn metadata_len(&self) -> u64 {
        self.parts.windows().start as u64
    }

    /// Length of the whole encoded form, whether the windows are here or not.
    pub fn encoded_len(&self) -> u64 {
        self.parts.windows().end as u64
    }

    /// True if the windows are here, or none are needed.
    pub fn has_windows(&self) -> bool {
        self.parts.windows().is_empty() || self.windows.get().is_some()
    }

    /// The windows, if they are here: what follows the metadata in the encoded form.
    pub fn windows(&self) -> Option<Bytes> {
        self.windows.get().cloned()
    }

    /// True if decoding `span` needs a window that is not here yet.
    pub fn lacks_window(&self, span: SpanId) -> bool {
        !self.has_windows() && !matches!(self.span(span).window, spans::FRESH | spans::ZEROS)
    }

    /// Adds the windows: what follows the metadata in the encoded form. All clones of this index have them then.
    ///
    /// [`Error::Damaged`] if they are not those that the metadata speaks of; nothing is changed then. Does nothing if they
    /// are here already.
    pub fn set_windows(&self, section: Bytes) -> Result<(), Error> {
        if !self.parts.windows_are_sound(&self.bytes, &section) {
            return Err(self.damaged("its windows are not those that it speaks of"));
        }
        self.windows.get_or_init(|| section);
        Ok(())
    }

    /// Digest of the layer's blob.
    pub fn layer(&self) -> Digest {
        self.parts.layer
    }

    /// Digest of the uncompressed stream.
    pub fn diff_id(&self) -> Digest {
        self.parts.diff_id
    }

    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        self.parts.compression
    }

    /// Length of the blob in bytes.
    pub fn compressed_size(&self) -> u64 {
        self.parts.compressed_size
    }

    /// Length of the uncompressed stream in bytes.
    pub fn uncompressed_size(&self) -> u64 {
        self.parts.uncompressed_size
    }

    /// Number of entries.
    pub fn entry_count(&self) -> u64 {
        self.parts.entry_count
    }

    /// The entries in tar order, decoded one at a time; after an error there are no more.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, Error>> + '_ {
        Entries { index: self, block: 0, compressed: 0, digest: 0, open: None, failed: false }
    }

    /// What the files of the layer say about others, as far as whoever made the index kept it. Decodes all of it, some
    /// megabytes at most. Nobody has checked that the files do say so.
    pub fn dependencies(&self) -> Result<DependencyTable, Error> {
        let section = self.parts.dependencies(&self.bytes);
        DependencyTable::read(section, self.entry_count()).ok_or_else(|| self.damaged("its dependencies are invalid"))
    }

    /// Number of spans.
    pub fn span_count(&self) -> u32 {
        self.table().len() as u32
    }

    /// All spans, in order.
    pub fn span_ids(&self) -> impl ExactSizeIterator<Item = SpanId> + use<> {
        (0..self.span_count()).map(SpanId)
    }

    /// The spans with these numbers, as far as they exist.
    pub fn span_ids_in(&self, ranges: impl IntoIterator<Item = Range<u32>>) -> impl Iterator<Item = SpanId> {
        let count = self.span_count();
        ranges.into_iter().flatten().filter(move |number| *number < count).map(SpanId)
    }

    /// The span after `span`, if it is not the last.
    pub fn next_span(&self, span: SpanId) -> Option<SpanId> {
        (span.0 + 1 < self.span_count()).then_some(SpanId(span.0 + 1))
    }

    /// The span before `span`, if it is not the first.
    pub fn previous_span(&self, span: SpanId) -> Option<SpanId> {
        span.0.checked_sub(1).map(SpanId)
    }

    /// The spans that hold `range` of the uncompressed stream, in order; none for an empty range or one that ends
    /// beyond the stream.
    pub fn spans(&self, range: Range<u64>) -> impl Iterator<Item = SpanId> + use<> {
        let spans = self.table();
        let ids = if range.start < range.end && range.end <= self.uncompressed_size() {
            let first = spans.before(range.start + 1).saturating_sub(1);
            let end = spans.before(range.end);
            first as u32..end as u32
        } else {
            0..0
        };
        ids.map(SpanId)
    }

    /// The bytes of the blob that decoding `span` needs. In a proven index they come in the order of the spans, and
    /// neighbours may share one byte (gzip blocks end within bytes). In a claim they may share any bytes, lie in any order,
    /// and leave out any.
    ///
    /// # Panics
    ///
    /// Like all that take a [`SpanId`], if it is of another index that has more spans.
    pub fn compressed(&self, span: SpanId) -> Range<u64> {
        self.table().compressed(span.0 as usize)
    }

    /// The part of the uncompressed stream that `span` decodes to.
    pub fn decoded(&self, span: SpanId) -> Range<u64> {
        let (spans, number) = (self.table(), span.0 as usize);
        let end = spans.offset(number + 1).unwrap_or(self.parts.uncompressed_size);
        spans.offset(number).expect("a span of this index")..end
    }

    /// Decodes `span` from exactly the bytes of [`Self::compressed`] and checks the result against its digest.
    ///
    /// CPU-bound: a few milliseconds, unless the span is large, which [`Self::decoded`] tells and only happens in
    /// layers that are [`not_lazy`](Self::not_lazy): the span is decoded to memory, and [`Self::decode_to`] may be
    /// better. [`Error::Span`] means that `compressed` is not what the layer holds there, [`Error::Damaged`] that the
    /// index itself is rotten.
    pub fn decode(&self, span: SpanId, compressed: &[u8]) -> Result<Bytes, Error> {
        let range = self.decoded(span);
        let mut out = vec![0; (range.end - range.start) as usize];
        self.decode_span(span, compressed, &mut out)?;
        Ok(out.into())
    }

    /// Like [`Self::decode`], into a buffer that is exactly as long as [`Self::decoded`] says. After an error its content is
    /// arbitrary.
    pub fn decode_into(&self, span: SpanId, compressed: &[u8], out: &mut [u8]) -> Result<(), Error> {
        self.decode_span(span, compressed, out)
    }

    /// Like [`Self::decode`], but in bounded memory: takes the compressed bytes in pieces, in order, and streams the
    /// decoded bytes to `out`.
    ///
    /// Pieces that end early are wrong bytes. The digest is known only at the end: what was written is to be thrown away
    /// on any error.
    pub fn decode_to(
        &self,
        span: SpanId,
        mut pieces: impl Iterator<Item = Bytes>,
        out: &mut impl Write,
    ) -> Result<(), Error> {
        self.decode_span_to(span, &mut pieces, out)
    }

    /// Why reads of this layer cannot be lazy, if they cannot: one span holds most of it (a single zstd frame).
    pub fn not_lazy(&self) -> Option<&'static str> {
        let length = |span| self.decoded(span).end - self.decoded(span).start;
        let longest = self.span_ids().map(length).max().unwrap_or(0);
        if longest < LAZY_SPAN_BYTES || longest < self.uncompressed_size() / 2 {
            return None;
        }
        match self.parts.compression {
            Compression::Zstd => Some("it is one zstd frame, which can only be decoded from its beginning"),
            _ => Some("it is one deflate block, which can only be decoded from its beginning"),
        }
    }

    fn table(&self) -> Table<'_> {
        self.parts.spans(&self.bytes)
    }

    /// Everything about one span.
    fn span(&self, span: SpanId) -> spans::Span {
        let decoded = self.decoded(span);
        self.table().span(span.0, decoded.end - decoded.start)
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged(self.parts.layer.to_string(), what)
    }
}

/// Iterates over entries with one decoded block in memory.
struct Entries<'a> {
    index: &'a LayerIndex,
    /// The next block.
    block: usize,
    /// Where it begins in the entry section.
    compressed: usize,
    /// Where its digests begin in the digest section.
    digest: usize,
    open: Option<OpenBlock<'a>>,
    failed: bool,
}

/// A decoded block and the place reached in it.
struct OpenBlock<'a> {
    bytes: Vec<u8>,
    digests: &'a [u8],
    left: u32,
    at: Option<Suspended>,
}

impl<'a> Entries<'a> {
    /// Decodes the next block; none after the last.
    fn open_next(&mut self) -> Option<Result<OpenBlock<'a>, Error>> {
        let parts = &self.index.parts;
        let record = parts.blocks(&self.index.bytes).get(self.block)?;
        let (entries, digests) = parts.entries(&self.index.bytes);
        let frame = &entries[self.compressed..self.compressed + record.compressed.get() as usize];
        let digests = &digests[self.digest..self.digest + record.digests.get() as usize * 32];
        self.block += 1;
        self.compressed += frame.len();
        self.digest += digests.len();
        let length = record.decoded.get() as usize;
        let bytes = match zstd::bulk::decompress(frame, length) {
            Ok(bytes) if bytes.len() == length => bytes,
            _ => return Some(Err(self.index.damaged("a block of entries cannot be decoded"))),
        };
        Some(Ok(OpenBlock { bytes, digests, left: record.entries.get(), at: None }))
    }

    fn read(&mut self) -> Option<Result<Entry, Error>> {
        let damaged = || self.index.damaged("an entry is invalid");
        let length = self.index.uncompressed_size();
        loop {
            if let Some(open) = &mut self.open
                && open.left > 0
            {
                let reader = match open.at.take() {
                    Some(at) => EntryReader::resume(at, &open.bytes, open.digests, length),
                    None => Some(EntryReader::new(&open.bytes, open.digests, length)),
                };
                let Some(mut reader) = reader else { return Some(Err(damaged())) };
                let entry = reader.next();
                open.left -= 1;
                if open.left == 0 && !reader.is_done() {
                    return Some(Err(damaged()));
                }
                open.at = Some(reader.suspend());
                return Some(entry.ok_or_else(damaged));
            }
            match self.open_next()? {
                Ok(open) => self.open = Some(open),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.read();
        self.failed = matches!(item, None | Some(Err(_)));
        item
    }
}
