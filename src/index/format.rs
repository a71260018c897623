//! The encoded form of a layer index: one buffer that is stored, mapped and read in place.
//!
//! ```text
//! ┌─ header, 448 bytes ───────────────────────────────────────────────────────────────────────────┐
//! │ magic "ocifsidx" · version · compression · digest algorithms                                  │
//! │ layer digest · diffID · compressed size · uncompressed size · end of payload · entry count    │
//! │ for each section: its length and its BLAKE3 digest (zeros for the windows)                    │
//! │ BLAKE3 of all the above                                                                       │
//! ├─ spans ──── 52 bytes each: bit offset in the blob, offset in the stream, window, BLAKE3 ──────┤
//! ├─ groups ─── 40 bytes each: end in the window section, BLAKE3 of the group ────────────────────┤
//! ├─ blocks ─── 16 bytes each: encoded length, decoded length, entries, digests ──────────────────┤
//! ├─ entries ── zstd frames, one for each block (`entries`) ──────────────────────────────────────┤
//! ├─ digests ── SHA-256 of files, 32 bytes each, in entry order ──────────────────────────────────┤
//! └─ windows ── zstd frames, one for each group (`windows`) ──────────────────────────────────────┘
//! ```
//!
//! Numbers are little-endian and nothing is aligned, so records are read where they lie. Sections follow each other
//! without gaps and the buffer ends with the last, so every byte is covered by some digest. [`Parts::parse`] checks all of
//! them but those of the windows, most of the bytes, which are checked group by group when a span needs one; it
//! then checks every record, so that later reading cannot fail for any bytes. [`assemble`] makes the buffer.

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entries::{self, MAX_BLOCK_BYTES};
use super::windows::{self, GROUP};
use super::{Compression, Expected};
use crate::limits::{BLOB_BYTES, INDEX_BYTES, LAYER_ENTRIES, SPAN_BYTES};
use crate::oci::{Algorithm, Digest};

const MAGIC: [u8; 8] = *b"ocifsidx";

/// Raised whenever the form or the meaning of any part changes; an index of another version is made anew.
const VERSION: u32 = 1;

const SECTIONS: usize = 6;

/// The spans' number for decoding that needs no window because a member, a frame or a grid cell begins.
pub(super) const FRESH: u32 = u32::MAX;

/// The spans' number for a window of zeros.
pub(super) const ZEROS: u32 = u32::MAX - 1;

/// Length of the header in bytes.
pub(super) const HEADER_BYTES: usize = size_of::<Header>();

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    compression: u8,
    layer_algorithm: u8,
    diff_id_algorithm: u8,
    reserved: u8,
    layer: [u8; 64],
    diff_id: [u8; 64],
    compressed_size: U64,
    uncompressed_size: U64,
    payload_end: U64,
    entries: U64,
    sections: [SectionRecord; SECTIONS],
    digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SectionRecord {
    length: U64,
    digest: [u8; 32],
}

/// One span.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct SpanRecord {
    /// Where it begins in the blob, in bits.
    pub(super) bit: U64,
    /// Where it begins in the uncompressed stream, in bytes.
    pub(super) offset: U64,
    /// The number of its window, [`FRESH`] or [`ZEROS`].
    pub(super) window: U32,
    /// BLAKE3 of what it decodes to.
    pub(super) digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct GroupRecord {
    pub(super) end: U64,
    pub(super) digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct BlockRecord {
    pub(super) compressed: U32,
    pub(super) decoded: U32,
    pub(super) entries: U32,
    pub(super) digests: U32,
}

const _: () = assert!(HEADER_BYTES == 448 && size_of::<SpanRecord>() == 52);
const _: () = assert!(size_of::<GroupRecord>() == 40 && size_of::<BlockRecord>() == 16);

/// A checked header: what the layer is and where the sections lie.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) layer: Digest,
    pub(super) diff_id: Digest,
    pub(super) compression: Compression,
    pub(super) compressed_size: u64,
    pub(super) uncompressed_size: u64,
    /// Where the compressed bytes end that the last span needs.
    pub(super) payload_end: u64,
    pub(super) entry_count: u64,
    spans: Range<usize>,
    groups: Range<usize>,
    blocks: Range<usize>,
    entries: Range<usize>,
    digests: Range<usize>,
    windows: Range<usize>,
}

/// What [`assemble`] joins.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) compression: Compression,
    pub(super) uncompressed_size: u64,
    pub(super) payload_end: u64,
    pub(super) spans: Vec<SpanRecord>,
    pub(super) groups: Vec<windows::Group>,
    pub(super) windows: Vec<u8>,
    pub(super) entries: entries::Written,
}

