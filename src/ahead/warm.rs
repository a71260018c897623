//! What an earlier start read and is here already: brought from the disk before it is asked for.
//!
//! A start reads a thousand small files one after the other, each scattered somewhere in the cache, and a copy that this
//! process has not verified yet is read as a whole before a byte of it is served. All of that can be done beside the program,
//! in the order of the profile: copies are opened and verified, and the disk is told which parts of layers come next.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::{Files, places};
use crate::limits::WARM_BYTES;
use crate::profile::Profile;
use crate::store::Store;
use crate::tree::{Node, NodeId};

/// Threads that wait for the disk side by side: a disk of any kind gives several files in the time of one. Of 4, 8, 16 and 32,
/// 8 and 16 started Python soonest.
const PARALLEL: usize = 8;

/// The right to be one of them, of all mounts: they are threads that readers wait for as well.
static THREADS: Semaphore = Semaphore::const_new(PARALLEL);

/// What is brought, and how far that has come.
struct Work {
    files: Files,
    places: Vec<(NodeId, Range<u64>)>,
    /// The next one of them.
    next: AtomicUsize,
    /// Bytes that may still be read.
    left: AtomicU64,
    /// Files whose copies were looked at. Protected for one look.
    seen: Mutex<HashSet<NodeId>>,
    wanted: AtomicBool,
}

/// Tells the threads that they are no longer wanted.
struct Wanted(Arc<Work>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.store(false, Ordering::Relaxed);
    }
}

/// Brings what is here of `profile` into memory. Dropping the future gives up.
pub(super) async fn run(files: &Files, profile: &Profile) {
    let work = Arc::new(Work {
        files: files.clone(),
        places: places(&files.tree, profile).collect(),
        next: AtomicUsize::new(0),
        left: AtomicU64::new(WARM_BYTES),
        seen: Mutex::default(),
        wanted: AtomicBool::new(true),
    });
    let _wanted = Wanted(Arc::clone(&work));
    let threads = (0..PARALLEL).map(|_| {
        let work = Arc::clone(&work);
        async move {
            let permit = THREADS.acquire().await;
            let run = move || {
                work.run();
                drop(permit);
            };
            tokio::task::spawn_blocking(run).await
        }
    });
    if futures_util::future::join_all(threads).await.iter().any(Result::is_err) {
        tracing::debug!("not all is brought from the disk: the runtime goes down");
    }
}

impl Work {
    fn run(&self) {
        while let Some((id, range)) = self.places.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let left = self.left.load(Ordering::Relaxed);
            if left == 0 || !self.wanted.load(Ordering::Relaxed) {
                break;
            }
            let node = self.files.tree.node(*id);
            let is_first = || self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(*id);
            // A long copy is verified beside its readers.
            let copied = if node.size() <= left { copy(&self.files.store, &node, is_first()) } else { None };
            let bytes = match copied {
                Some(bytes) => bytes,
                None => announce(&self.files, *id, range.clone()),
            };
            let less = |left: u64| Some(left.saturating_sub(bytes));
            let _: Result<u64, u64> = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

/// Verifies the copy of a file; the bytes that took, or none if there is no copy. Only who `is_first` to look at it reads it.
fn copy(store: &Store, node: &Node<'_>, is_first: bool) -> Option<u64> {
    let content = node.content()?;
    if !is_first {
        return store.is_verified(content).then_some(0);
    }
    match store.file(content) {
        Ok(file) => file.map(|_| node.size()),
        Err(error) => {
            tracing::debug!(%error, "a copy cannot be brought from the disk");
            None
        }
    }
}

/// Tells the disk that a part of a file will be decoded from its layers; the compressed bytes of that.
fn announce(files: &Files, node: NodeId, range: Range<u64>) -> u64 {
    let mut bytes = 0;
    for part in files.parts(node, range) {
        for span in part.layer.index.spans(part.stream).filter(|span| part.layer.has(*span)) {
            let compressed = part.layer.index.compressed(span);
            bytes += compressed.end.saturating_sub(compressed.start);
            part.layer.blob.announce(compressed);
        }
    }
    bytes
}
