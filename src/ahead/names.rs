//! Paths inside the image, and what they finally are: `$ORIGIN` is the directory of a program's real path, which
//! [`Tree::resolve`] does not tell.
//!
//! What is looked up follows from names in the image, so how often and how deep is bounded here, over all of a run.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::{AHEAD_PATH_BYTES, RESOLVE_LINKS};
use crate::tree::{NodeId, NodeKind, Tree};

/// A file and its path without symbolic links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: NodeId,
    /// Absolute.
    pub(super) path: Vec<u8>,
}

impl Place {
    /// The directory it is in.
    pub(super) fn directory(&self) -> &[u8] {
        let slash = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        &self.path[..slash.max(1).min(self.path.len())]
    }
}

/// A directory in which names are looked for, and the path by which it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) node: NodeId,
    pub(super) path: Vec<u8>,
}

/// Finds the names of one image, so long as its lookups last: each component of a path takes one.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) tree: Tree,
    left: AtomicU64,
}

/// The components of a path without links, from the root down: what each is, and its name.
type Components<'a> = Vec<(NodeId, &'a [u8])>;

impl Names {
    pub(super) fn new(tree: Tree, lookups: u64) -> Self {
        Self { tree, left: AtomicU64::new(lookups) }
    }

    /// The regular file that `path` leads to, as a process at the image's root would find it.
    pub(super) fn file(&self, path: &[u8]) -> Option<Place> {
        let components = self.walk(path)?;
        let (node, _) = *components.last()?;
        let length: usize = components.iter().map(|(_, name)| 1 + name.len()).sum();
        if self.tree.node(node).kind() != NodeKind::Regular || length > AHEAD_PATH_BYTES {
            return None;
        }
        let path = components.iter().flat_map(|(_, name)| [b"/", *name]).collect::<Vec<_>>().concat();
        Some(Place { node, path })
    }

    /// The directory `name` as seen from `base`, or that one if there is no name.
    pub(super) fn directory(&self, base: &[u8], name: &str) -> Option<Directory> {
        let path = if name.is_empty() { base.to_vec() } else { join(base, name.as_bytes()) };
        let node = self.walk(&path)?.last().map_or(NodeId::ROOT, |(node, _)| *node);
        (self.tree.node(node).kind() == NodeKind::Directory).then_some(Directory { node, path })
    }

    /// What is called `name` in a directory, through links.
    pub(super) fn child(&self, above: &Directory, name: &str) -> Option<NodeId> {
        let node = self.lookup(above.node, name.as_bytes())?;
        match self.tree.node(node).kind() {
            NodeKind::Symlink => self.walk(&join(&above.path, name.as_bytes()))?.last().map(|(node, _)| *node),
            _ => Some(node),
        }
    }

    /// Follows `path` from the root.
    pub(super) fn walk<'a>(&'a self, path: &'a [u8]) -> Option<Components<'a>> {
        if path.len() > AHEAD_PATH_BYTES {
            return None;
        }
        let mut above: Components<'a> = Vec::new();
        let mut pending = vec![path];
        let mut links = 0;
        while let Some(rest) = pending.pop() {
            let (name, rest) = match rest.iter().position(|byte| *byte == b'/') {
                Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
                None => (rest, None),
            };
            pending.extend(rest);
            match name {
                b"" | b"." => continue,
                b".." => {
                    above.pop();
                    continue;
                }
                _ => {}
            }
            let here = above.last().map_or(NodeId::ROOT, |(node, _)| *node);
            let next = self.lookup(here, name)?;
            let node = self.tree.node(next);
            if node.kind() != NodeKind::Symlink {
                above.push((next, name));
                continue;
            }
            links += 1;
            if links > RESOLVE_LINKS {
                return None;
            }
            if node.target().starts_with(b"/") {
                above.clear();
            }
            pending.push(node.target());
        }
        Some(above)
    }

    fn lookup(&self, above: NodeId, name: &[u8]) -> Option<NodeId> {
        let one_less = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok()?;
        self.tree.lookup(above, name)
    }
}

/// `path` as seen from `directory`.
pub(super) fn join(directory: &[u8], path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [directory, b"/", path].concat() }
}

/// The directory above a path.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    &path[..slash]
}