/// The layer's name for errors, and what is wrong.
pub(super) type Damage = (String, &'static str);

/// Joins the parts of an index into its encoded form.
pub(super) fn assemble(expected: &Expected, content: &Content) -> Vec<u8> {
    let groups: Vec<_> = content.groups.iter().map(|g| GroupRecord { end: g.end.into(), digest: g.digest }).collect();
    let blocks: Vec<_> = content.entries.blocks.iter().map(block_record).collect();
    let sections: [&[u8]; SECTIONS] = [
        content.spans.as_bytes(),
        groups.as_bytes(),
        blocks.as_bytes(),
        &content.entries.entries,
        &content.entries.digests,
        &content.windows,
    ];
    let mut records = sections.map(|section| SectionRecord {
        length: (section.len() as u64).into(),
        digest: *blake3::hash(section).as_bytes(),
    });
    records[SECTIONS - 1].digest = [0; 32];
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        compression: match content.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        },
        layer_algorithm: algorithm_number(&expected.layer),
        diff_id_algorithm: algorithm_number(&expected.diff_id),
        reserved: 0,
        layer: padded(&expected.layer),
        diff_id: padded(&expected.diff_id),
        compressed_size: expected.size.into(),
        uncompressed_size: content.uncompressed_size.into(),
        payload_end: content.payload_end.into(),
        entries: content.entries.count.into(),
        sections: records,
        digest: [0; 32],
    };
    header.digest = header_digest(&header);
    let length: usize = sections.iter().map(|section| section.len()).sum();
    let mut encoded = Vec::with_capacity(HEADER_BYTES + length);
    encoded.extend_from_slice(header.as_bytes());
    for section in sections {
        encoded.extend_from_slice(section);
    }
    encoded
}

fn block_record(block: &entries::Block) -> BlockRecord {
    BlockRecord {
        compressed: block.compressed.into(),
        decoded: block.decoded.into(),
        entries: block.entries.into(),
        digests: block.digests.into(),
    }
}

fn header_digest(header: &Header) -> [u8; 32] {
    let bytes = header.as_bytes();
    *blake3::hash(&bytes[..bytes.len() - 32]).as_bytes()
}

fn algorithm_number(digest: &Digest) -> u8 {
    match digest.algorithm() {
        Algorithm::Sha256 => 0,
        Algorithm::Sha512 => 1,
    }
}

fn padded(digest: &Digest) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..digest.bytes().len()].copy_from_slice(digest.bytes());
    bytes
}

fn digest_of(algorithm: u8, bytes: &[u8; 64]) -> Option<Digest> {
    match algorithm {
        0 if bytes[32..] == [0; 32] => bytes.first_chunk().map(|bytes| Digest::Sha256(*bytes)),
        1 => Some(Digest::Sha512(*bytes)),
        _ => None,
    }
}

