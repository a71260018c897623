//! The spans of an index: two kinds of records, and one view of both.
//!
//! Our own spans lie in the blob as they do in the stream, one after the other, so each record says only where its span
//! begins ([`SpanRecord`]). What another tool's index says of a span follows no such order: ranges of the blob may share
//! bytes or go back, and digests are those that the tool wrote ([`ClaimedRecord`]). An index has records of one kind;
//! [`Table`] reads either as [`Span`]s.

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Compression;
use super::windows::GROUP;
use crate::limits::{CLAIM_SKIP_BYTES, CLAIM_WORK, CLAIM_WORK_FREE, SPAN_BYTES};

/// The number of a window for decoding that needs none because a member, a frame or a grid cell begins.
pub(super) const FRESH: u32 = u32::MAX;

/// The number of a window of zeros.
pub(super) const ZEROS: u32 = u32::MAX - 1;

/// One span of ours; it ends where the next begins.
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

/// One span that another tool describes; it ends in the stream where the next begins.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ClaimedRecord {
    /// Where its bytes begin in the blob.
    pub(super) start: U64,
    /// How many there are.
    pub(super) length: U64,
    /// Where it begins in the claim's stream, in bytes.
    pub(super) offset: U64,
    /// Decoded bytes before its own.
    pub(super) skip: U32,
    /// The number of its window, [`FRESH`] or [`ZEROS`].
    pub(super) window: U32,
    /// Bits of the first byte that belong to what comes before.
    pub(super) bit: u8,
    /// [`DECODED`] or [`COMPRESSED`].
    pub(super) kind: u8,
    /// SHA-256 of what it decodes to, or of its compressed bytes.
    pub(super) digest: [u8; 32],
}

/// [`ClaimedRecord::kind`] of a digest of decoded bytes.
pub(super) const DECODED: u8 = 0;

/// [`ClaimedRecord::kind`] of a digest of compressed bytes.
pub(super) const COMPRESSED: u8 = 1;

const _: () = assert!(size_of::<SpanRecord>() == 52 && size_of::<ClaimedRecord>() == 66);

/// What the bytes of a span are compared with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Check {
    /// BLAKE3 of what it decodes to.
    Blake3([u8; 32]),
    /// SHA-256 of what it decodes to.
    Sha256([u8; 32]),
    /// SHA-256 of its compressed bytes.
    Compressed([u8; 32]),
}

/// One span with everything about it.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) number: u32,
    pub(super) compressed: Range<u64>,
    /// Bits of the first byte that belong to what comes before.
    pub(super) bit: u8,
    pub(super) skip: u64,
    pub(super) length: u64,
    pub(super) window: u32,
    pub(super) check: Check,
}

/// The spans of an index, of either kind.
#[derive(Debug, Clone, Copy)]
pub(super) enum Table<'a> {
    /// Ours, and where the bytes of the last one end in the blob.
    Own(&'a [SpanRecord], u64),
    Claimed(&'a [ClaimedRecord]),
}

/// What the records are checked against.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) compression: Compression,
    pub(super) compressed_size: u64,
    pub(super) uncompressed_size: u64,
    pub(super) groups: usize,
}

