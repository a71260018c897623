//! Whole objects, usage, dropping and checking; the pieces have tests of their own.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layout::{BlobFile, Part};
use super::*;
use crate::oci::{Algorithm, Digest};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// A store in a directory that goes away with it.
pub(super) struct Scratch {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: Store,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(dir.path()).expect("a new cache directory opens");
        Self { dir, store }
    }

    /// The same directory in what could be the next process.
    pub(super) fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = Store::open(dir.path()).expect("the last owner is gone");
        Self { dir, store }
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// Publishes `bytes` as a decoded file.
    pub(super) fn publish(&self, bytes: &[u8]) -> [u8; 32] {
        let Digest::Sha256(content) = Digest::sha256(bytes) else { unreachable!("a SHA-256 digest") };
        let new = self.store.new_file(&content, bytes.len() as u64).expect("begun");
        new.write(0, bytes).expect("written");
        new.publish().expect("published");
        content
    }

    /// Makes a complete blob of `bytes`.
    pub(super) fn complete(&self, bytes: &[u8]) -> Arc<Blob> {
        let blob = self.store.blob(&Digest::sha256(bytes), bytes.len() as u64).expect("loaded");
        blob.write(0, bytes).expect("written");
        blob.complete(false).expect("completed");
        blob
    }
}

/// Changes one bit in the middle of a file, behind the store's back.
pub(super) fn flip(path: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("the object is there");
    let middle = file.metadata().expect("metadata").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("read");
    file.write_all_at(&[byte[0] ^ 4], middle).expect("written");
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).expect("a directory").next().is_none()
}

#[test]
fn a_document_is_what_was_put_until_it_is_damaged() -> Result {
    let scratch = Scratch::new();
    for digest in [Digest::sha256(b"manifest"), Digest::of(Algorithm::Sha512, b"manifest")] {
        assert_eq!(scratch.store.document(&digest)?, None);
        assert!(matches!(scratch.store.put_document(&digest, b"another"), Err(Error::Mismatch(_))));
        assert_eq!(scratch.store.document(&digest)?, None, "nothing of a mismatch is kept");
        scratch.store.put_document(&digest, b"manifest")?;
        assert_eq!(scratch.store.document(&digest)?.as_deref(), Some(&b"manifest"[..]));
        let path = scratch.store.shared.layout.object(Part::Documents, &digest);
        flip(&path);
        assert_eq!(scratch.store.document(&digest)?, None);
        assert!(!path.exists());
    }
    assert!(is_empty(&scratch.path("tmp")));
    Ok(())
}

#[test]
fn d_060_a_document_beyond_the_bound_is_neither_kept_nor_read() -> Result {
    let scratch = Scratch::new();
    let long = vec![b' '; crate::limits::STORED_DOCUMENT_BYTES as usize + 1];
    let digest = Digest::sha256(&long);
    assert!(scratch.store.put_document(&digest, &long).is_err());
    fs::write(scratch.store.shared.layout.object(Part::Documents, &digest), &long)?;
    assert_eq!(scratch.store.document(&digest)?, None);
    Ok(())
}

#[test]
fn d_025_a_reference_is_known_by_its_exact_text_only() -> Result {
    let scratch = Scratch::new();
    let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
    let odd = "../../etc/passwd\n\u{1b}[2J:tag";
    scratch.store.put_reference("registry.test/a:1", &two, "old")?;
    scratch.store.put_reference("registry.test/a:1", &one, "application/json")?;
    scratch.store.put_reference(odd, &two, "")?;
    let scratch = scratch.reopen();
    assert_eq!(scratch.store.reference("registry.test/a:1")?, Some((one, "application/json".to_owned())));
    assert_eq!(scratch.store.reference(odd)?, Some((two, String::new())));
    assert_eq!(scratch.store.reference("registry.test/a:2")?, None);
    // A record under the name of another reference says nothing.
    let path =
        |reference: &str| scratch.store.shared.layout.object(Part::References, &Digest::sha256(reference.as_bytes()));
    fs::copy(path(odd), path("registry.test/a:2"))?;
    assert_eq!(scratch.store.reference("registry.test/a:2")?, None);
    assert!(scratch.store.put_reference(&"x".repeat(20_000), &one, "").is_err());
    Ok(())
}

