//! Files that carry images: what `ocifs cache import` takes in, and archives.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ocifs::index::LayerIndex;
use ocifs::oci::{Digest, LocalSelector};
use ocifs::profile::{Origin, Profile};
use ocifs::source::{DockerArchive, OciArchive, Source};
use ocifs::store::Store;
use serde_json::json;

use crate::layers::{build, gzip, stream};

/// How a parcel begins.
const HEAD: &[u8] = b"ocifsprc\x01\0\0\0";

/// A directory in memory, of this process.
pub(crate) fn scratch() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::var_os("OCIFS_FUZZ_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        fs::create_dir_all(&dir).expect("a directory");
        dir
    })
}

/// A parcel, of which the input has the records without their digests and without the end.
pub(crate) fn parcel(data: &[u8]) {
    let mut parcel = HEAD.to_vec();
    let mut chain = blake3::Hasher::new();
    let mut record = |kind: u8, payload: &[u8], chain: &mut blake3::Hasher| {
        let start = parcel.len();
        parcel.push(kind);
        parcel.extend((payload.len() as u32).to_le_bytes());
        parcel.extend(payload);
        let digest = blake3::hash(&parcel[start..]);
        chain.update(digest.as_bytes());
        parcel.extend(digest.as_bytes());
    };
    let mut rest = data;
    while let [kind, a, b, c, after @ ..] = rest {
        let length = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
        let (payload, after) = after.split_at(length.min(after.len()));
        record(*kind, payload, &mut chain);
        rest = after;
    }
    let end = chain.finalize();
    record(7, end.as_bytes(), &mut chain);

    let dir = scratch().join("cache");
    drop(fs::remove_dir_all(&dir));
    let store = Store::open(&dir).expect("a cache");
    let first = ocifs::parcel::import(&parcel[..], &store);
    let second = ocifs::parcel::import(&parcel[..], &store);
    assert!(first.is_err() || second.is_ok(), "what was imported is imported again: {second:?}");
}

/// An archive of an image, of either kind.
pub(crate) fn archive(data: &[u8]) {
    let file = scratch().join("archive.tar");
    fs::write(&file, data).expect("written");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let read = |source: &dyn Source| {
        runtime.block_on(async {
            let Ok(document) = source.resolve().await else { return };
            assert!(document.digest.matches(&document.bytes));
            let Ok(ocifs::oci::Manifest::Image(image)) =
                ocifs::oci::Manifest::parse(&document.bytes, &document.media_type)
            else {
                return;
            };
            for blob in image.layers.iter().chain([&image.config]).take(20) {
                let blob = source.blob(blob);
                if blob.size() < 1 << 20 {
                    drop(ocifs::source::read_all(&*blob, 0..blob.size()).await);
                }
            }
        });
    };
    for selector in [None, Some(LocalSelector::Name("a".to_owned())), Some(LocalSelector::Index(1))] {
        if let Ok(source) = OciArchive::open(&file, selector.as_ref(), scratch()) {
            read(&source);
        }
        if let Ok(source) = DockerArchive::open(&file, selector.as_ref(), scratch()) {
            read(&source);
        }
    }
}

fn record(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    [&[kind][..], &(payload.len() as u32).to_le_bytes()[..3], &payload].concat()
}

fn name(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

fn layer(index: &LayerIndex, form: u8) -> Vec<u8> {
    let (layer, diff_id) = (name(&index.layer().to_string()), name(&index.diff_id().to_string()));
    record(2, &[&layer, &index.compressed_size().to_le_bytes(), &diff_id, &[form]])
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let stream = stream();
    let blob = gzip(&stream, 6);
    let index = build(&blob, &stream).expect("a layer");
    let digest = Digest::sha256(b"{}");
    let profile = Profile::new(Origin { image: digest, recorded: 1, mount: "/".into() }, None).to_text();
    let at = 0_u64.to_le_bytes();
    let document = record(1, &[&name(&digest.to_string()), b"{}"]);
    let named = record(6, &[&name("r.example/a:b"), &name(&digest.to_string()), &name("x")]);
    let whole = [layer(&index, 0), record(4, &[&at, &blob])].concat();
    let parts = [layer(&index, 1), record(3, &[index.as_bytes()]), record(4, &[&at, &blob])].concat();
    let profile = record(5, &[&name(&digest.to_string()), profile.as_bytes()]);
    let reference = [&document[..], &whole, &parts, &profile, &named].concat();
    vec![[document, whole, profile].concat(), parts, reference]
}

pub(crate) fn archive_seeds() -> Vec<Vec<u8>> {
    let tar = |files: &[(String, Vec<u8>)]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, &bytes[..]).expect("written");
        }
        builder.into_inner().expect("written")
    };
    let stream = stream();
    let config = json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(&stream).to_string()] } });
    let config = config.to_string().into_bytes();
    let describe = |of: &str, bytes: &[u8]| {
        json!({ "mediaType": of, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len(),
        "annotations": { "org.opencontainers.image.ref.name": "a" } })
    };
    let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": [describe("application/vnd.oci.image.layer.v1.tar", &stream)] });
    let manifest = manifest.to_string().into_bytes();
    let list =
        json!({ "schemaVersion": 2, "manifests": [describe("application/vnd.oci.image.manifest.v1+json", &manifest)] });
    let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", Digest::sha256(bytes).hex()), bytes.to_vec());
    let oci = [
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), list.to_string().into_bytes()),
        blob(&config),
        blob(&manifest),
        blob(&stream),
    ];
    let list = json!([{ "Config": "c.json", "RepoTags": ["a:latest", "b:1"], "Layers": ["l/layer.tar"] }]);
    let docker = [
        ("c.json".to_owned(), config),
        ("l/layer.tar".to_owned(), stream),
        ("manifest.json".to_owned(), list.to_string().into_bytes()),
    ];
    vec![tar(&oci), tar(&docker), gzip(&tar(&docker), 6)]
}
