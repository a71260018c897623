//! From the arena to the stored form.

use std::collections::HashMap;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::NodeKind;
use super::arena::{Arena, Body, Content, DentryIndex, NodeIndex, XattrSet};
use super::format::{
    DIGESTED, DentryRecord, ExtentRecord, Header, IN_RUNS, MAGIC, NodeRecord, SetRecord, VERSION, pack_kind, pack_pair,
    pack_time,
};
use super::names::index_u32;

/// A node, or a name, that has no place in the stored tree yet.
const UNPLACED: u32 = u32::MAX;

/// The sections as they grow.
#[derive(Debug)]
struct Encoder {
    nodes: Vec<NodeRecord>,
    dentries: Vec<DentryRecord>,
    names: Vec<u8>,
    targets: Vec<u8>,
    sets: Vec<SetRecord>,
    xattrs: Vec<u8>,
    extents: Vec<ExtentRecord>,
    digests: Vec<[u8; 32]>,
    /// Nodes in the order of their numbers.
    order: Vec<NodeIndex>,
    /// The number of each node of the arena.
    numbers: Vec<u32>,
    /// Where each name of the arena begins in `names`.
    name_starts: Vec<u32>,
    set_numbers: HashMap<u32, u32>,
}

/// The stored form of `arena`.
pub(super) fn encode(arena: Arena) -> Vec<u8> {
    let mut encoder = Encoder::new(&arena);
    encoder.number(NodeIndex::ROOT);
    let mut children = Vec::new();
    let mut next = 0;
    while let Some(&node) = encoder.order.get(next) {
        next += 1;
        encoder.node(&arena, node, &mut children);
    }
    drop(arena);
    encoder.finish()
}

impl Encoder {
    fn new(arena: &Arena) -> Self {
        Self {
            nodes: Vec::with_capacity(arena.node_capacity()),
            dentries: Vec::with_capacity(arena.dentry_count()),
            names: Vec::with_capacity(arena.names.byte_len()),
            targets: Vec::new(),
            sets: Vec::new(),
            xattrs: Vec::new(),
            extents: Vec::new(),
            digests: Vec::new(),
            order: Vec::with_capacity(arena.node_capacity()),
            numbers: vec![UNPLACED; arena.node_capacity()],
            name_starts: vec![UNPLACED; arena.names.len()],
            set_numbers: HashMap::new(),
        }
    }

    /// The number of `node`, which gets the next one if it has none.
    fn number(&mut self, node: NodeIndex) -> u32 {
        let number = &mut self.numbers[node.get()];
        if *number == UNPLACED {
            *number = index_u32(self.order.len());
            self.order.push(node);
        }
        *number
    }

    fn node(&mut self, arena: &Arena, index: NodeIndex, children: &mut Vec<DentryIndex>) {
        let node = arena.node(index);
        let (mut layer, mut content, mut nlink) = (0, 0, node.names);
        let (kind, first, second) = match &node.body {
            Body::Directory { .. } => {
                let (first, count, subdirectories) = self.directory(arena, index, children);
                nlink = subdirectories.saturating_add(2);
                let parent = self.numbers[arena.parent(index).get()];
                (NodeKind::Directory, pack_pair(first, count), pack_pair(parent, 0))
            }
            Body::Regular { size, content: place, digest } => {
                if let Some(digest) = digest {
                    self.digests.push(*digest);
                    content = index_u32(self.digests.len());
                }
                let second;
                (layer, second) = self.place(place);
                (NodeKind::Regular, *size, second)
            }
            Body::Symlink { target } => {
                let start = index_u32(self.targets.len());
                self.targets.extend_from_slice(target);
                (NodeKind::Symlink, pack_pair(start, index_u32(target.len())), 0)
            }
            Body::CharDevice { major, minor } => (NodeKind::CharDevice, pack_pair(*major, *minor), 0),
            Body::BlockDevice { major, minor } => (NodeKind::BlockDevice, pack_pair(*major, *minor), 0),
            Body::Fifo => (NodeKind::Fifo, 0, 0),
        };
        let attributes = node.attributes;
        let xattrs = self.set(arena, attributes.xattrs);
        self.nodes.push(NodeRecord {
            kind_mode: U16::new(pack_kind(kind, attributes.mode)),
            layer: U16::new(layer),
            uid: U32::new(attributes.uid),
            gid: U32::new(attributes.gid),
            xattrs: U32::new(xattrs),
            nlink: U32::new(nlink),
            content: U32::new(content),
            mtime: U64::new(pack_time(attributes.mtime)),
            first: U64::new(first),
            second: U64::new(second),
        });
    }

