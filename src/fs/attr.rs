//! Attributes: what stat, statfs, readlink and the extended-attribute calls answer.

use super::{Error, FileSystem, Ino};
use crate::tar::Timestamp;
use crate::tree::{Node, NodeId, NodeKind};

/// The type of a file, as in `st_mode` and `d_type`.
pub type FileType = NodeKind;

/// What stat shows of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub file_type: FileType,
    /// Permission bits, `07777` at most.
    pub mode: u16,
    /// Number of names in the merged tree, directories 2 + subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Length in units of 512 bytes, rounded up, so that `du` counts the data.
    pub blocks: u64,
    /// Device number of devices: major, minor.
    pub device: (u32, u32),
    /// Time of last modification; access and change times are not image content and show the same.
    pub mtime: Timestamp,
}

/// What statfs shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Size in blocks of [`StatFs::BLOCK`] bytes; none are free.
    pub blocks: u64,
    /// Number of inodes; none are free.
    pub files: u64,
}

impl StatFs {
    /// Block size in bytes.
    pub const BLOCK: u32 = 4096;
    /// Longest name in bytes.
    pub const NAME: u32 = 255;
}

impl FileSystem {
    /// The attributes of `name` in `parent`.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        let parent = self.node_id(parent)?;
        if self.tree.node(parent).kind() != NodeKind::Directory {
            return Err(Error::NotDirectory);
        }
        // The kernel itself only refuses names of more than 1024 bytes (FUSE_NAME_MAX).
        if name.len() > StatFs::NAME as usize {
            return Err(Error::NameTooLong);
        }
        let node = self.tree.lookup(parent, name).ok_or(Error::NotFound)?;
        Ok(self.attr(node))
    }

    /// The attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        Ok(self.attr(self.node_id(ino)?))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<&[u8], Error> {
        let node = self.tree.node(self.node_id(ino)?);
        if node.kind() == NodeKind::Symlink { Ok(node.target()) } else { Err(Error::WrongType) }
    }

    /// The value of an extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<&[u8], Error> {
        let node = self.tree.node(self.node_id(ino)?);
        node.xattrs().find(|(key, _)| *key == name).map(|(_, value)| value).ok_or(Error::NoAttribute)
    }

    /// The names of all extended attributes, each ended by NUL.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let node = self.tree.node(self.node_id(ino)?);
        let mut names = Vec::new();
        for (name, _) in node.xattrs() {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// Sizes of the whole file system.
    pub fn statfs(&self) -> StatFs {
        StatFs {
            blocks: self.tree.total_size().div_ceil(u64::from(StatFs::BLOCK)),
            files: u64::from(self.tree.node_count()),
        }
    }

    pub(super) fn attr(&self, id: NodeId) -> Attr {
        attr_of(id, &self.tree.node(id))
    }
}

fn attr_of(id: NodeId, node: &Node<'_>) -> Attr {
    let size = node.size();
    Attr {
        ino: Ino::from(id),
        file_type: node.kind(),
        mode: node.mode(),
        nlink: node.nlink(),
        uid: node.uid(),
        gid: node.gid(),
        size,
        blocks: if node.kind() == NodeKind::Regular { size.div_ceil(512) } else { 0 },
        device: node.device().unwrap_or((0, 0)),
        mtime: node.mtime(),
    }
}
