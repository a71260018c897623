//! From the compressed bytes of a span to its verified bytes.
//!
//! Decoders keep some 50 KiB of state each, so every thread that decodes keeps one of its own. Whatever comes out is
//! compared with the span's BLAKE3 digest before anybody sees it; that also makes checking the stream's own checksums,
//! which cover members and not spans, unnecessary.

use std::cell::RefCell;
use std::io::Write;
use std::ops::Range;

use bytes::{Buf, Bytes};
use zstd_safe::DCtx;

use super::format::{FRESH, SpanRecord, ZEROS};
use super::{Compression, Error, LayerIndex, SpanFault, SpanId, windows};
use crate::codec::{self, WINDOW, gzip, zstd};

/// Output of one step when a span is decoded into a writer.
const PIECE: usize = 256 << 10;

thread_local! {
    static GZIP: RefCell<gzip::Decoder> = RefCell::new(gzip::Decoder::new());
    static ZSTD: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// One span with everything about it looked up.
struct Span {
    id: SpanId,
    record: SpanRecord,
    compressed: Range<u64>,
    length: u64,
}

impl LayerIndex {
    fn span(&self, id: SpanId) -> Span {
        let decoded = self.decoded(id);
        let record = self.parts.spans(&self.bytes)[id.0 as usize];
        Span { id, record, compressed: self.compressed(id), length: decoded.end - decoded.start }
    }

    fn fault(&self, span: &Span, fault: SpanFault) -> Error {
        Error::Span { layer: self.parts.layer, span: span.id.0, bytes: span.compressed.clone(), fault }
    }

    /// Checks the digest of every group of windows.
    pub(super) fn check_windows(&self) -> Result<(), Error> {
        let mut last = None;
        for record in self.parts.spans(&self.bytes) {
            if matches!(record.window.get(), FRESH | ZEROS) {
                continue;
            }
            let (group, digest, _) = self.parts.group(&self.bytes, record.window.get());
            // Windows are numbered in stream order, so those of one group come together.
            if last != Some(group.as_ptr()) && blake3::hash(group) != *digest {
                return Err(self.damaged("a window is damaged"));
            }
            last = Some(group.as_ptr());
        }
        Ok(())
    }

    pub(super) fn decode_span(&self, id: SpanId, compressed: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let span = self.span(id);
        self.check_length(&span, compressed)?;
        if out.len() as u64 != span.length {
            return Err(self.fault(&span, SpanFault::Length));
        }
        let decoded = match self.parts.compression {
            Compression::None if compressed.len() != out.len() => Err(self.fault(&span, SpanFault::Length))?,
            Compression::None => {
                out.copy_from_slice(compressed);
                Ok(())
            }
            Compression::Gzip => GZIP.with_borrow_mut(|decoder| {
                let rest = self.enter(decoder, &span, compressed)?;
                Ok(fill(decoder, rest, out))
            })?,
            Compression::Zstd => ZSTD.with_borrow_mut(|context| zstd::decode_frames(context, compressed, out)),
        };
        decoded.map_err(|error| self.fault(&span, SpanFault::Codec(error)))?;
        if *blake3::hash(out).as_bytes() != span.record.digest {
            return Err(self.fault(&span, SpanFault::Digest));
        }
        Ok(())
    }

    pub(super) fn decode_span_to<W: Write>(
        &self,
        id: SpanId,
        pieces: &mut dyn Iterator<Item = Bytes>,
        out: &mut W,
    ) -> Result<(), Error> {
        let span = self.span(id);
        let mut hasher = blake3::Hasher::new();
        let mut left = span.length;
        let mut sink = |bytes: &[u8]| {
            // What exceeds the length is wrong whatever it is; nothing of it is written.
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| self.fault(&span, SpanFault::Length))?;
            hasher.update(bytes);
            out.write_all(bytes).map_err(Error::Output)
        };
        match self.parts.compression {
            Compression::None => {
                for piece in pieces {
                    sink(&piece)?;
                }
            }
            Compression::Gzip => {
                let mut decoder = gzip::Decoder::new();
                let first = pieces.next().unwrap_or_default();
                let rest = self.enter(&mut decoder, &span, &first)?;
                let rest = first.slice_ref(rest);
                let mut pieces = std::iter::once(rest).chain(pieces);
                self.stream(&span, codec::Decoder::Gzip(decoder), &mut pieces, &mut sink)?;
            }
            Compression::Zstd => {
                self.stream(&span, codec::Decoder::Zstd(zstd::Decoder::new()), pieces, &mut sink)?;
            }
        }
        if left != 0 || *hasher.finalize().as_bytes() != span.record.digest {
            return Err(self.fault(&span, SpanFault::Digest));
        }
        Ok(())
    }

    fn check_length(&self, span: &Span, compressed: &[u8]) -> Result<(), Error> {
        let expected = span.compressed.end - span.compressed.start;
        if compressed.len() as u64 == expected { Ok(()) } else { Err(self.fault(span, SpanFault::Length)) }
    }

    /// Puts `decoder` at the beginning of `span` and returns the bytes it is to go on with.
    fn enter<'a>(&self, decoder: &mut gzip::Decoder, span: &Span, compressed: &'a [u8]) -> Result<&'a [u8], Error> {
        let bits = (8 - span.record.bit.get() % 8) as u8 % 8;
        let window = match span.record.window.get() {
            FRESH => {
                decoder.restart();
                return Ok(compressed);
            }
            ZEROS => Box::new([0; WINDOW]),
            number => {
                let (group, digest, slot) = self.parts.group(&self.bytes, number);
                windows::read(group, digest, slot).ok_or_else(|| self.damaged("a window is damaged"))?
            }
        };
        // A block that begins inside a byte shares it with the one before.
        let (byte, rest) = match compressed.split_first() {
            Some((first, rest)) if bits != 0 => (*first, rest),
            _ => (0, compressed),
        };
        decoder.resume(bits, byte, &window);
        Ok(rest)
    }

    fn stream(
        &self,
        span: &Span,
        mut decoder: codec::Decoder,
        pieces: &mut dyn Iterator<Item = Bytes>,
        sink: &mut impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut piece = vec![0; PIECE];
        let mut input = Bytes::new();
        let mut left = span.length;
        while left > 0 {
            let room = left.min(PIECE as u64) as usize;
            let step =
                decoder.step(&input, &mut piece[..room]).map_err(|error| self.fault(span, SpanFault::Codec(error)))?;
            sink(&piece[..step.written])?;
            input.advance(step.read);
            left -= step.written as u64;
            if step.is_idle() {
                input = pieces.next().ok_or_else(|| self.fault(span, SpanFault::Codec(codec::Error::Truncated)))?;
            }
        }
        Ok(())
    }
}

/// Decodes until `out` is full.
fn fill(decoder: &mut gzip::Decoder, mut input: &[u8], out: &mut [u8]) -> Result<(), codec::Error> {
    let mut filled = 0;
    while filled < out.len() {
        let step = decoder.step(input, &mut out[filled..])?;
        if step.is_idle() {
            return Err(codec::Error::Truncated);
        }
        input = &input[step.read..];
        filled += step.written;
    }
    Ok(())
}
