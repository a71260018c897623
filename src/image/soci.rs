//! SOCI's indexes as shared indexes.
//!
//! Version 1 is looked for where there is none of ours, and believed by the same rule. Version 2 is named by the image's
//! manifest ([`pin`]), so it comes first, and for the layers that it lists nothing else is looked for.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::discovery::{Candidate, Candidates, DISCOVERY, Job, Outcome};
use crate::index::{Expected, LayerIndex, soci};
use crate::limits::{PARALLEL_INDEXES, SMALL_LAYER, ZTOCS_HELD};
use crate::oci::{Descriptor, Digest, ImageManifest};
use crate::share::{self, SOCI_PIN, SociIndex, SociLayer};
use crate::source::BoxFuture;
use crate::store::{Store, claim_name};

/// An index beside the image, with its digest.
pub(super) type FoundSoci = (Digest, SociIndex);

/// A zTOC that somebody put beside the image.
#[derive(Debug, Clone)]
pub(super) struct Ztoc {
    /// The index that lists it.
    pub(super) artifact: Digest,
    /// The key by which that is believed, if it is for its signature.
    pub(super) signer: Option<Arc<str>>,
    /// Its digest, by which the store keeps what it says.
    pub(super) digest: Digest,
    content: Content,
}

/// Where the bytes of a zTOC are.
#[derive(Debug, Clone)]
enum Content {
    /// What it says is in the cache already.
    Known,
    /// Here.
    Read(Bytes),
    /// In the registry: those of the image together are too long to be held.
    Listed(Box<SociLayer>),
}

impl Ztoc {
    /// True if its bytes are still in the registry.
    pub(super) fn is_to_be_read(&self) -> bool {
        matches!(self.content, Content::Listed(_))
    }

    /// By what the cache keeps what it says of a layer.
    pub(super) fn claim(&self, expected: &Expected) -> Digest {
        claim(&self.digest, expected.size)
    }
}

/// The name of what the zTOC `digest` says of a layer of this `size`.
fn claim(digest: &Digest, size: u64) -> Digest {
    claim_name("zTOC", &[digest, &size])
}

/// The digest of the SOCI index that an image's manifest pins.
pub fn pin(manifest: &ImageManifest) -> Option<Digest> {
    let text = manifest.annotations.get(SOCI_PIN)?;
    let digest = text.parse();
    digest.inspect_err(|error| tracing::warn!(%error, "the annotation {SOCI_PIN} of the image is passed over")).ok()
}

