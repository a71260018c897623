//! Looking for what lies beside an image: our artifacts, SOCI's indexes, and what the cache has of either.
//!
//! A [`Job`] is the task of one search, and an [`Outcome`] what it came to. It asks only if some layer has no index here. What
//! is malformed, of another layer or not worth its bytes is refused with a warning, and the layer is treated as if nobody had
//! made an index of it.
//!
//! A SOCI index that the image's manifest pins is asked first; what it lists is looked for nowhere else.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::soci::{FoundSoci, Ztoc};
use super::trust::Belief;
use crate::index::LayerIndex;
use crate::limits::{PARALLEL_INDEXES, PARALLEL_SIGNED, SMALL_INDEX, SMALL_LAYER};
use crate::oci::{Descriptor, Digest};
use crate::profile::Profile;
use crate::registry::Repository;
use crate::share::{self, Artifact, LayerBlob, Shared};
use crate::signature::{Keys, Signature};
use crate::source::{ErrorKind, Source};
use crate::store::{IMPORTED, Store};

/// How long finding artifacts may take: a mirror that says nothing has five seconds before the registry's turn. A registry
/// that is slow to answer this answers the layers all the same.
pub(super) const DISCOVERY: Duration = Duration::from_secs(8);

/// The task of a search.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) repository: Repository,
    pub(super) offline: bool,
    pub(super) store: Arc<Store>,
    /// The image's manifest.
    pub(super) subject: Digest,
    /// What of that which lies beside the image is believed.
    pub(super) belief: Belief,
    /// By whose keys it may be signed.
    pub(super) keys: Keys,
}

impl Job {
    /// Asks the index that the image's manifest pins, and for the layers that it does not list looks beside the image.
    pub(super) async fn run(&self, layers: Vec<Descriptor>, pin: Option<Digest>) -> Outcome {
        let listed = layers.clone();
        let lacking = self.blocking(move |store| lacking(store, listed)).await.unwrap_or_default();
        if lacking.is_empty() {
            return Outcome::default();
        }
        let Some(pin) = pin else { return self.search(lacking).await };
        let Some(index) = self.pinned_soci(pin, &layers).await else { return self.search(lacking).await };
        let (listed, others): (Vec<_>, Vec<_>) =
            lacking.into_iter().partition(|layer| index.layer(&layer.digest).is_some());
        let (pinned, found) = tokio::join!(self.ztocs(pin, &index, &listed), self.search(others));
        Outcome { pinned: pinned.into_iter().collect(), ..found }
    }

    /// The indexes of these layers beside the image, if what lies there is believed.
    async fn search(&self, lacking: Vec<Descriptor>) -> Outcome {
        if lacking.is_empty() || self.belief == Belief::None {
            return Outcome::default();
        }
        let (artifacts, soci) = match self.remembered(&lacking).await {
            Some(artifact) => (Candidates::of(artifact), Candidates::default()),
            None if self.offline => (Candidates::default(), self.soci_index(&lacking).await),
            None => self.discover_both(&lacking).await,
        };
        let disbelief = artifacts.disbelief.or(soci.disbelief);
        let artifacts = artifacts.believed;
        if artifacts.is_empty() {
            return match soci.believed.first() {
                Some(index) => self.soci(index, &lacking).await,
                None => Outcome { disbelief, ..Outcome::default() },
            };
        }
        let mut finding: Vec<BoxFuture<'_, Option<(Digest, Usable)>>> = Vec::new();
        for layer in lacking {
            let artifacts = &artifacts;
            finding.push(Box::pin(async move { Some((layer.digest, self.find(&layer, artifacts).await?)) }));
        }
        let finding = stream::iter(finding).buffer_unordered(PARALLEL_INDEXES).collect::<Vec<_>>();
        let (indexes, profile) = tokio::join!(finding, self.profile(&artifacts));
        let indexes = indexes.into_iter().flatten().collect();
        Outcome { indexes, profile, found_any: true, ..Outcome::default() }
    }

    /// The artifact that was used last, if the claims in it are all still here: it then costs no round trip.
    async fn remembered(&self, lacking: &[Descriptor]) -> Option<Candidate<Shared>> {
        let (key, subject, lacking) = (self.key(), self.subject, lacking.to_vec());
        let recall = move |store: &Store| {
            let (digest, media_type) = store.reference(&key).ok()??;
            let document = store.document(&digest).ok()??;
            let artifact = Artifact::parse(&document, &subject).ok()?;
            let is_here = |layer: &Descriptor| {
                let blob = artifact.layer(&layer.digest);
                blob.is_some_and(|blob| store.claim(&layer.digest, &blob.claim()).is_ok_and(|claim| claim.is_some()))
            };
            let all_here = lacking.iter().all(is_here);
            let manifest = Descriptor::new(media_type, digest, document.len() as u64);
            all_here.then_some(Shared { manifest, artifact, document })
        };
        let shared = self.blocking(recall).await.flatten()?;
        let digest = shared.manifest.digest;
        self.remembered_belief(digest, shared).await
    }

