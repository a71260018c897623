//! Fill: fetching the rest of a layer in the background until it is complete.
//!
//! Fill is the lowest of all priorities: it takes the wire only after readers have been quiet for a moment, and lets go
//! of what it was fetching as soon as one waits again. At the end the whole blob is hashed.

use std::sync::Arc;
use std::time::Duration;

use super::{Error, Fetcher, Layer, Priority};
use crate::store;

/// How long readers must have been quiet before fill takes the wire.
const QUIET: Duration = Duration::from_millis(500);

/// Spans that are wanted at once; many, so that they are asked for in long ranges.
const BATCH: usize = 256;

/// How often a layer is fetched before it counts as wrong at its source.
const ATTEMPTS: u32 = 2;

/// When fill may use the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Only while no reader waits.
    Idle,
    /// At once.
    Now,
}

/// Fetches what is missing of `layer`, then verifies the whole blob. Returns when it is complete.
///
/// A blob that does not have its digest has been forgotten by the store; it is fetched anew once, and [`Error::Corrupt`] if
/// it is wrong again. The mount goes on, unlike one whose index comes from elsewhere (design.md, "Trust"): the index was
/// made here, by a pass in which layer digest and diffID were right, so it describes the true layer. A mismatch now can only
/// mean wrong bytes, from the source or from the disk. No reader is served those, because each span is compared with the
/// index; and there is no other index that could be right.
pub async fn fill(fetcher: &Fetcher, layer: &Arc<Layer>, urgency: Urgency) -> Result<(), Error> {
    for attempt in 0..ATTEMPTS {
        fetch(fetcher, layer, urgency).await?;
        let blob = Arc::clone(&layer.blob);
        let completed = tokio::task::spawn_blocking(move || blob.complete(false)).await;
        match completed.map_err(|_| Error::Interrupted)? {
            Ok(()) => return Ok(()),
            // A reader found a span wrong while the blob was hashed, and had it fetched again.
            Err(store::Error::Incomplete(_)) if layer.blob.missing(0..layer.blob.size()).is_empty() => {
                tracing::debug!(layer = %layer.index.layer(), attempt, "layer was mended while it was verified");
            }
            Err(store::Error::Mismatch(_)) => {
                tracing::warn!(layer = %layer.index.layer(), attempt, "layer does not have its digest");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Corrupt {
        layer: layer.index.layer(),
        start: 0,
        end: layer.blob.size(),
        source_name: layer.source_name.to_string(),
    })
}

/// Fetches what is missing of `layer`.
async fn fetch(fetcher: &Fetcher, layer: &Arc<Layer>, urgency: Urgency) -> Result<(), Error> {
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
        layer.stream_to_disk(gap).await?;
    }
    Ok(())
}
