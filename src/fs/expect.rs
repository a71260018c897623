//! The rest of a file, for the kernel, when its first bytes are read.
//!
//! Programs and libraries are mapped, and then touched here and there: each touch is a request of its own, for which the
//! program waits. Where an earlier start of the image touched them, a profile says. Those parts are handed out together, as
//! far as they can be had without waiting, when the first is.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::read::{assemble, is_local, parts};
use super::{FileSystem, Ino};
use crate::tree::{Node, NodeId, NodeKind};

/// Most bytes of one file that are handed out with its first.
const BYTES: u64 = 8 << 20;

/// Most bytes that one request of the kernel is for.
const REQUEST: u64 = 1 << 20;

/// How long a part may take to be decoded: longer only if its bytes turn out to be lost.
const DECODING: Duration = Duration::from_secs(1);

/// The kernel takes whole pages only.
const PAGE: u64 = 4096;

/// Which parts of files are expected to be read.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Taken out file by file. Protects the table; held for a look-up.
    parts: RwLock<HashMap<NodeId, Vec<Range<u64>>>>,
}

impl FileSystem {
    /// Takes note of what an earlier start read, in place of what was noted before. What is beyond a file is cut.
    pub fn expect(&self, accesses: impl Iterator<Item = (NodeId, Range<u64>)>) {
        let mut parts: HashMap<NodeId, Vec<Range<u64>>> = HashMap::new();
        for (id, range) in accesses {
            let node = self.tree.node(id);
            let end = range.end.next_multiple_of(PAGE).min(node.size());
            let start = range.start / PAGE * PAGE;
            if node.kind() == NodeKind::Regular && start < end {
                parts.entry(id).or_default().push(start..end);
            }
        }
        // One part is what is read first, and comes by itself.
        parts.retain(|_, parts| parts.len() > 1);
        *self.expected.parts.write().unwrap_or_else(PoisonError::into_inner) = parts;
    }

    /// True if parts of the file are still to be handed out.
    pub(super) fn is_expected(&self, ino: Ino) -> bool {
        self.number(ino).is_ok_and(|id| self.expected.has(id))
    }

    /// Hands `give` the parts of a file that an earlier start read and that begin at `from` or behind it, once; each with its
    /// offset.
    pub(super) fn hand_out_expected(&self, ino: Ino, from: u64, mut give: impl FnMut(u64, &Bytes)) {
        let Ok(id) = self.node_id(ino) else { return };
        let Some(expected) = self.expected.take(id) else { return };
        let node = self.tree.node(id);
        let mut left = BYTES;
        for part in expected.into_iter().filter(|part| part.start >= from) {
            let length = part.end - part.start;
            if length > left {
                break;
            }
            // What is not here will be read when it is needed. Nor is anything given beside which something is missing: the
            // kernel may have asked for both together, and holds these pages until it has both.
            let near = part.start.saturating_sub(REQUEST)..part.end.saturating_add(REQUEST).min(node.size());
            if !is_local(&self.layers, &parts(node.extents_in(near.clone()), near.start, near.end)) {
                continue;
            }
            if let Some(bytes) = self.now(id, &node, part.clone()).or_else(|| self.decoded(&node, &part)) {
                left -= length;
                self.note(id, &node, part.clone());
                give(part.start, &bytes);
            }
        }
    }

    /// A part of a file whose spans are here, but are several, or being decoded by somebody else.
    fn decoded(&self, node: &Node<'_>, part: &Range<u64>) -> Option<Bytes> {
        let parts = parts(node.extents_in(part.clone()), part.start, part.end);
        let assembling = assemble(&self.fetcher, &self.patience, &self.layers, &parts);
        Handle::current().block_on(async { tokio::time::timeout(DECODING, assembling).await.ok()?.ok() })
    }
}

impl Expected {
    fn has(&self, id: NodeId) -> bool {
        self.parts.read().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    fn take(&self, id: NodeId) -> Option<Vec<Range<u64>>> {
        self.parts.write().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{content, file, scene};
    use super::super::{Gift, Ino, Read};
    use super::*;

    async fn read(fs: &FileSystem, ino: Ino, offset: u64) {
        if let Read::Later(pending) = fs.read(ino, offset, 1).expect("a file") {
            pending.await.expect("it is fetched");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn parts_that_were_read_before_and_are_here_come_with_the_first_read_once() {
        let length = 5 * PAGE as usize + 10;
        let scene = scene(&[(file("lib", length), content(length)), (file("other", 9), content(9))]);
        let fs = &scene.fs;
        let id = fs.tree().resolve(b"lib", false).expect("it is there");
        let other = fs.tree().resolve(b"other", false).expect("it is there");
        let far = 1 << 40;
        fs.expect(
            [(id, 0..10), (other, 0..9), (id, PAGE + 1..PAGE + 2), (id, 5 * PAGE..far), (id, far..far + 1)].into_iter(),
        );
        read(fs, id.into(), 0).await;
        assert!(fs.is_expected(id.into()) && !fs.is_expected(other.into()), "one part comes by itself");
        let gifts: Vec<_> = fs.begun(id.into(), PAGE).collect();
        assert!(matches!(gifts[..], [Gift::Rest(_, PAGE)]), "{gifts:?}");
        assert_eq!(fs.opened(id.into()), None, "the kernel has its first bytes");
        let fs = Arc::clone(fs);
        let work = move || {
            let mut given = Vec::new();
            fs.hand_out_expected(id.into(), PAGE, |offset, bytes| {
                assert_eq!(bytes[..], content(length)[offset as usize..offset as usize + bytes.len()]);
                given.push((offset, bytes.len() as u64));
            });
            for ino in [Ino::from(id), Ino::from(other), Ino(1), Ino(u64::MAX)] {
                fs.hand_out_expected(ino, 0, |_, _| panic!("nothing more is expected"));
            }
            given
        };
        let given = tokio::task::spawn_blocking(work).await.expect("it does not panic");
        assert_eq!(given, [(PAGE, PAGE), (5 * PAGE, 10)]);
    }
}