    /// What was found before and is believed without asking anybody; none if it is not.
    pub(super) async fn remembered_belief<T>(&self, artifact: Digest, what: T) -> Option<Candidate<T>> {
        let signer = match self.belief {
            Belief::All => None,
            Belief::Signed => Some(self.remembered_signer(artifact).await?),
            Belief::None => return None,
        };
        Some(Candidate { what, signer })
    }

    /// Which of these artifacts are believed. Whose signatures count is asked for several at once, and for no longer than finding
    /// the artifacts may take.
    pub(super) async fn believed<T>(&self, found: Vec<T>, digest: impl Fn(&T) -> Digest) -> Candidates<T> {
        let all = |what| Candidate { what, signer: None };
        match self.belief {
            Belief::None => return Candidates::default(),
            Belief::All => return Candidates { believed: found.into_iter().map(all).collect(), disbelief: None },
            Belief::Signed => {}
        }
        let deadline = Instant::now() + DISCOVERY;
        let asking: Vec<_> = found.iter().map(|artifact| self.signer(digest(artifact), deadline)).collect();
        let signers: Vec<_> = stream::iter(asking).buffered(PARALLEL_SIGNED).collect().await;
        let mut candidates = Candidates::default();
        for (what, signer) in found.into_iter().zip(signers) {
            match signer {
                Ok(signer) => candidates.believed.push(Candidate { what, signer: Some(signer) }),
                Err(Disbelief::Unsigned) if candidates.disbelief.is_some() => {}
                Err(disbelief) => candidates.disbelief = Some(disbelief),
            }
        }
        candidates
    }

    /// The key that signed an artifact, by what was kept or by what the registry has; the latter is kept if it is to the point.
    async fn signer(&self, artifact: Digest, deadline: Instant) -> Result<Arc<str>, Disbelief> {
        if let Some(signer) = self.remembered_signer(artifact).await {
            return Ok(signer);
        }
        let looking = tokio::time::timeout_at(deadline, share::signature(&self.repository, artifact, &self.keys));
        let unknown = |why: &(dyn std::error::Error + 'static)| {
            tracing::warn!(%artifact, error = why, "signatures cannot be looked for");
            Disbelief::Unknown(why.to_string())
        };
        let found = looking.await.map_err(|_| {
            let why = format!("{} takes too long to answer", self.repository.name());
            unknown(&crate::source::Error::new(ErrorKind::Unreachable, why))
        })?;
        let (signature, signer) = found.map_err(|error| unknown(&error))?.ok_or(Disbelief::Unsigned)?;
        self.remember(artifact, &signature).await;
        Ok(signer.into())
    }

    async fn remember(&self, artifact: Digest, signature: &Signature) {
        let (key, document) = (self.signature_key(&artifact), serde_json::to_vec(signature));
        let keep = move |store: &Store| {
            // Texts and bytes are JSON.
            let document = document.unwrap_or_default();
            let digest = Digest::sha256(&document);
            store.put_document(&digest, &document).and_then(|()| store.put_reference(&key, &digest, ""))
        };
        if let Some(Err(error)) = self.blocking(keep).await {
            tracing::debug!(%error, "the signature is not remembered");
        }
    }

    /// The key of the user by which the signature that was kept is one of the artifact.
    async fn remembered_signer(&self, artifact: Digest) -> Option<Arc<str>> {
        let (key, keys) = (self.signature_key(&artifact), self.keys.clone());
        let recall = move |store: &Store| {
            let (digest, _) = store.reference(&key).ok()??;
            let signature: Signature = serde_json::from_slice(&store.document(&digest).ok()??).ok()?;
            signature.signer(&artifact, &keys).map(Arc::from)
        };
        self.blocking(recall).await.flatten()
    }

    /// By what the signature of an artifact is remembered. No reference has a blank in it.
    fn signature_key(&self, artifact: &Digest) -> String {
        format!("signature of {}@{artifact}", self.repository.name())
    }

    /// Our artifacts, and if there are none SOCI's index.
    ///
    /// Both are asked for at once: nobody knows beforehand which of them there are, and a mount over a slow line waits
    /// longer for a second round trip than for a question more.
    async fn discover_both(&self, lacking: &[Descriptor]) -> (Candidates<Shared>, Candidates<FoundSoci>) {
        let (ours, soci) = (pin!(self.discover()), pin!(self.soci_index(lacking)));
        match select(ours, soci).await {
            Either::Left((ours, soci)) if ours.believed.is_empty() => (ours, soci.await),
            Either::Left((ours, _)) => (ours, Candidates::default()),
            Either::Right((soci, ours)) => (ours.await, soci),
        }
    }

