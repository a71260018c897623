//! From a tag to the image of one platform, through image indexes.

use std::fs;
use std::path::Path;

use ocifs::limits::INDEX_DEPTH;
use ocifs::oci::Digest;
use serde_json::{Value, json};

use crate::support::{Image, Layer, Ocifs, require_fuse};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Puts an image index above what `tag` names, which states no platform.
fn wrap(layout: &Path, tag: &str) {
    let path = layout.join("index.json");
    let mut list: Value = serde_json::from_slice(&fs::read(&path).expect("a layout")).expect("JSON");
    let entries = list["manifests"].as_array_mut().expect("a list");
    let named = |entry: &&mut Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let entry = entries.iter_mut().find(named).expect("the tag is there");
    let mut child = entry.clone();
    child.as_object_mut().map(|child| child.remove("annotations"));
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [child] }).to_string();
    let digest = Digest::sha256(index.as_bytes());
    fs::write(layout.join("blobs/sha256").join(digest.hex()), &index).expect("the layout is ours");
    entry["mediaType"] = INDEX.into();
    entry["digest"] = digest.to_string().into();
    entry["size"] = index.len().into();
    fs::write(&path, list.to_string()).expect("the layout is ours");
}

#[test]
fn b_046_indexes_within_indexes_are_followed_to_a_bounded_depth() {
    let ocifs = Ocifs::new();
    let layout = ocifs.home().join("layout");
    let built = Image::new().layer(Layer::new().file("a", "a")).to_layout(&layout, "it");
    let reference = format!("oci:{}:it", layout.display());
    for depth in 0..=INDEX_DEPTH {
        let report = ocifs.json(["inspect", "--json", &reference]);
        assert_eq!(report["digest"], built.manifest.digest.to_string(), "below {depth} indexes");
        wrap(&layout, "it");
    }
    for _ in 0..2 {
        let ran = ocifs.run(["inspect", &reference]);
        assert_ne!(ran.code(), 0);
        assert!(ran.stderr.contains("is nested too deeply"), "{}", ran.stderr);
        (0..100).for_each(|_| wrap(&layout, "it"));
    }
}

#[test]
fn b_048_an_image_without_a_choice_is_used_for_another_platform_with_a_warning() {
    if !require_fuse() {
        return;
    }
    let ocifs = Ocifs::new();
    let layout = ocifs.home().join("layout");
    let foreign = Image::new().layer(Layer::new().file("a", "a")).config("", "architecture", "s390x");
    foreign.to_layout(&layout, "it");
    let reference = format!("oci:{}:it", layout.display());
    let point = ocifs.mount_point("point");
    let ran = ocifs.mount(&reference, &point).ok();
    assert!(
        ran.stderr.contains("warning: the image is for linux/s390x, not for this machine (linux/"),
        "{}",
        ran.stderr
    );
    assert_eq!(fs::read(point.path().join("a")).expect("it is served"), b"a");
    ocifs.umount(&point);
    // Somebody made a choice possible, and it does not include this machine.
    wrap(&layout, "it");
    let ran = ocifs.run(["inspect", &reference]);
    assert_ne!(ran.code(), 0);
    assert!(ran.stderr.contains("platform"), "{}", ran.stderr);
}
