//! The changes of a blob's files: found at open, created, completed, found damaged, given up.
//!
//! Each happens under the blob's `transition` lock, in an order that leaves the truth on disk wherever it is cut off
//! (see the parent module), and is then made known to memory in one step, with a new generation.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use super::super::layout::BlobFile;
use super::super::presence::{self, Record, Replay};
use super::super::ranges::RangeSet;
use super::super::{Context as _, Error, Shared, lock, object};
use super::{Blob, Held, Mark, State};
use crate::limits::BLOB_BYTES;
use crate::oci::Digest;

impl Blob {
    /// The blob as the disk has it, tidied: what a killed process left halfway is finished or undone.
    ///
    /// The caller makes sure that no other value for `digest` and `size` exists.
    pub(in crate::store) fn load(shared: &Arc<Shared>, digest: &Digest, size: u64) -> Result<Self, Error> {
        if size > BLOB_BYTES {
            let path = shared.layout.blob(digest, BlobFile::Complete);
            return Err(io::Error::from(io::ErrorKind::FileTooLarge)).context("use", &path);
        }
        let blob = Self {
            shared: Arc::clone(shared),
            digest: *digest,
            size,
            state: Mutex::new(State {
                held: Held::Nothing,
                data: Weak::new(),
                map: Weak::new(),
                writing: Vec::new(),
                generation: 0,
                discards: 0,
                overlaps: 0,
            }),
            settled: Condvar::new(),
            arrival: Notify::new(),
            transition: Mutex::new(()),
            keys: [shared.pool.key(), shared.pool.key()],
            refused: Mutex::default(),
            touched: AtomicU64::new(0),
        };
        let held = if blob.load_complete()? { Held::Complete } else { blob.load_partial()? };
        lock(&blob.state).held = held;
        Ok(blob)
    }

    /// True if a complete file is there; then nothing else of the blob is, afterwards.
    fn load_complete(&self) -> Result<bool, Error> {
        let path = self.path(BlobFile::Complete);
        let Some(file) = object::open(&path)? else { return Ok(false) };
        let length = file.metadata().context("examine", &path)?.len();
        if length != self.size {
            // Either the file is damaged, or the descriptor lies about its size. A lie must not cost a good blob.
            let (digest, length) = object::hash(&file, self.digest.algorithm()).context("read", &path)?;
            if digest == self.digest {
                return Err(Error::Size { digest: self.digest, known: length, asked: self.size });
            }
            tracing::debug!(digest = %self.digest, "complete blob was damaged, removed");
            object::remove(&path)?;
            return Ok(false);
        }
        object::remove(&self.path(BlobFile::Map(self.size)))?;
        object::remove(&self.path(BlobFile::Partial(self.size)))?;
        Ok(true)
    }

