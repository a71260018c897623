//! Small files that the kernel can be given before it asks.
//!
//! A reader of a directory's files (`tar`, `cp -a`, `grep -r`, an import) makes one request for each, and for small files the
//! request costs more than the bytes: two changes of threads, and on a virtual machine two wake-ups of a processor. But
//! bytes may be put into the kernel's cache of pages unasked, for files whose names it knows. So when files of a directory
//! are read in the order in which they are listed, those that follow are handed out here, as far as their bytes can be had
//! without waiting, in batches that grow while the reader goes on. And who asks whether the file it has just opened is a
//! terminal, as the libraries of most languages do, is about to read it from its start.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::read::{Serving, parts, read_copy};
use super::{FileSystem, Ino};
use crate::tree::{Node, NodeId, NodeKind, Tree};

/// Longest file that is handed out: of longer ones the request is a small part of the cost.
const SMALL: u64 = 128 << 10;

/// Longest file that is handed out to who has opened it: two requests of the kernel's read-ahead.
const OPENED: u64 = 256 << 10;

/// Readers that are followed at once: one, and the directories that it will come back to.
const RUNS: usize = 8;

/// How many numbers further the next file of a run may be: there are directories and links between files.
const NEAR: u32 = 16;

/// Files in the smallest batch that is handed out, and in the largest.
const SMALLEST: u32 = 4;
const LARGEST: u32 = 64;

/// Files in a row after which a reader is taken to go on in the next directory.
const WALK: u32 = 8;

/// What a file out of order costs of them.
const ASTRAY: u32 = 4;

/// The kernel was told the names in this directory.
const LISTED: u8 = 1;

/// The kernel asked for bytes of this file, or was given them.
const GIVEN: u8 = 2;

/// What the kernel was told, and in what order it asks.
#[derive(Debug)]
pub(super) struct Push {
    /// Flags of each node. Only hints, so no order is needed.
    nodes: Box<[AtomicU8]>,
    /// Protects the runs; held for a few comparisons.
    runs: Mutex<Runs>,
}

#[derive(Debug, Default)]
struct Runs {
    /// The one that moved last stands first; the one that stood still longest is given up.
    list: [Run; RUNS],
    /// Files that were read in order, less those that were not.
    in_order: u32,
}

/// What the kernel can be given because it has the first bytes of a file.
#[derive(Debug, Clone, Copy)]
pub enum Gift {
    /// The parts of this file that are expected to be read, from an offset on.
    Rest(Ino, u64),
    /// The files that come next.
    Next(Batch),
}

/// Files that are to be handed out.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// The file that was read.
    behind: NodeId,
    /// Where its directory ends, or what is looked at of it.
    end: u32,
    /// How many.
    files: u32,
}

/// Files of one directory that are read in order.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// The number of the last one that was read or handed out.
    last: u32,
    /// How many to hand out next.
    batch: u32,
}

impl Push {
    pub(super) fn new(tree: &Tree) -> Self {
        Self { nodes: (0..tree.node_count()).map(|_| AtomicU8::new(0)).collect(), runs: Mutex::default() }
    }

    fn set(&self, node: NodeId, flag: u8) -> bool {
        let flags = self.nodes.get(node.get() as usize);
        flags.is_some_and(|flags| flags.fetch_or(flag, Ordering::Relaxed) & flag == 0)
    }

    fn has(&self, node: NodeId, flag: u8) -> bool {
        let flags = self.nodes.get(node.get() as usize);
        flags.is_some_and(|flags| flags.load(Ordering::Relaxed) & flag != 0)
    }

    /// Takes note that `node` is read, which may be the first file of its directory; how many files to hand out behind it.
    fn step(&self, node: u32, is_first: bool) -> u32 {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let follows = |run: &Run| run.batch > 0 && node > run.last && node - run.last <= NEAR;
        let (place, batch) = match runs.list.iter().position(follows) {
            Some(place) => {
                runs.in_order = (runs.in_order + 1).min(LARGEST);
                (place, (runs.list[place].batch * 2).min(LARGEST))
            }
            None if is_first => (RUNS - 1, if runs.in_order >= WALK { 2 * SMALLEST } else { 1 }),
            None => {
                runs.in_order = runs.in_order.saturating_sub(ASTRAY);
                (RUNS - 1, 1)
            }
        };
        runs.list[..=place].rotate_right(1);
        runs.list[0] = Run { last: node, batch };
        if batch >= SMALLEST { batch } else { 0 }
    }

