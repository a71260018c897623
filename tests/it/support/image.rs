//! Images from code: entries become tar streams, tar streams layers, layers an image in a layout or in a registry.
//!
//! The tar writer is one of our own, of a few lines, so that tests can write what no tar program would: any name, any
//! owner, any time, any order, the same member twice. What does not fit the ustar header goes into a PAX header.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use ocifs::demo::registry::Content as RegistryContent;
use ocifs::oci::{Descriptor, Digest};
use serde_json::{Value, json};

/// When entries were last modified unless they say otherwise.
const MTIME: (i64, u32) = (1_600_000_000, 0);

/// One tar member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) content: Content,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a tar member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

impl Entry {
    /// An entry of root, with the usual mode for its kind.
    pub(crate) fn new(path: impl AsRef<[u8]>, content: Content) -> Self {
        let mode = match content {
            Content::Directory => 0o755,
            Content::Symlink(_) => 0o777,
            _ => 0o644,
        };
        Self { path: path.as_ref().to_vec(), content, mode, uid: 0, gid: 0, mtime: MTIME, xattrs: BTreeMap::new() }
    }

    /// Appends the member to a tar stream.
    fn write(&self, tar: &mut Vec<u8>) {
        let (flag, link, data, device): (u8, &[u8], &[u8], _) = match &self.content {
            Content::File(data) => (b'0', b"", data, None),
            Content::HardLink(target) => (b'1', target, b"", None),
            Content::Symlink(target) => (b'2', target, b"", None),
            Content::CharDevice(major, minor) => (b'3', b"", b"", Some((*major, *minor))),
            Content::BlockDevice(major, minor) => (b'4', b"", b"", Some((*major, *minor))),
            Content::Directory => (b'5', b"", b"", None),
            Content::Fifo => (b'6', b"", b"", None),
        };
        let mut path = self.path.clone();
        if flag == b'5' && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let mut pax = Vec::new();
        let mut numbers = [self.uid, self.gid, u64::try_from(self.mtime.0).unwrap_or(0)];
        for (key, text) in [("path", &path[..]), ("linkpath", link)] {
            if text.len() > 100 {
                pax_record(&mut pax, key.as_bytes(), text);
            }
        }
        for (key, number) in ["uid", "gid"].into_iter().zip(&mut numbers) {
            if *number > 0o7_777_777 {
                pax_record(&mut pax, key.as_bytes(), number.to_string().as_bytes());
                *number = 0;
            }
        }
        if self.mtime.1 != 0 || !(0..=0o77_777_777_777).contains(&self.mtime.0) {
            pax_record(&mut pax, b"mtime", pax_time(self.mtime).as_bytes());
            numbers[2] = 0;
        }
        for (name, value) in &self.xattrs {
            pax_record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !pax.is_empty() {
            write_member(tar, b'x', b"pax", b"", 0o644, [0; 3], &pax, None);
        }
        write_member(tar, flag, &path, link, self.mode, numbers, data, device);
    }
}

/// One record of a PAX header: its own length in decimal comes first.
fn pax_record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} ").as_bytes());
    pax.extend_from_slice(&[key, b"=", value, b"\n"].concat());
}

