//! Paths inside the image, and what they finally are: `$ORIGIN` is the directory of a program's real path, which
//! [`Tree::resolve`] does not tell.

use crate::limits::RESOLVE_LINKS;
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

/// The regular file that `path` leads to, as a process at the image's root would find it.
pub(super) fn file(tree: &Tree, path: &[u8]) -> Option<Place> {
    let mut above: Vec<(NodeId, &[u8])> = Vec::new();
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
        let next = tree.lookup(here, name)?;
        let node = tree.node(next);
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
    let (node, _) = *above.last()?;
    let path = above.iter().flat_map(|(_, name)| [b"/", *name]).collect::<Vec<_>>().concat();
    (tree.node(node).kind() == NodeKind::Regular).then_some(Place { node, path })
}

/// `path` as seen from `directory`.
pub(super) fn join(directory: &[u8], path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [directory, b"/", path].concat() }
}
