//! What is wanted, by whom, and which ranged read comes next: the planner's bookkeeping, without any waiting.
//!
//! A span is wanted once, however many ask ([`Queue::enter`]); whoever asks more urgently moves it up. [`Queue::next`] cuts
//! the next read of a line: the most urgent span, and with it the missing neighbours that are wanted too, as one range, unless
//! their turn is far off ([`PULL`]). The strict order of [`Priority`] holds between reads: while a reader's span waits,
//! nothing else is asked for; and what is not for a waiting reader stays below the bytes that the line holds anyway, so that
//! the next reader finds it nearly free.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::line::Estimate;
use super::spans::Key;
use super::{Error, Layer, Priority};
use crate::index::SpanId;
use crate::limits;

/// How far behind a span, in the order in which spans were asked for, one may stand that is brought with it: so many times
/// what the line holds. A neighbour that comes along saves a request, but all that stands between them comes later for it.
/// Measured on the start of a python image with a profile, over 200 Mbit/s with 30 ms: 2, 4 and 6 times send 128, 109 and 84
/// requests and take 2.04, 2.03 and 2.13 s; any neighbour, 2.11 s.
const PULL: u64 = 4;

/// The compressed bytes of a span, once they are here.
pub(super) type Outcome = Option<Result<Bytes, Error>>;

/// All spans that are wanted and not yet here.
#[derive(Debug, Default)]
pub(super) struct Queue {
    wants: HashMap<Key, Want>,
    /// By the place that bytes come from: layers of one host share its line, whatever image and repository they are of.
    lines: HashMap<Arc<str>, Line>,
    reads: HashMap<u64, Read>,
    last_read: u64,
    /// Bytes asked for that have not come, over all lines.
    outstanding: u64,
    /// Bytes of all spans that were ever asked for: the place of the next in their order.
    asked: u64,
}

#[derive(Debug)]
struct Want {
    /// Gone once nobody has the layer open, and so nobody waits: then it is not asked for any more.
    layer: Weak<Layer>,
    priority: Priority,
    /// Where it stands in the order in which spans were asked for: the bytes of those before it.
    place: u64,
    /// How many wait for it.
    tickets: usize,
    /// Brought even if nobody waits.
    kept: bool,
    /// The read that brings it, if one was sent.
    read: Option<u64>,
    outcome: watch::Sender<Outcome>,
}

#[derive(Debug, Default)]
struct Line {
    estimate: Estimate,
    /// Keys in the order in which they were asked for; those that are gone or were moved up are passed over.
    waiting: [VecDeque<Key>; Priority::ALL.len()],
    /// Bytes asked for that have not come.
    outstanding: u64,
    reads: usize,
}

#[derive(Debug)]
struct Read {
    line: Arc<str>,
    keys: Vec<Key>,
    outstanding: u64,
    /// Its task, once it runs.
    abort: Option<AbortHandle>,
    begun: bool,
}

/// Which neighbours of a span may be brought with it.
#[derive(Debug)]
struct Reach {
    /// That of the span; what comes before it in the blob must be as urgent.
    priority: Priority,
    /// Most bytes of all together, unless the span alone has more.
    limit: u64,
    /// The last place in the order in which spans were asked for.
    latest: u64,
    /// Most bytes of a span in between that nobody asked for.
    bridge: u64,
}

/// One ranged read to be sent: spans of a layer that follow each other in the blob.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: u64,
    pub(super) layer: Arc<Layer>,
    /// In stream order, at least one.
    pub(super) spans: Vec<SpanId>,
    /// That of the most urgent span.
    pub(super) priority: Priority,
    /// How long an answer may take before it counts as stalled.
    pub(super) patience: Duration,
}

impl Run {
    /// The bytes of its spans in the blob.
    pub(super) fn range(&self) -> Range<u64> {
        let (first, last) = (self.spans[0], self.spans[self.spans.len() - 1]);
        self.layer.index.compressed(first).start..self.layer.index.compressed(last).end
    }
}

impl Queue {
    /// True if the bytes of a span are here and no read is about to hand them out: who looked for them before it asked for
    /// this lock may have looked just before they came.
    pub(super) fn has_come(&self, layer: &Layer, span: SpanId) -> bool {
        !self.wants.contains_key(&Key::asked(layer, span)) && layer.has(span)
    }

