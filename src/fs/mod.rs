//! The file system without FUSE: what each operation answers, in plain types.
//!
//! A [`FileSystem`] joins a [`Tree`] with the [`Layer`]s its extents point into. Metadata is answered from the
//! mapped tree without a lock. A read is answered at once when its bytes are in a decoded file or in memory, and is
//! otherwise handed back as a future ([`Read::Later`]), so that no thread of the kernel adapter ever waits for a disk
//! full of work or for the network.
//!
//! Handles carry no state, and a read needs none: the kernel may open files by itself. What is remembered per inode is a
//! byte about its decoded copy (`Copies`), and while it is open whether that copy was there at first (`OpenFiles`).

mod ahead;
mod attr;
mod copies;
mod directory;
mod error;
mod expect;
mod open;
pub mod profile;
mod publish;
mod push;
mod read;
#[cfg(test)]
mod tests;
mod walk;

use std::ops::Range;
use std::sync::Arc;

use crate::fetch::{Fetcher, Layer, OnOutage, Outage, Patience, Touched};
use crate::store::Store;
use crate::tree::{Node, NodeId, Tree};

pub use attr::{Attr, FileType, StatFs};
pub use directory::{DirEntry, Directory};
pub use error::{Chain, Errno, Error};
pub use open::{Backing, Open};
pub use push::{Batch, Gift};
pub use read::{Pending, Read};

/// An inode number as the kernel sees it: the node's number plus one, so that the root is 1 (FUSE_ROOT_ID).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl From<NodeId> for Ino {
    fn from(node: NodeId) -> Self {
        Self(u64::from(node.get()) + 1)
    }
}

/// One image's tree, ready to be served. Immutable but for what is remembered of files.
#[derive(Debug)]
pub struct FileSystem {
    tree: Tree,
    layers: Vec<Arc<Layer>>,
    fetcher: Fetcher,
    /// How long readers wait for a source that is away.
    patience: Arc<Patience>,
    copies: Arc<copies::Copies>,
    directories: ahead::Directories,
    walk: walk::Walk,
    push: push::Push,
    expected: expect::Expected,
    open: open::OpenFiles,
    publisher: publish::Publisher,
    recorder: Arc<profile::Recorder>,
    touched: Arc<Touched>,
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // Reads go on without it, and some would wait for ever, holding their layers.
        self.patience.end();
    }
}

impl FileSystem {
    /// Serves `tree`, whose extents count `layers` from the bottom, to readers that do not outlast an outage. Must be called
    /// on the runtime that fetches.
    pub fn new(tree: Tree, layers: Vec<Arc<Layer>>, fetcher: Fetcher, store: Arc<Store>) -> Self {
        let copies = Arc::new(copies::Copies::new(store, &tree));
        let publisher = publish::Publisher::start(fetcher.clone(), Arc::clone(&copies), tree.clone(), layers.clone());
        let (directories, walk) = (ahead::Directories::default(), walk::Walk::default());
        let push = push::Push::new(&tree);
        let touched = Arc::new(Touched::new(&layers));
        Self {
            tree,
            layers,
            fetcher,
            patience: Arc::new(Patience::new(OnOutage::Fail)),
            copies,
            directories,
            walk,
            push,
            expected: expect::Expected::default(),
            open: open::OpenFiles::default(),
            publisher,
            recorder: Arc::default(),
            touched,
        }
    }

    /// The same file system, whose readers do `policy` while a source is away.
    #[must_use]
    pub fn on_outage(mut self, policy: OnOutage) -> Self {
        self.patience = Arc::new(Patience::new(policy));
        self
    }

    /// How long readers wait for a source that is away, and whether some do.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// The outage of a source from which something is still to come, if there is one.
    pub fn outage(&self) -> Option<Outage> {
        let lacking = |layer: &&Arc<Layer>| layer.reader.is_some() && !layer.blob.is_complete();
        self.layers.iter().filter(lacking).find_map(|layer| self.fetcher.outage(layer))
    }

    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The layers from the bottom.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// Some file on the file system that holds the decoded files.
    pub fn sample(&self) -> std::io::Result<std::fs::File> {
        self.copies.store().sample()
    }

    /// What readers have touched of the layers.
    pub fn touched(&self) -> &Arc<Touched> {
        &self.touched
    }

    /// Takes note of a read of a file.
    fn note(&self, id: NodeId, node: &Node<'_>, range: Range<u64>) {
        self.touch(node, range.clone());
        self.recorder.note(id, range);
    }

    /// Takes note that the kernel reads a file itself.
    fn note_given(&self, id: NodeId, node: &Node<'_>) {
        self.touch(node, 0..node.size());
        self.recorder.note_given(id, node.size());
    }

    fn touch(&self, node: &Node<'_>, range: Range<u64>) {
        for extent in node.extents_in(range.clone()) {
            let start = range.start.max(extent.file_offset);
            let end = range.end.min(extent.file_offset.saturating_add(extent.length));
            if start < end {
                let at = extent.layer_offset + (start - extent.file_offset);
                self.touched.note(extent.layer as usize, at..at + (end - start));
            }
        }
    }

    /// The recorder of first accesses; it is off until it is started.
    pub fn recorder(&self) -> &Arc<profile::Recorder> {
        &self.recorder
    }

    /// Number of open file handles.
    pub fn open_files(&self) -> u64 {
        self.open.handles()
    }

    /// The node of an inode. None if a layer is condemned: its index was wrong, so the tree is not that of the image, and
    /// nothing of it is shown any more, whatever layer it is from.
    fn node_id(&self, ino: Ino) -> Result<NodeId, Error> {
        if let Some(error) = self.layers.iter().find_map(|layer| layer.condemned()) {
            return Err(error.clone().into());
        }
        self.number(ino)
    }

    /// True if a layer is condemned, and nothing of the tree is shown any more.
    pub fn is_stopped(&self) -> bool {
        self.layers.iter().any(|layer| layer.condemned().is_some())
    }

    fn number(&self, ino: Ino) -> Result<NodeId, Error> {
        // An inode number that the tree never gave out can only come from a kernel that kept it across a change of tree.
        ino.0
            .checked_sub(1)
            .and_then(|number| u32::try_from(number).ok())
            .and_then(|number| self.tree.id(number))
            .ok_or(Error::Stale(ino))
    }
}
