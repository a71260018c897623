//! The planner: brings compressed spans from their sources into the blob store, in the order of urgency.
//!
//! [`Queue`] decides what is asked for next; this file does the asking. One task for each ranged read streams its answer,
//! cuts it into spans, puts each in the blob store as soon as it is whole, and hands it to whoever holds a [`Ticket`] for it.
//! The bytes are not verified here: whoever decodes a span does that, and discards what is wrong.
//!
//! A ticket that is dropped takes its span out of the queue, and ends the read if nothing else in it is wanted.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::time::Instant;

use super::outage::Outages;
use super::queue::{Outcome, Queue, Run};
use super::spans::Key;
use super::steady::{ANEW, Steady, Watch};
use super::{Error, Layer, Priority};
use crate::index::SpanId;
use crate::source::{self, ErrorKind};

/// Orders and carries out the ranged reads of all layers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Planner {
    /// Protects the bookkeeping; never held across an await or I/O on layer bytes.
    queue: Arc<Mutex<Queue>>,
    /// Learns what becomes of every read.
    outages: Arc<Outages>,
}

/// The right to a span's compressed bytes, once they are here.
#[derive(Debug)]
pub(super) struct Ticket {
    planner: Planner,
    layer: Arc<Layer>,
    key: Key,
    outcome: watch::Receiver<Outcome>,
}

impl Ticket {
    /// Waits for the bytes, whoever brings them.
    pub(super) async fn bytes(mut self) -> Result<Bytes, Error> {
        tokio::select! {
            biased;
            outcome = self.outcome.wait_for(Option::is_some) => match outcome {
                Ok(outcome) => outcome.clone().unwrap_or(Err(Error::Interrupted)),
                Err(_) => Err(Error::Interrupted),
            },
            bytes = brought_by_others(self.planner.outages(), &self.layer, self.key.span()) => Ok(bytes),
        }
    }
}