    /// True if a span that has not come is wanted for more than to be complete.
    pub(super) fn is_wanted(&self, layer: &Layer, span: SpanId) -> bool {
        self.wants.get(&Key::asked(layer, span)).is_some_and(|want| want.priority <= Priority::Profile)
    }

    /// Wants a span. `kept` says that it is wanted even if nobody waits for it; otherwise the caller owns a ticket, to be
    /// given back by [`Self::leave`].
    pub(super) fn enter(
        &mut self,
        layer: &Arc<Layer>,
        span: SpanId,
        priority: Priority,
        kept: bool,
    ) -> watch::Receiver<Outcome> {
        let key = Key::asked(layer, span);
        let want = self.wants.entry(key).or_insert_with(|| Want {
            layer: Weak::new(),
            priority: Priority::Fill,
            place: self.asked,
            tickets: 0,
            kept: false,
            read: None,
            outcome: watch::Sender::new(None),
        });
        if want.layer.strong_count() == 0 {
            want.layer = Arc::downgrade(layer);
        }
        let is_new = want.tickets == 0 && !want.kept;
        want.tickets += usize::from(!kept);
        want.kept |= kept;
        if is_new || priority < want.priority {
            (want.priority, want.place) = (priority, self.asked);
            let range = layer.index.compressed(span);
            self.asked = self.asked.saturating_add(range.end.saturating_sub(range.start));
            if want.read.is_none() {
                self.lines.entry(Arc::clone(&layer.place)).or_default().waiting[priority as usize].push_back(key);
            }
        }
        want.outcome.subscribe()
    }

    /// Gives a ticket back. What nobody wants any more is not asked for; a read that nobody wants is returned to be ended.
    pub(super) fn leave(&mut self, key: Key) -> Option<AbortHandle> {
        let want = self.wants.get_mut(&key)?;
        want.tickets = want.tickets.saturating_sub(1);
        if want.is_wanted() {
            return None;
        }
        let Some(id) = want.read else {
            self.wants.remove(&key);
            return None;
        };
        // A task that has not run yet could not tell of its end.
        let read = self.reads.get(&id).filter(|read| read.begun)?;
        // A span that it has brought may be wanted anew: from another read.
        let is_wanted = |key| self.wants.get(key).is_some_and(|want| want.read == Some(id) && want.is_wanted());
        if read.keys.iter().any(is_wanted) { None } else { read.abort.clone() }
    }

    /// The next read that the line of `place` should carry, if any.
    pub(super) fn next(&mut self, place: &str) -> Option<Run> {
        let name = Arc::clone(self.lines.get_key_value(place)?.0);
        loop {
            let line = self.lines.get_mut(&name)?;
            for priority in Priority::ALL {
                let is_waiting = |key: &Key| {
                    self.wants.get(key).is_some_and(|want| want.read.is_none() && want.priority == priority)
                };
                let waiting = &mut line.waiting[priority as usize];
                while waiting.front().is_some_and(|key| !is_waiting(key)) {
                    waiting.pop_front();
                }
            }
            let first = |priority: &Priority| Some((*priority, *line.waiting[*priority as usize].front()?));
            let (priority, key) = Priority::ALL.iter().find_map(first)?;
            if !line.has_room(priority) || !self.budget_allows(&name, priority) {
                return None;
            }
            let line = self.lines.get_mut(&name)?;
            line.waiting[priority as usize].pop_front();
            match self.wants.get(&key).and_then(|want| want.layer.upgrade()) {
                Some(layer) => return Some(self.send(name, &layer, key, priority)),
                None => drop(self.wants.remove(&key)),
            }
        }
    }

