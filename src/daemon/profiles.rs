//! Profiles of mounts: replaying one ahead of the first read, recording the next, and requests that show, import and
//! remove them.
//!
//! [`Profiling`] is what one mount does of this. All of it is optional: what fails is logged, and the mount goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use super::control::{self, Event, ProfileReport, ProfileText};
use super::events::{resolve_image, warn_of};
use super::query::request_of;
use super::{Code, Failure, touched};
use crate::ahead::{self, Files, Progress, Reason};
use crate::fetch::Touched;
use crate::fs::FileSystem;
use crate::fs::profile::{Recorder, Until, origin_now};
use crate::image::{Image, Images, Resolved};
use crate::oci::Digest;
use crate::profile::{Profile, Update};
use crate::store::Store;
use crate::tree::Tree;

/// What one mount fetches ahead and records. Fetching ahead ends with it.
#[derive(Debug)]
pub(super) struct Profiling {
    store: Arc<Store>,
    /// The manifest that is mounted.
    image: Digest,
    tree: Tree,
    dir: PathBuf,
    recorder: Arc<Recorder>,
    /// True if this mount records, and not another one that is served together with it.
    records: AtomicBool,
    progress: Arc<Progress>,
    /// Fetches ahead.
    ahead: AbortHandle,
    /// The same task, for who waits for its end. Protects only the handle.
    task: Mutex<Option<JoinHandle<()>>>,
    /// True if the cache has a profile of the image.
    stored: Arc<AtomicBool>,
    touched: Arc<Touched>,
    /// Set once the recording is stored, so that everybody who ends it waits for the same end.
    finished: OnceCell<()>,
}

impl Drop for Profiling {
    fn drop(&mut self) {
        self.ahead.abort();
    }
}

impl Profiling {
    /// Begins to fetch ahead, before the kernel knows of the mount. An offline mount has nobody to fetch from.
    pub(super) fn start(
        images: &Images,
        wanted: &control::Mount,
        image: &Image,
        fs: Arc<FileSystem>,
        recorder: Arc<Recorder>,
    ) -> Arc<Self> {
        let store = Arc::clone(images.store());
        let (digest, config) = (image.resolved.digest, image.resolved.config.clone());
        let layers = image.layers.iter().map(|layer| Arc::clone(&layer.layer)).collect();
        let fetcher = images.fetcher().clone();
        let files = Files { tree: image.tree.clone(), layers, fetcher, store: Arc::clone(&store) };
        let (progress, stored) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let (inner, told, known) = (Arc::clone(&store), Arc::clone(&progress), Arc::clone(&stored));
        // Somebody else's is a hint like any other, but not kept: what is recorded here is.
        let shared = image.profile.clone();
        let touched = Arc::clone(fs.touched());
        let task = tokio::spawn(async move {
            let loaded = tokio::task::spawn_blocking(move || load(&inner, &digest)).await;
            let profile = loaded.unwrap_or_default();
            known.store(profile.is_some(), Ordering::Relaxed);
            let profile = profile.or(shared);
            if let Some(profile) = &profile {
                fs.expect(ahead::places(&files.tree, profile));
            }
            drop(fs);
            ahead::run(&files, &config, profile.as_ref(), &told).await;
        });
        Arc::new(Self {
            store,
            image: digest,
            tree: image.tree.clone(),
            dir: wanted.dir.clone(),
            recorder,
            records: AtomicBool::new(false),
            progress,
            ahead: task.abort_handle(),
            task: Mutex::new(Some(task)),
            stored,
            touched,
            finished: OnceCell::new(),
        })
    }

    /// Records the start of this mount until it is over, then stores it. `until` is in seconds, 0 for not at all. What the
    /// kernel has of earlier mounts, if `is_again`, it does not ask for.
    pub(super) fn record(self: &Arc<Self>, until: Option<u32>, is_again: bool) -> Option<AbortHandle> {
        let until = match until {
            Some(0) => return None,
            Some(seconds) => Until::After(Duration::from_secs(seconds.into())),
            None => Until::Quiet,
        };
        self.records.store(true, Ordering::Relaxed);
        self.recorder.start();
        if is_again {
            self.recorder.note_unseen();
        }
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            this.recorder.over(until).await;
            this.finish().await;
        });
        Some(task.abort_handle())
    }

    /// Ends everything: nothing of the layers is held when this returns, and the recording is stored.
    pub(super) async fn end(&self) {
        self.ahead.abort();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::debug!(%error, "fetching ahead was given up");
        }
        self.finish().await;
        self.keep_touched().await;
    }

    /// Stores what was touched so far.
    pub(super) async fn keep_touched(&self) {
        let (store, image, touched) = (Arc::clone(&self.store), self.image, Arc::clone(&self.touched));
        // It is optional, as all of this is.
        drop(tokio::task::spawn_blocking(move || touched::keep(&store, &image, &touched)).await);
    }

    /// Ends the recording and stores what is worth it. Returns when that is done, whoever began it.
    async fn finish(&self) {
        if !self.records.load(Ordering::Relaxed) {
            return;
        }
        let keep = || async {
            let (recorder, tree, store) = (Arc::clone(&self.recorder), self.tree.clone(), Arc::clone(&self.store));
            let (image, dir) = (self.image, self.dir.clone());
            let kept = tokio::task::spawn_blocking(move || keep(&recorder, &tree, &store, image, dir));
            if kept.await.unwrap_or(false) {
                self.stored.store(true, Ordering::Relaxed);
            }
        };
        self.finished.get_or_init(keep).await;
    }

    /// Where it stands.
    pub(super) fn report(&self) -> ProfileReport {
        let recorder = &self.recorder;
        let state = match () {
            () if self.records.load(Ordering::Relaxed) && recorder.is_active() => "recording",
            () if self.stored.load(Ordering::Relaxed) => "stored",
            () => "none",
        };
        let ahead = self.progress.reason().map(|reason| match reason {
            Reason::Profile => "profile".to_owned(),
            Reason::Landmark => "landmark".to_owned(),
            Reason::EntryPoint => "entry point".to_owned(),
            Reason::Import => "imports".to_owned(),
        });
        ProfileReport {
            state: state.to_owned(),
            accesses: recorder.accesses() as u64,
            ahead,
            replayed_spans: self.progress.replayed_spans(),
            entry_point_spans: self.progress.entry_point_spans(),
            ahead_done: self.ahead.is_finished(),
        }
    }
}

