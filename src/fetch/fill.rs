//! Fill: fetching the rest of a layer in the background until it is complete.
//!
//! Fill is the lowest of all priorities: it takes the wire only after readers have been quiet for a moment, and lets go
//! of what it was fetching as soon as one waits again. At the end the whole blob is hashed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::pieces::pieces;
use super::{Error, Fetcher, Layer, Priority};

/// How long readers must have been quiet before fill takes the wire.
const QUIET: Duration = Duration::from_millis(500);

/// Spans that are wanted at once; many, so that they are asked for in long ranges.
const BATCH: usize = 256;

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
    let spans: Vec<_> = layer.index.span_ids().map(|span| (Arc::clone(layer), span)).collect();
    for batch in spans.chunks(BATCH) {
        if urgency == Urgency::Now {
            fetcher.prefetch(batch, Priority::Fill).await?;
            continue;
        }
        loop {
            fetcher.demand().idle_for(QUIET).await;
            tokio::select! {
                result = fetcher.prefetch(batch, Priority::Fill) => {
                    result?;
                    break;
                }
                () = fetcher.demand().begins() => {}
            }
        }
    }
    // Bytes between spans (gzip trailers and headers, skippable frames) belong to no span.
    for gap in layer.blob.missing(0..layer.blob.size()) {
        let mut pieces = std::pin::pin!(pieces(&layer.blob, layer.reader.as_ref(), gap, &layer.traffic));
        while let Some(piece) = pieces.next().await {
            piece?;
        }
    }
    let layer = Arc::clone(layer);
    let task = tokio::task::spawn_blocking(move || layer.blob.complete(false));
    task.await.map_err(|_| Error::Interrupted)??;
    Ok(())
}
