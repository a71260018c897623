//! Compressed streams: bytes to bytes, with the places where decoding can start again.
//!
//! A layer arrives in pieces of any size and may be gzip, zstd or nothing at all, whatever its label says (A-184 to
//! A [`Decoder`] is found by looking at the first bytes ([`sniff`]) and is then stepped: each [`Step`] says
//! how much it read and wrote, and stops at every [`Point`]. Which points are kept is not decided here; the index does
//! that. `inflate` is the only file that talks to zlib, `gzip` adds members to it, `zstd` walks frames, and `sparse`
//! finds out how much of a deflate window a restart really needs.

pub mod gzip;
mod inflate;
pub mod sparse;
pub mod zstd;

#[cfg(test)]
mod tests;

/// Bytes of history that deflate data may refer to (RFC 1951, section 2).
pub const WINDOW: usize = 32 << 10;

/// Why a stream cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stream ends in the middle.
    #[error("the compressed stream is cut short")]
    Truncated,
    /// The data breaks the rules of its format.
    #[error("{0}")]
    Corrupt(&'static str),
    /// A checksum inside the stream does not fit.
    #[error("the stream's own {0} does not match its data")]
    Checksum(&'static str),
    /// Something other than padding follows the last gzip member.
    #[error("there is garbage after the last gzip member")]
    TrailingGarbage,
    /// A zstd frame wants a dictionary, which no image carries.
    #[error("a zstd frame needs dictionary {0}, which layers cannot carry")]
    Dictionary(u32),
    /// A zstd frame wants more history than is allowed (D-010).
    #[error("a zstd frame needs a window of {0} bytes, more than the {max} allowed", max = crate::limits::ZSTD_WINDOW_BYTES)]
    Window(u64),
    /// The format is one that layers may not have.
    #[error("{0} is not a compression that layers may have")]
    Unsupported(&'static str),
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Plain,
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// Zstandard frames, skippable ones among them (RFC 8878).
    Zstd,
}

/// A place in the stream where decoding can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A gzip member or zstd frame begins, or a plain stream goes on: no history is needed. It began `back` bytes before
    /// the end of what the step read.
    Fresh {
        /// Bytes already read of what begins here.
        back: u8,
    },
    /// A deflate block begins inside `byte`, the last byte read, of which the upper `bits` bits are its first; its history
    /// is the last 32 KiB written.
    Block {
        /// 0 to 7.
        bits: u8,
        /// The last byte read.
        byte: u8,
    },
}

/// What one step of a decoder did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// Bytes taken from the input.
    pub read: usize,
    /// Bytes put into the output.
    pub written: usize,
    /// The point reached after that, if any.
    pub point: Option<Point>,
    /// A member's data or a frame just ended: if no other begins, nothing that follows is needed.
    pub ended: bool,
}

impl Step {
    /// True if nothing happened: the decoder wants more input or more room.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// Decodes a stream that arrives in pieces.
#[derive(Debug)]
pub enum Decoder {
    /// Copies.
    Plain,
    /// Inflates gzip members.
    Gzip(gzip::Decoder),
    /// Decodes zstd frames.
    Zstd(zstd::Decoder),
}

impl Decoder {
    /// A decoder for a stream of `format`, at its beginning. A plain stream has no points of its own.
    pub fn new(format: Format) -> Self {
        match format {
            Format::Plain => Self::Plain,
            Format::Gzip => Self::Gzip(gzip::Decoder::new()),
            Format::Zstd => Self::Zstd(zstd::Decoder::new()),
        }
    }

    /// Decodes from `input` into `out` until a point is reached, the input is used up or the output is full.
    pub fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        match self {
            Self::Plain => {
                let length = input.len().min(out.len());
                out[..length].copy_from_slice(&input[..length]);
                Ok(Step { read: length, written: length, ..Step::default() })
            }
            Self::Gzip(decoder) => decoder.step(input, out),
            Self::Zstd(decoder) => decoder.step(input, out),
        }
    }

    /// Checks that the input may end here.
    pub fn finish(&self) -> Result<(), Error> {
        match self {
            Self::Plain => Ok(()),
            Self::Gzip(decoder) => decoder.finish(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

/// Bytes that [`sniff`] wants to see, if the stream has so many.
pub const SNIFF: usize = 10;

/// Tells the format of a stream from its first [`SNIFF`] bytes, or from all of it if it is shorter.
///
/// What has no known magic is plain: the tar reader will say what is wrong with it.
pub fn sniff(start: &[u8]) -> Result<Format, Error> {
    // A tar stream begins with a file name, so short magics that are text are looked at further.
    let bzip2 = start.starts_with(b"BZh") && start.get(4..10) == Some(b"1AY&SY");
    match start {
        [0x1f, 0x8b, ..] => Ok(Format::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Format::Zstd),
        [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50 => Ok(Format::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(Error::Unsupported("xz")),
        [0x04, 0x22, 0x4d, 0x18, ..] => Err(Error::Unsupported("lz4")),
        _ if bzip2 => Err(Error::Unsupported("bzip2")),
        _ => Ok(Format::Plain),
    }
}
