//! Reading a file: from its decoded copy, from spans in memory, or later.

use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Error, FileSystem, Ino};
use crate::fetch::{Fetcher, Layer};
use crate::tree::{Extent, NodeKind};

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

/// One contiguous part of a read.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Zeros.
    Hole(usize),
    /// Bytes of a layer's uncompressed stream.
    Data { layer: usize, offset: u64, length: usize },
}

impl FileSystem {
    /// Reads up to `size` bytes at `offset`.
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
        self.recorder.note(id, offset..end);
        if let Some(file) = self.open.file(id) {
            let mut buffer = vec![0; usize::try_from(end - offset).unwrap_or(0)];
            file.read_exact_at(&mut buffer, offset).map_err(|error| Error::CachedFile(Arc::new(error)))?;
            return Ok(Read::Ready(buffer.into()));
        }
        self.open.note_read(id);
        self.fetcher.demand().note();
        let parts = parts(node.extents(), offset, end);
        if let Some(bytes) = self.at_once(&parts) {
            return Ok(Read::Ready(bytes));
        }
        let fetcher = self.fetcher.clone();
        // A read touches few layers, and an extent beyond them cannot come out of a merge.
        let layers = self.layers.clone();
        Ok(Read::Later(Box::pin(async move { assemble(&fetcher, &layers, &parts).await })))
    }

    /// The parts put together if every span they need is decoded in memory, but for one that can be decoded here and now.
    /// More than one are decoded faster side by side.
    fn at_once(&self, parts: &[Part]) -> Option<Bytes> {
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

/// The parts of `offset..end` of a file, holes included, in order.
fn parts(extents: impl Iterator<Item = Extent>, offset: u64, end: u64) -> Vec<Part> {
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

async fn assemble(fetcher: &Fetcher, layers: &[Arc<Layer>], parts: &[Part]) -> Result<Bytes, Error> {
    let _waiting = fetcher.demand().enter();
    let mut pieces = Vec::new();
    for part in parts {
        match *part {
            Part::Hole(length) => pieces.push(Bytes::from(vec![0; length])),
            Part::Data { layer, offset, length } => {
                let layer = layers.get(layer).ok_or(Error::WrongType)?;
                let spans: Vec<_> = layer.index.spans(offset..offset + length as u64).collect();
                let decoded = futures_util::future::try_join_all(spans.iter().map(|span| fetcher.span(layer, *span)));
                for (span, decoded) in spans.iter().zip(decoded.await?) {
                    pieces.push(cut(layer, *span, &decoded, offset, length).ok_or(Error::WrongType)?);
                }
            }
        }
    }
    Ok(join(pieces))
}

/// The part of a decoded span that lies in `offset..offset + length` of the layer, without copying.
fn cut(layer: &Layer, span: crate::index::SpanId, decoded: &Bytes, offset: u64, length: usize) -> Option<Bytes> {
    let range = layer.index.decoded(span);
    let start = offset.max(range.start).checked_sub(range.start)?;
    let stop = (offset + length as u64).min(range.end).checked_sub(range.start)?;
    let (start, stop) = (usize::try_from(start).ok()?, usize::try_from(stop).ok()?);
    (start <= stop && stop <= decoded.len()).then(|| decoded.slice(start..stop))
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
