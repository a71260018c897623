//! The cache directory: bytes by key, on disk.
//!
//! One process owns a directory (flock). Everything is keyed by content; an object appears by rename, whole or not at
//! all, except the partial blobs, whose map says which bytes are there. See design.md, "The cache directory".
//!
//! Nothing is flushed to the disk. A killed process loses nothing by that: what was written is in the kernel. A power
//! cut may leave files short, or with zeros in them, and a failing disk may do worse; both are found in the same way, by
//! whoever reads:
//!
//! | object | checked | against |
//! |---|---|---|
//! | document | here, at every read | its digest |
//! | reference | here, at every read | BLAKE3 in the record |
//! | map of a partial blob | here, when the blob is loaded | a check in every record |
//! | bytes of a blob | by the reader, which decodes spans | the span's digest; all of it by [`Blob::complete`] |
//! | decoded file | here, when published and at the first use in a process | its SHA-256 |
//! | profile | here, at every read | BLAKE3 in the record |
//! | index, claim, tree | by the reader, which knows the format | the checks in it |
//!
//! What is damaged is removed, or [discarded](Blob::discard), and counts as absent: it is fetched or made again.
//!
//! [`Store`] is the open directory; its methods are spread over one file per kind of object. [`Blob`] and [`NewFile`]
//! are what can be written piece by piece. [`Limits`] bound the whole. All of it is synchronous, but for
//! [`Blob::arrived`], and may be called from any thread. Lock order: the one of the directory, a blob's `transition`, its
//! state; the others (registry of blobs, pool of descriptors, table of decoded files, limits) are leaves. None but the first
//! two is held across I/O.

mod blob;
mod blobs;
mod documents;
mod evict;
mod files;
mod layout;
mod lock;
mod mapped;
mod object;
mod pool;
mod presence;
mod profiles;
mod ranges;
mod scratch;
#[cfg(test)]
mod tests;
mod usage;
mod verify;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use blob::{Blob, Mark, Replacement};
pub use evict::Limits;
pub use files::NewFile;
pub use mapped::{ClaimDraft, IMPORTED, claim_name};
pub use object::Mapped;
pub use scratch::{Scratch, ScratchFile};

use crate::oci::Digest;

/// The open cache directory.
///
/// Ours until the last of this value, its [`Blob`]s and its [`NewFile`]s is dropped.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What the store and its blobs have in common.
#[derive(Debug)]
struct Shared {
    layout: layout::Layout,
    blobs: blobs::Registry,
    pool: pool::Pool,
    files: files::Cache,
    scratch: Scratch,
    limits: Mutex<Limits>,
    /// Held while the directory is looked at or made anew.
    lock: Mutex<Possession>,
}

/// What makes the directory ours.
#[derive(Debug)]
struct Possession {
    /// Holds its lock.
    file: File,
    /// What was missing and is not all put right yet.
    missing: Option<Missing>,
}

/// What somebody had removed of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// All of it.
    Everything,
    /// These parts.
    Parts(Vec<&'static str>),
    /// Its lock and no part, or all of it was exchanged for another cache directory.
    Lock,
}

impl Drop for Shared {
    /// Closing the file would not be enough: a child process that is just being started has a copy of the descriptor
    /// until it executes its program, and the lock would last as long.
    fn drop(&mut self) {
        let possession = self.lock.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = possession.file.unlock() {
            tracing::debug!(%error, "lock left to the closing of its file");
        }
    }
}

/// Bytes and objects in one part of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects.
    pub count: u64,
    /// Bytes on disk (allocated, so that sparse partial blobs count what they hold).
    pub bytes: u64,
}

/// What became of objects that were to be removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    /// What was removed.
    pub freed: Usage,
    /// What was not, because it was named as kept or is in use: by its digest, or that of the layer which it is about.
    pub kept: BTreeMap<Digest, Usage>,
}

impl Dropped {
    fn add(&mut self, digest: Digest, usage: Usage, is_gone: bool) {
        let sum = if is_gone { &mut self.freed } else { self.kept.entry(digest).or_default() };
        sum.add(usage);
    }
}

