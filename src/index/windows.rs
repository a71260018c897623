//! Sparse deflate windows in few bytes.
//!
//! A window is 32 KiB of which few bytes matter ([`crate::codec::sparse`]); the rest is zero. It is written as *runs*: how
//! many zeros, how many bytes, and the bytes. Several windows share one zstd frame, a *group*, because neighbours
//! hold alike text; a span decodes one group to get its window, which takes a fraction of what inflating the span does.
//! [`WindowWriter`] makes groups, [`read`] takes a window out of one.
//!
//! ```text
//! group = zstd( window* )
//! window = varint length, of what follows; then run*
//! run   = varint zeros, varint count, count bytes         zeros after the last run are not written
//! ```

use super::varint::{put, put_bytes, take, take_bytes, take_slice};
use crate::codec::WINDOW;

/// Windows in one group.
pub(super) const GROUP: u32 = 16;

/// Zeros between two runs that are cheaper written out than as a new run.
const BRIDGE: usize = 2;

const LEVEL: i32 = 9;

/// Longest window as runs: nothing is saved if every third byte is zero, and a run costs at most six bytes.
const MAX_RUNS: usize = 3 * WINDOW;

/// Longest group when decoded.
const MAX_GROUP: usize = GROUP as usize * (MAX_RUNS + 4);

/// A closed group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    /// Where it ends in the window section; it begins where the one before ends.
    pub(super) end: u64,
    /// BLAKE3 of its bytes.
    pub(super) digest: [u8; 32],
}

/// Writes windows as they come.
#[derive(Debug, Default)]
pub(super) struct WindowWriter {
    groups: Vec<Group>,
    sealed: Vec<u8>,
    open: Vec<u8>,
    in_open: u32,
    count: u32,
}

impl WindowWriter {
    /// Keeps `window` and returns its number; none if it is all zeros and need not be kept.
    pub(super) fn push(&mut self, window: &[u8; WINDOW]) -> Option<u32> {
        let runs = runs(window);
        if runs.is_empty() {
            return None;
        }
        put_bytes(&mut self.open, &runs);
        self.in_open += 1;
        self.count += 1;
        if self.in_open == GROUP {
            self.close();
        }
        Some(self.count - 1)
    }

    /// About how many bytes of index the windows kept so far take.
    pub(super) fn estimate(&self) -> u64 {
        (self.sealed.len() + self.open.len() * 3 / 4) as u64
    }

    fn close(&mut self) {
        let frame = zstd::bulk::compress(&self.open, LEVEL).expect("compressing to memory cannot fail");
        self.sealed.extend_from_slice(&frame);
        self.groups.push(Group { end: self.sealed.len() as u64, digest: *blake3::hash(&frame).as_bytes() });
        self.open.clear();
        self.in_open = 0;
    }

    /// The groups and the bytes of the window section.
    pub(super) fn finish(mut self) -> (Vec<Group>, Vec<u8>) {
        if self.in_open != 0 {
            self.close();
        }
        (self.groups, self.sealed)
    }
}

fn runs(window: &[u8; WINDOW]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(zeros) = leading_zeros(&window[at..]) {
        let start = at + zeros;
        let mut end = start;
        while let Some(gap) = window[end..].iter().take(BRIDGE + 1).position(|byte| *byte != 0) {
            end += gap + 1;
        }
        put(&mut out, zeros as u64);
        put_bytes(&mut out, &window[start..end]);
        at = end;
    }
    out
}

/// How many zeros come before the first other byte; none if nothing else comes.
fn leading_zeros(bytes: &[u8]) -> Option<usize> {
    const WORD: usize = 16;
    let skipped = WORD * bytes.chunks_exact(WORD).take_while(|word| *word == [0; WORD]).count();
    let more = bytes[skipped..].iter().position(|byte| *byte != 0)?;
    Some(skipped + more)
}

/// Takes window number `slot` out of a group's bytes; none if they are damaged.
pub(super) fn read(group: &[u8], digest: &[u8; 32], slot: u32) -> Option<Box<[u8; WINDOW]>> {
    if blake3::hash(group) != *digest {
        return None;
    }
    let decoded = zstd::bulk::decompress(group, MAX_GROUP).ok()?;
    let mut rest = &decoded[..];
    for _ in 0..slot {
        take_bytes(&mut rest)?;
    }
    let mut runs = take_bytes(&mut rest)?;
    let mut window = Box::new([0; WINDOW]);
    let mut at = 0_usize;
    while !runs.is_empty() {
        at = at.checked_add(usize::try_from(take(&mut runs)?).ok()?)?;
        let count = take(&mut runs)?;
        let bytes = take_slice(&mut runs, count)?;
        let end = at.checked_add(bytes.len())?;
        window.get_mut(at..end)?.copy_from_slice(bytes);
        at = end;
    }
    Some(window)
}
