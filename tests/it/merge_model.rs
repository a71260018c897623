//! Random layer stacks merged by the crate and by a naive model give the same tree.
//!
//! The model keeps paths in a sorted map and does to them what the specification says, in the words of umoci: a path is
//! a string, removing one removes all strings below it, and what a layer added is a set of strings. It shares no idea
//! with the crate's arena but the case list. Stacks pass through the crate's tar writer and parser, so that file
//! contents are compared through their extents.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ocifs::index::{Expected, LayerIndex};
use ocifs::limits::CONTENT_DIGEST_BYTES;
use ocifs::oci::Digest;
use ocifs::tar::{Entry, Kind, Parser, Sink, Timestamp, Writer, Xattr};
use ocifs::tree::{Merger, NodeId, NodeKind, Tree};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

/// An entry of a layer, and the content if it is a file.
pub(crate) type Item = (Entry, Vec<u8>);

/// The layers of an image from the bottom.
pub(crate) type Stack = Vec<Vec<Item>>;

/// What can be seen at one path, however it was merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) what: What,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// None if no entry gave one: such a time depends on who merges.
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first path with the same inode.
    pub(crate) inode: String,
}

/// The type, with what only it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Directory,
    Regular(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// A merged tree by path; the root is the empty path.
pub(crate) type View = BTreeMap<String, Seen>;

/// The naive model: paths, the inodes they name, and what the layer at work added.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    paths: BTreeMap<String, usize>,
    inodes: Vec<Seen>,
    upper: BTreeSet<String>,
}

/// What the model did with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Applied,
    /// Applied by replacing a file in the way by a directory, where Debian's umoci fails.
    AppliedThroughFile,
    Rejected,
}

impl Model {
    pub(crate) fn new() -> Self {
        let mut model = Self::default();
        model.insert("", implied());
        model
    }

    pub(crate) fn begin_layer(&mut self) {
        self.upper.clear();
    }

    /// Applies an entry; after a rejection the model is to be thrown away.
    pub(crate) fn apply(&mut self, (entry, data): &Item) -> Verdict {
        let path = text(&entry.path);
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if entry.kind == Kind::Opaque {
            return self.hide(&path, None);
        }
        if path.is_empty() {
            return self.apply_root(entry);
        }
        let Some(parent) = self.resolve(parent) else { return Verdict::Rejected };
        if entry.kind == Kind::Whiteout {
            return self.hide(&parent, Some(name));
        }
        let path = join(&parent, name);
        let verdict = self.make_directories(&parent);
        if entry.kind != Kind::Directory || self.get(&path).is_some_and(|seen| seen.what != What::Directory) {
            self.remove(&path);
        }
        if let Kind::HardLink { target } = &entry.kind {
            let target = text(target);
            let (target_parent, target_name) = target.rsplit_once('/').unwrap_or(("", &target));
            let Some(target_parent) = self.resolve(target_parent) else { return Verdict::Rejected };
            let target = join(&target_parent, target_name);
            match self.get(&target) {
                Some(seen) if seen.what != What::Directory => self.paths.insert(path.clone(), self.paths[&target]),
                _ => return Verdict::Rejected,
            };
        } else {
            self.insert(&path, seen(entry, data));
        }
        self.note(&path);
        verdict
    }

    /// What can be seen of all paths.
    pub(crate) fn view(&self) -> View {
        let mut firsts = BTreeMap::new();
        for (path, inode) in &self.paths {
            firsts.entry(inode).or_insert(path.clone());
        }
        let seen = |inode: &usize| Seen { inode: firsts[inode].clone(), ..self.inodes[*inode].clone() };
        self.paths.iter().map(|(path, inode)| (path.clone(), seen(inode))).collect()
    }

    fn apply_root(&mut self, entry: &Entry) -> Verdict {
        if entry.kind != Kind::Directory {
            return Verdict::Rejected;
        }
        self.insert("", seen(entry, b""));
        Verdict::Applied
    }

