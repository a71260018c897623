//! How much may be fetched ahead, and of what nothing is left to fetch.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::{Files, Spans, length};
use crate::fetch::Layer;
use crate::index::SpanId;
use crate::limits::{AHEAD_BYTES, AHEAD_FILES, AHEAD_PARSED_BYTES, REPLAY_STEPS};
use crate::oci::Digest;
use crate::tree::NodeId;

/// What one run may still do.
#[derive(Debug)]
pub(super) struct Budget {
    /// Compressed bytes.
    bytes: u64,
    /// Extents and spans looked at.
    steps: u64,
    /// Files looked into.
    files: usize,
    /// Bytes of modules parsed.
    parsed: u64,
    /// Spans that were taken. A layer that an image lists twice counts once.
    taken: HashSet<(Digest, SpanId)>,
}

impl Budget {
    /// Half of the image, or a little more of a small one.
    pub(super) fn new(layers: &[Arc<Layer>]) -> Self {
        let mut seen = HashSet::new();
        let sizes = layers.iter().filter(|layer| seen.insert(layer.index.layer()));
        let total = sizes.map(|layer| layer.index.compressed_size()).fold(0, u64::saturating_add);
        Self {
            bytes: (total / 2).max(AHEAD_BYTES),
            steps: REPLAY_STEPS,
            files: AHEAD_FILES,
            parsed: AHEAD_PARSED_BYTES,
            taken: HashSet::new(),
        }
    }

    /// One more file.
    pub(super) fn look(&mut self) -> bool {
        self.files = self.files.saturating_sub(1);
        self.files > 0
    }

    /// The spans that hold `range` of a file, in order, that were not taken yet, are not here, and can be had. Ranges
    /// beyond the file are cut; what is no regular file has no spans.
    pub(super) fn take(&mut self, files: &Files, node: NodeId, range: Range<u64>) -> Spans {
        let mut spans = Vec::new();
        for part in files.parts(node, range) {
            if !self.step() {
                break;
            }
            if !can_give(part.layer) {
                continue;
            }
            for span in part.layer.index.spans(part.stream) {
                if !self.step() {
                    return spans;
                }
                if self.accept(part.layer, span) {
                    spans.push((Arc::clone(part.layer), span));
                }
            }
        }
        spans
    }

    /// The spans that hold `range` of a file and are not here, in order, each of them taken now or before, and those that are
    /// taken now; none if one of them may not be.
    pub(super) fn cover(&mut self, files: &Files, node: NodeId, range: Range<u64>) -> Option<(Spans, Spans)> {
        let (mut spans, mut new) = (Vec::new(), Vec::new());
        for part in files.parts(node, range) {
            for span in part.layer.index.spans(part.stream) {
                let is_here = part.layer.has(span);
                let is_taken = is_here || self.taken.contains(&(part.layer.index.layer(), span));
                let may_be_taken = is_taken || can_give(part.layer) && self.accept(part.layer, span);
                if !may_be_taken || !self.step() {
                    self.give_back(&new);
                    return None;
                }
                if !is_taken {
                    new.push((Arc::clone(part.layer), span));
                }
                if !is_here {
                    spans.push((Arc::clone(part.layer), span));
                }
            }
        }
        Some((spans, new))
    }

    /// Takes back that spans were taken: nobody fetches them.
    fn give_back(&mut self, spans: &[(Arc<Layer>, SpanId)]) {
        self.bytes = self.bytes.saturating_add(length(spans));
        for (layer, span) in spans {
            self.taken.remove(&(layer.index.layer(), *span));
        }
    }

    /// Allows so many more bytes to be parsed; false if there were too many.
    pub(super) fn parse(&mut self, bytes: u64) -> bool {
        let left = self.parsed.checked_sub(bytes);
        self.parsed = left.unwrap_or(self.parsed);
        left.is_some()
    }

    /// The spans of `layer` that lie before `end` in its blob, in stream order, that were not taken yet, are not here, and can
    /// be had.
    pub(super) fn take_before(&mut self, layer: &Arc<Layer>, end: u64) -> Spans {
        let mut spans = Vec::new();
        if !can_give(layer) {
            return spans;
        }
        for span in layer.index.span_ids() {
            if !self.step() {
                break;
            }
            if layer.index.compressed(span).end <= end && self.accept(layer, span) {
                spans.push((Arc::clone(layer), span));
            }
        }
        spans
    }

    fn accept(&mut self, layer: &Layer, span: SpanId) -> bool {
        let key = (layer.index.layer(), span);
        let compressed = layer.index.compressed(span);
        let length = compressed.end - compressed.start;
        if length > self.bytes || self.taken.contains(&key) || layer.blob.missing(compressed).is_empty() {
            return false;
        }
        self.bytes -= length;
        self.taken.insert(key)
    }

    fn step(&mut self) -> bool {
        self.steps = self.steps.saturating_sub(1);
        self.steps > 0
    }
}

/// True if the layer has bytes that are not here and may be asked for.
fn can_give(layer: &Layer) -> bool {
    layer.reader.is_some() && !layer.blob.is_complete()
}
