//! From the compressed bytes of a span to its verified bytes.
//!
//! Decoders keep some 50 KiB of state each, so every thread that decodes keeps one of its own. Whatever comes out is
//! compared with the span's digest before anybody sees it; that also makes checking the stream's own checksums,
//! which cover members and not spans, unnecessary. A claim may give the digest of the compressed bytes instead; then those
//! are compared, and what they decode to is what the claim's windows make of them.

use std::cell::RefCell;
use std::io::Write;

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use zstd_safe::DCtx;

use super::spans::{Check, FRESH, Span, ZEROS};
use super::{Compression, Error, LayerIndex, SpanFault, SpanId, windows};
use crate::codec::{self, Step, WINDOW, gzip, zstd};

/// Output of one step when a span is decoded into a writer, and of bytes that are decoded to be dropped.
const PIECE: usize = 256 << 10;

thread_local! {
    static GZIP: RefCell<gzip::Decoder> = RefCell::new(gzip::Decoder::new());
    static ZSTD: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// The digest of decoded bytes, as they come.
enum Hashing {
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
    /// The compressed bytes are hashed instead.
    Nothing,
}

impl Hashing {
    fn new(check: &Check) -> Self {
        match check {
            Check::Blake3(_) => Self::Blake3(Box::default()),
            Check::Sha256(_) => Self::Sha256(Sha256::new()),
            Check::Compressed(_) => Self::Nothing,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hasher) => drop(hasher.update(bytes)),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Nothing => {}
        }
    }

    fn is(self, check: &Check) -> bool {
        match (self, check) {
            (Self::Blake3(hasher), Check::Blake3(digest)) => hasher.finalize() == *digest,
            (Self::Sha256(hasher), Check::Sha256(digest)) => hasher.finalize()[..] == digest[..],
            (Self::Nothing, Check::Compressed(_)) => true,
            _ => false,
        }
    }
}

/// Takes decoded bytes: drops those before the span, hashes and passes on those of the span.
struct Sink<'a, W> {
    skip: u64,
    left: u64,
    hashing: Hashing,
    out: &'a mut W,
}

impl<W: Write> Sink<'_, W> {
    fn wants(&self) -> u64 {
        self.skip + self.left
    }

    /// What exceeds the span is wrong whatever it is, and nothing of it is written; false then.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let bytes = &bytes[skipped as usize..];
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else { return Ok(false) };
        self.left = left;
        self.hashing.update(bytes);
        self.out.write_all(bytes).map_err(Error::Output)?;
        Ok(true)
    }
}

impl LayerIndex {
    fn fault(&self, span: &Span, fault: SpanFault) -> Error {
        Error::Span { layer: self.parts.layer, span: span.number, bytes: span.compressed.clone(), fault }
    }

    /// A span that cannot be decoded: the bytes are wrong, unless it is known that they are not.
    fn undecodable(&self, span: &Span, error: codec::Error) -> Error {
        match span.check {
            Check::Compressed(_) => self.damaged("a span cannot be decoded as it says"),
            _ => self.fault(span, SpanFault::Codec(error)),
        }
    }

