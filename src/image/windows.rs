//! Bringing the windows of an index of which the metadata is here.
//!
//! They are the larger part of an index, and as long as its layer is large, so they are written to the cache while they arrive
//! and never held. What is kept is the blob that the artifact names, compared with its digest. A cache that does not take them is no
//! reason to fail: they are then read into memory.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;

use crate::fetch::WindowSource;
use crate::index::LayerIndex;
use crate::limits::WINDOW_SECTIONS;
use crate::oci::Hasher;
use crate::registry::Repository;
use crate::share::LayerBlob;
use crate::source::{self, BlobReader, ErrorKind, Source, read_all};
use crate::store::{self, ClaimDraft, Store};

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// Sections that may be arriving, over all layers.
static ARRIVING: Semaphore = Semaphore::const_new(WINDOW_SECTIONS);

/// The right to read a section into memory.
static IN_MEMORY: Semaphore = Semaphore::const_new(1);

/// What brings the windows of `index`, which is the first part of `blob`, and keeps both.
pub(super) fn source(repository: Repository, store: Arc<Store>, index: LayerIndex, blob: LayerBlob) -> WindowSource {
    Arc::new(move || {
        let reader = repository.blob(&blob.blob);
        let arrival = Arrival { reader, store: Arc::clone(&store), index: index.clone(), blob: blob.clone() };
        Box::pin(async move { Ok(arrival.run().await?) })
    })
}

struct Arrival {
    reader: Arc<dyn BlobReader>,
    store: Arc<Store>,
    index: LayerIndex,
    blob: LayerBlob,
}

/// Why windows were not kept.
enum Unkept {
    /// They did not come.
    Source(source::Error),
    /// The cache does not take them.
    Store(store::Error),
    /// They do not complete the blob.
    Wrong,
    /// They do, and are not what the metadata speaks of: no other host has better ones.
    Unsound,
    Stopping,
}

impl From<source::Error> for Unkept {
    fn from(error: source::Error) -> Self {
        Self::Source(error)
    }
}

impl From<store::Error> for Unkept {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Arrival {
    async fn run(self) -> Result<Bytes, source::Error> {
        // It is never closed.
        let _permit = ARRIVING.acquire().await.ok();
        let layer = self.blob.layer;
        loop {
            match self.keep().await {
                Ok(windows) => return Ok(windows),
                Err(Unkept::Source(error)) => return Err(error),
                Err(Unkept::Wrong) if self.reader.distrust(self.section()) => {
                    tracing::warn!(%layer, "the windows of a shared index are wrong, asking another host for them");
                }
                Err(Unkept::Wrong) => return Err(self.corrupt("was sent with other bytes")),
                Err(Unkept::Unsound) => return Err(self.corrupt("is not what its beginning says")),
                Err(Unkept::Store(error)) => {
                    tracing::debug!(%layer, %error, "the windows of a shared index are not kept");
                    let _permit = IN_MEMORY.acquire().await.ok();
                    return read_all(self.reader.as_ref(), self.section()).await;
                }
                Err(Unkept::Stopping) => {
                    return Err(source::Error::new(ErrorKind::Unreachable, "the daemon is stopping"));
                }
            }
        }
    }

    fn corrupt(&self, why: &str) -> source::Error {
        source::Error::new(ErrorKind::Corrupt, format!("the rest of index {} {why}", self.blob.blob.digest))
    }

    /// Where in the blob they are.
    fn section(&self) -> Range<u64> {
        self.blob.metadata.size..self.blob.blob.size
    }

    /// Writes them to the cache, behind the metadata, and maps them.
    async fn keep(&self) -> Result<Bytes, Unkept> {
        let (store, index, blob) = (Arc::clone(&self.store), self.index.clone(), self.blob.clone());
        let mut writing = blocking(move || Writing::begin(&store, &index, &blob)).await?;
        let mut stream = self.reader.read(self.section()).await?;
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            let next = stream.next().await.transpose()?;
            piece.extend_from_slice(next.as_deref().unwrap_or_default());
            if piece.len() >= PIECE || next.is_none() {
                (writing, piece) = blocking(move || {
                    writing.write(&piece)?;
                    piece.clear();
                    Ok((writing, piece))
                })
                .await?;
            }
            if next.is_none() {
                break;
            }
        }
        let (index, digest, section) = (self.index.clone(), self.blob.blob.digest, self.section());
        blocking(move || {
            let Writing { draft, hasher } = writing;
            if hasher.finish() != digest {
                return Err(Unkept::Wrong);
            }
            let windows = draft.map()?.bytes().slice(section.start as usize..section.end as usize);
            // Another artifact may speak of the same windows, and what is kept serves that as well.
            index.set_windows(windows.clone()).map_err(|_| Unkept::Unsound)?;
            if let Err(error) = draft.keep() {
                tracing::debug!(%error, "the windows of a shared index are mapped, and not kept");
            }
            Ok(windows)
        })
        .await
    }
}

/// A blob that is written while it arrives.
struct Writing {
    draft: ClaimDraft,
    hasher: Hasher,
}

impl Writing {
    /// Begins with the metadata.
    fn begin(store: &Store, index: &LayerIndex, blob: &LayerBlob) -> Result<Self, Unkept> {
        let draft = store.begin_claim(&blob.layer, &blob.claim())?;
        let mut writing = Self { draft, hasher: Hasher::new(blob.blob.digest.algorithm()) };
        writing.write(index.as_bytes())?;
        Ok(writing)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Unkept> {
        self.hasher.update(bytes);
        Ok(self.draft.write(bytes)?)
    }
}

/// Does what blocks on files.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Unkept> + Send + 'static) -> Result<T, Unkept> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Unkept::Stopping))
}
