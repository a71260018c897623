//! The same image in every form and from every place is the same tree: case A-232 for the plain formats, A-150, A-180 to
//! A-193, and the sources.
//!
//! The three layers of [`crate::support::rich`] are compressed in many ways ([`FORMS`]) into image layouts. Each is mounted
//! by first contact and then again with nothing but indexes in the cache, and compared with the tree of the plain image,
//! of which the tests of `mount` know that it is right. Layers that bring their own index (`tocs`, and `tools` for those that
//! other people's tools write) need no first contact.

mod forms;
mod places;
mod tocs;
mod tools;
#[path = "../../src/index/toc/tests/writer.rs"]
mod writer;

use std::path::Path;

use serde_json::Value;

use self::forms::{Blob, FORMS, compressed, labelled, write_image};
use self::places::Place;
use crate::support::{
    Compression, Image, Layer, Mount, Ocifs, Tree, assert_same, output_of, require, require_fuse, require_root, rich,
    walk,
};

/// An installation that mounts one image after another.
struct Bench {
    ocifs: Ocifs,
    point: Mount,
}

impl Bench {
    fn new() -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let ocifs = Ocifs::new();
        Some(Self { point: ocifs.mount_point("m"), ocifs })
    }

    /// The tree of an image that the cache knows nothing of, by first contact.
    #[track_caller]
    fn first_contact(&self, reference: &str) -> Tree {
        self.ocifs.drop_all();
        self.show(reference, "first-contact")
    }

    /// The tree of an image of which the cache has the indexes only.
    #[track_caller]
    fn lazily(&self, reference: &str) -> Tree {
        self.ocifs.drop_bytes();
        // Decoded spans in memory would do instead of bytes.
        assert!(self.ocifs.end_daemon(), "it ends when it is told to");
        self.show(reference, "cache")
    }

    #[track_caller]
    fn show(&self, reference: &str, indexed: &str) -> Tree {
        self.ocifs.mount(reference, &self.point);
        for layer in self.layers() {
            assert_eq!(layer["indexed"], indexed, "{reference}: {layer}");
            if indexed == "cache" {
                let moved = (&layer["fetched"], &layer["requests"], &layer["local"]);
                assert_eq!(moved, (&0.into(), &0.into(), &0.into()), "{reference}: mounting needs no byte: {layer}");
            }
        }
        let tree = walk(self.point.path()).expect("a tree");
        self.ocifs.umount(&self.point);
        tree
    }

    /// What `status` tells of the layers that are mounted.
    fn layers(&self) -> Vec<Value> {
        self.ocifs.status(&self.point)["mounts"][0]["layers"].as_array().cloned().unwrap_or_default()
    }

    /// Both ways must give `expected`.
    #[track_caller]
    fn assert_gives(&self, reference: &str, expected: &Tree) {
        eprintln!("{reference}");
        assert_same(&self.first_contact(reference), expected, |_, _| false);
        assert_same(&self.lazily(reference), expected, |_, _| false);
    }
}

/// The uncompressed layers of the image.
fn streams() -> Vec<Vec<u8>> {
    rich(50).streams()
}

fn oci(layout: &Path) -> String {
    format!("oci:{}:latest", layout.display())
}

#[test]
fn a_232_every_compression_gives_the_same_tree() {
    let Some(bench) = Bench::new() else { return };
    let (home, streams) = (bench.ocifs.home(), streams());
    let plain = home.join("plain");
    write_image(&plain, &compressed(&streams, Compression::None));
    let expected = bench.first_contact(&oci(&plain));
    assert!(expected.len() > 100);
    assert_same(&bench.lazily(&oci(&plain)), &expected, |_, _| false);
    for (name, compress) in FORMS {
        let layout = home.join(name);
        write_image(&layout, &compress(&streams));
        bench.assert_gives(&oci(&layout), &expected);
        let registry = places::embedded(&layout);
        bench.assert_gives(&registry.name("it:latest"), &expected);
    }
}

