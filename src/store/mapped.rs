//! Layer indexes, claims and trees: files that are mapped into memory instead of read.
//!
//! The store does not know their formats. Whoever decodes one checks it, and removes it here if it is damaged. They are
//! never written in place, so a map cannot change or shrink under its reader (see [`Mapped`]), and removing one
//! that is mapped takes away its name only.
//!
//! An index is named by its layer, because it was made here from the whole of it. What somebody else says of a layer, a
//! claim, is named by the layer and by whatever names the claim, so that it serves only who believes that very claim
//! (D-025). It may be kept in two steps, the metadata first: the second replaces the first.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::layout::{Part, parse_claim, parse_object};
use super::object::Mapped;
use super::{Context as _, Dropped, Error, Store, object};
use crate::oci::Digest;

/// The claim about a layer that a user of this cache brought here, believed because of that. No bytes have this digest,
/// so nothing that is found elsewhere has this name.
pub const IMPORTED: Digest = Digest::Sha256(*b"imported by a user of this cache");

/// The name of the claim of this `kind` that is made of what `parts` say: of all of it, so that nobody can have another
/// claim kept by the same name.
pub fn claim_name(kind: &str, parts: &[&dyn std::fmt::Display]) -> Digest {
    let mut text = kind.to_owned();
    for part in parts {
        // No part has a line break in it, except what is not from outside.
        text.push('\n');
        text.push_str(&part.to_string().replace('\n', "\\n"));
    }
    Digest::sha256(text.as_bytes())
}

impl Store {
    /// Keeps an encoded layer index and returns it memory-mapped.
    pub fn put_index(&self, layer: &Digest, encoded: &[u8]) -> Result<Mapped, Error> {
        self.put_mapped(&self.shared.layout.object(Part::Indexes, layer), encoded)
    }

    /// The encoded index of `layer`, memory-mapped. The caller checks it and calls [`Self::remove_index`] if damaged.
    pub fn index(&self, layer: &Digest) -> Result<Option<Mapped>, Error> {
        mapped(&self.shared.layout.object(Part::Indexes, layer))
    }

    /// Removes the index of `layer`.
    pub fn remove_index(&self, layer: &Digest) -> Result<(), Error> {
        object::remove(&self.shared.layout.object(Part::Indexes, layer)).map(drop)
    }

    /// Keeps what `claim` says of `layer`, encoded, in place of what was kept before, and returns it memory-mapped. Of a
    /// claim whose windows have not arrived, that is its metadata.
    pub fn put_claim(&self, layer: &Digest, claim: &Digest, encoded: &[u8]) -> Result<Mapped, Error> {
        self.put_mapped(&self.shared.layout.claim(layer, claim), encoded)
    }

    /// Begins to keep what `claim` says of `layer`, as it arrives.
    pub fn begin_claim(&self, layer: &Digest, claim: &Digest) -> Result<ClaimDraft, Error> {
        let (path, temporary) = (self.shared.layout.claim(layer, claim), self.shared.layout.temporary());
        let file = object::create(&temporary).context("create", &temporary)?;
        Ok(ClaimDraft { file, temporary, path })
    }

    /// What `claim` says of `layer`, encoded and memory-mapped. The caller checks it and calls [`Self::remove_claim`] if it
    /// is damaged.
    pub fn claim(&self, layer: &Digest, claim: &Digest) -> Result<Option<Mapped>, Error> {
        mapped(&self.shared.layout.claim(layer, claim))
    }

    /// Removes what `claim` says of `layer`.
    pub fn remove_claim(&self, layer: &Digest, claim: &Digest) -> Result<(), Error> {
        object::remove(&self.shared.layout.claim(layer, claim)).map(drop)
    }

    /// Keeps an encoded tree and returns it memory-mapped.
    pub fn put_tree(&self, id: &Digest, encoded: &[u8]) -> Result<Mapped, Error> {
        self.put_mapped(&self.shared.layout.object(Part::Trees, id), encoded)
    }

    /// The encoded tree `id`, memory-mapped. The caller checks it and calls [`Self::remove_tree`] if damaged.
    pub fn tree(&self, id: &Digest) -> Result<Option<Mapped>, Error> {
        mapped(&self.shared.layout.object(Part::Trees, id))
    }

    /// Removes the tree `id`.
    pub fn remove_tree(&self, id: &Digest) -> Result<(), Error> {
        object::remove(&self.shared.layout.object(Part::Trees, id)).map(drop)
    }

    /// Removes the indexes of layers not in `layers`, with all claims about them, and the trees not in `trees`.
    pub fn drop_indexes(&self, layers: &HashSet<Digest>, trees: &HashSet<Digest>) -> Result<Dropped, Error> {
        let mut dropped = Dropped::default();
        for (part, keep) in [(Part::Indexes, layers), (Part::Claims, layers), (Part::Trees, trees)] {
            self.shared.layout.walk(part, &mut |found| {
                let claimed = || parse_claim(&found.name).map(|(layer, _)| layer);
                let name = if part == Part::Claims { claimed() } else { parse_object(&found.name) };
                let Some(digest) = name else { return Ok(()) };
                let is_kept = keep.contains(&digest);
                if is_kept || object::remove(&found.path)? {
                    dropped.add(digest, found.usage(), !is_kept);
                }
                Ok(())
            })?;
        }
        Ok(dropped)
    }

    fn put_mapped(&self, path: &Path, encoded: &[u8]) -> Result<Mapped, Error> {
        object::put(&self.shared.layout, path, encoded)?;
        match mapped(path)? {
            Some(mapped) => Ok(mapped),
            // Evicted in between; what was given is as good.
            None => Ok(Mapped::from(Bytes::copy_from_slice(encoded))),
        }
    }
}

/// A claim of which the end has not arrived. Nobody sees it before [`ClaimDraft::keep`], and dropped before that it leaves
/// nothing. What is kept stands for everybody who believes the claim: whoever writes it has made sure that it is right.
#[derive(Debug)]
pub struct ClaimDraft {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl ClaimDraft {
    /// Adds what comes next.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).context("write", &self.temporary)
    }

    /// What was written so far, memory-mapped. It stays, whether it is kept or not.
    pub fn map(&self) -> Result<Mapped, Error> {
        Mapped::new(&self.file).context("map", &self.temporary)
    }

    /// Puts it in place of what was kept before.
    pub fn keep(self) -> Result<(), Error> {
        fs::rename(&self.temporary, &self.path).context("create", &self.path)
    }
}

impl Drop for ClaimDraft {
    fn drop(&mut self) {
        match fs::remove_file(&self.temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(path = ?self.temporary, %error, "temporary file left behind");
            }
            // Kept, it has another name.
            _ => {}
        }
    }
}

fn mapped(path: &Path) -> Result<Option<Mapped>, Error> {
    let Some(file) = object::open(path)? else { return Ok(None) };
    object::touch(&file);
    Mapped::new(&file).map(Some).context("map", path)
}