/// The stored profile of an image. One that cannot be read is none: a newer program may have written it.
fn load(store: &Store, image: &Digest) -> Option<Profile> {
    let text = store.profile(image).unwrap_or_else(|error| {
        tracing::debug!(%error, "profile cannot be read");
        None
    })?;
    match Profile::parse(&text) {
        Ok(profile) => Some(profile),
        Err(error) => {
            tracing::debug!(%image, %error, "profile is not used");
            None
        }
    }
}

/// Stores what was recorded if it is worth it; true if it was stored. Blocks.
fn keep(recorder: &Recorder, tree: &Tree, store: &Store, image: Digest, dir: PathBuf) -> bool {
    let Some(recording) = recorder.take() else { return false };
    let saw_all = recording.saw_all();
    let stored = load(store, &image);
    let (profile, extent) = recording.into_profile(tree, origin_now(image, dir), stored.as_ref());
    let updated = match profile.update(stored.as_ref(), extent, saw_all) {
        Update::Store(profile) => profile,
        Update::Keep => return false,
        Update::Scan => {
            tracing::info!(%image, "what was read is no start but a scan, its profile is not kept");
            return false;
        }
    };
    let (accesses, bytes) = (updated.accesses().len(), updated.bytes());
    match store.put_profile(&image, updated.to_text().as_bytes()) {
        Ok(()) => {
            tracing::info!(%image, accesses, bytes, "profile is stored");
            true
        }
        Err(error) => {
            tracing::warn!(%image, error = %crate::fs::Chain(&error), "profile is not kept");
            false
        }
    }
}

/// The profile of an image.
pub(super) async fn get(
    images: &Images,
    wanted: &control::Image,
    events: &mpsc::Sender<Event>,
) -> Result<ProfileText, Failure> {
    let resolved = resolve(images, wanted, events).await?;
    let (reference, opened) = (wanted.reference.clone(), images.clone());
    blocking(images, move |store| {
        // The sum of the image's file sizes, if it was mounted before.
        let image_bytes = opened.opened_tree(&resolved.digest).map(|tree| tree.total_size());
        let text = store.profile(&resolved.digest).map_err(|error| Failure::from(&error))?;
        let text = text.ok_or_else(|| none(&reference))?;
        // Checked when it was stored, so it is ASCII.
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(ProfileText { digest: resolved.digest.to_string(), image_bytes, text })
    })
    .await
}

/// Replaces the profile of an image by one that somebody brings. It is checked as a whole before.
pub(super) async fn put(
    images: &Images,
    wanted: &control::Image,
    text: String,
    events: &mpsc::Sender<Event>,
) -> Result<(), Failure> {
    let profile = Profile::parse(text.as_bytes())
        .map_err(|error| Failure::of(Code::Usage, &error).about("this is not a profile".to_owned()))?;
    let resolved = resolve(images, wanted, events).await?;
    blocking(images, move |store| {
        store.put_profile(&resolved.digest, profile.to_text().as_bytes()).map_err(|error| Failure::from(&error))
    })
    .await
}

/// Removes the profile of an image.
pub(super) async fn remove(
    images: &Images,
    wanted: &control::Image,
    events: &mpsc::Sender<Event>,
) -> Result<(), Failure> {
    let resolved = resolve(images, wanted, events).await?;
    let reference = wanted.reference.clone();
    blocking(images, move |store| match store.remove_profile(&resolved.digest) {
        Ok(true) => Ok(()),
        Ok(false) => Err(none(&reference)),
        Err(error) => Err(Failure::from(&error)),
    })
    .await
}

fn none(reference: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no profile of {reference}"))
        .hint("one is recorded when the image is mounted and its program starts, or `ocifs profile import` brings one")
}

async fn resolve(images: &Images, wanted: &control::Image, events: &mpsc::Sender<Event>) -> Result<Resolved, Failure> {
    let request = request_of(wanted)?;
    let resolved = resolve_image(images, &request, events).await;
    let resolved =
        resolved.map_err(|error| Failure::from(&error).about(format!("cannot find {}", wanted.reference)))?;
    warn_of(&resolved.warnings, events).await;
    Ok(resolved)
}

async fn blocking<T: Send + 'static>(
    images: &Images,
    work: impl FnOnce(&Store) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let store = Arc::clone(images.store());
    let task = tokio::task::spawn_blocking(move || work(&store));
    task.await.map_err(|_| Failure::new(Code::Other, "the daemon is stopping"))?
}
