//! First contact: one streamed pass over a layer that nobody has indexed.
//!
//! Every piece lands in the blob store as soon as it arrives ([`pieces`]), so an interrupted pass resumes where it was:
//! what is on disk is read from there. Nothing of it is believed until the builder has seen the whole layer and both
//! digests are right.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::{Mutex, mpsc};

use super::anew::{self, Writing};
use super::pieces::pieces;
use super::{Error, Traffic};
use crate::index::{self, BuildError, Expected, LayerIndex};
use crate::source::BlobReader;
use crate::store::{self, Blob, Mark, Store};

/// How far a first contact has come; read by whoever shows progress.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the layer taken in order so far, from the network or the disk.
    pub taken: AtomicU64,
    /// What of it came over the network.
    pub traffic: Traffic,
    /// Why the index that was made could not be kept; none if it was.
    pub unkept: OnceLock<store::Error>,
}

/// Where the bytes of a pass were put.
enum Put {
    /// Into the blob, together with whoever else writes there, since this moment.
    Beside(Mark),
    /// Where nobody else writes; nowhere if there is no room.
    Anew(Option<Writing>),
}

/// Streams, indexes and verifies the layer that `expected` names, leaving its blob complete and its index stored.
///
/// Bytes that are on disk, from an earlier run or from another image that lists the layer, are not fetched. If the layer
/// turns out to be wrong with them, everything is fetched anew, from `reader` alone: once, and once more for each other host
/// that it has. Offline (`reader` is none) only what is already on disk is used.
pub async fn first_contact(
    store: &Arc<Store>,
    reader: Option<Arc<dyn BlobReader>>,
    expected: Expected,
    progress: Arc<Progress>,
) -> Result<LayerIndex, Error> {
    let blob = store.blob(&expected.layer, expected.size)?;
    let mark = blob.mark();
    progress.taken.store(0, Ordering::Relaxed);
    let beside = pieces(&blob, reader.as_ref(), 0..expected.size, &progress.traffic);
    let rejected = match pass(beside, expected, &progress).await {
        Ok(index) => return keep(store, blob, (index, Put::Beside(mark)), progress).await,
        Err(BuildError::Input(error)) => return Err(error),
        Err(BuildError::Rejected(rejected)) => rejected,
    };
    let reject = |rejected| Error::Rejected { layer: expected.layer, source: Arc::new(rejected) };
    if !rejected.is_wrong_bytes() {
        return Err(reject(rejected));
    }
    blob.discard(0..expected.size)?;
    let Some(reader) = reader else { return Err(reject(rejected)) };
    // Once more, because one answer may have been damaged on the way; then from one host of the source after the other, as far
    // as it has several.
    let (mut rejected, mut again) = (rejected, true);
    while rejected.is_wrong_bytes() && (std::mem::take(&mut again) || reader.distrust(0..expected.size)) {
        tracing::warn!(layer = %expected.layer, %rejected, "layer bytes are wrong, fetching anew");
        progress.taken.store(0, Ordering::Relaxed);
        match pass_anew(&blob, &reader, expected, &progress).await {
            Ok(made) => return keep(store, blob, made, progress).await,
            Err(BuildError::Input(error)) => return Err(error),
            Err(BuildError::Rejected(wrong)) => rejected = wrong,
        }
    }
    Err(reject(rejected))
}

/// A pass over bytes of `reader` alone.
async fn pass_anew(
    blob: &Arc<Blob>,
    reader: &Arc<dyn BlobReader>,
    expected: Expected,
    progress: &Arc<Progress>,
) -> Result<(LayerIndex, Put), BuildError<Error>> {
    let writing = Mutex::new(Writing::begin(blob).await.inspect_err(not_kept).ok());
    let anew = anew::pieces(expected.size, reader, &progress.traffic, None);
    let written = anew.then(|piece| async {
        let piece = piece?;
        let taken = writing.lock().await.take();
        if let Some(taken) = taken {
            *writing.lock().await = taken.write(piece.clone()).await.inspect_err(not_kept).ok();
        }
        Ok(piece)
    });
    let index = pass(written, expected, progress).await?;
    Ok((index, Put::Anew(writing.into_inner())))
}

fn not_kept(error: &Error) {
    tracing::debug!(%error, "layer bytes are not kept");
}

/// Stores the index and declares the blob complete. The index goes first: a blob without one would be streamed again.
async fn keep(
    store: &Arc<Store>,
    blob: Arc<Blob>,
    (index, put): (LayerIndex, Put),
    progress: Arc<Progress>,
) -> Result<LayerIndex, Error> {
    let store = Arc::clone(store);
    let layer = index.layer();
    let task = tokio::task::spawn_blocking(move || {
        let mapped = store.put_index(&index.layer(), index.as_bytes());
        if let Put::Beside(mark) = put
            && blob.missing(0..blob.size()).is_empty()
            && let Err(error) = blob.complete_since(mark)
        {
            tracing::debug!(%layer, %error, "the blob stays partial");
        }
        let kept = match mapped {
            // The mapped copy takes no memory that the kernel cannot have back.
            Ok(mapped) => LayerIndex::open(mapped.bytes().clone()).unwrap_or(index),
            Err(error) => {
                tracing::debug!(%layer, %error, "the index is not kept");
                progress.unkept.get_or_init(|| error);
                index
            }
        };
        (kept, put)
    });
    let (index, put) = task.await.map_err(|_| Error::Interrupted)?;
    if let Put::Anew(Some(writing)) = put
        && let Err(error) = writing.finish().await
    {
        tracing::debug!(%layer, %error, "the blob stays as it is");
    }
    Ok(index)
}

/// One pass over the layer: the downloads on the runtime, the builder on a thread that may block.
async fn pass(
    pieces: impl Stream<Item = Result<Bytes, Error>>,
    expected: Expected,
    progress: &Progress,
) -> Result<LayerIndex, BuildError<Error>> {
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, Error>>(2);
    let builder = tokio::task::spawn_blocking(move || {
        index::build(std::iter::from_fn(move || receiver.blocking_recv()), expected)
    });
    let mut pieces = std::pin::pin!(pieces);
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
    drop(sender);
    builder.await.unwrap_or(Err(BuildError::Input(Error::Interrupted)))
}