    /// Cuts the read that begins with `key`.
    fn send(&mut self, name: Arc<str>, layer: &Arc<Layer>, key: Key, priority: Priority) -> Run {
        let line = self.lines.entry(Arc::clone(&name)).or_default();
        let product = line.estimate.product();
        let patience = line.estimate.patience();
        let reach = Reach {
            priority,
            limit: match priority {
                Priority::Demand | Priority::Profile => product,
                Priority::ReadAhead | Priority::Fill => (product / 2).max(limits::READ_CHUNK / 2),
            },
            latest: self.wants.get(&key).map_or(0, |want| want.place).saturating_add(PULL * product),
            bridge: product / 8,
        };
        let spans = self.extend(layer, key, &reach);
        self.last_read += 1;
        let id = self.last_read;
        let keys: Vec<_> = spans.iter().map(|span| Key::asked(layer, *span)).collect();
        for (key, span) in keys.iter().zip(&spans) {
            if !self.wants.contains_key(key) {
                // A bridge between two wanted spans; whoever comes for it may join.
                self.enter(layer, *span, Priority::Fill, true);
            }
            if let Some(want) = self.wants.get_mut(key) {
                want.read = Some(id);
            }
        }
        let (first, last) = (spans[0], spans[spans.len() - 1]);
        let outstanding = layer.index.compressed(last).end - layer.index.compressed(first).start;
        let line = self.lines.entry(Arc::clone(&name)).or_default();
        line.outstanding += outstanding;
        self.outstanding += outstanding;
        line.reads += 1;
        self.reads.insert(id, Read { line: name, keys, outstanding, abort: None, begun: false });
        Run { id, layer: Arc::clone(layer), spans, priority, patience }
    }

    /// The spans around `key` that are brought with it, in stream order and in the order of the blob: those that are wanted
    /// within its reach, single ones between them that nobody asked for, and those whose bytes come anyway because they are
    /// parts of the same member.
    fn extend(&self, layer: &Arc<Layer>, key: Key, reach: &Reach) -> Vec<SpanId> {
        let &Reach { priority, limit, latest, bridge } = reach;
        let index = &layer.index;
        let place = |span| index.compressed(span);
        let is_wanted = |span: SpanId| self.wants.contains_key(&Key::asked(layer, span));
        let waits = |span: SpanId, least: Priority| {
            let want = self.wants.get(&Key::asked(layer, span));
            want.is_some_and(|want| want.read.is_none() && want.priority <= least && want.place <= latest)
        };
        let is_missing = |span: SpanId| !is_wanted(span) && !layer.has(span);
        let mut spans = VecDeque::from([key.span()]);
        let mut whole = place(key.span());
        // Spans that share some bytes, but not all, are held beside each other.
        let mut held = whole.end - whole.start;
        let mut last = key.span();
        while let Some(next) = index.next_span(last) {
            if spans.len() >= limits::READ_SPANS || !follows(&place(last), &place(next), bridge) {
                break;
            }
            let end = place(next).end;
            let rides = end == whole.end && !is_wanted(next);
            let size = if end == whole.end { 0 } else { end - place(next).start };
            if rides || waits(next, Priority::Fill) && (held + size).max(end - whole.start) <= limit {
                spans.push_back(next);
                (last, whole.end) = (next, end);
                held += size;
                continue;
            }
            let Some(after) = index.next_span(next) else { break };
            let (between, end) = (place(next), place(after).end);
            let is_bridge = between.end - between.start <= bridge && is_missing(next);
            let size = between.end - between.start + end - place(after).start;
            let fits = follows(&between, &place(after), bridge) && (held + size).max(end - whole.start) <= limit;
            if !is_bridge || !fits || !waits(after, Priority::Fill) {
                break;
            }
            spans.extend([next, after]);
            (last, whole.end) = (after, end);
            held += size;
        }
        // Bytes before the span delay it: only what is as urgent may come first.
        let mut first = key.span();
        while let Some(before) = index.previous_span(first) {
            if spans.len() >= limits::READ_SPANS || !follows(&place(before), &place(first), bridge) {
                break;
            }
            let Range { start, end } = place(before);
            let rides = start == whole.start && !is_wanted(before);
            let size = if start == whole.start { 0 } else { end - start };
            if !rides && (!waits(before, priority) || (held + size).max(whole.end - start) > limit) {
                break;
            }
            spans.push_front(before);
            (first, whole.start) = (before, start);
            held += size;
        }
        spans.into()
    }

    /// Notes the task of a read, so that it can be ended.
    pub(super) fn sent(&mut self, id: u64, abort: AbortHandle) {
        if let Some(read) = self.reads.get_mut(&id) {
            read.abort = Some(abort);
        }
    }

