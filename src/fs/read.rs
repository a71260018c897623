//! Reading a file: from its decoded copy, from spans in memory, or later.
//!
//! No read needs an open before it, and each is served by what is best at its time.

use std::fs::File;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustix::buffer::spare_capacity;

use super::copies::Found;
use super::{Error, FileSystem, Ino};
use crate::fetch::{Fetcher, Layer, Patience};
use crate::index::SpanId;
use crate::tree::{Extent, Node, NodeId, NodeKind};

/// A read that waits for a fetch or a decode.
pub type Pending = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

/// The answer to a read.
pub enum Read {
    /// The bytes; short only at the end of the file.
    Ready(Bytes),
    /// The bytes will come; the future runs on the fetcher's runtime.
    Later(Pending),
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(bytes) => f.debug_tuple("Ready").field(&bytes.len()).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// Spans of one read that are obtained at once: a claim may cut a file into very short ones.
const PARTS: usize = 32;

/// One contiguous part of a read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// Zeros.
    Hole(usize),
    /// Bytes of a layer's uncompressed stream.
    Data { layer: usize, offset: u64, length: usize },
}

/// What serves a file, once it is decided who may wait for it.
pub(super) enum Serving {
    /// The decoded copy.
    Copy(Arc<File>),
    /// The layer.
    Layer,
    /// The decoded copy of this content, which has to be verified first.
    Check([u8; 32]),
}

impl FileSystem {
    /// Reads up to `size` bytes at `offset`. Must be called on the fetcher's runtime, or in its context.
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Read, Error> {
        let id = self.node_id(ino)?;
        let node = self.tree.node(id);
        if node.kind() != NodeKind::Regular {
            return Err(Error::WrongType);
        }
        let end = node.size().min(offset.saturating_add(u64::from(size)));
        if offset >= end {
            return Ok(Read::Ready(Bytes::new()));
        }
        self.note(id, &node, offset..end);
        match self.serving(id, &node) {
            Serving::Copy(file) => {
                if let Some(bytes) = read_copy(&file, offset, end) {
                    return Ok(Read::Ready(bytes));
                }
            }
            Serving::Check(content) => {
                return Ok(self.read_checked(content, parts(node.extents_in(offset..end), offset, end), offset..end));
            }
            Serving::Layer => self.publisher.offer(id, &node),
        }
        self.foresee(id, offset..end);
        Ok(self.read_layers(parts(node.extents_in(offset..end), offset, end)))
    }

    /// Decides what serves `node`. A long copy that is not verified yet is verified beside its readers if its layers'
    /// bytes are here; if they are not, the copy spares a fetch or is all there is, and readers wait for it.
    pub(super) fn serving(&self, id: NodeId, node: &Node<'_>) -> Serving {
        match self.copies.find(id, node) {
            Found::Copy(file) => Serving::Copy(file),
            Found::Layer => Serving::Layer,
            Found::Unverified(_) if is_local(&self.layers, &parts(node.extents(), 0, node.size())) => {
                self.publisher.verify(id);
                Serving::Layer
            }
            Found::Unverified(content) => Serving::Check(content),
        }
    }

    /// Reads from the layers.
    fn read_layers(&self, parts: Vec<Part>) -> Read {
        self.fetcher.demand().note();
        if let Some(bytes) = self.at_once(&parts) {
            return Read::Ready(bytes);
        }
        let (fetcher, patience) = (self.fetcher.clone(), Arc::clone(&self.patience));
        // A read touches few layers, and an extent beyond them cannot come out of a merge.
        let layers = self.layers.clone();
        Read::Later(Box::pin(async move {
            let since = std::time::Instant::now();
            let result = assemble(&fetcher, &patience, &layers, &parts).await;
            tracing::trace!(waited = ?since.elapsed(), ?parts, "read");
            result
        }))
    }

    /// Reads from the copy of `content` once it is verified, else from the layers.
    fn read_checked(&self, content: [u8; 32], parts: Vec<Part>, range: Range<u64>) -> Read {
        let check = self.copies.check(content);
        let (fetcher, layers) = (self.fetcher.clone(), self.layers.clone());
        let patience = Arc::clone(&self.patience);
        Read::Later(Box::pin(async move {
            if let Some(file) = check.await {
                let read = tokio::task::spawn_blocking(move || read_copy(&file, range.start, range.end)).await;
                if let Some(bytes) = read.unwrap_or_default() {
                    return Ok(bytes);
                }
            }
            assemble(&fetcher, &patience, &layers, &parts).await
        }))
    }

