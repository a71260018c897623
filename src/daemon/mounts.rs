//! The table of mounts, and everything that must outlive them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::control;
use super::fill::Filling;
use super::profiles::Profiling;
use super::served::{self, Served};
use crate::fuse::{self, Elsewhere};
use crate::image::Image;
use crate::oci::Digest;

/// One mounted image.
#[derive(Debug)]
pub(super) struct Mounted {
    /// What it was asked for.
    pub(super) request: control::Mount,
    /// What is mounted.
    pub(super) image: Elsewhere<Image>,
    /// What serves it, and other mounts perhaps.
    pub(super) served: Arc<Elsewhere<Served>>,
    /// Says that it does, until the mount has ended.
    pub(super) using: Mutex<Option<served::Use>>,
    /// How often that had been asked for things before this mount.
    pub(super) before: Counts,
    /// The kernel's side.
    pub(super) mount: fuse::Mount,
    /// What it records, and fetches ahead.
    pub(super) profiling: Arc<Profiling>,
    /// What completes its layers.
    pub(super) filling: Arc<Filling>,
    /// Background work that ends with the mount.
    pub(super) tasks: Vec<AbortHandle>,
}

/// How often things were asked for and fetched, over all mounts that were served together.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Requests of the kernel by kind.
    pub(super) kernel: Vec<(&'static str, u64)>,
    /// Bytes and requests of each layer, from the bottom.
    pub(super) layers: Vec<(u64, u64)>,
    /// For how long processors were kept from sleeping.
    pub(super) awake: Duration,
}

impl Counts {
    /// How often until now.
    pub(super) fn now(served: &Served) -> Self {
        let traffic = |layer: &Arc<crate::fetch::Layer>| (layer.traffic.bytes(), layer.traffic.requests());
        Self {
            kernel: served.connection.requests().collect(),
            layers: served.layers.iter().map(traffic).collect(),
            awake: served.connection.kept_awake(),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// All mounts of this daemon by mount point. A directory is entered before its image is opened, so that two requests
/// for one directory cannot both succeed.
#[derive(Debug)]
pub(super) struct Mounts {
    /// Protects the table; held for look-ups and changes only.
    table: Mutex<BTreeMap<PathBuf, Option<Arc<Mounted>>>>,
    /// Number of entries, for whoever waits until nothing is mounted.
    count: watch::Sender<usize>,
    /// Told when a mount has added to the cache by itself, or keeps nothing of it any more.
    grown: Arc<Notify>,
    /// The connections that serve them.
    served: Arc<served::Table>,
    /// Where they are, for noticing that they are gone.
    places: fuse::Places,
    /// Who makes a mount that the kernel may know already.
    entrance: watch::Sender<Entrance>,
}

#[derive(Debug)]
struct Entrance {
    is_closed: bool,
    inside: usize,
}

/// Stands for a mount that the kernel may know and the table does not, until dropped.
#[derive(Debug)]
pub(super) struct Entering(Arc<Mounts>);

impl Drop for Entering {
    fn drop(&mut self) {
        self.0.entrance.send_modify(|entrance| entrance.inside -= 1);
    }
}

/// A reserved mount point; freed when dropped unless it was filled.
#[derive(Debug)]
pub(super) struct Reservation {
    mounts: Arc<Mounts>,
    dir: PathBuf,
    filled: bool,
}

/// What mounts need of the cache.
#[derive(Debug, Default)]
pub(super) struct InUse {
    pub(super) documents: HashSet<Digest>,
    pub(super) layers: HashSet<Digest>,
    pub(super) trees: HashSet<Digest>,
}

impl InUse {
    pub(super) fn add(&mut self, image: &Image) {
        self.documents.extend(&image.resolved.documents);
        self.layers.extend(image.layers.iter().map(|layer| layer.descriptor.digest));
        self.trees.insert(image.tree_id);
    }

    /// True if this is the digest of something that is needed, or of the layer which that is about.
    pub(super) fn needs(&self, digest: &Digest) -> bool {
        [&self.documents, &self.layers, &self.trees].iter().any(|needed| needed.contains(digest))
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.documents.extend(&other.documents);
        self.layers.extend(&other.layers);
        self.trees.extend(&other.trees);
    }
}

impl Default for Mounts {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            count: watch::Sender::new(0),
            grown: Arc::default(),
            served: Arc::default(),
            places: fuse::Places::default(),
            entrance: watch::Sender::new(Entrance { is_closed: false, inside: 0 }),
        }
    }
}

impl Mounts {
    /// Takes `dir` for a mount that is being made; none if it is taken.
    pub(super) fn reserve(self: &Arc<Self>, dir: &Path) -> Option<Reservation> {
        let mut table = self.lock();
        if table.contains_key(dir) {
            return None;
        }
        table.insert(dir.to_owned(), None);
        self.count.send_replace(table.len());
        Some(Reservation { mounts: Arc::clone(self), dir: dir.to_owned(), filled: false })
    }

