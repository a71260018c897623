//! What every kind of object is made with: appear whole, be hashed as a stream, be touched, be removed.
//!
//! An object is written under a name in `tmp/` and renamed, so a reader finds all of it or none, wherever this process
//! is killed. Nothing is flushed to the disk (fsync): after a power cut a file may be empty or full of zeros, and that is
//! found by the check each reader makes, which has to be made anyway because disks rot (see the table in `store`).

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Deref;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};

use super::layout::{self, Layout};
use super::{Context as _, Error};
use crate::oci::{Algorithm, Digest, Hasher};

/// How much is read at a time where a file is hashed.
const READ: usize = 1 << 20;

/// How stale a time of last use may be: eviction works in days, and a write of metadata per use would cost more than it
/// is worth.
pub(super) const TOUCH: Duration = Duration::from_secs(3600);

/// Puts `bytes` at `path`, whole or not at all, replacing what is there.
pub(super) fn put(layout: &Layout, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = layout.temporary();
    let written = create(&temporary).and_then(|mut file| file.write_all(bytes));
    let placed =
        written.context("write", &temporary).and_then(|()| fs::rename(&temporary, path).context("create", path));
    if placed.is_err() {
        discard_temporary(&temporary);
    }
    placed
}

/// Creates an empty file for reading and writing that only the owner may open.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Removes a file in `tmp/`. If that fails the next start removes it, and nobody ever reads it.
pub(super) fn discard_temporary(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = ?path, %error, "temporary file left behind");
    }
}

/// Opens `path` for reading; `None` if there is no such file.
pub(super) fn open(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("open", path),
    }
}

/// Removes `path`; false if it was not there.
pub(super) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("remove", path),
    }
}

/// Reads all of `file`, or `None` if it is longer than `limit`.
pub(super) fn read_whole(file: &File, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let length = file.metadata()?.len();
    if length > limit {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let read = read_at_most(file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Fills `buffer` from `offset`, stopping early only at the end of the file; returns how much was read.
pub(super) fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The digest and length of the whole of `file`, read in order.
pub(super) fn hash(file: &File, algorithm: Algorithm) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new(algorithm);
    // Most files are short, and each fresh page of the buffer costs as much as hashing it.
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(READ);
    let mut buffer = vec![0; length.clamp(1, READ)];
    let mut offset = 0;
    loop {
        let count = read_at_most(file, &mut buffer, offset)?;
        if count == 0 {
            return Ok((hasher.finish(), offset));
        }
        hasher.update(&buffer[..count]);
        offset += count as u64;
    }
}

/// Notes that `file` is in use now, for eviction, unless that was noted within the last hour.
///
/// The access time is set explicitly because cache file systems are commonly mounted `noatime`. Failure is harmless: the
/// object looks older than it is.
pub(super) fn touch(file: &File) {
    let now = SystemTime::now();
    let touched = file.metadata().and_then(|metadata| {
        let fresh = now.duration_since(layout::used(&metadata)).is_ok_and(|age| age < TOUCH);
        if fresh { Ok(()) } else { file.set_times(FileTimes::new().set_accessed(now)) }
    });
    if let Err(error) = touched {
        tracing::debug!(%error, "time of last use not noted");
    }
}

/// A file in memory that the kernel pages in on demand. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mapped {
    bytes: Bytes,
    map: Option<Arc<Mmap>>,
}

/// The map as the owner of a [`Bytes`].
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapped {
    /// The whole of `file`.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::from(Bytes::new()));
        }
        // SAFETY: the bytes behind a map must not change or shrink. Objects are never written in place: a new version is
        // another file renamed over the name, and the map keeps the old one. The directory has mode 0700 and one process
        // owns it, so nobody else writes either.
        let map = Arc::new(unsafe { Mmap::map(file) }?);
        Ok(Self { bytes: Bytes::from_owner(Owner(Arc::clone(&map))), map: Some(map) })
    }

    /// The contents.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Gives the memory back to the kernel, which reads the pages again when they are used.
    ///
    /// For contents that were read as a whole to be checked and are then used here and there.
    pub fn release_pages(&self) {
        let Some(map) = &self.map else { return };
        // SAFETY: the map is of a file, private and never written to, so dropped pages come back with the same bytes.
        if let Err(error) = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) } {
            tracing::debug!(%error, "mapped pages stay in memory");
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Bytes> for Mapped {
    /// Contents that are not mapped after all.
    fn from(bytes: Bytes) -> Self {
        Self { bytes, map: None }
    }
}
