//! First contact: one streamed pass over a layer that nobody has indexed.
//!
//! Several ranged reads run ahead at once, because one connection seldom fills a line, and their answers are handed on
//! in order. Every piece lands in the blob store as soon as it arrives, so an interrupted pass resumes where it was: what
//! is on disk is read from there. Nothing of it is believed until the builder has seen the whole layer and both digests
//! are right.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::{Error, Traffic, read_range};
use crate::index::{self, BuildError, Expected, LayerIndex};
use crate::limits;
use crate::source::BlobReader;
use crate::store::{Blob, Store};

/// How far a first contact has come; read by whoever shows progress.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the layer taken in order so far, from the network or the disk.
    pub taken: AtomicU64,
    /// What of it came over the network.
    pub traffic: Traffic,
}

/// Streams, indexes and verifies the layer that `expected` names, leaving its blob complete and its index stored.
///
/// If bytes left over from an earlier run turn out to be wrong, everything is fetched anew once. Offline (`reader` is
/// none) only what is already on disk is used.
pub async fn first_contact(
    store: &Arc<Store>,
    reader: Option<Arc<dyn BlobReader>>,
    expected: Expected,
    progress: Arc<Progress>,
) -> Result<LayerIndex, Error> {
    let blob = store.blob(&expected.layer, expected.size)?;
    let mut from_disk = blob.present_bytes() > 0;
    loop {
        progress.taken.store(0, Ordering::Relaxed);
        match pass(&blob, reader.clone(), expected, Arc::clone(&progress)).await {
            Ok(index) => return keep(store, blob, index).await,
            Err(BuildError::Input(error)) => return Err(error),
            Err(BuildError::Rejected(rejected)) => {
                if rejected.is_wrong_bytes() {
                    blob.discard(0..expected.size)?;
                    if from_disk && reader.is_some() {
                        tracing::warn!(layer = %expected.layer, "bytes from an earlier run are wrong, fetching anew");
                        from_disk = false;
                        continue;
                    }
                }
                return Err(Error::Rejected { layer: expected.layer, source: Arc::new(rejected) });
            }
        }
    }
}

/// Stores the index and declares the blob complete. The index goes first: a blob without one would be streamed again.
async fn keep(store: &Arc<Store>, blob: Arc<Blob>, index: LayerIndex) -> Result<LayerIndex, Error> {
    let store = Arc::clone(store);
    let task = tokio::task::spawn_blocking(move || {
        let mapped = store.put_index(&index.layer(), index.as_bytes());
        if blob.missing(0..blob.size()).is_empty()
            && let Err(error) = blob.complete(true)
        {
            tracing::debug!(layer = %index.layer(), %error, "the blob stays partial");
        }
        match mapped {
            // The mapped copy takes no memory that the kernel cannot have back.
            Ok(mapped) => LayerIndex::open(mapped).unwrap_or(index),
            Err(error) => {
                tracing::debug!(layer = %index.layer(), %error, "the index is not kept");
                index
            }
        }
    });
    task.await.map_err(|_| Error::Interrupted)
}

/// One pass over the layer: the downloads on the runtime, the builder on a thread that may block.
async fn pass(
    blob: &Arc<Blob>,
    reader: Option<Arc<dyn BlobReader>>,
    expected: Expected,
    progress: Arc<Progress>,
) -> Result<LayerIndex, BuildError<Error>> {
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, Error>>(2);
    let builder = tokio::task::spawn_blocking(move || {
        index::build(std::iter::from_fn(move || receiver.blocking_recv()), expected)
    });
    let pieces = chunks(expected.size).map(|range| {
        let blob = Arc::clone(blob);
        let reader = reader.clone();
        let progress = Arc::clone(&progress);
        async move { piece(&blob, reader.as_deref(), range, &progress.traffic).await }
    });
    let mut pieces = stream::iter(pieces).buffered(limits::PARALLEL_READS);
    while let Some(piece) = pieces.next().await {
        let failed = piece.is_err();
        if let Ok(bytes) = &piece {
            progress.taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        // A closed channel means that the builder has rejected the layer already.
        if sender.send(piece).await.is_err() || failed {
            break;
        }
    }
    drop(pieces);
    drop(sender);
    builder.await.unwrap_or(Err(BuildError::Input(Error::Interrupted)))
}

/// The ranges in which a blob of `size` bytes is read.
fn chunks(size: u64) -> impl Iterator<Item = Range<u64>> {
    let step = limits::READ_CHUNK;
    (0..size.div_ceil(step)).map(move |number| number * step..size.min((number + 1) * step))
}

/// The bytes of one chunk: from the disk what is there, the rest from the source and onto the disk.
async fn piece(
    blob: &Arc<Blob>,
    reader: Option<&dyn BlobReader>,
    range: Range<u64>,
    traffic: &Traffic,
) -> Result<Bytes, Error> {
    let mut whole = BytesMut::new();
    let mut at = range.start;
    for gap in blob.missing(range.clone()) {
        append_local(&mut whole, blob, at..gap.start).await?;
        at = gap.end;
        let Some(reader) = reader else {
            return Err(Error::Offline { layer: blob.digest(), start: gap.start, end: gap.end });
        };
        let bytes = read_range(reader, gap.clone(), traffic).await?;
        let target = Arc::clone(blob);
        let copy = bytes.clone();
        let written = tokio::task::spawn_blocking(move || target.write(gap.start, &copy)).await;
        if let Err(error) = written.map_err(|_| Error::Interrupted)? {
            // The pass goes on from memory; what is not on disk will be fetched again when it is read.
            tracing::debug!(layer = %blob.digest(), %error, "layer bytes are not kept");
        }
        if whole.is_empty() && at == range.end {
            return Ok(bytes);
        }
        whole.extend_from_slice(&bytes);
    }
    append_local(&mut whole, blob, at..range.end).await?;
    Ok(whole.freeze())
}

async fn append_local(whole: &mut BytesMut, blob: &Arc<Blob>, range: Range<u64>) -> Result<(), Error> {
    if range.is_empty() {
        return Ok(());
    }
    let source = Arc::clone(blob);
    let wanted = range.clone();
    let read = tokio::task::spawn_blocking(move || source.read(wanted)).await.map_err(|_| Error::Interrupted)?;
    match read? {
        Some(bytes) => {
            whole.extend_from_slice(&bytes);
            Ok(())
        }
        None => Err(Error::Offline { layer: blob.digest(), start: range.start, end: range.end }),
    }
}