#[test]
fn no_flipped_bit_of_a_reference_goes_unnoticed() -> Result {
    let scratch = Scratch::new();
    let digest = Digest::sha256(b"1");
    scratch.store.put_reference("a", &digest, "type")?;
    let path = scratch.store.shared.layout.object(Part::References, &Digest::sha256(b"a"));
    let good = fs::read(&path)?;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, bad)?;
        assert_eq!(scratch.store.reference("a")?, None, "byte {at}");
        assert!(!path.exists(), "byte {at}");
    }
    Ok(())
}

#[test]
fn a_mapped_object_outlives_its_replacement_and_removal() -> Result {
    let scratch = Scratch::new();
    let id = Digest::sha256(b"layer");
    let old = scratch.store.put_index(&id, &[1; 10_000])?;
    let new = scratch.store.put_index(&id, &[2; 50])?;
    scratch.store.remove_index(&id)?;
    scratch.store.remove_index(&id)?;
    assert!(scratch.store.index(&id)?.is_none());
    assert!(old.iter().all(|&byte| byte == 1) && old.len() == 10_000);
    assert_eq!(new[..], [2; 50][..]);
    assert_eq!(scratch.store.put_tree(&id, b"")?[..], b""[..]);
    assert_eq!(scratch.store.tree(&id)?.as_deref(), Some(&b""[..]));
    scratch.store.remove_tree(&id)?;
    assert!(scratch.store.tree(&id)?.is_none());
    assert!(is_empty(&scratch.path("tmp")));
    Ok(())
}

#[test]
fn d_025_what_one_claim_says_of_a_layer_is_nobody_elses() -> Result {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (layer, other) = (Digest::sha256(b"layer"), Digest::sha256(b"other layer"));
    let (good, bad) = (Digest::sha256(b"good"), Digest::of(Algorithm::Sha512, b"bad"));
    store.put_claim(&layer, &good, &[1; 3000])?;
    store.put_claim(&layer, &bad, &[2; 4000])?;
    store.put_index(&layer, &[3; 5000])?;
    store.put_claim(&other, &good, &[4; 6000])?;
    let metadata = store.claim(&layer, &good)?.ok_or("it was kept")?;
    store.put_claim(&layer, &good, &[5; 9000])?;
    assert_eq!(metadata[..], [1; 3000], "who has the metadata keeps it");
    let read = |layer: &Digest, claim: &Digest| -> std::result::Result<Option<Vec<u8>>, Error> {
        Ok(store.claim(layer, claim)?.map(|bytes| bytes.to_vec()))
    };
    assert_eq!(read(&layer, &good)?, Some(vec![5; 9000]));
    assert_eq!(read(&layer, &bad)?, Some(vec![2; 4000]));
    assert_eq!(store.index(&layer)?.map(|bytes| bytes.to_vec()), Some(vec![3; 5000]));
    store.remove_claim(&layer, &bad)?;
    assert_eq!((read(&layer, &bad)?, read(&layer, &good)?.is_some()), (None, true));
    assert_eq!(store.usage()?.indexes.count, 3);
    let seen = std::cell::RefCell::new(Vec::new());
    let checked = store.verify(&|path, name, bytes| {
        seen.borrow_mut().push((path.split('/').next().unwrap_or_default().to_owned(), *name));
        bytes[0] != 4
    })?;
    assert_eq!((checked.good, checked.removed.len()), (2, 1));
    assert!(seen.borrow().contains(&("claims".to_owned(), other)), "{seen:?}");
    assert_eq!(read(&other, &good)?, None);
    store.put_claim(&other, &good, &[4; 6000])?;
    store.drop_indexes(&HashSet::from([layer]), &HashSet::new())?;
    assert_eq!((read(&layer, &good)?.is_some(), read(&other, &good)?), (true, None));
    store.set_limits(Limits { max_bytes: Some(1), min_free: None });
    store.evict(&HashSet::from([layer]))?;
    assert!(read(&layer, &good)?.is_some(), "its layer is in use");
    store.evict(&HashSet::new())?;
    assert_eq!(read(&layer, &good)?, None);
    Ok(())
}

#[test]
fn a_claim_that_arrives_is_seen_when_it_is_whole_or_never() -> Result {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (layer, claim) = (Digest::sha256(b"layer"), Digest::sha256(b"claim"));
    store.put_claim(&layer, &claim, b"metadata")?;
    let mut draft = store.begin_claim(&layer, &claim)?;
    draft.write(b"metadata and ")?;
    drop(draft);
    let temporary = || std::fs::read_dir(scratch.dir.path().join("tmp")).map(Iterator::count);
    assert_eq!((store.claim(&layer, &claim)?.as_deref(), temporary()?), (Some(&b"metadata"[..]), 0));
    let mut draft = store.begin_claim(&layer, &claim)?;
    draft.write(b"metadata and ")?;
    assert_eq!(store.claim(&layer, &claim)?.as_deref(), Some(&b"metadata"[..]));
    draft.write(b"windows")?;
    let mapped = draft.map()?;
    draft.keep()?;
    assert_eq!(mapped[..], *b"metadata and windows");
    assert_eq!((store.claim(&layer, &claim)?.as_deref(), temporary()?), (Some(&b"metadata and windows"[..]), 0));
    Ok(())
}