    async fn discover(&self) -> Candidates<Shared> {
        let found = tokio::time::timeout(DISCOVERY, share::discover(&self.repository, &self.subject)).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%error, "no shared indexes");
                return Candidates::default();
            }
            Err(_) => {
                tracing::warn!(registry = %self.repository.name(), "looking for shared indexes takes too long, given up");
                return Candidates::default();
            }
        };
        let found = self.believed(found, |shared| shared.manifest.digest).await;
        if let Some(Candidate { what: first, .. }) = found.believed.first() {
            let (key, manifest, document) = (self.key(), first.manifest.clone(), first.document.clone());
            let keep = move |store: &Store| {
                store
                    .put_document(&manifest.digest, &document)
                    .and_then(|()| store.put_reference(&key, &manifest.digest, &manifest.media_type))
            };
            if let Some(Err(error)) = self.blocking(keep).await {
                tracing::debug!(%error, "the artifact is not remembered");
            }
        }
        found
    }

    /// By what the artifact of an image is remembered: the one for who asks for a signature is perhaps not the one for others.
    /// No reference has a blank in it.
    fn key(&self) -> String {
        self.key_of("indexes")
    }

    /// The same for a kind of artifact.
    pub(super) fn key_of(&self, kind: &str) -> String {
        let signed = if self.belief == Belief::Signed { "signed " } else { "" };
        format!("{signed}{kind} of {}@{}", self.repository.name(), self.subject)
    }

    /// The index of a layer from the first artifact that has a usable one.
    async fn find(&self, layer: &Descriptor, artifacts: &[Candidate<Shared>]) -> Option<Usable> {
        for Candidate { what: shared, signer } in artifacts {
            let Some(blob) = shared.artifact.layer(&layer.digest) else { continue };
            match self.open(layer, blob).await {
                Ok(index) => {
                    let (artifact, signer) = (shared.manifest.digest, signer.clone());
                    return Some(Usable { index, artifact, signer, blob: blob.clone() });
                }
                Err(why) => {
                    let artifact = shared.manifest.digest;
                    tracing::warn!(layer = %layer.digest, %artifact, index = %blob.blob.digest, why, "a shared index is refused");
                }
            }
        }
        None
    }

    /// The claim of a blob, from the cache or from the registry: of a long one only what a mount needs at once.
    async fn open(&self, layer: &Descriptor, blob: &LayerBlob) -> Result<LayerIndex, String> {
        if blob.blob.size > layer.size.max(SMALL_LAYER) {
            return Err(format!("it has {} bytes for a layer of {}", blob.blob.size, layer.size));
        }
        let (digest, claim, wanted) = (layer.digest, blob.claim(), layer.clone());
        let stored = self.blocking(move |store| {
            let mapped = store.claim(&digest, &claim).ok()??;
            let opened = LayerIndex::open_claim(mapped.bytes().clone()).map_err(|error| error.to_string());
            match opened.and_then(|index| check(index, &wanted)) {
                Ok(index) => Some(index),
                Err(why) => {
                    tracing::warn!(layer = %digest, why, "a stored claim is fetched again");
                    store.remove_claim(&digest, &claim).ok()?;
                    None
                }
            }
        });
        if let Some(index) = stored.await.flatten() {
            return Ok(index);
        }
        if self.offline {
            return Err("it is not in the cache".to_owned());
        }
        let bytes = match blob.blob.size <= SMALL_INDEX {
            true => share::read_blob(&self.repository, &blob.blob).await,
            false => share::read_metadata(&self.repository, blob).await,
        };
        let bytes = bytes.map_err(|error| error.to_string())?;
        let (wanted, size, metadata) = (layer.clone(), blob.blob.size, blob.metadata);
        let kept = self.blocking(move |store| {
            let index = LayerIndex::open_claim(bytes.clone()).map_err(|error| error.to_string())?;
            let index = check(index, &wanted)?;
            index.check_entries().map_err(|error| error.to_string())?;
            // It is kept by the name of this part.
            let first = bytes.get(..usize::try_from(metadata.size).unwrap_or(usize::MAX));
            if index.metadata_len() != metadata.size || !first.is_some_and(|first| metadata.digest.matches(first)) {
                return Err("it does not begin as its artifact says".to_owned());
            }
            if index.encoded_len() != size {
                return Err(format!("it has {} bytes, its blob {size}", index.encoded_len()));
            }
            match store.put_claim(&digest, &claim, &bytes) {
                Ok(mapped) => LayerIndex::open_claim(mapped.bytes().clone()).map_err(|error| error.to_string()),
                Err(error) => {
                    tracing::debug!(%error, "the claim is not kept");
                    Ok(index)
                }
            }
        });
        kept.await.ok_or("the daemon is stopping")?
    }

    /// The profile of the first artifact that has one, unless the cache has its own.
    async fn profile(&self, artifacts: &[Candidate<Shared>]) -> Option<Profile> {
        if self.offline {
            return None;
        }
        let blob = artifacts.iter().find_map(|candidate| candidate.what.artifact.profile.clone())?;
        let subject = self.subject;
        if self.blocking(move |store| store.profile(&subject).is_ok_and(|profile| profile.is_some())).await? {
            return None;
        }
        let text = share::read_blob(&self.repository, &blob).await;
        let profile = text
            .map_err(|error| error.to_string())
            .and_then(|text| Profile::parse(&text).map_err(|error| error.to_string()));
        profile.inspect_err(|why| tracing::warn!(profile = %blob.digest, why, "a shared profile is not used")).ok()
    }

    /// Does what blocks on files; none if the daemon is stopping.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Option<T> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || work(&store)).await.ok()
    }
}

