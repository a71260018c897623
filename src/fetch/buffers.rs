//! Memory for decoded spans, used again.
//!
//! A span decodes to half a megabyte and more. Taken from the system each time, such a buffer costs a page fault for every
//! 4 KiB of it, a tenth of the time that its decoding takes. Buffers come back here when the last reader of their span lets
//! go, and are given to the next one; beyond a bound, and when nothing is read, they go back to the system.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::index::{self, LayerIndex, SpanId};

/// Most bytes that wait for use.
const KEPT: usize = 16 << 20;

/// Lengths are rounded up to this, so that buffers fit more spans than the one they were made for.
const STEP: usize = 128 << 10;

/// Buffers that nobody uses. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers {
    /// Protects the list; held for a few moves.
    free: Arc<Mutex<Free>>,
}

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer in use; what it holds before it is written is arbitrary.
#[derive(Debug)]
pub(super) struct Buffer {
    /// At least as long as wanted, all of it initialised.
    bytes: Vec<u8>,
    length: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer of `length` bytes.
    pub(super) fn take(&self, length: usize) -> Buffer {
        let known = {
            let mut free = self.lock();
            let fitting = free.buffers.iter().rposition(|buffer| buffer.len() >= length);
            fitting.map(|place| {
                let buffer = free.buffers.swap_remove(place);
                free.bytes -= buffer.len();
                buffer
            })
        };
        let bytes = known.unwrap_or_else(|| vec![0; length.next_multiple_of(STEP)]);
        Buffer { bytes, length, home: self.clone() }
    }

    /// Decodes and verifies a span, as [`LayerIndex::decode`] does.
    pub(super) fn decode(&self, index: &LayerIndex, span: SpanId, compressed: &[u8]) -> Result<Bytes, index::Error> {
        let range = index.decoded(span);
        let mut buffer = self.take(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
        index.decode_into(span, compressed, buffer.bytes_mut())?;
        Ok(buffer.freeze())
    }

    /// Gives everything that waits back to the system.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut *self.lock());
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// The bytes to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    /// The bytes to be shared; the buffer comes back when the last share is dropped.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = self.home.lock();
        if free.bytes + bytes.len() <= KEPT {
            free.bytes += bytes.len();
            free.buffers.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_share_is_gone() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1000);
        first.bytes_mut().fill(7);
        let place = first.as_ref().as_ptr();
        let shared = first.freeze();
        let part = shared.slice(10..20);
        drop(shared);
        assert_ne!(buffers.take(1000).as_ref().as_ptr(), place, "it is still read");
        assert_eq!(part, [7; 10][..]);
        buffers.clear();
        drop(part);
        let again = buffers.take(STEP);
        assert_eq!((again.as_ref().as_ptr(), again.as_ref().len()), (place, STEP));
    }

    #[test]
    fn what_waits_is_bounded_and_can_be_given_back() {
        let buffers = Buffers::default();
        let many: Vec<_> = (0..100).map(|_| buffers.take(1 << 20)).collect();
        drop(many);
        assert_eq!(buffers.lock().bytes, KEPT);
        buffers.clear();
        assert_eq!(buffers.lock().bytes, 0);
    }
}
