//! The merged file system of all layers: an immutable arena of nodes.
//!
//! Layers are merged in the sequential model, umoci's variant (design.md, "The tree"; cases A1 to A6). The result is
//! encoded once, stored under the digest of its inputs and memory-mapped afterwards, so opening a tree of a million
//! nodes parses nothing. Node numbers are deterministic: equal layers give equal bytes.

mod arena;
mod check;
mod encode;
mod format;
mod merge;
mod names;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use self::format::{IN_RUNS, Layout, NodeRecord, pair, part, split_xattr};
pub use self::merge::Merger;
use crate::index::LayerIndex;
use crate::limits;
use crate::oci::Digest;
use crate::tar::{Entry, Timestamp};

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

impl Extent {
    fn of(run: &format::ExtentRecord) -> Self {
        Self {
            file_offset: run.file_offset.get(),
            length: run.length.get(),
            layer: run.layer.get(),
            layer_offset: run.layer_offset.get(),
        }
    }
}

/// The merged file system.
#[derive(Clone)]
pub struct Tree {
    bytes: Bytes,
    layout: Layout,
    total_size: u64,
}

/// One node, borrowed from its tree.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    tree: &'a Tree,
    record: &'a NodeRecord,
}

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Child<'a> {
    /// The name: one component, any bytes but `/` and NUL.
    pub name: &'a [u8],
    /// What it names.
    pub node: NodeId,
}

/// Which layer of an image an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLabel {
    /// Counted from the bottom of the image, from 1.
    pub number: usize,
    /// The digest of its blob, if known.
    pub digest: Option<Digest>,
}

/// Why layers cannot be merged, or a stored tree cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stored tree is damaged or of another version; it is to be thrown away and merged anew.
    #[error("stored tree is damaged: {0}")]
    Damaged(&'static str),
    /// The entries of a layer could not be read.
    #[error("entries of {layer} cannot be read")]
    Entries {
        /// The layer.
        layer: Box<LayerLabel>,
        /// What its entries said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An entry cannot be applied, so the layer is rejected, and the image with it.
    #[error("{layer} is rejected at \"{path}\": {reason}")]
    Rejected {
        /// The layer.
        layer: Box<LayerLabel>,
        /// The path of the entry, escaped.
        path: String,
        /// What is wrong with it.
        reason: Reason,
    },
    /// The image has more layers than [`limits::LAYERS`].
    #[error("image has more than {} layers", limits::LAYERS)]
    TooManyLayers,
}

/// Why an entry cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The root is to become, or to be hidden as, something other than a directory.
    #[error("the root can only be a directory")]
    RootNotDirectory,
    /// A path leads through more than [`limits::TREE_LINKS`] symbolic links.
    #[error("too many levels of symbolic links")]
    TooManyLinks,
    /// The target (escaped) of a hard link does not exist at this point of the layer.
    #[error("hard link to \"{0}\", which does not exist at this point of the layer")]
    LinkTargetMissing(String),
    /// The target (escaped) of a hard link is a directory.
    #[error("hard link to the directory \"{0}\"")]
    LinkToDirectory(String),
    /// A name is longer than [`limits::NAME_BYTES`].
    #[error("a name is longer than {} bytes", limits::NAME_BYTES)]
    NameTooLong,
    /// The entry does not have the form that [`crate::tar::Entry`] promises.
    #[error("malformed entry")]
    Malformed,
    /// More names than [`limits::TREE_NAMES`] (D-014).
    #[error("more than {} names in the image", limits::TREE_NAMES)]
    TooManyNames,
    /// More bytes of names, targets and attributes than [`limits::TREE_BYTES`].
    #[error("names, link targets and attributes take more than {} MiB", limits::TREE_BYTES >> 20)]
    TooManyBytes,
    /// More extents of fragmented files than [`limits::TREE_EXTENTS`].
    #[error("sparse files of the image have more than {} extents", limits::TREE_EXTENTS)]
    TooManyExtents,
    /// Applying the entries takes more than [`limits::TREE_STEPS`].
    #[error("finding the places of the image's entries takes too many steps")]
    TooMuchWork,
}

/// Gives an encoded tree the digest that it would have if somebody had made it so.
#[cfg(fuzzing)]
pub fn reseal(bytes: &mut [u8]) {
    format::reseal(bytes);
}

/// The name under which a tree is stored: a digest of its inputs, which are named by the identities of the layers' indexes
/// ([`LayerIndex::identity`], from the bottom), and of the format version. So a tree made from a claim serves nobody else.
pub fn id(identities: &[Digest]) -> Digest {
    let mut text = format!("ocifs tree {}\n", format::VERSION);
    for identity in identities {
        text.push_str(&identity.to_string());
        text.push('\n');
    }
    Digest::sha256(text.as_bytes())
}