    pub(super) fn decode_span(&self, id: SpanId, compressed: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let span = self.span(id);
        self.check_length(&span, compressed)?;
        if out.len() as u64 != span.length {
            return Err(self.fault(&span, SpanFault::Length));
        }
        if let Check::Compressed(digest) = span.check
            && Sha256::digest(compressed)[..] != digest[..]
        {
            return Err(self.fault(&span, SpanFault::Digest));
        }
        let decoded = match self.parts.compression {
            Compression::None if compressed.len() != out.len() => Err(self.fault(&span, SpanFault::Length))?,
            Compression::None => {
                out.copy_from_slice(compressed);
                Ok(())
            }
            Compression::Gzip => GZIP.with_borrow_mut(|decoder| {
                let rest = self.enter(decoder, &span, compressed)?;
                Ok(fill(|input, out| decoder.step(input, out), rest, span.skip, out))
            })?,
            Compression::Zstd if matches!(span.check, Check::Blake3(_)) => {
                ZSTD.with_borrow_mut(|context| zstd::decode_frames(context, compressed, out))
            }
            // What a claim says of a span need not end with a frame, so it is streamed; the window that a frame may ask for
            // is not kept.
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::new();
                fill(|input, out| decoder.step(input, out), compressed, span.skip, out)
            }
        };
        decoded.map_err(|error| self.undecodable(&span, error))?;
        let mut hashing = Hashing::new(&span.check);
        hashing.update(out);
        if hashing.is(&span.check) { Ok(()) } else { Err(self.fault(&span, SpanFault::Digest)) }
    }

    pub(super) fn decode_span_to<W: Write>(
        &self,
        id: SpanId,
        pieces: &mut dyn Iterator<Item = Bytes>,
        out: &mut W,
    ) -> Result<(), Error> {
        let span = self.span(id);
        let Check::Compressed(digest) = span.check else { return self.stream(&span, pieces, out) };
        let (mut hasher, mut length) = (Sha256::new(), 0_u64);
        let mut hashed = pieces.inspect(|piece| {
            hasher.update(piece);
            length += piece.len() as u64;
        });
        let streamed = self.stream(&span, &mut hashed, out);
        // The digest is of all bytes, also of those after the last that decoding needed.
        hashed.for_each(drop);
        if length != span.compressed.end - span.compressed.start {
            return Err(self.fault(&span, SpanFault::Length));
        }
        if hasher.finalize()[..] != digest[..] {
            return Err(self.fault(&span, SpanFault::Digest));
        }
        streamed
    }

    fn stream<W: Write>(&self, span: &Span, pieces: &mut dyn Iterator<Item = Bytes>, out: &mut W) -> Result<(), Error> {
        let mut sink = Sink { skip: span.skip, left: span.length, hashing: Hashing::new(&span.check), out };
        match self.parts.compression {
            Compression::None => {
                for piece in pieces {
                    if !sink.take(&piece)? {
                        return Err(self.fault(span, SpanFault::Length));
                    }
                }
            }
            Compression::Gzip => {
                let mut decoder = gzip::Decoder::new();
                let first = std::iter::from_fn(|| pieces.next()).find(|piece| !piece.is_empty()).unwrap_or_default();
                let rest = self.enter(&mut decoder, span, &first)?;
                let rest = first.slice_ref(rest);
                let mut pieces = std::iter::once(rest).chain(pieces);
                self.drain(span, codec::Decoder::Gzip(decoder), &mut pieces, &mut sink)?;
            }
            Compression::Zstd => self.drain(span, codec::Decoder::Zstd(zstd::Decoder::new()), pieces, &mut sink)?,
        }
        if sink.wants() != 0 || !sink.hashing.is(&span.check) {
            return Err(self.fault(span, SpanFault::Digest));
        }
        Ok(())
    }

    fn check_length(&self, span: &Span, compressed: &[u8]) -> Result<(), Error> {
        let expected = span.compressed.end - span.compressed.start;
        if compressed.len() as u64 == expected { Ok(()) } else { Err(self.fault(span, SpanFault::Length)) }
    }

    /// Puts `decoder` at the beginning of `span` and returns the bytes it is to go on with.
    fn enter<'a>(&self, decoder: &mut gzip::Decoder, span: &Span, compressed: &'a [u8]) -> Result<&'a [u8], Error> {
        let bits = (8 - span.bit) % 8;
        let Some(window) = self.window(span)? else {
            decoder.restart();
            return Ok(compressed);
        };
        // A block that begins inside a byte shares it with the one before.
        let (byte, rest) = match compressed.split_first() {
            Some((first, rest)) if bits != 0 => (*first, rest),
            _ => (0, compressed),
        };
        decoder.resume(bits, byte, &window);
        Ok(rest)
    }

    /// The window that decoding `span` begins with; none if it begins with a member.
    pub(super) fn window(&self, span: &Span) -> Result<Option<Box<[u8; WINDOW]>>, Error> {
        Ok(Some(match span.window {
            FRESH => return Ok(None),
            ZEROS => Box::new([0; WINDOW]),
            number => {
                let section = self.windows.get().ok_or(Error::NoWindows(self.parts.layer))?;
                let (group, digest, slot) = self.parts.group(&self.bytes, section, number);
                windows::read(group, digest, slot).ok_or_else(|| self.damaged("a window is damaged"))?
            }
        }))
    }

    /// Decodes until `sink` has what it wants.
    fn drain<W: Write>(
        &self,
        span: &Span,
        mut decoder: codec::Decoder,
        pieces: &mut dyn Iterator<Item = Bytes>,
        sink: &mut Sink<'_, W>,
    ) -> Result<(), Error> {
        let mut piece = vec![0; PIECE];
        let mut input = Bytes::new();
        while sink.wants() > 0 {
            let room = sink.wants().min(PIECE as u64) as usize;
            let step = decoder.step(&input, &mut piece[..room]).map_err(|error| self.undecodable(span, error))?;
            if !sink.take(&piece[..step.written])? {
                return Err(self.fault(span, SpanFault::Length));
            }
            input.advance(step.read);
            if step.is_idle() {
                input = pieces.next().ok_or_else(|| self.undecodable(span, codec::Error::Truncated))?;
            }
        }
        Ok(())
    }
}

/// Decodes until `out` is full, dropping the first `skip` bytes.
fn fill(
    mut step: impl FnMut(&[u8], &mut [u8]) -> Result<Step, codec::Error>,
    mut input: &[u8],
    mut skip: u64,
    out: &mut [u8],
) -> Result<(), codec::Error> {
    let mut dropped = vec![0; skip.min(PIECE as u64) as usize];
    let mut filled = 0;
    while skip > 0 || filled < out.len() {
        let room = skip.min(PIECE as u64) as usize;
        let done = if skip > 0 { step(input, &mut dropped[..room])? } else { step(input, &mut out[filled..])? };
        if done.is_idle() {
            return Err(codec::Error::Truncated);
        }
        input = &input[done.read..];
        if skip > 0 { skip -= done.written as u64 } else { filled += done.written }
    }
    Ok(())
}
