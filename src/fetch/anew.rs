//! All of a layer from its own source, whatever others have put into its blob.
//!
//! A blob is shared by all images that list it, and what one of their sources sends for it lies on the disk before anybody
//! has verified it. So bytes that turn out to be wrong say nothing about any source in particular, and fetching them again
//! into the same blob would not either, while another image goes on filling it. What is fetched here goes past the
//! shared bytes ([`Replacement`]): it shows what this source has.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, StreamExt};

use super::fill::QUIET;
use super::pieces::chunks;
use super::{Demand, Error, Fetcher, Layer, Traffic, Urgency, read_range};
use crate::limits::PARALLEL_READS;
use crate::source::BlobReader;
use crate::store::{self, Blob, Replacement};

/// What a source has under a layer's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Had {
    /// The layer: its blob is complete now.
    TheLayer,
    /// Something else.
    SomethingElse,
}

/// Fetches a whole layer from its own source, and makes its blob complete with that.
pub(super) async fn fetch(fetcher: &Fetcher, layer: &Arc<Layer>, urgency: Urgency) -> Result<Had, Error> {
    let Some(reader) = &layer.reader else {
        return Err(Error::Offline { layer: layer.index.layer(), start: 0, end: layer.blob.size() });
    };
    let quiet = (urgency == Urgency::Idle).then(|| fetcher.demand());
    let mut pieces = std::pin::pin!(pieces(layer.blob.size(), reader, &layer.traffic, quiet));
    let mut writing = Writing::begin(&layer.blob).await?;
    while let Some(piece) = pieces.next().await {
        writing = writing.write(piece?).await?;
    }
    match writing.finish().await {
        Ok(()) => Ok(Had::TheLayer),
        Err(Error::Store(error)) if matches!(*error, store::Error::Mismatch(_)) => Ok(Had::SomethingElse),
        Err(error) => Err(error),
    }
}

/// The `size` bytes of a blob in order, from `reader` alone; with `quiet`, each part once no reader waits for anything.
pub(super) fn pieces<'a>(
    size: u64,
    reader: &'a Arc<dyn BlobReader>,
    traffic: &'a Traffic,
    quiet: Option<&'a Demand>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'a {
    let reads = chunks(0..size).map(move |range| async move {
        if let Some(demand) = quiet {
            demand.idle_for(QUIET).await;
        }
        read_range(reader.as_ref(), range, traffic).await
    });
    stream::iter(reads).buffered(PARALLEL_READS)
}

/// A replacement, written where blocking is allowed.
#[derive(Debug)]
pub(super) struct Writing(Box<Replacement>);

impl Writing {
    pub(super) async fn begin(blob: &Arc<Blob>) -> Result<Self, Error> {
        let blob = Arc::clone(blob);
        blocking(move || blob.replacement().map(|begun| Self(Box::new(begun)))).await
    }

    pub(super) async fn write(mut self, bytes: Bytes) -> Result<Self, Error> {
        blocking(move || self.0.write(&bytes).map(|()| self)).await
    }

    pub(super) async fn finish(self) -> Result<(), Error> {
        blocking(move || self.0.finish()).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted)??)
}