    /// Takes note that files up to `last` were handed out behind `node`.
    fn moved(&self, node: u32, last: u32) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = runs.list.iter_mut().find(|run| run.last == node) {
            run.last = last;
        }
    }
}

impl FileSystem {
    /// Takes note that the kernel was told what a directory holds.
    pub fn listed(&self, directory: Ino) {
        if let Ok(id) = self.node_id(directory) {
            self.push.set(id, LISTED);
        }
    }

    /// Takes note that the kernel has the first bytes of a file, up to `end`; what it can be given because of that. Cheap: it
    /// is asked at every first read.
    pub fn begun(&self, ino: Ino, end: u64) -> impl Iterator<Item = Gift> {
        let next = self.comes_next(ino).map(Gift::Next);
        let rest = self.is_expected(ino).then_some(Gift::Rest(ino, end));
        rest.into_iter().chain(next)
    }

    /// Hands `give` what the kernel can be given, each with its offset in its file.
    ///
    /// Blocks some milliseconds, for decoding. Must be called in the context of the fetcher's runtime, on a thread that is
    /// not one of its own.
    pub fn hand_out(&self, gift: Gift, mut give: impl FnMut(Ino, u64, &Bytes)) {
        match gift {
            Gift::Rest(ino, from) => self.hand_out_expected(ino, from, |offset, bytes| give(ino, offset, bytes)),
            Gift::Next(batch) => self.hand_out_next(batch, |ino, bytes| give(ino, 0, bytes)),
        }
    }

    /// Takes note that the kernel has the first bytes of a file; which small files will be read next, if that is known.
    fn comes_next(&self, ino: Ino) -> Option<Batch> {
        let id = self.node_id(ino).ok()?;
        self.push.set(id, GIVEN);
        let siblings = self.directories.siblings(&self.tree, id);
        let files = self.push.step(id.get(), self.is_first(id, siblings.start));
        let is_listed = || self.directories.of(&self.tree, id).is_some_and(|parent| self.push.has(parent, LISTED));
        let end = siblings.end.min(id.get() + 4 * LARGEST);
        (files > 0 && is_listed()).then_some(Batch { behind: id, end, files })
    }

    /// Hands `give` the files of a batch, whole.
    fn hand_out_next(&self, batch: Batch, mut give: impl FnMut(Ino, &Bytes)) {
        let id = batch.behind;
        let (mut given, mut last) = (0, id.get());
        for number in id.get() + 1..batch.end {
            let Some(next) = self.tree.id(number) else { break };
            let node = self.tree.node(next);
            if node.kind() != NodeKind::Regular || node.size() == 0 || node.size() > SMALL {
                continue;
            }
            if !self.push.has(next, GIVEN) {
                let Some(bytes) = self.whole(next, &node) else { break };
                self.push.set(next, GIVEN);
                self.note(next, &node, 0..node.size());
                give(Ino::from(next), &bytes);
            }
            last = number;
            given += 1;
            if given == batch.files {
                break;
            }
        }
        self.push.moved(id.get(), last);
    }

    /// A file that somebody has opened to read it, whole; none if it is long, the kernel has it, or it cannot be had
    /// without waiting. Must be called in the fetcher's runtime or in its context.
    pub fn opened(&self, ino: Ino) -> Option<Bytes> {
        let id = self.node_id(ino).ok()?;
        let node = self.tree.node(id);
        if node.kind() != NodeKind::Regular || node.size() == 0 || node.size() > OPENED || self.push.has(id, GIVEN) {
            return None;
        }
        let bytes = self.whole(id, &node)?;
        self.push.set(id, GIVEN);
        self.note(id, &node, 0..node.size());
        Some(bytes)
    }

    /// True if no file with bytes has a number from `start` on and before that of `id`. Says no if there are many to look at.
    fn is_first(&self, id: NodeId, start: u32) -> bool {
        let has_bytes = |id: NodeId| {
            let node = self.tree.node(id);
            node.kind() == NodeKind::Regular && node.size() > 0
        };
        let mut before = (start..id.get()).filter_map(|number| self.tree.id(number));
        id.get() - start <= 4 * NEAR && !before.any(has_bytes)
    }

    /// A whole file, if that can be had without waiting.
    fn whole(&self, id: NodeId, node: &Node<'_>) -> Option<Bytes> {
        self.now(id, node, 0..node.size())
    }

