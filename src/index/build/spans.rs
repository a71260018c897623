//! The stage that cuts spans: it chooses among the places where decoding can start, hashes what lies between, and keeps
//! the windows.
//!
//! A span is what a cold read moves, so spans should be short; a window is what an index costs, so they should be few.
//! A span ends at the first place behind [`SPACING`]. The distance grows while the index is larger than its share of the
//! compressed bytes so far ([`Budget`]), and never beyond [`MAX_SPACING`] if there are places.
//!
//! Rejected: to end spans where files begin (a place before a file lies inside another), and to choose the place whose
//! window is cheapest (5 % fewer bytes move, and making an index takes half as long again).

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use blake3::Hasher;
use bytes::Bytes;

use super::Stop;
use super::chunk::{Chunk, Place};
use super::contents::Seen;
use crate::codec::sparse::Tracer;
use crate::codec::{self, Point, WINDOW};
use crate::index::format::{GroupRecord, HEADER_BYTES};
use crate::index::spans::{FRESH, SpanRecord, ZEROS};
use crate::index::windows::{GROUP, Group, WindowWriter};
use crate::limits::{INDEX_BYTES, SPAN_BYTES};

/// Preferred length of a span. Places are some 100 KiB apart, so it is 400 KiB on average. Measured on the start of a
/// python image: spans of 600, 400, 250 and 150 KiB move 39, 35, 32 and 29 MB; their indexes take 1.2, 1.7, 2.3 and 3.9 %
/// of the layers.
const SPACING: u64 = 384 << 10;

/// Length of a span that ends where the next needs no window.
const FRESH_SPACING: u64 = 256 << 10;

/// Length after which a span ends whatever its window costs.
const MAX_SPACING: u64 = 4 << 20;

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
    /// the layer: 2 % for all of the index, or 0.5 % for spans and windows if the entries alone take more.
    fn allows(&self, windows: u64, compressed: u64) -> bool {
        let share = |permille: u64| Self::FLOOR + (compressed / 1000 * permille).min(Self::CEILING);
        HEADER_BYTES as u64 + windows + self.entry_bytes <= share(20) || windows <= share(5)
    }
}

/// The span being made.
struct Open {
    start: Place,
    /// The bytes before it, up to a window of them.
    history: Vec<Bytes>,
    /// The compressed bytes from its start on, up to [`AHEAD`].
    ahead: Vec<Bytes>,
    ahead_length: usize,
    hasher: Hasher,
}

impl Open {
    fn new(start: Place, history: &VecDeque<Bytes>) -> Self {
        let history = if start.is_fresh() { Vec::new() } else { history.iter().cloned().collect() };
        Self { start, history, ahead: Vec::new(), ahead_length: 0, hasher: Hasher::new() }
    }

    /// Adds those of `input` that lie after the start.
    fn look_ahead(&mut self, input: &[(u64, Bytes)]) {
        if self.start.is_fresh() {
            return;
        }
        for (start, bytes) in input {
            let skip = usize::try_from(self.start.input.saturating_sub(*start)).unwrap_or(usize::MAX).min(bytes.len());
            let length = (bytes.len() - skip).min(AHEAD - self.ahead_length);
            if length > 0 {
                self.ahead.push(bytes.slice(skip..skip + length));
                self.ahead_length += length;
            }
        }
    }

    /// The bytes of the window that decoding from the start refers to, if it needs a window.
    fn window(&self, tracer: &mut Tracer) -> Option<Box<[u8; WINDOW]>> {
        let Point::Block { bits, byte } = self.start.point else { return None };
        let mut window = Box::new([0; WINDOW]);
        let mut end = WINDOW;
        for bytes in self.history.iter().rev() {
            let length = bytes.len().min(end);
            window[end - length..end].copy_from_slice(&bytes[bytes.len() - length..]);
            end -= length;
        }
        let ahead = self.ahead.iter().map(|bytes| &bytes[..]);
        // The same bytes were just decoded with their real history, so they decode with any; if not, the window stays whole.
        let _: Result<(), codec::Error> = tracer.trim(bits, byte, ahead, &mut window);
        Some(window)
    }
}

struct Cutter {
    records: Vec<SpanRecord>,
    windows: WindowWriter,
    tracer: Tracer,
    budget: Budget,
    open: Option<Open>,
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
            history: VecDeque::new(),
            history_length: 0,
            position: 0,
        }
    }

    /// Takes a chunk: its bytes, and the places in it in order of their offsets.
    fn chunk(&mut self, seen: &Seen) -> Result<(), Stop> {
        let Seen { chunk, entry_bytes } = seen;
        self.budget.entry_bytes = *entry_bytes;
        if let Some(open) = &mut self.open {
            open.look_ahead(&chunk.input);
        }
        for place in &chunk.places {
            self.advance(chunk, place.offset);
            self.place(*place, chunk);
        }
        self.advance(chunk, u64::MAX);
        if self.index_bytes() + entry_bytes > INDEX_BYTES {
            return Err(Stop::Limit("its index would be too long"));
        }
        if self.open.as_ref().is_some_and(|open| self.position - open.start.offset > SPAN_BYTES) {
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
        if let Some(open) = &mut self.open {
            open.hasher.update(&bytes);
        }
        self.remember(bytes);
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
        if let Some(open) = &self.open {
            let length = place.offset - open.start.offset;
            let preferred = if place.is_fresh() { FRESH_SPACING } else { SPACING };
            let is_end = match length {
                // Nothing lies between: an empty member or frame came before.
                0 => place.is_fresh(),
                MAX_SPACING.. => true,
                _ => length >= preferred && self.budget.allows(self.index_bytes(), place.input),
            };
            if !is_end {
                return;
            }
        }
        if let Some(open) = self.open.take() {
            self.close(&open);
        }
        let mut open = Open::new(place, &self.history);
        open.look_ahead(&chunk.input);
        self.open = Some(open);
    }

    /// Bytes of index that the spans so far take.
    fn index_bytes(&self) -> u64 {
        let groups = self.records.len() / GROUP as usize + 1;
        (self.records.len() * size_of::<SpanRecord>() + groups * size_of::<GroupRecord>()) as u64
            + self.windows.estimate()
    }

    /// Writes a span that ends here, unless it is empty.
    fn close(&mut self, open: &Open) {
        if open.start.offset == self.position {
            return;
        }
        let window = open.window(&mut self.tracer);
        let window = window.map_or(FRESH, |window| self.windows.push(&window).unwrap_or(ZEROS));
        self.records.push(SpanRecord {
            bit: open.start.bit().into(),
            offset: open.start.offset.into(),
            window: window.into(),
            digest: *open.hasher.finalize().as_bytes(),
        });
    }

    fn finish(mut self) -> Result<Spans, Stop> {
        if let Some(open) = self.open.take() {
            self.close(&open);
        }
        let (groups, windows) = self.windows.finish();
        Ok(Spans { records: self.records, groups, windows })
    }
}
