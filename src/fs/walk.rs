//! Readers that go through the tree in order: `tar`, `cp -a`, a scanner, an import.
//!
//! They visit directories depth first and names in the order in which they are listed, so what they read next is known, in
//! whatever layers it lies. A [`Cursor`] goes that way ahead of the reader; [`Walk`] compares what is read with where the
//! cursor has been. After a few files in a row the spans of those that follow are fetched ahead, as many bytes as the line
//! holds several times over: one MiB at first, twice as many with each file, so that little is lost on who stops. A read
//! elsewhere ends the walk. A walker that only left a directory out is known again at the next file, while a program that
//! reads here and there never gains any confidence.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::FileSystem;
use super::ahead::Directories;
use crate::fetch::Layer;
use crate::index::SpanId;
use crate::tree::{NodeId, NodeKind, Tree};

/// Files in a row that make a walk.
const WALK: u32 = 6;

/// How many files ahead the next one may be while a walk is only suspected: the kernel may know one from before.
const NEAR: usize = 2;

/// Most confidence, in files.
const MOST: u32 = 64;

/// Bytes to fetch ahead when a walk is first seen.
const FIRST: u64 = 1 << 20;

/// Files looked at ahead of a reader that may be walking.
const LOOK: usize = 16;

/// Files looked at ahead of a walk at most.
const FAR: usize = 8192;

/// Spans remembered as asked for.
const SPANS: usize = 4096;

/// Goes through regular files that are not empty, depth first.
#[derive(Debug, Default)]
struct Cursor {
    /// Directories on the way, each with the position of the next child to look at.
    stack: Vec<(NodeId, u64)>,
}

/// What the readers of one mount seem to do.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Protects the state; held while the tree is looked at, never across I/O.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    confidence: u32,
    /// Where the cursor has been and the reader not, with the bytes that were asked for because of each file.
    upcoming: VecDeque<(NodeId, u64)>,
    /// Sum of those bytes.
    asked: u64,
    cursor: Cursor,
    spans: HashSet<(u32, SpanId)>,
}

impl Cursor {
    /// Stands behind `node`, whose first name is in `directory`.
    fn behind(tree: &Tree, node: NodeId, directory: NodeId) -> Self {
        let mut stack = Vec::new();
        let (mut child, mut parent) = (node, directory);
        loop {
            let place = tree.children(parent, 0).position(|entry| entry.node == child).unwrap_or(0);
            stack.push((parent, place as u64 + 1));
            if parent == NodeId::ROOT {
                break;
            }
            (child, parent) = (parent, tree.node(parent).parent());
        }
        stack.reverse();
        Self { stack }
    }

    fn next(&mut self, tree: &Tree) -> Option<NodeId> {
        loop {
            let (directory, position) = self.stack.last_mut()?;
            let Some(child) = tree.children(*directory, *position).next() else {
                self.stack.pop();
                continue;
            };
            *position += 1;
            let node = tree.node(child.node);
            match node.kind() {
                NodeKind::Directory => self.stack.push((child.node, 0)),
                NodeKind::Regular if node.size() > 0 => return Some(child.node),
                _ => {}
            }
        }
    }
}

impl State {
    /// Takes note that the reader began `node`; true if it was to be expected.
    fn step(&mut self, node: NodeId) -> bool {
        // A walker that is known may leave files out; a program that picks some in this order is none yet.
        let far = if self.confidence >= WALK { self.upcoming.len() } else { NEAR };
        let Some(place) = self.upcoming.iter().take(far).position(|(next, _)| *next == node) else { return false };
        for (_, bytes) in self.upcoming.drain(..=place) {
            self.asked -= bytes;
        }
        self.confidence = (self.confidence + 1).min(MOST);
        true
    }

    /// Bytes to fetch ahead of a walk, whatever the line holds.
    fn window(&self) -> u64 {
        FIRST << self.confidence.saturating_sub(WALK).min(16)
    }

    /// Begins anew behind `node`.
    fn restart(&mut self, tree: &Tree, directories: &Directories, node: NodeId) {
        self.confidence = (self.confidence / 2).min(WALK - 1);
        self.upcoming.clear();
        self.asked = 0;
        self.spans.clear();
        self.cursor = match directories.of(tree, node) {
            Some(directory) => Cursor::behind(tree, node, directory),
            None => Cursor::default(),
        };
    }
}

impl FileSystem {
    /// Follows a reader that begins to read `id`, and fetches ahead of it if it walks. `waits` says that it has to wait.
    pub(super) fn follow(&self, id: NodeId, waits: bool) {
        let wanted = {
            let mut state = self.walk.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.step(id) {
                if !waits {
                    return;
                }
                state.restart(&self.tree, &self.directories, id);
            }
            self.look_ahead(&mut state)
        };
        self.fetcher.bring(wanted);
    }