impl<'a> Table<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Own(records, _) => records.len(),
            Self::Claimed(records) => records.len(),
        }
    }

    /// Where span `number` begins in the stream; none if there are not so many.
    pub(super) fn offset(&self, number: usize) -> Option<u64> {
        match self {
            Self::Own(records, _) => records.get(number).map(|record| record.offset.get()),
            Self::Claimed(records) => records.get(number).map(|record| record.offset.get()),
        }
    }

    /// How many spans begin before `offset` in the stream.
    pub(super) fn before(&self, offset: u64) -> usize {
        match self {
            Self::Own(records, _) => records.partition_point(|record| record.offset.get() < offset),
            Self::Claimed(records) => records.partition_point(|record| record.offset.get() < offset),
        }
    }

    /// The bytes of the blob that span `number` needs.
    pub(super) fn compressed(&self, number: usize) -> Range<u64> {
        match self {
            Self::Own(records, payload_end) => {
                let end = records.get(number + 1).map_or(*payload_end, |next| next.bit.get().div_ceil(8));
                records[number].bit.get() / 8..end
            }
            Self::Claimed(records) => {
                let record = &records[number];
                record.start.get()..record.start.get() + record.length.get()
            }
        }
    }

    /// Span `number`, which is `length` bytes of the stream.
    pub(super) fn span(&self, number: u32, length: u64) -> Span {
        let compressed = self.compressed(number as usize);
        match self {
            Self::Own(records, _) => {
                let record = &records[number as usize];
                Span {
                    number,
                    compressed,
                    bit: (record.bit.get() % 8) as u8,
                    skip: 0,
                    length,
                    window: record.window.get(),
                    check: Check::Blake3(record.digest),
                }
            }
            Self::Claimed(records) => {
                let record = &records[number as usize];
                Span {
                    number,
                    compressed,
                    bit: record.bit,
                    skip: u64::from(record.skip.get()),
                    length,
                    window: record.window.get(),
                    check: match record.kind {
                        COMPRESSED => Check::Compressed(record.digest),
                        _ => Check::Sha256(record.digest),
                    },
                }
            }
        }
    }

    /// Checks every record, so that later reading cannot fail for any bytes.
    pub(super) fn check(&self, bounds: &Bounds) -> Result<(), &'static str> {
        let length = bounds.uncompressed_size;
        if (self.len() == 0) != (length == 0) || self.offset(0).is_some_and(|offset| offset != 0) {
            return Err("the spans do not begin with the stream");
        }
        // What decoding each span alone would read and drop.
        let mut work = 0_u64;
        for number in 0..self.len() {
            let (start, end) = (self.offset(number).unwrap_or(0), self.offset(number + 1).unwrap_or(length));
            if start >= end {
                return Err("the spans are not in order");
            }
            if end - start > SPAN_BYTES {
                return Err("a span is too long");
            }
            match self {
                Self::Own(records, payload_end) => check_own(records, number, *payload_end, start..end, bounds)?,
                Self::Claimed(records) => {
                    let record = &records[number];
                    check_claimed(record, end - start, bounds)?;
                    work = work.saturating_add(u64::from(record.skip.get())).saturating_add(record.length.get());
                }
            }
        }
        let useful = length.saturating_add(bounds.compressed_size);
        if work > useful.saturating_mul(CLAIM_WORK).saturating_add(CLAIM_WORK_FREE) {
            return Err("its spans take far more work than the layer has bytes");
        }
        Ok(())
    }
}

fn check_own(
    records: &[SpanRecord],
    number: usize,
    payload_end: u64,
    decoded: Range<u64>,
    bounds: &Bounds,
) -> Result<(), &'static str> {
    let payload_bits = payload_end * 8;
    let bit = records[number].bit.get();
    let bit_end = records.get(number + 1).map_or(payload_bits, |next| next.bit.get());
    if bit >= bit_end || bit_end > payload_bits {
        return Err("the spans are not in order");
    }
    let plain = bounds.compression != Compression::None || (bit == decoded.start * 8 && bit_end == decoded.end * 8);
    if !plain || !window_is_known(records[number].window.get(), (bit % 8) as u8, bounds) {
        return Err("a span is impossible");
    }
    Ok(())
}

fn check_claimed(record: &ClaimedRecord, length: u64, bounds: &Bounds) -> Result<(), &'static str> {
    let (start, compressed, skip) = (record.start.get(), record.length.get(), u64::from(record.skip.get()));
    let inside = start.checked_add(compressed).is_some_and(|end| end <= bounds.compressed_size);
    if compressed == 0 || !inside {
        return Err("a span does not lie in the blob");
    }
    if skip > CLAIM_SKIP_BYTES {
        return Err("a span begins too far inside what has to be decoded for it");
    }
    let plain = bounds.compression != Compression::None || (compressed == length && skip == 0);
    let bits = record.bit < 8 && (record.bit == 0 || bounds.compression == Compression::Gzip);
    let kind = matches!(record.kind, DECODED | COMPRESSED);
    if !plain || !bits || !kind || !window_is_known(record.window.get(), record.bit, bounds) {
        return Err("a span is impossible");
    }
    Ok(())
}

fn window_is_known(window: u32, bit: u8, bounds: &Bounds) -> bool {
    match window {
        FRESH => bit == 0,
        ZEROS => bounds.compression == Compression::Gzip,
        number => bounds.compression == Compression::Gzip && bounds.groups > (number / GROUP) as usize,
    }
}
