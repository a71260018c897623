//! Merging: entries of one layer after another change the tree.
//!
//! This is the sequential model in umoci's variant (reference/cases.md, section 0). Each entry meets the state that
//! all entries before it made, of this layer and of those below:
//!
//! - The directory an entry goes to is found through symbolic links inside the root, lexically where nothing exists;
//!   the last component is never followed. What is missing is made, and what is in the way there is replaced (A3).
//! - A directory over a directory replaces its attributes; everything else replaces what was there (A2).
//! - A whiteout or opaque marker hides what lower layers left. What this layer added stays, and so do the directories
//!   above it, wherever in the layer the marker comes (A1). Markers make nothing.
//! - A hard link names the node its target names at that moment (A4).

use super::arena::{Arena, Attributes, Body, Content, Dentry, DentryIndex, NodeIndex};
use super::{Error, LayerLabel, Reason, encode};
use crate::limits;
use crate::oci::Digest;
use crate::tar::{Entry, Kind, Segment};

/// Root-level names that begin so are the bookkeeping of Docker's old aufs driver: hard links in the same layer may
/// point to them, but they are not content.
const AUFS_METADATA: &[u8] = b".wh..wh.";

/// Applies layers from the bottom to an empty tree.
#[derive(Debug)]
pub struct Merger {
    arena: Arena,
    /// The number of the layer at work, from 0.
    layer: u16,
    layers: usize,
    walk: Walk,
    /// Names in the root that go when the layer is complete.
    aufs_metadata: Vec<Vec<u8>>,
}

/// What is kept from one search for a directory to the next.
#[derive(Debug)]
struct Walk {
    /// Steps left of [`limits::TREE_STEPS`].
    steps: u64,
    /// The last path searched for and its directory: members of a directory tend to follow one another.
    path: Vec<u8>,
    directory: NodeIndex,
}

/// Where a search for a directory ended.
#[derive(Debug)]
struct Found<'a> {
    /// The last directory on the way that exists.
    directory: NodeIndex,
    /// Names to make below it; the first may be taken by something that is not a directory.
    missing: Vec<&'a [u8]>,
}

impl Default for Merger {
    fn default() -> Self {
        Self::new()
    }
}

impl Merger {
    /// Starts with an empty root directory.
    pub fn new() -> Self {
        Self::with_limits(limits::TREE_NAMES, limits::TREE_STEPS)
    }

    /// Starts with other bounds than [`limits::TREE_NAMES`] and [`limits::TREE_STEPS`], which take long to reach.
    pub(super) fn with_limits(names: usize, steps: u64) -> Self {
        Self {
            arena: Arena::new(names),
            layer: 0,
            layers: 0,
            walk: Walk { steps, path: Vec::new(), directory: NodeIndex::ROOT },
            aufs_metadata: Vec::new(),
        }
    }

