//! Fetching before anybody waits: for readers to come, by what they did, by what an earlier start did, or to the end.
//!
//! Everything here hands spans to the planner and decides only which and how urgently. [`ReadAhead`](readahead::ReadAhead) knows one layer's
//! readers, the file system knows the tree and its directories; profiles and fill know what they want.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, StreamExt};

use super::outage::REST;
use super::{Error, Fetcher, LargeSpans, Layer, Priority, pieces, readahead};
use crate::index::SpanId;

/// Files up to this length are fetched as a whole when their first byte has to be waited for: programs and libraries, of
/// which a start reads nearly all. Of a longer file it reads a part that nothing foretells.
const WHOLE_FILE: u64 = 12 << 20;

/// How often a span that fails is asked for in the end: for half an hour, with pauses that begin with [`REST`] and grow.
const TRIES: u32 = 8;

/// How often these pauses double.
const LONGEST_REST: u32 = 4;

/// A span of a layer.
type SpanOf = (Arc<Layer>, SpanId);

/// How many times what the line holds is fetched ahead of a reader that goes in order.
const WINDOW: u64 = 4;

impl Fetcher {
    /// Takes note of a read of `range` of the layer's uncompressed stream, part of a file that lies in `file` of it, and
    /// fetches ahead what will probably be read next. Does nothing for a layer whose bytes are all here.
    ///
    /// Must be called in a runtime, before the spans themselves are waited for. `neighbours` is asked, if the read has to
    /// wait, for at most so many compressed bytes of spans that belong with the file. True if it has to wait.
    pub fn read(
        &self,
        layer: &Arc<Layer>,
        range: Range<u64>,
        file: Range<u64>,
        neighbours: impl FnOnce(u64) -> Vec<SpanId>,
    ) -> bool {
        if layer.reader.is_none() || layer.blob.is_complete() {
            return false;
        }
        let index = &layer.index;
        let needed: Vec<_> = index.spans(range.clone()).collect();
        let (Some(first), Some(last)) = (needed.first(), needed.last()) else { return false };
        let is_missing = |span: &SpanId| !LargeSpans::is_large(index, *span) && !layer.has(*span);
        let mut unforetold: Vec<_> = needed.iter().copied().filter(is_missing).collect();
        let must_wait = !unforetold.is_empty();
        if must_wait {
            self.inner.planner.retain_unwanted(layer, &mut unforetold);
        }
        let (mut spans, count) = (index.spans(file.clone()), index.span_count());
        let file_start = spans.next().unwrap_or(*first);
        let file_end = spans.last().unwrap_or(file_start);
        let product = self.inner.planner.product(layer);
        let step = readahead::Step {
            range,
            file_start: file.start,
            needed: first.get()..last.get() + 1,
            file: file_start.get()..file_end.get() + 1,
            whole_file: file.end - file.start <= WHOLE_FILE,
            count,
            widest: u32::try_from(WINDOW * product * u64::from(count) / index.compressed_size().max(1))
                .unwrap_or(count),
        };
        let ahead = layer.readahead.note(&step, !unforetold.is_empty());
        let mut wanted: Vec<_> = index.span_ids_in(ahead.spans).collect();
        if must_wait && ahead.guesses {
            // What the reader waits for goes first; the rest of the file and its neighbours fill the line behind it.
            wanted.extend(neighbours(product));
        }
        let waited_for = first.get()..=last.get();
        wanted.retain(|span| !waited_for.contains(&span.get()) && is_missing(span));
        if !ahead.guesses {
            // What was foretold comes in the order of need.
            self.inner.planner.retain_unwanted(layer, &mut wanted);
        }
        // Nobody waits for these, so they are not worth a try at a source that is away.
        if !wanted.is_empty() && self.is_away(layer) {
            return must_wait;
        }
        let wanted: Vec<_> = wanted.into_iter().map(|span| (Arc::clone(layer), span)).collect();
        self.inner.planner.bring(&wanted, Priority::ReadAhead, must_wait);
        must_wait
    }

    /// Fetches spans that a reader is on its way to.
    pub fn bring(&self, mut wanted: Vec<(Arc<Layer>, SpanId)>) {
        wanted.retain(|(layer, span)| !LargeSpans::is_large(&layer.index, *span) && !layer.has(*span));
        wanted.retain(|(layer, _)| !self.is_away(layer));
        self.inner.planner.bring(&wanted, Priority::Profile, false);
    }

    /// How many bytes to fetch ahead of a reader that takes all of `layers` in order: what the line holds, several times.
    pub fn reach(&self, layers: &[Arc<Layer>]) -> u64 {
        WINDOW * layers.iter().map(|layer| self.inner.planner.product(layer)).max().unwrap_or(0)
    }

    /// Brings the compressed bytes of `wanted` into the blob store, in this order as far as the wire allows; spans that are too
    /// large for memory beside the others.
    ///
    /// Returns when all are there, or with the first failure. Dropping the future gives up what nobody else waits for.
    pub async fn prefetch(&self, wanted: &[(Arc<Layer>, SpanId)], priority: Priority) -> Result<(), Error> {
        self.prefetch_each(wanted, priority).await.map_err(|(_, error)| error)
    }

