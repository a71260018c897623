//! Layers compressed in every way that a reader must take, and image layouts made of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use flate2::Crc;
use flate2::write::{DeflateEncoder, GzEncoder};
use ocifs::oci::{Algorithm, Digest};
use serde_json::{Value, json};

use crate::support::{Compression, Image};

/// One layer as it lies in a registry.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) bytes: Vec<u8>,
    pub(super) media_type: String,
    pub(super) diff_id: Digest,
    /// Of its digest.
    pub(super) algorithm: Algorithm,
    /// Whether the descriptor has the bytes too (`data`).
    pub(super) is_embedded: bool,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Blob {
    pub(super) fn new(stream: &[u8], bytes: Vec<u8>, media_type: &str) -> Self {
        let (diff_id, media_type) = (Digest::sha256(stream), media_type.to_owned());
        let annotations = BTreeMap::new();
        Self { bytes, media_type, diff_id, algorithm: Algorithm::Sha256, is_embedded: false, annotations }
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(self.algorithm, &self.bytes)
    }
}

/// Makes blobs of streams.
pub(super) type Form = fn(&[Vec<u8>]) -> Vec<Blob>;

/// The forms, by name.
pub(super) const FORMS: [(&str, Form); 10] = [
    ("gzip", |streams| compressed(streams, Compression::Gzip)),
    ("gzip-members", |streams| compressed(streams, Compression::GzipMembers(70_000))),
    ("gzip-stored", |streams| each(streams, GZIP, |bytes| gzip_at(bytes, 0))),
    ("gzip-fastest", |streams| each(streams, GZIP, |bytes| gzip_at(bytes, 1))),
    ("gzip-headers", |streams| each(streams, GZIP, gzip_with_every_header)),
    ("gzip-padded", |streams| each(streams, GZIP, |bytes| [gzip_at(bytes, 6), vec![0; 1000]].concat())),
    ("zstd", |streams| compressed(streams, Compression::Zstd)),
    ("zstd-frames", |streams| compressed(streams, Compression::ZstdFrames(150_000))),
    ("zstd-skippable", |streams| each(streams, ZSTD, zstd_with_skippable_frames)),
    ("mixed", |streams| {
        let forms = [Compression::ZstdFrames(100_000), Compression::None, Compression::Gzip];
        let one = |(stream, form): (&Vec<u8>, _)| compressed(std::slice::from_ref(stream), form);
        streams.iter().zip(forms.into_iter().cycle()).flat_map(one).collect()
    }),
];

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn each(streams: &[Vec<u8>], media_type: &str, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Blob> {
    streams.iter().map(|stream| Blob::new(stream, compress(stream), media_type)).collect()
}

/// Every stream compressed like this, and labelled as what it is.
pub(super) fn compressed(streams: &[Vec<u8>], form: Compression) -> Vec<Blob> {
    each(streams, form.media_type(), |bytes| form.compress(bytes))
}

/// The same bytes with another label.
pub(super) fn labelled(blobs: &[Blob], media_type: &str) -> Vec<Blob> {
    blobs.iter().map(|blob| Blob { media_type: media_type.to_owned(), ..blob.clone() }).collect()
}

/// Every stream compressed by a command that reads standard input and writes standard output.
pub(super) fn piped(streams: &[Vec<u8>], command: &[&str]) -> Vec<Blob> {
    let media_type = if command[0] == "zstd" { ZSTD } else { GZIP };
    each(streams, media_type, |bytes| {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .args(["-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be run");
        let mut stdin = child.stdin.take().expect("a pipe");
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(bytes).expect("it reads"));
            child.wait_with_output().expect("it ends")
        });
        assert!(output.status.success(), "{command:?}");
        output.stdout
    })
}

fn gzip_at(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory can be compressed")
}

/// Two members, each with all fields that RFC 1952 knows: FTEXT, FHCRC, FEXTRA, FNAME, FCOMMENT.
fn gzip_with_every_header(bytes: &[u8]) -> Vec<u8> {
    let member = |bytes: &[u8]| {
        let mut member = vec![0x1f, 0x8b, 8, 0x1f, 1, 2, 3, 4, 2, 3];
        let extra = [b"AB\x04\0data".repeat(100)].concat();
        member.extend(u16::try_from(extra.len()).expect("it is short").to_le_bytes());
        member.extend([&extra[..], b"layer.tar\0", b"made by a test\0"].concat());
        let mut header = Crc::new();
        header.update(&member);
        member.extend(&header.sum().to_le_bytes()[..2]);
        let mut encoder = DeflateEncoder::new(member, flate2::Compression::new(6));
        let mut member = encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory can be compressed");
        let mut content = Crc::new();
        content.update(bytes);
        member.extend([content.sum(), content.amount()].map(u32::to_le_bytes).concat());
        member
    };
    let (first, second) = bytes.split_at(bytes.len() / 3);
    [member(first), member(second)].concat()
}

/// Frames with skippable ones before, between and behind them.
fn zstd_with_skippable_frames(bytes: &[u8]) -> Vec<u8> {
    let skippable = |kind: u8, content: &[u8]| {
        let length = u32::try_from(content.len()).expect("it is short");
        [&[0x50 | kind, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), content].concat()
    };
    let mut blob = skippable(0, b"first");
    for (chunk, kind) in bytes.chunks(120_000).zip((1..16).cycle()) {
        blob.extend(zstd::encode_all(chunk, 3).expect("memory can be compressed"));
        blob.extend(skippable(kind, &vec![kind; usize::from(kind) * 50]));
    }
    blob.extend(skippable(15, b""));
    blob
}

/// Writes an image of these layers into a new layout as `latest`.
pub(super) fn write_image(layout: &Path, blobs: &[Blob]) {
    let put = |algorithm: Algorithm, bytes: &[u8]| {
        let digest = Digest::of(algorithm, bytes);
        let directory = layout.join("blobs").join(algorithm.name());
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(digest.hex()), bytes).expect("a blob can be written");
        json!({ "digest": digest.to_string(), "size": bytes.len() })
    };
    let document = |mut value: Value, media_type: &str| {
        let mut descriptor = put(Algorithm::Sha256, value.take().to_string().as_bytes());
        descriptor["mediaType"] = media_type.into();
        descriptor
    };
    let layers: Vec<Value> = blobs
        .iter()
        .map(|blob| {
            let mut descriptor = put(blob.algorithm, &blob.bytes);
            descriptor["mediaType"] = blob.media_type.as_str().into();
            if !blob.annotations.is_empty() {
                descriptor["annotations"] = json!(blob.annotations);
            }
            if blob.is_embedded {
                descriptor["data"] = base64::engine::general_purpose::STANDARD.encode(&blob.bytes).into();
            }
            descriptor
        })
        .collect();
    let mut config = Image::new().configuration();
    config["rootfs"]["diff_ids"] = blobs.iter().map(|blob| blob.diff_id.to_string()).collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let config = document(config, "application/vnd.oci.image.config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
    let mut manifest = document(manifest, media_type);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a layout can be written");
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).expect("a layout can be written");
}