    /// A part of a file, if that can be had without waiting.
    pub(super) fn now(&self, id: NodeId, node: &Node<'_>, range: Range<u64>) -> Option<Bytes> {
        match self.serving(id, node) {
            Serving::Copy(file) => read_copy(&file, range.start, range.end),
            Serving::Check(_) => None,
            Serving::Layer => {
                let bytes = self.at_once(&parts(node.extents_in(range.clone()), range.start, range.end))?;
                self.publisher.offer(id, node);
                Some(bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{content, file, scene};
    use super::*;

    fn node(fs: &FileSystem, path: &str) -> Ino {
        fs.tree().resolve(path.as_bytes(), false).expect("it is there").into()
    }

    fn given(fs: &FileSystem, ino: Ino) -> Vec<u64> {
        let mut given = Vec::new();
        if let Some(batch) = fs.comes_next(ino) {
            fs.hand_out_next(batch, |ino, bytes| {
                let size = fs.getattr(ino).expect("it is there").size;
                assert_eq!(bytes.len() as u64, size);
                given.push(ino.0);
            });
        }
        given
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_that_are_read_as_they_are_listed_are_handed_out_in_growing_batches() {
        let names: Vec<_> = (0..60).map(|n| format!("d/{n:02}")).collect();
        let files: Vec<_> = names.iter().map(|name| (file(name, 9), content(9))).collect();
        let scene = scene(&files);
        let fs = &scene.fs;
        let inos: Vec<_> = names.iter().map(|name| node(fs, name)).collect();
        for ino in &inos[..2] {
            assert!(given(fs, *ino).is_empty());
        }
        assert!(given(fs, inos[2]).is_empty(), "the kernel does not know the names");
        fs.listed(node(fs, "d"));
        // What is not here is not waited for; a reader brings it, and the others with it.
        let read = fs.read(inos[3], 0, 100).expect("a file");
        if let super::super::Read::Later(pending) = read {
            pending.await.expect("it is fetched");
        }
        let first = given(fs, inos[3]);
        assert_eq!(first, inos[4..12].iter().map(|ino| ino.0).collect::<Vec<_>>());
        assert_eq!(given(fs, inos[12]).len(), 16);
        assert!(given(fs, inos[4]).is_empty(), "nothing is handed out twice, and this is no run");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_of_directory_after_directory_is_given_the_next_one_from_its_first_file_on() {
        let names: Vec<_> = (0..5).flat_map(|d| (0..12).map(move |n| format!("{d}/{n:02}"))).collect();
        let files: Vec<_> = names.iter().map(|name| (file(name, 9), content(9))).collect();
        let scene = scene(&files);
        let fs = &scene.fs;
        if let super::super::Read::Later(pending) = fs.read(node(fs, "0/00"), 0, 9).expect("a file") {
            pending.await.expect("it is fetched");
        }
        let asked = |directory: u32| {
            fs.listed(node(fs, &directory.to_string()));
            let (mut asked, mut has) = (0, Vec::new());
            for number in 0..12 {
                let ino = node(fs, &format!("{directory}/{number:02}"));
                if !has.contains(&ino.0) {
                    asked += 1;
                    has.extend(given(fs, ino));
                }
            }
            asked
        };
        let directories: Vec<_> = (0..5).map(asked).collect();
        assert_eq!(directories[0], 4, "three until it is seen, then four and the rest");
        assert_eq!(directories[3..], [1, 1], "{directories:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_opened_file_is_handed_out_once_if_it_is_short_and_its_bytes_are_here() {
        let long = OPENED as usize + 1;
        let scene = scene(&[(file("short", 9), content(9)), (file("long", long), content(long))]);
        let fs = &scene.fs;
        let short = node(fs, "short");
        assert_eq!(fs.opened(short), None, "it is not here");
        if let super::super::Read::Later(pending) = fs.read(short, 0, 9).expect("a file") {
            pending.await.expect("it is fetched");
        }
        assert_eq!(fs.opened(short).as_deref(), Some(content(9).as_slice()));
        assert_eq!(fs.opened(short), None, "the kernel has it");
        let later = fs.read(node(fs, "long"), 0, 9).expect("a file");
        if let super::super::Read::Later(pending) = later {
            pending.await.expect("it is fetched");
        }
        assert_eq!(fs.opened(node(fs, "long")), None, "it is long");
        assert_eq!(fs.opened(Ino(1)), None, "a directory");
    }
}
