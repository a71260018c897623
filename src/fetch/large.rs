//! Spans too large for memory: a layer that is one big zstd frame is one span.
//!
//! Such a span is streamed and decoded once, into a file without a name, which goes when the layer is closed or the
//! process ends, and is memory-mapped from there: the kernel keeps of it what it has room for.
//!
//! A disk that has no room for it costs time, never a read ([`Fetcher::part`]): the span is decoded from its beginning for
//! each window of it that is wanted, and only that window is kept, in the memory that decoded spans have anyway.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::pieces::pieces_of;
use super::spans::{Key, Use};
use super::{Error, Fetcher, Layer};
use crate::index::{self, LayerIndex, SpanId};
use crate::store::{Scratch, ScratchFile};

/// Spans above this many bytes, decoded or compressed, go to a file.
const LARGE: u64 = 16 << 20;

/// Length of a window: half of the memory for decoded spans, which is the most that is kept there for one of them.
const WINDOW: u64 = 32 << 20;

/// Where a large span is decoded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// A file, all of it.
    File,
    /// Memory, this window of it.
    Window(u32),
}

/// The large spans of one layer that have been decoded.
#[derive(Debug)]
pub(super) struct LargeSpans {
    /// Where the files are made.
    pub(super) scratch: Scratch,
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
    /// None yet.
    pub(super) fn new(scratch: Scratch) -> Self {
        Self { scratch, decoded: Mutex::default() }
    }

    /// True if `span` of `index` is to be had from here: if what it decodes to is long, or what it decodes from.
    pub(super) fn is_large(index: &LayerIndex, span: SpanId) -> bool {
        [index.decoded(span), index.compressed(span)].into_iter().any(|range| range.end - range.start > LARGE)
    }

    pub(super) fn get(&self, span: SpanId) -> Option<Bytes> {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner).get(&span).cloned()
    }

    fn put(&self, span: SpanId, bytes: &Bytes) {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner).insert(span, bytes.clone());
    }
}

impl Fetcher {
    /// The bytes `within` the decoded `span`, counted from its beginning, as [`Fetcher::span`] has them.
    ///
    /// Unlike that, works for every span when the disk of the cache is full. Then it costs a pass over a span that is too
    /// large for memory, from the cache or the source, for each 32 MiB that are read of it.
    pub async fn part(&self, layer: &Arc<Layer>, span: SpanId, within: Range<u64>) -> Result<Bytes, Error> {
        match self.span(layer, span).await {
            Err(Error::Index(error)) if matches!(*error, index::Error::Output(_)) => {
                tracing::debug!(layer = %layer.index.layer(), %error, "no room to decode a span to, decoding a part");
                self.windows(layer, span, within).await
            }
            whole => cut(&whole?, within),
        }
    }

    async fn windows(&self, layer: &Arc<Layer>, span: SpanId, within: Range<u64>) -> Result<Bytes, Error> {
        let mut parts = BytesMut::new();
        let mut at = within.start;
        while at < within.end {
            let number = u32::try_from(at / WINDOW).map_err(|_| Error::Interrupted)?;
            let window = self.window(layer, span, number).await?;
            let start = u64::from(number) * WINDOW;
            let end = within.end.min(start + WINDOW);
            parts.extend_from_slice(&cut(&window, at - start..end - start)?);
            at = end;
        }
        Ok(parts.freeze())
    }

    /// One window of a span: from memory, or decoded once for all who want it now.
    async fn window(&self, layer: &Arc<Layer>, span: SpanId, number: u32) -> Result<Bytes, Error> {
        let key = Key::window(layer, span, number);
        if let Some(bytes) = self.inner.cache.get(&key, Use::Read) {
            return Ok(bytes);
        }
        let (inner, layer) = (Arc::clone(&self.inner), Arc::clone(layer));
        let flight = self.inner.flights.join(key, move || async move {
            let _room = inner.window.acquire().await.map_err(|_| Error::Interrupted)?;
            let bytes = inner.obtain(&layer, span, Target::Window(number)).await?;
            inner.cache.put(key, bytes.clone(), Use::Read);
            Ok(bytes)
        });
        flight.await.unwrap_or(Err(Error::Interrupted))
    }
}

/// Part of `bytes`. The index said how many there are, and they were compared with it.
fn cut(bytes: &Bytes, within: Range<u64>) -> Result<Bytes, Error> {
    let range = usize::try_from(within.start).ok().zip(usize::try_from(within.end).ok());
    let range = range.filter(|(start, end)| start <= end && *end <= bytes.len());
    range.map(|(start, end)| bytes.slice(start..end)).ok_or(Error::Interrupted)
}

/// Streams, decodes and verifies a large span. Decoded to a file, it is kept as long as the layer is open.
pub(super) async fn obtain(layer: &Arc<Layer>, span: SpanId, target: Target) -> Result<Bytes, Failure> {
    // Known before anything is fetched for it.
    let file = match target {
        Target::File => {
            let (scratch, range) = (layer.large.scratch.clone(), layer.index.decoded(span));
            let made = tokio::task::spawn_blocking(move || scratch.file(range.end - range.start)).await;
            let made = made.map_err(|_| Failure::Input(Error::Interrupted))?;
            Some(made.map_err(|error| Failure::Decode(index::Error::Output(error)))?)
        }
        Target::Window(_) => None,
    };
    let (sender, mut receiver) = mpsc::channel::<Bytes>(2);
    let decoding = Arc::clone(layer);
    let decoder = tokio::task::spawn_blocking(move || {
        let received = std::iter::from_fn(move || receiver.blocking_recv());
        match (file, target) {
            (Some(file), _) => decode_to_file(&decoding.index, span, received, file),
            (None, Target::Window(number)) => decode_window(&decoding.index, span, received, number),
            (None, Target::File) => Err(index::Error::Output(io::ErrorKind::StorageFull.into())),
        }
    });
    let range = layer.index.compressed(span);
    let mut pieces = std::pin::pin!(pieces_of(layer, range));
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
    if target == Target::File {
        layer.large.put(span, &bytes);
    }
    Ok(bytes)
}

fn decode_to_file(
    index: &LayerIndex,
    span: SpanId,
    pieces: impl Iterator<Item = Bytes>,
    file: ScratchFile,
) -> Result<Bytes, index::Error> {
    let mut writer = BufWriter::with_capacity(1 << 20, &file);
    index.decode_to(span, pieces, &mut writer)?;
    writer.flush().map_err(index::Error::Output)?;
    drop(writer);
    file.into_bytes().map_err(index::Error::Output)
}

/// Decodes and verifies all of a span, and keeps one window of it.
fn decode_window(
    index: &LayerIndex,
    span: SpanId,
    pieces: impl Iterator<Item = Bytes>,
    number: u32,
) -> Result<Bytes, index::Error> {
    let start = u64::from(number) * WINDOW;
    let mut writer = WindowWriter { at: 0, window: start..start + WINDOW, kept: Vec::new() };
    index.decode_to(span, pieces, &mut writer)?;
    Ok(writer.kept.into())
}

/// Keeps one window of what is written to it.
struct WindowWriter {
    at: u64,
    window: Range<u64>,
    kept: Vec<u8>,
}

impl Write for WindowWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.at + bytes.len() as u64;
        let (from, to) = (self.window.start.max(self.at), self.window.end.min(end));
        if from < to {
            self.kept.extend_from_slice(&bytes[(from - self.at) as usize..(to - self.at) as usize]);
        }
        self.at = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