#[test]
fn a_232_compressors_of_others_give_the_same_tree() {
    if !require(&["gzip", "pigz", "zstd"]) {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let (home, streams) = (bench.ocifs.home(), streams());
    let plain = home.join("plain");
    write_image(&plain, &compressed(&streams, Compression::None));
    let expected = bench.first_contact(&oci(&plain));
    let commands: [(&str, &[&str]); 6] = [
        ("gzip", &["gzip", "-9"]),
        ("pigz", &["pigz", "-p2", "-b128"]),
        ("pigz-independent", &["pigz", "-i", "-1"]),
        ("pigz-stored", &["pigz", "-0"]),
        ("zstd", &["zstd", "-q", "-T2", "-6", "--long=27"]),
        ("zstd-no-size", &["zstd", "-q", "-1", "--no-check", "--no-content-size"]),
    ];
    for (name, command) in commands {
        let layout = home.join(name);
        write_image(&layout, &forms::piped(&streams, command));
        bench.assert_gives(&oci(&layout), &expected);
    }
}

#[test]
fn every_place_gives_the_same_tree() {
    if !require(&["skopeo", "docker-registry", "tar", "gzip"]) {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let (home, streams) = (bench.ocifs.home(), streams());
    let plain = home.join("plain");
    write_image(&plain, &compressed(&streams, Compression::None));
    let expected = bench.first_contact(&oci(&plain));
    for (name, compress) in FORMS.iter().filter(|(name, _)| ["gzip", "gzip-members", "mixed"].contains(name)) {
        let layout = home.join(name);
        write_image(&layout, &compress(&streams));
        for place in Place::ALL {
            // skopeo refuses zstd for this place.
            if *name == "mixed" && matches!(place, Place::DockerArchive | Place::CompressedDockerArchive) {
                continue;
            }
            let put = place.put(&layout, home);
            bench.assert_gives(&put.reference, &expected);
        }
    }
}

#[test]
fn a_184_the_label_of_a_layer_does_not_matter() {
    let Some(bench) = Bench::new() else { return };
    let home = bench.ocifs.home();
    let stream = Layer::new().dir("d").file("d/file", crate::support::noise(200_000, 9)).stream();
    let plain = home.join("plain");
    write_image(&plain, &compressed(std::slice::from_ref(&stream), Compression::None));
    let expected = bench.first_contact(&oci(&plain));
    let forms = [Compression::None, Compression::Gzip, Compression::Zstd];
    let labels = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ];
    for (number, (form, label)) in forms.iter().flat_map(|form| labels.map(|label| (form, label))).enumerate() {
        let layout = home.join(number.to_string());
        write_image(&layout, &labelled(&compressed(std::slice::from_ref(&stream), *form), label));
        let tree = bench.first_contact(&oci(&layout));
        assert_same(&tree, &expected, |_, _| false);
    }
    let layout = home.join("encrypted");
    let label = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    write_image(&layout, &labelled(&compressed(&[stream], Compression::Gzip), label));
    let refused = bench.ocifs.run(["mount", &oci(&layout), &bench.point.path().to_string_lossy()]);
    assert!(refused.code() != 0 && refused.stderr.contains(label), "A-190: {}", refused.stderr);
}

#[test]
fn b_064_layers_named_by_sha512_are_as_good() {
    let Some(bench) = Bench::new() else { return };
    let (home, streams) = (bench.ocifs.home(), streams());
    let layout = home.join("plain");
    write_image(&layout, &compressed(&streams, Compression::None));
    let expected = bench.first_contact(&oci(&layout));
    for (name, form) in [("gzip", Compression::Gzip), ("frames", Compression::ZstdFrames(100_000))] {
        let mut blobs = compressed(&streams, form);
        blobs.iter_mut().for_each(|blob| blob.algorithm = ocifs::oci::Algorithm::Sha512);
        let layout = home.join(name);
        write_image(&layout, &blobs);
        bench.assert_gives(&oci(&layout), &expected);
        bench.assert_gives(&places::embedded(&layout).name("it:latest"), &expected);
        let archive = home.join(format!("{name}.tar"));
        output_of(std::process::Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg("."));
        bench.assert_gives(&format!("oci-archive:{}:latest", archive.display()), &expected);
    }
}

#[test]
fn a_193_a_layer_listed_twice_is_applied_twice() {
    let Some(bench) = Bench::new() else { return };
    let first = Layer::new().file("file", "first").file("kept", "kept").stream();
    let second = Layer::new().whiteout("file").file("other", "other").stream();
    let layout = bench.ocifs.home().join("layout");
    let blobs = compressed(&[first.clone(), second.clone(), first, second.clone(), second], Compression::Gzip);
    write_image(&layout, &blobs[..3]);
    let registry = places::embedded(&layout);
    let tree = bench.first_contact(&registry.name("it:latest"));
    assert_eq!(tree.keys().map(|path| &path[..]).collect::<Vec<_>>(), [&b""[..], b"file", b"kept", b"other"]);
    let fetched =
        registry.requests().iter().filter(|record| record.request.path.contains(&blobs[0].digest().hex())).count();
    assert_eq!(fetched, 1, "it was fetched once");
    assert_same(&bench.lazily(&registry.name("it:latest")), &tree, |_, _| false);

    let layout = bench.ocifs.home().join("more");
    write_image(&layout, &blobs);
    let tree = bench.first_contact(&oci(&layout));
    assert_eq!(tree.keys().map(|path| &path[..]).collect::<Vec<_>>(), [&b""[..], b"kept", b"other"]);
}

#[test]
fn a_150_layers_without_entries_change_nothing() {
    let Some(bench) = Bench::new() else { return };
    let layer = Layer::new().dir("").mode(0o700).file("file", "text").stream();
    let nothing = [Vec::new(), vec![0; 1024], vec![0; 10_240], vec![0; 512]];
    for form in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut streams = nothing.to_vec();
        streams.insert(2, layer.clone());
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        write_image(&layout, &compressed(&streams, form));
        let registry = places::embedded(&layout);
        for reference in [oci(&layout), registry.name("it:latest")] {
            let tree = bench.first_contact(&reference);
            assert_eq!(tree.keys().map(|path| &path[..]).collect::<Vec<_>>(), [&b""[..], b"file"]);
            assert_eq!((tree[&b""[..]].mode, tree[&b"file"[..]].size), (0o700, 4));
            assert_same(&bench.lazily(&reference), &tree, |_, _| false);
        }
    }
}

