//! Opening a stored tree: everything that the accessors rely on is checked once.
//!
//! The digest finds damage. The rest is checked as well, because the digest is not a secret: whoever can write the
//! cache directory must still not be able to make the daemon panic or walk in circles.

use bytes::Bytes;

use super::NodeKind;
use super::format::{
    DIGESTED, DentryRecord, ExtentRecord, IN_RUNS, Layout, NodeRecord, SetRecord, pair, part, split_xattr,
};
use crate::limits;

/// Why a stored tree is refused.
type Damage = &'static str;

/// The sections of a tree that is being checked.
struct Check<'a> {
    nodes: &'a [NodeRecord],
    dentries: &'a [DentryRecord],
    names: &'a [u8],
    targets: &'a [u8],
    sets: &'a [SetRecord],
    xattrs: &'a [u8],
    extents: &'a [ExtentRecord],
    digests: usize,
}

/// Checks `bytes` and returns where its sections are and the sum of the sizes of its files.
pub(super) fn check(bytes: &Bytes) -> Result<(Layout, u64), Damage> {
    let (header, layout) = Layout::read(bytes)?;
    if blake3::hash(&bytes[DIGESTED..]) != header.digest {
        return Err("it does not have its digest");
    }
    if !layout.is_whole() {
        return Err("a section ends within a record");
    }
    let check = Check {
        nodes: layout.nodes(bytes),
        dentries: layout.dentries(bytes),
        names: layout.names(bytes),
        targets: layout.targets(bytes),
        sets: layout.sets(bytes),
        xattrs: layout.xattrs(bytes),
        extents: layout.extents(bytes),
        digests: layout.digests(bytes).len(),
    };
    let total_size = check.all()?;
    Ok((layout, total_size))
}

impl Check<'_> {
    fn all(&self) -> Result<u64, Damage> {
        if self.nodes.first().and_then(NodeRecord::kind) != Some(NodeKind::Directory) {
            return Err("its root is not a directory");
        }
        if self.nodes.len() > limits::TREE_NAMES + 1 || self.names.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err("it has too many nodes, or a name with a slash");
        }
        for set in self.sets {
            self.set(set)?;
        }
        let mut total_size = 0u64;
        for (number, node) in self.nodes.iter().enumerate() {
            if node.xattrs.get() as usize > self.sets.len() || node.mtime().nanos >= 1_000_000_000 {
                return Err("a node has invalid attributes");
            }
            match node.kind().ok_or("a node has no type")? {
                NodeKind::Directory => self.directory(number, node)?,
                NodeKind::Regular => {
                    self.regular(node)?;
                    total_size = total_size.saturating_add(node.first.get());
                }
                NodeKind::Symlink => {
                    let (start, length) = pair(node.first);
                    let target = part(self.targets, start, length);
                    if !target.is_some_and(|target| !target.is_empty() && !target.contains(&0)) {
                        return Err("a link has no valid target");
                    }
                }
                NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => {}
            }
        }
        Ok(total_size)
    }

    fn set(&self, set: &SetRecord) -> Result<(), Damage> {
        let mut rest = part(self.xattrs, set.start.get(), set.length.get()).ok_or("an attribute set is not there")?;
        while !rest.is_empty() {
            (_, _, rest) = split_xattr(rest).ok_or("an attribute set ends early")?;
        }
        Ok(())
    }

    /// Parents have smaller numbers than their directories, so that no chain of parents is a circle.
    fn directory(&self, number: usize, node: &NodeRecord) -> Result<(), Damage> {
        let parent = node.parent() as usize;
        let is_root = number == 0;
        if (is_root && parent != 0) || (!is_root && parent >= number) {
            return Err("a directory has an invalid parent");
        }
        if self.nodes[parent].kind() != Some(NodeKind::Directory) {
            return Err("a parent is not a directory");
        }
        let (first, count) = node.entries();
        let entries = self.dentries.get(first as usize..).and_then(|rest| rest.get(..count as usize));
        let mut last: &[u8] = b"";
        for entry in entries.ok_or("the entries of a directory are not there")? {
            let name = part(self.names, entry.name.get(), u32::from(entry.name_length)).ok_or("a name is not there")?;
            if name <= last || matches!(name, b"." | b"..") {
                return Err("the names of a directory are not sorted");
            }
            last = name;
            let child = entry.node.get() as usize;
            let node = self.nodes.get(child).ok_or("a name has no node")?;
            if node.kind() == Some(NodeKind::Directory) && (child == 0 || node.parent() as usize != number) {
                return Err("a directory is not in its parent");
            }
        }
        Ok(())
    }

    fn regular(&self, node: &NodeRecord) -> Result<(), Damage> {
        let size = node.first.get();
        if i64::try_from(size).is_err() || node.content.get() as usize > self.digests {
            return Err("a file has an invalid size or digest");
        }
        if node.layer.get() != IN_RUNS {
            let whole = node.second.get().checked_add(size);
            return whole.map(|_| ()).ok_or("a file is not in its layer");
        }
        let (first, count) = pair(node.second);
        let extents = self.extents.get(first as usize..).and_then(|rest| rest.get(..count as usize));
        let mut end = 0;
        for extent in extents.ok_or("the extents of a file are not there")? {
            let (offset, length) = (extent.file_offset.get(), extent.length.get());
            let in_layer = extent.layer_offset.get().checked_add(length).is_some();
            if offset < end || length == 0 || !in_layer {
                return Err("an extent of a file is invalid");
            }
            end = offset.checked_add(length).filter(|&end| end <= size).ok_or("an extent is outside its file")?;
        }
        Ok(())
    }
}
