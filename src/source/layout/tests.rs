use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::oci::{Algorithm, Digest};
use crate::source::conformance::{self, Sample, blob, descriptor, kind, layout_of, write_files};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

fn sample() -> (TempDir, Sample) {
    let (directory, sample) = (TempDir::new().expect("a directory"), Sample::new());
    write_files(directory.path(), &sample.layout_files("tag"));
    (directory, sample)
}

fn blob_file(directory: &Path, bytes: &[u8]) -> PathBuf {
    directory.join(blob(Algorithm::Sha256, bytes).0)
}

/// A layout whose images are empty manifests with these annotations.
fn named(annotations: &[serde_json::Value]) -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let mut files = Vec::new();
    let mut entries = Vec::new();
    for (position, annotations) in annotations.iter().enumerate() {
        let manifest = format!("{{\"position\":{position}}}").into_bytes();
        let mut entry = descriptor(IMAGE, &Digest::sha256(&manifest), &manifest);
        entry["annotations"] = annotations.clone();
        entries.push(entry);
        files.push(blob(Algorithm::Sha256, &manifest));
    }
    files.extend(layout_of(entries));
    std::fs::create_dir(directory.path().join("blobs")).expect("a directory");
    write_files(directory.path(), &files);
    directory
}

async fn position(directory: &TempDir, selector: LocalSelector) -> Result<usize, Error> {
    let document = Layout::open(directory.path(), Some(&selector))?.resolve().await?;
    let value: serde_json::Value = serde_json::from_slice(&document.bytes).expect("JSON");
    Ok(value["position"].as_u64().expect("a position") as usize)
}

fn name(text: &str) -> LocalSelector {
    LocalSelector::Name(text.to_owned())
}

#[tokio::test]
async fn b_021_a_layout_keeps_the_contract_of_sources() {
    let (directory, sample) = sample();
    let layout = Layout::open(directory.path(), None).expect("one image");
    let path = blob_file(directory.path(), &sample.layers[0]);
    let truncate = || std::fs::write(&path, b"short").expect("written");
    conformance::check(&layout, &sample, Some(truncate)).await;
}

#[test]
fn b_020_the_parts_of_a_layout_are_mandatory() {
    for (remove, version) in [("oci-layout", "1.0.0"), ("index.json", "1.0.0"), ("blobs", "1.0.0")] {
        let (directory, _) = sample();
        let path = directory.path().join(remove);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("removed");
        let error = Layout::open(directory.path(), None).expect_err(version);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(remove), "{error}");
    }
    let (directory, _) = sample();
    std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).expect("written");
    assert_eq!(kind(Layout::open(directory.path(), None)), ErrorKind::Unsupported);
    std::fs::write(directory.path().join("oci-layout"), "1.0.0").expect("written");
    assert_eq!(kind(Layout::open(directory.path(), None)), ErrorKind::Invalid);
}

