//! Layers that bring their own index: a TOC whose digest the manifest pins ([`toc::Pin`]).
//!
//! Such a layer needs no first contact: one ranged read gets its TOC, two where the TOC is longer than expected. Whatever is
//! wrong with it, the layer is still there to be streamed, so that does not fail the image: the fault becomes a warning. A TOC
//! that the manifest does not pin is not looked at.
//!
//! eStargz may have the TOCs of an image in another image, whose tag is the image's with a suffix ([`Apart`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::{Error, Images, Request, source};
use crate::fetch::{self, Traffic, read_range};
use crate::index::toc::{self, Footer, Outside, Pin, Place};
use crate::index::{self, Expected, LayerIndex};
use crate::limits;
use crate::oci::{Descriptor, Digest, LocalSelector, Manifest, Reference};
use crate::source::{BlobReader, Source};
use crate::store::claim_name;
use crate::tree;

/// Names the layer of the image that a layer of the image with TOCs speaks of.
const LAYER: &str = "containerd.io/snapshot/stargz/layer.digest";

/// What the tag of an image gets for the image that has its TOCs.
const SUFFIX: &str = "-esgztoc";

/// Opens the TOCs of one image's layers.
pub(super) struct Tocs<'a> {
    images: &'a Images,
    request: &'a Request,
    /// The image with the TOCs of those layers that do not have them: asked for once, by the first layer that needs it.
    apart: OnceCell<Option<Apart>>,
    /// Whether no TOC is to be used any more.
    is_refused: AtomicBool,
    /// Why TOCs were not used.
    warnings: Mutex<Vec<String>>,
}

/// An image whose layers are TOCs.
struct Apart {
    source: Arc<dyn Source>,
    /// Its layers by those that they speak of.
    layers: HashMap<Digest, Descriptor>,
}

/// An index made of a TOC.
pub(super) struct Opened {
    pub(super) index: LayerIndex,
    /// The name under which the store keeps it.
    pub(super) claim: Digest,
    /// What was read for it, if that happened now.
    pub(super) moved: Option<Arc<fetch::Progress>>,
}