/// What a search came to.
#[derive(Default)]
pub(super) struct Outcome {
    /// By layer.
    pub(super) indexes: HashMap<Digest, Usable>,
    /// By layer, if there is no artifact of ours.
    pub(super) ztocs: HashMap<Digest, Ztoc>,
    /// By the layers that a pinned index lists, which were not looked for elsewhere; none if that one cannot be used.
    pub(super) pinned: HashMap<Digest, Option<Ztoc>>,
    pub(super) profile: Option<Profile>,
    /// True if there is an artifact that is believed at all.
    pub(super) found_any: bool,
    /// Why there is none that is believed although there are some.
    pub(super) disbelief: Option<Disbelief>,
}

/// Why an artifact is not believed by its signature.
#[derive(Debug)]
pub(super) enum Disbelief {
    /// No key of the user signed it.
    Unsigned,
    /// Whether one did could not be found out.
    Unknown(String),
}

/// An artifact that is believed.
#[derive(Debug)]
pub(super) struct Candidate<T> {
    pub(super) what: T,
    /// The key by which it is, if it is for its signature.
    pub(super) signer: Option<Arc<str>>,
}

/// What there is of one kind beside the image.
#[derive(Debug)]
pub(super) struct Candidates<T> {
    /// Those that are believed, the one to use first.
    pub(super) believed: Vec<Candidate<T>>,
    /// Why others are not.
    pub(super) disbelief: Option<Disbelief>,
}

impl<T> Default for Candidates<T> {
    fn default() -> Self {
        Self { believed: Vec::new(), disbelief: None }
    }
}

impl<T> Candidates<T> {
    pub(super) fn of(only: Candidate<T>) -> Self {
        Self { believed: vec![only], disbelief: None }
    }
}

impl Outcome {
    /// Only zTOCs were found.
    pub(super) fn of(ztocs: HashMap<Digest, Ztoc>) -> Self {
        Self { ztocs, found_any: true, ..Self::default() }
    }
}

/// A claim that is of its layer, with the artifact that it belongs to.
pub(super) struct Usable {
    pub(super) index: LayerIndex,
    pub(super) artifact: Digest,
    pub(super) signer: Option<Arc<str>>,
    pub(super) blob: LayerBlob,
}

/// The layers without an index that was made here or imported, each once.
fn lacking(store: &Store, layers: Vec<Descriptor>) -> Vec<Descriptor> {
    let mut seen = HashSet::new();
    let is_here = |layer: &Digest| {
        store.index(layer).is_ok_and(|index| index.is_some())
            || store.claim(layer, &IMPORTED).is_ok_and(|claim| claim.is_some())
    };
    let is_lacking = |layer: &Descriptor| !is_here(&layer.digest);
    layers.into_iter().filter(|layer| seen.insert(layer.digest) && is_lacking(layer)).collect()
}

/// Makes sure that an index is sound and of this layer.
fn check(index: LayerIndex, layer: &Descriptor) -> Result<LayerIndex, String> {
    index.check().map_err(|error| error.to_string())?;
    if index.layer() != layer.digest {
        return Err(format!("it is of layer {}", index.layer()));
    }
    if index.compressed_size() != layer.size {
        return Err(format!("it is of {} bytes, the layer has {}", index.compressed_size(), layer.size));
    }
    Ok(index)
}