    fn get(&self, path: &str) -> Option<&Seen> {
        self.paths.get(path).map(|&inode| &self.inodes[inode])
    }

    fn insert(&mut self, path: &str, seen: Seen) {
        self.inodes.push(seen);
        self.paths.insert(path.to_owned(), self.inodes.len() - 1);
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.paths.retain(|other, _| other != path && !other.starts_with(&below));
    }

    fn note(&mut self, path: &str) {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        self.upper.extend(ends.map(|end| path[..end].to_owned()));
    }

    /// Where `path` leads, as a path without links; names that do not exist stay as they are.
    fn resolve(&self, path: &str) -> Option<String> {
        let mut done: Vec<String> = Vec::new();
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => drop(done.pop()),
                _ => {
                    done.push(name);
                    if let Some(What::Symlink(target)) = self.get(&done.join("/")).map(|seen| &seen.what) {
                        links += 1;
                        if links > 255 {
                            return None;
                        }
                        done.pop();
                        let target = text(target);
                        if target.starts_with('/') {
                            done.clear();
                        }
                        rest.extend(target.split('/').rev().map(str::to_owned));
                    }
                }
            }
        }
        Some(done.join("/"))
    }

    fn make_directories(&mut self, path: &str) -> Verdict {
        let mut verdict = Verdict::Applied;
        let ends: Vec<usize> = path.match_indices('/').map(|(end, _)| end).chain([path.len()]).collect();
        for end in ends {
            let directory = &path[..end];
            match self.get(directory) {
                Some(seen) if seen.what == What::Directory => continue,
                Some(_) => verdict = Verdict::AppliedThroughFile,
                None => {}
            }
            self.remove(directory);
            self.insert(directory, implied());
        }
        verdict
    }

    /// Hides what lower layers have at `name` in the directory, or at all names in it.
    fn hide(&mut self, directory: &str, name: Option<&str>) -> Verdict {
        let Some(directory) = self.resolve(directory) else { return Verdict::Rejected };
        if self.get(&directory).is_none_or(|seen| seen.what != What::Directory) {
            return Verdict::Applied;
        }
        let top = name.map_or(directory.clone(), |name| join(&directory, name));
        let below = if top.is_empty() { String::new() } else { format!("{top}/") };
        let upper = &self.upper;
        self.paths.retain(|path, _| {
            let concerned = path.starts_with(&below) && *path != top || (name.is_some() && *path == top);
            !concerned || upper.contains(path)
        });
        Verdict::Applied
    }
}

fn implied() -> Seen {
    Seen { what: What::Directory, mode: 0o755, uid: 0, gid: 0, mtime: None, xattrs: Vec::new(), inode: String::new() }
}

fn seen(entry: &Entry, data: &[u8]) -> Seen {
    let what = match &entry.kind {
        Kind::Directory => What::Directory,
        Kind::Regular { .. } => What::Regular(data.to_vec()),
        Kind::Symlink { target } => What::Symlink(target.clone()),
        Kind::CharDevice { major, minor } => What::CharDevice(*major, *minor),
        Kind::BlockDevice { major, minor } => What::BlockDevice(*major, *minor),
        Kind::Fifo => What::Fifo,
        Kind::HardLink { .. } | Kind::Whiteout | Kind::Opaque => unreachable!("these make no inode"),
    };
    let xattrs = entry.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect();
    let Entry { mode, uid, gid, mtime, .. } = *entry;
    Seen { what, mode, uid, gid, mtime: Some(mtime), xattrs, inode: String::new() }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the generated names are text")
}

/// Layers as tar streams.
pub(crate) fn streams(stack: &Stack) -> Vec<Vec<u8>> {
    let write = |layer: &Vec<Item>| {
        let mut writer = Writer::new(Vec::new());
        for (entry, data) in layer {
            writer.append(entry, data.as_slice()).expect("to memory");
        }
        writer.finish().expect("to memory")
    };
    stack.iter().map(write).collect()
}