/// Why a TOC is not used.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    #[error(transparent)]
    Toc(#[from] toc::Error),
    #[error(transparent)]
    Claim(#[from] index::Malformed),
    #[error("its manifest pins a table of contents, but it has none")]
    Missing,
    #[error("its table of contents is in another image, which cannot be found")]
    Apart,
    #[error("interrupted")]
    Interrupted,
}

impl<'a> Tocs<'a> {
    pub(super) fn new(images: &'a Images, request: &'a Request) -> Self {
        Self { images, request, apart: OnceCell::new(), is_refused: AtomicBool::new(false), warnings: Mutex::default() }
    }

    /// The index of a layer from its TOC: stored from an earlier time, or read now through `reader`. None if the layer is to
    /// be treated like any other.
    pub(super) async fn index(
        &self,
        expected: Expected,
        descriptor: &Descriptor,
        reader: Option<&Arc<dyn BlobReader>>,
    ) -> Result<Option<Opened>, Error> {
        if self.is_refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let pin = match Pin::of(&descriptor.annotations) {
            Ok(Some(pin)) => pin,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.warn(&expected.layer, &error.into());
                return Ok(None);
            }
        };
        let claim = self.name(&expected, &pin);
        if let Some(index) = self.stored(expected, claim).await? {
            return Ok(Some(Opened { index, claim, moved: None }));
        }
        let Some(reader) = reader else { return Ok(None) };
        let moved = Arc::new(fetch::Progress::default());
        // A TOC that is read takes several times its length of memory.
        let permit = self.images.readers.acquire().await.map_err(|_| Error::Interrupted)?;
        let read = self.read(expected, &pin, reader.as_ref(), &moved.traffic).await;
        drop(permit);
        match read {
            Ok(index) => Ok(Some(Opened { index, claim, moved: Some(moved) })),
            // Streaming all of a blob whose end cannot be read is no way out, unless it is here.
            Err(Refused::Fetch(error)) if !self.is_here(expected).await => Err(error.into()),
            Err(refused) => {
                self.warn(&expected.layer, &refused);
                Ok(None)
            }
        }
    }

    /// By what the cache keeps what a TOC says. Where it is in the blob no digest binds, so it is kept for each repository.
    fn name(&self, expected: &Expected, pin: &Pin) -> Digest {
        let place = match &self.request.reference {
            Reference::Registry(name) => format!("{}/{}", name.host(), name.repository()),
            local => local.to_string(),
        };
        claim_name("TOC", &[&place, &format!("{pin:?}"), &expected.diff_id, &expected.size])
    }

    /// True if the cache has all bytes of the layer.
    async fn is_here(&self, expected: Expected) -> bool {
        let store = Arc::clone(&self.images.store);
        let blob = tokio::task::spawn_blocking(move || store.blob(&expected.layer, expected.size));
        blob.await.is_ok_and(|blob| blob.is_ok_and(|blob| blob.is_complete()))
    }

    /// Uses no TOC from now on: with what others say of them, the image's layers do not merge.
    pub(super) fn refuse(&self, error: &tree::Error) {
        self.is_refused.store(true, Ordering::Relaxed);
        self.say(format!("what others say of the layers is not used, and the layers are indexed here: {error}"));
    }

    /// What the user should know about TOCs that were not used.
    pub(super) fn warnings(self) -> Vec<String> {
        self.warnings.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, layer: &Digest, refused: &Refused) {
        self.say(format!("layer {layer} is treated as if it had no index of its own: {refused}"));
    }

    fn say(&self, warning: String) {
        tracing::warn!("{warning}");
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
    }

    /// The stored claim, if it is sound; a damaged one is removed.
    async fn stored(&self, expected: Expected, claim: Digest) -> Result<Option<LayerIndex>, Error> {
        let store = Arc::clone(&self.images.store);
        let task = tokio::task::spawn_blocking(move || -> Result<_, Error> {
            let Some(mapped) = store.claim(&expected.layer, &claim)? else { return Ok(None) };
            match LayerIndex::open_claim(mapped.bytes().clone()) {
                Ok(index) if index.is_of(&expected) => Ok(Some(index)),
                other => {
                    tracing::warn!(layer = %expected.layer, error = ?other.err(), "reading the table of contents again");
                    store.remove_claim(&expected.layer, &claim)?;
                    Ok(None)
                }
            }
        });
        task.await.map_err(|_| Error::Interrupted)?
    }

    async fn read(
        &self,
        expected: Expected,
        pin: &Pin,
        reader: &dyn BlobReader,
        traffic: &Traffic,
    ) -> Result<LayerIndex, Refused> {
        match pin.place(expected.size)? {
            Some(place) => {
                let bytes = read_range(reader, place.bytes(), traffic).await?;
                self.keep(expected, pin, Found::Within(place, bytes)).await
            }
            None => self.read_tail(expected, pin, reader, traffic).await,
        }
    }

    /// Reads the end of the blob, hoping that all of the TOC is in it.
    async fn read_tail(
        &self,
        expected: Expected,
        pin: &Pin,
        reader: &dyn BlobReader,
        traffic: &Traffic,
    ) -> Result<LayerIndex, Refused> {
        let start = expected.size - tail(expected.size);
        let read = read_range(reader, start..expected.size, traffic).await?;
        match Footer::find(&read, expected.size)?.ok_or(Refused::Missing)? {
            Footer::Within(place) => {
                let wanted = place.bytes();
                let before = match wanted.start < start {
                    true => read_range(reader, wanted.start..wanted.end.min(start), traffic).await?,
                    false => Bytes::new(),
                };
                // Within the tail, whose length is bounded.
                let within = |place: u64| (place.max(start) - start) as usize;
                let bytes = [&before[..], &read[within(wanted.start)..within(wanted.end)]].concat();
                self.keep(expected, pin, Found::Within(place, bytes.into())).await
            }
            Footer::Outside(outside) => {
                let apart = self.apart.get_or_init(|| self.find_apart()).await.as_ref().ok_or(Refused::Apart)?;
                let descriptor = apart.layers.get(&expected.layer).ok_or(Refused::Apart)?;
                if descriptor.size > limits::TOC_BYTES {
                    return Err(toc::Error::Length.into());
                }
                let archive = read_range(apart.source.blob(descriptor).as_ref(), 0..descriptor.size, traffic).await;
                let archive = archive.map_err(|error| {
                    tracing::debug!(layer = %expected.layer, %error, "its table of contents cannot be read");
                    Refused::Apart
                })?;
                self.keep(expected, pin, Found::Outside(outside, archive)).await
            }
        }
    }

    /// Makes an index of a TOC and stores it.
    async fn keep(&self, expected: Expected, pin: &Pin, found: Found) -> Result<LayerIndex, Refused> {
        let (store, pin, name) = (Arc::clone(&self.images.store), pin.clone(), self.name(&expected, pin));
        let task = tokio::task::spawn_blocking(move || -> Result<_, Refused> {
            let claim = match found {
                Found::Within(place, bytes) => toc::open(&place, &bytes, &pin)?,
                Found::Outside(outside, archive) => toc::open_outside(outside, &archive, &pin)?,
            };
            let index = LayerIndex::claimed(&expected, claim)?;
            let kept = store.put_claim(&expected.layer, &name, index.as_bytes());
            // The mapped copy takes no memory that the kernel cannot have back.
            match kept.map(|mapped| LayerIndex::open_claim(mapped.bytes().clone())) {
                Ok(Ok(mapped)) => Ok(mapped),
                Ok(Err(_)) => Ok(index),
                Err(error) => {
                    tracing::debug!(layer = %expected.layer, %error, "the claim is not kept");
                    Ok(index)
                }
            }
        });
        task.await.map_err(|_| Refused::Interrupted)?
    }

    /// Looks for the image that has the TOCs. Its manifest may be an index of one image for each platform; layers are
    /// named by their digests, so all of them can be taken together.
    async fn find_apart(&self) -> Option<Apart> {
        let reference = apart(&self.request.reference)?;
        match self.read_apart(reference).await {
            Ok(apart) => apart,
            Err(error) => {
                tracing::debug!(%error, "there is no image with tables of contents");
                None
            }
        }
    }

    async fn read_apart(&self, reference: Reference) -> Result<Option<Apart>, Error> {
        let opened =
            source::open(&Request { reference, ..self.request.clone() }, &self.images.clients, self.images.store.dir())
                .await?;
        let Some(source) = opened.source else { return Ok(None) };
        let mut layers = HashMap::new();
        let mut documents = vec![source.resolve().await?];
        let mut left = limits::DOCUMENTS;
        while let (Some(document), true) = (documents.pop(), left > 0) {
            left -= 1;
            let digest = document.digest;
            match Manifest::parse(&document.bytes, &document.media_type) {
                Ok(Manifest::Image(manifest)) => {
                    for layer in manifest.layers {
                        if let Some(Ok(speaks_of)) = layer.annotations.get(LAYER).map(|text| text.parse()) {
                            layers.insert(speaks_of, layer);
                        }
                    }
                }
                Ok(Manifest::Index(index)) => {
                    for entry in index.entries.iter().take(left.saturating_sub(documents.len())) {
                        documents.push(source.manifest(&entry.descriptor).await?);
                    }
                }
                Err(source) => return Err(Error::Manifest { digest, source: Box::new(source) }),
            }
        }
        Ok(Some(Apart { source, layers }))
    }
}

