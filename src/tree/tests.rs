//! The merge cases A1 to A4 by number, what stat shows (A9), and damage to stored trees.
//!
//! A test states layers with [`dir`], [`file`] and the like and compares the whole tree as text: one line for each path
//! with what the case is about (see [`paths`]).

use std::fmt::Write as _;

use super::*;
use crate::tar::{Entry, Kind, Segment, Xattr};

mod a1_whiteouts;
mod a2_replace;
mod a3_parents;
mod a4_hard_links;
mod stored;

fn entry(path: &str, kind: Kind) -> Entry {
    let path = path.as_bytes().to_vec();
    Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime: Timestamp { seconds: 7, nanos: 0 }, xattrs: Vec::new() }
}

fn dir(path: &str, mode: u16) -> Entry {
    Entry { mode, ..entry(path, Kind::Directory) }
}

/// A file whose content is known by where it is in its layer.
fn file(path: &str, layer_offset: u64) -> Entry {
    let segments = vec![Segment { file_offset: 0, layer_offset, length: 10 }];
    entry(path, Kind::Regular { size: 10, segments, content: Some([layer_offset as u8; 32]) })
}

fn symlink(path: &str, target: &str) -> Entry {
    Entry { mode: 0o777, ..entry(path, Kind::Symlink { target: target.as_bytes().to_vec() }) }
}

fn hard_link(path: &str, target: &str) -> Entry {
    entry(path, Kind::HardLink { target: target.as_bytes().to_vec() })
}

fn fifo(path: &str) -> Entry {
    entry(path, Kind::Fifo)
}

fn device(path: &str, major: u32, minor: u32) -> Entry {
    entry(path, Kind::CharDevice { major, minor })
}

fn whiteout(path: &str) -> Entry {
    entry(path, Kind::Whiteout)
}

fn opaque(path: &str) -> Entry {
    entry(path, Kind::Opaque)
}

fn xattr(entry: Entry, name: &str, value: &str) -> Entry {
    let xattr = Xattr { name: name.as_bytes().to_vec(), value: value.as_bytes().to_vec() };
    Entry { xattrs: vec![xattr], ..entry }
}

fn try_merge(layers: &[&[Entry]]) -> Result<Tree, Error> {
    let mut merger = Merger::new();
    for layer in layers {
        merger.layer::<Error>(None, layer.iter().cloned().map(Ok))?;
    }
    Tree::open(merger.finish().into())
}

fn merged(layers: &[&[Entry]]) -> Tree {
    try_merge(layers).expect("the layers are fine")
}

/// Why the layers are rejected, and at which path.
fn rejected(layers: &[&[Entry]]) -> (String, Reason) {
    match try_merge(layers) {
        Err(Error::Rejected { path, reason, .. }) => (path, reason),
        other => panic!("not rejected: {other:?}"),
    }
}

/// The tree below the root as one text: `d/` for directories, `f@LAYER.OFFSET` for files, `l->TARGET`, `p|`, `c#1:3`.
fn paths(tree: &Tree) -> String {
    let mut text = Vec::new();
    let mut pending = vec![(NodeId::ROOT, String::new())];
    while let Some((directory, prefix)) = pending.pop() {
        for child in tree.children(directory, 0) {
            let node = tree.node(child.node);
            let mut line = format!("{prefix}{}", child.name.escape_ascii());
            match node.kind() {
                NodeKind::Directory => {
                    line.push('/');
                    pending.push((child.node, line.clone()));
                }
                NodeKind::Regular => {
                    let extent = node.extents().next().expect("files of these tests have content");
                    write!(line, "@{}.{}", extent.layer, extent.layer_offset).expect("to a string");
                }
                NodeKind::Symlink => write!(line, "->{}", node.target().escape_ascii()).expect("to a string"),
                NodeKind::Fifo => line.push('|'),
                NodeKind::CharDevice | NodeKind::BlockDevice => {
                    let (major, minor) = node.device().expect("a device");
                    write!(line, "#{major}:{minor}").expect("to a string");
                }
            }
            text.push(line);
        }
    }
    text.sort();
    text.join(" ")
}

fn find(tree: &Tree, path: &str) -> NodeId {
    tree.resolve(path.as_bytes(), false).unwrap_or_else(|| panic!("{path} is not in {}", paths(tree)))
}

fn node<'a>(tree: &'a Tree, path: &str) -> Node<'a> {
    tree.node(find(tree, path))
}
