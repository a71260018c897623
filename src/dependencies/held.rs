//! The bytes of a passing file that are kept until its end: its beginning, and few other parts.

use std::io;
use std::ops::Range;

use crate::elf::ReadAt;

/// So many bytes of a file decide what else of it is kept: with the program headers of every real program.
pub(super) const START: u64 = 4096;

/// Bytes of one file.
#[derive(Debug)]
pub(super) struct Held {
    size: u64,
    /// Bytes that have come.
    seen: u64,
    head: Vec<u8>,
    /// Longest `head`.
    most: u64,
    /// Others, with their places.
    parts: Vec<(Range<u64>, Vec<u8>)>,
}

impl Held {
    /// Of a file of `size` bytes the first `most`.
    pub(super) fn new(size: u64, most: u64) -> Self {
        Self { size, seen: 0, head: Vec::new(), most, parts: Vec::new() }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes have come.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// The start of the file, if anything is held.
    pub(super) fn start(&self) -> &[u8] {
        &self.head[..self.head.len().min(START as usize)]
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.head.extend_from_slice(part_of(bytes, self.seen, 0..self.most));
        for (place, part) in &mut self.parts {
            part.extend_from_slice(part_of(bytes, self.seen, place.clone()));
        }
        self.seen += bytes.len() as u64;
    }

    /// Lets `range` be held as well, as far as it has not passed by and is not held anyway.
    pub(super) fn hold_also(&mut self, range: Range<u64>) {
        let place = range.start.max(self.most).max(self.seen)..range.end;
        if !place.is_empty() {
            self.parts.push((place, Vec::new()));
        }
    }

    pub(super) fn hold_nothing(&mut self) {
        (self.head, self.most) = (Vec::new(), 0);
    }

    /// All of the file, if it is held.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        (self.head.len() as u64 == self.size).then_some(&self.head)
    }

    /// Part of the beginning, if it is held.
    pub(super) fn get(&self, range: Range<u64>) -> Option<&[u8]> {
        self.head.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }
}

/// What of `bytes`, which begin at `at`, lies in `range`.
fn part_of(bytes: &[u8], at: u64, range: Range<u64>) -> &[u8] {
    let within = |place: u64| usize::try_from(place.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
    let (start, end) = (within(range.start), within(range.end));
    &bytes[start.min(end)..end]
}

impl ReadAt for Held {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.size {
            return Ok(0);
        }
        let parts = self.parts.iter().map(|(place, part)| (place.start, part));
        let rest = std::iter::once((0, &self.head)).chain(parts).find_map(|(start, bytes)| {
            let at = usize::try_from(offset.checked_sub(start)?).ok()?;
            bytes.get(at..).filter(|rest| !rest.is_empty())
        });
        // What is not held is missed like what is behind the end.
        let Some(rest) = rest else { return Ok(0) };
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}
