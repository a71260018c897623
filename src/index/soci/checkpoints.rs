//! Checkpoints of a zTOC: where decoding can start.
//!
//! ```text
//! gzip  = count i32 · span size i64 · checkpoint*             little-endian, packed
//! checkpoint = in i64 · out i64 · bits u8 · window 32 KiB     32,785 bytes
//! plain = flatbuffer TarZinfo { version i32 = 2, span size i64, size i64 }
//! ```
//!
//! `in` is the first whole byte of the compressed stream after the place, `out` the place in the uncompressed one. If
//! `bits` is not 0 the stream goes on inside the byte before `in`, in its upper `bits` bits. The window is what comes before,
//! oldest first. In version 1 the first checkpoint is left out: it is after a header of 10 bytes.

use super::Fault;
use super::flat::Buffer;
use crate::codec::WINDOW;
use crate::index::{ClaimedSpan, SpanDigest, Start};
use crate::limits::{ZTOC_ONE_SPAN_BYTES, ZTOC_SPAN_BYTES};

/// Bytes of one checkpoint.
pub(super) const CHECKPOINT: usize = 17 + WINDOW;

/// Bytes before the first.
pub(super) const HEAD: usize = 12;

/// Length of a gzip header without optional fields.
pub(super) const HEADER: u64 = 10;

/// One gzip checkpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoint<'a> {
    input: u64,
    output: u64,
    bits: u8,
    /// Empty for zeros.
    window: &'a [u8],
}

/// The checkpoints of a layer.
#[derive(Debug)]
pub(super) enum Checkpoints<'a> {
    Gzip(Vec<Checkpoint<'a>>),
    /// Spans of this length.
    Plain(u64),
}

impl<'a> Checkpoints<'a> {
    /// Reads those of a gzip stream, of which there must be `count`.
    pub(super) fn gzip(bytes: &'a [u8], count: usize) -> Result<Self, Fault> {
        let broken = || Fault::Checkpoints("its checkpoints have another length");
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or_else(broken)?;
        let stated = head.first_chunk().map(|count| i32::from_le_bytes(*count));
        if stated.map(i64::from) != Some(count as i64) || count == 0 {
            return Err(Fault::Checkpoints("it has not as many checkpoints as spans"));
        }
        let (stored, odd) = rest.as_chunks::<CHECKPOINT>();
        let mut checkpoints = Vec::with_capacity(count);
        if stored.len() == count - 1 {
            checkpoints.push(Checkpoint { input: HEADER, output: 0, bits: 0, window: &[] });
        }
        if !odd.is_empty() || stored.len() + checkpoints.len() != count {
            return Err(broken());
        }
        for stored in stored {
            checkpoints.push(Checkpoint::parse(stored).ok_or(Fault::Checkpoints("a checkpoint is negative"))?);
        }
        Ok(Self::Gzip(checkpoints))
    }

    /// Reads those of a plain stream.
    pub(super) fn plain(bytes: &'a [u8], count: usize) -> Result<Self, Fault> {
        let buffer = Buffer::new(bytes);
        let info = buffer.root()?;
        let (version, length) = (info.i32(4)?, u64::try_from(info.i64(6)?).unwrap_or(0));
        let size = u64::try_from(info.i64(8)?).unwrap_or(0);
        if version != 2 {
            return Err(Fault::Checkpoints("its checkpoints have a version other than 2"));
        }
        if length == 0 || size.div_ceil(length) != count as u64 {
            return Err(Fault::Checkpoints("it has not as many checkpoints as spans"));
        }
        Ok(Self::Plain(length))
    }

    /// The spans between the checkpoints, in a layer of these sizes.
    pub(super) fn spans(
        &self,
        digests: &[[u8; 32]],
        compressed: u64,
        uncompressed: u64,
    ) -> Result<Vec<ClaimedSpan>, Fault> {
        let spans = match self {
            Self::Gzip(checkpoints) => gzip_spans(checkpoints, digests, compressed, uncompressed)?,
            Self::Plain(length) => plain_spans(*length, digests, compressed, uncompressed)?,
        };
        if spans.iter().any(|span| span.length > ZTOC_SPAN_BYTES) {
            return Err(Fault::Checkpoints("a span is too long to be worth it"));
        }
        if let [one] = &spans[..]
            && matches!(self, Self::Gzip(_))
            && one.length > ZTOC_ONE_SPAN_BYTES
        {
            return Err(Fault::Checkpoints("it has only one span: its writer did not know several gzip members"));
        }
        Ok(spans)
    }
}

impl<'a> Checkpoint<'a> {
    fn parse(stored: &'a [u8; CHECKPOINT]) -> Option<Self> {
        let (input, rest) = stored.split_first_chunk()?;
        let (output, rest) = rest.split_first_chunk()?;
        let (bits, window) = rest.split_first()?;
        let number = |bytes: &[u8; 8]| u64::try_from(i64::from_le_bytes(*bytes)).ok();
        Some(Self { input: number(input)?, output: number(output)?, bits: *bits, window })
    }

    /// The first byte of the blob that decoding from here needs.
    fn start(&self) -> Option<u64> {
        self.input.checked_sub(u64::from(self.bits != 0))
    }
}

fn gzip_spans(
    checkpoints: &[Checkpoint<'_>],
    digests: &[[u8; 32]],
    compressed: u64,
    uncompressed: u64,
) -> Result<Vec<ClaimedSpan>, Fault> {
    if checkpoints.first().is_none_or(|first| first.output != 0 || first.bits != 0 || first.input < HEADER) {
        return Err(Fault::Checkpoints("its first checkpoint is not at the beginning"));
    }
    let ends = checkpoints[1..].iter().map(|next| (next.input, next.output)).chain([(compressed, uncompressed)]);
    let mut spans = Vec::with_capacity(checkpoints.len());
    for ((checkpoint, (end, output_end)), digest) in checkpoints.iter().zip(ends).zip(digests) {
        if checkpoint.input >= end || checkpoint.output >= output_end || checkpoint.bits > 7 {
            return Err(Fault::Checkpoints("its checkpoints are not in order"));
        }
        let start = checkpoint.start().ok_or(Fault::Checkpoints("its checkpoints are not in order"))?;
        spans.push(ClaimedSpan {
            compressed: start..end,
            bit: (8 - checkpoint.bits) % 8,
            skip: 0,
            length: output_end - checkpoint.output,
            start: Start::Window(checkpoint.window.to_vec()),
            digest: SpanDigest::Compressed(*digest),
        });
    }
    Ok(spans)
}

fn plain_spans(
    length: u64,
    digests: &[[u8; 32]],
    compressed: u64,
    uncompressed: u64,
) -> Result<Vec<ClaimedSpan>, Fault> {
    if compressed != uncompressed || uncompressed.div_ceil(length) != digests.len() as u64 {
        return Err(Fault::Size);
    }
    let starts = (0..uncompressed).step_by(usize::try_from(length).map_err(|_| Fault::Size)?);
    let span = |(start, digest): (u64, &[u8; 32])| {
        let end = uncompressed.min(start.saturating_add(length));
        ClaimedSpan {
            compressed: start..end,
            bit: 0,
            skip: 0,
            length: end - start,
            start: Start::Fresh,
            digest: SpanDigest::Compressed(*digest),
        }
    };
    Ok(starts.zip(digests).map(span).collect())
}
