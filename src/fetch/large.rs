//! Spans too large for memory: a layer that is one big zstd frame is one span.
//!
//! Such a span is streamed and decoded once, into a file without a name, which goes when the layer is closed or the
//! process ends, and is memory-mapped from there: the kernel keeps of it what it has room for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use memmap2::Mmap;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use super::pieces::pieces;
use super::{Error, Layer};
use crate::index::{self, LayerIndex, SpanId};

/// Decoded spans above this many bytes go to a file.
const LARGE: u64 = 16 << 20;

/// The large spans of one layer that have been decoded.
#[derive(Debug)]
pub(super) struct LargeSpans {
    /// Where the files are made.
    directory: PathBuf,
    /// Protects the table; held for look-ups and insertions only.
    decoded: Mutex<HashMap<SpanId, Bytes>>,
}

/// Why a large span could not be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its bytes are wrong or its index is damaged.
    Decode(index::Error),
    /// Its bytes could not be had.
    Input(Error),
}

impl LargeSpans {
    /// None yet; their files will be made in `directory`, on the cache's file system.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, decoded: Mutex::default() }
    }

    /// True if `span` of `index` is to be had from here.
    pub(super) fn is_large(index: &LayerIndex, span: SpanId) -> bool {
        let range = index.decoded(span);
        range.end - range.start > LARGE
    }

    pub(super) fn get(&self, span: SpanId) -> Option<Bytes> {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner).get(&span).cloned()
    }

    fn put(&self, span: SpanId, bytes: &Bytes) {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner).insert(span, bytes.clone());
    }
}

/// Streams, decodes and verifies a large span, and keeps it as long as the layer is open.
pub(super) async fn obtain(layer: &Arc<Layer>, span: SpanId) -> Result<Bytes, Failure> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(2);
    let decoding = Arc::clone(layer);
    let decoder = tokio::task::spawn_blocking(move || {
        let received = std::iter::from_fn(move || receiver.blocking_recv());
        decode(&decoding.index, span, received, &decoding.large.directory)
    });
    let range = layer.index.compressed(span);
    let mut pieces = std::pin::pin!(pieces(&layer.blob, layer.reader.as_ref(), range, &layer.traffic));
    let mut failed = None;
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(bytes) => {
                // A closed channel means that the decoder has seen enough.
                if sender.send(bytes).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let decoded = decoder.await.map_err(|_| Failure::Input(Error::Interrupted))?;
    if let Some(error) = failed {
        return Err(Failure::Input(error));
    }
    let bytes = decoded.map_err(Failure::Decode)?;
    layer.large.put(span, &bytes);
    Ok(bytes)
}

fn decode(
    index: &LayerIndex,
    span: SpanId,
    pieces: impl Iterator<Item = Bytes>,
    directory: &Path,
) -> Result<Bytes, index::Error> {
    let file = create(directory).map_err(index::Error::Output)?;
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    index.decode_to(span, pieces, &mut writer)?;
    writer.flush().map_err(index::Error::Output)?;
    drop(writer);
    map(&file).map_err(index::Error::Output)
}

fn create(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?))
}

fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the file has no name and only this process has it open, so nobody can change or shorten it while it is
    // mapped.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}
