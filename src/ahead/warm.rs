//! What an earlier start read and is here already: brought from the disk before it is asked for.
//!
//! A start reads a thousand small files one after the other, each scattered somewhere in the cache, and a copy that this
//! process has not verified yet is read as a whole before a byte of it is served. A file of a few bytes has no copy, and the span
//! that it is decoded from has a thousand times as many. All of that can be done beside the program, in the order of the profile:
//! copies are opened and verified, spans of what has none are decoded as far as there is room, and of the rest the disk is told
//! what comes next.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::{Files, places};
use crate::index::SpanId;
use crate::limits::WARM_BYTES;
use crate::oci::Digest;
use crate::profile::Profile;
use crate::tree::NodeId;

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
    /// What was looked at. Protected for one look.
    seen: Mutex<Seen>,
    wanted: AtomicBool,
}

#[derive(Default)]
struct Seen {
    /// Files whose copies were looked at.
    files: HashSet<NodeId>,
    /// Spans that are decoded, with the digests of their layers.
    spans: HashSet<(Digest, SpanId)>,
}

/// What serves a file.
enum Found {
    /// Its copy. Verifying it took so many bytes of the disk.
    Copy(u64),
    /// Its layers, until somebody else has verified the copy.
    Unverified,
    /// Its layers.
    Layers,
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
            // A long copy is verified beside its readers.
            let bytes = match self.find(*id, left) {
                Found::Copy(bytes) => bytes,
                Found::Unverified => self.announce(*id, range.clone(), left, false),
                Found::Layers => self.announce(*id, range.clone(), left, true),
            };
            let less = |left: u64| Some(left.saturating_sub(bytes));
            let _: Result<u64, u64> = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// Verifies the copy of a file if it has one, nobody is at it, and it is not longer than `most`.
    fn find(&self, id: NodeId, most: u64) -> Found {
        let (node, store) = (self.files.tree.node(id), &self.files.store);
        let Some(content) = node.content() else { return Found::Layers };
        if store.is_verified(content) {
            return Found::Copy(0);
        }
        if node.size() > most || !self.seen().files.insert(id) {
            return if store.has_file(content) { Found::Unverified } else { Found::Layers };
        }
        match store.file(content) {
            Ok(Some(_)) => Found::Copy(node.size()),
            Ok(None) => Found::Layers,
            Err(error) => {
                tracing::debug!(%error, "a copy cannot be brought from the disk");
                Found::Layers
            }
        }
    }

    /// Tells the disk that a part of a file will be decoded from its layers, and has it decoded if `decode` says so; how many
    /// compressed bytes that are. Ends once they are `most`.
    fn announce(&self, node: NodeId, range: Range<u64>, most: u64, decode: bool) -> u64 {
        let mut bytes = 0;
        for part in self.files.parts(node, range) {
            for span in part.layer.index.spans(part.stream).filter(|span| part.layer.has(*span)) {
                if bytes >= most {
                    return bytes;
                }
                if decode && !self.seen().spans.insert((part.layer.index.layer(), span)) {
                    continue;
                }
                let compressed = part.layer.index.compressed(span);
                bytes += compressed.end.saturating_sub(compressed.start);
                part.layer.blob.announce(compressed);
                if decode {
                    self.files.fetcher.decode_soon(part.layer, span);
                }
            }
        }
        bytes
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
