//! The merged file system of all layers: an immutable arena of nodes.
//!
//! Layers are merged in the sequential model, umoci's variant (design.md, "The tree"; cases A1 to A6). The result is
//! encoded once, stored under the digest of its inputs and memory-mapped afterwards, so opening a tree of a million
//! nodes parses nothing. Node numbers are deterministic: equal layers give equal bytes.

use bytes::Bytes;

use crate::index::LayerIndex;
use crate::oci::Digest;
use crate::tar::Timestamp;

/// The number of a node, from 0 (the root).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// The type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// A run of a file's bytes in one layer; what no extent covers reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where the run begins in the file.
    pub file_offset: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
    /// The layer, counted from the bottom of the image.
    pub layer: u32,
    /// Where it begins in the layer's uncompressed stream.
    pub layer_offset: u64,
}

/// The merged file system.
#[derive(Debug, Clone)]
pub struct Tree {
    bytes: Bytes,
}

/// One node, borrowed from its tree.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    tree: &'a Tree,
}

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Child<'a> {
    /// The name: one component, any bytes but `/` and NUL.
    pub name: &'a [u8],
    /// What it names.
    pub node: NodeId,
}

/// Why layers cannot be merged, or a stored tree cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stored tree is damaged or of another version; it is to be thrown away and merged anew.
    #[error("stored tree is damaged: {0}")]
    Damaged(&'static str),
}

/// The name under which the tree of `layers` (from the bottom) is stored: a digest of its inputs and the format version.
pub fn id(layers: &[Digest]) -> Digest {
    let _ = layers;
    todo!()
}

/// Merges layers from the bottom and returns the encoded tree.
pub fn merge(layers: &[&LayerIndex]) -> Result<Vec<u8>, Error> {
    let _ = layers;
    todo!()
}

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// The number, from 0.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Tree {
    /// Opens an encoded tree after checking version and digest of all of it, so that everything after can trust it.
    pub fn open(bytes: Bytes) -> Result<Self, Error> {
        Ok(Self { bytes })
    }

    /// The encoded form.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of nodes.
    pub fn node_count(&self) -> u32 {
        todo!()
    }

    /// Sum of the sizes of all regular files, each inode once, in bytes (for statfs).
    pub fn total_size(&self) -> u64 {
        todo!()
    }

    /// The node numbered `number`, if there is one.
    pub fn id(&self, number: u32) -> Option<NodeId> {
        let _ = number;
        todo!()
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> Node<'_> {
        let _ = id;
        todo!()
    }

    /// What `name` is in `directory`; `None` if it is not there or `directory` is not a directory.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let _ = (directory, name);
        todo!()
    }

    /// The children of `directory` from position `start` on, sorted by name, positions stable; empty for other nodes.
    pub fn children(&self, directory: NodeId, start: u64) -> impl Iterator<Item = Child<'_>> {
        let _ = (directory, start);
        std::iter::empty()
    }

    /// Resolves a path inside the tree (`/`-separated, leading slash optional), following symbolic links as a process
    /// whose root this is would; `None` if it does not exist or loops.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Option<NodeId> {
        let _ = (path, follow_last);
        todo!()
    }
}

impl<'a> Node<'a> {
    /// Its type.
    pub fn kind(&self) -> NodeKind {
        todo!()
    }

    /// Permission bits, `07777` at most.
    pub fn mode(&self) -> u16 {
        todo!()
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        todo!()
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        todo!()
    }

    /// Time of last modification.
    pub fn mtime(&self) -> Timestamp {
        todo!()
    }

    /// Length in bytes as stat shows it: of a file's content, of a link's target; 0 for others.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Number of names in the merged tree; for a directory 2 + its subdirectories.
    pub fn nlink(&self) -> u32 {
        todo!()
    }

    /// Device number (major, minor), of devices.
    pub fn device(&self) -> Option<(u32, u32)> {
        todo!()
    }

    /// The directory that holds this directory; the root is its own parent. Only for directories.
    pub fn parent(&self) -> NodeId {
        todo!()
    }

    /// The target of a symbolic link, empty for other nodes.
    pub fn target(&self) -> &'a [u8] {
        todo!()
    }

    /// SHA-256 of a regular file's content, if it has one ([`crate::tar::Kind::Regular`]).
    pub fn content(&self) -> Option<&'a [u8; 32]> {
        todo!()
    }

    /// The extents of a regular file, ascending in the file.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + 'a {
        let _ = self.tree;
        std::iter::empty()
    }

    /// Extended attributes (name, value), sorted by name.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        std::iter::empty()
    }
}
