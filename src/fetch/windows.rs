//! Windows that arrive later: an index may be opened when only its metadata is here.
//!
//! The metadata is enough to merge the tree and to decode what begins with a member or frame, and it is a small part of an
//! index that comes over the network. Whoever opens such an index says how the windows are to be had
//! ([`Layer::with_windows`]) and has them brought at once ([`Layer::windows`]); a read that needs one before they are here
//! waits for the same attempt. One that failed is repeated by whoever comes next.
//!
//! Windows that nobody has any more are made of the layer: a read completes it then ([`fill`]), as a first contact would have done.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::fill::{Urgency, fill};
use super::{Error, Fetcher, Inner, Layer, OnceMap};
use crate::index::{self, SpanId};
use crate::source::BoxFuture;

/// Brings the windows of one index: the bytes of its encoded form after the metadata, of which [`Layer::windows`] makes sure
/// that they are the right ones. May be called again after a failure.
pub type WindowSource = Arc<dyn Fn() -> BoxFuture<'static, Result<Bytes, Error>> + Send + Sync>;

/// How the windows of a layer's index come to be here.
#[derive(Default)]
pub(super) struct Windows {
    source: Option<WindowSource>,
    arriving: OnceMap<(), Result<(), Error>>,
    making: OnceMap<(), Result<(), Error>>,
}

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windows").field("source", &self.source.is_some()).finish_non_exhaustive()
    }
}

impl Layer {
    /// The same layer, whose index lacks its windows until `source` has brought them.
    #[must_use]
    pub fn with_windows(self, source: WindowSource) -> Self {
        Self { windows: Windows { source: Some(source), ..self.windows }, ..self }
    }

    /// Returns once the windows of the index are here, having them brought if nobody does yet; at once if it has them.
    ///
    /// Dropping the last future ends the attempt.
    pub async fn windows(&self) -> Result<(), Error> {
        if self.index.has_windows() {
            return Ok(());
        }
        let source = self.windows.source.clone().ok_or_else(|| self.no_windows())?;
        let index = self.index.clone();
        let attempt = self.windows.arriving.join((), move || async move {
            let windows = source().await?;
            let set = tokio::task::spawn_blocking(move || index.set_windows(windows)).await;
            set.map_err(|_| Error::Interrupted)?.map_err(|error| Error::Index(Arc::new(error)))
        });
        attempt.await.unwrap_or(Err(Error::Interrupted))
    }

    fn no_windows(&self) -> Error {
        Error::Index(Arc::new(index::Error::NoWindows(self.index.layer())))
    }

    /// True if all bytes of the layer are here, verified or not: its windows can be made then.
    pub(super) fn is_whole(&self) -> bool {
        self.blob.missing(0..self.blob.size()).is_empty()
    }
}

/// True if asking again will not bring what this kept from coming.
pub(super) fn is_final(error: &Error) -> bool {
    match error {
        Error::Source(error) => !error.is_transient(),
        Error::Index(_) => true,
        _ => false,
    }
}

impl Inner {
    /// Waits for the windows if `span` needs one, and has them made if they cannot be had otherwise.
    pub(super) async fn windows_for(self: &Arc<Self>, layer: &Arc<Layer>, span: SpanId) -> Result<(), Error> {
        if !layer.index.lacks_window(span) {
            return Ok(());
        }
        match layer.windows().await {
            Err(error) if is_final(&error) || layer.is_whole() => {
                tracing::warn!(
                    layer = %layer.index.layer(), %error, "the windows of an index cannot be had, completing the layer for them"
                );
                self.make_windows(layer).await
            }
            outcome => outcome,
        }
    }

    /// Completes the layer, and takes the windows of the index that this gives.
    async fn make_windows(self: &Arc<Self>, layer: &Arc<Layer>) -> Result<(), Error> {
        let (fetcher, task) = (Fetcher { inner: Arc::clone(self) }, Arc::clone(layer));
        let attempt = layer.windows.making.join((), move || async move {
            fill(&fetcher, &task, Urgency::Now).await?;
            if task.index.has_windows() { Ok(()) } else { Err(task.no_windows()) }
        });
        attempt.await.unwrap_or(Err(Error::Interrupted))
    }
}
