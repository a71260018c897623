//! Directory listings with stable positions.
//!
//! The kernel reads a directory in pieces and may come back to any position it was given. The tree never
//! changes, so a position is simply a count: 0 is `.`, 1 is `..`, and 2 + n is the n-th child by name.

use super::{Attr, Error, FileSystem, FileType, Ino};
use crate::tree::{NodeId, NodeKind};

/// A directory that can be listed.
#[derive(Debug)]
pub struct Directory<'a> {
    fs: &'a FileSystem,
    node: NodeId,
}

/// One name of a listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The position after this entry, to continue from.
    pub next: u64,
    /// The name.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub file_type: FileType,
    node: NodeId,
}

impl FileSystem {
    /// Opens a directory for listing.
    pub fn directory(&self, ino: Ino) -> Result<Directory<'_>, Error> {
        let node = self.node_id(ino)?;
        if self.tree.node(node).kind() == NodeKind::Directory {
            Ok(Directory { fs: self, node })
        } else {
            Err(Error::NotDirectory)
        }
    }

    /// The attributes of a listed entry.
    pub fn attr_of_entry(&self, entry: &DirEntry<'_>) -> Attr {
        self.attr(entry.node)
    }
}

impl<'a> Directory<'a> {
    /// The entries from `position` on.
    pub fn entries(&self, position: u64) -> impl Iterator<Item = DirEntry<'a>> + use<'a> {
        let fs = self.fs;
        let dots = [(b".".as_slice(), self.node), (b"..".as_slice(), fs.tree.node(self.node).parent())];
        let skip = usize::try_from(position).unwrap_or(usize::MAX).min(dots.len());
        let children = fs.tree.children(self.node, position.saturating_sub(2)).map(|child| (child.name, child.node));
        dots.into_iter().skip(skip).chain(children).zip(position.saturating_add(1)..).map(
            move |((name, node), next)| DirEntry {
                next,
                name,
                ino: Ino::from(node),
                file_type: fs.tree.node(node).kind(),
                node,
            },
        )
    }
}
