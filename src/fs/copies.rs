//! What serves a file: its decoded copy in the file store, or its layer.
//!
//! The kernel may open files without telling ([`crate::fuse`], `--io cached`), so the choice is made anew at each read
//! and must cost nothing: a file that the store does not have may not cost a system call each time. What is known of
//! each node is therefore remembered in one byte ([`Known`]), and what the store has verified it remembers itself.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::fetch::OnceMap;
use crate::store::Store;
use crate::tree::{Node, NodeId, Tree};

/// The SHA-256 of a file's content.
type Content = [u8; 32];

/// Files up to this many bytes are verified on the thread that asks for them (well under a millisecond).
const VERIFY_INLINE: u64 = 256 << 10;

/// What serves a file now.
#[derive(Debug)]
pub(super) enum Found {
    /// The copy: complete, and verified in this process.
    Copy(Arc<File>),
    /// The layer.
    Layer,
    /// There is a copy of this content that nobody has verified yet, and verifying it takes a while.
    Unverified(Content),
}

/// What is remembered of a node whose content the store has not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Known {
    /// Nobody has looked.
    Nothing = 0,
    /// The store has no copy.
    Absent = 1,
    /// The publisher makes a copy, or verifies the one there is; the layer serves meanwhile.
    Offered = 2,
    /// No copy can be made.
    Never = 3,
}

/// The copies of one mount's files.
#[derive(Debug)]
pub(super) struct Copies {
    store: Arc<Store>,
    /// A [`Known`] for each node. Only hints: a copy is never used because of them, so no order is needed.
    known: Box<[AtomicU8]>,
    /// Verifications of long copies.
    checks: OnceMap<Content, Option<Arc<File>>>,
}

impl Copies {
    pub(super) fn new(store: Arc<Store>, tree: &Tree) -> Self {
        let known = (0..tree.node_count()).map(|_| AtomicU8::new(Known::Nothing as u8)).collect();
        Self { store, known, checks: OnceMap::default() }
    }

    /// The store that holds them.
    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What serves `node` now. Reads files of at most [`VERIFY_INLINE`] bytes; makes no system call for a node that was
    /// looked for before and is not there.
    pub(super) fn find(&self, id: NodeId, node: &Node<'_>) -> Found {
        let Some(content) = node.content() else { return Found::Layer };
        let is_new = self.known(id) == Known::Nothing as u8;
        let found = if self.store.is_verified(content) || (is_new && node.size() <= VERIFY_INLINE) {
            self.open(content).map_or(Found::Layer, Found::Copy)
        } else if is_new && self.store.has_file(content) {
            return Found::Unverified(*content);
        } else {
            Found::Layer
        };
        if is_new && matches!(found, Found::Layer) {
            self.change(id, |known| (known == Known::Nothing as u8).then_some(Known::Absent));
        }
        found
    }

    /// Verifies a long copy, once for all who wait for it together; none if there is no good one.
    pub(super) fn check(&self, content: Content) -> impl Future<Output = Option<Arc<File>>> + Send + use<> {
        let store = Arc::clone(&self.store);
        let work = move || async move {
            let opened = tokio::task::spawn_blocking(move || open(&store, &content)).await;
            opened.unwrap_or_default()
        };
        let check = self.checks.join(content, work);
        async move { check.await.flatten() }
    }

    /// Takes a node for the publisher, which is to have each at most once; false if it has it or cannot do anything.
    pub(super) fn claim(&self, id: NodeId) -> bool {
        let free = [Known::Nothing as u8, Known::Absent as u8];
        self.change(id, |known| free.contains(&known).then_some(Known::Offered))
    }

    /// Remembers what is known of a node.
    pub(super) fn note(&self, id: NodeId, known: Known) {
        if let Some(byte) = self.known.get(id.get() as usize) {
            byte.store(known as u8, Ordering::Relaxed);
        }
    }

    /// Changes what is known to what `change` says, unless that is nothing; true if it changed.
    fn change(&self, id: NodeId, change: impl Fn(u8) -> Option<Known>) -> bool {
        let change = |known| change(known).map(|known| known as u8);
        let known = self.known.get(id.get() as usize);
        known.is_some_and(|known| known.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok())
    }

    fn known(&self, id: NodeId) -> u8 {
        self.known.get(id.get() as usize).map_or(Known::Never as u8, |known| known.load(Ordering::Relaxed))
    }

    fn open(&self, content: &Content) -> Option<Arc<File>> {
        open(&self.store, content)
    }
}

/// The decoded copy of a file, if there is a good one.
fn open(store: &Store, content: &Content) -> Option<Arc<File>> {
    store.file(content).unwrap_or_else(|error| {
        // The layer has the same bytes.
        tracing::debug!(%error, "cached file cannot be used");
        None
    })
}
