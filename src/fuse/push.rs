//! Gives the kernel the contents of small files before it asks for them (FUSE_NOTIFY_STORE).
//!
//! A store waits for a page that the kernel holds until a read of it is answered. So one store is made at a time, and the
//! threads that answer requests are free to answer that read; and none of those makes one before it has answered a read, or
//! while bytes beside it may be missing. Everything else is done by a thread of its own.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use fuser::{INodeNo, Notifier};
use tokio::runtime::Handle;

use crate::fs::{Batch, FileSystem, Ino};

/// Jobs that wait; more are left out, since the thread is behind then anyway.
const WAITING: usize = 2;

/// What the thread is to give.
#[derive(Debug, Clone, Copy)]
enum Job {
    /// The files that come next.
    Next(Batch),
    /// The parts of a file that are expected to be read, from an offset on.
    Rest(Ino, u64),
}

/// The way to the thread, which ends when this is gone.
#[derive(Debug)]
pub(super) struct Pusher {
    jobs: SyncSender<Job>,
    giver: Giver,
}

/// Puts files into the kernel's pages.
#[derive(Debug, Clone)]
struct Giver {
    fs: Arc<FileSystem>,
    notifier: Notifier,
    /// Held while a file is put into the kernel's pages.
    gate: Arc<Mutex<()>>,
}

impl Pusher {
    /// Starts the thread.
    pub(super) fn start(fs: Arc<FileSystem>, runtime: Handle, notifier: Notifier) -> std::io::Result<Self> {
        let (jobs, receiver) = sync_channel(WAITING);
        let giver = Giver { fs, notifier, gate: Arc::default() };
        let inner = giver.clone();
        let thread = std::thread::Builder::new().name("fuse-push".to_owned());
        thread.spawn(move || push(&inner, &runtime, &receiver))?;
        Ok(Self { jobs, giver })
    }

    /// Returns when nothing more is given of a file system that was stopped before.
    pub(super) fn finish(&self) {
        drop(self.giver.gate());
    }

    /// Tells that the first bytes of a file, up to `end`, were handed to the kernel.
    pub(super) fn note(&self, ino: Ino, end: u64) {
        // The thread is woken only if there is something to do: waking it costs as much as a request.
        let rest = self.giver.fs.is_expected(ino).then_some(Job::Rest(ino, end));
        if let Some(job) = rest.or_else(|| self.giver.fs.comes_next(ino).map(Job::Next))
            && self.jobs.try_send(job).is_err()
        {
            tracing::trace!(ino = ino.0, "too busy to hand out what comes next");
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
    fn gate(&self) -> MutexGuard<'_, ()> {
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

    fn give(&self, ino: Ino, offset: u64, bytes: &[u8], _gate: &MutexGuard<'_, ()>) {
        if self.fs.is_stopped() {
            return;
        }
        if let Err(error) = self.notifier.store(INodeNo(ino.0), offset, bytes) {
            tracing::trace!(ino = ino.0, %error, "the kernel does not take it");
        }
    }
}

fn push(giver: &Giver, runtime: &Handle, jobs: &Receiver<Job>) {
    let _runtime = runtime.enter();
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Next(batch) => giver.fs.hand_out(batch, |next, bytes| giver.give(next, 0, bytes, &giver.gate())),
            Job::Rest(ino, from) => giver.fs.hand_out_expected(ino, from, |offset, bytes| {
                giver.give(ino, offset, bytes, &giver.gate());
            }),
        }
    }
}
