//! Writing a parcel: what is here, verified once more on its way out.
//!
//! Bytes in the blob store may have come ahead of any reader, and disks rot, so every span is decoded and compared with the
//! index before it is written; what is wrong is left out and forgotten. A layer that is all here is written as one, and hashed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::format::{Form, LayerHead, Writer};
use super::{Contents, Error, Exported, Progress, Spans};
use crate::fetch::{Layer, Ranges};
use crate::index::{self, SpanId};
use crate::limits::{PARCEL_SPAN_BYTES, PARCEL_STRETCH_BYTES, REPLAY_STEPS};
use crate::oci::{Digest, Hasher};
use crate::profile::Profile;
use crate::tree::NodeKind;

/// Length from which on a stretch is written out: neighbours share its 60 bytes of frame, and little memory is held.
const STRETCH: u64 = 1 << 20;

/// Bytes of a whole layer that are read at once.
const PIECE: u64 = 1 << 20;

/// Bytes of the layers that an export of `contents` reads, about: for whoever shows progress.
pub(super) fn estimate(contents: &Contents) -> u64 {
    let wanted = wanted(contents);
    let mut seen = BTreeSet::new();
    let layers = contents.layers.iter().filter(|layer| seen.insert(layer.index.layer()));
    layers
        .map(|layer| match wanted.as_ref().map(|wanted| wanted.get(&layer.index.layer())) {
            None => layer.blob.present_bytes(),
            Some(None) => 0,
            Some(Some(spans)) => spans.iter().map(|span| length(&layer.index.compressed(*span))).sum(),
        })
        .sum()
}

/// Writes `contents` to `out`. Blocks; memory does not depend on the length.
///
/// An error leaves an unfinished parcel behind, which [`super::import()`] refuses.
pub fn export(contents: &Contents, out: impl Write, progress: &Progress) -> Result<Exported, Error> {
    let mut writer = Writer::new(out)?;
    for (digest, bytes) in &contents.documents {
        writer.document(digest, bytes)?;
    }
    let wanted = wanted(contents);
    let mut export = Export { writer, progress, exported: Exported::default() };
    let mut seen = BTreeSet::new();
    for layer in &contents.layers {
        let digest = layer.index.layer();
        if seen.insert(digest) {
            let nothing = BTreeSet::new();
            let spans = wanted.as_ref().map(|wanted| wanted.get(&digest).unwrap_or(&nothing));
            export.layer(layer, spans)?;
        }
        progress.finished.fetch_add(1, Ordering::Relaxed);
    }
    let Export { mut writer, exported, .. } = export;
    if let Some((manifest, profile)) = &contents.profile {
        writer.profile(manifest, profile.to_text().as_bytes())?;
    }
    if let Some(named) = &contents.named {
        writer.reference(named)?;
    }
    writer.finish()?;
    Ok(exported)
}

/// The spans to carry of each layer; none if all.
fn wanted(contents: &Contents) -> Option<HashMap<Digest, BTreeSet<SpanId>>> {
    match (&contents.spans, &contents.profile) {
        (Spans::All, _) | (Spans::OfProfile, None) => None,
        (Spans::OfProfile, Some((_, profile))) => Some(named_spans(contents, profile)),
        (Spans::In(ranges), _) => Some(spans_in(contents, ranges)),
    }
}

/// The spans all of whose bytes lie in these ranges.
fn spans_in(contents: &Contents, ranges: &Ranges) -> HashMap<Digest, BTreeSet<SpanId>> {
    let of_layer = |layer: &Arc<Layer>| {
        let ranges = ranges.get(&layer.index.layer()).map(Vec::as_slice).unwrap_or_default();
        let is_inside = |span: &SpanId| {
            let Range { start, end } = layer.index.compressed(*span);
            let before = ranges.partition_point(|range| range.start <= start);
            before.checked_sub(1).is_some_and(|number| end <= ranges[number].end)
        };
        (layer.index.layer(), layer.index.span_ids().filter(is_inside).collect())
    };
    contents.layers.iter().map(of_layer).collect()
}

/// The spans that `profile` names. As in a replay, paths that are not there are passed over, and the work is bounded.
fn named_spans(contents: &Contents, profile: &Profile) -> HashMap<Digest, BTreeSet<SpanId>> {
    let mut spans: HashMap<Digest, BTreeSet<SpanId>> = HashMap::new();
    let mut steps = 0;
    for access in profile.accesses() {
        let Some(node) = contents.tree.resolve(access.path(), false) else { continue };
        let node = contents.tree.node(node);
        if node.kind() != NodeKind::Regular {
            continue;
        }
        for extent in node.extents() {
            steps += 1;
            let start = access.start().max(extent.file_offset);
            let end = access.end().min(extent.file_offset.saturating_add(extent.length));
            let Some(layer) = contents.layers.get(extent.layer as usize).filter(|_| start < end) else { continue };
            let at = extent.layer_offset + (start - extent.file_offset);
            let known = spans.entry(layer.index.layer()).or_default();
            for span in layer.index.spans(at..at + (end - start)) {
                steps += 1;
                known.insert(span);
            }
            if steps > REPLAY_STEPS {
                return spans;
            }
        }
    }
    spans
}