#[test]
fn usage_counts_objects_and_allocated_bytes() -> Result {
    let scratch = Scratch::new();
    assert_eq!(scratch.store.usage()?, DiskUsage::default());
    scratch.store.put_document(&Digest::sha256(b"m"), b"m")?;
    scratch.store.put_index(&Digest::sha256(b"l"), &[1; 5000])?;
    scratch.store.put_tree(&Digest::sha256(b"t"), b"tree")?;
    scratch.publish(&[7; 100_000]);
    scratch.complete(&[8; 100_000]);
    let sparse = scratch.store.blob(&Digest::sha256(b"sparse"), 1 << 30)?;
    sparse.write(1 << 29, &[9; 4096])?;
    let usage = scratch.store.usage()?;
    let counts = [usage.manifests, usage.blobs, usage.indexes, usage.trees, usage.files].map(|usage| usage.count);
    assert_eq!(counts, [1, 2, 1, 1, 1]);
    assert!(usage.files.bytes >= 100_000 && usage.files.bytes < 200_000, "{usage:?}");
    assert!(usage.blobs.bytes >= 104_096 && usage.blobs.bytes < 1 << 20, "sparse counts what it holds: {usage:?}");
    assert_eq!(usage.total().count, 6);
    Ok(())
}

#[test]
fn dropping_takes_all_that_is_neither_kept_nor_open() -> Result {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let digests: Vec<Digest> = (0..4_u8).map(|number| Digest::sha256(&[number; 5000])).collect();
    for number in 0..4 {
        let bytes = [number; 5000];
        store.put_document(&digests[usize::from(number)], &bytes)?;
        store.put_index(&digests[usize::from(number)], &bytes)?;
        store.put_tree(&digests[usize::from(number)], &bytes)?;
    }
    store.put_reference("a", &digests[0], "type")?;
    let open = scratch.complete(&[0; 5000]);
    drop(scratch.complete(&[1; 5000]));
    drop(scratch.complete(&[2; 5000]));
    store.blob(&digests[3], 5000)?.write(7, b"partial")?;
    let files: Vec<[u8; 32]> = (0..4_u8).map(|number| scratch.publish(&[number; 5000])).collect();
    let file = store.file(&files[2])?;

    let keep = HashSet::from([digests[1], Digest::sha256(b"elsewhere")]);
    let before = store.usage()?;
    let dropped = store.drop_blobs(&keep)?;
    let freed = dropped.freed;
    assert_eq!(freed.count, 2);
    assert_eq!(
        dropped.kept.keys().collect::<BTreeSet<_>>(),
        BTreeSet::from([&digests[0], &digests[1]]),
        "open, or named"
    );
    assert_eq!(before.blobs.bytes - freed.bytes, dropped.kept.values().map(|usage| usage.bytes).sum::<u64>());
    assert_eq!(before.blobs.bytes - freed.bytes, store.usage()?.blobs.bytes);
    assert_eq!(open.read(0..5000)?.as_deref(), Some(&[0; 5000][..]));
    assert!(store.blob(&digests[1], 5000)?.is_complete());
    assert_eq!(store.blob(&digests[2], 5000)?.present_bytes(), 0);
    assert_eq!(store.blob(&digests[3], 5000)?.present_bytes(), 0);

    let dropped = store.drop_files()?;
    assert_eq!((dropped.freed.count, dropped.kept.keys().collect::<Vec<_>>()), (3, vec![&Digest::Sha256(files[2])]));
    assert!(file.is_some() && store.file(&files[2])?.is_some());
    assert!(store.file(&files[1])?.is_none());

    let dropped = store.drop_indexes(&keep, &HashSet::from([digests[2]]))?;
    let freed = dropped.freed;
    assert_eq!(dropped.kept.keys().collect::<BTreeSet<_>>(), BTreeSet::from([&digests[1], &digests[2]]));
    assert_eq!((freed.count, freed.bytes), (6, before.indexes.bytes / 4 * 3 + before.trees.bytes / 4 * 3));
    assert!(store.index(&digests[1])?.is_some() && store.tree(&digests[2])?.is_some());

    assert_eq!(store.drop_documents(&keep)?.freed.count, 4);
    assert!(store.document(&digests[1])?.is_some());
    assert_eq!(store.reference("a")?, None);
    Ok(())
}