/// Merges layers from the bottom and returns the encoded tree.
pub fn merge(layers: &[&LayerIndex]) -> Result<Vec<u8>, Error> {
    merge_without(layers, |_, _| false)
}

/// Like [`merge()`], but without the entries for which `is_hidden`, which is also given the number of the layer from 0,
/// says so. The name of the tree must say what was hidden.
pub fn merge_without(layers: &[&LayerIndex], is_hidden: impl Fn(usize, &Entry) -> bool) -> Result<Vec<u8>, Error> {
    let mut merger = Merger::new();
    for (number, layer) in layers.iter().enumerate() {
        let is_shown = |entry: &Result<Entry, _>| !entry.as_ref().is_ok_and(|entry| is_hidden(number, entry));
        merger.layer(Some(layer.layer()), layer.entries().filter(is_shown))?;
    }
    Ok(merger.finish())
}

impl fmt::Display for LayerLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.number)?;
        match self.digest {
            Some(digest) => write!(f, " ({digest})"),
            None => Ok(()),
        }
    }
}

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// The number, from 0.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("nodes", &self.node_count()).field("bytes", &self.bytes.len()).finish()
    }
}

impl Tree {
    /// Opens an encoded tree after checking version and digest of all of it, so that everything after can trust it.
    ///
    /// Reads all of `bytes`: about 50 ms for a million nodes, more than half of it for the digest.
    pub fn open(bytes: Bytes) -> Result<Self, Error> {
        let (layout, total_size) = check::check(&bytes).map_err(Error::Damaged)?;
        Ok(Self { bytes, layout, total_size })
    }

    /// The encoded form.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of nodes.
    pub fn node_count(&self) -> u32 {
        // Opening has held it to limits::TREE_NAMES.
        self.layout.nodes(&self.bytes).len() as u32
    }

    /// Sum of the sizes of all regular files, each inode once, in bytes (for statfs); at most `u64::MAX`.
    pub fn total_size(&self) -> u64 {
        self.total_size
    }

    /// True if any node has an extended attribute.
    pub fn has_xattrs(&self) -> bool {
        !self.layout.xattrs(&self.bytes).is_empty()
    }

    /// The node numbered `number`, if there is one.
    pub fn id(&self, number: u32) -> Option<NodeId> {
        (number < self.node_count()).then_some(NodeId(number))
    }

    /// The node `id`.
    ///
    /// # Panics
    ///
    /// If `id` is of another tree that has more nodes.
    pub fn node(&self, id: NodeId) -> Node<'_> {
        Node { tree: self, record: &self.layout.nodes(&self.bytes)[id.0 as usize] }
    }

    /// What `name` is in `directory`; `None` if it is not there or `directory` is not a directory.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let entries = self.entries(directory);
        let found = entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        Some(NodeId(entries[found].node.get()))
    }

    /// The children of `directory` from position `start` on, sorted by name, positions stable; empty for other nodes.
    pub fn children(&self, directory: NodeId, start: u64) -> impl Iterator<Item = Child<'_>> {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let entries = self.entries(directory).get(start..).unwrap_or_default();
        entries.iter().map(|entry| Child { name: self.name(entry), node: NodeId(entry.node.get()) })
    }

    /// Resolves a path inside the tree (`/`-separated, leading slash optional), following symbolic links as a process
    /// whose root this is would; `None` if it does not exist or loops.
    ///
    /// A trailing slash follows the last component and asks for a directory.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Option<NodeId> {
        let mut here = NodeId::ROOT;
        let mut pending = vec![path];
        let mut links = 0;
        while let Some(rest) = pending.pop() {
            if self.node(here).kind() != NodeKind::Directory {
                return None;
            }
            let (name, rest) = match rest.iter().position(|&byte| byte == b'/') {
                Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
                None => (rest, None),
            };
            pending.extend(rest);
            match name {
                b"" | b"." => continue,
                b".." => {
                    here = self.node(here).parent();
                    continue;
                }
                _ => {}
            }
            let next = self.lookup(here, name)?;
            let node = self.node(next);
            if node.kind() != NodeKind::Symlink || (pending.is_empty() && !follow_last) {
                here = next;
                continue;
            }
            links += 1;
            if links > limits::RESOLVE_LINKS {
                return None;
            }
            if node.target().starts_with(b"/") {
                here = NodeId::ROOT;
            }
            pending.push(node.target());
        }
        Some(here)
    }

    /// The records of the names in `directory`, sorted by name.
    fn entries(&self, directory: NodeId) -> &[format::DentryRecord] {
        let node = self.node(directory);
        if node.kind() != NodeKind::Directory {
            return &[];
        }
        let (first, count) = node.record.entries();
        &self.layout.dentries(&self.bytes)[first as usize..][..count as usize]
    }

    fn name(&self, entry: &format::DentryRecord) -> &[u8] {
        part(self.layout.names(&self.bytes), entry.name.get(), u32::from(entry.name_length)).unwrap_or_default()
    }
}