impl Job {
    /// The SOCI index that the manifest of the image with these layers pins, if it can be used.
    pub(super) async fn pinned_soci(&self, pin: Digest, layers: &[Descriptor]) -> Option<SociIndex> {
        let opened = self.open_pinned(pin, layers).await;
        let refused = |error: &share::Error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(image = %self.subject, index = %pin, error, "the pinned SOCI index is refused");
        };
        opened.inspect_err(refused).ok()
    }

    /// That index from the cache, where its digest is enough to find it, or from the registry.
    async fn open_pinned(&self, pin: Digest, layers: &[Descriptor]) -> Result<SociIndex, share::Error> {
        let refuse = |why: &str| share::Error::Artifact { digest: pin, why: why.to_owned() };
        let is_of_image = |index: &SociIndex| {
            index.layers.is_empty() || layers.iter().any(|layer| index.layer(&layer.digest).is_some())
        };
        let check = |index: SociIndex| match is_of_image(&index) {
            true => Ok(index),
            false => Err(refuse("it lists no layer of the image")),
        };
        let kept = self.blocking(move |store| store.document(&pin).ok().flatten()).await.flatten();
        if let Some(document) = kept {
            return check(SociIndex::parse(&document, &self.subject)?);
        }
        if self.offline {
            return Err(refuse("it is not in the cache"));
        }
        let fetched = tokio::time::timeout(DISCOVERY, share::pinned_soci(&self.repository, pin, &self.subject)).await;
        let (index, document) = fetched.map_err(|_| refuse("the registry takes too long to answer"))??;
        let index = check(index)?;
        if let Some(Err(error)) = self.blocking(move |store| store.put_document(&pin, &document)).await {
            tracing::debug!(%error, "the SOCI index is not remembered");
        }
        Ok(index)
    }

    /// An index beside the image, from the cache if all that it says of these layers is there.
    pub(super) async fn soci_index(&self, lacking: &[Descriptor]) -> Candidates<FoundSoci> {
        match self.remembered_soci(lacking).await {
            Some(index) => Candidates::of(index),
            None if self.offline => Candidates::default(),
            None => self.discover_soci().await,
        }
    }

    /// The zTOCs of these layers from an index beside the image.
    pub(super) async fn soci(&self, found: &Candidate<FoundSoci>, lacking: &[Descriptor]) -> Outcome {
        let Candidate { what: (artifact, index), signer } = found;
        let ztocs = self.ztocs(*artifact, index, lacking).await;
        let signed = |ztoc: Ztoc| Ztoc { signer: signer.clone(), ..ztoc };
        Outcome::of(ztocs.into_iter().filter_map(|(layer, ztoc)| Some((layer, signed(ztoc?)))).collect())
    }

    /// The zTOCs of those layers that an index lists; none in the place of one that cannot be used.
    pub(super) async fn ztocs(
        &self,
        artifact: Digest,
        index: &SociIndex,
        layers: &[Descriptor],
    ) -> Vec<(Digest, Option<Ztoc>)> {
        let mut reading: Vec<BoxFuture<'_, (Digest, Option<Ztoc>)>> = Vec::new();
        let mut held = 0_u64;
        for layer in layers {
            let Some(listed) = index.layer(&layer.digest) else { continue };
            held = held.saturating_add(listed.ztoc.size);
            let is_long = held > ZTOCS_HELD;
            reading.push(Box::pin(async move {
                let content = match is_long {
                    true => Ok(Content::Listed(Box::new(listed.clone()))),
                    false => self.ztoc((layer.digest, layer.size), listed).await,
                };
                let refused =
                    |why: &String| tracing::warn!(layer = %layer.digest, %artifact, why, "a zTOC is not used");
                let content = content.inspect_err(refused).ok();
                let ztoc = |content| Ztoc { artifact, signer: None, digest: listed.ztoc.digest, content };
                (layer.digest, content.map(ztoc))
            }));
        }
        stream::iter(reading).buffer_unordered(PARALLEL_INDEXES).collect().await
    }

    /// The index that was used last, if all that it says of these layers is still here.
    async fn remembered_soci(&self, lacking: &[Descriptor]) -> Option<Candidate<FoundSoci>> {
        let (key, subject, lacking) = (self.soci_key(), self.subject, lacking.to_vec());
        let recall = move |store: &Store| {
            let (digest, _) = store.reference(&key).ok()??;
            let index = SociIndex::parse(&store.document(&digest).ok()??, &subject).ok()?;
            let is_here = |layer: &Descriptor| match index.layer(&layer.digest) {
                Some(listed) => store
                    .claim(&layer.digest, &claim(&listed.ztoc.digest, layer.size))
                    .is_ok_and(|claim| claim.is_some()),
                // Too small to be listed, and streamed by the first mount.
                None => true,
            };
            lacking.iter().all(is_here).then_some((digest, index))
        };
        let (digest, index) = self.blocking(recall).await.flatten()?;
        self.remembered_belief(digest, (digest, index)).await
    }

    async fn discover_soci(&self) -> Candidates<FoundSoci> {
        let found = tokio::time::timeout(DISCOVERY, share::discover_soci(&self.repository, &self.subject)).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%error, "no SOCI index");
                return Candidates::default();
            }
            Err(_) => {
                tracing::warn!("looking for a SOCI index takes too long, given up");
                return Candidates::default();
            }
        };
        let Candidates { believed, disbelief } = self.believed(found, |(manifest, ..)| manifest.digest).await;
        let mut candidates = Candidates { believed: Vec::new(), disbelief };
        let Some(Candidate { what: (manifest, index, document), signer }) = believed.into_iter().next() else {
            return candidates;
        };
        let (key, digest) = (self.soci_key(), manifest.digest);
        let keep = move |store: &Store| {
            store
                .put_document(&digest, &document)
                .and_then(|()| store.put_reference(&key, &digest, &manifest.media_type))
        };
        if let Some(Err(error)) = self.blocking(keep).await {
            tracing::debug!(%error, "the SOCI index is not remembered");
        }
        candidates.believed.push(Candidate { what: (digest, index), signer });
        candidates
    }

    fn soci_key(&self) -> String {
        self.key_of("zTOCs")
    }

    /// The same zTOC with its bytes, if it was not read yet. Those are not held for long: see to it that few are at once.
    pub(super) async fn read_ztoc(&self, expected: &Expected, ztoc: &Ztoc) -> Result<Ztoc, String> {
        let content = match &ztoc.content {
            Content::Listed(listed) => self.ztoc((expected.layer, expected.size), listed).await?,
            here => here.clone(),
        };
        Ok(Ztoc { content, ..ztoc.clone() })
    }

    /// The bytes of a zTOC of the layer with this digest and size, unless what it says is here.
    async fn ztoc(&self, (layer, size): (Digest, u64), listed: &SociLayer) -> Result<Content, String> {
        let ztoc = &listed.ztoc;
        if ztoc.size > size.max(SMALL_LAYER) {
            return Err(format!("it has {} bytes for a layer of {size}", ztoc.size));
        }
        let claim = claim(&ztoc.digest, size);
        let is_here = self.blocking(move |store| store.claim(&layer, &claim).is_ok_and(|claim| claim.is_some())).await;
        if is_here.unwrap_or(false) {
            return Ok(Content::Known);
        }
        if self.offline {
            return Err("it is not in the cache".to_owned());
        }
        share::read_blob(&self.repository, ztoc).await.map(Content::Read).map_err(|error| error.to_string())
    }
}

/// What a zTOC says of the layer, kept in `store` for the next time. Blocks.
pub(super) fn index(store: &Store, expected: &Expected, ztoc: &Ztoc) -> Result<LayerIndex, String> {
    let (layer, name) = (expected.layer, ztoc.claim(expected));
    let Content::Read(bytes) = &ztoc.content else {
        let stored = store.claim(&layer, &name).map_err(|error| error.to_string())?;
        let stored = stored.ok_or("it is not in the cache any more")?;
        let opened = LayerIndex::open_claim(stored.bytes().clone()).and_then(|index| index.check().map(|()| index));
        let opened = opened.map_err(|error| error.to_string());
        let checked = opened.and_then(|index| match index.is_of(expected) {
            true => Ok(index),
            false => Err("it was kept for another content".to_owned()),
        });
        if checked.is_err() {
            // It is read anew next time.
            store.remove_claim(&layer, &name).map_err(|error| error.to_string())?;
        }
        return checked;
    };
    let claim = soci::claim(expected, bytes).map_err(|refused| refused.to_string())?;
    let index = LayerIndex::claimed(expected, claim).map_err(|malformed| malformed.to_string())?;
    match store.put_claim(&layer, &name, index.as_bytes()) {
        Ok(mapped) => LayerIndex::open_claim(mapped.bytes().clone()).map_err(|error| error.to_string()),
        Err(error) => {
            tracing::debug!(%error, "what a zTOC says is not kept");
            Ok(index)
        }
    }
}
