//! Manifests, image indexes and configurations, what references resolved to, and where blobs lie.
//!
//! A document is checked against its digest whenever it is read. A reference has no digest of its own: its record is JSON
//! behind a line with the BLAKE3 of that JSON, so a damaged record is noticed and counts as absent.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::layout::{Part, parse_object};
use super::{Context as _, Dropped, Error, Store, object};
use crate::limits::{PLACES, STORED_DOCUMENT_BYTES, STORED_REFERENCE_BYTES};
use crate::oci::Digest;

/// What is written in a reference's file.
#[derive(Serialize, Deserialize)]
struct Resolved {
    reference: String,
    digest: String,
    media_type: String,
}

impl Store {
    /// Remembers that `reference` (canonical text) resolved to the document `digest` of `media_type`.
    pub fn put_reference(&self, reference: &str, digest: &Digest, media_type: &str) -> Result<(), Error> {
        let path = self.reference_path(reference);
        let record =
            Resolved { reference: reference.to_owned(), digest: digest.to_string(), media_type: media_type.to_owned() };
        let json = serde_json::to_string(&record).map_err(io::Error::from).context("encode", &path)?;
        let text = format!("{}\n{json}", blake3::hash(json.as_bytes()).to_hex());
        if text.len() as u64 > STORED_REFERENCE_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge)).context("write", &path);
        }
        object::put(&self.shared.layout, &path, text.as_bytes())
    }

    /// What `reference` resolved to last: digest and media type. A damaged record is removed and counts as absent.
    pub fn reference(&self, reference: &str) -> Result<Option<(Digest, String)>, Error> {
        let path = self.reference_path(reference);
        let Some(bytes) = read_small(&path, STORED_REFERENCE_BYTES)? else { return Ok(None) };
        match decode(&bytes) {
            Some((found, digest, media_type)) if found == reference => Ok(Some((digest, media_type))),
            _ => {
                tracing::debug!(path = ?path, "record of a reference was damaged, removed");
                object::remove(&path)?;
                Ok(None)
            }
        }
    }

    /// Remembers that `repository` of the registry `host` has the blob `digest`. Another blob may be forgotten for it.
    pub fn put_place(&self, host: &str, digest: &Digest, repository: &str) -> Result<(), Error> {
        if self.place(host, digest)?.as_deref() == Some(repository) {
            return Ok(());
        }
        self.put_reference(&slot_of(host, digest), digest, &format!("{host} {repository}"))
    }

    /// The repository of the registry `host` of which that was remembered last.
    pub fn place(&self, host: &str, digest: &Digest) -> Result<Option<String>, Error> {
        let Some((found, place)) = self.reference(&slot_of(host, digest))? else { return Ok(None) };
        let repository = place.split_once(' ').filter(|(at, _)| *at == host && found == *digest);
        Ok(repository.map(|(_, repository)| repository.to_owned()))
    }

    /// Keeps a manifest, image index or configuration under its digest, which is checked.
    pub fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.shared.layout.object(Part::Documents, digest);
        if bytes.len() as u64 > STORED_DOCUMENT_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge)).context("write", &path);
        }
        if !digest.matches(bytes) {
            return Err(Error::Mismatch(digest.to_string()));
        }
        object::put(&self.shared.layout, &path, bytes)
    }

    /// A kept document; a damaged one is removed and counts as absent.
    pub fn document(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let path = self.shared.layout.object(Part::Documents, digest);
        let Some(bytes) = read_small(&path, STORED_DOCUMENT_BYTES)? else { return Ok(None) };
        if digest.matches(&bytes) {
            return Ok(Some(bytes.into()));
        }
        tracing::debug!(%digest, "document was damaged, removed");
        object::remove(&path)?;
        Ok(None)
    }

    /// Removes documents and references, except the documents in `keep`.
    pub fn drop_documents(&self, keep: &HashSet<Digest>) -> Result<Dropped, Error> {
        let mut dropped = Dropped::default();
        for part in [Part::References, Part::Documents] {
            self.shared.layout.walk(part, &mut |found| {
                let Some(digest) = parse_object(&found.name) else { return Ok(()) };
                let is_kept = part == Part::Documents && keep.contains(&digest);
                if is_kept || object::remove(&found.path)? {
                    dropped.add(digest, found.usage(), !is_kept);
                }
                Ok(())
            })?;
        }
        Ok(dropped)
    }

    /// References are text from outside, of any length and with any characters; their hash makes a name.
    fn reference_path(&self, reference: &str) -> PathBuf {
        self.shared.layout.object(Part::References, &name_of(reference))
    }
}

/// By what the place of a blob is remembered, as the media type of what resolves to the blob: one of so many that nothing need
/// count them. No reference has a blank in it.
fn slot_of(host: &str, digest: &Digest) -> String {
    let name = name_of(&format!("{digest} {host}"));
    let number = name.bytes().iter().take(4).fold(0, |number, byte| number << 8 | usize::from(*byte));
    format!("place {}", number % PLACES)
}

fn name_of(reference: &str) -> Digest {
    Digest::sha256(reference.as_bytes())
}

/// True if `bytes` are an undamaged record of the reference that `name` stands for.
pub(super) fn is_reference(name: &Digest, bytes: &[u8]) -> bool {
    decode(bytes).is_some_and(|(reference, _, _)| name_of(&reference) == *name)
}

fn decode(bytes: &[u8]) -> Option<(String, Digest, String)> {
    let (check, json) = bytes.split_at_checked(2 * blake3::OUT_LEN)?;
    let json = json.strip_prefix(b"\n")?;
    if check != blake3::hash(json).to_hex().as_bytes() {
        return None;
    }
    let record: Resolved = serde_json::from_slice(json).ok()?;
    Some((record.reference, record.digest.parse().ok()?, record.media_type))
}

/// The bytes of a small file. One that is too long reads as empty, which no check takes for good.
fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let Some(file) = object::open(path)? else { return Ok(None) };
    Ok(Some(object::read_whole(&file, limit).context("read", path)?.unwrap_or_default()))
}
