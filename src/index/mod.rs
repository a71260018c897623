//! Layer indexes: what one layer holds and how to decode any part of it.
//!
//! A [`LayerIndex`] is immutable and named by its layer's digest. It has two halves. The *entries*, in tar order, are
//! what the tree is merged from and are not needed afterwards. The *spans* say which compressed bytes decode to which
//! part of the uncompressed stream, and carry what decoding needs (gzip windows) and the BLAKE3 digest that each decoded
//! span must have; they serve every read. Both halves live in one buffer, memory-mapped from the store: what is
//! not used is not in memory.

use std::ops::Range;

use bytes::Bytes;

use crate::oci::Digest;
use crate::tar::Entry;

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

/// What a layer's descriptor and its image's config promise, checked while it is indexed.
#[derive(Debug, Clone, Copy)]
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
    bytes: Bytes,
}

/// Why an index cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stored index is damaged or of another version; it is to be thrown away and made anew.
    #[error("index of layer {0} is damaged: {1}")]
    Damaged(String, &'static str),
}

impl LayerIndex {
    /// Opens an encoded index, checking its version, its header and the digests of everything except the windows,
    /// which are checked when used.
    pub fn open(bytes: Bytes) -> Result<Self, Error> {
        let _ = bytes;
        todo!()
    }

    /// The encoded form, as the store keeps it. Deterministic: equal layers give equal bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Digest of the layer's blob.
    pub fn layer(&self) -> Digest {
        todo!()
    }

    /// Digest of the uncompressed stream.
    pub fn diff_id(&self) -> Digest {
        todo!()
    }

    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        todo!()
    }

    /// Length of the blob in bytes.
    pub fn compressed_size(&self) -> u64 {
        todo!()
    }

    /// Length of the uncompressed stream in bytes.
    pub fn uncompressed_size(&self) -> u64 {
        todo!()
    }

    /// Number of entries.
    pub fn entry_count(&self) -> u64 {
        todo!()
    }

    /// The entries in tar order, decoded one at a time.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, Error>> + '_ {
        std::iter::empty()
    }

    /// Number of spans.
    pub fn span_count(&self) -> u32 {
        todo!()
    }

    /// The spans that hold `range` of the uncompressed stream, in order; none for an empty range or one that ends
    /// beyond the stream.
    pub fn spans(&self, range: Range<u64>) -> impl Iterator<Item = SpanId> + use<> {
        let _ = range;
        std::iter::empty()
    }

    /// All spans in order.
    pub fn span_ids(&self) -> impl Iterator<Item = SpanId> + use<> {
        std::iter::empty()
    }

    /// The bytes of the blob that decoding `span` needs. Neighbours may share one byte (gzip blocks end within bytes).
    pub fn compressed(&self, span: SpanId) -> Range<u64> {
        let _ = span;
        todo!()
    }

    /// The part of the uncompressed stream that `span` decodes to.
    pub fn decoded(&self, span: SpanId) -> Range<u64> {
        let _ = span;
        todo!()
    }

    /// Decodes `span` from exactly the bytes of [`Self::compressed`] and checks the result against its digest.
    ///
    /// CPU-bound: a few milliseconds. An error means that `compressed` is not what the layer holds there.
    pub fn decode(&self, span: SpanId, compressed: &[u8]) -> Result<Bytes, Error> {
        let _ = (span, compressed);
        todo!()
    }

    /// Why reads of this layer cannot be lazy, if they cannot: it is one span (a single zstd frame).
    pub fn not_lazy(&self) -> Option<&'static str> {
        None
    }
}

/// Indexes a layer from its compressed bytes in order, verifying the blob's digest and size and the diffID.
///
/// Blocks the calling thread and uses others of its own; `pieces` yields the whole blob in order and may block.
/// The first error of `pieces` is handed back as [`BuildError::Input`].
pub fn build<E>(
    pieces: impl Iterator<Item = Result<Bytes, E>> + Send,
    expected: Expected,
) -> Result<LayerIndex, BuildError<E>>
where
    E: std::error::Error + Send + 'static,
{
    let _ = (pieces, expected);
    todo!()
}

/// Why a layer could not be indexed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E: std::error::Error> {
    /// The compressed bytes could not be had.
    #[error("the layer could not be read")]
    Input(#[source] E),
    /// The layer is not what was promised, or is malformed or hostile; reading it again will not help, except where the
    /// bytes themselves are wrong ([`Rejected::is_wrong_bytes`]).
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// Why a layer is rejected.
#[derive(Debug, thiserror::Error)]
#[error("layer rejected")]
pub struct Rejected;

impl Rejected {
    /// True if the bytes are not those of the named layer (size or digest): another source may have the right ones.
    pub fn is_wrong_bytes(&self) -> bool {
        todo!()
    }
}