/// Decimal seconds; before the epoch the fraction counts the other way.
fn pax_time((seconds, nanos): (i64, u32)) -> String {
    match (seconds, nanos) {
        (seconds, 0) => seconds.to_string(),
        (seconds @ 0.., nanos) => format!("{seconds}.{nanos:09}"),
        (seconds, nanos) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

#[expect(clippy::too_many_arguments, reason = "they are the fields of the header, in its order")]
fn write_member(
    tar: &mut Vec<u8>,
    flag: u8,
    path: &[u8],
    link: &[u8],
    mode: u32,
    [uid, gid, mtime]: [u64; 3],
    data: &[u8],
    device: Option<(u32, u32)>,
) {
    let mut header = [0_u8; 512];
    let mut put = |place: usize, bytes: &[u8]| header[place..place + bytes.len()].copy_from_slice(bytes);
    put(0, &path[..path.len().min(100)]);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, format!("{uid:07o}").as_bytes());
    put(116, format!("{gid:07o}").as_bytes());
    put(124, format!("{:011o}", data.len()).as_bytes());
    put(136, format!("{mtime:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    if let Some((major, minor)) = device {
        put(329, format!("{major:07o}").as_bytes());
        put(337, format!("{minor:07o}").as_bytes());
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    /// Gzip members of this many uncompressed bytes each.
    GzipMembers(usize),
    /// One zstd frame, as most tools write it.
    Zstd,
    /// Zstd frames of this many uncompressed bytes each.
    ZstdFrames(usize),
}

impl Compression {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::GzipMembers(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd | Self::ZstdFrames(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    pub(crate) fn compress(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::None => bytes.to_vec(),
            Self::Gzip => gzip(bytes),
            Self::GzipMembers(size) => bytes.chunks(size).flat_map(gzip).collect(),
            Self::Zstd => zstd::encode_all(bytes, 3).expect("memory can be compressed"),
            Self::ZstdFrames(size) => bytes
                .chunks(size)
                .flat_map(|chunk| zstd::encode_all(chunk, 3).expect("memory can be compressed"))
                .collect(),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory can be compressed")
}

/// A layer being written: a list of entries in tar order, or a stream made by hand.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) entries: Vec<Entry>,
    stream: Option<Vec<u8>>,
    compression: Compression,
}

impl Layer {
    /// An empty gzip layer.
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), stream: None, compression: Compression::Gzip }
    }

    /// A layer whose uncompressed stream is `stream`, which need not be a valid tar stream.
    pub(crate) fn from_stream(stream: Vec<u8>) -> Self {
        Self { stream: Some(stream), ..Self::new() }
    }

    pub(crate) fn entry(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }

    pub(crate) fn add(self, path: impl AsRef<[u8]>, content: Content) -> Self {
        self.entry(Entry::new(path, content))
    }

    pub(crate) fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path, Content::Directory)
    }

    pub(crate) fn file(self, path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.add(path, Content::File(data.as_ref().to_vec()))
    }

    pub(crate) fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(path, Content::Symlink(target.as_ref().to_vec()))
    }

    pub(crate) fn hardlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(path, Content::HardLink(target.as_ref().to_vec()))
    }

    /// Hides `path` of the layers below.
    pub(crate) fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        self.file([&path[..name], b".wh.", &path[name..]].concat(), "")
    }

    /// Hides what the layers below have in the directory `path`; the root is the empty path.
    pub(crate) fn opaque(self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        self.file([path, slash, b".wh..wh..opq"].concat(), "")
    }

    /// Changes the last entry.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        change(self.entries.last_mut().expect("an entry comes first"));
        self
    }

    /// Sets the mode of the last entry.
    pub(crate) fn mode(self, mode: u32) -> Self {
        self.with(|entry| entry.mode = mode)
    }

    /// Sets the owner of the last entry.
    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        self.with(|entry| (entry.uid, entry.gid) = (uid, gid))
    }

    /// Sets the time of the last entry.
    pub(crate) fn mtime(self, seconds: i64, nanos: u32) -> Self {
        self.with(|entry| entry.mtime = (seconds, nanos))
    }

    /// Gives the last entry an extended attribute.
    pub(crate) fn xattr(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.with(|entry| drop(entry.xattrs.insert(name.as_ref().to_vec(), value.as_ref().to_vec())))
    }

    pub(crate) fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The uncompressed stream.
    pub(crate) fn stream(&self) -> Vec<u8> {
        let mut tar = self.stream.clone().unwrap_or_default();
        for entry in &self.entries {
            entry.write(&mut tar);
        }
        if self.stream.is_none() {
            tar.resize(tar.len() + 1024, 0);
        }
        tar
    }

    /// The compressed bytes, as a registry has them.
    pub(crate) fn blob(&self) -> Vec<u8> {
        self.compression.compress(&self.stream())
    }
}