    /// Moves the cursor on; the spans that should be fetched.
    fn look_ahead(&self, state: &mut State) -> Vec<(Arc<Layer>, SpanId)> {
        let walks = state.confidence >= WALK;
        let bytes = if walks { state.window().min(self.fetcher.reach(&self.layers)) } else { 0 };
        let mut wanted = Vec::new();
        // A window is refilled in large pieces, so that it is asked for in long ranges.
        if walks && state.asked > bytes / 2 {
            return wanted;
        }
        while state.upcoming.len() < if walks { FAR } else { LOOK } && (!walks || state.asked < bytes) {
            let Some(next) = state.cursor.next(&self.tree) else { break };
            let mut asked = 0;
            if walks {
                for (layer, span) in self.missing_spans(next) {
                    if state.spans.len() < SPANS && state.spans.insert((layer, span)) {
                        let layer = &self.layers[layer as usize];
                        let range = layer.index.compressed(span);
                        asked += range.end - range.start;
                        wanted.push((Arc::clone(layer), span));
                    }
                }
            }
            state.upcoming.push_back((next, asked));
            state.asked += asked;
        }
        if state.spans.len() >= SPANS {
            state.spans.clear();
        }
        wanted
    }

    /// The spans of a file that are not here, with the numbers of their layers.
    fn missing_spans(&self, id: NodeId) -> Vec<(u32, SpanId)> {
        let node = self.tree.node(id);
        let mut missing = Vec::new();
        for extent in node.extents() {
            let Some(layer) = self.layers.get(extent.layer as usize).filter(|layer| !layer.blob.is_complete()) else {
                continue;
            };
            let spans = layer.index.spans(extent.layer_offset..extent.layer_offset + extent.length);
            let absent = spans.filter(|span| !layer.has(*span));
            missing.extend(absent.map(|span| (extent.layer, span)));
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{content, file, scene};
    use super::*;

    fn names(tree: &Tree, cursor: &mut Cursor) -> Vec<u32> {
        std::iter::from_fn(|| cursor.next(tree)).map(NodeId::get).collect()
    }

    #[tokio::test]
    async fn a_cursor_goes_depth_first_by_names_and_can_begin_anywhere() {
        let paths = ["a/x", "a.py", "b/y/z", "b/w", "c"];
        let files: Vec<_> = paths.iter().map(|path| (file(path, 5), content(5))).collect();
        let scene = scene(&files);
        let tree = scene.fs.tree();
        let order: Vec<_> = ["a/x", "a.py", "b/w", "b/y/z", "c"]
            .iter()
            .map(|path| tree.resolve(path.as_bytes(), false).expect("it is there"))
            .collect();
        let all: Vec<_> = order.iter().map(|node| node.get()).collect();
        assert_eq!(names(tree, &mut Cursor { stack: vec![(NodeId::ROOT, 0)] }), all);
        let directories = Directories::default();
        for (place, node) in order.iter().enumerate() {
            let directory = directories.of(tree, *node).expect("a small tree");
            assert_eq!(names(tree, &mut Cursor::behind(tree, *node, directory)), all[place + 1..], "{}", paths[place]);
        }
    }

    #[tokio::test]
    async fn a_walker_is_known_by_its_steps_and_forgotten_by_halves() {
        let files: Vec<_> = (0..40).map(|n| (file(&format!("f{n:02}"), 9), content(9))).collect();
        let scene = scene(&files);
        let nodes: Vec<_> = (0..40).map(|n| scene.fs.tree().resolve(format!("f{n:02}").as_bytes(), false)).collect();
        let follow = |n: usize| scene.fs.follow(nodes[n].expect("it is there"), true);
        let confidence = || scene.fs.walk.state.lock().expect("nobody panics with it").confidence;
        (0..=8).for_each(follow);
        assert_eq!(confidence(), 8);
        follow(12);
        assert_eq!(confidence(), 9, "a walker that is known may leave some out");
        follow(3);
        assert_eq!(confidence(), 4);
        [30, 20, 10, 35, 5].into_iter().for_each(follow);
        assert_eq!(confidence(), 0);
        let window = || scene.fs.walk.state.lock().expect("nobody panics with it").window();
        let mut before = 0;
        for n in 6..40 {
            follow(n);
            assert!(confidence() < WALK || window() > before || window() == FIRST << 16, "it grows with every file");
            before = if confidence() < WALK { 0 } else { window() };
        }
        follow(0);
        assert_eq!(confidence(), WALK - 1, "one stray read ends the longest walk");
        follow(1);
        assert_eq!((confidence(), window()), (WALK, FIRST), "and one file begins it anew, from little");
        [30, 20, 10, 35, 4].into_iter().for_each(follow);
        [6, 9, 12, 15, 18, 21, 24, 27].into_iter().for_each(follow);
        assert_eq!(confidence(), 0, "files here and there are no walk, though in order");
    }
}
