//! Checking everything in the cache against its name.

use super::blob::Blob;
use super::documents::is_reference;
use super::layout::{BlobFile, Found, Part, parse_blob, parse_claim, parse_file, parse_object};
use super::{Context as _, Error, Store, Verified, object, profiles};
use crate::limits::STORED_REFERENCE_BYTES;
use crate::oci::Digest;

/// What a check found.
enum Outcome {
    Good,
    Removed,
    /// Not an object, gone meanwhile, or not to be judged here.
    Skipped,
}

impl Store {
    /// Checks every object against its name, removing what is damaged. Indexes, claims and trees are given to `check`, which
    /// knows their formats (the path's first component says which it is; a claim comes with its layer's digest); partial
    /// blobs are left to their readers.
    ///
    /// Reads the whole cache. Of a complete blob that is in use and damaged, the bytes are forgotten and the value stays.
    pub fn verify(&self, check: &dyn Fn(&str, &Digest, &[u8]) -> bool) -> Result<Verified, Error> {
        let mut verified = Verified::default();
        for part in Part::ALL {
            self.shared.layout.walk(part, &mut |found| {
                let outcome = match part {
                    Part::References => self.verify_reference(&found)?,
                    Part::Documents => self.verify_document(&found)?,
                    Part::Blobs => self.verify_blob(&found)?,
                    Part::Files => self.verify_file(&found)?,
                    Part::Profiles => self.verify_profile(&found)?,
                    Part::Claims => {
                        self.verify_mapped(&found, parse_claim(&found.name).map(|(layer, _)| layer), check)?
                    }
                    Part::Indexes | Part::Trees => self.verify_mapped(&found, parse_object(&found.name), check)?,
                    Part::Temporary => Outcome::Skipped,
                };
                match outcome {
                    Outcome::Good => verified.good += 1,
                    Outcome::Removed => verified.removed.push(self.shared.layout.relative(&found.path)),
                    Outcome::Skipped => {}
                }
                Ok(())
            })?;
        }
        Ok(verified)
    }

    fn verify_reference(&self, found: &Found) -> Result<Outcome, Error> {
        let Some(name) = parse_object(&found.name) else { return Ok(Outcome::Skipped) };
        let Some(file) = object::open(&found.path)? else { return Ok(Outcome::Skipped) };
        let bytes = object::read_whole(&file, STORED_REFERENCE_BYTES).context("read", &found.path)?;
        judge(found, bytes.is_some_and(|bytes| is_reference(&name, &bytes)))
    }

    fn verify_profile(&self, found: &Found) -> Result<Outcome, Error> {
        let Some(name) = parse_object(&found.name) else { return Ok(Outcome::Skipped) };
        let Some(file) = object::open(&found.path)? else { return Ok(Outcome::Skipped) };
        let bytes = object::read_whole(&file, profiles::RECORD_BYTES).context("read", &found.path)?;
        judge(found, bytes.is_some_and(|bytes| profiles::decode(&name, &bytes).is_some()))
    }

    fn verify_document(&self, found: &Found) -> Result<Outcome, Error> {
        let Some(digest) = parse_object(&found.name) else { return Ok(Outcome::Skipped) };
        match has_digest(found, &digest)? {
            None => Ok(Outcome::Skipped),
            Some(good) => judge(found, good),
        }
    }

    fn verify_blob(&self, found: &Found) -> Result<Outcome, Error> {
        let Some((digest, BlobFile::Complete)) = parse_blob(&found.name) else { return Ok(Outcome::Skipped) };
        // Hashed without a claim, so that no mount waits for it, and once more with one before anything is removed.
        match has_digest(found, &digest)? {
            None => return Ok(Outcome::Skipped),
            Some(true) => return Ok(Outcome::Good),
            Some(false) => {}
        }
        if let Some(_claim) = self.shared.blobs.claim_idle(&digest) {
            return match has_digest(found, &digest)? {
                None => Ok(Outcome::Skipped),
                Some(good) => judge(found, good),
            };
        }
        // Only one of them can be complete.
        match self.shared.blobs.live(&digest).iter().find(|blob| blob.is_complete()) {
            Some(blob) => verify_live(found, blob),
            None => Ok(Outcome::Skipped),
        }
    }

    fn verify_file(&self, found: &Found) -> Result<Outcome, Error> {
        let Some(content) = parse_file(&found.name) else { return Ok(Outcome::Skipped) };
        match has_digest(found, &Digest::Sha256(content))? {
            None => Ok(Outcome::Skipped),
            Some(true) => Ok(Outcome::Good),
            Some(false) => {
                self.shared.remove_file(&content)?;
                Ok(Outcome::Removed)
            }
        }
    }

    fn verify_mapped(
        &self,
        found: &Found,
        name: Option<Digest>,
        check: &dyn Fn(&str, &Digest, &[u8]) -> bool,
    ) -> Result<Outcome, Error> {
        let Some(digest) = name else { return Ok(Outcome::Skipped) };
        let Some(file) = object::open(&found.path)? else { return Ok(Outcome::Skipped) };
        let mapped = object::Mapped::new(&file).context("map", &found.path)?;
        let bytes = mapped.bytes();
        judge(found, check(&self.shared.layout.relative(&found.path), &digest, bytes))
    }
}

/// Whether the file's bytes have `digest`; `None` if the file is gone.
fn has_digest(found: &Found, digest: &Digest) -> Result<Option<bool>, Error> {
    let Some(file) = object::open(&found.path)? else { return Ok(None) };
    let (actual, _) = object::hash(&file, digest.algorithm()).context("read", &found.path)?;
    Ok(Some(actual == *digest))
}

fn judge(found: &Found, good: bool) -> Result<Outcome, Error> {
    if good {
        return Ok(Outcome::Good);
    }
    object::remove(&found.path)?;
    Ok(Outcome::Removed)
}

/// Hashes a complete blob that is in use, and forgets all of it if it is wrong and no reader is mending it.
fn verify_live(found: &Found, blob: &Blob) -> Result<Outcome, Error> {
    let mark = blob.mark();
    match has_digest(found, &blob.digest())? {
        None => Ok(Outcome::Skipped),
        Some(true) => Ok(Outcome::Good),
        Some(false) if blob.discard_since(0..blob.size(), mark)? => Ok(Outcome::Removed),
        Some(false) => Ok(Outcome::Skipped),
    }
}
