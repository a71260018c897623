//! Indexes that somebody put beside the image: found while the image is resolved, believed or not by one rule.
//!
//! An index from a registry is a claim; `trust` has the rule about believing one. What is believed is still
//! checked span by span when it is read and as a whole when its layer is complete. [`Search`] looks for the artifacts of
//! an image as soon as its manifest is known, beside everything else that opening it needs, and only if some layer has no
//! index here. What is malformed, of another layer or not worth its bytes is refused with a warning, and the layer is
//! treated as if nobody had made an index of it.
//!
//! A SOCI index that the image's manifest pins is asked first; what it lists is looked for nowhere else.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, FutureExt, Shared as SharedFuture, select};
use futures_util::stream::{self, StreamExt};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::AbortHandle;

use super::Request;
use super::soci::{self, Ztoc};
use super::trust::{Verdict, verdict, verdict_of_pins};
use crate::fetch::WindowSource;
use crate::index::{Expected, LayerIndex};
use crate::limits::{PARALLEL_INDEXES, SMALL_INDEX, SMALL_LAYER};
use crate::oci::{Descriptor, Digest, ImageManifest, Reference};
use crate::profile::Profile;
use crate::registry::Repository;
use crate::share::{self, Artifact, LayerBlob, Shared, SociIndex};
use crate::source::{Source, read_all};
use crate::store::{IMPORTED, Store};

/// How long finding artifacts may take. A registry that is slow to answer this answers the layers all the same.
pub(super) const DISCOVERY: Duration = Duration::from_secs(5);

/// An index that was found and is believed.
pub(super) struct Found {
    pub(super) index: LayerIndex,
    /// By what the store keeps it.
    pub(super) claim: Digest,
    /// What brings its windows, if they are not here.
    pub(super) windows: Option<WindowSource>,
    /// The artifact that it belongs to.
    pub(super) artifact: Digest,
    pub(super) why: &'static str,
}

/// What a search came to.
#[derive(Default)]
pub(super) struct Outcome {
    /// By layer.
    indexes: HashMap<Digest, Usable>,
    /// By layer, if there is no artifact of ours.
    ztocs: HashMap<Digest, Ztoc>,
    /// By the layers that a pinned index lists, which were not looked for elsewhere; none if that one cannot be used.
    pinned: HashMap<Digest, Option<Ztoc>>,
    profile: Option<Profile>,
    /// True if there is an artifact at all.
    found_any: bool,
}

impl Outcome {
    /// Only zTOCs were found.
    pub(super) fn of(ztocs: HashMap<Digest, Ztoc>) -> Self {
        Self { ztocs, found_any: true, ..Self::default() }
    }
}

/// A claim that is of its layer, with the artifact that it belongs to.
struct Usable {
    index: LayerIndex,
    artifact: Digest,
    blob: LayerBlob,
}

type Running = SharedFuture<BoxFuture<'static, Arc<Outcome>>>;

/// The search for one image. Dropping it ends it.
pub(super) struct Search {
    verdict: Verdict,
    pins: Verdict,
    /// Where to look; nowhere for local images.
    repository: Option<Repository>,
    /// Use only what was found before.
    offline: bool,
    store: Arc<Store>,
    /// The right to read a zTOC that was too long to be read with the others.
    long: Semaphore,
    /// The search under way. Held only to look at it.
    running: Mutex<Option<Begun>>,
}

