//! An index for every layer: from the cache, from the layer itself, from beside the image, or by first contact, all layers
//! at once.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::inline::InlineBlob;
use super::shared::{Found, Search};
use super::toc::Tocs;
use super::{DiffIdMismatch, Error, ImageLayer, Images, Lack, Origin, Progress, Resolved, Whole};
use crate::fetch::{self, WindowSource};
use crate::index::toc::Format;
use crate::index::{Expected, LayerIndex};
use crate::limits;
use crate::oci::{Descriptor, Digest};
use crate::source::{BlobReader, BoxFuture, Source};
use crate::store::IMPORTED;

/// The index of a layer, where it came from, and what it cost if that happened now.
#[derive(Clone)]
struct Indexed {
    index: LayerIndex,
    origin: Origin,
    reason: String,
    /// What is known of the index if somebody else made it.
    claim: Option<Claim>,
    streamed: Option<Arc<fetch::Progress>>,
}

/// A layer with its index, or what it lacks for one.
type Opened = Result<(Digest, Indexed), Lack>;

/// An index that somebody else made.
#[derive(Clone)]
struct Claim {
    /// By what the store keeps it.
    name: Digest,
    /// What brings its windows, if they are not here.
    windows: Option<WindowSource>,
}

/// What a first contact is about. Mounts share one only if they ask the same source for the same: another image may list the
/// layer with a lie about it, or have it from a place that has something else, and fails alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Contact {
    expected: Expected,
    source: String,
}

/// Where indexes that others made are looked for.
#[derive(Clone, Copy)]
pub(super) struct Others<'a> {
    pub(super) tocs: &'a Tocs<'a>,
    pub(super) search: &'a Search,
}

impl Images {
    /// Opens all layers of an image, from the bottom. A layer that is listed twice is opened once.
    ///
    /// Without `others`, only indexes that were made here count.
    pub(super) async fn layers(
        &self,
        resolved: &Resolved,
        source: Option<&Arc<dyn Source>>,
        progress: &Arc<Progress>,
        others: Option<Others<'_>>,
    ) -> Result<Vec<ImageLayer>, Error> {
        let listed = resolved.manifest.layers.iter().zip(&resolved.config.diff_ids);
        let mut distinct: HashMap<Digest, Expected> = HashMap::new();
        for (descriptor, diff_id) in listed.clone() {
            let expected = Expected { layer: descriptor.digest, size: descriptor.size, diff_id: *diff_id };
            distinct.entry(descriptor.digest).or_insert(expected);
        }
        let first: HashMap<Digest, &Descriptor> =
            resolved.manifest.layers.iter().rev().map(|descriptor| (descriptor.digest, descriptor)).collect();
        // Many layers may be looked for at once, each a read or two; few are streamed at once.
        let streams = Semaphore::new(limits::PARALLEL_LAYERS);
        let streams = &streams;
        let count = distinct.len();
        let name = &source.map_or_else(|| "the cache".to_owned(), |source| source.name());
        let mut opening: Vec<BoxFuture<'_, Result<Opened, Error>>> = Vec::new();
        for expected in distinct.into_values() {
            let descriptor = first[&expected.layer];
            let reader = reader(descriptor, source);
            opening.push(Box::pin(async move {
                let indexed = match self.known_index(expected, descriptor, reader.as_ref(), others).await? {
                    Ok(indexed) => indexed,
                    Err(reason) => {
                        if reader.is_none()
                            && let Some(lack) = self.lack(expected).await?
                        {
                            return Ok(Err(lack));
                        }
                        let _permit = streams.acquire().await.map_err(|_| Error::Interrupted)?;
                        let contact = Contact { expected, source: name.clone() };
                        self.first_contact(contact, reader, progress, reason).await?
                    }
                };
                Ok(Ok((expected.layer, indexed)))
            }));
        }
        let opened: Vec<_> = stream::iter(opening).buffer_unordered(limits::LINE_READS).try_collect().await?;
        let lacking: Vec<Lack> = opened.iter().filter_map(|opened| opened.as_ref().err().copied()).collect();
        if !lacking.is_empty() {
            return Err(Error::Lacking { lacking, count });
        }
        let opened: HashMap<Digest, Indexed> = opened.into_iter().flatten().collect();
        let mut layers = Vec::new();
        for (descriptor, diff_id) in listed {
            let Indexed { index, origin, reason, claim, streamed } = opened[&descriptor.digest].clone();
            let found = index.diff_id();
            if found != *diff_id {
                let mismatch = DiffIdMismatch { layer: descriptor.digest, found, expected: *diff_id };
                return Err(Error::DiffId(Box::new(mismatch)));
            }
            let layer = self.layer(index, claim, descriptor, (reader(descriptor, source), name.clone())).await?;
            layers.push(ImageLayer { descriptor: descriptor.clone(), origin, reason, layer, streamed });
        }
        Ok(layers)
    }

