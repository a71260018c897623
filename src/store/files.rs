//! Decoded files by the SHA-256 of their content.
//!
//! A file is hashed twice: when it is published, from what the file system returns and not from what was handed to it,
//! and when a process first opens it, because no flush forced it to the disk and disks rot. Afterwards it is trusted for the
//! life of the process, since its pages may be mapped or passed through to the kernel, where nobody hashes.
//!
//! [`Cache`] remembers what was verified, keeps the files used last open, and knows which are open at all.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::layout::{Part, parse_file};
use super::{Context as _, Dropped, Error, Shared, Store, lock, object};
use crate::limits::{OPEN_FILES, VERIFIED_FILES};
use crate::oci::{Algorithm, Digest};

type Content = [u8; 32];

/// How many files may have been closed before they are swept out of the table of open ones.
const SWEEP: usize = 1024;

/// How often the time of last use of one file is looked at.
const LOOK: Duration = object::TOUCH;

/// What this process knows of the decoded files.
#[derive(Debug)]
pub(super) struct Cache {
    /// Never held across I/O.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The files used last, held open.
    recent: LruCache<Content, Arc<File>>,
    /// All files that somebody has open, this cache included.
    open: HashMap<Content, Weak<File>>,
    sweep_at: usize,
    /// The files whose content was verified, and when their time of last use was last looked at.
    verified: LruCache<Content, Instant>,
}

