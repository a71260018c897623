//! What travels between the stages: chunks of the uncompressed stream, in buffers that are used again.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::codec::Point;

/// Length of every chunk but the last. Large enough that passing it on costs nothing, small enough to stay in the
/// processor's cache from stage to stage.
pub(super) const CHUNK: usize = 256 << 10;

/// Consecutive bytes of the uncompressed stream.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Where they begin in the stream.
    pub(super) start: u64,
    pub(super) bytes: Bytes,
    /// Places in them where decoding can start, in order.
    pub(super) places: Vec<Place>,
    /// The compressed bytes they came from, with their offsets in the blob.
    pub(super) input: Vec<(u64, Bytes)>,
}

/// A place where decoding can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset in the uncompressed stream.
    pub(super) offset: u64,
    /// Offset in the blob of the first byte that is wholly behind the place.
    pub(super) input: u64,
    pub(super) point: Point,
}

impl Place {
    /// Offset in the blob in bits.
    pub(super) fn bit(&self) -> u64 {
        match self.point {
            Point::Fresh { .. } => self.input * 8,
            Point::Block { bits, .. } => self.input * 8 - u64::from(bits),
        }
    }

    /// True if decoding needs no history.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.point, Point::Fresh { .. })
    }
}

/// Buffers that return when the last chunk that shows them is dropped: zeroing new ones would cost a twentieth of
/// inflating into them.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    free: Arc<Mutex<Vec<Box<[u8]>>>>,
}

#[derive(Debug)]
struct Lent {
    buffer: Box<[u8]>,
    home: Pool,
}

impl Pool {
    /// A buffer of [`CHUNK`] bytes with anything in it.
    pub(super) fn take(&self) -> Box<[u8]> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }

    /// The first `length` bytes of `buffer`, shared; it returns here at the end.
    pub(super) fn share(&self, buffer: Box<[u8]>, length: usize) -> Bytes {
        Bytes::from_owner(Lent { buffer, home: self.clone() }).slice(..length)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}
