//! What a read says about the reads to come, in terms of files: which other files lie beside it.
//!
//! Programs read packages: having read one small file of a directory they read more of it. The spans that hold the small
//! files of the same directory in the same layer are handed to the fetcher as neighbours, the nearest first. What it
//! makes of them depends on the line.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::FileSystem;
use crate::fetch::Layer;
use crate::index::SpanId;
use crate::tree::{Extent, NodeId, NodeKind, Tree};

/// Longest file that counts as small: sources, byte code, data. Libraries lie beside others that no program needs together.
const SMALL: u64 = 128 << 10;

/// Trees with more nodes than this are not searched for neighbours: the table would cost too much to make.
const NODES: u32 = 1 << 18;

/// Siblings looked at on each side of a file.
const SIBLINGS: u32 = 512;

/// Finds the directory of a file: nodes are numbered breadth first, so the children of a directory are neighbours.
#[derive(Debug, Default)]
pub(super) struct Directories {
    /// The number of each directory's first child, ascending, and the directory; made at the first use.
    starts: OnceLock<Vec<(u32, NodeId)>>,
}

impl Directories {
    /// The numbers of the nodes that have their first name in the same directory as `node`.
    pub(super) fn siblings(&self, tree: &Tree, node: NodeId) -> Range<u32> {
        let Some((starts, after)) = self.place(tree, node) else { return node.get()..node.get() + 1 };
        let start = after.checked_sub(1).map_or(0, |before| starts[before].0);
        start..starts.get(after).map_or(tree.node_count(), |(start, _)| *start)
    }

    /// The directory that has the first name of `node`, which is not the root; none in trees that are too large.
    pub(super) fn of(&self, tree: &Tree, node: NodeId) -> Option<NodeId> {
        let (starts, after) = self.place(tree, node)?;
        Some(starts[after.checked_sub(1)?].1)
    }

    /// The table, and the place in it behind the directory of `node`; none in trees that are too large.
    fn place(&self, tree: &Tree, node: NodeId) -> Option<(&[(u32, NodeId)], usize)> {
        if tree.node_count() > NODES {
            return None;
        }
        let starts = self.starts.get_or_init(|| starts(tree));
        Some((starts, starts.partition_point(|(start, _)| *start <= node.get())))
    }
}

fn starts(tree: &Tree) -> Vec<(u32, NodeId)> {
    let directories = (0..tree.node_count()).filter_map(|number| tree.id(number));
    let directories = directories.filter(|id| tree.node(*id).kind() == NodeKind::Directory);
    let mut starts = Vec::new();
    let mut next = 1;
    for directory in directories {
        // Other names of files that were numbered before begin no run.
        let own = tree.children(directory, 0).filter(|child| child.node.get() >= next).count() as u32;
        if own > 0 {
            starts.push((next, directory));
        }
        next += own;
    }
    starts
}

impl FileSystem {
    /// Tells the fetcher of a read, so that it can fetch ahead. Must be called in a runtime.
    pub(super) fn foresee(&self, id: NodeId, range: Range<u64>) {
        let mut waits = false;
        for extent in self.tree.node(id).extents() {
            let start = range.start.max(extent.file_offset);
            let end = range.end.min(extent.file_offset + extent.length);
            let Some(layer) = self.layers.get(extent.layer as usize).filter(|_| start < end) else { continue };
            if layer.blob.is_complete() {
                continue;
            }
            let within = |offset| extent.layer_offset + (offset - extent.file_offset);
            let file = extent.layer_offset..extent.layer_offset + extent.length;
            let neighbours = |bytes| self.neighbours(id, &extent, layer, bytes);
            waits |= self.fetcher.read(layer, within(start)..within(end), file, neighbours);
        }
        if range.start == 0 {
            self.follow(id, waits);
        }
    }

    /// At most `bytes` of spans that hold small files beside `id` and are not here, the nearest first.
    fn neighbours(&self, id: NodeId, extent: &Extent, layer: &Arc<Layer>, bytes: u64) -> Vec<SpanId> {
        if self.tree.node(id).size() > SMALL {
            return Vec::new();
        }
        let siblings = self.directories.siblings(&self.tree, id);
        let (low, high) = (id.get().saturating_sub(SIBLINGS), id.get().saturating_add(SIBLINGS));
        let mut spans = BTreeSet::new();
        for number in siblings.start.max(low)..siblings.end.min(high) {
            let Some(node) = self.tree.id(number).map(|id| self.tree.node(id)) else { continue };
            if node.kind() != NodeKind::Regular || node.size() > SMALL {
                continue;
            }
            let same = node.extents().filter(|other| other.layer == extent.layer);
            spans.extend(same.flat_map(|at| layer.index.spans(at.layer_offset..at.layer_offset + at.length)));
        }
        let here = layer.index.spans(extent.layer_offset..extent.layer_offset + extent.length).next();
        let here = here.map_or(0, SpanId::get);
        let mut spans: Vec<_> = spans
            .into_iter()
            .map(|span| (span.get().abs_diff(here), span, layer.index.compressed(span)))
            .filter(|(_, span, _)| !layer.has(*span))
            .collect();
        spans.sort_unstable_by_key(|(far, _, _)| *far);
        let mut left = bytes;
        let fits = spans.into_iter().take_while(|(_, _, range)| {
            let length = range.end - range.start;
            let fits = length <= left;
            left = left.saturating_sub(length);
            fits
        });
        fits.map(|(_, span, _)| span).collect()
    }
}