impl<'a> Node<'a> {
    /// Its type.
    pub fn kind(&self) -> NodeKind {
        self.record.kind().expect("every type is checked when the tree is opened")
    }

    /// Permission bits, `07777` at most.
    pub fn mode(&self) -> u16 {
        self.record.mode()
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.record.uid.get()
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.record.gid.get()
    }

    /// Time of last modification.
    pub fn mtime(&self) -> Timestamp {
        self.record.mtime()
    }

    /// Length in bytes as stat shows it: of a file's content, of a link's target; 0 for others.
    pub fn size(&self) -> u64 {
        match self.kind() {
            NodeKind::Regular => self.record.first.get(),
            NodeKind::Symlink => u64::from(pair(self.record.first).1),
            _ => 0,
        }
    }

    /// Number of names in the merged tree; for a directory 2 + its subdirectories.
    pub fn nlink(&self) -> u32 {
        self.record.nlink.get()
    }

    /// Device number (major, minor), of devices.
    pub fn device(&self) -> Option<(u32, u32)> {
        matches!(self.kind(), NodeKind::CharDevice | NodeKind::BlockDevice).then(|| pair(self.record.first))
    }

    /// The directory that holds this directory; the root is its own parent, and stands for that of other nodes.
    pub fn parent(&self) -> NodeId {
        match self.kind() {
            NodeKind::Directory => NodeId(self.record.parent()),
            _ => NodeId::ROOT,
        }
    }

    /// The target of a symbolic link, empty for other nodes.
    pub fn target(&self) -> &'a [u8] {
        if self.kind() != NodeKind::Symlink {
            return b"";
        }
        let (start, length) = pair(self.record.first);
        part(self.tree.layout.targets(&self.tree.bytes), start, length).unwrap_or_default()
    }

    /// SHA-256 of a regular file's content, if it has one ([`crate::tar::Kind::Regular`]).
    pub fn content(&self) -> Option<&'a [u8; 32]> {
        let digests = self.tree.layout.digests(&self.tree.bytes);
        digests.get((self.record.content.get() as usize).checked_sub(1)?)
    }

    /// The extents of a regular file that have something of `range`, ascending in the file.
    pub fn extents_in(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + use<'a> {
        let (start, end) = (range.start, range.end);
        let begins = move |extent: &Extent| extent.file_offset.saturating_add(extent.length) > start;
        let (whole, runs) = self.pieces();
        let first = runs.partition_point(|run| run.file_offset.get().saturating_add(run.length.get()) <= start);
        let runs = runs.get(first..).unwrap_or_default();
        let extents = whole.into_iter().filter(begins).chain(runs.iter().map(Extent::of));
        extents.take_while(move |extent| extent.file_offset < end)
    }

    /// The extents of a regular file, ascending in the file.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + 'a {
        let (whole, runs) = self.pieces();
        whole.into_iter().chain(runs.iter().map(Extent::of))
    }

    /// The one extent of a file that has one, or the runs of others.
    fn pieces(&self) -> (Option<Extent>, &'a [format::ExtentRecord]) {
        let in_runs = self.record.layer.get() == IN_RUNS;
        match self.kind() {
            NodeKind::Regular if in_runs => (None, self.runs()),
            NodeKind::Regular => (self.whole(), &[]),
            _ => (None, &[]),
        }
    }

    /// Extended attributes (name, value), sorted by name.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let layout = &self.tree.layout;
        let set = (self.record.xattrs.get() as usize).checked_sub(1).map(|set| &layout.sets(&self.tree.bytes)[set]);
        let bytes = set.and_then(|set| part(layout.xattrs(&self.tree.bytes), set.start.get(), set.length.get()));
        let mut rest = bytes.unwrap_or_default();
        std::iter::from_fn(move || {
            let (name, value, tail) = split_xattr(rest)?;
            rest = tail;
            Some((name, value))
        })
    }

    /// The only extent of a file that is one run, if it is not empty.
    fn whole(&self) -> Option<Extent> {
        let (length, layer) = (self.record.first.get(), u32::from(self.record.layer.get()));
        let extent = Extent { file_offset: 0, length, layer, layer_offset: self.record.second.get() };
        (length != 0).then_some(extent)
    }

    fn runs(&self) -> &'a [format::ExtentRecord] {
        let (first, count) = pair(self.record.second);
        &self.tree.layout.extents(&self.tree.bytes)[first as usize..][..count as usize]
    }
}
