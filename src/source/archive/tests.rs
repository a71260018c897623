use tempfile::TempDir;

use super::*;
use crate::source::conformance::{self, Sample, gzip, kind, tar_of};

fn write(bytes: &[u8]) -> (TempDir, std::path::PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image.tar");
    std::fs::write(&path, bytes).expect("written");
    (directory, path)
}

fn open(bytes: &[u8]) -> Result<OciArchive, Error> {
    let (directory, path) = write(bytes);
    OciArchive::open(&path, None, directory.path())
}

#[tokio::test]
async fn an_oci_archive_keeps_the_contract_of_sources() {
    let sample = Sample::new();
    let (directory, path) = write(&tar_of(&sample.layout_files("tag")));
    let archive = OciArchive::open(&path, None, directory.path()).expect("one image");
    let truncate = || File::options().write(true).open(&path).expect("open").set_len(4096).expect("shorter");
    conformance::check(&archive, &sample, Some(truncate)).await;
}

#[tokio::test]
async fn b_028_compressed_archives_are_decompressed_into_a_file_without_name() {
    let sample = Sample::new();
    let plain = tar_of(&sample.layout_files("tag"));
    let (first, second) = plain.split_at(1000);
    let zstd = zstd::encode_all(&plain[..], 1).expect("memory");
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..], &zstd].concat();
    for bytes in [gzip(&plain), [gzip(first), gzip(second)].concat(), zstd, skippable] {
        let (directory, path) = write(&bytes);
        let archive = OciArchive::open(&path, None, directory.path()).expect("one image");
        let left: Vec<_> = std::fs::read_dir(directory.path()).expect("a directory").collect();
        assert_eq!(left.len(), 1, "only the archive itself is there");
        conformance::check(&archive, &sample, None::<fn()>).await;
    }
}

#[test]
fn b_028_other_compressions_are_named() {
    for (magic, tool) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh91AY&SY", "bzip2")] {
        let error = open(magic).expect_err(tool);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.advice().expect("advice").contains(tool));
    }
}

#[test]
fn damaged_archives_are_corrupt() {
    let plain = tar_of(&Sample::new().layout_files("tag"));
    let packed = gzip(&plain);
    let mut flipped = plain.clone();
    flipped[10] ^= 1;
    for bytes in [&plain[..plain.len() / 2], &packed[..packed.len() / 2], &flipped, b"no archive", &gzip(b"none")] {
        assert_eq!(kind(open(bytes)), ErrorKind::Corrupt);
    }
}

#[test]
fn what_is_no_oci_archive_says_what_to_write() {
    let docker = tar_of(&Sample::new().docker_files(serde_json::json!(null)));
    let error = open(&docker).expect_err("Docker's format");
    assert!(error.advice().expect("advice").starts_with("write docker-archive:"));
    assert_eq!(kind(open(&tar_of(&[]))), ErrorKind::Invalid);
    assert_eq!(kind(open(b"")), ErrorKind::Invalid);
    let directory = TempDir::new().expect("a directory");
    let error = OciArchive::open(directory.path(), None, directory.path()).expect_err("a directory");
    assert!(error.advice().expect("advice").contains("oci:DIRECTORY"));
    let missing = OciArchive::open(&directory.path().join("\x1b"), None, directory.path()).expect_err("missing");
    assert!(missing.kind() == ErrorKind::NotFound && !missing.to_string().contains('\x1b'));
    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR).expect("a FIFO");
    assert_eq!(kind(OciArchive::open(&fifo, None, directory.path())), ErrorKind::Invalid);
}