/// The search for one image.
struct Begun {
    job: Job,
    layers: Vec<Descriptor>,
    running: Running,
    /// What there is beside the image for layers of which the pinned zTOC turned out to be unusable; rarely asked for.
    late: Arc<OnceCell<Arc<Outcome>>>,
    _abort: AbortOnDrop,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Search {
    pub(super) fn new(request: &Request, repository: Option<Repository>, store: &Arc<Store>) -> Self {
        let is_pinned = matches!(&request.reference, Reference::Registry(name) if name.digest().is_some());
        let verdict = verdict(request.trust, is_pinned);
        Self {
            verdict,
            pins: verdict_of_pins(request.trust),
            repository,
            offline: request.offline,
            store: Arc::clone(store),
            long: Semaphore::new(1),
            running: Mutex::default(),
        }
    }

    /// Begins to look for the indexes of the image `digest`, if any is to be believed. The search for another ends.
    pub(super) fn begin(&self, digest: Digest, manifest: &ImageManifest) {
        let pin = soci::pin(manifest).filter(|_| self.pins.is_believed);
        let is_wanted = self.verdict.is_believed || pin.is_some();
        let Some(repository) = self.repository.clone().filter(|_| is_wanted) else { return };
        let mut begun = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.as_ref().is_some_and(|begun| begun.job.subject == digest) {
            return;
        }
        let job = Job {
            repository,
            offline: self.offline,
            store: Arc::clone(&self.store),
            subject: digest,
            is_believed: self.verdict.is_believed,
        };
        let (running, layers) = (job.clone(), manifest.layers.clone());
        let task = tokio::spawn(async move { running.run(layers, pin).await });
        let abort = AbortOnDrop(task.abort_handle());
        let outcome = async move { Arc::new(task.await.unwrap_or_default()) };
        *begun = Some(Begun {
            job,
            layers: manifest.layers.clone(),
            running: outcome.boxed().shared(),
            late: Arc::default(),
            _abort: abort,
        });
    }

    /// The index of a layer, or why there is none.
    pub(super) async fn index(&self, expected: &Expected) -> Result<Found, String> {
        let Some(repository) = &self.repository else { return Err("the image is not in a registry".to_owned()) };
        let mut outcome = self.outcome().await;
        let pinned = outcome.pinned.get(&expected.layer);
        if let Some(Some(ztoc)) = pinned
            && let Ok(found) = self.ztoc(expected, ztoc, self.pins.why).await
        {
            return Ok(found);
        }
        if !self.verdict.is_believed {
            return Err(format!("indexes of the registry are not believed: {}", self.verdict.why));
        }
        if pinned.is_some() {
            outcome = self.late(&outcome).await;
        }
        if let Some(ztoc) = outcome.ztocs.get(&expected.layer) {
            return self.ztoc(expected, ztoc, self.verdict.why).await;
        }
        let Some(Usable { index, artifact, blob }) = outcome.indexes.get(&expected.layer) else {
            return Err(match outcome.found_any {
                _ if self.offline => "the registry was not asked for one",
                true => "the registry has an index artifact of the image, but none of this layer that can be used",
                false => "the registry has no index of the image",
            }
            .to_owned());
        };
        if index.diff_id() != expected.diff_id {
            tracing::warn!(layer = %expected.layer, %artifact, "the shared index is of another content, refused");
            return Err(format!("the index in {artifact} is of another content"));
        }
        let lacks = !index.has_windows();
        let windows =
            lacks.then(|| window_source(repository.clone(), Arc::clone(&self.store), index.clone(), blob.clone()));
        let claim = blob.claim();
        Ok(Found { index: index.clone(), claim, windows, artifact: *artifact, why: self.verdict.why })
    }

    /// What a zTOC says, made into an index now that all that is expected of the layer is known.
    async fn ztoc(&self, expected: &Expected, ztoc: &Ztoc, why: &'static str) -> Result<Found, String> {
        // One after the other: what is to be read now is what was too much to be held together.
        let (_permit, given) = match ztoc.is_to_be_read().then(|| self.job()).flatten() {
            Some(job) => {
                let permit = self.long.acquire().await.ok();
                (permit, job.read_ztoc(expected, ztoc).await?)
            }
            None => (None, ztoc.clone()),
        };
        let (store, wanted) = (Arc::clone(&self.store), *expected);
        let task = tokio::task::spawn_blocking(move || soci::index(&store, &wanted, &given));
        let index = task.await.unwrap_or_else(|_| Err("the daemon is stopping".to_owned()));
        let refused = |why: &String| {
            tracing::warn!(layer = %expected.layer, artifact = %ztoc.artifact, why, "a zTOC is refused");
        };
        let index = index.inspect_err(refused)?;
        Ok(Found { index, claim: ztoc.claim(expected), windows: None, artifact: ztoc.artifact, why })
    }

    /// What a start of the image reads, if somebody put that beside it.
    pub(super) async fn profile(&self) -> Option<Profile> {
        self.outcome().await.profile.clone()
    }

    async fn outcome(&self) -> Arc<Outcome> {
        match self.running() {
            Some(running) => running.await,
            None => Arc::default(),
        }
    }

    fn running(&self) -> Option<Running> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|begun| begun.running.clone())
    }

    fn job(&self) -> Option<Job> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|begun| begun.job.clone())
    }

    /// What there is beside the image for the layers that the pinned index lists: looked for once, when one of its zTOCs
    /// turned out to be unusable.
    async fn late(&self, outcome: &Outcome) -> Arc<Outcome> {
        let begun = {
            let begun = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            begun.as_ref().map(|begun| (begun.job.clone(), begun.layers.clone(), Arc::clone(&begun.late)))
        };
        let Some((job, mut layers, late)) = begun else { return Arc::default() };
        layers.retain(|layer| outcome.pinned.contains_key(&layer.digest));
        let found = late.get_or_init(|| async move { Arc::new(job.run(layers, None).await) });
        Arc::clone(found.await)
    }
}

