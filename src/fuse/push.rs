//! Gives the kernel the contents of small files before it asks for them (FUSE_NOTIFY_STORE).
//!
//! A thread of its own does it: the kernel may hold a page that it waits for, and the threads that answer requests must
//! be free to answer for it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::{INodeNo, Notifier};
use tokio::runtime::Handle;

use crate::fs::{FileSystem, Ino};

/// Reads that wait to be looked at; more are left out, since it is behind then anyway.
const WAITING: usize = 2;

/// The way to the thread, which ends when this is gone.
#[derive(Debug)]
pub(super) struct Pusher {
    reads: SyncSender<Ino>,
    /// Held while a file is put into the kernel's pages.
    gate: Arc<Mutex<()>>,
}

impl Pusher {
    /// Starts the thread.
    pub(super) fn start(fs: Arc<FileSystem>, runtime: Handle, notifier: Notifier) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("fuse-push".to_owned());
        let gate = Arc::new(Mutex::new(()));
        let inner = Arc::clone(&gate);
        thread.spawn(move || push(&fs, &runtime, &notifier, &receiver, &inner))?;
        Ok(Self { reads: sender, gate })
    }

    /// Returns when nothing more is given of a file system that was stopped before.
    pub(super) fn finish(&self) {
        drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells that the first bytes of a file were handed to the kernel.
    pub(super) fn note(&self, ino: Ino) {
        if self.reads.try_send(ino).is_err() {
            tracing::trace!(ino = ino.0, "too busy to look what comes next");
        }
    }
}

fn push(fs: &FileSystem, runtime: &Handle, notifier: &Notifier, reads: &Receiver<Ino>, gate: &Mutex<()>) {
    let _runtime = runtime.enter();
    while let Ok(ino) = reads.recv() {
        fs.read_next(ino, |next, bytes| {
            let _open = gate.lock().unwrap_or_else(PoisonError::into_inner);
            if fs.is_stopped() {
                return;
            }
            if let Err(error) = notifier.store(INodeNo(next.0), 0, bytes) {
                tracing::trace!(ino = next.0, %error, "the kernel does not take it");
            }
        });
    }
}