    /// The parts put together if every span they need is decoded in memory, but for one that can be decoded here and now.
    /// More than one are decoded faster side by side.
    pub(super) fn at_once(&self, parts: &[Part]) -> Option<Bytes> {
        let mut pieces = Vec::new();
        let mut decoded_here = false;
        for part in parts {
            match *part {
                Part::Hole(length) => pieces.push(Bytes::from(vec![0; length])),
                Part::Data { layer, offset, length } => {
                    let layer = self.layers.get(layer)?;
                    for span in layer.index.spans(offset..offset + length as u64) {
                        let decoded = match self.fetcher.cached(layer, span) {
                            Some(decoded) => decoded,
                            None if std::mem::replace(&mut decoded_here, true) => return None,
                            None => self.fetcher.span_now(layer, span)?,
                        };
                        pieces.push(cut(layer, span, &decoded, offset, length)?);
                    }
                }
            }
        }
        Some(join(pieces))
    }
}

/// The bytes `start..end` of a decoded copy, which has them; none if the disk fails.
pub(super) fn read_copy(file: &File, start: u64, end: u64) -> Option<Bytes> {
    let wanted = usize::try_from(end - start).ok()?;
    let mut bytes = Vec::with_capacity(wanted);
    while bytes.len() < wanted {
        let room = wanted - bytes.len();
        // Into memory that nobody has zeroed before. There may be more of it than was asked for.
        match rustix::io::pread(file, spare_capacity(&mut bytes), start + (wanted - room) as u64) {
            Ok(0) => {
                tracing::warn!("cached file is shorter than it was");
                return None;
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // The layer has the same bytes.
                tracing::warn!(%error, "cached file cannot be read");
                return None;
            }
        }
    }
    bytes.truncate(wanted);
    Some(bytes.into())
}

/// True if nothing of these parts has to come over the network: they can be decoded here, or are zeros.
pub(super) fn is_local(layers: &[Arc<Layer>], parts: &[Part]) -> bool {
    parts.iter().all(|part| match *part {
        Part::Hole(_) => true,
        Part::Data { layer, offset, length } => layers
            .get(layer)
            .is_some_and(|layer| layer.index.spans(offset..offset + length as u64).all(|span| layer.is_at_hand(span))),
    })
}

/// The parts of `offset..end` of a file, holes included, in order. Extents outside are passed over.
pub(super) fn parts(extents: impl Iterator<Item = Extent>, offset: u64, end: u64) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = offset;
    for extent in extents {
        let (start, stop) = (extent.file_offset.max(at), (extent.file_offset + extent.length).min(end));
        if start >= stop {
            continue;
        }
        if start > at {
            parts.push(Part::Hole((start - at) as usize));
        }
        parts.push(Part::Data {
            layer: extent.layer as usize,
            offset: extent.layer_offset + (start - extent.file_offset),
            length: (stop - start) as usize,
        });
        at = stop;
    }
    if at < end {
        parts.push(Part::Hole((end - at) as usize));
    }
    parts
}

pub(super) async fn assemble(
    fetcher: &Fetcher,
    patience: &Patience,
    layers: &[Arc<Layer>],
    parts: &[Part],
) -> Result<Bytes, Error> {
    let mut pieces = Vec::new();
    for part in parts {
        match *part {
            Part::Hole(length) => pieces.push(Bytes::from(vec![0; length])),
            Part::Data { layer, offset, length } => {
                let layer = layers.get(layer).ok_or(Error::WrongType)?;
                let spans: Vec<_> = layer.index.spans(offset..offset + length as u64).collect();
                let part =
                    |span: &SpanId| fetcher.part_for(patience, layer, *span, within(layer, *span, offset, length));
                let parts = stream::iter(spans.iter().map(part)).buffered(PARTS);
                pieces.extend(parts.try_collect::<Vec<_>>().await?);
            }
        }
    }
    Ok(join(pieces))
}

/// The part of a decoded span that lies in `offset..offset + length` of the layer, without copying.
fn cut(layer: &Layer, span: SpanId, decoded: &Bytes, offset: u64, length: usize) -> Option<Bytes> {
    let part = within(layer, span, offset, length);
    let (start, stop) = (usize::try_from(part.start).ok()?, usize::try_from(part.end).ok()?);
    (start <= stop && stop <= decoded.len()).then(|| decoded.slice(start..stop))
}

/// Where `offset..offset + length` of the layer, which `span` has some of, lies in the decoded span.
fn within(layer: &Layer, span: SpanId, offset: u64, length: usize) -> Range<u64> {
    let range = layer.index.decoded(span);
    let stop = (offset + length as u64).min(range.end);
    offset.max(range.start) - range.start..stop.saturating_sub(range.start)
}

fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in &pieces {
        whole.extend_from_slice(piece);
    }
    whole.freeze()
}