/// The bytes of a span that has come another way while its source is away: another image with the same layer may have
/// another source, and a parcel may be imported. While the source answers, its own answer is as good.
async fn brought_by_others(outages: &Outages, layer: &Arc<Layer>, span: SpanId) -> Bytes {
    let range = layer.index.compressed(span);
    loop {
        outages.begins(&layer.place).await;
        layer.blob.arrived(range.clone()).await;
        if outages.is_away(&layer.place) {
            match local(layer, range).await {
                Some(bytes) => return bytes,
                // The disk does not give them, and would not the next time.
                None => return std::future::pending().await,
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let abort = {
            let mut queue = self.planner.lock();
            // Under the lock: a span that is delivered just now may be wanted anew, by others, the moment after.
            if self.outcome.borrow().is_some() {
                return;
            }
            queue.leave(self.key)
        };
        if let Some(abort) = abort {
            abort.abort();
        }
    }
}

impl Planner {
    /// Wants spans, in this order, and waits for none of them yet. None for one whose bytes came since the caller looked.
    pub(super) fn want(&self, wanted: &[(Arc<Layer>, SpanId)], priority: Priority) -> Vec<Option<Ticket>> {
        let tickets = {
            let mut queue = self.lock();
            let ticket = |(layer, span): &(Arc<Layer>, SpanId)| {
                (!queue.has_come(layer, *span)).then(|| self.ticket(&mut queue, layer, *span, priority))
            };
            wanted.iter().map(ticket).collect()
        };
        self.pump(wanted);
        tickets
    }

    /// Wants a span that somebody waits for, though the disk may have its bytes: they could not be read.
    pub(super) fn want_anyway(&self, layer: &Arc<Layer>, span: SpanId) -> Ticket {
        let ticket = self.ticket(&mut self.lock(), layer, span, Priority::Demand);
        self.pump_line(&layer.place);
        ticket
    }

    fn ticket(&self, queue: &mut Queue, layer: &Arc<Layer>, span: SpanId, priority: Priority) -> Ticket {
        let outcome = queue.enter(layer, span, priority, false);
        Ticket { planner: self.clone(), layer: Arc::clone(layer), key: Key::asked(layer, span), outcome }
    }

    /// Wants spans without anybody waiting for them. `soon` says that the caller will want others in a moment, which
    /// should go first: nothing is sent before.
    pub(super) fn bring(&self, wanted: &[(Arc<Layer>, SpanId)], priority: Priority, soon: bool) {
        {
            let mut queue = self.lock();
            for (layer, span) in wanted {
                if !queue.has_come(layer, *span) {
                    queue.enter(layer, *span, priority, true);
                }
            }
        }
        if !soon {
            self.pump(wanted);
        }
    }

    /// Leaves those spans that nobody wants for more than to be complete.
    pub(super) fn retain_unwanted(&self, layer: &Arc<Layer>, spans: &mut Vec<SpanId>) {
        let queue = self.lock();
        spans.retain(|span| !queue.is_wanted(layer, *span));
    }

    /// Bytes asked for that have not come.
    pub(super) fn outstanding(&self) -> u64 {
        self.lock().outstanding()
    }

    /// Which places are away.
    pub(super) fn outages(&self) -> &Outages {
        &self.outages
    }

    /// How many bytes the line to `layer`'s source holds, as far as is known.
    pub(super) fn product(&self, layer: &Layer) -> u64 {
        self.lock().product(&layer.place)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the lines of `wanted` have room for.
    fn pump(&self, wanted: &[(Arc<Layer>, SpanId)]) {
        let mut last: Option<&Arc<str>> = None;
        for (layer, _) in wanted {
            if last != Some(&layer.place) {
                self.pump_line(&layer.place);
                last = Some(&layer.place);
            }
        }
    }

    fn pump_line(&self, place: &str) {
        loop {
            let Some(run) = self.lock().next(place) else { return };
            let id = run.id;
            let bytes = run.range();
            tracing::trace!(
                read = id, layer = %run.layer.index.layer(), start = bytes.start, end = bytes.end,
                priority = ?run.priority, "ranged read"
            );
            let task = tokio::spawn(Flight::new(self.clone(), run).carry());
            self.lock().sent(id, task.abort_handle());
        }
    }
}

/// One ranged read on its way. However it ends, the queue learns of it.
struct Flight {
    planner: Planner,
    run: Run,
    /// The spans that have not been delivered.
    left: VecDeque<SpanId>,
    begun: bool,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Asking again would only panic again.
            self.give_up(&Error::Interrupted);
        }
        let source = self.planner.lock().land(self.run.id);
        // A task that never ran is one that a runtime refused because it is going down.
        if let Some(source) = source.filter(|_| self.begun) {
            self.planner.pump_line(&source);
        }
    }
}

impl Flight {
    fn new(planner: Planner, run: Run) -> Self {
        let left = run.spans.iter().copied().collect();
        Self { planner, run, left, begun: false }
    }

    async fn carry(mut self) {
        self.begun = true;
        self.planner.lock().begun(self.run.id);
        let began = Instant::now();
        let streamed = self.stream().await;
        let layer = self.run.layer.index.layer();
        let error = match streamed {
            Err(error) => error,
            Ok(()) if self.left.is_empty() => return,
            Ok(()) => source::Error::new(
                ErrorKind::Invalid,
                format!("{} ended early for layer {layer}", self.run.layer.source_name),
            )
            .into(),
        };
        tracing::debug!(%layer, %error, "ranged read failed");
        if let Error::Source(error) = &error
            && error.is_transient()
        {
            self.planner.outages.failed(&self.run.layer.place, began, error);
        }
        self.give_up(&error);
    }

    /// Tells everyone who waits for what was not delivered.
    fn give_up(&mut self, error: &Error) {
        let mut queue = self.planner.lock();
        for span in self.left.drain(..) {
            queue.deliver(Key::asked(&self.run.layer, span), Err(error.clone()));
        }
    }

    async fn stream(&mut self) -> Result<(), Error> {
        let layer = Arc::clone(&self.run.layer);
        let whole = self.run.range();
        let missing = layer.blob.missing(whole.clone());
        // Neighbouring spans share bytes, which may be here already.
        let asked = match (missing.first(), missing.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => whole.clone(),
        };
        let (Some(before), Some(after)) =
            (local(&layer, whole.start..asked.start).await, local(&layer, asked.end..whole.end).await)
        else {
            return self.receive(&layer, whole.clone(), whole, Bytes::new(), Bytes::new()).await;
        };
        self.receive(&layer, whole, asked, before, after).await
    }

    /// Streams `asked`, between the local bytes `before` and `after`, and delivers the spans of `whole`.
    async fn receive(
        &mut self,
        layer: &Arc<Layer>,
        whole: Range<u64>,
        asked: Range<u64>,
        before: Bytes,
        after: Bytes,
    ) -> Result<(), Error> {
        let Some(reader) = &layer.reader else {
            return Err(Error::Offline { layer: layer.index.layer(), start: asked.start, end: asked.end });
        };
        let mut cutter = Cutter::new(layer, whole.start);
        self.deliver(&mut cutter, before).await;
        let sent = Instant::now();
        let (outages, place) = (Arc::clone(&self.planner.outages), Arc::clone(&layer.place));
        let watch = Watch { outages, place, anew: ANEW };
        let opening = Steady::open(Arc::clone(reader), asked, &layer.traffic, self.run.patience, watch);
        let mut answer = opening.await?;
        self.planner.outages.answered(&layer.place);
        self.planner.lock().answered(self.run.id, sent.elapsed());
        tracing::trace!(read = self.run.id, after = ?sent.elapsed(), "answered");
        while let Some(piece) = answer.next().await {
            let piece = piece?;
            self.planner.lock().received(self.run.id, piece.len() as u64);
            // Bytes of a long answer say as much as the beginning of another.
            self.planner.outages.answered(&layer.place);
            self.planner.pump_line(&layer.place);
            self.deliver(&mut cutter, piece).await;
        }
        self.deliver(&mut cutter, after).await;
        tracing::trace!(read = self.run.id, after = ?sent.elapsed(), "complete");
        Ok(())
    }

    /// Takes in bytes and hands out the spans that they complete.
    async fn deliver(&mut self, cutter: &mut Cutter<'_>, mut piece: Bytes) {
        while let Some(span) = self.left.front().copied() {
            let Some((start, bytes)) = cutter.fill(span, &mut piece) else { return };
            // Of several spans that share their bytes the first has put them in place.
            if !self.run.layer.has(span) {
                let (layer, kept) = (Arc::clone(&self.run.layer), bytes.clone());
                let written = tokio::task::spawn_blocking(move || layer.blob.write(start, &kept)).await;
                if let Ok(Err(error)) = written {
                    // A full or failing disk costs a later fetch, never this read.
                    tracing::debug!(layer = %self.run.layer.index.layer(), %error, "fetched bytes are not kept");
                }
            }
            self.left.pop_front();
            self.planner.lock().deliver(Key::asked(&self.run.layer, span), Ok(bytes));
        }
    }
}

/// Cuts a stream of bytes into spans, which may share bytes, and leave some out, but never begin or end before the one before.
struct Cutter<'a> {
    layer: &'a Layer,
    /// Where the stream has come to in the blob.
    at: u64,
    /// The last span that was whole, and where it begins.
    last: (u64, Bytes),
    /// The span being filled.
    span: Option<BytesMut>,
}

