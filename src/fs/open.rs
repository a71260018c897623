//! Which files are open, and what serves their handles.

use std::collections::HashMap;
use std::fs::File;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use super::read::Serving;
use super::{Error, FileSystem, Ino};
use crate::tree::{NodeId, NodeKind};

/// The decoded file behind an inode, if it was complete and right when the first of the handles open now was opened: the
/// same answer for all handles that are open at once, as the kernel demands of who passes files through to it.
pub type Backing = Option<Arc<File>>;

/// The answer to an open.
pub enum Open {
    /// The file is open.
    Ready(Backing),
    /// The file will be open; the future runs on the fetcher's runtime.
    Later(Pin<Box<dyn Future<Output = Backing> + Send>>),
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(backing) => f.debug_tuple("Ready").field(backing).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// The open files of one mount. A decoded file that is held here is in use, so the store does not evict it.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// Protects the table; held for look-ups and changes only.
    table: RwLock<HashMap<NodeId, OpenFile>>,
}

#[derive(Debug, Default)]
struct OpenFile {
    handles: u64,
    /// Decided at the first handle.
    backing: Backing,
}

impl OpenFiles {
    pub(super) fn handles(&self) -> u64 {
        self.table.read().unwrap_or_else(PoisonError::into_inner).values().map(|open| open.handles).sum()
    }

    /// Counts one more handle; what serves it is `backing` only if it is the first.
    fn enter(&self, node: NodeId, backing: Backing) -> Backing {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let open = table.entry(node).or_insert(OpenFile { handles: 0, backing });
        open.handles += 1;
        open.backing.clone()
    }

    fn leave(&self, node: NodeId) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = table.get_mut(&node) {
            open.handles = open.handles.saturating_sub(1);
            if open.handles == 0 {
                table.remove(&node);
            }
        }
    }
}

impl FileSystem {
    /// Opens a regular file for reading. Nobody has to: [`read`](Self::read) works on any file.
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
        match self.serving(id, &node) {
            Serving::Copy(file) => {
                // The kernel may be given the copy; what it reads of it is not seen here.
                self.note_given(id, &node);
                Ok(Open::Ready(self.open.enter(id, Some(file))))
            }
            Serving::Layer => Ok(Open::Ready(self.open.enter(id, None))),
            Serving::Check(content) => {
                self.note_given(id, &node);
                let (fs, check) = (Arc::clone(self), self.copies.check(content));
                Ok(Open::Later(Box::pin(async move { fs.open.enter(id, check.await) })))
            }
        }
    }

    /// Ends one handle of a file.
    pub fn release(&self, ino: Ino) {
        if let Ok(id) = self.number(ino) {
            self.open.leave(id);
        }
    }
}