#[derive(Default)]
struct Entries(Vec<Entry>);

impl Sink for Entries {
    fn entry(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    fn data(&mut self, _bytes: &[u8]) {}
}

/// The tree that the crate makes of tar streams, or why it does not.
pub(crate) fn merge(streams: &[Vec<u8>]) -> Result<Tree, ocifs::tree::Error> {
    let mut merger = Merger::new();
    for stream in streams {
        let mut entries = Entries::default();
        let mut parser = Parser::new();
        parser.push(stream, &mut entries).expect("what the writer wrote can be read");
        parser.finish().expect("what the writer wrote is complete");
        merger.layer::<ocifs::tree::Error>(None, entries.0.into_iter().map(Ok))?;
    }
    Tree::open(merger.finish().into())
}

/// What can be seen of a tree made by the crate; the times of directories without an entry are those of [`View`]s.
pub(crate) fn view(tree: &Tree, streams: &[Vec<u8>]) -> View {
    let mut view = View::new();
    let mut firsts = BTreeMap::new();
    let mut names = BTreeMap::from([(NodeId::ROOT, 1u32)]);
    let mut pending = vec![(String::new(), NodeId::ROOT)];
    let mut all = Vec::new();
    while let Some((path, id)) = pending.pop() {
        for child in tree.children(id, 0) {
            let path = join(&path, &text(child.name));
            assert_eq!(tree.lookup(id, child.name), Some(child.node), "{path}");
            assert_eq!(tree.resolve(path.as_bytes(), false), Some(child.node), "{path}");
            *names.entry(child.node).or_default() += 1;
            pending.push((path, child.node));
        }
        all.push((path, id));
    }
    all.sort();
    for (path, id) in all {
        let node = tree.node(id);
        if node.kind() == NodeKind::Directory {
            let children = tree.children(id, 0).filter(|child| tree.node(child.node).kind() == NodeKind::Directory);
            assert_eq!(node.nlink() as usize, 2 + children.count(), "{path}");
        } else {
            assert_eq!(node.nlink(), names[&id], "{path}");
        }
        let inode = firsts.entry(id).or_insert(path.clone()).clone();
        view.insert(path, seen_node(&node, streams, inode));
    }
    assert_eq!(firsts.len() as u32, tree.node_count(), "every node has a name");
    view
}

fn seen_node(node: &ocifs::tree::Node<'_>, streams: &[Vec<u8>], inode: String) -> Seen {
    let device = || node.device().expect("devices have a number");
    let what = match node.kind() {
        NodeKind::Directory => What::Directory,
        NodeKind::Regular => {
            let mut content = vec![0; usize::try_from(node.size()).expect("the generated files are small")];
            for extent in node.extents() {
                let [from, to, length] = [extent.layer_offset, extent.file_offset, extent.length].map(|at| at as usize);
                content[to..to + length].copy_from_slice(&streams[extent.layer as usize][from..from + length]);
            }
            What::Regular(content)
        }
        NodeKind::Symlink => What::Symlink(node.target().to_vec()),
        NodeKind::CharDevice => What::CharDevice(device().0, device().1),
        NodeKind::BlockDevice => What::BlockDevice(device().0, device().1),
        NodeKind::Fifo => What::Fifo,
    };
    // Generated entries have a time after the epoch, which therefore marks implied directories.
    let mtime = Some(node.mtime()).filter(|&mtime| mtime != Timestamp::default());
    let xattrs = node.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    Seen { what, mode: node.mode(), uid: node.uid(), gid: node.gid(), mtime, xattrs, inode }
}

/// Random stacks over few names, so that entries meet.
pub(crate) fn stacks() -> impl Strategy<Value = Stack> {
    let layer = proptest::collection::vec(item(), 1..14);
    proptest::collection::vec(layer, 1..5).prop_map(with_links_that_lead_somewhere)
}

/// Points three of four hard links to something that exists by then; of random targets few would.
fn with_links_that_lead_somewhere(mut stack: Stack) -> Stack {
    let mut model = Model::new();
    for layer in &mut stack {
        model.begin_layer();
        for item in layer {
            if let Kind::HardLink { target } = &mut item.0.kind {
                let chosen = item.0.mtime.seconds as usize;
                let paths =
                    model.paths.keys().filter(|path| model.get(path).is_some_and(|seen| seen.what != What::Directory));
                let paths: Vec<_> = paths.collect();
                if !chosen.is_multiple_of(4) && !paths.is_empty() {
                    *target = paths[chosen / 4 % paths.len()].clone().into_bytes();
                }
            }
            let mut tried = model.clone();
            if tried.apply(item) != Verdict::Rejected {
                model = tried;
            }
        }
    }
    stack
}

fn path() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        5 => name().prop_map(str::to_owned),
        5 => (name(), name()).prop_map(|(one, two)| format!("{one}/{two}")),
        2 => (name(), name(), name()).prop_map(|(one, two, three)| format!("{one}/{two}/{three}")),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    let targets = ["a", "b", "c", "/a", "../b", "a/b", "/b/c", "./c", "..", "/", "c/../a", "../../c/", "b/a", "//c/."];
    let regular = Kind::Regular { size: 0, segments: Vec::new(), content: None };
    let symlink = |target: &str| Kind::Symlink { target: target.as_bytes().to_vec() };
    prop_oneof![
        5 => Just(Kind::Directory),
        7 => Just(regular),
        5 => proptest::sample::select(targets.to_vec()).prop_map(symlink),
        7 => path().prop_map(|path| Kind::HardLink { target: path.into_bytes() }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::CharDevice { major: 1, minor: 3 }),
        1 => Just(Kind::BlockDevice { major: 8, minor: 300 }),
        5 => Just(Kind::Whiteout),
        3 => Just(Kind::Opaque),
    ]
}

