//! Profiles of starts, and records of what was touched, by manifest.
//!
//! The store keeps their bytes and does not know their form. A record is the profile behind a line with the BLAKE3 of the
//! manifest's digest and the profile, so one that is damaged, or stands under another name, is noticed and counts as
//! absent. Eviction leaves profiles alone, because they are tiny and cannot be fetched again; their number is bounded.

use std::time::SystemTime;

use bytes::Bytes;

use super::layout::{Part, parse_object};
use super::{Context as _, Error, Shared, Store, Usage, object};
use crate::limits::{PROFILE_TEXT_BYTES, PROFILES};
use crate::oci::Digest;

/// Longest record: a profile and the line before it.
pub(super) const RECORD_BYTES: u64 = PROFILE_TEXT_BYTES as u64 + 128;

impl Store {
    /// Keeps the profile of an image, replacing an older one. The least recently used ones go when there are too many.
    pub fn put_profile(&self, manifest: &Digest, profile: &[u8]) -> Result<(), Error> {
        let path = self.shared.layout.object(Part::Profiles, manifest);
        let record = [check(manifest, profile).as_bytes(), b"\n", profile].concat();
        if record.len() as u64 > RECORD_BYTES {
            return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge)).context("write", &path);
        }
        object::put(&self.shared.layout, &path, &record)?;
        self.shared.bound_profiles(manifest)
    }

    /// The profile of an image. A damaged one is removed and counts as absent.
    pub fn profile(&self, manifest: &Digest) -> Result<Option<Bytes>, Error> {
        let path = self.shared.layout.object(Part::Profiles, manifest);
        let Some(file) = object::open(&path)? else { return Ok(None) };
        let record = object::read_whole(&file, RECORD_BYTES).context("read", &path)?.unwrap_or_default();
        if let Some(profile) = decode(manifest, &record) {
            object::touch(&file);
            return Ok(Some(Bytes::copy_from_slice(profile)));
        }
        tracing::debug!(%manifest, "profile was damaged, removed");
        object::remove(&path)?;
        Ok(None)
    }

    /// Keeps what was touched of an image, in the same way as its profile.
    pub fn put_touched(&self, manifest: &Digest, record: &[u8]) -> Result<(), Error> {
        self.put_profile(&name_of_touched(manifest), record)
    }

    /// What was touched of an image.
    pub fn touched(&self, manifest: &Digest) -> Result<Option<Bytes>, Error> {
        self.profile(&name_of_touched(manifest))
    }

    /// Removes the profile of an image; false if there is none.
    pub fn remove_profile(&self, manifest: &Digest) -> Result<bool, Error> {
        object::remove(&self.shared.layout.object(Part::Profiles, manifest))
    }

    /// Removes all profiles.
    pub fn drop_profiles(&self) -> Result<Usage, Error> {
        let mut freed = Usage::default();
        self.shared.layout.walk(Part::Profiles, &mut |found| {
            if parse_object(&found.name).is_some() && object::remove(&found.path)? {
                freed.add(found.usage());
            }
            Ok(())
        })?;
        Ok(freed)
    }
}

impl Shared {
    /// Removes profiles until there are no more than allowed, the least recently used first, and never `kept`.
    fn bound_profiles(&self, kept: &Digest) -> Result<(), Error> {
        let mut others: Vec<(SystemTime, _)> = Vec::new();
        self.layout.walk(Part::Profiles, &mut |found| {
            if parse_object(&found.name).is_some_and(|digest| digest != *kept) {
                others.push((found.used(), found.path));
            }
            Ok(())
        })?;
        others.sort();
        let excess = (others.len() + 1).saturating_sub(PROFILES);
        for (_, path) in others.iter().take(excess) {
            object::remove(path)?;
        }
        Ok(())
    }
}

/// The name beside those of manifests under which it is kept what was touched.
fn name_of_touched(manifest: &Digest) -> Digest {
    Digest::sha256(format!("touched of {manifest}").as_bytes())
}