#[test]
fn verify_finds_one_damaged_object_of_every_kind() -> Result {
    let scratch = Scratch::new();
    let layout = &scratch.store.shared.layout;
    let mut damaged = Vec::new();
    for (number, damage) in [(1_u8, false), (2, true)] {
        let bytes = [number; 3000];
        let digest = Digest::sha256(&bytes);
        scratch.store.put_reference(&number.to_string(), &digest, "type")?;
        scratch.store.put_document(&digest, &bytes)?;
        scratch.store.put_index(&digest, &bytes)?;
        scratch.store.put_tree(&digest, &bytes)?;
        drop(scratch.complete(&bytes));
        let content = scratch.publish(&bytes);
        let paths = [
            layout.object(Part::References, &Digest::sha256(number.to_string().as_bytes())),
            layout.object(Part::Documents, &digest),
            layout.blob(&digest, BlobFile::Complete),
            layout.object(Part::Indexes, &digest),
            layout.object(Part::Trees, &digest),
            layout.file(&content),
        ];
        if damage {
            paths.iter().for_each(|path| flip(path));
            damaged = paths.iter().map(|path| layout.relative(path)).collect();
        }
    }
    scratch.store.blob(&Digest::sha256(b"partial"), 7)?.write(0, b"wrong")?;
    fs::write(scratch.path("blobs/notes"), "somebody else's")?;
    let verified = scratch.store.verify(&|path, digest, bytes| {
        assert!(path.starts_with("indexes/") || path.starts_with("trees/"));
        digest.matches(bytes)
    })?;
    assert_eq!(verified.good, 6);
    assert_eq!(verified.removed, damaged);
    assert!(damaged.iter().all(|path| !scratch.path(path).exists()));
    assert!(scratch.path("blobs/notes").exists());
    Ok(())
}

#[test]
fn verify_forgets_the_bytes_of_a_damaged_blob_in_use() -> Result {
    let scratch = Scratch::new();
    let blob = scratch.complete(&[5; 3000]);
    flip(&scratch.store.shared.layout.blob(&blob.digest(), BlobFile::Complete));
    let verified = scratch.store.verify(&|_, _, _| true)?;
    assert_eq!((verified.good, verified.removed.len()), (0, 1));
    assert_eq!((blob.is_complete(), blob.present_bytes()), (false, 0));
    blob.write(0, &[5; 3000])?;
    blob.complete(false)?;
    Ok(())
}

/// A tmpfs of a few pages, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(dir.path()).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                assert!(std::env::var_os("CI").is_none(), "mounting a tmpfs is possible in CI: {other:?}");
                eprintln!("SKIPPED: cannot mount a tmpfs: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "tmpfs left mounted");
    }
}

#[test]
fn a_full_disk_is_reported_as_such_and_records_nothing() -> Result {
    let Some(disk) = SmallDisk::new("size=512k") else { return Ok(()) };
    let store = Store::open(disk.0.path())?;
    let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8 + 1).collect();
    let digest = Digest::sha256(&content);
    let blob = store.blob(&digest, content.len() as u64)?;
    let mut written = 0;
    let error = loop {
        match blob.write(written, &content[written as usize..][..4096]) {
            Ok(()) => written += 4096,
            Err(error) => break error,
        }
    };
    assert!(error.is_out_of_space(), "{error:?}");
    assert!(blob.refused_since(0).is_err_and(|error| error.is_out_of_space()) && blob.refusals() == 1);
    blob.refused_since(1)?;
    assert_eq!(blob.present_bytes(), written);
    let document = vec![1; 100_000];
    let error = store.put_document(&Digest::sha256(&document), &document).expect_err("no room");
    assert!(error.is_out_of_space(), "{error:?}");
    assert!(is_empty(&disk.0.path().join("tmp")), "the half-written document is gone");
    // A discard needs no room to be believed, now and after a restart.
    blob.discard(0..4096)?;
    drop((blob, store));
    let store = Store::open(disk.0.path())?;
    let blob = store.blob(&digest, content.len() as u64)?;
    assert_eq!(blob.missing(0..8192).first(), Some(&(0..4096)));
    let present = blob.read(4096..written)?;
    assert!(present.is_none_or(|bytes| bytes == content[4096..written as usize]));
    drop(blob);
    assert!(store.drop_blobs(&HashSet::new())?.freed.bytes > 400_000);
    store.put_document(&Digest::sha256(&document), &document)?;
    Ok(())
}

