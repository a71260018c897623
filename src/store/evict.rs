//! Keeping the cache within its bounds: the least recently used goes first.
//!
//! Decoded files go before compressed blobs, because they can be decoded again without the network, and blobs go before
//! indexes, claims and trees, which are small and cost a whole pass over a layer to make again. What is named as kept, and
//! what is open, stays. Documents, references and profiles are tiny and stay as well; profiles have a bound
//! of their own.

use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::path::Path;
use std::time::SystemTime;

use super::layout::{Part, parse_claim, parse_file, parse_object};
use super::{Context as _, Error, Shared, Store, Usage, lock, object};
use crate::limits::EVICTION_BATCH;
use crate::oci::Digest;

/// How much the cache may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes on disk, `None` for no limit.
    pub max_bytes: Option<u64>,
    /// Least bytes to leave free on the file system, `None` for no limit.
    pub min_free: Option<u64>,
}

/// An eviction frees this fraction of the limit more than it must: each costs a walk of the cache.
const SLACK: u64 = 16;

/// Least default for [`Limits::max_bytes`], and most default for [`Limits::min_free`].
const GIB: u64 = 1 << 30;

/// What is evicted together, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Files,
    Blobs,
    Mapped,
}

/// Something that may go. Ordered by age first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    used: SystemTime,
    /// What is freed; compared so that the order is total.
    bytes: u64,
    object: Object,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    File([u8; 32]),
    /// With the sizes of which some bytes are here.
    Blob(Digest, BTreeSet<u64>),
    Index(Digest),
    /// What one claim says of one layer.
    Claim(Digest, Digest),
    Tree(Digest),
}

impl Limits {
    /// The default for a cache at `dir`: 10 % of its file system, at least 1 GiB, leaving 5 % free, at most 1 GiB.
    pub fn of_file_system(dir: &Path) -> Result<Self, Error> {
        let (total, _) = space(dir)?;
        Ok(Self { max_bytes: Some((total / 10).max(GIB)), min_free: Some((total / 20).min(GIB)) })
    }
}

impl Store {
    /// Sets the bounds that [`evict`](Self::evict) keeps. There are none at first.
    pub fn set_limits(&self, limits: Limits) {
        *lock(&self.shared.limits) = limits;
    }

    /// The bounds that [`evict`](Self::evict) keeps.
    pub fn limits(&self) -> Limits {
        *lock(&self.shared.limits)
    }

    /// Brings the cache within its limits, if it is over them; returns what was freed.
    ///
    /// What `keep` names stays, whether as blob, index, claim about a layer, tree or decoded file, and so does what is open. The cache
    /// may stay over its limits for that reason. Walks the cache once or more; not for the path of a read.
    pub fn evict(&self, keep: &HashSet<Digest>) -> Result<Usage, Error> {
        let mut freed = Usage::default();
        let excess = self.excess()?;
        for tier in [Tier::Files, Tier::Blobs, Tier::Mapped] {
            while freed.bytes < excess {
                let before = freed.count;
                for candidate in self.shared.oldest(tier, keep)? {
                    if freed.bytes >= excess {
                        break;
                    }
                    if self.shared.evict_one(&candidate.object)? {
                        freed.add(Usage { count: 1, bytes: candidate.bytes });
                    }
                }
                if freed.count == before {
                    break;
                }
            }
        }
        Ok(freed)
    }

    /// Bytes that this user may still write to the cache's file system.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        Ok(space(self.dir())?.1)
    }

    /// True if the cache may take a decoded file of `size` bytes: what is to stay free stays so, and most of what the cache
    /// may hold is left for other things. One that is evicted at once would be decoded again and again.
    pub fn has_room(&self, size: u64) -> Result<bool, Error> {
        let Limits { max_bytes, min_free } = self.limits();
        let fits = max_bytes.is_none_or(|max| size <= max / 2);
        Ok(fits && self.free_bytes()?.saturating_sub(min_free.unwrap_or(0)) >= size)
    }

    /// True if there is nothing to evict. Walks the cache directory if it is bounded.
    pub fn is_within_limits(&self) -> Result<bool, Error> {
        Ok(self.excess()? == 0)
    }

    /// Bytes to free, 0 if the cache is within its limits.
    fn excess(&self) -> Result<u64, Error> {
        let limits = self.limits();
        let mut excess = 0;
        if let Some(max) = limits.max_bytes {
            excess = over(self.usage()?.total().bytes, max, max);
        }
        if let Some(min) = limits.min_free {
            let (_, free) = space(self.dir())?;
            excess = excess.max(over(min, free, min));
        }
        Ok(excess)
    }
}

/// How far `have` is above `bound`, and some more of `limit` if it is above at all.
fn over(have: u64, bound: u64, limit: u64) -> u64 {
    match have.saturating_sub(bound) {
        0 => 0,
        excess => excess.saturating_add(limit / SLACK),
    }
}

/// Total and free bytes of the file system that holds `dir`.
fn space(dir: &Path) -> Result<(u64, u64), Error> {
    let stat = rustix::fs::statvfs(dir).map_err(std::io::Error::from).context("examine", dir)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

impl Shared {
    /// The candidates of `tier` that were used longest ago, oldest first, at most [`EVICTION_BATCH`].
    fn oldest(&self, tier: Tier, keep: &HashSet<Digest>) -> Result<Vec<Candidate>, Error> {
        let mut oldest = BinaryHeap::new();
        let mut offer = |used, bytes, object| {
            oldest.push(Candidate { used, bytes, object });
            if oldest.len() > EVICTION_BATCH {
                oldest.pop();
            }
        };
        match tier {
            Tier::Files => self.layout.walk(Part::Files, &mut |found| {
                if let Some(content) = parse_file(&found.name)
                    && !keep.contains(&Digest::Sha256(content))
                    && !self.files.in_use(&content)
                {
                    offer(found.used(), found.usage().bytes, Object::File(content));
                }
                Ok(())
            })?,
            Tier::Blobs => {
                for (digest, blob) in self.blobs_on_disk()? {
                    if !keep.contains(&digest) {
                        offer(blob.used, blob.usage.bytes, Object::Blob(digest, blob.sizes));
                    }
                }
            }
            Tier::Mapped => {
                for (part, object) in [(Part::Indexes, Object::Index as fn(_) -> _), (Part::Trees, Object::Tree)] {
                    self.layout.walk(part, &mut |found| {
                        if let Some(digest) = parse_object(&found.name)
                            && !keep.contains(&digest)
                        {
                            offer(found.used(), found.usage().bytes, object(digest));
                        }
                        Ok(())
                    })?;
                }
                self.layout.walk(Part::Claims, &mut |found| {
                    if let Some((layer, claim)) = parse_claim(&found.name)
                        && !keep.contains(&layer)
                    {
                        offer(found.used(), found.usage().bytes, Object::Claim(layer, claim));
                    }
                    Ok(())
                })?;
            }
        }
        Ok(oldest.into_sorted_vec())
    }

    /// Removes one object; false if it is in use by now, or gone.
    fn evict_one(&self, object: &Object) -> Result<bool, Error> {
        match object {
            Object::File(content) if self.files.in_use(content) => Ok(false),
            Object::File(content) => self.remove_file(content),
            Object::Blob(digest, sizes) => self.remove_blob(digest, sizes),
            Object::Index(digest) => object::remove(&self.layout.object(Part::Indexes, digest)),
            Object::Claim(layer, claim) => object::remove(&self.layout.claim(layer, claim)),
            Object::Tree(digest) => object::remove(&self.layout.object(Part::Trees, digest)),
        }
    }
}

#[cfg(test)]
mod tests;