struct Export<'a, W> {
    writer: Writer<W>,
    progress: &'a Progress,
    exported: Exported,
}

/// Bytes of a layer that are written together.
struct Stretch {
    offset: u64,
    bytes: Vec<u8>,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// True if a span at `range` is to be written with this stretch: it touches it, and shares more than the one byte that
    /// gzip's neighbours do, or there is room for it.
    fn takes(&self, range: &Range<u64>) -> bool {
        let grown = range.end.max(self.end()) - self.offset;
        let shares = range.start + 1 < self.end();
        range.start <= self.end() && grown <= PARCEL_STRETCH_BYTES && (shares || (self.bytes.len() as u64) < STRETCH)
    }
}

impl<W: Write> Export<'_, W> {
    fn layer(&mut self, layer: &Layer, spans: Option<&BTreeSet<SpanId>>) -> Result<(), Error> {
        let index = &layer.index;
        let is_long = |span: &SpanId| is_long(layer, *span);
        let needs_all = spans.is_none_or(|spans| spans.iter().any(is_long));
        let form = if needs_all && layer.blob.is_complete() { Form::Whole } else { Form::Parts };
        let head = LayerHead { layer: index.layer(), size: index.compressed_size(), diff_id: index.diff_id(), form };
        self.writer.layer(&head)?;
        match form {
            Form::Whole => self.whole(layer),
            Form::Parts => self.parts(layer, spans),
        }
    }

    fn whole(&mut self, layer: &Layer) -> Result<(), Error> {
        let digest = layer.index.layer();
        let mut hasher = Hasher::new(digest.algorithm());
        let mut start = 0;
        while start < layer.blob.size() {
            let end = layer.blob.size().min(start + PIECE);
            let bytes = layer.blob.read(start..end)?.ok_or(Error::Rotten(digest))?;
            hasher.update(&bytes);
            self.put(start, &bytes)?;
            start = end;
        }
        if hasher.finish() == digest { Ok(()) } else { Err(Error::Rotten(digest)) }
    }

    fn parts(&mut self, layer: &Layer, spans: Option<&BTreeSet<SpanId>>) -> Result<(), Error> {
        let index = layer.index.encoded().ok_or(Error::Windows(layer.index.layer()))?;
        self.writer.index(&index)?;
        // In the order of the blob, which need not be that of the stream.
        let mut here: BTreeMap<(u64, u64), Vec<SpanId>> = BTreeMap::new();
        let all = layer.index.span_ids().filter(|span| spans.is_none_or(|spans| spans.contains(span)));
        for span in all.filter(|span| layer.has(*span)) {
            if is_long(layer, span) {
                self.exported.too_long += 1;
                continue;
            }
            let range = layer.index.compressed(span);
            here.entry((range.start, range.end)).or_default().push(span);
        }
        let mut open: Option<Stretch> = None;
        for ((start, end), spans) in here {
            let range = start..end;
            let Some(bytes) = self.verified(layer, &range, &spans)? else { continue };
            if let Some(stretch) = open.take_if(|stretch| !stretch.takes(&range)) {
                self.put(stretch.offset, &stretch.bytes)?;
            }
            let stretch = open.get_or_insert_with(|| Stretch { offset: start, bytes: Vec::new() });
            let new = stretch.end().saturating_sub(start).min(bytes.len() as u64) as usize;
            stretch.bytes.extend_from_slice(&bytes[new..]);
        }
        open.map_or(Ok(()), |stretch| self.put(stretch.offset, &stretch.bytes))
    }

    /// The bytes at `range` if they are here and all `spans` made of them are right.
    fn verified(&mut self, layer: &Layer, range: &Range<u64>, spans: &[SpanId]) -> Result<Option<bytes::Bytes>, Error> {
        let mark = layer.blob.mark();
        let Some(bytes) = layer.blob.read(range.clone())? else { return Ok(None) };
        for span in spans {
            match layer.index.decode(*span, &bytes) {
                Ok(_) => {}
                Err(error @ index::Error::Span { .. }) => {
                    tracing::warn!(layer = %layer.index.layer(), %error, "span does not verify, it is left out");
                    if layer.may_forget() {
                        layer.blob.discard_since(range.clone(), mark)?;
                    }
                    self.exported.damaged += 1;
                    return Ok(None);
                }
                Err(source) => return Err(Error::Index { layer: layer.index.layer(), source: Box::new(source) }),
            }
        }
        Ok(Some(bytes))
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.writer.stretch(offset, bytes)?;
        self.exported.bytes += bytes.len() as u64;
        self.progress.taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// True if a span is too long to be verified in memory by who imports it.
fn is_long(layer: &Layer, span: SpanId) -> bool {
    length(&layer.index.decoded(span)) > PARCEL_SPAN_BYTES
        || length(&layer.index.compressed(span)) > PARCEL_STRETCH_BYTES
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}