impl<'a> Cutter<'a> {
    fn new(layer: &'a Layer, at: u64) -> Self {
        Self { layer, at, last: (at, Bytes::new()), span: None }
    }

    /// Moves bytes from `piece` into `span`; its place and bytes once it is whole.
    fn fill(&mut self, span: SpanId, piece: &mut Bytes) -> Option<(u64, Bytes)> {
        let range = self.layer.index.compressed(span);
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut filled = match self.span.take() {
            Some(filled) => filled,
            None => {
                let shared = self.shared(&range);
                if shared.len() == length {
                    return Some((range.start, shared));
                }
                let mut filled = BytesMut::with_capacity(length);
                filled.extend_from_slice(&shared);
                filled
            }
        };
        // Bytes between spans belong to none.
        let skipped = usize::try_from(range.start.saturating_sub(self.at)).unwrap_or(usize::MAX).min(piece.len());
        bytes::Buf::advance(piece, skipped);
        self.at += skipped as u64;
        let taken = (length - filled.len()).min(piece.len());
        filled.extend_from_slice(&piece.split_to(taken));
        self.at += taken as u64;
        if filled.len() < length {
            self.span = Some(filled);
            return None;
        }
        self.last = (range.start, filled.freeze());
        Some((range.start, self.last.1.clone()))
    }

    /// What the last span has of `range`, from its beginning on.
    fn shared(&self, range: &Range<u64>) -> Bytes {
        let (start, bytes) = &self.last;
        let from = usize::try_from(range.start.saturating_sub(*start)).unwrap_or(usize::MAX).min(bytes.len());
        let to = usize::try_from(range.end.saturating_sub(*start)).unwrap_or(usize::MAX).min(bytes.len());
        bytes.slice(from..to.max(from))
    }
}

/// Bytes that the blob store has; none if it has lost them.
async fn local(layer: &Arc<Layer>, range: Range<u64>) -> Option<Bytes> {
    if range.is_empty() {
        return Some(Bytes::new());
    }
    let layer = Arc::clone(layer);
    tokio::task::spawn_blocking(move || layer.blob.read(range)).await.ok()?.ok()?
}
