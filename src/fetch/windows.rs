//! Windows that arrive later: an index may be opened when only its metadata is here.
//!
//! The metadata is enough to merge the tree and to decode what begins with a member or frame, and it is a small part of an
//! index that comes over the network. Whoever opens such an index says how the windows are to be had
//! ([`Layer::with_windows`]) and has them brought at once ([`Layer::windows`]); a read that needs one before they are here
//! waits for the same attempt. One that failed is repeated by whoever comes next.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Error, Layer, OnceMap};
use crate::index::SpanId;
use crate::source::BoxFuture;

/// Brings the windows of one index: the bytes of its encoded form after the metadata, of which [`Layer::windows`] makes sure
/// that they are the right ones. May be called again after a failure.
pub type WindowSource = Arc<dyn Fn() -> BoxFuture<'static, Result<Bytes, Error>> + Send + Sync>;

/// How the windows of a layer's index come to be here.
#[derive(Default)]
pub(super) struct Windows {
    source: Option<WindowSource>,
    arriving: OnceMap<(), Result<(), Error>>,
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
        let missing = || Error::Index(Arc::new(crate::index::Error::NoWindows(self.index.layer())));
        let source = self.windows.source.clone().ok_or_else(missing)?;
        let index = self.index.clone();
        let attempt = self.windows.arriving.join((), move || async move {
            let windows = source().await?;
            let set = tokio::task::spawn_blocking(move || index.set_windows(windows)).await;
            set.map_err(|_| Error::Interrupted)?.map_err(|error| Error::Index(Arc::new(error)))
        });
        attempt.await.unwrap_or(Err(Error::Interrupted))
    }
    /// Waits for the windows if `span` needs one.
    pub(super) async fn windows_for(&self, span: SpanId) -> Result<(), Error> {
        if self.index.lacks_window(span) { self.windows().await } else { Ok(()) }
    }
}
