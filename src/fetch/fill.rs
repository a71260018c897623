//! Fill: fetching the rest of a layer in the background until it is complete.
//!
//! Fill is the lowest of all priorities: it takes the wire only after readers have been quiet for a moment, and lets go
//! of what it was fetching as soon as one waits again. At the end the whole blob is hashed, and a layer whose index is a
//! claim is proven (`proof`).

use std::sync::Arc;
use std::time::Duration;

use super::anew::{self, Had};
use super::proof::{self, Proved};
use super::{Error, Fetcher, Layer, Priority};
use crate::index::SpanId;
use crate::store;

/// How long readers must have been quiet before fill takes the wire.
pub(super) const QUIET: Duration = Duration::from_millis(500);

/// Spans that are wanted at once; many, so that they are asked for in long ranges.
const BATCH: usize = 256;

/// Their compressed bytes, from which on no more are wanted at once: all of them may be held in memory for a moment.
const BATCH_BYTES: u64 = 64 << 20;

/// How often a layer is completed before its bytes count as not to be had: the blob is shared, and readers discard what is
/// wrong in it at any time.
const ATTEMPTS: u32 = 3;

/// When fill may use the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Only while no reader waits.
    Idle,
    /// At once.
    Now,
}

/// Fetches what is missing of `layer`, then verifies the whole blob, and its index if that is not proven. Returns when that
/// is done.
///
/// A blob that does not have its digest has been forgotten by the store. Whose bytes were wrong is not known: another image
/// that lists the layer may have filled the same blob from another source. So the layer is fetched anew from its own source
/// alone, and [`Error::Corrupt`] only if that has something else. If the index was made here, the mount goes on even then: by a
/// pass in which layer digest and diffID were right, so it describes the true layer, and no reader is served wrong bytes,
/// because each span is compared with the index. If the index is a claim, nothing shows that it is one about
/// this layer, and the layer is condemned (design.md, "Trust"), as it is if the claim turns out to be wrong.
pub async fn fill(fetcher: &Fetcher, layer: &Arc<Layer>, urgency: Urgency) -> Result<(), Error> {
    let mut were_wrong = false;
    let refusals = layer.blob.refusals();
    for attempt in 0..ATTEMPTS {
        if !were_wrong {
            fetch(fetcher, layer, urgency).await?;
        } else {
            while anew::fetch(fetcher, layer, urgency).await? == Had::SomethingElse {
                // It may be a mirror that has something else, and not the source.
                if !layer.distrust(0..layer.blob.size()) {
                    let error = proof::not_the_layer(layer);
                    return Err(if layer.is_proven() { error } else { layer.condemn(error) });
                }
            }
        }
        let blob = Arc::clone(&layer.blob);
        let completed = tokio::task::spawn_blocking(move || blob.complete(false)).await;
        match completed.map_err(|_| Error::Interrupted)? {
            Ok(()) if layer.is_proven() => return Ok(()),
            Ok(()) => match proof::prove(fetcher, layer, urgency).await {
                Ok(Proved::Yes) => return Ok(()),
                Ok(Proved::NotItsBytes) => were_wrong = true,
                Err(error) if layer.condemned().is_none() && is_lost(&error) => {
                    tracing::debug!(layer = %layer.index.layer(), attempt, "bytes were lost while they were compared");
                }
                Err(error) => return Err(error),
            },
            // A reader found a span wrong while the blob was hashed, and has it fetched again.
            Err(store::Error::Incomplete(_)) if layer.reader.is_some() => {
                layer.blob.refused_since(refusals)?;
                tracing::debug!(layer = %layer.index.layer(), attempt, "layer is mended while it was verified");
            }
            Err(store::Error::Mismatch(_)) => {
                tracing::warn!(layer = %layer.index.layer(), attempt, "layer does not have its digest");
                were_wrong = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(proof::not_the_layer(layer))
}

/// How many of `spans` to want at once, from their beginning on; at least one.
fn batch(layer: &Layer, spans: &[(Arc<Layer>, SpanId)]) -> usize {
    let mut bytes = 0;
    let fits = spans.iter().take(BATCH).take_while(|(_, span)| {
        let before = bytes;
        let range = layer.index.compressed(*span);
        bytes += range.end - range.start;
        before < BATCH_BYTES
    });
    fits.count()
}

/// True if bytes that were here are not any more.
fn is_lost(error: &Error) -> bool {
    matches!(error, Error::Store(error) if matches!(**error, store::Error::Incomplete(_)))
}

/// Fetches what is missing of `layer`.
async fn fetch(fetcher: &Fetcher, layer: &Arc<Layer>, urgency: Urgency) -> Result<(), Error> {
    let spans: Vec<_> = layer.index.span_ids().map(|span| (Arc::clone(layer), span)).collect();
    let mut rest = &spans[..];
    let refusals = layer.blob.refusals();
    while !rest.is_empty() {
        // What a full disk does not take would be fetched for nothing, now and each time again.
        layer.blob.refused_since(refusals)?;
        // One try is enough to find out whether a source is back.
        let count = if fetcher.is_away(layer) { 1 } else { batch(layer, rest) };
        let (batch, later) = rest.split_at(count);
        rest = later;
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
    layer.blob.refused_since(refusals)?;
    // Bytes between spans (gzip trailers and headers, skippable frames) belong to no span.
    for gap in layer.blob.missing(0..layer.blob.size()) {
        layer.stream_to_disk(gap).await?;
    }
    Ok(())
}
