use tempfile::TempDir;

use super::*;
use crate::oci::{ImageManifest, Manifest};
use crate::source::conformance::{self, Sample, config_of, gzip, kind, tar_of};

fn open(files: &[(String, Vec<u8>)], selector: Option<&LocalSelector>) -> Result<DockerArchive, Error> {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image.tar");
    std::fs::write(&path, tar_of(files)).expect("written");
    DockerArchive::open(&path, selector, directory.path())
}

async fn manifest(archive: &DockerArchive) -> ImageManifest {
    let document = archive.resolve().await.expect("the manifest");
    match Manifest::parse(&document.bytes, &document.media_type) {
        Ok(Manifest::Image(manifest)) => manifest,
        other => panic!("{other:?}"),
    }
}

/// An archive of images, each with its tags and one layer of its own.
fn several(tags: &[serde_json::Value]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut images = Vec::new();
    for (position, tags) in tags.iter().enumerate() {
        let layer = format!("layer {position}").into_bytes();
        let config = config_of(std::slice::from_ref(&layer));
        let names = (format!("{}.json", Digest::sha256(&config).hex()), format!("{position}/layer.tar"));
        images.push(serde_json::json!({"Config": names.0, "RepoTags": tags, "Layers": [names.1]}));
        files.extend([(names.0, config), (names.1, layer)]);
    }
    files.push(("manifest.json".to_owned(), serde_json::json!(images).to_string().into_bytes()));
    files
}

fn name(text: &str) -> LocalSelector {
    LocalSelector::Name(text.to_owned())
}

#[tokio::test]
async fn a_docker_archive_keeps_the_contract_of_sources() {
    let sample = Sample::new();
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("image.tar");
    std::fs::write(&path, tar_of(&sample.docker_files(serde_json::json!(null)))).expect("written");
    let archive = DockerArchive::open(&path, None, directory.path()).expect("one image");
    let file = std::fs::File::options().write(true).open(&path).expect("the archive");
    conformance::check(&archive, &sample, Some(|| file.set_len(4096).expect("shorter"))).await;
    std::fs::write(&path, gzip(&tar_of(&sample.docker_files(serde_json::json!(null))))).expect("written");
    let archive = DockerArchive::open(&path, None, directory.path()).expect("b_028: compressed");
    conformance::check(&archive, &sample, None::<fn()>).await;
}

#[tokio::test]
async fn b_024_an_oci_layout_inside_is_what_counts() {
    let sample = Sample::new();
    let mut files = several(&[serde_json::json!(["a:1"]), serde_json::json!(null)]);
    files.extend(sample.layout_files("docker.io/library/a:1"));
    let archive = open(&files, Some(&name("a:1"))).expect("one image");
    conformance::check(&archive, &sample, None::<fn()>).await;
}

#[tokio::test]
async fn b_025_images_are_selected_by_tag_position_and_digest() {
    let tags = [serde_json::json!(["debian:12", "ghcr.io/a/b:1"]), serde_json::json!(null)];
    let files = several(&tags);
    for (selector, layer) in [
        (name("debian:12"), "layer 0"),
        (name("docker.io/library/debian:12"), "layer 0"),
        (name("ghcr.io/a/b:1"), "layer 0"),
        (LocalSelector::Index(1), "layer 1"),
    ] {
        let archive = open(&files, Some(&selector)).expect("selected");
        let made = manifest(&archive).await;
        assert_eq!(made.layers[0].digest, Digest::sha256(layer.as_bytes()), "{selector:?}");
        let pinned = LocalSelector::Digest(archive.resolve().await.expect("the manifest").digest);
        assert_eq!(manifest(&open(&files, Some(&pinned)).expect("pinned")).await, made);
    }
    for missing in [name("debian"), LocalSelector::Index(2), LocalSelector::Digest(Digest::sha256(b""))] {
        assert_eq!(kind(open(&files, Some(&missing))), ErrorKind::NotFound);
    }
    let error = open(&files, None).expect_err("two images");
    assert_eq!((error.kind(), error.advice()), (ErrorKind::Ambiguous, Some("it holds :debian:12, :@1")));
}

#[tokio::test]
async fn b_025_compressed_layers_inside_are_recognised() {
    let layers = vec![b"plain".to_vec(), gzip(b"x"), zstd::encode_all(&b"y"[..], 1).expect("memory")];
    let sample = Sample { config: config_of(&layers), layers };
    let archive = open(&sample.docker_files(serde_json::json!(null)), None).expect("one image");
    let made = manifest(&archive).await;
    let ends: Vec<&str> =
        made.layers.iter().map(|layer| layer.media_type.strip_prefix(LAYER_TYPE).expect("a layer")).collect();
    assert_eq!(ends, ["", "+gzip", "+zstd"]);
    made.check_runnable().expect("an image");
    let xz = vec![b"\xfd7zXZ\0".to_vec()];
    let refused = Sample { config: config_of(&xz), layers: xz }.docker_files(serde_json::json!(null));
    assert_eq!(kind(open(&refused, None)), ErrorKind::Unsupported, "a_194");
}

#[test]
fn b_026_layers_and_diff_ids_correspond() {
    let layers = vec![b"one".to_vec(), b"two".to_vec()];
    let config = config_of(&layers);
    let fewer = Sample { config: config.clone(), layers: layers[..1].to_vec() };
    assert_eq!(kind(open(&fewer.docker_files(serde_json::json!(null)), None)), ErrorKind::Invalid);
    let mut files = Sample { config, layers }.docker_files(serde_json::json!(null));
    files[0].1 = String::from_utf8(files[0].1.clone()).expect("text").replace("1/layer.tar", "0/layer.tar").into();
    let error = open(&files, None).expect_err("one file for two layers");
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("two different layers"), "{error}");
}

#[test]
fn b_027_archives_without_manifest_are_explained() {
    let legacy = open(&[("repositories".to_owned(), b"{}".to_vec())], None).expect_err("legacy");
    assert_eq!(legacy.kind(), ErrorKind::Unsupported);
    assert!(legacy.advice().is_some());
    assert_eq!(kind(open(&[], None)), ErrorKind::Invalid);
    for (text, expected) in [("[]", ErrorKind::NotFound), ("{}", ErrorKind::Invalid), ("[{}]", ErrorKind::Invalid)] {
        assert_eq!(kind(open(&[("manifest.json".to_owned(), text.into())], None)), expected, "{text}");
    }
}

#[test]
fn b_029_members_named_by_digest_must_have_it() {
    let mut files = Sample::new().docker_files(serde_json::json!(null));
    files.last_mut().expect("the configuration").1.push(b' ');
    assert_eq!(kind(open(&files, None)), ErrorKind::Corrupt);
    let mut files = Sample::new().docker_files(serde_json::json!(null));
    files.pop();
    assert_eq!(kind(open(&files, None)), ErrorKind::NotFound, "the configuration is missing");
}