    /// The index of one layer that somebody made, and where it came from; or why there is none to be believed.
    async fn known_index(
        &self,
        expected: Expected,
        descriptor: &Descriptor,
        reader: Option<&Arc<dyn BlobReader>>,
        others: Option<Others<'_>>,
    ) -> Result<Result<Indexed, String>, Error> {
        if let Some(index) = self.stored_index(expected).await? {
            let reason = "it was made here from the whole layer".to_owned();
            return Ok(Ok(Indexed { index, origin: Origin::Cached, reason, claim: None, streamed: None }));
        }
        // Whoever wants proof believes nobody.
        let Some(Others { tocs, search }) = others else { return Ok(Err("it is to be proven".to_owned())) };
        if let Some(index) = self.imported_index(expected).await? {
            let reason = "a user of this cache imported it".to_owned();
            let claim = Some(Claim { name: IMPORTED, windows: None });
            return Ok(Ok(Indexed { index, origin: Origin::Imported, reason, claim, streamed: None }));
        }
        if let Some(toc) = tocs.index(expected, descriptor, reader).await? {
            let origin = Origin::Toc(Format::of(toc.index.compression()));
            let reason = "the manifest pins it".to_owned();
            let claim = Some(Claim { name: toc.claim, windows: None });
            return Ok(Ok(Indexed { index: toc.index, origin, reason, claim, streamed: toc.moved }));
        }
        Ok(search.index(&expected).await.map(|Found { index, claim, windows, artifact, why }| {
            let claim = Some(Claim { name: claim, windows });
            Indexed { index, origin: Origin::Shared(artifact), reason: why, claim, streamed: None }
        }))
    }

    /// What the cache lacks of a layer, if anything.
    async fn lack(&self, expected: Expected) -> Result<Option<Lack>, Error> {
        Ok(Some(self.missing(expected).await?).filter(|lack| lack.missing > 0))
    }

    /// How much of a layer the cache lacks.
    async fn missing(&self, expected: Expected) -> Result<Lack, Error> {
        let Expected { layer, size, .. } = expected;
        let store = Arc::clone(&self.store);
        let blob = tokio::task::spawn_blocking(move || store.blob(&layer, size)).await;
        let missing = size.saturating_sub(blob.map_err(|_| Error::Interrupted)??.present_bytes());
        Ok(Lack { layer, missing, size })
    }

    /// The index of a layer that nobody made, for this `reason`; made now.
    async fn first_contact(
        &self,
        contact: Contact,
        reader: Option<Arc<dyn BlobReader>>,
        progress: &Arc<Progress>,
        reason: String,
    ) -> Result<Indexed, Error> {
        let store = Arc::clone(&self.store);
        let expected = contact.expected;
        let watched = self.watch(&contact);
        let Lack { missing, size, .. } = self.missing(expected).await?;
        // Somebody may be streaming it already.
        let kept = (size - missing).saturating_sub(watched.traffic.bytes());
        progress.add(Whole { size, kept }, Arc::clone(&watched));
        let streamed = Some(Arc::clone(&watched));
        let joined = self
            .contacts
            .join(contact, || async move { fetch::first_contact(&store, reader, expected, watched).await });
        let index = joined.await.unwrap_or(Err(fetch::Error::Interrupted))?;
        Ok(Indexed { index, origin: Origin::FirstContact, reason, claim: None, streamed })
    }

