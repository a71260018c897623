//! The tree while layers change it: nodes, and the names that directories give them.
//!
//! A [`Node`] is what stat shows; a [`Dentry`] is one name of it in one directory. Hard links are dentries that share
//! a node. Dentries of a directory form a list, and all of them are found by (directory, name) in one table, so that
//! neither a huge directory nor a million tiny ones cost more than their names. Nothing here recurses: the depth is
//! chosen by others (D-015).

use std::collections::HashMap;
use std::sync::Arc;

use super::Reason;
use super::names::{NameIndex, Names, index_u32};
use crate::limits;
use crate::tar::{Segment, Timestamp, Xattr};

/// The place of a node in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeIndex(u32);

impl NodeIndex {
    /// The root directory, always there.
    pub(super) const ROOT: Self = Self(0);

    /// The place as an index.
    pub(super) fn get(self) -> usize {
        self.0 as usize
    }
}

/// The place of a dentry in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DentryIndex(u32);

impl DentryIndex {
    /// The end of a list, and the dentry of the root.
    const NONE: Self = Self(u32::MAX);

    fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// The number of a distinct set of extended attributes; 0 is the empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct XattrSet(pub(super) u32);

/// What every node has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) xattrs: XattrSet,
}

impl Attributes {
    /// Attributes of a directory that only the path of another entry mentions, and of a root without an
    /// entry.
    pub(super) const IMPLIED: Self =
        Self { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanos: 0 }, xattrs: XattrSet(0) };
}

/// Where the bytes of a regular file are.
#[derive(Debug)]
pub(super) enum Content {
    /// All of them in one run; also for an empty file.
    Whole { layer: u16, layer_offset: u64 },
    /// In runs with holes, or none at all.
    Runs { layer: u16, runs: Box<[Segment]> },
}

/// What distinguishes one type of node from another.
#[derive(Debug)]
pub(super) enum Body {
    Directory { dentry: DentryIndex, first: DentryIndex },
    Regular { size: u64, content: Content, digest: Option<[u8; 32]> },
    Symlink { target: Box<[u8]> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

impl Body {
    /// A directory without children that is not yet anywhere.
    pub(super) const EMPTY_DIRECTORY: Self = Self::Directory { dentry: DentryIndex::NONE, first: DentryIndex::NONE };
}

/// One inode.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) attributes: Attributes,
    pub(super) body: Body,
    /// Number of dentries that name it.
    pub(super) names: u32,
}

/// One name in one directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dentry {
    pub(super) directory: NodeIndex,
    pub(super) name: NameIndex,
    pub(super) node: NodeIndex,
    /// The last layer that added something here or below, which its own whiteouts must not hide.
    pub(super) layer: u16,
    next: DentryIndex,
    previous: DentryIndex,
}

/// The changing tree.
#[derive(Debug)]
pub(super) struct Arena {
    nodes: Vec<Node>,
    free_nodes: Vec<NodeIndex>,
    dentries: Vec<Dentry>,
    free_dentries: Vec<DentryIndex>,
    table: HashMap<(NodeIndex, NameIndex), DentryIndex>,
    pub(super) names: Names,
    xattr_sets: Vec<Arc<[u8]>>,
    xattr_numbers: HashMap<Arc<[u8]>, XattrSet>,
    /// Bytes of targets and attribute sets ever kept.
    bytes: usize,
    /// Runs of fragmented files ever kept.
    runs: usize,
    /// At most [`limits::TREE_NAMES`].
    max_names: usize,
}

impl Arena {
    /// A tree of an empty root directory that can have `max_names` names.
    pub(super) fn new(max_names: usize) -> Self {
        let root = Node { attributes: Attributes::IMPLIED, body: Body::EMPTY_DIRECTORY, names: 1 };
        Self {
            nodes: vec![root],
            free_nodes: Vec::new(),
            dentries: Vec::new(),
            free_dentries: Vec::new(),
            table: HashMap::new(),
            names: Names::new(),
            xattr_sets: vec![Arc::from([])],
            xattr_numbers: HashMap::from([(Arc::from([]), XattrSet(0))]),
            bytes: 0,
            runs: 0,
            max_names,
        }
    }

