//! The demo image is a real image: other tools pull it, unpack it, and its shell runs.

use std::fs;
use std::io::Read;
use std::process::Command;

use flate2::read::GzDecoder;
use ocifs::demo::image::{self, Options};
use ocifs::demo::registry::Content;

use crate::support::{Embedded, Image, Layer, output_of, require, require_root, skopeo_copy, temp_dir, umoci_unpack};

#[test]
fn the_shell_of_the_demo_image_runs_in_what_umoci_makes_of_it() {
    if !require(&["skopeo", "umoci", "chroot"]) || !require_root() {
        return;
    }
    let dir = temp_dir();
    let content = Content::new();
    let options = Options { large_bytes: 2 << 20, ..Options::default() };
    let image = image::build(&content, "demo", "latest", &options).expect("this host has a shell");
    let registry = Embedded::start(content);
    let layout = dir.path().join("layout");
    skopeo_copy(&format!("docker://{}", registry.name("demo:latest")), &format!("oci:{}:latest", layout.display()));
    assert!(layout.join("blobs/sha256").join(image.manifest.digest.hex()).exists(), "the manifest arrived unchanged");

    // This umoci knows no zstd, so it gets the same streams as gzip.
    let mut repacked = Image::new();
    for (layer, diff_id) in image.layers.iter().zip(&image.diff_ids) {
        let blob = fs::read(layout.join("blobs/sha256").join(layer.digest.hex())).expect("skopeo copied every layer");
        let mut stream = Vec::new();
        match layer.media_type.rsplit_once('+') {
            Some((_, "gzip")) => drop(GzDecoder::new(&blob[..]).read_to_end(&mut stream).expect("valid gzip")),
            _ => stream = zstd::decode_all(&blob[..]).expect("valid zstd"),
        }
        assert!(diff_id.matches(&stream));
        repacked = repacked.layer(Layer::from_stream(stream));
    }
    repacked.to_layout(&layout, "gzip");
    let root = umoci_unpack(&layout, "gzip", &dir.path().join("bundle"));
    let script = "cd /srv/demo; for file in * */*; do echo $file; done; test -s large.log && read line <replaced.txt && \
                  echo $line";
    let said = output_of(Command::new("chroot").arg(&root).args(["/bin/sh", "-c", script]));
    let expected = "kept.txt\nlarge.log\nopaque\nreplaced.txt\nopaque/new.txt\nThis is the second layer's version.\n";
    assert_eq!(said, expected);
    for command in image.commands.iter().filter(|command| *command != "sh") {
        let script = format!("/bin/{command} /srv/demo/kept.txt >/tmp/out 2>&1 || /bin/{command} >/tmp/out");
        output_of(Command::new("chroot").arg(&root).args(["/bin/sh", "-c", &script]));
    }
}
