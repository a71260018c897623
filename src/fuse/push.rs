//! Gives the kernel the contents of small files before it asks for them (FUSE_NOTIFY_STORE).
//!
//! A thread of its own does it: the kernel may hold a page that it waits for, and the threads that answer requests must
//! be free to answer for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier};
use tokio::runtime::Handle;

use crate::fs::{FileSystem, Ino};

/// Reads that wait to be looked at; more are left out, since it is behind then anyway.
const WAITING: usize = 2;

/// The way to the thread, which ends when this is gone.
#[derive(Debug)]
pub(super) struct Pusher(SyncSender<Ino>);

impl Pusher {
    /// Starts the thread.
    pub(super) fn start(fs: Arc<FileSystem>, runtime: Handle, notifier: Notifier) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("fuse-push".to_owned());
        thread.spawn(move || push(&fs, &runtime, &notifier, &receiver))?;
        Ok(Self(sender))
    }

    /// Tells that the first bytes of a file were handed to the kernel.
    pub(super) fn note(&self, ino: Ino) {
        if self.0.try_send(ino).is_err() {
            tracing::trace!(ino = ino.0, "too busy to look what comes next");
        }
    }
}

fn push(fs: &FileSystem, runtime: &Handle, notifier: &Notifier, reads: &Receiver<Ino>) {
    let _runtime = runtime.enter();
    while let Ok(ino) = reads.recv() {
        fs.read_next(ino, |next, bytes| {
            if let Err(error) = notifier.store(INodeNo(next.0), 0, bytes) {
                tracing::trace!(ino = next.0, %error, "the kernel does not take it");
            }
        });
    }
}
