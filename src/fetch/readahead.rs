//! Which spans a reader will probably want next, told from those it has read.
//!
//! A span costs a round trip to be waited for, and its bytes if it was fetched for nothing. Measured on the start of a Python
//! program (173 of 1,900 spans, in no order), what pays is: the rest of a file that was begun, unless it is very long; spans
//! between two that were read; and the small files of the same directory ([`Fetcher::read`](super::Fetcher::read) is
//! told of them by the file system). A blind "next few spans" brings half of its bytes for nothing.
//!
//! A reader that walks in tar order (`tar`, `cp -a`, a scanner) is another thing. It is recognised by its steps, and followed by
//! a window that doubles until it covers the line, as TCP's does; a step elsewhere begins anew without one.
//!
//! Where a profile says which parts of files will be read, nothing else is fetched ahead, for walks neither, until a reader has
//! to wait for a span that nobody asked for: a walk that leaves what the profile knows, or too many spans for the profile to
//! be of this program.
//!
//! [`ReadAhead`] is the memory of one layer. It decides in span numbers and knows neither bytes nor the network.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Spans between two that were read are fetched if there are at most this many.
const HOLE: u32 = 3;

/// Walks followed at once in one layer: `tar` is one, a program with many threads is none.
const WALKS: usize = 8;

/// Bytes in a row, within one file, that make a walk.
const FILE_RUN: u64 = 1 << 20;

/// Files one after another, each read from its beginning, that make a walk across files.
const LAYER_RUN: u32 = 8;

/// Spans a reader may have to wait for until a profile counts as one of another program.
const FORETOLD: u32 = 24;

/// What may lie between two files of a walk: headers, and files that the merged tree does not show.
const GAP: u64 = 64 << 10;

/// How far back a read may begin and still belong to a walk: the kernel sends its own read-ahead out of order.
const BACK: u64 = 256 << 10;

/// How exactly it is known what will be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foretold {
    /// Parts of files, by a profile.
    Parts,
    /// Files, by what names them.
    Files,
}

/// What one layer's readers did.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Protects the memory; held for a few comparisons only.
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Waits for unforetold spans until guessing begins; 0 if nothing is foretold.
    foretold: u32,
    /// Files are foretold, not which parts of them.
    whole_files: bool,
    /// One bit a span: it was read.
    read: Vec<u64>,
    /// The most recently used first.
    walks: Vec<Walk>,
}

/// A reader that takes bytes in order.
#[derive(Debug, Clone)]
struct Walk {
    /// Where it has come to in the layer.
    at: u64,
    /// Bytes it has passed.
    run: u64,
    /// Files it has begun at their beginning.
    files: u32,
    /// Spans to be fetched before it.
    window: u32,
    /// The span after the last one fetched for it.
    ahead: u32,
    /// It had to wait for an unforetold span.
    is_unforetold: bool,
}

/// What should be fetched because of a read.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Ranges of span numbers.
    pub(super) spans: Vec<Range<u32>>,
    /// Whether more may be guessed.
    pub(super) guesses: bool,
}

/// One read, in places of the layer's uncompressed stream and in span numbers.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// What is read.
    pub(super) range: Range<u64>,
    /// Where the file begins.
    pub(super) file_start: u64,
    /// The spans that the read needs.
    pub(super) needed: Range<u32>,
    /// The spans of the file it reads from.
    pub(super) file: Range<u32>,
    /// The rest of the file is worth fetching.
    pub(super) whole_file: bool,
    /// Spans of the layer.
    pub(super) count: u32,
    /// The widest window.
    pub(super) widest: u32,
}

impl ReadAhead {
    /// Takes note of a read; the spans that should be fetched for it besides those it needs, some of which may be here.
    ///
    /// `unforetold` says that the read has to wait for a span that nobody has asked for yet.
    pub(super) fn note(&self, step: &Step, unforetold: bool) -> Ahead {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spans = Vec::new();
        let is_new = step.needed.clone().any(|span| !memory.was_read(span));
        memory.foretold = memory.foretold.saturating_sub(u32::from(is_new && unforetold));
        let guesses = memory.foretold == 0;
        if is_new {
            if guesses || memory.whole_files {
                spans.extend(step.whole_file.then(|| step.file.clone()));
            }
            if guesses {
                spans.extend(memory.holes(&step.needed));
            }
            memory.mark(&step.needed);
        }
        spans.extend(memory.walk(step, unforetold));
        spans.retain(|range| !range.is_empty());
        Ahead { spans, guesses }
    }