#[tokio::test]
async fn b_012_images_are_selected_by_name_position_and_digest() {
    let directory = named(&[serde_json::json!({}), serde_json::json!({"org.opencontainers.image.ref.name": "a"})]);
    assert_eq!(position(&directory, name("a")).await.expect("by name"), 1);
    assert_eq!(position(&directory, LocalSelector::Index(0)).await.expect("by position"), 0);
    let digest = Digest::sha256(b"{\"position\":1}");
    assert_eq!(position(&directory, LocalSelector::Digest(digest)).await.expect("by digest"), 1);
    for missing in [name("b"), LocalSelector::Index(2), LocalSelector::Digest(Digest::sha256(b""))] {
        assert_eq!(kind(position(&directory, missing).await), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn b_013_without_a_selector_there_must_be_one_image() {
    let two = named(&[serde_json::json!({}), serde_json::json!({"org.opencontainers.image.ref.name": "a\u{1b}"})]);
    let error = Layout::open(two.path(), None).expect_err("two images");
    assert_eq!(error.kind(), ErrorKind::Ambiguous);
    assert_eq!(error.advice(), Some("it holds :@0, :a\\x1b"));
    assert_eq!(kind(Layout::open(named(&[]).path(), None)), ErrorKind::NotFound);
}

#[tokio::test]
async fn b_013_several_names_of_one_image_are_one_image() {
    let (directory, sample) = sample();
    let manifest = sample.manifest();
    let entry = descriptor(IMAGE, &Digest::sha256(&manifest), &manifest);
    write_files(directory.path(), &layout_of(vec![entry.clone(), entry]));
    let layout = Layout::open(directory.path(), None).expect("one image");
    assert_eq!(layout.resolve().await.expect("the image").bytes, manifest);
}

#[tokio::test]
async fn b_013_the_first_match_wins() {
    let tag = serde_json::json!({"org.opencontainers.image.ref.name": "a"});
    assert_eq!(position(&named(&[tag.clone(), tag]), name("a")).await.expect("the first"), 0);
}

#[tokio::test]
async fn b_014_full_names_match_whoever_wrote_them() {
    let directory = named(&[
        serde_json::json!({"org.opencontainers.image.ref.name": "12", "io.containerd.image.name": "docker.io/library/a:12"}),
        serde_json::json!({"org.opencontainers.image.ref.name": "ghcr.io/x/b:1"}),
        serde_json::json!({"org.opencontainers.image.ref.name": "a:12"}),
    ]);
    for (text, expected) in
        [("12", 0), ("docker.io/library/a:12", 0), ("library/a:12", 0), ("ghcr.io/x/b:1", 1), ("a:12", 2)]
    {
        assert_eq!(position(&directory, name(text)).await.expect(text), expected, "{text}");
    }
}

#[tokio::test]
async fn b_022_an_unknown_media_type_matters_only_if_selected() {
    let (directory, sample) = sample();
    let manifest = sample.manifest();
    let other = descriptor("application/x-other", &Digest::sha256(b"x"), b"x");
    let image = descriptor(IMAGE, &Digest::sha256(&manifest), &manifest);
    write_files(directory.path(), &layout_of(vec![other, image]));
    let open = |position| Layout::open(directory.path(), Some(&LocalSelector::Index(position)));
    open(1).expect("the image").resolve().await.expect("its manifest");
    let error = open(0).expect_err("no image");
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("application/x-other"));
}

#[tokio::test]
async fn b_023_a_nested_index_is_followed_by_descriptor_and_by_digest() {
    let (directory, sample) = sample();
    let manifest = sample.manifest();
    let inner = serde_json::json!({"schemaVersion": 2, "manifests": [descriptor(IMAGE, &Digest::sha256(&manifest), &manifest)]});
    let inner = inner.to_string().into_bytes();
    let outer = descriptor("application/vnd.oci.image.index.v1+json", &Digest::sha256(&inner), &inner);
    let mut files = layout_of(vec![outer]);
    files.push(blob(Algorithm::Sha256, &inner));
    write_files(directory.path(), &files);
    let layout = Layout::open(directory.path(), None).expect("one entry");
    let document = layout.resolve().await.expect("the nested index");
    let Ok(crate::oci::Manifest::Index(index)) = crate::oci::Manifest::parse(&document.bytes, &document.media_type)
    else {
        panic!("an index");
    };
    assert_eq!(layout.manifest(&index.entries[0].descriptor).await.expect("its child").bytes, manifest);
    let pinned = LocalSelector::Digest(Digest::sha256(&manifest));
    let layout = Layout::open(directory.path(), Some(&pinned)).expect("a layout");
    assert_eq!(layout.resolve().await.expect("a blob that is not listed").bytes, manifest);
}

#[tokio::test]
async fn b_029_changed_manifests_are_corrupt() {
    let (directory, sample) = sample();
    let manifest = sample.manifest();
    let path = blob_file(directory.path(), &manifest);
    let layout = Layout::open(directory.path(), None).expect("one image");
    let mut changed = manifest.clone();
    changed[0] = b' ';
    for bytes in [&changed[..], &manifest[1..]] {
        std::fs::write(&path, bytes).expect("written");
        assert_eq!(kind(layout.resolve().await), ErrorKind::Corrupt);
    }
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(kind(layout.resolve().await), ErrorKind::NotFound);
}

#[tokio::test]
async fn b_030_nothing_outside_of_the_layout_is_opened() {
    let outside = TempDir::new().expect("a directory");
    let (directory, sample) = sample();
    let manifest = sample.manifest();
    std::fs::write(outside.path().join("m"), &manifest).expect("written");
    let path = blob_file(directory.path(), &manifest);
    let layout = Layout::open(directory.path(), None).expect("one image");
    let upwards = Path::new("../../..").join(outside.path().file_name().expect("a name")).join("m");
    for target in [outside.path().join("m"), upwards] {
        std::fs::remove_file(&path).expect("removed");
        symlink(&target, &path).expect("linked");
        let error = layout.resolve().await.expect_err("a link out of the layout");
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("symbolic link"), "{error}");
    }
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(directory.path().join("blobs/inside"), &manifest).expect("written");
    symlink("../inside", &path).expect("linked");
    assert_eq!(layout.resolve().await.expect("a link that stays inside").bytes, manifest);
}

#[tokio::test]
async fn b_030_only_regular_files_are_opened() {
    let (directory, sample) = sample();
    let path = blob_file(directory.path(), &sample.manifest());
    let layout = Layout::open(directory.path(), None).expect("one image");
    std::fs::remove_file(&path).expect("removed");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR).expect("a FIFO");
    assert_eq!(kind(layout.resolve().await), ErrorKind::Invalid);
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("a directory");
    assert_eq!(kind(layout.resolve().await), ErrorKind::Invalid);
}

#[test]
fn d_016_documents_of_a_layout_are_bounded() {
    for (name, length) in [("index.json", (8 << 20) + 1), ("oci-layout", 4097)] {
        let (directory, _) = sample();
        let file = File::options().write(true).open(directory.path().join(name)).expect("the file");
        file.set_len(length).expect("longer");
        assert_eq!(kind(Layout::open(directory.path(), None)), ErrorKind::Invalid, "{name}");
    }
}

#[test]
fn what_is_no_layout_says_what_to_write() {
    let (directory, _) = sample();
    assert_eq!(kind(Layout::open(&directory.path().join("none"), None)), ErrorKind::NotFound);
    let error = Layout::open(&directory.path().join("index.json"), None).expect_err("a file");
    assert!(error.advice().expect("advice").contains("oci-archive:"));
}