impl Parts {
    /// Checks `bytes` and finds the sections.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let unnamed = |what| ("unknown".to_owned(), what);
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| unnamed("it is too short"))?;
        if header.magic != MAGIC {
            return Err(unnamed("it is not a layer index"));
        }
        if header.version.get() != VERSION {
            return Err(unnamed("it is of another version"));
        }
        if header.digest != header_digest(&header) || header.reserved != 0 {
            return Err(unnamed("its header does not have its digest"));
        }
        let digests = digest_of(header.layer_algorithm, &header.layer)
            .zip(digest_of(header.diff_id_algorithm, &header.diff_id))
            .ok_or_else(|| unnamed("its digests are of no known algorithm"))?;
        let parts = Self::locate(bytes, &header, digests).map_err(|what| (digests.0.to_string(), what))?;
        parts.check(bytes).map_err(|what| (digests.0.to_string(), what))?;
        Ok(parts)
    }

    fn locate(bytes: &[u8], header: &Header, (layer, diff_id): (Digest, Digest)) -> Result<Self, &'static str> {
        if bytes.len() as u64 > INDEX_BYTES {
            return Err("it is too long");
        }
        let mut ranges: [Range<usize>; SECTIONS] = Default::default();
        let mut start = HEADER_BYTES;
        for (range, section) in ranges.iter_mut().zip(&header.sections) {
            let length = usize::try_from(section.length.get()).map_err(|_| "a section is too long")?;
            let end = start.checked_add(length).filter(|end| *end <= bytes.len()).ok_or("it is cut short")?;
            *range = start..end;
            start = end;
        }
        if start != bytes.len() {
            return Err("something follows the last section");
        }
        for (range, section) in ranges.iter().zip(&header.sections).take(SECTIONS - 1) {
            if *blake3::hash(&bytes[range.clone()]).as_bytes() != section.digest {
                return Err("a section does not have its digest");
            }
        }
        if header.sections[SECTIONS - 1].digest != [0; 32] {
            return Err("the window section has a digest");
        }
        let [spans, groups, blocks, entries, digests, windows] = ranges;
        Ok(Self {
            layer,
            diff_id,
            compression: match header.compression {
                0 => Compression::None,
                1 => Compression::Gzip,
                2 => Compression::Zstd,
                _ => return Err("the compression is unknown"),
            },
            compressed_size: header.compressed_size.get(),
            uncompressed_size: header.uncompressed_size.get(),
            payload_end: header.payload_end.get(),
            entry_count: header.entries.get(),
            spans,
            groups,
            blocks,
            entries,
            digests,
            windows,
        })
    }

    fn check(&self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.compressed_size > BLOB_BYTES || self.payload_end > self.compressed_size {
            return Err("its sizes are impossible");
        }
        let groups = <[GroupRecord]>::ref_from_bytes(&bytes[self.groups.clone()]).map_err(|_| "half a group record")?;
        let mut end = 0;
        for group in groups {
            if group.end.get() <= end {
                return Err("the groups are not in order");
            }
            end = group.end.get();
        }
        if end != self.windows.len() as u64 {
            return Err("the groups do not make the window section");
        }
        let spans = <[SpanRecord]>::ref_from_bytes(&bytes[self.spans.clone()]).map_err(|_| "half a span record")?;
        self.check_spans(spans, groups.len())?;
        let blocks = <[BlockRecord]>::ref_from_bytes(&bytes[self.blocks.clone()]).map_err(|_| "half a block record")?;
        self.check_blocks(blocks)
    }

    fn check_spans(&self, spans: &[SpanRecord], groups: usize) -> Result<(), &'static str> {
        if spans.is_empty() != (self.uncompressed_size == 0) || spans.first().is_some_and(|span| span.offset.get() != 0)
        {
            return Err("the spans do not begin with the stream");
        }
        let ends = spans[1.min(spans.len())..].iter().map(|next| (next.bit.get(), next.offset.get()));
        let last = (self.payload_end * 8, self.uncompressed_size);
        for (span, (bit_end, end)) in spans.iter().zip(ends.chain([last])) {
            let (bit, offset, window) = (span.bit.get(), span.offset.get(), span.window.get());
            if bit >= bit_end || bit_end > self.payload_end * 8 || offset >= end {
                return Err("the spans are not in order");
            }
            if end - offset > SPAN_BYTES {
                return Err("a span is too long");
            }
            let known = match window {
                FRESH => bit % 8 == 0,
                ZEROS => self.compression == Compression::Gzip,
                _ => self.compression == Compression::Gzip && groups > (window / GROUP) as usize,
            };
            let plain = self.compression != Compression::None || (bit == offset * 8 && bit_end == end * 8);
            if !known || !plain {
                return Err("a span is impossible");
            }
        }
        Ok(())
    }

    fn check_blocks(&self, blocks: &[BlockRecord]) -> Result<(), &'static str> {
        let sum =
            |field: fn(&BlockRecord) -> U32| blocks.iter().map(|block| u64::from(field(block).get())).sum::<u64>();
        if sum(|block| block.compressed) != self.entries.len() as u64
            || sum(|block| block.digests) * 32 != self.digests.len() as u64
            || sum(|block| block.entries) != self.entry_count
            || self.entry_count > LAYER_ENTRIES
        {
            return Err("the blocks do not make the entry sections");
        }
        if blocks.iter().any(|block| block.decoded.get() as usize > MAX_BLOCK_BYTES) {
            return Err("a block is too long");
        }
        Ok(())
    }

    /// The spans, in `bytes`, which are those that were parsed.
    pub(super) fn spans<'a>(&self, bytes: &'a [u8]) -> &'a [SpanRecord] {
        <[SpanRecord]>::ref_from_bytes(&bytes[self.spans.clone()]).expect("checked when opened")
    }

    /// The blocks.
    pub(super) fn blocks<'a>(&self, bytes: &'a [u8]) -> &'a [BlockRecord] {
        <[BlockRecord]>::ref_from_bytes(&bytes[self.blocks.clone()]).expect("checked when opened")
    }

    /// The entry and digest sections.
    pub(super) fn entries<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        (&bytes[self.entries.clone()], &bytes[self.digests.clone()])
    }

    /// The bytes of the group that holds `window`, their digest, and the window's place in the group.
    pub(super) fn group<'a>(&self, bytes: &'a [u8], window: u32) -> (&'a [u8], &'a [u8; 32], u32) {
        let groups = <[GroupRecord]>::ref_from_bytes(&bytes[self.groups.clone()]).expect("checked when opened");
        let number = (window / GROUP) as usize;
        let start = if number == 0 { 0 } else { groups[number - 1].end.get() as usize };
        let end = groups[number].end.get() as usize;
        (&bytes[self.windows.clone()][start..end], &groups[number].digest, window % GROUP)
    }
}
