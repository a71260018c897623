//! Which files are open, and what serves them.

use std::collections::HashMap;
use std::fs::File;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Error, FileSystem, Ino};
use crate::fetch::Layer;
use crate::store::Store;
use crate::tree::{Extent, NodeId, NodeKind};

/// Files up to this many bytes are verified on the thread that opens them (well under a millisecond).
const VERIFY_INLINE: u64 = 256 << 10;

/// The answer to an open.
pub enum Open {
    /// The file is open.
    Ready,
    /// The file will be open; the future runs on the fetcher's runtime.
    Later(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready => "Ready",
            Self::Later(_) => "Later",
        })
    }
}

/// The open files of one mount.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// Protects the table; held for look-ups and changes only.
    table: RwLock<HashMap<NodeId, OpenFile>>,
}

#[derive(Debug, Default)]
struct OpenFile {
    handles: u64,
    /// The decoded file, once it is known to be complete and right.
    file: Option<Arc<File>>,
    /// Some of it was read from its layer, so it is worth decoding as a whole.
    read: bool,
}

impl OpenFiles {
    pub(super) fn handles(&self) -> u64 {
        self.table.read().unwrap_or_else(PoisonError::into_inner).values().map(|open| open.handles).sum()
    }

    pub(super) fn file(&self, node: NodeId) -> Option<Arc<File>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(&node)?.file.clone()
    }

    pub(super) fn note_read(&self, node: NodeId) {
        let known = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            table.get(&node).is_none_or(|open| open.read)
        };
        if !known && let Some(open) = self.table.write().unwrap_or_else(PoisonError::into_inner).get_mut(&node) {
            open.read = true;
        }
    }

    fn enter(&self, node: NodeId, file: Option<Arc<File>>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let open = table.entry(node).or_default();
        open.handles += 1;
        if open.file.is_none() {
            open.file = file;
        }
    }

    /// Ends one handle; true if it was the last one of a file that was read from its layer.
    fn leave(&self, node: NodeId) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = table.get_mut(&node) else { return false };
        open.handles = open.handles.saturating_sub(1);
        if open.handles > 0 {
            return false;
        }
        table.remove(&node).is_some_and(|open| open.read && open.file.is_none())
    }
}

impl FileSystem {
    /// Opens a regular file for reading.
    ///
    /// A decoded copy that was not verified in this process yet is read as a whole first. A long one is verified beside
    /// the reader if its layer's bytes are here; only if they are not, so that the copy spares a fetch or is all there
    /// is, the reader waits for it.
    pub fn open(self: &Arc<Self>, ino: Ino) -> Result<Open, Error> {
        let id = self.node_id(ino)?;
        let node = self.tree.node(id);
        if node.kind() != NodeKind::Regular {
            return Err(Error::WrongType);
        }
        let Some(content) = node.content().copied() else {
            self.open.enter(id, None);
            return Ok(Open::Ready);
        };
        if node.size() <= VERIFY_INLINE || self.store.is_verified(&content) {
            self.open.enter(id, copy_of(&self.store, &content));
            return Ok(Open::Ready);
        }
        if is_local(&self.layers, node.extents()) {
            self.publisher.verify(content);
            self.open.enter(id, None);
            return Ok(Open::Ready);
        }
        let fs = Arc::clone(self);
        Ok(Open::Later(Box::pin(async move {
            let store = Arc::clone(&fs.store);
            let copy = tokio::task::spawn_blocking(move || copy_of(&store, &content)).await;
            fs.open.enter(id, copy.unwrap_or_default());
        })))
    }

    /// Ends one handle of a file.
    pub fn release(&self, ino: Ino) {
        if let Ok(id) = self.node_id(ino)
            && self.open.leave(id)
        {
            self.publisher.offer(id);
        }
    }
}

/// The decoded copy of a file, if there is a good one.
fn copy_of(store: &Store, content: &[u8; 32]) -> Option<Arc<File>> {
    store.file(content).unwrap_or_else(|error| {
        // The layer has the same bytes.
        tracing::debug!(%error, "cached file cannot be used");
        None
    })
}

/// True if decoding these extents needs nothing from the network.
pub(super) fn is_local(layers: &[Arc<Layer>], mut extents: impl Iterator<Item = Extent>) -> bool {
    extents.all(|extent| {
        layers.get(extent.layer as usize).is_some_and(|layer| {
            let mut spans = layer.index.spans(extent.layer_offset..extent.layer_offset + extent.length);
            spans.all(|span| layer.blob.missing(layer.index.compressed(span)).is_empty())
        })
    })
}
