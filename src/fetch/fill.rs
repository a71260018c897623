//! Fill: fetching the rest of a layer in the background until it is complete.
//!
//! Fill is the lowest of all priorities: it takes the wire only after readers have been quiet for a moment, and lets go
//! of what it was fetching as soon as one waits again. What it fetched is verified span by span like any other read; at
//! the end the whole blob is hashed.

use std::sync::Arc;
use std::time::Duration;

use super::{Error, Fetcher, Layer};

/// How long readers must have been quiet before fill takes the wire.
const QUIET: Duration = Duration::from_millis(500);

/// When fill may use the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Only while no reader waits.
    Idle,
    /// At once.
    Now,
}

/// Fetches what is missing of `layer`, then verifies the whole blob. Returns when it is complete.
pub async fn fill(fetcher: &Fetcher, layer: &Arc<Layer>, urgency: Urgency) -> Result<(), Error> {
    for span in layer.index.span_ids() {
        let range = layer.index.compressed(span);
        while !layer.blob.missing(range.clone()).is_empty() {
            if urgency == Urgency::Now {
                fetcher.span(layer, span).await?;
                break;
            }
            fetcher.demand().idle_for(QUIET).await;
            tokio::select! {
                result = fetcher.span(layer, span) => {
                    result?;
                    break;
                }
                () = fetcher.demand().begins() => {}
            }
        }
    }
    // Bytes between spans (gzip trailers and headers, skippable frames) belong to no span.
    let layer = Arc::clone(layer);
    let size = layer.blob.size();
    for gap in layer.blob.missing(0..size) {
        let bytes = layer.fetch(gap.clone()).await?;
        layer.blob.write(gap.start, &bytes)?;
    }
    let task = tokio::task::spawn_blocking(move || layer.blob.complete(false));
    task.await.map_err(|_| Error::Interrupted)??;
    Ok(())
}
