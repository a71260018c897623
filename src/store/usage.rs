//! How much the cache holds, by part.

use super::layout::Part;
use super::{DiskUsage, Error, Shared, Store, Usage};

impl Usage {
    /// Adds what another part holds, or lost.
    pub fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl DiskUsage {
    /// All parts together.
    pub fn total(&self) -> Usage {
        let mut total = Usage::default();
        for part in [self.manifests, self.blobs, self.indexes, self.trees, self.files, self.profiles, self.scratch] {
            total.add(part);
        }
        total
    }
}

impl Store {
    /// What the cache holds. Walks the whole directory: a fraction of a second for a hundred thousand files.
    pub fn usage(&self) -> Result<DiskUsage, Error> {
        let mut manifests = self.shared.usage_of(Part::Documents)?;
        // What references resolved to belongs to the manifests, but they are not counted as such.
        manifests.bytes = manifests.bytes.saturating_add(self.shared.usage_of(Part::References)?.bytes);
        let mut indexes = self.shared.usage_of(Part::Indexes)?;
        indexes.add(self.shared.usage_of(Part::Claims)?);
        let mut blobs = Usage::default();
        self.shared.blobs_on_disk()?.values().for_each(|blob| blobs.add(blob.usage));
        Ok(DiskUsage {
            manifests,
            blobs,
            indexes,
            trees: self.shared.usage_of(Part::Trees)?,
            files: self.shared.usage_of(Part::Files)?,
            profiles: self.shared.usage_of(Part::Profiles)?,
            scratch: self.shared.scratch.usage(),
        })
    }
}

impl Shared {
    fn usage_of(&self, part: Part) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        self.layout.walk(part, &mut |found| {
            usage.add(found.usage());
            Ok(())
        })?;
        Ok(usage)
    }
}
