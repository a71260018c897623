//! Decoded files on their way into the file store.
//!
//! A file that was read is likely to be read again, by this container or by another image that holds the same file. Its
//! first read from a layer queues it; once readers are quiet it is decoded as a whole, its digest is checked, and it is
//! published: what the kernel asks for from then on is served from that copy, and so is its next open. All of this is
//! optional work: a file whose bytes are not all local, or for which the cache has no room, waits for another read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError};

use super::Chain;
use super::copies::{Copies, Known};
use super::read::{is_local, parts};
use crate::fetch::{self, Fetcher, Layer};
use crate::store;
use crate::tree::{Node, NodeId, Tree};

/// How long readers must have been quiet before a file is decoded for the store: a program that starts computes between
/// its reads.
const QUIET: Duration = Duration::from_secs(5);

/// How long they must have been quiet before the next span of it is decoded.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a file waits for that at most: on a machine where somebody always reads, copies spare the more.
const LONGEST: Duration = Duration::from_secs(30);

/// The same for a span.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How long nothing is decoded for a store that has just failed: a full disk is not tried at every read.
const REST: Duration = Duration::from_secs(60);

/// The queues of one mount. A node is in them at most once ([`Copies::claim`]), which bounds them: eight bytes for each
/// file. The worker ends with the mount, whatever is left in them: a mount that is gone must not keep its layers in use.
#[derive(Debug)]
pub(super) struct Publisher {
    copies: Arc<Copies>,
    publish: mpsc::UnboundedSender<NodeId>,
    verify: mpsc::UnboundedSender<NodeId>,
    worker: AbortHandle,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// Why a file is not published; it is only ever logged.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    #[error("the daemon is stopping")]
    Stopping(#[from] JoinError),
}

struct Worker {
    fetcher: Fetcher,
    copies: Arc<Copies>,
    tree: Tree,
    layers: Vec<Arc<Layer>>,
}

impl Publisher {
    pub(super) fn start(fetcher: Fetcher, copies: Arc<Copies>, tree: Tree, layers: Vec<Arc<Layer>>) -> Self {
        let (publish, to_publish) = mpsc::unbounded_channel();
        let (verify, to_verify) = mpsc::unbounded_channel();
        let worker = Worker { fetcher, copies: Arc::clone(&copies), tree, layers };
        let worker = tokio::spawn(worker.run(to_publish, to_verify)).abort_handle();
        Self { copies, publish, verify, worker }
    }

    /// Has a file published that was read from its layer. Cheap to repeat.
    pub(super) fn offer(&self, id: NodeId, node: &Node<'_>) {
        if node.content().is_some() && self.copies.claim(id) {
            send(&self.publish, id);
        }
    }

    /// Has the copy of a file verified, so that it can serve. Cheap to repeat.
    pub(super) fn verify(&self, id: NodeId) {
        if self.copies.claim(id) {
            send(&self.verify, id);
        }
    }
}

fn send(queue: &mpsc::UnboundedSender<NodeId>, id: NodeId) {
    if queue.send(id).is_err() {
        tracing::debug!(node = id.get(), "the publisher has ended with its runtime");
    }
}

impl Worker {
    async fn run(self, to_publish: mpsc::UnboundedReceiver<NodeId>, to_verify: mpsc::UnboundedReceiver<NodeId>) {
        tokio::join!(self.publish_all(to_publish), self.verify_all(to_verify));
    }

    async fn publish_all(&self, mut queue: mpsc::UnboundedReceiver<NodeId>) {
        while let Some(id) = queue.recv().await {
            self.lull(QUIET, LONGEST).await;
            let known = match self.publish(id).await {
                Ok(known) => known,
                Err(error) => {
                    tracing::debug!(node = id.get(), error = %Chain(&error), "file is not published");
                    match error {
                        // The index is wrong about it, and will be.
                        Failure::Store(store::Error::Mismatch(_)) => Known::Never,
                        Failure::Store(_) => {
                            tokio::time::sleep(REST).await;
                            Known::Absent
                        }
                        Failure::Fetch(_) | Failure::Stopping(_) => Known::Absent,
                    }
                }
            };
            self.copies.note(id, known);
        }
    }

    /// Returns once readers have been quiet for so long, or after `longest`.
    async fn lull(&self, quiet: Duration, longest: Duration) {
        // Out of time or not, it goes on.
        drop(tokio::time::timeout(longest, self.fetcher.demand().idle_for(quiet)).await);
    }

    async fn verify_all(&self, mut queue: mpsc::UnboundedReceiver<NodeId>) {
        while let Some(id) = queue.recv().await {
            let content = self.tree.node(id).content().copied();
            if let Some(content) = content {
                // A bad one is removed, and the next read offers the file for publishing.
                drop(self.copies.check(content).await);
            }
            self.copies.note(id, Known::Nothing);
        }
    }

    /// Decodes a file into the store; the answer is what is then known of it.
    async fn publish(&self, node: NodeId) -> Result<Known, Failure> {
        let (content, size, extents) = {
            let node = self.tree.node(node);
            let Some(content) = node.content() else { return Ok(Known::Never) };
            (*content, node.size(), node.extents().collect::<Vec<_>>())
        };
        let store = self.copies.store();
        if store.is_verified(&content) {
            return Ok(Known::Nothing);
        }
        // Publishing must never fetch. A later read offers the file again.
        if !is_local(&self.layers, &parts(extents.iter().copied(), 0, size)) {
            return Ok(Known::Absent);
        }
        let store = Arc::clone(store);
        let begin = move || if store.has_room(size)? { store.new_file(&content, size).map(Some) } else { Ok(None) };
        let Some(file) = tokio::task::spawn_blocking(begin).await?? else { return Ok(Known::Absent) };
        let file = Arc::new(file);
        for extent in extents {
            let Some(layer) = self.layers.get(extent.layer as usize) else { return Ok(Known::Never) };
            let (start, end) = (extent.layer_offset, extent.layer_offset + extent.length);
            for span in layer.index.spans(start..end) {
                self.lull(PAUSE, LONGEST_PAUSE).await;
                let decoded = self.fetcher.span(layer, span).await?;
                let range = layer.index.decoded(span);
                let (from, to) = (start.max(range.start), end.min(range.end));
                let bytes = decoded.slice((from - range.start) as usize..(to - range.start) as usize);
                let target = Arc::clone(&file);
                let offset = extent.file_offset + (from - start);
                tokio::task::spawn_blocking(move || target.write(offset, &bytes)).await??;
            }
        }
        if let Some(file) = Arc::into_inner(file) {
            tokio::task::spawn_blocking(move || file.publish()).await??;
        }
        Ok(Known::Nothing)
    }
}
