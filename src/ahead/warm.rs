//! What an earlier start read and is here already: brought from the disk before it is asked for.
//!
//! A start reads a thousand small files one after the other, each scattered somewhere in the cache, and a copy that this
//! process has not verified yet is read as a whole before a byte of it is served. All of that can be done beside the program,
//! in the order of the profile: copies are opened and verified, and the disk is told which parts of layers come next.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Files, places};
use crate::limits::WARM_BYTES;
use crate::profile::Profile;
use crate::store::Store;
use crate::tree::{Node, NodeId};

/// Tells the thread that it is no longer wanted.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Brings what is here of `profile` into memory. Dropping the future gives up.
pub(super) async fn run(files: &Files, profile: &Profile) {
    let wanted = Arc::new(AtomicBool::new(true));
    let _wanted = Wanted(Arc::clone(&wanted));
    let (files, profile) = (files.clone(), profile.clone());
    let work = move || warm(&files, &profile, &wanted);
    if tokio::task::spawn_blocking(work).await.is_err() {
        tracing::debug!("nothing is brought from the disk: the runtime goes down");
    }
}

fn warm(files: &Files, profile: &Profile, wanted: &AtomicBool) {
    let mut seen = HashSet::new();
    let mut left = WARM_BYTES;
    for (id, range) in places(&files.tree, profile) {
        if left == 0 || !wanted.load(Ordering::Relaxed) {
            break;
        }
        let node = files.tree.node(id);
        // A long copy is verified beside its readers.
        let copied = if node.size() <= left { copy(&files.store, id, &node, &mut seen) } else { None };
        let bytes = match copied {
            Some(bytes) => bytes,
            None => announce(files, id, range),
        };
        left = left.saturating_sub(bytes);
    }
}

/// Verifies the copy of a file; the bytes that took, or none if there is no copy.
fn copy(store: &Store, id: NodeId, node: &Node<'_>, seen: &mut HashSet<NodeId>) -> Option<u64> {
    let content = node.content()?;
    if !seen.insert(id) {
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
fn announce(files: &Files, node: NodeId, range: std::ops::Range<u64>) -> u64 {
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
