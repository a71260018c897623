//! The cache directory: bytes by key, on disk.
//!
//! One process owns a directory (flock). Everything is keyed by content; an object appears by rename, whole or not at
//! all, except the partial blobs, whose map says which bytes are there. See design.md, "The cache directory".

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::Digest;

/// The open cache directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

/// One blob's compressed bytes, some or all of them. One value per digest in the process, shared.
///
/// What is present has not necessarily been verified: a complete blob was, when it became complete, but disks rot, so
/// every reader verifies what it decodes and [`discards`](Blob::discard) what is wrong.
#[derive(Debug)]
pub struct Blob {}

/// A file on its way into the file store.
#[derive(Debug)]
pub struct NewFile {}

/// Bytes and objects in one part of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects.
    pub count: u64,
    /// Bytes on disk (allocated, so that sparse partial blobs count what they hold).
    pub bytes: u64,
}

/// What the parts of the cache hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Manifests and configurations.
    pub manifests: Usage,
    /// Layer blobs, complete and partial.
    pub blobs: Usage,
    /// Layer indexes.
    pub indexes: Usage,
    /// Merged trees.
    pub trees: Usage,
    /// Decoded files.
    pub files: Usage,
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
}

impl Store {
    /// Opens the cache directory, creating it (mode 0700) if needed, and takes its lock.
    ///
    /// Leftovers of `tmp/` are removed. [`Error::Busy`] if another process holds the lock.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { dir: dir.to_owned() })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Remembers that `reference` (canonical text) resolved to the document `digest` of `media_type`.
    pub fn put_reference(&self, reference: &str, digest: &Digest, media_type: &str) -> Result<(), Error> {
        let _ = (reference, digest, media_type);
        todo!()
    }

    /// What `reference` resolved to last: digest and media type.
    pub fn reference(&self, reference: &str) -> Result<Option<(Digest, String)>, Error> {
        let _ = reference;
        todo!()
    }

    /// Keeps a manifest, image index or configuration under its digest, which is checked.
    pub fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let _ = (digest, bytes);
        todo!()
    }

    /// A kept document; a damaged one is removed and counts as absent.
    pub fn document(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let _ = digest;
        todo!()
    }

    /// Keeps an encoded layer index and returns it memory-mapped.
    pub fn put_index(&self, layer: &Digest, encoded: &[u8]) -> Result<Bytes, Error> {
        let _ = (layer, encoded);
        todo!()
    }

    /// The encoded index of `layer`, memory-mapped. The caller checks it and calls [`Self::remove_index`] if damaged.
    pub fn index(&self, layer: &Digest) -> Result<Option<Bytes>, Error> {
        let _ = layer;
        todo!()
    }

    /// Removes the index of `layer`.
    pub fn remove_index(&self, layer: &Digest) -> Result<(), Error> {
        let _ = layer;
        todo!()
    }

    /// Keeps an encoded tree and returns it memory-mapped.
    pub fn put_tree(&self, id: &Digest, encoded: &[u8]) -> Result<Bytes, Error> {
        let _ = (id, encoded);
        todo!()
    }

    /// The encoded tree `id`, memory-mapped. The caller checks it and calls [`Self::remove_tree`] if damaged.
    pub fn tree(&self, id: &Digest) -> Result<Option<Bytes>, Error> {
        let _ = id;
        todo!()
    }

    /// Removes the tree `id`.
    pub fn remove_tree(&self, id: &Digest) -> Result<(), Error> {
        let _ = id;
        todo!()
    }

    /// The blob `digest` of `size` bytes, with whatever of it is on disk. Touches the disk but never the network.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<Arc<Blob>, Error> {
        let _ = (digest, size);
        todo!()
    }

    /// A decoded file by the SHA-256 of its content, if it is here; its bytes were verified in this process's lifetime.
    ///
    /// A damaged file is removed and counts as absent. The first call for a file reads all of it.
    pub fn file(&self, content: &[u8; 32]) -> Result<Option<Arc<File>>, Error> {
        let _ = content;
        todo!()
    }

    /// True if [`Self::file`] would answer without reading the whole file, or finds nothing.
    pub fn is_verified(&self, content: &[u8; 32]) -> bool {
        let _ = content;
        todo!()
    }

    /// Begins a decoded file of `size` bytes in `tmp/`.
    pub fn new_file(&self, content: &[u8; 32], size: u64) -> Result<NewFile, Error> {
        let _ = (content, size);
        todo!()
    }

    /// What the cache holds.
    pub fn usage(&self) -> Result<DiskUsage, Error> {
        todo!()
    }

    /// Removes the blobs not in `keep`; returns what was freed.
    pub fn drop_blobs(&self, keep: &HashSet<Digest>) -> Result<Usage, Error> {
        let _ = keep;
        todo!()
    }

    /// Removes the decoded files that are not open in this process.
    pub fn drop_files(&self) -> Result<Usage, Error> {
        todo!()
    }

    /// Removes the indexes of layers not in `layers`, and the trees not in `trees`.
    pub fn drop_indexes(&self, layers: &HashSet<Digest>, trees: &HashSet<Digest>) -> Result<Usage, Error> {
        let _ = (layers, trees);
        todo!()
    }

    /// Removes documents and references, except the documents in `keep`.
    pub fn drop_documents(&self, keep: &HashSet<Digest>) -> Result<Usage, Error> {
        let _ = keep;
        todo!()
    }

    /// Checks every object against its name, removing what is damaged. Indexes and trees are given to `check`, which
    /// knows their formats (the path's first component says which it is); partial blobs are left to their readers.
    pub fn verify(&self, check: &dyn Fn(&str, &Digest, &[u8]) -> bool) -> Result<Verified, Error> {
        let _ = check;
        todo!()
    }
}

impl Blob {
    /// The blob's digest.
    pub fn digest(&self) -> Digest {
        todo!()
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// True once every byte was there and had the right digest.
    pub fn is_complete(&self) -> bool {
        todo!()
    }

    /// Number of bytes present.
    pub fn present_bytes(&self) -> u64 {
        todo!()
    }

    /// The parts of `range` that are not here, ascending; empty if all of it is.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let _ = range;
        todo!()
    }

    /// Reads `range`, or `None` if not all of it is here.
    pub fn read(&self, range: Range<u64>) -> Result<Option<Bytes>, Error> {
        let _ = range;
        todo!()
    }

    /// Puts bytes in place and only then records them as present. Safe to repeat and to race.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let _ = (offset, bytes);
        todo!()
    }

    /// Forgets `range`, because it was found to be wrong; a complete blob becomes partial again.
    pub fn discard(&self, range: Range<u64>) -> Result<(), Error> {
        let _ = range;
        todo!()
    }

    /// Makes the blob complete. `verified` says the caller hashed exactly the bytes now on disk (first contact); without
    /// it all bytes are read and hashed here. [`Error::Mismatch`] forgets everything.
    pub fn complete(&self, verified: bool) -> Result<(), Error> {
        let _ = verified;
        todo!()
    }
}

impl NewFile {
    /// Writes at `offset`; what is never written reads as zeros.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let _ = (offset, bytes);
        todo!()
    }

    /// Hashes the whole file and publishes it; [`Error::Mismatch`] and nothing kept if the digest is another.
    pub fn publish(self) -> Result<Arc<File>, Error> {
        todo!()
    }
}