    /// Something foretells what will be read.
    pub(super) fn foretell(&self, what: Foretold) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        (memory.foretold, memory.whole_files) = (FORETOLD, what == Foretold::Files);
    }
}

impl Memory {
    fn was_read(&self, span: u32) -> bool {
        self.read.get(span as usize / 64).is_some_and(|word| word >> (span % 64) & 1 == 1)
    }

    fn mark(&mut self, spans: &Range<u32>) {
        for span in spans.clone() {
            let word = span as usize / 64;
            if word >= self.read.len() {
                self.read.resize(word + 1, 0);
            }
            self.read[word] |= 1 << (span % 64);
        }
    }

    /// The spans between `needed` and the nearest ones read on both sides, if they are near.
    fn holes(&self, needed: &Range<u32>) -> [Range<u32>; 2] {
        let before = (1..=HOLE + 1).filter_map(|far| needed.start.checked_sub(far)).find(|span| self.was_read(*span));
        let after = (0..=HOLE).filter_map(|far| needed.end.checked_add(far)).find(|span| self.was_read(*span));
        [before.map_or(0..0, |span| span + 1..needed.start), after.map_or(0..0, |span| needed.end..span)]
    }

    /// Follows the walk that `step` belongs to, or begins one.
    fn walk(&mut self, step: &Step, unforetold: bool) -> Option<Range<u32>> {
        let start = step.range.start;
        let belongs = |walk: &Walk| start.saturating_add(BACK) >= walk.at && start <= walk.at.saturating_add(GAP);
        let mut walk = match self.walks.iter().position(belongs) {
            Some(place) => self.walks.remove(place),
            None => {
                self.walks.truncate(WALKS - 1);
                Walk { at: start, run: 0, files: 0, window: 0, ahead: step.needed.start, is_unforetold: false }
            }
        };
        walk.is_unforetold |= unforetold;
        let parts_are_foretold = self.foretold > 0 && !self.whole_files;
        let is_led = walk.step(step) && (walk.is_unforetold || !parts_are_foretold);
        let fetched = if is_led { walk.refill(step) } else { None };
        self.walks.insert(0, walk);
        fetched
    }
}

impl Walk {
    /// Goes on to the end of `step`. True if it is there for the first time, and has come far enough to be followed.
    fn step(&mut self, step: &Step) -> bool {
        if step.range.end <= self.at {
            return false;
        }
        self.files += u32::from(step.range.start == step.file_start);
        self.run += step.range.end - self.at;
        self.at = step.range.end;
        self.is_across() || self.run >= FILE_RUN
    }

    fn is_across(&self) -> bool {
        self.files >= LAYER_RUN
    }

