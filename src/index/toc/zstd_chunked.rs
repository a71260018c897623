//! What frames the TOC of a zstd:chunked layer: skippable frames at the blob's end, and the annotation or the footer that
//! says where in them it is (containers/storage, pkg/chunked/internal/minimal; stargz-snapshotter, estargz/zstdchunked).
//!
//! The two writers have footers of their own: another magic number, and three more numbers for what containers/storage keeps
//! beside the TOC. Both write the position as an annotation too, which is what readers use; a footer is only read where the
//! annotation is missing, as some were written wrong.

use super::{Error, Format, Place};
use crate::codec::{Decoder, Format as Stream};
use crate::limits::TOC_BYTES;

/// The longer of the two footers.
pub(super) const FOOTER_BYTES: usize = 64;

/// What stargz-snapshotter, and once containers/storage, ends a blob with; 40 bytes.
const STARGZ: [u8; 8] = *b"GnUlInUx";

/// What containers/storage ends a blob with; 64 bytes.
const STORAGE: [u8; 8] = *b"GNUlInUx";

/// Header of a skippable frame, before what an offset points to.
const FRAME_HEADER: u64 = 8;

/// The only type of TOC there is.
const TYPE: u64 = 1;

/// Where the TOC is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    offset: u64,
    compressed: u64,
    length: u64,
}

impl Position {
    /// Reads `OFFSET:COMPRESSED:LENGTH:TYPE`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(':').map(|number| {
            // Rust takes a sign, these annotations have none.
            number.parse::<u64>().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))
        });
        let mut next = || numbers.next().flatten();
        let (position, kind) = (Self { offset: next()?, compressed: next()?, length: next()? }, next()?);
        (kind == TYPE && numbers.next().is_none()).then_some(position)
    }

    /// The place in a blob of `size` bytes, unless the TOC cannot be there.
    pub(super) fn place(&self, size: u64) -> Option<Place> {
        let payload_end = self.offset.checked_sub(FRAME_HEADER)?;
        let end = self.offset.checked_add(self.compressed).filter(|end| *end <= size)?;
        let bounded = (1..=TOC_BYTES).contains(&self.compressed) && (1..=TOC_BYTES).contains(&self.length);
        let bytes = self.offset..end;
        bounded.then_some(Place { format: Format::ZstdChunked, bytes, length: Some(self.length), payload_end })
    }
}

/// Reads the footer at the end of `tail`, the last bytes of a blob of `size` bytes.
pub(super) fn footer(tail: &[u8], size: u64) -> Result<Option<Place>, Error> {
    let Some((rest, magic)) = tail.split_last_chunk::<8>() else { return Ok(None) };
    let length = match *magic {
        STARGZ => 40,
        STORAGE => FOOTER_BYTES,
        _ => return Ok(None),
    };
    let numbers = rest.len().checked_sub(length - magic.len()).map(|start| &rest[start..]).ok_or(Error::Place)?;
    let number = |at: usize| {
        let bytes = numbers.get(at * 8..).and_then(|bytes| bytes.first_chunk::<8>());
        bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Error::Place)
    };
    let position = Position { offset: number(0)?, compressed: number(1)?, length: number(2)? };
    if number(3)? != TYPE {
        return Err(Error::Place);
    }
    position.place(size).map(Some).ok_or(Error::Place)
}

/// Decompresses the document, which must have the length that it is said to have.
pub(super) fn document(compressed: &[u8], length: Option<u64>) -> Result<Vec<u8>, Error> {
    let bound = length.unwrap_or(TOC_BYTES).min(TOC_BYTES);
    let mut decoder = Decoder::new(Stream::Zstd);
    let mut document = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut rest = compressed;
    loop {
        let step = decoder.step(rest, &mut buffer).map_err(|_| Error::Compressed)?;
        if step.is_idle() {
            break;
        }
        rest = &rest[step.read..];
        if (document.len() + step.written) as u64 > bound {
            return Err(Error::Length);
        }
        document.extend_from_slice(&buffer[..step.written]);
    }
    decoder.finish().map_err(|_| Error::Compressed)?;
    match length {
        Some(length) if length != document.len() as u64 => Err(Error::Length),
        _ => Ok(document),
    }
}
