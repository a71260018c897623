//! Layer indexes and trees: files that are mapped into memory instead of read.
//!
//! The store does not know their formats. Whoever decodes one checks it, and removes it here if it is damaged. They are
//! never written in place, so a map cannot change or shrink under its reader (see [`Mapped`]), and removing one
//! that is mapped takes away its name only.

use std::collections::HashSet;

use bytes::Bytes;

use super::layout::{Part, parse_object};
use super::object::Mapped;
use super::{Context as _, Error, Store, Usage, object};
use crate::oci::Digest;

impl Store {
    /// Keeps an encoded layer index and returns it memory-mapped.
    pub fn put_index(&self, layer: &Digest, encoded: &[u8]) -> Result<Mapped, Error> {
        self.put_mapped(Part::Indexes, layer, encoded)
    }

    /// The encoded index of `layer`, memory-mapped. The caller checks it and calls [`Self::remove_index`] if damaged.
    pub fn index(&self, layer: &Digest) -> Result<Option<Mapped>, Error> {
        self.mapped(Part::Indexes, layer)
    }

    /// Removes the index of `layer`.
    pub fn remove_index(&self, layer: &Digest) -> Result<(), Error> {
        object::remove(&self.shared.layout.object(Part::Indexes, layer)).map(drop)
    }

    /// Keeps an encoded tree and returns it memory-mapped.
    pub fn put_tree(&self, id: &Digest, encoded: &[u8]) -> Result<Mapped, Error> {
        self.put_mapped(Part::Trees, id, encoded)
    }

    /// The encoded tree `id`, memory-mapped. The caller checks it and calls [`Self::remove_tree`] if damaged.
    pub fn tree(&self, id: &Digest) -> Result<Option<Mapped>, Error> {
        self.mapped(Part::Trees, id)
    }

    /// Removes the tree `id`.
    pub fn remove_tree(&self, id: &Digest) -> Result<(), Error> {
        object::remove(&self.shared.layout.object(Part::Trees, id)).map(drop)
    }

    /// Removes the indexes of layers not in `layers`, and the trees not in `trees`.
    pub fn drop_indexes(&self, layers: &HashSet<Digest>, trees: &HashSet<Digest>) -> Result<Usage, Error> {
        let mut freed = Usage::default();
        for (part, keep) in [(Part::Indexes, layers), (Part::Trees, trees)] {
            self.shared.layout.walk(part, &mut |found| {
                let Some(digest) = parse_object(&found.name) else { return Ok(()) };
                if !keep.contains(&digest) && object::remove(&found.path)? {
                    freed.add(found.usage());
                }
                Ok(())
            })?;
        }
        Ok(freed)
    }

    fn put_mapped(&self, part: Part, digest: &Digest, encoded: &[u8]) -> Result<Mapped, Error> {
        let path = self.shared.layout.object(part, digest);
        object::put(&self.shared.layout, &path, encoded)?;
        match self.mapped(part, digest)? {
            Some(mapped) => Ok(mapped),
            // Evicted in between; what was given is as good.
            None => Ok(Mapped::from(Bytes::copy_from_slice(encoded))),
        }
    }

    fn mapped(&self, part: Part, digest: &Digest) -> Result<Option<Mapped>, Error> {
        let path = self.shared.layout.object(part, digest);
        let Some(file) = object::open(&path)? else { return Ok(None) };
        object::touch(&file);
        Mapped::new(&file).map(Some).context("map", &path)
    }
}
