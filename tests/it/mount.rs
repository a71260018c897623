//! What processes see in a mount: cases, through the program and the kernel's FUSE.
//!
//! One image with everything in it ([`crate::support::rich`]) is mounted from an embedded registry; `stat` has what
//! stat(2) and readdir(3) show, `bytes` what reading gives, `refused` what fails and how, `overlay` the mount below
//! another file system, `modes` which of the ways to read is taken, `pushed` what the kernel need not ask for, `awake` what
//! keeps processors from sleeping.

mod awake;
mod bytes;
mod modes;
mod overlay;
mod pushed;
mod refused;
mod shared;
mod stat;

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use memmap2::Mmap;
use ocifs::demo::registry::Content;
use serde_json::Value;

use crate::support::{
    Embedded, Field, Image, Mount, Ocifs, assert_same, require, require_fuse, require_root, rich, umoci_unpack, walk,
};

/// An image mounted from an embedded registry. The daemon ends first, then the mount point goes, then the registry.
#[derive(Debug)]
struct Mounted {
    ocifs: Ocifs,
    point: Mount,
    registry: Embedded,
    /// What `--io` is given.
    io: &'static str,
}

/// The ways to read files, for tests of what must not depend on them.
const MODES: [&str; 2] = ["cached", "passthrough"];

const PAGE: usize = 4096;

/// True if the kernel has the page at `offset`.
fn is_known(map: &Mmap, offset: u64) -> bool {
    let mut known = 0;
    // SAFETY: the page is one of the map, and there is a byte for it.
    let asked = unsafe { libc::mincore(map.as_ptr().add(offset as usize).cast_mut().cast(), PAGE, &raw mut known) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    known & 1 == 1
}

impl Mounted {
    /// Mounts `image`; none, loudly, where that cannot be done.
    fn new(image: &Image) -> Option<Self> {
        Self::with(image, "auto")
    }

    /// Mounts `image` in a mode.
    fn with(image: &Image, io: &'static str) -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let content = Content::new();
        image.to_content(&content, "it", "latest");
        let ocifs = Ocifs::new();
        let mounted = Self { point: ocifs.mount_point("m"), ocifs, registry: Embedded::start(content), io };
        mounted.mount();
        Some(mounted)
    }

    fn mount(&self) {
        let (reference, io) = (self.registry.name("it:latest"), format!("--io={}", self.io));
        // A profile would fetch what the tests expect to be missing, and what fails is to fail at once.
        let options = ["mount", "--fill=off", "--profile-until=0", "--on-outage=eio", &io, &reference].map(OsStr::new);
        self.ocifs.run(options.into_iter().chain([self.point.path().as_os_str()])).ok();
    }

    /// Reads files and waits until the cache holds `count` decoded ones.
    fn publish(&self, paths: &[&str], count: u64) {
        for path in paths {
            fs::read(self.path(path)).expect("it is readable");
        }
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.ocifs.json(["cache", "du", "--json"])["files"]["count"] != count {
            assert!(Instant::now() < deadline, "the files are not published");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `status` tells of the mount.
    fn status(&self) -> Value {
        self.ocifs.status(&self.point)["mounts"][0].clone()
    }

    /// How many requests of a kind the kernel has sent.
    fn requests(&self, kind: &str) -> u64 {
        self.status()["kernel_requests"][kind].as_u64().expect("a known kind")
    }

    /// Mounts again with nothing in the cache but indexes, and with nothing in the memory of kernel and daemon.
    fn remount_lazily(&self) {
        self.ocifs.umount(&self.point);
        self.ocifs.drop_bytes();
        assert!(self.ocifs.end_daemon(), "it ends when it is told to");
        self.mount();
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.point.path().join(relative)
    }
}

#[test]
fn every_file_is_what_umoci_unpacks() {
    if !require(&["umoci"]) {
        return;
    }
    let image = rich(20);
    let Some(mounted) = Mounted::with(&image, "passthrough") else { return };
    let layout = mounted.ocifs.home().join("layout");
    image.to_layout(&layout, "latest");
    let expected = walk(&umoci_unpack(&layout, "latest", &mounted.ocifs.home().join("bundle"))).expect("a tree");
    // umoci leaves the time of unpacking where no entry gave one, and where it removed something afterwards.
    let touched: [&[u8]; 6] = [b"home", b"opaque", b"etc", b"links", b"other", b""];
    let ignored = |path: &[u8], field| field == Field::Mtime && (touched.contains(&path) || path.starts_with(b"deep "));
    assert_same(&walk(mounted.point.path()).expect("a tree"), &expected, ignored);
    mounted.remount_lazily();
    assert_same(&walk(mounted.point.path()).expect("a tree"), &expected, ignored);
    let cached = Mounted::with(&image, "cached").expect("as before");
    assert_same(&walk(cached.point.path()).expect("a tree"), &expected, ignored);
}
