//! The blobs of the cache: which are in use, and who may touch the files of one that is not.
//!
//! A blob's value is loaded from its files once and shared; removing or checking those files is for one thread at a time
//! and only while no value exists. [`Registry`] decides both, without a lock during the disk work: a digest is *claimed*
//! for as long as somebody loads or removes it, and others wait for the claim, not for a lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use super::blob::{self, Blob};
use super::layout::{BlobFile, Part, parse_blob};
use super::{Dropped, Error, Shared, Store, Usage, lock};
use crate::oci::Digest;

/// How many values may have been forgotten before the dead ones are swept out of the table.
const SWEEP: usize = 256;

/// The blobs that are open in this process.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Never held across I/O, and nothing is dropped or locked under it.
    inner: Mutex<Inner>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// By digest: one value for each size that some manifest says it has. More than one is a lie of somebody, which must not
    /// be at the cost of the others.
    live: HashMap<Digest, Vec<(u64, Weak<Blob>)>>,
    /// Of all sizes together.
    claimed: HashSet<Digest>,
    sweep_at: usize,
}

/// The sole right to the files of a blob without a value, until dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    registry: &'a Registry,
    digest: Digest,
}

/// A blob in use, or the right to make it so.
enum Found<'a> {
    Live(Arc<Blob>),
    Free(Claim<'a>),
}

/// What the disk has of one blob.
#[derive(Debug, Clone)]
pub(super) struct OnDisk {
    pub(super) usage: Usage,
    pub(super) used: SystemTime,
    pub(super) complete: bool,
    /// The sizes of which there are some bytes.
    pub(super) sizes: BTreeSet<u64>,
}

impl Registry {
    fn find(&self, digest: &Digest, size: u64) -> Found<'_> {
        let mut inner = lock(&self.inner);
        while inner.claimed.contains(digest) {
            inner = self.released.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let live = inner.live_of(digest).find(|(known, _)| *known == size);
        match live.and_then(|(_, blob)| blob.upgrade()) {
            Some(blob) => Found::Live(blob),
            None => Found::Free(self.claim_in(&mut inner, digest)),
        }
    }

    /// The right to the files of `digest`, unless it is in use or claimed.
    pub(super) fn claim_idle(&self, digest: &Digest) -> Option<Claim<'_>> {
        let mut inner = lock(&self.inner);
        if inner.live_of(digest).next().is_some() || inner.claimed.contains(digest) {
            return None;
        }
        Some(self.claim_in(&mut inner, digest))
    }

    /// The values for `digest` that are in use.
    pub(super) fn live(&self, digest: &Digest) -> Vec<Arc<Blob>> {
        lock(&self.inner).live_of(digest).filter_map(|(_, blob)| blob.upgrade()).collect()
    }

    /// All values that are in use.
    pub(super) fn all_live(&self) -> Vec<Arc<Blob>> {
        lock(&self.inner).live.values().flatten().filter_map(|(_, blob)| blob.upgrade()).collect()
    }

    fn claim_in(&self, inner: &mut Inner, digest: &Digest) -> Claim<'_> {
        inner.claimed.insert(*digest);
        Claim { registry: self, digest: *digest }
    }
}

impl Inner {
    fn live_of(&self, digest: &Digest) -> impl Iterator<Item = &(u64, Weak<Blob>)> {
        self.live.get(digest).into_iter().flatten().filter(|(_, blob)| blob.strong_count() > 0)
    }
}

impl Claim<'_> {
    fn publish(&self, blob: &Arc<Blob>) {
        let mut inner = lock(&self.registry.inner);
        if inner.live.len() >= inner.sweep_at.max(SWEEP) {
            inner.live.retain(|_, blobs| blobs.iter().any(|(_, blob)| blob.strong_count() > 0));
            inner.sweep_at = inner.live.len() * 2;
        }
        let blobs = inner.live.entry(self.digest).or_default();
        blobs.retain(|(_, blob)| blob.strong_count() > 0);
        blobs.push((blob.size(), Arc::downgrade(blob)));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.registry.inner).claimed.remove(&self.digest);
        self.registry.released.notify_all();
    }
}

impl Store {
    /// The blob `digest` of `size` bytes, with whatever of it is on disk. Touches the disk but never the network.
    ///
    /// [`Error::Size`] if the blob is known to have another size, because it is complete and good. Before that nobody knows,
    /// and there may be several values of different sizes, of which only one can ever be complete. Waits while another
    /// thread loads or removes the same blob.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<Arc<Blob>, Error> {
        match self.shared.blobs.find(digest, size) {
            Found::Live(blob) => Ok(blob),
            Found::Free(claim) => {
                let blob = Arc::new(Blob::load(&self.shared, digest, size)?);
                claim.publish(&blob);
                Ok(blob)
            }
        }
    }

    /// Removes the blobs not in `keep`. A blob whose value is alive anywhere stays.
    pub fn drop_blobs(&self, keep: &HashSet<Digest>) -> Result<Dropped, Error> {
        let mut dropped = Dropped::default();
        for (digest, on_disk) in self.shared.blobs_on_disk()? {
            let is_gone = !keep.contains(&digest) && self.shared.remove_blob(&digest, &on_disk.sizes)?;
            dropped.add(digest, on_disk.usage, is_gone);
        }
        Ok(dropped)
    }
}

impl Shared {
    /// Removes the files of a blob, of which there are partial ones of these `sizes`; false if it is in use.
    pub(super) fn remove_blob(&self, digest: &Digest, sizes: &BTreeSet<u64>) -> Result<bool, Error> {
        let Some(_claim) = self.blobs.claim_idle(digest) else { return Ok(false) };
        blob::remove_files(self, digest, sizes, Some(BlobFile::Complete))?;
        Ok(true)
    }

    /// Every blob the disk has something of.
    pub(super) fn blobs_on_disk(&self) -> Result<BTreeMap<Digest, OnDisk>, Error> {
        let mut blobs: BTreeMap<Digest, OnDisk> = BTreeMap::new();
        self.layout.walk(Part::Blobs, &mut |found| {
            let Some((digest, file)) = parse_blob(&found.name) else { return Ok(()) };
            let known = blobs.entry(digest).or_insert(OnDisk {
                usage: Usage { count: 1, bytes: 0 },
                used: SystemTime::UNIX_EPOCH,
                complete: false,
                sizes: BTreeSet::new(),
            });
            known.usage.bytes = known.usage.bytes.saturating_add(found.usage().bytes);
            known.used = known.used.max(found.used());
            match file {
                BlobFile::Complete => known.complete = true,
                BlobFile::Partial(size) | BlobFile::Map(size) => drop(known.sizes.insert(size)),
            }
            Ok(())
        })?;
        Ok(blobs)
    }
}
