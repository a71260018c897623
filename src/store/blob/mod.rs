//! One blob: compressed bytes that arrive in any order from many threads, and at some point are all there.
//!
//! On disk a blob is nothing, a sparse `.partial` file with a `.map` that says which of its bytes are in place
//! ([`presence`]), or one file under its digest. No name says more than is true at any instant:
//!
//! - bytes are in place before a record speaks of them;
//! - a map is removed before its `.partial` file, and made after it;
//! - when a blob becomes complete, `.partial` is renamed and then the map removed; when a complete blob is found
//!   damaged, a map of the rest is made and then the file renamed back. In between a map lies beside a complete file and
//!   means nothing. No hole is ever punched, so a file under the bare digest never has one.
//!
//! [`State`] is what is known in memory; its lock is held for look-ups and updates of the range set only. Reads and writes of
//! data and records happen without it. `transition` is held while files are created, renamed or removed, so that such
//! changes happen one at a time; no reader waits for it, and a writer only while the file it needs is being created.
//! [`transition`] has these changes; this file has what moves bytes.

mod replacement;
mod transition;

pub use replacement::Replacement;
pub(super) use transition::remove_files;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::Notify;

use super::layout::BlobFile;
use super::presence::{self, Owner, Record};
use super::ranges::RangeSet;
use super::{Context as _, Error, Shared, lock, object};
use crate::limits::BLOB_MAP_RECORDS;
use crate::oci::Digest;

/// One blob's compressed bytes, some or all of them. One value per digest and size in the process, shared.
///
/// What is present has not necessarily been verified: a complete blob was, when it became complete, but disks rot, so
/// every reader verifies what it decodes and [`discards`](Blob::discard) what is wrong.
///
/// All methods may be called from any thread and block on the local disk only.
pub struct Blob {
    shared: Arc<Shared>,
    digest: Digest,
    size: u64,
    /// What is known of the blob. Taken after `transition`, never held across I/O.
    state: Mutex<State>,
    /// Signalled when [`State::writing`] becomes empty.
    settled: Condvar,
    /// Told when bytes have come into place.
    arrival: Notify,
    /// Serialises creation, renaming and removal of the blob's files; held across those calls.
    transition: Mutex<()>,
    /// Keys of the data file and of the map in the pool of open descriptors.
    keys: [u64; 2],
    /// Why bytes were not taken when that happened last, and how often it has.
    refused: Mutex<(u64, Option<io::ErrorKind>)>,
    /// When the time of last use was last looked at, in seconds since 1970.
    touched: AtomicU64,
}

/// What is known in memory of one blob.
#[derive(Debug)]
struct State {
    held: Held,
    data: Weak<File>,
    map: Weak<File>,
    /// What writers have found missing and have not yet recorded, each as the range that it wants to write.
    writing: Vec<Range<u64>>,
    /// Counts changes of names. A descriptor, or a claim that bytes were written, is good for the generation it is from.
    generation: u64,
    /// Counts discards that took something away, so that hashing notices one that happened meanwhile.
    discards: u64,
    /// Counts writes whose bytes somebody else had written or was writing.
    overlaps: u64,
}

/// Stands for the bytes of a blob at one moment: what is there at two moments with the same mark was there all the time,
/// and every write between them put its own bytes in place. Taken by [`Blob::mark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    discards: u64,
    overlaps: u64,
}

impl State {
    fn mark(&self) -> Mark {
        Mark { discards: self.discards, overlaps: self.overlaps }
    }
}

/// What the disk has of the blob.
#[derive(Debug)]
enum Held {
    /// No file.
    Nothing,
    /// `.partial`, and `.map` unless `slots` is `None`.
    Partial {
        present: RangeSet,
        /// The next free slot of the map. `None` if the map had to be given up: then what is present is known only in
        /// memory, and forgotten at the next start.
        slots: Option<u64>,
    },
    /// The file under the bare digest.
    Complete,
}

/// A writer's right to fill `gaps` of `range`, listed in [`State::writing`] until it is dropped.
struct Claim<'a> {
    blob: &'a Blob,
    generation: u64,
    range: Range<u64>,
    gaps: Vec<Range<u64>>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.blob.state);
        if let Some(at) = state.writing.iter().position(|range| *range == self.range) {
            state.writing.swap_remove(at);
        }
        if state.writing.is_empty() {
            self.blob.settled.notify_all();
        }
    }
}

impl Blob {
    /// The blob's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// True once every byte was there and had the right digest.
    pub fn is_complete(&self) -> bool {
        matches!(lock(&self.state).held, Held::Complete)
    }

    /// Number of bytes present.
    pub fn present_bytes(&self) -> u64 {
        match &lock(&self.state).held {
            Held::Nothing => 0,
            Held::Partial { present, .. } => present.bytes(),
            Held::Complete => self.size,
        }
    }

