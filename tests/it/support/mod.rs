//! What integration tests are made of: images from code, places to serve them, mounts that never stay, trees to compare.
//!
//! Everything here panics when it cannot do its work, because a test has nothing better to do. Other programs are looked
//! for by [`require`]: a machine that has to run everything (`CI` is set) must have them.

mod compare;
mod docker_registry;
mod embedded;
mod image;
mod mount;
mod overlay;
mod program;
mod rich;

use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) use compare::{Field, Kind, Stat, Tree, assert_same, diff, walk};
pub(crate) use docker_registry::DockerRegistry;
pub(crate) use embedded::{Embedded, round_trips};
pub(crate) use image::{Built, Compression, Content as EntryContent, Entry, Image, Layer, platform};
pub(crate) use mount::{Mount, detach_below};
pub(crate) use overlay::Overlay;
pub(crate) use program::{Ocifs, REPEATS_LOG, Ran, has_ended, run, wait_for_end};
pub(crate) use rich::{BIG, SPARSE, SPARSE_DATA, big, long_name, noise, rich};

/// Waits for something that somebody else does, for `bound` at most.
#[track_caller]
pub(crate) fn eventually(bound: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < bound, "not after {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// True if every one of these programs is here. If one is not: a panic where `CI` is set, else a loud line, and the test
/// is to return.
pub(crate) fn require(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| !is_here(program)).collect();
    let here = missing.is_empty();
    unless_in_ci(here, &format!("needs {missing:?}"));
    here
}

/// True if this process is root, with the same consequences as [`require`].
pub(crate) fn require_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    unless_in_ci(root, "needs root");
    root
}

/// True if FUSE file systems can be mounted here, with the same consequences as [`require`].
pub(crate) fn require_fuse() -> bool {
    let here = std::path::Path::new("/dev/fuse").exists();
    unless_in_ci(here, "needs /dev/fuse");
    here
}

fn is_here(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn unless_in_ci(ready: bool, what: &str) {
    if ready {
        return;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("CI").is_none(), "{test} {what}");
    eprintln!("SKIPPED: {test} {what}");
}

/// A new directory that goes when the value does.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ocifs-it-").tempdir().expect("a temporary directory")
}

/// Runs a program to its end and returns what it wrote to stdout; panics with its stderr if it fails.
pub(crate) fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies an image with skopeo, byte for byte, between any two places it knows (`oci:DIR:TAG`, `oci-archive:FILE:TAG`,
/// `docker-archive:FILE:NAME`, `docker://HOST/NAME` over plain HTTP).
///
/// A docker-archive cannot keep the manifest's bytes, and skopeo refuses zstd layers for it; everything else arrives
/// unchanged or not at all.
pub(crate) fn skopeo_copy(from: &str, to: &str) {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    if !to.starts_with("docker-archive:") {
        command.arg("--preserve-digests");
    }
    output_of(command.args([from, to]));
}

/// Unpacks an image of a layout with umoci, the oracle of the layer cases; returns its root directory.
///
/// `bundle` must not exist yet. Needs root, so that owners and devices come out as they are in the image.
pub(crate) fn umoci_unpack(layout: &std::path::Path, tag: &str, bundle: &std::path::Path) -> std::path::PathBuf {
    let image = format!("{}:{tag}", layout.display());
    output_of(Command::new("umoci").args(["unpack", "--image", &image]).arg(bundle));
    bundle.join("rootfs")
}

#[cfg(test)]
mod tests;