    /// To be held while the kernel is told of a mount and until the table has it; none once the table is closed.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Entering> {
        let is_open = self.entrance.send_if_modified(|entrance| {
            entrance.inside += usize::from(!entrance.is_closed);
            !entrance.is_closed
        });
        is_open.then(|| Entering(Arc::clone(self)))
    }

    /// Lets no more mounts in, and returns when those that were on their way are in the table, or were ended.
    pub(super) async fn close(&self) {
        self.entrance.send_modify(|entrance| entrance.is_closed = true);
        // An error would mean that nobody can enter any more.
        drop(self.entrance.subscribe().wait_for(|entrance| entrance.inside == 0).await);
    }

    pub(super) fn get(&self, dir: &Path) -> Option<Arc<Mounted>> {
        self.lock().get(dir)?.clone()
    }

    pub(super) fn all(&self) -> Vec<Arc<Mounted>> {
        self.lock().values().flatten().cloned().collect()
    }

    /// Stores what was touched through all of them so far.
    pub(super) async fn keep_touched(&self) {
        for mounted in self.all() {
            mounted.profiling.keep_touched().await;
        }
    }

    /// Forgets a mount that has ended.
    pub(super) fn remove(&self, mounted: &Arc<Mounted>) {
        let dir = &mounted.request.dir;
        let mut table = self.lock();
        if table.get(dir).is_some_and(|entry| entry.as_ref().is_some_and(|entry| Arc::ptr_eq(entry, mounted))) {
            table.remove(dir);
            self.count.send_replace(table.len());
        }
        drop(table);
        let using = mounted.using.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(using);
    }

    /// Watches the number of mounts.
    pub(super) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Whom to tell when the cache has grown, and who is told.
    pub(super) fn grown(&self) -> Arc<Notify> {
        Arc::clone(&self.grown)
    }

    /// What the cache must keep: what mounts use, and what is served for mounts to come.
    pub(super) fn in_use(&self) -> InUse {
        let mut in_use = self.served.in_use();
        in_use.join(&self.mounted());
        in_use
    }

    /// What is mounted needs of the cache.
    pub(super) fn mounted(&self) -> InUse {
        let mut in_use = InUse::default();
        self.all().iter().for_each(|mounted| in_use.add(&mounted.image));
        in_use
    }

    /// The connections that serve the mounts.
    pub(super) fn served(&self) -> &Arc<served::Table> {
        &self.served
    }

    /// Where the mounts are.
    pub(super) fn places(&self) -> &fuse::Places {
        &self.places
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Option<Arc<Mounted>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Enters the finished mount.
    pub(super) fn fill(mut self, mounted: Arc<Mounted>) {
        self.mounts.lock().insert(self.dir.clone(), Some(mounted));
        self.filled = true;
        // The layers that were streamed for it are in the cache now.
        self.mounts.grown.notify_one();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.filled {
            let mut table = self.mounts.lock();
            table.remove(&self.dir);
            self.mounts.count.send_replace(table.len());
        }
    }
}