    /// Applies the next layer, whose digest is only used to name it in an error.
    ///
    /// After an error the merger holds half a layer and is to be dropped.
    pub fn layer<E>(
        &mut self,
        digest: Option<Digest>,
        entries: impl IntoIterator<Item = Result<Entry, E>>,
    ) -> Result<(), Error>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if self.layers >= limits::LAYERS {
            return Err(Error::TooManyLayers);
        }
        self.layer = u16::try_from(self.layers).map_err(|_| Error::TooManyLayers)?;
        self.layers += 1;
        let number = self.layers;
        let label = || Box::new(LayerLabel { number, digest });
        for entry in entries {
            let entry = entry.map_err(|source| Error::Entries { layer: label(), source: source.into() })?;
            let path = entry.path.clone();
            let rejected = |reason| Error::Rejected { layer: label(), path: path.escape_ascii().to_string(), reason };
            self.apply(entry).map_err(rejected)?;
        }
        self.remove_aufs_metadata();
        Ok(())
    }

    /// The encoded tree of all layers applied.
    pub fn finish(self) -> Vec<u8> {
        encode::encode(self.arena)
    }

    fn apply(&mut self, entry: Entry) -> Result<(), Reason> {
        let Entry { path, kind, mode, uid, gid, mtime, xattrs } = entry;
        check_path(&path)?;
        let body = match kind {
            Kind::Whiteout => return self.whiteout(&path),
            Kind::Opaque => return self.opaque(&path),
            Kind::HardLink { target } => return self.hard_link(&path, &target),
            Kind::Directory => Body::EMPTY_DIRECTORY,
            Kind::Regular { size, segments, content } => {
                Body::Regular { size, content: contents(self.layer, size, segments)?, digest: content }
            }
            Kind::Symlink { target } if target.is_empty() || target.contains(&0) => return Err(Reason::Malformed),
            Kind::Symlink { target } => Body::Symlink { target: target.into() },
            Kind::CharDevice { major, minor } => Body::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => Body::BlockDevice { major, minor },
            Kind::Fifo => Body::Fifo,
        };
        let xattrs = self.arena.intern_xattrs(&xattrs)?;
        let attributes = Attributes { mode: mode & 0o7777, uid, gid, mtime, xattrs };
        if matches!(body, Body::Directory { .. }) {
            return self.directory(&path, attributes);
        }
        let (directory, name) = self.make_room(&path)?;
        self.add(directory, name, attributes, body)
    }

    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Reason> {
        let Some((parent, name)) = split(path) else {
            self.arena.set_attributes(NodeIndex::ROOT, attributes);
            return Ok(());
        };
        let parent = self.make_directory(parent)?;
        if let Some(dentry) = self.arena.find(parent, name) {
            let node = self.arena.dentry(dentry).node;
            if self.arena.is_directory(node) {
                self.arena.set_attributes(node, attributes);
                self.arena.touch(dentry, self.layer);
                return Ok(());
            }
            self.remove(parent, name);
        }
        self.add(parent, name, attributes, Body::EMPTY_DIRECTORY)
    }

    /// Follows umoci to the letter: what was at `path` is gone before the target is looked for, so a link to itself or
    /// to something below itself finds nothing.
    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Reason> {
        let (directory, name) = self.make_room(path)?;
        let missing = || Reason::LinkTargetMissing(target.escape_ascii().to_string());
        let is_directory = || Reason::LinkToDirectory(target.escape_ascii().to_string());
        let (target_parent, target_name) = split(target).ok_or_else(is_directory)?;
        let found = self.walk.find(&self.arena, target_parent)?;
        if !found.missing.is_empty() {
            return Err(missing());
        }
        let target = self.arena.find(found.directory, target_name).ok_or_else(missing)?;
        let node = self.arena.dentry(target).node;
        if self.arena.is_directory(node) {
            return Err(is_directory());
        }
        let dentry = self.arena.link(directory, name, node)?;
        self.added(dentry, name);
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), Reason> {
        let (parent, name) = split(path).ok_or(Reason::RootNotDirectory)?;
        let found = self.walk.find(&self.arena, parent)?;
        if !found.missing.is_empty() {
            return Ok(());
        }
        match self.arena.find(found.directory, name) {
            Some(dentry) => self.hide(vec![dentry]),
            None => Ok(()),
        }
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), Reason> {
        let found = self.walk.find(&self.arena, path)?;
        if !found.missing.is_empty() {
            return Ok(());
        }
        let children: Vec<_> = self.arena.children(found.directory).collect();
        self.hide(children)
    }

    /// Removes what lower layers left at and below the dentries `pending`.
    fn hide(&mut self, mut pending: Vec<DentryIndex>) -> Result<(), Reason> {
        self.walk.forget();
        while let Some(dentry) = pending.pop() {
            self.walk.step()?;
            if self.arena.dentry(dentry).layer == self.layer {
                pending.extend(self.arena.children(self.arena.dentry(dentry).node));
            } else {
                self.arena.remove(dentry);
            }
        }
        Ok(())
    }

    /// The directory and name where the entry `path` goes, with nothing there.
    fn make_room<'p>(&mut self, path: &'p [u8]) -> Result<(NodeIndex, &'p [u8]), Reason> {
        let (parent, name) = split(path).ok_or(Reason::RootNotDirectory)?;
        let directory = self.make_directory(parent)?;
        self.remove(directory, name);
        Ok((directory, name))
    }

    /// The directory that `path` leads to, made if it is not there, in place of what is in the way.
    fn make_directory(&mut self, path: &[u8]) -> Result<NodeIndex, Reason> {
        let found = self.walk.find(&self.arena, path)?;
        let mut directory = found.directory;
        // Names from link targets are borrowed from the arena that is about to change.
        let missing: Vec<Vec<u8>> = found.missing.into_iter().map(<[u8]>::to_vec).collect();
        for name in missing {
            self.remove(directory, &name);
            let dentry = self.arena.add(directory, &name, Attributes::IMPLIED, Body::EMPTY_DIRECTORY)?;
            self.added(dentry, &name);
            directory = self.arena.dentry(dentry).node;
        }
        self.walk.remember(path, directory);
        Ok(directory)
    }

    fn add(&mut self, directory: NodeIndex, name: &[u8], attributes: Attributes, body: Body) -> Result<(), Reason> {
        let dentry = self.arena.add(directory, name, attributes, body)?;
        self.added(dentry, name);
        Ok(())
    }

    /// Notes what follows from the new name `dentry`.
    fn added(&mut self, dentry: DentryIndex, name: &[u8]) {
        self.arena.touch(dentry, self.layer);
        let Dentry { directory, node, .. } = *self.arena.dentry(dentry);
        if directory == NodeIndex::ROOT && name.starts_with(AUFS_METADATA) {
            self.aufs_metadata.push(name.to_vec());
        }
        if matches!(self.arena.node(node).body, Body::Symlink { .. }) {
            self.walk.forget();
        }
    }

    fn remove(&mut self, directory: NodeIndex, name: &[u8]) {
        let Some(dentry) = self.arena.find(directory, name) else { return };
        let node = self.arena.dentry(dentry).node;
        if matches!(self.arena.node(node).body, Body::Directory { .. } | Body::Symlink { .. }) {
            self.walk.forget();
        }
        self.arena.remove(dentry);
    }

    fn remove_aufs_metadata(&mut self) {
        for name in std::mem::take(&mut self.aufs_metadata) {
            self.remove(NodeIndex::ROOT, &name);
        }
    }
}