    /// Writes the names of a directory; returns the first, how many they are and how many of them are directories.
    fn directory(&mut self, arena: &Arena, directory: NodeIndex, children: &mut Vec<DentryIndex>) -> (u32, u32, u32) {
        children.clear();
        children.extend(arena.children(directory));
        children.sort_unstable_by_key(|&child| arena.names.get(arena.dentry(child).name));
        let first = index_u32(self.dentries.len());
        let mut subdirectories = 0;
        for &child in children.iter() {
            let dentry = arena.dentry(child);
            let name = arena.names.get(dentry.name);
            let start = &mut self.name_starts[dentry.name.get()];
            if *start == UNPLACED {
                *start = index_u32(self.names.len());
                self.names.extend_from_slice(name);
            }
            let start = *start;
            subdirectories += u32::from(arena.is_directory(dentry.node));
            let node = self.number(dentry.node);
            let name_length = u8::try_from(name.len()).expect("limits::NAME_BYTES is 255");
            self.dentries.push(DentryRecord { name: U32::new(start), node: U32::new(node), name_length });
        }
        (first, index_u32(children.len()), subdirectories)
    }

    /// The fields that say where a file's bytes are.
    fn place(&mut self, content: &Content) -> (u16, u64) {
        match content {
            Content::Whole { layer, layer_offset } => (*layer, *layer_offset),
            Content::Runs { layer, runs } => {
                let first = index_u32(self.extents.len());
                self.extents.extend(runs.iter().map(|run| ExtentRecord {
                    file_offset: U64::new(run.file_offset),
                    length: U64::new(run.length),
                    layer_offset: U64::new(run.layer_offset),
                    layer: U32::new(u32::from(*layer)),
                }));
                (IN_RUNS, pack_pair(first, index_u32(runs.len())))
            }
        }
    }

    /// The number of a set of attributes plus one, 0 for the empty one.
    fn set(&mut self, arena: &Arena, set: XattrSet) -> u32 {
        if set == XattrSet(0) {
            return 0;
        }
        *self.set_numbers.entry(set.0).or_insert_with(|| {
            let bytes = arena.xattr_set(set);
            let (start, length) = (index_u32(self.xattrs.len()), index_u32(bytes.len()));
            self.xattrs.extend_from_slice(bytes);
            self.sets.push(SetRecord { start: U32::new(start), length: U32::new(length) });
            index_u32(self.sets.len())
        })
    }

    fn finish(self) -> Vec<u8> {
        // The largest part of what numbering needed is not needed while the sections are joined.
        drop((self.order, self.numbers, self.name_starts));
        let sections = [
            self.nodes.as_bytes(),
            self.dentries.as_bytes(),
            &self.names,
            &self.targets,
            self.sets.as_bytes(),
            &self.xattrs,
            self.extents.as_bytes(),
            self.digests.as_bytes(),
        ];
        let header = Header {
            magic: MAGIC,
            digest: [0; 32],
            version: U32::new(VERSION),
            sections: U32::new(index_u32(sections.len())),
            lengths: sections.map(|section| U64::new(section.len() as u64)),
        };
        let total = sections.iter().map(|section| section.len()).sum::<usize>() + size_of::<Header>();
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(header.as_bytes());
        for section in sections {
            bytes.extend_from_slice(section);
        }
        let digest = blake3::hash(&bytes[DIGESTED..]);
        bytes[DIGESTED - 32..DIGESTED].copy_from_slice(digest.as_bytes());
        bytes
    }
}
