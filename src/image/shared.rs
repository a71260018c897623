//! Indexes that somebody put beside the image: found while the image is resolved, believed or not by one rule.
//!
//! An index from a registry is a claim; `trust` has the rule about believing one. What is believed is still
//! checked span by span when it is read and as a whole when its layer is complete. [`Search`] looks for the artifacts of
//! an image as soon as its manifest is known, beside everything else that opening it needs; the looking itself is a task of
//! its own (`discovery`). Whoever needs the index of a layer asks the search, which waits for the task and judges what it
//! brought.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, FutureExt, Shared as SharedFuture};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::AbortHandle;

use super::Request;
use super::discovery::{Disbelief, Job, Outcome, Usable};
use super::soci::{self, Ztoc};
use super::trust::{Belief, Verdict, verdict_of_pins};
use super::windows;
use crate::fetch::WindowSource;
use crate::index::{Expected, LayerIndex};
use crate::oci::{Descriptor, Digest, ImageManifest};
use crate::profile::Profile;
use crate::registry::Repository;
use crate::signature::Keys;
use crate::store::Store;

/// An index that was found and is believed.
pub(super) struct Found {
    pub(super) index: LayerIndex,
    /// By what the store keeps it.
    pub(super) claim: Digest,
    /// What brings its windows, if they are not here.
    pub(super) windows: Option<WindowSource>,
    /// The artifact that it belongs to.
    pub(super) artifact: Digest,
    /// Why it is believed, as the end of a sentence.
    pub(super) why: String,
}

type Running = SharedFuture<BoxFuture<'static, Arc<Outcome>>>;

/// The search for one image. Dropping it ends it.
pub(super) struct Search {
    verdict: Verdict,
    keys: Keys,
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
        Self {
            verdict: request.verdict(),
            keys: request.keys.clone(),
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
        let pin = soci::pin(manifest).filter(|_| self.pins.belief == Belief::All);
        let is_wanted = self.verdict.belief != Belief::None || pin.is_some();
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
            belief: self.verdict.belief,
            keys: self.keys.clone(),
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
            && let Ok(found) = self.ztoc(expected, ztoc, self.pins.why.to_owned()).await
        {
            return Ok(found);
        }
        let disbelieved = |why: String| format!("indexes of the registry are not believed: {why}");
        if self.verdict.belief == Belief::None {
            return Err(disbelieved(self.verdict.why.to_owned()));
        }
        if pinned.is_some() {
            outcome = self.late(&outcome).await;
        }
        if let Some(ztoc) = outcome.ztocs.get(&expected.layer) {
            let why = self.verdict.of(ztoc.signer.as_deref()).map_err(disbelieved)?;
            return self.ztoc(expected, ztoc, why).await;
        }
        let Some(Usable { index, artifact, signer, blob }) = outcome.indexes.get(&expected.layer) else {
            return Err(match outcome.found_any {
                _ if self.offline => "the registry was not asked for one",
                true => "the registry has an index artifact of the image, but none of this layer that can be used",
                false if let Some(why) = &outcome.disbelief => return Err(disbelieved(self.why_not(why))),
                false => "the registry has no index of the image",
            }
            .to_owned());
        };
        let why = self.verdict.of(signer.as_deref()).map_err(disbelieved)?;
        if index.diff_id() != expected.diff_id {
            tracing::warn!(layer = %expected.layer, %artifact, "the shared index is of another content, refused");
            return Err(format!("the index in {artifact} is of another content"));
        }
        let lacks = !index.has_windows();
        let windows = (lacks && !self.offline)
            .then(|| windows::source(repository.clone(), Arc::clone(&self.store), index.clone(), blob.clone()));
        let claim = blob.claim();
        Ok(Found { index: index.clone(), claim, windows, artifact: *artifact, why })
    }

    /// What a zTOC says, made into an index now that all that is expected of the layer is known.
    async fn ztoc(&self, expected: &Expected, ztoc: &Ztoc, why: String) -> Result<Found, String> {
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

    fn why_not(&self, disbelief: &Disbelief) -> String {
        match disbelief {
            Disbelief::Unsigned => self.verdict.why.to_owned(),
            Disbelief::Unknown(why) => format!("whether a key signed one cannot be found out: {why}"),
        }
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