    fn load_partial(&self) -> Result<Held, Error> {
        let path = self.path(BlobFile::Partial(self.size));
        let length = match fs::metadata(&path) {
            Ok(metadata) => Some(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context("examine", &path),
        };
        let replay = if length == Some(self.size) { self.load_map()? } else { None };
        match replay {
            Some(replay) if replay.present.bytes() > 0 => {
                let slots = self.shorten_map(&replay).unwrap_or(replay.slots);
                Ok(Held::Partial { present: replay.present, slots: Some(slots) })
            }
            _ => {
                object::remove(&self.path(BlobFile::Map(self.size)))?;
                object::remove(&path)?;
                Ok(Held::Nothing)
            }
        }
    }

    fn load_map(&self) -> Result<Option<Replay>, Error> {
        let path = self.path(BlobFile::Map(self.size));
        let Some(file) = object::open(&path)? else { return Ok(None) };
        presence::replay(&file, self.owner()).map(Some).context("read", &path)
    }

    /// Rewrites a map that is damaged or much longer than it needs to be; returns the slots in use then.
    fn shorten_map(&self, replay: &Replay) -> Option<u64> {
        if !replay.wants_rewrite() {
            return None;
        }
        match self.put_map(&replay.present) {
            Ok(()) => Some(replay.present.pieces() as u64),
            Err(error) => {
                tracing::debug!(digest = %self.digest, %error, "map stays as it is, which is as true");
                None
            }
        }
    }

    fn put_map(&self, present: &RangeSet) -> Result<(), Error> {
        let bytes = presence::encode_all(present, self.owner());
        object::put(&self.shared.layout, &self.path(BlobFile::Map(self.size)), &bytes)
    }

    /// Makes an empty partial file and its map, unless there is one by now.
    pub(super) fn create(&self) -> Result<(), Error> {
        let _transition = lock(&self.transition);
        if !matches!(lock(&self.state).held, Held::Nothing) {
            return Ok(());
        }
        // A map left by a removal that was cut off must not speak of the new file.
        object::remove(&self.path(BlobFile::Map(self.size)))?;
        let path = self.path(BlobFile::Partial(self.size));
        let created = object::create(&path).and_then(|file| file.set_len(self.size).map(|()| file));
        let map = self.path(BlobFile::Map(self.size));
        let created = created.context("create", &path).and_then(|data| {
            let map = object::create(&map).context("create", &map)?;
            Ok((Arc::new(data), Arc::new(map)))
        });
        let (data, map) = match created {
            Ok(files) => files,
            Err(error) => {
                if let Err(error) = object::remove(&path) {
                    tracing::debug!(%error, "empty blob file left behind; without a map it means nothing");
                }
                return Err(error);
            }
        };
        self.shared.pool.keep(self.keys[0], &data);
        self.shared.pool.keep(self.keys[1], &map);
        self.become_held(Held::Partial { present: RangeSet::default(), slots: Some(0) }, |state| {
            state.data = Arc::downgrade(&data);
            state.map = Arc::downgrade(&map);
        });
        Ok(())
    }

    /// Makes the blob complete. `verified` says the caller knows that exactly the bytes now on disk have its digest; without
    /// it all bytes are read and hashed here. [`Error::Mismatch`] forgets everything.
    ///
    /// [`Error::Incomplete`] if bytes are missing, or one was discarded while they were being hashed; nothing is
    /// forgotten then.
    pub fn complete(&self, verified: bool) -> Result<(), Error> {
        self.complete_unless_changed(verified.then(|| self.mark()))
    }

    /// Makes the blob complete for a caller that, since `mark`, has hashed every byte as it read it from here or wrote it here.
    ///
    /// If anybody else wrote the same bytes or discarded some meanwhile, what is on disk may not be what was hashed, and is
    /// hashed again: as [`complete`](Self::complete) without `verified` does.
    pub fn complete_since(&self, mark: Mark) -> Result<(), Error> {
        self.complete_unless_changed(Some(mark))
    }

    fn complete_unless_changed(&self, hashed: Option<Mark>) -> Result<(), Error> {
        if self.size == 0 && !self.is_complete() {
            self.create()?;
        }
        let Some(settled) = self.settle()? else { return Ok(()) };
        let discards = settled.discards;
        let Some((file, _)) = self.data()? else { return Err(self.incomplete()) };
        let path = self.path(BlobFile::Partial(self.size));
        let good = if hashed == Some(settled) {
            file.metadata().context("examine", &path)?.len() == self.size
        } else {
            object::hash(&file, self.digest.algorithm()).context("read", &path)? == (self.digest, self.size)
        };
        drop(file);
        let _transition = lock(&self.transition);
        {
            let state = lock(&self.state);
            match &state.held {
                Held::Complete => return Ok(()),
                Held::Partial { present, .. } if state.discards == discards && present.bytes() == self.size => {}
                _ => return Err(self.incomplete()),
            }
        }
        if !good {
            self.forget_everything()?;
            return Err(Error::Mismatch(self.digest.to_string()));
        }
        match fs::rename(&path, self.path(BlobFile::Complete)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget_everything()?;
                return Err(self.incomplete());
            }
            Err(error) => return Err(error).context("complete", &path),
        }
        self.become_held(Held::Complete, |state| state.map = Weak::new());
        self.shared.pool.forget(self.keys[1]);
        if let Err(error) = object::remove(&self.path(BlobFile::Map(self.size))) {
            tracing::debug!(%error, "map left beside a complete blob, where it means nothing");
        }
        Ok(())
    }