impl Walk {
    /// Searches for the directory that `path` leads to from the root, as a process whose root this is would find it,
    /// but lexically from the first name on that is not a directory: `..` takes such a name back.
    fn find<'a>(&mut self, arena: &'a Arena, path: &'a [u8]) -> Result<Found<'a>, Reason> {
        let (mut directory, rest) = self.start(path);
        let mut missing: Vec<&[u8]> = Vec::new();
        let mut pending = vec![rest];
        let mut links = 0;
        while let Some(rest) = pending.pop() {
            self.step()?;
            let (name, rest) = first_component(rest);
            if let Some(rest) = rest {
                pending.push(rest);
            }
            match name {
                b"" | b"." => {}
                b".." if missing.pop().is_none() => directory = arena.parent(directory),
                b".." => {}
                _ if !missing.is_empty() => missing.push(name),
                _ => match arena.find(directory, name).map(|dentry| arena.dentry(dentry).node) {
                    Some(node) if arena.is_directory(node) => directory = node,
                    Some(node) => match &arena.node(node).body {
                        Body::Symlink { target } => {
                            links += 1;
                            if links > limits::TREE_LINKS {
                                return Err(Reason::TooManyLinks);
                            }
                            if target.starts_with(b"/") {
                                directory = NodeIndex::ROOT;
                            }
                            pending.push(target);
                        }
                        _ => missing.push(name),
                    },
                    None => missing.push(name),
                },
            }
        }
        Ok(Found { directory, missing })
    }

    /// Where a search for `path` can start, and what is left of the path.
    fn start<'a>(&self, path: &'a [u8]) -> (NodeIndex, &'a [u8]) {
        match path.strip_prefix(self.path.as_slice()) {
            Some(b"") => (self.directory, b""),
            Some([b'/', rest @ ..]) if !self.path.is_empty() => (self.directory, rest),
            _ => (NodeIndex::ROOT, path),
        }
    }

    fn remember(&mut self, path: &[u8], directory: NodeIndex) {
        self.path.clear();
        self.path.extend_from_slice(path);
        self.directory = directory;
    }

    /// Must be called when a directory or a symbolic link goes, or a symbolic link comes: in `l -> n/../d`, what `n` is
    /// decides where `l` leads, and `n` need not exist.
    fn forget(&mut self) {
        self.path.clear();
        self.directory = NodeIndex::ROOT;
    }

    fn step(&mut self) -> Result<(), Reason> {
        self.steps = self.steps.checked_sub(1).ok_or(Reason::TooMuchWork)?;
        Ok(())
    }
}

/// Parent and name of an entry's path; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// The part of a path before the first slash, and the part after it if there is one.
fn first_component(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match path.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

/// Holds entries to the form that [`Entry::path`] promises, whoever made them.
fn check_path(path: &[u8]) -> Result<(), Reason> {
    if path.is_empty() {
        return Ok(());
    }
    for name in path.split(|&byte| byte == b'/') {
        if matches!(name, b"" | b"." | b"..") || name.contains(&0) {
            return Err(Reason::Malformed);
        }
        if name.len() > limits::NAME_BYTES {
            return Err(Reason::NameTooLong);
        }
    }
    Ok(())
}

/// Holds the segments of a file to the form that [`Kind::Regular`] promises, and recognises the common case.
fn contents(layer: u16, size: u64, segments: Vec<Segment>) -> Result<Content, Reason> {
    if i64::try_from(size).is_err() {
        return Err(Reason::Malformed);
    }
    let mut end = 0;
    for segment in &segments {
        let layer_end = segment.layer_offset.checked_add(segment.length);
        let file_end = segment.file_offset.checked_add(segment.length).filter(|&end| end <= size);
        if segment.length == 0 || segment.file_offset < end || layer_end.is_none() {
            return Err(Reason::Malformed);
        }
        end = file_end.ok_or(Reason::Malformed)?;
    }
    match segments[..] {
        [] if size == 0 => Ok(Content::Whole { layer, layer_offset: 0 }),
        [Segment { length, layer_offset, .. }] if length == size => Ok(Content::Whole { layer, layer_offset }),
        _ => Ok(Content::Runs { layer, runs: segments.into() }),
    }
}
