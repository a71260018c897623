//! Decoded files on their way into the file store.
//!
//! A file that was read is likely to be read again, by this container or by another image that holds the same file. Once
//! its last handle closes and readers are quiet, it is decoded as a whole, its digest is checked, and it is published;
//! its next open is served from that copy. All of this is optional work: a job that finds no room in the queue, bytes that
//! are not local, or a full disk is dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::open::is_local;
use crate::fetch::{Fetcher, Layer};
use crate::store::Store;
use crate::tree::{NodeId, Tree};

/// Jobs that may wait. More files than this closed at once are simply not published this time.
const QUEUE: usize = 4096;

/// How long readers must have been quiet before a file is decoded for the store: a program that starts computes between
/// its reads.
const QUIET: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Job {
    /// Decode this file into the store.
    Publish(NodeId),
    /// Check this file of the store, so that its next open can use it.
    Verify([u8; 32]),
}

/// The queue of one mount. The worker ends with it, whatever is left in the queue: a mount that is gone must not keep
/// its layers in use.
#[derive(Debug)]
pub(super) struct Publisher {
    jobs: mpsc::Sender<Job>,
    worker: AbortHandle,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// The result of optional work, whose failures are only ever logged.
type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

struct Worker {
    fetcher: Fetcher,
    store: Arc<Store>,
    tree: Tree,
    layers: Vec<Arc<Layer>>,
}

impl Publisher {
    pub(super) fn start(fetcher: Fetcher, store: Arc<Store>, tree: Tree, layers: Vec<Arc<Layer>>) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let worker = Worker { fetcher, store, tree, layers };
        let worker = tokio::spawn(worker.run(queue)).abort_handle();
        Self { jobs, worker }
    }

    pub(super) fn offer(&self, node: NodeId) {
        self.send(Job::Publish(node));
    }

    pub(super) fn verify(&self, content: [u8; 32]) {
        self.send(Job::Verify(content));
    }

    fn send(&self, job: Job) {
        if let Err(error) = self.jobs.try_send(job) {
            tracing::debug!(%error, "a file is not published this time");
        }
    }
}

impl Worker {
    async fn run(self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.recv().await {
            match job {
                Job::Publish(node) => {
                    self.fetcher.demand().idle_for(QUIET).await;
                    if let Err(error) = self.publish(node).await {
                        tracing::debug!(node = node.get(), %error, "file is not published");
                    }
                }
                Job::Verify(content) => {
                    let store = Arc::clone(&self.store);
                    let checked = tokio::task::spawn_blocking(move || store.file(&content)).await;
                    if let Ok(Err(error)) = checked {
                        tracing::debug!(%error, "cached file cannot be checked");
                    }
                }
            }
        }
    }

    async fn publish(&self, node: NodeId) -> Outcome {
        let (content, size, extents) = {
            let node = self.tree.node(node);
            let Some(content) = node.content() else { return Ok(()) };
            (*content, node.size(), node.extents().collect::<Vec<_>>())
        };
        // Publishing must never fetch.
        if self.store.is_verified(&content) || !is_local(&self.layers, extents.iter().copied()) {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let file = tokio::task::spawn_blocking(move || store.new_file(&content, size)).await??;
        let file = Arc::new(file);
        for extent in extents {
            let Some(layer) = self.layers.get(extent.layer as usize) else { return Ok(()) };
            let (start, end) = (extent.layer_offset, extent.layer_offset + extent.length);
            for span in layer.index.spans(start..end) {
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
        Ok(())
    }
}