    /// Waits until every byte is here and nobody is writing any more, and returns the mark of then; `None` if the blob is
    /// complete already.
    ///
    /// Writers only write what is missing, so afterwards the bytes stay as they are until the next discard.
    fn settle(&self) -> Result<Option<Mark>, Error> {
        let mut state = lock(&self.state);
        loop {
            match &state.held {
                Held::Complete => return Ok(None),
                Held::Partial { present, .. } if present.bytes() == self.size => {}
                _ => return Err(self.incomplete()),
            }
            if state.writing.is_empty() {
                return Ok(Some(state.mark()));
            }
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn incomplete(&self) -> Error {
        Error::Incomplete(self.digest)
    }

    /// Forgets `range`, because it was found to be wrong; a complete blob becomes partial again.
    pub fn discard(&self, range: Range<u64>) -> Result<(), Error> {
        self.discard_if(range, |_| true).map(drop)
    }

    /// Forgets `range`, because what was read of it since `mark` was wrong; false if anything of the blob was discarded
    /// meanwhile. Then the wrong bytes may be gone, and good ones in their place: they are to be looked at again.
    pub fn discard_since(&self, range: Range<u64>, mark: Mark) -> Result<bool, Error> {
        self.discard_if(range, |state| state.discards == mark.discards)
    }

    fn discard_if(&self, range: Range<u64>, is_due: impl FnOnce(&State) -> bool) -> Result<bool, Error> {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return Ok(true);
        }
        let _transition = lock(&self.transition);
        if !is_due(&lock(&self.state)) {
            return Ok(false);
        }
        if self.is_complete() {
            self.discard_of_complete(&range)?;
        } else {
            self.discard_of_partial(&range)?;
        }
        Ok(true)
    }

    /// Memory forgets first: from here on nobody reads the bytes, whatever becomes of the record.
    fn discard_of_partial(&self, range: &Range<u64>) -> Result<(), Error> {
        let (slot, generation) = {
            let mut state = lock(&self.state);
            match &mut state.held {
                Held::Partial { present, slots } if !present.is_disjoint(range) => {
                    present.remove(range);
                    if slots.is_none() {
                        state.discards += 1;
                        return Ok(());
                    }
                }
                _ => return Ok(()),
            }
            state.discards += 1;
            (state.held.take_slot(), state.generation)
        };
        let path = self.path(BlobFile::Map(self.size));
        let recorded = self.map(generation).and_then(|map| match (slot, map) {
            (Some(slot), Some(map)) => {
                let record = Record::Forgotten(range.clone());
                presence::write(&map, slot, &record, self.owner()).context("write", &path)
            }
            _ => Err(io::Error::from(io::ErrorKind::StorageFull)).context("extend", &path),
        });
        recorded.or_else(|error| {
            tracing::debug!(digest = %self.digest, %error, "map given up: it would still call wrong bytes present");
            self.give_up_map()
        })
    }

    /// Removes the map, so that the next start begins without these bytes instead of believing the wrong ones.
    fn give_up_map(&self) -> Result<(), Error> {
        if let Held::Partial { slots, .. } = &mut lock(&self.state).held {
            *slots = None;
        }
        object::remove(&self.path(BlobFile::Map(self.size))).map(drop)
    }

    fn discard_of_complete(&self, range: &Range<u64>) -> Result<(), Error> {
        let mut present = RangeSet::default();
        for rest in [0..range.start, range.end..self.size] {
            present.insert(&rest);
        }
        let slots = match self.put_map(&present) {
            Ok(()) => Some(present.pieces() as u64),
            Err(error) => {
                tracing::debug!(digest = %self.digest, %error, "no map for a damaged blob: the rest lasts until restart");
                object::remove(&self.path(BlobFile::Map(self.size)))?;
                None
            }
        };
        let path = self.path(BlobFile::Complete);
        match fs::rename(&path, self.path(BlobFile::Partial(self.size))) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.forget_everything(),
            Err(error) => return Err(error).context("reopen", &path),
        }
        // The descriptor of a complete blob is for reading only; the next writer opens another.
        self.become_held(Held::Partial { present, slots }, |state| {
            state.data = Weak::new();
            state.discards += 1;
        });
        self.shared.pool.forget(self.keys[0]);
        Ok(())
    }

