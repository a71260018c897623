//! Mounts that do not outlive their test, hung ones included.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// How long an unmounted FUSE connection may live on before it is aborted.
const PATIENCE: Duration = Duration::from_secs(2);

/// A directory that something may be mounted on; dropping the value unmounts it.
///
/// Nothing here looks into the directory: a hung file system would hang the test.
#[derive(Debug)]
pub(crate) struct Mount {
    path: PathBuf,
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Line {
    /// Minor number of the device: for FUSE the name of its connection.
    minor: String,
    place: PathBuf,
    kind: String,
}

impl Mount {
    /// Guards `path`, which is made if it is not there.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        fs::create_dir_all(&path).expect("a mount point can be made");
        Self { path: path.canonicalize().expect("it was just made") }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_mounted(&self) -> bool {
        mounts().iter().any(|line| line.place == self.path)
    }
}

impl AsRef<Path> for Mount {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        detach(|place| place == self.path);
    }
}

/// Detaches everything mounted on `directory` or below it.
pub(crate) fn detach_below(directory: &Path) {
    detach(|place| place.starts_with(directory));
}

/// Detaches the chosen mounts, the last one first, then aborts their FUSE connections if those stay: something still
/// waits in them, and would for ever.
fn detach(chosen: impl Fn(&Path) -> bool) {
    let all = mounts();
    let mut minors = Vec::new();
    for line in all.iter().rev().filter(|line| chosen(&line.place)) {
        if line.kind.split('.').next() == Some("fuse") {
            minors.push(line.minor.as_str());
        }
        if let Err(error) = unmount(&line.place, UnmountFlags::DETACH) {
            // As a user only fusermount3 may; if it cannot either, the abort below still frees who waits.
            let helped = std::process::Command::new("fusermount3").arg("-uz").arg(&line.place).status();
            if !helped.is_ok_and(|status| status.success()) {
                eprintln!("cannot unmount {}: {error}", line.place.display());
            }
        }
    }
    if !minors.is_empty() {
        abort_unless_gone(&minors, &Control::of(&all));
    }
}

fn abort_unless_gone(minors: &[&str], control: &Control) {
    let left = || minors.iter().map(|minor| control.path().join(minor)).filter(|connection| connection.exists());
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && left().next().is_some() {
        std::thread::sleep(Duration::from_millis(10));
    }
    for connection in left() {
        eprintln!("aborting the hung FUSE connection {}", connection.display());
        if let Err(error) = fs::write(connection.join("abort"), "1") {
            eprintln!("cannot abort it: {error}");
        }
    }
}

/// The file system that lists FUSE connections by device number: where it is mounted, or mounted here for a while.
enum Control {
    Mounted(PathBuf),
    Own(tempfile::TempDir),
}

impl Control {
    fn of(mounts: &[Line]) -> Self {
        if let Some(line) = mounts.iter().find(|line| line.kind == "fusectl") {
            return Self::Mounted(line.place.clone());
        }
        // Containers and small virtual machines often lack it.
        let own = super::temp_dir();
        if let Err(error) = mount("none", own.path(), "fusectl", MountFlags::empty(), None) {
            eprintln!("cannot see FUSE connections: {error}");
        }
        Self::Own(own)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Mounted(path) => path,
            Self::Own(directory) => directory.path(),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Self::Own(directory) = self {
            // If it was not mounted there is nothing to unmount.
            unmount(directory.path(), UnmountFlags::DETACH).ok();
        }
    }
}

fn mounts() -> Vec<Line> {
    let text = fs::read("/proc/self/mountinfo").expect("there is a /proc");
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

fn parse(line: &[u8]) -> Option<Line> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let kind = fields.iter().position(|field| field == b"-").and_then(|dash| fields.get(dash + 1))?;
    let device = std::str::from_utf8(fields.get(2)?).ok()?;
    Some(Line {
        minor: device.split_once(':')?.1.to_owned(),
        place: unescape(fields.get(4)?).into(),
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// True if `path` is shown as a mount point of some kind; for the tests of this module.
pub(super) fn is_listed(path: &Path) -> bool {
    mounts().iter().any(|line| line.place.as_os_str().as_bytes() == path.as_os_str().as_bytes())
}
