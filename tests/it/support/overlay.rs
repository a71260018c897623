//! A kernel overlay that makes a read-only tree writable, as container engines do.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

use super::Mount;

/// An overlay over a mount. Field order: it goes before what it is made of.
#[derive(Debug)]
pub(crate) struct Overlay {
    merged: Mount,
    upper: PathBuf,
    _memory: Mount,
}

impl Overlay {
    /// Puts an overlay with its own file system in memory over `lower`.
    pub(crate) fn over(lower: &Path, home: &Path) -> Self {
        let memory = Mount::new(home.join("memory"));
        mount("tmpfs", memory.path(), "tmpfs", MountFlags::empty(), Some(c"size=64m")).expect("root may mount");
        let (upper, work) = (memory.path().join("upper"), memory.path().join("work"));
        fs::create_dir(&upper).and_then(|()| fs::create_dir(&work)).expect("directories");
        let merged = Mount::new(home.join("merged"));
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = CString::new(options).expect("no NUL");
        mount("overlay", merged.path(), "overlay", MountFlags::empty(), Some(options.as_c_str())).expect("an overlay");
        Self { merged, upper, _memory: memory }
    }

    /// Where files go that are written.
    pub(crate) fn upper(&self) -> &Path {
        &self.upper
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> &Path {
        self.merged.path()
    }

    /// A path below.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.merged.path().join(relative)
    }
}