    /// The mark of now, for [`complete_since`](Self::complete_since) and [`discard_since`](Self::discard_since).
    pub fn mark(&self) -> Mark {
        lock(&self.state).mark()
    }

    /// The parts of `range` that are not here, ascending; empty if all of it is. What is beyond the end is ignored.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return Vec::new();
        }
        lock(&self.state).held.missing(&range)
    }

    /// Returns once all of `range` is here, whoever brings it. Costs writers nothing while nobody waits.
    pub async fn arrived(&self, range: Range<u64>) {
        loop {
            let mut arrival = std::pin::pin!(self.arrival.notified());
            arrival.as_mut().enable();
            if self.missing(range.clone()).is_empty() {
                return;
            }
            arrival.await;
        }
    }

    /// Reads `range`, or `None` if not all of it is here.
    ///
    /// Allocates as many bytes as asked for: the caller bounds what it asks for. A file that turns out to be gone or
    /// shorter than it should be counts as not here.
    pub fn read(&self, range: Range<u64>) -> Result<Option<Bytes>, Error> {
        self.check(&range)?;
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other);
        let mut buffer = vec![0; length.context("read", &self.path(BlobFile::Complete))?];
        loop {
            if !lock(&self.state).held.contains(&range) {
                return Ok(None);
            }
            if range.is_empty() {
                return Ok(Some(Bytes::new()));
            }
            let Some((file, generation)) = self.data()? else { return Ok(None) };
            let count = object::read_at_most(&file, &mut buffer, range.start);
            let count = count.context("read", &self.path(BlobFile::Complete))?;
            // If the blob's files changed names meanwhile, these may be the bytes of a file that was removed, or of a new
            // one that does not have them yet.
            if lock(&self.state).generation != generation {
                continue;
            }
            if count < buffer.len() {
                self.discard(range.start + count as u64..self.size)?;
                return Ok(None);
            }
            self.touch(&file);
            return Ok(Some(Bytes::from(buffer)));
        }
    }

    /// Tells the operating system that `range` will be read, so that it begins to fetch it from the disk. Only a hint: what
    /// hinders it shows when the bytes are read.
    pub fn announce(&self, range: Range<u64>) {
        let Some(length) = std::num::NonZeroU64::new(range.end.saturating_sub(range.start)) else { return };
        if let Ok(Some((file, _))) = self.data()
            && let Err(error) = rustix::fs::fadvise(&file, range.start, Some(length), rustix::fs::Advice::WillNeed)
        {
            tracing::trace!(%error, "the disk takes no hints");
        }
    }

    /// Puts bytes in place and only then records them as present. Safe to repeat and to race.
    ///
    /// Bytes that are already present are left as they are, so nothing good is overwritten; discard first what is bad.
    /// An error records nothing of the gap that it hit. Once a blob is in more than [`crate::limits::BLOB_PIECES`]
    /// pieces, further pieces are written but not recorded: they stay missing.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let written = self.put(offset, bytes);
        if let Err(Error::Io { source, .. }) = &written {
            let mut refused = lock(&self.refused);
            *refused = (refused.0 + 1, Some(source.kind()));
        }
        written
    }

    /// How often the disk did not take what was to be written.
    pub fn refusals(&self) -> u64 {
        lock(&self.refused).0
    }

    /// The error if that has happened again since it was so often.
    pub fn refused_since(&self, refusals: u64) -> Result<(), Error> {
        match *lock(&self.refused) {
            (now, Some(kind)) if now > refusals => {
                Err(io::Error::from(kind)).context("write", &self.path(BlobFile::Partial(self.size)))
            }
            _ => Ok(()),
        }
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let range = offset..offset.saturating_add(bytes.len() as u64);
        self.check(&range)?;
        loop {
            let Some(claim) = self.claim(&range) else { return Ok(()) };
            let Some((file, generation)) = self.data()? else {
                self.create()?;
                continue;
            };
            if generation != claim.generation {
                continue;
            }
            for gap in &claim.gaps {
                let part = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
                file.write_all_at(part, gap.start).context("write", &self.path(BlobFile::Partial(self.size)))?;
                self.record(gap, generation)?;
            }
            return Ok(());
        }
    }

    fn check(&self, range: &Range<u64>) -> Result<(), Error> {
        if range.start <= range.end && range.end <= self.size {
            return Ok(());
        }
        let refusal = io::Error::new(io::ErrorKind::InvalidInput, "range is not within the blob");
        Err(refusal).context("use", &self.path(BlobFile::Partial(self.size)))
    }

    fn path(&self, file: BlobFile) -> PathBuf {
        self.shared.layout.blob(&self.digest, file)
    }

    fn owner(&self) -> Owner<'_> {
        Owner { digest: &self.digest, size: self.size }
    }

    /// The right to write what is missing of `range`; `None` if nothing is.
    fn claim(&self, range: &Range<u64>) -> Option<Claim<'_>> {
        let mut state = lock(&self.state);
        let gaps = state.held.missing(range);
        state.overlaps += u64::from(gaps != std::slice::from_ref(range));
        if gaps.is_empty() {
            return None;
        }
        let is_shared = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        state.overlaps += u64::from(state.writing.iter().any(is_shared));
        state.writing.push(range.clone());
        Some(Claim { blob: self, generation: state.generation, range: range.clone(), gaps })
    }

    /// Records that `gap` is in place, on disk and then in memory.
    ///
    /// The slot is taken under the lock, the record written without it. A discard that takes a later slot meanwhile
    /// leaves the disk knowing less than memory, never more. If the files are no longer those that were written
    /// to, nothing is recorded.
    fn record(&self, gap: &Range<u64>, generation: u64) -> Result<(), Error> {
        let slot = {
            let mut state = lock(&self.state);
            if state.generation != generation {
                return Ok(());
            }
            state.held.take_slot()
        };
        if let Some(slot) = slot
            && let Some(map) = self.map(generation)?
        {
            let record = Record::Present(gap.clone());
            presence::write(&map, slot, &record, self.owner())
                .context("write", &self.path(BlobFile::Map(self.size)))?;
        }
        let mut state = lock(&self.state);
        if state.generation == generation
            && let Held::Partial { present, .. } = &mut state.held
            && !present.insert(gap)
        {
            tracing::debug!(digest = %self.digest, "blob is in too many pieces, some are not remembered");
        }
        drop(state);
        self.arrival.notify_waiters();
        Ok(())
    }

    /// The file with the bytes and the generation it is good for; `None` if there is no file.
    fn data(&self) -> Result<Option<(Arc<File>, u64)>, Error> {
        loop {
            let (known, path, write, generation) = {
                let state = lock(&self.state);
                let (name, write) = match state.held {
                    Held::Nothing => return Ok(None),
                    Held::Partial { .. } => (BlobFile::Partial(self.size), true),
                    Held::Complete => (BlobFile::Complete, false),
                };
                (state.data.upgrade(), self.path(name), write, state.generation)
            };
            let file = match known {
                Some(file) => file,
                None => match OpenOptions::new().read(true).write(write).open(&path) {
                    Ok(file) => Arc::new(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.forget_lost(generation)?;
                        continue;
                    }
                    Err(error) => return Err(error).context("open", &path),
                },
            };
            let mut state = lock(&self.state);
            if state.generation == generation {
                state.data = Arc::downgrade(&file);
                drop(state);
                self.shared.pool.keep(self.keys[0], &file);
                return Ok(Some((file, generation)));
            }
        }
    }

    /// The map, if it is still that of `generation`.
    fn map(&self, generation: u64) -> Result<Option<Arc<File>>, Error> {
        let known = {
            let state = lock(&self.state);
            if state.generation != generation {
                return Ok(None);
            }
            state.map.upgrade()
        };
        let path = self.path(BlobFile::Map(self.size));
        let file = match known {
            Some(file) => file,
            // Not created here if it is gone: then it was given up, and a map that begins in the middle has no use.
            None => match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => Arc::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error).context("open", &path),
            },
        };
        let mut state = lock(&self.state);
        if state.generation != generation {
            return Ok(None);
        }
        state.map = Arc::downgrade(&file);
        drop(state);
        self.shared.pool.keep(self.keys[1], &file);
        Ok(Some(file))
    }

    /// Notes that the blob was read, at most once per hour.
    fn touch(&self, file: &File) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let before = self.touched.load(Ordering::Relaxed);
        if now.abs_diff(before) >= object::TOUCH.as_secs()
            && self.touched.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            object::touch(file);
        }
    }
}

impl Held {
    fn contains(&self, range: &Range<u64>) -> bool {
        match self {
            Self::Nothing => range.is_empty(),
            Self::Partial { present, .. } => present.contains(range),
            Self::Complete => true,
        }
    }

    fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        match self {
            _ if range.is_empty() => Vec::new(),
            Self::Nothing => vec![range.clone()],
            Self::Partial { present, .. } => present.missing(range),
            Self::Complete => Vec::new(),
        }
    }

    /// The slot for the next record, `None` if there is no map or it is full.
    fn take_slot(&mut self) -> Option<u64> {
        match self {
            Self::Partial { slots: Some(next), .. } if *next < BLOB_MAP_RECORDS => {
                *next += 1;
                Some(*next - 1)
            }
            _ => None,
        }
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        for key in self.keys {
            self.shared.pool.forget(key);
        }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").field("digest", &self.digest).field("size", &self.size).finish_non_exhaustive()
    }
}
