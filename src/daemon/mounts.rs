//! The table of mounts, and everything that must outlive them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::control;
use super::fill::Filling;
use super::profiles::Profiling;
use crate::fs::FileSystem;
use crate::fuse;
use crate::image::Image;
use crate::oci::Digest;

/// One mounted image.
#[derive(Debug)]
pub(super) struct Mounted {
    /// What it was asked for.
    pub(super) request: control::Mount,
    /// What is mounted.
    pub(super) image: Image,
    /// What serves it.
    pub(super) fs: Arc<FileSystem>,
    /// The kernel's side.
    pub(super) mount: fuse::Mount,
    /// What it records, and fetches ahead.
    pub(super) profiling: Arc<Profiling>,
    /// What completes its layers.
    pub(super) filling: Arc<Filling>,
    /// Background work that ends with the mount.
    pub(super) tasks: Vec<AbortHandle>,
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
}

/// A reserved mount point; freed when dropped unless it was filled.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    mounts: &'a Mounts,
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

impl Default for Mounts {
    fn default() -> Self {
        Self { table: Mutex::default(), count: watch::Sender::new(0), grown: Arc::default() }
    }
}

impl Mounts {
    /// Takes `dir` for a mount that is being made; none if it is taken.
    pub(super) fn reserve(&self, dir: &Path) -> Option<Reservation<'_>> {
        let mut table = self.lock();
        if table.contains_key(dir) {
            return None;
        }
        table.insert(dir.to_owned(), None);
        self.count.send_replace(table.len());
        Some(Reservation { mounts: self, dir: dir.to_owned(), filled: false })
    }

    pub(super) fn get(&self, dir: &Path) -> Option<Arc<Mounted>> {
        self.lock().get(dir)?.clone()
    }

    pub(super) fn all(&self) -> Vec<Arc<Mounted>> {
        self.lock().values().flatten().cloned().collect()
    }

    /// Forgets a mount that has ended.
    pub(super) fn remove(&self, mounted: &Arc<Mounted>) {
        let dir = &mounted.request.dir;
        let mut table = self.lock();
        if table.get(dir).is_some_and(|entry| entry.as_ref().is_some_and(|entry| Arc::ptr_eq(entry, mounted))) {
            table.remove(dir);
            self.count.send_replace(table.len());
        }
    }

    /// Watches the number of mounts.
    pub(super) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Whom to tell when the cache has grown, and who is told.
    pub(super) fn grown(&self) -> Arc<Notify> {
        Arc::clone(&self.grown)
    }

    /// What the cache must keep.
    pub(super) fn in_use(&self) -> InUse {
        let mut in_use = InUse::default();
        for mounted in self.all() {
            in_use.documents.extend(&mounted.image.resolved.documents);
            in_use.layers.extend(mounted.image.layers.iter().map(|layer| layer.descriptor.digest));
            in_use.trees.insert(mounted.image.tree_id);
        }
        in_use
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Option<Arc<Mounted>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation<'_> {
    /// Enters the finished mount.
    pub(super) fn fill(mut self, mounted: Arc<Mounted>) {
        self.mounts.lock().insert(self.dir.clone(), Some(mounted));
        self.filled = true;
        // The layers that were streamed for it are in the cache now.
        self.mounts.grown.notify_one();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            let mut table = self.mounts.lock();
            table.remove(&self.dir);
            self.mounts.count.send_replace(table.len());
        }
    }
}
