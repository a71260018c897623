//! A blob that is fetched anew, as a whole, beside what its value holds.
//!
//! A [`Blob`] is shared by every image that lists it, so its bytes may come from any of their sources, and one of those may
//! have others than the digest names. Who must know what *one* source has, writes that into a [`Replacement`], where nobody
//! else writes, and only if it has the digest does it take the place of what is there.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::{Context as _, Error, object};
use super::Blob;
use crate::oci::Hasher;

/// A blob that is being written in order; dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct Replacement {
    blob: Arc<Blob>,
    file: File,
    /// Where it is written; none once it is in its place.
    path: Option<PathBuf>,
    hasher: Hasher,
    length: u64,
}

impl Blob {
    /// Begins a replacement of all bytes.
    pub fn replacement(self: &Arc<Self>) -> Result<Replacement, Error> {
        let path = self.shared.layout.temporary();
        let file = object::create(&path).context("create", &path)?;
        let hasher = Hasher::new(self.digest.algorithm());
        Ok(Replacement { blob: Arc::clone(self), file, path: Some(path), hasher, length: 0 })
    }
}

impl Replacement {
    /// Adds the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.length = self.length.saturating_add(bytes.len() as u64);
        match &self.path {
            Some(path) => self.file.write_all(bytes).context("write", path),
            None => Ok(()),
        }
    }

    /// Makes the blob complete with these bytes. [`Error::Mismatch`] if they do not have its digest, or not its length; then
    /// the blob stays as it is.
    pub fn finish(mut self) -> Result<(), Error> {
        let hasher = self.hasher.clone();
        if self.length != self.blob.size || hasher.finish() != self.blob.digest {
            return Err(Error::Mismatch(self.blob.digest.to_string()));
        }
        match self.path.take() {
            Some(path) => self.blob.adopt(&path).inspect_err(|_| object::discard_temporary(&path)),
            None => Ok(()),
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            object::discard_temporary(path);
        }
    }
}
