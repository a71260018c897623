//! Which parts of some layers readers have touched: what a parcel carries.
//!
//! One bit for each span, set on the path of every read and never cleared, so a read costs a load. What is fetched ahead, filled or
//! decoded for others is not touched; what the kernel is given unasked is, because it will not ask again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Layer;
use crate::index::{LayerIndex, SpanId};
use crate::oci::Digest;

/// Ranges of compressed layers, by layer: ascending, and none touches the next.
pub type Ranges = BTreeMap<Digest, Vec<Range<u64>>>;

/// What was touched of the layers of one tree.
#[derive(Debug)]
pub struct Touched {
    layers: Vec<Spans>,
}

#[derive(Debug)]
struct Spans {
    index: LayerIndex,
    bits: Box<[AtomicU64]>,
}

impl Touched {
    /// Nothing yet of these layers, which are known by their places from here on.
    pub fn new(layers: &[Arc<Layer>]) -> Self {
        let spans = |layer: &Arc<Layer>| {
            let words = layer.index.span_count().div_ceil(u64::BITS);
            Spans { index: layer.index.clone(), bits: (0..words).map(|_| AtomicU64::new(0)).collect() }
        };
        Self { layers: layers.iter().map(spans).collect() }
    }

    /// Notes a read of `range` of the stream of a layer; nothing if there is none at this place.
    pub fn note(&self, layer: usize, range: Range<u64>) {
        if let Some(layer) = self.layers.get(layer) {
            layer.index.spans(range).for_each(|span| layer.set(span));
        }
    }

    /// What was touched so far.
    pub fn ranges(&self) -> Ranges {
        let mut ranges = Ranges::new();
        for layer in &self.layers {
            let touched = layer.index.span_ids().filter(|span| layer.has(*span));
            let known: &mut Vec<_> = ranges.entry(layer.index.layer()).or_default();
            known.extend(touched.map(|span| layer.index.compressed(span)));
        }
        ranges.retain(|_, ranges| {
            join_ranges(ranges);
            !ranges.is_empty()
        });
        ranges
    }
}

impl Spans {
    fn bit(&self, span: SpanId) -> Option<(&AtomicU64, u64)> {
        let number = span.get();
        Some((self.bits.get((number / u64::BITS) as usize)?, 1 << (number % u64::BITS)))
    }

    fn has(&self, span: SpanId) -> bool {
        self.bit(span).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn set(&self, span: SpanId) {
        if let Some((word, bit)) = self.bit(span)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

/// Puts ranges in order, and joins those that touch or overlap.
pub fn join_ranges(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let joins = next.start <= before.end;
        if joins {
            before.end = before.end.max(next.end);
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = vec![5..7, 0..3, 3..4, 6..9, 12..13];
        join_ranges(&mut ranges);
        assert_eq!(ranges, [0..4, 5..9, 12..13]);
    }
}
