//! Taking possession of a cache directory: is it one, is it ours, is it free, do we know its version.
//!
//! The order matters. A directory that holds other things is refused before anything is written into it, because `tmp/`
//! is emptied later; the lock is taken before the version is believed; the version is written before any object.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::layout::{Layout, Part};
use super::{Context as _, Error, Missing, object};

/// The version of the directory's form. An incompatible change of any object's form raises it.
const VERSION: u32 = 1;

/// What is in a directory before its version file is: remains of a first start that was killed, or of `mkfs`.
const BEFORE_VERSION: [&str; 4] = [LOCK_FILE, TAG_FILE, VERSION_DRAFT, "lost+found"];

const LOCK_FILE: &str = "lock";
const VERSION_FILE: &str = "version";
const VERSION_DRAFT: &str = "version.new";
const TAG_FILE: &str = "CACHEDIR.TAG";

/// <https://bford.info/cachedir/>: backup programs leave out a directory with this file.
const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by ocifs.\n\
    # For information about cache directory tags, see https://bford.info/cachedir/\n";

/// Makes `layout`'s directory ready for use. It is ours while the returned file is open.
pub(super) fn acquire(layout: &Layout) -> Result<File, Error> {
    let root = layout.root();
    create_dir(root, true)?;
    check_owner(root)?;
    check_is_cache(root)?;
    let lock = lock(root)?;
    fs::set_permissions(root, Permissions::from_mode(0o700)).context("protect", root)?;
    check_version(root)?;
    create_parts(layout)?;
    clear_temporaries(layout)?;
    Ok(lock)
}

/// What is missing of the directory whose lock is `held`; none if nothing is.
pub(super) fn missing(layout: &Layout, held: &File) -> Option<Missing> {
    let is_missing = |part: &Part| !layout.part(*part).is_dir();
    let parts: Vec<_> = Part::ALL.into_iter().filter(is_missing).collect();
    match parts.len() {
        0 if is_of(layout, held) => None,
        0 => Some(Missing::Lock),
        count if count == Part::ALL.len() => Some(Missing::Everything),
        _ => Some(Missing::Parts(parts.into_iter().map(Part::name).collect())),
    }
}

/// Makes the directory ready again, with the lock that is `held`, whatever is missing of it.
pub(super) fn restore(layout: &Layout, held: &mut File) -> Result<(), Error> {
    if !is_of(layout, held) {
        *held = acquire(layout)?;
    }
    create_parts(layout)
}

fn create_parts(layout: &Layout) -> Result<(), Error> {
    for part in Part::ALL {
        let path = layout.part(part);
        create_dir(&path, false)?;
        spare_access_times(&path);
    }
    Ok(())
}

/// Has the file system keep no access times of what will be made in `path` (`chattr +A`, which is inherited): reads that the
/// kernel passes through need not compare them, and no read writes one. Those that eviction goes by are set explicitly.
fn spare_access_times(path: &Path) {
    let spared = File::open(path).and_then(|dir| {
        let flags = ioctl_getflags(&dir)?;
        if flags.contains(IFlags::NOATIME) { Ok(()) } else { Ok(ioctl_setflags(&dir, flags | IFlags::NOATIME)?) }
    });
    if let Err(error) = spared {
        tracing::debug!(path = ?path, %error, "access times are kept");
    }
}

/// True if the lock that is `held` is the one in the directory.
fn is_of(layout: &Layout, held: &File) -> bool {
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (known, found) = (held.metadata().map(place), fs::symlink_metadata(layout.root().join(LOCK_FILE)).map(place));
    // A number is not used again while the file is open.
    matches!((known, found), (Ok(known), Ok(found)) if known == found)
}

/// Creates a directory unless it exists. Only the last component must be private, its parents are made as `mkdir -p` does.
pub(super) fn create_dir(path: &Path, parents: bool) -> Result<(), Error> {
    if parents && let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context("create", parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.context("create", path),
    }
}

/// Indexes made here are believed without another look (design.md, "Trust"), so nobody else may be able to place one.
fn check_owner(root: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(root).context("examine", root)?;
    if !metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory)).context("use", root);
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::Foreign { path: root.to_owned(), why: "belongs to another user" });
    }
    Ok(())
}

fn check_is_cache(root: &Path) -> Result<(), Error> {
    let mut foreign = false;
    for entry in fs::read_dir(root).context("read", root)? {
        let name = entry.context("read", root)?.file_name();
        foreign |= !BEFORE_VERSION.iter().any(|known| name == *known);
    }
    // Examined after the listing: another process that is creating the directory writes the version before the rest.
    if foreign && !root.join(VERSION_FILE).try_exists().context("examine", root)? {
        return Err(Error::Foreign { path: root.to_owned(), why: "holds files but is not a cache directory" });
    }
    Ok(())
}

fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join(LOCK_FILE);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.context("open", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy(root.to_owned())),
        Err(TryLockError::Error(error)) => Err(error).context("lock", &path),
    }
}

fn check_version(root: &Path) -> Result<(), Error> {
    let path = root.join(VERSION_FILE);
    let Some(file) = object::open(&path)? else { return write_version(root) };
    let mut text = String::new();
    file.take(64).read_to_string(&mut text).context("read", &path)?;
    let text = text.trim_end();
    if text == VERSION.to_string() {
        return Ok(());
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a version number")).context("understand", &path);
    }
    Err(Error::Version { path: root.to_owned(), found: text.to_owned(), known: VERSION })
}

/// Writes the tag and then the version. The version is the one file whose damage nothing else would show, so it is
/// flushed before it gets its name.
fn write_version(root: &Path) -> Result<(), Error> {
    let tag = root.join(TAG_FILE);
    fs::write(&tag, TAG).context("write", &tag)?;
    let draft = root.join(VERSION_DRAFT);
    let written = object::create(&draft).and_then(|mut file| {
        file.write_all(format!("{VERSION}\n").as_bytes())?;
        file.sync_all()
    });
    written.context("write", &draft)?;
    let path = root.join(VERSION_FILE);
    fs::rename(&draft, &path).context("create", &path)
}

fn clear_temporaries(layout: &Layout) -> Result<(), Error> {
    layout.walk(Part::Temporary, &mut |found| object::remove(&found.path).map(drop))
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn a_new_directory_is_private_tagged_and_versioned() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("a/b");
        let store = Store::open(&root)?;
        assert_eq!(store.dir(), root);
        assert_eq!(fs::metadata(&root)?.mode() & 0o7777, 0o700);
        assert!(fs::read(root.join("CACHEDIR.TAG"))?.starts_with(b"Signature: 8a477f597d28d172789f06886806bc55\n"));
        assert_eq!(fs::read(root.join("version"))?, b"1\n");
        for part in ["refs", "manifests", "blobs", "indexes", "trees", "files", "profiles", "tmp"] {
            assert!(root.join(part).is_dir(), "{part}");
        }
        Ok(())
    }

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(dir.path())?;
        assert!(matches!(Store::open(dir.path()), Err(Error::Busy(path)) if path == dir.path()));
        let blob = store.blob(&crate::oci::Digest::sha256(b"x"), 1)?;
        drop(store);
        assert!(matches!(Store::open(dir.path()), Err(Error::Busy(_))), "an open blob still writes");
        drop(blob);
        Store::open(dir.path())?;
        Ok(())
    }

    #[test]
    fn a_lock_held_by_another_process_is_respected() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        drop(Store::open(dir.path())?);
        let lock = dir.path().join("lock");
        let mut other = std::process::Command::new("flock")
            .arg(&lock)
            .args(["sh", "-c", "echo locked; read line"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut line = [0; 7];
        other.stdout.as_mut().expect("piped").read_exact(&mut line)?;
        let refused = Store::open(dir.path());
        drop(other.stdin.take());
        other.wait()?;
        assert!(matches!(refused, Err(Error::Busy(_))), "{refused:?}");
        Store::open(dir.path())?;
        Ok(())
    }

    #[test]
    fn other_versions_and_garbage_are_refused_and_named() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        drop(Store::open(dir.path())?);
        fs::write(dir.path().join("version"), "2\n")?;
        let error = Store::open(dir.path()).expect_err("newer");
        assert!(matches!(&error, Error::Version { found, known: 1, .. } if found == "2"), "{error}");
        for garbage in [&b""[..], b"one", b"\xff\xfe", b"-1", &[b' '; 100]] {
            fs::write(dir.path().join("version"), garbage)?;
            let error = Store::open(dir.path()).expect_err("garbage").to_string();
            assert!(error.ends_with("/version"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_left_alone() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("tmp"))?;
        fs::write(dir.path().join("tmp/thesis"), "years of work")?;
        assert!(matches!(Store::open(dir.path()), Err(Error::Foreign { .. })));
        assert_eq!(fs::read_dir(dir.path())?.count(), 1, "nothing was created");
        assert!(dir.path().join("tmp/thesis").exists());
        Ok(())
    }

    #[test]
    fn a_first_start_that_was_killed_can_be_repeated() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        for name in ["lock", "CACHEDIR.TAG", "version.new"] {
            fs::write(dir.path().join(name), "")?;
        }
        let store = Store::open(dir.path())?;
        fs::write(dir.path().join("tmp/0"), "left over")?;
        drop(store);
        Store::open(dir.path())?;
        assert!(!dir.path().join("tmp/0").exists());
        Ok(())
    }
}