    /// Number of nodes, those no longer used included.
    pub(super) fn node_capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Number of names.
    pub(super) fn dentry_count(&self) -> usize {
        self.table.len()
    }

    pub(super) fn node(&self, index: NodeIndex) -> &Node {
        &self.nodes[index.get()]
    }

    pub(super) fn dentry(&self, index: DentryIndex) -> &Dentry {
        &self.dentries[index.0 as usize]
    }

    /// The serialized form of a set of attributes.
    pub(super) fn xattr_set(&self, set: XattrSet) -> &[u8] {
        &self.xattr_sets[set.0 as usize]
    }

    /// The name `name` of `directory`.
    pub(super) fn find(&self, directory: NodeIndex, name: &[u8]) -> Option<DentryIndex> {
        let name = self.names.find(name)?;
        self.table.get(&(directory, name)).copied()
    }

    pub(super) fn is_directory(&self, node: NodeIndex) -> bool {
        matches!(self.node(node).body, Body::Directory { .. })
    }

    /// The directory that holds `directory`; the root holds itself.
    pub(super) fn parent(&self, directory: NodeIndex) -> NodeIndex {
        self.own_dentry(directory).map_or(NodeIndex::ROOT, |dentry| self.dentry(dentry).directory)
    }

    /// The names in `node`, in no particular order; none if it is not a directory.
    pub(super) fn children(&self, node: NodeIndex) -> impl Iterator<Item = DentryIndex> + '_ {
        let first = match self.node(node).body {
            Body::Directory { first, .. } => first.some(),
            _ => None,
        };
        std::iter::successors(first, |&at| self.dentry(at).next.some())
    }

    /// Replaces the attributes of a node.
    pub(super) fn set_attributes(&mut self, node: NodeIndex, attributes: Attributes) {
        self.nodes[node.get()].attributes = attributes;
    }

    /// The number of a set of extended attributes.
    pub(super) fn intern_xattrs(&mut self, xattrs: &[Xattr]) -> Result<XattrSet, Reason> {
        if xattrs.is_empty() {
            return Ok(XattrSet(0));
        }
        let mut bytes = Vec::new();
        for xattr in xattrs {
            let name_len = u16::try_from(xattr.name.len()).map_err(|_| Reason::Malformed)?;
            let value_len = u32::try_from(xattr.value.len()).map_err(|_| Reason::Malformed)?;
            bytes.extend_from_slice(&name_len.to_le_bytes());
            bytes.extend_from_slice(&value_len.to_le_bytes());
            bytes.extend_from_slice(&xattr.name);
            bytes.extend_from_slice(&xattr.value);
        }
        if let Some(&set) = self.xattr_numbers.get(bytes.as_slice()) {
            return Ok(set);
        }
        self.reserve_bytes(bytes.len())?;
        let set = XattrSet(index_u32(self.xattr_sets.len()));
        let bytes: Arc<[u8]> = bytes.into();
        self.xattr_sets.push(bytes.clone());
        self.xattr_numbers.insert(bytes, set);
        Ok(set)
    }

    /// Adds a node under a name that `directory` does not have.
    pub(super) fn add(
        &mut self,
        directory: NodeIndex,
        name: &[u8],
        attributes: Attributes,
        body: Body,
    ) -> Result<DentryIndex, Reason> {
        match &body {
            Body::Symlink { target } => self.reserve_bytes(target.len())?,
            Body::Regular { content: Content::Runs { runs, .. }, .. } => {
                self.runs += runs.len();
                if self.runs > limits::TREE_EXTENTS {
                    return Err(Reason::TooManyExtents);
                }
            }
            _ => {}
        }
        let node = Node { attributes, body, names: 0 };
        let index = match self.free_nodes.pop() {
            Some(index) => {
                self.nodes[index.get()] = node;
                index
            }
            None => {
                self.nodes.push(node);
                NodeIndex(index_u32(self.nodes.len() - 1))
            }
        };
        self.link(directory, name, index)
    }

    /// Names `node` in `directory`, which does not have that name.
    pub(super) fn link(&mut self, directory: NodeIndex, name: &[u8], node: NodeIndex) -> Result<DentryIndex, Reason> {
        if name.len() > limits::NAME_BYTES {
            return Err(Reason::NameTooLong);
        }
        if self.dentry_count() >= self.max_names {
            return Err(Reason::TooManyNames);
        }
        self.reserve_bytes(0)?;
        let name = self.names.intern(name);
        let index = self.free_dentries.pop().unwrap_or(DentryIndex(index_u32(self.dentries.len())));
        if let Body::Directory { dentry, .. } = &mut self.nodes[node.get()].body {
            *dentry = index;
        }
        let next = self.set_first(directory, index);
        if let Some(next) = next.some() {
            self.dentries[next.0 as usize].previous = index;
        }
        let dentry = Dentry { directory, name, node, layer: 0, next, previous: DentryIndex::NONE };
        if index.0 as usize == self.dentries.len() {
            self.dentries.push(dentry);
        } else {
            self.dentries[index.0 as usize] = dentry;
        }
        self.table.insert((directory, name), index);
        self.nodes[node.get()].names += 1;
        Ok(index)
    }

    /// Removes a name, and everything below it if it is a directory.
    pub(super) fn remove(&mut self, dentry: DentryIndex) {
        let Dentry { directory, next, previous, .. } = *self.dentry(dentry);
        match previous.some() {
            Some(previous) => self.dentries[previous.0 as usize].next = next,
            None => {
                self.set_first(directory, next);
            }
        }
        if let Some(next) = next.some() {
            self.dentries[next.0 as usize].previous = previous;
        }
        let mut pending = vec![dentry];
        while let Some(dentry) = pending.pop() {
            let Dentry { directory, name, node, .. } = *self.dentry(dentry);
            pending.extend(self.children(node));
            self.table.remove(&(directory, name));
            self.free_dentries.push(dentry);
            self.nodes[node.get()].names -= 1;
            if self.node(node).names == 0 {
                self.nodes[node.get()].body = Body::Fifo; // Drops what the old body owned.
                self.free_nodes.push(node);
            }
        }
    }

    /// Notes that `layer` added `dentry`, so that all directories above hold something of that layer.
    pub(super) fn touch(&mut self, dentry: DentryIndex, layer: u16) {
        self.dentries[dentry.0 as usize].layer = layer;
        let mut above = self.own_dentry(self.dentry(dentry).directory);
        // Above a directory that is touched everything is: directories never move.
        while let Some(dentry) = above.filter(|&above| self.dentry(above).layer != layer) {
            self.dentries[dentry.0 as usize].layer = layer;
            above = self.own_dentry(self.dentry(dentry).directory);
        }
    }

    fn own_dentry(&self, directory: NodeIndex) -> Option<DentryIndex> {
        match self.node(directory).body {
            Body::Directory { dentry, .. } => dentry.some(),
            _ => None,
        }
    }

    /// Makes `new` the head of the list of `directory` and returns the old head.
    fn set_first(&mut self, directory: NodeIndex, new: DentryIndex) -> DentryIndex {
        match &mut self.nodes[directory.get()].body {
            Body::Directory { first, .. } => std::mem::replace(first, new),
            _ => DentryIndex::NONE,
        }
    }

    /// Accounts for bytes that are about to be kept.
    fn reserve_bytes(&mut self, count: usize) -> Result<(), Reason> {
        self.bytes = self.bytes.saturating_add(count);
        // A name of 255 bytes more does no harm to the bound.
        if self.bytes.saturating_add(self.names.byte_len()) > limits::TREE_BYTES {
            return Err(Reason::TooManyBytes);
        }
        Ok(())
    }
}