    /// Puts the file at `path`, whose bytes have the blob's digest, in the place of whatever is here.
    pub(super) fn adopt(&self, path: &Path) -> Result<(), Error> {
        let _transition = lock(&self.transition);
        if self.is_complete() {
            object::discard_temporary(path);
            return Ok(());
        }
        fs::rename(path, self.path(BlobFile::Complete)).context("complete", path)?;
        self.become_held(Held::Complete, |state| {
            state.data = Weak::new();
            state.map = Weak::new();
            state.discards += 1;
        });
        for key in self.keys {
            self.shared.pool.forget(key);
        }
        for file in [BlobFile::Map(self.size), BlobFile::Partial(self.size)] {
            if let Err(error) = object::remove(&self.path(file)) {
                tracing::debug!(%error, "left beside a complete blob, where it means nothing");
            }
        }
        Ok(())
    }

    /// Removes every file of this value. `transition` is held. A complete blob of another size, which is what this one
    /// turned out not to be, has the same digest and stays.
    fn forget_everything(&self) -> Result<(), Error> {
        let was_complete = self.is_complete();
        self.become_held(Held::Nothing, |state| {
            state.data = Weak::new();
            state.map = Weak::new();
            state.discards += 1;
        });
        for key in self.keys {
            self.shared.pool.forget(key);
        }
        let complete = was_complete.then_some(BlobFile::Complete);
        remove_files(&self.shared, &self.digest, &[self.size].into(), complete)
    }

    /// Starts from nothing if the file is not in its directory, even if it is still open.
    pub(in crate::store) fn look_for_file(&self) -> Result<(), Error> {
        let _transition = lock(&self.transition);
        let file = match lock(&self.state).held {
            Held::Nothing => return Ok(()),
            Held::Partial { .. } => BlobFile::Partial(self.size),
            Held::Complete => BlobFile::Complete,
        };
        match self.path(file).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.forget_everything(),
            _ => Ok(()),
        }
    }

    /// Starts from nothing if the files of `generation` were taken away behind our back.
    pub(super) fn forget_lost(&self, generation: u64) -> Result<(), Error> {
        let _transition = lock(&self.transition);
        if lock(&self.state).generation != generation {
            return Ok(());
        }
        tracing::debug!(digest = %self.digest, "the blob's file has vanished");
        self.forget_everything()
    }

    fn become_held(&self, held: Held, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        state.held = held;
        state.generation += 1;
        change(&mut state);
        drop(state);
        self.arrival.notify_waiters();
    }
}

/// Removes the partial files of these sizes of a blob, and `complete`; a map goes before the file that it speaks of.
pub(in crate::store) fn remove_files(
    shared: &Shared,
    digest: &Digest,
    sizes: &BTreeSet<u64>,
    complete: Option<BlobFile>,
) -> Result<(), Error> {
    let partial = sizes.iter().flat_map(|size| [BlobFile::Map(*size), BlobFile::Partial(*size)]);
    for file in partial.chain(complete) {
        object::remove(&shared.layout.blob(digest, file))?;
    }
    Ok(())
}