    /// The spans to be fetched next, if it is time: a long window is refilled in pieces, not span by span.
    fn refill(&mut self, step: &Step) -> Option<Range<u32>> {
        let next = step.needed.end;
        let limit = if self.is_across() { step.count } else { step.file.end };
        let start = self.ahead.max(next);
        if start - next > self.window / 2 {
            return None;
        }
        self.window = self.window.saturating_mul(2).clamp(1, step.widest.max(1));
        let end = next.saturating_add(self.window).min(limit);
        if start >= end {
            return None;
        }
        self.ahead = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Length of a span in these tests.
    const SPAN: u64 = 512 << 10;

    fn step(needed: Range<u32>, file: Range<u32>) -> Step {
        Step {
            range: u64::from(needed.start) * SPAN..u64::from(needed.end) * SPAN,
            file_start: u64::from(file.start) * SPAN,
            needed,
            file,
            whole_file: false,
            count: 1000,
            widest: 16,
        }
    }

    /// A read of a whole file of `length` bytes.
    fn small(start: u64, length: u64) -> Step {
        let spans = (start / SPAN) as u32..(start + length).div_ceil(SPAN) as u32;
        Step { range: start..start + length, file_start: start, ..step(spans.clone(), spans) }
    }

    fn brought(ahead: &ReadAhead, steps: impl IntoIterator<Item = Step>) -> Vec<u32> {
        let mut spans: Vec<u32> = steps.into_iter().flat_map(|step| ahead.note(&step, true).spans).flatten().collect();
        spans.sort_unstable();
        spans.dedup();
        spans
    }

    #[test]
    fn reads_here_and_there_bring_nothing() {
        let ahead = ReadAhead::default();
        let steps = (0..100).map(|n| (n * 35) % 1000).map(|at| step(at..at + 1, at..at + 1));
        assert_eq!(brought(&ahead, steps), Vec::<u32>::new());
    }

    #[test]
    fn reading_the_same_again_is_no_walk() {
        let ahead = ReadAhead::default();
        let part = |at: u64| Step { range: at..at + 4096, ..step(200..201, 100..300) };
        let steps = (0..1000).map(|n| part(200 * SPAN + (n * 4096) % (SPAN / 2)));
        assert_eq!(brought(&ahead, steps), Vec::<u32>::new());
    }

    #[test]
    fn spans_between_two_that_were_read_are_brought_if_they_are_few() {
        let ahead = ReadAhead::default();
        assert_eq!(brought(&ahead, [step(10..11, 10..11), step(13..14, 13..14)]), [11, 12]);
        assert_eq!(brought(&ahead, [step(7..8, 7..8)]), [8, 9]);
        assert_eq!(brought(&ahead, [step(18..19, 18..19)]), Vec::<u32>::new());
    }

    #[test]
    fn the_rest_of_a_file_is_brought_once() {
        let ahead = ReadAhead::default();
        let first = Step { whole_file: true, ..step(20..21, 20..30) };
        assert_eq!(ahead.note(&first, true).spans.as_slice(), std::slice::from_ref(&(20..30)));
        assert!(ahead.note(&first, true).spans.is_empty());
    }

    #[test]
    fn nothing_is_guessed_while_a_profile_is_right() {
        let ahead = ReadAhead::default();
        ahead.foretell(Foretold::Parts);
        let file = |at: u32| Step { whole_file: true, ..step(at..at + 1, at..at + 9) };
        assert!((0..50).all(|n| ahead.note(&file(n * 10), false).spans.is_empty()));
        let waits: Vec<_> = (50..50 + 2 * FORETOLD).map(|n| ahead.note(&file(n * 10), true).guesses).collect();
        assert_eq!(waits.iter().filter(|guesses| !**guesses).count() as u32, FORETOLD - 1);
    }

    #[test]
    fn a_walk_that_a_profile_knows_is_followed_once_it_leaves_what_that_knows() {
        let ahead = ReadAhead::default();
        ahead.foretell(Foretold::Parts);
        let brought = |at: u32, unforetold| ahead.note(&step(at..at + 1, 100..200), unforetold).spans;
        assert!((100..120).all(|at| brought(at, false).is_empty()));
        assert_eq!(brought(120, true), [Range { start: 121, end: 122 }]);
        assert_eq!(
            brought(121, false),
            [Range { start: 122, end: 124 }],
            "and goes on though it need not wait any more"
        );
        assert!(ahead.note(&step(700..704, 700..800), false).spans.is_empty(), "others are still known");
    }

    #[test]
    fn a_walk_through_a_long_file_stays_in_it() {
        let ahead = ReadAhead::default();
        let spans = brought(&ahead, (100..140).map(|span| step(span..span + 1, 100..140)));
        assert_eq!(spans, (102..140).collect::<Vec<_>>());
    }

    #[test]
    fn a_walk_in_tar_order_is_followed_by_a_growing_window() {
        let ahead = ReadAhead::default();
        let mut furthest = 0;
        for n in 0..400 {
            let at = n * 60_000;
            let fetched = ahead.note(&small(at, 59_000), true);
            furthest = fetched.spans.last().map_or(furthest, |range| range.end);
            assert!(u64::from(furthest) <= at / SPAN + 18, "the window has a bound");
        }
        assert!(u64::from(furthest) > 400 * 60_000 / SPAN + 8, "{furthest}");
        assert_eq!(brought(&ahead, [step(500..501, 500..501)]), Vec::<u32>::new(), "elsewhere it begins anew");
    }

    #[test]
    fn walks_beside_each_other_are_all_followed() {
        let ahead = ReadAhead::default();
        let mut spans = Vec::new();
        for n in 0..200 {
            spans.extend(brought(&ahead, [small(n * 60_000, 59_000), small((1 << 28) + n * 60_000, 59_000)]));
        }
        assert!(spans.contains(&25) && spans.contains(&(25 + 512)), "{spans:?}");
    }

    #[test]
    fn nothing_is_brought_beyond_the_layer() {
        let ahead = ReadAhead::default();
        let steps = (960..1000).map(|span| step(span..span + 1, span..span + 1));
        let spans = brought(&ahead, steps);
        assert!(spans.contains(&999) && spans.iter().all(|span| *span < 1000), "{spans:?}");
    }
}