/// The bytes of a TOC, and where they were found.
enum Found {
    Within(Place, Bytes),
    Outside(Outside, Bytes),
}

/// True if the manifest pins a TOC of this layer.
pub(super) fn is_pinned(descriptor: &Descriptor) -> bool {
    Pin::of(&descriptor.annotations).is_ok_and(|pin| pin.is_some())
}

/// How much of the end of a blob is read at first. The TOC of a layer of programs takes about a hundred and sixtieth of it
/// (438 KB of the 70 MB that ctr-remote makes of Debian); what it takes more costs another round trip.
fn tail(size: u64) -> u64 {
    (size / 128).clamp(32 << 10, 1 << 20).min(size)
}

/// The reference of the image with the TOCs of the image `reference`, if that has a tag.
fn apart(reference: &Reference) -> Option<Reference> {
    let text = match reference {
        Reference::Registry(name) => format!("{}/{}:{}{SUFFIX}", name.host(), name.repository(), name.tag()?),
        Reference::Layout(local) | Reference::OciArchive(local) | Reference::DockerArchive(local) => {
            let Some(LocalSelector::Name(_)) = local.selector() else { return None };
            format!("{reference}{SUFFIX}")
        }
    };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_a_small_part_of_a_large_blob_and_all_of_a_small_one() {
        for (size, expected) in [(0, 0), (51, 51), (32 << 10, 32 << 10), (4 << 20, 32 << 10), (16 << 20, 128 << 10)] {
            assert_eq!(tail(size), expected);
        }
        assert_eq!(tail(u64::MAX), 1 << 20);
    }

    #[test]
    fn the_image_with_the_tocs_is_that_of_the_tag() {
        let of = |text: &str| apart(&text.parse().expect("a reference")).map(|reference| reference.to_string());
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(of("ghcr.io/a/b:1").as_deref(), Some("ghcr.io/a/b:1-esgztoc"));
        assert_eq!(of("debian").as_deref(), Some("docker.io/library/debian:latest-esgztoc"));
        assert_eq!(of(&format!("ghcr.io/a/b:1@{digest}")).as_deref(), Some("ghcr.io/a/b:1-esgztoc"));
        assert_eq!(of("oci:/srv/layout:1").as_deref(), Some("oci:/srv/layout:1-esgztoc"));
        for text in [format!("ghcr.io/a/b@{digest}"), format!("oci:/srv/layout@{digest}"), "oci:/srv/layout".to_owned()]
        {
            assert_eq!(of(&text), None, "{text} has no tag");
        }
    }
}
