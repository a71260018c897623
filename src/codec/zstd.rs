//! zstd streams (RFC 8878): frames, with skippable frames anywhere among them.
//!
//! libzstd decodes; what it does not tell while streaming is where a frame begins. So the headers are collected here,
//! which also lets dictionaries and oversized windows (D-010) be refused by name before anything is allocated.

use std::fmt;

use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::{Error, Point, Step};
use crate::limits::{ZSTD_WINDOW_BYTES, ZSTD_WINDOW_LOG};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Decodes zstd frames.
pub struct Decoder {
    context: DCtx<'static>,
    state: State,
    /// The header of the frame to come, as far as it is here: a frame header has at most 18 bytes.
    header: [u8; 18],
    have: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Frame,
    /// In a skippable frame with so many bytes left.
    Skip(u32),
}

/// What the first bytes of a frame say.
enum Head {
    /// So many bytes are needed to know more.
    Needs(usize),
    Skippable(u32),
    Frame,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream or of any frame.
    pub fn new() -> Self {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
            .expect("a window log between 10 and 31 is valid");
        Self { context, state: State::Header, header: [0; 18], have: 0 }
    }

    /// See [`super::Decoder::step`].
    pub fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        let mut read = 0;
        loop {
            let rest = &input[read..];
            match self.state {
                State::Header => match head(&self.header[..self.have])? {
                    Head::Needs(length) if rest.is_empty() || length > self.header.len() => {
                        return Ok(Step { read, ..Step::default() });
                    }
                    Head::Needs(length) => {
                        let piece = rest.len().min(length - self.have);
                        self.header[self.have..self.have + piece].copy_from_slice(&rest[..piece]);
                        self.have += piece;
                        read += piece;
                    }
                    Head::Skippable(length) => self.state = State::Skip(length),
                    Head::Frame => {
                        self.begin()?;
                        let point = Some(Point::Fresh { back: self.have as u8 });
                        self.state = State::Frame;
                        return Ok(Step { read, point, ..Step::default() });
                    }
                },
                State::Skip(0) => self.expect_header(),
                State::Skip(left) => {
                    let length = rest.len().min(left as usize);
                    if length == 0 {
                        return Ok(Step { read, ..Step::default() });
                    }
                    read += length;
                    self.state = State::Skip(left - length as u32);
                }
                State::Frame => {
                    let (taken, written, hint) = self.decompress(rest, out)?;
                    read += taken;
                    let ended = hint == 0;
                    if ended {
                        self.expect_header();
                    }
                    return Ok(Step { read, written, point: None, ended });
                }
            }
        }
    }

    /// Checks that the input may end here: between frames.
    pub fn finish(&self) -> Result<(), Error> {
        match self.state {
            State::Header if self.have == 0 => Ok(()),
            State::Skip(0) => Ok(()),
            _ => Err(Error::Truncated),
        }
    }

    fn expect_header(&mut self) {
        self.state = State::Header;
        self.have = 0;
    }

    /// Hands the collected header to libzstd.
    fn begin(&mut self) -> Result<(), Error> {
        let (header, mut fed) = (self.header, 0);
        while fed < self.have {
            match self.decompress(&header[fed..self.have], &mut [])? {
                (0, ..) => return Err(Error::Corrupt("the zstd frame header is invalid")),
                (taken, ..) => fed += taken,
            }
        }
        Ok(())
    }

    /// One call into libzstd: bytes read, bytes written, and 0 if the frame is complete.
    fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize, usize), Error> {
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(out);
        let hint = self.context.decompress_stream(&mut output, &mut input).map_err(invalid)?;
        Ok((input.pos(), output.pos(), hint))
    }
}

/// Decodes `compressed`, which must be whole frames, into exactly `out`.
pub fn decode_frames(context: &mut DCtx<'_>, compressed: &[u8], out: &mut [u8]) -> Result<(), Error> {
    match context.decompress(out, compressed).map_err(invalid)? {
        written if written == out.len() => Ok(()),
        _ => Err(Error::Truncated),
    }
}

fn invalid(code: usize) -> Error {
    Error::Corrupt(zstd_safe::get_error_name(code))
}

/// Reads the header of a frame as far as it is here (RFC 8878, sections 3.1.1.1 and 3.1.2).
fn head(bytes: &[u8]) -> Result<Head, Error> {
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else { return Ok(Head::Needs(4)) };
    if magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18] {
        return Ok(match rest.first_chunk::<4>() {
            Some(length) => Head::Skippable(u32::from_le_bytes(*length)),
            None => Head::Needs(8),
        });
    }
    if *magic != MAGIC {
        return Err(Error::Corrupt("there is something else than a zstd frame"));
    }
    let Some((descriptor, fields)) = rest.split_first() else { return Ok(Head::Needs(5)) };
    let single_segment = descriptor & 1 << 5 != 0;
    let window_length = usize::from(!single_segment);
    let id_length = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_length = [usize::from(single_segment), 2, 4, 8][usize::from(descriptor >> 6)];
    let length = 5 + window_length + id_length + size_length;
    if bytes.len() < length {
        return Ok(Head::Needs(length));
    }
    let (window, fields) = fields.split_at(window_length);
    let (id, size) = fields.split_at(id_length);
    let id = id.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    if id != 0 {
        return Err(Error::Dictionary(id));
    }
    let window = match window.first() {
        Some(byte) => {
            let base = 1_u64 << (10 + (byte >> 3));
            base + base / 8 * u64::from(byte & 7)
        }
        // Two bytes count from 256, but that is no matter for a bound far above.
        None => size.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
    };
    if window > ZSTD_WINDOW_BYTES { Err(Error::Window(window)) } else { Ok(Head::Frame) }
}
