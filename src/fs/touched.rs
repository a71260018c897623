//! Which parts of its layers readers of a file system have touched: what a parcel carries.
//!
//! One bit for each span, set on the path of every read and never cleared, so a read costs a load. What is fetched ahead, filled or
//! decoded for others is not touched; what the kernel is given unasked is, because it will not ask again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fetch::Layer;
use crate::index::{LayerIndex, SpanId};
use crate::oci::Digest;
use crate::tree::Extent;

/// Ranges of compressed layers, by layer: ascending, and none touches the next.
pub type Ranges = BTreeMap<Digest, Vec<Range<u64>>>;

/// What was touched of the layers of one file system.
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
    pub(super) fn new(layers: &[Arc<Layer>]) -> Self {
        let spans = |layer: &Arc<Layer>| {
            let words = layer.index.span_count().div_ceil(u64::BITS);
            Spans { index: layer.index.clone(), bits: (0..words).map(|_| AtomicU64::new(0)).collect() }
        };
        Self { layers: layers.iter().map(spans).collect() }
    }

    /// Notes a read of `range` of the file that `extents` make.
    pub(super) fn note(&self, extents: impl Iterator<Item = Extent>, range: &Range<u64>) {
        for extent in extents {
            let Some(layer) = self.layers.get(extent.layer as usize) else { continue };
            let start = range.start.max(extent.file_offset);
            let end = range.end.min(extent.file_offset.saturating_add(extent.length));
            if start < end {
                let at = extent.layer_offset + (start - extent.file_offset);
                layer.index.spans(at..at + (end - start)).for_each(|span| layer.set(span));
            }
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
            join(ranges);
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
pub fn join(ranges: &mut Vec<Range<u64>>) {
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
    use super::super::tests::{content, file, scene};
    use super::super::{Ino, Read};
    use super::*;
    use crate::tree::NodeId;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_read_is_touched_and_nothing_beside_it() {
        let files: Vec<_> = ["a", "b", "c"].iter().map(|name| (file(name, 3_000_000), content(3_000_000))).collect();
        let scene = scene(&files);
        assert!(scene.fs.touched().ranges().is_empty());
        let node = scene.fs.tree().resolve(b"b", false).expect("it is there");
        if let Read::Later(pending) = scene.fs.read(Ino::from(node), 2_500_000, 4096).expect("a file") {
            pending.await.expect("it is fetched");
        }
        let ranges = scene.fs.touched().ranges();
        let index = &scene.fs.layers[0].index;
        let extent = scene.fs.tree().node(node).extents().next().expect("it has bytes");
        let at = extent.layer_offset + 2_500_000;
        let spans: Vec<_> = index.spans(at..at + 4096).map(|span| index.compressed(span)).collect();
        let mut expected = spans.clone();
        join(&mut expected);
        assert_eq!(ranges, Ranges::from([(index.layer(), expected)]));
        assert!(ranges[&index.layer()].iter().all(|range| range.end - range.start < index.compressed_size() / 2));
        assert_ne!(node, NodeId::ROOT);
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = vec![5..7, 0..3, 3..4, 6..9, 12..13];
        join(&mut ranges);
        assert_eq!(ranges, [0..4, 5..9, 12..13]);
    }
}
