//! Which files are open, and what serves them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Error, FileSystem, Ino};
use crate::tree::{NodeId, NodeKind};

/// Files up to this many bytes are verified on the thread that opens them (well under a millisecond); longer ones are
/// verified in the background and served from their layer meanwhile.
const VERIFY_INLINE: u64 = 256 << 10;

/// The open files of one mount.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// Protects the table; held for look-ups and changes only.
    table: RwLock<HashMap<NodeId, Open>>,
}

#[derive(Debug, Default)]
struct Open {
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
    pub fn open(&self, ino: Ino) -> Result<(), Error> {
        let id = self.node_id(ino)?;
        let node = self.tree.node(id);
        if node.kind() != NodeKind::Regular {
            return Err(Error::WrongType);
        }
        let file = match node.content() {
            Some(content) if node.size() <= VERIFY_INLINE || self.store.is_verified(content) => {
                self.store.file(content).unwrap_or_else(|error| {
                    // The layer has the same bytes.
                    tracing::debug!(%error, "cached file cannot be used");
                    None
                })
            }
            Some(content) => {
                self.publisher.verify(*content);
                None
            }
            None => None,
        };
        self.open.enter(id, file);
        Ok(())
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