#[test]
fn an_image_without_layers_is_an_empty_directory() {
    let Some(bench) = Bench::new() else { return };
    let layout = bench.ocifs.home().join("layout");
    Image::new().to_layout(&layout, "latest");
    let tree = bench.first_contact(&oci(&layout));
    assert_eq!(tree.len(), 1, "{tree:?}");
    assert_eq!((tree[&b""[..]].mode, tree[&b""[..]].uid), (0o755, 0));
    assert_same(&bench.lazily(&oci(&layout)), &tree, |_, _| false);
}

#[test]
fn layers_inside_of_their_descriptors_are_never_asked_for() {
    let Some(bench) = Bench::new() else { return };
    let streams =
        [Layer::new().file("a", "in the manifest").stream(), Layer::new().file("b", "in the registry").stream()];
    for form in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut blobs: Vec<Blob> = compressed(&streams, form);
        blobs[0].is_embedded = true;
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        write_image(&layout, &blobs);
        let registry = places::embedded(&layout);
        registry.content().remove_blob(&blobs[0].digest());
        let reference = registry.name("it:latest");
        let tree = bench.first_contact(&reference);
        assert_eq!((tree[&b"a"[..]].size, tree[&b"b"[..]].size), (15, 15));
        assert_same(&bench.lazily(&reference), &tree, |_, _| false);
        assert!(registry.requests().iter().all(|record| !record.request.path.contains(&blobs[0].digest().hex())));
    }
}
