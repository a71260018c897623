//! The stage that cuts spans: it chooses among the places where decoding can start, hashes what lies between, and keeps
//! the windows.
//!
//! A span is what a cold read moves, so spans should be short; a window is what an index costs, so they should be few.
//! About every [`SPACING`] bytes the last place before a file's payload is chosen, so that a file's read does not begin
//! with the end of another. Inside long files any place does. The distance grows while the index is larger than its
//! share of the compressed bytes so far ([`Budget`]), and never beyond [`MAX_SPACING`] if there are places.
//!
//! A file's beginning is only known after the last place before it has passed. So that place is a [`Candidate`]: it
//! holds the window, the compressed bytes ahead that tell which part of the window matters, and the bytes passed since,
//! which belong to one span or the next.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use blake3::Hasher;
use bytes::Bytes;

use super::Stop;
use super::chunk::{Chunk, Place};
use super::contents::Seen;
use crate::codec::sparse::Tracer;
use crate::codec::{Point, WINDOW};
use crate::index::format::{GroupRecord, HEADER_BYTES};
use crate::index::spans::{FRESH, SpanRecord, ZEROS};
use crate::index::windows::{GROUP, Group, WindowWriter};
use crate::limits::{INDEX_BYTES, SPAN_BYTES};

/// Preferred length of a span: measured on the start of a python image, half as long moves 10 % less and costs twice the
/// windows.
const SPACING: u64 = 512 << 10;

/// Length after which a span ends at the next place, even if that is inside a file.
const LONG: u64 = SPACING * 5 / 4;

/// Length of a span that ends where the next needs no window.
const FRESH_SPACING: u64 = SPACING / 2;

/// Length after which a span ends whatever its window costs.
const MAX_SPACING: u64 = 4 << 20;

/// Bytes after a candidate that may wait for their span.
const HELD: usize = 1 << 20;

/// Compressed bytes after a place that are looked at to trim its window. Codes have up to 15 bits, so these make 64 KiB or
/// more, unless somebody fills them with empty blocks.
const AHEAD: usize = 128 << 10;

/// What the stage made.
#[derive(Debug)]
pub(super) struct Spans {
    pub(super) records: Vec<SpanRecord>,
    pub(super) groups: Vec<Group>,
    pub(super) windows: Vec<u8>,
}

/// Runs the stage.
pub(super) fn run(seen: &Receiver<Seen>) -> Result<Spans, Stop> {
    let mut cutter = Cutter::new();
    for seen in seen {
        cutter.chunk(&seen)?;
    }
    cutter.finish()
}

/// The bytes an index may have so far.
struct Budget {
    entry_bytes: u64,
}

impl Budget {
    /// Small layers may have this much more than their share.
    const FLOOR: u64 = 4 << 10;

    /// Above this many bytes the windows of even the largest layer stop growing with it.
    const CEILING: u64 = 64 << 20;

    /// True if an index that already has `windows` bytes of spans and windows may have another, `compressed` bytes into
    /// the layer: 1.4 % for all of the index, or 0.5 % for spans and windows if the entries alone take more.
    fn allows(&self, windows: u64, compressed: u64) -> bool {
        let share = |permille: u64| Self::FLOOR + (compressed / 1000 * permille).min(Self::CEILING);
        HEADER_BYTES as u64 + windows + self.entry_bytes <= share(14) || windows <= share(5)
    }
}

/// A place with what is needed to start a span there.
struct Candidate {
    place: Place,
    /// The bytes before it, up to a window of them.
    history: Vec<Bytes>,
    /// The compressed bytes after it, up to [`AHEAD`].
    ahead: Vec<Bytes>,
    ahead_length: usize,
}

impl Candidate {
    /// Adds those of `input` that lie after the place.
    fn look_ahead(&mut self, input: &[(u64, Bytes)]) {
        if self.place.is_fresh() {
            return;
        }
        for (start, bytes) in input {
            let skip = usize::try_from(self.place.input.saturating_sub(*start)).unwrap_or(usize::MAX).min(bytes.len());
            let length = (bytes.len() - skip).min(AHEAD - self.ahead_length);
            if length > 0 {
                self.ahead.push(bytes.slice(skip..skip + length));
                self.ahead_length += length;
            }
        }
    }

