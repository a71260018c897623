//! Indexes that travel: made on one machine, found and believed, or not, on another, which has nothing in its cache.
//!
//! A machine is an installation of its own; the registry is the embedded one, with and without a referrers API, or
//! Debian's docker-registry, which has none.

mod converted;
mod interrupted;
mod lies;
mod made;
mod pinned;
mod refused;
mod signed;
mod soci;
mod travel;
mod windows;

use std::fmt::Write as _;

use ocifs::demo::registry::{Content, Endpoint};
use serde_json::Value;

use crate::support::{Built, Embedded, Image, Layer, Mount, Ocifs, Tree, noise, require_fuse, require_root, walk};

/// Text that compresses as programs do, so that its index has windows.
fn prose(length: usize, seed: u64) -> Vec<u8> {
    let mut text = String::with_capacity(length + 64);
    for pair in noise(length / 2, seed).chunks_exact(2) {
        // Writing to a string does not fail.
        write!(text, "word{:02x} {} ", pair[0], pair[1] % 7).unwrap_or_default();
        if text.len() >= length {
            break;
        }
    }
    text.truncate(length);
    text.into_bytes()
}

/// A layer of programs, whose index is long enough to be fetched in two parts.
fn programs() -> Layer {
    (0..6)
        .fold(Layer::new().dir("usr"), |layer, number| layer.file(format!("usr/text{number}"), prose(4 << 20, number)))
}

/// Two layers: one of programs, and a small one.
fn image() -> Image {
    let small = Layer::new().dir("etc").file("etc/conf", "a = b\n").whiteout("usr/text5").symlink("etc/link", "conf");
    Image::new().layer(programs()).layer(small)
}

/// True if images can be mounted here.
fn ready() -> bool {
    require_fuse() && require_root()
}

/// An embedded registry with the image as `it:latest`.
fn served(image: &Image) -> (Embedded, Built) {
    let content = Content::new();
    let built = image.to_content(&content, "it", "latest");
    (Embedded::start(content), built)
}

/// A machine with a mount point.
struct Machine {
    ocifs: Ocifs,
    point: Mount,
}

impl Machine {
    fn new() -> Self {
        let ocifs = Ocifs::new();
        Self { point: ocifs.mount_point("m"), ocifs }
    }

    /// Makes the index of an image and pushes it; what the program tells of it.
    #[track_caller]
    fn push(&self, reference: &str) -> Value {
        let mut made = self.ocifs.json(["index", "--json", "--push", reference]);
        made[0].take()
    }

    /// Mounts, and tells what was mounted.
    #[track_caller]
    fn mount(&self, options: &[&str], reference: &str) -> Value {
        let dir = self.point.path().to_string_lossy().into_owned();
        let arguments = ["mount", "--json", "--fill=off", "--profile-until=0"];
        self.ocifs.json([&arguments[..], options, &[reference, &dir]].concat())
    }

    fn tree(&self) -> Tree {
        walk(self.point.path()).expect("the mount can be walked")
    }
}

/// Where the index of each layer came from.
fn origins(report: &Value) -> Vec<&str> {
    let layers = report["layers"].as_array().expect("layers");
    layers.iter().map(|layer| layer["indexed"].as_str().expect("an origin")).collect()
}

/// Bytes that the registry sent of the image's layers.
fn layer_bytes(registry: &Embedded, built: &Built) -> u64 {
    let layers: Vec<String> = built.layers.iter().map(|layer| layer.digest.to_string()).collect();
    let of_layers = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Blob { digest, .. } if layers.contains(digest));
    let requests = registry.requests();
    requests.iter().filter(|record| of_layers(&record.request.endpoint)).map(|record| record.sent).sum()
}
