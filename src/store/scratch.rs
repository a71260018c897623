//! Files without a name, for what is decoded as a whole and is too large for memory.
//!
//! They go with who holds them, at the latest with the process. No walk of the cache finds them, so what they take is
//! counted here: it is part of what the cache holds.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memmap2::Mmap;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Store, Usage};

/// Where such files are made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Scratch {
    dir: PathBuf,
    held: Arc<Held>,
}

/// What all of them take.
#[derive(Debug, Default)]
struct Held {
    count: AtomicU64,
    bytes: AtomicU64,
}

/// A file without a name.
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    room: Room,
}

/// Its part of what is held.
#[derive(Debug)]
struct Room {
    held: Arc<Held>,
    bytes: u64,
}

/// The content of such a file.
struct Content {
    map: Mmap,
    _room: Room,
}

impl Store {
    /// Where files without a name are made, on the cache's file system.
    pub fn scratch(&self) -> Scratch {
        self.shared.scratch.clone()
    }
}

impl Scratch {
    /// They will be made in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, held: Arc::default() }
    }

    /// What all of them take.
    pub fn usage(&self) -> Usage {
        Usage { count: self.held.count.load(Ordering::Relaxed), bytes: self.held.bytes.load(Ordering::Relaxed) }
    }

    /// A new file, with room for `size` bytes if the file system can tell.
    pub fn file(&self, size: u64) -> io::Result<ScratchFile> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&self.dir, flags, Mode::RUSR | Mode::WUSR)?);
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(error.into()),
            Err(error) => tracing::debug!(%error, "room is found out by writing"),
            Ok(()) => {}
        }
        self.held.count.fetch_add(1, Ordering::Relaxed);
        self.held.bytes.fetch_add(size, Ordering::Relaxed);
        Ok(ScratchFile { file, room: Room { held: Arc::clone(&self.held), bytes: size } })
    }
}

impl ScratchFile {
    /// The content, in pages that the kernel keeps as long as it has room for them.
    pub fn into_bytes(self) -> io::Result<Bytes> {
        // SAFETY: the file has no name and only this value has it open, which goes, so nobody can change or shorten it
        // while it is mapped.
        let map = unsafe { Mmap::map(&self.file)? };
        Ok(Bytes::from_owner(Content { map, _room: self.room }))
    }
}

impl io::Write for &ScratchFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.held.count.fetch_sub(1, Ordering::Relaxed);
        self.held.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