    fn window(&self) -> Box<[u8; WINDOW]> {
        let mut window = Box::new([0; WINDOW]);
        let mut end = WINDOW;
        for bytes in self.history.iter().rev() {
            let length = bytes.len().min(end);
            window[end - length..end].copy_from_slice(&bytes[bytes.len() - length..]);
            end -= length;
        }
        window
    }
}

/// The span being made.
struct Open {
    /// Where it begins; what it needs is settled when its end is looked for.
    start: Candidate,
    window: Option<u32>,
    /// Over the bytes up to the candidate, or all if there is none.
    hasher: Hasher,
}

struct Cutter {
    records: Vec<SpanRecord>,
    windows: WindowWriter,
    tracer: Tracer,
    budget: Budget,
    open: Option<Open>,
    candidate: Option<Candidate>,
    /// The bytes since the candidate.
    held: VecDeque<Bytes>,
    held_length: usize,
    /// The last bytes, at least a window of them.
    history: VecDeque<Bytes>,
    history_length: usize,
    position: u64,
}

impl Cutter {
    fn new() -> Self {
        Self {
            records: Vec::new(),
            windows: WindowWriter::default(),
            tracer: Tracer::new(),
            budget: Budget { entry_bytes: 0 },
            open: None,
            candidate: None,
            held: VecDeque::new(),
            held_length: 0,
            history: VecDeque::new(),
            history_length: 0,
            position: 0,
        }
    }

    /// Takes a chunk: its bytes, and in order of their offsets the places and the beginnings of files in it.
    fn chunk(&mut self, seen: &Seen) -> Result<(), Stop> {
        let Seen { chunk, files, entry_bytes } = seen;
        self.budget.entry_bytes = *entry_bytes;
        for candidate in self.open.iter_mut().map(|open| &mut open.start).chain(&mut self.candidate) {
            candidate.look_ahead(&chunk.input);
        }
        let mut files = files.iter().copied().peekable();
        for place in &chunk.places {
            while let Some(file) = files.next_if(|file| *file < place.offset) {
                self.advance(chunk, file);
                self.file();
            }
            self.advance(chunk, place.offset);
            self.place(*place, chunk);
        }
        for file in files {
            self.advance(chunk, file);
            self.file();
        }
        self.advance(chunk, u64::MAX);
        if self.index_bytes() + entry_bytes > INDEX_BYTES {
            return Err(Stop::Limit("its index would be too long"));
        }
        if self.open.as_ref().is_some_and(|open| self.position - open.start.place.offset > SPAN_BYTES) {
            return Err(Stop::Limit("too much of it can only be decoded in one go"));
        }
        Ok(())
    }

    /// Takes the bytes up to `end`, or to the end of the chunk if that comes first.
    fn advance(&mut self, chunk: &Chunk, end: u64) {
        let chunk_end = chunk.start + chunk.bytes.len() as u64;
        let end = end.min(chunk_end);
        if end <= self.position {
            return;
        }
        let bytes = chunk.bytes.slice((self.position - chunk.start) as usize..(end - chunk.start) as usize);
        self.position = end;
        self.remember(bytes.clone());
        if self.candidate.is_some() {
            self.held_length += bytes.len();
            self.held.push_back(bytes);
            if self.held_length > HELD {
                // The candidate gets too old to be worth waiting with.
                self.cut_if_worth(SPACING);
                self.drop_candidate();
            }
        } else if let Some(open) = &mut self.open {
            open.hasher.update(&bytes);
        }
    }

    fn remember(&mut self, bytes: Bytes) {
        self.history_length += bytes.len();
        self.history.push_back(bytes);
        while let Some(first) = self.history.front()
            && self.history_length - first.len() >= WINDOW
        {
            self.history_length -= first.len();
            self.history.pop_front();
        }
    }

