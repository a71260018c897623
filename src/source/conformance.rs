//! What every local source has to do, and the sample images that it is tried on.
//!
//! [`check`] is run against a layout, an OCI archive and a Docker archive of the same [`Sample`].

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::section::PIECE;
use super::{BlobReader, Error, ErrorKind, Source, read_all};
use crate::oci::{Algorithm, Descriptor, Digest, Manifest};

/// An image with a layer longer than a piece, a gzip layer, a repeated layer and one named by SHA-512.
pub(super) struct Sample {
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Vec<u8>>,
}

impl Sample {
    pub(super) fn new() -> Self {
        let long: Vec<u8> = (0..2 * PIECE + 1000).map(|at| (at * at / 251 % 256) as u8).collect();
        let layers = vec![long, gzip(b"second"), b"third".to_vec(), b"third".to_vec(), Vec::new()];
        Self { config: config_of(&layers), layers }
    }

    /// The bytes of every blob.
    fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    fn algorithm(position: usize) -> Algorithm {
        if position == 2 { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The manifest of the image in a layout.
    pub(super) fn manifest(&self) -> Vec<u8> {
        let config =
            descriptor("application/vnd.oci.image.config.v1+json", &Digest::sha256(&self.config), &self.config);
        let layers: Vec<serde_json::Value> = self
            .layers
            .iter()
            .enumerate()
            .map(|(position, layer)| {
                let digest = Digest::of(Self::algorithm(position), layer);
                descriptor("application/vnd.oci.image.layer.v1.tar", &digest, layer)
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers})).expect("JSON")
    }

    /// The files of a layout, with the image under the name `tag` and an unreferenced blob.
    pub(super) fn layout_files(&self, tag: &str) -> Vec<(String, Vec<u8>)> {
        let manifest = self.manifest();
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &Digest::sha256(&manifest), &manifest);
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": tag});
        let mut files = layout_of(vec![entry]);
        for (position, layer) in self.layers.iter().enumerate() {
            files.push(blob(Self::algorithm(position), layer));
        }
        files.extend([&self.config, &manifest].map(|bytes| blob(Algorithm::Sha256, bytes)));
        files.push(("extra/file".to_owned(), b"ignored".to_vec()));
        files
    }

    /// The files of an archive in Docker's format.
    pub(super) fn docker_files(&self, tags: serde_json::Value) -> Vec<(String, Vec<u8>)> {
        let config = format!("{}.json", Digest::sha256(&self.config).hex());
        let names: Vec<String> = (0..self.layers.len()).map(|position| format!("{position}/layer.tar")).collect();
        let manifest = serde_json::json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
        let mut files = vec![("manifest.json".to_owned(), manifest.to_string().into_bytes())];
        files.extend(names.into_iter().zip(self.layers.iter().cloned()));
        files.push((config, self.config.clone()));
        files
    }
}

/// A configuration with one diff id for each layer.
pub(super) fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| Digest::sha256(layer).to_string()).collect();
    let rootfs = serde_json::json!({"type": "layers", "diff_ids": ids});
    serde_json::to_vec(&serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs})).expect("JSON")
}

pub(super) fn descriptor(media_type: &str, digest: &Digest, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
}

/// The files that make a layout, without blobs.
pub(super) fn layout_of(entries: Vec<serde_json::Value>) -> Vec<(String, Vec<u8>)> {
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
    let marker = r#"{"imageLayoutVersion":"1.0.0"}"#;
    vec![("oci-layout".to_owned(), marker.into()), ("index.json".to_owned(), index.to_string().into_bytes())]
}

pub(super) fn blob(algorithm: Algorithm, bytes: &[u8]) -> (String, Vec<u8>) {
    (super::files::blob_path(&Digest::of(algorithm, bytes)), bytes.to_vec())
}

/// Writes `files` below `directory`.
pub(super) fn write_files(directory: &Path, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("below a directory")).expect("a directory");
        std::fs::write(path, bytes).expect("a file");
    }
}

/// A tar file of `files`.
pub(super) fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).expect("a member");
    }
    builder.into_inner().expect("an archive")
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// The kind of failure of a result that is an error.
#[track_caller]
pub(super) fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.err().expect("a failure").kind()
}