prop_compose! {
    fn item()(
        path in path(),
        root in proptest::bool::weighted(0.04),
        kind in kind(),
        mode in proptest::sample::select(vec![0o755u16, 0o700, 0o1777, 0o2750, 0o4711, 0o644, 0o444]),
        (uid, gid) in proptest::sample::select(vec![(0u32, 0u32), (1, 1), (1000, 100), (70_000, 3_000_000)]),
        seconds in 1i64..1_600_000_000,
        nanos in proptest::sample::select(vec![0u32, 1, 123_456_789]),
        origin in proptest::option::weighted(0.25, proptest::sample::select(vec!["1", "two"])),
        number in any::<u16>(),
        empty in proptest::bool::weighted(0.1),
    ) -> Item {
        let mut entry =
            Entry { path: path.into_bytes(), kind, mode, uid, gid, mtime: Timestamp { seconds, nanos }, xattrs: Vec::new() };
        let mut data = Vec::new();
        if root && matches!(entry.kind, Kind::Directory | Kind::Opaque) {
            entry.path.clear();
        }
        match &mut entry.kind {
            Kind::Regular { size, .. } if !empty => {
                data = format!("content {number}").into_bytes();
                *size = data.len() as u64;
            }
            Kind::Symlink { .. } => entry.mode = 0o777,
            // Directories made in a setgid directory take its group where a kernel makes them, unlike A-072.
            Kind::Directory => entry.mode &= !0o2000,
            _ => {}
        }
        if let (Some(value), Kind::Directory | Kind::Regular { .. }) = (origin, &entry.kind) {
            entry.xattrs.push(Xattr { name: b"user.origin".to_vec(), value: value.as_bytes().to_vec() });
        }
        (entry, data)
    }
}

/// Leaves out the entries with one of these verdicts, so that the rest is an image that can be merged.
pub(crate) fn without(stack: &Stack, not_allowed: &[Verdict]) -> Stack {
    let mut model = Model::new();
    let mut kept = Stack::new();
    for layer in stack {
        model.begin_layer();
        let mut items = Vec::new();
        for item in layer {
            let mut tried = model.clone();
            if !not_allowed.contains(&tried.apply(item)) {
                model = tried;
                items.push(item.clone());
            }
        }
        kept.push(items);
    }
    kept
}