#[test]
fn a_directory_that_was_removed_is_made_anew_and_its_blobs_begin_again() -> Result {
    let scratch = Scratch::new();
    assert_eq!(scratch.store.restore()?, None, "nothing is wrong with it");
    let blob = scratch.complete(b"layer");
    let content = scratch.publish(b"file");
    fs::remove_dir_all(scratch.dir.path())?;
    assert_eq!(scratch.store.restore()?, Some(Missing::Everything));
    assert_eq!(scratch.store.restore()?, None, "once is enough");
    assert!(matches!(Store::open(scratch.dir.path()), Err(Error::Busy(_))), "it is ours as it was");
    assert_eq!((blob.present_bytes(), scratch.store.file(&content)?.is_none()), (0, true));
    blob.write(0, b"layer")?;
    blob.complete(false)?;
    assert_eq!(scratch.publish(b"file"), content);
    drop(blob);
    let scratch = scratch.reopen();
    assert!(scratch.store.blob(&Digest::sha256(b"layer"), 5)?.is_complete(), "it was kept in the new directory");
    assert!(scratch.store.file(&content)?.is_some());
    Ok(())
}

#[test]
fn a_part_that_was_removed_is_made_anew() -> Result {
    let scratch = Scratch::new();
    let blob = scratch.complete(b"layer");
    fs::remove_dir_all(scratch.path("profiles"))?;
    assert_eq!(scratch.store.restore()?, Some(Missing::Parts(vec!["profiles"])));
    assert!(blob.is_complete(), "its part is there");
    fs::remove_file(scratch.path("lock"))?;
    assert_eq!(scratch.store.restore()?, Some(Missing::Lock));
    assert!(blob.is_complete(), "its part is there");
    fs::remove_dir_all(scratch.path("blobs"))?;
    assert_eq!(scratch.store.restore()?, Some(Missing::Parts(vec!["blobs"])));
    assert_eq!(blob.present_bytes(), 0);
    blob.write(0, b"la")?;
    assert_eq!(scratch.store.restore()?, None);
    assert_eq!(blob.present_bytes(), 2);
    Ok(())
}

#[test]
fn a_directory_that_another_process_made_meanwhile_is_its_own() -> Result {
    let scratch = Scratch::new();
    fs::remove_dir_all(scratch.dir.path())?;
    let other = Store::open(scratch.dir.path())?;
    assert!(matches!(scratch.store.restore(), Err(Error::Busy(_))));
    drop(other);
    assert_eq!(scratch.store.restore()?, Some(Missing::Lock), "all of it was exchanged");
    Ok(())
}

#[test]
fn a_directory_that_could_not_be_put_right_is_so_at_the_next_call() -> Result {
    let scratch = Scratch::new();
    let blob = scratch.store.blob(&Digest::sha256(b"layer"), 5)?;
    blob.write(0, b"la")?;
    fs::remove_dir_all(scratch.path("blobs"))?;
    // A directory that has the name of the map cannot be removed as a file.
    let map = scratch.store.shared.layout.blob(&blob.digest(), BlobFile::Map(5));
    fs::create_dir_all(&map)?;
    fs::remove_dir(scratch.path("trees"))?;
    assert!(scratch.store.restore().is_err());
    assert!(scratch.path("trees").is_dir(), "what is missing is made first");
    fs::remove_dir(&map)?;
    assert_eq!(scratch.store.restore()?, Some(Missing::Parts(vec!["trees"])), "it was not done with");
    assert_eq!(scratch.store.restore()?, None);
    Ok(())
}

#[test]
fn no_access_times_are_kept_of_decoded_files() -> Result {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let scratch = Scratch::new();
    let content = scratch.publish(b"read often");
    let published = scratch.store.file(&content)?.ok_or("it is there")?;
    let plain = tempfile::tempfile_in(scratch.dir.path())?;
    let is_kept = ioctl_setflags(&plain, IFlags::NOATIME).is_err();
    let flags = ioctl_getflags(&*published);
    assert_eq!(flags.is_ok_and(|flags| flags.contains(IFlags::NOATIME)), !is_kept, "as far as the file system can");
    Ok(())
}