    /// The progress of a first contact, shared by everyone who waits for it.
    fn watch(&self, contact: &Contact) -> Arc<fetch::Progress> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, progress| progress.strong_count() > 0);
        if let Some(progress) = watched.get(contact).and_then(std::sync::Weak::upgrade) {
            return progress;
        }
        let progress = Arc::new(fetch::Progress::default());
        watched.insert(contact.clone(), Arc::downgrade(&progress));
        progress
    }

    /// The stored index if it is sound and speaks of the same bytes; a damaged one is removed and made anew.
    async fn stored_index(&self, expected: Expected) -> Result<Option<LayerIndex>, Error> {
        let store = Arc::clone(&self.store);
        let task = tokio::task::spawn_blocking(move || -> Result<_, Error> {
            let Some(mapped) = store.index(&expected.layer)? else { return Ok(None) };
            let opened = LayerIndex::open(mapped.bytes().clone()).and_then(|index| index.check().map(|()| index));
            mapped.release_pages();
            match opened {
                Ok(index) if index.layer() == expected.layer && index.compressed_size() == expected.size => {
                    return Ok(Some(index));
                }
                Ok(_) => {
                    // It is the manifest that is wrong: no blob has two lengths.
                    tracing::warn!(layer = %expected.layer, "stored index speaks of another blob");
                    return Ok(None);
                }
                Err(error) => tracing::warn!(layer = %expected.layer, %error, "indexing the layer again"),
            }
            store.remove_index(&expected.layer)?;
            Ok(None)
        });
        task.await.map_err(|_| Error::Interrupted)?
    }

    /// What a user of this cache imported about the layer, which is a claim that is believed because of that. A damaged
    /// one is removed.
    async fn imported_index(&self, expected: Expected) -> Result<Option<LayerIndex>, Error> {
        let store = Arc::clone(&self.store);
        let task = tokio::task::spawn_blocking(move || -> Result<_, Error> {
            let Some(mapped) = store.claim(&expected.layer, &IMPORTED)? else { return Ok(None) };
            let opened = LayerIndex::open_claim(mapped.bytes().clone()).and_then(|index| index.check().map(|()| index));
            let checked = opened.map_err(|error| error.to_string()).and_then(|index| {
                index.check_entries().map_err(|error| error.to_string())?;
                Ok(index)
            });
            match checked {
                Ok(index) if index.is_of(&expected) => {
                    mapped.release_pages();
                    return Ok(Some(index));
                }
                Ok(_) => {
                    tracing::warn!(layer = %expected.layer, "imported index speaks of another blob");
                    return Ok(None);
                }
                Err(error) => tracing::warn!(layer = %expected.layer, error, "the imported index is not used"),
            }
            store.remove_claim(&expected.layer, &IMPORTED)?;
            Ok(None)
        });
        task.await.map_err(|_| Error::Interrupted)?
    }

    async fn layer(
        &self,
        index: LayerIndex,
        claim: Option<Claim>,
        descriptor: &Descriptor,
        (reader, source_name): (Option<Arc<dyn BlobReader>>, String),
    ) -> Result<Arc<fetch::Layer>, Error> {
        let store = Arc::clone(&self.store);
        let (digest, size) = (descriptor.digest, descriptor.size);
        let blob = tokio::task::spawn_blocking(move || store.blob(&digest, size)).await;
        let blob = blob.map_err(|_| Error::Interrupted)??;
        let layer = fetch::Layer::new(index, blob, reader, &source_name, self.store.scratch());
        let Some(Claim { name, windows }) = claim else { return Ok(Arc::new(layer)) };
        let layer = layer.with_claim(Arc::clone(&self.store), name);
        let Some(source) = windows else { return Ok(Arc::new(layer)) };
        let layer = Arc::new(layer.with_windows(source));
        // Nobody waits for them yet, but the first read most likely will.
        let arriving = Arc::clone(&layer);
        tokio::spawn(async move {
            if let Err(error) = arriving.windows().await {
                tracing::warn!(layer = %arriving.index.layer(), %error, "the windows of a shared index did not arrive");
            }
        });
        Ok(layer)
    }
}

/// Where the bytes of a layer come from: its descriptor, or the source.
fn reader(descriptor: &Descriptor, source: Option<&Arc<dyn Source>>) -> Option<Arc<dyn BlobReader>> {
    match &descriptor.data {
        Some(data) => Some(Arc::new(InlineBlob(data.clone()))),
        None => source.map(|source| source.blob(descriptor)),
    }
}