/// The view of the model, unless it rejects an entry.
pub(crate) fn modelled(stack: &Stack) -> Option<View> {
    let mut model = Model::new();
    for layer in stack {
        model.begin_layer();
        if layer.iter().any(|item| model.apply(item) == Verdict::Rejected) {
            return None;
        }
    }
    Some(model.view())
}

fn compare(stack: &Stack) -> Result<(), TestCaseError> {
    let streams = streams(stack);
    let tree = merge(&streams);
    match modelled(stack) {
        Some(expected) => {
            let tree = tree.map_err(|error| TestCaseError::fail(format!("the model accepts: {error}")))?;
            prop_assert_eq!(view(&tree, &streams), expected);
        }
        None => prop_assert!(tree.is_err(), "the model rejects"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_stacks_merge_as_in_the_model(stack in stacks()) {
        compare(&without(&stack, &[Verdict::Rejected]))?;
    }

    #[test]
    fn random_stacks_are_rejected_as_in_the_model(stack in stacks()) {
        compare(&stack)?;
    }
}

#[test]
fn layer_indexes_merge_as_their_entries_do() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..40 {
        let stack = stacks().new_tree(&mut runner).expect("nothing is filtered").current();
        let streams = streams(&without(&stack, &[Verdict::Rejected]));
        let indexes: Vec<_> = streams.iter().map(|stream| index(stream)).collect();
        let encoded = ocifs::tree::merge(&indexes.iter().collect::<Vec<_>>()).expect("what is rejected was left out");
        let tree = Tree::open(encoded.into()).expect("just made");
        let expected = merge(&streams).expect("what is rejected was left out");
        let seen = view(&tree, &streams);
        assert_eq!(seen, view(&expected, &streams));
        for (path, seen) in seen {
            let node = tree.node(tree.resolve(path.as_bytes(), false).expect("it was seen"));
            let digest = match &seen.what {
                What::Regular(content) if content.len() as u64 >= CONTENT_DIGEST_BYTES => Some(Digest::sha256(content)),
                _ => None,
            };
            assert_eq!(node.content().map(|&content| Digest::Sha256(content)), digest, "{path}");
        }
    }
}

fn index(stream: &[u8]) -> LayerIndex {
    let digest = Digest::sha256(stream);
    let expected = Expected { layer: digest, size: stream.len() as u64, diff_id: digest };
    let pieces = std::iter::once(Ok::<_, std::io::Error>(Bytes::copy_from_slice(stream)));
    ocifs::index::build(pieces, expected).expect("what the writer wrote can be read")
}

#[test]
fn the_generated_stacks_exercise_the_rules() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut through_files, mut rejected, mut linked, mut hidden) = (0, 0, 0, 0);
    for _ in 0..200 {
        let stack = stacks().new_tree(&mut runner).expect("nothing is filtered").current();
        rejected += usize::from(modelled(&stack).is_none());
        let stack = without(&stack, &[Verdict::Rejected]);
        let count = |stack: &Stack| stack.iter().map(Vec::len).sum::<usize>();
        through_files += count(&stack) - count(&without(&stack, &[Verdict::AppliedThroughFile]));
        let view = modelled(&stack).expect("what is rejected was left out");
        linked += view.iter().filter(|(path, seen)| seen.inode != **path).count();
        let unhidden: Stack = stack
            .iter()
            .map(|layer| {
                let keeps = |item: &&Item| !matches!(item.0.kind, Kind::Whiteout | Kind::Opaque);
                layer.iter().filter(keeps).cloned().collect()
            })
            .collect();
        hidden += usize::from(modelled(&unhidden) != Some(view));
    }
    let counts = [through_files, rejected, linked, hidden];
    assert!(counts.iter().all(|&count| count > 30), "{counts:?}");
}
