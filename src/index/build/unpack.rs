//! The stage that decompresses: pieces of the blob become chunks of the stream, with every place where decoding can start.

use std::sync::mpsc::{Receiver, SyncSender};

use bytes::{Bytes, BytesMut};

use super::Stop;
use super::chunk::{CHUNK, Chunk, Place, Pool};
use crate::codec::{self, Decoder, Format, Point, SNIFF};
use crate::limits::{DECODED_FREE_BYTES, DECODED_RATIO};

/// Distance of the places in a plain stream, which has none of its own.
const GRID: u64 = 512 << 10;

/// What the stage learned.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) format: Format,
    /// Length of the uncompressed stream.
    pub(super) length: u64,
    /// Where the compressed bytes end that the last decoded byte needs.
    pub(super) payload_end: u64,
}

/// Runs the stage: every chunk goes to `hashed` and to `chunks`.
pub(super) fn run(
    pieces: &Receiver<Bytes>,
    hashed: &SyncSender<Bytes>,
    chunks: &SyncSender<Chunk>,
) -> Result<Unpacked, Stop> {
    let start = first_bytes(pieces);
    let format = codec::sniff(&start)?;
    let pool = Pool::default();
    let mut unpacker = Unpacker {
        decoder: Decoder::new(format),
        plain: format == Format::Plain,
        read: 0,
        payload_end: 0,
        length: 0,
        buffer: pool.take(),
        filled: 0,
        places: Vec::new(),
        input: Vec::new(),
        pool,
        hashed,
        chunks,
    };
    unpacker.piece(&start)?;
    for piece in pieces {
        unpacker.piece(&piece)?;
    }
    // A blob without any bytes is an empty layer; otherwise a stream must be complete.
    if unpacker.read > 0 {
        unpacker.decoder.finish()?;
    }
    unpacker.emit()?;
    Ok(Unpacked { format, length: unpacker.length, payload_end: unpacker.payload_end })
}

/// Gathers pieces until the format can be told.
fn first_bytes(pieces: &Receiver<Bytes>) -> Bytes {
    let mut start = Bytes::new();
    for piece in pieces {
        if start.is_empty() {
            start = piece;
        } else {
            let mut joined = BytesMut::from(start);
            joined.extend_from_slice(&piece);
            start = joined.freeze();
        }
        if start.len() >= SNIFF {
            break;
        }
    }
    start
}

struct Unpacker<'a> {
    decoder: Decoder,
    plain: bool,
    /// Compressed bytes read.
    read: u64,
    payload_end: u64,
    /// Uncompressed bytes made, those in `buffer` included.
    length: u64,
    buffer: Box<[u8]>,
    filled: usize,
    places: Vec<Place>,
    input: Vec<(u64, Bytes)>,
    pool: Pool,
    hashed: &'a SyncSender<Bytes>,
    chunks: &'a SyncSender<Chunk>,
}

impl Unpacker<'_> {
    fn piece(&mut self, piece: &Bytes) -> Result<(), Stop> {
        let mut at = 0;
        // Where the part of the piece begins that the current chunk came from.
        let mut shown = 0;
        loop {
            if self.filled == CHUNK {
                self.show(piece, shown, at);
                shown = at;
                self.emit()?;
            }
            if self.plain && self.length.is_multiple_of(GRID) && at < piece.len() && !self.is_marked() {
                self.places.push(Place { offset: self.length, input: self.read, point: Point::Fresh { back: 0 } });
            }
            let step = self.decoder.step(&piece[at..], &mut self.buffer[self.filled..])?;
            if step.is_idle() {
                break;
            }
            at += step.read;
            self.read += step.read as u64;
            self.filled += step.written;
            self.length += step.written as u64;
            if step.written > 0 || step.ended {
                self.payload_end = self.read;
            }
            if let Some(point) = step.point {
                let back = if let Point::Fresh { back } = point { u64::from(back) } else { 0 };
                self.places.push(Place { offset: self.length, input: self.read - back, point });
            }
        }
        if at < piece.len() {
            return Err(codec::Error::Corrupt("the decoder stands still").into());
        }
        self.show(piece, shown, at);
        Ok(())
    }

    /// True if the current place in a plain stream is already among the places.
    fn is_marked(&self) -> bool {
        self.places.last().is_some_and(|place| place.offset == self.length)
    }

    /// Remembers the part of `piece` that the current chunk came from.
    fn show(&mut self, piece: &Bytes, from: usize, to: usize) {
        if from < to && !self.plain {
            self.input.push((self.read - (to - from) as u64, piece.slice(from..to)));
        }
    }

    /// Sends the current chunk and begins the next.
    fn emit(&mut self) -> Result<(), Stop> {
        if self.length > DECODED_FREE_BYTES && self.length / DECODED_RATIO > self.read {
            return Err(Stop::Limit("it decompresses to too many times its size"));
        }
        if self.filled == 0 {
            return Ok(());
        }
        let buffer = std::mem::replace(&mut self.buffer, self.pool.take());
        let bytes = self.pool.share(buffer, self.filled);
        let chunk = Chunk {
            start: self.length - self.filled as u64,
            bytes: bytes.clone(),
            places: std::mem::take(&mut self.places),
            input: std::mem::take(&mut self.input),
        };
        self.filled = 0;
        self.hashed.send(bytes).map_err(|_| Stop::Downstream)?;
        self.chunks.send(chunk).map_err(|_| Stop::Downstream)
    }
}
