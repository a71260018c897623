//! First contact: one streamed pass over a layer that nobody has indexed.
//!
//! Every piece lands in the blob store as soon as it arrives ([`pieces`]), so an interrupted pass resumes where it was:
//! what is on disk is read from there. Nothing of it is believed until the builder has seen the whole layer and both
//! digests are right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::pieces::pieces;
use super::{Error, Traffic};
use crate::index::{self, BuildError, Expected, LayerIndex};
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
/// If bytes left over from an earlier run turn out to be wrong, everything is fetched anew once, and once more for each other
/// host that the source has. Offline (`reader` is
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
                    if reader.as_ref().is_some_and(|reader| reader.distrust(0..expected.size)) {
                        tracing::warn!(layer = %expected.layer, "a host sent wrong bytes, asking another");
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
            Ok(mapped) => LayerIndex::open(mapped.bytes().clone()).unwrap_or(index),
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
    let mut pieces = std::pin::pin!(pieces(blob, reader.as_ref(), 0..expected.size, &progress.traffic));
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
