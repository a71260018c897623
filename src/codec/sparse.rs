//! How much of a deflate window a restart really needs.
//!
//! A restart point inside deflate data carries the 32 KiB before it, but what follows refers to few of those bytes. To
//! find them, the 32 KiB after the point are decoded twice from windows of *markers*: one holds the low byte of each
//! position, the other its high bits, arranged so that the two never agree. Where the outputs differ, the byte came from
//! the window, and the pair names its position; where they agree, it was a literal. References do not reach further than
//! 32 KiB, so nothing beyond can refer to the window. Tracking origins in an inflate of our own would need one pass
//! instead of two, but would have to be an inflate of our own.

use super::inflate::{Inflater, Stopped};
use super::{Error, WINDOW};

/// Bytes that are compared at once.
const WORD: usize = 16;

/// Finds the needed bytes of windows; keeps its buffers for the next.
#[derive(Debug)]
pub struct Tracer {
    inflater: Inflater,
    low: Box<[u8; WINDOW]>,
    high: Box<[u8; WINDOW]>,
    from_low: Box<[u8; WINDOW]>,
    from_high: Box<[u8; WINDOW]>,
}

impl Default for Tracer {
    fn default() -> Self {
        Self::new()
    }
}

impl Tracer {
    /// A tracer with its marker windows.
    pub fn new() -> Self {
        let mut low = Box::new([0; WINDOW]);
        let mut high = Box::new([0; WINDOW]);
        for position in 0..WINDOW {
            low[position] = position as u8;
            // Seven bits of position, and a top bit that always differs from that of the low byte.
            high[position] = (position >> 8) as u8 | !(position as u8) & 0x80;
        }
        Self { inflater: Inflater::new(), low, high, from_low: Box::new([0; WINDOW]), from_high: Box::new([0; WINDOW]) }
    }

    /// Zeroes the bytes of `window` that the deflate data starting at the point (`bits`, `byte`, then `ahead`) does not
    /// refer to.
    ///
    /// If `ahead` ends before 32 KiB were decoded and before the deflate stream does, what is needed is not known and
    /// the window stays as it is.
    pub fn trim<'a>(
        &mut self,
        bits: u8,
        byte: u8,
        ahead: impl Iterator<Item = &'a [u8]> + Clone,
        window: &mut [u8; WINDOW],
    ) -> Result<(), Error> {
        let Self { inflater, low, high, from_low, from_high } = self;
        let Some(length) = decode(inflater, (bits, byte), ahead.clone(), low, from_low)? else { return Ok(()) };
        let Some(_) = decode(inflater, (bits, byte), ahead, high, from_high)? else { return Ok(()) };
        let mut trimmed = [0; WINDOW];
        // Most bytes are literals or copies of such, so whole words are compared first.
        for (low, high) in from_low[..length].chunks(WORD).zip(from_high[..length].chunks(WORD)) {
            if low == high {
                continue;
            }
            for (low, high) in low.iter().zip(high).filter(|(low, high)| low != high) {
                let position = usize::from(*low) | usize::from(high & 0x7f) << 8;
                trimmed[position] = window[position];
            }
        }
        *window = trimmed;
        Ok(())
    }
}

/// Decodes up to 32 KiB; none if the data ran out first.
fn decode<'a>(
    inflater: &mut Inflater,
    (bits, byte): (u8, u8),
    ahead: impl Iterator<Item = &'a [u8]>,
    window: &[u8; WINDOW],
    out: &mut [u8; WINDOW],
) -> Result<Option<usize>, Error> {
    inflater.resume(bits, byte, window);
    let mut filled = 0;
    for piece in ahead {
        let mut rest = piece;
        loop {
            let progress = inflater.inflate(rest, &mut out[filled..], false)?;
            rest = &rest[progress.read..];
            filled += progress.written;
            if filled == WINDOW || progress.stopped == Stopped::End {
                return Ok(Some(filled));
            }
            if rest.is_empty() || progress.read == 0 && progress.written == 0 {
                break;
            }
        }
    }
    Ok(None)
}