/// An image being written.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    layers: Vec<Layer>,
    config: Value,
}

/// Where an image went.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub(crate) manifest: Descriptor,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Image {
    /// An image without layers, for this program's architecture.
    pub(crate) fn new() -> Self {
        let config = json!({ "architecture": platform(), "os": "linux", "config": {}, "rootfs": { "type": "layers" } });
        Self { layers: Vec::new(), config }
    }

    pub(crate) fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets a member of the configuration by JSON pointer parent and key: `("/config", "User", "1000")`.
    pub(crate) fn config(mut self, parent: &str, key: &str, value: impl Into<Value>) -> Self {
        self.config.pointer_mut(parent).expect("the parent is there")[key] = value.into();
        self
    }

    /// The same image without the entries of this path.
    pub(crate) fn without(mut self, path: impl AsRef<[u8]>) -> Self {
        for layer in &mut self.layers {
            layer.entries.retain(|entry| entry.path != path.as_ref());
        }
        self
    }

    /// The same image with every layer compressed like this.
    pub(crate) fn compressed(mut self, compression: Compression) -> Self {
        for layer in &mut self.layers {
            layer.compression = compression;
        }
        self
    }

    /// The uncompressed streams of its layers.
    pub(crate) fn streams(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(Layer::stream).collect()
    }

    /// Its configuration, without the digests of its layers.
    pub(crate) fn configuration(&self) -> Value {
        self.config.clone()
    }

    /// The compressed bytes of the layers, from the bottom.
    pub(crate) fn blobs(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(Layer::blob).collect()
    }

    /// Writes the image into an image layout, made if it is not there, as `tag`.
    pub(crate) fn to_layout(&self, layout: &Path, tag: &str) -> Built {
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a layout can be made");
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a layout can be written");
        let built = self.build(|media_type, bytes| {
            let descriptor = RegistryContent::new().add_blob(media_type, bytes.clone());
            fs::write(blobs.join(descriptor.digest.hex()), bytes).expect("a blob can be written");
            descriptor
        });
        let index = layout.join("index.json");
        let mut list: Value = fs::read(&index)
            .map(|bytes| serde_json::from_slice(&bytes).expect("an index written here"))
            .unwrap_or_else(|_| json!({ "schemaVersion": 2, "manifests": [] }));
        let mut entry = describe(&built.manifest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        list["manifests"].as_array_mut().expect("an index written here").push(entry);
        fs::write(index, list.to_string()).expect("the index can be written");
        built
    }

    /// Adds the image to what an embedded registry serves.
    pub(crate) fn to_content(&self, content: &RegistryContent, repository: &str, tag: &str) -> Built {
        self.build(|media_type, bytes| match media_type {
            MANIFEST => content.add_manifest(repository, Some(tag), media_type, bytes.clone()),
            _ => content.add_blob(media_type, bytes.clone()),
        })
    }

    fn build(&self, store: impl Fn(&str, &Vec<u8>) -> Descriptor) -> Built {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| Digest::sha256(&layer.stream())).collect();
        let layers: Vec<Descriptor> =
            self.layers.iter().map(|layer| store(layer.compression.media_type(), &layer.blob())).collect();
        let mut config = self.config.clone();
        config["rootfs"]["diff_ids"] = diff_ids.iter().map(Digest::to_string).collect();
        let config = store("application/vnd.oci.image.config.v1+json", &config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(&config),
            "layers": layers.iter().map(describe).collect::<Vec<_>>(),
        });
        let manifest = store(MANIFEST, &manifest.to_string().into_bytes());
        Built { manifest, config, layers, diff_ids }
    }
}

/// The architecture of this machine as images name it.
pub(crate) fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn describe(descriptor: &Descriptor) -> Value {
    json!({
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest.to_string(),
        "size": descriptor.size,
    })
}
