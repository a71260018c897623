//! Damage: a byte that is wrong anywhere, at rest or on the wire, is fetched again, made again or an error, and is never
//! read.
//!
//! Most of it runs in this process, because hundreds of images are opened ([`served`]): bytes that change in the cache
//! ([`at_rest`]) and servers that lie ([`lies`]). A few tests go through the program and the kernel ([`program`]).

mod at_rest;
mod lies;
mod program;
mod served;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ocifs::demo::registry::Content;

use crate::support::{Built, Compression, Image, Layer, Ocifs, wait_for_end};

/// Numbers that look random and are the same in every run (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Bytes that compress to about two thirds of their length, with matches far behind, so that gzip spans need their windows.
pub(crate) fn prose(seed: u64, size: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut text: Vec<u8> = (0..size.min(4096)).map(|_| dice.below(256) as u8).collect();
    while text.len() < size {
        let length = 8 + dice.below(16) as usize;
        let start = text.len() - 1 - dice.below(text.len().min(30_000) as u64 - 1) as usize;
        let end = (start + length).min(text.len());
        text.extend_from_within(start..end);
        text.extend((0..24).map(|_| dice.below(256) as u8));
    }
    text.truncate(size);
    text
}

/// The contents of the image's files by path.
pub(crate) type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// An image of about twenty files in layers of every kind, and what its files must hold.
pub(crate) fn image() -> (Image, Files) {
    let mut files = Files::new();
    let mut number = 0;
    let mut layer = |name: &str, sizes: &[usize], compression| {
        let mut layer = Layer::new().dir(name);
        for size in sizes {
            number += 1;
            let (path, bytes) = (format!("{name}/file-{number}"), prose(number, *size));
            layer = layer.file(&path, &bytes).mode(0o640 + u32::try_from(number % 8).expect("a small number"));
            files.insert(path.into_bytes(), bytes);
        }
        layer.compressed(compression)
    };
    let image = Image::new()
        .layer(layer("gzip", &[0, 1, 511, 512, 30_000, 1_900_000, 7000], Compression::Gzip))
        .layer(layer("members", &[600, 90_000, 5], Compression::GzipMembers(40_000)))
        .layer(layer("zstd", &[100, 4096, 200_000, 300_000], Compression::ZstdFrames(100_000)))
        .layer(layer("frame", &[3, 260_000], Compression::Zstd))
        .layer(layer("tar", &[513, 10_000, 280_000], Compression::None))
        .layer(
            Layer::new()
                .whiteout("gzip/file-1")
                .symlink("link", "tar/file-17")
                .hardlink("members/linked", "members/file-9")
                .file("gzip/replaced", "once more")
                .xattr("user.note", "kept"),
        );
    files.remove(&b"gzip/file-1"[..]);
    files.insert(b"members/linked".to_vec(), files[&b"members/file-9"[..]].clone());
    files.insert(b"gzip/replaced".to_vec(), b"once more".to_vec());
    (image, files)
}

/// That image as what a registry serves under `team/app:1.0`.
pub(crate) fn published() -> (Content, Built, Files) {
    let (image, files) = image();
    let content = Content::new();
    let built = image.to_content(&content, "team/app", "1.0");
    (content, built, files)
}

/// What lies between the gaps.
pub(crate) fn present(missing: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(missing.iter().map(|gap| gap.end));
    let ends = missing.iter().map(|gap| gap.start).chain(std::iter::once(size));
    starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty()).collect()
}

/// Changes one byte of a file in place.
pub(crate) fn flip(path: &Path, place: u64, mask: u8) {
    let file = fs::File::options().read(true).write(true).open(path);
    let file = file.or_else(|_| {
        // Decoded files are read-only; root may write them anyway.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        fs::File::options().read(true).write(true).open(path)
    });
    let file = file.expect("it can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("it can be read");
    file.write_all_at(&[byte[0] ^ mask], place).expect("it can be written");
}

/// The regular files below a directory, in order.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { waiting.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

pub(crate) fn copy_below(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).expect("it is below"));
        fs::create_dir_all(target.parent().expect("it has one")).expect("a directory");
        fs::copy(&file, &target).expect("a copy");
    }
}

/// Tells the daemon to end and waits until it has.
pub(crate) fn end_daemon(ocifs: &Ocifs) {
    let pid = ocifs.daemon().expect("a daemon is running");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be told to end");
    wait_for_end(pid);
}

/// Reads all files through the kernel; the first error ends it. Panics at a wrong byte.
#[track_caller]
pub(crate) fn read_all(root: &Path, files: &Files) -> std::io::Result<()> {
    for (path, expected) in files {
        let bytes = fs::read(root.join(std::ffi::OsStr::from_bytes(path)))?;
        assert!(bytes == *expected, "{} has wrong bytes", path.escape_ascii());
    }
    Ok(())
}