/// The task of a search.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) repository: Repository,
    pub(super) offline: bool,
    store: Arc<Store>,
    /// The image's manifest.
    pub(super) subject: Digest,
    /// True if what lies beside the image is believed.
    is_believed: bool,
}

impl Job {
    /// Asks the index that the image's manifest pins, and for the layers that it does not list looks beside the image.
    async fn run(&self, layers: Vec<Descriptor>, pin: Option<Digest>) -> Outcome {
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
        if lacking.is_empty() || !self.is_believed {
            return Outcome::default();
        }
        let (artifacts, soci) = match self.remembered(&lacking).await {
            Some(artifact) => (vec![artifact], None),
            None if self.offline => (Vec::new(), self.soci_index(&lacking).await),
            None => self.discover_both(&lacking).await,
        };
        if artifacts.is_empty() {
            return match soci {
                Some((artifact, index)) => self.soci(artifact, &index, &lacking).await,
                None => Outcome::default(),
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
    async fn remembered(&self, lacking: &[Descriptor]) -> Option<Shared> {
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
        self.blocking(recall).await.flatten()
    }

    /// Our artifacts, and if there are none SOCI's index.
    ///
    /// Both are asked for at once: nobody knows beforehand which of them there are, and a mount over a slow line waits
    /// longer for a second round trip than for a question more.
    async fn discover_both(&self, lacking: &[Descriptor]) -> (Vec<Shared>, Option<(Digest, SociIndex)>) {
        let (ours, soci) = (pin!(self.discover()), pin!(self.soci_index(lacking)));
        match select(ours, soci).await {
            Either::Left((ours, soci)) if ours.is_empty() => (ours, soci.await),
            Either::Left((ours, _)) => (ours, None),
            Either::Right((soci, ours)) => (ours.await, soci),
        }
    }

    async fn discover(&self) -> Vec<Shared> {
        let found = tokio::time::timeout(DISCOVERY, share::discover(&self.repository, &self.subject)).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%error, "no shared indexes");
                return Vec::new();
            }
            Err(_) => {
                tracing::warn!(registry = %self.repository.name(), "looking for shared indexes takes too long, given up");
                return Vec::new();
            }
        };
        if let Some(first) = found.first() {
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

    /// By what the artifact of an image is remembered. No reference has a blank in it.
    fn key(&self) -> String {
        format!("indexes of {}@{}", self.repository.name(), self.subject)
    }

    /// The index of a layer from the first artifact that has a usable one.
    async fn find(&self, layer: &Descriptor, artifacts: &[Shared]) -> Option<Usable> {
        for shared in artifacts {
            let Some(blob) = shared.artifact.layer(&layer.digest) else { continue };
            match self.open(layer, blob).await {
                Ok(index) => return Some(Usable { index, artifact: shared.manifest.digest, blob: blob.clone() }),
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
        if blob.metadata.size > layer.size.max(SMALL_LAYER) {
            return Err(format!("it has {} bytes for a layer of {}", blob.metadata.size, layer.size));
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
    async fn profile(&self, artifacts: &[Shared]) -> Option<Profile> {
        if self.offline {
            return None;
        }
        let blob = artifacts.iter().find_map(|shared| shared.artifact.profile.clone())?;
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

/// What brings the windows of an index of which the metadata is here, and keeps both.
///
/// The index itself makes sure that they are the right ones. The whole blob is compared with its digest before it is kept, so
/// that what is kept is what the artifact names.
fn window_source(repository: Repository, store: Arc<Store>, index: LayerIndex, blob: LayerBlob) -> WindowSource {
    Arc::new(move || {
        let (repository, store, index, blob) = (repository.clone(), Arc::clone(&store), index.clone(), blob.clone());
        Box::pin(async move {
            let reader = repository.blob(&blob.blob);
            let windows = read_all(reader.as_ref(), blob.metadata.size..blob.blob.size).await?;
            let section = windows.clone();
            let layer = blob.layer;
            let keep = tokio::task::spawn_blocking(move || {
                let whole = [index.as_bytes().as_ref(), &section].concat();
                match blob.blob.digest.matches(&whole) {
                    true => {
                        store.put_claim(&blob.layer, &blob.claim(), &whole).map(drop).map_err(|error| error.to_string())
                    }
                    false => Err("they do not complete the blob that the artifact names".to_owned()),
                }
            });
            if let Ok(Err(why)) = keep.await {
                tracing::warn!(%layer, why, "the windows of a shared index are not kept");
            }
            Ok(windows)
        })
    })
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