    /// As [`Self::prefetch`]; a failure comes with the span that could not be had.
    async fn prefetch_each(&self, wanted: &[SpanOf], priority: Priority) -> Result<(), (SpanOf, Error)> {
        let is_missing = |(layer, span): &&SpanOf| !layer.has(*span);
        let is_large = |(layer, span): &&SpanOf| LargeSpans::is_large(&layer.index, *span);
        let (large, ordinary): (Vec<_>, Vec<_>) = wanted.iter().filter(is_missing).partition(is_large);
        let ordinary: Vec<_> = ordinary.into_iter().cloned().collect();
        let tickets = self.inner.planner.want(&ordinary, priority);
        // All at once, because who waits for one holds its bytes.
        let coming = tickets.into_iter().zip(&ordinary).map(|(ticket, (layer, span))| async move {
            match ticket {
                Some(ticket) => ticket.bytes().await.map(drop).map_err(|error| ((Arc::clone(layer), *span), error)),
                None => Ok(()),
            }
        });
        let mut coming: FuturesOrdered<_> = coming.collect();
        let together = async {
            for (layer, span) in &ordinary {
                coming.next().await.transpose()?;
                if priority == Priority::Profile {
                    // It will be read soon, and the reader should find it decoded.
                    self.decode_soon(layer, *span);
                }
            }
            Ok(())
        };
        let one_by_one = async {
            for (layer, span) in large {
                let range = layer.index.compressed(*span);
                layer.stream_to_disk(range).await.map_err(|error| ((Arc::clone(layer), *span), error))?;
            }
            Ok(())
        };
        tokio::try_join!(together, one_by_one).map(drop)
    }

    /// Brings compressed bytes as [`Self::prefetch`] does, however long their sources are away: rests meanwhile, and goes on
    /// where it was. What cannot be had while others can is asked for a few times more, behind all others and after pauses
    /// that grow, and then left to who reads it. Tries at a source that is away, which gives not even what it gave before,
    /// are none of these.
    pub async fn prefetch_in_the_end(&self, wanted: &[SpanOf], priority: Priority) -> Result<(), Error> {
        self.persist(wanted, priority, REST).await
    }

    /// Brings `wanted`; the first pause is so long.
    pub(super) async fn persist(&self, wanted: &[SpanOf], priority: Priority, rest: Duration) -> Result<(), Error> {
        let mut left: VecDeque<_> = wanted.iter().map(|wanted| (wanted.clone(), 0)).collect();
        let mut asked = 0;
        while let Some(((layer, _), failures)) = left.front() {
            // One try is enough to find out.
            let is_alone = *failures > 0 || self.is_away(layer);
            let together = if is_alone { 1 } else { left.iter().take_while(|(_, failures)| *failures == 0).count() };
            let now: Vec<_> = left.iter().take(together).map(|(wanted, _)| wanted.clone()).collect();
            let is_away = |layer: &Arc<Layer>| self.is_away(layer).then(|| Arc::clone(&layer.place));
            let away: HashSet<_> = now.iter().filter_map(|(layer, _)| is_away(layer)).collect();
            let Err(((layer, span), error)) = self.prefetch_each(&now, priority).await else {
                left.drain(..together);
                continue;
            };
            match error {
                Error::Source(error) if error.is_transient() => {
                    let is_it = |(other, number): &SpanOf| Arc::ptr_eq(other, &layer) && *number == span;
                    let failed = left.iter().position(|(wanted, _)| is_it(wanted)).and_then(|place| left.remove(place));
                    // Its own failure, or that of another like it, may be all that made the place seem away.
                    let counts = !away.contains(&layer.place) || self.still_gives(wanted, &layer.place, asked).await;
                    asked += 1;
                    let tries =
                        failed.map_or(TRIES, |(_, failures)| if counts { failures + 1 } else { failures.max(1) });
                    left.retain(|((layer, span), _)| !layer.has(*span));
                    if tries < TRIES {
                        left.push_back(((Arc::clone(&layer), span), tries));
                    } else {
                        tracing::debug!(layer = %layer.index.layer(), %error, "a span is left to its reader");
                    }
                    let is_fresh = |((next, _), failures): &(SpanOf, u32)| *failures == 0 && !self.is_away(next);
                    if left.front().is_some_and(|next| !is_fresh(next)) {
                        self.rest_for(&layer, rest * (1 << (tries - 1).min(LONGEST_REST))).await;
                    }
                }
                error @ (Error::Store(_) | Error::Interrupted) => return Err(error),
                error => {
                    tracing::debug!(layer = %layer.index.layer(), %error, "a layer is not fetched ahead");
                    left.retain(|((other, _), _)| !Arc::ptr_eq(other, &layer));
                }
            }
        }
        Ok(())
    }

    /// True if `place` gives again what came from it before, or says that it has that no more: then it is there, and what
    /// cannot be had is itself to blame. Of the layers that have something, a `number` chooses whose: one may be lost alone.
    async fn still_gives(&self, wanted: &[SpanOf], place: &Arc<str>, number: usize) -> bool {
        let mut seen = HashSet::new();
        let layers = wanted.iter().map(|(layer, _)| layer).filter(|layer| layer.place == *place);
        let layers = layers.filter(|layer| seen.insert(layer.index.layer()));
        let known = layers.filter_map(|layer| {
            let here = layer.index.span_ids().find(|span| layer.has(*span))?;
            Some((layer.reader.as_ref()?, layer.index.compressed(here).start))
        });
        let known: Vec<_> = known.collect();
        let Some((reader, at)) = known.get(number % known.len().max(1)) else { return false };
        let first = async { reader.read(*at..at + 1).await?.next().await.transpose() };
        let is_there = !first.await.is_err_and(|error| error.is_transient());
        if is_there {
            self.outages().answered(place);
        }
        is_there
    }
}

impl Layer {
    /// Brings bytes into the blob store a piece at a time: for spans that are too large for memory, and for what lies
    /// between spans.
    pub(super) async fn stream_to_disk(self: &Arc<Self>, range: Range<u64>) -> Result<(), Error> {
        let mut pieces = std::pin::pin!(pieces::pieces_of(self, range));
        while let Some(piece) = pieces.next().await {
            piece?;
        }
        Ok(())
    }
}