/// What the parts of the cache hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Manifests and configurations.
    pub manifests: Usage,
    /// Layer blobs, complete and partial.
    pub blobs: Usage,
    /// Layer indexes, and claims about layers.
    pub indexes: Usage,
    /// Merged trees.
    pub trees: Usage,
    /// Decoded files.
    pub files: Usage,
    /// Recorded starts.
    pub profiles: Usage,
    /// Parts of layers that are decoded as a whole and held in files without a name.
    pub scratch: Usage,
}

/// The outcome of checking every object of the cache.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Objects that are what their names say.
    pub good: u64,
    /// Paths, relative to the cache directory, of objects that were not; they were removed.
    pub removed: Vec<String>,
}

/// Why the cache directory cannot serve; the path is part of each.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process owns the directory.
    #[error("cache directory {0} is in use by another process")]
    Busy(PathBuf),
    /// The directory was made by a newer version.
    #[error("cache directory {path} has version {found}, this program knows {known}")]
    Version {
        /// The directory.
        path: PathBuf,
        /// The version found there.
        found: String,
        /// The version this program writes.
        known: u32,
    },
    /// The directory may not be used as a cache directory.
    #[error("{path} {why}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, as a predicate.
        why: &'static str,
    },
    /// The file system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb: `read`, `write`, `create`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// A finished object's bytes do not have the digest they were stored under; nothing was kept.
    #[error("content of {0} has another digest")]
    Mismatch(String),
    /// A blob was to be made complete of which bytes are missing; what is there was kept.
    #[error("blob {0} is not all here")]
    Incomplete(Digest),
    /// A blob was asked for with a size that it is known not to have.
    #[error("blob {digest} has {known} bytes, not {asked}")]
    Size {
        /// The blob.
        digest: Digest,
        /// Its size.
        known: u64,
        /// The size asked for.
        asked: u64,
    },
}

impl Error {
    /// True if the cause is a full disk or an exhausted quota, so that evicting something may help.
    pub fn is_out_of_space(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl Store {
    /// Opens the cache directory, creating it (mode 0700) if needed, and takes its lock.
    ///
    /// Leftovers of `tmp/` are removed. [`Error::Busy`] if another process holds the lock, [`Error::Foreign`] if the
    /// directory holds other things or belongs to another user, [`Error::Version`] if another version made it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        // A daemon changes its working directory.
        let layout = layout::Layout::new(std::path::absolute(dir).context("find", dir)?);
        let lock = Mutex::new(Possession { file: lock::acquire(&layout)?, missing: None });
        let scratch = Scratch::new(layout.root().join("tmp"));
        let shared = Shared {
            layout,
            blobs: blobs::Registry::default(),
            pool: pool::Pool::new(),
            files: files::Cache::new(),
            scratch,
            limits: Mutex::default(),
            lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The directory, as an absolute path.
    pub fn dir(&self) -> &Path {
        self.shared.layout.root()
    }

    /// Makes anew what somebody has removed of the directory, or all of it if another is in its place; what that was, none if
    /// nothing. Costs a look at each of its parts if so.
    ///
    /// Blobs in use whose files are gone begin again with nothing. What else is open or mapped stays as it is until it is
    /// closed. Fails as [`open`](Self::open) does; the next call goes on with it then.
    pub fn restore(&self) -> Result<Option<Missing>, Error> {
        let shared = &self.shared;
        let mut possession = lock(&shared.lock);
        let Possession { file, missing } = &mut *possession;
        *missing = missing.take().or_else(|| lock::missing(&shared.layout, file));
        if missing.is_some() {
            lock::restore(&shared.layout, file)?;
            shared.pool.clear();
            shared.files.clear();
            for blob in shared.blobs.all_live() {
                blob.look_for_file()?;
            }
        }
        Ok(missing.take())
    }

    /// Some regular file on the file system of the decoded files, for whoever must know what can be done with those.
    pub fn sample(&self) -> io::Result<File> {
        File::open(self.dir().join("CACHEDIR.TAG"))
    }

    /// Another handle of the same open directory.
    fn handle(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Adds to an I/O error what was tried and on what.
trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}

/// Locks `mutex`. A thread that panicked while it held it cannot have left it half changed: what is done under the
/// store's locks does not panic between two changes that belong together.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
