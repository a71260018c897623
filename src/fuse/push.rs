//! Gives the kernel the contents of small files before it asks for them (FUSE_NOTIFY_STORE).
//!
//! A store waits for a page that the kernel holds until a read of it is answered. So one store is made at a time, and the
//! threads that answer requests are free to answer that read; and none of those makes one before it has answered a read, or
//! while bytes beside it may be missing. Everything else is done by a thread of its own.
//!
//! Such a store waits as long as the read takes, which is a few milliseconds, and no signal ends it. A daemon that is told to
//! end lets the last one be done first ([`Pusher::hush`]). One that is killed (SIGKILL) in just these milliseconds cannot end:
//! the thread keeps the descriptors of the process, so the kernel does not end the connection, and nobody answers the read.
//! Root frees it with `echo 1 > /sys/fs/fuse/connections/N/abort`, where N is the minor number of the mount's device. It
//! cannot be excluded from here: the kernel takes a page before it queues the read of it, so what requests there are does not
//! say which pages are taken, and there is no store that does not wait. A thread with descriptors of its own
//! (`unshare(CLONE_FILES)`) would free the reads that were handed out, but not those in the queue.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use fuser::{INodeNo, Notifier};
use tokio::runtime::Handle;

use crate::fs::{FileSystem, Gift, Ino};

/// Gifts that wait; more are left out, since the thread is behind then anyway.
const WAITING: usize = 2;

/// The way to the thread, which ends when this is gone.
#[derive(Debug)]
pub(super) struct Pusher {
    gifts: SyncSender<Gift>,
    giver: Giver,
}

/// Puts files into the kernel's pages.
#[derive(Debug, Clone)]
struct Giver {
    fs: Arc<FileSystem>,
    notifier: Notifier,
    /// Held while a file is put into the kernel's pages; true once nothing more is.
    gate: Arc<Mutex<bool>>,
}

impl Pusher {
    /// Starts the thread.
    pub(super) fn start(fs: Arc<FileSystem>, runtime: Handle, notifier: Notifier) -> std::io::Result<Self> {
        let (gifts, receiver) = sync_channel(WAITING);
        let giver = Giver { fs, notifier, gate: Arc::default() };
        let inner = giver.clone();
        let thread = std::thread::Builder::new().name("fuse-push".to_owned());
        thread.spawn(move || push(&inner, &runtime, &receiver))?;
        Ok(Self { gifts, giver })
    }

    /// Returns when nothing more is given of a file system that was stopped before.
    pub(super) fn finish(&self) {
        drop(self.giver.gate());
    }

    /// Ends all giving. Returns when nothing is being given, which may take as long as a read does.
    pub(super) fn hush(&self) {
        *self.giver.gate() = true;
    }

    /// Tells that the first bytes of a file, up to `end`, were handed to the kernel.
    pub(super) fn note(&self, ino: Ino, end: u64) {
        // The thread is woken only if there is something to do: waking it costs as much as a request.
        for gift in self.giver.fs.begun(ino, end) {
            if self.gifts.try_send(gift).is_err() {
                tracing::trace!(ino = ino.0, ?gift, "too busy to hand it out");
            }
        }
    }

    /// Gives the kernel a file that somebody has opened to read it, while he waits for something else. Must be called in the
    /// fetcher's runtime or in its context.
    pub(super) fn opened(&self, ino: Ino) {
        if let Some(bytes) = self.giver.fs.opened(ino) {
            self.giver.give_now(ino, 0, &bytes);
        }
    }
}

impl Giver {
    fn gate(&self) -> MutexGuard<'_, bool> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives unless another thread is at it: what the kernel is not given it will ask for.
    fn give_now(&self, ino: Ino, offset: u64, bytes: &[u8]) {
        match self.gate.try_lock() {
            Ok(gate) => self.give(ino, offset, bytes, &gate),
            Err(TryLockError::Poisoned(gate)) => self.give(ino, offset, bytes, &gate.into_inner()),
            Err(TryLockError::WouldBlock) => tracing::trace!(ino = ino.0, "another file is being given"),
        }
    }

    fn give(&self, ino: Ino, offset: u64, bytes: &[u8], is_over: &MutexGuard<'_, bool>) {
        if **is_over || self.fs.is_stopped() {
            return;
        }
        if let Err(error) = self.notifier.store(INodeNo(ino.0), offset, bytes) {
            tracing::trace!(ino = ino.0, %error, "the kernel does not take it");
        }
    }
}

fn push(giver: &Giver, runtime: &Handle, gifts: &Receiver<Gift>) {
    let _runtime = runtime.enter();
    while let Ok(gift) = gifts.recv() {
        giver.fs.hand_out(gift, |ino, offset, bytes| giver.give(ino, offset, bytes, &giver.gate()));
    }
}