impl Cache {
    pub(super) fn new() -> Self {
        let bound = |bound| NonZeroUsize::new(bound).expect("the bounds are positive constants");
        let inner = Inner {
            recent: LruCache::new(bound(OPEN_FILES)),
            open: HashMap::new(),
            sweep_at: SWEEP,
            // Not sized to its bound at once: most caches never hold so many.
            verified: LruCache::unbounded(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// The file if it is open, verified as it then is, and whether to note its use on disk.
    fn get(&self, content: &Content) -> Option<(Arc<File>, bool)> {
        let mut inner = lock(&self.inner);
        let file = inner.open.get(content)?.upgrade()?;
        let evicted = inner.recent.push(*content, Arc::clone(&file));
        let look = inner.looks_again(content);
        drop(inner);
        drop(evicted);
        Some((file, look))
    }

    fn is_verified(&self, content: &Content) -> bool {
        lock(&self.inner).verified.contains(content)
    }

    /// Takes in a verified file. If another thread was faster, its file is the one to use.
    fn put(&self, content: &Content, file: File) -> Arc<File> {
        let mut inner = lock(&self.inner);
        inner.looks_again(content);
        let file = match inner.open.get(content).and_then(Weak::upgrade) {
            Some(known) => known,
            None => {
                let file = Arc::new(file);
                inner.sweep();
                inner.open.insert(*content, Arc::downgrade(&file));
                file
            }
        };
        let evicted = inner.recent.push(*content, Arc::clone(&file));
        drop(inner);
        drop(evicted);
        file
    }

    /// True if anybody but this cache has the file open.
    pub(super) fn in_use(&self, content: &Content) -> bool {
        let inner = lock(&self.inner);
        let held = usize::from(inner.recent.contains(content));
        inner.open.get(content).is_some_and(|file| file.strong_count() > held)
    }

    /// Forgets all files but those that somebody else has open, whose content stays what it is.
    pub(super) fn clear(&self) {
        let mut inner = lock(&self.inner);
        let bound = inner.recent.cap();
        let kept = std::mem::replace(&mut inner.recent, LruCache::new(bound));
        inner.verified.clear();
        drop(inner);
        drop(kept);
    }

    /// Forgets a file that is being removed.
    fn forget(&self, content: &Content) {
        let mut inner = lock(&self.inner);
        let kept = inner.recent.pop(content);
        inner.open.remove(content);
        inner.verified.pop(content);
        drop(inner);
        drop(kept);
    }
}

impl Inner {
    /// Remembers `content` as verified and used now; true if its last look was long ago.
    fn looks_again(&mut self, content: &Content) -> bool {
        let now = Instant::now();
        let look = match self.verified.get(content) {
            Some(last) => now.duration_since(*last) >= LOOK,
            None => true,
        };
        if look {
            self.verified.put(*content, now);
            while self.verified.len() > VERIFIED_FILES {
                self.verified.pop_lru();
            }
        }
        look
    }

    fn sweep(&mut self) {
        if self.open.len() >= self.sweep_at {
            self.open.retain(|_, file| file.strong_count() > 0);
            self.sweep_at = SWEEP.max(self.open.len() * 2);
        }
    }
}

impl Store {
    /// A decoded file by the SHA-256 of its content, if it is here; its bytes were verified in this process's lifetime.
    ///
    /// A damaged file is removed and counts as absent. The first call for a file reads all of it, without a lock: calls
    /// that come together each read it.
    pub fn file(&self, content: &[u8; 32]) -> Result<Option<Arc<File>>, Error> {
        if let Some((file, look)) = self.shared.files.get(content) {
            if look {
                object::touch(&file);
            }
            return Ok(Some(file));
        }
        let path = self.shared.layout.file(content);
        let Some(file) = object::open(&path)? else { return Ok(None) };
        if !self.shared.files.is_verified(content) {
            let (found, _) = object::hash(&file, Algorithm::Sha256).context("read", &path)?;
            if found != Digest::Sha256(*content) {
                tracing::debug!(path = ?path, "decoded file was damaged, removed");
                self.shared.remove_file(content)?;
                return Ok(None);
            }
        }
        object::touch(&file);
        Ok(Some(self.shared.files.put(content, file)))
    }

    /// True if [`Self::file`] would answer without reading the whole file.
    pub fn is_verified(&self, content: &[u8; 32]) -> bool {
        self.shared.files.is_verified(content)
    }

    /// True if there is a decoded file of this content, right or not. Costs one system call.
    pub fn has_file(&self, content: &[u8; 32]) -> bool {
        self.shared.layout.file(content).symlink_metadata().is_ok()
    }

    /// Begins a decoded file of `size` bytes in `tmp/`.
    pub fn new_file(&self, content: &[u8; 32], size: u64) -> Result<NewFile, Error> {
        let path = self.shared.layout.temporary();
        let file = object::create(&path).context("create", &path)?;
        let new = NewFile { store: self.handle(), content: *content, size, path, file };
        new.file.set_len(size).context("extend", &new.path)?;
        Ok(new)
    }

    /// Removes the decoded files that are not open in this process.
    pub fn drop_files(&self) -> Result<Dropped, Error> {
        let shared = &self.shared;
        let mut dropped = Dropped::default();
        shared.layout.walk(Part::Files, &mut |found| {
            let Some(content) = parse_file(&found.name) else { return Ok(()) };
            let is_open = shared.files.in_use(&content);
            if is_open || shared.remove_file(&content)? {
                dropped.add(Digest::Sha256(content), found.usage(), !is_open);
            }
            Ok(())
        })?;
        Ok(dropped)
    }
}

impl Shared {
    /// Removes a decoded file; who has it open keeps it. False if it was not there.
    pub(super) fn remove_file(&self, content: &Content) -> Result<bool, Error> {
        self.files.forget(content);
        object::remove(&self.layout.file(content))
    }
}

/// A file on its way into the file store.
///
/// Dropping it without [`publish`](Self::publish) leaves nothing behind.
#[derive(Debug)]
pub struct NewFile {
    store: Store,
    content: Content,
    size: u64,
    path: PathBuf,
    file: File,
}

impl NewFile {
    /// Writes at `offset`; what is never written reads as zeros.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            let refusal = io::Error::new(io::ErrorKind::InvalidInput, "range is not within the file");
            return Err(refusal).context("write", &self.path);
        }
        self.file.write_all_at(bytes, offset).context("write", &self.path)
    }

    /// Hashes the whole file and publishes it; [`Error::Mismatch`] and nothing kept if the digest is another.
    ///
    /// What is hashed is read back from the file. Costs as much for holes as for data. If the store has the file by now,
    /// that one is returned and this one removed.
    pub fn publish(self) -> Result<Arc<File>, Error> {
        // Opened for reading only: this descriptor is handed out.
        let file = File::open(&self.path).context("open", &self.path)?;
        let wanted = Digest::Sha256(self.content);
        if object::hash(&file, Algorithm::Sha256).context("read", &self.path)? != (wanted, self.size) {
            return Err(Error::Mismatch(wanted.to_string()));
        }
        if let Some(known) = self.store.file(&self.content)? {
            return Ok(known);
        }
        fs::set_permissions(&self.path, Permissions::from_mode(0o444)).context("protect", &self.path)?;
        let shared = &self.store.shared;
        let path = shared.layout.file(&self.content);
        if let Some(dir) = path.parent() {
            super::lock::create_dir(dir, false)?;
        }
        // Two threads that publish the same content replace one verified file by another; both stay readable.
        fs::rename(&self.path, &path).context("create", &path)?;
        Ok(shared.files.put(&self.content, file))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(path = ?self.path, %error, "temporary file left behind");
            }
            // Published (renamed), or removed now.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