/// Runs the whole contract of [`Source`] on a source that holds `sample`. `truncate` makes the files behind it shorter.
pub(super) async fn check(source: &dyn Source, sample: &Sample, truncate: Option<impl FnOnce()>) {
    let document = source.resolve().await.expect("the image");
    assert_eq!(Digest::sha256(&document.bytes), document.digest);
    let Ok(Manifest::Image(manifest)) = Manifest::parse(&document.bytes, &document.media_type) else {
        panic!("{} resolves to an image manifest", source.name());
    };
    check_manifest(source, &document.digest, &document.bytes).await;
    let descriptors: Vec<&Descriptor> = std::iter::once(&manifest.config).chain(&manifest.layers).collect();
    assert_eq!(descriptors.len(), sample.blobs().count());
    for (descriptor, bytes) in descriptors.iter().zip(sample.blobs()) {
        assert!(descriptor.digest.matches(bytes));
        check_blob(source.blob(descriptor), bytes).await;
    }
    check_ranges(source.blob(&manifest.layers[0]), &sample.layers[0]).await;

    let longer = Descriptor { size: manifest.config.size + 1, ..manifest.config.clone() };
    assert_eq!(kind(read_all(&*source.blob(&longer), 0..1).await), ErrorKind::Corrupt, "b_029: another size");
    let missing = Descriptor::new("", Digest::sha256(b"missing"), 7);
    let reader = source.blob(&missing);
    assert_eq!(kind(read_all(&*reader, 0..7).await), ErrorKind::NotFound, "b_021: an error when needed");
    let embedded = Descriptor { data: Some("missing".into()), ..missing };
    assert_eq!(read_all(&*source.blob(&embedded), 1..4).await.expect("b_057: embedded data"), "iss");

    if let Some(truncate) = truncate {
        let open = source.blob(&manifest.layers[0]);
        read_all(&*open, 0..1).await.expect("the first byte");
        truncate();
        for reader in [open, source.blob(&manifest.layers[0])] {
            let whole = read_all(&*reader, 0..manifest.layers[0].size).await;
            assert_eq!(kind(whole), ErrorKind::Corrupt, "a short file");
        }
    }
}

async fn check_manifest(source: &dyn Source, digest: &Digest, bytes: &[u8]) {
    let descriptor = Descriptor::new("application/vnd.oci.image.manifest.v1+json", *digest, bytes.len() as u64);
    assert_eq!(source.manifest(&descriptor).await.expect("by descriptor").bytes, bytes);
    let longer = Descriptor { size: descriptor.size + 1, ..descriptor.clone() };
    assert_eq!(kind(source.manifest(&longer).await), ErrorKind::Corrupt);
    let missing = Descriptor { digest: Digest::sha256(b"missing"), ..descriptor };
    assert_eq!(kind(source.manifest(&missing).await), ErrorKind::NotFound);
}

async fn check_blob(reader: Arc<dyn BlobReader>, bytes: &[u8]) {
    let size = bytes.len() as u64;
    assert_eq!(reader.size(), size);
    let (one, two) = tokio::join!(read_all(&*reader, 0..size), read_all(&*reader, 0..size));
    assert!(one.expect("all bytes") == bytes && two.expect("all bytes, again") == bytes);
    for empty in [0..0, size..size] {
        assert!(read_all(&*reader, empty).await.expect("nothing").is_empty());
    }
    assert_eq!(kind(reader.read(0..size + 1).await), ErrorKind::Invalid);
    let mut stream = reader.read(0..size).await.expect("a stream");
    while let Some(piece) = stream.next().await {
        assert!(!piece.as_ref().expect("a piece").is_empty() && piece.expect("a piece").len() as u64 <= PIECE);
    }
}

async fn check_ranges(reader: Arc<dyn BlobReader>, bytes: &[u8]) {
    let offsets = (0..=bytes.len(), 0..=bytes.len());
    let mut runner = TestRunner::deterministic();
    for _ in 0..64 {
        let (one, two) = offsets.new_tree(&mut runner).expect("two offsets").current();
        let range = one.min(two)..one.max(two);
        let read = read_all(&*reader, range.start as u64..range.end as u64).await;
        assert!(read.expect("a range") == bytes[range.clone()], "{range:?}");
    }
}