    /// A place where a span could begin is reached.
    fn place(&mut self, place: Place, chunk: &Chunk) {
        let history = if place.is_fresh() { Vec::new() } else { self.history.iter().cloned().collect() };
        let mut candidate = Candidate { place, history, ahead: Vec::new(), ahead_length: 0 };
        candidate.look_ahead(&chunk.input);
        match &mut self.open {
            None => self.open = Some(Open { start: candidate, window: None, hasher: Hasher::new() }),
            // Nothing lies between: an empty member or frame came before.
            Some(open) if open.start.place.offset == place.offset => {
                if place.is_fresh() {
                    open.start = candidate;
                }
            }
            Some(open) => {
                let length = place.offset - open.start.place.offset;
                let fresh = place.is_fresh();
                self.drop_candidate();
                self.candidate = Some(candidate);
                if length >= MAX_SPACING {
                    self.cut();
                } else {
                    self.cut_if_worth(if fresh { FRESH_SPACING } else { LONG });
                }
            }
        }
    }

    /// The payload of a file begins here.
    fn file(&mut self) {
        self.cut_if_worth(SPACING);
    }

    /// Ends the span at the candidate if it is then at least `length` long and another span is in the budget.
    fn cut_if_worth(&mut self, length: u64) {
        let (Some(open), Some(candidate)) = (&self.open, &self.candidate) else { return };
        if candidate.place.offset - open.start.place.offset < length {
            return;
        }
        let compressed = candidate.place.input;
        self.settle();
        if self.budget.allows(self.index_bytes(), compressed) {
            self.cut();
        }
    }

    /// Bytes of index that the spans so far take.
    fn index_bytes(&self) -> u64 {
        let groups = self.records.len() / GROUP as usize + 1;
        (self.records.len() * size_of::<SpanRecord>() + groups * size_of::<GroupRecord>()) as u64
            + self.windows.estimate()
    }

    /// Finds and keeps the window that the open span needs. Late, when enough compressed bytes were seen.
    fn settle(&mut self) {
        let Some(open) = &mut self.open else { return };
        if open.window.is_some() {
            return;
        }
        let Point::Block { bits, byte } = open.start.place.point else {
            open.window = Some(FRESH);
            return;
        };
        let mut window = open.start.window();
        let ahead = open.start.ahead.iter().map(|bytes| &bytes[..]);
        // The same bytes were just decoded with their real history, so they decode with any; if not, the window stays whole.
        if self.tracer.trim(bits, byte, ahead, &mut window).is_err() {
            window = open.start.window();
        }
        open.window = Some(self.windows.push(&window).unwrap_or(ZEROS));
        open.start.history.clear();
        open.start.ahead.clear();
    }

    /// Ends the open span at the candidate.
    fn cut(&mut self) {
        self.settle();
        let Some(candidate) = self.candidate.take() else { return };
        let mut hasher = Hasher::new();
        for bytes in self.held.drain(..) {
            hasher.update(&bytes);
        }
        self.held_length = 0;
        if let Some(open) = self.open.replace(Open { start: candidate, window: None, hasher }) {
            self.record(&open);
        }
    }

    /// Lets the bytes since the candidate belong to the open span.
    fn drop_candidate(&mut self) {
        self.candidate = None;
        self.held_length = 0;
        for bytes in self.held.drain(..) {
            if let Some(open) = &mut self.open {
                open.hasher.update(&bytes);
            }
        }
    }

    fn record(&mut self, open: &Open) {
        self.records.push(SpanRecord {
            bit: open.start.place.bit().into(),
            offset: open.start.place.offset.into(),
            window: open.window.unwrap_or(FRESH).into(),
            digest: *open.hasher.finalize().as_bytes(),
        });
    }

    fn finish(mut self) -> Result<Spans, Stop> {
        self.drop_candidate();
        self.settle();
        // A member or frame that decodes to nothing may have begun last.
        if let Some(open) = self.open.take().filter(|open| open.start.place.offset < self.position) {
            self.record(&open);
        }
        let (groups, windows) = self.windows.finish();
        Ok(Spans { records: self.records, groups, windows })
    }
}