/// The profile in the record that is stored under `manifest`.
pub(super) fn decode<'a>(manifest: &Digest, record: &'a [u8]) -> Option<&'a [u8]> {
    let (found, profile) = record.split_at_checked(2 * blake3::OUT_LEN)?;
    let profile = profile.strip_prefix(b"\n")?;
    (found == check(manifest, profile).as_bytes()).then_some(profile)
}

fn check(manifest: &Digest, profile: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(manifest.to_string().as_bytes()).update(b"\n").update(profile);
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&dir.path().join("cache")).expect("a new cache");
        (dir, store)
    }

    fn read(store: &Store, manifest: &Digest) -> Option<Bytes> {
        store.profile(manifest).expect("the disk works")
    }

    #[test]
    fn a_profile_is_kept_counted_replaced_and_removed() -> Result<(), Error> {
        let (_dir, store) = store();
        let (one, other) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        assert_eq!(read(&store, &one), None);
        store.put_profile(&one, b"first")?;
        store.put_profile(&other, b"")?;
        store.put_profile(&one, b"second")?;
        assert_eq!(
            (read(&store, &one).as_deref(), read(&store, &other).as_deref()),
            (Some(&b"second"[..]), Some(&b""[..]))
        );
        assert_eq!(store.usage()?.profiles.count, 2);
        assert!(store.usage()?.total().bytes >= store.usage()?.profiles.bytes);
        assert!(store.remove_profile(&other)? && !store.remove_profile(&other)?);
        assert_eq!(store.drop_profiles()?.count, 1);
        assert_eq!(read(&store, &one), None);
        Ok(())
    }

    #[test]
    fn a_profile_that_is_damaged_or_under_another_name_is_absent_and_removed() -> Result<(), Error> {
        let (_dir, store) = store();
        let (one, other) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let path = |digest| store.shared.layout.object(Part::Profiles, digest);
        store.put_profile(&one, b"profile")?;
        fs::copy(path(&one), path(&other)).expect("a copy");
        assert_eq!(read(&store, &other), None);
        assert!(!path(&other).exists() && path(&one).exists());
        for damage in [&b""[..], b"profile", &[b'0'; 80]] {
            fs::write(path(&one), damage).expect("it can be written");
            assert_eq!(read(&store, &one), None);
            assert!(!path(&one).exists());
        }
        Ok(())
    }

    #[test]
    fn verifying_checks_profiles_and_eviction_leaves_them() -> Result<(), Error> {
        let (_dir, store) = store();
        let (one, other) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        store.put_profile(&one, b"profile")?;
        store.put_profile(&other, b"profile")?;
        let path = store.shared.layout.object(Part::Profiles, &other);
        let mut bytes = fs::read(&path).expect("it is there");
        bytes[70] ^= 1;
        fs::write(&path, bytes).expect("it can be written");
        let verified = store.verify(&|_, _, _| false)?;
        assert_eq!((verified.good, verified.removed.len()), (1, 1));
        assert!(verified.removed[0].starts_with("profiles/"), "{:?}", verified.removed);
        store.set_limits(super::super::Limits { max_bytes: Some(1), min_free: None });
        store.evict(&std::collections::HashSet::new())?;
        assert!(read(&store, &one).is_some());
        Ok(())
    }

    #[test]
    fn the_least_recently_used_profiles_go_when_there_are_too_many() -> Result<(), Error> {
        let (_dir, store) = store();
        let digest = |number: usize| Digest::sha256(number.to_string().as_bytes());
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        for number in 0..PROFILES {
            let path = store.shared.layout.object(Part::Profiles, &digest(number));
            fs::write(&path, "").expect("it can be written");
            let times = fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago);
            if number == 7 {
                fs::File::options().write(true).open(&path).and_then(|file| file.set_times(times)).expect("ours");
            }
        }
        store.put_profile(&digest(PROFILES), b"new")?;
        assert_eq!(store.usage()?.profiles.count, PROFILES as u64);
        assert!(!store.shared.layout.object(Part::Profiles, &digest(7)).exists());
        assert!(read(&store, &digest(PROFILES)).is_some());
        Ok(())
    }
}
