//! zTOCs of an image's layers, for SOCI: made from the indexes that are here, and the layers' bytes.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::control::Event;
use super::events::send;
use super::{Code, Failure};
use crate::fetch::{self, Layer};
use crate::image::ImageLayer;
use crate::index::soci::{self, Unwritable};
use crate::oci::Descriptor;
use crate::source;

/// The zTOC of each distinct layer, with the layer. What SOCI has no form for is left out with a warning, as SOCI leaves it
/// out: its snapshotter then fetches that layer whole.
pub(super) async fn write(
    layers: &[ImageLayer],
    events: &mpsc::Sender<Event>,
) -> Result<Vec<(Descriptor, Bytes)>, Failure> {
    let (mut seen, mut ztocs) = (HashSet::new(), Vec::new());
    for layer in layers.iter().filter(|layer| seen.insert(layer.descriptor.digest)) {
        let (inner, handle) = (Arc::clone(&layer.layer), Handle::current());
        let task = tokio::task::spawn_blocking(move || soci::write(&inner.index, |range| read(&inner, range, &handle)));
        match task.await.map_err(|_| Failure::new(Code::Other, "the daemon is stopping"))? {
            Ok(ztoc) => ztocs.push((layer.descriptor.clone(), ztoc.into())),
            Err(Unwritable::Input(error)) => return Err(Failure::from(&error)),
            Err(error @ Unwritable::Index(_)) => return Err(Failure::of(Code::Cache, &error)),
            Err(error @ (Unwritable::Layer(_) | Unwritable::Member { .. })) => {
                let text = format!("layer {} is left out: {error}", layer.descriptor.digest);
                send(events, Event::Warning { text }).await;
            }
        }
    }
    match ztocs.is_empty() {
        true => Err(Failure::new(Code::BadImage, "the image has no layer that SOCI has a form for")),
        false => Ok(ztocs),
    }
}

/// Bytes of a layer, from the cache or its source; what was fetched is verified by whoever decodes it.
fn read(layer: &Layer, range: Range<u64>, handle: &Handle) -> Result<Bytes, fetch::Error> {
    if let Some(bytes) = layer.blob.read(range.clone())? {
        return Ok(bytes);
    }
    let offline = || fetch::Error::Offline { layer: layer.index.layer(), start: range.start, end: range.end };
    let reader = layer.reader.clone().ok_or_else(offline)?;
    let bytes = handle.block_on(source::read_all(reader.as_ref(), range.clone()))?;
    layer.blob.write(range.start, &bytes)?;
    Ok(bytes)
}
