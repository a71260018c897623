//! Names: from raw bytes to a path inside the tree, or to the whiteout that a name stands for.
//!
//! Everything is lexical and cannot leave the root: `..` takes back the component before it, as `filepath.Clean` does in
//! the container tools. Only the last component of a cleaned name can make it a whiteout.

use super::Fault;
use crate::limits;

/// What starts the name of a whiteout.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The name of an opaque marker.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// What starts the names that AUFS kept for itself, and that no file can have.
const AUFS: &[u8] = b".wh..wh.";
/// The directory at the root of a layer where AUFS kept the content of files that have several names.
///
/// A parser gives the regular files in it under their own paths, because hard links of the same layer name them. It is
/// no part of the image: whoever merges a layer removes it, with what is in it, once the layer has been merged.
/// Everything else that AUFS left in a layer the parser drops.
pub const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// What a cleaned name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The thing itself.
    Plain(Vec<u8>),
    /// A whiteout of the thing at this path.
    Whiteout(Vec<u8>),
    /// An opaque marker for the directory at this path.
    Opaque(Vec<u8>),
    /// The content of hard links made by AUFS: nothing to be seen, but hard links of this layer may name it.
    AufsLink(Vec<u8>),
    /// Nothing that concerns the tree.
    Hidden,
}

impl Name {
    /// Cleans and classifies the name of an entry.
    pub(super) fn new(raw: &[u8]) -> Result<Self, Fault> {
        let path = clean(raw)?;
        let (parent, last) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], &path[..]),
        };
        let name = match last.strip_prefix(WHITEOUT) {
            Some(b"" | b"." | b"..") => return Err(Fault::Whiteout),
            _ if path.starts_with(AUFS) && path != OPAQUE => aufs(&path),
            Some(_) if last == OPAQUE => Self::Opaque(parent.to_vec()),
            Some(_) if last.starts_with(AUFS) => Self::Hidden,
            Some(hidden) => Self::Whiteout(join(parent, hidden)),
            None => Self::Plain(path),
        };
        match &name {
            Self::Plain(path) | Self::Whiteout(path) | Self::Opaque(path) | Self::AufsLink(path) => bound(path)?,
            Self::Hidden => {}
        }
        Ok(name)
    }
}

/// Classifies a name whose first component belongs to AUFS.
fn aufs(path: &[u8]) -> Name {
    match path.strip_prefix(AUFS_LINKS).and_then(|rest| rest.strip_prefix(b"/")) {
        Some(file) if !file.contains(&b'/') && !file.starts_with(WHITEOUT) => Name::AufsLink(path.to_vec()),
        _ => Name::Hidden,
    }
}

/// Cleans the target of a hard link: a path from the root like any other.
pub(super) fn link_target(raw: &[u8]) -> Result<Vec<u8>, Fault> {
    let target = clean(raw)?;
    // The root is a directory, and a directory has one name only.
    if target.is_empty() {
        return Err(Fault::NoTarget);
    }
    bound(&target)?;
    Ok(target)
}

/// Resolves `.`, `..`, empty components and slashes at the ends, lexically.
fn clean(raw: &[u8]) -> Result<Vec<u8>, Fault> {
    if raw.contains(&0) {
        return Err(Fault::Nul);
    }
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => path.truncate(path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    Ok(path)
}

fn bound(path: &[u8]) -> Result<(), Fault> {
    let too_long = |component: &[u8]| component.len() > limits::NAME_BYTES;
    if path.split(|&byte| byte == b'/').any(too_long) { Err(Fault::NameTooLong) } else { Ok(()) }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