    /// The task of a read runs: from now on it will tell of its end.
    pub(super) fn begun(&mut self, id: u64) {
        if let Some(read) = self.reads.get_mut(&id) {
            read.begun = true;
        }
    }

    /// The answer to a read began `after` it was asked for.
    pub(super) fn answered(&mut self, id: u64, after: Duration) {
        if let Some(line) = self.reads.get(&id).and_then(|read| self.lines.get_mut(&read.line)) {
            line.estimate.answered(after);
        }
    }

    /// Bytes of a read arrived.
    pub(super) fn received(&mut self, id: u64, bytes: u64) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        let bytes = bytes.min(read.outstanding);
        read.outstanding -= bytes;
        self.outstanding = self.outstanding.saturating_sub(bytes);
        if let Some(line) = self.lines.get_mut(&read.line) {
            line.outstanding = line.outstanding.saturating_sub(bytes);
            line.estimate.received(bytes, line.outstanding, Instant::now());
        }
    }

    /// Hands the bytes of a span, or the reason why there are none, to everyone who waits; it is not wanted any more.
    pub(super) fn deliver(&mut self, key: Key, outcome: Result<Bytes, Error>) {
        if let Some(want) = self.wants.remove(&key) {
            want.outcome.send_replace(Some(outcome));
        }
    }

    /// Ends a read. What it did not bring and somebody waits for is asked for again, before all others.
    pub(super) fn land(&mut self, id: u64) -> Option<Arc<str>> {
        let read = self.reads.remove(&id)?;
        let line = self.lines.entry(Arc::clone(&read.line)).or_default();
        line.outstanding = line.outstanding.saturating_sub(read.outstanding);
        self.outstanding = self.outstanding.saturating_sub(read.outstanding);
        line.reads = line.reads.saturating_sub(1);
        if line.reads == 0 {
            line.estimate.idle();
        }
        for key in read.keys.iter().rev() {
            let Some(want) = self.wants.get_mut(key).filter(|want| want.read == Some(id)) else { continue };
            want.read = None;
            if want.tickets > 0 {
                line.waiting[want.priority as usize].push_front(*key);
            } else {
                self.wants.remove(key);
            }
        }
        if line.is_idle() && self.lines.len() > limits::LINES {
            self.lines.remove(&read.line);
        }
        Some(read.line)
    }

    /// Bytes asked for that have not come, over all lines.
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// True if all lines together may carry more for this priority. A line that carries nothing may ask for one read in any
    /// case, so that none waits for another one for ever.
    fn budget_allows(&self, place: &str, priority: Priority) -> bool {
        let most = if priority == Priority::Demand { limits::IN_FLIGHT } else { limits::IN_FLIGHT / 2 };
        self.outstanding < most || self.lines.get(place).is_some_and(|line| line.reads == 0)
    }

    /// How many bytes the line of `place` holds, as far as is known.
    pub(super) fn product(&self, place: &str) -> u64 {
        self.lines.get(place).map_or_else(|| Estimate::default().product(), |line| line.estimate.product())
    }
}

/// True if one answer can bring both: the second span's bytes begin and end no earlier than the first one's, and no further
/// behind them than `gap`. That is always so in an index of ours; a claim may lead anywhere.
fn follows(first: &Range<u64>, second: &Range<u64>, gap: u64) -> bool {
    first.start <= second.start && first.end <= second.end && second.start <= first.end.saturating_add(gap)
}

impl Want {
    fn is_wanted(&self) -> bool {
        self.tickets > 0 || self.kept
    }
}

impl Line {
    /// True if another read of this priority may be sent.
    fn has_room(&self, priority: Priority) -> bool {
        if priority == Priority::Demand {
            return self.reads < limits::LINE_READS;
        }
        let product = self.estimate.product();
        let most = match priority {
            // A guess must not be in the way of the reader's next step, unless the line is going to be full anyway.
            Priority::ReadAhead if self.waiting[Priority::Profile as usize].is_empty() => product / 2,
            // Twice what it holds keeps the line full though the estimate is only that, and costs a reader little.
            _ => 2 * product,
        };
        self.reads < limits::LINE_READS / 2 && self.outstanding < most
    }

    fn is_idle(&self) -> bool {
        self.reads == 0 && self.waiting.iter().all(VecDeque::is_empty)
    }
}

#[cfg(test)]
mod tests;
